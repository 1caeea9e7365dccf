//! Counting references: what L1 and L2 tables and bitmaps point to.

use super::check::Check;
use super::layout::{COMPRESSED, COPIED, L1_RESERVED, OFFSET_MASK, ZERO, autoclear, ext};
use super::tables::L2Entry;
use crate::format::check_cancelled;
use crate::num::{len_u64, small};
use crate::{Error, Result};

/// Bits of a standard L2 entry that must be zero: 1-8 and 56-61.
const L2_MUST_BE_ZERO: u64 = 0x3f00_0000_0000_01fe;
/// Low half of a subcluster bitmap: allocated.
const ALL_SUBCLUSTERS: u64 = 0xffff_ffff;

/// Whose L1 table is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    Active,
    Snapshot,
}

/// How often an L2 table is reached.
#[derive(Clone, Copy, Debug)]
pub(super) struct L2Use {
    pub(super) at: u64,
    pub(super) times: u32,
    /// Of these, from the active L1 table.
    pub(super) active: u32,
}

/// All L2 tables, by host offset.
#[derive(Debug, Default)]
pub(super) struct L2Uses {
    pub(super) list: Vec<L2Use>,
}

impl L2Uses {
    /// Adds the tables at these offsets.
    pub(super) fn add(&mut self, mut offsets: Vec<u64>, owner: Owner) {
        offsets.sort_unstable();
        let mut merged: Vec<L2Use> = Vec::with_capacity(self.list.len().max(offsets.len()));
        let mut old = self.list.iter().copied().peekable();
        let mut at = 0;
        while at < offsets.len() {
            let offset = offsets[at];
            let same = offsets[at..].iter().take_while(|&&o| o == offset).count();
            while let Some(u) = old.next_if(|u| u.at < offset) {
                merged.push(u);
            }
            let mut u = old.next_if(|u| u.at == offset).unwrap_or(L2Use {
                at: offset,
                times: 0,
                active: 0,
            });
            let n = u32::try_from(same).unwrap_or(u32::MAX);
            u.times = u.times.saturating_add(n);
            if owner == Owner::Active {
                u.active = u.active.saturating_add(n);
            }
            merged.push(u);
            at += same;
        }
        merged.extend(old);
        self.list = merged;
    }
}

/// Numbers of one L2 table, for the statistics.
#[derive(Clone, Copy, Debug, Default)]
struct Fragments {
    allocated: u64,
    compressed: u64,
    fragmented: u64,
    /// Where the next cluster would follow seamlessly, 0 for nowhere.
    next: u64,
}

impl Fragments {
    fn data(&mut self, at: u64, clusters: u64, cluster: u64) {
        self.allocated += clusters;
        self.fragmented += u64::from(self.next != 0 && at != self.next);
        self.next = at.wrapping_add(clusters * cluster);
    }
}

/// Big-endian words of a table.
pub(super) fn words(bytes: &[u8], to: &mut Vec<u64>) {
    to.clear();
    to.extend(
        bytes
            .chunks_exact(8)
            .map(|c| u64::from_be_bytes([c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]])),
    );
}

impl Check<'_> {
    /// Counts `times` references to each cluster that `offset..offset + size` touches.
    pub(super) fn count_region(&mut self, offset: u64, size: u64, times: u64) {
        if size == 0 {
            return;
        }
        let cluster = self.tables.geometry.cluster();
        let end = offset.saturating_add(size);
        // The last cluster of a file may be short.
        if end >= self.file_len.saturating_add(cluster) {
            self.corrupt(
                times,
                &format!(
                    "ERROR: counting reference for region exceeding the end of the file by one cluster or more: offset {offset:#x} size {size:#x}"
                ),
            );
            return;
        }
        let first = offset / cluster;
        let n = (end - 1) / cluster - first + 1;
        self.counts.grow(first + n);
        let (watcher, report) = (self.watcher, &mut self.report);
        self.counts.add(first, n, times, |at, excess| {
            for _ in 0..excess.min(super::check::MAX_REPEATS) {
                watcher.note(&format!("ERROR: overflow cluster offset={:#x}", at * cluster));
                watcher.note("Use qemu-img amend to increase the refcount entry width or qemu-img convert to create a clean copy if the image cannot be opened for writing");
            }
            report.corruptions += excess;
        });
    }

    /// Checks an L1 table's entries and notes the L2 tables that it reaches.
    pub(super) fn count_l1(&mut self, l1: &[u64], owner: Owner, uses: &mut L2Uses) {
        let cluster = self.tables.geometry.cluster();
        let mut reached = Vec::new();
        for &entry in l1.iter().filter(|&&e| e != 0) {
            if entry & L1_RESERVED != 0 {
                self.corrupt(1, &format!("ERROR found L1 entry with reserved bits set: {entry:x}"));
            }
            let at = entry & OFFSET_MASK;
            if !at.is_multiple_of(cluster) {
                self.corrupt(
                    1,
                    &format!(
                        "ERROR l2_offset={at:x}: Table is not cluster aligned; L1 entry corrupted"
                    ),
                );
            }
            self.count_region(at, cluster, 1);
            reached.push(at);
        }
        uses.add(reached, owner);
    }

    /// Counts what the L2 tables refer to, each table once, in the order of the file.
    pub(super) fn count_l2_tables(&mut self, uses: &L2Uses) -> Result<()> {
        let mut bytes = vec![0u8; small(self.tables.geometry.cluster())];
        let mut entries = Vec::new();
        for &table in &uses.list {
            // Behind the end of the file there are only zeroes, and one message was given.
            if table.at >= self.file_len {
                continue;
            }
            check_cancelled(self.watcher)?;
            if let Err(e) = self.file.read_at(table.at, &mut bytes) {
                return Err(self.failed("ERROR: I/O error in check_refcounts_l2", e));
            }
            words(&bytes, &mut entries);
            let found = if self.tables.geometry.extended {
                self.count_entries(&entries, table)?
            } else {
                self.count_plain(&entries, table)?
            };
            let active = u64::from(table.active);
            let add = |to: &mut Option<u64>, n: u64| *to = to.map(|v| v + n * active);
            add(&mut self.report.allocated_clusters, found.allocated);
            add(&mut self.report.compressed_clusters, found.compressed);
            add(&mut self.report.fragmented_clusters, found.fragmented);
        }
        Ok(())
    }

    /// Plain tables: runs of ordinary clusters in one go.
    fn count_plain(&mut self, entries: &[u64], table: L2Use) -> Result<Fragments> {
        let cluster = self.tables.geometry.cluster();
        let external = self.tables.geometry.external;
        let ordinary = COPIED | (OFFSET_MASK & !(cluster - 1));
        let times = u64::from(table.times);
        let mut found = Fragments::default();
        let mut i = 0;
        while i < entries.len() {
            let entry = entries[i];
            if entry == 0 {
                i += 1;
                continue;
            }
            let at = entry & OFFSET_MASK;
            if entry & !ordinary != 0 || at == 0 {
                self.count_entry(L2Entry { descriptor: entry, bitmap: 0 }, i, table, &mut found)?;
                i += 1;
                continue;
            }
            let mut next = entry;
            let start = i;
            i += 1;
            while i < entries.len() && entries[i] == next.wrapping_add(cluster) {
                next = entries[i];
                i += 1;
            }
            // A run past the largest offset has run into other bits: count it one by one.
            let run = len_u64(i - start);
            let end = at.saturating_add(run * cluster);
            if next & !ordinary != 0 || (!external && end >= self.file_len.saturating_add(cluster))
            {
                for (j, &descriptor) in entries.iter().enumerate().take(i).skip(start) {
                    self.count_entry(L2Entry { descriptor, bitmap: 0 }, j, table, &mut found)?;
                }
                continue;
            }
            found.data(at, run, cluster);
            if !external {
                self.count_region(at, run * cluster, times);
            }
        }
        Ok(found)
    }

    /// Extended tables, pair by pair.
    fn count_entries(&mut self, words: &[u64], table: L2Use) -> Result<Fragments> {
        let mut found = Fragments::default();
        for (i, pair) in words.chunks_exact(2).enumerate() {
            if pair[0] | pair[1] != 0 {
                let entry = L2Entry { descriptor: pair[0], bitmap: pair[1] };
                self.count_entry(entry, i, table, &mut found)?;
            }
        }
        Ok(found)
    }

    /// One entry, whatever it is.
    fn count_entry(
        &mut self,
        entry: L2Entry,
        index: usize,
        table: L2Use,
        found: &mut Fragments,
    ) -> Result<()> {
        let g = self.tables.geometry;
        let times = u64::from(table.times);
        let L2Entry { descriptor, bitmap } = entry;
        if descriptor & COMPRESSED != 0 {
            return self.count_compressed(entry, index, times, found);
        }
        if descriptor & L2_MUST_BE_ZERO != 0 {
            self.corrupt(
                times,
                &format!("ERROR found l2 entry with reserved bits set: {descriptor:x}"),
            );
        }
        let at = descriptor & OFFSET_MASK;
        let zero = !g.extended && descriptor & ZERO != 0;
        if at == 0 && (zero || !(g.external && descriptor & COPIED != 0)) {
            if !zero && bitmap & ALL_SUBCLUSTERS != 0 {
                self.corrupt(
                    times,
                    "ERROR: Unallocated cluster has non-zero subcluster allocation map",
                );
            }
            return Ok(());
        }
        if bitmap >> 32 & bitmap != 0 {
            self.corrupt(
                times,
                &format!(
                    "ERROR offset={at:x}: Allocated cluster has corrupted subcluster allocation bitmap"
                ),
            );
        }
        if !at.is_multiple_of(g.cluster()) {
            let contains_data = if g.extended { bitmap & ALL_SUBCLUSTERS != 0 } else { !zero };
            if contains_data {
                self.corrupt(
                    times,
                    &format!(
                        "ERROR offset={at:x}: Data cluster is not properly aligned; L2 entry corrupted."
                    ),
                );
            } else {
                self.corrupt(
                    times,
                    &format!(
                        "{} offset={at:x}: Preallocated cluster is not properly aligned; L2 entry corrupted.",
                        self.verb()
                    ),
                );
                if self.fixing() {
                    self.make_zero(entry, index, table)?;
                    self.report.corruptions -= times;
                    self.report.corruptions_fixed += 1;
                    return Ok(());
                }
            }
        }
        found.data(at, 1, g.cluster());
        if !g.external {
            self.count_region(at, g.cluster(), times);
        }
        Ok(())
    }

    fn count_compressed(
        &mut self,
        entry: L2Entry,
        index: usize,
        times: u64,
        found: &mut Fragments,
    ) -> Result<()> {
        let g = self.tables.geometry;
        let mut descriptor = entry.descriptor;
        if descriptor & COPIED != 0 {
            let (at, _) = g.compressed_place(descriptor);
            self.corrupt(
                times,
                &format!(
                    "ERROR: coffset={at:#x}: copied flag must never be set for compressed clusters"
                ),
            );
            descriptor &= !COPIED;
        }
        if g.external {
            self.corrupt(
                times,
                &format!("ERROR compressed cluster {index} with data file, entry={descriptor:#x}"),
            );
            return Ok(());
        }
        if entry.bitmap != 0 {
            self.corrupt(
                times,
                &format!(
                    "ERROR compressed cluster {index} with non-zero subcluster allocation bitmap, entry={descriptor:#x}"
                ),
            );
            return Ok(());
        }
        let (at, len) = g.compressed_place(descriptor);
        self.count_region(at, len, times);
        found.allocated += 1;
        found.compressed += 1;
        found.fragmented += 1;
        Ok(())
    }

    /// Repairs an entry that promises zeroes and names an impossible place: drops the place.
    fn make_zero(&mut self, entry: L2Entry, index: usize, table: L2Use) -> Result<()> {
        let g = self.tables.geometry;
        let at = table.at + (len_u64(index) << g.entry_bits);
        if self.overlaps_metadata(table.at, g.cluster()) {
            let e = Error::corrupt(format!("L2 table at {:#x} overlaps other metadata", table.at))
                .at_offset(table.at);
            return Err(self.failed("ERROR: Overlap check failed", e));
        }
        let mut bytes = Vec::new();
        if g.extended {
            let zero = (entry.bitmap | entry.bitmap << 32) & !ALL_SUBCLUSTERS;
            bytes.extend_from_slice(&0u64.to_be_bytes());
            bytes.extend_from_slice(&zero.to_be_bytes());
        } else {
            bytes.extend_from_slice(&ZERO.to_be_bytes());
        }
        let written = self.file.write_at(at, &bytes).and_then(|()| self.file.flush());
        written.map_err(|e| {
            let line = format!("ERROR: Failed to overwrite L2 table entry: {}", e.report());
            self.failed(&line, e)
        })
    }

    /// Counts bitmaps: directory, tables, data. Without the autoclear bit they mean nothing.
    pub(super) fn count_bitmaps(&mut self) -> Result<()> {
        let h = &self.tables.header;
        if h.autoclear & autoclear::BITMAPS == 0 || h.extension(ext::BITMAPS).is_none() {
            return Ok(());
        }
        let place = match super::bitmap_dir::Place::of(h) {
            Ok(Some(place)) => place,
            Ok(None) => return Ok(()),
            Err(e) => {
                self.report.corruptions += 1;
                return Err(e);
            }
        };
        let disk = h.size;
        self.count_region(place.offset, place.size, 1);
        let cluster = self.tables.geometry.cluster();
        let list = match super::bitmap_dir::read(self.file, place, cluster, disk) {
            Ok(list) => list,
            Err(e) => {
                self.note(&format!("ERROR {}", e.report()));
                self.report.corruptions += 1;
                return Err(e);
            }
        };
        for bitmap in &list {
            let entries = u64::from(bitmap.table_entries);
            self.count_region(bitmap.table_offset, entries * 8, 1);
            let inside = self.file_len.saturating_sub(bitmap.table_offset).div_ceil(8).min(entries);
            let table = match super::open::read_table(self.file, bitmap.table_offset, inside) {
                Ok(table) => table,
                Err(e) => {
                    self.report.corruptions += 1;
                    return Err(e);
                }
            };
            for entry in table {
                match super::bitmap_dir::table_entry(entry, cluster) {
                    Err(_) => self.report.corruptions += 1,
                    Ok(Some(at)) => self.count_region(at, cluster, 1),
                    Ok(None) => {}
                }
            }
        }
        Ok(())
    }
}
