//! A table of block places on disk, in memory page by page.
//!
//! The tables of VDI, VHD, VHDX and Parallels are flat arrays of numbers, one for each block of the guest's disk. A
//! hostile header can make them gigabytes long, so they are read when somebody asks, and pages that
//! nobody changed are dropped when there are many. Changes are told by sectors: what hardware writes
//! whole or not at all.
//!
//! Writing back takes three steps, so that no lock is held meanwhile: [`BlockTable::snapshot`], writing
//! what it gave, [`BlockTable::written`].

use crate::Result;
use crate::num::{len_u64, small};
use crate::storage::Storage;

/// Bytes of a page: 128 sectors, one bit each.
const PAGE: u64 = 64 << 10;
const SECTOR: u64 = 512;
/// Clean pages that are kept (16 MiB).
const MAX_CLEAN: usize = 256;

/// How an entry is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EntryKind {
    /// 32 bits, little endian (VDI).
    Le32,
    /// 32 bits, big endian (VHD).
    Be32,
    /// 64 bits, little endian (VHDX, QED).
    Le64,
    /// 64 bits, big endian (qcow).
    Be64,
}

impl EntryKind {
    /// Bytes of an entry.
    pub const fn width(self) -> u64 {
        match self {
            EntryKind::Le32 | EntryKind::Be32 => 4,
            EntryKind::Le64 | EntryKind::Be64 => 8,
        }
    }

    fn get(self, raw: &[u8], at: usize) -> Option<u64> {
        let four = |f: fn([u8; 4]) -> u32| {
            raw.get(at..at + 4)?.first_chunk::<4>().map(|b| u64::from(f(*b)))
        };
        let eight = |f: fn([u8; 8]) -> u64| raw.get(at..at + 8)?.first_chunk::<8>().map(|b| f(*b));
        match self {
            EntryKind::Le32 => four(u32::from_le_bytes),
            EntryKind::Be32 => four(u32::from_be_bytes),
            EntryKind::Le64 => eight(u64::from_le_bytes),
            EntryKind::Be64 => eight(u64::from_be_bytes),
        }
    }

    fn put(self, raw: &mut [u8], at: usize, value: u64) {
        // A place that 32 bits cannot hold is refused before it is handed out.
        let low = u32::try_from(value).unwrap_or(u32::MAX);
        match self {
            EntryKind::Le32 => raw[at..at + 4].copy_from_slice(&low.to_le_bytes()),
            EntryKind::Be32 => raw[at..at + 4].copy_from_slice(&low.to_be_bytes()),
            EntryKind::Le64 => raw[at..at + 8].copy_from_slice(&value.to_le_bytes()),
            EntryKind::Be64 => raw[at..at + 8].copy_from_slice(&value.to_be_bytes()),
        }
    }
}

#[derive(Debug)]
struct Page {
    raw: Vec<u8>,
    /// Sectors changed since the last snapshot.
    dirty: u128,
    /// Sectors in the snapshot that is being written.
    writing: u128,
}

impl Page {
    fn clean(&self) -> bool {
        self.dirty == 0 && self.writing == 0
    }
}

/// The table.
#[derive(Debug)]
pub(crate) struct BlockTable {
    at: u64,
    count: u64,
    kind: EntryKind,
    pages: Vec<Option<Box<Page>>>,
    loaded: usize,
}

impl BlockTable {
    /// A table of `count` entries that begins at `at` of the file. `count` was checked against a limit.
    pub fn new(at: u64, count: u64, kind: EntryKind) -> Self {
        let pages = small((count * kind.width()).div_ceil(PAGE));
        let pages = (0..pages).map(|_| None).collect();
        BlockTable { at, count, kind, pages, loaded: 0 }
    }

    /// A table of zeroes that is to be written whole.
    pub fn zeroed(at: u64, count: u64, kind: EntryKind) -> Self {
        let mut table = BlockTable::new(at, count, kind);
        let bytes = count * kind.width();
        for (number, page) in table.pages.iter_mut().enumerate() {
            let len = (bytes - len_u64(number) * PAGE).min(PAGE);
            let sectors = len.div_ceil(SECTOR);
            let dirty = if sectors >= 128 { u128::MAX } else { (1 << sectors) - 1 };
            *page = Some(Box::new(Page { raw: vec![0; small(len)], dirty, writing: 0 }));
        }
        table.loaded = table.pages.len();
        table
    }

    /// Nothing waits to be written.
    pub fn is_clean(&self) -> bool {
        self.pages.iter().flatten().all(|p| p.clean())
    }

    /// Where an entry is in the file.
    pub fn entry_at(&self, index: u64) -> u64 {
        self.at + index * self.kind.width()
    }

    fn place(&self, index: u64) -> (usize, usize) {
        let byte = index * self.kind.width();
        (small(byte / PAGE), small(byte % PAGE))
    }

    /// An entry, if its page is in memory.
    pub fn get(&self, index: u64) -> Option<u64> {
        if index >= self.count {
            return None;
        }
        let (page, at) = self.place(index);
        self.kind.get(&self.pages.get(page)?.as_ref()?.raw, at)
    }

    /// An entry; reads its page where necessary. Entries beyond the end do not exist.
    pub fn fetch(&mut self, storage: &dyn Storage, index: u64) -> Result<u64> {
        if let Some(value) = self.get(index) {
            return Ok(value);
        }
        self.load(storage, index)?;
        self.get(index).ok_or_else(|| beyond(index))
    }

    /// How many entries from `index` on hold the value that `expected` tells for each, at most `max`.
    /// Looks only at the pages in memory.
    pub fn run(&self, index: u64, max: u64, mut expected: impl FnMut(u64, u64) -> bool) -> u64 {
        let mut n = 0;
        while n < max {
            match self.get(index + n) {
                Some(value) if expected(n, value) => n += 1,
                _ => break,
            }
        }
        n
    }

    fn load(&mut self, storage: &dyn Storage, index: u64) -> Result<()> {
        if index >= self.count {
            return Err(beyond(index));
        }
        let (page, _) = self.place(index);
        if self.pages[page].is_some() {
            return Ok(());
        }
        if self.loaded >= MAX_CLEAN {
            self.drop_clean();
        }
        let from = len_u64(page) * PAGE;
        let len = (self.count * self.kind.width() - from).min(PAGE);
        let mut raw = vec![0; small(len)];
        storage.read_at(self.at + from, &mut raw)?;
        self.pages[page] = Some(Box::new(Page { raw, dirty: 0, writing: 0 }));
        self.loaded += 1;
        Ok(())
    }

    fn drop_clean(&mut self) {
        for page in &mut self.pages {
            if page.as_ref().is_some_and(|p| p.clean()) {
                *page = None;
            }
        }
        self.loaded = self.pages.iter().flatten().count();
    }

    /// Changes an entry, in memory.
    pub fn set(&mut self, storage: &dyn Storage, index: u64, value: u64) -> Result<()> {
        self.load(storage, index)?;
        let (page, at) = self.place(index);
        if let Some(page) = &mut self.pages[page] {
            self.kind.put(&mut page.raw, at, value);
            page.dirty |= 1 << (at / small(SECTOR));
        }
        Ok(())
    }

    /// Whether more than a few megabytes wait to be written.
    pub fn many_dirty(&self) -> bool {
        self.loaded > MAX_CLEAN / 2
            && self.pages.iter().flatten().filter(|p| p.dirty != 0).count() > MAX_CLEAN / 2
    }

    /// What has to be written: file offsets and bytes, ascending. They stay in memory until
    /// [`BlockTable::written`] tells how it went.
    pub fn snapshot(&mut self) -> Vec<(u64, Vec<u8>)> {
        let mut all: Vec<(u64, Vec<u8>)> = Vec::new();
        for (number, page) in self.pages.iter_mut().enumerate() {
            let Some(page) = page else { continue };
            let mut bits = std::mem::take(&mut page.dirty);
            page.writing |= bits;
            while bits != 0 {
                let first = bits.trailing_zeros();
                let n = (bits >> first).trailing_ones();
                let last = first + n;
                bits = if last >= 128 { 0 } else { bits >> last << last };
                let from = u64::from(first) * SECTOR;
                let to = (u64::from(last) * SECTOR).min(len_u64(page.raw.len()));
                let bytes = page.raw[small(from)..small(to)].to_vec();
                all.push((self.at + len_u64(number) * PAGE + from, bytes));
            }
        }
        all
    }

    /// Ends what [`BlockTable::snapshot`] began. What was not written will be in the next one.
    pub fn written(&mut self, done: bool) {
        for page in self.pages.iter_mut().flatten() {
            let writing = std::mem::take(&mut page.writing);
            if !done {
                page.dirty |= writing;
            }
        }
    }
}

fn beyond(index: u64) -> crate::Error {
    crate::Error::errno(libc::EIO)
        .context(format!("block {index} is beyond the end of the block table"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemoryStorage;

    #[test]
    fn entries_in_all_spellings() {
        let bytes: Vec<u8> = (0..64).collect();
        let file = MemoryStorage::new("f", bytes);
        for (kind, first) in [
            (EntryKind::Le32, 0x0706_0504),
            (EntryKind::Be32, 0x0405_0607),
            (EntryKind::Le64, 0x0b0a_0908_0706_0504),
            (EntryKind::Be64, 0x0405_0607_0809_0a0b),
        ] {
            let mut table = BlockTable::new(4, 3, kind);
            assert_eq!(table.get(0), None);
            assert_eq!(table.fetch(&file, 0).unwrap(), first);
            assert!(table.fetch(&file, 3).is_err());
            table.set(&file, 1, 0x0102_0304).unwrap();
            assert_eq!(table.get(1), Some(0x0102_0304));
        }
    }

    #[test]
    fn changes_come_back_until_they_are_written() {
        let file = MemoryStorage::new("f", vec![0; 300_000]);
        let mut table = BlockTable::new(512, 70_000, EntryKind::Le32);
        for index in [0, 1, 127, 128, 40_000, 69_999] {
            table.set(&file, index, index + 1).unwrap();
        }
        let first = table.snapshot();
        let places: Vec<_> = first.iter().map(|(at, b)| (*at, b.len())).collect();
        assert_eq!(places, [(512, 1024), (160_256, 512), (280_064, 448)]);
        table.written(false);
        assert_eq!(table.snapshot(), first);
        table.written(true);
        assert!(table.snapshot().is_empty());
        for (at, bytes) in first {
            file.write_at(at, &bytes).unwrap();
        }
        let mut again = BlockTable::new(512, 70_000, EntryKind::Le32);
        assert_eq!(again.fetch(&file, 69_999).unwrap(), 70_000);
    }

    #[test]
    fn memory_is_bounded() {
        let file = MemoryStorage::new("f", Vec::new());
        let count = 64 << 20;
        let mut table = BlockTable::new(0, count, EntryKind::Le64);
        table.set(&file, 5, 9).unwrap();
        for index in (0..count).step_by(8192) {
            table.fetch(&file, index).unwrap();
            assert!(table.loaded <= MAX_CLEAN + 1);
        }
        assert_eq!(table.get(5), Some(9));
    }
}
