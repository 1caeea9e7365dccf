//! Extents of physical volumes that belong to no logical volume.

use crate::guest::parts::lvm::{Group, PhysicalVolume};
use crate::guest::volume::DiskRange;
use crate::{Error, Result};

/// The unused extents of a physical volume on this disk, as ranges of the disk, sorted.
///
/// # Errors
/// When it is not known which extents are in use.
pub fn unused_extents(group: &Group, pv: &PhysicalVolume) -> Result<Vec<DiskRange>> {
    if let Some(why) = &group.uncertain {
        return Err(Error::unsupported(format!("volume group {}: {why}", group.name)));
    }
    let Some(start) = pv.data_start else { return Ok(Vec::new()) };
    let mut free = Vec::new();
    let mut at = 0;
    let mut push = |first: u64, end: u64| {
        if end > first {
            let len = (end - first) * group.extent_size;
            free.push(DiskRange { start: start + first * group.extent_size, len });
        }
    };
    for &(first, count) in &pv.used {
        push(at, first);
        at = at.max(first + count);
    }
    push(at, pv.extents);
    Ok(free)
}
