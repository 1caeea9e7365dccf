//! Looking for damage, and mending it. Findings have QEMU's words.
//!
//! A leak is what lies behind the last cluster; places in between that nothing leads to are used by the next
//! writer. An image that is said to be in use was not closed, which counts as damage as in QEMU; the next
//! writer looks at the table first and mends it.

use super::image::ParallelsImage;
use super::layout::SECTOR;
use super::space::front;
use crate::format::findings::Findings;
use crate::format::used::Used;
use crate::format::{CheckReport, Repair, Unwatched, Watcher, check_cancelled};
use crate::num::small;
use crate::storage::Preallocation;
use crate::{Error, Result};

/// Checks the image, and mends it if asked.
pub(super) fn check(
    image: &ParallelsImage,
    repair: Repair,
    watcher: &dyn Watcher,
) -> Result<CheckReport> {
    if repair != Repair::Nothing {
        image.check_writable(0)?;
    }
    let mut findings = Findings::new(watcher, repair).with_word("ERROR");
    let mend = findings.mends();
    let unclean = image.read_state().geometry.in_use;
    if unclean {
        findings.damage("image was not closed correctly");
    }
    if mend {
        image.mark()?;
    }
    let end = entries(image, &mut findings)?;
    if findings.report.corruptions_fixed > 0 {
        image.write_back()?;
        image.storage.flush()?;
    }
    // Not before the table is right.
    let give = repair != Repair::Nothing && findings.report.corruptions <= u64::from(unclean);
    leaks(image, end, give, &mut findings)?;
    if mend {
        image.unmark()?;
    }
    findings.report.image_end_offset = Some(end);
    Ok(findings.finish())
}

/// Mends the table of an image that was not closed, without a word.
pub(super) fn mend_table(image: &ParallelsImage) -> Result<()> {
    let mut findings = Findings::new(&Unwatched, Repair::All);
    let end = entries(image, &mut findings)?;
    image.write_back()?;
    image.storage.flush()?;
    leaks(image, end, true, &mut findings)
}

/// Looks at every entry of the table; where the last cluster ends.
fn entries(image: &ParallelsImage, findings: &mut Findings<'_>) -> Result<u64> {
    let g = image.read_state().geometry.clone();
    let storage = &*image.storage;
    let len = storage.len()?;
    let mut used: Used = front(&g);
    let (mut allocated, mut fragmented, mut expected) = (0, 0, 0);
    let mut twice = Vec::new();
    for index in 0..g.entries {
        if index % 4096 == 0 {
            check_cancelled(findings.watcher)?;
            findings.watcher.progress(index, g.entries);
        }
        let entry = image.write_state().table.fetch(storage, index)?;
        if entry == 0 {
            continue;
        }
        let at = g.place(entry);
        if at >= len || at + g.cluster > crate::num::round_up(len, g.cluster) + g.phase() {
            if findings.damage(&format!("cluster {index} is outside image")) {
                image.write_state().table.set(storage, index, 0)?;
            }
            continue;
        }
        allocated += 1;
        fragmented += u64::from(expected != 0 && expected != at);
        expected = at + g.cluster;
        if !used.take_all(at / SECTOR, (at + g.cluster).div_ceil(SECTOR))
            && findings.damage(&format!("duplicate offset in BAT entry {index}"))
        {
            twice.push((index, at));
        }
    }
    let mut end = g.align(used.high * SECTOR);
    for (index, at) in twice {
        copy(image, at, end, g.cluster)?;
        image.write_state().table.set(storage, index, end / g.unit())?;
        end += g.cluster;
    }
    if findings.mends() {
        let mut state = image.write_state();
        state.space = None;
        state.limit = storage.len()?;
    }
    findings.report.total_clusters = Some(g.entries);
    findings.report.allocated_clusters = Some(allocated);
    findings.report.fragmented_clusters = Some(fragmented);
    Ok(end)
}

/// Copies a cluster of the file.
pub(super) fn copy(image: &ParallelsImage, from: u64, to: u64, len: u64) -> Result<()> {
    let mut bytes = vec![0; small(len.min(1 << 20))];
    let mut done = 0;
    while done < len {
        let n = small((len - done).min(1 << 20));
        let piece = bytes.get_mut(..n).ok_or_else(|| Error::errno(libc::EIO))?;
        image.storage.read_at(from + done, piece)?;
        image.storage.write_at(to + done, piece)?;
        done += crate::num::len_u64(n);
    }
    Ok(())
}

/// What lies behind the last cluster.
fn leaks(image: &ParallelsImage, end: u64, give: bool, findings: &mut Findings<'_>) -> Result<()> {
    let len = image.storage.len()?;
    if len <= end {
        return Ok(());
    }
    let cluster = image.read_state().geometry.cluster;
    let count = (len - end).div_ceil(cluster);
    let line = format!("space leaked at the end of the image {}", len - end);
    if !give {
        findings.report.leaks += count;
        findings.note(&format!("ERROR {line}"));
        return Ok(());
    }
    findings.note(&format!("Repairing {line}"));
    image.storage.set_len(end, Preallocation::Off)?;
    image.storage.flush()?;
    {
        let mut state = image.write_state();
        state.space = None;
        state.limit = end;
    }
    findings.report.leaks_fixed += count;
    Ok(())
}
