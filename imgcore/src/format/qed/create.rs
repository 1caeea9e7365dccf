//! Creating images.

use zerocopy::{FromZeros, IntoBytes};

use super::header::{is_cluster, is_table, max_size};
use super::layout::{self, Header, feature};
use crate::format::{
    CreateContext, CreateOptions, MeasureSource, Measurement, OptionKind, OptionSpec,
};
use crate::num::{checked_round_up, len_u64, round_down, round_up, small};
use crate::storage::Preallocation;
use crate::{Error, Result};

const fn row(
    name: &'static str,
    kind: OptionKind,
    default: Option<&'static str>,
    help: &'static str,
) -> OptionSpec {
    OptionSpec { name, kind, help, default }
}

/// Options in the order in which `create` prints them.
pub(super) const OPTIONS: &[OptionSpec] = &[
    row("size", OptionKind::Size, None, "Virtual disk size"),
    row("backing_file", OptionKind::Text, None, "File name of a base image"),
    row("backing_fmt", OptionKind::Text, None, "Image format of the base image"),
    row("cluster_size", OptionKind::Size, Some("65536"), "Cluster size (in bytes)"),
    row("table_size", OptionKind::Size, None, "L1/L2 table size (in clusters)"),
];

/// L1 tables up to this size get their space at once.
const RESERVED: u64 = 1 << 20;

/// Size and shape of a new image.
#[derive(Clone, Copy, Debug)]
struct Plan {
    size: u64,
    cluster: u64,
    table: u64,
}

impl Plan {
    fn new(options: &CreateOptions, size: u64) -> Result<Self> {
        let cluster = options.number("cluster_size").unwrap_or(layout::CLUSTER);
        if !is_cluster(cluster) {
            return Err(Error::invalid(format!(
                "QED cluster size must be within range [{}, {}] and power of 2",
                layout::MIN_CLUSTER,
                layout::MAX_CLUSTER
            )));
        }
        let table = options.number("table_size").unwrap_or(layout::TABLE);
        if !is_table(table) {
            return Err(Error::invalid(format!(
                "QED table size must be within range [1, {}] and power of 2",
                layout::MAX_TABLE
            )));
        }
        // Where the product needs more than 64 bits, other programs open no image at all.
        let max = max_size(cluster, table).unwrap_or(0);
        let size = checked_round_up(size, 512).filter(|&size| size <= max).ok_or_else(|| {
            Error::invalid(format!(
                "QED image size must be a non-zero multiple of cluster size and less than {max} bytes"
            ))
        })?;
        Ok(Plan { size, cluster, table })
    }
}

/// Creates an empty image.
pub(super) fn create(cx: &CreateContext<'_>) -> Result<()> {
    crate::format::options::preallocation(
        cx.options,
        &[Preallocation::Falloc, Preallocation::Full],
    )?;
    let plan = Plan::new(cx.options, cx.size)?;
    let narrow = |n: u64| u32::try_from(n).map_err(|_| Error::errno(libc::EFBIG));
    let mut header = Header::new_zeroed();
    header.magic.set(layout::MAGIC);
    header.cluster_size.set(narrow(plan.cluster)?);
    header.table_size.set(narrow(plan.table)?);
    header.header_size.set(1);
    header.l1_offset.set(plan.cluster);
    header.size.set(plan.size);
    let mut name = "";
    if let Some(backing) = &cx.backing {
        name = &backing.name;
        let raw = backing.format.as_deref() == Some("raw");
        header.features.set(feature::BACKING | if raw { feature::BACKING_RAW } else { 0 });
        header.backing_offset.set(narrow(layout::HEADER)?);
        header.backing_len.set(narrow(len_u64(name.len()))?);
        if len_u64(name.len()) > layout::MAX_NAME {
            return Err(Error::invalid("Backing file name too long"));
        }
    }
    let storage = cx.files.main()?;
    let end = plan.cluster * (1 + plan.table);
    storage.set_len(end, Preallocation::Off)?;
    if plan.cluster * plan.table <= RESERVED {
        storage.write_at(plan.cluster, &vec![0; small(plan.cluster * plan.table)])?;
    }
    storage.write_at(layout::HEADER, name.as_bytes())?;
    storage.write_at(0, header.as_bytes())
}

/// How large an image would be.
pub(super) fn measure(
    options: &CreateOptions,
    source: &mut MeasureSource<'_>,
) -> Result<Measurement> {
    let plan = Plan::new(options, source.virtual_size)?;
    let table = plan.cluster * plan.table;
    let span = (table / 8).saturating_mul(plan.cluster);
    let front = plan.cluster + table;
    let fully_allocated =
        front + round_up(plan.size, plan.cluster) + plan.size.div_ceil(span) * table;
    let mut required = front;
    let (mut data_to, mut tables_to) = (0, 0);
    (source.data_runs)(&mut |start, len| {
        let count = |unit: u64, done: &mut u64| {
            let from = round_down(start, unit).max(*done);
            *done = round_up(start + len, unit).max(*done);
            done.saturating_sub(from) / unit
        };
        required += count(plan.cluster, &mut data_to) * plan.cluster;
        required += count(span, &mut tables_to) * table;
        Ok(())
    })?;
    Ok(Measurement { required, fully_allocated, bitmaps: None })
}
