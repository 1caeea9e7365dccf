//! `info`: what an image says about itself, and about what lies below it.

use serde::{Deserialize, Serialize};

use super::{ImageArg, Job};
use crate::format::{SnapshotInfo, SpecificInfo};
use crate::graph::open::Depth;
use crate::{Error, Result};

/// What to do.
#[derive(Clone, Debug, Default)]
pub struct InfoOptions {
    /// The image.
    pub image: ImageArg,
    /// `Chain` for `--backing-chain`.
    pub depth: Depth,
}

/// One image, in QEMU's field names (`qapi/block-core.json`, `BlockGraphInfo`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct InfoReport {
    /// Children: the file, extents, the data file; not the backing file.
    pub children: Vec<ChildInfo>,
    /// Internal snapshots.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshots: Option<Vec<SnapshotInfo>>,
    /// Name of the file below, as recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing_filename: Option<String>,
    /// Name of the file below, as seen from here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full_backing_filename: Option<String>,
    /// Format of the file below, as recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing_filename_format: Option<String>,
    /// Bytes.
    pub virtual_size: u64,
    /// As the user named it.
    pub filename: String,
    /// Bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_size: Option<u64>,
    /// The driver.
    pub format: String,
    /// Bytes on disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actual_size: Option<u64>,
    /// Encrypted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encrypted: Option<bool>,
    /// All data are compressed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compressed: Option<bool>,
    /// Details of the format.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format_specific: Option<SpecificInfo>,
    /// Not cleanly closed.
    pub dirty_flag: bool,
    /// Guest offset at which the VM state area begins (for showing snapshots), not QEMU's.
    #[serde(skip)]
    pub vm_state_offset: Option<u64>,
}

/// A child of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChildInfo {
    /// `file`, `data-file`, `extents.0`, ...
    pub name: String,
    /// What it says about itself (its format is a protocol: `file`, `host_device`).
    pub info: InfoReport,
}

/// Looks at an image, or at all of a chain: top first.
pub fn info(_options: &InfoOptions, _job: &Job<'_>) -> Result<Vec<InfoReport>> {
    Err(Error::unsupported("not yet"))
}
