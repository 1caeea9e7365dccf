//! Internal snapshots.

use super::image::Qcow2Image;
use crate::format::SnapshotSelector;
use crate::{Error, Result};

impl Qcow2Image {
    /// Shows an internal snapshot instead of the present state.
    pub(super) fn show_snapshot(&self, _wanted: &SnapshotSelector) -> Result<()> {
        Err(Error::errno(libc::ENOTSUP))
    }
}
