//! MBR: entries count sectors in 32 bits, so a partition begins and ends below 2 TiB (with sectors of 512
//! bytes).

use zerocopy::IntoBytes;

use super::super::mbr::{BootRecord, RawEntry, record_at};
use super::super::types::is_extended;
use super::super::{Layout, Partition, Role};
use super::{ALIGN, Change, GrowPlan, new_end};
use crate::guest::disk::GuestDisk;
use crate::{Error, Result};

/// Cylinder, head and sector of what lies beyond their reach.
const CHS_BEYOND: [u8; 3] = [0xfe, 0xff, 0xff];

/// The new table.
pub(super) fn plan(
    disk: &GuestDisk,
    layout: &Layout,
    partition: &Partition,
    new_len: u64,
) -> Result<GrowPlan> {
    let sector = u64::from(layout.sector_size);
    // The last sector that can be named, and lengths that fit.
    let limit = (new_len / sector).min(u64::from(u32::MAX)) * sector;
    let mut notes = Vec::new();
    if new_len / sector > u64::from(u32::MAX) {
        notes.push(format!(
            "an MBR reaches no farther than {} bytes; what lies behind stays unused (convert the table to \
             GPT in the guest: sgdisk -g)",
            u64::from(u32::MAX) * sector
        ));
    }
    let mut plan = GrowPlan {
        partition: partition.clone(),
        new_length: partition.length,
        container: None,
        changes: Vec::new(),
        notes,
    };
    let primary = || layout.partitions.iter().filter(|p| p.role != Role::Logical);
    let table = record_at(disk, 0)?.ok_or_else(|| Error::corrupt("the MBR has gone"))?;
    let others = |own: u32| primary().filter(move |p| p.number != own);
    if partition.role != Role::Logical {
        let end = new_end(partition, others(partition.number), limit)?;
        plan.new_length = end - partition.start;
        plan.changes = vec![table_change(table, partition, plan.new_length, sector)?];
        return Ok(plan);
    }
    let container = primary().find(|p| p.role == Role::Extended);
    let container =
        container.ok_or_else(|| Error::corrupt("a logical partition without container"))?;
    let later = layout
        .partitions
        .iter()
        .filter(|p| p.role == Role::Logical && p.number != partition.number)
        .filter(|p| p.start >= partition.end())
        .min_by_key(|p| p.start);
    let inside_end = match later {
        // The record of the next logical partition stands somewhere before it.
        Some(next) => return Err(super::followed(partition, next)),
        // The container may be followed by a primary partition; then what it has is all there is.
        None => match new_end(container, others(container.number), limit) {
            Ok(end) => end,
            Err(_) if container.end() >= partition.end() + ALIGN => container.end(),
            Err(e) => return Err(e),
        },
    };
    let container_length = inside_end.max(container.end()) - container.start;
    if container_length > container.length {
        plan.changes.push(table_change(table, container, container_length, sector)?);
        plan.container = Some((container.clone(), container_length));
    }
    plan.new_length = inside_end.max(partition.end()) - partition.start;
    records(disk, container, partition, plan.new_length, sector, &mut plan.changes)?;
    Ok(plan)
}

/// A length in sectors, as an entry has it.
fn sectors(length: u64, sector: u64) -> Result<u32> {
    u32::try_from(length / sector)
        .map_err(|_| Error::unsupported("the partition would be too long for an MBR"))
}

fn enlarge(entry: &mut RawEntry, length: u64, sector: u64) -> Result<()> {
    entry.sectors.set(sectors(length, sector)?);
    // Nobody counts in cylinders any more; the old end must not contradict the new one.
    entry.last_chs = CHS_BEYOND;
    Ok(())
}

/// The master boot record with a partition's new length.
fn table_change(
    mut table: BootRecord,
    partition: &Partition,
    length: u64,
    sector: u64,
) -> Result<Change> {
    let mut entries = (1u32..).zip(&mut table.raw.entries);
    let (_, entry) = entries
        .find(|(number, _)| *number == partition.number)
        .ok_or_else(|| Error::corrupt("the partition has no entry"))?;
    enlarge(entry, length, sector)?;
    Ok(Change { at: 0, bytes: table.raw.as_bytes().to_vec(), what: "master boot record" })
}

/// The records of the chain that say how long the logical partition is: its own, and the link of the one
/// before.
fn records(
    disk: &GuestDisk,
    container: &Partition,
    partition: &Partition,
    length: u64,
    sector: u64,
    changes: &mut Vec<Change>,
) -> Result<()> {
    let broken = || Error::corrupt("the chain of logical partitions is broken");
    let end = partition.start + length;
    let mut at = container.start;
    let mut before: Option<(u64, BootRecord)> = None;
    for _ in 0..512 {
        let mut record = record_at(disk, at)?.ok_or_else(broken)?;
        let own = record.raw.entries.iter_mut().take(2).find(|e| {
            !is_extended(e.kind) && at + u64::from(e.first.get()) * sector == partition.start
        });
        if let Some(entry) = own {
            enlarge(entry, length, sector)?;
            if let Some((place, mut earlier)) = before {
                let link = earlier.raw.entries.iter_mut().find(|e| is_extended(e.kind));
                enlarge(link.ok_or_else(broken)?, end - at, sector)?;
                changes.push(Change {
                    at: place,
                    bytes: earlier.raw.as_bytes().to_vec(),
                    what: "link to the logical partition",
                });
            }
            changes.push(Change {
                at,
                bytes: record.raw.as_bytes().to_vec(),
                what: "boot record of the logical partition",
            });
            return Ok(());
        }
        let link = record.raw.entries.iter().find(|e| is_extended(e.kind)).ok_or_else(broken)?;
        let next = container.start + u64::from(link.first.get()) * sector;
        before = Some((at, record));
        at = next;
    }
    Err(broken())
}
