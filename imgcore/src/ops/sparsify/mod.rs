//! `sparsify`: gives back what the guest's file systems do not use.
//!
//! [`survey`] reads the guest's metadata (see [`crate::guest`]) and says for each volume how much is free and
//! how much of that the image stores. [`in_place`] discards it in the image; [`masked`] shows the image with
//! free bytes as zeroes, for a conversion.
//!
//! * Nothing is mounted and no file system is changed: what is free stays free.
//! * A volume whose metadata are not whole and clean is left alone, with the remedy
//!   ([`VolumeReport::skipped`]). So are boot loaders' places: the space before the first partition is never
//!   touched, space between partitions only on demand.
//! * All metadata of a volume are read and checked before its first byte is given back. An interrupted run has
//!   freed a part and broken nothing.
//! * What an internal snapshot shares stays with the snapshot; the backing file is never changed.

mod in_place;
mod mask;
mod ranges;
mod selection;
mod survey;

use serde::{Deserialize, Serialize};

pub use in_place::{InPlaceOptions, Zeroes, in_place};
pub(super) use mask::masked;
pub use selection::{Selection, Unpartitioned};
#[cfg(any(test, feature = "testing"))]
pub(crate) use survey::survey_node;
pub use survey::{SurveyOptions, survey};

/// One volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct VolumeReport {
    /// `disk`, `partition 2`, `group/name`, `unpartitioned`.
    pub name: String,
    /// What it holds, as far as it is known (`ext4`, `XFS`, `LVM2`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// Bytes.
    pub size: u64,
    /// Bytes of a block or cluster of the file system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_size: Option<u64>,
    /// Bytes that hold nothing.
    pub free: u64,
    /// Bytes of those that the image stores in whole units and for itself: what can be saved.
    pub savable: u64,
    /// Bytes of those that internal snapshots share: they stay.
    pub shared: u64,
    /// Why nothing is freed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
    /// What to do about that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// What the image holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SparsifyReport {
    /// The image.
    pub filename: String,
    /// Its format.
    pub format: String,
    /// Bytes of the disk.
    pub virtual_size: u64,
    /// `none`, `mbr`, `gpt`.
    pub partition_table: String,
    /// All volumes.
    pub volumes: Vec<VolumeReport>,
    /// Sentences about the partition table.
    pub warnings: Vec<String>,
    /// Free bytes of all volumes that are not skipped.
    pub free: u64,
    /// What can be saved (after a run: what was given back because it is free).
    pub savable: u64,
    /// Bytes that were stored as zeroes and given back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zeroes: Option<u64>,
    /// Bytes of the host's disk before and after.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allocated_before: Option<u64>,
    /// See [`SparsifyReport::allocated_before`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allocated_after: Option<u64>,
}
