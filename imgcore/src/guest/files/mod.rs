//! Files and folders inside a volume, read from the file system's own structures: nothing is mounted,
//! nothing is written, no privilege is needed.
//!
//! [`open`] looks at the magic numbers of a volume and gives a [`FileSystem`], which knows files by
//! number ([`FileId`]) and follows no links. [`Tree`] puts several of them together as a system would
//! mount them, walks paths, and follows symbolic links inside of it, never outside.
//!
//! | kind | notes |
//! | --- | --- |
//! | ext2, ext3, ext4 | the journal is played back in memory; inline data, `meta_bg` |
//! | XFS | versions 4 and 5; the log is not played back |
//! | btrfs | one device; subvolumes; zlib, LZO, zstd |
//! | FAT12, FAT16, FAT32 | long names |
//! | NTFS | packed files (LZNT1), attribute lists |
//! | ISO 9660 | Rock Ridge, Joliet |
//!
//! The readers themselves stand in a folder for each file system (`guest/ext`, `guest/xfs`, ...), beside those
//! that find its free space ([`super::free`]): both read the same structures with the same code.
//!
//! Every reader is written for hostile bytes: offsets are checked, memory is bounded by what the caller
//! asks for and by constants, and time by the [`Budget`] that all reads are charged to. There are crates for
//! single formats (`ext4-view`, `fatfs`, `ntfs`); none of them tells free space as well, which wants the same
//! structures with stricter checks, and crates.io's `xfs` (statistics) and `btrfs` (system calls) read no images.

pub mod names;
mod reader;
mod tree;

pub use reader::{Budget, VolumeReader};
pub use tree::{Found, Tree};

use serde::Serialize;

use super::{Volume, btrfs, ext, fat, iso, ntfs, xfs};
use crate::{Error, ErrorKind, Result};

/// What a volume is formatted as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FsKind {
    /// Second extended.
    Ext2,
    /// Third extended: ext2 with a journal.
    Ext3,
    /// Fourth extended.
    Ext4,
    /// XFS.
    Xfs,
    /// btrfs.
    Btrfs,
    /// FAT with 12 bits an entry.
    Fat12,
    /// FAT with 16 bits an entry.
    Fat16,
    /// FAT with 32 bits an entry.
    Fat32,
    /// NTFS.
    Ntfs,
    /// ISO 9660, a compact disc's.
    Iso9660,
}

impl FsKind {
    /// As `blkid` and fstab call it.
    pub fn name(self) -> &'static str {
        match self {
            FsKind::Ext2 => "ext2",
            FsKind::Ext3 => "ext3",
            FsKind::Ext4 => "ext4",
            FsKind::Xfs => "xfs",
            FsKind::Btrfs => "btrfs",
            FsKind::Fat12 | FsKind::Fat16 | FsKind::Fat32 => "vfat",
            FsKind::Ntfs => "ntfs",
            FsKind::Iso9660 => "iso9660",
        }
    }
}

/// What a file system says about itself.
#[derive(Clone, Debug)]
pub struct About {
    /// Which.
    pub kind: FsKind,
    /// Its name, if it has one.
    pub label: Option<String>,
    /// As fstab writes it: `UUID=` and this.
    pub uuid: Option<String>,
    /// Bytes it manages.
    pub size: u64,
    /// Bytes in use, where it keeps count.
    pub used: Option<u64>,
    /// What whoever reads or changes it should know: a journal played back, not cleanly unmounted.
    pub notes: Vec<String>,
}

/// A file in a file system: what it is found by (an inode, a cluster, a record), and a second number
/// where one is not enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId(pub u64, pub u64);

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// Bytes.
    File,
    /// Names.
    Folder,
    /// A symbolic link.
    Link,
    /// A device, a pipe, a socket.
    Other,
}

impl FileKind {
    /// By the type in POSIX's `st_mode`.
    pub(crate) fn of_mode(mode: u32) -> Self {
        match mode & 0xf000 {
            0x4000 => FileKind::Folder,
            0x8000 => FileKind::File,
            0xa000 => FileKind::Link,
            _ => FileKind::Other,
        }
    }
}

/// A file's kind and size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// What it is.
    pub kind: FileKind,
    /// Bytes; of a folder, what its names take.
    pub size: u64,
}

/// A name in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name; bytes that are no UTF-8 are replaced.
    pub name: String,
    /// What it names.
    pub id: FileId,
}

/// Names in one folder that are looked at.
pub const MAX_ENTRIES: usize = 100_000;

/// A file system, for reading.
pub trait FileSystem {
    /// Kind, names, sizes.
    fn about(&self) -> &About;

    /// The folder that holds everything.
    fn root(&self) -> FileId;

    /// The names in a folder, at most `limit`, without `.` and `..`.
    ///
    /// # Errors
    /// When it is no folder, is damaged, or cannot be read.
    fn list(&self, folder: FileId, limit: usize) -> Result<Vec<Entry>>;

    /// What a name in a folder stands for; `None` when there is no such name. How capitals count is the
    /// file system's matter.
    ///
    /// # Errors
    /// As [`FileSystem::list`].
    fn lookup(&self, folder: FileId, name: &str) -> Result<Option<FileId>> {
        let entries = self.list(folder, MAX_ENTRIES)?;
        Ok(entries.into_iter().find(|e| e.name == name).map(|e| e.id))
    }

    /// Kind and size.
    ///
    /// # Errors
    /// When its structures are damaged or cannot be read.
    fn stat(&self, file: FileId) -> Result<Stat>;

    /// Reads from `at` on; gives how much was there, less than asked for only at the end.
    ///
    /// # Errors
    /// When it is damaged, packed or encrypted in a way that is not read here, or cannot be read.
    fn read(&self, file: FileId, at: u64, buf: &mut [u8]) -> Result<usize>;

    /// The root of a subvolume, by its path from the top of all subvolumes; `None` where there is none of
    /// that name, or the file system has no subvolumes.
    ///
    /// # Errors
    /// As [`FileSystem::list`].
    fn subvolume(&self, name: &str) -> Result<Option<FileId>> {
        let _ = name;
        Ok(None)
    }

    /// Where a symbolic link points. Most keep that as the link's content.
    ///
    /// # Errors
    /// As [`FileSystem::read`]; and when it is longer than any path.
    fn link(&self, file: FileId) -> Result<String> {
        let bytes = read_whole(self, file, 4096)?;
        Ok(String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned())
    }
}

/// All of a file.
///
/// # Errors
/// When it has more than `limit` bytes, or cannot be read.
pub fn read_whole<F: FileSystem + ?Sized>(fs: &F, file: FileId, limit: usize) -> Result<Vec<u8>> {
    let size = fs.stat(file)?.size;
    let Some(size) = usize::try_from(size).ok().filter(|s| *s <= limit) else {
        return Err(Error::new(
            ErrorKind::TooLarge,
            format!("the file has {size} bytes, more than {limit}"),
        ));
    };
    let mut buf = vec![0; size];
    let n = fs.read(file, 0, &mut buf)?;
    buf.truncate(n);
    Ok(buf)
}

/// Opens what a volume is formatted as; `None` when it is nothing that is read here.
///
/// # Errors
/// When the magic number of a file system is there, but what follows is damaged, or of a kind that
/// cannot be read.
pub fn open(volume: &Volume, budget: &Budget) -> Result<Option<Box<dyn FileSystem>>> {
    let source = VolumeReader::new(volume.clone(), budget.clone());
    if ext::probe(&source) {
        return Ok(Some(Box::new(ext::Ext::open(source)?)));
    }
    if xfs::probe(&source) {
        return Ok(Some(Box::new(xfs::Xfs::open(source)?)));
    }
    if btrfs::probe(&source) {
        return Ok(Some(Box::new(btrfs::Btrfs::open(source)?)));
    }
    if iso::probe(&source) {
        return Ok(Some(Box::new(iso::Iso::open(source)?)));
    }
    if ntfs::probe(&source) {
        return Ok(Some(Box::new(ntfs::Ntfs::open(source)?)));
    }
    if fat::probe(&source) {
        return Ok(Some(Box::new(fat::Fat::open(source)?)));
    }
    Ok(None)
}
