//! Moving blocks into gaps, so that the file can end earlier.
//!
//! A block is copied to a place that nothing leads to; the table follows after the copy is on disk. So a
//! crash leaves the old block or the new one, and the other is a leak.

use std::collections::HashMap;

use super::header::Blocks;
use super::image::VpcImage;
use super::layout::{SECTOR, UNUSED};
use crate::Result;
use crate::format::{Watcher, check_cancelled};
use crate::num::{round_up, small};

/// Copies a whole block, bitmap and data, to another place.
pub(super) fn copy_block(image: &VpcImage, b: &Blocks, from: u64, to: u64) -> Result<()> {
    let mut bytes = vec![0; small(b.span())];
    image.storage.read_at(from, &mut bytes)?;
    image.storage.write_at(to, &bytes)
}

/// Gaps `start..end` (bytes) between what the file holds, up to `end`. `starts`: sectors at which blocks
/// begin.
fn gaps(b: &Blocks, starts: &[u32], end: u64) -> Vec<(u64, u64)> {
    let blocks = starts.iter().map(|&s| u64::from(s) * SECTOR).map(|s| (s, s + b.span()));
    let mut taken: Vec<(u64, u64)> = b.reserved().into_iter().chain(blocks).collect();
    taken.sort_unstable();
    let mut at = 0;
    let mut found = Vec::new();
    for (from, to) in taken {
        if from.min(end) > at {
            found.push((at, from.min(end)));
        }
        at = at.max(to);
    }
    if end > at {
        found.push((at, end));
    }
    found
}

/// How many blocks would fit where nothing is.
pub(super) fn leaked(b: &Blocks, starts: &[u32], end: u64) -> u64 {
    gaps(b, starts, end).iter().map(|(from, to)| (to - from) / b.span()).sum()
}

/// All entries of the table: sector and block of the disk, ascending.
fn entries(image: &VpcImage, b: &Blocks) -> Result<Vec<(u32, u64)>> {
    let count = image.read_state().geometry.size.div_ceil(b.block);
    let mut all = Vec::new();
    for index in 0..count {
        let (entry, _) = image.entry(index, 1)?;
        if entry != UNUSED {
            all.extend(u32::try_from(entry).map(|e| (e, index)));
        }
    }
    all.sort_unstable();
    Ok(all)
}

/// Moves the last blocks into the gaps, and cuts the file behind the last one.
pub(super) fn compact(image: &VpcImage, b: &Blocks, watcher: &dyn Watcher) -> Result<()> {
    let mut all = entries(image, b)?;
    let starts: Vec<u32> = all.iter().map(|(s, _)| *s).collect();
    let mut moves: HashMap<u64, u64> = HashMap::new();
    let end = starts.last().map_or(0, |&s| u64::from(s) * SECTOR);
    for (from, to) in gaps(b, &starts, end) {
        let mut place = round_up(from, SECTOR);
        while place + b.span() <= to {
            // The last block that is still behind this gap.
            let Some(&(last, index)) = all.last() else { break };
            if u64::from(last) * SECTOR <= place {
                break;
            }
            all.pop();
            moves.insert(index, place);
            place += b.span();
        }
    }
    for (&index, &place) in &moves {
        check_cancelled(watcher)?;
        let (entry, _) = image.entry(index, 1)?;
        copy_block(image, b, entry * SECTOR, place)?;
    }
    image.storage.flush()?;
    {
        let mut state = image.write_state();
        for (index, place) in moves {
            state.table.set(&*image.storage, index, place / SECTOR)?;
        }
        state.forget();
    }
    image.write_back()?;
    image.storage.flush()?;
    let last = entries(image, b)?.last().map(|&(s, _)| u64::from(s) * SECTOR + b.span());
    {
        let mut state = image.write_state();
        state.next = last.unwrap_or(0).max(b.reserved_end());
        state.grew = true;
    }
    image.write_back()?;
    image.storage.flush()
}
