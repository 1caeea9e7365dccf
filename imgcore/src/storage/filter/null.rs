//! A storage that keeps nothing.

use crate::num::len_u64;
use crate::opts::null::NullTarget;
use crate::storage::{FileOptions, HostExtent, HostKind, Limits, Preallocation, Storage, ZeroMode};
use crate::{Error, Result};

/// Reads as zeroes; what is written is forgotten.
#[derive(Debug)]
pub struct NullStorage {
    target: NullTarget,
    name: String,
    writable: bool,
}

impl NullStorage {
    /// As `target` says.
    pub fn new(target: &NullTarget, options: FileOptions) -> Self {
        let name = target.shown().name();
        NullStorage { target: target.clone(), name, writable: options.writable }
    }

    fn wait(&self) {
        if !self.target.latency.is_zero() {
            std::thread::sleep(self.target.latency);
        }
    }

    fn write(&self, offset: u64, len: u64) -> Result<()> {
        if !self.writable {
            return Err(Error::errno(libc::EBADF).at_path(&self.name).at_offset(offset));
        }
        if offset.checked_add(len).is_none_or(|end| end > self.target.size) {
            return Err(Error::errno(libc::ENOSPC).at_path(&self.name).at_offset(offset));
        }
        self.wait();
        Ok(())
    }
}

impl Storage for NullStorage {
    fn name(&self) -> &str {
        &self.name
    }

    fn protocol(&self) -> Option<&'static str> {
        Some(self.target.driver)
    }

    fn len(&self) -> Result<u64> {
        Ok(self.target.size)
    }

    fn read_at(&self, _offset: u64, buf: &mut [u8]) -> Result<()> {
        self.wait();
        buf.fill(0);
        Ok(())
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.write(offset, len_u64(buf.len()))
    }

    fn write_zeroes(&self, offset: u64, len: u64, _mode: ZeroMode) -> Result<()> {
        self.write(offset, len)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.write(offset, len)
    }

    fn flush(&self) -> Result<()> {
        self.wait();
        Ok(())
    }

    fn set_len(&self, len: u64, _how: Preallocation) -> Result<()> {
        if len <= self.target.size {
            return Ok(());
        }
        Err(Error::invalid("Image format driver does not support resize").at_path(&self.name))
    }

    fn status(&self, offset: u64, len: u64) -> Result<HostExtent> {
        let rest = self.target.size.saturating_sub(offset);
        let kind =
            if self.target.read_zeroes || rest == 0 { HostKind::Hole } else { HostKind::Data };
        Ok(HostExtent { kind, len: if rest == 0 { len } else { len.min(rest) } })
    }

    fn allocated(&self) -> Result<Option<u64>> {
        Ok(Some(0))
    }

    fn limits(&self) -> Limits {
        Limits {
            request_alignment: 1,
            discard_alignment: 512,
            opt_transfer: 0,
            block_device: false,
        }
    }

    fn read_only(&self) -> bool {
        !self.writable
    }
}
