//! `bitmap`: changing persistent dirty bitmaps, several actions in order.

use std::sync::Arc;

use super::{ImageArg, Job};
use crate::format::BitmapStore;
use crate::graph::Node;
use crate::graph::open::Depth;
use crate::{Error, ErrorKind, Result};

/// One action on the bitmap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BitmapAction {
    /// Add it.
    Add,
    /// Remove it.
    Remove,
    /// Clear its bits.
    Clear,
    /// Record writes.
    Enable,
    /// Stop recording.
    Disable,
    /// Merge the bits of this bitmap (of the source image, or of the same one).
    Merge(String),
}

impl BitmapAction {
    fn word(&self) -> &'static str {
        match self {
            BitmapAction::Add => "add",
            BitmapAction::Remove => "remove",
            BitmapAction::Clear => "clear",
            BitmapAction::Enable => "enable",
            BitmapAction::Disable => "disable",
            BitmapAction::Merge(_) => "merge",
        }
    }
}

/// What to do.
#[derive(Clone, Debug, Default)]
pub struct BitmapOptions {
    /// The image.
    pub image: ImageArg,
    /// The bitmap.
    pub bitmap: String,
    /// In this order.
    pub actions: Vec<BitmapAction>,
    /// `-g`, for `Add`.
    pub granularity: Option<u64>,
    /// `-b` with `-F`: the image to merge from.
    pub source: Option<ImageArg>,
}

/// Carries the actions out; the first that fails ends it, and what was done before stays.
pub fn bitmap(options: &BitmapOptions, job: &Job<'_>) -> Result<()> {
    let mut how = options.image.options(job).writable();
    how.depth = Depth::Top;
    let node = options.image.open(job, &how)?;
    let source = match &options.source {
        None => None,
        Some(source) => {
            let mut how = source.options(job);
            how.depth = Depth::Top;
            Some(source.open(job, &how)?)
        }
    };
    let mut result = Ok(());
    for action in &options.actions {
        result = act(options, action, &node, source.as_ref()).map_err(|e| {
            e.context(format!("Operation {} on bitmap {} failed", action.word(), options.bitmap))
        });
        if result.is_err() {
            break;
        }
    }
    let closed = node.close();
    result.and(closed)
}

fn act(
    options: &BitmapOptions,
    action: &BitmapAction,
    node: &Arc<Node>,
    source: Option<&Arc<Node>>,
) -> Result<()> {
    let name = options.bitmap.as_str();
    let Some(store) = node.image().bitmaps() else {
        return Err(match action {
            BitmapAction::Add => Error::errno(libc::ENOTSUP)
                .context(format!("Can't store persistent bitmaps to {}", node.name())),
            _ => missing(name),
        });
    };
    match action {
        BitmapAction::Add => add(store, name, options.granularity.unwrap_or(0)),
        _ if !has(store, name)? => Err(missing(name)),
        BitmapAction::Remove => store.remove(name),
        BitmapAction::Clear => store.clear(name),
        BitmapAction::Enable => store.set_enabled(name, true),
        BitmapAction::Disable => store.set_enabled(name, false),
        BitmapAction::Merge(from) => merge(store, name, from, node, source.unwrap_or(node)),
    }
}

fn has(store: &dyn BitmapStore, name: &str) -> Result<bool> {
    Ok(store.list()?.iter().any(|b| b.name == name))
}

fn missing(name: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("Dirty bitmap '{name}' not found"))
}

fn add(store: &dyn BitmapStore, name: &str, granularity: u64) -> Result<()> {
    if name.is_empty() {
        return Err(Error::invalid("Bitmap name cannot be empty"));
    }
    if name.len() > 1023 {
        return Err(Error::invalid("Bitmap name too long"));
    }
    // QEMU keeps it in 32 bits.
    let fits = u32::try_from(granularity).is_ok_and(|g| g >= 512 && g.is_power_of_two());
    if granularity != 0 && !fits {
        return Err(Error::invalid("Granularity must be power of 2 and at least 512"));
    }
    if has(store, name)? {
        return Err(Error::invalid(format!("Bitmap already exists: {name}")));
    }
    store.add(name, granularity)
}

fn merge(
    store: &dyn BitmapStore,
    name: &str,
    from: &str,
    node: &Node,
    source: &Node,
) -> Result<()> {
    let theirs = source.image().bitmaps().ok_or_else(|| missing(from))?;
    let list = theirs.list()?;
    let info = list.iter().find(|b| b.name == from).ok_or_else(|| missing(from))?;
    if info.in_use {
        return Err(inconsistent(from));
    }
    if store.list()?.iter().any(|b| b.name == name && b.in_use) {
        return Err(inconsistent(name));
    }
    let (ours, size) = (node.virtual_size(), source.virtual_size());
    if ours != size {
        return Err(Error::invalid(format!(
            "Bitmaps are of different sizes (destination size is {ours}, source size is {size}) \
             and can't be merged"
        )));
    }
    let ranges = theirs.dirty_ranges(from)?;
    store.mark(name, &ranges)
}

/// QEMU's refusal to use a bitmap that was not stored cleanly.
pub(super) fn inconsistent(name: &str) -> Error {
    Error::invalid(format!("Bitmap '{name}' is inconsistent and cannot be used"))
        .hint("Try block-dirty-bitmap-remove to delete this bitmap from disk")
}
