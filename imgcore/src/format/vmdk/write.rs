//! Allocating grains and publishing them.
//!
//! The order of writes is told in [`super`]. Grains are handed out at the end of the file, one after
//! the other in the order of the `prepare` calls.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::descriptor::ExtentAccess;
use super::image::{Body, Sparse, Tables, VmdkImage, load_into};
use super::layout::SECTOR;
use super::leaks;
use super::tables::{CACHE_BYTES, Entry, Key, encode};
use crate::format::{Access, Grant, ZeroSpace};
use crate::num::{GuestOffset, HostOffset, len_u64, round_down, round_up, small};
use crate::storage::{Preallocation, ZeroMode};
use crate::{Error, Result};

impl VmdkImage {
    /// Refuses what cannot be written, and gives the sparse extent otherwise.
    pub(super) fn writable_sparse(&self, at: u64) -> Result<(Sparse<'_>, u64)> {
        if self.access == Access::Read {
            return Err(crate::format::read_only("vmdk").at_offset(at));
        }
        let (index, offset) = self.find(at)?;
        let extent = &self.extents[index];
        if extent.access == ExtentAccess::ReadOnly || matches!(extent.body, Body::Zero) {
            return Err(Error::new(
                crate::ErrorKind::ReadOnly,
                format!("the extent at guest offset {:#x} is read-only", extent.start),
            )
            .at_offset(at));
        }
        let sparse = self
            .sparse(index)
            .ok_or_else(|| Error::invalid("flat extents are written in place").at_offset(at))?;
        Ok((sparse, offset))
    }

    /// Grants grains for a write; see [`crate::format::Image::prepare_write`].
    pub(super) fn grant(&self, at: u64, len: u64) -> Result<Grant> {
        let (sparse, offset) = self.writable_sparse(at)?;
        let g = sparse.geometry;
        let key = sparse.key(offset)?;
        let mut tables = self.write_tables();
        ensure_table(&mut tables, sparse, key)?;
        let table = load_into(&mut tables, sparse, key)?;
        let first = sparse.slot(offset);
        let begin = round_down(offset, g.grain);
        let wanted = small((offset + len.max(1) - begin).div_ceil(g.grain));
        let rest = table.get(first..).unwrap_or_default();
        let count = rest
            .iter()
            .take(wanted)
            .take_while(|&&e| e <= Entry::ZERO || e.saturating_mul(SECTOR) < g.overhead)
            .count();
        // The caller asked because map() said that this one cannot be written in place.
        let count = len_u64(count.max(1));
        let dir = &mut tables.dirs[small(u64::from(sparse.number))];
        let place = dir.next_free;
        let end = place + count * g.grain;
        check_room(sparse, end)?;
        dir.next_free = end;
        dir.grew = true;
        // A grain that reaches beyond its extent must not reach into the next one; behind the last
        // extent there is nothing, and the file gets the whole grain.
        let last = small(u64::from(sparse.number)) + 1 == self.extents.len();
        let covered =
            if last { count * g.grain } else { (count * g.grain).min(sparse.extent.len - begin) };
        Ok(Grant {
            at: GuestOffset(sparse.extent.start + begin),
            len: covered,
            storage: sparse.id,
            offset: HostOffset(place),
            token: end,
            state: None,
        })
    }

    /// Links what was stored at a granted place.
    pub(super) fn link(&self, grant: &Grant) -> Result<()> {
        let (sparse, offset) = self.writable_sparse(grant.at.0)?;
        let g = sparse.geometry;
        let key = sparse.key(offset)?;
        let first = sparse.slot(offset);
        let count = small(grant.len.div_ceil(g.grain));
        let many = {
            let mut tables = self.write_tables();
            load_into(&mut tables, sparse, key)?;
            let table = tables.cache.change(key).ok_or_else(|| Error::errno(libc::EIO))?;
            let entries = table.get_mut(first..first + count).ok_or_else(|| {
                Error::invalid("grant does not lie inside one grain table").at_offset(grant.at.0)
            })?;
            for (i, entry) in (0u64..).zip(entries) {
                *entry = (grant.offset.0 + i * g.grain) / SECTOR;
            }
            let dir = &mut tables.dirs[small(u64::from(sparse.number))];
            dir.limit = dir.limit.max(grant.token);
            self.too_many_dirty(&tables, sparse)
        };
        if many { self.write_back() } else { Ok(()) }
    }

    /// Whether dirty tables take more than half of what the cache may hold.
    fn too_many_dirty(&self, tables: &Tables, sparse: Sparse<'_>) -> bool {
        len_u64(tables.cache.dirty_tables()) * sparse.geometry.gtes * 8 > CACHE_BYTES / 2
    }

    /// Gives a granted place back if nothing was handed out after it; otherwise it is lost until the
    /// image is converted.
    pub(super) fn give_back(&self, grant: &Grant) {
        let Ok((sparse, _)) = self.writable_sparse(grant.at.0) else { return };
        let mut tables = self.write_tables();
        let dir = &mut tables.dirs[small(u64::from(sparse.number))];
        if dir.next_free == grant.token {
            dir.next_free = grant.offset.0;
        }
    }

    /// Makes whole grains zero by their table entries, and parts of flat extents by the storage.
    pub(super) fn zero(&self, at: u64, len: u64, space: ZeroSpace) -> Result<()> {
        let end = at + len;
        let mut at = at;
        while at < end {
            let (index, offset) = self.find(at)?;
            let extent = &self.extents[index];
            let here = (extent.len - offset).min(end - at);
            match &extent.body {
                Body::Zero => {}
                Body::Flat { id, offset: start } => {
                    if extent.access == ExtentAccess::ReadOnly {
                        return Err(crate::format::read_only("vmdk").at_offset(at));
                    }
                    let mode = ZeroMode::from(space);
                    let storage = &self.storages[small(u64::from(id.0))];
                    storage.write_zeroes(start + offset, here, mode)?;
                }
                Body::Sparse { geometry, .. } => {
                    if !geometry.zero_grain {
                        return Err(Error::errno(libc::ENOTSUP).at_offset(at));
                    }
                    self.set_grains(at, here, Entry::ZERO)?;
                }
            }
            at += here;
        }
        Ok(())
    }

    /// Whether grains can be unlinked so that they read as zeroes: by an entry that says so, or by none
    /// where nothing lies below. Only while space is being released: unlinked grains are not used again,
    /// so a guest that discards and writes would make the file ever longer.
    pub(super) fn can_unlink(&self) -> bool {
        self.releasing.load(Ordering::Acquire)
            && self.sparse_extents().all(|s| {
                leaks::tellable(s) && (s.geometry.zero_grain || self.descriptor.parent.is_none())
            })
    }

    /// Unlinks whole grains, and gives parts of flat extents back. The grains themselves stay as they are
    /// until [`leaks::search`] finds them: by then nothing on disk leads to them any more.
    pub(super) fn unlink(&self, at: u64, len: u64) -> Result<()> {
        if self.access == Access::Read || !self.can_unlink() {
            return Ok(());
        }
        let end = at + len;
        let mut at = at;
        while at < end {
            let (index, offset) = self.find(at)?;
            let extent = &self.extents[index];
            let here = (extent.len - offset).min(end - at);
            match &extent.body {
                Body::Sparse { geometry, .. } => {
                    let entry = if geometry.zero_grain { Entry::ZERO } else { Entry::NONE };
                    self.set_grains(at, here, entry)?;
                }
                Body::Flat { .. } | Body::Zero => self.zero(at, here, ZeroSpace::Unmap)?,
            }
            at += here;
        }
        Ok(())
    }

    /// Sets the entries of whole grains to one that leads to no grain.
    fn set_grains(&self, at: u64, len: u64, entry: u64) -> Result<()> {
        let (sparse, mut offset) = self.writable_sparse(at)?;
        let g = sparse.geometry;
        let end = offset + len;
        let whole = offset.is_multiple_of(g.grain)
            && (end.is_multiple_of(g.grain) || end == sparse.extent.len);
        if !whole || g.compressed() {
            return Err(Error::errno(libc::ENOTSUP).at_offset(at));
        }
        while offset < end {
            let key = sparse.key(offset)?;
            let stop = end.min((u64::from(key.index) + 1) * g.table_cover());
            let many = {
                let mut tables = self.write_tables();
                let dir = &tables.dirs[small(u64::from(sparse.number))];
                if entry == Entry::NONE && dir.table_at(key.index, g).is_none() {
                    offset = stop;
                    continue;
                }
                ensure_table(&mut tables, sparse, key)?;
                load_into(&mut tables, sparse, key)?;
                let table = tables.cache.change(key).ok_or_else(|| Error::errno(libc::EIO))?;
                let first = sparse.slot(offset);
                let count = small((stop - offset).div_ceil(g.grain));
                let entries = table.iter_mut().skip(first).take(count);
                entries.for_each(|e| *e = entry);
                self.too_many_dirty(&tables, sparse)
            };
            if many {
                self.write_back()?;
            }
            offset = stop;
        }
        Ok(())
    }

    /// Writes all changed tables, in the order that [`super`] tells. What was written last is durable only
    /// after [`VmdkImage::sync`].
    pub(super) fn write_back(&self) -> Result<()> {
        let _turn = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        let snapshot = {
            let mut tables = self.write_tables();
            for sparse in self.sparse_extents() {
                let dir = &mut tables.dirs[small(u64::from(sparse.number))];
                // The last grain of an extent may have been stored in part.
                if std::mem::take(&mut dir.grew) && sparse.storage.len()? < dir.next_free {
                    sparse.storage.set_len(dir.next_free, Preallocation::Off)?;
                }
            }
            if tables.stream.is_some() { Vec::new() } else { tables.cache.dirty_snapshot() }
        };
        if !snapshot.is_empty() {
            self.barrier()?;
            self.write_tables_out(&snapshot)?;
        }
        Ok(())
    }

    /// Writes tables, and after them the directory entries of new ones.
    fn write_tables_out(&self, snapshot: &[(Key, std::sync::Arc<Vec<u64>>)]) -> Result<()> {
        let mut fresh = Vec::new();
        for (key, table) in snapshot {
            let Some(sparse) = self.sparse(small(u64::from(key.extent))) else { continue };
            let (first, second, new) = {
                let tables = self.read_tables();
                let dir = &tables.dirs[small(u64::from(key.extent))];
                let first = dir.table_at(key.index, sparse.geometry);
                (first, dir.redundant_at(key.index), dir.new_tables.contains(&key.index))
            };
            let raw = encode(table);
            for place in second.into_iter().chain(first) {
                sparse.storage.write_at(place, &raw)?;
            }
            if new {
                fresh.push(*key);
            }
        }
        if !fresh.is_empty() {
            self.barrier()?;
            for key in fresh {
                self.write_directory_entry(key)?;
            }
        }
        let mut tables = self.write_tables();
        for (key, table) in snapshot {
            tables.cache.written(*key, table);
        }
        Ok(())
    }

    fn write_directory_entry(&self, key: Key) -> Result<()> {
        let Some(sparse) = self.sparse(small(u64::from(key.extent))) else { return Ok(()) };
        let index = small(u64::from(key.index));
        let mut tables = self.write_tables();
        let dir = &mut tables.dirs[small(u64::from(key.extent))];
        let at = |base: u64| base + 4 * u64::from(key.index);
        if let (Some(base), Some(&entry)) = (sparse.geometry.rgd, dir.rgd.get(index)) {
            sparse.storage.write_at(at(base), &entry.to_le_bytes())?;
        }
        if let Some(&entry) = dir.gd.get(index) {
            sparse.storage.write_at(at(sparse.geometry.gd), &entry.to_le_bytes())?;
        }
        dir.new_tables.remove(&key.index);
        Ok(())
    }

    /// Waits until everything written so far is on disk; a scratch image needs no order, and only its
    /// last flush counts.
    fn barrier(&self) -> Result<()> {
        if self.scratch { Ok(()) } else { self.sync() }
    }

    /// Flushes all files.
    pub(super) fn sync(&self) -> Result<()> {
        self.storages.iter().try_for_each(|s| s.flush())
    }
}

/// Makes a table (and its redundant copy) where the directory has none: in memory now, on disk with
/// the next flush.
fn ensure_table(tables: &mut Tables, sparse: Sparse<'_>, key: Key) -> Result<()> {
    let g = sparse.geometry;
    let index = small(u64::from(key.index));
    let dir = &mut tables.dirs[small(u64::from(sparse.number))];
    if dir.gd.get(index).is_some_and(|&e| e != 0) {
        return Ok(());
    }
    let room = round_up(g.table_bytes(), SECTOR);
    let copies = if dir.rgd.is_empty() { 1 } else { 2 };
    let first = dir.next_free;
    let end = round_up(first + copies * room, g.grain);
    check_room(sparse, end)?;
    let sector = |at: u64| {
        u32::try_from(at / SECTOR).map_err(|_| sparse.damaged(at, "grain table out of reach"))
    };
    let (primary, redundant) = (sector(first)?, sector(first + room)?);
    let Some(slot) = dir.gd.get_mut(index) else {
        return Err(sparse.damaged(g.gd, "guest offset beyond the grain directory"));
    };
    *slot = primary;
    if let Some(slot) = dir.rgd.get_mut(index) {
        *slot = redundant;
    }
    dir.next_free = end;
    dir.grew = true;
    dir.new_tables.insert(key.index);
    tables.cache.insert(key, vec![Entry::NONE; small(g.gtes)]);
    tables.cache.change(key);
    Ok(())
}

/// Grains are found by 32-bit sector numbers: a file ends at 2 TiB.
pub(super) fn check_room(sparse: Sparse<'_>, end: u64) -> Result<()> {
    if end / SECTOR > u64::from(u32::MAX) {
        return Err(Error::errno(libc::EFBIG)
            .context("a sparse VMDK extent holds at most 2 TiB of grains")
            .at_path(sparse.storage.name())
            .at_offset(end));
    }
    Ok(())
}
