//! Allocating blocks and publishing them. The order of writes is told in [`super`].

use std::sync::PoisonError;

use zerocopy::IntoBytes;

use super::header::Blocks;
use super::image::{State, VpcImage};
use super::layout::{SECTOR, UNUSED};
use crate::format::{Grant, Mapping, StorageId, ZeroSpace};
use crate::num::{GuestOffset, HostOffset, round_up, small};
use crate::storage::{Preallocation, ZeroMode};
use crate::{Error, Result};

/// Data begin at multiples of this many bytes, as far as blocks are ours to place.
const ALIGN: u64 = 4096;

impl State {
    /// Takes space for a block at the end; where its bitmap begins. Data come right behind, aligned.
    pub(super) fn take(&mut self, b: &Blocks) -> Result<u64> {
        let place = round_up(self.next + b.bitmap, ALIGN) - b.bitmap;
        if (place + b.span()) / SECTOR >= UNUSED {
            return Err(Error::errno(libc::EFBIG).context("a VHD file ends at 2 TiB"));
        }
        self.next = place + b.span();
        self.grew = true;
        Ok(place)
    }
}

impl VpcImage {
    fn check_writable(&self, at: u64) -> Result<()> {
        self.access.check_writable("vpc", at)
    }

    /// The blocks of a disk that has some.
    pub(super) fn blocks(&self) -> Result<Blocks> {
        let blocks = self.read_state().geometry.blocks;
        blocks.ok_or_else(|| Error::invalid("fixed disks are written in place"))
    }

    /// Makes sure that the bitmaps of existing blocks tell all of their sectors: programs that look at
    /// them would not see what is written otherwise. What reads as zero so far is zero on disk.
    pub(super) fn fill_bitmaps(&self, at: u64, len: u64) -> Result<()> {
        let Some(b) = self.read_state().geometry.blocks else { return Ok(()) };
        if self.scratch || len == 0 {
            return Ok(());
        }
        for index in at / b.block..=(at + len - 1) / b.block {
            if self.read_state().full.contains(&index) {
                continue;
            }
            let (entry, _) = self.entry(index, 1)?;
            if entry == UNUSED {
                continue;
            }
            let mut bits = vec![0; small(b.bitmap)];
            self.storage.read_at(entry * SECTOR, &mut bits)?;
            let whole = small(b.block / SECTOR / 8);
            if bits[..whole].iter().any(|&byte| byte != 0xff) {
                bits[..whole].fill(0xff);
                self.storage.write_at(entry * SECTOR, &bits)?;
            }
            self.write_state().full.insert(index);
        }
        Ok(())
    }

    /// Grants a block for a write; see [`crate::format::Image::prepare_write`]. One at a time: bitmaps lie
    /// between them.
    pub(super) fn grant(&self, at: u64) -> Result<Grant> {
        self.check_writable(at)?;
        let b = self.blocks()?;
        let place = self.write_state().take(&b)?;
        let mut bits = vec![0; small(b.bitmap)];
        bits[..small(b.block / SECTOR / 8)].fill(0xff);
        self.storage.write_at(place, &bits)?;
        Ok(Grant {
            at: GuestOffset(at - at % b.block),
            len: b.block,
            storage: StorageId(0),
            offset: HostOffset(place + b.bitmap),
            token: place,
            state: None,
        })
    }

    /// Links what was stored at a granted place.
    pub(super) fn link(&self, grant: &Grant) -> Result<()> {
        let b = self.blocks()?;
        let many = {
            let mut state = self.write_state();
            let index = grant.at.0 / b.block;
            state.table.set(&*self.storage, index, grant.token / SECTOR)?;
            state.limit = state.limit.max(grant.token + b.span());
            state.full.insert(index);
            state.table.many_dirty()
        };
        if many { self.write_back() } else { Ok(()) }
    }

    /// Gives a granted place back if nothing was handed out after it.
    pub(super) fn give_back(&self, grant: &Grant) {
        let Ok(b) = self.blocks() else { return };
        let mut state = self.write_state();
        if state.next == grant.token + b.span() {
            state.next = grant.token;
        }
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

    /// Writes the footer behind the last block, and ends the file with it. The lock is held: space that
    /// is handed out meanwhile would be where the footer goes.
    fn write_footer(&self, state: &mut State) -> Result<()> {
        let at = state.next;
        self.storage.write_at(at, state.geometry.footer.as_bytes())?;
        if self.storage.len()? > at + SECTOR {
            self.storage.set_len(at + SECTOR, Preallocation::Off)?;
        }
        state.limit = state.limit.min(at + SECTOR);
        state.grew = false;
        Ok(())
    }

    /// Writes footer and table, in the order that [`super`] tells. What was written last is durable only
    /// after the storage's flush.
    pub(super) fn write_back(&self) -> Result<()> {
        let _turn = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        let snapshot = {
            let mut state = self.write_state();
            if state.grew {
                self.write_footer(&mut state)?;
            }
            state.table.snapshot()
        };
        let result = self.write_table(&snapshot);
        self.write_state().table.written(result.is_ok());
        result
    }

    fn write_table(&self, snapshot: &[(u64, Vec<u8>)]) -> Result<()> {
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

    /// Writes footer, copy of the footer and header again from what the state holds. Each is a sector (the
    /// header's fields that matter are in its first), and each alone is enough to find everything.
    pub(super) fn write_headers(&self) -> Result<()> {
        let _turn = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.write_state();
        state.geometry.footer.seal();
        let footer = state.geometry.footer;
        if let Some(b) = &mut state.geometry.blocks {
            b.header.seal();
            let b = *b;
            self.storage.write_at(b.header_at, b.header.as_bytes())?;
            self.storage.flush()?;
            self.storage.write_at(0, footer.as_bytes())?;
            self.storage.flush()?;
        }
        self.write_footer(&mut state)?;
        drop(state);
        self.storage.flush()
    }
}
