//! Another size of the guest's disk.
//!
//! Size, number of entries and place of the data are in the header's one sector, so writing it is what makes
//! a new size valid, all at once. Before that:
//!
//! * Growing writes empty entries behind the old ones. Where clusters are in the way, they are copied to the
//!   end of the file first, and their entries follow.
//! * Shrinking needs nothing: what lies behind the new end is given back afterwards, at the end of the file;
//!   in between the next writer uses it.

use super::check::{check, copy};
use super::header::{self, Geometry, narrow};
use super::image::{ParallelsImage, table};
use super::layout::{HEADER, MAX_ENTRIES, SECTOR};
use crate::format::{Repair, Resize, Unwatched};
use crate::num::{checked_round_up, round_up};
use crate::storage::{Preallocation, ZeroMode};
use crate::{Error, Result};

/// See [`crate::format::Image::resize`].
pub(super) fn resize(image: &ParallelsImage, wish: Resize) -> Result<()> {
    if wish.how != Preallocation::Off {
        return Err(Error::unsupported("Unsupported preallocation mode for parallels images"));
    }
    image.mark()?;
    image.write_back()?;
    image.storage.flush()?;
    let old = image.read_state().geometry.clone();
    let too_large = || Error::invalid("the disk would be too large for its block allocation table");
    let size = checked_round_up(wish.size, SECTOR).ok_or_else(too_large)?;
    let entries = old.entries_for(size);
    let limit = if old.ext { i64::MAX.unsigned_abs() } else { u64::from(u32::MAX) * SECTOR };
    if entries > MAX_ENTRIES || size > limit {
        return Err(too_large());
    }
    let mut new = Geometry { size, entries, ..old.clone() };
    if entries > old.entries {
        make_room(image, &old, &mut new)?;
        let from = old.table_end();
        image.storage.write_zeroes(from, new.table_end() - from, ZeroMode::KeepAllocated)?;
    }
    publish(image, new)?;
    if entries < old.entries {
        check(image, Repair::Leaks, &Unwatched)?;
    }
    Ok(())
}

/// Moves clusters to the end of the file that lie where a longer table will be.
fn make_room(image: &ParallelsImage, old: &Geometry, new: &mut Geometry) -> Result<()> {
    if new.table_end() <= old.data {
        return Ok(());
    }
    let storage = &*image.storage;
    if old.extension.is_some_and(|at| at < new.table_end()) {
        return Err(Error::unsupported("the format extension is in the way of a longer table")
            .hint("convert the image to a new one of the larger size"));
    }
    // Clusters keep their distance from each other.
    let least = round_up(new.table_end(), old.cluster);
    new.data = if old.ext { least } else { least + old.phase() };
    let mut moved = Vec::new();
    for index in 0..old.entries {
        let mut state = image.write_state();
        let entry = state.table.fetch(storage, index)?;
        if entry == 0 || old.place(entry) >= new.data {
            continue;
        }
        // Free places in front are no use.
        let to = loop {
            let (to, _) = state.take(storage, old.cluster)?;
            if to >= new.data {
                break to;
            }
        };
        drop(state);
        copy(image, old.place(entry), to, old.cluster)?;
        moved.push((index, to / old.unit()));
    }
    storage.flush()?;
    let mut state = image.write_state();
    for (index, entry) in moved {
        state.table.set(storage, index, entry)?;
    }
    state.space = None;
    drop(state);
    image.write_back()?;
    storage.flush()
}

/// Writes the header and makes the state fit it. Everything that the new header leads to is written.
fn publish(image: &ParallelsImage, new: Geometry) -> Result<()> {
    image.storage.flush()?;
    let cylinders = super::create::cylinders(new.size);
    header::update(&*image.storage, |h| {
        h.sectors.set(new.size / SECTOR);
        h.entries = narrow(new.entries);
        h.cylinders = narrow(cylinders);
        h.data = narrow(new.data / SECTOR);
    })?;
    image.storage.flush()?;
    let end = image.storage.len()?.max(round_up(HEADER + new.entries * 4, SECTOR));
    let mut state = image.write_state();
    state.table = table(&new);
    state.space = None;
    state.limit = end;
    state.geometry = new;
    Ok(())
}
