//! Moving blocks into gaps, so that the file can end earlier.
//!
//! A block is copied to a place that nothing leads to; the table follows after the copy is on disk. So a
//! crash leaves the old block or the new one, and the other is a leak.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::image::VhdxImage;
use super::layout::{MIB, place_of, state, state_of};
use crate::Result;
use crate::format::{Watcher, check_cancelled};
use crate::num::{round_up, small};
use crate::storage::{Preallocation, Storage};

/// Blocks moved in one pass.
const PASS: usize = 64 << 10;

/// Which MiB of a file something leads to: one bit each.
#[derive(Debug)]
pub(super) struct Used {
    words: Vec<u64>,
    end: u64,
}

impl Used {
    /// A map in which only the reserved parts of a file of `len` bytes are in use.
    pub fn new(reserved: &[(u64, u64)], len: u64) -> Self {
        let words = small(round_up(len, MIB).div_ceil(MIB).div_ceil(64));
        let mut used = Used { words: vec![0; words], end: 0 };
        for &(from, to) in reserved {
            used.take(from, to - from);
        }
        used
    }

    /// Enters a part; `false` if some of it was entered before.
    pub fn take(&mut self, at: u64, len: u64) -> bool {
        let mut fresh = true;
        for mib in at / MIB..(at + len).div_ceil(MIB) {
            // What lies behind the end of the file is not there.
            let Some(word) = self.words.get_mut(small(mib / 64)) else { break };
            let mask = 1 << (mib % 64);
            fresh &= *word & mask == 0;
            *word |= mask;
        }
        self.end = self.end.max(at + len);
        fresh
    }

    /// Where the last part ends.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Gaps `start..end` (bytes) before the end.
    pub fn gaps(&self) -> Vec<(u64, u64)> {
        let mut gaps: Vec<(u64, u64)> = Vec::new();
        let mut mib = 0;
        while mib < self.end / MIB {
            let word = self.words.get(small(mib / 64)).copied().unwrap_or(u64::MAX);
            if mib % 64 == 0 && word == u64::MAX {
                mib += 64;
                continue;
            }
            if word & (1 << (mib % 64)) == 0 {
                match gaps.last_mut() {
                    Some(last) if last.1 == mib * MIB => last.1 += MIB,
                    _ => gaps.push((mib * MIB, (mib + 1) * MIB)),
                }
            }
            mib += 1;
        }
        gaps
    }
}

/// Copies bytes inside a file.
pub(super) fn copy(storage: &dyn Storage, from: u64, to: u64, len: u64) -> Result<()> {
    let mut piece = vec![0; small(MIB)];
    for done in (0..len).step_by(small(MIB)) {
        storage.read_at(from + done, &mut piece)?;
        storage.write_at(to + done, &piece)?;
    }
    Ok(())
}

/// Moves the last blocks into the gaps, and cuts the file behind the last one.
pub(super) fn compact(image: &VhdxImage, watcher: &dyn Watcher) -> Result<()> {
    let (blocks, block) = {
        let state = image.read_state();
        (state.blocks(), state.meta.block)
    };
    loop {
        let mut used = Used::new(&image.reserved(), image.storage.len()?);
        let mut last: BinaryHeap<Reverse<(u64, u64)>> = BinaryHeap::new();
        for index in 0..blocks {
            let entry = image.entry(index)?;
            if state_of(entry) != state::FULLY_PRESENT {
                continue;
            }
            used.take(place_of(entry), block);
            last.push(Reverse((place_of(entry), index)));
            if last.len() > PASS {
                last.pop();
            }
        }
        let slots = used
            .gaps()
            .into_iter()
            .flat_map(|(from, to)| (0..(to - from) / block).map(move |i| from + i * block));
        // `into_sorted_vec` of reversed places: the last block comes first.
        let moves: Vec<(u64, u64, u64)> = last
            .into_sorted_vec()
            .into_iter()
            .zip(slots)
            .map(|(Reverse((place, index)), slot)| (place, index, slot))
            .take_while(|(place, _, slot)| slot < place)
            .collect();
        if moves.is_empty() {
            let end = used.end();
            image.write_state().limit = end;
            image.storage.flush()?;
            if image.storage.len()? > end {
                // Entries of the log tell how long the file was: none may count any more.
                image.end()?;
                image.storage.set_len(end, Preallocation::Off)?;
                image.storage.flush()?;
                image.begin()?;
            }
            return Ok(());
        }
        for &(place, _, slot) in &moves {
            check_cancelled(watcher)?;
            copy(&*image.storage, place, slot, block)?;
        }
        {
            let mut state = image.write_state();
            for (_, index, slot) in moves {
                let at = state.entry_of(index);
                state.bat.set(&*image.storage, at, slot | state::FULLY_PRESENT)?;
            }
        }
        image.write_back()?;
    }
}
