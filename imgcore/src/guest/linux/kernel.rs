//! Installed kernels, and where each has its drivers: in itself, in its initial RAM disk, or only among
//! its modules.

use std::collections::{BTreeMap, BTreeSet};
use std::io::BufReader;

use serde::Serialize;

use super::initramfs::{self, Initramfs};
use super::loader::{BootEntry, compare_versions};
use super::module_name;
use super::release::clean;
use crate::guest::files::{FileId, FileSystem, Tree};
use crate::num::len_u64;

/// Initial RAM disks that are read: unpacking one takes up to seconds.
const MAX_INITRAMFS: usize = 3;
/// Kernels that are listed.
const MAX_KERNELS: usize = 50;

/// Where a driver is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// Nowhere.
    Absent,
    /// A module on the root file system: too late for the root file system's own disk.
    Module,
    /// In the initial RAM disk.
    Initramfs,
    /// Part of the kernel.
    BuiltIn,
}

/// The drivers that matter, and the kernel's options that build them in.
pub const DRIVERS: &[(&str, &str)] = &[
    ("virtio_pci", "VIRTIO_PCI"),
    ("virtio_blk", "VIRTIO_BLK"),
    ("virtio_scsi", "SCSI_VIRTIO"),
    ("virtio_net", "VIRTIO_NET"),
    ("nvme", "BLK_DEV_NVME"),
    ("ahci", "SATA_AHCI"),
    ("ata_piix", "ATA_PIIX"),
    ("ata_generic", "ATA_GENERIC"),
    ("sd_mod", "BLK_DEV_SD"),
    ("sr_mod", "BLK_DEV_SR"),
    ("e1000", "E1000"),
    ("e1000e", "E1000E"),
    ("8139cp", "8139CP"),
    ("vmxnet3", "VMXNET3"),
    ("dm_mod", "BLK_DEV_DM"),
];

/// An installed kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Kernel {
    /// What `uname -r` says, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The file, from the system's root.
    pub file: String,
    /// It is what starts by default.
    pub default: bool,
    /// Its initial RAM disks, as files from the system's root.
    pub initrd: Vec<String>,
    /// What they hold; absent where there is none, or it was not read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initramfs: Option<Initramfs>,
    /// Where each of [`DRIVERS`] is; absent where that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drivers: Option<BTreeMap<&'static str, Place>>,
    /// What could not be read.
    pub notes: Vec<String>,
}

impl Kernel {
    /// Where a driver is.
    pub fn driver(&self, name: &str) -> Option<Place> {
        self.drivers.as_ref().map(|d| d.get(name).copied().unwrap_or(Place::Absent))
    }

    /// Whether a driver is there before the root file system is.
    pub fn early(&self, name: &str) -> bool {
        self.driver(name).is_some_and(|p| p >= Place::Initramfs)
    }
}

/// Kernels of the menu's entries, then others in `/boot`, newest first.
pub fn kernels(tree: &Tree<'_>, entries: &[BootEntry]) -> Vec<Kernel> {
    let mut all: Vec<Kernel> = Vec::new();
    for entry in entries {
        let Some(file) = place(tree, &entry.kernel) else { continue };
        if all.iter().any(|k| k.file == file) {
            continue;
        }
        let mut kernel = Kernel { default: all.is_empty(), file, ..Kernel::default() };
        for initrd in &entry.initrd {
            match place(tree, initrd) {
                Some(file) => kernel.initrd.push(file),
                None => kernel.notes.push(format!("its initial RAM disk '{initrd}' is not there")),
            }
        }
        all.push(kernel);
    }
    let mut others = Vec::new();
    for name in tree.names("/boot") {
        let is_kernel = ["vmlinuz", "vmlinux", "bzImage", "kernel-", "Image"]
            .iter()
            .any(|p| name.starts_with(p));
        let file = format!("/boot/{name}");
        let same =
            |k: &Kernel| tree.find(&k.file).ok().flatten() == tree.find(&file).ok().flatten();
        if is_kernel && !name.ends_with(".old") && !name.contains("rescue") && !all.iter().any(same)
        {
            others.push(Kernel { file, ..Kernel::default() });
        }
    }
    others.sort_by(|a, b| compare_versions(&b.file, &a.file));
    if all.is_empty()
        && let Some(first) = others.first_mut()
    {
        first.default = true;
    }
    all.append(&mut others);
    all.truncate(MAX_KERNELS);
    let mut left = MAX_INITRAMFS;
    for kernel in &mut all {
        kernel.complete(tree, &mut left);
    }
    all
}

/// A file that a boot loader names is seen from the root of its partition: the system's root, `/boot`, or
/// the ESP; on btrfs the path has the subvolume before it.
fn place(tree: &Tree<'_>, name: &str) -> Option<String> {
    let name = if name.starts_with('/') { name.to_owned() } else { format!("/{name}") };
    let mut tries = vec![
        name.clone(),
        format!("/boot{name}"),
        format!("/boot/efi{name}"),
        format!("/efi{name}"),
    ];
    let mut rest = name.as_str();
    for _ in 0..4 {
        let Some((_, tail)) = rest.trim_start_matches('/').split_once('/') else { break };
        rest = &rest[rest.len() - tail.len() - 1..];
        tries.push(rest.to_owned());
    }
    tries.into_iter().find(|t| tree.exists(t))
}

impl Kernel {
    fn complete(&mut self, tree: &Tree<'_>, left: &mut usize) {
        self.version = version(tree, &self.file);
        let version = self.version.clone().unwrap_or_default();
        if self.initrd.is_empty() && self.notes.is_empty() {
            let names = [
                format!("/boot/initrd.img-{version}"),
                format!("/boot/initramfs-{version}.img"),
                format!("/boot/initrd-{version}"),
                format!("/boot/initramfs-{version}"),
                // Arch and Alpine name them after the package: vmlinuz-lts, initramfs-lts.
                self.file.replace("vmlinuz-", "initramfs-"),
                self.file.replace("vmlinuz-", "initramfs-") + ".img",
            ];
            let found = names.into_iter().find(|n| *n != self.file && tree.exists(n));
            self.initrd.extend(found);
        }
        let mut early: Option<BTreeSet<String>> = Some(BTreeSet::new());
        let mut built_in = self.built_in(tree, &version);
        if !self.initrd.is_empty() {
            early = None;
            if *left > 0 {
                *left -= 1;
                early = self.read_initrd(tree, &mut built_in);
            } else {
                self.notes
                    .push("its initial RAM disk was not looked at: there are many".to_owned());
            }
        }
        let Some(early) = early else { return };
        if built_in.is_none() && early.is_empty() {
            self.notes.push("what is built into it is not known".to_owned());
            return;
        }
        let built_in = built_in.unwrap_or_default();
        let modules = modules(tree, &version);
        let place = |name: &str| match name {
            n if built_in.contains(n) => Place::BuiltIn,
            n if early.contains(n) => Place::Initramfs,
            n if modules.contains(n) => Place::Module,
            _ => Place::Absent,
        };
        self.drivers = Some(DRIVERS.iter().map(|(name, _)| (*name, place(name))).collect());
    }

    /// Modules that are part of the kernel: its list of them, or its configuration.
    fn built_in(&self, tree: &Tree<'_>, version: &str) -> Option<BTreeSet<String>> {
        for folder in ["/lib/modules", "/usr/lib/modules"] {
            let path = format!("{folder}/{version}/modules.builtin");
            if let Some(text) = tree.text(&path, 4 << 20) {
                return Some(text.lines().filter_map(module_name).collect());
            }
        }
        let text = tree.text(&format!("/boot/config-{version}"), 4 << 20)?;
        let on = |option: &str| text.lines().any(|l| l == format!("CONFIG_{option}=y"));
        Some(DRIVERS.iter().filter(|(_, o)| on(o)).map(|(n, _)| (*n).to_owned()).collect())
    }

    fn read_initrd(
        &mut self,
        tree: &Tree<'_>,
        built_in: &mut Option<BTreeSet<String>>,
    ) -> Option<BTreeSet<String>> {
        let mut all: Option<Initramfs> = None;
        for file in self.initrd.clone() {
            let found = tree.find(&file).ok().flatten().and_then(|f| Some((tree.fs(f).ok()?, f)));
            let Some((fs, found)) = found else { continue };
            let mut reader =
                BufReader::with_capacity(1 << 20, FileReader { fs, file: found.id, at: 0 });
            match initramfs::look(&mut reader) {
                Ok(one) => all = Some(join(all, one)),
                Err(e) => self.notes.push(format!("'{file}': {}", e.report())),
            }
        }
        let found = all?;
        if let Some(why) = &found.damaged {
            self.notes.push(format!("its initial RAM disk is damaged: {why}"));
        }
        if built_in.is_none() && !found.built_in.is_empty() {
            *built_in = Some(found.built_in.clone());
        }
        let modules = found.modules.clone();
        self.initramfs = Some(found);
        Some(modules)
    }
}

/// Several initial RAM disks are one after the other, as if they were one file.
fn join(first: Option<Initramfs>, mut second: Initramfs) -> Initramfs {
    let Some(mut first) = first else { return second };
    if first.files == 0 || first.modules.is_empty() {
        first.generator = second.generator;
        first.host_only = second.host_only;
    }
    first.microcode |= second.microcode;
    first.files += second.files;
    first.modules.append(&mut second.modules);
    first.built_in.append(&mut second.built_in);
    first.packing.append(&mut second.packing);
    first.packing.dedup();
    first.damaged = first.damaged.or(second.damaged);
    first
}

/// The modules on the root file system.
fn modules(tree: &Tree<'_>, version: &str) -> BTreeSet<String> {
    for folder in ["/lib/modules", "/usr/lib/modules"] {
        let path = format!("{folder}/{version}");
        if version.is_empty() || !tree.exists(&path) {
            continue;
        }
        if let Some(text) =
            tree.text(&format!("{path}/modules.dep"), 8 << 20).filter(|t| !t.is_empty())
        {
            return text.lines().filter_map(|l| module_name(l.split(':').next()?)).collect();
        }
        // depmod has not run yet: a look at the folders that hold these drivers.
        let folders =
            ["block", "virtio", "scsi", "ata", "nvme/host", "net", "net/ethernet/intel", "md"];
        let drivers = folders.map(|f| tree.below(&format!("{path}/kernel/drivers/{f}"), 1, 2000));
        return drivers.iter().flatten().filter_map(|f| module_name(f)).collect();
    }
    BTreeSet::new()
}

/// The version that a kernel says it is: of x86, at the place that its boot header names ("The Linux/x86
/// Boot Protocol", `kernel_version`); else by the file's name.
fn version(tree: &Tree<'_>, path: &str) -> Option<String> {
    let found = tree.find(path).ok()??;
    let mut head = vec![0; 0x9000];
    let n = tree.fs(found).ok()?.read(found.id, 0, &mut head).ok()?;
    head.truncate(n);
    if head.get(0x202..0x206) == Some(b"HdrS") {
        let at = usize::from(u16::from_le_bytes([head[0x20e], head[0x20f]])) + 0x200;
        let text = head.get(at..)?;
        let end = text.iter().take(128).position(|b| *b == 0 || *b == b' ')?;
        let text = String::from_utf8_lossy(&text[..end]);
        if text.starts_with(|c: char| c.is_ascii_digit()) {
            return Some(clean(&text));
        }
    }
    let name = path.rsplit('/').next()?;
    let (_, version) = name.split_once('-')?;
    version.starts_with(|c: char| c.is_ascii_digit()).then(|| clean(version))
}

/// A file read from front to end.
struct FileReader<'a> {
    fs: &'a dyn FileSystem,
    file: FileId,
    at: u64,
}

impl std::io::Read for FileReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n =
            self.fs.read(self.file, self.at, buf).map_err(|e| std::io::Error::other(e.report()))?;
        self.at += len_u64(n);
        Ok(n)
    }
}
