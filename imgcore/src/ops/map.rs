//! `map`: where the guest's bytes are.

use serde::{Deserialize, Serialize};

use super::{ImageArg, Job};
use crate::{Error, Result};

/// What to do.
#[derive(Clone, Debug, Default)]
pub struct MapOptions {
    /// The image.
    pub image: ImageArg,
    /// `-s`, bytes.
    pub start: u64,
    /// `-l`, bytes; to the end when not given.
    pub max_length: Option<u64>,
}

/// A run of guest bytes, in QEMU's field names and order (`qapi/block-core.json`, `MapEntry`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapEntry {
    /// Guest offset.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// Links from the top to the image that has it.
    pub depth: u32,
    /// Some image of the chain has it.
    pub present: bool,
    /// Reads as zeroes.
    pub zero: bool,
    /// Stored bytes.
    pub data: bool,
    /// Stored compressed.
    pub compressed: bool,
    /// Where in `filename`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// The file that has it (human form; JSON shows it only where it is not the image's own).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filename: Option<String>,
}

/// Calls `each` with every run in order.
pub fn map(
    _options: &MapOptions,
    _job: &Job<'_>,
    _each: &mut dyn FnMut(MapEntry) -> Result<()>,
) -> Result<()> {
    Err(Error::unsupported("not yet"))
}
