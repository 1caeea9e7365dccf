//! Threads of a launcher and the CPUs they may run on. vCPU threads are known by their names: rkvm calls them
//! `CPU 0/KVM`, as QEMU does with `-name debug-threads=on`, cloud-hypervisor `vcpu0`, firecracker `fc_vcpu 0`.
#![allow(unsafe_code)]

use crate::error::{Error, Result};
use crate::host::Host;
use crate::units::CpuSet;

/// What a thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Runs this vCPU.
    Vcpu(u32),
    /// Anything else.
    Emulator,
}

/// One thread of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thread {
    /// Its number.
    pub tid: u32,
    /// Its name.
    pub name: String,
    /// What it does.
    pub role: Role,
    /// Where it may run.
    pub allowed: CpuSet,
}

/// A binding to be made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Binding {
    /// vCPU number and its CPUs.
    pub vcpus: Vec<(u32, CpuSet)>,
    /// CPUs of all other threads.
    pub emulator: Option<CpuSet>,
}

fn role(name: &str) -> Role {
    let number = name
        .strip_prefix("CPU ")
        .and_then(|rest| rest.strip_suffix("/KVM").or_else(|| rest.strip_suffix("/TCG")))
        .or_else(|| name.strip_prefix("vcpu"))
        .or_else(|| name.strip_prefix("fc_vcpu "));
    number.and_then(|text| text.trim().parse().ok()).map_or(Role::Emulator, Role::Vcpu)
}

/// The process with that number, or the only one with that name (`-name` of its command line, or its own).
pub fn find_process(host: &Host, wanted: &str) -> Result<u32> {
    if let Ok(pid) = wanted.parse::<u32>() {
        if host.exists(&format!("/proc/{pid}/task")) {
            return Ok(pid);
        }
        return Err(Error::host(format!("there is no process {pid}")));
    }
    let mut found = Vec::new();
    for entry in host.list("/proc") {
        let Ok(pid) = entry.parse::<u32>() else { continue };
        if pid == std::process::id() {
            continue;
        }
        let line = host.read(&format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<&str> = line.split('\0').collect();
        let named = words.windows(2).any(|pair| {
            pair[0] == "-name" && {
                let name = pair[1].split(',').next().unwrap_or_default();
                name.strip_prefix("guest=").unwrap_or(name) == wanted
            }
        });
        let own = host.text(&format!("/proc/{pid}/comm")).is_some_and(|name| name == wanted);
        if named || own {
            found.push(pid);
        }
    }
    // What started the launcher (timeout, taskset, sudo) has the same words on its command line, and no vCPUs.
    let guests =
        |pid: &u32| threads(host, *pid).iter().any(|thread| matches!(thread.role, Role::Vcpu(_)));
    if found.len() > 1 && found.iter().any(guests) {
        found.retain(guests);
    }
    match found.as_slice() {
        [pid] => Ok(*pid),
        [] => Err(Error::host(format!("no process is called '{wanted}'"))
            .remedy("give its number, or the name after -name of its command line")),
        many => {
            Err(Error::usage(format!("'{wanted}' could be any of {many:?}"))
                .remedy("give the number"))
        }
    }
}

/// The threads of a process.
pub fn threads(host: &Host, pid: u32) -> Vec<Thread> {
    let entries = host.list(&format!("/proc/{pid}/task")).into_iter();
    let mut list: Vec<Thread> = entries
        .filter_map(|entry| {
            let tid = entry.parse().ok()?;
            let folder = format!("/proc/{pid}/task/{tid}");
            let name = host.text(&format!("{folder}/comm"))?;
            let status = host.read(&format!("{folder}/status")).ok()?;
            let allowed =
                status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
            Some(Thread { tid, role: role(&name), name, allowed: CpuSet::parse(allowed)? })
        })
        .collect();
    list.sort_by_key(|thread| match thread.role {
        Role::Vcpu(number) => (0, number, thread.tid),
        Role::Emulator => (1, 0, thread.tid),
    });
    list
}

/// Binds threads of a running process. Everything is checked before the first thread is touched.
pub fn bind(host: &Host, pid: u32, binding: &Binding) -> Result<()> {
    let list = threads(host, pid);
    let online = host.topology().online();
    let sets = binding.vcpus.iter().map(|(_, set)| set).chain(&binding.emulator);
    for set in sets {
        if set.is_empty() || !set.without(&online).is_empty() {
            return Err(Error::usage(format!(
                "CPUs '{set}' are not all online (online are {online})"
            )));
        }
    }
    for (vcpu, _) in &binding.vcpus {
        if !list.iter().any(|thread| thread.role == Role::Vcpu(*vcpu)) {
            return Err(Error::host(format!("process {pid} has no thread of vCPU {vcpu}"))
                .remedy("qemu names its threads only with -name NAME,debug-threads=on"));
        }
    }
    for thread in &list {
        let set = match thread.role {
            Role::Vcpu(vcpu) => {
                binding.vcpus.iter().find(|(number, _)| *number == vcpu).map(|(_, set)| set)
            }
            Role::Emulator => binding.emulator.as_ref(),
        };
        if let Some(set) = set {
            set_affinity(thread, set)?;
        }
    }
    Ok(())
}

fn set_affinity(thread: &Thread, set: &CpuSet) -> Result<()> {
    let highest = set.0.last().copied().unwrap_or(0);
    let words = usize::try_from(highest / 64 + 1).unwrap_or(1);
    let mut mask = vec![0_u64; words];
    for cpu in &set.0 {
        if let Some(word) = usize::try_from(cpu / 64).ok().and_then(|index| mask.get_mut(index)) {
            *word |= 1 << (cpu % 64);
        }
    }
    let tid = i32::try_from(thread.tid).map_err(|_| Error::host("thread number out of range"))?;
    // SAFETY: the mask is as many bytes long as the call is told, and only read.
    let result = unsafe { libc::sched_setaffinity(tid, words * 8, mask.as_ptr().cast()) };
    if result == 0 {
        return Ok(());
    }
    let error = std::io::Error::last_os_error();
    Err(Error::host(format!(
        "thread {} ({}) cannot be bound to {set}: {error}",
        thread.tid, thread.name
    ))
    .remedy(
        "run as the owner of the process or as root; a cpuset may withhold the CPU (cpu.cpuset)",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrapper_of_the_launcher_is_not_meant() {
        let folder = tempfile::tempdir().unwrap();
        for (pid, program, thread) in [(10, "timeout", "timeout"), (11, "rkvm", "CPU 0/KVM")] {
            let process = folder.path().join(format!("proc/{pid}"));
            let task = process.join(format!("task/{pid}"));
            std::fs::create_dir_all(&task).unwrap();
            let line = format!("{program}\0-name\0web\0");
            std::fs::write(process.join("cmdline"), line).unwrap();
            std::fs::write(process.join("comm"), program).unwrap();
            std::fs::write(task.join("comm"), thread).unwrap();
            std::fs::write(task.join("status"), "Cpus_allowed_list:\t0-1\n").unwrap();
        }
        let host = Host::below(folder.path(), crate::host::Facts::default());
        assert_eq!(find_process(&host, "web").unwrap(), 11);
        assert!(find_process(&host, "mail").is_err());
    }

    #[test]
    fn roles() {
        assert_eq!(role("CPU 3/KVM"), Role::Vcpu(3));
        assert_eq!(role("vcpu12"), Role::Vcpu(12));
        assert_eq!(role("fc_vcpu 0"), Role::Vcpu(0));
        assert_eq!(role("qemu-system-x86"), Role::Emulator);
        assert_eq!(role("vcpux"), Role::Emulator);
    }
}
