//! Allocating clusters and publishing them. The order of writes is told in [`super`].

use std::sync::PoisonError;

use super::header;
use super::image::{ParallelsImage, State};
use super::layout::IN_USE;
use super::space::Space;
use crate::format::{Access, Grant, Mapping, StorageId, ZeroSpace};
use crate::num::{GuestOffset, HostOffset};
use crate::storage::{Preallocation, Storage, ZeroMode};
use crate::{Error, Result};

impl State {
    /// The free space, found out where that was not done before.
    pub(super) fn space(&mut self, storage: &dyn Storage) -> Result<&mut Space> {
        if self.space.is_none() {
            self.space = Some(Space::find(storage, &self.geometry, &mut self.table)?);
        }
        self.space.as_mut().ok_or_else(|| Error::errno(libc::EIO))
    }

    /// Takes room for clusters: `(start, end)` in bytes.
    pub(super) fn take(&mut self, storage: &dyn Storage, wanted: u64) -> Result<(u64, u64)> {
        self.space(storage)?;
        let State { space, geometry, .. } = self;
        space.as_mut().ok_or_else(|| Error::errno(libc::EIO))?.take(geometry, wanted)
    }
}

impl ParallelsImage {
    pub(super) fn check_writable(&self, at: u64) -> Result<()> {
        self.access.check_writable("parallels", at)
    }

    /// Says in the header that the image is being written, before the table changes.
    pub(super) fn mark(&self) -> Result<()> {
        if self.scratch {
            return Ok(());
        }
        self.mark.raise(&self.flushing, || self.set_in_use(true))
    }

    fn set_in_use(&self, on: bool) -> Result<()> {
        header::update(&*self.storage, |h| h.in_use.set(if on { IN_USE } else { 0 }))?;
        self.storage.flush()?;
        self.write_state().geometry.in_use = on;
        Ok(())
    }

    /// Says in the header that all is well again. Everything else must be on disk.
    pub(super) fn unmark(&self) -> Result<()> {
        self.mark.lower(&self.flushing, || self.set_in_use(false))
    }

    /// Grants clusters for a write; see [`crate::format::Image::prepare_write`].
    pub(super) fn grant(&self, at: u64, len: u64) -> Result<Grant> {
        self.check_writable(at)?;
        self.mark()?;
        let mut state = self.write_state();
        let cluster = state.geometry.cluster;
        let first = at / cluster;
        let wanted = (at % cluster + len.max(1)).div_ceil(cluster);
        if state.table.fetch(&*self.storage, first)? != 0 {
            return Err(Error::invalid("clusters with a place are written in place").at_offset(at));
        }
        let wanted = state.table.run(first, wanted, |_, e| e == 0).max(1);
        let (start, end) = state.take(&*self.storage, wanted * cluster)?;
        Ok(Grant {
            at: GuestOffset(first * cluster),
            len: end - start,
            storage: StorageId(0),
            offset: HostOffset(start),
            token: 0,
            state: None,
        })
    }

    /// Links what was stored at a granted place.
    pub(super) fn link(&self, grant: &Grant) -> Result<()> {
        let many = {
            let mut state = self.write_state();
            let (cluster, unit) = (state.geometry.cluster, state.geometry.unit());
            let first = grant.at.0 / cluster;
            for i in 0..grant.len / cluster {
                let entry = (grant.offset.0 + i * cluster) / unit;
                state.table.set(&*self.storage, first + i, entry)?;
            }
            state.limit = state.limit.max(grant.offset.0 + grant.len);
            state.table.many_dirty()
        };
        if many { self.write_back() } else { Ok(()) }
    }

    /// Gives a granted place back.
    pub(super) fn give_back(&self, grant: &Grant) {
        if let Some(space) = &mut self.write_state().space {
            space.give_back((grant.offset.0, grant.offset.0 + grant.len));
        }
    }

    /// Makes whole clusters zero: those with a place in their place, which gives its space back; others are.
    pub(super) fn zero(&self, at: u64, len: u64, space: ZeroSpace) -> Result<()> {
        self.check_writable(at)?;
        let mode = ZeroMode::from(space);
        let end = at + len;
        let mut at = at;
        while at < end {
            let extent = self.locate(at, end - at)?;
            if let Mapping::Data { offset, .. } = extent.mapping {
                self.storage.write_zeroes(offset.0, extent.len, mode)?;
            }
            at += extent.len;
        }
        Ok(())
    }

    /// Writes what changed in the table, in the order that [`super`] tells. What was written last is
    /// durable only after the storage's flush.
    pub(super) fn write_back(&self) -> Result<()> {
        let _turn = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        let snapshot = self.write_state().table.snapshot();
        let result = (|| {
            if snapshot.is_empty() {
                return Ok(());
            }
            if !self.scratch {
                self.storage.flush()?;
            }
            for (at, bytes) in &snapshot {
                self.storage.write_at(*at, bytes)?;
            }
            Ok(())
        })();
        self.write_state().table.written(result.is_ok());
        result
    }

    /// See [`crate::format::Image::close`].
    pub(super) fn finish(&self) -> Result<()> {
        self.write_back()?;
        self.storage.flush()?;
        if self.access == Access::Read {
            return Ok(());
        }
        // What was granted and given back; the last cluster may have been stored in part.
        let next = self.read_state().space.as_ref().map(|space| space.next);
        if let Some(next) = next
            && self.storage.len()? != next
        {
            self.storage.set_len(next, Preallocation::Off)?;
            self.storage.flush()?;
        }
        self.unmark()
    }
}
