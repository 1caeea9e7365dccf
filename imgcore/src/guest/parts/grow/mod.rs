//! Making a partition larger, and moving a GPT's backup to the end of a disk that has grown.
//!
//! [`plan`] computes what has to be written, without writing; the caller carries the [`Change`]s out in
//! their order and waits for the disk after each. Between any two of them (and also when one is torn) the disk
//! has a valid table, the old one or the new one:
//!
//! * GPT: the new backup first (entries, then header), where nobody looks yet; then the protective MBR,
//!   which only says how long the disk is; then the primary entries and header. Until that last header is whole,
//!   readers find the new backup at the disk's end. The old backup is wiped last.
//! * MBR: the extended partition before what lies in it; each change is within one sector.
//!
//! No data are moved, and no file system is changed.

mod gpt;
mod mbr;
#[cfg(test)]
mod tests;

use super::{Layout, Partition, Role, Table};
use crate::guest::disk::GuestDisk;
use crate::guest::volume::DiskRange;
use crate::num::round_down;
use crate::{Error, Result};

/// Ends of partitions are laid at multiples of this, as partitioning tools do.
const ALIGN: u64 = 1 << 20;

/// Which partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// The one that ends last on the disk.
    #[default]
    Last,
    /// By its number.
    Number(u32),
}

/// Bytes to be written at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Where on the disk.
    pub at: u64,
    /// What.
    pub bytes: Vec<u8>,
    /// What it is, for people.
    pub what: &'static str,
}

/// What is to be done.
#[derive(Clone, Debug)]
pub struct GrowPlan {
    /// The partition as it is.
    pub partition: Partition,
    /// Its new length in bytes; the old one where there is no room.
    pub new_length: u64,
    /// The extended partition around it, and its new length.
    pub container: Option<(Partition, u64)>,
    /// In this order, with a flush after each.
    pub changes: Vec<Change>,
    /// Sentences about what to know.
    pub notes: Vec<String>,
}

/// Plans to give a partition all the space that follows it on a disk of `new_len` bytes (not less than the
/// disk has now).
///
/// # Errors
/// When the disk has no table or an ambiguous one, there is no such partition, or it cannot be enlarged
/// because another one follows.
pub fn plan(disk: &GuestDisk, layout: &Layout, new_len: u64, choice: Choice) -> Result<GrowPlan> {
    if let Some(why) = &layout.ambiguous {
        return Err(Error::unsupported(format!("the partition table is not changed: {why}")));
    }
    if new_len < disk.len() {
        return Err(Error::invalid(
            "a partition cannot be enlarged while the disk is made smaller",
        ));
    }
    if layout.table == Table::None {
        return Err(Error::unsupported("the disk has no partition table"));
    }
    let partition = choose(layout, choice)?;
    if partition.end() > disk.len() {
        return Err(Error::corrupt(format!(
            "partition {} ends at {}, beyond the end of the disk at {}",
            partition.number,
            partition.end(),
            disk.len()
        )));
    }
    match &layout.table {
        Table::Gpt(gpt) => gpt::plan(disk, layout, gpt, partition, new_len),
        Table::Mbr { .. } | Table::None => mbr::plan(disk, layout, partition, new_len),
    }
}

/// The partition that is meant.
fn choose(layout: &Layout, choice: Choice) -> Result<&Partition> {
    match choice {
        Choice::Number(n) => layout.partitions.iter().find(|p| p.number == n).ok_or_else(|| {
            let known: Vec<String> =
                layout.partitions.iter().map(|p| p.number.to_string()).collect();
            Error::invalid(format!("there is no partition {n}"))
                .hint(format!("the disk has these: {}", known.join(", ")))
        }),
        // The container ends with the last partition in it, or later; what is in it is meant.
        Choice::Last => layout
            .partitions
            .iter()
            .filter(|p| p.role != Role::Extended)
            .max_by_key(|p| p.end())
            .ok_or_else(|| Error::unsupported("the disk has no partitions")),
    }
}

/// Where a partition may end: at the next one of `others`, or at `limit`; rounded down to [`ALIGN`] where
/// that leaves something to gain.
fn new_end<'a>(
    partition: &Partition,
    others: impl Iterator<Item = &'a Partition>,
    limit: u64,
) -> Result<u64> {
    let next = others.filter(|p| p.start >= partition.end()).min_by_key(|p| p.start);
    let end = next.map_or(limit, |p| p.start.min(limit));
    let end = round_down(end, ALIGN).max(partition.end());
    match next {
        // A gap of less than a unit is one of alignment: there is nothing to gain.
        Some(next) if end < partition.end().saturating_add(ALIGN) => Err(followed(partition, next)),
        _ => Ok(end),
    }
}

/// Another partition is in the way.
fn followed(partition: &Partition, next: &Partition) -> Error {
    let kind = next.kind.describe().unwrap_or("unknown");
    let swap = kind == "Linux swap";
    let way = if swap {
        "in the guest: swapoff it, delete it (sfdisk --delete), grow this one, make a new swap partition or a \
         swap file, and give it the old UUID (mkswap -U) or change /etc/fstab"
    } else {
        "grow the partition in the way instead, or move it first (gparted, or a backup)"
    };
    Error::unsupported(format!(
        "partition {} cannot be enlarged: partition {} ({kind}) follows it",
        partition.number, next.number
    ))
    .hint(way)
}

/// The bytes of a range, to be changed.
fn bytes_at(disk: &GuestDisk, range: DiskRange) -> Result<Vec<u8>> {
    disk.read(range.start, range.len)
}
