//! Internal snapshots: taking, applying, deleting, showing.
//!
//! A snapshot is a copy of the L1 table; everything it reaches gets one more reference.
//!
//! # Order of writes
//!
//! Only the header's single write makes a snapshot appear, vanish, or become the disk. Before it, counts
//! have risen and copied flags are gone; after it, counts fall and flags come back. So at any moment the
//! counts on disk are at least what the visible tables need, and a crash costs leaks. Between counts and
//! flags the two may disagree, harmlessly; version 3 images carry the dirty bit meanwhile, so that the
//! next writer has them set right, and `check -r leaks` does it too.

use std::time::SystemTime;

use super::image::Qcow2Image;
use super::layout::{COPIED, MAX_L1_BYTES, MAX_SNAPSHOTS, autoclear, ext, incompatible};
use super::open::read_table;
use super::snapshot_refs::{Dropped, Sign};
use super::snapshot_table::{Damage, Snapshot, SnapshotTable, TablePlace, encode};
use super::tables::Tables;
use crate::format::{SnapshotInfo, SnapshotSelector, SnapshotStore};
use crate::num::{len_u64, small};
use crate::{Error, ErrorKind, Result};

/// Longest name that other programs show.
const MAX_NAME: usize = 255;

/// Where an L1 table is put.
struct PlacedL1 {
    at: u64,
    entries: u32,
}

fn not_found(message: &str) -> Error {
    Error::new(ErrorKind::NotFound, message)
}

/// By id, else by name.
fn find(list: &[Snapshot], wanted: &str) -> Option<usize> {
    list.iter()
        .position(|s| s.id_text() == wanted)
        .or_else(|| list.iter().position(|s| s.name_text() == wanted))
}

impl Qcow2Image {
    pub(super) fn read_snapshots(&self, tables: &Tables) -> Result<SnapshotTable> {
        let h = &tables.header;
        let place =
            TablePlace { offset: h.snapshots_offset, entries: h.nb_snapshots, disk_size: h.size };
        SnapshotTable::read(&*self.file, place, Damage::Refuse)
    }

    /// A snapshot's L1 table, its place checked.
    pub(super) fn read_snapshot_l1(&self, s: &Snapshot) -> Result<Vec<u64>> {
        let bytes = u64::from(s.l1_size) * 8;
        if bytes > MAX_L1_BYTES {
            return Err(Error::new(ErrorKind::TooLarge, "Snapshot L1 table too large")
                .at_offset(s.l1_offset));
        }
        let file_len = self.file.len()?;
        if !s.l1_offset.is_multiple_of(self.geometry.cluster())
            || s.l1_offset.saturating_add(bytes) > file_len.saturating_add(self.geometry.cluster())
        {
            return Err(Error::corrupt("Snapshot L1 table offset invalid").at_offset(s.l1_offset));
        }
        read_table(&*self.file, s.l1_offset, u64::from(s.l1_size))
            .map_err(|e| e.context("Failed to read l1 table for snapshot"))
    }

    /// Shows an internal snapshot instead of the present state.
    pub(super) fn show_snapshot(&self, wanted: &SnapshotSelector) -> Result<()> {
        let mut tables = self.write_tables();
        let list = self.read_snapshots(&tables)?.list;
        let index = match wanted {
            SnapshotSelector::IdOrName(text) => find(&list, text),
            SnapshotSelector::Exact { id: None, name: None } => None,
            SnapshotSelector::Exact { id, name } => list.iter().position(|s| {
                id.as_ref().is_none_or(|id| *id == s.id_text())
                    && name.as_ref().is_none_or(|name| *name == s.name_text())
            }),
        };
        let Some(s) = index.and_then(|i| list.get(i)) else {
            return Err(not_found("Can't find snapshot"));
        };
        tables.l1 = self.read_snapshot_l1(s)?;
        tables.l2.forget_clean();
        Ok(())
    }

    /// Opens the window in which counts and flags may disagree: the dirty bit is part of the next header
    /// write.
    fn raise_dirty(tables: &mut Tables) {
        if tables.header.version >= 3 {
            tables.header.incompatible |= incompatible::DIRTY;
        }
    }

    /// Closes it, unless lazy counts keep the bit for themselves until the image is closed.
    fn lower_dirty(tables: &mut Tables) {
        if !tables.is_lazy() {
            tables.header.incompatible &= !incompatible::DIRTY;
        }
    }

    fn write_header(&self, tables: &Tables) -> Result<()> {
        tables.header.write(&*self.file)?;
        self.barrier()
    }

    fn changeable(&self, tables: &mut Tables) -> Result<()> {
        self.check_usable(tables)?;
        if self.geometry.external {
            return Err(Error::errno(libc::ENOTSUP));
        }
        self.settle(tables)
    }

    /// Stores bytes in clusters of their own; 0 for no bytes. Counts are in memory only.
    fn place_bytes(&self, tables: &mut Tables, bytes: &[u8]) -> Result<u64> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let n = len_u64(bytes.len()).div_ceil(self.geometry.cluster());
        let (at, _) = tables.refs.allocate(&*self.file, n, n)?;
        let mut whole = bytes.to_vec();
        whole.resize(small(n * self.geometry.cluster()), 0);
        if let Err(e) = self.file.write_at(at, &whole) {
            tables.refs.free_later(at, n * self.geometry.cluster());
            return Err(e);
        }
        Ok(at)
    }

    fn place_l1(&self, tables: &mut Tables, l1: &[u64]) -> Result<PlacedL1> {
        let bytes: Vec<u8> = l1.iter().flat_map(|e| e.to_be_bytes()).collect();
        let at = self.place_bytes(tables, &bytes)?;
        let entries = u32::try_from(l1.len()).map_err(|_| Error::errno(libc::EFBIG))?;
        Ok(PlacedL1 { at, entries })
    }

    /// Gives a snapshot table a new place and links it; the old one's clusters become free.
    pub(super) fn replace_snapshot_table(
        &self,
        tables: &mut Tables,
        list: &[Snapshot],
        old_bytes: u64,
    ) -> Result<()> {
        let bytes = encode(list)?;
        let at = self.place_bytes(tables, &bytes)?;
        self.settle(tables)?;
        let old = tables.header.snapshots_offset;
        tables.header.snapshots_offset = at;
        tables.header.nb_snapshots =
            u32::try_from(list.len()).map_err(|_| Error::errno(libc::EFBIG))?;
        self.write_header(tables)?;
        if old_bytes > 0 {
            tables.refs.free_later(old, old_bytes);
        }
        self.settle(tables)
    }

    fn create_snapshot(&self, name: &str, at: SystemTime) -> Result<()> {
        let mut tables = self.write_tables();
        let tables = &mut *tables;
        self.changeable(tables)?;
        let mut table = self.read_snapshots(tables)?;
        if table.list.len() >= small(u64::from(MAX_SNAPSHOTS)) {
            return Err(Error::errno(libc::EFBIG));
        }
        let reach = self.reach(tables, &tables.l1)?;
        self.verify_counts(tables, &reach.counts, Sign::Add)?;
        let mut l1 = tables.l1.clone();
        for entry in &mut l1 {
            *entry &= !COPIED;
        }
        let copy = self.place_l1(tables, &l1)?;
        let date = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let mut name = name.as_bytes().to_vec();
        name.truncate(MAX_NAME);
        table.list.push(Snapshot {
            l1_offset: copy.at,
            l1_size: copy.entries,
            id: new_id(&table.list),
            name,
            date_sec: u32::try_from(date.as_secs()).unwrap_or(u32::MAX),
            date_nsec: date.subsec_nanos(),
            vm_clock_nsec: 0,
            vm_state_size: 0,
            disk_size: tables.header.size,
            icount: Some(0),
            extra_size: 24,
            unknown_extra: Vec::new(),
        });
        let placed = encode(&table.list).and_then(|bytes| self.place_bytes(tables, &bytes));
        let table_at = match placed {
            Ok(at) => at,
            Err(e) => {
                if copy.entries > 0 {
                    tables.refs.free_later(copy.at, u64::from(copy.entries) * 8);
                }
                return Err(e);
            }
        };
        // Everything that needs room is on disk; from here on tables are overwritten in place.
        self.settle(tables)?;
        Self::raise_dirty(tables);
        self.write_header(tables)?;
        self.write_counts(tables, &reach.counts, Sign::Add)?;
        self.barrier()?;
        self.clear_copied(&reach.tables)?;
        tables.l2.forget_clean();
        tables.l1 = l1;
        self.write_active_l1(tables)?;
        self.barrier()?;
        let old = tables.header.snapshots_offset;
        tables.header.snapshots_offset = table_at;
        tables.header.nb_snapshots += 1;
        Self::lower_dirty(tables);
        self.write_header(tables)?;
        if table.bytes > 0 {
            tables.refs.free_later(old, table.bytes);
        }
        tables.compressed_end = 0;
        self.settle(tables)
    }

    fn write_active_l1(&self, tables: &mut Tables) -> Result<()> {
        let bytes: Vec<u8> = tables.l1.iter().flat_map(|e| e.to_be_bytes()).collect();
        tables.l1_dirty = None;
        if bytes.is_empty() {
            return Ok(());
        }
        self.file.write_at(tables.header.l1_offset, &bytes)
    }

    /// Gives the space of freed clusters back to the file system and forgets what memory knew of them.
    fn forget_freed(&self, tables: &mut Tables, dropped: &Dropped) -> Result<()> {
        let cluster = self.geometry.cluster();
        tables.l2.forget_clean();
        tables.compressed_end = 0;
        for &(first, n) in &dropped.freed {
            self.file.discard(first * cluster, n * cluster)?;
        }
        Ok(())
    }

    fn delete_snapshot(&self, wanted: &str) -> Result<()> {
        let mut tables = self.write_tables();
        let tables = &mut *tables;
        self.changeable(tables)?;
        let mut table = self.read_snapshots(tables)?;
        let index =
            find(&table.list, wanted).ok_or_else(|| not_found("Can't find the snapshot"))?;
        let gone = table.list.remove(index);
        let l1 = self.read_snapshot_l1(&gone)?;
        let mut reach = self.reach(tables, &l1)?;
        for (at, len) in [
            (gone.l1_offset, u64::from(gone.l1_size) * 8),
            (tables.header.snapshots_offset, table.bytes),
        ] {
            let first = at >> self.geometry.cluster_bits;
            if len > 0 {
                let last = (at + len - 1) >> self.geometry.cluster_bits;
                reach.counts.grow(last + 1);
                reach.counts.add(first, last - first + 1, 1, |_, _| ());
            }
        }
        self.verify_counts(tables, &reach.counts, Sign::Drop)?;
        // Also what the flags are set in must be readable before anything changes.
        let active = self.reach(tables, &tables.l1)?.tables;
        let bytes = encode(&table.list)?;
        let at = self.place_bytes(tables, &bytes)?;
        self.settle(tables)?;
        tables.header.snapshots_offset = at;
        tables.header.nb_snapshots -= 1;
        Self::raise_dirty(tables);
        self.write_header(tables)?;
        let dropped = self.write_counts(tables, &reach.counts, Sign::Drop)?;
        self.barrier()?;
        self.set_copied(&active, &dropped.single)?;
        let mut l1 = std::mem::take(&mut tables.l1);
        let changed = self.set_copied_l1(&mut l1, &dropped.single);
        tables.l1 = l1;
        if changed {
            self.write_active_l1(tables)?;
        }
        self.barrier()?;
        Self::lower_dirty(tables);
        self.write_header(tables)?;
        self.forget_freed(tables, &dropped)
    }

    fn apply_snapshot(&self, wanted: &str) -> Result<()> {
        let mut tables = self.write_tables();
        let tables = &mut *tables;
        self.check_usable(tables)?;
        if tables.header.autoclear & autoclear::BITMAPS != 0
            && tables.header.extension(ext::BITMAPS).is_some()
        {
            return Err(Error::invalid("Device has active dirty bitmaps")
                .hint("the bitmaps would not describe the disk any more: remove them first"));
        }
        let failed = |e: Error| e.context("Failed to load snapshot");
        self.changeable(tables).map_err(failed)?;
        let table = self.read_snapshots(tables)?;
        let index = find(&table.list, wanted).ok_or_else(|| failed(Error::errno(libc::ENOENT)))?;
        self.switch_to(tables, &table.list[index]).map_err(failed)
    }

    /// Makes a snapshot's L1 table the active one.
    fn switch_to(&self, tables: &mut Tables, s: &Snapshot) -> Result<()> {
        if s.disk_size != tables.header.size && tables.header.version < 3 {
            return Err(Error::unsupported("Can't resize a v2 image which has snapshots"));
        }
        if !s.disk_size.is_multiple_of(512) {
            return Err(Error::corrupt(format!(
                "the snapshot's disk size {} is not a multiple of 512",
                s.disk_size
            )));
        }
        let mut l1 = self.read_snapshot_l1(s)?;
        let needed = self.geometry.l1_entries(s.disk_size);
        if s.disk_size > i64::MAX.unsigned_abs() || needed > MAX_L1_BYTES / 8 {
            return Err(Error::errno(libc::EFBIG)
                .context(format!("the snapshot's disk size {} is too large", s.disk_size)));
        }
        l1.resize(l1.len().max(small(needed)).max(tables.l1.len()), 0);
        for entry in &mut l1 {
            *entry &= !COPIED;
        }
        let new = self.reach(tables, &l1)?;
        let mut old = self.reach(tables, &tables.l1)?;
        let old_place = (tables.header.l1_offset, u64::from(tables.header.l1_size) * 8);
        if old_place.1 > 0 {
            let first = old_place.0 >> self.geometry.cluster_bits;
            let last = (old_place.0 + old_place.1 - 1) >> self.geometry.cluster_bits;
            old.counts.grow(last + 1);
            old.counts.add(first, last - first + 1, 1, |_, _| ());
        }
        self.verify_counts(tables, &new.counts, Sign::Add)?;
        self.verify_counts(tables, &old.counts, Sign::Drop)?;
        let place = self.place_l1(tables, &l1)?;
        self.settle(tables)?;
        self.write_counts(tables, &new.counts, Sign::Add)?;
        self.barrier()?;
        // Their clusters are shared from now on, whatever the flags said before.
        self.clear_copied(&new.tables)?;
        self.barrier()?;
        tables.header.l1_offset = place.at;
        tables.header.l1_size = place.entries;
        tables.header.size = s.disk_size;
        self.write_header(tables)?;
        tables.l1 = l1;
        tables.l1_dirty = None;
        tables.l2.forget_clean();
        self.size.store(s.disk_size, std::sync::atomic::Ordering::Release);
        self.decoded.forget_all();
        let dropped = self.write_counts(tables, &old.counts, Sign::Drop)?;
        self.barrier()?;
        self.forget_freed(tables, &dropped)
    }
}

/// One more than the largest number among the ids.
fn new_id(list: &[Snapshot]) -> Vec<u8> {
    let number = |s: &Snapshot| {
        let digits: Vec<u8> =
            s.id.iter()
                .copied()
                .skip_while(u8::is_ascii_whitespace)
                .take_while(u8::is_ascii_digit)
                .collect();
        String::from_utf8(digits).ok().and_then(|d| d.parse::<u64>().ok()).unwrap_or(0)
    };
    let largest = list.iter().map(number).max().unwrap_or(0);
    largest.saturating_add(1).to_string().into_bytes()
}

impl SnapshotStore for Qcow2Image {
    fn list(&self) -> Result<Vec<SnapshotInfo>> {
        let tables = self.read_tables();
        let table = self.read_snapshots(&tables)?;
        Ok(table
            .list
            .iter()
            .map(|s| SnapshotInfo {
                id: s.id_text(),
                name: s.name_text(),
                vm_state_size: s.vm_state_size,
                date_sec: s.date_sec,
                date_nsec: s.date_nsec,
                vm_clock_nsec: s.vm_clock_nsec,
                icount: s.icount,
                disk_size: s.disk_size,
            })
            .collect())
    }

    fn create(&self, name: &str, at: SystemTime) -> Result<()> {
        self.create_snapshot(name, at)
    }

    fn apply(&self, id_or_name: &str) -> Result<()> {
        self.apply_snapshot(id_or_name)
    }

    fn delete(&self, id_or_name: &str) -> Result<()> {
        self.delete_snapshot(id_or_name)
    }
}
