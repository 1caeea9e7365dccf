//! VHDX: Hyper-V's disks. See [`layout`] for the specification.
//!
//! Two headers (the one with the higher sequence number counts), two equal region tables, a log, metadata,
//! a *block allocation table*, and payload blocks of 1 to 256 MiB. All structures have a CRC-32C.
//!
//! | type | read | write | create |
//! | --- | --- | --- | --- |
//! | fixed, dynamic; sectors of 512 and 4096 bytes | y | y | y (512) |
//! | differencing | y, through the parent | | |
//!
//! A log that a crash left behind is replayed: on disk where the image is opened for writing, in memory
//! ([`overlay`]) where it is opened for reading. A differencing disk whose parent is missing or was changed
//! since is refused.
//!
//! # Order of writes
//!
//! 1. Before the first change of an opening both headers get new identifiers, one after the other; from then
//!    on log entries of this opening count.
//! 2. New blocks are made at the end of the file, where they read as zero, and written. Flush.
//! 3. The changed sectors of the table, as one log entry of at most 126. Flush. The same in their place.
//!    Flush. The next entry.
//! 4. Closing: both headers tell, one after the other, that the log is empty.
//!
//! After a crash between any two writes the log is replayed, or its entry is torn and nothing of it was
//! carried out; each table entry leads to a complete block or to what was there before. Space that nothing
//! leads to is given back by `check -r leaks`. See [`resize`] for that order. New images that nobody else
//! sees (targets of a conversion) are written without the log.
//!
//! # Locks
//!
//! `writing`, then `state`. `state` is not held while data are read or written; it is held while a page of
//! the table is read and while a new block is made.

mod check;
mod compact;
mod create;
mod header;
mod image;
mod layout;
mod log;
mod metadata;
mod overlay;
mod parent;
mod resize;
mod write;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::uuid::Uuid;
use super::{
    Access, BackingRef, CheckReport, CreateContext, Driver, Extent, Grant, Granularity, Image,
    ImageInfo, MeasureSource, Measurement, OpenContext, OptionKind, OptionSpec, Repair, Resize,
    SpecificInfo, StorageId, Watcher, ZeroSpace, info,
};
use crate::num::{GuestOffset, round_down, round_up};
use crate::storage::Storage;
use crate::{Error, Result};
use image::VhdxImage;

/// The driver.
pub struct VhdxDriver;

const OPTIONS: &[OptionSpec] = &[
    OptionSpec {
        name: "size",
        kind: OptionKind::Size,
        help: "Virtual disk size; max of 64TB.",
        default: None,
    },
    OptionSpec {
        name: "log_size",
        kind: OptionKind::Size,
        help: "Log size; min 1MB.",
        default: Some("1048576"),
    },
    OptionSpec {
        name: "block_size",
        kind: OptionKind::Size,
        help: "Block Size; min 1MB, max 256MB. 0 means auto-calculate based on image size.",
        default: Some("0"),
    },
    OptionSpec {
        name: "subformat",
        kind: OptionKind::Text,
        help: "VHDX format type, can be either 'dynamic' or 'fixed'. Default is 'dynamic'.",
        default: None,
    },
    OptionSpec {
        name: "block_state_zero",
        kind: OptionKind::Bool,
        help: "Force use of payload blocks of type 'ZERO'. Non-standard, but default.  Do not set to 'off' when using 'qemu-img convert' with subformat=dynamic.",
        default: None,
    },
];

impl Driver for VhdxDriver {
    fn name(&self) -> &'static str {
        "vhdx"
    }

    /// 100 for the signature, 0 otherwise.
    fn probe(&self, head: &[u8], _name: &str) -> u32 {
        if head.starts_with(&layout::FILE_SIGNATURE) { 100 } else { 0 }
    }

    fn open(&self, cx: OpenContext<'_>) -> Result<Box<dyn Image>> {
        image::open(&cx).map(|image| Box::new(image) as Box<dyn Image>)
    }

    fn create_options(&self) -> &'static [OptionSpec] {
        OPTIONS
    }

    fn create(&self, cx: &CreateContext<'_>) -> Result<()> {
        create::create(cx)
    }

    fn measure(
        &self,
        options: &super::CreateOptions,
        source: MeasureSource<'_>,
    ) -> Result<Measurement> {
        let plan = create::plan(options, source.virtual_size)?;
        let fully_allocated = plan.data() + plan.blocks() * plan.block;
        let mut required = plan.data();
        let mut counted = 0;
        (source.data_runs)(&mut |start, len| {
            let from = round_down(start, plan.block).max(counted);
            counted = round_up(start + len, plan.block).max(counted);
            required += counted.saturating_sub(from);
            Ok(())
        })?;
        if plan.fixed {
            required = fully_allocated;
        }
        Ok(Measurement { required, fully_allocated, bitmaps: None })
    }
}

/// The data-write identifier of an opened VHDX; `None` for other formats.
fn identifier(image: &dyn Image) -> Result<Option<Uuid>> {
    Ok(match image.info()?.specific {
        Some(SpecificInfo::Vhdx(vhdx)) => Uuid::parse(&vhdx.data_write_guid),
        _ => None,
    })
}

impl Image for VhdxImage {
    fn format_name(&self) -> &'static str {
        "vhdx"
    }

    fn virtual_size(&self) -> u64 {
        self.read_state().meta.size
    }

    fn granularity(&self) -> Granularity {
        let block = self.read_state().meta.block;
        Granularity {
            allocation: block,
            zero: Some(block),
            discard: Some(block),
            encode: None,
            append_only: false,
        }
    }

    fn storage(&self, _id: StorageId) -> &Arc<dyn Storage> {
        &self.storage
    }

    fn backing(&self) -> Option<BackingRef> {
        self.backing.clone()
    }

    fn check_backing(&self, below: &dyn Image) -> Result<()> {
        if self.parent_checked.load(Ordering::Acquire) {
            return Ok(());
        }
        let wanted = self.read_state().meta.parent.as_ref().map(parent::linkage);
        let found = identifier(below)?;
        if !found.is_some_and(|uuid| wanted.unwrap_or_default().contains(&uuid)) {
            return Err(Error::corrupt(
                "the disk below is not the parent of this differencing disk, or was changed since",
            )
            .at_path(self.storage.name()));
        }
        self.parent_checked.store(true, Ordering::Release);
        Ok(())
    }

    fn map(&self, at: GuestOffset, len: u64) -> Result<Extent> {
        self.locate(at.0, len)
    }

    fn note_write(&self, _at: GuestOffset, _len: u64) -> Result<()> {
        if self.access == Access::Read { Ok(()) } else { self.begin() }
    }

    fn prepare_write(&self, at: GuestOffset, len: u64) -> Result<Grant> {
        self.grant(at.0, len)
    }

    fn commit_write(&self, _grant: Grant) -> Result<()> {
        Ok(())
    }

    fn abort_write(&self, _grant: Grant) {}

    fn write_zeroes(&self, at: GuestOffset, len: u64, space: ZeroSpace) -> Result<()> {
        self.zero(at.0, len, space)
    }

    fn discard(&self, at: GuestOffset, len: u64) -> Result<()> {
        self.zero(at.0, len, ZeroSpace::Unmap)
    }

    fn flush(&self) -> Result<()> {
        self.write_back()?;
        self.storage.flush()
    }

    fn close(&self) -> Result<()> {
        self.flush()?;
        self.end()
    }

    fn resize(&self, request: Resize) -> Result<()> {
        resize::resize(self, request)
    }

    fn check(&self, repair: Repair, watcher: &dyn Watcher) -> Option<Result<CheckReport>> {
        Some(check::check(self, repair, watcher))
    }

    fn info(&self) -> Result<ImageInfo> {
        let header = self.writing().header;
        let state = self.read_state();
        let m = &state.meta;
        let subformat = match (m.parent.is_some(), m.fixed) {
            (true, _) => "differencing",
            (false, true) => "fixed",
            (false, false) => "dynamic",
        };
        let linkage =
            m.parent.as_ref().map(|p| parent::linkage(p).iter().map(Uuid::to_string).collect());
        let vhdx = info::VhdxInfo {
            subformat: subformat.to_owned(),
            creator: self.creator.clone(),
            sequence_number: header.raw.sequence.get(),
            file_write_guid: Uuid::from_le(header.raw.file_write).to_string(),
            data_write_guid: Uuid::from_le(header.raw.data_write).to_string(),
            disk_id: m.id.to_string(),
            logical_sector_size: m.logical,
            physical_sector_size: m.physical,
            log_size: header.raw.log_length.get().into(),
            log_to_replay: self.dirty && self.access == Access::Read,
            parent_linkage: linkage,
            parent_names: m.parent.as_ref().map(parent::names),
        };
        Ok(ImageInfo {
            cluster_size: Some(m.block),
            specific: Some(SpecificInfo::Vhdx(vhdx)),
            dirty: Some(false),
            ..ImageInfo::default()
        })
    }

    fn zero_init(&self) -> bool {
        self.storage.zero_init()
    }
}
