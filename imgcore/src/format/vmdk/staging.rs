//! Plain writes to a stream: whole grains wait here until they are packed.
//!
//! The contract grants a place for plain bytes, and a stream has none: how much room a grain takes is
//! known only when it is packed. So the place is in memory, for one grain each, and the commit packs
//! and appends. Such grains get their places in the order of the commits. Jobs that write much pack by
//! themselves ([`crate::format::Image::prepare_encoded`]), in many threads.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::grain::GrainEncoder;
use super::image::VmdkImage;
use crate::format::{Encoder, Grant, Level, StorageId};
use crate::num::{GuestOffset, HostOffset, len_u64, small};
use crate::storage::{HostExtent, HostKind, Limits, Preallocation, Storage, ZeroMode};
use crate::{Error, Result};

/// The id of the staging area; no extent has it.
pub(super) const STAGING: StorageId = StorageId(u32::MAX);
/// Room for a grain: more than the largest one that is written.
const ROOM: u64 = 1 << 25;

#[derive(Debug, Default)]
struct Slots {
    next: u64,
    grains: HashMap<u64, Vec<u8>>,
}

/// Grains in memory, each at a multiple of [`ROOM`].
#[derive(Debug)]
pub(super) struct Staging {
    name: String,
    slots: Mutex<Slots>,
}

impl Staging {
    pub(super) fn new(name: &str) -> Arc<Self> {
        Arc::new(Staging { name: name.to_owned(), slots: Mutex::default() })
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reserve(&self, len: usize) -> u64 {
        let mut slots = self.slots();
        let number = slots.next;
        slots.next += 1;
        slots.grains.insert(number, vec![0; len]);
        number * ROOM
    }

    fn take(&self, place: u64) -> Option<Vec<u8>> {
        self.slots().grains.remove(&(place / ROOM))
    }

    /// Calls `with` on the bytes of one grain from `offset` on.
    fn bytes(&self, offset: u64, len: usize, with: impl FnOnce(&mut [u8])) -> Result<()> {
        let start = small(offset % ROOM);
        let mut slots = self.slots();
        let area = slots
            .grains
            .get_mut(&(offset / ROOM))
            .and_then(|g| g.get_mut(start..start.checked_add(len)?))
            .ok_or_else(|| Error::errno(libc::ENOSPC).at_path(&self.name).at_offset(offset))?;
        with(area);
        Ok(())
    }
}

impl Storage for Staging {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> Result<u64> {
        Ok(self.slots().next * ROOM)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.bytes(offset, buf.len(), |area| buf.copy_from_slice(area))
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.bytes(offset, buf.len(), |area| area.copy_from_slice(buf))
    }

    fn write_zeroes(&self, offset: u64, len: u64, _mode: ZeroMode) -> Result<()> {
        self.bytes(offset, small(len), |area| area.fill(0))
    }

    fn discard(&self, _offset: u64, _len: u64) -> Result<()> {
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn set_len(&self, _len: u64, _how: Preallocation) -> Result<()> {
        Err(Error::errno(libc::ENOTSUP))
    }

    fn status(&self, _offset: u64, len: u64) -> Result<HostExtent> {
        Ok(HostExtent { kind: HostKind::Data, len })
    }

    fn limits(&self) -> Limits {
        Limits { request_alignment: 1, discard_alignment: 1, opt_transfer: 0, block_device: false }
    }

    fn read_only(&self) -> bool {
        false
    }
}

impl VmdkImage {
    /// Grants a place in memory for one whole grain.
    pub(super) fn grant_staged(&self, at: u64, len: u64) -> Result<Grant> {
        let (sparse, offset) = self.writable_sparse(at)?;
        let grain = sparse.geometry.grain;
        if self.locate(at, 1)?.mapping != crate::format::Mapping::Backing {
            return Err(super::stream::allocated(sparse, at));
        }
        let whole =
            offset.is_multiple_of(grain) && (len >= grain || offset + len >= sparse.extent.len);
        if !whole {
            return Err(Error::errno(libc::EINVAL)
                .context("a streamOptimized image takes only whole grains")
                .at_path(sparse.storage.name())
                .at_offset(at));
        }
        let place = self.staging.reserve(small(grain));
        Ok(Grant {
            at: GuestOffset(at),
            len: grain,
            storage: STAGING,
            offset: HostOffset(place),
            token: 0,
            state: None,
        })
    }

    /// Packs and appends what was stored at a place in memory.
    pub(super) fn append_staged(&self, grant: &Grant) -> Result<()> {
        let Some(unit) = self.staging.take(grant.offset.0) else {
            return Err(Error::invalid("no such grant").at_offset(grant.at.0));
        };
        let mut packed = Vec::new();
        GrainEncoder::new(Level::Default).encode(grant.at, &unit, &mut packed)?;
        let place = self.grant_packed(grant.at.0, len_u64(packed.len()))?;
        match self.storage_of(place.storage).write_at(place.offset.0, &packed) {
            Ok(()) => self.link_packed(&place),
            Err(e) => {
                self.give_back_packed(&place);
                Err(e)
            }
        }
    }

    pub(super) fn drop_staged(&self, grant: &Grant) {
        self.staging.take(grant.offset.0);
    }
}
