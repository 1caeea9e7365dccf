//! VHD, called `vpc` by QEMU: the disks of Virtual PC, Hyper-V and Azure. See [`layout`] for the
//! specification.
//!
//! A *fixed* disk is the guest's bytes and a footer. A *dynamic* one has a copy of the footer at the
//! beginning, a header, a *block allocation table*, and blocks (2 MiB, mostly), each behind a bitmap that
//! tells which of its sectors are in use; the footer is at the end.
//!
//! | type | read | write | create |
//! | --- | --- | --- | --- |
//! | fixed, dynamic | y | y | y |
//! | differencing | y, through the parent | | |
//!
//! A differencing disk whose parent is not found is refused: what it would read as without is not what the
//! guest had. Bitmaps count for differencing disks only; in dynamic ones sectors not in use are zero on disk,
//! and programs disagree about looking at the bitmap.
//!
//! # Order of writes
//!
//! From one flush to the next:
//!
//! 1. Blocks go to the end of the file, over the footer: bitmap and data. Nothing leads there, and the copy
//!    of the footer is enough to open the image.
//! 2. The footer, behind the last block. Flush.
//! 3. The changed sectors of the table. Flush.
//!
//! After a crash between any two writes each entry leads to a complete block or to what was there before.
//! Blocks that nothing leads to, and a missing footer at the end, are put right by `check -r leaks`; the
//! footer also by the next writer. See [`resize`] for that order.
//!
//! # Locks
//!
//! `flushing`, then `state`. No lock is held while data are read or written; `state` is held while a page
//! of the table is read and while the footer is written.

mod check;
mod compact;
mod create;
mod geometry;
mod header;
mod image;
mod layout;
mod parent;
mod resize;
mod write;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::uuid::Uuid;
use super::{
    Access, BackingRef, CheckReport, CreateContext, CreateOptions, Driver, Extent, Grant,
    Granularity, Image, ImageInfo, MeasureSource, Measurement, OpenContext, OptionKind, OptionSpec,
    Repair, Resize, SpecificInfo, StorageId, Watcher, ZeroSpace, info,
};
use crate::num::{GuestOffset, round_down, round_up};
use crate::storage::Storage;
use crate::{Error, Result};
use image::VpcImage;
use layout::{BLOCK, SECTOR};

/// The driver.
pub struct VpcDriver;

const fn option(name: &'static str, kind: OptionKind, help: &'static str) -> OptionSpec {
    OptionSpec { name, kind, help, default: None }
}

const OPTIONS: &[OptionSpec] = &[
    option("size", OptionKind::Size, "Virtual disk size"),
    option(
        "subformat",
        OptionKind::Text,
        "Type of virtual hard disk format. Supported formats are {dynamic (default) | fixed} ",
    ),
    option(
        "force_size",
        OptionKind::Bool,
        "Force disk size calculation to use the actual size specified, rather than using the nearest CHS-based calculation",
    ),
];

impl Driver for VpcDriver {
    fn name(&self) -> &'static str {
        "vpc"
    }

    /// 100 for the copy of the footer that all but fixed disks begin with, 0 otherwise.
    fn probe(&self, head: &[u8], _name: &str) -> u32 {
        if head.starts_with(&layout::COOKIE) { 100 } else { 0 }
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

    fn measure(&self, options: &CreateOptions, source: MeasureSource<'_>) -> Result<Measurement> {
        let plan = create::plan(options, source.virtual_size)?;
        if plan.fixed {
            let all = plan.sectors * SECTOR + SECTOR;
            return Ok(Measurement { required: all, fully_allocated: all, bitmaps: None });
        }
        // Blocks begin so that their data lie at multiples of 4 KiB.
        let span = BLOCK + 4096;
        let base = round_up(plan.table_end(), 4096) + SECTOR;
        let mut count = 0;
        let mut counted = 0;
        (source.data_runs)(&mut |start, len| {
            let from = round_down(start, BLOCK).max(counted);
            counted = round_up(start + len, BLOCK).max(counted);
            count += counted.saturating_sub(from) / BLOCK;
            Ok(())
        })?;
        Ok(Measurement {
            required: if count == 0 { plan.table_end() + SECTOR } else { base + count * span },
            fully_allocated: base + plan.blocks() * span,
            bitmaps: None,
        })
    }
}

/// The identifier of an opened VHD; `None` for other formats.
fn identifier(image: &dyn Image) -> Result<Option<Uuid>> {
    Ok(match image.info()?.specific {
        Some(SpecificInfo::Vpc(vpc)) => Uuid::parse(&vpc.uuid),
        _ => None,
    })
}

impl Image for VpcImage {
    fn format_name(&self) -> &'static str {
        "vpc"
    }

    fn virtual_size(&self) -> u64 {
        self.read_state().geometry.size
    }

    fn granularity(&self) -> Granularity {
        let block = self.read_state().geometry.blocks.map_or(1, |b| b.block);
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
        let parent = self.blocks()?.parent();
        let found = identifier(below)?;
        if found != Some(parent) {
            let found = found.map_or("no VHD".to_owned(), |uuid| uuid.to_string());
            return Err(Error::corrupt(format!(
                "the disk below is {found}, but this one was made on {parent}"
            ))
            .at_path(self.storage.name()));
        }
        self.parent_checked.store(true, Ordering::Release);
        Ok(())
    }

    fn map(&self, at: GuestOffset, len: u64) -> Result<Extent> {
        self.locate(at.0, len)
    }

    fn note_write(&self, at: GuestOffset, len: u64) -> Result<()> {
        if self.access == Access::Read { Ok(()) } else { self.fill_bitmaps(at.0, len) }
    }

    fn prepare_write(&self, at: GuestOffset, _len: u64) -> Result<Grant> {
        self.grant(at.0)
    }

    fn commit_write(&self, grant: Grant) -> Result<()> {
        self.link(&grant)
    }

    fn abort_write(&self, grant: Grant) {
        self.give_back(&grant);
    }

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

    fn resize(&self, request: Resize) -> Result<()> {
        resize::resize(self, request)
    }

    fn check(&self, repair: Repair, watcher: &dyn Watcher) -> Option<Result<CheckReport>> {
        Some(check::check(self, repair, watcher))
    }

    fn info(&self) -> Result<ImageInfo> {
        let state = self.read_state();
        let g = &state.geometry;
        let f = &g.footer;
        let parent = g.blocks.map(|b| b.parent()).filter(|uuid| !uuid.is_nil());
        let vpc = info::VpcInfo {
            subformat: g.kind.name().to_owned(),
            creator: String::from_utf8_lossy(&f.creator).trim_end_matches(['\0', ' ']).to_owned(),
            creator_version: format!(
                "{}.{}",
                f.creator_version.get() >> 16,
                f.creator_version.get() & 0xffff
            ),
            creator_host_os: String::from_utf8_lossy(&f.creator_os)
                .trim_end_matches(['\0', ' '])
                .to_owned(),
            created: u64::from(f.time_stamp.get()) + layout::EPOCH,
            uuid: Uuid::from_be(f.uuid).to_string(),
            original_size: f.original_size.get(),
            current_size: f.current_size.get(),
            cylinders: f.cylinders.get(),
            heads: f.heads,
            sectors: f.sectors,
            saved_state: f.saved_state != 0,
            parent_uuid: parent.map(|uuid| uuid.to_string()),
            parent_names: Some(self.parent_names.clone()).filter(|n| !n.is_empty()),
        };
        Ok(ImageInfo {
            cluster_size: g.blocks.map(|b| b.block),
            specific: Some(SpecificInfo::Vpc(vpc)),
            dirty: Some(false),
            ..ImageInfo::default()
        })
    }

    fn zero_init(&self) -> bool {
        self.storage.zero_init()
    }
}
