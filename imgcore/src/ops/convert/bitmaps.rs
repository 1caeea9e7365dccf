//! Persistent bitmaps from source to target.

use super::super::Job;
use super::super::bitmap::inconsistent;
use super::options::Bitmaps;
use crate::format::{BitmapInfo, Image};
use crate::{Error, Result};

/// The bitmaps to copy; refuses what cannot be copied before anything is written.
pub(super) fn choose(source: &dyn Image, how: Bitmaps, job: &Job<'_>) -> Result<Vec<BitmapInfo>> {
    let store =
        source.bitmaps().ok_or_else(|| Error::unsupported("Source lacks bitmap support"))?;
    let mut chosen = Vec::new();
    for bitmap in store.list()? {
        if !bitmap.in_use {
            chosen.push(bitmap);
        } else if how == Bitmaps::SkipBroken {
            job.watcher.note(&format!("warning: Skipping inconsistent bitmap '{}'", bitmap.name));
        } else {
            return Err(Error::invalid(format!(
                "Cannot copy inconsistent bitmap '{}'",
                bitmap.name
            ))
            .hint(
                "Try --skip-broken-bitmaps, or use 'qemu-img bitmap --remove' to delete it from \
                 disk",
            ));
        }
    }
    Ok(chosen)
}

/// Copies them.
pub(super) fn copy(chosen: &[BitmapInfo], source: &dyn Image, target: &dyn Image) -> Result<()> {
    let from = source.bitmaps().ok_or_else(|| Error::unsupported("Source lacks bitmap support"))?;
    let to = target.bitmaps().ok_or_else(|| no_bitmaps(target.format_name()))?;
    for bitmap in chosen {
        let name = &bitmap.name;
        let failed = |e: Error| e.context(format!("Failed to create bitmap {name}"));
        if to.list()?.iter().any(|b| b.name == *name) {
            return Err(failed(Error::invalid(format!("Bitmap already exists: {name}"))));
        }
        to.add(name, bitmap.granularity).map_err(failed)?;
        to.set_enabled(name, bitmap.auto).map_err(failed)?;
        if bitmap.in_use {
            return Err(inconsistent(name));
        }
        let ranges = from.dirty_ranges(name)?;
        to.mark(name, &ranges)
            .map_err(|e| e.context(format!("Failed to populate bitmap {name}")))?;
    }
    Ok(())
}

/// Refuses a target that cannot hold the bitmaps that are wanted there.
pub(super) fn require(wanted: Bitmaps, target: &dyn Image) -> Result<()> {
    match target.bitmaps() {
        _ if wanted == Bitmaps::Ignore => Ok(()),
        Some(store) if store.can_store() => Ok(()),
        _ => Err(no_bitmaps(target.format_name())),
    }
}

/// Refusal of a format without bitmaps.
pub(super) fn no_bitmaps(format: &str) -> Error {
    Error::unsupported(format!("Format driver '{format}' does not support bitmaps"))
}
