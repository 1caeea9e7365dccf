//! An image whose free bytes read as zeroes: the source of a sparsifying conversion.
//!
//! It stands as an overlay on the real image: free ranges are zero here, everything else is the backing
//! file's. So reading, walking and comparing need to know nothing of it.

use std::sync::Arc;

use super::super::Job;
use super::ranges::RangeSet;
use super::selection::Selection;
use super::survey::Plan;
use crate::Result;
use crate::format::{Access, Extent, Granularity, Image, ImageInfo, Mapping, StorageId};
use crate::graph::Node;
use crate::num::GuestOffset;
use crate::storage::Storage;

#[derive(Debug)]
struct Mask {
    below: Arc<Node>,
    free: RangeSet,
}

/// `node` with all that its file systems do not use read as zeroes. Volumes that are skipped are told as
/// notes.
///
/// # Errors
/// When the disk cannot be read, its layout is ambiguous, or the selection names something unknown.
pub(in crate::ops) fn masked(
    node: &Arc<Node>,
    selection: &Selection,
    job: &Job<'_>,
) -> Result<Arc<Node>> {
    let plan = Plan::make(node, selection, job)?;
    for volume in plan.reports() {
        if let Some(why) = &volume.skipped {
            job.watcher.note(&format!(
                "{}: {} is copied whole: it {why}",
                node.name(),
                volume.name
            ));
        }
    }
    let mut free = RangeSet::default();
    plan.each(job, &mut |range| {
        free.add(range);
        Ok(())
    })?;
    free.finish();
    let mask = Mask { below: Arc::clone(node), free };
    Ok(Arc::new(Node::new(node.name(), Box::new(mask), Some(Arc::clone(node)), Access::Read)))
}

impl Image for Mask {
    fn format_name(&self) -> &'static str {
        self.below.image().format_name()
    }

    fn virtual_size(&self) -> u64 {
        self.below.virtual_size()
    }

    fn granularity(&self) -> Granularity {
        Granularity { allocation: 1, zero: None, discard: None, encode: None, append_only: false }
    }

    fn storage(&self, id: StorageId) -> &Arc<dyn Storage> {
        self.below.image().storage(id)
    }

    fn map(&self, at: GuestOffset, len: u64) -> Result<Extent> {
        let (free, len) = self.free.find(at.0, len);
        let mapping = if free { Mapping::Zero { reserved: None } } else { Mapping::Backing };
        Ok(Extent { len, mapping })
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn info(&self) -> Result<ImageInfo> {
        self.below.image().info()
    }
}
