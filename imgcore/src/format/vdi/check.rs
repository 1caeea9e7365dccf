//! Looking for damage, and mending it.
//!
//! Findings have QEMU's words where QEMU finds them too. Beyond that: blocks that begin behind the end
//! of the file, and blocks that nothing leads to. QEMU counts the latter as damage, because the number
//! in the header is not the number of entries; they are what a crash leaves, so they are leaks here.

use super::compact::compact;
use super::header::{self, Kind, narrow};
use super::image::VdiImage;
use super::layout::{FREE, ZERO};
use super::space::{Used, in_file, leads};
use crate::format::findings::Findings;
use crate::format::{Access, CheckReport, Repair, Watcher, check_cancelled};
use crate::num::small;
use crate::{Error, Result};

/// Checks the image, and mends it if asked.
pub(super) fn check(
    image: &VdiImage,
    repair: Repair,
    watcher: &dyn Watcher,
) -> Result<CheckReport> {
    if repair != Repair::Nothing && image.access == Access::Read {
        return Err(crate::format::read_only("vdi"));
    }
    let mut findings = Findings::new(watcher, repair);
    let used = entries(image, &mut findings)?;
    if findings.report.corruptions_fixed > 0 {
        image.write_back()?;
        image.storage.flush()?;
    }
    count(image, &used, &mut findings)?;
    Ok(findings.finish())
}

/// Looks at every entry of the block map.
fn entries(image: &VdiImage, findings: &mut Findings<'_>) -> Result<Used> {
    let g = image.read_state().geometry.clone();
    let held = in_file(&g, image.storage.len()?);
    let mend = findings.mends();
    let mut used = Used::default();
    let mut twice = Vec::new();
    for index in 0..g.blocks {
        if index % 4096 == 0 {
            check_cancelled(findings.watcher)?;
            findings.watcher.progress(index, g.blocks);
        }
        let entry = image.write_state().map.fetch(&*image.storage, index)?;
        if !leads(entry) {
            continue;
        }
        if entry >= g.blocks && entry >= held {
            findings.damage(&format!("block index {index} too large, is {entry}"));
        } else if entry >= held {
            findings.damage(&format!(
                "block index {index} leads to {:#x}, beyond the end of the file",
                g.place(entry)
            ));
        } else if !used.take(entry) {
            if findings.damage(&format!("block index {entry} also used by {entry}")) {
                twice.push((index, entry));
            }
            continue;
        } else {
            if entry >= g.blocks
                && findings.damage(&format!("block index {index} too large, is {entry}"))
            {
                twice.push((index, entry));
            }
            continue;
        }
        if mend {
            // The data are not there. What the parent has in this place is older.
            let instead = if g.has_parent() { ZERO } else { FREE };
            image.write_state().map.set(&*image.storage, index, instead)?;
        }
    }
    for (index, entry) in twice {
        let fresh = used.gaps(used.high + 1).first().map_or(used.high, |gap| gap.start);
        copy_block(image, entry, fresh)?;
        used.take(fresh);
        let mut state = image.write_state();
        state.map.set(&*image.storage, index, fresh)?;
        if fresh >= state.geometry.allocated {
            state.geometry.allocated = fresh + 1;
            state.header_behind = true;
        }
    }
    if mend {
        // Old places that nothing leads to any more.
        let mut now = Used::default();
        for index in 0..g.blocks {
            let entry = image.write_state().map.fetch(&*image.storage, index)?;
            if leads(entry) {
                now.take(entry);
            }
        }
        return Ok(now);
    }
    Ok(used)
}

/// Copies a whole block of the file to another place.
pub(super) fn copy_block(image: &VdiImage, from: u64, to: u64) -> Result<()> {
    let g = image.read_state().geometry.clone();
    let mut bytes = vec![0; small(g.stride())];
    image.storage.read_at(g.data + from * g.stride(), &mut bytes)?;
    image.storage.write_at(g.data + to * g.stride(), &bytes)
}

/// Compares the number of blocks in the header with what the map leads to.
fn count(image: &VdiImage, used: &Used, findings: &mut Findings<'_>) -> Result<()> {
    let g = image.read_state().geometry.clone();
    let told = g.allocated;
    let line = format!("allocated blocks mismatch, is {}, should be {told}", used.count);
    if told < used.high && findings.damage(&line) {
        let high = used.high;
        header::update(&*image.storage, |h| h.blocks_allocated = narrow(high))?;
        image.write_state().geometry.allocated = high;
    }
    // A static image reserves space for all of its blocks.
    let leaked = told.max(used.high) - used.count;
    if leaked == 0 || (told < used.high && !findings.mends()) {
        return Ok(());
    }
    if findings.repair == Repair::Nothing || findings.report.corruptions > 0 {
        findings.report.leaks += leaked;
        findings.note(&format!("Leaked blocks: {leaked} ({line})"));
        return Ok(());
    }
    if g.kind == Kind::Static && g.extra > 0 {
        return Err(Error::unsupported("blocks of this image cannot be moved"));
    }
    findings.note(&format!("Repairing leaked blocks: {leaked} ({line})"));
    findings.report.leaks_fixed += leaked;
    compact(image, used, findings.watcher)
}
