//! The master boot record and the chain of logical partitions.
//!
//! Described in the UEFI specification 2.10, section 5.2.1; the chain of extended boot records as
//! Linux walks it (*Extended boot record* at Wikipedia). The first entry of a
//! record of the chain counts from that record, the link from the beginning of the container.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::partition::{Partition, PartitionType, Role};
use super::types::is_extended;
use crate::guest::content;
use crate::guest::disk::GuestDisk;
use crate::guest::volume::Volume;
use crate::{Error, Result};

/// Type of the entry that stands for a GPT.
pub(crate) const PROTECTIVE: u8 = 0xee;
/// Logical partitions that are followed: more than any system takes.
const MAX_LOGICAL: u32 = 256;
/// Ends a boot record.
const SIGNATURE: u16 = 0xaa55;

/// A boot record (UEFI 2.10, table 5.1).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawRecord {
    pub code: [u8; 440],
    pub disk_signature: U32,
    pub unknown: U16,
    pub entries: [RawEntry; 4],
    pub signature: U16,
}
const _: () = assert!(size_of::<RawRecord>() == 512);

/// A partition record (UEFI 2.10, table 5.2).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawEntry {
    pub status: u8,
    pub first_chs: [u8; 3],
    pub kind: u8,
    pub last_chs: [u8; 3],
    pub first: U32,
    pub sectors: U32,
}
const _: () = assert!(size_of::<RawEntry>() == 16);

impl RawEntry {
    fn used(&self) -> bool {
        self.kind != 0 && self.sectors.get() != 0
    }

    /// The bits of the first byte that is either 0 or 0x80.
    fn plausible(&self) -> bool {
        self.status & 0x7f == 0
    }
}

/// A boot record with its signature in place.
#[derive(Clone, Copy, Debug)]
pub struct BootRecord {
    pub(crate) raw: RawRecord,
}

/// The boot record at a sector; `None` without the signature `55 aa`.
pub(crate) fn record_at(disk: &GuestDisk, offset: u64) -> Result<Option<BootRecord>> {
    if offset.checked_add(512).is_none_or(|end| end > disk.len()) {
        return Ok(None);
    }
    let mut buf = [0; 512];
    disk.read_at(offset, &mut buf)?;
    let raw = RawRecord::read_from_bytes(&buf).map_err(|_| Error::corrupt("boot record"))?;
    Ok((raw.signature.get() == SIGNATURE).then_some(BootRecord { raw }))
}

/// The disk's boot record; `None` without the signature `55 aa`.
///
/// # Errors
/// When the disk cannot be read.
pub fn read(disk: &GuestDisk) -> Result<Option<BootRecord>> {
    record_at(disk, 0)
}

impl BootRecord {
    /// The disk's signature.
    pub fn signature(&self) -> u32 {
        self.raw.disk_signature.get()
    }

    /// Whether an entry stands for a GPT.
    pub fn has_gpt(&self) -> bool {
        self.raw.entries.iter().any(|e| e.kind == PROTECTIVE)
    }

    /// The first bytes, which a BIOS starts.
    pub fn code(&self) -> &[u8; 440] {
        &self.raw.code
    }

    /// Whether this is the boot sector of a file system on a disk without a table: FAT, exFAT and NTFS end
    /// theirs with the same signature. It is not when the four entries are sound and one of them is used.
    pub fn looks_like_volume(&self, disk: &GuestDisk, sector_size: u32) -> bool {
        let entries = &self.raw.entries;
        let inside = |e: &RawEntry| {
            let end =
                (u64::from(e.first.get()) + u64::from(e.sectors.get())) * u64::from(sector_size);
            e.first.get() > 0 && end <= disk.len()
        };
        let sound = entries.iter().all(RawEntry::plausible)
            && entries.iter().any(|e| e.used() && inside(e));
        !sound && content::probe(&Volume::whole(disk)).is_ok_and(|found| !found.is_empty())
    }

    /// All partitions. The protective entry of a GPT is left out.
    ///
    /// # Errors
    /// When the disk cannot be read.
    pub fn partitions(
        &self,
        disk: &GuestDisk,
        sector_size: u32,
        warnings: &mut Vec<String>,
    ) -> Result<Vec<Partition>> {
        let mut all = Vec::new();
        for (number, entry) in (1..).zip(&self.raw.entries) {
            if !entry.used() || entry.kind == PROTECTIVE {
                continue;
            }
            let role = if is_extended(entry.kind) { Role::Extended } else { Role::Primary };
            all.push(self.partition(number, entry, 0, role, sector_size));
        }
        let containers: Vec<(u64, u64)> =
            all.iter().filter(|p| p.role == Role::Extended).map(|p| (p.start, p.length)).collect();
        if containers.len() > 1 {
            warnings.push("there are two extended partitions: only the first is used".to_owned());
        }
        if let Some(&(start, length)) = containers.first() {
            let chain = Chain { disk, sector_size, start, length };
            chain.follow(self, &mut all, warnings)?;
        }
        Ok(all)
    }

    fn partition(
        &self,
        number: u32,
        entry: &RawEntry,
        base: u64,
        role: Role,
        sector_size: u32,
    ) -> Partition {
        let sector = u64::from(sector_size);
        let disk_signature = self.signature();
        Partition {
            number,
            start: base + u64::from(entry.first.get()) * sector,
            length: u64::from(entry.sectors.get()) * sector,
            kind: PartitionType::Mbr(entry.kind),
            name: None,
            id: (disk_signature != 0).then(|| format!("{disk_signature:08x}-{number:02x}")),
            bootable: entry.status & 0x80 != 0,
            attributes: 0,
            role,
        }
    }
}

/// The extended partition.
struct Chain<'a> {
    disk: &'a GuestDisk,
    sector_size: u32,
    start: u64,
    length: u64,
}

impl Chain<'_> {
    fn follow(
        &self,
        table: &BootRecord,
        all: &mut Vec<Partition>,
        warnings: &mut Vec<String>,
    ) -> Result<()> {
        let sector = u64::from(self.sector_size);
        let end = self.start.saturating_add(self.length);
        let mut at = self.start;
        let mut seen = Vec::new();
        let mut number = 5;
        loop {
            if seen.contains(&at) || number >= 5 + MAX_LOGICAL {
                warnings.push(format!("the chain of logical partitions loops at {at}"));
                return Ok(());
            }
            seen.push(at);
            let Some(record) = record_at(self.disk, at)? else {
                warnings.push(format!(
                    "the chain of logical partitions is broken: no boot record at {at}"
                ));
                return Ok(());
            };
            let entries = &record.raw.entries;
            // Linux takes up to four; every known tool writes one.
            for entry in entries.iter().take(2) {
                if !entry.used() || is_extended(entry.kind) {
                    continue;
                }
                let p = table.partition(number, entry, at, Role::Logical, self.sector_size);
                if p.end() > end {
                    warnings.push(format!(
                        "logical partition {number} reaches out of the extended partition"
                    ));
                }
                all.push(p);
                number += 1;
            }
            let link = entries.iter().take(4).find(|e| e.used() && is_extended(e.kind));
            let Some(link) = link else { return Ok(()) };
            at = self.start + u64::from(link.first.get()) * sector;
            if at >= end {
                warnings.push(format!(
                    "the chain of logical partitions leads out of the extended partition, to {at}"
                ));
                return Ok(());
            }
        }
    }
}
