//! Free space: what no item of the tree of extents covers, and what belongs to no chunk.
//!
//! Each node is checked (checksum, identifier, place, generation, order of keys). btrfs is never between two
//! states, so nothing has to be replayed, except the log of `fsync`s since the last transaction: with one, the
//! volume is not trusted.
//!
//! Copies of the superblock and the first MiB are never told as free.

use super::layout::{Chunk, Key, Root, SUPER_AT, SUPER_SIZE, Superblock};
use super::tree::{Checksum, Demand, Trees};
use crate::guest::fields::Fields;
use crate::guest::files::{Budget, VolumeReader};
use crate::guest::free::{Cursor, FreeMap, FreeRange, unclean};
use crate::guest::volume::Volume;
use crate::num::{len_u64, small};
use crate::{Error, Result};

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
/// Flag of a file system that others are seeded from.
const SEEDING: u64 = 1 << 32;

// Objects and types of items.
const EXTENT_TREE: u64 = 2;
const BLOCK_GROUP_TREE: u64 = 11;
const EXTENT_ITEM: u8 = 168;
const METADATA_ITEM: u8 = 169;
const BLOCK_GROUP_ITEM: u8 = 192;

/// A btrfs of one device.
#[derive(Debug)]
pub struct BtrfsFree {
    sector: u64,
    end: u64,
    /// Sorted, not touching.
    free: Vec<FreeRange>,
}

impl BtrfsFree {
    /// Reads the trees of chunks and extents.
    ///
    /// # Errors
    /// When they are damaged, features are unknown, there are several devices, or a log waits.
    pub fn open(volume: &Volume) -> Result<Self> {
        let bytes = volume.read(SUPER_AT, len_u64(SUPER_SIZE))?;
        let sb = Superblock::parse(&bytes).map_err(|e| e.hint(CHECK))?;
        let checksum = Checksum::of_type(sb.checksum)?;
        if !checksum.is_right(&bytes) || sb.place != SUPER_AT {
            return Err(damaged("the checksum or the place of the superblock is wrong"));
        }
        let unknown = sb.incompat & !KNOWN_INCOMPAT;
        if unknown != 0 {
            let text = format!("uses features that are not known here ({unknown:#x})");
            return Err(Error::unsupported(text));
        }
        if sb.devices != 1 || sb.flags & SEEDING != 0 {
            return Err(Error::unsupported("is a btrfs of several devices")
                .hint("trim it in the guest: fstrim"));
        }
        if sb.log != 0 {
            return Err(unclean(
                "the log has not been replayed",
                "mount and unmount it, or start the guest and shut it down",
            ));
        }
        let end = sb.device_size;
        if end > volume.len() || end < RESERVED {
            return Err(damaged("the superblock's numbers do not fit together or the volume"));
        }
        let source = VolumeReader::new(volume.clone(), Budget::of_metadata(volume.len()));
        let trees = Trees::open(source, &sb, Demand::Proof(checksum))?;
        check_chunks(&trees.chunks.all, volume.len())?;
        let free = free_space(&trees, &sb)?;
        Ok(BtrfsFree { sector: len_u64(sb.sector), end, free })
    }
}

/// Every place of a chunk must hold all of it, inside of the device; and no two are for the same addresses.
fn check_chunks(chunks: &[Chunk], size: u64) -> Result<()> {
    if !chunks.iter().all(Chunk::is_whole_everywhere) {
        return Err(Error::unsupported("spreads its chunks over stripes")
            .hint("trim it in the guest: fstrim"));
    }
    if !chunks.iter().all(|c| c.is_inside(size)) {
        return Err(damaged("a chunk lies outside of the device"));
    }
    let apart = chunks.windows(2).all(|w| match w {
        [a, b] => a.end() <= b.logical,
        _ => true,
    });
    if apart { Ok(()) } else { Err(damaged("chunks overlap")) }
}

/// Used bytes of a block group, as it counts itself.
type Groups = Vec<(u64, u64, u64)>;

/// Goes through the extent tree and gives the free ranges of the device.
fn free_space(trees: &Trees, sb: &Superblock) -> Result<Vec<FreeRange>> {
    let chunks = &trees.chunks.all;
    let extents = trees.find_root(sb.roots, EXTENT_TREE)?;
    let extents = extents.ok_or_else(|| damaged("there is no extent tree"))?;
    let mut groups: Groups = Vec::new();
    let mut free = Vec::new();
    let mut space = Space::new(chunks, &mut free);
    let whole = |root: Root, each: &mut dyn FnMut(Key, &[u8]) -> Result<bool>| {
        trees.range(root, Key::FIRST, Key::LAST, each)
    };
    whole(extents, &mut |key, item| {
        match key.kind {
            EXTENT_ITEM => space.used(key.object, key.offset)?,
            METADATA_ITEM => space.used(key.object, len_u64(sb.node_size))?,
            BLOCK_GROUP_ITEM => groups.push((key.object, key.offset, Fields(item).le64(0)?)),
            _ => {}
        }
        Ok(true)
    })?;
    let used = space.finish()?;
    if let Some(root) = trees.find_root(sb.roots, BLOCK_GROUP_TREE)? {
        whole(root, &mut |key, item| {
            if key.kind == BLOCK_GROUP_ITEM {
                groups.push((key.object, key.offset, Fields(item).le64(0)?));
            }
            Ok(true)
        })?;
    }
    compare(chunks, &used, &groups)?;
    unallocated(chunks, sb.device_size, &mut free)?;
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

impl FreeMap for BtrfsFree {
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

const CHECK: &str = "check it first: btrfs check";

fn damaged(what: &str) -> Error {
    Error::corrupt(what).hint(CHECK)
}
