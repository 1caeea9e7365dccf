//! Grain directories and grain tables in memory.
//!
//! A table is decoded once into plain numbers (see [`Entry`]) whatever its extent's kind. The cache
//! holds at most [`CACHE_BYTES`] of clean tables; dirty ones stay until they are written, and writers
//! write back when those get many. Tables are shared by `Arc`: a flush keeps a snapshot while a commit
//! makes itself a new copy, and the two are told apart by pointer.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::geometry::{Geometry, TableKind};
use crate::num::small;

/// Memory for clean tables.
pub(super) const CACHE_BYTES: u64 = 4 << 20;

/// What an entry of a decoded table says: nothing here, zeroes, or a sector number.
pub(super) struct Entry;

impl Entry {
    /// Not in this image.
    pub(super) const NONE: u64 = 0;
    /// A grain of zeroes.
    pub(super) const ZERO: u64 = 1;
    /// Not understood.
    pub(super) const BAD: u64 = u64::MAX;
}

/// Which table: extent and index in its grain directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    pub extent: u32,
    pub index: u32,
}

/// Decodes a grain table.
pub(super) fn decode(raw: &[u8], g: &Geometry) -> Vec<u64> {
    match g.kind {
        TableKind::Sectors => {
            let one = if g.zero_grain { Entry::ZERO } else { Entry::BAD };
            raw.as_chunks::<4>()
                .0
                .iter()
                .map(|&b| match u32::from_le_bytes(b) {
                    1 => one,
                    n => u64::from(n),
                })
                .collect()
        }
        TableKind::SeSparse { grains, .. } => {
            let decode = |&b: &[u8; 8]| se_entry(u64::from_le_bytes(b), grains);
            raw.as_chunks::<8>().0.iter().map(decode).collect()
        }
    }
}

/// An seSparse entry: the type is in the highest four bits; the number of an allocated grain has its
/// lower 12 bits in bits 48 to 59 and the higher ones in bits 0 to 47.
fn se_entry(raw: u64, grains: u64) -> u64 {
    match raw >> 60 {
        0 if raw == 0 => Entry::NONE,
        // Unmapped by the guest, and zeroed: both read as zeroes.
        1 | 2 => Entry::ZERO,
        3 => {
            let number = ((raw >> 48) & 0xfff) | ((raw & 0xffff_ffff_ffff) << 12);
            number
                .checked_mul(8)
                .and_then(|s| s.checked_add(grains))
                .filter(|&s| s > Entry::ZERO && s < u64::MAX / 512)
                .unwrap_or(Entry::BAD)
        }
        _ => Entry::BAD,
    }
}

/// Encodes a table of 32-bit sectors.
pub(super) fn encode(table: &[u64]) -> Vec<u8> {
    // Sector numbers were limited to 32 bits when they were handed out; what was read as bad (sector
    // 1 without the zero-grain flag) goes back as it was.
    table.iter().flat_map(|&e| u32::try_from(e).unwrap_or(1).to_le_bytes()).collect()
}

#[derive(Debug)]
struct Slot {
    table: Arc<Vec<u64>>,
    used: AtomicU64,
    dirty: bool,
}

/// Decoded tables of all extents.
#[derive(Debug, Default)]
pub(super) struct Cache {
    slots: HashMap<Key, Slot>,
    clock: AtomicU64,
    /// Bytes of all tables held.
    bytes: u64,
    dirty: BTreeSet<Key>,
}

impl Cache {
    pub(super) fn get(&self, key: Key) -> Option<&Arc<Vec<u64>>> {
        let slot = self.slots.get(&key)?;
        slot.used.store(self.clock.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        Some(&slot.table)
    }

    /// Adds a table that is on disk; makes room first.
    pub(super) fn insert(&mut self, key: Key, table: Vec<u64>) {
        let size = 8 * crate::num::len_u64(table.len());
        if self.bytes + size > CACHE_BYTES {
            self.evict();
        }
        self.bytes += size;
        let used = AtomicU64::new(self.clock.fetch_add(1, Ordering::Relaxed));
        self.slots.insert(key, Slot { table: Arc::new(table), used, dirty: false });
    }

    /// Drops the older half of the clean tables.
    fn evict(&mut self) {
        let mut ages: Vec<u64> = self
            .slots
            .values()
            .filter(|s| !s.dirty)
            .map(|s| s.used.load(Ordering::Relaxed))
            .collect();
        if ages.is_empty() {
            return;
        }
        let middle = ages.len() / 2;
        let (_, &mut limit, _) = ages.select_nth_unstable(middle);
        let mut freed = 0;
        self.slots.retain(|_, s| {
            let keep = s.dirty || s.used.load(Ordering::Relaxed) > limit;
            if !keep {
                freed += 8 * crate::num::len_u64(s.table.len());
            }
            keep
        });
        self.bytes -= freed;
    }

    /// A table to change; from now on it is dirty. It must be in the cache.
    pub(super) fn change(&mut self, key: Key) -> Option<&mut Vec<u64>> {
        let slot = self.slots.get_mut(&key)?;
        slot.dirty = true;
        self.dirty.insert(key);
        Some(Arc::make_mut(&mut slot.table))
    }

    /// Bytes of dirty tables, about.
    pub(super) fn dirty_tables(&self) -> usize {
        self.dirty.len()
    }

    /// All dirty tables as they are now, in the order of the disk.
    pub(super) fn dirty_snapshot(&self) -> Vec<(Key, Arc<Vec<u64>>)> {
        self.dirty
            .iter()
            .filter_map(|k| Some((*k, Arc::clone(&self.slots.get(k)?.table))))
            .collect()
    }

    /// A snapshot is on disk: the table is clean unless it changed since.
    pub(super) fn written(&mut self, key: Key, snapshot: &Arc<Vec<u64>>) {
        if let Some(slot) = self.slots.get_mut(&key)
            && Arc::ptr_eq(&slot.table, snapshot)
        {
            slot.dirty = false;
            self.dirty.remove(&key);
        }
    }
}

/// What is in memory of one sparse extent besides its tables.
#[derive(Debug, Default)]
pub(super) struct Directory {
    /// Raw entries of the grain directory: sectors of tables, or one more than the number of the
    /// table (seSparse); 0 for none.
    pub gd: Vec<u32>,
    /// The redundant one, for writing.
    pub rgd: Vec<u32>,
    /// Next free byte of the file (writing).
    pub next_free: u64,
    /// Where the file's grains may end.
    pub limit: u64,
    /// Tables whose directory entries are not on disk yet.
    pub new_tables: BTreeSet<u32>,
    /// Grains were handed out since the last flush.
    pub grew: bool,
}

impl Directory {
    /// Where the table of that index is (bytes), if there is one.
    pub(super) fn table_at(&self, index: u32, g: &Geometry) -> Option<u64> {
        match (*self.gd.get(small(u64::from(index)))?, g.kind) {
            (0, _) => None,
            (sector, TableKind::Sectors) => Some(u64::from(sector) * 512),
            (number, TableKind::SeSparse { tables, .. }) => {
                tables.checked_add(u64::from(number - 1) * g.table_bytes())
            }
        }
    }

    /// Where the redundant copy of that table is (bytes), if there is one.
    pub(super) fn redundant_at(&self, index: u32) -> Option<u64> {
        match self.rgd.get(small(u64::from(index)))? {
            0 => None,
            &sector => Some(u64::from(sector) * 512),
        }
    }
}
