//! Writing through a node: in place where allowed, copy-on-write otherwise.
//!
//! A write that allocates gets a grant from the format, stores the new bytes *and* what surrounds
//! them in the unit (old bytes of this image, or the backing file's, or zeroes), and only then links
//! it. One exclusive range lock covers all of that.

use super::Node;
use super::open_request::Discard;
use super::range_lock::Hold;
use crate::format::{Access, Grant, Mapping, Resize, ZeroSpace};
use crate::num::{GuestOffset, len_u64, round_down, round_up, small};
use crate::storage::zero::is_zero;
use crate::{Error, Result};

/// Largest piece that one grant covers, so that copy-on-write buffers stay small.
const MAX_GRANT: u64 = 2 << 20;

impl Node {
    fn check_writable(&self) -> Result<()> {
        if self.access == Access::Read {
            return Err(crate::format::read_only(self.image.format_name()).at_path(self.name()));
        }
        Ok(())
    }

    /// Stores guest bytes. The range must lie inside the disk. Durable after [`Node::flush`].
    pub fn write(&self, at: u64, buf: &[u8]) -> Result<()> {
        self.check_writable()?;
        self.check_range(at, len_u64(buf.len()))?;
        if buf.is_empty() {
            return Ok(());
        }
        if let Some(space) = self.detected_zeroes()
            && is_zero(buf)
        {
            return self.write_zeroes(at, len_u64(buf.len()), space);
        }
        self.image.note_write(GuestOffset(at), len_u64(buf.len()))?;
        if !self.write_in_place(at, buf)? {
            let _guard = self.lock(at, len_u64(buf.len()), Hold::Exclusive);
            self.write_unlocked(at, buf)?;
        }
        self.after_write()
    }

    fn after_write(&self) -> Result<()> {
        if self.writethrough { self.image.flush() } else { Ok(()) }
    }

    /// Tries to write under a shared lock; `false` (nothing written that is not right) when some part
    /// needs allocation.
    fn write_in_place(&self, at: u64, buf: &[u8]) -> Result<bool> {
        let _guard = self.lock(at, len_u64(buf.len()), Hold::Shared);
        let mut done = 0;
        while done < buf.len() {
            let here = at + len_u64(done);
            let extent = self.image.map(GuestOffset(here), len_u64(buf.len() - done))?;
            let Mapping::Data { storage, offset, in_place: true, .. } = extent.mapping else {
                return Ok(false);
            };
            let end = done + small(extent.len);
            self.image.storage(storage).write_at(offset.0, &buf[done..end])?;
            done = end;
        }
        Ok(true)
    }

    /// Writes while holding the range exclusively.
    fn write_unlocked(&self, at: u64, buf: &[u8]) -> Result<()> {
        let mut done = 0;
        while done < buf.len() {
            let here = at + len_u64(done);
            let left = len_u64(buf.len() - done);
            let extent = self.image.map(GuestOffset(here), left)?;
            if let Mapping::Data { storage, offset, in_place: true, .. } = extent.mapping {
                let end = done + small(extent.len);
                self.image.storage(storage).write_at(offset.0, &buf[done..end])?;
                done = end;
                continue;
            }
            let len = extent.len.max(self.allocation_len(here, left)?).min(MAX_GRANT).min(left);
            let grant = self.image.prepare_write(GuestOffset(here), len)?;
            let covered = (grant.at.0 + grant.len - here).min(left);
            let end = done + small(covered);
            match self.fill_grant(&grant, here, &buf[done..end]) {
                Ok(()) => self.image.commit_write(grant)?,
                Err(e) => {
                    self.image.abort_write(grant);
                    return Err(e);
                }
            }
            done = end;
        }
        Ok(())
    }

    /// How far allocation is needed from `at` on, looking at most `MAX_GRANT` ahead.
    fn allocation_len(&self, at: u64, left: u64) -> Result<u64> {
        let limit = left.min(MAX_GRANT);
        let mut len = 0;
        while len < limit {
            let extent = self.image.map(GuestOffset(at + len), limit - len)?;
            if matches!(extent.mapping, Mapping::Data { in_place: true, .. }) {
                break;
            }
            len += extent.len;
        }
        Ok(len)
    }

    /// Stores `new` (guest bytes from `at`) and what surrounds it in the grant.
    fn fill_grant(&self, grant: &Grant, at: u64, new: &[u8]) -> Result<()> {
        let storage = self.image.storage(grant.storage);
        let head = small(at - grant.at.0);
        let tail = small(grant.len) - head - new.len();
        if head == 0 && tail == 0 {
            return storage.write_at(grant.offset.0, new);
        }
        let mut whole = vec![0u8; small(grant.len)];
        self.read_old(grant.at.0, &mut whole[..head])?;
        whole[head..head + new.len()].copy_from_slice(new);
        self.read_old(at + len_u64(new.len()), &mut whole[head + new.len()..])?;
        storage.write_at(grant.offset.0, &whole)
    }

    /// Old guest bytes around a write; a unit may reach beyond the end of the disk.
    fn read_old(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let inside = small(self.virtual_size().saturating_sub(at)).min(buf.len());
        let (inside, beyond) = buf.split_at_mut(inside);
        beyond.fill(0);
        if inside.is_empty() { Ok(()) } else { self.read_unlocked(at, inside) }
    }

    /// Makes a guest range read as zeroes, by metadata where the format can.
    pub fn write_zeroes(&self, at: u64, len: u64, space: ZeroSpace) -> Result<()> {
        self.check_writable()?;
        self.check_range(at, len)?;
        if len == 0 {
            return Ok(());
        }
        let space = self.zero_space(space);
        self.image.note_write(GuestOffset(at), len)?;
        let _guard = self.lock(at, len, Hold::Exclusive);
        match self.image.granularity().zero {
            Some(unit) => self.in_units(at, len, unit, |a, l, whole| {
                if whole { self.zero_whole(a, l, space) } else { self.zero_by_writing(a, l) }
            })?,
            None => self.zero_by_writing(at, len)?,
        }
        self.after_write()
    }

    /// Whether [`Node::write_zeroes`] changes metadata and no data in some unit at least of a range: it then takes less
    /// than writing would.
    pub fn zeroes_quickly(&self, at: u64, len: u64, space: ZeroSpace) -> bool {
        let Some(unit) = self.image.granularity().zero else { return false };
        let Some(end) = at.checked_add(len) else { return false };
        let last = if end >= self.virtual_size() { end } else { round_down(end, unit) };
        round_up(at, unit) < last && self.image.zeroes_are_quick(self.zero_space(space))
    }

    /// Whether the user lets zeroes give space back.
    pub fn may_unmap(&self) -> bool {
        self.discard != Some(Discard::Ignore)
    }

    /// What becomes of space, as the user wants it.
    fn zero_space(&self, space: ZeroSpace) -> ZeroSpace {
        if self.may_unmap() { space } else { ZeroSpace::Keep }
    }

    fn zero_whole(&self, at: u64, len: u64, space: ZeroSpace) -> Result<()> {
        match self.image.write_zeroes(GuestOffset(at), len, space) {
            Err(e) if e.raw_errno() == Some(libc::ENOTSUP) => self.zero_by_writing(at, len),
            other => other,
        }
    }

    /// Zeroes by storing zero bytes, except where the guest sees zeroes already.
    fn zero_by_writing(&self, at: u64, len: u64) -> Result<()> {
        let mut old = vec![0u8; small(len.min(MAX_GRANT))];
        let zeroes = vec![0u8; old.len()];
        let mut done = 0;
        while done < len {
            let n = small((len - done).min(MAX_GRANT));
            self.read_unlocked(at + done, &mut old[..n])?;
            if !is_zero(&old[..n]) {
                self.write_unlocked(at + done, &zeroes[..n])?;
            }
            done += len_u64(n);
        }
        Ok(())
    }

    /// Gives a guest range back. Parts of units are left alone. Reads as zeroes afterwards where the
    /// format can say so.
    pub fn discard(&self, at: u64, len: u64) -> Result<()> {
        self.check_writable()?;
        self.check_range(at, len)?;
        let Some(unit) = self.image.granularity().discard else { return Ok(()) };
        if len == 0 || self.discard == Some(Discard::Ignore) {
            return Ok(());
        }
        self.image.note_write(GuestOffset(at), len)?;
        let _guard = self.lock(at, len, Hold::Exclusive);
        self.in_units(at, len, unit, |a, l, whole| {
            if whole { self.image.discard(GuestOffset(a), l) } else { Ok(()) }
        })
    }

    /// Calls `each(at, len, whole)` for the partial head, the whole units and the partial tail of a
    /// range; a tail that ends with the disk counts as whole.
    fn in_units(
        &self,
        at: u64,
        len: u64,
        unit: u64,
        mut each: impl FnMut(u64, u64, bool) -> Result<()>,
    ) -> Result<()> {
        let end = at + len;
        let first = round_up(at, unit).min(end);
        let last = if end == self.virtual_size() { end } else { round_down(end, unit).max(first) };
        if first > at {
            each(at, first - at, first == end && at.is_multiple_of(unit))?;
        }
        if last > first {
            each(first, last - first, true)?;
        }
        if end > last {
            each(last, end - last, false)?;
        }
        Ok(())
    }

    /// Changes the size of the guest's disk. New bytes read as zeroes, whatever lies below.
    pub fn resize(&self, size: u64, how: crate::storage::Preallocation) -> Result<()> {
        self.check_writable()?;
        let old = self.virtual_size();
        let _guard = self.locks.lock(0, u64::MAX, Hold::Exclusive);
        let hide_below = self.backing.as_ref().is_some_and(|b| b.virtual_size() > old);
        let request = Resize { size, how, hide_below };
        self.image.resize(request).map_err(|e: Error| e.at_path(self.name()))?;
        // What an earlier, longer disk or the file below has in the unit that the old end cut.
        let end = round_up(old, self.image.granularity().allocation).min(self.virtual_size());
        if end > old {
            self.zero_by_writing(old, end - old)?;
            self.image.flush()?;
        }
        Ok(())
    }
}
