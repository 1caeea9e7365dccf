//! The volumes of a disk, opened, and the systems installed on them, put together as they would mount
//! themselves.

use super::GuestDisk;
use super::content::{self, Content};
use super::files::names::{Names, names};
use super::files::{self, Budget, FileId, FileSystem, Tree, VolumeReader};
use super::linux::fstab::{self, DeviceName, FstabLine};
use super::linux::release;
use super::parts::{Layout, Partition};
use super::volume::{Origin, Volume};

/// Volumes of one disk that are opened.
const MAX_VOLUMES: usize = 128;
/// File systems of one tree.
const MAX_MOUNTS: usize = 32;

/// A volume and what is on it.
pub struct Opened {
    /// The volume.
    pub volume: Volume,
    /// Everything whose signature is there.
    pub contents: Vec<Content>,
    /// Its file system, where it can be read.
    pub fs: Option<Box<dyn FileSystem>>,
    /// Name and UUID.
    pub names: Names,
    /// Why a file system that is there cannot be read.
    pub error: Option<String>,
}

impl Opened {
    /// Its entry in the partition table.
    pub fn partition(&self) -> Option<&Partition> {
        match self.volume.origin() {
            Origin::Partition(partition) => Some(partition),
            _ => None,
        }
    }

    /// Whether it can only be read with a key.
    pub fn encrypted(&self) -> bool {
        self.contents.iter().any(|c| matches!(c, Content::Luks | Content::BitLocker))
    }
}

/// All volumes of a disk.
pub struct Volumes {
    /// Partitions, then logical volumes; or the whole disk.
    pub all: Vec<Opened>,
    /// Why some are missing here.
    pub notes: Vec<String>,
}

impl Volumes {
    /// Opens them.
    pub fn open(layout: &Layout, disk: &GuestDisk, budget: &Budget) -> Self {
        let mut notes = Vec::new();
        let volumes = layout.volumes(disk);
        if volumes.len() > MAX_VOLUMES {
            notes.push(format!(
                "only the first {MAX_VOLUMES} of {} volumes were looked at",
                volumes.len()
            ));
        }
        let open = |volume: Volume| {
            let mut error = None;
            let contents = content::probe(&volume).unwrap_or_else(|e| {
                error = Some(e.report());
                Vec::new()
            });
            let fs = files::open(&volume, budget).unwrap_or_else(|e| {
                error = Some(e.report());
                None
            });
            let names = match (&fs, contents.first()) {
                (Some(fs), _) => {
                    let about = fs.about();
                    Names { label: about.label.clone(), uuid: about.uuid.clone() }
                }
                (None, Some(content)) => {
                    names(&VolumeReader::new(volume.clone(), budget.clone()), *content)
                }
                (None, None) => Names::default(),
            };
            Opened { volume, contents, fs, names, error }
        };
        Volumes { all: volumes.into_iter().take(MAX_VOLUMES).map(open).collect(), notes }
    }

    /// The volume that a name stands for, if it is on this disk. Names that the kernel gives are believed
    /// to mean this disk when they mean a first one.
    pub fn named(&self, device: &DeviceName) -> Option<usize> {
        let same =
            |a: &Option<String>, b: &str| a.as_deref().is_some_and(|a| a.eq_ignore_ascii_case(b));
        self.all.iter().position(|v| match device {
            DeviceName::Uuid(uuid) => same(&v.names.uuid, uuid),
            DeviceName::Label(label) => v.names.label.as_ref() == Some(label),
            DeviceName::PartUuid(id) => v.partition().is_some_and(|p| same(&p.id, id)),
            DeviceName::PartLabel(name) => {
                v.partition().is_some_and(|p| p.name.as_ref() == Some(name))
            }
            DeviceName::Logical(group, name) => matches!(
                v.volume.origin(),
                Origin::Logical { group: g, name: n, .. } if g == group && n == name
            ),
            DeviceName::Kernel { disk, partition } if first_disk(disk) => match v.volume.origin() {
                Origin::Disk => *partition == 0,
                Origin::Partition(p) => p.number == *partition,
                Origin::Logical { .. } => false,
            },
            _ => false,
        })
    }

    /// The Linux systems on it.
    pub fn linux(&self) -> Vec<LinuxRoot<'_>> {
        let mut all = Vec::new();
        for (volume, opened) in self.all.iter().enumerate() {
            let Some(fs) = opened.fs.as_deref() else { continue };
            for (subvolume, root) in roots(fs) {
                let mut tree = Tree::default();
                tree.mount("/", fs, root);
                if release::is_root(&tree) {
                    all.push(self.assemble(volume, subvolume, tree));
                    break;
                }
            }
        }
        all
    }

    /// Adds to a root what its fstab mounts.
    fn assemble<'a>(
        &'a self,
        volume: usize,
        subvolume: Option<String>,
        mut tree: Tree<'a>,
    ) -> LinuxRoot<'a> {
        let text = tree.text("/etc/fstab", release::MAX_TEXT).unwrap_or_default();
        let fstab = fstab::parse(&text);
        let mut mounts = vec![("/".to_owned(), volume)];
        let mut lines: Vec<&FstabLine> = fstab
            .iter()
            .filter(|l| l.mount_point.starts_with('/') && l.mount_point != "/")
            .take(MAX_MOUNTS)
            .collect();
        // A folder before what is mounted inside of it.
        lines.sort_by_key(|l| l.mount_point.matches('/').count());
        for line in lines {
            let Some(at) = self.named(&line.device) else { continue };
            let Some(fs) = self.all[at].fs.as_deref() else { continue };
            let root = line.option("subvol").map_or(Some(fs.root()), |name| {
                fs.subvolume(name.trim_start_matches('/')).ok().flatten()
            });
            if let Some(root) = root {
                tree.mount(&line.mount_point, fs, root);
                mounts.push((line.mount_point.clone(), at));
            }
        }
        // systemd mounts the EFI system partition by itself.
        let known = |m: &str| mounts.iter().any(|(p, _)| p == m);
        if !known("/boot/efi")
            && !known("/efi")
            && !known("/boot")
            && let Some(at) = self.efi_system()
            && let Some(fs) = self.all[at].fs.as_deref()
        {
            tree.mount("/boot/efi", fs, fs.root());
        }
        LinuxRoot { volume, subvolume, tree, fstab, mounts }
    }

    /// The EFI system partition: by its type, or a FAT volume with its folders.
    pub fn efi_system(&self) -> Option<usize> {
        let fat = |v: &Opened| v.contents.contains(&Content::Fat) && v.fs.is_some();
        let typed = |v: &Opened| {
            v.partition().is_some_and(|p| match &p.kind {
                super::parts::PartitionType::Gpt(guid) => guid == super::parts::types::EFI_SYSTEM,
                super::parts::PartitionType::Mbr(kind) => *kind == 0xef,
            })
        };
        let folder = |v: &Opened| v.fs.as_deref().is_some_and(|fs| Tree::new(fs).exists("/EFI"));
        let find = |good: &dyn Fn(&Opened) -> bool| self.all.iter().position(|v| fat(v) && good(v));
        find(&|v| typed(v) && folder(v)).or_else(|| find(&typed)).or_else(|| find(&folder))
    }
}

/// Whether a kernel's name of a disk is that of the first one.
pub fn first_disk(disk: &str) -> bool {
    matches!(disk, "sda" | "vda" | "xvda" | "hda" | "nvme0n1" | "mmcblk0")
}

/// Where a system's root may be in a file system.
fn roots(fs: &dyn FileSystem) -> Vec<(Option<String>, FileId)> {
    let mut all = vec![(None, fs.root())];
    for name in ["root", "@", "@rootfs", "@/.snapshots/1/snapshot"] {
        if let Ok(Some(id)) = fs.subvolume(name) {
            all.push((Some(name.to_owned()), id));
        }
    }
    all
}

/// An installed Linux.
pub struct LinuxRoot<'a> {
    /// The volume that holds its root.
    pub volume: usize,
    /// The subvolume there, if it is not the one that is mounted by default.
    pub subvolume: Option<String>,
    /// Its files.
    pub tree: Tree<'a>,
    /// Its fstab.
    pub fstab: Vec<FstabLine>,
    /// Mount points and volumes.
    pub mounts: Vec<(String, usize)>,
}
