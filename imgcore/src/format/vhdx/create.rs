//! Creating images.

use zerocopy::{FromZeros, IntoBytes};

use super::header::{self, Region, Regions};
use super::layout::{
    self, BITMAP_SECTORS, HEADERS_AT, Header, MAX_BLOCK, MAX_SIZE, MIB, REGIONS_AT, state,
};
use super::metadata;
use crate::format::uuid::Uuid;
use crate::format::{CreateContext, CreateOptions};
use crate::num::{checked_round_up, len_u64, round_up, small};
use crate::storage::{Preallocation, Storage};
use crate::{Error, Result};

/// Entries written at once.
const BATCH: u64 = 128 << 10;
/// Sector of new disks.
const SECTOR: u64 = 512;

/// A checked wish.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub size: u64,
    pub block: u64,
    pub log: u64,
    pub fixed: bool,
    /// State of blocks that were never written.
    pub empty: u64,
}

impl Plan {
    /// Blocks of the disk.
    pub fn blocks(&self) -> u64 {
        self.size.div_ceil(self.block)
    }

    fn chunk(&self) -> u64 {
        BITMAP_SECTORS * SECTOR / self.block
    }

    /// Entries of the block allocation table.
    pub fn entries(&self) -> u64 {
        let blocks = self.blocks();
        blocks + blocks.saturating_sub(1) / self.chunk()
    }

    fn regions(&self) -> Regions {
        let metadata = Region { offset: MIB + self.log, length: MIB };
        let length = round_up((self.entries() * 8).max(1), MIB);
        let bat = Region { offset: metadata.offset + MIB, length };
        Regions { bat, metadata, both: true }
    }

    /// Where the first block can be.
    pub fn data(&self) -> u64 {
        let bat = self.regions().bat;
        bat.offset + bat.length
    }
}

/// The block size that QEMU chooses.
fn usual_block(size: u64) -> u64 {
    const GIB: u64 = 1 << 30;
    if size > 32 * 1024 * GIB {
        64 * MIB
    } else if size > 100 * GIB {
        32 * MIB
    } else if size > GIB {
        16 * MIB
    } else {
        8 * MIB
    }
}

/// Checks options and size, with QEMU's words.
pub(super) fn plan(options: &CreateOptions, size: u64) -> Result<Plan> {
    let size = checked_round_up(size, SECTOR)
        .filter(|&s| s <= MAX_SIZE)
        .ok_or_else(|| Error::invalid("Image size too large; max of 64TB"))?;
    let fixed = match options.text("subformat") {
        None | Some("dynamic") => false,
        Some("fixed") => true,
        Some(other) => {
            return Err(Error::invalid(format!(
                "Parameter 'subformat' does not accept value '{other}'"
            )));
        }
    };
    let log = options.number("log_size").unwrap_or(MIB);
    let log = checked_round_up(log, MIB)
        .filter(|&n| n < 4 << 30)
        .ok_or_else(|| Error::invalid("Log size must be smaller than 4 GB"))?;
    if log == 0 {
        return Err(Error::invalid("Log size must be a multiple of 1 MB"));
    }
    let block = match options.number("block_size").unwrap_or(0) {
        0 => usual_block(size),
        n => round_up(n, MIB).min(MAX_BLOCK),
    };
    if !block.is_power_of_two() {
        return Err(Error::invalid("Block size must be a power of two"));
    }
    let zero = options.flag("block_state_zero") != Some(false);
    let empty = if zero { state::ZERO } else { state::NOT_PRESENT };
    Ok(Plan { size, block, log, fixed, empty })
}

fn header(plan: &Plan, sequence: u64) -> Header {
    let mut raw = Header::new_zeroed();
    raw.signature = layout::HEADER_SIGNATURE;
    raw.sequence.set(sequence);
    raw.file_write = Uuid::random().to_le();
    raw.data_write = Uuid::random().to_le();
    raw.version.set(1);
    raw.log_length.set(u32::try_from(plan.log).unwrap_or(u32::MAX));
    raw.log_offset.set(MIB);
    raw.seal();
    raw
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
    let regions = plan.regions();
    let mut first = layout::FILE_SIGNATURE.to_vec();
    first.extend("rimg".encode_utf16().flat_map(u16::to_le_bytes));
    storage.write_at(0, &first)?;
    for (sequence, at) in (0..).zip(HEADERS_AT) {
        storage.write_at(at, header(&plan, sequence).as_bytes())?;
    }
    for at in REGIONS_AT {
        storage.write_at(at, &header::region_table(&regions))?;
    }
    let new = metadata::New {
        block: u32::try_from(plan.block).map_err(|_| Error::errno(libc::EFBIG))?,
        fixed: plan.fixed,
        size: plan.size,
    };
    storage.write_at(regions.metadata.offset, &metadata::bytes(new))?;
    storage.set_len(plan.data(), Preallocation::Off)?;
    if plan.fixed {
        storage.set_len(plan.data() + plan.blocks() * plan.block, Preallocation::Off)?;
        crate::storage::reserve(&*storage, plan.data(), plan.blocks() * plan.block, how)?;
    } else if plan.empty == state::NOT_PRESENT {
        return Ok(());
    }
    table(&*storage, &plan, regions.bat.offset)
}

fn table(storage: &dyn Storage, plan: &Plan, at: u64) -> Result<()> {
    let group = plan.chunk() + 1;
    let mut bytes = Vec::new();
    let mut at = at;
    let mut place = plan.data();
    for index in 0..plan.entries() {
        let entry = if index % group == plan.chunk() {
            0
        } else if plan.fixed {
            place += plan.block;
            (place - plan.block) | state::FULLY_PRESENT
        } else {
            plan.empty
        };
        bytes.extend_from_slice(&entry.to_le_bytes());
        if bytes.len() >= small(BATCH * 8) {
            storage.write_at(at, &bytes)?;
            at += len_u64(bytes.len());
            bytes.clear();
        }
    }
    storage.write_at(at, &bytes)
}
