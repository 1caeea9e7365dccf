//! KVM, firmware, module parameters.

use std::collections::BTreeMap;

use hostprep::check::Status::{Error, Fatal, Info, Pass, Skipped, Unknown, Warning};
use hostprep::host::{Cpuid, Stat};
use hostprep::wanted::Use;

use super::{Case, case, failed, guests, with};
use crate::shapes::{Shape, amd, collected, intel, vm_without_vmx};

pub fn kvm_cases() -> Vec<Case> {
    let caps = |edit: fn(&mut BTreeMap<u32, i32>)| {
        with(intel(), |shape| edit(&mut shape.facts().kvm_extensions))
    };
    let denied = |edit: fn(&mut Shape)| {
        with(intel(), |shape| {
            shape.facts().devices.insert("/dev/kvm".into(), libc::EACCES);
            edit(shape);
        })
    };
    vec![
        case("kvm.run", intel(), Pass, "halted"),
        case("kvm.run", collected("pvm-microvm"), Pass, "halted"),
        case("kvm.run", vm_without_vmx(), Fatal, "modprobe kvm_intel"),
        case(
            "kvm.run",
            with(intel(), |s| s.facts().vcpu = failed("create-vm", libc::EBUSY)),
            Fatal,
            "another hypervisor",
        ),
        case(
            "kvm.run",
            with(intel(), |s| s.facts().vcpu = failed("open", libc::EACCES)),
            Fatal,
            "may not open",
        ),
        case("cpu.virt-flag", intel(), Pass, "vmx on all 8"),
        case("cpu.virt-flag", amd(), Pass, "svm on all 4"),
        case("cpu.virt-flag", collected("pvm-microvm"), Info, "yet KVM works"),
        case("cpu.virt-flag", vm_without_vmx(), Fatal, "nested=1"),
        case(
            "cpu.virt-flag",
            with(vm_without_vmx(), |s| {
                s.facts().cpuid = Some(Cpuid { vmx: true, svm: false, hypervisor: String::new() });
            }),
            Fatal,
            "hides it",
        ),
        case("firmware.intel", intel(), Pass, "allowed").msr(0x3A, 5),
        case("firmware.intel", intel(), Fatal, "locked VMX off").msr(0x3A, 1),
        case("firmware.intel", vm_without_vmx(), Unknown, "not provable"),
        case("firmware.intel", amd(), Skipped, ""),
        case("firmware.amd", amd(), Pass, "allowed").msr(0xC001_0114, 0),
        case("firmware.amd", amd(), Fatal, "disabled SVM").msr(0xC001_0114, 0x18),
        case("firmware.readable", intel(), Pass, "").msr(0x3A, 5),
        case("firmware.readable", intel(), Info, "modprobe msr"),
        case("kvm.modules", intel(), Pass, "kvm_intel"),
        case("kvm.modules", vm_without_vmx(), Fatal, "cpu.virt-flag"),
        case(
            "kvm.modules",
            with(intel(), |s| {
                s.facts().vcpu = failed("open", libc::ENOENT);
                s.remove("/sys/module/kvm_intel").set("/proc/modules", "ext4 1 0 - Live 0x0");
            }),
            Fatal,
            "modprobe kvm_intel",
        ),
        case("kvm.run", collected("nested-amd"), Pass, "halted"),
        case("kvm.ept", collected("nested-amd"), Pass, "NPT is on"),
        case("kvm.run", collected("vm-without-svm"), Fatal, "does not exist"),
        case("cpu.virt-flag", collected("vm-without-svm"), Fatal, "guest itself"),
        case("dev.tun", collected("nested-amd"), Warning, "modprobe tun"),
        case("kvm.access", intel(), Pass, "alice may open"),
        case("kvm.access", denied(|_| ()), Fatal, "newgrp kvm"),
        case(
            "kvm.access",
            denied(|s| {
                s.set("/etc/group", "kvm:x:36:qemu");
            }),
            Fatal,
            "usermod -aG kvm alice",
        ),
        case(
            "kvm.access",
            denied(|s| {
                s.facts().stat.insert("/dev/kvm".into(), Stat { mode: 0o020_600, uid: 0, gid: 0 });
            }),
            Fatal,
            "no rights",
        ),
        case(
            "kvm.access",
            with(intel(), |s| {
                s.facts().devices.insert("/dev/kvm".into(), libc::EPERM);
            }),
            Fatal,
            "--device /dev/kvm",
        ),
        case("kvm.udev", intel(), Pass, ""),
        case(
            "kvm.udev",
            with(intel(), |s| {
                s.set(
                    "/usr/lib/udev/rules.d/50-udev-default.rules",
                    "# KERNEL==\"kvm\", GROUP=\"kvm\"",
                );
            }),
            Warning,
            "--kvm-access",
        ),
        case("host.virtual", intel(), Pass, "bare metal"),
        case("host.virtual", vm_without_vmx(), Info, "KVMKVMKVM"),
        case("kvm.other-hypervisor", intel(), Pass, ""),
        case(
            "kvm.other-hypervisor",
            with(intel(), |s| {
                s.set("/sys/module/vboxdrv/version", "7");
            }),
            Warning,
            "enable_virt_at_load",
        ),
        case(
            "kvm.other-hypervisor",
            with(intel(), |s| {
                s.facts().vcpu = failed("create-vm", libc::EBUSY);
            }),
            Fatal,
            "unload",
        ),
        case("kvm.capabilities", intel(), Pass, ""),
        case(
            "kvm.capabilities",
            caps(|c| {
                c.insert(0, 0);
            }),
            Fatal,
            "IRQCHIP",
        ),
        case(
            "kvm.capabilities",
            caps(|c| {
                c.insert(36, 0);
            }),
            Warning,
            "IOEVENTFD",
        ),
        case("kvm.limits", intel(), Pass, "1024"),
        case("kvm.limits", intel(), Error, "exceeds").wants(|w| w.guests = guests("1x1Gx2000")),
        case("kernel.age", intel(), Pass, ""),
        case(
            "kernel.age",
            with(intel(), |s| {
                s.set("/proc/sys/kernel/osrelease", "4.18.0-553.el8.x86_64");
            }),
            Warning,
            "io_uring",
        ),
    ]
}

pub fn parameter_cases() -> Vec<Case> {
    let intel_off = |name: &str| {
        with(intel(), |s| {
            s.set(&format!("/sys/module/kvm_intel/parameters/{name}"), "N");
        })
    };
    vec![
        case("kvm.ept", intel(), Pass, "EPT"),
        case("kvm.ept", amd(), Pass, "NPT"),
        case("kvm.ept", intel_off("ept"), Warning, "ept=1"),
        case(
            "kvm.ept",
            with(intel_off("ept"), |s| {
                s.replace("/proc/cpuinfo", "vnmi ept vpid", "vnmi vpid");
            }),
            Warning,
            "no EPT",
        ),
        case("kvm.vpid", intel(), Pass, ""),
        case("kvm.vpid", intel_off("vpid"), Warning, "vpid=1"),
        case("kvm.unrestricted-guest", intel(), Pass, ""),
        case("kvm.unrestricted-guest", amd(), Pass, "natively"),
        case(
            "kvm.unrestricted-guest",
            intel_off("unrestricted_guest"),
            Warning,
            "unrestricted_guest=1",
        ),
        case("kvm.ept-features", intel(), Pass, "1 GiB pages: yes"),
        case(
            "kvm.ept-features",
            with(intel(), |s| {
                s.replace("/proc/cpuinfo", " ept_1gb", "");
            }),
            Info,
            "1 GiB pages: no",
        ),
        case("kvm.nested", intel(), Pass, ""),
        case("kvm.nested", intel_off("nested"), Info, "nested=1"),
        case("kvm.nested", intel_off("nested"), Error, "nested=1").wants(|w| w.nested = Use::Yes),
        case("kvm.apicv", intel(), Pass, "APICv"),
        case("kvm.apicv", amd(), Info, "avic=1"),
        case("kvm.nx-huge-pages", intel(), Pass, ""),
        case(
            "kvm.nx-huge-pages",
            with(intel(), |s| {
                s.set("/sys/module/kvm/parameters/nx_huge_pages", "Y");
            }),
            Info,
            "split",
        ),
        case(
            "kvm.confidential",
            with(amd(), |s| {
                s.set("/sys/module/kvm_amd/parameters/sev", "Y").set("/dev/sev", "");
            }),
            Pass,
            "SEV",
        ),
        case(
            "kvm.confidential",
            with(amd(), |s| {
                s.set("/sys/module/kvm_amd/parameters/sev", "Y");
            }),
            Warning,
            "/dev/sev",
        ),
        case("kvm.confidential", amd(), Info, "none"),
        case("kvm.confidential", intel(), Skipped, ""),
    ]
}
