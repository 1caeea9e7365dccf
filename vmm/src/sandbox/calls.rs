//! The system calls that each kind of thread may make.
//!
//! Filters are lists of what is allowed; everything else is refused ([`super::report`]). They stand on
//! each other: a thread that a vCPU's thread starts has its filter too, so [`DEVICE`] is part of [`VCPU`],
//! and that of [`MACHINE`].

use std::collections::BTreeMap;
use std::sync::OnceLock;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};

use crate::{Error, Result};

/// What a thread is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The machine's own thread, its monitors and character devices: they also open files (as far as
    /// Landlock lets them) and use sockets.
    Machine,
    /// Runs guest code, and carries out its accesses to devices.
    Vcpu,
    /// Serves queues of a device.
    Device,
    /// Serves a disk that is on a server: talks on the connection that there is, and makes a new one if some disk may
    /// ([`Dialling`]).
    Server,
}

/// How many kinds there are.
const KINDS: usize = Kind::Server as usize + 1;

/// Whether disks may connect to their servers again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dialling {
    /// No disk may.
    #[default]
    Never,
    /// Those may that were given `reconnect-delay`.
    Allowed,
}

/// Moving data, waiting, memory, threads.
const DEVICE: &[libc::c_long] = &[
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
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_sync_file_range,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_copy_file_range,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_statx,
    libc::SYS_newfstatat,
    libc::SYS_fadvise64,
    libc::SYS_ioctl,
    libc::SYS_fcntl,
    libc::SYS_dup,
    libc::SYS_close,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_create1,
    libc::SYS_eventfd2,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_time,
    libc::SYS_getrandom,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_set_tid_address,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_tgkill,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_restart_syscall,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    // Rings are made before, and can do six things only (`crate::block::ring`).
    libc::SYS_io_uring_enter,
    // Names of threads; narrowing further.
    libc::SYS_prctl,
    libc::SYS_seccomp,
    libc::SYS_membarrier,
    // What libraries ask before they choose the size of a pool.
    libc::SYS_getcpu,
    libc::SYS_sysinfo,
    libc::SYS_prlimit64,
];

/// Besides: talking on a connection that there is.
const SERVER: &[libc::c_long] = &[
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_shutdown,
    // What a resolver of names asks before it finds that it can open nothing.
    libc::SYS_uname,
];

/// Besides: connecting again ([`Dialling::Allowed`]).
const DIAL: &[libc::c_long] =
    &[libc::SYS_socket, libc::SYS_connect, libc::SYS_setsockopt, libc::SYS_getsockopt];

/// Besides: a device's output on sockets, where a vCPU runs.
const VCPU: &[libc::c_long] = &[
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_pipe2,
    libc::SYS_sched_setaffinity,
    libc::SYS_landlock_restrict_self,
];

/// Besides: files and sockets of monitors and character devices; waiting for scripts.
const MACHINE: &[libc::c_long] = &[
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_access,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_flock,
    libc::SYS_fstatfs,
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
    libc::SYS_signalfd4,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_sigpending,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_kill,
    libc::SYS_pidfd_send_signal,
    libc::SYS_getrusage,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getppid,
    libc::SYS_memfd_create,
    libc::SYS_msync,
    libc::SYS_mincore,
    libc::SYS_dup2,
    libc::SYS_dup3,
    libc::SYS_select,
    libc::SYS_pselect6,
    libc::SYS_alarm,
    libc::SYS_setitimer,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_add_rule,
];

/// Refused to vCPUs and devices without a word: the C library looks at `/sys/devices/system/cpu/online` when
/// a thread allocates memory for the first time, and goes on without it.
const QUIET: &[libc::c_long] = &[libc::SYS_open, libc::SYS_openat];

/// Refused without a word to those who talk to servers: a client of NBD looks for further connections to read on, and
/// does without. Device threads that talk to nobody are told of by [`super::report`] all the same.
const QUIET_SERVER: &[libc::c_long] = &[libc::SYS_socket];

impl Kind {
    /// All calls that it may make.
    fn calls(self, dialling: Dialling) -> impl Iterator<Item = libc::c_long> {
        let parts: &[&[libc::c_long]] = match self {
            Kind::Device => &[DEVICE],
            Kind::Server => &[DEVICE, SERVER],
            Kind::Vcpu => &[DEVICE, SERVER, VCPU],
            Kind::Machine => &[DEVICE, SERVER, VCPU, MACHINE],
        };
        let talks = matches!(self, Kind::Server | Kind::Vcpu);
        let dial = if talks && dialling == Dialling::Allowed { DIAL } else { &[] };
        parts.iter().flat_map(|p| p.iter().copied()).chain(dial.iter().copied())
    }

    /// Calls that it may not make, and that are refused without a word.
    fn quiet(self, dialling: Dialling) -> Vec<libc::c_long> {
        let parts: &[&[libc::c_long]] = match (self, dialling) {
            (Kind::Machine, _) => &[],
            (Kind::Vcpu | Kind::Server, Dialling::Never) => &[QUIET, QUIET_SERVER],
            _ => &[QUIET],
        };
        parts.concat()
    }
}

/// Filters, compiled when the first thread of their kind needs them: most machines have no thread of some kinds.
#[derive(Debug)]
pub struct Filters {
    dialling: Dialling,
    /// By kind: what to enter, or why it cannot be made.
    ready: [OnceLock<std::result::Result<Vec<BpfProgram>, String>>; KINDS],
}

fn program(
    calls: impl Iterator<Item = libc::c_long>,
    listed: SeccompAction,
    others: SeccompAction,
) -> std::result::Result<BpfProgram, String> {
    let rules: BTreeMap<i64, Vec<seccompiler::SeccompRule>> =
        calls.map(|call| (call, Vec::new())).collect();
    SeccompFilter::new(rules, others, listed, TargetArch::x86_64)
        .and_then(TryInto::<BpfProgram>::try_into)
        .map_err(|e| format!("seccomp: {e}"))
}

/// The filters of one kind of thread; the kernel asks all of them, and the strictest answer counts.
fn compile(kind: Kind, dialling: Dialling) -> std::result::Result<Vec<BpfProgram>, String> {
    let quiet = kind.quiet(dialling);
    let allowed = kind.calls(dialling).chain(quiet.iter().copied());
    let mut programs = vec![program(allowed, SeccompAction::Allow, SeccompAction::Trap)?];
    if !quiet.is_empty() {
        let no = SeccompAction::Errno(libc::EACCES.unsigned_abs());
        programs.push(program(quiet.into_iter(), no, SeccompAction::Allow)?);
    }
    // The one that lets calls pass is entered last: entering is a call too.
    programs.reverse();
    Ok(programs)
}

impl Filters {
    /// For all kinds of threads.
    pub fn new(dialling: Dialling) -> Self {
        Filters { dialling, ready: [const { OnceLock::new() }; KINDS] }
    }

    /// What a thread of this kind has to enter, in this order.
    ///
    /// # Errors
    /// When this processor's filters cannot be made.
    pub fn programs(&self, kind: Kind) -> Result<&[BpfProgram]> {
        let ready = self.ready[kind as usize].get_or_init(|| compile(kind, self.dialling));
        ready.as_deref().map_err(|e| Error::invalid(e.clone()))
    }

    /// Confines the calling thread.
    ///
    /// # Errors
    /// When the kernel has no seccomp.
    pub fn enter(&self, kind: Kind) -> Result<()> {
        for program in self.programs(kind)? {
            apply_filter(program).map_err(|e| Error::invalid(format!("seccomp: {e}")))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_starts_programs_or_changes_rights() {
        let forbidden = [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_fork,
            libc::SYS_vfork,
            libc::SYS_ptrace,
            libc::SYS_setuid,
            libc::SYS_setresuid,
            libc::SYS_mount,
            libc::SYS_chroot,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_bpf,
            libc::SYS_io_uring_setup,
            libc::SYS_io_uring_register,
            libc::SYS_process_vm_writev,
            libc::SYS_open_by_handle_at,
            libc::SYS_init_module,
            libc::SYS_kexec_load,
        ];
        for kind in [Kind::Machine, Kind::Vcpu, Kind::Device, Kind::Server] {
            for dialling in [Dialling::Never, Dialling::Allowed] {
                assert!(kind.calls(dialling).all(|c| !forbidden.contains(&c)), "{kind:?}");
                compile(kind, dialling).unwrap();
            }
        }
        for opens in [libc::SYS_openat, libc::SYS_open, libc::SYS_socket, libc::SYS_unlink] {
            for kind in [Kind::Vcpu, Kind::Device, Kind::Server] {
                assert!(kind.calls(Dialling::Never).all(|c| c != opens));
            }
        }
        let mut device = Kind::Device.calls(Dialling::Allowed);
        assert!(device.all(|c| c != libc::SYS_connect), "no disk on a server, no connection");
    }
}
