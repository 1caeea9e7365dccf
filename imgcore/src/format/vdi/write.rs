//! Allocating blocks and publishing them. The order of writes is told in [`super`].

use std::sync::PoisonError;

use super::header::{self, narrow};
use super::image::{State, VdiImage};
use super::layout::{FREE, ZERO};
use super::space::{Blocks, Space, leads};
use crate::format::uuid::Uuid;
use crate::format::{Grant, StorageId, ZeroSpace};
use crate::num::{GuestOffset, HostOffset};
use crate::storage::{Storage, ZeroMode};
use crate::{Error, Result};

impl State {
    /// The free space, found out where that was not done before.
    pub(super) fn space(&mut self, storage: &dyn Storage) -> Result<&mut Space> {
        if self.space.is_none() {
            self.space = Some(Space::find(storage, &self.geometry, &mut self.map)?);
        }
        self.space.as_mut().ok_or_else(|| Error::errno(libc::EIO))
    }
}

impl VdiImage {
    fn check_writable(&self, at: u64) -> Result<()> {
        self.access.check_writable("vdi", at)
    }

    /// Tells the world, before the first change of an opening, that the content is another one: disks
    /// made on this one notice.
    pub(super) fn renew_modify(&self) -> Result<()> {
        if self.scratch {
            return Ok(());
        }
        self.modify_renewed.raise(&self.flushing, || {
            let new = Uuid::random();
            header::update(&*self.storage, |h| h.uuid_modify = new.to_le())?;
            self.write_state().geometry.modify = new;
            Ok(())
        })
    }

    /// Grants blocks for a write; see [`crate::format::Image::prepare_write`].
    pub(super) fn grant(&self, at: u64, len: u64) -> Result<Grant> {
        self.check_writable(at)?;
        let mut state = self.write_state();
        let block = state.geometry.block;
        let first = at / block;
        let wanted = (at % block + len.max(1)).div_ceil(block);
        state.space(&*self.storage)?;
        if leads(state.map.fetch(&*self.storage, first)?) {
            return Err(Error::invalid("blocks with a place are written in place").at_offset(at));
        }
        let wanted = state.map.run(first, wanted, |_, e| !leads(e)).max(1);
        // Bytes in front of each block's data make runs of blocks discontiguous.
        let wanted = if state.geometry.extra > 0 { 1 } else { wanted };
        let run = state.space(&*self.storage)?.take(wanted)?;
        Ok(Grant {
            at: GuestOffset(first * block),
            len: (run.end - run.start) * block,
            storage: StorageId(0),
            offset: HostOffset(state.geometry.place(run.start)),
            token: run.start,
            state: None,
        })
    }

    fn granted(state: &State, grant: &Grant) -> Blocks {
        Blocks { start: grant.token, end: grant.token + grant.len / state.geometry.block }
    }

    /// Links what was stored at a granted place.
    pub(super) fn link(&self, grant: &Grant) -> Result<()> {
        let many = {
            let mut state = self.write_state();
            let run = Self::granted(&state, grant);
            let first = grant.at.0 / state.geometry.block;
            for number in run.start..run.end {
                state.map.set(&*self.storage, first + number - run.start, number)?;
            }
            state.limit = state.limit.max(state.geometry.place(run.end));
            if run.end > state.geometry.allocated {
                state.geometry.allocated = run.end;
                state.header_behind = true;
            }
            state.map.many_dirty()
        };
        if many { self.write_back() } else { Ok(()) }
    }

    /// Gives a granted place back.
    pub(super) fn give_back(&self, grant: &Grant) {
        let mut state = self.write_state();
        let run = Self::granted(&state, grant);
        if let Some(space) = &mut state.space {
            space.give_back(run);
        }
    }

    /// Makes whole blocks zero: those with a place in their place, which gives its space back; others by
    /// their entry.
    pub(super) fn zero(&self, at: u64, len: u64, space: ZeroSpace) -> Result<()> {
        self.check_writable(at)?;
        let mode = ZeroMode::from(space);
        let end = at + len;
        let mut at = at;
        while at < end {
            let extent = self.locate(at, end - at)?;
            match extent.mapping {
                crate::format::Mapping::Data { offset, .. } => {
                    self.storage.write_zeroes(offset.0, extent.len, mode)?;
                }
                crate::format::Mapping::Backing => self.zero_entries(at, extent.len)?,
                _ => {}
            }
            at += extent.len;
        }
        Ok(())
    }

    /// Hides the parent behind blocks that have no place.
    fn zero_entries(&self, at: u64, len: u64) -> Result<()> {
        let many = {
            let mut state = self.write_state();
            let block = state.geometry.block;
            if !at.is_multiple_of(block)
                || (!len.is_multiple_of(block) && at + len != state.geometry.size)
            {
                return Err(Error::errno(libc::ENOTSUP).at_offset(at));
            }
            for index in at / block..(at + len).div_ceil(block) {
                if state.map.fetch(&*self.storage, index)? == FREE {
                    state.map.set(&*self.storage, index, ZERO)?;
                }
            }
            state.map.many_dirty()
        };
        if many { self.write_back() } else { Ok(()) }
    }

    /// Writes what changed in header and block map, in the order that [`super`] tells. What was written
    /// last is durable only after the storage's flush.
    pub(super) fn write_back(&self) -> Result<()> {
        let _turn = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        let (snapshot, count) = {
            let mut state = self.write_state();
            let count =
                std::mem::take(&mut state.header_behind).then_some(state.geometry.allocated);
            (state.map.snapshot(), count)
        };
        let result = self.write_tables(&snapshot, count);
        let mut state = self.write_state();
        state.map.written(result.is_ok());
        state.header_behind |= result.is_err() && count.is_some();
        result
    }

    fn write_tables(&self, snapshot: &[(u64, Vec<u8>)], count: Option<u64>) -> Result<()> {
        if let Some(count) = count {
            header::update(&*self.storage, |h| h.blocks_allocated = narrow(count))?;
            // The last block of a file may have been stored in part.
            let end = {
                let state = self.read_state();
                state.geometry.data + count * state.geometry.stride()
            };
            if self.storage.len()? < end {
                self.storage.set_len(end, crate::storage::Preallocation::Off)?;
            }
        }
        if snapshot.is_empty() {
            return Ok(());
        }
        self.barrier()?;
        for (at, bytes) in snapshot {
            self.storage.write_at(*at, bytes)?;
        }
        Ok(())
    }

    /// Waits until everything written so far is on disk; a scratch image needs no order, and only its
    /// last flush counts.
    pub(super) fn barrier(&self) -> Result<()> {
        if self.scratch { Ok(()) } else { self.storage.flush() }
    }
}
