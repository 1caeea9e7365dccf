//! Looking for damage.
//!
//! QEMU's check asks whether each grain begins inside its file, and so does this one, with the same
//! words; where QEMU stops at the first finding, this one goes on (up to a number of lines). It also finds
//! what QEMU does not: grains used twice, which it counts as corruptions, and leaked grains (see
//! [`leaks`]), which it gives back if asked. A disk with damaged tables keeps its leaks: what seems
//! leaked may be what the tables should lead to.

use super::image::{Sparse, VmdkImage};
use super::layout::SECTOR;
use super::leaks::{self, Leak};
use super::tables::Entry;
use crate::format::findings::Findings;
use crate::format::{Access, CheckReport, Repair, Watcher, check_cancelled};
use crate::num::small;
use crate::{Error, Result};

/// Most grains of a file for which a map of used grains is made (8 MiB).
const MAX_MAPPED: u64 = 64 << 20;

/// What was found wrong.
struct Found<'a> {
    lines: Findings<'a>,
    /// Grains that begin behind the end of their file, or cannot be found.
    beyond: u64,
    /// Grains that two entries lead to.
    shared: u64,
}

/// Checks all sparse extents, and gives leaked space back if asked.
pub(super) fn check(
    image: &VmdkImage,
    repair: Repair,
    watcher: &dyn Watcher,
) -> Result<CheckReport> {
    if repair != Repair::Nothing {
        if let Some(error) = leaks::not_repairable(image) {
            return Err(error);
        }
        if image.access == Access::Read {
            return Err(crate::format::read_only("vmdk"));
        }
    }
    let mut found = Found { lines: Findings::new(watcher, repair), beyond: 0, shared: 0 };
    for sparse in image.sparse_extents() {
        check_extent(image, sparse, &mut found)?;
    }
    let damaged = found.beyond > 0 || found.shared > 0;
    let repair = if damaged { Repair::Nothing } else { repair };
    let mut leaks = Ok(leaks::Leaks::default());
    if found.beyond == 0 {
        leaks = leaks::search(image, repair, watcher, &mut |sparse, leak| {
            found.lines.note(&leak_line(sparse, leak, repair));
        });
    }
    let report = found.lines.finish();
    if found.beyond > 0 {
        return Err(Error::errno(libc::EINVAL));
    }
    let leaks = leaks?;
    Ok(CheckReport {
        corruptions: found.shared,
        leaks: leaks.left,
        leaks_fixed: leaks.fixed,
        ..report
    })
}

fn leak_line(sparse: Sparse<'_>, leak: Leak, repair: Repair) -> String {
    let Leak { at, grains, .. } = leak;
    let verb = if repair == Repair::Nothing { "Leaked" } else { "Repairing leaked" };
    let noun = if grains == 1 { "grain" } else { "grains" };
    format!("{verb} {noun} at {at:#x} of '{}': {grains}", sparse.storage.name())
}

fn check_extent(image: &VmdkImage, sparse: Sparse<'_>, found: &mut Found<'_>) -> Result<()> {
    let g = sparse.geometry;
    let len = sparse.storage.len()?;
    // Grains of one extent are aligned to each other or not; a map in units of grains tells two grains
    // with the same place, which is what broken writers make.
    let unit = if g.compressed() { SECTOR } else { g.grain };
    let places = len.div_ceil(unit);
    let mut used =
        if places <= MAX_MAPPED { vec![0u64; small(places.div_ceil(64))] } else { vec![] };
    let mut offset = 0;
    while offset < sparse.extent.len {
        check_cancelled(found.lines.watcher)?;
        found.lines.watcher.progress(sparse.extent.start + offset, image.size);
        let key = sparse.key(offset)?;
        let next = offset + g.table_cover();
        let exists = image.read_tables().dirs[small(u64::from(sparse.number))]
            .gd
            .get(small(u64::from(key.index)))
            .is_some_and(|&e| e != 0);
        if exists {
            let table = image.load(sparse, key)?;
            for (i, &entry) in (0u64..).zip(table.iter()) {
                let at = offset + i * g.grain;
                if at < sparse.extent.len && entry > Entry::ZERO {
                    check_entry(sparse, at, entry, (len, unit, &mut used), found);
                }
            }
        }
        offset = next;
    }
    Ok(())
}

fn check_entry(
    sparse: Sparse<'_>,
    at: u64,
    entry: u64,
    (len, unit, used): (u64, u64, &mut [u64]),
    found: &mut Found<'_>,
) {
    let sector = (sparse.extent.start + at) / SECTOR;
    if entry == Entry::BAD {
        found.beyond += 1;
        found.lines.note(&format!("ERROR: could not get cluster offset for sector {sector}"));
        return;
    }
    let place = entry.saturating_mul(SECTOR);
    if place >= len {
        found.beyond += 1;
        found.lines.note(&format!("ERROR: cluster offset for sector {sector} points after EOF"));
        return;
    }
    let bit = place / unit;
    if let Some(word) = used.get_mut(small(bit / 64)) {
        let mask = 1 << (bit % 64);
        if *word & mask != 0 {
            found.shared += 1;
            found.lines.note(&format!(
                "ERROR: the grain for sector {sector} at {place:#x} of '{}' is used twice",
                sparse.storage.name()
            ));
        }
        *word |= mask;
    }
}
