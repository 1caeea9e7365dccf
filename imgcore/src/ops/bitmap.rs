//! `bitmap`: changing persistent dirty bitmaps, several actions in order.

use super::{ImageArg, Job};
use crate::{Error, Result};

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

/// Carries the actions out; the first that fails ends it.
pub fn bitmap(_options: &BitmapOptions, _job: &Job<'_>) -> Result<()> {
    Err(Error::unsupported("not yet"))
}
