//! Moving clusters and tables into gaps, so that the file can end earlier.
//!
//! Everything is copied to a place that nothing leads to; what leads there follows after the copy is on disk.
//! So a crash leaves the old place or the new one, and the other is a leak.

use super::check::{Walk, copy_bytes, look};
use super::image::{Cluster, QedImage};
use crate::Result;
use crate::format::{Unwatched, Watcher, check_cancelled};
use crate::storage::Preallocation;

/// Clusters moved between two flushes.
const BATCH: usize = 256;
/// Rounds: each makes room for tables that found none before.
const ROUNDS: u32 = 8;

/// Moves the last clusters into the gaps and cuts the file behind the last one.
pub(super) fn compact(image: &QedImage, watcher: &dyn Watcher) -> Result<()> {
    for _ in 0..ROUNDS {
        let walk = look(image, false, &Unwatched)?;
        let keep = walk.used.count;
        if walk.used.high > keep {
            image.mark()?;
            let mut gaps = walk.used.gaps(keep);
            move_tables(image, &walk, keep, &mut gaps)?;
            let mut free = gaps.into_iter().flat_map(|(start, end)| start..end);
            relocate(image, watcher, |n, _| if n >= keep { free.next() } else { None })?;
        }
        let high = look(image, false, &Unwatched)?.used.high;
        cut(image, high)?;
        if high <= keep {
            break;
        }
        make_room(image, keep, watcher)?;
    }
    Ok(())
}

fn cut(image: &QedImage, high: u64) -> Result<()> {
    let end = {
        let mut state = image.write_state();
        state.next = high * state.geometry.cluster;
        state.next
    };
    if image.storage.len()? > end {
        image.storage.set_len(end, Preallocation::Off)?;
        image.storage.flush()?;
    }
    Ok(())
}

/// Moves tables that reach behind cluster `keep` of the file into gaps that are long enough.
fn move_tables(
    image: &QedImage,
    walk: &Walk<'_>,
    keep: u64,
    gaps: &mut Vec<(u64, u64)>,
) -> Result<()> {
    let (cluster, n) = {
        let g = &image.read_state().geometry;
        (g.cluster, g.table_size)
    };
    for &(number, at) in &walk.tables {
        if at / cluster + n <= keep {
            continue;
        }
        let Some(gap) = gaps.iter_mut().find(|(start, end)| end - start >= n) else { continue };
        let to = gap.0 * cluster;
        gap.0 += n;
        copy_bytes(image, at, to, n * cluster)?;
        image.write_state().tables.set_upper(&*image.storage, number, to)?;
    }
    gaps.retain(|(start, end)| start < end);
    image.write_back()?;
    image.storage.flush()
}

/// Moves clusters out of a place below `keep` where a table fits that is still behind it.
fn make_room(image: &QedImage, keep: u64, watcher: &dyn Watcher) -> Result<()> {
    let walk = look(image, false, &Unwatched)?;
    let (cluster, n) = {
        let g = &image.read_state().geometry;
        (g.cluster, g.table_size)
    };
    let Some(first) = walk.used.gaps(keep).first().map(|gap| gap.0) else { return Ok(()) };
    let fits = |start: u64| start + n <= keep && !walk.fixed.any(start, start + n);
    let near = (first.saturating_sub(n)..=first).chain(0..keep).find(|&start| fits(start));
    let Some(start) = near else { return Ok(()) };
    relocate(image, watcher, |unit, next| {
        (start..start + n).contains(&unit).then(|| {
            *next += cluster;
            *next / cluster - 1
        })
    })
}

/// Moves every data cluster for which `target` names a free place. It gets the cluster's number in the
/// file, and where the file ends.
fn relocate(
    image: &QedImage,
    watcher: &dyn Watcher,
    mut target: impl FnMut(u64, &mut u64) -> Option<u64>,
) -> Result<()> {
    let g = image.read_state().geometry.clone();
    let mut moved = Vec::new();
    for number in 0..g.entries() {
        let storage = &*image.storage;
        let at = image.write_state().tables.upper(storage, number)?;
        if at == 0 {
            continue;
        }
        check_cancelled(watcher)?;
        let mut placed = Vec::new();
        image.read_state().tables.each_entry(storage, at, |i, e| {
            if let Cluster::At(at) = Cluster::of(e) {
                placed.push((number * g.entries() + i, at));
            }
            Ok(())
        })?;
        for (index, at) in placed {
            let to = target(at / g.cluster, &mut image.write_state().next);
            let Some(to) = to.map(|to| to * g.cluster) else { continue };
            copy_bytes(image, at, to, g.cluster)?;
            moved.push((index, to));
            if moved.len() >= BATCH {
                publish(image, &mut moved)?;
            }
        }
    }
    publish(image, &mut moved)
}

fn publish(image: &QedImage, moved: &mut Vec<(u64, u64)>) -> Result<()> {
    {
        let mut state = image.write_state();
        for (index, to) in moved.drain(..) {
            state.tables.set(&*image.storage, index, to)?;
        }
    }
    image.write_back()?;
    image.storage.flush()
}
