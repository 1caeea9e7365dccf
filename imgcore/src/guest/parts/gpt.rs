//! GUID partition table: UEFI specification 2.10, section 5.3.
//!
//! There are two copies, each a header and an array of entries with a CRC-32 each: the primary one at
//! sector 1, the backup in the last sectors. Either is enough; what is wrong with the other is told.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::partition::{Partition, PartitionType, Role};
use crate::Result;
use crate::format::uuid::Uuid;
use crate::guest::disk::GuestDisk;
use crate::guest::volume::DiskRange;
use crate::num::small;

/// Begins a header (5.3.2).
const SIGNATURE: [u8; 8] = *b"EFI PART";
/// The largest array of entries that is read: 128 of 128 bytes are usual, this is 256 times as much.
const MAX_ENTRIES: u64 = 4 << 20;
/// Attribute `legacy BIOS bootable` (table 5.7).
const LEGACY_BOOTABLE: u64 = 1 << 2;

/// The header (table 5.5).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub(crate) struct RawHeader {
    pub signature: [u8; 8],
    pub revision: U32,
    pub size: U32,
    pub crc: U32,
    pub reserved: U32,
    pub my_lba: U64,
    pub alternate_lba: U64,
    pub first_usable: U64,
    pub last_usable: U64,
    pub disk_guid: [u8; 16],
    pub entries_lba: U64,
    pub entry_count: U32,
    pub entry_size: U32,
    pub entries_crc: U32,
}
const _: () = assert!(size_of::<RawHeader>() == 92);

/// An entry (table 5.6).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawEntry {
    pub kind: [u8; 16],
    pub id: [u8; 16],
    pub first: U64,
    pub last: U64,
    pub attributes: U64,
    pub name: [U16; 36],
}
const _: () = assert!(size_of::<RawEntry>() == 128);

/// The state of one copy of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopyState {
    /// Sound.
    Good,
    /// No header where it must be.
    Missing,
    /// Why it cannot be used.
    Damaged(String),
    /// Sound, but it says something else than the copy in use.
    Different,
}

/// The table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpt {
    /// The disk's identifier.
    pub disk_guid: String,
    /// The copy at sector 1.
    pub primary: CopyState,
    /// The copy at the end.
    pub backup: CopyState,
    /// Where the backup header is, or should be, in bytes.
    pub backup_at: u64,
    /// Whether that is the last sector of the disk; it is not after the disk has grown.
    pub backup_at_end: bool,
    /// The bytes that partitions may use.
    pub usable: DiskRange,
    /// The copy in use, for whoever changes it.
    pub(crate) copy: RawCopy,
}

/// One sound copy: the header with all bytes of its sector that its CRC covers, and the entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RawCopy {
    pub header: RawHeader,
    /// Bytes of the header beyond the known ones.
    pub rest: Vec<u8>,
    pub entries: Vec<u8>,
}

impl RawCopy {
    /// The entries that are in use, with their indexes from 0.
    pub fn used(&self) -> impl Iterator<Item = (usize, RawEntry)> + '_ {
        let size = small(u64::from(self.header.entry_size.get())).max(size_of::<RawEntry>());
        self.entries.chunks_exact(size).enumerate().filter_map(|(i, bytes)| {
            let (entry, _) = RawEntry::read_from_prefix(bytes).ok()?;
            (entry.kind != [0; 16]).then_some((i, entry))
        })
    }
}

impl Gpt {
    /// Sentences about what is wrong.
    pub fn warnings(&self) -> Vec<String> {
        let mut all = Vec::new();
        let mut tell = |which: &str, state: &CopyState| match state {
            CopyState::Good => {}
            CopyState::Missing => all.push(format!("the {which} GPT header is missing")),
            CopyState::Damaged(why) => all.push(format!("the {which} GPT is damaged: {why}")),
            CopyState::Different => {
                all.push(format!("the {which} GPT does not agree with the one in use"));
            }
        };
        tell("primary", &self.primary);
        tell("backup", &self.backup);
        if !self.backup_at_end && self.backup == CopyState::Good {
            all.push(
                "the backup GPT is not at the end of the disk: the disk has grown since".to_owned(),
            );
        }
        all
    }
}

/// The sector size for which a GPT header is found: 4096 only when there is one for it and none for 512.
///
/// # Errors
/// When the disk cannot be read.
pub fn sector_size(disk: &GuestDisk) -> Result<u32> {
    let found = |sector: u32| -> Result<bool> {
        let mut signature = [0; 8];
        if disk.len() < u64::from(sector) * 2 {
            return Ok(false);
        }
        disk.read_at(u64::from(sector), &mut signature)?;
        Ok(signature == SIGNATURE)
    };
    Ok(if !found(512)? && found(4096)? { 4096 } else { 512 })
}

/// One copy as it was found.
type Found = std::result::Result<RawCopy, CopyState>;

/// Reads both copies. `None` when neither is there, or neither is sound.
///
/// # Errors
/// When the disk cannot be read.
pub fn read(disk: &GuestDisk, sector_size: u32) -> Result<Option<(Gpt, Vec<Partition>)>> {
    let sector = u64::from(sector_size);
    let sectors = disk.len() / sector;
    if sectors < 4 {
        return Ok(None);
    }
    let last = sectors - 1;
    let primary = read_copy(disk, sector, 1)?;
    let told = primary.as_ref().ok().map(|c| c.header.alternate_lba.get());
    let mut backup_lba = told.filter(|&lba| lba > 1 && lba <= last).unwrap_or(last);
    let mut backup = read_copy(disk, sector, backup_lba)?;
    if backup.is_err() && backup_lba != last {
        let at_end = read_copy(disk, sector, last)?;
        if at_end.is_ok() {
            (backup_lba, backup) = (last, at_end);
        }
    }
    let (copy, primary, backup) = match (primary, backup) {
        (Ok(a), Ok(b)) => {
            let state = if agree(&a, &b) { CopyState::Good } else { CopyState::Different };
            (a, CopyState::Good, state)
        }
        (Ok(a), Err(state)) => (a, CopyState::Good, state),
        (Err(state), Ok(b)) => (b, state, CopyState::Good),
        (Err(_), Err(_)) => return Ok(None),
    };
    let partitions = partitions(&copy, sector);
    let header = &copy.header;
    let (first, end) = (header.first_usable.get(), header.last_usable.get().saturating_add(1));
    let start = first.saturating_mul(sector);
    let gpt = Gpt {
        disk_guid: Uuid::from_le(header.disk_guid).to_string(),
        primary,
        backup,
        backup_at: backup_lba * sector,
        backup_at_end: backup_lba == last,
        usable: DiskRange { start, len: end.saturating_mul(sector).saturating_sub(start) },
        copy,
    };
    Ok(Some((gpt, partitions)))
}

/// Whether two copies describe the same disk.
fn agree(a: &RawCopy, b: &RawCopy) -> bool {
    let told =
        |h: &RawHeader| (h.disk_guid, h.first_usable, h.last_usable, h.entry_count, h.entry_size);
    told(&a.header) == told(&b.header) && a.entries == b.entries
}

/// Reads and checks one copy (5.3.2: signature, CRC, own place, CRC of the entries).
fn read_copy(disk: &GuestDisk, sector: u64, lba: u64) -> Result<Found> {
    let damaged = |why: String| Ok(Err(CopyState::Damaged(why)));
    let bytes = disk.read(lba * sector, sector)?;
    let Ok((header, _)) = RawHeader::read_from_prefix(&bytes) else {
        return Ok(Err(CopyState::Missing));
    };
    if header.signature != SIGNATURE {
        return Ok(Err(CopyState::Missing));
    }
    let size = small(u64::from(header.size.get()));
    let Some(covered) = bytes.get(..size).filter(|b| b.len() >= size_of::<RawHeader>()) else {
        return damaged(format!("a header of {size} bytes"));
    };
    if header_crc(covered) != header.crc.get() {
        return damaged("the checksum of the header is wrong".to_owned());
    }
    if header.my_lba.get() != lba {
        return damaged(format!("it is meant for sector {}", header.my_lba.get()));
    }
    let entry_size = u64::from(header.entry_size.get());
    let total = entry_size * u64::from(header.entry_count.get());
    if entry_size < 128 || !entry_size.is_power_of_two() || total > MAX_ENTRIES {
        let count = header.entry_count.get();
        return damaged(format!("{count} entries of {entry_size} bytes"));
    }
    let at = header.entries_lba.get().checked_mul(sector);
    let Some(at) = at.filter(|a| a.checked_add(total).is_some_and(|end| end <= disk.len())) else {
        return damaged("its entries lie beyond the end of the disk".to_owned());
    };
    let entries = disk.read(at, total)?;
    if crc32fast::hash(&entries) != header.entries_crc.get() {
        return damaged("the checksum of the entries is wrong".to_owned());
    }
    let rest = covered.get(size_of::<RawHeader>()..).unwrap_or_default().to_vec();
    Ok(Ok(RawCopy { header, rest, entries }))
}

/// The CRC of a header, whose own field counts as zero (offset 16).
pub(crate) fn header_crc(covered: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(covered.get(..16).unwrap_or_default());
    crc.update(&[0; 4]);
    crc.update(covered.get(20..).unwrap_or_default());
    crc.finalize()
}

/// The entries as partitions. Those that end before they begin are left out.
fn partitions(copy: &RawCopy, sector: u64) -> Vec<Partition> {
    copy.used()
        .filter_map(|(index, entry)| {
            let (first, last) = (entry.first.get(), entry.last.get());
            let count = last.checked_sub(first)?.checked_add(1)?;
            let name = entry.name.map(U16::get);
            let name = String::from_utf16_lossy(name.split(|&c| c == 0).next()?);
            Some(Partition {
                number: u32::try_from(index).ok()?.checked_add(1)?,
                start: first.checked_mul(sector)?,
                length: count.saturating_mul(sector),
                kind: PartitionType::Gpt(Uuid::from_le(entry.kind).to_string()),
                name: (!name.is_empty()).then_some(name),
                id: Some(Uuid::from_le(entry.id).to_string()),
                bootable: entry.attributes.get() & LEGACY_BOOTABLE != 0,
                attributes: entry.attributes.get(),
                role: Role::Primary,
            })
        })
        .collect()
}
