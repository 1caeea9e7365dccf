//! Reference counts: reading, changing, finding free clusters.
//!
//! Two levels ("Host cluster management"): the refcount table, kept in memory whole (at most 8 MiB),
//! points to refcount blocks, which go through a slice cache. Counts are 1 to 64 bits wide.
//!
//! Increments happen at once (in the cache); decrements are *queued* by [`Refcounts::free_later`] and
//! applied by the flush after the mapping that dropped them is on disk. So a cluster is never used
//! again while an old mapping on disk still points to it.

use super::cache::SliceCache;
use super::layout::{MAX_REFTABLE_BYTES, REFTABLE_MASK};
use crate::num::{len_u64, small};
use crate::storage::Storage;
use crate::{Error, ErrorKind, Result};

/// Bytes of refcount blocks kept in memory.
const CACHE_BYTES: u64 = 4 << 20;
/// Host offsets have 56 bits.
const MAX_OFFSET: u64 = 1 << 56;

/// Reads the count at `index` of a block (or a slice of one that begins at a byte boundary).
pub fn get_count(bytes: &[u8], order: u32, index: usize) -> u64 {
    let be = |n: usize| {
        let start = index * n;
        bytes
            .get(start..start + n)
            .map_or(0, |b| b.iter().fold(0u64, |v, &x| v << 8 | u64::from(x)))
    };
    match order {
        0..=2 => {
            let width = 1usize << order;
            let byte = bytes.get(index * width / 8).copied().unwrap_or(0);
            let mask = (1u64 << width) - 1;
            u64::from(byte) >> (index * width % 8) & mask
        }
        3 => be(1),
        4 => be(2),
        5 => be(4),
        _ => be(8),
    }
}

/// Stores the count at `index`; `value` must fit.
pub fn set_count(bytes: &mut [u8], order: u32, index: usize, value: u64) {
    let all = value.to_be_bytes();
    match order {
        0..=2 => {
            let width = 1usize << order;
            let shift = index * width % 8;
            let mask = ((1u16 << width) - 1).to_le_bytes()[0];
            if let Some(byte) = bytes.get_mut(index * width / 8) {
                *byte = *byte & !(mask << shift) | (all[7] & mask) << shift;
            }
        }
        _ => {
            let n = 1usize << (order - 3);
            if let Some(to) = bytes.get_mut(index * n..(index + 1) * n) {
                to.copy_from_slice(&all[8 - n..]);
            }
        }
    }
}

/// Largest count of a width.
pub fn max_count(order: u32) -> u64 {
    if order >= 6 { u64::MAX } else { (1u64 << (1u32 << order)) - 1 }
}

/// A refcount table that must move: where the old one was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OldTable {
    offset: u64,
    clusters: u64,
}

/// The reference counts of an image.
#[derive(Debug)]
pub struct Refcounts {
    cluster_bits: u32,
    /// log2 of the width in bits.
    pub order: u32,
    /// Refcount table; entries are host offsets of blocks, 0 for none.
    pub table: Vec<u64>,
    /// Host offset of the table.
    pub table_offset: u64,
    /// First and last changed entry, if any.
    table_dirty: Option<(usize, usize)>,
    /// Set when the table got a new place: the whole table and the header must be written.
    moved: Option<Vec<OldTable>>,
    /// Block slices.
    pub cache: SliceCache,
    /// No free cluster lies below this index.
    pub hint: u64,
    /// Runs of clusters `(first, count)` whose references to drop once mappings are on disk.
    pending: Vec<(u64, u64)>,
}

impl Refcounts {
    /// Over a table that was read and checked.
    pub fn new(cluster_bits: u32, order: u32, table: Vec<u64>, table_offset: u64) -> Self {
        Refcounts {
            cluster_bits,
            order,
            table,
            table_offset,
            table_dirty: None,
            moved: None,
            cache: SliceCache::new(1 << cluster_bits, CACHE_BYTES),
            hint: 0,
            pending: Vec::new(),
        }
    }

    fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// log2 of the counts in one block.
    pub fn block_bits(&self) -> u32 {
        self.cluster_bits + 3 - self.order
    }

    /// Clusters that the table occupies.
    pub fn table_clusters(&self) -> u64 {
        (len_u64(self.table.len()) * 8).div_ceil(self.cluster_size())
    }

    /// Host offset of the block for `cluster`, checked; `None`: no block.
    fn block(&self, cluster: u64) -> Result<Option<u64>> {
        let index = small(cluster >> self.block_bits());
        match self.table.get(index).copied().unwrap_or(0) & REFTABLE_MASK {
            0 => Ok(None),
            at if at % self.cluster_size() != 0 => Err(Error::corrupt(format!(
                "Refblock offset {at:#x} unaligned (reftable index: {index:#x})"
            ))
            .at_offset(at)),
            at => Ok(Some(at)),
        }
    }

    /// Byte offset of a count within its block, rounded down to a whole byte.
    fn byte_in_block(&self, cluster: u64) -> u64 {
        let index = cluster & ((1 << self.block_bits()) - 1);
        (index << self.order) >> 3
    }

    /// Index of a count among those that begin with its byte.
    fn index_in_byte(&self, cluster: u64) -> usize {
        if self.order >= 3 { 0 } else { small(cluster & ((8 >> self.order) - 1)) }
    }

    /// The count of `cluster`.
    pub fn get(&mut self, storage: &dyn Storage, cluster: u64) -> Result<u64> {
        let Some(block) = self.block(cluster)? else { return Ok(0) };
        self.cache.make_room(1);
        let order = self.order;
        let sub = self.index_in_byte(cluster);
        let (bytes, at) = self.cache.load(storage, block + self.byte_in_block(cluster))?;
        Ok(get_count(&bytes[at..], order, sub))
    }

    /// Stores a count; the block must exist.
    pub fn set(&mut self, storage: &dyn Storage, cluster: u64, value: u64) -> Result<()> {
        let Some(block) = self.block(cluster)? else {
            return Err(Error::corrupt(format!("cluster {cluster:#x} has no refcount block")));
        };
        if value > max_count(self.order) {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "reference count of cluster {cluster:#x} would not fit in {} bits",
                    1 << self.order
                ),
            ));
        }
        self.cache.make_room(1);
        let order = self.order;
        let sub = self.index_in_byte(cluster);
        let bytes = self.cache.edit(storage, block + self.byte_in_block(cluster))?;
        set_count(bytes, order, sub, value);
        if value == 0 {
            self.hint = self.hint.min(cluster);
        }
        Ok(())
    }

    /// Adds one reference to each cluster that `offset..offset+len` touches.
    pub fn add(&mut self, storage: &dyn Storage, offset: u64, len: u64) -> Result<()> {
        let (first, last) =
            (offset >> self.cluster_bits, (offset + len.max(1) - 1) >> self.cluster_bits);
        for cluster in first..=last {
            self.ensure_block(storage, cluster)?;
            let count = self.get(storage, cluster)?;
            self.set(storage, cluster, count.saturating_add(1))?;
        }
        Ok(())
    }

    /// Queues the drop of one reference to each cluster that `offset..offset+len` touches.
    pub fn free_later(&mut self, offset: u64, len: u64) {
        let (first, last) =
            (offset >> self.cluster_bits, (offset + len.max(1) - 1) >> self.cluster_bits);
        let count = last - first + 1;
        if let Some((start, n)) = self.pending.last_mut()
            && *start + *n == first
        {
            *n += count;
            return;
        }
        self.pending.push((first, count));
    }

    /// True if decrements wait for the next flush.
    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Drops the queued references. Only after the mappings are on disk. Returns the byte ranges that
    /// became free.
    pub fn apply_pending(&mut self, storage: &dyn Storage) -> Result<Vec<(u64, u64)>> {
        let mut freed: Vec<(u64, u64)> = Vec::new();
        for (first, count) in std::mem::take(&mut self.pending) {
            for cluster in first..first + count {
                let old = self.get(storage, cluster)?;
                let Some(new) = old.checked_sub(1) else {
                    return Err(Error::corrupt(format!(
                        "reference count of cluster {cluster:#x} is already zero"
                    ))
                    .at_offset(cluster << self.cluster_bits));
                };
                self.set(storage, cluster, new)?;
                if new == 0 {
                    let (at, len) = (cluster << self.cluster_bits, self.cluster_size());
                    match freed.last_mut() {
                        Some((a, l)) if *a + *l == at => *l += len,
                        _ => freed.push((at, len)),
                    }
                }
            }
        }
        Ok(freed)
    }

    /// Finds and takes up to `want` free neighbouring clusters; at least `least` of them. Returns the
    /// host offset and the number.
    pub fn allocate(&mut self, storage: &dyn Storage, want: u64, least: u64) -> Result<(u64, u64)> {
        let (first, count) = self.find_free(storage, want, least)?;
        for cluster in first..first + count {
            self.set(storage, cluster, 1)?;
        }
        Ok((first << self.cluster_bits, count))
    }

    fn find_free(&mut self, storage: &dyn Storage, want: u64, least: u64) -> Result<(u64, u64)> {
        let mut start = self.hint;
        let mut hint_moves = true;
        loop {
            let from = start;
            start = self.skip_used(storage, start)?;
            if hint_moves && start > from {
                self.hint = start;
            }
            let mut run = 0;
            while run < want {
                let cluster = start + run;
                if cluster >= MAX_OFFSET >> self.cluster_bits {
                    return Err(Error::errno(libc::EFBIG)
                        .context("image file would become larger than the format allows"));
                }
                if self.block(cluster)?.is_none() {
                    if run > 0 && run >= least {
                        break;
                    }
                    self.new_block(storage, cluster)?;
                    // The new block may lie in the run itself: look at the cluster again.
                }
                if self.get(storage, cluster)? != 0 {
                    break;
                }
                run += 1;
            }
            if run >= least && run > 0 {
                if hint_moves {
                    self.hint = start + run;
                }
                return Ok((start, run));
            }
            // Clusters skipped because they were too few stay below the hint.
            hint_moves = hint_moves && run == 0;
            start += run + 1;
            if hint_moves {
                self.hint = start;
            }
        }
    }

    /// The first cluster from `start` on that may be free, looking through one slice at a time.
    fn skip_used(&mut self, storage: &dyn Storage, mut start: u64) -> Result<u64> {
        let order = self.order;
        while let Some(block) = self.block(start)? {
            self.cache.make_room(1);
            let first = self.index_in_byte(start);
            let (bytes, at) = self.cache.load(storage, block + self.byte_in_block(start))?;
            let counts = ((bytes.len() - at) * 8) >> order;
            match (first..counts).find(|&i| get_count(&bytes[at..], order, i) == 0) {
                Some(i) => return Ok(start + len_u64(i - first)),
                None => start += len_u64(counts - first),
            }
        }
        Ok(start)
    }

    /// How many of the first `end` clusters are in use; stops counting at `enough`.
    pub fn count_used(&mut self, storage: &dyn Storage, end: u64, enough: u64) -> Result<u64> {
        let order = self.order;
        let (mut at, mut used) = (0, 0);
        while at < end && used < enough {
            let Some(block) = self.block(at)? else {
                at = ((at >> self.block_bits()) + 1) << self.block_bits();
                continue;
            };
            self.cache.make_room(1);
            let first = self.index_in_byte(at);
            let (bytes, from) = self.cache.load(storage, block + self.byte_in_block(at))?;
            let counts = ((bytes.len() - from) * 8) >> order;
            let last = counts.min(first + small(end - at));
            let found = (first..last).filter(|&i| get_count(&bytes[from..], order, i) != 0).count();
            used += len_u64(found);
            at += len_u64(last - first);
        }
        Ok(used)
    }

    /// Makes sure that the count of `cluster` can be stored.
    pub fn ensure_block(&mut self, storage: &dyn Storage, cluster: u64) -> Result<()> {
        if self.block(cluster)?.is_none() {
            self.new_block(storage, cluster)?;
        }
        Ok(())
    }

    /// Creates the block that covers `near`, in which no cluster has a count yet. The block goes to
    /// `near` itself and describes itself: all clusters of its range are free.
    fn new_block(&mut self, storage: &dyn Storage, near: u64) -> Result<()> {
        let index = small(near >> self.block_bits());
        if index >= self.table.len() {
            self.grow_table(storage, index)?;
            if self.block(near)?.is_some() {
                return Ok(());
            }
        }
        let at = near << self.cluster_bits;
        self.link_block(index, at);
        self.set(storage, near, 1)
    }

    fn link_block(&mut self, index: usize, at: u64) {
        self.cache.make_room(small(self.cluster_size() / self.cache.slice_len()));
        self.cache.put_table(at, &vec![0u8; small(self.cluster_size())]);
        self.table[index] = at;
        let (low, high) = self.table_dirty.unwrap_or((index, index));
        self.table_dirty = Some((low.min(index), high.max(index)));
    }

    /// Gives the table a new, larger place so that entry `index` exists: at the start of the first
    /// range that no block covers yet, followed by the blocks that describe it.
    fn grow_table(&mut self, storage: &dyn Storage, index: usize) -> Result<()> {
        let per_block = 1u64 << self.block_bits();
        let old = OldTable { offset: self.table_offset, clusters: self.table_clusters() };
        let first = len_u64(index) << self.block_bits();
        let mut entries = len_u64(index + 1).max(len_u64(self.table.len()) * 3 / 2);
        // The table and the blocks for its own clusters must fit in what it can describe.
        let (clusters, blocks) = loop {
            let clusters = (entries * 8).div_ceil(self.cluster_size());
            let mut blocks = 1;
            while blocks * per_block < clusters + blocks {
                blocks += 1;
            }
            if len_u64(index) + blocks <= clusters * self.cluster_size() / 8 {
                break (clusters, blocks);
            }
            entries = len_u64(index) + blocks;
        };
        if clusters * self.cluster_size() > MAX_REFTABLE_BYTES {
            return Err(Error::errno(libc::EFBIG)
                .context("refcount table would become larger than the format allows"));
        }
        self.table.resize(small(clusters * self.cluster_size() / 8), 0);
        self.table_offset = first << self.cluster_bits;
        for i in 0..blocks {
            self.link_block(index + small(i), (first + clusters + i) << self.cluster_bits);
        }
        for cluster in first..first + clusters + blocks {
            self.set(storage, cluster, 1)?;
        }
        self.moved.get_or_insert_with(Vec::new).push(old);
        Ok(())
    }

    /// First step of a flush: blocks (all increments) to the storage. Returns whether the table must
    /// be written too (after a barrier).
    pub fn write_blocks(&mut self, storage: &dyn Storage) -> Result<bool> {
        self.cache.write_dirty(storage)?;
        Ok(self.table_dirty.is_some() || self.moved.is_some())
    }

    /// Second step: the table. Returns whether it moved: the header must then be written (after a
    /// barrier), and [`Refcounts::table_is_linked`] called.
    pub fn write_table(&mut self, storage: &dyn Storage) -> Result<bool> {
        let (low, high) = match (&self.moved, self.table_dirty) {
            (Some(_), _) => (0, self.table.len().saturating_sub(1)),
            (None, Some(range)) => range,
            (None, None) => return Ok(false),
        };
        let bytes: Vec<u8> = self.table[low..=high].iter().flat_map(|e| e.to_be_bytes()).collect();
        storage.write_at(self.table_offset + len_u64(low) * 8, &bytes)?;
        self.table_dirty = None;
        Ok(self.moved.is_some())
    }

    /// The header names the new table: the old places are free.
    pub fn table_is_linked(&mut self) {
        for old in self.moved.take().unwrap_or_default() {
            self.free_later(old.offset, old.clusters << self.cluster_bits);
        }
    }

    /// True if anything is not on the storage.
    pub fn is_dirty(&self) -> bool {
        self.cache.is_dirty()
            || self.table_dirty.is_some()
            || self.moved.is_some()
            || self.has_pending()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemoryStorage;

    #[test]
    fn counts_of_every_width() {
        for order in 0..=6 {
            let mut bytes = vec![0u8; 512];
            let n = (512 * 8) >> order;
            for i in 0..n {
                set_count(&mut bytes, order, i, len_u64(i) & max_count(order));
            }
            for i in 0..n {
                let want = len_u64(i) & max_count(order);
                assert_eq!(get_count(&bytes, order, i), want, "order {order} index {i}");
            }
        }
    }

    #[test]
    fn the_table_grows_and_describes_itself() {
        for order in [0, 4, 6] {
            let storage = MemoryStorage::new("m", Vec::new());
            let mut refs = Refcounts::new(9, order, vec![0; 64], 512);
            refs.ensure_block(&storage, 2).unwrap();
            refs.set(&storage, 0, 1).unwrap();
            refs.set(&storage, 1, 1).unwrap();
            let mut taken = std::collections::HashSet::new();
            for _ in 0..600_000 >> (6 - order) {
                let (at, n) = refs.allocate(&storage, 1, 1).unwrap();
                assert_eq!(n, 1);
                assert!(taken.insert(at));
            }
            let table = refs.table_offset >> 9;
            for c in table..table + refs.table_clusters() {
                assert!(!taken.contains(&(c << 9)));
                assert_eq!(refs.get(&storage, c).unwrap(), 1);
            }
            for (i, &at) in refs.table.clone().iter().enumerate() {
                if at != 0 {
                    assert_eq!(refs.get(&storage, at >> 9).unwrap(), 1, "block {i}");
                    assert!(!taken.contains(&at));
                }
            }
        }
    }
}
