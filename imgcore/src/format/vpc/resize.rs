//! Another size of the guest's disk.
//!
//! The size is in the footer and its copy. Both lead to the same table, which fits the larger of the two
//! sizes while they differ:
//!
//! * Growing: new entries behind the old ones where there is room, otherwise a new table at the end of the
//!   file; then the header (one sector leads to the table), the copy of the footer, the footer.
//! * Shrinking: entries behind the new end are forgotten and their space is given back; then the footers.
//! * Fixed disks: a new footer where the disk will end; then what the old one left in the disk is zeroed,
//!   or the file is cut behind the new one. A crash before that zeroing leaves the old footer's bytes in
//!   the new part of the disk.
//!
//! A resized disk has the size that was asked for, not that of a geometry: its maker becomes one that no
//! program takes the geometry of.

use zerocopy::IntoBytes;

use super::compact;
use super::geometry::Chs;
use super::header::{Blocks, Kind};
use super::image::{State, VpcImage};
use super::layout::{MAX_SECTORS, SECTOR, UNUSED};
use crate::format::{Resize, Unwatched};
use crate::num::{checked_round_up, round_up, small};
use crate::storage::{Preallocation, ZeroMode};
use crate::{Error, Result};

/// See [`crate::format::Image::resize`].
pub(super) fn resize(image: &VpcImage, wish: Resize) -> Result<()> {
    image.write_back()?;
    image.storage.flush()?;
    let size = checked_round_up(wish.size, SECTOR).filter(|&s| s <= MAX_SECTORS * SECTOR);
    let Some(size) = size else {
        return Err(
            Error::errno(libc::EFBIG).context("The image size is too large for file format 'vpc'")
        );
    };
    let (old, blocks, kind) = {
        let state = image.read_state();
        (state.geometry.size, state.geometry.blocks, state.geometry.kind)
    };
    if kind == Kind::Differencing {
        return Err(crate::format::read_only("vpc"));
    }
    let Some(b) = blocks else { return resize_fixed(image, old, size, wish.how) };
    if wish.how != Preallocation::Off {
        return Err(Error::unsupported(
            "Preallocation is not supported for growing a dynamic VHD image",
        ));
    }
    let wanted = size.div_ceil(b.block);
    if wanted > b.entries {
        grow_table(image, &b, wanted)?;
    } else if size < old {
        shrink(image, &b, wanted, old)?;
    } else {
        clear_entries(image, &b, old.div_ceil(b.block), wanted)?;
    }
    set_size(image, size);
    image.write_headers()
}

fn set_size(image: &VpcImage, size: u64) {
    let mut state = image.write_state();
    let chs = Chs::of(size / SECTOR);
    let footer = &mut state.geometry.footer;
    footer.current_size.set(size);
    footer.creator = *b"rimg";
    footer.cylinders.set(chs.cylinders);
    footer.heads = chs.heads;
    footer.sectors = chs.sectors;
    footer.seal();
    state.geometry.size = size;
}

fn resize_fixed(image: &VpcImage, old: u64, size: u64, how: Preallocation) -> Result<()> {
    if how == Preallocation::Metadata {
        return Err(Error::unsupported("Unsupported preallocation mode: metadata"));
    }
    let end = image.storage.len()?;
    set_size(image, size);
    let footer = image.read_state().geometry.footer;
    image.storage.write_at(size, footer.as_bytes())?;
    image.storage.flush()?;
    if size > old {
        image.storage.write_zeroes(old, end.min(size) - old, ZeroMode::MayUnmap)?;
        crate::storage::reserve(&*image.storage, old, size - old, how)?;
    }
    if image.storage.len()? > size + SECTOR {
        image.storage.set_len(size + SECTOR, Preallocation::Off)?;
    }
    image.storage.flush()?;
    let mut state = image.write_state();
    state.next = size;
    state.limit = size + SECTOR;
    Ok(())
}

/// Entries behind the disk's end may hold anything.
fn clear_entries(image: &VpcImage, b: &Blocks, from: u64, to: u64) -> Result<()> {
    {
        let mut state = image.write_state();
        for index in from..to.min(b.entries) {
            if state.table.fetch(&*image.storage, index)? != UNUSED {
                state.table.set(&*image.storage, index, UNUSED)?;
            }
        }
    }
    image.write_back()?;
    image.storage.flush()
}

fn shrink(image: &VpcImage, b: &Blocks, wanted: u64, old: u64) -> Result<()> {
    clear_entries(image, b, wanted, old.div_ceil(b.block))?;
    compact::compact(image, b, &Unwatched)
}

/// Makes the table long enough for `wanted` entries.
fn grow_table(image: &VpcImage, b: &Blocks, wanted: u64) -> Result<()> {
    let (size, mut next) = {
        let state = image.read_state();
        (state.geometry.size, state.next)
    };
    let used = size.div_ceil(b.block);
    let room = round_up(wanted * 4, SECTOR);
    let mut bytes = vec![0xff; small(room)];
    for index in 0..used {
        let (entry, _) = image.entry(index, 1)?;
        let entry = u32::try_from(entry).unwrap_or(u32::MAX);
        let at = small(index * 4);
        bytes[at..at + 4].copy_from_slice(&entry.to_be_bytes());
    }
    let place = if b.table + wanted * 4 <= b.table_end() {
        // The last sector of the old table has room.
        b.table
    } else {
        next = round_up(next, 4096);
        next + SECTOR
    };
    let mut new = *b;
    new.table = place;
    new.entries = wanted;
    new.header.table_offset.set(place);
    new.header.max_entries.set(u32::try_from(wanted).map_err(|_| Error::errno(libc::EFBIG))?);
    new.header.seal();
    if place == b.table {
        // Only entries that the header does not tell yet change.
        let from = small(used * 4);
        image.storage.write_at(place + used * 4, &bytes[from..small(wanted * 4)])?;
    } else {
        image.storage.write_at(place, &bytes)?;
        next = place + room;
        let mut state = image.write_state();
        state.next = next;
        state.grew = true;
    }
    // The file ends with a footer again before anything leads to the new table.
    image.write_back()?;
    image.storage.flush()?;
    image.storage.write_at(b.header_at, &new.header.as_bytes()[..small(SECTOR)])?;
    image.storage.flush()?;
    let len = image.storage.len()?;
    let mut state = image.write_state();
    let mut geometry = state.geometry;
    geometry.blocks = Some(new);
    *state = State::new(geometry, len);
    state.next = next;
    Ok(())
}
