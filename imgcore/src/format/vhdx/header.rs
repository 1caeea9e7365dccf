//! The header section (2.2): which of two headers counts, and the regions.

use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::layout::{
    self, HEADERS_AT, Header, MIB, REGIONS_AT, RegionEntry, RegionTable, STRUCTURE, checksum,
};
use crate::format::uuid::Uuid;
use crate::num::small;
use crate::storage::Storage;
use crate::{Error, Result};

/// The header that counts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Current {
    pub raw: Header,
    /// 0 or 1: where it is.
    pub slot: usize,
    /// The other one is valid, too.
    pub both: bool,
}

impl Header {
    /// Computes the checksum.
    pub fn seal(&mut self) {
        let sum = checksum(self.as_bytes());
        self.checksum.set(sum);
    }
}

/// Finds the valid header with the higher sequence number.
pub(super) fn current(storage: &dyn Storage) -> Result<Current> {
    let mut found: Option<Current> = None;
    let mut valid = 0;
    for (slot, &at) in HEADERS_AT.iter().enumerate() {
        let mut raw = Header::new_zeroed();
        storage.read_at(at, raw.as_mut_bytes())?;
        if raw.signature != layout::HEADER_SIGNATURE
            || checksum(raw.as_bytes()) != raw.checksum.get()
            || raw.version.get() != 1
        {
            continue;
        }
        valid += 1;
        if found.as_ref().is_none_or(|f| raw.sequence.get() > f.raw.sequence.get()) {
            found = Some(Current { raw, slot, both: false });
        }
    }
    let mut found = found.ok_or_else(|| {
        Error::corrupt("No valid VHDX header found")
            .at_path(storage.name())
            .at_offset(HEADERS_AT[0])
    })?;
    found.both = valid == 2;
    let bad = |at: u64, what: String| {
        Error::corrupt(what).at_path(storage.name()).at_offset(HEADERS_AT[found.slot] + at)
    };
    if found.raw.log_version.get() != 0 {
        return Err(bad(
            64,
            format!("unsupported VHDX log version {}", found.raw.log_version.get()),
        ));
    }
    let (offset, length) = (found.raw.log_offset.get(), u64::from(found.raw.log_length.get()));
    let fits = offset.checked_add(length).is_some_and(|end| end <= storage.len().unwrap_or(0));
    if !offset.is_multiple_of(MIB)
        || offset < MIB
        || !length.is_multiple_of(MIB)
        || length == 0
        || !fits
    {
        return Err(bad(
            72,
            format!("the VHDX log of {length} bytes at {offset:#x} does not lie inside the file"),
        ));
    }
    Ok(found)
}

/// Writes a changed header into the slot that does not count, so that it does.
pub(super) fn advance(
    storage: &dyn Storage,
    current: &mut Current,
    change: impl FnOnce(&mut Header),
) -> Result<()> {
    let mut raw = current.raw;
    change(&mut raw);
    raw.sequence.set(raw.sequence.get().wrapping_add(1));
    raw.seal();
    let slot = 1 - current.slot;
    storage.write_at(HEADERS_AT[slot], raw.as_bytes())?;
    storage.flush()?;
    *current = Current { raw, slot, both: current.both };
    Ok(())
}

/// A place in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Region {
    pub offset: u64,
    pub length: u64,
}

/// The known regions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Regions {
    pub bat: Region,
    pub metadata: Region,
    /// Both tables are valid and the same.
    pub both: bool,
}

/// Reads the first valid region table.
pub(super) fn regions(storage: &dyn Storage, log: Region) -> Result<Regions> {
    let mut tables = [Vec::new(), Vec::new()];
    for (table, at) in tables.iter_mut().zip(REGIONS_AT) {
        let mut raw = vec![0; small(STRUCTURE)];
        storage.read_at(at, &mut raw)?;
        let valid = RegionTable::read_from_prefix(&raw).is_ok_and(|(head, _)| {
            head.signature == layout::REGION_SIGNATURE && checksum(&raw) == head.checksum.get()
        });
        if valid {
            *table = raw;
        }
    }
    let both = !tables[0].is_empty() && tables[0] == tables[1];
    let (at, raw) = match (tables[0].is_empty(), tables[1].is_empty()) {
        (false, _) => (REGIONS_AT[0], &tables[0]),
        (true, false) => (REGIONS_AT[1], &tables[1]),
        _ => {
            return Err(Error::corrupt("No valid VHDX region table found")
                .at_path(storage.name())
                .at_offset(REGIONS_AT[0]));
        }
    };
    parse(storage, at, raw, log).map(|r| Regions { both, ..r })
}

fn parse(storage: &dyn Storage, at: u64, raw: &[u8], log: Region) -> Result<Regions> {
    let bad = |place: u64, what: String| {
        Error::corrupt(what).at_path(storage.name()).at_offset(at + place)
    };
    let unreadable = || bad(0, "unreadable VHDX region table".to_owned());
    let (head, rest) = RegionTable::read_from_prefix(raw).map_err(|_| unreadable())?;
    let count = u64::from(head.count.get());
    if count > layout::MAX_TABLE {
        return Err(bad(8, format!("the VHDX region table has {count} entries")));
    }
    let len = storage.len()?;
    let mut taken = vec![Region { offset: 0, length: MIB }, log];
    let (mut bat, mut metadata) = (None, None);
    for (i, raw) in (0..count).zip(rest.chunks_exact(32)) {
        let place = 16 + 32 * i;
        let entry = RegionEntry::read_from_bytes(raw).map_err(|_| unreadable())?;
        let region = Region { offset: entry.offset.get(), length: u64::from(entry.length.get()) };
        let end = region.offset.checked_add(region.length);
        if !region.offset.is_multiple_of(MIB)
            || !region.length.is_multiple_of(MIB)
            || region.length == 0
        {
            return Err(bad(
                place,
                format!("the VHDX region at {:#x} is not aligned", region.offset),
            ));
        }
        let Some(end) = end.filter(|&end| end <= len) else {
            return Err(bad(
                place,
                format!(
                    "the VHDX region at {:#x} ends beyond the end of the file ({len:#x})",
                    region.offset
                ),
            ));
        };
        let over = taken.iter().find(|t| region.offset < t.offset + t.length && t.offset < end);
        if let Some(other) = over {
            return Err(bad(
                place,
                format!(
                    "VHDX region {}-{end} overlaps with region {}-{}",
                    region.offset,
                    other.offset,
                    other.offset + other.length
                ),
            ));
        }
        taken.push(region);
        let slot = match Uuid::from_le(entry.guid) {
            layout::REGION_BAT => &mut bat,
            layout::REGION_METADATA => &mut metadata,
            other if entry.required.get() & 1 != 0 => {
                return Err(bad(place, format!("unknown required VHDX region {other}")));
            }
            _ => continue,
        };
        if slot.replace(region).is_some() {
            return Err(bad(place, "a VHDX region is told twice".to_owned()));
        }
    }
    match (bat, metadata) {
        (Some(bat), Some(metadata)) => Ok(Regions { bat, metadata, both: false }),
        _ => Err(bad(
            0,
            "the VHDX region table lacks the block allocation table or the metadata".to_owned(),
        )),
    }
}

/// Writes both region tables, the second first: each is whole at any moment.
pub(super) fn write_regions(storage: &dyn Storage, regions: &Regions) -> Result<()> {
    let raw = region_table(regions);
    for at in REGIONS_AT.into_iter().rev() {
        storage.write_at(at, &raw)?;
        storage.flush()?;
    }
    Ok(())
}

/// The bytes of a region table.
pub(super) fn region_table(regions: &Regions) -> Vec<u8> {
    let mut raw = vec![0; small(STRUCTURE)];
    let mut put = |at: usize, bytes: &[u8]| raw[at..at + bytes.len()].copy_from_slice(bytes);
    let mut head = RegionTable::new_zeroed();
    head.signature = layout::REGION_SIGNATURE;
    head.count.set(2);
    put(0, head.as_bytes());
    let known = [(layout::REGION_BAT, regions.bat), (layout::REGION_METADATA, regions.metadata)];
    for (at, (guid, region)) in (16..).step_by(32).zip(known) {
        let mut entry = RegionEntry::new_zeroed();
        entry.guid = guid.to_le();
        entry.offset.set(region.offset);
        // Regions are smaller than 4 GiB: their length was read from 32 bits or checked.
        entry.length.set(u32::try_from(region.length).unwrap_or(u32::MAX));
        entry.required.set(1);
        put(at, entry.as_bytes());
    }
    let sum = checksum(&raw);
    raw[4..8].copy_from_slice(&sum.to_le_bytes());
    raw
}
