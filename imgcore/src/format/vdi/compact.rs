//! Moving blocks: into gaps, so that the file can end earlier, and out of the way of a longer map.
//!
//! A block is copied to a place that nothing leads to; the map follows after the copy is on disk. So a
//! crash leaves the old block or the new one, and the other is a leak.

use std::sync::PoisonError;

use super::check::copy_block;
use super::header::{self, narrow};
use super::image::VdiImage;
use super::space::{Used, leads};
use crate::Result;
use crate::format::{Watcher, check_cancelled};
use crate::storage::Preallocation;

/// Blocks moved between two flushes.
const BATCH: usize = 256;

/// Moves the last blocks into the gaps and cuts the file behind the last one.
pub(super) fn compact(image: &VdiImage, used: &Used, watcher: &dyn Watcher) -> Result<()> {
    let keep = used.count;
    let mut free = used.gaps(keep).into_iter().flat_map(|gap| gap.start..gap.end);
    relocate(image, watcher, |entry| if entry >= keep { free.next() } else { None })?;
    let end = {
        let mut state = image.write_state();
        state.space = None;
        state.geometry.allocated = keep;
        state.header_behind = false;
        state.limit = state.geometry.data + keep * state.geometry.stride();
        state.limit
    };
    let turn = image.flushing.lock().unwrap_or_else(PoisonError::into_inner);
    header::update(&*image.storage, |h| h.blocks_allocated = narrow(keep))?;
    drop(turn);
    image.storage.flush()?;
    if image.storage.len()? > end {
        image.storage.set_len(end, Preallocation::Off)?;
        image.storage.flush()?;
    }
    Ok(())
}

/// Moves every block for which `target` names a free place.
pub(super) fn relocate(
    image: &VdiImage,
    watcher: &dyn Watcher,
    mut target: impl FnMut(u64) -> Option<u64>,
) -> Result<()> {
    let blocks = image.read_state().geometry.blocks;
    let mut moved = Vec::new();
    for index in 0..blocks {
        if index % 4096 == 0 {
            check_cancelled(watcher)?;
        }
        let entry = image.write_state().map.fetch(&*image.storage, index)?;
        if !leads(entry) {
            continue;
        }
        let Some(to) = target(entry) else { continue };
        copy_block(image, entry, to)?;
        moved.push((index, to));
        if moved.len() >= BATCH {
            publish(image, &mut moved)?;
        }
    }
    publish(image, &mut moved)
}

fn publish(image: &VdiImage, moved: &mut Vec<(u64, u64)>) -> Result<()> {
    if moved.is_empty() {
        return Ok(());
    }
    {
        let mut state = image.write_state();
        for (index, to) in moved.drain(..) {
            state.map.set(&*image.storage, index, to)?;
            if to >= state.geometry.allocated {
                state.geometry.allocated = to + 1;
                state.header_behind = true;
            }
            let end = state.geometry.place(to + 1);
            state.limit = state.limit.max(end);
        }
    }
    image.write_back()?;
    image.storage.flush()
}
