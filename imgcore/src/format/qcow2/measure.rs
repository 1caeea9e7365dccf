//! How large an image would be.

use super::create::{Choices, parse_compat};
use super::layout::MAX_L1_BYTES;
use crate::format::{CreateOptions, MeasureSource, Measurement};
use crate::num::{round_down, round_up};
use crate::{Error, Result};

/// See [`crate::format::Driver::measure`]. The same sum as QEMU's: header, L1 table, L2 tables for the
/// whole disk, refcount structures for everything, and the data clusters.
pub(super) fn measure(
    options: &CreateOptions,
    source: &mut MeasureSource<'_>,
) -> Result<Measurement> {
    let has_backing = options.text("backing_file").is_some();
    if let Some(level) = options.text("compat").filter(|text| parse_compat(text).is_err()) {
        return Err(Error::invalid(format!("Invalid compatibility level: '{level}'")));
    }
    let choices = Choices::parse(options, has_backing)?;
    let cluster = 1u64 << choices.cluster_bits;
    let size = round_up(source.virtual_size, 512);
    let entry = if choices.extended { 16 } else { 8 };
    let l1_entries = size.div_ceil(cluster / entry * cluster);
    if l1_entries > MAX_L1_BYTES / 8 {
        return Err(Error::invalid(
            "The image size is too large (try using a larger cluster size)",
        ));
    }
    let data = round_up(size, cluster);
    let crypt = choices.crypt.as_ref().map_or(0, |c| round_up(c.area_len(), cluster));
    let metadata = crypt + metadata_size(data, cluster, choices.refcount_order, entry);
    let mut bitmaps = None;
    if choices.version >= 3
        && let Some(list) = &source.bitmaps
    {
        bitmaps = Some(bitmap_size(list, size, cluster));
    }
    let mut required = 0u64;
    if choices.data_file.is_none() {
        if choices.preallocation == crate::storage::Preallocation::Falloc
            || choices.preallocation == crate::storage::Preallocation::Full
        {
            required = data;
        } else if has_backing {
            // How much of the source the new image would share is not known: assume nothing.
            required = if source.from_image { data } else { 0 };
        } else {
            let mut counted_to = 0;
            (source.data_runs)(&mut |start, len| {
                let from = round_down(start, cluster).max(counted_to);
                let to = round_up(start + len, cluster);
                required += to.saturating_sub(from);
                counted_to = to.max(counted_to);
                Ok(())
            })?;
        }
    }
    let fully = if choices.data_file.is_some() { 0 } else { data };
    Ok(Measurement { required: metadata + required, fully_allocated: metadata + fully, bitmaps })
}

/// Bytes of all metadata for a disk of `data` bytes (cluster-rounded).
fn metadata_size(data: u64, cluster: u64, order: u32, entry: u64) -> u64 {
    let header = cluster;
    let clusters = data / cluster;
    let l2_entries = round_up(clusters, cluster / entry);
    let l2 = l2_entries * entry;
    let l1 = round_up(l2_entries * entry / cluster * 8, cluster);
    let tables = header + l2 + l1;
    // Refcounts describe everything including themselves: iterate until it fits.
    let per_block = cluster * 8 >> order;
    let fixed = (tables + data).div_ceil(cluster);
    let mut refs = 0u64;
    loop {
        let blocks = (fixed + refs).div_ceil(per_block);
        let table = (blocks * 8).div_ceil(cluster);
        if blocks + table == refs {
            return tables + refs * cluster;
        }
        refs = blocks + table;
    }
}

/// Bytes of persistent bitmaps: each one's data and table, and the directory.
fn bitmap_size(list: &[(u64, usize)], size: u64, cluster: u64) -> u64 {
    let mut total = 0;
    let mut directory = 0;
    for &(granularity, name) in list {
        let bits = size.div_ceil(granularity.max(1));
        let clusters = bits.div_ceil(8).div_ceil(cluster);
        total += clusters * cluster + round_up(clusters * 8, cluster);
        directory += round_up(24 + crate::num::len_u64(name), 8);
    }
    total + round_up(directory, cluster)
}
