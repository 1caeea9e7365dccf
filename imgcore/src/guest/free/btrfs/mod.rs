//! btrfs on one device: what no item of the extent tree covers, and what belongs to no chunk.
//!
//! The kernel's `Documentation/filesystems/btrfs` points to *On-disk Format* at btrfs.readthedocs.io; offsets are
//! those of its tables. [`tree`] reads nodes; each is checked (checksum, identifier, place, generation, order
//! of keys). btrfs is never between two states, so nothing has to be replayed, except the log of `fsync`s
//! since the last transaction: with one, the volume is not trusted.
//!
//! Copies of the superblock and the first MiB are never told as free.

mod tree;

use super::{Cursor, FreeMap, FreeRange, unclean};
use crate::guest::fields::Fields;
use crate::guest::volume::Volume;
use crate::num::small;
use crate::{Error, Result};
use tree::{Checksum, Chunk, Key, Trees};

const SUPER_AT: u64 = 64 << 10;
const SUPER_SIZE: u64 = 4096;
/// The copies of the superblock; 64 KiB around each hold nothing else.
const SUPERS: [u64; 3] = [64 << 10, 64 << 20, 256 << 30];
const SUPER_ROOM: u64 = 64 << 10;
/// Nothing is allocated before this.
const RESERVED: u64 = 1 << 20;
/// More free ranges than this are not held in memory (128 MiB).
const MAX_RANGES: usize = 8 << 20;
/// Ranges told at a time.
const BATCH: usize = 1 << 16;

/// mixed_backref, default_subvol, mixed_groups, both compressions, big_metadata, extended_iref, raid56,
/// skinny_metadata, no_holes, metadata_uuid, raid1c34, simple_quota.
const KNOWN_INCOMPAT: u64 = 0x1_0fff;
const METADATA_UUID: u64 = 0x400;
/// Flag of a file system that others are seeded from.
const SEEDING: u64 = 1 << 32;

// Objects and types of items.
const EXTENT_TREE: u64 = 2;
const BLOCK_GROUP_TREE: u64 = 11;
const EXTENT_ITEM: u8 = 168;
const METADATA_ITEM: u8 = 169;
const BLOCK_GROUP_ITEM: u8 = 192;
const CHUNK_ITEM: u8 = 228;

/// A btrfs of one device.
#[derive(Debug)]
pub(super) struct Btrfs {
    sector: u64,
    end: u64,
    /// Sorted, not touching.
    free: Vec<FreeRange>,
}

impl Btrfs {
    pub fn open(volume: &Volume) -> Result<Self> {
        let bytes = volume.read(SUPER_AT, SUPER_SIZE)?;
        let sb = Fields::little(&bytes);
        let checksum = Checksum::of_type(sb.u16(0xc4))?;
        if !checksum.is_right(&bytes) || sb.u64(0x30) != SUPER_AT {
            return Err(damaged("the checksum or the place of the superblock is wrong"));
        }
        let incompat = sb.u64(0xbc);
        if incompat & !KNOWN_INCOMPAT != 0 {
            let text = format!("uses features that are not known here ({incompat:#x})");
            return Err(Error::unsupported(text));
        }
        if sb.u64(0x88) != 1 || sb.u64(0x38) & SEEDING != 0 {
            return Err(Error::unsupported("is a btrfs of several devices")
                .hint("trim it in the guest: fstrim"));
        }
        if sb.u64(0x60) != 0 {
            return Err(unclean(
                "the log has not been replayed",
                "mount and unmount it, or start the guest and shut it down",
            ));
        }
        let (sector, node) = (u64::from(sb.u32(0x90)), u64::from(sb.u32(0x94)));
        let sizes = |n: u64| n.is_power_of_two() && (512..=65536).contains(&n);
        let end = sb.u64(0xc9 + 8);
        if !sizes(sector) || !sizes(node) || end > volume.len() || end < RESERVED {
            return Err(damaged("the superblock's numbers do not fit together or the volume"));
        }
        let id = if incompat & METADATA_UUID != 0 { 0x23b } else { 0x20 };
        let mut trees = Trees::new(volume, checksum, node, sb.bytes(id, 16).to_vec(), sb.u64(0xc9));
        trees.add_system_chunks(sb.bytes(0x32b, small(u64::from(sb.u32(0xa0)).min(2048))))?;
        trees.load_chunks((sb.u64(0x58), sb.u8(0xc7), sb.u64(0xa4)), CHUNK_ITEM)?;
        let root = (sb.u64(0x50), sb.u8(0xc6), sb.u64(0x48));
        let free = free_space(&trees, root, node, end)?;
        Ok(Btrfs { sector, end, free })
    }
}

/// Used bytes of a block group, as it counts itself.
type Groups = Vec<(u64, u64, u64)>;

/// Goes through the extent tree and gives the free ranges of the device.
fn free_space(
    trees: &Trees<'_>,
    root: (u64, u8, u64),
    node: u64,
    end: u64,
) -> Result<Vec<FreeRange>> {
    let extent_root = trees.find_root(root, EXTENT_TREE)?;
    let extent_root = extent_root.ok_or_else(|| damaged("there is no extent tree"))?;
    let mut groups: Groups = Vec::new();
    let mut add_group = |key: &Key, value: &[u8]| {
        groups.push((key.objectid, key.offset, Fields::little(value).u64(0)));
    };
    let mut free = Vec::new();
    let mut space = Space::new(trees.chunks(), &mut free);
    trees.walk(extent_root, &mut |key, value| {
        match key.kind {
            EXTENT_ITEM => space.used(key.objectid, key.offset)?,
            METADATA_ITEM => space.used(key.objectid, node)?,
            BLOCK_GROUP_ITEM => add_group(key, value),
            _ => {}
        }
        Ok(())
    })?;
    let used = space.finish()?;
    if let Some(root) = trees.find_root(root, BLOCK_GROUP_TREE)? {
        trees.walk(root, &mut |key, value| {
            if key.kind == BLOCK_GROUP_ITEM {
                add_group(key, value);
            }
            Ok(())
        })?;
    }
    compare(trees.chunks(), &used, &groups)?;
    unallocated(trees.chunks(), end, &mut free)?;
    free.sort_unstable_by_key(|r| r.at);
    without_supers(&mut free);
    Ok(free)
}

/// Each chunk has a block group of its length that counts what the extents say.
fn compare(chunks: &[Chunk], used: &[u64], groups: &Groups) -> Result<()> {
    let right = chunks.len() == groups.len()
        && chunks
            .iter()
            .zip(used)
            .zip(groups)
            .all(|((chunk, used), group)| (chunk.logical, chunk.len, *used) == *group);
    if right { Ok(()) } else { Err(damaged("block groups do not count what the extents say")) }
}

/// Turns the used ranges of the logical space, which come in order, into free ranges of the device.
struct Space<'a> {
    chunks: &'a [Chunk],
    free: &'a mut Vec<FreeRange>,
    /// The chunk that is being filled.
    index: usize,
    /// Where the last extent in it ended.
    at: u64,
    used: Vec<u64>,
}

impl<'a> Space<'a> {
    fn new(chunks: &'a [Chunk], free: &'a mut Vec<FreeRange>) -> Self {
        let at = chunks.first().map_or(0, |c| c.logical);
        Space { chunks, free, index: 0, at, used: vec![0; chunks.len()] }
    }

    fn used(&mut self, start: u64, len: u64) -> Result<()> {
        let bad = || damaged("an extent lies outside of all chunks, or on another one");
        loop {
            let chunk = self.chunks.get(self.index).ok_or_else(bad)?;
            if start < chunk.end() {
                break;
            }
            self.close()?;
        }
        let chunk = self.chunks.get(self.index).ok_or_else(bad)?;
        let end = start.checked_add(len).filter(|&e| len > 0 && e <= chunk.end());
        let end = end.filter(|_| start >= self.at).ok_or_else(bad)?;
        push(self.free, chunk, self.at, start)?;
        self.at = end;
        if let Some(used) = self.used.get_mut(self.index) {
            *used += len;
        }
        Ok(())
    }

    /// Ends a chunk.
    fn close(&mut self) -> Result<()> {
        if let Some(chunk) = self.chunks.get(self.index) {
            push(self.free, chunk, self.at, chunk.end())?;
        }
        self.index += 1;
        self.at = self.chunks.get(self.index).map_or(0, |c| c.logical);
        Ok(())
    }

    /// Used bytes of each chunk.
    fn finish(mut self) -> Result<Vec<u64>> {
        while self.index < self.chunks.len() {
            self.close()?;
        }
        Ok(self.used)
    }
}

/// Adds a free logical range in all its places.
fn push(free: &mut Vec<FreeRange>, chunk: &Chunk, from: u64, to: u64) -> Result<()> {
    if to <= from {
        return Ok(());
    }
    for place in &chunk.places {
        free.push(FreeRange { at: place + (from - chunk.logical), len: to - from });
    }
    if free.len() > MAX_RANGES {
        return Err(Error::unsupported("has too many free ranges to be looked at here")
            .hint("trim it in the guest: fstrim"));
    }
    Ok(())
}

/// Adds what belongs to no chunk.
fn unallocated(chunks: &[Chunk], end: u64, free: &mut Vec<FreeRange>) -> Result<()> {
    let mut taken: Vec<(u64, u64)> = chunks
        .iter()
        .flat_map(|c| c.places.iter().map(|p| (*p, p.saturating_add(c.len))))
        .collect();
    taken.sort_unstable();
    let mut at = RESERVED;
    for (start, stop) in taken {
        if stop > end || (start < at && start >= RESERVED) {
            return Err(damaged("chunks overlap, or lie outside of the device"));
        }
        if start > at {
            free.push(FreeRange { at, len: start - at });
        }
        at = at.max(stop);
    }
    if end > at {
        free.push(FreeRange { at, len: end - at });
    }
    Ok(())
}

/// Takes out the first MiB and the places of superblocks.
fn without_supers(free: &mut Vec<FreeRange>) {
    let kept = [(0, RESERVED)].into_iter().chain(SUPERS.map(|s| (s, s + SUPER_ROOM)));
    for (start, end) in kept {
        let mut pieces = Vec::new();
        for r in free.iter_mut().filter(|r| r.at < end && r.at + r.len > start) {
            let stop = r.at + r.len;
            if stop > end {
                pieces.push(FreeRange { at: end, len: stop - end });
            }
            r.len = start.saturating_sub(r.at);
        }
        free.extend(pieces);
    }
    free.retain(|r| r.len > 0);
    free.sort_unstable_by_key(|r| r.at);
}

impl FreeMap for Btrfs {
    fn kind(&self) -> &'static str {
        "btrfs"
    }

    fn unit(&self) -> u64 {
        self.sector
    }

    fn managed(&self) -> u64 {
        self.end
    }

    fn batch(&self, cursor: &mut Cursor) -> Result<Option<Vec<FreeRange>>> {
        let first = small(cursor.step).saturating_mul(BATCH);
        let Some(rest) = self.free.get(first..).filter(|r| !r.is_empty()) else { return Ok(None) };
        cursor.step += 1;
        Ok(Some(rest.get(..BATCH).unwrap_or(rest).to_vec()))
    }
}

fn damaged(what: &str) -> Error {
    Error::corrupt(what).hint("check it first: btrfs check")
}
