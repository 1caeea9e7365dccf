//! The system calls that are left.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, apply_filter_all_threads,
};

/// Whether sockets are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// No new ones.
    #[default]
    No,
    /// Yes: an address was named, or it is served.
    Yes,
}

/// Files, memory, threads, time.
const ALWAYS: &[libc::c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_lseek,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_syncfs,
    libc::SYS_sync_file_range,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_truncate,
    libc::SYS_copy_file_range,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_fadvise64,
    libc::SYS_readahead,
    libc::SYS_fcntl,
    libc::SYS_flock,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    libc::SYS_readlinkat,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_fgetxattr,
    libc::SYS_flistxattr,
    libc::SYS_umask,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_mincore,
    libc::SYS_msync,
    libc::SYS_mlock,
    libc::SYS_munlock,
    libc::SYS_brk,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_rseq,
    libc::SYS_membarrier,
    libc::SYS_getcpu,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    libc::SYS_prlimit64,
    libc::SYS_getrlimit,
    libc::SYS_getrusage,
    libc::SYS_times,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getgroups,
    libc::SYS_getpgid,
    libc::SYS_getsid,
    libc::SYS_setsid,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_sigpending,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_prctl,
    // Answered with ENOSYS by a filter of its own, so that the C library takes clone, whose flags can be seen.
    libc::SYS_clone3,
];

/// Calls that newer architectures do not have.
#[cfg(target_arch = "x86_64")]
const OLD: &[libc::c_long] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_unlink,
    libc::SYS_rename,
    libc::SYS_link,
    libc::SYS_chmod,
    libc::SYS_dup2,
    libc::SYS_pipe,
    libc::SYS_select,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_time,
    libc::SYS_arch_prctl,
    libc::SYS_getpgrp,
];
#[cfg(not(target_arch = "x86_64"))]
const OLD: &[libc::c_long] = &[];

/// Sockets.
const SOCKETS: &[libc::c_long] = &[
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_setsockopt,
    libc::SYS_getsockopt,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_shutdown,
];

/// Types what somebody could type on the terminal.
const TIOCSTI: u64 = 0x5412;
/// Pastes on the console.
const TIOCLINUX: u64 = 0x541c;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn rules(network: Network) -> Result<Rules, seccompiler::BackendError> {
    let sockets = if network == Network::Yes { SOCKETS } else { &[] };
    let mut rules: Rules =
        ALWAYS.iter().chain(OLD).chain(sockets).map(|call| (*call, Vec::new())).collect();
    let one = |all: Vec<SeccompCondition>| SeccompRule::new(all).map(|rule| vec![rule]);
    let is = SeccompCondition::new;
    // Threads of this process, no processes and no namespaces.
    let thread = u64::from(libc::CLONE_THREAD.unsigned_abs());
    rules.insert(libc::SYS_clone, one(vec![is(0, Len::Dword, Op::MaskedEq(thread), thread)?])?);
    // Signals to this process only: abort.
    let own = u64::from(std::process::id());
    rules.insert(libc::SYS_tgkill, one(vec![is(0, Len::Dword, Op::Eq, own)?])?);
    // Any device, but no typing for the user.
    let quiet = vec![is(1, Len::Dword, Op::Ne, TIOCSTI)?, is(1, Len::Dword, Op::Ne, TIOCLINUX)?];
    rules.insert(libc::SYS_ioctl, one(quiet)?);
    Ok(rules)
}

fn program(
    rules: Rules,
    listed: SeccompAction,
    others: SeccompAction,
) -> Result<BpfProgram, String> {
    let arch: TargetArch = std::env::consts::ARCH.try_into().map_err(words)?;
    SeccompFilter::new(rules, others, listed, arch).and_then(TryInto::try_into).map_err(words)
}

fn words(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Confines all threads.
pub(super) fn restrict(network: Network) -> Result<(), String> {
    let no = |errno: i32| SeccompAction::Errno(errno.unsigned_abs());
    let allow = SeccompAction::Allow;
    let old_clone = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let first = program(old_clone, no(libc::ENOSYS), allow.clone())?;
    let second = program(rules(network).map_err(words)?, allow, no(libc::EPERM))?;
    // The one that refuses comes last: entering is a call that it refuses.
    apply_filter_all_threads(&first).map_err(words)?;
    apply_filter_all_threads(&second).map_err(words)
}

/// Whether this kernel has seccomp.
pub(super) fn available() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|s| s.contains("\nSeccomp_filters:"))
        || std::path::Path::new("/proc/sys/kernel/seccomp/actions_avail").exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_starts_programs_or_changes_rights() {
        let forbidden = [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_kill,
            libc::SYS_setuid,
            libc::SYS_setns,
            libc::SYS_unshare,
            libc::SYS_mount,
            libc::SYS_chroot,
            libc::SYS_pivot_root,
            libc::SYS_bpf,
            libc::SYS_init_module,
            libc::SYS_finit_module,
            libc::SYS_kexec_load,
            libc::SYS_open_by_handle_at,
            libc::SYS_io_uring_setup,
            libc::SYS_userfaultfd,
            libc::SYS_perf_event_open,
            libc::SYS_keyctl,
            libc::SYS_mknodat,
            libc::SYS_memfd_create,
        ];
        for network in [Network::No, Network::Yes] {
            let all = rules(network).unwrap();
            assert!(forbidden.iter().all(|call| !all.contains_key(call)), "{network:?}");
            assert_eq!(all.contains_key(&libc::SYS_socket), network == Network::Yes);
            program(all, SeccompAction::Allow, SeccompAction::Errno(1)).unwrap();
        }
    }
}
