//! Firmware locks, read from the processor's registers (checks 3 to 5). Register layouts: Intel SDM volume 4
//! table 2-2 (IA32_FEATURE_CONTROL), AMD APM volume 2 section 15.30.1 (VM_CR).

use super::kvm::firmware_hint;
use super::outcome::{Outcome, Remedy};
use crate::host::{Host, Vendor};
use crate::wanted::Wanted;

const FEATURE_CONTROL: u32 = 0x3A;
const VM_CR: u32 = 0xC001_0114;

/// The register of every CPU; the first error ends it.
fn all_cpus(host: &Host, register: u32) -> std::io::Result<Vec<(u32, u64)>> {
    let online = host.topology().online();
    online.0.iter().map(|cpu| Ok((*cpu, host.msr(*cpu, register)?))).collect()
}

fn hides_virt(host: &Host) -> bool {
    host.cpuinfo().virt_flag().is_none()
}

/// What the kernel itself said about it when the registers are out of reach.
fn kernel_says_disabled(host: &Host) -> Option<String> {
    let log = host.read("/var/log/dmesg").or_else(|_| host.read("/var/log/kern.log")).ok()?;
    let line = log.lines().rev().find(|line| {
        let line = line.to_lowercase();
        line.contains("disabled by bios")
            || line.contains("disabled in msr_ia32_feat")
            || line.contains("svm disabled")
    });
    line.map(str::to_owned)
}

fn unreadable(host: &Host, error: &std::io::Error) -> Outcome {
    let source = "/dev/cpu/*/msr";
    if let Some(line) = kernel_says_disabled(host) {
        return Outcome::fatal("the kernel found virtualization disabled by firmware")
            .read("kernel log", line)
            .remedy(firmware_hint(host));
    }
    if hides_virt(host) {
        Outcome::unknown("the register cannot be read: not provable")
            .read(source, error.to_string())
    } else {
        // With firmware's lock the kernel would have cleared the flag.
        Outcome::pass("the register cannot be read, but the kernel shows the flag, which it would not with the lock")
            .read(source, error.to_string())
    }
}

/// 3: bit 0 locks the register, bit 2 allows VMX outside SMX.
pub fn intel(host: &Host, _wanted: &Wanted) -> Outcome {
    if host.cpuinfo().vendor != Vendor::Intel {
        return Outcome::skipped("not an Intel processor").read("/proc/cpuinfo vendor_id", "other");
    }
    let values = match all_cpus(host, FEATURE_CONTROL) {
        Ok(values) => values,
        Err(error) => return unreadable(host, &error),
    };
    let locked_off: Vec<u32> = values
        .iter()
        .filter(|(_, value)| value & 1 == 1 && value & 4 == 0)
        .map(|(cpu, _)| *cpu)
        .collect();
    let first = values.first().map_or(0, |(_, value)| *value);
    let source = "MSR 0x3A (IA32_FEATURE_CONTROL)";
    if locked_off.is_empty() {
        return Outcome::pass("VMX is allowed on every CPU").read(source, format!("{first:#x}"));
    }
    Outcome::fatal(format!("firmware locked VMX off on CPUs {locked_off:?}"))
        .read(source, format!("{first:#x} on CPU 0: lock bit set, VMX bit clear"))
        .remedy(firmware_hint(host))
}

/// 4: bit 4 is SVMDIS, bit 3 its lock.
pub fn amd(host: &Host, _wanted: &Wanted) -> Outcome {
    if host.cpuinfo().vendor != Vendor::Amd {
        return Outcome::skipped("not an AMD processor").read("/proc/cpuinfo vendor_id", "other");
    }
    let values = match all_cpus(host, VM_CR) {
        Ok(values) => values,
        Err(error) => return unreadable(host, &error),
    };
    let off: Vec<u32> =
        values.iter().filter(|(_, value)| value & 0x10 != 0).map(|(cpu, _)| *cpu).collect();
    let first = values.first().map_or(0, |(_, value)| *value);
    let source = "MSR 0xC0010114 (VM_CR)";
    if off.is_empty() {
        return Outcome::pass("SVM is allowed on every CPU").read(source, format!("{first:#x}"));
    }
    Outcome::fatal(format!("firmware disabled SVM on CPUs {off:?}"))
        .read(source, format!("{first:#x}: SVMDIS set"))
        .remedy(firmware_hint(host))
}

/// 5: whether 3 and 4 could be answered at all.
pub fn readable(host: &Host, _wanted: &Wanted) -> Outcome {
    let register = match host.cpuinfo().vendor {
        Vendor::Intel => FEATURE_CONTROL,
        Vendor::Amd => VM_CR,
        Vendor::Other => return Outcome::skipped("no register is known for this processor"),
    };
    let Err(error) = host.msr(0, register) else {
        return Outcome::pass("the registers can be read").read("/dev/cpu/0/msr", "readable");
    };
    let lockdown = host.text("/sys/kernel/security/lockdown").unwrap_or_default();
    let (why, remedy) = match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENXIO | libc::ENODEV | libc::ENOTDIR) => (
            "the msr module is not loaded",
            Remedy::command("load it and run as root", "modprobe msr"),
        ),
        Some(libc::EIO) => (
            "the processor, or the hypervisor above, does not have that register",
            Remedy::text("nothing to do: trust kvm.run"),
        ),
        _ if lockdown.contains("[integrity]") || lockdown.contains("[confidentiality]") => (
            "kernel lockdown hides the registers",
            Remedy::text("nothing to do while Secure Boot is on: trust kvm.run"),
        ),
        _ => (
            "only root may read the registers",
            Remedy::command("run as root", "sudo rhostprep check"),
        ),
    };
    Outcome::info(format!("firmware locks are not provable: {why}"))
        .read("/dev/cpu/0/msr", error.to_string())
        .remedy(remedy)
}
