//! A window on another storage (raw `offset=`/`size=`, extents inside a larger file).

use std::sync::Arc;

use super::calls::{Call, Want};
use super::{CopyKind, HostExtent, HostKind, Limits, Preallocation, Storage, ZeroMode};
use crate::num::len_u64;
use crate::{Error, Result};

/// `len` bytes of `inner` from `start` on.
#[derive(Debug)]
pub struct SliceStorage {
    inner: Arc<dyn Storage>,
    start: u64,
    len: u64,
}

impl SliceStorage {
    /// A window of `len` bytes at `start`; the end must not overflow.
    pub fn new(inner: Arc<dyn Storage>, start: u64, len: u64) -> Result<Self> {
        start
            .checked_add(len)
            .ok_or_else(|| Error::invalid("window beyond the largest possible offset"))?;
        Ok(SliceStorage { inner, start, len })
    }

    /// Bytes of a request that lie inside the window.
    fn inside(&self, offset: u64, len: u64) -> u64 {
        len.min(self.len.saturating_sub(offset))
    }

    fn check(&self, offset: u64, len: u64) -> Result<u64> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(self.start + offset),
            _ => Err(Error::errno(libc::ENOSPC).at_path(self.inner.name()).at_offset(offset)),
        }
    }
}

impl Storage for SliceStorage {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn len(&self) -> Result<u64> {
        Ok(self.len)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let have = crate::num::small(self.inside(offset, len_u64(buf.len())));
        let (inside, outside) = buf.split_at_mut(have);
        outside.fill(0);
        if inside.is_empty() { Ok(()) } else { self.inner.read_at(self.start + offset, inside) }
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.inner.write_at(self.check(offset, len_u64(buf.len()))?, buf)
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        self.inner.write_zeroes(self.check(offset, len)?, len, mode)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.inner.discard(self.check(offset, len)?, len)
    }

    fn flush(&self) -> Result<()> {
        self.inner.flush()
    }

    fn set_len(&self, len: u64, _how: Preallocation) -> Result<()> {
        if len == self.len {
            return Ok(());
        }
        Err(Error::unsupported("Cannot resize an image that is a window on a larger file"))
    }

    fn status(&self, offset: u64, len: u64) -> Result<HostExtent> {
        match self.inside(offset, len) {
            0 => Ok(HostExtent { kind: HostKind::Hole, len }),
            n => self.inner.status(self.start + offset, n),
        }
    }

    fn identity(&self) -> Option<String> {
        self.inner.identity().map(|id| format!("{id}, from byte {}", self.start))
    }

    fn whole(&self) -> Option<(&dyn Storage, u64)> {
        match self.inner.whole() {
            Some((whole, start)) => Some((whole, start.saturating_add(self.start))),
            None => Some((&*self.inner, self.start)),
        }
    }

    fn as_call(&self, want: Want) -> Option<Call<'_>> {
        let inside = |offset, len| self.check(offset, len).ok();
        self.inner.as_call(match want {
            Want::Flush => Want::Flush,
            Want::Discard { offset, len } => Want::Discard { offset: inside(offset, len)?, len },
            Want::WriteZeroes { offset, len, mode } => {
                Want::WriteZeroes { offset: inside(offset, len)?, len, mode }
            }
        })
    }

    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    fn read_only(&self) -> bool {
        self.inner.read_only()
    }

    fn copy_from(
        &self,
        source: &dyn Storage,
        source_offset: u64,
        offset: u64,
        len: u64,
        kind: CopyKind,
    ) -> Result<bool> {
        self.inner.copy_from(source, source_offset, self.check(offset, len)?, len, kind)
    }

    fn zero_init(&self) -> bool {
        false
    }

    fn set_sharing(&self, write: bool) -> Result<()> {
        self.inner.set_sharing(write)
    }
}
