//! Module parameters and the hardware behind them (checks 11 to 16, 22, 23). Hardware capability of Intel is
//! in the `vmx flags` line of /proc/cpuinfo (Linux 5.9) or in MSRs 0x48B and 0x48C (Intel SDM volume 3
//! appendix A.3.3 and A.10); of AMD among the ordinary flags.

use super::outcome::{Outcome, Remedy};
use crate::host::Host;
use crate::wanted::Wanted;

const PARAMETERS: &str = "/sys/module";

/// Whether the processor can: None when it cannot be told.
fn hardware(host: &Host, vmx_flag: &str, msr: u32, bit: u32) -> Option<bool> {
    let info = host.cpuinfo();
    if !info.vmx_flags.is_empty() {
        return Some(info.vmx_flags.contains(vmx_flag));
    }
    host.msr(0, msr).ok().map(|value| value >> bit & 1 == 1)
}

fn is_intel(host: &Host) -> bool {
    host.has_module("kvm_intel")
}

fn is_amd(host: &Host) -> bool {
    host.has_module("kvm_amd")
}

/// How to change a parameter for good.
fn set(module: &str, parameter: &str, value: u8) -> Remedy {
    let file = format!("/etc/modprobe.d/{module}.conf");
    Remedy::command(
        "set the parameter and load the module anew (all guests must be off)",
        format!("echo 'options {module} {parameter}={value}' > {file}"),
    )
    .then(format!("modprobe -r {module} && modprobe {module}"))
    .then(format!("rhostprep apply --module {module} --param {parameter}={value}"))
    .file(file)
}

struct Feature {
    module: &'static str,
    parameter: &'static str,
    name: &'static str,
    hardware: Option<bool>,
}

/// The common shape: parameter on, or off by choice, or off for lack of hardware.
fn judge(host: &Host, feature: &Feature) -> Outcome {
    let Feature { module, parameter, name, .. } = feature;
    let path = format!("{PARAMETERS}/{module}/parameters/{parameter}");
    let shown = host.text(&path);
    match host.switch(&path) {
        Some(true) => Outcome::pass(format!("{name} is on")).read_opt(path, shown),
        Some(false) if feature.hardware == Some(false) => {
            Outcome::warning(format!("this processor has no {name}")).read_opt(path, shown).remedy(
                Remedy::text(
                    "no remedy but another processor (or, inside a guest, -cpu host above)",
                ),
            )
        }
        Some(false) => Outcome::warning(format!("{name} is switched off"))
            .read_opt(path, shown)
            .remedy(set(module, parameter, 1)),
        None => {
            Outcome::unknown(format!("{module} does not tell about {name}")).read_opt(path, shown)
        }
    }
}

fn no_module() -> Outcome {
    Outcome::skipped("neither kvm_intel nor kvm_amd is loaded")
        .read("/sys/module", "no kvm_intel, no kvm_amd")
}

/// 11: EPT or NPT.
pub fn ept(host: &Host, _wanted: &Wanted) -> Outcome {
    if is_intel(host) {
        let hardware = hardware(host, "ept", 0x48B, 33);
        judge(host, &Feature { module: "kvm_intel", parameter: "ept", name: "EPT", hardware })
    } else if is_amd(host) {
        let hardware = Some(host.cpuinfo().has("npt"));
        judge(host, &Feature { module: "kvm_amd", parameter: "npt", name: "NPT", hardware })
    } else {
        no_module()
    }
}

/// 12: VPID; AMD's ASIDs cannot be switched off.
pub fn vpid(host: &Host, _wanted: &Wanted) -> Outcome {
    if is_intel(host) {
        let hardware = hardware(host, "vpid", 0x48B, 37);
        judge(host, &Feature { module: "kvm_intel", parameter: "vpid", name: "VPID", hardware })
    } else if is_amd(host) {
        Outcome::pass("SVM tags the TLB with ASIDs always").read("/sys/module/kvm_amd", "loaded")
    } else {
        no_module()
    }
}

/// 13: unrestricted guest; SVM runs real mode natively (paged real mode) always.
pub fn unrestricted_guest(host: &Host, _wanted: &Wanted) -> Outcome {
    if is_intel(host) {
        let hardware = hardware(host, "unrestricted_guest", 0x48B, 39);
        judge(
            host,
            &Feature {
                module: "kvm_intel",
                parameter: "unrestricted_guest",
                name: "unrestricted guest",
                hardware,
            },
        )
    } else if is_amd(host) {
        Outcome::pass("SVM runs real-mode code natively").read("/sys/module/kvm_amd", "loaded")
    } else {
        no_module()
    }
}

/// 14: finer points of EPT.
pub fn ept_features(host: &Host, _wanted: &Wanted) -> Outcome {
    if !is_intel(host) {
        return Outcome::skipped("EPT is Intel's").read("/sys/module/kvm_intel", "not loaded");
    }
    let huge = hardware(host, "ept_1gb", 0x48C, 17);
    let dirty = hardware(host, "ept_ad", 0x48C, 21);
    let word = |value: Option<bool>| match value {
        Some(true) => "yes",
        Some(false) => "no",
        None => "not known",
    };
    let summary = format!("1 GiB pages: {}, accessed/dirty bits: {}", word(huge), word(dirty));
    let outcome = if huge == Some(true) && dirty == Some(true) {
        Outcome::pass(summary)
    } else {
        Outcome::info(summary)
    };
    outcome.read(
        "/proc/cpuinfo vmx flags, or MSR 0x48C",
        format!("ept_1gb={} ept_ad={}", word(huge), word(dirty)),
    )
}

/// 15: nesting, and whether its state can be saved.
pub fn nested(host: &Host, wanted: &Wanted) -> Outcome {
    let module = if is_intel(host) {
        "kvm_intel"
    } else if is_amd(host) {
        "kvm_amd"
    } else {
        return no_module();
    };
    let path = format!("{PARAMETERS}/{module}/parameters/nested");
    let shown = host.text(&path);
    // KVM_CAP_NESTED_STATE
    let state = host.probe().kvm_extension(157).unwrap_or(0) > 0;
    let evidence = |outcome: Outcome| {
        outcome
            .read_opt(path.clone(), shown.clone())
            .read("KVM_CAP_NESTED_STATE", if state { "yes" } else { "no" })
    };
    match host.switch(&path) {
        Some(true) => {
            evidence(Outcome::pass("guests may run guests (they need -cpu host or +vmx/+svm too)"))
        }
        Some(false) if wanted.nested.yes() => {
            evidence(Outcome::error("nested guests are wanted and switched off"))
                .remedy(set(module, "nested", 1))
        }
        Some(false) => {
            evidence(Outcome::info("guests cannot run guests")).remedy(set(module, "nested", 1))
        }
        None => evidence(Outcome::unknown(format!("{module} does not tell"))),
    }
}

/// 16: APICv or AVIC, and the pause loop gap.
pub fn apicv(host: &Host, _wanted: &Wanted) -> Outcome {
    let (module, parameter, name, gap) = if is_intel(host) {
        ("kvm_intel", "enable_apicv", "APICv", "ple_gap")
    } else if is_amd(host) {
        ("kvm_amd", "avic", "AVIC", "pause_filter_thresh")
    } else {
        return no_module();
    };
    let path = format!("{PARAMETERS}/{module}/parameters/{parameter}");
    let gap_path = format!("{PARAMETERS}/{module}/parameters/{gap}");
    let on = host.switch(&path);
    let outcome = match on {
        Some(true) => Outcome::pass(format!("{name} is on")),
        Some(false) => Outcome::info(format!("{name} is off: each interrupt costs an exit"))
            .remedy(set(module, parameter, 1)),
        None => Outcome::unknown(format!("{module} does not tell about {name}")),
    };
    outcome
        .read_opt(path.clone(), host.text(&path))
        .read_opt(gap_path.clone(), host.text(&gap_path))
}

/// 22: NX huge pages.
pub fn nx_huge_pages(host: &Host, _wanted: &Wanted) -> Outcome {
    let path = format!("{PARAMETERS}/kvm/parameters/nx_huge_pages");
    let itlb = "/sys/devices/system/cpu/vulnerabilities/itlb_multihit";
    let shown = host.text(&path);
    let affected = host.text(itlb);
    let outcome = match host.switch(&path) {
        Some(true) => Outcome::info("executable huge pages of guests are split (iTLB multihit mitigation)")
            .remedy(Remedy::text(
                "only where all guests are trusted: options kvm nx_huge_pages=off in /etc/modprobe.d/kvm.conf",
            )),
        Some(false) => Outcome::pass("huge pages of guests stay whole"),
        None => Outcome::unknown("kvm does not tell"),
    };
    outcome.read_opt(path, shown).read_opt(itlb, affected)
}

/// 23: encrypted guests.
pub fn confidential(host: &Host, _wanted: &Wanted) -> Outcome {
    let all = [
        ("SEV", "kvm_amd", "sev"),
        ("SEV-ES", "kvm_amd", "sev_es"),
        ("SEV-SNP", "kvm_amd", "sev_snp"),
        ("TDX", "kvm_intel", "tdx"),
    ];
    let mut on = Vec::new();
    let mut outcome = Outcome::info("none is on");
    for (name, module, parameter) in all {
        let path = format!("{PARAMETERS}/{module}/parameters/{parameter}");
        if let Some(value) = host.text(&path) {
            if host.switch(&path) == Some(true) {
                on.push(name);
            }
            outcome = outcome.read(path, value);
        }
    }
    if outcome.read.is_empty() {
        return Outcome::skipped("this kernel and processor have none")
            .read("/sys/module/kvm_*/parameters", "no sev, no tdx");
    }
    if !on.is_empty() {
        outcome.status = super::Status::Pass;
        outcome.summary = format!("on: {}", on.join(", "));
        if on[0].starts_with("SEV") && !host.exists("/dev/sev") {
            outcome.status = super::Status::Warning;
            outcome.summary.push_str(", but there is no /dev/sev to launch with");
            outcome.remedy =
                Some(Remedy::command("load the driver of the secure processor", "modprobe ccp"));
        }
    }
    outcome
}
