//! Looking for damage, and mending it.
//!
//! The format knows no reference counts and no list of free clusters: what nothing leads to is unused, and
//! a leak where it takes space. Leaks are given back to the file system as holes, at the end of the file by
//! making it shorter; nothing is moved.

use super::image::{Cluster, QcowImage};
use crate::format::findings::Findings;
use crate::format::used::Used;
use crate::format::{Access, CheckReport, Repair, Watcher, check_cancelled};
use crate::num::{round_down, round_up, small};
use crate::storage::{HostKind, Preallocation, ZeroMode};
use crate::{Error, Result};

/// Unit of what is in use.
const SECTOR: u64 = 512;
/// File systems give no smaller pieces back.
const HOLE: u64 = 4096;

/// What the walk over the tables found.
struct Walk<'a> {
    image: &'a QcowImage,
    found: Findings<'a>,
    /// Sectors of header, tables and plain clusters.
    plain: Used,
    /// Sectors that compressed clusters lie in, several in one.
    packed: Used,
    /// Length of the file.
    len: u64,
    /// End of what is in use, in bytes.
    end: u64,
    allocated: u64,
    compressed: u64,
    fragmented: u64,
    /// Where the next cluster would be if they were in order.
    expected: u64,
}

/// Times that a repaired image is looked at again: what lay under other damage shows then.
const PASSES: u32 = 4;

/// Checks the image, and mends it if asked.
pub(super) fn check(
    image: &QcowImage,
    repair: Repair,
    watcher: &dyn Watcher,
) -> Result<CheckReport> {
    if repair != Repair::Nothing && image.access == Access::Read {
        return Err(crate::format::read_only("qcow"));
    }
    let mut fixed = 0;
    let mut pass = 1;
    loop {
        let mend = repair == Repair::All && pass < PASSES;
        let mut report = look(image, repair, mend, watcher)?;
        fixed += report.corruptions_fixed;
        if report.corruptions_fixed == 0 {
            report.corruptions_fixed = fixed;
            return Ok(report);
        }
        pass += 1;
    }
}

/// Looks at everything once.
fn look(
    image: &QcowImage,
    repair: Repair,
    mend: bool,
    watcher: &dyn Watcher,
) -> Result<CheckReport> {
    if image.access == Access::Write {
        image.write_back()?;
        image.storage.flush()?;
    }
    let mut walk = Walk {
        image,
        found: Findings::new(watcher, if mend { Repair::All } else { Repair::Nothing }),
        plain: Used::default(),
        packed: Used::default(),
        len: image.storage.len()?,
        end: 0,
        allocated: 0,
        compressed: 0,
        fragmented: 0,
        expected: 0,
    };
    walk.header();
    walk.tables()?;
    if walk.found.report.corruptions_fixed == 0 {
        walk.leaks(repair)?;
    }
    let g = image.read_state().geometry.clone();
    let Walk { found, end, allocated, compressed, fragmented, .. } = walk;
    let mut report = found.finish();
    report.image_end_offset = Some(end);
    report.total_clusters = Some(g.size.div_ceil(g.cluster()));
    report.allocated_clusters = Some(allocated);
    report.compressed_clusters = Some(compressed);
    report.fragmented_clusters = Some(fragmented);
    Ok(report)
}

/// Gives back what nothing leads to.
pub(super) fn give_leaks_back(image: &QcowImage) -> Result<()> {
    check(image, Repair::Leaks, &crate::format::Unwatched).map(drop)
}

impl Walk<'_> {
    fn header(&mut self) {
        let state = self.image.read_state();
        let g = &state.geometry;
        let mut parts = vec![(0, super::layout::HEADER), (g.l1, g.l1_entries() * 8)];
        if let Some((at, name)) = &g.backing {
            parts.push((*at, crate::num::len_u64(name.len())));
        }
        drop(state);
        for (at, len) in parts {
            self.plain.take_all(at / SECTOR, (at + len).div_ceil(SECTOR));
            self.end = self.end.max(at + len);
        }
    }

    /// Enters a table or a plain cluster; `false` where something else lies there.
    fn enter(&mut self, at: u64, len: u64) -> bool {
        let (first, last) = (at / SECTOR, (at + len).div_ceil(SECTOR));
        let packed = self.packed.any(first, last);
        self.end = self.end.max(at + len);
        self.plain.take_all(first, last) && !packed
    }

    fn tables(&mut self) -> Result<()> {
        let (entries, bytes) = {
            let state = self.image.read_state();
            (state.geometry.l1_entries(), state.tables.l2_bytes())
        };
        let storage = &self.image.storage;
        for number in 0..entries {
            if number % 512 == 0 {
                check_cancelled(self.found.watcher)?;
                self.found.watcher.progress(number, entries);
            }
            let at = self.image.write_state().tables.upper(&**storage, number)?;
            if at == 0 {
                continue;
            }
            let wrong = self.image.read_state().tables.wrong_table(at, self.len);
            if let Some(what) = wrong {
                let line = format!("L1 entry {number}: the L2 table at {at:#x} {what}");
                if self.found.damage(&line) {
                    self.image.write_state().tables.set_upper(&**storage, number, 0)?;
                }
                continue;
            }
            if !self.enter(at, bytes) {
                let line =
                    format!("L1 entry {number}: the L2 table at {at:#x} lies over other data");
                if self.found.damage(&line) {
                    let to = self.copy(at, bytes)?;
                    self.image.write_state().tables.set_upper(&**storage, number, to)?;
                }
                // Its clusters are looked at when it lies alone.
                continue;
            }
            self.clusters(number, at)?;
        }
        Ok(())
    }

    fn clusters(&mut self, number: u64, table: u64) -> Result<()> {
        let mut entries = Vec::new();
        let first = {
            let state = self.image.read_state();
            let each = |i, e| {
                entries.push((i, e));
                Ok(())
            };
            state.tables.each_entry(&*self.image.storage, table, each)?;
            number << state.geometry.l2_bits
        };
        for (i, entry) in entries {
            self.cluster(first + i, entry)?;
        }
        Ok(())
    }

    fn cluster(&mut self, index: u64, entry: u64) -> Result<()> {
        let g = self.image.read_state().geometry.clone();
        let guest = index * g.cluster();
        if guest >= g.size {
            // Cut off by a smaller size; growing forgets it.
            return Ok(());
        }
        self.allocated += 1;
        match Cluster::of(entry) {
            Cluster::Nothing => {}
            Cluster::Packed => {
                let (at, len) = g.packed(entry);
                self.compressed += 1;
                if at.saturating_add(len) > round_up(self.len, SECTOR) {
                    let line = format!(
                        "the compressed cluster for guest offset {guest:#x} is said to be at {at:#x}, \
                         beyond the end of the file"
                    );
                    return self.forget(index, &line);
                }
                let (first, last) = (at / SECTOR, (at + len).div_ceil(SECTOR));
                self.packed.take_all(first, last);
                self.end = self.end.max(at + len);
                if self.plain.any(first, last) {
                    self.found.beyond_repair(&format!(
                        "the compressed cluster at {at:#x} (guest offset {guest:#x}) lies over other data"
                    ));
                }
            }
            Cluster::Plain(at) => {
                if at >= self.len {
                    let line = format!(
                        "the cluster for guest offset {guest:#x} is said to be at {at:#x}, beyond the end \
                         of the file"
                    );
                    return self.forget(index, &line);
                }
                self.fragmented += u64::from(self.expected != 0 && self.expected != at);
                self.expected = at + g.cluster();
                if !self.enter(at, g.cluster()) {
                    let line = format!(
                        "the cluster at {at:#x} (guest offset {guest:#x}) lies over other data"
                    );
                    if self.found.damage(&line) {
                        let to = self.copy(at, g.cluster())?;
                        self.image.write_state().tables.set(&*self.image.storage, index, to)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// An entry that leads nowhere: the data are not there.
    fn forget(&mut self, index: u64, line: &str) -> Result<()> {
        if self.found.damage(line) {
            self.image.write_state().tables.set(&*self.image.storage, index, 0)?;
        }
        Ok(())
    }

    /// Copies a table or a cluster to the end of the file.
    fn copy(&self, at: u64, len: u64) -> Result<u64> {
        let mut bytes = vec![0; small(len)];
        self.image.storage.read_at(at, &mut bytes)?;
        let to = self.image.write_state().take(len)?;
        self.image.storage.write_at(to, &bytes)?;
        Ok(to)
    }

    /// What is in no use and takes space.
    fn leaks(&mut self, repair: Repair) -> Result<()> {
        let mut all = std::mem::take(&mut self.plain);
        for (start, end) in complement(&self.packed) {
            all.take_all(start, end);
        }
        let cluster = self.image.read_state().geometry.cluster();
        let give = repair != Repair::Nothing && self.found.report.corruptions == 0;
        let mut leaked = 0;
        // L1 of an empty image, and the last stream, may end anywhere in a cluster.
        let end = round_up(self.end, cluster);
        if self.len > end {
            leaked += (self.len - end).div_ceil(cluster);
        }
        for (start, end) in all.gaps(self.end.div_ceil(SECTOR)) {
            let (start, end) = (round_up(start * SECTOR, HOLE), round_down(end * SECTOR, HOLE));
            if start >= end {
                continue;
            }
            let taken = self.taken(start, end)?;
            if give && taken > 0 {
                self.image.storage.write_zeroes(start, end - start, ZeroMode::MayUnmap)?;
                let left = self.taken(start, end)?;
                self.found.report.leaks += left.div_ceil(cluster);
                self.found.report.leaks_fixed += (taken - left).div_ceil(cluster);
            } else {
                leaked += taken.div_ceil(cluster);
            }
        }
        if leaked == 0 && self.found.report.leaks_fixed == 0 {
            return Ok(());
        }
        if !give {
            self.found.report.leaks += leaked;
            self.found.note(&format!("Leaked clusters: {leaked}"));
            return Ok(());
        }
        self.found.report.leaks_fixed += leaked;
        self.found.note(&format!("Repairing leaked clusters: {}", self.found.report.leaks_fixed));
        if self.len > end {
            self.image.storage.set_len(end, Preallocation::Off)?;
            self.image.write_state().next = end;
        }
        self.image.storage.flush()
    }

    /// Bytes of a range that take space.
    fn taken(&self, start: u64, end: u64) -> Result<u64> {
        let (mut at, mut bytes) = (start, 0);
        while at < end {
            let run = self.image.storage.status(at, end - at)?;
            if run.len == 0 {
                return Err(Error::errno(libc::EIO).at_path(self.image.storage.name()));
            }
            bytes += if run.kind == HostKind::Data { run.len } else { 0 };
            at += run.len;
        }
        Ok(bytes)
    }
}

/// Runs of units that are in use.
fn complement(used: &Used) -> Vec<(u64, u64)> {
    let mut runs = Vec::new();
    let mut at = 0;
    for (start, end) in used.gaps(used.high) {
        if start > at {
            runs.push((at, start));
        }
        at = end;
    }
    if at < used.high {
        runs.push((at, used.high));
    }
    runs
}
