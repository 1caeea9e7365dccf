//! XFS: in each allocation group a B+tree of free extents, sorted by block.
//!
//! *XFS Algorithms & Data Structures* (3rd edition), parts "Superblocks", "AG Free Space Management",
//! "Journaling Log"; offsets are those of its tables. Versions 4 and 5; checksums where there are any. The
//! log must end with an unmount record.

use super::{Cursor, FreeMap, FreeRange, unclean};
use crate::guest::fields::Fields;
use crate::guest::volume::Volume;
use crate::num::small;
use crate::{Error, Result};

/// Units of the log.
const BASIC: u64 = 512;
/// Bytes of the log that are looked at together.
const LOG_PIECE: u64 = 1 << 20;
/// Begins a log record.
const LOG_MAGIC: u32 = 0xfeed_babe;
/// Flag of an operation: unmount.
const UNMOUNT: u8 = 0x20;
/// The longest log.
const MAX_LOG: u64 = 4 << 30;
/// Levels of a tree (`XFS_BTREE_MAXLEVELS`).
const MAX_LEVELS: u32 = 9;
const NULL_BLOCK: u32 = u32::MAX;

/// An XFS that was left cleanly.
#[derive(Debug)]
pub(super) struct Xfs {
    volume: Volume,
    block: u64,
    sector: u64,
    blocks: u64,
    ag_blocks: u64,
    ags: u64,
    /// With checksums.
    v5: bool,
    uuid: [u8; 16],
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

impl Xfs {
    pub fn open(volume: &Volume) -> Result<Self> {
        let head = volume.read(0, 512)?;
        let sb = Fields::big(&head);
        let sector = u64::from(sb.u16(102));
        let block = u64::from(sb.u32(4));
        let version = sb.u16(100) & 0xf;
        let sizes = block.is_power_of_two()
            && (512..=65536).contains(&block)
            && sector.is_power_of_two()
            && (512..=32768).contains(&sector);
        if !sizes || !matches!(version, 4 | 5) {
            return Err(damaged("block size, sector size or version"));
        }
        let v5 = version == 5;
        if v5 {
            let whole = volume.read(0, sector)?;
            if !crc_is_right(&whole, 224) {
                return Err(damaged("the checksum of the superblock is wrong"));
            }
        }
        // sb_inprogress: mkfs or growfs has not ended.
        if sb.u8(126) != 0 {
            return Err(unclean("mkfs or a copy of the file system has not ended", REPAIR));
        }
        let incompat = if v5 { sb.u32(216) } else { 0 };
        if incompat & !0x1ff != 0 {
            return Err(Error::unsupported(format!("uses unknown features ({incompat:#x})")));
        }
        if incompat & 0x10 != 0 {
            return Err(unclean("the file system must be repaired", REPAIR));
        }
        let (blocks, ag_blocks, ags) = (sb.u64(8), u64::from(sb.u32(84)), u64::from(sb.u32(88)));
        let sound = blocks.checked_mul(block).is_some_and(|n| n <= volume.len())
            && ag_blocks * block >= 4 * sector
            && ags == blocks.div_ceil(ag_blocks.max(1));
        if !sound {
            return Err(damaged("the superblock's numbers do not fit together or the volume"));
        }
        let mut uuid = [0; 16];
        // Where the identifier was changed, the metadata keep the one of mkfs.
        uuid.copy_from_slice(sb.bytes(if incompat & 0x4 != 0 { 248 } else { 32 }, 16));
        let found = Xfs { volume: volume.clone(), block, sector, blocks, ag_blocks, ags, v5, uuid };
        found.check_log(&sb)?;
        Ok(found)
    }

    /// A block of the file system's numbering, which is sparse: the number of the group stands above the
    /// block in the group.
    fn fsblock(&self, number: u64, shift: u8) -> Option<u64> {
        let ag = number.checked_shr(u32::from(shift))?;
        let inside = number & (1u64.checked_shl(u32::from(shift))? - 1);
        let block = ag.checked_mul(self.ag_blocks)?.checked_add(inside)?;
        (inside < self.ag_blocks && block < self.blocks).then_some(block)
    }

    /// The newest record of the log must be an unmount record (*Journaling Log*: log records, unmount
    /// record).
    fn check_log(&self, sb: &Fields<'_>) -> Result<()> {
        let (start, blocks) = (sb.u64(48), u64::from(sb.u32(96)));
        if start == 0 {
            return Err(Error::unsupported("keeps its log on another device")
                .hint("trim it in the guest: fstrim"));
        }
        let first = self.fsblock(start, sb.u8(124)).map(|b| b * self.block);
        let len = blocks * self.block;
        let Some(first) = first.filter(|f| len <= MAX_LOG && f + len <= self.volume.len()) else {
            return Err(damaged("the log lies outside"));
        };
        let mut newest: Option<(u64, u64)> = None;
        let mut at = 0;
        while at < len {
            let n = LOG_PIECE.min(len - at);
            let piece = self.volume.read(first + at, n)?;
            for (i, unit) in (0u64..).zip(piece.chunks_exact(small(BASIC))) {
                let h = Fields::big(unit);
                // Magic, cycle, version, length, LSN. The cycle stands in the LSN, too.
                let lsn = h.u64(16);
                let header = h.u32(0) == LOG_MAGIC
                    && matches!(h.u32(8), 1 | 2)
                    && lsn >> 32 == u64::from(h.u32(4))
                    && h.bytes(304, 16) == self.log_uuid(sb);
                if header && newest.is_none_or(|(best, _)| lsn > best) {
                    newest = Some((lsn, at + i * BASIC));
                }
            }
            at += n;
        }
        let dirty = || {
            unclean(
                "the log has not been replayed",
                "mount and unmount it, or start the guest and shut it down; xfs_repair -L throws the log away",
            )
        };
        let Some((_, record)) = newest else {
            return Err(damaged("the log holds no record"));
        };
        let header = self.volume.read(first + record, BASIC)?;
        let h = Fields::big(&header);
        // Version 2 has a header of one unit for each 32 KiB of the size of its buffers.
        let header_units =
            if h.u32(8) == 2 { u64::from(h.u32(320)).div_ceil(32 << 10).clamp(1, 8) } else { 1 };
        let body = (record + header_units * BASIC) % len;
        // The operation's header: transaction, length, client, flags.
        let op = self.volume.read(first + body, BASIC)?;
        if h.u32(40) == 1 && Fields::big(&op).u8(9) & UNMOUNT != 0 { Ok(()) } else { Err(dirty()) }
    }

    /// The identifier in log records is the one that users see.
    fn log_uuid<'a>(&self, sb: &Fields<'a>) -> &'a [u8] {
        sb.bytes(32, 16)
    }

    fn ag_start(&self, ag: u64) -> u64 {
        ag * self.ag_blocks * self.block
    }

    /// The header of a group's free space, in its second sector.
    fn ag(&self, number: u64) -> Result<Ag> {
        let at = self.ag_start(number) + self.sector;
        let bytes = self.volume.read(at, self.sector)?;
        let a = Fields::big(&bytes);
        let bad = |what: &str| damaged(&format!("allocation group {number}: {what}")).at_offset(at);
        if a.bytes(0, 4) != b"XAGF" || a.u32(4) != 1 || u64::from(a.u32(8)) != number {
            return Err(bad("its header is not one"));
        }
        if self.v5 && (!crc_is_right(&bytes, 216) || a.bytes(64, 16) != self.uuid) {
            return Err(bad("the checksum or the identifier of its header is wrong"));
        }
        let length = u64::from(a.u32(12));
        let expected = self.ag_blocks.min(self.blocks - number * self.ag_blocks);
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
            by_block: tree(false, a.u32(16), a.u32(28))?,
            by_size: tree(true, a.u32(20), a.u32(32))?,
            free: u64::from(a.u32(52)),
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
        let at = self.ag_start(number) + u64::from(block) * self.block;
        let bytes = self.volume.read(at, self.block)?;
        let n = Fields::big(&bytes);
        let magic: &[u8] = match (self.v5, tree.by_size) {
            (true, false) => b"AB3B",
            (true, true) => b"AB3C",
            (false, false) => b"ABTB",
            (false, true) => b"ABTC",
        };
        if n.bytes(0, 4) != magic || u32::from(n.u16(4)) != level {
            return Err(bad("it belongs to something else").at_offset(at));
        }
        if self.v5 {
            let place = n.u64(16) == at / BASIC && u64::from(n.u32(48)) == number;
            if !crc_is_right(&bytes, 52) || n.bytes(32, 16) != self.uuid || !place {
                return Err(bad("its checksum or place is wrong").at_offset(at));
            }
        }
        if usize::from(n.u16(6)) > self.room(level) {
            return Err(bad("it has too many records").at_offset(at));
        }
        Ok(bytes)
    }

    fn node_header(&self) -> usize {
        if self.v5 { 56 } else { 16 }
    }

    /// Records of a block: 8 bytes in a leaf, 8 bytes of key and 4 of pointer above.
    fn room(&self, level: u32) -> usize {
        let bytes = small(self.block) - self.node_header();
        bytes / if level == 0 { 8 } else { 12 }
    }

    /// The leftmost leaf.
    fn first_leaf(&self, number: u64, ag: &Ag, tree: Tree) -> Result<u32> {
        let mut block = tree.root;
        for level in (1..tree.levels).rev() {
            let bytes = self.node((number, ag, tree), block, level)?;
            let n = Fields::big(&bytes);
            if n.u16(6) == 0 {
                return Err(damaged(&format!("allocation group {number}: an empty tree block")));
            }
            block = n.u32(self.node_header() + self.room(level) * 8);
        }
        Ok(block)
    }

    /// The extents of a leaf.
    fn leaf(&self, number: u64, ag: &Ag, tree: Tree, block: u32) -> Result<Leaf> {
        let bytes = self.node((number, ag, tree), block, 0)?;
        let n = Fields::big(&bytes);
        let (count, right) = (usize::from(n.u16(6)), n.u32(12));
        let mut extents = Vec::with_capacity(count);
        for i in 0..count {
            let record = self.node_header() + i * 8;
            let (first, blocks) = (u64::from(n.u32(record)), u64::from(n.u32(record + 4)));
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

impl FreeMap for Xfs {
    fn kind(&self) -> &'static str {
        "XFS"
    }

    fn unit(&self) -> u64 {
        self.block
    }

    fn managed(&self) -> u64 {
        self.blocks * self.block
    }

    /// One leaf at a time: `step` is the group, `inner` the leaf plus one, `counted` the free blocks of the
    /// group so far.
    fn batch(&self, cursor: &mut Cursor) -> Result<Option<Vec<FreeRange>>> {
        let number = cursor.step;
        if number >= self.ags {
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
            runs.push(FreeRange { at: start + first * self.block, len: blocks * self.block });
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

/// The checksum at `field`, which counts as zero and is stored little endian (*Self-Describing Metadata*).
fn crc_is_right(bytes: &[u8], field: usize) -> bool {
    let Some((head, rest)) = bytes.split_at_checked(field) else { return false };
    let Some((told, tail)) = rest.split_at_checked(4) else { return false };
    let sum = crc32c::crc32c(head);
    let sum = crc32c::crc32c_append(crc32c::crc32c_append(sum, &[0; 4]), tail);
    Fields::little(told).u32(0) == sum
}

fn damaged(what: &str) -> Error {
    Error::corrupt(what).hint(REPAIR)
}
