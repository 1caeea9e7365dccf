//! Allocating blocks and publishing them. The order of writes is told in [`super`].

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::header;
use super::image::{VhdxImage, Writing, log_region};
use super::layout::{LOG_SECTOR, MIB, place_of, state, state_of};
use super::log::{LogWriter, Sector};
use crate::format::uuid::Uuid;
use crate::format::{Grant, Mapping, StorageId, ZeroSpace};
use crate::num::{GuestOffset, HostOffset, len_u64, round_down, round_up, small};
use crate::storage::{Preallocation, ZeroMode};
use crate::{Error, Result};

impl VhdxImage {
    fn check_writable(&self, at: u64) -> Result<()> {
        self.access.check_writable("vhdx", at)
    }

    pub(super) fn writing(&self) -> std::sync::MutexGuard<'_, Writing> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the world, before the first change of an opening, that the content is another one, and which
    /// log entries count from now on (2.2.2).
    pub(super) fn begin(&self) -> Result<()> {
        if self.scratch || self.begun.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut writing = self.writing();
        if self.begun.load(Ordering::Acquire) {
            return Ok(());
        }
        let (file, data, log) = (Uuid::random(), Uuid::random(), Uuid::random());
        for _ in 0..2 {
            header::advance(&*self.storage, &mut writing.header, |h| {
                h.file_write = file.to_le();
                h.data_write = data.to_le();
                h.log = log.to_le();
            })?;
        }
        // A crash may have left the two region tables different.
        let regions = self.read_state().regions;
        if !regions.both {
            header::write_regions(&*self.storage, &regions)?;
            self.write_state().regions.both = true;
        }
        writing.log = Some(LogWriter::new(log_region(&writing.header), log));
        self.begun.store(true, Ordering::Release);
        Ok(())
    }

    /// Empties the log.
    pub(super) fn end(&self) -> Result<()> {
        let mut writing = self.writing();
        if writing.log.take().is_some() {
            for _ in 0..2 {
                header::advance(&*self.storage, &mut writing.header, |h| h.log = [0; 16])?;
            }
            self.begun.store(false, Ordering::Release);
        }
        Ok(())
    }

    /// Grants a place for a write; see [`crate::format::Image::prepare_write`].
    ///
    /// New blocks lie where the file was not before, so they read as zero, which is what the guest sees
    /// there; they are linked (in memory) at once, and only what is written needs to be stored.
    pub(super) fn grant(&self, at: u64, len: u64) -> Result<Grant> {
        self.check_writable(at)?;
        let block = self.read_state().meta.block;
        let first = at / block;
        let (entry, n) = self.run(first, (at % block + len.max(1)).div_ceil(block))?;
        let mut state = self.write_state();
        let place = if matches!(state_of(entry), state::FULLY_PRESENT) {
            place_of(entry)
        } else {
            let place = round_up(self.storage.len()?, MIB).max(state.limit);
            let end = place + n * block;
            self.storage.set_len(end, Preallocation::Off)?;
            if !self.storage.zero_init() {
                self.storage.write_zeroes(place, n * block, ZeroMode::MayUnmap)?;
            }
            state.limit = end;
            for i in 0..n {
                let index = state.entry_of(first + i);
                state.bat.set(&*self.storage, index, place + i * block + state::FULLY_PRESENT)?;
            }
            place
        };
        let many = state.bat.many_dirty();
        drop(state);
        if many {
            self.write_back()?;
        }
        Ok(Grant {
            at: GuestOffset(at),
            len: len.min(n * block - at % block),
            storage: StorageId(0),
            offset: HostOffset(place + at % block),
            token: 0,
            state: None,
        })
    }

    /// Makes a range zero where it has a place, which gives the space back; elsewhere it is zero already.
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

    /// Writes the changed entries of the table, through the log.
    pub(super) fn write_back(&self) -> Result<()> {
        let mut writing = self.writing();
        let snapshot = self.write_state().bat.snapshot();
        let result = self.change(&mut writing, &snapshot);
        self.write_state().bat.written(result.is_ok());
        result
    }

    /// Changes metadata of the file: through the log, except in a scratch image.
    pub(super) fn change(&self, writing: &mut Writing, parts: &[(u64, Vec<u8>)]) -> Result<()> {
        if parts.is_empty() {
            return Ok(());
        }
        if self.scratch {
            return parts.iter().try_for_each(|(at, bytes)| self.storage.write_at(*at, bytes));
        }
        let Some(log) = &mut writing.log else {
            return Err(Error::invalid("metadata of a VHDX change only after the first write"));
        };
        // What the entries lead to must be there before them.
        self.storage.flush()?;
        let mut sectors: BTreeMap<u64, Sector> = BTreeMap::new();
        for (at, bytes) in parts {
            let mut done = 0;
            while done < bytes.len() {
                let here = at + len_u64(done);
                let start = round_down(here, LOG_SECTOR);
                let inside = small(here - start);
                let n = (4096 - inside).min(bytes.len() - done);
                let sector = match sectors.entry(start) {
                    std::collections::btree_map::Entry::Occupied(known) => known.into_mut(),
                    std::collections::btree_map::Entry::Vacant(new) => {
                        let mut sector = [0; 4096];
                        self.storage.read_at(start, &mut sector)?;
                        new.insert(sector)
                    }
                };
                sector[inside..inside + n].copy_from_slice(&bytes[done..done + n]);
                done += n;
            }
        }
        let sectors: Vec<(u64, Sector)> = sectors.into_iter().collect();
        log.change(&*self.storage, &sectors)
    }
}
