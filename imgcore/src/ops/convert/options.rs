//! What `convert` can be told.

use std::time::Duration;

use super::super::ImageArg;
use super::super::sparsify::Selection;
use crate::format::{Level, SnapshotSelector};
use crate::graph::open::{OpenRequest, Sharing};
pub use crate::graph::output::{Durability, Overwrite};
use crate::storage::CacheMode;

/// Where the result goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A new image, of this driver and with these `-o` options.
    New {
        /// File name.
        filename: String,
        /// Driver.
        driver: String,
        /// `-o`, as name and text.
        options: Vec<(String, String)>,
    },
    /// An image that exists (`-n`).
    Existing {
        /// Which one.
        request: OpenRequest,
        /// It reads as zeroes already (`--target-is-zero`).
        is_zero: bool,
    },
}

/// What becomes of persistent bitmaps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bitmaps {
    /// Left out.
    #[default]
    Ignore,
    /// Copied; a broken one is an error.
    Copy,
    /// Copied; broken ones are left out with a note.
    SkipBroken,
}

/// What a read error does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnReadError {
    /// Ends the job.
    #[default]
    Stop,
    /// Zeroes are written instead, with a note (`--salvage`).
    Salvage,
}

/// How bytes get from source to target where both are plain files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Offload {
    /// Through buffers; blocks are shared where the file system can.
    #[default]
    Share,
    /// By the kernel (`-C`).
    CopyRange,
    /// Through buffers only.
    Never,
}

/// Compressed output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compress {
    /// No.
    #[default]
    No,
    /// `-c`.
    Yes(Level),
}

/// Whether the result is read again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verify {
    /// No.
    #[default]
    No,
    /// It is compared with the sources before it gets its name (`--verify`).
    Yes,
}

/// Whether an interrupted run can be taken up again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resume {
    /// No: what is unfinished is removed.
    #[default]
    No,
    /// What an earlier run left is gone on with; this one secures what it has done about as often as this
    /// (`--resume`).
    Every(Duration),
}

/// What to do.
#[derive(Clone, Debug)]
pub struct ConvertOptions {
    /// One after the other.
    pub sources: Vec<ImageArg>,
    /// `-l`.
    pub snapshot: Option<SnapshotSelector>,
    /// Where to.
    pub target: Target,
    /// `-t`.
    pub target_cache: CacheMode,
    /// `-U` for files that are only named (the backing file).
    pub sharing: Sharing,
    /// `-B`.
    pub backing: Option<String>,
    /// `-F`.
    pub backing_format: Option<String>,
    /// `-S` in bytes; 0 makes everything allocated.
    pub sparse_size: u64,
    /// `-c`.
    pub compress: Compress,
    /// `--bitmaps`, `--skip-broken-bitmaps`.
    pub bitmaps: Bitmaps,
    /// `--salvage`.
    pub on_read_error: OnReadError,
    /// `-r`, bytes a second, 0 for no limit.
    pub rate: u64,
    /// Threads; 0 for as many as keep up.
    pub threads: usize,
    /// `-C`.
    pub offload: Offload,
    /// Whether a file that exists may be replaced.
    pub overwrite: Overwrite,
    /// Whether a new target is on disk before it gets its name.
    pub durability: Durability,
    /// Whether the result is compared with the sources.
    pub verify: Verify,
    /// Whether an interrupted run can be taken up again.
    pub resume: Resume,
    /// What the guest's file systems do not use becomes zero (`--sparsify`): in these volumes.
    pub sparsify: Option<Selection>,
}

impl ConvertOptions {
    /// From `sources` to `target`, everything else by default.
    pub fn new(sources: Vec<ImageArg>, target: Target) -> Self {
        ConvertOptions {
            sources,
            snapshot: None,
            target,
            target_cache: CacheMode::Unsafe,
            sharing: Sharing::Locked,
            backing: None,
            backing_format: None,
            sparse_size: 4096,
            compress: Compress::No,
            bitmaps: Bitmaps::Ignore,
            on_read_error: OnReadError::Stop,
            rate: 0,
            threads: 0,
            offload: Offload::Share,
            overwrite: Overwrite::Allow,
            durability: Durability::Synced,
            verify: Verify::No,
            resume: Resume::No,
            sparsify: None,
        }
    }
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ConvertReport {
    /// Size of the guest's disk.
    pub virtual_size: u64,
    /// Bytes read from the sources.
    pub bytes_read: u64,
    /// Guest bytes stored in the target.
    pub bytes_stored: u64,
    /// Guest bytes shared by the file system or copied by the kernel.
    pub bytes_offloaded: u64,
    /// Threads used.
    pub threads: usize,
    /// Where an earlier run was taken up; 0 for the beginning.
    pub resumed_at: u64,
    /// The whole disk was read again and is the same.
    pub verified: bool,
}
