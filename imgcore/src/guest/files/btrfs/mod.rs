//! btrfs on one device ("Btrfs On-disk Format", the project's documentation). All numbers are little
//! endian.
//!
//! Everything is found by keys in trees of blocks; the blocks' addresses are those of the file system and
//! are turned into places on the disk by the chunk tree. A file is known by its inode and its subvolume.
//! The log tree (files synchronised just before the machine was switched off) is not read.

mod chunk;
mod data;
mod tree;

use std::cell::RefCell;
use std::collections::HashMap;

use chunk::Chunks;
use tree::{Key, Root};

use super::field::{Fields, share};
use super::{About, Entry, FileId, FileKind, FileSystem, FsKind, Stat, VolumeReader};
use crate::num::small;
use crate::{Error, Result};

const SUPERBLOCK: u64 = 64 << 10;

// Trees.
const ROOT_TREE_DIR: u64 = 6;
const FS_TREE: u64 = 5;
/// The inode of the root folder of a subvolume.
const FIRST_INODE: u64 = 256;

// Kinds of items.
const INODE_ITEM: u8 = 1;
const DIR_ITEM: u8 = 84;
const DIR_INDEX: u8 = 96;
const EXTENT_DATA: u8 = 108;
const ROOT_ITEM: u8 = 132;

/// Whether the superblock's magic number is there.
pub fn probe(source: &VolumeReader) -> bool {
    source.bytes(SUPERBLOCK + 64, 8).is_ok_and(|m| m == b"_BHRfS_M")
}

/// A btrfs file system.
pub struct Btrfs {
    source: VolumeReader,
    node_size: usize,
    sector: usize,
    chunks: Chunks,
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
        let raw = source.bytes(SUPERBLOCK, 4096)?;
        let sb = Fields(&raw);
        let bad =
            |what: &str| Error::corrupt(format!("the superblock of btrfs is damaged: {what}"));
        let node_size = small(u64::from(sb.le32(148)?));
        let sector = small(u64::from(sb.le32(144)?));
        if !node_size.is_power_of_two() || !(4096..=65536).contains(&node_size) {
            return Err(bad("nodes of an impossible size"));
        }
        if !sector.is_power_of_two() || !(512..=65536).contains(&sector) {
            return Err(bad("sectors of an impossible size"));
        }
        let mut about = About {
            kind: FsKind::Btrfs,
            label: Some(sb.text(299, 256)?).filter(|l| !l.is_empty()),
            uuid: Some(sb.uuid(32)?),
            size: sb.le64(112)?,
            used: Some(sb.le64(120)?),
            notes: Vec::new(),
        };
        let devices = sb.le64(136)?;
        if devices > 1 {
            about.notes.push(format!(
                "one of {devices} devices of a file system: what is on the others is missing"
            ));
        }
        if sb.le64(96)? != 0 {
            about
                .notes
                .push("not cleanly unmounted: files written last may be older here".to_owned());
        }
        let device = sb.le64(201)?;
        let mut chunks = Chunks::new(device);
        let array = sb.slice(811, small(u64::from(sb.le32(160)?)).min(2048))?;
        chunks.add_array(array)?;
        let mut fs = Btrfs {
            source,
            node_size,
            sector,
            chunks,
            roots: Root { block: sb.le64(80)?, level: sb.u8(198)? },
            default: FS_TREE,
            about,
            known: RefCell::default(),
        };
        fs.read_chunks(Root { block: sb.le64(88)?, level: sb.u8(199)? })?;
        fs.default = fs.default_subvolume().unwrap_or(FS_TREE);
        Ok(fs)
    }

    /// The item `default` in the folder of the root tree.
    fn default_subvolume(&self) -> Option<u64> {
        let mut found = None;
        self.items(self.roots, ROOT_TREE_DIR, DIR_ITEM, &mut |_, data| {
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
    fn subvolume_root(&self, id: u64) -> Result<Root> {
        if let Some(root) = self.known.borrow().get(&id) {
            return Ok(*root);
        }
        let mut found = None;
        self.items(self.roots, id, ROOT_ITEM, &mut |_, data| {
            let f = Fields(data);
            found = Some(Root { block: f.le64(176)?, level: f.u8(238)? });
            Ok(true)
        })?;
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
        self.items(root, file.0, INODE_ITEM, &mut |_, data| {
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
        if kind(self.inode(folder)?.0) != FileKind::Folder {
            return Err(Error::invalid("not a folder"));
        }
        let root = self.subvolume_root(folder.1)?;
        let mut found = Vec::new();
        self.items(root, folder.0, DIR_INDEX, &mut |_, data| {
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
        self.range(root, key, key, &mut |_, data| {
            found = names(data)?.into_iter().find(|n| n.name == name);
            Ok(false)
        })?;
        Ok(found.and_then(|n| self.child(&n, folder)))
    }

    fn stat(&self, file: FileId) -> Result<Stat> {
        let (mode, size) = self.inode(file)?;
        Ok(Stat { kind: kind(mode), size })
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

fn kind(mode: u32) -> FileKind {
    match mode & 0xf000 {
        0x4000 => FileKind::Folder,
        0x8000 => FileKind::File,
        0xa000 => FileKind::Link,
        _ => FileKind::Other,
    }
}
