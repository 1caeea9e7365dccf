//! Another size of the guest's disk.
//!
//! The size is a number in the metadata, changed through the log: all at once. Before that:
//!
//! * Growing writes the new entries behind the old ones, where the region has room. Where it has none, a
//!   longer table is written at the end of the file, and the region tables follow, one after the other; both
//!   tables tell the same of the old disk.
//! * Shrinking forgets the entries behind the new end and gives their space back.

use super::compact;
use super::header::{self, Region, Regions};
use super::image::{State, VhdxImage, bat_entries, chunk};
use super::layout::{MAX_SIZE, MIB, state};
use crate::format::{Resize, Unwatched};
use crate::num::{checked_round_up, round_up, small};
use crate::storage::Preallocation;
use crate::{Error, Result};

/// See [`crate::format::Image::resize`].
pub(super) fn resize(image: &VhdxImage, wish: Resize) -> Result<()> {
    image.begin()?;
    image.write_back()?;
    let meta = image.read_state().meta.clone();
    let size = checked_round_up(wish.size, meta.logical)
        .filter(|&s| s <= MAX_SIZE)
        .ok_or_else(|| Error::invalid("Image size too large; max of 64TB"))?;
    if wish.how == Preallocation::Metadata {
        return Err(Error::unsupported("Unsupported preallocation mode: metadata"));
    }
    if size > meta.size {
        grow(image, size, wish.how)?;
    } else {
        shrink(image, size)?;
    }
    set_size(image, size)
}

fn set_size(image: &VhdxImage, size: u64) -> Result<()> {
    let at = image.read_state().meta.size_at;
    {
        let mut writing = image.writing();
        image.change(&mut writing, &[(at, size.to_le_bytes().to_vec())])?;
    }
    image.storage.flush()?;
    let limit = image.storage.len()?;
    let mut state = image.write_state();
    let mut meta = state.meta.clone();
    meta.size = size;
    *state = State::new(meta, state.regions, limit);
    Ok(())
}

fn shrink(image: &VhdxImage, size: u64) -> Result<()> {
    {
        let mut state = image.write_state();
        let first = size.div_ceil(state.meta.block);
        for block in first..state.blocks() {
            let index = state.entry_of(block);
            if state.bat.fetch(&*image.storage, index)? != state::ZERO {
                state.bat.set(&*image.storage, index, state::ZERO)?;
            }
        }
    }
    image.write_back()?;
    compact::compact(image, &Unwatched)
}

fn grow(image: &VhdxImage, size: u64, how: Preallocation) -> Result<()> {
    let (meta, mut regions) = {
        let state = image.read_state();
        (state.meta.clone(), state.regions)
    };
    let old_entries = bat_entries(&meta, meta.size);
    let entries = bat_entries(&meta, size);
    let fresh = entries * 8 > regions.bat.length;
    if fresh {
        let length = round_up(entries * 8, MIB);
        if length > u64::from(u32::MAX) {
            return Err(Error::errno(libc::EFBIG)
                .context("the block allocation table would be too long; blocks are too small"));
        }
        let offset = round_up(image.storage.len()?, MIB);
        image.storage.set_len(offset + length, Preallocation::Off)?;
        regions = Regions { bat: Region { offset, length }, ..regions };
    }
    let reserve = meta.fixed || matches!(how, Preallocation::Falloc | Preallocation::Full);
    let blocks = meta.size.div_ceil(meta.block);
    let more = size.div_ceil(meta.block) - blocks;
    let start = round_up(image.storage.len()?, MIB);
    if reserve {
        image.storage.set_len(start + more * meta.block, Preallocation::Off)?;
        crate::storage::reserve(&*image.storage, start, more * meta.block, how)?;
    }
    let group = chunk(&meta) + 1;
    let from = if fresh { 0 } else { old_entries };
    let mut bytes = Vec::new();
    for index in from..entries {
        let block = index - index / group;
        let entry = if index < old_entries {
            image.write_state().bat.fetch(&*image.storage, index)?
        } else if index % group == group - 1 {
            0
        } else if reserve && block >= blocks {
            (start + (block - blocks) * meta.block) | state::FULLY_PRESENT
        } else {
            state::ZERO
        };
        bytes.extend_from_slice(&entry.to_le_bytes());
        if bytes.len() >= small(MIB) {
            write_entries(image, &regions, index + 1, &mut bytes)?;
        }
    }
    write_entries(image, &regions, entries, &mut bytes)?;
    image.storage.flush()?;
    if fresh {
        header::write_regions(&*image.storage, &regions)?;
        image.write_state().regions = Regions { both: true, ..regions };
    }
    Ok(())
}

/// Writes entries that end with number `end`.
fn write_entries(
    image: &VhdxImage,
    regions: &Regions,
    end: u64,
    bytes: &mut Vec<u8>,
) -> Result<()> {
    let at = regions.bat.offset + end * 8 - crate::num::len_u64(bytes.len());
    image.storage.write_at(at, bytes)?;
    bytes.clear();
    Ok(())
}
