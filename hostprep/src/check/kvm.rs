//! Does KVM work, and if not, why not (checks 1, 2, 6, 9, 10, 17, 18, 20).

use super::outcome::{Needs, Outcome, Remedy};
use crate::host::{Host, VcpuRun, Vendor};
use crate::wanted::Wanted;

/// The module that belongs to this processor.
pub(super) fn processor_module(host: &Host) -> Option<&'static str> {
    match host.cpuinfo().vendor {
        Vendor::Intel => Some("kvm_intel"),
        Vendor::Amd => Some("kvm_amd"),
        Vendor::Other => None,
    }
}

/// 1: the proof. On failure the error number picks the next thing to look at.
pub fn runs(host: &Host, _wanted: &Wanted) -> Outcome {
    match host.vcpu() {
        VcpuRun::Works { api } => {
            Outcome::pass("a guest computed, wrote to a port and halted under KVM")
                .read("KVM_GET_API_VERSION", api.to_string())
                .read("KVM_RUN", "KVM_EXIT_IO, then KVM_EXIT_HLT")
        }
        VcpuRun::Unknown => Outcome::unknown("no vCPU was run on this host"),
        VcpuRun::Failed { step, errno, text } => {
            let (summary, remedy) = explain(host, step, *errno);
            Outcome::fatal(summary).read(format!("KVM step {step}"), text.clone()).remedy(remedy)
        }
    }
}

fn explain(host: &Host, step: &str, errno: i32) -> (String, Remedy) {
    let module = processor_module(host).unwrap_or("kvm_intel or kvm_amd");
    match (step, errno) {
        ("open", libc::ENOENT) => (
            "/dev/kvm does not exist".into(),
            Remedy::command(
                "load the module; if that fails, cpu.virt-flag and firmware.* say why",
                format!("modprobe {module}"),
            ),
        ),
        ("open", libc::EACCES | libc::EPERM) => (
            "this user may not open /dev/kvm".into(),
            Remedy::text("see kvm.access; inside a container or snap see sec.cgroup"),
        ),
        ("open", libc::ENODEV | libc::ENXIO) => (
            "/dev/kvm exists but no driver answers".into(),
            Remedy::command("load the module", format!("modprobe {module}")),
        ),
        ("create-vm", libc::EBUSY) => (
            "another hypervisor holds the processor's virtualization extension".into(),
            Remedy::text("see kvm.other-hypervisor"),
        ),
        ("create-vm", libc::ENOMEM) => (
            "the kernel has no memory for a VM".into(),
            Remedy::text("free memory, or raise the memory limit of this control group"),
        ),
        ("version", _) => (
            "/dev/kvm speaks another API version than 12".into(),
            Remedy::text("use a kernel of the last fifteen years").needs(Needs::Reboot),
        ),
        _ => (
            format!("KVM failed at step {step}"),
            Remedy::command("look for the reason in the kernel log", "dmesg | grep -i kvm"),
        ),
    }
}

/// 2: the flag. Only a hint once a vCPU has run.
pub fn virt_flag(host: &Host, _wanted: &Wanted) -> Outcome {
    let info = host.cpuinfo();
    let cpuid = host.probe().cpuid().unwrap_or_default();
    let works = matches!(host.vcpu(), VcpuRun::Works { .. });
    let shown = info.virt_flag().unwrap_or("neither vmx nor svm");
    let evidence = |outcome: Outcome| {
        outcome.read("/proc/cpuinfo flags", shown).read(
            "CPUID",
            format!("1.ECX[5]={} 0x80000001.ECX[2]={}", u8::from(cpuid.vmx), u8::from(cpuid.svm)),
        )
    };
    if let Some(flag) = info.virt_flag() {
        if info.without_virt.is_empty() {
            return evidence(Outcome::pass(format!("{flag} on all {} processors", info.count)));
        }
        return evidence(Outcome::error(format!(
            "{flag} is missing on processors {:?}",
            info.without_virt
        )))
        .remedy(
            Remedy::text(
                "firmware did not set all processors up alike: update it, then cold start",
            )
            .needs(Needs::PowerCycle),
        );
    }
    if works {
        return evidence(Outcome::info(
            "neither vmx nor svm, and yet KVM works: this kernel virtualizes without them",
        ));
    }
    if cpuid.vmx || cpuid.svm {
        return evidence(Outcome::fatal(
            "the processor has the extension, the kernel hides it (disabled by firmware or boot option)",
        ))
        .remedy(firmware_hint(host));
    }
    let remedy = if info.has("hypervisor") {
        Remedy::text(nesting_hint(&cpuid.hypervisor))
    } else {
        firmware_hint(host)
    };
    evidence(Outcome::fatal("the processor offers neither vmx nor svm")).remedy(remedy)
}

/// Where the switch hides in the setup of this maker.
pub(super) fn firmware_hint(host: &Host) -> Remedy {
    let maker = host.text("/sys/class/dmi/id/sys_vendor").unwrap_or_default();
    let lower = maker.to_lowercase();
    let place = if lower.contains("lenovo") {
        "F1 or Enter at power-on, Security > Virtualization"
    } else if lower.contains("dell") {
        "F2 at power-on, Virtualization Support (BIOS Settings > Processor Settings on servers)"
    } else if lower.contains("hp") || lower.contains("hewlett") {
        "F10 (F9 on servers) at power-on, Security > System Security, or System Options > Processor Options"
    } else if lower.contains("asus") || lower.contains("gigabyte") || lower.contains("micro-star") {
        "Del at power-on, Advanced > CPU Configuration, SVM Mode or Intel Virtualization Technology"
    } else if lower.contains("supermicro") {
        "Del at power-on, Advanced > CPU Configuration > Intel Virtualization Technology or SVM Mode"
    } else {
        "the setup at power-on, usually CPU or Advanced: Intel Virtualization Technology or SVM Mode"
    };
    Remedy::text(format!("enable virtualization in the firmware ({place}); then power off and on"))
        .needs(Needs::PowerCycle)
}

/// How the host above allows nesting.
fn nesting_hint(hypervisor: &str) -> String {
    let how = match hypervisor {
        "KVMKVMKVM" | "Linux KVM Hv" => {
            "on the host above: options kvm_intel nested=1 (or kvm_amd) in /etc/modprobe.d, and -cpu host for this guest"
        }
        "VMwareVMware" => {
            "in the VM's settings: Processors > Virtualize Intel VT-x/EPT or AMD-V/RVI (vhv.enable = TRUE)"
        }
        "Microsoft Hv" => {
            "on the Windows host: Set-VMProcessor -VMName NAME -ExposeVirtualizationExtensions $true"
        }
        "VBoxVBoxVBox" => "on the host above: VBoxManage modifyvm NAME --nested-hw-virt on",
        "XenVMMXenVMM" => "on the Xen host: nestedhvm=1 in the guest's configuration",
        _ => {
            "ask who runs the host above to turn on nested virtualization for this guest, or use a bare-metal host"
        }
    };
    format!("this host is a guest itself; {how}")
}

/// 6: modules.
pub fn modules(host: &Host, _wanted: &Wanted) -> Outcome {
    let loaded: Vec<&str> = ["kvm", "kvm_intel", "kvm_amd", "kvm_pvm"]
        .into_iter()
        .filter(|module| host.has_module(module))
        .collect();
    let shown = if loaded.is_empty() { "none".to_owned() } else { loaded.join(", ") };
    let evidence = |outcome: Outcome| outcome.read("/sys/module, /proc/modules", shown.clone());
    if loaded.contains(&"kvm") && loaded.len() > 1 {
        return evidence(Outcome::pass(format!("loaded or built in: {shown}")));
    }
    if matches!(host.vcpu(), VcpuRun::Works { .. }) {
        return evidence(Outcome::info("KVM works without a module that is known here"));
    }
    let Some(module) = processor_module(host) else {
        return evidence(Outcome::fatal("no KVM module, and none is known for this processor"));
    };
    if host.is_built_in(module) {
        return evidence(Outcome::fatal(format!("{module} is built in but did not start"))).remedy(
            Remedy::command(
                "the kernel log says why (firmware, other hypervisor)",
                "dmesg | grep -i kvm",
            ),
        );
    }
    let cpuid = host.probe().cpuid().unwrap_or_default();
    if host.cpuinfo().virt_flag().is_none() && !cpuid.vmx && !cpuid.svm {
        return evidence(Outcome::fatal(format!(
            "{module} is not loaded, and cannot be: the processor offers no virtualization"
        )))
        .remedy(Remedy::text("see cpu.virt-flag"));
    }
    evidence(Outcome::fatal(format!("{module} is not loaded"))).remedy(
        Remedy::command("load it now and at boot", format!("modprobe {module}"))
            .then(format!("echo {module} > /etc/modules-load.d/kvm.conf"))
            .then("rhostprep apply --module kvm")
            .file("/etc/modules-load.d/kvm.conf"),
    )
}

/// 9: bare metal or not.
pub fn virtual_host(host: &Host, _wanted: &Wanted) -> Outcome {
    let hypervisor = host.probe().cpuid().map(|cpuid| cpuid.hypervisor).unwrap_or_default();
    let product = host.text("/sys/class/dmi/id/product_name").unwrap_or_default();
    let xen = host.text("/sys/hypervisor/type");
    let outcome = if host.cpuinfo().has("hypervisor") || !hypervisor.is_empty() || xen.is_some() {
        let name = xen.unwrap_or_else(|| hypervisor.clone());
        let name = if name.is_empty() { "an unnamed hypervisor".to_owned() } else { name };
        Outcome::info(format!("this host is a guest of {name}; speed and KVM depend on it"))
    } else {
        Outcome::pass("bare metal")
    };
    outcome
        .read(
            "/proc/cpuinfo flag hypervisor",
            if host.cpuinfo().has("hypervisor") { "set" } else { "not set" },
        )
        .read("CPUID 0x40000000", if hypervisor.is_empty() { "(none)".into() } else { hypervisor })
        .read("/sys/class/dmi/id/product_name", product)
}

/// 10: VirtualBox, VMware, Xen.
pub fn other_hypervisor(host: &Host, _wanted: &Wanted) -> Outcome {
    let rivals: Vec<&str> =
        ["vboxdrv", "vmmon"].into_iter().filter(|module| host.has_module(module)).collect();
    let busy = matches!(host.vcpu(), VcpuRun::Failed { errno: libc::EBUSY, .. });
    let shown = if rivals.is_empty() { "none".to_owned() } else { rivals.join(", ") };
    let outcome = match (busy, rivals.is_empty()) {
        (false, true) => Outcome::pass("no other hypervisor's module is loaded"),
        (true, _) => Outcome::fatal(format!("another hypervisor runs guests ({shown})")).remedy(
            Remedy::text("shut its guests down and unload its modules")
                .then("systemctl stop vboxdrv vmware; modprobe -r vboxnetflt vboxnetadp vboxdrv vmmon"),
        ),
        (false, false) => Outcome::warning(format!(
            "{shown} is loaded: it and KVM cannot run guests at the same time"
        ))
        .remedy(
            Remedy::text(
                "since Linux 6.12 KVM takes the processor when its module loads; to share it in turns set kvm.enable_virt_at_load=0",
            )
            .then("echo 'options kvm enable_virt_at_load=0' > /etc/modprobe.d/kvm-share.conf")
            .file("/etc/modprobe.d/kvm-share.conf"),
        ),
    };
    outcome.read("/proc/modules", shown).read_opt(
        "/sys/module/kvm/parameters/enable_virt_at_load",
        host.text("/sys/module/kvm/parameters/enable_virt_at_load"),
    )
}

/// Capability number, name, whether no guest runs without it, kernel that brought it.
const CAPABILITIES: [(u32, &str, bool, &str); 8] = [
    (0, "IRQCHIP", true, "2.6.21"),
    (3, "USER_MEMORY", true, "2.6.25"),
    (33, "PIT2", false, "2.6.31"),
    (32, "IRQFD", false, "2.6.32"),
    (36, "IOEVENTFD", false, "2.6.32"),
    (81, "READONLY_MEM", false, "3.7"),
    (121, "SPLIT_IRQCHIP", false, "4.4"),
    (72, "TSC_DEADLINE_TIMER", false, "3.3"),
];

/// 17: capabilities.
pub fn capabilities(host: &Host, _wanted: &Wanted) -> Outcome {
    let probe = host.probe();
    if probe.kvm_extension(0).is_none() {
        return Outcome::unknown("/dev/kvm cannot be asked")
            .read("KVM_CHECK_EXTENSION", "not possible");
    }
    let missing: Vec<_> = CAPABILITIES
        .iter()
        .filter(|(number, ..)| probe.kvm_extension(*number).unwrap_or(0) <= 0)
        .collect();
    let names: Vec<&str> = missing.iter().map(|(_, name, ..)| *name).collect();
    if missing.is_empty() {
        let all: Vec<&str> = CAPABILITIES.iter().map(|(_, name, ..)| *name).collect();
        return Outcome::pass("all are there").read("KVM_CHECK_EXTENSION", all.join(", "));
    }
    let since: Vec<String> =
        missing.iter().map(|(_, name, _, kernel)| format!("{name} (Linux {kernel})")).collect();
    let summary = format!("missing: {}", names.join(", "));
    let outcome = if missing.iter().any(|(_, _, needed, _)| *needed) {
        Outcome::fatal(summary)
    } else {
        Outcome::warning(summary)
    };
    outcome.read("KVM_CHECK_EXTENSION", format!("0 for {}", names.join(", "))).remedy(
        Remedy::text(format!("use a kernel that has {}", since.join(", "))).needs(Needs::Reboot),
    )
}

/// 18: limits against the planned guests.
pub fn limits(host: &Host, wanted: &Wanted) -> Outcome {
    let probe = host.probe();
    let (Some(soft), Some(hard), Some(slots)) =
        (probe.kvm_extension(9), probe.kvm_extension(66), probe.kvm_extension(10))
    else {
        return Outcome::unknown("/dev/kvm cannot be asked")
            .read("KVM_CHECK_EXTENSION", "not possible");
    };
    let hard = hard.max(soft);
    let smp = i64::from(wanted.largest_smp());
    let evidence = |outcome: Outcome| {
        outcome
            .read("KVM_CAP_NR_VCPUS", soft.to_string())
            .read("KVM_CAP_MAX_VCPUS", hard.to_string())
            .read("KVM_CAP_NR_MEMSLOTS", slots.to_string())
    };
    if smp > i64::from(hard) {
        return evidence(Outcome::error(format!(
            "a guest with {smp} vCPUs exceeds the limit of {hard}"
        )))
        .remedy(Remedy::text(format!("use -smp {hard} or less")));
    }
    if smp > i64::from(soft) {
        return evidence(Outcome::warning(format!(
            "a guest with {smp} vCPUs exceeds the recommended {soft}"
        )))
        .remedy(Remedy::text(format!("use -smp {soft} or less, or expect a slow guest")));
    }
    if slots < 32 {
        return evidence(Outcome::error(format!("only {slots} memory slots")))
            .remedy(Remedy::text("use a newer kernel").needs(Needs::Reboot));
    }
    evidence(Outcome::pass(format!("up to {hard} vCPUs and {slots} memory slots a guest")))
}

/// 20: what old kernels lack.
pub fn kernel_age(host: &Host, _wanted: &Wanted) -> Outcome {
    let Some(release) = host.text("/proc/sys/kernel/osrelease") else {
        return Outcome::unknown("the kernel's release cannot be read");
    };
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let lacks: Vec<&str> = [
        ((4, 20), "nested guests by default"),
        ((5, 1), "io_uring"),
        ((5, 11), "the dirty ring"),
        ((5, 13), "Landlock"),
        ((5, 18), "1 GiB pages under the two-dimensional MMU"),
    ]
    .into_iter()
    .filter(|(since, _)| version < *since)
    .map(|(_, what)| what)
    .collect();
    let source = "/proc/sys/kernel/osrelease";
    if lacks.is_empty() {
        return Outcome::pass(format!("Linux {release}")).read(source, release);
    }
    Outcome::warning(format!("Linux {release} lacks {}", lacks.join(", ")))
        .read(source, release)
        .remedy(Remedy::text("install the distribution's newer kernel").needs(Needs::Reboot))
}
