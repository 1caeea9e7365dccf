//! `resize`: another size of the guest's disk.

use super::{ImageArg, Job};
use crate::storage::Preallocation;
use crate::{Error, Result};

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

/// Resizes.
pub fn resize(_options: &ResizeOptions, _job: &Job<'_>) -> Result<ResizeReport> {
    Err(Error::unsupported("not yet"))
}
