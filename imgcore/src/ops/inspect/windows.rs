//! What a Windows system says about the machine it can start on.

use serde::Serialize;

use super::verdict::{Bus, BusAnswer, Opinion, Reason};
use crate::guest::boot::{BiosLoader, Boot};
use crate::guest::content::Content;
use crate::guest::files::Tree;
use crate::guest::system::Volumes;
use crate::guest::windows::{Windows, is_root, look};

/// An installed Windows.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct WindowsReport {
    /// `windows`
    pub family: &'static str,
    /// The volume of its system drive.
    pub root: String,
    /// What it says about itself.
    #[serde(flatten)]
    pub system: Windows,
    /// The boot configuration data were found on this volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot_configuration: Option<String>,
    /// Its system drive is marked to be checked.
    pub dirty: bool,
}

/// The systems on a disk.
pub fn find(volumes: &Volumes) -> Vec<WindowsReport> {
    let mut all = Vec::new();
    for opened in &volumes.all {
        let Some(fs) = opened
            .fs
            .as_deref()
            .filter(|_| opened.contents.iter().any(|c| matches!(c, Content::Ntfs | Content::Fat)))
        else {
            continue;
        };
        let tree = Tree::new(fs);
        if is_root(&tree) {
            all.push(WindowsReport {
                family: "windows",
                root: opened.volume.name(),
                system: look(&tree),
                boot_configuration: configuration(volumes),
                dirty: fs.about().notes.iter().any(|n| n.contains("dirty")),
            });
        }
    }
    all
}

fn configuration(volumes: &Volumes) -> Option<String> {
    let paths = ["/EFI/Microsoft/Boot/BCD", "/Boot/BCD", "/boot.ini"];
    let found = volumes.all.iter().find(|v| {
        let Some(fs) = v.fs.as_deref() else { return false };
        let tree = Tree::new(fs);
        paths.iter().any(|p| tree.exists(p))
    });
    found.map(|v| v.volume.name())
}

/// What it says.
pub fn opinion(report: &WindowsReport, boot: &Boot) -> Opinion {
    let windows = &report.system;
    let mut opinion = Opinion {
        buses: Bus::ALL.iter().map(|b| BusAnswer::new(*b, drivers(windows, *b))).collect(),
        prefers_efi: boot.efi.programs.iter().any(|p| p.to_lowercase().contains("bootmgfw"))
            || (boot.by_efi()
                && !matches!(boot.bios.loader, Some(BiosLoader::Bootmgr | BiosLoader::Ntldr))),
        nic: Some(if windows.service("netkvm").usable() {
            "virtio-net-pci"
        } else if windows.before_8() {
            "e1000"
        } else {
            "e1000e"
        }),
        ..Opinion::default()
    };
    general(report, &mut opinion.reasons);
    opinion
}

/// The services that a bus needs; of each group one is enough.
fn needed(bus: Bus) -> &'static [&'static [&'static str]] {
    match bus {
        Bus::VirtioBlk => &[&["viostor"]],
        Bus::VirtioScsi => &[&["vioscsi"]],
        Bus::Nvme => &[&["stornvme"]],
        Bus::Sata => &[&["storahci", "msahci", "iaStor"]],
        Bus::Ide => &[&["intelide", "pciide"], &["atapi"]],
    }
}

fn drivers(windows: &Windows, bus: Bus) -> Vec<Reason> {
    // Nothing known of its services: nothing to say.
    if windows.control_set.is_none() {
        return vec![Reason::blocker(
            "its registry could not be read, so its drivers are not known",
        )];
    }
    let mut all = Vec::new();
    for group in needed(bus) {
        if group.iter().any(|s| windows.service(s).at_boot()) {
            continue;
        }
        let installed = group.iter().find(|s| windows.service(s).file);
        let Some(name) = installed else {
            let list = group.join(" or ");
            all.push(install(Reason::blocker(format!("the driver {list} is not installed")), bus));
            continue;
        };
        let service = windows.service(name);
        let set = windows.control_set.unwrap_or(1);
        let why = match (service.start, service.start_override) {
            (None, _) => "has no service in the registry".to_owned(),
            (Some(0), Some(n)) => format!("is turned off for this hardware (StartOverride {n})"),
            (Some(n), _) => format!("is not started at boot (Start {n})"),
        };
        let reason = Reason::blocker(format!("the driver {name} is there, but {why}"));
        all.push(if bus.is_virtio() {
            install(reason, bus)
        } else {
            reason
                .fix("on the old machine: bcdedit /set {current} safeboot minimal; shut down; start once on the new bus; bcdedit /deletevalue {current} safeboot")
                .fix(format!(
                    r"or set HKLM\SYSTEM\ControlSet{set:03}\Services\{name}\Start to 0 and delete its StartOverride (hivexregedit --merge)"
                ))
        });
    }
    if bus == Bus::VirtioBlk
        && all.is_empty()
        && windows.before_8()
        && windows.critical_devices.is_empty()
    {
        all.push(install(
            Reason::blocker(
                "viostor is installed, but no virtio disk is in the CriticalDeviceDatabase",
            ),
            bus,
        ));
    }
    all
}

/// How the drivers of virtio get in.
fn install(reason: Reason, bus: Bus) -> Reason {
    match bus {
        Bus::VirtioBlk | Bus::VirtioScsi => {
            let device = if bus == Bus::VirtioBlk {
                "-device virtio-blk-pci,drive=extra"
            } else {
                "-device virtio-scsi-pci,id=extra0 -device scsi-hd,bus=extra0.0,drive=extra"
            };
            reason
                .fix("first boot on SATA (or IDE), with virtio-win.iso in the drive and a small second disk:")
                .fix(format!("rimg create -f qcow2 extra.qcow2 1G; ... -drive file=extra.qcow2,format=qcow2,if=none,id=extra {device}"))
                .fix("inside of it: run virtio-win-guest-tools.exe of the disc, look for the second disk in the device manager, shut down (shutdown /s /t 0)")
                .fix("then start with this disk on virtio")
        }
        Bus::Nvme => reason.fix("stornvme comes with Windows 8.1 and newer; start on SATA instead"),
        Bus::Sata | Bus::Ide => reason,
    }
}

fn general(report: &WindowsReport, reasons: &mut Vec<Reason>) {
    let windows = &report.system;
    if windows.hibernated {
        let fast = if windows.fast_startup == Some(false) {
            ""
        } else {
            " (or shut down by Fast Startup)"
        };
        reasons.push(
            Reason::blocker(format!(
                "it is hibernated{fast}: it would go on with the hardware of the old machine"
            ))
            .fix("on the old machine: powercfg /h off, then shutdown /s /f /t 0, and copy the disk again")
            .fix("or give up what was open: mount -t ntfs-3g -o remove_hiberfile ..."),
        );
    } else if windows.fast_startup == Some(true) {
        reasons.push(
            Reason::note("Fast Startup is on: its shutting down is a hibernation")
                .fix("powercfg /h off before the disk is copied the next time"),
        );
    }
    if report.dirty {
        reasons.push(
            Reason::warning(
                "its file system is marked dirty: it will be checked at the first start",
            )
            .fix("chkdsk /f on the old machine, if the copy can be made again"),
        );
    }
    if report.boot_configuration.is_none() {
        reasons.push(
            Reason::blocker("no boot configuration (BCD) was found on the disk: it starts from another one")
                .fix("from Windows' setup disc: bcdboot C:\\Windows /s S: /f ALL (S: is the system partition)"),
        );
    }
    if windows.architecture.as_deref() == Some("aarch64") {
        reasons.push(Reason::blocker("it is made for ARM: KVM runs it on such a host only"));
    }
    for note in &windows.notes {
        reasons.push(Reason::warning(note.clone()));
    }
    if windows.vmware_tools {
        reasons.push(
            Reason::note("VMware Tools are installed")
                .fix("remove them on the old machine: their uninstaller refuses elsewhere"),
        );
    }
    if !windows.guest_agent {
        reasons.push(
            Reason::note("the QEMU guest agent is not installed")
                .fix("virtio-win-guest-tools.exe brings it"),
        );
    }
    let net = windows.service("netkvm");
    if !net.usable() {
        reasons.push(Reason::note("the driver of virtio's network card (NetKVM) is not installed"));
    }
}
