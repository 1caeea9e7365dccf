//! Devices: tap, vhost, IOMMU (checks 55 to 58).

use super::outcome::{Needs, Outcome, Remedy};
use crate::host::{Host, Vendor};
use crate::wanted::Wanted;

fn words(errno: i32) -> String {
    std::io::Error::from_raw_os_error(errno).to_string()
}

/// 55: a throw-away tap.
pub fn tun(host: &Host, wanted: &Wanted) -> Outcome {
    let source = "open /dev/net/tun, TUNSETIFF";
    let bad = |text: &str| {
        if wanted.tap.yes() { Outcome::error(text) } else { Outcome::warning(text) }
    };
    match host.probe().make_tap() {
        Ok(()) => Outcome::pass("a tap interface was made and removed").read(source, "works"),
        Err(errno @ (libc::ENOENT | libc::ENODEV | libc::ENXIO)) => {
            bad("no tun driver").read(source, words(errno)).remedy(
                Remedy::command("load it now and at boot", "rhostprep apply --module tun")
                    .then("modprobe tun")
                    .file("/etc/modules-load.d/tun.conf"),
            )
        }
        Err(errno @ libc::EACCES) => bad("this user may not open /dev/net/tun")
            .read(source, words(errno))
            .remedy(Remedy::command(
                "the usual rights are 0666: the kernel asks for CAP_NET_ADMIN anyway",
                "chmod 0666 /dev/net/tun",
            )),
        Err(errno @ libc::EPERM) => {
            let text = "this user may not make interfaces (CAP_NET_ADMIN)";
            // For a user that is the rule, and a tap made in advance is the way.
            let outcome = if wanted.tap.yes() { Outcome::error(text) } else { Outcome::info(text) };
            outcome.read(source, words(errno)).remedy(Remedy::command(
                "let root make one for this user, then use -net tap,ifname=tap0,script=no,downscript=no",
                "sudo rhostprep net tap tap0 --bridge br0 --owner $USER",
            ))
        }
        Err(errno) => bad("no tap interface can be made").read(source, words(errno)),
    }
}

/// 56: vhost.
pub fn vhost(host: &Host, wanted: &Wanted) -> Outcome {
    let mut missing = Vec::new();
    let mut outcome = Outcome::pass("both answer");
    for (device, module) in [("/dev/vhost-net", "vhost_net"), ("/dev/vhost-vsock", "vhost_vsock")] {
        match host.probe().vhost_features(device) {
            Ok(features) => outcome = outcome.read(device, format!("features {features:#x}")),
            Err(errno) => {
                outcome = outcome.read(device, words(errno));
                missing.push((device, module, errno));
            }
        }
    }
    let Some((device, module, errno)) = missing.first().copied() else { return outcome };
    let names: Vec<&str> = missing.iter().map(|(device, ..)| *device).collect();
    outcome.summary = format!("{} cannot be used", names.join(" and "));
    outcome.status = if device == "/dev/vhost-net" && wanted.vhost.yes() {
        super::Status::Error
    } else {
        super::Status::Warning
    };
    outcome.remedy(if matches!(errno, libc::EACCES | libc::EPERM) {
        Remedy::command(
            "give the group kvm the device",
            format!("chgrp kvm {device} && chmod 0660 {device}"),
        )
    } else {
        Remedy::command(
            "load the module now and at boot",
            format!("rhostprep apply --module {module}"),
        )
        .then(format!("modprobe {module}"))
        .file(format!("/etc/modules-load.d/{module}.conf"))
    })
}

/// 57: the IOMMU.
pub fn iommu(host: &Host, wanted: &Wanted) -> Outcome {
    let tables: Vec<&str> = ["DMAR", "IVRS", "IORT"]
        .into_iter()
        .filter(|table| host.exists(&format!("/sys/firmware/acpi/tables/{table}")))
        .collect();
    let groups = host.list("/sys/kernel/iommu_groups").len();
    let units = host.list("/sys/class/iommu").len();
    let evidence = |outcome: Outcome| {
        outcome
            .read(
                "/sys/firmware/acpi/tables",
                if tables.is_empty() { "no DMAR, IVRS, IORT".into() } else { tables.join(", ") },
            )
            .read("/sys/kernel/iommu_groups", groups.to_string())
            .read("/sys/class/iommu", units.to_string())
    };
    if groups > 0 {
        return evidence(Outcome::pass(format!("{groups} groups")));
    }
    let option =
        if host.cpuinfo().vendor == Vendor::Amd { "iommu=pt" } else { "intel_iommu=on iommu=pt" };
    let (text, remedy) = if tables.is_empty() {
        (
            "no IOMMU, or switched off in firmware",
            Remedy::text("enable VT-d or AMD-Vi in the firmware").needs(Needs::PowerCycle),
        )
    } else {
        (
            "there is an IOMMU, the kernel does not use it",
            Remedy::command(
                format!("boot with {option}"),
                format!(
                    "rhostprep apply {}",
                    option
                        .split(' ')
                        .map(|word| format!("--boot-option {word}"))
                        .collect::<Vec<_>>()
                        .join(" ")
                ),
            )
            .needs(Needs::Reboot),
        )
    };
    if wanted.wants_vfio() {
        evidence(Outcome::error(text)).remedy(remedy)
    } else {
        evidence(Outcome::info(format!("{text}; needed only for passing devices through")))
            .remedy(remedy)
    }
}

/// 58: groups.
pub fn groups(host: &Host, wanted: &Wanted) -> Outcome {
    let folder = "/sys/kernel/iommu_groups";
    let groups = host.list(folder);
    if groups.is_empty() {
        return Outcome::skipped("no IOMMU groups").read(folder, "empty");
    }
    let mut mixed = Vec::new();
    let mut ready = 0_usize;
    for group in &groups {
        let devices = host.list(&format!("{folder}/{group}/devices"));
        let mut vfio = 0;
        let mut other = Vec::new();
        for device in &devices {
            // PCI bridges (class 0x0604) stay with the host.
            let class =
                host.text(&format!("{folder}/{group}/devices/{device}/class")).unwrap_or_default();
            if class.starts_with("0x0604") {
                continue;
            }
            match host.link_name(&format!("{folder}/{group}/devices/{device}/driver")).as_deref() {
                Some("vfio-pci") => vfio += 1,
                Some("pci-stub") | None => {}
                Some(driver) => other.push(format!("{device} ({driver})")),
            }
        }
        if vfio > 0 && other.is_empty() {
            ready += 1;
        } else if vfio > 0 {
            mixed.push(format!("group {group} also holds {}", other.join(", ")));
        }
    }
    let node = host.exists("/dev/vfio/vfio") || host.exists("/dev/iommu");
    let evidence = |outcome: Outcome| {
        outcome
            .read(folder, format!("{} groups, {ready} ready", groups.len()))
            .read("/dev/vfio/vfio, /dev/iommu", if node { "there" } else { "not there" })
    };
    if !mixed.is_empty() {
        return evidence(Outcome::error(mixed.join("; "))).remedy(Remedy::text(
            "bind the others to vfio-pci too (driverctl set-override DEVICE vfio-pci), or use another slot",
        ));
    }
    if wanted.wants_vfio() && ready == 0 {
        return evidence(Outcome::error("no device is bound to vfio-pci")).remedy(
            Remedy::command("bind it", "driverctl set-override 0000:BB:DD.F vfio-pci")
                .then("modprobe vfio-pci"),
        );
    }
    if ready > 0 && !node {
        return evidence(Outcome::error("there is no /dev/vfio/vfio"))
            .remedy(Remedy::command("load vfio", "modprobe vfio-pci"));
    }
    evidence(Outcome::pass(format!(
        "{ready} of {} groups are ready to be passed through",
        groups.len()
    )))
}
