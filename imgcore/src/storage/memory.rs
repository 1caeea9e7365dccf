//! A storage in memory, for tests and for small images made on the fly.

use std::sync::RwLock;

use super::{HostExtent, HostKind, Limits, Preallocation, Storage, ZeroMode, zero};
use crate::num::{len_u64, small, to_usize};
use crate::{Error, Result};

/// Bytes in memory.
#[derive(Debug)]
pub struct MemoryStorage {
    name: String,
    bytes: RwLock<Vec<u8>>,
}

impl MemoryStorage {
    /// A storage holding `bytes`.
    pub fn new(name: impl Into<String>, bytes: Vec<u8>) -> Self {
        MemoryStorage { name: name.into(), bytes: RwLock::new(bytes) }
    }

    /// A copy of the bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        self.read().clone()
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Vec<u8>> {
        self.bytes.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Vec<u8>> {
        self.bytes.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Storage for MemoryStorage {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> Result<u64> {
        Ok(len_u64(self.read().len()))
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let bytes = self.read();
        let start = small(offset).min(bytes.len());
        let have = buf.len().min(bytes.len() - start);
        buf[..have].copy_from_slice(&bytes[start..start + have]);
        buf[have..].fill(0);
        Ok(())
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        let start = to_usize(offset)?;
        let end = start
            .checked_add(buf.len())
            .ok_or_else(|| Error::errno(libc::EFBIG).at_path(&self.name).at_offset(offset))?;
        let mut bytes = self.write();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[start..end].copy_from_slice(buf);
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64, _mode: ZeroMode) -> Result<()> {
        let start = to_usize(offset)?;
        let end = start
            .checked_add(to_usize(len)?)
            .ok_or_else(|| Error::errno(libc::EFBIG).at_path(&self.name).at_offset(offset))?;
        let mut bytes = self.write();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[start..end].fill(0);
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let mut bytes = self.write();
        let start = small(offset).min(bytes.len());
        let end = small(offset.saturating_add(len)).min(bytes.len());
        bytes[start..end].fill(0);
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn set_len(&self, len: u64, _how: Preallocation) -> Result<()> {
        self.write().resize(to_usize(len)?, 0);
        Ok(())
    }

    fn status(&self, offset: u64, len: u64) -> Result<HostExtent> {
        let bytes = self.read();
        let start = small(offset).min(bytes.len());
        let end = small(offset.saturating_add(len)).min(bytes.len());
        if start == end {
            return Ok(HostExtent { kind: HostKind::Hole, len });
        }
        let (zero, run) = zero::first_run(&bytes[start..end], 4096);
        let kind = if zero { HostKind::Hole } else { HostKind::Data };
        Ok(HostExtent { kind, len: len_u64(run) })
    }

    fn limits(&self) -> Limits {
        Limits { request_alignment: 1, discard_alignment: 1, opt_transfer: 0, block_device: false }
    }

    fn read_only(&self) -> bool {
        false
    }
}
