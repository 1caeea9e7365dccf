//! Changing mappings: granting places, linking them, zeroing, discarding.

use super::image::Qcow2Image;
use super::layout::{COPIED, OFFSET_MASK, ZERO};
use super::map::IMAGE;
use super::tables::{Cluster, L2Entry, Tables};
use crate::format::{Grant, ZeroSpace};
use crate::num::{GuestOffset, HostOffset, len_u64, round_down, round_up, small};
use crate::{Error, Result};

/// What a grant's token says about its place.
mod token {
    /// Newly allocated clusters.
    pub const NEW: u64 = 0;
    /// The place was reserved before (zero cluster with a place, unallocated subcluster).
    pub const RESERVED: u64 = 1;
    /// Compressed data; `state` holds their length.
    pub const COMPRESSED: u64 = 2;
}

/// All subclusters of an extended entry.
const ALL_SUBCLUSTERS: u64 = 0xffff_ffff;

impl Qcow2Image {
    /// Makes sure that the L2 table for a guest offset exists and is not shared with a snapshot.
    pub(super) fn own_l2_table(&self, tables: &mut Tables, guest: u64) -> Result<()> {
        let index = self.geometry.l1_index(guest);
        let old = match tables.l2_table(guest)? {
            Some((_, true)) => return Ok(()),
            Some((at, false)) => Some(at),
            None => None,
        };
        if index >= tables.l1.len() {
            return Err(Error::corrupt(format!("guest offset {guest:#x} is beyond the L1 table")));
        }
        let cluster = self.geometry.cluster();
        let mut bytes = vec![0u8; small(cluster)];
        if let Some(at) = old {
            // The shared table may have newer slices in memory than on disk.
            tables.check_inside(&*self.file, "L2 table", at, cluster)?;
            let slice = small(tables.l2.slice_len());
            for (i, part) in bytes.chunks_mut(slice).enumerate() {
                tables.l2.make_room(1);
                let (from, _) = tables.l2.load(&*self.file, at + len_u64(i * slice))?;
                part.copy_from_slice(from);
            }
        }
        let (at, _) = tables.refs.allocate(&*self.file, 1, 1)?;
        tables.l2.make_room(small(cluster / tables.l2.slice_len()));
        tables.l2.put_table(at, &bytes);
        tables.l1[index] = at | COPIED;
        tables.touch_l1(index);
        if let Some(old) = old {
            tables.refs.free_later(old, cluster);
        }
        Ok(())
    }

    /// See [`crate::format::Image::prepare_write`].
    pub(super) fn grant_clusters(&self, guest: u64, len: u64) -> Result<Grant> {
        if self.unreadable() {
            return Err(self.unreadable_error());
        }
        let mut tables = self.write_tables();
        let tables = &mut *tables;
        self.check_usable(tables)?;
        self.begin_change(tables)?;
        self.own_l2_table(tables, guest)?;
        let g = self.geometry;
        let cluster = g.cluster();
        let entry = tables.entry(&*self.file, guest)?;
        let start = round_down(guest, cluster);
        if let Some(grant) = self.reserved_grant(tables, entry, guest, len)? {
            return Ok(grant);
        }
        // How many clusters from here on need a new place.
        let end = round_up(guest + len, cluster).min(round_down(guest, g.l2_span()) + g.l2_span());
        let mut count = 1;
        while start + count * cluster < end {
            let next = tables.entry(&*self.file, start + count * cluster)?;
            if next.copied() && next.host().is_some() {
                break;
            }
            count += 1;
        }
        let (offset, count) = if self.data_file.is_some() {
            (start, count)
        } else {
            tables.refs.allocate(&*self.file, count, 1)?
        };
        let mut grant = Grant {
            at: GuestOffset(start),
            len: count * cluster,
            storage: self.guest_storage(),
            offset: HostOffset(offset),
            token: token::NEW,
            state: None,
        };
        if g.extended && count == 1 {
            self.narrow(&mut grant, entry, guest, len);
        }
        Ok(grant)
    }

    /// A place that is reserved already: only the mapping has to change.
    fn reserved_grant(
        &self,
        tables: &mut Tables,
        entry: L2Entry,
        guest: u64,
        len: u64,
    ) -> Result<Option<Grant>> {
        let g = self.geometry;
        if !entry.copied() || entry.is_compressed() {
            return Ok(None);
        }
        let unit = g.subcluster();
        let place = |entry: L2Entry, at: u64| {
            let sub =
                if g.extended { u32::try_from(at % g.cluster() / unit).unwrap_or(0) } else { 0 };
            match entry.kind(&g, sub) {
                Cluster::Zero(Some(host)) | Cluster::UnallocatedPlaced(host) => {
                    Some(host + at % g.cluster())
                }
                _ => None,
            }
        };
        let start = round_down(guest, unit);
        let Some(offset) = place(entry, start) else { return Ok(None) };
        let limit = (guest + len).min(round_down(guest, g.l2_span()) + g.l2_span());
        let mut end = start + unit;
        while end < limit {
            let next = tables.entry(&*self.file, end)?;
            if !next.copied()
                || next.is_compressed()
                || place(next, end) != Some(offset + (end - start))
            {
                break;
            }
            end += unit;
        }
        Ok(Some(Grant {
            at: GuestOffset(start),
            len: end - start,
            storage: self.guest_storage(),
            offset: HostOffset(offset),
            token: token::RESERVED,
            state: None,
        }))
    }

    /// With extended entries a new cluster needs only the subclusters that are written, unless others
    /// have data that must come along.
    fn narrow(&self, grant: &mut Grant, entry: L2Entry, guest: u64, len: u64) {
        let g = self.geometry;
        let nothing_stored = !entry.is_compressed() && entry.bitmap & ALL_SUBCLUSTERS == 0;
        if !nothing_stored {
            return;
        }
        let cluster_end = grant.at.0 + g.cluster();
        let start = round_down(guest, g.subcluster());
        let end = round_up((guest + len).min(cluster_end), g.subcluster());
        grant.offset = HostOffset(grant.offset.0 + (start - grant.at.0));
        grant.at = GuestOffset(start);
        grant.len = end - start;
    }

    /// See [`crate::format::Image::prepare_encoded`]. Compressed clusters follow each other without
    /// gaps while the host clusters do ("Compressed Clusters Descriptor").
    pub(super) fn grant_compressed(&self, guest: u64, len: u64) -> Result<Grant> {
        if self.unreadable() {
            return Err(self.unreadable_error());
        }
        let cluster = self.geometry.cluster();
        if len == 0 || len > cluster || self.data_file.is_some() {
            return Err(Error::errno(libc::ENOTSUP).at_offset(guest));
        }
        let mut tables = self.write_tables();
        let tables = &mut *tables;
        self.check_usable(tables)?;
        self.begin_change(tables)?;
        self.own_l2_table(tables, guest)?;
        let mut offset = tables.compressed_end;
        let free = round_up(offset, cluster) - offset;
        if offset != 0 && free > 0 {
            let count = tables.refs.get(&*self.file, offset >> self.geometry.cluster_bits)?;
            if count == super::refcount::max_count(tables.header.refcount_order) || count == 0 {
                offset = 0;
            }
        }
        let fits = offset != 0 && free >= len;
        if !fits {
            let (new, _) = tables.refs.allocate(&*self.file, 1, 1)?;
            // The count is raised with the others below.
            tables.refs.set(&*self.file, new >> self.geometry.cluster_bits, 0)?;
            if offset == 0 || free == 0 || round_up(offset, cluster) != new {
                offset = new;
            }
        }
        tables.refs.add(&*self.file, offset, len)?;
        tables.compressed_end = offset + len;
        if tables.compressed_end.is_multiple_of(cluster) {
            tables.compressed_end = 0;
        }
        Ok(Grant {
            at: GuestOffset(round_down(guest, cluster)),
            len: cluster,
            storage: IMAGE,
            offset: HostOffset(offset),
            token: token::COMPRESSED,
            state: Some(Box::new(len)),
        })
    }

    /// See [`crate::format::Image::commit_write`].
    pub(super) fn link_grant(&self, grant: &Grant) -> Result<()> {
        let mut tables = self.write_tables();
        let tables = &mut *tables;
        self.check_usable(tables)?;
        let cluster = self.geometry.cluster();
        if grant.token == token::COMPRESSED {
            let len = encoded_len(grant);
            let descriptor = self.geometry.compressed_descriptor(grant.offset.0, len);
            return self.replace(tables, grant.at.0, L2Entry { descriptor, bitmap: 0 });
        }
        let mut at = grant.at.0;
        let end = at + grant.len;
        while at < end {
            let start = round_down(at, cluster);
            let stop = (start + cluster).min(end);
            let host = grant.offset.0 + (start.max(grant.at.0) - grant.at.0) - (at - start);
            let old = tables.entry(&*self.file, start)?;
            let mut bitmap = 0;
            if self.geometry.extended {
                let unit = self.geometry.subcluster();
                let (first, last) = ((at - start) / unit, (stop - 1 - start) / unit);
                let written = (ALL_SUBCLUSTERS >> (31 - (last - first))) << first;
                // What is not written keeps its meaning; only zero marks can be left here when the
                // cluster is new (see `narrow`).
                let kept = if old.is_compressed() { 0 } else { old.bitmap };
                bitmap = (kept | written) & !(written << 32);
            }
            self.replace(tables, start, L2Entry { descriptor: host | COPIED, bitmap })?;
            at = stop;
        }
        Ok(())
    }

    /// Stores an entry and queues what the old one referred to, if that is another place.
    fn replace(&self, tables: &mut Tables, guest: u64, new: L2Entry) -> Result<()> {
        let old = tables.entry(&*self.file, guest)?;
        if old == new {
            return Ok(());
        }
        self.own_l2_table(tables, guest)?;
        tables.set_entry(&*self.file, guest, new)?;
        self.decoded.forget(guest);
        let same_place = !old.is_compressed()
            && !new.is_compressed()
            && old.descriptor & OFFSET_MASK == new.descriptor & OFFSET_MASK;
        if !same_place {
            self.queue_free(tables, old);
        }
        Ok(())
    }

    /// Queues the references of an entry that is not linked any more.
    pub(super) fn queue_free(&self, tables: &mut Tables, old: L2Entry) {
        if old.is_compressed() {
            let (offset, len) = self.geometry.compressed_place(old.descriptor);
            tables.refs.free_later(offset, len);
        } else if let Some(host) = old.host()
            && !self.geometry.external
        {
            tables.refs.free_later(host, self.geometry.cluster());
        }
    }

    /// See [`crate::format::Image::abort_write`].
    pub(super) fn drop_grant(&self, grant: &Grant) {
        let mut tables = self.write_tables();
        match grant.token {
            token::NEW if self.data_file.is_none() => {
                let start = round_down(grant.offset.0, self.geometry.cluster());
                tables.refs.free_later(start, grant.offset.0 + grant.len - start);
            }
            token::COMPRESSED => tables.refs.free_later(grant.offset.0, encoded_len(grant)),
            _ => {}
        }
    }

    /// See [`crate::format::Image::write_zeroes`]: version 3 marks clusters (or subclusters) as zero.
    pub(super) fn zero_range(&self, guest: u64, len: u64, space: ZeroSpace) -> Result<()> {
        if self.unreadable() {
            return Err(self.unreadable_error());
        }
        if self.version < 3 {
            return Err(Error::errno(libc::ENOTSUP).at_offset(guest));
        }
        let g = self.geometry;
        self.each_cluster(guest, len, |tables, start, from, to| {
            let old = tables.entry(&*self.file, start)?;
            let whole = from == start && to == start + g.cluster();
            let mut new = old;
            if g.extended {
                let (first, last) =
                    ((from - start) / g.subcluster(), (to - 1 - start) / g.subcluster());
                let range = (ALL_SUBCLUSTERS >> (31 - (last - first))) << first;
                if old.is_compressed() {
                    if !whole {
                        return Err(Error::errno(libc::ENOTSUP).at_offset(from));
                    }
                    new = L2Entry::default();
                } else if whole && space == ZeroSpace::Unmap && !g.external {
                    new.descriptor = 0;
                }
                new.bitmap = (new.bitmap | range << 32) & !range;
            } else {
                let unmap = old.is_compressed() || (space == ZeroSpace::Unmap && !g.external);
                let kept = if unmap { 0 } else { old.descriptor & !ZERO };
                new.descriptor = kept | ZERO;
            }
            self.replace(tables, start, new)?;
            tables.gives_back |= space == ZeroSpace::Unmap;
            self.zero_external(from, to - from, space)
        })
    }

    /// An external data file that must make sense on its own is zeroed too.
    fn zero_external(&self, at: u64, len: u64, space: ZeroSpace) -> Result<()> {
        match &self.data_file {
            // Zero bytes of an encrypted file are noise.
            Some(file) if self.crypt.is_none() => {
                let mode = crate::storage::ZeroMode::from(space);
                let len = len.min(self.disk_size().saturating_sub(at));
                file.write_zeroes(at, len, mode)
            }
            _ => Ok(()),
        }
    }

    /// See [`crate::format::Image::discard`]: the range reads as zeroes afterwards, except in version 2,
    /// which cannot say so over a backing file and then keeps its data.
    pub(super) fn discard_range(&self, guest: u64, len: u64) -> Result<()> {
        if self.unreadable() {
            return Err(self.unreadable_error());
        }
        let g = self.geometry;
        let has_backing = self.read_tables().header.backing_name.is_some();
        self.each_cluster(guest, len, |tables, start, from, to| {
            if from != start || (to != start + g.cluster() && to != self.disk_size()) {
                return Ok(());
            }
            let old = tables.entry(&*self.file, start)?;
            let allocated = old.is_compressed() || old.host().is_some() || old.copied();
            if !allocated && !has_backing {
                return Ok(());
            }
            let new = match (g.extended, self.version >= 3) {
                (true, _) => L2Entry { descriptor: 0, bitmap: ALL_SUBCLUSTERS << 32 },
                (false, true) => L2Entry { descriptor: ZERO, bitmap: 0 },
                (false, false) if has_backing => return Ok(()),
                (false, false) => L2Entry::default(),
            };
            self.replace(tables, start, new)?;
            tables.gives_back = true;
            self.zero_external(start, to - start, ZeroSpace::Unmap)
        })
    }

    /// Calls `each(tables, cluster start, from, to)` for the part of each cluster in a range that has or
    /// gets an L2 table of its own; flushes in between when memory gets crowded.
    fn each_cluster(
        &self,
        guest: u64,
        len: u64,
        mut each: impl FnMut(&mut Tables, u64, u64, u64) -> Result<()>,
    ) -> Result<()> {
        let cluster = self.geometry.cluster();
        let end = if guest + len >= self.disk_size() {
            round_up(guest + len, cluster)
        } else {
            guest + len
        };
        let mut tables = self.write_tables();
        let tables = &mut *tables;
        self.check_usable(tables)?;
        let mut from = guest;
        while from < end {
            self.begin_change(tables)?;
            let start = round_down(from, cluster);
            let to = (start + cluster).min(end);
            each(tables, start, from, to)?;
            from = to;
        }
        Ok(())
    }

    /// Size of the guest's disk.
    pub(super) fn disk_size(&self) -> u64 {
        self.size.load(std::sync::atomic::Ordering::Acquire)
    }

    /// See [`crate::format::Image::make_empty`].
    pub(super) fn drop_all_mappings(&self) -> Result<()> {
        let mut tables = self.write_tables();
        let tables = &mut *tables;
        self.check_usable(tables)?;
        self.begin_change(tables)?;
        let last = tables.l1.len();
        self.drop_l1_range(tables, 0, last)?;
        self.flush_tables(tables)?;
        self.drop_references(tables)?;
        if self.data_file.is_some() { Ok(()) } else { self.truncate_file(tables) }
    }

    /// Unlinks L2 tables `first..last` of the L1 table and queues everything they refer to.
    pub(super) fn drop_l1_range(
        &self,
        tables: &mut Tables,
        first: usize,
        last: usize,
    ) -> Result<()> {
        for index in first..last {
            let base = len_u64(index) * self.geometry.l2_span();
            let Some((at, copied)) = tables.l2_table(base)? else { continue };
            let mut guest = base;
            while guest < base + self.geometry.l2_span() {
                let entry = tables.entry(&*self.file, guest)?;
                // Entries of a shared table are counted once for every L1 table that reaches it.
                self.queue_free(tables, entry);
                guest += self.geometry.cluster();
            }
            tables.l1[index] = 0;
            tables.touch_l1(index);
            if copied {
                tables.l2.forget(at, self.geometry.cluster());
            }
            tables.refs.free_later(at, self.geometry.cluster());
        }
        Ok(())
    }
}

fn encoded_len(grant: &Grant) -> u64 {
    grant.state.as_ref().and_then(|s| s.downcast_ref::<u64>()).copied().unwrap_or(1)
}
