//! Creating images.

use zerocopy::{FromZeros, IntoBytes};

use super::header::narrow;
use super::layout::{self, Header, SECTOR};
use crate::format::{
    CreateContext, CreateOptions, MeasureSource, Measurement, OptionKind, OptionSpec,
};
use crate::num::{checked_round_up, round_down, round_up};
use crate::storage::Preallocation;
use crate::{Error, Result};

/// Heads of the geometry that images tell.
const HEADS: u64 = 16;
/// Sectors of a track of that geometry.
const TRACK: u64 = 32;

/// Options in the order in which `create` prints them.
pub(super) const OPTIONS: &[OptionSpec] = &[
    OptionSpec { name: "size", kind: OptionKind::Size, help: "Virtual disk size", default: None },
    OptionSpec {
        name: "cluster_size",
        kind: OptionKind::Size,
        help: "Parallels image cluster size",
        default: Some("1048576"),
    },
];

/// Size and shape of a new image, in bytes.
#[derive(Clone, Copy, Debug)]
struct Plan {
    size: u64,
    cluster: u64,
    entries: u64,
    /// Where clusters begin.
    data: u64,
}

/// Cylinders of the geometry for a disk of that size.
pub(super) fn cylinders(size: u64) -> u64 {
    size / SECTOR / HEADS / TRACK
}

impl Plan {
    fn new(options: &CreateOptions, size: u64) -> Result<Self> {
        let cluster = options.number("cluster_size").unwrap_or(layout::CLUSTER);
        if cluster >= i64::from(i32::MAX).unsigned_abs() {
            return Err(Error::invalid("Cluster size is too large"));
        }
        let too_large = || Error::invalid("Image size is too large for this cluster size");
        let size = checked_round_up(size, SECTOR).ok_or_else(too_large)?;
        let cluster = round_up(cluster, SECTOR);
        let entries = size.checked_div(cluster).ok_or_else(too_large)?;
        let entries = entries + u64::from(!size.is_multiple_of(cluster));
        if entries > layout::MAX_ENTRIES {
            return Err(too_large());
        }
        let data = round_up(layout::HEADER + entries * 4, cluster);
        if data / SECTOR > u64::from(u32::MAX) {
            return Err(too_large());
        }
        Ok(Plan { size, cluster, entries, data })
    }
}

/// Creates an empty image.
pub(super) fn create(cx: &CreateContext<'_>) -> Result<()> {
    crate::format::options::preallocation(
        cx.options,
        &[Preallocation::Falloc, Preallocation::Full],
    )?;
    let plan = Plan::new(cx.options, cx.size)?;
    let mut header = Header::new_zeroed();
    header.magic = *layout::MAGIC_EXT;
    header.version.set(layout::VERSION);
    header.heads = narrow(HEADS);
    header.cylinders = narrow(cylinders(plan.size));
    header.tracks = narrow(plan.cluster / SECTOR);
    header.entries = narrow(plan.entries);
    header.sectors.set(plan.size / SECTOR);
    header.data = narrow(plan.data / SECTOR);
    let storage = cx.files.main()?;
    storage.set_len(plan.data, Preallocation::Off)?;
    storage.write_at(0, header.as_bytes())
}

/// How large an image would be.
pub(super) fn measure(
    options: &CreateOptions,
    source: &mut MeasureSource<'_>,
) -> Result<Measurement> {
    let plan = Plan::new(options, source.virtual_size)?;
    let fully_allocated = plan.data + plan.entries * plan.cluster;
    let (mut required, mut counted) = (plan.data, 0);
    (source.data_runs)(&mut |start, len| {
        let from = round_down(start, plan.cluster).max(counted);
        counted = round_up(start + len, plan.cluster).max(counted);
        required += counted.saturating_sub(from);
        Ok(())
    })?;
    Ok(Measurement { required, fully_allocated, bitmaps: None })
}
