//! A small full disk, and files for whatever an image names.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::crypto::SecretBytes;
use crate::format::{Access, NewFiles, OpenGate};
use crate::storage::{HostExtent, Limits, MemoryStorage, Preallocation, Storage, ZeroMode};
use crate::{Error, Result};

/// Of every encrypted image here.
const PASSPHRASE: &str = "correct horse";

/// A file on a disk that has little room: growing past it fails as a full disk does.
#[derive(Debug)]
pub(super) struct OnlyHere {
    bytes: MemoryStorage,
    room: u64,
    full: AtomicBool,
}

impl OnlyHere {
    pub fn new(bytes: Vec<u8>, room: u64) -> Self {
        OnlyHere { bytes: MemoryStorage::new("image", bytes), room, full: AtomicBool::new(false) }
    }

    pub fn to_vec(&self) -> Vec<u8> {
        self.bytes.to_vec()
    }

    /// Whether something did not fit.
    pub fn was_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    fn fits(&self, offset: u64, len: u64) -> Result<()> {
        if offset.checked_add(len).is_some_and(|end| end <= self.room) {
            return Ok(());
        }
        self.full.store(true, Ordering::Relaxed);
        Err(Error::errno(libc::ENOSPC).at_path("image").at_offset(offset))
    }
}

impl Storage for OnlyHere {
    fn name(&self) -> &str {
        self.bytes.name()
    }
    fn len(&self) -> Result<u64> {
        self.bytes.len()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.bytes.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.fits(offset, crate::num::len_u64(buf.len()))?;
        self.bytes.write_at(offset, buf)
    }
    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        self.fits(offset, len)?;
        self.bytes.write_zeroes(offset, len, mode)
    }
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.bytes.discard(offset, len)
    }
    fn flush(&self) -> Result<()> {
        Ok(())
    }
    fn set_len(&self, len: u64, how: Preallocation) -> Result<()> {
        self.fits(0, len)?;
        self.bytes.set_len(len, how)
    }
    fn status(&self, offset: u64, len: u64) -> Result<HostExtent> {
        self.bytes.status(offset, len)
    }
    fn limits(&self) -> Limits {
        self.bytes.limits()
    }
    fn read_only(&self) -> bool {
        false
    }
}

/// Opens a small file for every name, so that the ways to further files are walked, too.
pub(super) struct Decoy;

impl OpenGate for Decoy {
    fn open_storage(&self, reference: &str, _access: Access) -> Result<Arc<dyn Storage>> {
        if reference.len().is_multiple_of(3) {
            return Err(Error::errno(libc::ENOENT).at_path(reference));
        }
        Ok(Arc::new(MemoryStorage::new(reference, vec![0x17; 70_000])))
    }

    fn passphrase(&self, _: Option<&str>) -> Result<Option<SecretBytes>> {
        Ok(Some(SecretBytes::new(PASSPHRASE.into())))
    }
}

/// Takes a new image.
pub(super) struct NewFile(pub Arc<MemoryStorage>);

impl NewFiles for NewFile {
    fn main(&self) -> Result<Arc<dyn Storage>> {
        Ok(Arc::clone(&self.0) as Arc<dyn Storage>)
    }
    fn beside(&self, _: &str) -> Result<Arc<dyn Storage>> {
        Err(Error::errno(libc::ENOTSUP))
    }
    fn existing(&self, _: &str) -> Result<Arc<dyn Storage>> {
        Err(Error::errno(libc::ENOTSUP))
    }
    fn passphrase(&self, _: Option<&str>) -> Result<Option<SecretBytes>> {
        Ok(Some(SecretBytes::new(PASSPHRASE.into())))
    }
}
