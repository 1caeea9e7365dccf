//! Looking for damage, and mending it. QEMU's check only replays the log.
//!
//! What a crash leaves counts as leaks and is mended by `-r leaks`: log entries to be replayed, one bad
//! header or region table of two, space that nothing leads to. Blocks outside the file, or over each other,
//! are damage.

use super::compact::{self, Used};
use super::header;
use super::image::VhdxImage;
use super::layout::{MIB, place_of, state, state_of};
use crate::format::findings::Findings;
use crate::format::{Access, CheckReport, Repair, Watcher, check_cancelled};
use crate::num::round_up;
use crate::storage::Preallocation;
use crate::{Error, Result};

/// Room that makers leave in front of the first block.
const ROOM: u64 = 8 * MIB;
/// Checks the image, and mends it if asked.
pub(super) fn check(
    image: &VhdxImage,
    repair: Repair,
    watcher: &dyn Watcher,
) -> Result<CheckReport> {
    if repair != Repair::Nothing && image.access == Access::Read {
        return Err(crate::format::read_only("vhdx"));
    }
    let child = image.read_state().meta.parent.is_some();
    if repair != Repair::Nothing && child {
        return Err(Error::unsupported("differencing VHDX images cannot be repaired"));
    }
    let mut findings = Findings::new(watcher, repair);
    structures(image, &mut findings)?;
    let (used, twice) = entries(image, &mut findings)?;
    if !twice.is_empty() && repair == Repair::All {
        separate(image, &twice)?;
    }
    if findings.report.corruptions_fixed > 0 {
        image.write_back()?;
    }
    // Sector bitmaps of differencing disks lie between the blocks: they stay where they are.
    let leaked = if child { 0 } else { leaked(image, &used)? };
    if leaked > 0 && twice.is_empty() {
        let line = format!("{leaked} MiB that nothing leads to");
        if findings.leak(leaked, &line) {
            image.begin()?;
            compact::compact(image, watcher)?;
        }
    }
    Ok(findings.finish())
}

/// Headers, region tables, log.
fn structures(image: &VhdxImage, findings: &mut Findings<'_>) -> Result<()> {
    if image.dirty && image.access == Access::Read {
        findings.leak(1, "the log holds changes that were not carried out");
    }
    if !image.writing().header.both && findings.leak(1, "one of the two headers is damaged") {
        image.begin()?;
        image.writing().header.both = true;
    }
    let regions = image.read_state().regions;
    if !regions.both && findings.leak(1, "one of the two region tables is damaged or old") {
        image.begin()?;
        header::write_regions(&*image.storage, &regions)?;
        image.write_state().regions.both = true;
    }
    Ok(())
}

/// Looks at every block's entry; what they lead to comes back, and the blocks that lie over another.
fn entries(image: &VhdxImage, findings: &mut Findings<'_>) -> Result<(Used, Vec<u64>)> {
    let len = image.storage.len()?;
    let mut used = Used::new(&image.reserved(), len);
    let (blocks, block) = {
        let state = image.read_state();
        (state.blocks(), state.meta.block)
    };
    let mut twice = Vec::new();
    for index in 0..blocks {
        if index % 4096 == 0 {
            check_cancelled(findings.watcher)?;
            findings.watcher.progress(index, blocks);
        }
        let entry = image.entry(index)?;
        let place = place_of(entry);
        let wrong = match state_of(entry) {
            state::FULLY_PRESENT | state::PARTIALLY_PRESENT if place >= len => {
                "leads beyond the end of the file"
            }
            state::FULLY_PRESENT | state::PARTIALLY_PRESENT => {
                if used.take_block(place, block) {
                    continue;
                }
                let line = format!(
                    "the block for guest offset {:#x} at {place:#x} lies over something else",
                    index * block
                );
                if findings.damage(&line) {
                    image.begin()?;
                }
                twice.push(index);
                continue;
            }
            state::NOT_PRESENT | state::UNDEFINED | state::ZERO | state::UNMAPPED => continue,
            _ => "has an invalid state",
        };
        let line = format!("the entry {entry:#x} for guest offset {:#x} {wrong}", index * block);
        if findings.damage(&line) {
            image.begin()?;
            let mut state = image.write_state();
            let at = state.entry_of(index);
            state.bat.set(&*image.storage, at, state::ZERO)?;
        }
    }
    Ok((used, twice))
}

/// Gives blocks that lie over something a place of their own, with the bytes that they read as now.
fn separate(image: &VhdxImage, twice: &[u64]) -> Result<()> {
    let block = image.read_state().meta.block;
    for &index in twice {
        let place = round_up(image.storage.len()?, MIB);
        image.storage.set_len(place + block, Preallocation::Off)?;
        compact::copy(&*image.storage, place_of(image.entry(index)?), place, block)?;
        let mut state = image.write_state();
        let at = state.entry_of(index);
        state.bat.set(&*image.storage, at, place | state::FULLY_PRESENT)?;
        state.limit = state.limit.max(place + block);
    }
    Ok(())
}

/// MiB of the file that could be given back by moving blocks and cutting the end. What lies before the first
/// block is the choice of who made the image.
fn leaked(image: &VhdxImage, used: &Used) -> Result<u64> {
    let block = image.read_state().meta.block;
    let end = round_up(image.storage.len()?, MIB).saturating_sub(used.end());
    let Some(first) = used.first() else {
        return Ok(if end > ROOM { end / MIB } else { 0 });
    };
    let inner: u64 = used
        .gaps()
        .iter()
        .filter(|(from, _)| *from > first)
        .map(|(from, to)| (to - from) / block * block)
        .sum();
    Ok((inner + end) / MIB)
}
