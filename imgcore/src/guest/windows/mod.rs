//! What an installed Windows needs from the machine it runs on: drivers that its registry starts at boot,
//! and a state in which it lets itself be moved.

pub mod hive;

use std::collections::BTreeMap;

use serde::Serialize;

use hive::{Hive, Value};

use super::files::{FileKind, Tree};
use super::linux::release::clean;
use crate::{Error, Result};

/// Services that drive disks and network cards: registry name, driver file.
const SERVICES: &[(&str, &str)] = &[
    ("viostor", "viostor.sys"),
    ("vioscsi", "vioscsi.sys"),
    ("netkvm", "netkvm.sys"),
    ("stornvme", "stornvme.sys"),
    ("storahci", "storahci.sys"),
    ("msahci", "msahci.sys"),
    ("iaStor", "iaStor.sys"),
    ("atapi", "atapi.sys"),
    ("intelide", "intelide.sys"),
    ("pciide", "pciide.sys"),
    ("disk", "disk.sys"),
    ("pvscsi", "pvscsi.sys"),
    ("balloon", "balloon.sys"),
    ("vioser", "vioser.sys"),
];

/// A driver's service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Service {
    /// `Start`: 0 by the boot loader, 1 by the kernel, 2 at boot, 3 on demand, 4 disabled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<u32>,
    /// `StartOverride` of the present hardware profile turns it off (3 or 4).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_override: Option<u32>,
    /// Its file is there.
    pub file: bool,
}

impl Service {
    /// Whether the boot loader loads it, so that Windows can be on its disk.
    pub fn at_boot(&self) -> bool {
        self.file && self.start == Some(0) && self.start_override.is_none_or(|s| s == 0)
    }

    /// Whether it is installed and may be started.
    pub fn usable(&self) -> bool {
        self.file && self.start.is_some_and(|s| s < 4)
    }
}

/// An installed Windows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Windows {
    /// `ProductName`, corrected for Windows 11, which calls itself 10 there.
    pub name: String,
    /// `6.1`, `10.0`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// `CurrentBuild`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub build: Option<u32>,
    /// `23H2`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub release: Option<String>,
    /// `Professional`, `ServerStandard`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub edition: Option<String>,
    /// `x86_64`, `i386`, `aarch64`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// The machine's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// The control set that starts: 1 for `ControlSet001`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control_set: Option<u32>,
    /// Drivers.
    pub services: BTreeMap<&'static str, Service>,
    /// Devices that the PCI address of a virtio disk is known for, so that Windows knows which driver to
    /// take (`CriticalDeviceDatabase`, needed up to Windows 7).
    pub critical_devices: Vec<String>,
    /// Hibernated, or shut down by Fast Startup: the file system is in use.
    pub hibernated: bool,
    /// Fast Startup is on: shutting down hibernates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fast_startup: Option<bool>,
    /// QEMU's guest agent is installed.
    pub guest_agent: bool,
    /// VMware's tools are installed.
    pub vmware_tools: bool,
    /// What could not be read.
    pub notes: Vec<String>,
}

impl Windows {
    /// A driver's service.
    pub fn service(&self, name: &str) -> Service {
        self.services.get(name).cloned().unwrap_or_default()
    }

    /// Before Windows 8, which loads drivers for known hardware by itself.
    pub fn before_8(&self) -> bool {
        self.build.is_some_and(|b| b < 9200)
    }
}

/// Whether a tree is the system drive of Windows.
pub fn is_root(tree: &Tree<'_>) -> bool {
    tree.exists("/Windows/System32/config/SYSTEM") || tree.exists("/WINNT/system32/config/SYSTEM")
}

/// Reads what is to be told of it.
pub fn look(tree: &Tree<'_>) -> Windows {
    let mut found = Windows::default();
    let base = if tree.exists("/Windows/System32") { "/Windows" } else { "/WINNT" };
    if let Err(e) = with(tree, &format!("{base}/System32/config/SOFTWARE"), |hive| {
        software(hive, &mut found);
    }) {
        found.notes.push(e.report());
    }
    if let Err(e) = with(tree, &format!("{base}/System32/config/SYSTEM"), |hive| {
        if hive.dirty {
            found.notes.push(
                "its registry was not written to the end: the newest changes are in its log files, which \
                 are not read"
                    .to_owned(),
            );
        }
        system(hive, tree, base, &mut found);
    }) {
        found.notes.push(e.report());
    }
    if found.name.is_empty() {
        "Windows".clone_into(&mut found.name);
    }
    found.architecture = architecture(tree, base);
    found.hibernated = hibernated(tree);
    let program = |path: &str| tree.exists(path);
    found.guest_agent = program("/Program Files/Qemu-ga/qemu-ga.exe")
        || program("/Program Files/qemu-ga/qemu-ga.exe")
        || program("/Program Files/Virtio-Win/qemu-ga/qemu-ga.exe");
    found.vmware_tools = program("/Program Files/VMware/VMware Tools");
    found
}

fn with(tree: &Tree<'_>, path: &str, work: impl FnOnce(&Hive<'_>)) -> Result<()> {
    let named = |e: Error| e.context(format!("Could not read '{path}' of the guest"));
    let found = tree.find(path).map_err(named)?;
    let found = found.ok_or_else(|| Error::corrupt(format!("'{path}' is not there")))?;
    let hive = Hive::open(tree.fs(found)?, found.id).map_err(named)?;
    work(&hive);
    Ok(())
}

fn software(hive: &Hive<'_>, found: &mut Windows) {
    const VERSION: &str = r"Microsoft\Windows NT\CurrentVersion";
    let text = |name: &str| hive.text(VERSION, name).map(|t| clean(&t)).filter(|t| !t.is_empty());
    found.name = text("ProductName").unwrap_or_default();
    found.build =
        text("CurrentBuildNumber").or_else(|| text("CurrentBuild")).and_then(|b| b.parse().ok());
    let major = hive.number(VERSION, "CurrentMajorVersionNumber");
    found.version = match major {
        Some(major) => Some(format!(
            "{major}.{}",
            hive.number(VERSION, "CurrentMinorVersionNumber").unwrap_or(0)
        )),
        None => text("CurrentVersion"),
    };
    found.release = text("DisplayVersion").or_else(|| text("ReleaseId"));
    found.edition = text("EditionID");
    if found.build.is_some_and(|b| b >= 22000) {
        found.name = found.name.replace("Windows 10", "Windows 11");
    }
    if !found.name.is_empty() && !found.name.contains("Windows") {
        found.name = format!("Windows {}", found.name);
    }
}

fn system(hive: &Hive<'_>, tree: &Tree<'_>, base: &str, found: &mut Windows) {
    // A hive on disk has no CurrentControlSet: Select says which one that is.
    let set = hive.number("Select", "Current").filter(|n| (1..=999).contains(n)).unwrap_or(1);
    found.control_set = Some(set);
    let root = format!("ControlSet{set:03}");
    for (name, file) in SERVICES {
        let path = format!(r"{root}\Services\{name}");
        let service = Service {
            start: hive.number(&path, "Start"),
            start_override: start_override(hive, &path),
            file: tree.exists(&format!("{base}/System32/drivers/{file}")),
        };
        if service != Service::default() {
            found.services.insert(name, service);
        }
    }
    let database = format!(r"{root}\Control\CriticalDeviceDatabase");
    if let Ok(Some(key)) = hive.key(&database) {
        let all = hive.subkeys(&key).unwrap_or_default();
        let virtio = |n: &str| n.to_lowercase().contains("ven_1af4");
        found.critical_devices =
            all.iter().map(|k| &k.name).filter(|n| virtio(n)).map(|n| clean(n)).collect();
    }
    let power = format!(r"{root}\Control\Session Manager\Power");
    found.fast_startup = hive.number(&power, "HiberbootEnabled").map(|n| n != 0);
    let name = format!(r"{root}\Control\ComputerName\ComputerName");
    found.hostname = hive.text(&name, "ComputerName").map(|n| clean(&n));
}

/// `StartOverride` names hardware configurations; the first is the one in use.
fn start_override(hive: &Hive<'_>, service: &str) -> Option<u32> {
    let key = hive.key(&format!(r"{service}\StartOverride")).ok()??;
    match hive.value(&key, "0").ok()?? {
        Value::Number(number) => Some(number),
        _ => None,
    }
}

/// By the machine in the kernel's PE header.
fn architecture(tree: &Tree<'_>, base: &str) -> Option<String> {
    let found = tree.find(&format!("{base}/System32/ntoskrnl.exe")).ok()??;
    let mut head = [0; 1024];
    let n = tree.fs(found).ok()?.read(found.id, 0, &mut head).ok()?;
    let head = &head[..n];
    let at = usize::try_from(u32::from_le_bytes(head.get(0x3c..0x40)?.try_into().ok()?)).ok()?;
    let signature = head.get(at..at.checked_add(6)?)?;
    if &signature[..4] != b"PE\0\0" {
        return None;
    }
    let name = match u16::from_le_bytes([signature[4], signature[5]]) {
        0x8664 => "x86_64",
        0x014c => "i386",
        0xaa64 => "aarch64",
        _ => return None,
    };
    Some(name.to_owned())
}

/// The first bytes of the hibernation file while it is in use (zeroes, or `wake`, when not).
fn hibernated(tree: &Tree<'_>) -> bool {
    let Ok(Some(found)) = tree.find("/hiberfil.sys") else { return false };
    if found.stat.kind != FileKind::File {
        return false;
    }
    let mut head = [0; 4];
    let read = tree.fs(found).and_then(|fs| fs.read(found.id, 0, &mut head));
    read.is_ok() && matches!(&head, b"hibr" | b"HIBR" | b"rstr" | b"RSTR")
}
