//! One image in a chain: reading, and the life of a node.

use std::sync::Arc;

use super::open_request::{DetectZeroes, Discard};
use super::range_lock::{Hold, RangeLocks};
use crate::format::{Access, Image, Mapping, ZeroSpace};
use crate::num::{GuestOffset, HostOffset, len_u64, round_down, round_up, small};
use crate::storage::Storage;
use crate::{Error, Result};

/// An image and the chain below it.
#[derive(Debug)]
pub struct Node {
    pub(super) image: Box<dyn Image>,
    pub(super) backing: Option<Arc<Node>>,
    pub(super) locks: RangeLocks,
    pub(super) access: Access,
    pub(super) writethrough: bool,
    pub(super) detect_zeroes: DetectZeroes,
    /// `None`: as whoever asks for it means it.
    pub(super) discard: Option<Discard>,
    /// As the user wrote it.
    pub(super) name: String,
}

impl Node {
    /// A node named `name` over `image`.
    pub fn new(
        name: impl Into<String>,
        image: Box<dyn Image>,
        backing: Option<Arc<Node>>,
        access: Access,
    ) -> Self {
        let writethrough = false;
        Node {
            image,
            backing,
            locks: RangeLocks::default(),
            access,
            writethrough,
            detect_zeroes: DetectZeroes::Off,
            discard: None,
            name: name.into(),
        }
    }

    /// Flush after every write.
    #[must_use]
    pub fn with_writethrough(mut self, on: bool) -> Self {
        self.writethrough = on;
        self
    }

    /// What becomes of zero bytes that are written, and of space that is given back.
    #[must_use]
    pub fn with_space_options(mut self, detect: DetectZeroes, discard: Option<Discard>) -> Self {
        self.detect_zeroes = detect;
        self.discard = discard;
        self
    }

    /// How a run of zero bytes is to be stored, where writes are looked at for that.
    pub fn detected_zeroes(&self) -> Option<ZeroSpace> {
        match self.detect_zeroes {
            DetectZeroes::Off => None,
            DetectZeroes::On => Some(ZeroSpace::Keep),
            DetectZeroes::Unmap => Some(ZeroSpace::Unmap),
        }
    }

    /// The name by which it was opened.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The image itself.
    pub fn image(&self) -> &dyn Image {
        &*self.image
    }

    /// The node below.
    pub fn backing(&self) -> Option<&Arc<Node>> {
        self.backing.as_ref()
    }

    /// This node and all below it, top first.
    pub fn chain(&self) -> Vec<&Node> {
        let mut all = vec![self];
        let mut at = self;
        while let Some(next) = &at.backing {
            all.push(next);
            at = next;
        }
        all
    }

    /// Size of the guest's disk in bytes.
    pub fn virtual_size(&self) -> u64 {
        self.image.virtual_size()
    }

    /// Whether it was opened for writing.
    pub fn writable(&self) -> bool {
        self.access == Access::Write
    }

    /// Fills `buf` with guest bytes from `at`. The range must lie inside the disk.
    pub fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.check_range(at, len_u64(buf.len()))?;
        if buf.is_empty() {
            return Ok(());
        }
        let _guard = self.lock(at, len_u64(buf.len()), Hold::Shared);
        self.read_unlocked(at, buf)
    }

    /// As [`Node::read`], for a caller that holds the range or is alone.
    pub(super) fn read_unlocked(&self, mut at: u64, mut buf: &mut [u8]) -> Result<()> {
        while !buf.is_empty() {
            let extent = self.image.map(GuestOffset(at), len_u64(buf.len()))?;
            let (part, rest) = buf.split_at_mut(small(extent.len).min(buf.len()));
            self.read_extent(at, &extent.mapping, part)?;
            at += len_u64(part.len());
            buf = rest;
        }
        Ok(())
    }

    fn read_extent(&self, at: u64, mapping: &Mapping, part: &mut [u8]) -> Result<()> {
        match *mapping {
            Mapping::Data { storage, offset, .. } => {
                self.image.storage(storage).read_at(offset.0, part)
            }
            Mapping::Zero { .. } => {
                part.fill(0);
                Ok(())
            }
            Mapping::Encoded { .. } => self.image.read_encoded(GuestOffset(at), part),
            Mapping::Backing => self.read_below(at, part),
        }
    }

    /// What the guest sees at `at` where this image has nothing: the backing file's bytes, and zeroes
    /// beyond its end.
    pub(super) fn read_below(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let Some(below) = &self.backing else {
            buf.fill(0);
            return Ok(());
        };
        self.image.check_backing(&*below.image)?;
        let have = below.virtual_size().saturating_sub(at).min(len_u64(buf.len()));
        let (inside, beyond) = buf.split_at_mut(small(have));
        beyond.fill(0);
        if inside.is_empty() { Ok(()) } else { below.read(at, inside) }
    }

    /// Locks a guest range, rounded to allocation units.
    pub(super) fn lock(&self, at: u64, len: u64, hold: Hold) -> super::range_lock::RangeGuard<'_> {
        let unit = self.image.granularity().allocation;
        self.locks.lock(round_down(at, unit), round_up(at.saturating_add(len), unit), hold)
    }

    pub(super) fn check_range(&self, at: u64, len: u64) -> Result<()> {
        match at.checked_add(len) {
            Some(end) if end <= self.virtual_size() => Ok(()),
            _ => Err(Error::errno(libc::EIO)
                .context(format!(
                    "request of {len} bytes at {at} is beyond the end of the disk ({} bytes)",
                    self.virtual_size()
                ))
                .at_path(&self.name)
                .at_offset(at)),
        }
    }

    /// Waits until everything written is durable, here and in nothing below (which is not written).
    pub fn flush(&self) -> Result<()> {
        if self.access == Access::Read { Ok(()) } else { self.image.flush() }
    }

    /// Leaves the image as a clean shutdown does.
    pub fn close(&self) -> Result<()> {
        if self.access == Access::Read { Ok(()) } else { self.image.close() }
    }

    /// Where a host offset is, for messages.
    pub fn host_name(&self, storage: crate::format::StorageId) -> &str {
        let mut at: &dyn Storage = &**self.image.storage(storage);
        // Offsets on a raw disk are those of the file, whatever stands between.
        while let Some(filter) = at.filter().filter(|_| self.image.format_name() == "raw") {
            at = filter.below;
        }
        at.name()
    }
}

/// A place in a storage, for those who copy without a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which storage of the image.
    pub storage: crate::format::StorageId,
    /// Offset there.
    pub offset: HostOffset,
}
