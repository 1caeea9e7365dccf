//! Creating images.

use zerocopy::{FromZeros, IntoBytes};

use super::header::narrow;
use super::layout::{self, BLOCK, Header, SECTOR};
use crate::format::uuid::Uuid;
use crate::format::{CreateContext, CreateOptions};
use crate::num::{checked_round_up, len_u64, round_up, small};
use crate::storage::Preallocation;
use crate::{Error, Result};

/// Entries written at once.
const BATCH: u64 = 256 << 10;

/// Size of the disk and of its parts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub size: u64,
    pub blocks: u64,
    /// Where the data begin.
    pub data: u64,
    pub fixed: bool,
}

/// Checks size and options.
pub(super) fn plan(options: &CreateOptions, size: u64) -> Result<Plan> {
    let rounded = checked_round_up(size, SECTOR).filter(|&s| s <= layout::MAX_SIZE);
    let Some(rounded) = rounded else {
        return Err(Error::invalid(format!(
            "Unsupported VDI image size (size is {size:#x}, max supported is {:#x})",
            layout::MAX_SIZE
        )));
    };
    let blocks = rounded.div_ceil(BLOCK);
    Ok(Plan {
        size: rounded,
        blocks,
        data: SECTOR + round_up(blocks * 4, SECTOR),
        fixed: options.flag("static") == Some(true),
    })
}

/// Creates an empty image. `preallocation` says how the blocks of a static one are reserved; a dynamic
/// one has none yet.
pub(super) fn create(cx: &CreateContext<'_>) -> Result<()> {
    let plan = plan(cx.options, cx.size)?;
    let how = crate::format::options::preallocation(
        cx.options,
        &[Preallocation::Falloc, Preallocation::Full],
    )?;
    let storage = cx.files.main()?;
    let mut header = Header::new_zeroed();
    header.text[..layout::TEXT.len()].copy_from_slice(layout::TEXT);
    header.signature.set(layout::SIGNATURE);
    header.version.set(layout::VERSION);
    header.header_size.set(layout::HEADER_SIZE);
    header.image_type.set(if plan.fixed { layout::TYPE_STATIC } else { layout::TYPE_DYNAMIC });
    header.offset_map = narrow(SECTOR);
    header.offset_data =
        u32::try_from(plan.data).map(Into::into).map_err(|_| Error::errno(libc::EFBIG))?;
    header.sector_size = narrow(SECTOR);
    header.disk_size.set(plan.size);
    header.block_size = narrow(BLOCK);
    header.blocks = narrow(plan.blocks);
    header.blocks_allocated = narrow(if plan.fixed { plan.blocks } else { 0 });
    header.uuid = Uuid::random().to_le();
    header.uuid_modify = Uuid::random().to_le();
    storage.write_at(0, header.as_bytes())?;
    let mut bytes = Vec::new();
    for first in (0..plan.blocks).step_by(small(BATCH)) {
        let last = plan.blocks.min(first + BATCH);
        if plan.fixed {
            bytes.clear();
            for number in first..last {
                bytes.extend_from_slice(narrow(number).as_bytes());
            }
        } else {
            bytes.resize(small((last - first) * 4), 0xff);
        }
        storage.write_at(SECTOR + first * 4, &bytes)?;
    }
    if plan.fixed {
        storage.set_len(plan.data + plan.blocks * BLOCK, how)
    } else if len_u64(bytes.len()) == 0 {
        Ok(())
    } else {
        storage.set_len(plan.data, Preallocation::Off)
    }
}
