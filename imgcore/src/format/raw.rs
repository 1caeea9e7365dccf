//! raw: the guest's disk byte for byte.
//!
//! A disk whose file is not a multiple of 512 bytes is shown rounded up; the missing bytes read as
//! zeroes and appear in the file when something is written there. There are no tables, so there is
//! no order of writes to keep: `flush` is the storage's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{
    Access, CreateContext, CreateOptions, Driver, Extent, Granularity, Image, ImageInfo, Mapping,
    MeasureSource, Measurement, OpenContext, OptionKind, OptionSpec, Resize, StorageId, ZeroSpace,
};
use crate::num::{GuestOffset, HostOffset, checked_round_up};
use crate::storage::{Preallocation, Storage, ZeroMode};
use crate::{Error, Result};

/// Guest disks are counted in sectors.
const SECTOR: u64 = 512;

/// The driver.
pub struct RawDriver;

const OPTIONS: &[OptionSpec] = &[
    OptionSpec { name: "size", kind: OptionKind::Size, help: "Virtual disk size", default: None },
    OptionSpec {
        name: "preallocation",
        kind: OptionKind::Text,
        help: "Preallocation mode (allowed values: off, falloc, full)",
        default: None,
    },
    OptionSpec {
        name: "nocow",
        kind: OptionKind::Bool,
        help: "Turn off copy-on-write (valid only on btrfs)",
        default: None,
    },
    OptionSpec {
        name: "extent_size_hint",
        kind: OptionKind::Size,
        help: "Extent size hint for the image file, 0 to disable",
        default: None,
    },
];

impl Driver for RawDriver {
    fn name(&self) -> &'static str {
        "raw"
    }

    fn probe(&self, _head: &[u8], _name: &str) -> u32 {
        1
    }

    fn open(&self, cx: OpenContext<'_>) -> Result<Box<dyn Image>> {
        // `offset=` and `size=` make a window below the image: see `crate::graph::open`.
        if let Some((name, _)) = cx.options.first() {
            return Err(super::options::unknown(self.name(), name));
        }
        RawImage::new(cx.storage, cx.access).map(|image| Box::new(image) as Box<dyn Image>)
    }

    fn create_options(&self) -> &'static [OptionSpec] {
        OPTIONS
    }

    fn create(&self, cx: &CreateContext<'_>) -> Result<()> {
        let how = super::options::preallocation(
            cx.options,
            &[Preallocation::Falloc, Preallocation::Full],
        )?;
        let storage = cx.files.main()?;
        let size = checked_round_up(cx.size, SECTOR)
            .filter(|&s| i64::try_from(s).is_ok())
            .ok_or_else(|| Error::errno(libc::EFBIG))?;
        if storage.limits().block_device {
            if storage.len()? < size {
                let have = storage.len()?;
                return Err(Error::errno(libc::ENOSPC)
                    .context(format!("the device has {have} bytes, the image needs {size}"))
                    .hint("choose a larger device; qcow2 or compression may need less"));
            }
            return Ok(());
        }
        storage.set_len(size, how)
    }

    fn measure(&self, _options: &CreateOptions, source: MeasureSource<'_>) -> Result<Measurement> {
        let size = crate::num::round_up(source.virtual_size, SECTOR);
        Ok(Measurement { required: size, fully_allocated: size, bitmaps: None })
    }
}

/// An opened raw image.
#[derive(Debug)]
pub struct RawImage {
    storage: Arc<dyn Storage>,
    size: AtomicU64,
    access: Access,
}

impl RawImage {
    fn new(storage: Arc<dyn Storage>, access: Access) -> Result<Self> {
        let size = crate::num::round_up(storage.len()?, SECTOR);
        Ok(RawImage { storage, size: AtomicU64::new(size), access })
    }
}

impl Image for RawImage {
    fn format_name(&self) -> &'static str {
        "raw"
    }

    fn virtual_size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn granularity(&self) -> Granularity {
        Granularity {
            allocation: 1,
            zero: Some(1),
            discard: Some(1),
            encode: None,
            append_only: false,
        }
    }

    fn storage(&self, _id: StorageId) -> &Arc<dyn Storage> {
        &self.storage
    }

    fn plain(&self) -> Option<&Arc<dyn Storage>> {
        Some(&self.storage)
    }

    fn map(&self, at: GuestOffset, len: u64) -> Result<Extent> {
        Ok(Extent {
            len,
            mapping: Mapping::Data {
                storage: StorageId(0),
                offset: HostOffset(at.0),
                in_place: self.access == Access::Write,
                probe_holes: true,
            },
        })
    }

    fn write_zeroes(&self, at: GuestOffset, len: u64, space: ZeroSpace) -> Result<()> {
        self.storage.write_zeroes(at.0, len, ZeroMode::from(space))
    }

    fn discard(&self, at: GuestOffset, len: u64) -> Result<()> {
        self.storage.discard(at.0, len)
    }

    fn flush(&self) -> Result<()> {
        self.storage.flush()
    }

    fn resize(&self, request: Resize) -> Result<()> {
        let Resize { size, how, .. } = request;
        if how == Preallocation::Metadata {
            return Err(Error::unsupported("Unsupported preallocation mode: metadata"));
        }
        let shown = checked_round_up(size, SECTOR).ok_or_else(|| Error::errno(libc::EFBIG))?;
        if self.storage.limits().block_device && size != self.storage.len()? {
            return Err(Error::invalid("Cannot resize device files"));
        }
        self.storage.set_len(size, how)?;
        self.size.store(shown, Ordering::Release);
        Ok(())
    }

    fn make_empty(&self) -> Result<()> {
        Err(Error::errno(libc::ENOTSUP))
    }

    fn info(&self) -> Result<ImageInfo> {
        Ok(ImageInfo { dirty: Some(false), ..ImageInfo::default() })
    }

    fn zero_init(&self) -> bool {
        self.storage.zero_init()
    }

    fn zeroes_are_quick(&self, space: ZeroSpace) -> bool {
        self.storage.zeroes_are_quick(ZeroMode::from(space))
    }
}
