//! GPT: UEFI specification 2.10, section 5.3.

use zerocopy::IntoBytes;

use super::super::gpt::{CopyState, Gpt, RawCopy, RawEntry, RawHeader, header_crc};
use super::super::mbr::{PROTECTIVE, record_at};
use super::super::{Layout, Partition};
use super::{Change, GrowPlan, bytes_at, new_end};
use crate::guest::disk::GuestDisk;
use crate::guest::volume::DiskRange;
use crate::num::{len_u64, small};
use crate::{Error, Result};

/// The new table.
pub(super) fn plan(
    disk: &GuestDisk,
    layout: &Layout,
    gpt: &Gpt,
    partition: &Partition,
    new_len: u64,
) -> Result<GrowPlan> {
    let sector = u64::from(layout.sector_size);
    let last = (new_len / sector).checked_sub(1).ok_or_else(|| Error::invalid("an empty disk"))?;
    let room = len_u64(gpt.copy.entries.len()).div_ceil(sector);
    let backup_entries = last.saturating_sub(room);
    let first_behind = backup_entries * sector;
    if layout.partitions.iter().any(|p| p.end() > first_behind) {
        return Err(Error::corrupt("a partition lies where the backup GPT must be"));
    }
    let others = layout.partitions.iter().filter(|p| p.number != partition.number);
    let end = new_end(partition, others, first_behind)?;
    let entries = entries_with(&gpt.copy, partition, end / sector)?;
    let primary_entries = primary_entries(gpt)?;
    if (primary_entries + room) * sector
        > layout.partitions.iter().map(|p| p.start).min().unwrap_or(0)
    {
        return Err(Error::corrupt("a partition lies where the primary GPT must be"));
    }
    let header = |my: u64, alternate: u64, place: u64| {
        let mut h = gpt.copy.header;
        h.my_lba.set(my);
        h.alternate_lba.set(alternate);
        h.entries_lba.set(place);
        h.last_usable.set(backup_entries.saturating_sub(1));
        h.entries_crc.set(crc32fast::hash(&entries));
        sector_of(h, &gpt.copy, sector)
    };
    let mut padded = entries.clone();
    padded.resize(small(room * sector), 0);
    let mut changes = vec![
        Change { at: backup_entries * sector, bytes: padded.clone(), what: "backup GPT entries" },
        Change {
            at: last * sector,
            bytes: header(last, 1, backup_entries),
            what: "backup GPT header",
        },
    ];
    let mut notes = Vec::new();
    protective(disk, last, &mut changes, &mut notes)?;
    changes.push(Change {
        at: primary_entries * sector,
        bytes: padded,
        what: "primary GPT entries",
    });
    changes.push(Change {
        at: sector,
        bytes: header(1, last, primary_entries),
        what: "primary GPT header",
    });
    if gpt.backup_at != last * sector && gpt.backup == CopyState::Good {
        wipe_old(disk, layout, gpt, sector, &mut changes)?;
    }
    if gpt.primary != CopyState::Good {
        notes.push("the damaged primary GPT is made anew from the backup".to_owned());
    } else if gpt.backup != CopyState::Good {
        notes.push("the backup GPT, which was damaged or missing, is made anew".to_owned());
    }
    let new_length = end - partition.start;
    Ok(GrowPlan { partition: partition.clone(), new_length, container: None, changes, notes })
}

/// Where the primary entries stand: sector 2, unless the primary header says otherwise.
fn primary_entries(gpt: &Gpt) -> Result<u64> {
    if gpt.primary != CopyState::Good {
        return Ok(2);
    }
    match gpt.copy.header.entries_lba.get() {
        0 | 1 => Err(Error::corrupt("the entries of the primary GPT lie on its header")),
        lba => Ok(lba),
    }
}

/// The entries with the partition's new end; `end` is the sector behind it.
fn entries_with(copy: &RawCopy, partition: &Partition, end: u64) -> Result<Vec<u8>> {
    let size = small(u64::from(copy.header.entry_size.get()));
    let at = (small(u64::from(partition.number)) - 1) * size;
    let mut entries = copy.entries.clone();
    let field = std::mem::offset_of!(RawEntry, last);
    let place = entries.get_mut(at + field..at + field + 8);
    let place = place.ok_or_else(|| Error::corrupt("the partition has no entry"))?;
    place.copy_from_slice(&(end - 1).to_le_bytes());
    Ok(entries)
}

/// A sector with a header, its checksum computed.
fn sector_of(mut header: RawHeader, copy: &RawCopy, sector: u64) -> Vec<u8> {
    header.crc.set(0);
    let covered = [header.as_bytes(), &copy.rest].concat();
    header.crc.set(header_crc(&covered));
    let mut bytes = [header.as_bytes(), &copy.rest].concat();
    bytes.resize(small(sector), 0);
    bytes
}

/// The entry that stands for the GPT covers the whole disk, as far as 32 bits go (5.2.3).
fn protective(
    disk: &GuestDisk,
    last: u64,
    changes: &mut Vec<Change>,
    notes: &mut Vec<String>,
) -> Result<()> {
    let Some(mut record) = record_at(disk, 0)? else {
        notes.push(
            "the protective MBR is missing and stays so: systems that require it see no partitions"
                .to_owned(),
        );
        return Ok(());
    };
    if record.raw.entries.iter().filter(|e| e.kind != 0).count() > 1 {
        notes.push("the MBR is a hybrid one: its own entries are left as they are".to_owned());
        return Ok(());
    }
    for entry in record.raw.entries.iter_mut().filter(|e| e.kind == PROTECTIVE) {
        let length = last + 1 - u64::from(entry.first.get()).min(last);
        entry.sectors.set(u32::try_from(length).unwrap_or(u32::MAX));
    }
    let bytes = record.raw.as_bytes().to_vec();
    if bytes != bytes_at(disk, DiskRange { start: 0, len: 512 })? {
        changes.push(Change { at: 0, bytes, what: "protective MBR" });
    }
    Ok(())
}

/// The old backup header, so that nobody takes it for the disk's; unless a partition lies there.
fn wipe_old(
    disk: &GuestDisk,
    layout: &Layout,
    gpt: &Gpt,
    sector: u64,
    changes: &mut Vec<Change>,
) -> Result<()> {
    let at = gpt.backup_at;
    let used = layout.partitions.iter().any(|p| (p.start..p.end()).contains(&at));
    let new = changes.iter().any(|c| (c.at..c.at + len_u64(c.bytes.len())).contains(&at));
    if !used && !new && at + sector <= disk.len() {
        let bytes = vec![0; small(sector)];
        changes.push(Change { at, bytes, what: "old backup GPT header (wiped)" });
    }
    Ok(())
}
