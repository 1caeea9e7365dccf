//! Another size of the guest's disk.
//!
//! The header's one sector holds the size, the number of entries and the places of map and data, so
//! writing it is what makes the new size valid, all at once. Before that:
//!
//! * Shrinking forgets the entries behind the new end and gives their blocks back, as leaks are.
//! * Growing writes the new entries behind the old ones, where there is room.
//! * Where there is none, a new map is written over the first blocks of the file, which are moved to its
//!   end before; the data begin behind the new map then.

use std::sync::PoisonError;

use super::compact::{compact, relocate};
use super::header::{self, Geometry, Kind, narrow};
use super::image::{State, VdiImage};
use super::layout::{self, FREE, SECTOR, ZERO};
use super::space::{Space, Used, leads};
use crate::format::block_table::{BlockTable, EntryKind};
use crate::format::{Resize, Unwatched};
use crate::num::{checked_round_up, len_u64, round_up, small};
use crate::storage::{Preallocation, Storage, ZeroMode};
use crate::{Error, Result};

/// Entries written at once.
const BATCH: u64 = 64 << 10;

/// See [`crate::format::Image::resize`].
pub(super) fn resize(image: &VdiImage, wish: Resize) -> Result<()> {
    image.write_back()?;
    image.storage.flush()?;
    let old = image.read_state().geometry.clone();
    let size = checked_round_up(wish.size, SECTOR)
        .filter(|&s| s <= layout::MAX_SIZE.min(layout::MAX_BLOCKS * old.block));
    let Some(size) = size else {
        return Err(Error::invalid(format!(
            "Unsupported VDI image size (size is {:#x}, max supported is {:#x})",
            wish.size,
            layout::MAX_SIZE.min(layout::MAX_BLOCKS * old.block)
        )));
    };
    if wish.how == Preallocation::Metadata {
        return Err(Error::unsupported("Unsupported preallocation mode: metadata"));
    }
    let blocks = size.div_ceil(old.block);
    let new = Geometry { size, blocks, ..old.clone() };
    if blocks > old.blocks { grow(image, new, wish) } else { shrink(image, &old, new) }
}

/// Forgets what lies behind the new end, gives its space back, and then tells the new size. A crash in
/// between leaves the old size, with zeroes at its end.
fn shrink(image: &VdiImage, old: &Geometry, new: Geometry) -> Result<()> {
    if new.blocks < old.blocks {
        let used = {
            let mut state = image.write_state();
            // Refuses a damaged map before anything is cut off.
            state.space(&*image.storage)?;
            for index in new.blocks..old.blocks {
                if leads(state.map.fetch(&*image.storage, index)?) {
                    state.map.set(&*image.storage, index, FREE)?;
                }
            }
            let mut used = Used::default();
            for index in 0..new.blocks {
                let entry = state.map.fetch(&*image.storage, index)?;
                if leads(entry) {
                    used.take(entry);
                }
            }
            used
        };
        image.write_back()?;
        image.storage.flush()?;
        compact(image, &used, &Unwatched)?;
    }
    let allocated = image.read_state().geometry.allocated;
    publish(image, Geometry { allocated, ..new })
}

/// Writes the header and makes the state fit it. Everything that the new header leads to is written.
fn publish(image: &VdiImage, new: Geometry) -> Result<()> {
    image.storage.flush()?;
    let turn = image.flushing.lock().unwrap_or_else(PoisonError::into_inner);
    header::update(&*image.storage, |h| {
        h.disk_size.set(new.size);
        h.blocks = narrow(new.blocks);
        h.blocks_allocated = narrow(new.allocated);
        h.offset_map = narrow(new.map);
        h.offset_data = narrow(new.data);
    })?;
    drop(turn);
    image.storage.flush()?;
    let mut state = image.write_state();
    *state = State {
        map: BlockTable::new(new.map, new.blocks, EntryKind::Le32),
        space: None,
        header_behind: false,
        limit: image.storage.len()?,
        geometry: new,
    };
    Ok(())
}

fn grow(image: &VdiImage, mut new: Geometry, wish: Resize) -> Result<()> {
    let old = image.read_state().geometry.clone();
    if old.map + new.blocks * 4 > old.data {
        make_room(image, &mut new)?;
    }
    let mut next = {
        let mut state = image.write_state();
        new.allocated = state.geometry.allocated;
        state.space(&*image.storage)?.next
    };
    // Numbers of the file's blocks count from where the data begin.
    let shift = (new.data - old.data) / new.stride();
    next = next.max(shift) - shift;
    let reserve =
        new.kind == Kind::Static || matches!(wish.how, Preallocation::Falloc | Preallocation::Full);
    if reserve {
        let from = new.data + next * new.stride();
        let end = new.data + (next + new.blocks - old.blocks) * new.stride();
        let len = image.storage.len()?;
        if len > from {
            // What a crash left behind the last block.
            image.storage.write_zeroes(from, len - from, ZeroMode::MayUnmap)?;
        }
        image.storage.set_len(end.max(len), wish.how)?;
    }
    let entry = |i: u64| {
        if reserve {
            next + i
        } else if new.has_parent() {
            ZERO
        } else {
            FREE
        }
    };
    let mut writer = EntryWriter::new(&*image.storage, new.map);
    if new.map == old.map {
        writer.at += old.blocks * 4;
    } else {
        for index in 0..old.blocks {
            let entry = image.write_state().map.fetch(&*image.storage, index)?;
            writer.put(if leads(entry) { entry - shift } else { entry })?;
        }
    }
    for i in 0..new.blocks - old.blocks {
        writer.put(entry(i))?;
    }
    writer.finish()?;
    new.allocated = next + if reserve { new.blocks - old.blocks } else { 0 };
    publish(image, new)
}

/// Moves the first blocks of the file to its end, so that the map has room in their place.
fn make_room(image: &VdiImage, new: &mut Geometry) -> Result<()> {
    let old = image.read_state().geometry.clone();
    // Some room for the next time.
    let bytes = round_up(new.blocks * 4, SECTOR);
    let first = bytes.div_ceil(old.stride());
    new.map = old.data;
    new.data = old.data + first * old.stride();
    if new.data > u64::from(u32::MAX) {
        return Err(Error::errno(libc::EFBIG)
            .context("the block map of a VDI must lie in the first 4 GiB of its file")
            .at_path(image.storage.name()));
    }
    let mut space = {
        let mut state = image.write_state();
        Space::find(&*image.storage, &old, &mut state.map)?
    };
    space.keep_from(first);
    let mut failed = None;
    relocate(image, &Unwatched, |entry| {
        if entry >= first || failed.is_some() {
            return None;
        }
        match space.take(1) {
            Ok(run) => Some(run.start),
            Err(e) => {
                failed = Some(e);
                None
            }
        }
    })?;
    image.write_state().space = Some(space);
    failed.map_or(Ok(()), Err)
}

/// Writes entries one after the other, many at once.
struct EntryWriter<'a> {
    storage: &'a dyn Storage,
    at: u64,
    bytes: Vec<u8>,
}

impl<'a> EntryWriter<'a> {
    fn new(storage: &'a dyn Storage, at: u64) -> Self {
        EntryWriter { storage, at, bytes: Vec::new() }
    }

    fn put(&mut self, entry: u64) -> Result<()> {
        self.bytes.extend_from_slice(&u32::try_from(entry).unwrap_or(u32::MAX).to_le_bytes());
        if self.bytes.len() >= small(BATCH * 4) { self.finish() } else { Ok(()) }
    }

    fn finish(&mut self) -> Result<()> {
        self.storage.write_at(self.at, &self.bytes)?;
        self.at += len_u64(self.bytes.len());
        self.bytes.clear();
        Ok(())
    }
}
