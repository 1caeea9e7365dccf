//! Trees of nodes: a header; in leaves keys with places of their items, above keys with addresses of nodes.
//!
//! Keys ascend through a whole tree, and a node begins with the key by which its parent knows it. Both is
//! demanded of every node that is read: so a tree that leads to the same nodes again and again is no tree.

use super::layout::{Chunks, Key, Root, Superblock};
use crate::guest::fields::Fields;
use crate::guest::files::VolumeReader;
use crate::num::{len_u64, small};
use crate::{Error, Result};

/// Bytes of a node's header, of an item's header in a leaf, of a pointer above.
const HEADER: usize = 101;
const ITEM: usize = 25;
const POINTER: usize = 33;
/// Levels that a tree can have.
const MAX_LEVEL: u8 = 7;
/// The tree of chunks names this object.
const CHUNK_TREE: u64 = 256;
const CHUNK_ITEM: u8 = 228;
const ROOT_ITEM: u8 = 132;

/// How nodes and superblocks are protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Checksum {
    Crc32c,
    Sha256,
}

impl Checksum {
    pub fn of_type(kind: u16) -> Result<Self> {
        match kind {
            0 => Ok(Checksum::Crc32c),
            2 => Ok(Checksum::Sha256),
            _ => Err(Error::unsupported("uses a kind of checksum that is not computed here")
                .hint("trim it in the guest: fstrim")),
        }
    }

    /// Whether the checksum in the first 32 bytes is that of the rest.
    pub fn is_right(self, bytes: &[u8]) -> bool {
        let Some((told, rest)) = bytes.split_at_checked(32) else { return false };
        match self {
            Checksum::Crc32c => told.starts_with(&crc32c::crc32c(rest).to_le_bytes()),
            Checksum::Sha256 => {
                use sha2::Digest;
                sha2::Sha256::digest(rest).as_slice() == told
            }
        }
    }
}

/// What is demanded of a node besides its place in the tree.
#[derive(Clone, Copy, Debug)]
pub(super) enum Demand {
    /// Nothing: what can be read is read.
    Nothing,
    /// A right checksum, the file system's identifier, the generation that the parent knows.
    Proof(Checksum),
}

/// Gets key and data of an item; says whether to go on.
pub(super) type Each<'a> = dyn FnMut(Key, &[u8]) -> Result<bool> + 'a;

/// A walk: from which key to which, and the last key of a leaf that was seen.
struct Walk<'a, 'b> {
    from: Key,
    to: Key,
    last: Option<Key>,
    each: &'a mut Each<'b>,
}

/// Reads trees.
pub(super) struct Trees {
    pub source: VolumeReader,
    pub chunks: Chunks,
    node_size: usize,
    id: [u8; 16],
    demand: Demand,
}

impl Trees {
    /// Reads the chunks.
    pub fn open(source: VolumeReader, sb: &Superblock, demand: Demand) -> Result<Self> {
        let chunks = Chunks::of_system(sb)?;
        let mut trees =
            Trees { source, chunks, node_size: sb.node_size, id: sb.metadata_uuid, demand };
        let mut all = Chunks::new(sb.device);
        trees.items(sb.chunks, CHUNK_TREE, CHUNK_ITEM, &mut |key, item| {
            all.add(key, item)?;
            Ok(true)
        })?;
        all.sort();
        trees.chunks = all;
        Ok(trees)
    }

    /// The root of a tree, as the tree of roots has it.
    pub fn find_root(&self, roots: Root, id: u64) -> Result<Option<Root>> {
        let mut found = None;
        self.items(roots, id, ROOT_ITEM, &mut |_, item| {
            // Behind the inode: generation, folder, address; at the end the level.
            let f = Fields(item);
            found = Some(Root { block: f.le64(176)?, level: f.u8(238)?, generation: f.le64(160)? });
            Ok(true)
        })?;
        Ok(found)
    }

    /// All items of one object and kind.
    pub fn items(&self, root: Root, object: u64, kind: u8, each: &mut Each<'_>) -> Result<()> {
        let key = |offset| Key { object, kind, offset };
        self.range(root, key(0), key(u64::MAX), each)
    }

    /// All items from one key to another one, in their order.
    pub fn range(&self, root: Root, from: Key, to: Key, each: &mut Each<'_>) -> Result<()> {
        self.walk(root, None, &mut Walk { from, to, last: None, each }).map(|_| ())
    }

    /// Fills `buf` from a logical address.
    pub fn read(&self, mut logical: u64, mut buf: &mut [u8]) -> Result<()> {
        while !buf.is_empty() {
            let (place, left) = self.chunks.place(logical)?;
            let n = small(left).min(buf.len());
            let (head, tail) = buf.split_at_mut(n);
            self.source.read_at(place, head)?;
            logical = logical.saturating_add(len_u64(n));
            buf = tail;
        }
        Ok(())
    }

    fn node(&self, root: Root) -> Result<Vec<u8>> {
        let (at, left) = self.chunks.place(root.block)?;
        if left < len_u64(self.node_size) {
            return Err(damaged(root, "it does not lie in one chunk"));
        }
        let raw = self.source.bytes(at, self.node_size)?;
        let f = Fields(&raw);
        let mut right = f.le64(48)? == root.block && f.u8(100)? == root.level;
        if let Demand::Proof(checksum) = self.demand {
            right &= checksum.is_right(&raw)
                && f.array(32)? == self.id
                && f.le64(80)? == root.generation;
        }
        if !right || root.level > MAX_LEVEL {
            return Err(damaged(root, "its checksum, place or generation is wrong").at_offset(at));
        }
        Ok(raw)
    }

    /// `first` is the key by which the parent knows the node. Gives whether to go on.
    fn walk(&self, node: Root, first: Option<Key>, walk: &mut Walk<'_, '_>) -> Result<bool> {
        let raw = self.node(node)?;
        let f = Fields(&raw);
        let count = small(u64::from(f.le32(96)?));
        let width = if node.level == 0 { ITEM } else { POINTER };
        if count > (raw.len() - HEADER) / width {
            return Err(damaged(node, "it has too many items"));
        }
        // Only a tree of nothing has a node of nothing.
        if count == 0 && (node.level > 0 || first.is_some()) {
            return Err(damaged(node, "it is empty"));
        }
        let mut before = None;
        for i in 0..count {
            let at = HEADER + width * i;
            let key = Key::read(f, at)?;
            let expected = i > 0 || first.is_none_or(|f| f == key);
            if !expected || before.is_some_and(|b| b >= key) {
                return Err(damaged(node, "its keys are out of order"));
            }
            before = Some(key);
            if key > walk.to {
                return Ok(false);
            }
            if node.level == 0 {
                if walk.last.is_some_and(|l| l >= key) {
                    return Err(damaged(node, "its keys are out of order"));
                }
                walk.last = Some(key);
                if key >= walk.from {
                    let start = HEADER + small(u64::from(f.le32(at + 17)?));
                    let item = f.slice(start, small(u64::from(f.le32(at + 21)?)))?;
                    if !(walk.each)(key, item)? {
                        return Ok(false);
                    }
                }
                continue;
            }
            // A child ends where the next one begins.
            if i + 1 < count && Key::read(f, at + width)? <= walk.from {
                continue;
            }
            let child = Root {
                block: f.le64(at + 17)?,
                level: node.level - 1,
                generation: f.le64(at + 25)?,
            };
            if !self.walk(child, Some(key), walk)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn damaged(node: Root, what: &str) -> Error {
    Error::corrupt(format!("tree block {} of btrfs: {what}", node.block))
        .hint("check it first: btrfs check")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use super::*;
    use crate::guest::files::Budget;
    use crate::guest::{GuestDisk, Volume};
    use crate::storage::MemoryStorage;

    const NODE: usize = 4096;

    fn key(object: u64) -> Key {
        Key { object, kind: 1, offset: 0 }
    }

    /// Node `index` of a volume that is nothing but nodes: with keys, and below them items of one byte or
    /// the indexes of nodes.
    fn node(volume: &mut Vec<u8>, level: u8, entries: &[(u64, u64)]) -> Root {
        let block = len_u64(volume.len());
        let mut raw = vec![0; NODE];
        raw[48..56].copy_from_slice(&block.to_le_bytes());
        raw[96..100].copy_from_slice(&u32::try_from(entries.len()).unwrap().to_le_bytes());
        raw[100] = level;
        let width = if level == 0 { ITEM } else { POINTER };
        for (i, (object, below)) in entries.iter().enumerate() {
            let at = HEADER + i * width;
            raw[at..at + 8].copy_from_slice(&object.to_le_bytes());
            raw[at + 8] = 1;
            if level == 0 {
                let place = u32::try_from(NODE - HEADER - 1).unwrap();
                raw[at + 17..at + 21].copy_from_slice(&place.to_le_bytes());
                raw[at + 21..at + 25].copy_from_slice(&1u32.to_le_bytes());
            } else {
                raw[at + 17..at + 25].copy_from_slice(&below.to_le_bytes());
            }
        }
        volume.extend(raw);
        Root { block, level, generation: 0 }
    }

    fn objects(volume: Vec<u8>, root: Root, from: u64, to: u64) -> Result<Vec<u64>> {
        let mut chunk = vec![0; 80];
        chunk[..8].copy_from_slice(&len_u64(volume.len()).to_le_bytes());
        chunk[44] = 1;
        chunk[48] = 1;
        let mut chunks = Chunks::new(1);
        chunks.add(Key::FIRST, &chunk).unwrap();
        let disk = GuestDisk::from_storage(Arc::new(MemoryStorage::new("m", volume))).unwrap();
        let source = VolumeReader::new(Volume::whole(&disk), Budget::new(1 << 20));
        let trees = Trees { source, chunks, node_size: NODE, id: [0; 16], demand: Demand::Nothing };
        let mut all = Vec::new();
        trees.range(root, key(from), key(to), &mut |key, _| {
            all.push(key.object);
            Ok(true)
        })?;
        Ok(all)
    }

    #[test]
    fn items_come_in_order() {
        let mut volume = Vec::new();
        let low = node(&mut volume, 0, &[(1, 0), (3, 0), (5, 0)]);
        let high = node(&mut volume, 0, &[(7, 0), (9, 0)]);
        let root = node(&mut volume, 1, &[(1, low.block), (7, high.block)]);
        assert_eq!(objects(volume.clone(), root, 0, 100).unwrap(), [1, 3, 5, 7, 9]);
        assert_eq!(objects(volume.clone(), root, 4, 7).unwrap(), [5, 7]);
        assert_eq!(objects(volume, low, 3, 3).unwrap(), [3]);
        let mut volume = Vec::new();
        let nothing = node(&mut volume, 0, &[]);
        assert_eq!(objects(volume, nothing, 0, 100).unwrap(), [0; 0]);
    }

    /// Else a few nodes would lead to one another more often than any reader has time for.
    #[test]
    fn a_node_is_not_read_twice() {
        let mut volume = Vec::new();
        let empty = node(&mut volume, 0, &[]);
        let root = node(&mut volume, 1, &[(1, empty.block), (2, empty.block)]);
        assert!(objects(volume, root, 0, 100).unwrap_err().message().contains("empty"));
        let mut volume = Vec::new();
        let leaf = node(&mut volume, 0, &[(1, 0), (2, 0)]);
        let root = node(&mut volume, 1, &[(1, leaf.block), (2, leaf.block)]);
        assert!(objects(volume, root, 0, 100).unwrap_err().message().contains("order"));
        // Two that share a child, below keys of their own.
        let mut volume = Vec::new();
        let leaves = [3, 5].map(|n| node(&mut volume, 0, &[(n, 0)]).block);
        let left = node(&mut volume, 1, &[(3, leaves[0]), (5, leaves[1])]);
        let right = node(&mut volume, 1, &[(4, leaves[0]), (5, leaves[1])]);
        let root = node(&mut volume, 2, &[(3, left.block), (4, right.block)]);
        assert!(objects(volume, root, 0, 100).unwrap_err().message().contains("order"));
    }
}
