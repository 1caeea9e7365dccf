//! `resize`: another size of the guest's disk.

use super::{ImageArg, Job};
use crate::graph::open::Depth;
use crate::storage::Preallocation;
use crate::{Error, ErrorKind, Result};

/// The new size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SizeChange {
    /// Bytes.
    To(u64),
    /// More bytes (`+`).
    Grow(u64),
    /// Fewer bytes (`-`).
    Shrink(u64),
}

/// Whether the disk may become smaller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shrinking {
    /// No.
    #[default]
    Refuse,
    /// Yes (`--shrink`).
    Allow,
}

/// What to do.
#[derive(Clone, Debug)]
pub struct ResizeOptions {
    /// The image.
    pub image: ImageArg,
    /// The new size.
    pub change: SizeChange,
    /// `--shrink`.
    pub shrinking: Shrinking,
    /// `--preallocation`.
    pub preallocation: Preallocation,
}

/// What was done, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ResizeReport {
    /// Before.
    pub old_size: u64,
    /// After.
    pub new_size: u64,
}

/// Resizes. What a grown disk shows in its new part is zero, also where a longer backing file has
/// bytes there, so the chain is opened too.
pub fn resize(options: &ResizeOptions, job: &Job<'_>) -> Result<ResizeReport> {
    let mut how = options.image.options(job).writable();
    how.depth = Depth::Chain;
    let node = options.image.open(job, &how)?;
    let old_size = node.virtual_size();
    let new_size = target_size(old_size, options.change)?;
    if new_size <= old_size && options.preallocation != Preallocation::Off {
        return Err(Error::invalid("Preallocation can only be used for growing images"));
    }
    if new_size < old_size && options.shrinking == Shrinking::Refuse {
        return Err(Error::new(
            ErrorKind::Invalid,
            "Use the --shrink option to perform a shrink operation.",
        )
        .hint(SHRINK_WARNING));
    }
    node.resize(new_size, options.preallocation).map_err(wording)?;
    if new_size > old_size {
        hide_backing(&node, old_size, new_size)?;
    }
    node.close()?;
    Ok(ResizeReport { old_size, new_size: node.virtual_size() })
}

/// The size that is asked for.
pub(super) fn target_size(old_size: u64, change: SizeChange) -> Result<u64> {
    match change {
        SizeChange::To(size) => Some(size),
        SizeChange::Grow(more) => old_size.checked_add(more),
        SizeChange::Shrink(less) => old_size.checked_sub(less),
    }
    .filter(|&n| n > 0 && i64::try_from(n).is_ok())
    .ok_or_else(|| Error::invalid("New image size must be positive"))
}

/// The advice that goes with a refused shrink.
const SHRINK_WARNING: &str = "warning: Shrinking an image will delete all data beyond the shrunken \
    image's end. Before performing such an operation, make sure there is no important data there.";

/// The system's refusals are told with what was tried; a format's own words stand for themselves.
fn wording(error: Error) -> Error {
    match error.kind() {
        ErrorKind::Io(_) | ErrorKind::NotFound if std::error::Error::source(&error).is_none() => {
            error.context("Could not resize file")
        }
        _ => error,
    }
}

/// Zeroes the part of a grown disk in which a longer backing file would show through.
pub(super) fn hide_backing(node: &crate::graph::Node, from: u64, to: u64) -> Result<()> {
    let Some(below) = node.backing() else { return Ok(()) };
    let end = below.virtual_size().min(to);
    if end <= from {
        return Ok(());
    }
    node.write_zeroes(from, end - from, crate::format::ZeroSpace::Keep)
}
