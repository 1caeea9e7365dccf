//! Another size of the guest's disk, and other files below it.
//!
//! The tables are as large as they ever get, so the size in the header's one sector is all there is to
//! change. Growing makes sure before that nothing shows in the new space; shrinking forgets afterwards what
//! lies behind the new end, and gives its space back.

use super::compact::compact;
use super::header::{self, Geometry, max_size};
use super::image::QedImage;
use super::layout::{HEADER, MAX_NAME, feature};
use crate::format::{BackingRef, Resize, Unwatched};
use crate::num::{checked_round_up, len_u64, round_up};
use crate::storage::Preallocation;
use crate::{Error, Result};

/// See [`crate::format::Image::resize`].
pub(super) fn resize(image: &QedImage, wish: Resize) -> Result<()> {
    let old = image.read_state().geometry.clone();
    let max = max_size(old.cluster, old.table_size).unwrap_or(u64::MAX);
    let size = checked_round_up(wish.size, 512)
        .filter(|&size| size <= max && i64::try_from(size).is_ok())
        .ok_or_else(|| Error::invalid("Invalid image size specified"))?;
    if wish.how != Preallocation::Off {
        let mode = crate::format::options::preallocation_name(wish.how);
        return Err(Error::unsupported(format!("Unsupported preallocation mode '{mode}'")));
    }
    image.mark()?;
    if size < old.size {
        image.write_back()?;
        publish(image, size)?;
        forget_behind(image, size)?;
        return compact(image, &Unwatched);
    }
    forget_behind(image, old.size)?;
    if wish.hide_below {
        let from = round_up(old.size, old.cluster);
        if from < size {
            image.zero_entries(from, size - from)?;
        }
    }
    image.write_back()?;
    publish(image, size)
}

/// Forgets clusters behind the end of the disk: in the table that the end cuts, and all further tables.
fn forget_behind(image: &QedImage, size: u64) -> Result<()> {
    let g = image.read_state().geometry.clone();
    let storage = &*image.storage;
    let first = size.div_ceil(g.cluster);
    let cut = first.div_ceil(g.entries());
    {
        let mut state = image.write_state();
        for index in first..cut * g.entries() {
            if state.tables.fetch(storage, index)? != 0 {
                state.tables.set(storage, index, 0)?;
            }
        }
        for number in cut..g.entries() {
            if state.tables.upper(storage, number)? != 0 {
                state.tables.set_upper(storage, number, 0)?;
            }
        }
    }
    image.write_back()?;
    storage.flush()
}

fn publish(image: &QedImage, size: u64) -> Result<()> {
    image.storage.flush()?;
    header::update(&*image.storage, |h| h.size.set(size))?;
    image.storage.flush()?;
    image.write_state().geometry.size = size;
    Ok(())
}

/// See [`crate::format::Image::make_empty`].
pub(super) fn make_empty(image: &QedImage) -> Result<()> {
    image.mark()?;
    forget_behind(image, 0)?;
    compact(image, &Unwatched)
}

/// See [`crate::format::Image::set_backing`]. The name goes where the one before is not, then the header
/// leads to it.
pub(super) fn set_backing(image: &QedImage, backing: Option<&BackingRef>) -> Result<()> {
    let g = image.read_state().geometry.clone();
    if g.compat_features != 0 {
        return Err(Error::unsupported(
            "the image has compatible features that are not known here, and may not be changed",
        ));
    }
    let raw = backing.is_some_and(|b| b.format.as_deref() == Some("raw"));
    let place = match backing {
        None => None,
        Some(backing) => Some((place_for(&g, &backing.name)?, backing.name.clone())),
    };
    if let Some((at, name)) = &place {
        image.storage.write_at(*at, name.as_bytes())?;
        image.storage.flush()?;
    }
    let mut features = 0;
    header::update(&*image.storage, |h| {
        features = h.features.get() & !(feature::BACKING | feature::BACKING_RAW);
        features |= if place.is_some() { feature::BACKING } else { 0 };
        features |= if raw { feature::BACKING_RAW } else { 0 };
        h.features.set(features);
        let narrow = |n: u64| u32::try_from(n).unwrap_or(0);
        h.backing_offset.set(place.as_ref().map_or(0, |p| narrow(p.0)));
        h.backing_len.set(place.as_ref().map_or(0, |p| narrow(len_u64(p.1.len()))));
    })?;
    let mut state = image.write_state();
    state.geometry.backing = place;
    state.geometry.features = features;
    drop(state);
    image.storage.flush()
}

/// Room for a name in the header's clusters, beside the one that is there.
fn place_for(g: &Geometry, name: &str) -> Result<u64> {
    let len = len_u64(name.len());
    if len > MAX_NAME {
        return Err(Error::invalid("Backing file name too long"));
    }
    let (old, old_end) = g
        .backing
        .as_ref()
        .map_or((HEADER, HEADER), |(at, name)| (*at, round_up(at + len_u64(name.len()), 8)));
    if HEADER + len <= old || old_end <= HEADER {
        Ok(HEADER)
    } else if old_end + len <= g.header {
        Ok(old_end)
    } else {
        Err(Error::errno(libc::ENOSPC).context("the header has no room for the name"))
    }
}
