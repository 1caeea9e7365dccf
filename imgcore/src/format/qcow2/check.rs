//! Checking.

use super::image::Qcow2Image;
use crate::{Error, Result};

impl Qcow2Image {
    /// Rebuilds reference counts after an unclean shutdown with lazy counts.
    pub(super) fn repair_dirty(&self) -> Result<()> {
        Err(Error::errno(libc::ENOTSUP))
    }
}
