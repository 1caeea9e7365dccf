//! `snapshot`: internal snapshots.

use super::{ImageArg, Job};
use crate::format::SnapshotInfo;
use crate::{Error, Result};

/// One action.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SnapshotAction {
    /// `-l`
    #[default]
    List,
    /// `-c`
    Create(String),
    /// `-a`
    Apply(String),
    /// `-d`
    Delete(String),
}

/// What to do.
#[derive(Clone, Debug, Default)]
pub struct SnapshotOptions {
    /// The image.
    pub image: ImageArg,
    /// What.
    pub action: SnapshotAction,
}

/// Carries it out; a list is returned for `List` (empty for images without snapshots).
pub fn snapshot(_options: &SnapshotOptions, _job: &Job<'_>) -> Result<Vec<SnapshotInfo>> {
    Err(Error::unsupported("not yet"))
}
