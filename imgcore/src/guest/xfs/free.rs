//! Free space: in each allocation group a B+tree of free extents, sorted by block, and one sorted by size
//! ("AG Free Space Management"). Checksums are checked where there are any.

use super::layout::{INCOMPAT_NEEDS_REPAIR, SUPER_SUM_AT, Superblock, crc_is_right};
use super::log::{self, Log};
use crate::guest::fields::Fields;
use crate::guest::free::{Cursor, FreeMap, FreeRange, unclean};
use crate::guest::volume::Volume;
use crate::num::small;
use crate::{Error, Result};

/// Features that change nothing here: those of the reader of files, and the tree of metadata.
const KNOWN_INCOMPAT: u32 = 0x1ff;
/// Units in which blocks of trees say where they are.
const BASIC: u64 = 512;
/// Levels of a tree (`XFS_BTREE_MAXLEVELS`).
const MAX_LEVELS: u32 = 9;
const NULL_BLOCK: u32 = u32::MAX;

/// An XFS that was left cleanly.
#[derive(Debug)]
pub struct XfsFree {
    volume: Volume,
    sb: Superblock,
}

/// Root and levels of a tree of free extents.
#[derive(Clone, Copy)]
struct Tree {
    /// Third and fourth byte of the magic: `TB`/`3B` by block, `TC`/`3C` by size.
    by_size: bool,
    root: u32,
    levels: u32,
}

/// What the header of an allocation group says about its free space.
struct Ag {
    length: u64,
    by_block: Tree,
    by_size: Tree,
    free: u64,
}

/// A leaf.
struct Leaf {
    /// First block and number of blocks.
    extents: Vec<(u64, u64)>,
    right: Option<u32>,
}

impl XfsFree {
    /// Reads superblock and log.
    ///
    /// # Errors
    /// When they are damaged, features are unknown, or the file system was not left cleanly.
    pub fn open(volume: &Volume) -> Result<Self> {
        let head = volume.read(0, 512)?;
        let sb = Superblock::parse(&head).map_err(|e| e.hint(REPAIR))?;
        if sb.version5 && !crc_is_right(&volume.read(0, sb.sector)?, SUPER_SUM_AT) {
            return Err(damaged("the checksum of the superblock is wrong"));
        }
        if sb.in_progress {
            return Err(unclean("mkfs or a copy of the file system has not ended", REPAIR));
        }
        let unknown = sb.incompat & !KNOWN_INCOMPAT;
        if unknown != 0 {
            return Err(Error::unsupported(format!("uses unknown features ({unknown:#x})")));
        }
        if sb.incompat & INCOMPAT_NEEDS_REPAIR != 0 {
            return Err(unclean("the file system must be repaired", REPAIR));
        }
        let sound = sb.blocks.checked_mul(sb.block).is_some_and(|n| n <= volume.len())
            && sb.group_blocks * sb.block >= 4 * sb.sector
            && sb.groups == sb.blocks.div_ceil(sb.group_blocks);
        if !sound {
            return Err(damaged("the superblock's numbers do not fit together or the volume"));
        }
        match log::look(volume, &sb)? {
            Log::Closed => Ok(XfsFree { volume: volume.clone(), sb }),
            Log::Open => Err(unclean(
                "the log has not been replayed",
                "mount and unmount it, or start the guest and shut it down; xfs_repair -L throws the log away",
            )),
        }
    }

    fn ag_start(&self, ag: u64) -> u64 {
        ag * self.sb.group_blocks * self.sb.block
    }

    /// The header of a group's free space, in its second sector.
    fn ag(&self, number: u64) -> Result<Ag> {
        let at = self.ag_start(number) + self.sb.sector;
        let bytes = self.volume.read(at, self.sb.sector)?;
        let a = Fields(&bytes);
        let bad = |what: &str| damaged(&format!("allocation group {number}: {what}")).at_offset(at);
        if a.array(0)? != *b"XAGF" || a.be32(4)? != 1 || u64::from(a.be32(8)?) != number {
            return Err(bad("its header is not one"));
        }
        if self.sb.version5 && (!crc_is_right(&bytes, 216) || a.array(64)? != self.sb.meta_uuid) {
            return Err(bad("the checksum or the identifier of its header is wrong"));
        }
        let length = u64::from(a.be32(12)?);
        let expected = self.sb.group_blocks.min(self.sb.blocks - number * self.sb.group_blocks);
        if length != expected {
            return Err(bad("its length is wrong"));
        }
        let tree = |by_size: bool, root: u32, levels: u32| {
            if levels == 0 || levels > MAX_LEVELS || u64::from(root) >= length {
                return Err(bad("the root of its tree is wrong"));
            }
            Ok(Tree { by_size, root, levels })
        };
        Ok(Ag {
            length,
            by_block: tree(false, a.be32(16)?, a.be32(28)?)?,
            by_size: tree(true, a.be32(20)?, a.be32(32)?)?,
            free: u64::from(a.be32(52)?),
        })
    }

    /// A block of a tree of free extents, checked.
    fn node(&self, at: (u64, &Ag, Tree), block: u32, level: u32) -> Result<Vec<u8>> {
        let (number, ag, tree) = at;
        let bad =
            |what: &str| damaged(&format!("allocation group {number}, tree block {block}: {what}"));
        if u64::from(block) >= ag.length {
            return Err(bad("it does not exist"));
        }
        let at = self.ag_start(number) + u64::from(block) * self.sb.block;
        let bytes = self.volume.read(at, self.sb.block)?;
        let n = Fields(&bytes);
        let magic: &[u8] = match (self.sb.version5, tree.by_size) {
            (true, false) => b"AB3B",
            (true, true) => b"AB3C",
            (false, false) => b"ABTB",
            (false, true) => b"ABTC",
        };
        if n.slice(0, 4)? != magic || u32::from(n.be16(4)?) != level {
            return Err(bad("it belongs to something else").at_offset(at));
        }
        if self.sb.version5 {
            let place = n.be64(16)? == at / BASIC && u64::from(n.be32(48)?) == number;
            if !crc_is_right(&bytes, 52) || n.array(32)? != self.sb.meta_uuid || !place {
                return Err(bad("its checksum or place is wrong").at_offset(at));
            }
        }
        if usize::from(n.be16(6)?) > self.room(level) {
            return Err(bad("it has too many records").at_offset(at));
        }
        Ok(bytes)
    }

    fn node_header(&self) -> usize {
        if self.sb.version5 { 56 } else { 16 }
    }

    /// Records of a block: 8 bytes in a leaf, 8 bytes of key and 4 of pointer above.
    fn room(&self, level: u32) -> usize {
        let bytes = small(self.sb.block) - self.node_header();
        bytes / if level == 0 { 8 } else { 12 }
    }

    /// The leftmost leaf.
    fn first_leaf(&self, number: u64, ag: &Ag, tree: Tree) -> Result<u32> {
        let mut block = tree.root;
        for level in (1..tree.levels).rev() {
            let bytes = self.node((number, ag, tree), block, level)?;
            let n = Fields(&bytes);
            if n.be16(6)? == 0 {
                return Err(damaged(&format!("allocation group {number}: an empty tree block")));
            }
            block = n.be32(self.node_header() + self.room(level) * 8)?;
        }
        Ok(block)
    }

    /// The extents of a leaf.
    fn leaf(&self, number: u64, ag: &Ag, tree: Tree, block: u32) -> Result<Leaf> {
        let bytes = self.node((number, ag, tree), block, 0)?;
        let n = Fields(&bytes);
        let (count, right) = (usize::from(n.be16(6)?), n.be32(12)?);
        let mut extents = Vec::with_capacity(count);
        for i in 0..count {
            let record = self.node_header() + i * 8;
            let (first, blocks) = (u64::from(n.be32(record)?), u64::from(n.be32(record + 4)?));
            if blocks == 0 || first + blocks > ag.length {
                let text = format!("allocation group {number}: a free extent lies outside");
                return Err(damaged(&text));
            }
            extents.push((first, blocks));
        }
        let right = (right != NULL_BLOCK).then_some(right);
        // Empty leaves could go round for ever.
        if count == 0 && right.is_some() {
            return Err(damaged(&format!("allocation group {number}: an empty leaf")));
        }
        Ok(Leaf { extents, right })
    }

    /// Blocks and [`mix`] of all extents of the tree by size, which must be those of the tree by block: the
    /// only check against damage where there are no checksums.
    fn sum_by_size(&self, number: u64, ag: &Ag) -> Result<(u64, u64)> {
        let mut next = Some(self.first_leaf(number, ag, ag.by_size)?);
        let (mut blocks, mut digest) = (0u64, 0u64);
        while let Some(block) = next {
            let leaf = self.leaf(number, ag, ag.by_size, block)?;
            for &(first, count) in &leaf.extents {
                blocks += count;
                digest = digest.wrapping_add(mix(first, count));
            }
            if blocks > ag.length {
                return Err(damaged(&format!("allocation group {number}: the tree by size loops")));
            }
            next = leaf.right;
        }
        Ok((blocks, digest))
    }
}

/// A number of an extent; sums of them do not depend on the order.
fn mix(first: u64, count: u64) -> u64 {
    let mut n = (first << 32 | count).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    n ^= n >> 29;
    n = n.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    n ^ n >> 32
}

impl FreeMap for XfsFree {
    fn kind(&self) -> &'static str {
        "XFS"
    }

    fn unit(&self) -> u64 {
        self.sb.block
    }

    fn managed(&self) -> u64 {
        self.sb.blocks * self.sb.block
    }

    /// One leaf at a time: `step` is the group, `inner` the leaf plus one, `counted` the free blocks of the
    /// group so far.
    fn batch(&self, cursor: &mut Cursor) -> Result<Option<Vec<FreeRange>>> {
        let number = cursor.step;
        if number >= self.sb.groups {
            return Ok(None);
        }
        let ag = self.ag(number)?;
        let block = match cursor.inner.checked_sub(1) {
            None => self.first_leaf(number, &ag, ag.by_block)?,
            Some(leaf) => u32::try_from(leaf).unwrap_or(NULL_BLOCK),
        };
        let leaf = self.leaf(number, &ag, ag.by_block, block)?;
        let start = self.ag_start(number);
        let mut runs = Vec::with_capacity(leaf.extents.len());
        for &(first, blocks) in &leaf.extents {
            cursor.counted += blocks;
            cursor.digest = cursor.digest.wrapping_add(mix(first, blocks));
            runs.push(FreeRange { at: start + first * self.sb.block, len: blocks * self.sb.block });
        }
        if let Some(right) = leaf.right {
            cursor.inner = u64::from(right) + 1;
            return Ok(Some(runs));
        }
        if cursor.counted != ag.free {
            return Err(damaged(&format!(
                "allocation group {number} has {} free blocks, but counts {}",
                cursor.counted, ag.free
            )));
        }
        if self.sum_by_size(number, &ag)? != (cursor.counted, cursor.digest) {
            return Err(damaged(&format!("the trees of allocation group {number} differ")));
        }
        *cursor = Cursor { step: number + 1, ..Cursor::default() };
        Ok(Some(runs))
    }
}

const REPAIR: &str = "repair it first: xfs_repair";

fn damaged(what: &str) -> Error {
    Error::corrupt(what).hint(REPAIR)
}
