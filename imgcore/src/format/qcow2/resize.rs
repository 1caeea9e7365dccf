//! Changing the size of the disk, and preallocation.

use std::sync::atomic::Ordering;

use super::image::Qcow2Image;
use super::layout::{COPIED, MAX_L1_BYTES, OFFSET_MASK, ZERO};
use super::tables::{L2Entry, Tables};
use crate::format::Resize;
use crate::num::{len_u64, round_down, round_up, small};
use crate::storage::Preallocation;
use crate::{Error, Result};

/// Clusters mapped per step of preallocation.
const STEP_CLUSTERS: u64 = 4096;

impl Qcow2Image {
    /// See [`crate::format::Image::resize`].
    pub(super) fn resize_disk(&self, request: Resize) -> Result<()> {
        let Resize { size, mut how, hide_below } = request;
        if self.geometry.external_raw && how == Preallocation::Off {
            how = Preallocation::Metadata;
        }
        if !size.is_multiple_of(512) {
            return Err(Error::invalid("The new size must be a multiple of 512"));
        }
        let old = self.disk_size();
        {
            let mut tables = self.write_tables();
            self.check_usable(&tables)?;
            if tables.header.nb_snapshots > 0 && tables.header.version < 3 {
                return Err(Error::unsupported("Can't resize a v2 image which has snapshots"));
            }
            self.begin_change(&mut tables)?;
            if size < old {
                self.shrink(&mut tables, size)?;
            } else {
                self.grow_l1(&mut tables, self.geometry.l1_entries(size))?;
            }
        }
        if size > old {
            if let Some(data) = &self.data_file {
                data.set_len(size, Preallocation::Off)?;
            }
            // New clusters are mapped while they are still beyond the end of the disk.
            if how != Preallocation::Off {
                self.preallocate(old, size, how)?;
            }
            if hide_below {
                self.hide_new_area(old, size)?;
            }
        }
        let mut tables = self.write_tables();
        self.flush_tables(&mut tables)?;
        tables.header.size = size;
        tables.header.write(&*self.file)?;
        self.barrier()?;
        self.size.store(size, Ordering::Release);
        if size < old {
            self.drop_references(&mut tables)?;
            if let Some(data) = &self.data_file {
                data.set_len(size, Preallocation::Off)?;
            } else {
                self.truncate_file(&mut tables)?;
            }
        }
        Ok(())
    }

    /// Marks the clusters of a new area as zero, so that a longer file below does not show.
    fn hide_new_area(&self, old: u64, size: u64) -> Result<()> {
        let cluster = self.geometry.cluster();
        let from = round_up(old, cluster);
        if from >= size {
            return Ok(());
        }
        if self.version < 3 {
            return Err(Error::unsupported(
                "growing a version 2 image over a longer backing file is not possible; amend it to compat=1.1",
            ));
        }
        self.zero_range(from, round_up(size, cluster) - from, crate::format::ZeroSpace::Keep)
    }

    /// Gives the L1 table room for `entries`.
    pub(super) fn grow_l1(&self, tables: &mut Tables, entries: u64) -> Result<()> {
        let old_len = len_u64(tables.l1.len());
        if entries <= old_len {
            return Ok(());
        }
        if entries > MAX_L1_BYTES / 8 {
            return Err(Error::errno(libc::EFBIG).context("Failed to grow the L1 table"));
        }
        let cluster = self.geometry.cluster();
        let have = (old_len * 8).div_ceil(cluster);
        let need = (entries * 8).div_ceil(cluster);
        // Entries behind the old end in the same clusters may hold anything: write the table whole.
        tables.l1.resize(small(entries), 0);
        if need <= have && tables.header.l1_offset != 0 {
            self.flush_tables(tables)?;
            self.write_whole_l1(tables, tables.header.l1_offset)?;
            self.barrier()?;
            tables.header.l1_size =
                u32::try_from(entries).map_err(|_| Error::errno(libc::EFBIG))?;
            tables.header.write(&*self.file)?;
            return self.barrier();
        }
        let (at, _) = match tables.refs.allocate(&*self.file, need, need) {
            Ok(place) => place,
            Err(e) => {
                tables.l1.truncate(small(old_len));
                return Err(e);
            }
        };
        let old_place = tables.header.l1_offset;
        self.flush_tables(tables)?;
        self.write_whole_l1(tables, at)?;
        self.barrier()?;
        tables.header.l1_offset = at;
        tables.header.l1_size = u32::try_from(entries).map_err(|_| Error::errno(libc::EFBIG))?;
        tables.header.write(&*self.file)?;
        self.barrier()?;
        if old_place != 0 && have > 0 {
            tables.refs.free_later(old_place, have * cluster);
        }
        self.drop_references(tables)
    }

    fn write_whole_l1(&self, tables: &Tables, at: u64) -> Result<()> {
        let mut bytes: Vec<u8> = tables.l1.iter().flat_map(|e| e.to_be_bytes()).collect();
        bytes.resize(small(round_up(len_u64(bytes.len()), self.geometry.cluster())), 0);
        self.file.write_at(at, &bytes)
    }

    /// Unmaps what lies beyond the new end.
    fn shrink(&self, tables: &mut Tables, size: u64) -> Result<()> {
        let g = self.geometry;
        let keep = small(g.l1_entries(size));
        let last = tables.l1.len();
        self.drop_l1_range(tables, keep, last)?;
        // The table that the new end cuts.
        let mut guest = round_up(size, g.cluster());
        let end = round_up(size, g.l2_span()).min(round_up(self.disk_size(), g.cluster()));
        while guest < end {
            let old = tables.entry(&*self.file, guest)?;
            if old != L2Entry::default() {
                self.own_l2_table(tables, guest)?;
                tables.set_entry(&*self.file, guest, L2Entry::default())?;
                self.decoded.forget(guest);
                self.queue_free(tables, old);
            }
            guest += g.cluster();
        }
        self.flush_tables(tables)
    }

    /// Cuts unused clusters off the end of the image file.
    pub(super) fn truncate_file(&self, tables: &mut Tables) -> Result<()> {
        let cluster = self.geometry.cluster();
        let len = self.file.len()?;
        let mut end = len.div_ceil(cluster);
        while end > 0 && tables.refs.get(&*self.file, end - 1)? == 0 {
            end -= 1;
        }
        if end * cluster < len && !self.file.limits().block_device {
            self.file.set_len(end * cluster, Preallocation::Off)?;
            tables.file_len = end * cluster;
        }
        tables.compressed_end = 0;
        Ok(())
    }

    /// Maps all of `from..to` (cluster-rounded) that has no place yet, in order, and reserves the space as
    /// `how` says.
    pub(super) fn preallocate(&self, from: u64, to: u64, how: Preallocation) -> Result<()> {
        let cluster = self.geometry.cluster();
        let mut at = round_down(from, cluster);
        let mut data_end = 0;
        while at < to {
            let mut tables = self.write_tables();
            let tables = &mut *tables;
            self.begin_change(tables)?;
            self.own_l2_table(tables, at)?;
            let table_end = round_down(at, self.geometry.l2_span()) + self.geometry.l2_span();
            let stop = (at + STEP_CLUSTERS * cluster).min(round_up(to, cluster)).min(table_end);
            let entry = tables.entry(&*self.file, at)?;
            if entry != L2Entry::default() {
                at += cluster;
                continue;
            }
            let wanted = (stop - at) / cluster;
            let (host, count) = if self.data_file.is_some() {
                (at, wanted)
            } else {
                tables.refs.allocate(&*self.file, wanted, 1)?
            };
            let mut mapped = 0;
            while mapped < count {
                let guest = at + mapped * cluster;
                if tables.entry(&*self.file, guest)? != L2Entry::default() {
                    break;
                }
                // Extended entries: a place, but nothing in it yet, so that a backing file shows through.
                let mut descriptor = (host + mapped * cluster) & OFFSET_MASK | COPIED;
                if self.crypt.is_some() && self.version >= 3 && !self.geometry.extended {
                    // What decrypts to noise is not shown.
                    descriptor |= ZERO;
                }
                tables.set_entry(&*self.file, guest, L2Entry { descriptor, bitmap: 0 })?;
                mapped += 1;
            }
            if mapped < count {
                tables.refs.free_later(host + mapped * cluster, (count - mapped) * cluster);
            }
            let end = host + mapped * cluster;
            if self.data_file.is_none() {
                self.reserve_space(host, end, how)?;
            }
            data_end = data_end.max(end);
            at += mapped * cluster;
        }
        match &self.data_file {
            Some(data) => {
                if matches!(how, Preallocation::Falloc | Preallocation::Full) {
                    let start = round_down(from, cluster);
                    crate::storage::reserve(&**data, start, to - start, how)?;
                }
                Ok(())
            }
            None if self.file.len()? < data_end => self.file.set_len(data_end, Preallocation::Off),
            None => Ok(()),
        }
    }

    fn reserve_space(&self, host: u64, end: u64, how: Preallocation) -> Result<()> {
        match how {
            Preallocation::Off | Preallocation::Metadata => Ok(()),
            _ => crate::storage::reserve(&*self.file, host, end - host, how),
        }
    }
}
