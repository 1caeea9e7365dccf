//! Looking for damage, and mending it.
//!
//! An image whose header says that it was not closed is looked at before it is written; only damage is
//! mended then. Leaks are given back by moving the last clusters into the gaps ([`super::compact`]).

use super::compact;
use super::image::{Cluster, QedImage};
use super::layout::ZERO;
use crate::format::findings::Findings;
use crate::format::used::Used;
use crate::format::{Access, CheckReport, Repair, Unwatched, Watcher, check_cancelled};
use crate::num::small;
use crate::{Error, Result};

/// Times that a repaired image is looked at again: what lay under other damage shows then.
const PASSES: u32 = 4;

/// What the walk over the tables found.
pub(super) struct Walk<'a> {
    image: &'a QedImage,
    found: Findings<'a>,
    /// Clusters of the file in use.
    pub used: Used,
    /// Those of header and tables.
    pub fixed: Used,
    /// Tables: number of the L1 entry, and place.
    pub tables: Vec<(u64, u64)>,
    len: u64,
    expected: u64,
}

/// Checks the image, and mends it if asked.
pub(super) fn check(
    image: &QedImage,
    repair: Repair,
    watcher: &dyn Watcher,
) -> Result<CheckReport> {
    if repair != Repair::Nothing {
        image.check_writable(0)?;
    }
    if repair == Repair::All {
        image.mark()?;
    }
    let mut fixed = 0;
    let mut pass = 1;
    let mut report = loop {
        let mend = repair == Repair::All && pass < PASSES;
        let mut report = look(image, mend, watcher)?.finish();
        fixed += report.corruptions_fixed;
        if report.corruptions_fixed == 0 {
            report.corruptions_fixed = fixed;
            break report;
        }
        pass += 1;
    };
    if repair == Repair::Nothing || report.corruptions > 0 || report.check_errors > 0 {
        return Ok(report);
    }
    if report.leaks > 0 {
        watcher.note(&format!("Repairing leaked clusters: {}", report.leaks));
        compact::compact(image, watcher)?;
        let left = look(image, false, &Unwatched)?.finish().leaks;
        report.leaks_fixed = report.leaks.saturating_sub(left);
        report.leaks = left;
    }
    image.unmark()?;
    Ok(report)
}

/// Mends the tables of an image that was not closed, without a word.
pub(super) fn mend_tables(image: &QedImage) -> Result<()> {
    for _ in 0..PASSES {
        if look(image, true, &Unwatched)?.found.report.corruptions_fixed == 0 {
            break;
        }
    }
    image.write_back()?;
    image.storage.flush()
}

/// Looks at everything once.
pub(super) fn look<'a>(
    image: &'a QedImage,
    mend: bool,
    watcher: &'a dyn Watcher,
) -> Result<Walk<'a>> {
    if image.access == Access::Write {
        image.write_back()?;
        image.storage.flush()?;
    }
    let mut walk = Walk {
        image,
        found: Findings::new(watcher, if mend { Repair::All } else { Repair::Nothing }),
        used: Used::default(),
        fixed: Used::default(),
        tables: Vec::new(),
        len: image.storage.len()?,
        expected: 0,
    };
    walk.header();
    walk.upper()?;
    if walk.found.report.corruptions_fixed > 0 {
        image.write_back()?;
        image.storage.flush()?;
    }
    Ok(walk)
}

impl Walk<'_> {
    /// Enters clusters; `false` where something else lies there.
    fn enter(&mut self, at: u64, len: u64, fixed: bool) -> bool {
        let cluster = self.image.read_state().geometry.cluster;
        let (first, last) = (at / cluster, (at + len).div_ceil(cluster));
        if fixed {
            self.fixed.take_all(first, last);
        }
        self.used.take_all(first, last)
    }

    fn header(&mut self) {
        let g = self.image.read_state().geometry.clone();
        self.enter(0, g.header, true);
        self.enter(g.l1, g.table(), true);
        self.found.report.total_clusters = Some(g.size.div_ceil(g.cluster));
        self.found.report.allocated_clusters = Some(0);
        self.found.report.fragmented_clusters = Some(0);
    }

    fn upper(&mut self) -> Result<()> {
        let g = self.image.read_state().geometry.clone();
        let storage = &*self.image.storage;
        for number in 0..g.entries() {
            if number % 1024 == 0 {
                check_cancelled(self.found.watcher)?;
                self.found.watcher.progress(number, g.entries());
            }
            let at = self.image.write_state().tables.upper(storage, number)?;
            if at == 0 {
                continue;
            }
            let last = at.checked_add(g.table() - g.cluster);
            if !g.may_lie(at, self.len) || last.is_none_or(|last| last >= self.len) {
                if self.found.damage(&format!("L1 entry {number}: there is no L2 table at {at:#x}"))
                {
                    self.image.write_state().tables.set_upper(storage, number, 0)?;
                }
                continue;
            }
            if !self.enter(at, g.table(), true) {
                if self.found.damage(&format!(
                    "L1 entry {number}: the L2 table at {at:#x} lies over other data"
                )) {
                    let to = self.copy(at, g.table())?;
                    self.image.write_state().tables.set_upper(storage, number, to)?;
                }
                // Its clusters are looked at when it lies alone.
                continue;
            }
            self.tables.push((number, at));
            let mut entries = Vec::new();
            {
                let state = self.image.read_state();
                state.tables.each_entry(storage, at, |i, e| {
                    entries.push((number * g.entries() + i, e));
                    Ok(())
                })?;
            }
            for (index, entry) in entries {
                self.cluster(index, entry)?;
            }
        }
        Ok(())
    }

    fn cluster(&mut self, index: u64, entry: u64) -> Result<()> {
        let Cluster::At(at) = Cluster::of(entry) else { return Ok(()) };
        let g = self.image.read_state().geometry.clone();
        let guest = index.saturating_mul(g.cluster);
        if !g.may_lie(at, self.len) {
            if self.found.damage(&format!(
                "the cluster for guest offset {guest:#x} is said to be at {at:#x}, where none can be"
            )) {
                // The data are not there. What the file below has in this place is older.
                let instead = if g.backing.is_some() { ZERO } else { 0 };
                let mut state = self.image.write_state();
                state.tables.set(&*self.image.storage, index, instead)?;
            }
            return Ok(());
        }
        let fragmented = self.expected != 0 && self.expected != at;
        self.expected = at + g.cluster;
        for (count, by) in [
            (&mut self.found.report.allocated_clusters, 1),
            (&mut self.found.report.fragmented_clusters, u64::from(fragmented)),
        ] {
            *count = count.map(|n| n + by);
        }
        let line =
            || format!("the cluster at {at:#x} (guest offset {guest:#x}) lies over other data");
        if !self.enter(at, g.cluster, false) && self.found.damage(&line()) {
            let to = self.copy(at, g.cluster)?;
            let mut state = self.image.write_state();
            state.tables.set(&*self.image.storage, index, to)?;
        }
        Ok(())
    }

    /// Copies a table or a cluster to the end of the file.
    fn copy(&self, at: u64, len: u64) -> Result<u64> {
        let to = self.image.write_state().take(len)?;
        copy_bytes(self.image, at, to, len)?;
        Ok(to)
    }

    fn finish(self) -> CheckReport {
        let mut report = self.found.finish();
        let cluster = self.image.read_state().geometry.cluster;
        let held = self.len.div_ceil(cluster);
        report.leaks = self.used.gaps(held).iter().map(|(start, end)| end - start).sum();
        report
    }
}

/// Copies bytes of the file.
pub(super) fn copy_bytes(image: &QedImage, from: u64, to: u64, len: u64) -> Result<()> {
    let mut bytes = vec![0; small(len.min(1 << 20))];
    let mut done = 0;
    while done < len {
        let n = (len - done).min(1 << 20);
        let piece = bytes.get_mut(..small(n)).ok_or_else(|| Error::errno(libc::EIO))?;
        image.storage.read_at(from + done, piece)?;
        image.storage.write_at(to + done, piece)?;
        done += n;
    }
    Ok(())
}
