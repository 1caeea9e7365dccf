//! Giving the host's space of unused clusters back.
//!
//! A cluster that nothing refers to any more is used again by the next allocation, but until then the host
//! keeps its bytes. Here all of them are discarded in the image file, and the file ends behind the last
//! cluster in use. First everything is brought to disk, so that no mapping on disk leads to a cluster that is
//! discarded. The reference counts decide: callers make sure that they are right (a check without
//! corruptions).

use super::image::Qcow2Image;
use crate::Result;

impl Qcow2Image {
    /// See [`crate::format::Image::release_unused`].
    pub(super) fn release_clusters(&self) -> Result<()> {
        let mut tables = self.write_tables();
        let tables = &mut *tables;
        self.check_usable(tables)?;
        self.settle(tables)?;
        let cluster = self.geometry.cluster();
        let end = self.file.len()? / cluster;
        let mut run = 0;
        for at in 0..end {
            if tables.refs.get(&*self.file, at)? == 0 {
                run += 1;
                continue;
            }
            if run > 0 {
                self.file.discard((at - run) * cluster, run * cluster)?;
                run = 0;
            }
        }
        self.truncate_file(tables)
    }
}
