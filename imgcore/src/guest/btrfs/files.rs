//! Files and folders. A file is known by its inode and its subvolume.
//!
//! The log tree (files synchronised just before the machine was switched off) is not read.

use std::cell::RefCell;
use std::collections::HashMap;

use super::layout::{Key, Root, SUPER_AT, SUPER_SIZE, Superblock};
use super::tree::{Demand, Trees};
use crate::guest::fields::{Fields, share};
use crate::guest::files::{About, Entry, FileId, FileKind, FileSystem, FsKind, Stat, VolumeReader};
use crate::{Error, Result};

// Trees.
const ROOT_TREE_DIR: u64 = 6;
const FS_TREE: u64 = 5;
/// The inode of the root folder of a subvolume.
const FIRST_INODE: u64 = 256;

// Kinds of items.
const INODE_ITEM: u8 = 1;
const DIR_ITEM: u8 = 84;
const DIR_INDEX: u8 = 96;
pub(super) const EXTENT_DATA: u8 = 108;
const ROOT_ITEM: u8 = 132;

/// Whether the superblock's magic number is there.
pub fn probe(source: &VolumeReader) -> bool {
    source.bytes(SUPER_AT + 64, 8).is_ok_and(|m| m == b"_BHRfS_M")
}

/// A btrfs file system.
pub struct Btrfs {
    pub(super) trees: Trees,
    /// Bytes of a sector.
    pub(super) sector: usize,
    roots: Root,
    default: u64,
    about: About,
    /// Trees of subvolumes that were looked up.
    known: RefCell<HashMap<u64, Root>>,
}

impl Btrfs {
    /// Reads the superblock and the chunk tree.
    ///
    /// # Errors
    /// When they are damaged, or parts are on other devices in stripes.
    pub fn open(source: VolumeReader) -> Result<Self> {
        let sb = Superblock::parse(&source.bytes(SUPER_AT, SUPER_SIZE)?)?;
        let mut about = About {
            kind: FsKind::Btrfs,
            label: Some(sb.label.clone()).filter(|l| !l.is_empty()),
            uuid: Some(sb.uuid.clone()),
            size: sb.size,
            used: Some(sb.used),
            notes: Vec::new(),
        };
        if sb.devices > 1 {
            about.notes.push(format!(
                "one of {} devices of a file system: what is on the others is missing",
                sb.devices
            ));
        }
        if sb.log != 0 {
            about
                .notes
                .push("not cleanly unmounted: files written last may be older here".to_owned());
        }
        let mut fs = Btrfs {
            trees: Trees::open(source, &sb, Demand::Nothing)?,
            sector: sb.sector,
            roots: sb.roots,
            default: FS_TREE,
            about,
            known: RefCell::default(),
        };
        fs.default = fs.default_subvolume().unwrap_or(FS_TREE);
        Ok(fs)
    }

    /// The item `default` in the folder of the root tree.
    fn default_subvolume(&self) -> Option<u64> {
        let mut found = None;
        self.trees
            .items(self.roots, ROOT_TREE_DIR, DIR_ITEM, &mut |_, data| {
                for name in names(data)? {
                    if name.name == "default" {
                        found = Some(name.location.object);
                    }
                }
                Ok(true)
            })
            .ok()?;
        found.filter(|id| self.subvolume_root(*id).is_ok())
    }

    /// The tree of a subvolume.
    pub(super) fn subvolume_root(&self, id: u64) -> Result<Root> {
        if let Some(root) = self.known.borrow().get(&id) {
            return Ok(*root);
        }
        let found = self.trees.find_root(self.roots, id)?;
        let root = found.ok_or_else(|| Error::corrupt(format!("btrfs has no subvolume {id}")))?;
        let mut known = self.known.borrow_mut();
        if known.len() < 1000 {
            known.insert(id, root);
        }
        Ok(root)
    }

    fn inode(&self, file: FileId) -> Result<(u32, u64)> {
        let root = self.subvolume_root(file.1)?;
        let mut found = None;
        self.trees.items(root, file.0, INODE_ITEM, &mut |_, data| {
            let f = Fields(data);
            found = Some((f.le32(52)?, f.le64(16)?));
            Ok(false)
        })?;
        found.ok_or_else(|| {
            Error::corrupt(format!("btrfs has no inode {} in tree {}", file.0, file.1))
        })
    }

    fn child(&self, name: &Name, folder: FileId) -> Option<FileId> {
        match name.location.kind {
            INODE_ITEM => Some(FileId(name.location.object, folder.1)),
            // A subvolume that was removed leaves its name in snapshots.
            ROOT_ITEM => Some(FileId(FIRST_INODE, name.location.object))
                .filter(|id| self.subvolume_root(id.1).is_ok()),
            _ => None,
        }
    }
}

/// A name in a folder, and the key of what it names.
struct Name {
    name: String,
    location: Key,
}

/// `btrfs_dir_item`: several of them where hashes are the same.
fn names(data: &[u8]) -> Result<Vec<Name>> {
    let mut all = Vec::new();
    let mut at = 0;
    while at + 30 <= data.len() {
        let f = Fields(data).rest(at)?;
        let (data_len, name_len) = (usize::from(f.le16(25)?), usize::from(f.le16(27)?));
        let name = String::from_utf8_lossy(f.slice(30, name_len)?).into_owned();
        all.push(Name { name, location: Key::read(f, 0)? });
        at += 30 + name_len + data_len;
    }
    Ok(all)
}

impl FileSystem for Btrfs {
    fn about(&self) -> &About {
        &self.about
    }

    fn root(&self) -> FileId {
        FileId(FIRST_INODE, self.default)
    }

    fn list(&self, folder: FileId, limit: usize) -> Result<Vec<Entry>> {
        if FileKind::of_mode(self.inode(folder)?.0) != FileKind::Folder {
            return Err(Error::invalid("not a folder"));
        }
        let root = self.subvolume_root(folder.1)?;
        let mut found = Vec::new();
        self.trees.items(root, folder.0, DIR_INDEX, &mut |_, data| {
            found.extend(names(data)?);
            Ok(found.len() < limit)
        })?;
        let entry = |n: Name| Some(Entry { id: self.child(&n, folder)?, name: n.name });
        Ok(found.into_iter().filter_map(entry).take(limit).collect())
    }

    fn lookup(&self, folder: FileId, name: &str) -> Result<Option<FileId>> {
        let root = self.subvolume_root(folder.1)?;
        // The key of a name is its hash: CRC-32C begun with 0xfffffffe and not turned over.
        let hash = !crc32c::crc32c_append(!0xffff_fffe, name.as_bytes());
        let key = Key { object: folder.0, kind: DIR_ITEM, offset: u64::from(hash) };
        let mut found = None;
        self.trees.range(root, key, key, &mut |_, data| {
            found = names(data)?.into_iter().find(|n| n.name == name);
            Ok(false)
        })?;
        Ok(found.and_then(|n| self.child(&n, folder)))
    }

    fn stat(&self, file: FileId) -> Result<Stat> {
        let (mode, size) = self.inode(file)?;
        Ok(Stat { kind: FileKind::of_mode(mode), size })
    }

    fn read(&self, file: FileId, at: u64, buf: &mut [u8]) -> Result<usize> {
        let n = share(self.inode(file)?.1, at, buf);
        self.read_extents(file, at, &mut buf[..n])?;
        Ok(n)
    }

    fn subvolume(&self, name: &str) -> Result<Option<FileId>> {
        let mut here = FileId(FIRST_INODE, FS_TREE);
        for part in name.split('/').filter(|p| !p.is_empty()) {
            match self.lookup(here, part)? {
                Some(next) => here = next,
                None => return Ok(None),
            }
        }
        Ok(Some(here))
    }
}
