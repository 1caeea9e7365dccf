//! Looking for damage, and mending it. QEMU has no check for this format.
//!
//! What a crash leaves counts as leaks and is mended by `-r leaks`: blocks that nothing leads to, and a
//! footer at the end that is missing or older than its copy at the beginning. The rest is damage:
//! checksums, blocks outside the file or over each other.

use super::compact;
use super::header::{self, Blocks, Kind};
use super::image::VpcImage;
use super::layout::{SECTOR, UNUSED};
use crate::format::findings::Findings;
use crate::format::{Access, CheckReport, Repair, Watcher, check_cancelled};
use crate::{Error, Result};

/// Checks the image, and mends it if asked.
pub(super) fn check(
    image: &VpcImage,
    repair: Repair,
    watcher: &dyn Watcher,
) -> Result<CheckReport> {
    if repair != Repair::Nothing {
        if image.access == Access::Read {
            return Err(crate::format::read_only("vpc"));
        }
        if image.read_state().geometry.kind == Kind::Differencing {
            return Err(Error::unsupported("differencing VHD images cannot be repaired"));
        }
    }
    let mut findings = Findings::new(watcher, repair);
    let geometry = image.read_state().geometry;
    let mut rewrite = footers(image, &mut findings)?;
    match &geometry.blocks {
        Some(blocks) => {
            if !blocks.header.is_valid() {
                rewrite |= findings.damage("the header of the dynamic disk has a wrong checksum");
            }
            let starts = table(image, blocks, &mut findings)?;
            gaps(image, blocks, &starts, &mut findings)?;
        }
        None => {
            let end = header::footers(&*image.storage)?.last_at;
            if geometry.size > end {
                findings.report.corruptions += 1;
                findings.note(&format!(
                    "ERROR: the disk has {} bytes, but the file holds only {end}",
                    geometry.size
                ));
            }
        }
    }
    if rewrite && (findings.report.corruptions == 0 || repair == Repair::All) {
        image.write_headers()?;
    }
    Ok(findings.finish())
}

/// Compares the footers with the one that was chosen; whether they are to be written again.
fn footers(image: &VpcImage, findings: &mut Findings<'_>) -> Result<bool> {
    let geometry = image.read_state().geometry;
    let all = header::footers(&*image.storage)?;
    let mut rewrite = false;
    if geometry.kind != Kind::Fixed && all.first != geometry.footer {
        rewrite |=
            findings.damage("the copy of the footer at the beginning of the file is damaged");
    }
    if all.last != geometry.footer {
        rewrite |= findings.leak(1, "the footer at the end of the file is missing or old");
    }
    Ok(rewrite)
}

/// Looks at every entry of the table; the sectors at which good blocks begin come back, ascending.
fn table(image: &VpcImage, b: &Blocks, findings: &mut Findings<'_>) -> Result<Vec<u32>> {
    let (size, mut next) = {
        let state = image.read_state();
        (state.geometry.size, b.reserved_end())
    };
    let len = image.storage.len()?;
    let count = size.div_ceil(b.block);
    let mut starts: Vec<u32> = Vec::new();
    let mut changed = false;
    for index in 0..count {
        if index % 4096 == 0 {
            check_cancelled(findings.watcher)?;
            findings.watcher.progress(index, count);
        }
        let entry = image.write_state().table.fetch(&*image.storage, index)?;
        if entry == UNUSED {
            continue;
        }
        let at = entry * SECTOR;
        let wrong = if at + b.bitmap >= len {
            "beyond the end of the file"
        } else if b.reserved().iter().any(|&(from, to)| at < to && at + b.span() > from) {
            "inside of the header or the table"
        } else {
            starts.extend(u32::try_from(entry));
            next = next.max(at + b.span());
            continue;
        };
        let line =
            format!("the block for guest offset {:#x} is at {at:#x}, {wrong}", index * b.block);
        if findings.damage(&line) {
            image.write_state().table.set(&*image.storage, index, UNUSED)?;
            changed = true;
        }
    }
    if findings.repair != Repair::Nothing {
        image.write_state().next = next;
    }
    starts.sort_unstable();
    if overlaps(&starts, b) > 0 {
        changed |= separate(image, b, count, findings)?;
        if findings.repair == Repair::All {
            starts = (0..count)
                .map(|i| Ok(image.entry(i, 1)?.0))
                .collect::<Result<Vec<u64>>>()?
                .into_iter()
                .filter(|&e| e != UNUSED)
                .filter_map(|e| u32::try_from(e).ok())
                .collect();
            starts.sort_unstable();
        }
    }
    if changed {
        image.write_back()?;
        image.storage.flush()?;
    }
    Ok(starts)
}

fn overlaps(starts: &[u32], b: &Blocks) -> usize {
    let span = b.span() / SECTOR;
    starts.windows(2).filter(|w| u64::from(w[0]) + span > u64::from(w[1])).count()
}

/// Gives blocks that lie over another one a place of their own, with the bytes that they read as now.
fn separate(image: &VpcImage, b: &Blocks, count: u64, findings: &mut Findings<'_>) -> Result<bool> {
    let span = b.span() / SECTOR;
    let mut all = Vec::new();
    for index in 0..count {
        let (entry, _) = image.entry(index, 1)?;
        if entry != UNUSED {
            all.push((entry, index));
        }
    }
    all.sort_unstable();
    let mut end = 0;
    let mut changed = false;
    for (entry, index) in all {
        if entry >= end {
            end = entry + span;
            continue;
        }
        let line = format!(
            "the block for guest offset {:#x} at {:#x} lies over another one",
            index * b.block,
            entry * SECTOR
        );
        if findings.damage(&line) {
            let place = image.write_state().take(b)?;
            compact::copy_block(image, b, entry * SECTOR, place)?;
            image.write_state().table.set(&*image.storage, index, place / SECTOR)?;
            changed = true;
        }
    }
    Ok(changed)
}

/// Finds room for blocks that nothing leads to.
fn gaps(image: &VpcImage, b: &Blocks, starts: &[u32], findings: &mut Findings<'_>) -> Result<()> {
    if image.read_state().geometry.kind == Kind::Differencing {
        // Names of the parent lie between the blocks.
        return Ok(());
    }
    let len = image.storage.len()?;
    let leaked = compact::leaked(b, starts, len.saturating_sub(SECTOR));
    if leaked == 0 {
        return Ok(());
    }
    if findings.leak(leaked, &format!("{leaked} blocks that nothing leads to")) {
        compact::compact(image, b, findings.watcher)?;
    }
    Ok(())
}
