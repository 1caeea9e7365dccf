//! The guest's disk as a run of bytes with checked reads.

use std::sync::Arc;

use crate::graph::Node;
use crate::num::{len_u64, small};
use crate::storage::Storage;
use crate::{Error, Result};

/// The largest piece that is read into memory at once (64 MiB): more than any table of a sound disk.
pub const MAX_READ: u64 = 64 << 20;

/// Whatever can answer reads of a disk.
pub trait Source: Send + Sync + std::fmt::Debug {
    /// Length in bytes.
    fn size(&self) -> Result<u64>;
    /// Fills `buf` from `offset`; the range lies inside the disk.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()>;
}

impl Source for Node {
    fn size(&self) -> Result<u64> {
        Ok(self.virtual_size())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.read(offset, buf)
    }
}

/// A storage as a disk.
#[derive(Debug)]
struct Plain(Arc<dyn Storage>);

impl Source for Plain {
    fn size(&self) -> Result<u64> {
        self.0.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.0.read_at(offset, buf)
    }
}

/// The guest's disk. Cheap to clone.
#[derive(Clone, Debug)]
pub struct GuestDisk {
    source: Arc<dyn Source>,
    len: u64,
}

impl GuestDisk {
    /// The disk that an image shows.
    pub fn new(node: Arc<Node>) -> Self {
        let len = node.virtual_size();
        GuestDisk { source: node, len }
    }

    /// A storage that holds the disk byte for byte.
    ///
    /// # Errors
    /// When its length cannot be had.
    pub fn from_storage(storage: Arc<dyn Storage>) -> Result<Self> {
        GuestDisk::from_source(Arc::new(Plain(storage)))
    }

    /// Anything that answers reads.
    ///
    /// # Errors
    /// When its length cannot be had.
    pub fn from_source(source: Arc<dyn Source>) -> Result<Self> {
        let len = source.size()?;
        Ok(GuestDisk { source, len })
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// True when there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// When the range does not lie inside the disk, or cannot be read.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        match offset.checked_add(len_u64(buf.len())) {
            Some(end) if end <= self.len => self.source.read_at(offset, buf),
            _ => Err(beyond("the disk", offset, len_u64(buf.len()), self.len)),
        }
    }

    /// `len` bytes from `offset`, no more than [`MAX_READ`].
    ///
    /// # Errors
    /// As [`GuestDisk::read_at`], and when `len` is larger than the bound.
    pub fn read(&self, offset: u64, len: u64) -> Result<Vec<u8>> {
        let mut buf = buffer(offset, len)?;
        self.read_at(offset, &mut buf)?;
        Ok(buf)
    }
}

/// A buffer for a bounded read.
pub(super) fn buffer(offset: u64, len: u64) -> Result<Vec<u8>> {
    if len > MAX_READ {
        return Err(Error::new(
            crate::ErrorKind::TooLarge,
            format!("a table of {len} bytes is larger than the limit of {MAX_READ}"),
        )
        .at_offset(offset));
    }
    Ok(vec![0; small(len)])
}

/// The error of a read outside.
pub(super) fn beyond(what: &str, offset: u64, len: u64, end: u64) -> Error {
    Error::corrupt(format!(
        "{len} bytes at {offset} are asked for, but {what} ends at {end}: it was truncated or its \
         metadata are damaged"
    ))
    .at_offset(offset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemoryStorage;

    #[test]
    fn reads_are_checked() {
        let storage = Arc::new(MemoryStorage::new("m", vec![7; 1000]));
        let disk = GuestDisk::from_storage(storage).unwrap();
        assert_eq!(disk.len(), 1000);
        assert_eq!(disk.read(990, 10).unwrap(), [7; 10]);
        assert!(disk.read(990, 11).is_err());
        assert!(disk.read(u64::MAX, 2).is_err());
        let large = disk.read(0, MAX_READ + 1).unwrap_err();
        assert_eq!(large.kind(), crate::ErrorKind::TooLarge);
    }
}
