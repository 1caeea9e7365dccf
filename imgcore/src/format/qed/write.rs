//! Allocating clusters and publishing them. The order of writes is told in [`super`].

use std::sync::PoisonError;

use super::header;
use super::image::{Cluster, QedImage};
use super::layout::{ZERO, feature};
use crate::format::{Access, Grant, Mapping, StorageId, ZeroSpace};
use crate::num::{GuestOffset, HostOffset};
use crate::storage::{Preallocation, ZeroMode};
use crate::{Error, Result};

impl QedImage {
    pub(super) fn check_writable(&self, at: u64) -> Result<()> {
        self.access.check_writable("qed", at)
    }

    /// Says in the header that tables are about to change, before the first of them does.
    pub(super) fn mark(&self) -> Result<()> {
        if self.scratch {
            return Ok(());
        }
        self.mark.raise(&self.flushing, || self.set_need_check(true))
    }

    fn set_need_check(&self, on: bool) -> Result<()> {
        let mut features = 0;
        header::update(&*self.storage, |h| {
            features = h.features.get() & !feature::NEED_CHECK;
            features |= if on { feature::NEED_CHECK } else { 0 };
            h.features.set(features);
        })?;
        self.storage.flush()?;
        self.write_state().geometry.features = features;
        Ok(())
    }

    /// Says in the header that all is well again. Everything else must be on disk.
    pub(super) fn unmark(&self) -> Result<()> {
        self.mark.lower(&self.flushing, || self.set_need_check(false))
    }

    /// Clears feature bits that whoever does not know them must clear before writing.
    pub(super) fn forget_autoclear(&self) -> Result<()> {
        if self.read_state().geometry.autoclear_features == 0 {
            return Ok(());
        }
        header::update(&*self.storage, |h| h.autoclear_features.set(0))?;
        self.storage.flush()?;
        self.write_state().geometry.autoclear_features = 0;
        Ok(())
    }

    /// Grants clusters for a write; see [`crate::format::Image::prepare_write`].
    pub(super) fn grant(&self, at: u64, len: u64) -> Result<Grant> {
        self.check_writable(at)?;
        self.mark()?;
        let mut state = self.write_state();
        let cluster = state.geometry.cluster;
        let first = at / cluster;
        let wanted = (at % cluster + len.max(1)).div_ceil(cluster);
        let placed = |e: u64| matches!(Cluster::of(e), Cluster::At(_));
        if placed(state.tables.fetch(&*self.storage, first)?) {
            return Err(Error::invalid("clusters with a place are written in place").at_offset(at));
        }
        let n = state.tables.run(first, wanted, |_, _, e| !placed(e)).map_or(1, |run| run.len);
        state.make_tables(&*self.storage, (first, first + n))?;
        let host = state.take(n * cluster)?;
        Ok(Grant {
            at: GuestOffset(first * cluster),
            len: n * cluster,
            storage: StorageId(0),
            offset: HostOffset(host),
            token: 0,
            state: None,
        })
    }

    /// Links what was stored at a granted place.
    pub(super) fn link(&self, grant: &Grant) -> Result<()> {
        let many = {
            let mut state = self.write_state();
            let cluster = state.geometry.cluster;
            let first = grant.at.0 / cluster;
            for i in 0..grant.len / cluster {
                let entry = grant.offset.0 + i * cluster;
                state.tables.set(&*self.storage, first + i, entry)?;
            }
            state.tables.many_dirty()
        };
        if many { self.write_back() } else { Ok(()) }
    }

    /// Gives a granted place back: at the end of the file, or it is a leak.
    pub(super) fn give_back(&self, grant: &Grant) {
        let mut state = self.write_state();
        if state.next == grant.offset.0 + grant.len {
            state.next = grant.offset.0;
        }
    }

    /// Makes whole clusters zero: those with a place in their place, which gives its space back; others by
    /// their entry.
    pub(super) fn zero(&self, at: u64, len: u64, space: ZeroSpace) -> Result<()> {
        self.check_writable(at)?;
        let mode = ZeroMode::from(space);
        let end = at + len;
        let mut at = at;
        while at < end {
            let extent = self.locate(at, end - at)?;
            match extent.mapping {
                Mapping::Data { offset, .. } => {
                    self.storage.write_zeroes(offset.0, extent.len, mode)?;
                }
                Mapping::Backing => self.zero_entries(at, extent.len)?,
                _ => {}
            }
            at += extent.len;
        }
        Ok(())
    }

    /// Marks clusters without a place as zero. The range may reach behind the end of the disk.
    pub(super) fn zero_entries(&self, at: u64, len: u64) -> Result<()> {
        self.mark()?;
        let (cluster, entries) = {
            let state = self.read_state();
            (state.geometry.cluster, state.geometry.entries())
        };
        let end = (at + len).div_ceil(cluster);
        let mut first = at / cluster;
        while first < end {
            // One table at a time, so that the lock is not held for long.
            let last = end.min((first / entries + 1) * entries);
            let many = {
                let mut state = self.write_state();
                state.make_tables(&*self.storage, (first, last))?;
                for index in first..last {
                    if state.tables.fetch(&*self.storage, index)? == 0 {
                        state.tables.set(&*self.storage, index, ZERO)?;
                    }
                }
                state.tables.many_dirty()
            };
            if many {
                self.write_back()?;
            }
            first = last;
        }
        Ok(())
    }

    /// Writes what changed in the tables, in the order that [`super`] tells. What was written last is
    /// durable only after the storage's flush.
    pub(super) fn write_back(&self) -> Result<()> {
        let _turn = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        let changes = self.write_state().tables.changes();
        let result = changes.write(&*self.storage, || self.barrier());
        self.write_state().tables.written(result.is_ok());
        result
    }

    /// Waits until everything written so far is on disk; a scratch image needs no order, and only its
    /// last flush counts.
    fn barrier(&self) -> Result<()> {
        if self.scratch { Ok(()) } else { self.storage.flush() }
    }

    /// See [`crate::format::Image::close`].
    pub(super) fn finish(&self) -> Result<()> {
        self.write_back()?;
        self.storage.flush()?;
        if self.access == Access::Read {
            return Ok(());
        }
        // What was granted and given back.
        let next = self.read_state().next;
        if self.storage.len()? > next {
            self.storage.set_len(next, Preallocation::Off)?;
            self.storage.flush()?;
        }
        self.unmark()
    }
}
