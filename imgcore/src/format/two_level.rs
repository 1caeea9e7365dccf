//! Two levels of tables on disk: an L1 table whose entries lead to L2 tables, whose entries lead to
//! clusters (qcow, QED).
//!
//! L1 is one [`BlockTable`], each L2 table another, read when somebody asks; clean ones are dropped when
//! there are many. A new L2 table has its place at once and is led to at the next writing back. What is to be
//! written comes in two parts, [`Changes::lower`] (L2 tables) and [`Changes::upper`] (L1): the first must
//! be on disk before the second is written, so that no L1 entry leads to a table that is not there.

use std::collections::BTreeMap;

use super::block_table::{BlockTable, EntryKind};
use crate::num::{len_u64, small};
use crate::storage::{Storage, ZeroMode};
use crate::{Error, Result};

/// Bytes of L2 tables that are kept while nobody changes them.
const KEEP: u64 = 32 << 20;
/// Bytes of changed L2 tables after which they should be written.
const MANY_DIRTY: u64 = 8 << 20;
/// Larger tables are not made in memory.
const LARGE: u64 = 1 << 20;
/// Bytes of a table that are looked at together.
const PIECE: u64 = 64 << 10;
/// L2 tables that one look at a run reads at most.
const LOOK_AHEAD: u32 = 64;

/// The shape of the tables, checked by the format.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Where L1 is in the file.
    pub l1: u64,
    /// Entries of L1; checked against a limit.
    pub l1_entries: u64,
    /// Entries of an L2 table.
    pub l2_entries: u64,
    /// L2 tables begin at multiples of this many bytes.
    pub align: u64,
    /// How entries are stored.
    pub kind: EntryKind,
}

/// The tables.
#[derive(Debug)]
pub(crate) struct TwoLevel {
    shape: Shape,
    l1: BlockTable,
    /// By number of the L1 entry.
    tables: BTreeMap<u64, BlockTable>,
    /// How many of them were changed since the last writing.
    changed: u64,
}

/// A run of clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// The first entry.
    pub first: u64,
    /// How many clusters.
    pub len: u64,
    /// It may go on in a table that is not in memory.
    pub unread: bool,
}

/// What has to be written: file offsets and bytes.
#[derive(Debug)]
pub(crate) struct Changes {
    /// Of L2 tables: first.
    pub lower: Vec<(u64, Vec<u8>)>,
    /// Of L1: when the others are on disk.
    pub upper: Vec<(u64, Vec<u8>)>,
}

impl Changes {
    /// Writes them, tables before what leads to them; `barrier` waits, before each of the two, until all
    /// that was written so far is on disk.
    ///
    /// # Errors
    /// Those of the storage and of `barrier`; [`TwoLevel::written`] has to be told.
    pub fn write(&self, storage: &dyn Storage, barrier: impl Fn() -> Result<()>) -> Result<()> {
        for part in [&self.lower, &self.upper] {
            if part.is_empty() {
                continue;
            }
            barrier()?;
            for (at, bytes) in part {
                storage.write_at(*at, bytes)?;
            }
        }
        Ok(())
    }
}

impl TwoLevel {
    /// Tables of that shape.
    pub fn new(shape: Shape) -> Self {
        let l1 = BlockTable::new(shape.l1, shape.l1_entries, shape.kind);
        TwoLevel { shape, l1, tables: BTreeMap::new(), changed: 0 }
    }

    /// Bytes of an L2 table.
    pub fn l2_bytes(&self) -> u64 {
        self.shape.l2_entries * self.shape.kind.width()
    }

    /// Where the entry of a cluster is in the file, for messages: its own, or that of L1 above it.
    pub fn entry_at(&self, index: u64) -> u64 {
        let (upper, lower) = self.split(index);
        self.tables.get(&upper).map_or_else(|| self.l1.entry_at(upper), |t| t.entry_at(lower))
    }

    fn split(&self, index: u64) -> (u64, u64) {
        (index / self.shape.l2_entries, index % self.shape.l2_entries)
    }

    /// Entry `number` of L1: where an L2 table is, 0 for none.
    pub fn upper(&mut self, storage: &dyn Storage, number: u64) -> Result<u64> {
        self.l1.fetch(storage, number)
    }

    /// Changes an entry of L1. The table that it led to is forgotten.
    pub fn set_upper(&mut self, storage: &dyn Storage, number: u64, at: u64) -> Result<()> {
        self.tables.remove(&number);
        self.l1.set(storage, number, at)
    }

    /// Why an entry of L1 leads nowhere.
    pub fn wrong_table(&self, at: u64, len: u64) -> Option<&'static str> {
        if !at.is_multiple_of(self.shape.align) {
            Some("is not aligned")
        } else if at >= len {
            Some("lies beyond the end of the file")
        } else {
            None
        }
    }

    fn load(&mut self, storage: &dyn Storage, upper: u64) -> Result<()> {
        let at = self.l1.fetch(storage, upper)?;
        if at == 0 || self.tables.contains_key(&upper) {
            return Ok(());
        }
        if let Some(what) = self.wrong_table(at, storage.len()?) {
            return Err(Error::corrupt(format!("the L2 table at {at:#x} {what}"))
                .at_path(storage.name())
                .at_offset(self.l1.entry_at(upper))
                .hint("the image is damaged; look at it with 'check'"));
        }
        if len_u64(self.tables.len()) * self.l2_bytes() > KEEP {
            self.tables.retain(|_, t| !t.is_clean());
        }
        let mut table = BlockTable::new(at, self.shape.l2_entries, self.shape.kind);
        table.fetch(storage, 0)?;
        self.tables.insert(upper, table);
        Ok(())
    }

    /// The entry of a cluster; 0 where there is no L2 table.
    pub fn fetch(&mut self, storage: &dyn Storage, index: u64) -> Result<u64> {
        let (upper, lower) = self.split(index);
        self.load(storage, upper)?;
        self.tables.get_mut(&upper).map_or(Ok(0), |t| t.fetch(storage, lower))
    }

    /// The entry of cluster `index`, and for how many clusters from there on, at most `max` (> 0), `same`
    /// says of the first entry, a distance and the entry there that it goes on. Looks only at what is in
    /// memory; `None` if that is not even the first.
    pub fn run(&self, index: u64, max: u64, same: impl Fn(u64, u64, u64) -> bool) -> Option<Run> {
        let (mut upper, mut lower) = self.split(index);
        let mut first = None;
        let mut len = 0;
        let mut unread = false;
        while len < max {
            let Some(at) = self.l1.get(upper) else {
                unread = upper < self.shape.l1_entries;
                break;
            };
            let here = (self.shape.l2_entries - lower).min(max - len);
            let ran = if at == 0 {
                let first = *first.get_or_insert(0);
                if same(first, len, 0) { here } else { 0 }
            } else {
                let table = self.tables.get(&upper);
                let Some((table, entry)) = table.and_then(|t| Some((t, t.get(lower)?))) else {
                    unread = true;
                    break;
                };
                let first = *first.get_or_insert(entry);
                table.run(lower, here, |i, e| same(first, len + i, e))
            };
            len += ran;
            if ran < here {
                // Of a large table only some pages may be in memory.
                let table = self.tables.get(&upper);
                unread = table.is_some_and(|t| t.get(lower + ran).is_none());
                break;
            }
            (upper, lower) = (upper + 1, 0);
        }
        first.map(|first| Run { first, len: len.max(1), unread })
    }

    /// The same, reading tables where they are not in memory (so many and no more).
    pub fn run_reading(
        &mut self,
        storage: &dyn Storage,
        (index, max): (u64, u64),
        same: impl Fn(u64, u64, u64) -> bool,
    ) -> Result<Run> {
        self.fetch(storage, index)?;
        let mut run = self.run(index, max, &same).ok_or_else(|| Error::errno(libc::EIO))?;
        for _ in 0..LOOK_AHEAD {
            if !run.unread {
                break;
            }
            self.fetch(storage, index + run.len)?;
            match self.run(index, max, &same) {
                Some(more) => run = more,
                // Reading the next table made the first be dropped.
                None => break,
            }
        }
        Ok(run)
    }

    /// Makes sure that clusters `start..end` have L2 tables; `place` finds room for one.
    pub fn make_tables(
        &mut self,
        storage: &dyn Storage,
        (start, end): (u64, u64),
        mut place: impl FnMut(u64) -> u64,
    ) -> Result<()> {
        for upper in start / self.shape.l2_entries..end.div_ceil(self.shape.l2_entries) {
            self.load(storage, upper)?;
            if self.tables.contains_key(&upper) {
                continue;
            }
            let at = place(self.l2_bytes());
            self.l1.set(storage, upper, at)?;
            let entries = self.shape.l2_entries;
            let table = if self.l2_bytes() > LARGE {
                storage.write_zeroes(at, self.l2_bytes(), ZeroMode::MayUnmap)?;
                BlockTable::new(at, entries, self.shape.kind)
            } else {
                BlockTable::zeroed(at, entries, self.shape.kind)
            };
            self.tables.insert(upper, table);
            self.changed += 1;
        }
        Ok(())
    }

    /// Changes the entry of a cluster that has an L2 table.
    pub fn set(&mut self, storage: &dyn Storage, index: u64, value: u64) -> Result<()> {
        let (upper, lower) = self.split(index);
        self.load(storage, upper)?;
        let table = self.tables.get_mut(&upper).ok_or_else(|| {
            Error::errno(libc::EIO).context(format!("cluster {index} has no L2 table"))
        })?;
        self.changed += u64::from(table.is_clean());
        table.set(storage, lower, value)
    }

    /// Whether more than a few megabytes wait to be written.
    pub fn many_dirty(&self) -> bool {
        self.changed * self.l2_bytes() > MANY_DIRTY || self.l1.many_dirty()
    }

    /// What has to be written. It stays in memory until [`TwoLevel::written`] tells how it went.
    pub fn changes(&mut self) -> Changes {
        self.changed = 0;
        let mut lower: Vec<_> = self.tables.values_mut().flat_map(BlockTable::snapshot).collect();
        lower.sort_by_key(|(at, _)| *at);
        Changes { lower, upper: self.l1.snapshot() }
    }

    /// Ends what [`TwoLevel::changes`] began.
    pub fn written(&mut self, done: bool) {
        for table in self.tables.values_mut() {
            table.written(done);
        }
        self.l1.written(done);
        if !done {
            self.changed = len_u64(self.tables.values().filter(|t| !t.is_clean()).count());
        }
    }

    /// Calls `each` with number and value of the entries of the L2 table at `at` that are not 0, as they
    /// are in the file.
    pub fn each_entry(
        &self,
        storage: &dyn Storage,
        at: u64,
        mut each: impl FnMut(u64, u64) -> Result<()>,
    ) -> Result<()> {
        let end = self.l2_bytes().min(storage.len()?.saturating_sub(at));
        let mut raw = vec![0; small(end.min(PIECE))];
        for from in (0..end).step_by(small(PIECE)) {
            let piece = &mut raw[..small(PIECE.min(end - from) / 8 * 8)];
            storage.read_at(at + from, piece)?;
            for (number, bytes) in (from / 8..).zip(piece.chunks_exact(8)) {
                let value = match self.shape.kind {
                    EntryKind::Be64 => bytes.iter().fold(0, |v, &b| v << 8 | u64::from(b)),
                    _ => bytes.iter().rev().fold(0, |v, &b| v << 8 | u64::from(b)),
                };
                if value != 0 {
                    each(number, value)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemoryStorage;

    const SHAPE: Shape =
        Shape { l1: 512, l1_entries: 100, l2_entries: 64, align: 512, kind: EntryKind::Be64 };

    fn follows(first: u64, i: u64, e: u64) -> bool {
        if first == 0 { e == 0 } else { e == first + i * 4096 }
    }

    fn write(t: &mut TwoLevel, file: &MemoryStorage) {
        let changes = t.changes();
        for (at, bytes) in changes.lower.iter().chain(&changes.upper) {
            file.write_at(*at, bytes).unwrap();
        }
        t.written(true);
    }

    #[test]
    fn runs_go_over_tables() {
        let file = MemoryStorage::new("f", vec![0; 4096]);
        let mut t = TwoLevel::new(SHAPE);
        let mut next = 4096;
        let mut place = |len| {
            next += len;
            next - len
        };
        let run = |first, len, unread| Run { first, len, unread };
        assert_eq!(t.run(0, 9, follows), None);
        assert_eq!(t.run_reading(&file, (0, 6400), follows).unwrap(), run(0, 6400, false));
        assert!(t.set(&file, 130, 9).is_err());
        t.make_tables(&file, (130, 300), &mut place).unwrap();
        for i in 130..300 {
            t.set(&file, i, 0x10_0000 + (i - 130) * 4096).unwrap();
        }
        write(&mut t, &file);
        let mut t = TwoLevel::new(SHAPE);
        assert_eq!(t.run_reading(&file, (3, 6000), follows).unwrap(), run(0, 127, false));
        assert_eq!(t.run(100, 100, follows), Some(run(0, 30, false)));
        assert_eq!(t.run(131, 6000, follows), Some(run(0x10_1000, 61, true)));
        let all = t.run_reading(&file, (131, 6000), follows).unwrap();
        assert_eq!(all, run(0x10_1000, 169, false));
        assert_eq!(t.run(299, 20, follows), Some(run(0x10_0000 + 169 * 4096, 1, false)));
        assert_eq!(t.run_reading(&file, (300, 100), follows).unwrap(), run(0, 100, false));
        assert_eq!(t.upper(&file, 2).unwrap(), 4096);
        let mut seen = Vec::new();
        t.each_entry(&file, 4096, |i, e| {
            seen.push((i, e));
            Ok(())
        })
        .unwrap();
        assert_eq!((seen.len(), seen[0], seen[1]), (62, (2, 0x10_0000), (3, 0x10_1000)));
    }

    #[test]
    fn tables_out_of_the_file() {
        let mut bytes = vec![0; 4096];
        bytes[512..520].copy_from_slice(&0x2000u64.to_be_bytes());
        bytes[520..528].copy_from_slice(&0x201u64.to_be_bytes());
        let file = MemoryStorage::new("f", bytes);
        let mut t = TwoLevel::new(SHAPE);
        let e = t.fetch(&file, 0).unwrap_err();
        assert!(e.message().contains("beyond the end"), "{e:?}");
        assert_eq!(e.offset(), Some(512));
        assert!(t.fetch(&file, 64).unwrap_err().message().contains("not aligned"));
    }

    #[test]
    fn memory_is_bounded() {
        let shape = Shape { l1_entries: 100_000, l2_entries: 8192, ..SHAPE };
        let mut bytes = vec![0; 900_000];
        for i in 0..100_000 {
            bytes[512 + i * 8..520 + i * 8].copy_from_slice(&512u64.to_be_bytes());
        }
        let file = MemoryStorage::new("f", bytes);
        let mut t = TwoLevel::new(shape);
        for i in 0..2000 {
            t.fetch(&file, i * 8192).unwrap();
            assert!(len_u64(t.tables.len()) * 65536 <= KEEP + 65536);
        }
    }
}
