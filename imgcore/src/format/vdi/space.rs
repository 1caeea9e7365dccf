//! Where new blocks go: blocks of the file that nothing leads to, lowest first, then the end.
//!
//! A crash leaves such blocks behind (a block is stored before the map leads to it). Using them again
//! keeps the numbers of blocks below the number of entries, which other programs insist on.

use super::header::Geometry;
use super::layout::{FREE, MAX_BLOCKS, ZERO};
use crate::format::block_table::BlockTable;
use crate::num::small;
use crate::storage::Storage;
use crate::{Error, Result};

/// Blocks `start..end` of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Blocks {
    pub start: u64,
    pub end: u64,
}

/// What is in use.
#[derive(Debug)]
pub(super) struct Space {
    /// All blocks from here on are free.
    pub next: u64,
    /// Free ones below; the last is handed out first.
    free: Vec<Blocks>,
}

/// Which blocks of the file the map leads to: one bit each.
#[derive(Debug, Default)]
pub(super) struct Used {
    words: Vec<u64>,
    /// Number of different blocks.
    pub count: u64,
    /// One more than the highest number.
    pub high: u64,
}

impl Used {
    /// Enters a block; `false` if it was entered before.
    pub fn take(&mut self, number: u64) -> bool {
        let word = small(number / 64);
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        let mask = 1 << (number % 64);
        let new = self.words[word] & mask == 0;
        self.words[word] |= mask;
        self.count += u64::from(new);
        self.high = self.high.max(number + 1);
        new
    }

    /// Runs of unused blocks below `end`, ascending.
    pub fn gaps(&self, end: u64) -> Vec<Blocks> {
        let mut gaps: Vec<Blocks> = Vec::new();
        let mut number = 0;
        while number < end {
            let word = self.words.get(small(number / 64)).copied().unwrap_or(0);
            if number % 64 == 0 && word == u64::MAX {
                number += 64;
                continue;
            }
            if word & (1 << (number % 64)) == 0 {
                match gaps.last_mut() {
                    Some(last) if last.end == number => last.end += 1,
                    _ => gaps.push(Blocks { start: number, end: number + 1 }),
                }
            }
            number += 1;
        }
        gaps
    }
}

/// How many blocks a file of `len` bytes can hold, the last perhaps in part; never more than any program
/// accepts, so that a map of them stays small (64 MiB).
pub(super) fn in_file(g: &Geometry, len: u64) -> u64 {
    len.saturating_sub(g.data).div_ceil(g.stride()).min(MAX_BLOCKS)
}

impl Space {
    /// Looks at the whole map.
    pub fn find(storage: &dyn Storage, g: &Geometry, map: &mut BlockTable) -> Result<Space> {
        let held = in_file(g, storage.len()?);
        let mut used = Used::default();
        for index in 0..g.blocks {
            let entry = map.fetch(storage, index)?;
            if entry >= ZERO {
                continue;
            }
            if entry >= held {
                return Err(Error::corrupt(format!(
                    "block {index} of the disk is said to be block {entry} of a file that has {held}"
                ))
                .at_path(storage.name())
                .at_offset(map.entry_at(index))
                .hint("nothing can be added to a damaged image; look at it with 'check'"));
            }
            used.take(entry);
        }
        let next = used.high.max(g.allocated.min(held));
        let mut free = used.gaps(next);
        free.reverse();
        Ok(Space { next, free })
    }

    /// A run of at most `wanted` blocks.
    pub fn take(&mut self, wanted: u64) -> Result<Blocks> {
        if let Some(last) = self.free.last_mut() {
            let start = last.start;
            let end = last.end.min(start + wanted);
            last.start = end;
            if last.start == last.end {
                self.free.pop();
            }
            return Ok(Blocks { start, end });
        }
        let (start, end) = (self.next, self.next + wanted);
        if end >= ZERO {
            return Err(Error::errno(libc::EFBIG).context("a VDI holds no more than 2^32 blocks"));
        }
        self.next = end;
        Ok(Blocks { start, end })
    }

    /// Gives a run back that nothing ever led to.
    pub fn give_back(&mut self, blocks: Blocks) {
        if self.next == blocks.end {
            self.next = blocks.start;
        } else {
            self.free.push(blocks);
        }
    }

    /// Removes blocks below `end` from the free ones.
    pub fn keep_from(&mut self, end: u64) {
        self.next = self.next.max(end);
        for run in &mut self.free {
            run.start = run.start.max(end);
        }
        self.free.retain(|r| r.start < r.end);
    }
}

/// Whether an entry of the map leads to a block.
pub(super) fn leads(entry: u64) -> bool {
    debug_assert!(entry <= FREE);
    entry < ZERO
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_used_first() {
        let mut used = Used::default();
        for n in [0, 1, 5, 64, 130] {
            assert!(used.take(n));
        }
        assert!(!used.take(5));
        assert_eq!((used.count, used.high), (5, 131));
        let gaps = used.gaps(131);
        assert_eq!(gaps[0], Blocks { start: 2, end: 5 });
        assert_eq!(gaps[1], Blocks { start: 6, end: 64 });
        let free = gaps.into_iter().rev().collect();
        let mut space = Space { next: 131, free };
        assert_eq!(space.take(2).unwrap(), Blocks { start: 2, end: 4 });
        assert_eq!(space.take(9).unwrap(), Blocks { start: 4, end: 5 });
        let run = space.take(100).unwrap();
        assert_eq!(run, Blocks { start: 6, end: 64 });
        space.give_back(run);
        space.keep_from(70);
        assert_eq!(space.take(100).unwrap(), Blocks { start: 70, end: 130 });
        assert_eq!(space.take(3).unwrap(), Blocks { start: 131, end: 134 });
        space.give_back(Blocks { start: 131, end: 134 });
        assert_eq!(space.next, 131);
    }
}
