//! Checking and repairing: `check` and `check -r`.
//!
//! The order of the work, and of the messages, is the reference implementation's:
//!
//! 1. the snapshot table is read (and cut where it is too large, with `-r all`),
//! 2. every reference is counted (`check_refs`): header, active L1 table, snapshots, snapshot table,
//!    refcount table, encryption header, bitmaps, refcount blocks,
//! 3. the counts are compared with those in the file (`check_compare`); mismatches are repaired in
//!    place, or the whole structure is written anew (`repair`) where in place is not possible,
//! 4. the copied flags of the active tables are compared with the counts (`check_copied`),
//! 5. a snapshot table that needs it is written anew, dirty and corrupt bits are cleared.
//!
//! A table that is reached more than once (by snapshots, or by a loop) is read once and weighs as
//! often as it is reached, so the work is bounded by the size of the file. Counts that have to rise do
//! so before flags change; those that fall are leaks until then: a crash during a repair leaves nothing
//! worse than before.

use super::check_counts::Counts;
use super::image::Qcow2Image;
use super::layout::{MAX_L1_BYTES, MAX_SNAPSHOTS, REFTABLE_MASK, ext, incompatible};
use super::open::read_table;
use super::refcount::Refcounts;
use super::snapshot_table::{Damage, SnapshotTable, TablePlace, V3_EXTRA};
use super::tables::Tables;
use crate::format::{CheckReport, Repair, Unwatched, Watcher};
use crate::num::round_up;
use crate::storage::Storage;
use crate::{Error, Result};

/// Most clusters of an image file, as in the reference implementation.
const MAX_CLUSTERS: u64 = 0x7fff_ffff;

/// Most lines about one thing that is reached several times.
pub(super) const MAX_REPEATS: u64 = 16;

/// A check in progress.
pub(super) struct Check<'a> {
    pub(super) image: &'a Qcow2Image,
    pub(super) file: &'a dyn Storage,
    pub(super) tables: &'a mut Tables,
    pub(super) watcher: &'a dyn Watcher,
    pub(super) repair: Repair,
    pub(super) report: CheckReport,
    /// Counts found; after the last comparison, those in the file.
    pub(super) counts: Counts,
    pub(super) file_len: u64,
    pub(super) snapshots: SnapshotTable,
    /// Places of metadata other than L2 tables: `(start, end)`, sorted; never written by mistake.
    pub(super) metadata: Vec<(u64, u64)>,
    /// Clusters whose counts in the file could not be read.
    pub(super) unreadable: Vec<std::ops::Range<u64>>,
    /// Repair in place is not possible.
    pub(super) rebuild: bool,
    /// Last cluster with a count or a reference.
    pub(super) highest: u64,
}

impl Check<'_> {
    pub(super) fn note(&self, line: &str) {
        self.watcher.note(line);
    }

    /// Counts a thing that could not be checked and says why.
    pub(super) fn failed(&mut self, line: &str, error: Error) -> Error {
        self.note(line);
        self.report.check_errors += 1;
        error
    }

    pub(super) fn fixing(&self) -> bool {
        self.repair == Repair::All
    }

    /// "Repairing" or "ERROR".
    pub(super) fn verb(&self) -> &'static str {
        if self.fixing() { "Repairing" } else { "ERROR" }
    }

    fn cluster(&self) -> u64 {
        self.tables.geometry.cluster()
    }

    /// Whether `at..at + len` touches metadata that no repair of an L2 table may overwrite.
    pub(super) fn overlaps_metadata(&self, at: u64, len: u64) -> bool {
        self.metadata.iter().any(|&(start, end)| at < end && start < at.saturating_add(len))
    }

    fn collect_metadata(&mut self) {
        let cluster = self.cluster();
        let h = &self.tables.header;
        let mut all = vec![
            (0, cluster),
            (h.l1_offset, u64::from(h.l1_size) * 8),
            (h.snapshots_offset, self.snapshots.bytes),
            (h.reftable_offset, u64::from(h.reftable_clusters) << h.cluster_bits),
        ];
        for s in &self.snapshots.list {
            all.push((s.l1_offset, u64::from(s.l1_size) * 8));
        }
        for &entry in self.tables.refs.table.iter().filter(|&&e| e != 0) {
            all.push((entry & REFTABLE_MASK, cluster));
        }
        all.retain(|&(_, len)| len > 0);
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        all.sort_unstable();
        for (at, len) in all {
            let end = at.saturating_add(len);
            match ranges.last_mut() {
                Some((_, last)) if at <= *last => *last = end.max(*last),
                _ => ranges.push((at, end)),
            }
        }
        self.metadata = ranges;
    }

    /// Step 1. Returns the findings about the table itself, which are reported apart.
    fn read_snapshots(&mut self) -> Result<CheckReport> {
        let mut found = CheckReport::default();
        let h = &self.tables.header;
        let damage = if self.fixing() { Damage::CutAway } else { Damage::Refuse };
        let place = TablePlace {
            offset: h.snapshots_offset,
            entries: h.nb_snapshots.min(MAX_SNAPSHOTS),
            disk_size: h.size,
        };
        let table = match SnapshotTable::read(self.file, place, damage) {
            Ok(table) => table,
            Err(e) => {
                let line = format!("ERROR failed to read the snapshot table: {}", e.report());
                self.note(&line);
                for hint in e.hints() {
                    self.note(hint);
                }
                self.report.check_errors += 1;
                return Err(e);
            }
        };
        for line in &table.notes {
            self.note(line);
        }
        found.corruptions += table.dropped + table.shortened;
        if table.dropped > 0 {
            // The header must agree with what is counted from here on.
            self.tables.header.nb_snapshots =
                u32::try_from(table.list.len()).map_err(|_| Error::errno(libc::EFBIG))?;
            self.tables.header.write(self.file)?;
            self.file.flush()?;
            found.corruptions -= table.dropped;
            found.corruptions_fixed += table.dropped;
        }
        if self.tables.header.version >= 3 {
            for (i, _) in table.list.iter().enumerate().filter(|(_, s)| s.extra_size < V3_EXTRA) {
                found.corruptions += 1;
                self.note(&format!("{} snapshot table entry {i} is incomplete", self.verb()));
            }
        }
        self.snapshots = table;
        Ok(found)
    }

    /// Step 5, first half: a table with entries that were cut or are incomplete.
    fn fix_snapshots(&mut self, found: &mut CheckReport) -> Result<()> {
        if found.corruptions == 0 || !self.fixing() {
            return Ok(());
        }
        let (list, old) = (&self.snapshots.list, self.snapshots.bytes);
        if let Err(e) = self.image.replace_snapshot_table(self.tables, list, old) {
            let line = format!("ERROR failed to update snapshot table: {}", e.report());
            return Err(self.failed(&line, e));
        }
        found.corruptions_fixed += found.corruptions;
        found.corruptions = 0;
        Ok(())
    }

    /// Step 2: counts every reference anew.
    fn count_all(&mut self) -> Result<()> {
        let cluster = self.cluster();
        self.collect_metadata();
        self.count_region(0, cluster, 1);
        self.count_guest_tables()?;
        let h = self.tables.header.clone();
        self.count_region(h.snapshots_offset, self.snapshots.bytes, 1);
        self.count_region(h.reftable_offset, u64::from(h.reftable_clusters) << h.cluster_bits, 1);
        if let Some(crypto) = h.extension(ext::CRYPTO)
            && crypto.len() >= 16
        {
            let word = |b: &[u8]| b.iter().fold(0u64, |v, &x| v << 8 | u64::from(x));
            self.count_region(word(&crypto[..8]), word(&crypto[8..16]), 1);
        }
        self.count_bitmaps()?;
        self.count_refcount_blocks()
    }

    /// Steps 2 to 4.
    fn check_references(&mut self) -> Result<()> {
        let repairing = self.repair != Repair::Nothing;
        self.count_all()?;
        let before = self.report.clone();
        self.compare(Repair::Nothing, !repairing)?;
        if self.rebuild && self.fixing() {
            let old = self.report.clone();
            self.note("Rebuilding refcount structure");
            self.rebuild_refcounts()?;
            self.report.corruptions = 0;
            self.report.leaks = 0;
            self.rebuild = false;
            self.counts = Counts::new(self.counts.len(), self.tables.refs.order);
            // What was repaired while counting needs no second repair.
            let wanted = std::mem::replace(&mut self.repair, Repair::Nothing);
            let fragments = (
                self.report.allocated_clusters,
                self.report.fragmented_clusters,
                self.report.compressed_clusters,
            );
            let counted = self.count_all();
            (
                self.report.allocated_clusters,
                self.report.fragmented_clusters,
                self.report.compressed_clusters,
            ) = fragments;
            self.repair = wanted;
            counted?;
            let saved = std::mem::take(&mut self.report);
            self.compare(Repair::Leaks, true)?;
            if self.rebuild {
                self.note("ERROR rebuilt refcount structure is still broken");
            }
            let found = std::mem::replace(&mut self.report, saved);
            self.report.check_errors += found.check_errors;
            self.report.corruptions += found.corruptions;
            self.report.corruptions_fixed +=
                old.corruptions.saturating_sub(self.report.corruptions);
            self.report.leaks_fixed += old.leaks.saturating_sub(self.report.leaks);
            self.report.leaks += found.leaks;
        } else if repairing {
            if self.rebuild {
                let e = Error::errno(libc::EIO)
                    .hint("the refcount structure can only be rebuilt: use 'check -r all'");
                return Err(self.failed("ERROR need to rebuild refcount structures", e));
            }
            if self.report.leaks > 0 || self.report.corruptions > 0 {
                self.report = before;
                self.compare(self.repair, true)?;
            }
        }
        self.check_copied()
    }
}

impl Qcow2Image {
    /// See [`crate::format::Image::check`].
    pub(super) fn check_image(&self, repair: Repair, watcher: &dyn Watcher) -> Result<CheckReport> {
        let mut tables = self.write_tables();
        if self.writable && !tables.broken {
            self.flush_tables(&mut tables)?;
        }
        self.check_tables(&mut tables, repair, watcher)
    }

    fn check_tables(
        &self,
        tables: &mut Tables,
        repair: Repair,
        watcher: &dyn Watcher,
    ) -> Result<CheckReport> {
        if repair != Repair::Nothing && !self.writable {
            return Err(crate::format::read_only("qcow2").at_path(self.file.name()));
        }
        let file_len = self.file.len()?;
        let g = tables.geometry;
        let clusters = file_len.div_ceil(g.cluster());
        if clusters > MAX_CLUSTERS {
            return Err(Error::errno(libc::EFBIG)
                .context(format!("the image file has {clusters} clusters, too many to count"))
                .at_path(self.file.name()));
        }
        let mut check = Check {
            image: self,
            file: &*self.file,
            watcher,
            repair,
            report: CheckReport {
                total_clusters: Some(tables.header.size.div_ceil(g.cluster())),
                allocated_clusters: Some(0),
                fragmented_clusters: Some(0),
                compressed_clusters: Some(0),
                ..CheckReport::default()
            },
            counts: Counts::new(clusters, tables.refs.order),
            tables,
            file_len,
            snapshots: SnapshotTable::default(),
            metadata: Vec::new(),
            unreadable: Vec::new(),
            rebuild: false,
            highest: 0,
        };
        let outcome = check.run();
        let (report, repaired) = (check.report, repair != Repair::Nothing);
        if repaired {
            self.reload(tables)?;
        }
        outcome.map_err(|e| e.at_path(self.file.name()))?;
        if repaired && report.check_errors == 0 && report.corruptions == 0 {
            self.clear_marks(tables)?;
        }
        Ok(report)
    }

    /// Forgets everything in memory that a repair may have changed in the file.
    fn reload(&self, tables: &mut Tables) -> Result<()> {
        self.file.flush()?;
        let h = &tables.header;
        tables.l1 = read_table(&*self.file, h.l1_offset, u64::from(h.l1_size))?;
        tables.l1_dirty = None;
        tables.l2.forget_clean();
        tables.compressed_end = 0;
        tables.file_len = self.file.len()?;
        tables.refs = Refcounts::new(
            h.cluster_bits,
            h.refcount_order,
            std::mem::take(&mut tables.refs.table),
            h.reftable_offset,
        );
        Ok(())
    }

    /// The image is consistent: nobody has to be warned any more.
    fn clear_marks(&self, tables: &mut Tables) -> Result<()> {
        let marks = incompatible::DIRTY | incompatible::CORRUPT;
        if tables.header.has(marks) {
            tables.header.incompatible &= !marks;
            tables.header.write(&*self.file)?;
            self.file.flush()?;
        }
        tables.broken = false;
        Ok(())
    }

    /// Rebuilds reference counts after an unclean shutdown with lazy counts.
    pub(super) fn repair_dirty(&self) -> Result<()> {
        let broken =
            |e: Error| e.context("Could not repair dirty image").hint("look at it with 'check'");
        let report = self.check_image(Repair::All, &Unwatched).map_err(broken)?;
        if report.check_errors > 0 {
            return Err(broken(Error::errno(libc::EIO)));
        }
        Ok(())
    }
}

impl Check<'_> {
    fn run(&mut self) -> Result<()> {
        let mut found = self.read_snapshots()?;
        self.check_references()?;
        self.report.image_end_offset = Some((self.highest + 1) * self.cluster());
        if found.corruptions > 0 && self.fixing() {
            // Counts and flags are right now; the table can be replaced with ordinary means.
            self.image.reload(self.tables)?;
        }
        let fixed = self.fix_snapshots(&mut found);
        self.report.corruptions += found.corruptions;
        self.report.corruptions_fixed += found.corruptions_fixed;
        self.report.check_errors += found.check_errors;
        fixed
    }

    /// Step 2 for everything that L1 tables reach.
    fn count_guest_tables(&mut self) -> Result<()> {
        let h = &self.tables.header;
        let (offset, bytes) = (h.l1_offset, u64::from(h.l1_size) * 8);
        let mut uses = super::check_refs::L2Uses::default();
        self.count_region(offset, bytes, 1);
        let l1 = std::mem::take(&mut self.tables.l1);
        self.count_l1(&l1, super::check_refs::Owner::Active, &mut uses);
        self.tables.l1 = l1;
        if self.tables.geometry.external && !self.snapshots.list.is_empty() {
            self.note(&format!(
                "ERROR {} snapshots in image with data file",
                self.snapshots.list.len()
            ));
            self.report.corruptions += 1;
        }
        for i in 0..self.snapshots.list.len() {
            let s = &self.snapshots.list[i];
            let (at, size) = (s.l1_offset, s.l1_size);
            let who = format!("{} ({})", s.id_text(), s.name_text());
            if !at.is_multiple_of(self.cluster()) {
                self.note(&format!(
                    "ERROR snapshot {who} l1_offset={at:#x}: L1 table is not cluster aligned; snapshot table entry corrupted"
                ));
                self.report.corruptions += 1;
                continue;
            }
            if u64::from(size) > MAX_L1_BYTES / 8 {
                self.note(&format!(
                    "ERROR snapshot {who} l1_size={size:#x}: L1 table is too large; snapshot table entry corrupted"
                ));
                self.report.corruptions += 1;
                continue;
            }
            self.count_region(at, u64::from(size) * 8, 1);
            let inside = self.file_len.saturating_sub(at).div_ceil(8).min(u64::from(size));
            let l1 = match read_table(self.file, at, inside) {
                Ok(l1) => l1,
                Err(e) => return Err(self.failed("ERROR: I/O error in check_refcounts_l1", e)),
            };
            self.count_l1(&l1, super::check_refs::Owner::Snapshot, &mut uses);
        }
        self.count_l2_tables(&uses)
    }

    /// Step 2 for refcount blocks.
    fn count_refcount_blocks(&mut self) -> Result<()> {
        let cluster = self.cluster();
        for i in 0..self.tables.refs.table.len() {
            let entry = self.tables.refs.table[i];
            let at = entry & REFTABLE_MASK;
            if entry & !REFTABLE_MASK != 0 {
                self.note(&format!("ERROR refcount table entry {i} has reserved bits set"));
            } else if !at.is_multiple_of(cluster) {
                self.note(&format!(
                    "ERROR refcount block {i} is not cluster aligned; refcount table entry corrupted"
                ));
            } else if at / cluster >= self.counts.len() {
                self.report.corruptions += 1;
                self.note(&format!("{} refcount block {i} is outside image", self.verb()));
                if self.fixing() && !self.reach_block(at)? {
                    self.rebuild = true;
                }
                continue;
            } else {
                if at != 0 {
                    self.count_region(at, cluster, 1);
                    let count = self.counts.get(at / cluster);
                    if count != 1 {
                        self.note(&format!("ERROR refcount block {i} refcount={count}"));
                        self.report.corruptions += 1;
                        self.rebuild = true;
                    }
                }
                continue;
            }
            self.report.corruptions += 1;
            self.rebuild = true;
        }
        Ok(())
    }

    /// Makes the file long enough for a refcount block that lies behind its end. A block so far away that
    /// the file would grow beyond what counts can describe is not followed: the structure is rebuilt.
    fn reach_block(&mut self, at: u64) -> Result<bool> {
        let end = at.saturating_add(self.cluster());
        let limit = self.file_len.saturating_mul(2).saturating_add(1 << 30);
        let grown = if end > limit || end / self.cluster() > MAX_CLUSTERS {
            Err(Error::errno(libc::EFBIG))
        } else {
            self.file.set_len(end, crate::storage::Preallocation::Off)
        };
        if let Err(e) = grown {
            self.note(&format!("ERROR could not resize image: {}", e.report()));
            return Ok(false);
        }
        self.file_len = self.file.len()?;
        self.counts.grow(round_up(self.file_len, self.cluster()) / self.cluster());
        self.report.corruptions -= 1;
        self.report.corruptions_fixed += 1;
        self.count_region(at, self.cluster(), 1);
        Ok(true)
    }

    /// Writes the refcount structure anew from the counts.
    fn rebuild_refcounts(&mut self) -> Result<()> {
        let cluster = self.cluster();
        let h = &self.tables.header;
        let mut old = vec![(h.reftable_offset, u64::from(h.reftable_clusters) << h.cluster_bits)];
        for &entry in &self.tables.refs.table {
            let at = entry & REFTABLE_MASK;
            if entry != 0 && entry & !REFTABLE_MASK == 0 && at.is_multiple_of(cluster) {
                old.push((at, cluster));
            }
        }
        // Only what was counted can be taken away again.
        old.retain(|&(at, len)| at.saturating_add(len) <= round_up(self.file_len, cluster));
        let order = self.tables.refs.order;
        let plan = super::repair::OldStructure { places: &old, exact: false };
        let written = super::repair::write_structure(
            self.file,
            h.cluster_bits,
            order,
            &mut self.counts,
            plan,
        )
        .and_then(|new| self.image.link_structure(self.tables, new, order));
        if let Err(e) = written {
            let line = e.report();
            return Err(self.failed(&line, e));
        }
        self.file_len = self.file.len()?;
        self.counts.grow(self.file_len.div_ceil(cluster));
        Ok(())
    }

    /// Counts one finding of damage `times` over, as often as the damaged table is reached.
    pub(super) fn corrupt(&mut self, times: u64, line: &str) {
        for _ in 0..times.min(MAX_REPEATS) {
            self.note(line);
        }
        self.report.corruptions += times;
    }
}
