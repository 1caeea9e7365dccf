//! Creating images.

use zerocopy::{FromZeros, IntoBytes};

use super::geometry::Chs;
use super::layout::{self, BLOCK, Footer, Header, SECTOR};
use crate::format::uuid::Uuid;
use crate::format::{CreateContext, CreateOptions};
use crate::num::{round_up, small};
use crate::storage::Preallocation;
use crate::{Error, Result};

/// Size and kind of the new disk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub sectors: u64,
    chs: Chs,
    pub fixed: bool,
}

impl Plan {
    /// Entries of the block allocation table.
    pub fn blocks(&self) -> u64 {
        self.sectors.div_ceil(BLOCK / SECTOR)
    }

    /// Where the first block of a dynamic disk can be.
    pub fn table_end(&self) -> u64 {
        layout::TABLE_AT + round_up(self.blocks() * 4, SECTOR)
    }
}

/// Checks options and size. Without `force_size` the size is rounded up to a geometry, as far as there are
/// geometries.
pub(super) fn plan(options: &CreateOptions, size: u64) -> Result<Plan> {
    let fixed = match options.text("subformat") {
        None | Some("dynamic") => false,
        Some("fixed") => true,
        Some(other) => {
            return Err(Error::invalid(format!(
                "Parameter 'subformat' does not accept value '{other}'"
            )));
        }
    };
    let wanted = size.div_ceil(SECTOR);
    let (sectors, chs) = if options.flag("force_size") == Some(true) {
        (wanted, Chs::MAX)
    } else {
        match Chs::covering(wanted) {
            Some(chs) => (chs.total(), chs),
            None => (wanted, Chs::MAX),
        }
    };
    if sectors > layout::MAX_SECTORS {
        return Err(Error::errno(libc::EFBIG));
    }
    Ok(Plan { sectors, chs, fixed })
}

/// Seconds since 2000.
pub(super) fn now() -> u32 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seconds = now.map_or(0, |n| n.as_secs()).saturating_sub(layout::EPOCH);
    u32::try_from(seconds).unwrap_or(u32::MAX)
}

fn footer(plan: &Plan) -> Footer {
    let mut footer = Footer::new_zeroed();
    footer.cookie = layout::COOKIE;
    footer.features.set(layout::FEATURES);
    footer.version.set(layout::VERSION);
    footer.data_offset.set(if plan.fixed { u64::MAX } else { layout::HEADER_AT });
    footer.time_stamp.set(now());
    // Readers that take the geometry for the size do so for makers they know; this one they do not, and
    // the size is the geometry's where there is one.
    footer.creator = *b"rimg";
    footer.creator_version.set(layout::VERSION);
    footer.creator_os = *b"Wi2k";
    footer.original_size.set(plan.sectors * SECTOR);
    footer.current_size.set(plan.sectors * SECTOR);
    footer.cylinders.set(plan.chs.cylinders);
    footer.heads = plan.chs.heads;
    footer.sectors = plan.chs.sectors;
    footer.disk_type.set(if plan.fixed { layout::TYPE_FIXED } else { layout::TYPE_DYNAMIC });
    footer.uuid = Uuid::random().to_be();
    footer.seal();
    footer
}

/// Creates an empty image. `preallocation` says how a fixed one is reserved; a dynamic one has no blocks
/// yet.
pub(super) fn create(cx: &CreateContext<'_>) -> Result<()> {
    let plan = plan(cx.options, cx.size)?;
    let how = crate::format::options::preallocation(
        cx.options,
        &[Preallocation::Falloc, Preallocation::Full],
    )?;
    let storage = cx.files.main()?;
    let footer = footer(&plan);
    if plan.fixed {
        storage.set_len(plan.sectors * SECTOR, how)?;
        return storage.write_at(plan.sectors * SECTOR, footer.as_bytes());
    }
    let mut header = Header::new_zeroed();
    header.cookie = layout::HEADER_COOKIE;
    header.data_offset.set(u64::MAX);
    header.table_offset.set(layout::TABLE_AT);
    header.version.set(layout::VERSION);
    header.max_entries.set(u32::try_from(plan.blocks()).map_err(|_| Error::errno(libc::EFBIG))?);
    header.block_size.set(u32::try_from(BLOCK).map_err(|_| Error::errno(libc::EFBIG))?);
    header.seal();
    storage.write_at(0, footer.as_bytes())?;
    storage.write_at(layout::HEADER_AT, header.as_bytes())?;
    storage.write_at(layout::TABLE_AT, &vec![0xff; small(plan.table_end() - layout::TABLE_AT)])?;
    storage.write_at(plan.table_end(), footer.as_bytes())
}
