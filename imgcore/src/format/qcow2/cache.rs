//! A bounded cache of table slices.
//!
//! L2 tables and refcount blocks are as large as a cluster (up to 2 MiB); most accesses want a few
//! entries. The cache holds them in slices of at most 4 KiB, so that a random access costs one small
//! read, and a changed entry one small write. A slice that is dirty is never evicted: when all are
//! dirty, the image writes its tables in the right order first (see the parent's flush order).

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};

use foldhash::fast::RandomState;

use crate::Result;
use crate::num::{len_u64, round_down, small};
use crate::storage::Storage;

/// Largest slice in bytes.
const MAX_SLICE: u64 = 4096;

#[derive(Debug)]
struct Slot {
    bytes: Box<[u8]>,
    dirty: bool,
    /// Touched since the clock hand passed.
    used: AtomicBool,
}

/// Slices by host offset.
#[derive(Debug)]
pub struct SliceCache {
    slice: u64,
    capacity: usize,
    /// Hashed with a seed of its own: offsets are chosen by whoever made the image.
    slots: HashMap<u64, Slot, RandomState>,
    clock: VecDeque<u64>,
    dirty: usize,
}

impl SliceCache {
    /// A cache for tables of `table` bytes (a power of two), holding at most `bytes`.
    pub fn new(table: u64, bytes: u64) -> Self {
        let slice = table.min(MAX_SLICE);
        let capacity = small(bytes / slice).max(16);
        SliceCache { slice, capacity, slots: HashMap::default(), clock: VecDeque::new(), dirty: 0 }
    }

    /// Bytes of a slice.
    pub fn slice_len(&self) -> u64 {
        self.slice
    }

    /// The slice that covers host offset `at`, if it is here, and where `at` is in it.
    pub fn peek(&self, at: u64) -> Option<(&[u8], usize)> {
        let start = round_down(at, self.slice);
        let slot = self.slots.get(&start)?;
        slot.used.store(true, Ordering::Relaxed);
        Some((&slot.bytes, small(at - start)))
    }

    /// As [`SliceCache::peek`], reading it first if necessary. The caller made room.
    pub fn load(&mut self, storage: &dyn Storage, at: u64) -> Result<(&[u8], usize)> {
        self.fetch(storage, round_down(at, self.slice))?;
        self.peek(at).ok_or_else(|| crate::Error::corrupt("table slice vanished"))
    }

    fn fetch(&mut self, storage: &dyn Storage, start: u64) -> Result<()> {
        if !self.slots.contains_key(&start) {
            // New tables are put here whole; what has to be read must be in the file.
            let end = storage.len()?;
            if start >= end {
                return Err(crate::Error::corrupt(format!(
                    "table at {start:#x} lies beyond the end of the image file ({end:#x} bytes)"
                ))
                .at_path(storage.name())
                .at_offset(start));
            }
            let mut bytes = vec![0u8; small(self.slice)].into_boxed_slice();
            storage.read_at(start, &mut bytes)?;
            self.insert(start, bytes, false);
        }
        Ok(())
    }

    fn insert(&mut self, start: u64, bytes: Box<[u8]>, dirty: bool) {
        self.dirty += usize::from(dirty);
        if let Some(old) =
            self.slots.insert(start, Slot { bytes, dirty, used: AtomicBool::new(true) })
        {
            self.dirty -= usize::from(old.dirty);
        } else {
            self.clock.push_back(start);
        }
    }

    /// The bytes from `at` to the end of its slice, to be changed; the slice becomes dirty.
    pub fn edit(&mut self, storage: &dyn Storage, at: u64) -> Result<&mut [u8]> {
        let start = round_down(at, self.slice);
        self.fetch(storage, start)?;
        match self.slots.get_mut(&start) {
            Some(slot) => {
                self.dirty += usize::from(!slot.dirty);
                slot.dirty = true;
                slot.used.store(true, Ordering::Relaxed);
                Ok(&mut slot.bytes[small(at - start)..])
            }
            None => Err(crate::Error::corrupt("table slice vanished")),
        }
    }

    /// Puts a whole table here as dirty slices without reading anything: a new table.
    pub fn put_table(&mut self, at: u64, table: &[u8]) {
        let mut start = at;
        for part in table.chunks(small(self.slice)) {
            self.insert(start, part.to_vec().into_boxed_slice(), true);
            start += len_u64(part.len());
        }
    }

    /// Forgets a table, dirty or not: its cluster is no table any more.
    pub fn forget(&mut self, at: u64, len: u64) {
        let mut start = at;
        while start < at.saturating_add(len) {
            if let Some(slot) = self.slots.remove(&start) {
                self.dirty -= usize::from(slot.dirty);
            }
            start += self.slice;
        }
        // Offsets left in the clock without a slot are skipped by `make_room`.
    }

    /// Forgets everything that is not dirty.
    pub fn forget_clean(&mut self) {
        self.slots.retain(|_, s| s.dirty);
        let slots = &self.slots;
        self.clock.retain(|start| slots.contains_key(start));
    }

    /// True if any slice is dirty.
    pub fn is_dirty(&self) -> bool {
        self.dirty > 0
    }

    /// True if so many slices are dirty that the image should write its tables now.
    pub fn is_crowded(&self) -> bool {
        self.dirty > self.capacity / 2
    }

    /// Evicts clean slices until `slices` more fit. `false`: too many are dirty; write them first.
    pub fn make_room(&mut self, slices: usize) -> bool {
        let limit = self.capacity.saturating_sub(slices).max(self.capacity / 2);
        if self.slots.len() <= limit {
            return true;
        }
        if self.dirty > limit {
            return false;
        }
        // Two rounds: the first may only clear the marks.
        let mut steps = self.clock.len() * 2;
        while self.slots.len() > limit && steps > 0 {
            steps -= 1;
            let Some(start) = self.clock.pop_front() else { break };
            match self.slots.get(&start) {
                None => {}
                Some(s) if s.dirty || s.used.swap(false, Ordering::Relaxed) => {
                    self.clock.push_back(start);
                }
                Some(_) => drop(self.slots.remove(&start)),
            }
        }
        true
    }

    /// Writes all dirty slices, neighbours in one write.
    pub fn write_dirty(&mut self, storage: &dyn Storage) -> Result<()> {
        if self.dirty == 0 {
            return Ok(());
        }
        let mut starts: Vec<u64> =
            self.slots.iter().filter(|(_, s)| s.dirty).map(|(&start, _)| start).collect();
        starts.sort_unstable();
        let mut run = Vec::new();
        let mut at = 0;
        while at < starts.len() {
            run.clear();
            let first = starts[at];
            let mut next = first;
            while at < starts.len() && starts[at] == next && run.len() < (1 << 20) {
                if let Some(slot) = self.slots.get(&next) {
                    run.extend_from_slice(&slot.bytes);
                }
                next += self.slice;
                at += 1;
            }
            storage.write_at(first, &run)?;
        }
        for start in starts {
            if let Some(slot) = self.slots.get_mut(&start) {
                slot.dirty = false;
            }
        }
        self.dirty = 0;
        Ok(())
    }
}
