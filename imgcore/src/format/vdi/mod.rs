//! VDI: VirtualBox's disks.
//!
//! One header sector, a *block map* of 32-bit numbers (one for each block of the guest's disk, 1 MiB
//! mostly), and the blocks of the file, which the numbers count. See [`layout`] for the specification.
//!
//! | type | read | write | create |
//! | --- | --- | --- | --- |
//! | dynamic, static | y | y | y |
//! | differencing, undo | y, through the parent | y | |
//!
//! A differencing disk tells its parent by identifier only: see [`parent`]. It is refused where the parent
//! is missing, or was changed since (the parent's own modification identifier tells), because what it reads
//! as would not be what the guest had.
//!
//! # Order of writes
//!
//! From one flush to the next:
//!
//! 1. The first change of an opening gets a new modification identifier into the header: one sector.
//! 2. Blocks go to places that nothing leads to.
//! 3. The header's number of blocks, where it became larger: other programs put new blocks behind that
//!    many. Flush.
//! 4. The changed sectors of the block map. Flush.
//!
//! After a crash between any two writes each entry leads to a complete block or to what was there before;
//! blocks that nothing leads to are lost until the next writer uses them, or `check -r leaks` gives them
//! back. Zeroing happens in the blocks (holes in the file). See [`resize`] for that order.
//!
//! # Locks
//!
//! `flushing`, then `state`. No lock is held while data are read or written; `state` is held while a page
//! of the block map is read.

mod check;
mod compact;
mod create;
mod header;
mod image;
mod layout;
mod parent;
mod resize;
mod space;
mod write;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::options::OptionValue;
use super::uuid::Uuid;
use super::{
    Access, BackingRef, CheckReport, CreateContext, CreateOptions, Driver, Extent, Grant,
    Granularity, Image, ImageInfo, MeasureSource, Measurement, OpenContext, OptionKind, OptionSpec,
    Repair, Resize, SpecificInfo, StorageId, Watcher, ZeroSpace, info,
};
use crate::num::{GuestOffset, round_down, round_up};
use crate::storage::Storage;
use crate::{Error, Result};
use image::VdiImage;
use layout::BLOCK;

/// The driver.
pub struct VdiDriver;

const OPTIONS: &[OptionSpec] = &[
    OptionSpec { name: "size", kind: OptionKind::Size, help: "Virtual disk size", default: None },
    OptionSpec {
        name: "static",
        kind: OptionKind::Bool,
        help: "VDI static (pre-allocated) image",
        default: Some("off"),
    },
];

impl Driver for VdiDriver {
    fn name(&self) -> &'static str {
        "vdi"
    }

    /// 100 for the signature, 0 otherwise.
    fn probe(&self, head: &[u8], _name: &str) -> u32 {
        let found = head.get(layout::SIGNATURE_AT..layout::SIGNATURE_AT + 4);
        if found == Some(&layout::SIGNATURE.to_le_bytes()) { 100 } else { 0 }
    }

    fn open(&self, cx: OpenContext<'_>) -> Result<Box<dyn Image>> {
        image::open(&cx).map(|image| Box::new(image) as Box<dyn Image>)
    }

    fn create_options(&self) -> &'static [OptionSpec] {
        OPTIONS
    }

    fn resolve_options(&self, options: &mut CreateOptions, _size: u64) -> Result<()> {
        if options.flag("static").is_none() {
            options.set("static", OptionValue::Bool(false));
        }
        Ok(())
    }

    fn create(&self, cx: &CreateContext<'_>) -> Result<()> {
        create::create(cx)
    }

    fn measure(&self, options: &CreateOptions, source: MeasureSource<'_>) -> Result<Measurement> {
        let plan = create::plan(options, source.virtual_size)?;
        let fully_allocated = plan.data + plan.blocks * BLOCK;
        let mut required = plan.data;
        let mut counted = 0;
        (source.data_runs)(&mut |start, len| {
            let from = round_down(start, BLOCK).max(counted);
            counted = round_up(start + len, BLOCK).max(counted);
            required += counted.saturating_sub(from);
            Ok(())
        })?;
        if plan.fixed {
            required = fully_allocated;
        }
        Ok(Measurement { required, fully_allocated, bitmaps: None })
    }
}

/// Identifier and modification identifier of an opened VDI; `None` for other formats.
fn identity(image: &dyn Image) -> Result<Option<(Uuid, Uuid)>> {
    Ok(match image.info()?.specific {
        Some(SpecificInfo::Vdi(vdi)) => Uuid::parse(&vdi.uuid).zip(Uuid::parse(&vdi.modify_uuid)),
        _ => None,
    })
}

impl Image for VdiImage {
    fn format_name(&self) -> &'static str {
        "vdi"
    }

    fn virtual_size(&self) -> u64 {
        self.read_state().geometry.size
    }

    fn granularity(&self) -> Granularity {
        let block = self.read_state().geometry.block;
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
        let (parent, modify) = {
            let state = self.read_state();
            (state.geometry.parent, state.geometry.parent_modify)
        };
        // Parents of other formats have no such identifiers to compare.
        if let Some((uuid, now)) = identity(below)? {
            if uuid != parent {
                return Err(Error::corrupt(format!(
                    "the disk below is {uuid}, but this one was made on {parent}"
                ))
                .at_path(self.storage.name())
                .at_offset(424));
            }
            if !modify.is_nil() && now != modify {
                return Err(Error::corrupt(
                    "the parent was changed after this differencing disk was made on it",
                )
                .at_path(self.storage.name())
                .at_offset(440)
                .hint(
                    "restore the parent as it was; what was written to it since would show through",
                ));
            }
        }
        self.parent_checked.store(true, Ordering::Release);
        Ok(())
    }

    fn map(&self, at: GuestOffset, len: u64) -> Result<Extent> {
        self.locate(at.0, len)
    }

    fn note_write(&self, _at: GuestOffset, _len: u64) -> Result<()> {
        if self.access == Access::Read { Ok(()) } else { self.renew_modify() }
    }

    fn prepare_write(&self, at: GuestOffset, len: u64) -> Result<Grant> {
        self.grant(at.0, len)
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
        self.renew_modify()?;
        resize::resize(self, request)
    }

    fn check(&self, repair: Repair, watcher: &dyn Watcher) -> Option<Result<CheckReport>> {
        Some(check::check(self, repair, watcher))
    }

    fn info(&self) -> Result<ImageInfo> {
        let state = self.read_state();
        let g = &state.geometry;
        let some = |uuid: Uuid| (!uuid.is_nil()).then(|| uuid.to_string());
        let vdi = info::VdiInfo {
            image_type: g.kind.name().to_owned(),
            description: Some(g.description.clone()).filter(|d| !d.is_empty()),
            blocks: g.blocks,
            blocks_allocated: g.allocated,
            block_extra: Some(g.extra).filter(|&e| e > 0),
            data_offset: g.data,
            uuid: g.uuid.to_string(),
            modify_uuid: g.modify.to_string(),
            parent_uuid: some(g.parent),
            parent_modify_uuid: some(g.parent_modify),
        };
        Ok(ImageInfo {
            cluster_size: Some(g.block),
            specific: Some(SpecificInfo::Vdi(vdi)),
            dirty: Some(false),
            ..ImageInfo::default()
        })
    }

    fn zero_init(&self) -> bool {
        self.storage.zero_init()
    }
}
