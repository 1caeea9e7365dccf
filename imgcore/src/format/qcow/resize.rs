//! Another size of the guest's disk, and other files below it.
//!
//! Size and place of L1 are in the header's sector, so writing it is what makes a new size valid, all at
//! once. Growing makes sure before that nothing is behind the old end, in a longer L1 at the end of the file
//! where that is necessary. Shrinking forgets what lies behind the new end afterwards.

use super::check::give_leaks_back;
use super::header::{self, Geometry};
use super::image::QcowImage;
use super::layout::{HEADER, MAX_NAME};
use crate::format::two_level::TwoLevel;
use crate::format::{BackingRef, Resize};
use crate::num::{checked_round_up, len_u64, round_up, small};
use crate::storage::{Preallocation, ZeroMode};
use crate::{Error, Result};

/// See [`crate::format::Image::resize`].
pub(super) fn resize(image: &QcowImage, wish: Resize) -> Result<()> {
    image.write_back()?;
    image.storage.flush()?;
    let old = image.read_state().geometry.clone();
    let size = checked_round_up(wish.size, 512).ok_or_else(|| Error::errno(libc::EFBIG))?;
    if size == 0 {
        return Err(Error::invalid("Image size is too small, cannot be zero length"));
    }
    if wish.how != Preallocation::Off {
        return Err(Error::unsupported("Unsupported preallocation mode for qcow images"));
    }
    header::check_size(size, old.span())?;
    let new = Geometry { size, ..old.clone() };
    if size < old.size {
        publish(image, new.clone())?;
        forget_behind(image, &new)?;
        return give_leaks_back(image);
    }
    if wish.hide_below {
        return Err(Error::unsupported(
            "the backing file reaches into the new space, and qcow has nothing that hides it",
        )
        .hint("convert the image to qcow2 first, or rebase it on no file"));
    }
    forget_behind(image, &old)?;
    if new.l1_entries() == old.l1_entries() {
        return publish(image, new);
    }
    let l1 = copy_l1(image, &old, &new)?;
    publish(image, Geometry { l1, ..new })?;
    if old.l1 >= old.cluster() {
        // One that was made here, in clusters of its own.
        let bytes = round_up(old.l1_entries() * 8, old.cluster());
        image.storage.write_zeroes(old.l1, bytes, ZeroMode::MayUnmap)?;
    }
    Ok(())
}

/// Clears entries of the last L2 table that lie behind the end of the disk.
fn forget_behind(image: &QcowImage, g: &Geometry) -> Result<()> {
    let first = g.size.div_ceil(g.cluster());
    let end = g.l1_entries() << g.l2_bits;
    {
        let mut state = image.write_state();
        for index in first..end {
            if state.tables.fetch(&*image.storage, index)? != 0 {
                state.tables.set(&*image.storage, index, 0)?;
            }
        }
    }
    image.write_back()?;
    image.storage.flush()
}

/// A longer L1 at the end of the file.
fn copy_l1(image: &QcowImage, old: &Geometry, new: &Geometry) -> Result<u64> {
    let len = round_up(new.l1_entries() * 8, new.cluster());
    let at = image.write_state().take(len)?;
    let mut bytes = vec![0; small((old.l1_entries() * 8).min(1 << 20))];
    let mut done = 0;
    while done < old.l1_entries() * 8 {
        let n = small((old.l1_entries() * 8 - done).min(1 << 20));
        image.storage.read_at(old.l1 + done, &mut bytes[..n])?;
        image.storage.write_at(at + done, &bytes[..n])?;
        done += len_u64(n);
    }
    image.storage.set_len(at + len, Preallocation::Off)?;
    Ok(at)
}

/// Writes the header and makes the state fit it. Everything that the new header leads to is written.
fn publish(image: &QcowImage, new: Geometry) -> Result<()> {
    image.storage.flush()?;
    header::update(&*image.storage, |h| {
        h.size.set(new.size);
        h.l1_offset.set(new.l1);
    })?;
    image.storage.flush()?;
    let mut state = image.write_state();
    state.tables = TwoLevel::new(new.shape());
    state.geometry = new;
    image.decoded.forget_all();
    Ok(())
}

/// See [`crate::format::Image::make_empty`].
pub(super) fn make_empty(image: &QcowImage) -> Result<()> {
    image.write_back()?;
    let end = {
        let mut state = image.write_state();
        let g = state.geometry.clone();
        for number in 0..g.l1_entries() {
            if state.tables.upper(&*image.storage, number)? != 0 {
                state.tables.set_upper(&*image.storage, number, 0)?;
            }
        }
        let name = g.backing.as_ref().map_or(0, |(at, name)| at + len_u64(name.len()));
        HEADER.max(g.l1 + g.l1_entries() * 8).max(name)
    };
    image.write_back()?;
    image.storage.flush()?;
    image.storage.set_len(end, Preallocation::Off)?;
    image.write_state().next = end;
    image.decoded.forget_all();
    image.storage.flush()?;
    // Where L1 is not in front of the data.
    give_leaks_back(image)
}

/// See [`crate::format::Image::set_backing`]. A name goes to the end of the file, then the header leads to
/// it. The format of the file below cannot be recorded.
pub(super) fn set_backing(image: &QcowImage, backing: Option<&BackingRef>) -> Result<()> {
    let place = match backing {
        None => None,
        Some(backing) => {
            let len = len_u64(backing.name.len());
            if len > MAX_NAME {
                return Err(Error::invalid("Backing file name too long"));
            }
            let at = image.write_state().take(len)?;
            image.storage.write_at(at, backing.name.as_bytes())?;
            Some((at, backing.name.clone()))
        }
    };
    image.storage.flush()?;
    header::update(&*image.storage, |h| {
        h.backing_offset.set(place.as_ref().map_or(0, |p| p.0));
        let len = place.as_ref().map_or(0, |p| p.1.len());
        h.backing_len.set(u32::try_from(len).unwrap_or(0));
    })?;
    image.write_state().geometry.backing = place;
    image.storage.flush()
}
