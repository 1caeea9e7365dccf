//! Bochs: growing disks of the Bochs emulator ("redolog", subtype "Growing").
//!
//! A header of 512 bytes, a *catalog* with the place of each *extent* (none: zeroes), then the extents,
//! each behind a *bitmap* that tells which of its sectors were written (the others are zeroes). All little
//! endian. Facts are from Bochs' documentation, *Disk image modes*, and its `bximage`. Read only, and only
//! images on their own: a volatile or undoable log shows nothing without the disk it was made for.

use std::sync::{Arc, Mutex, PoisonError};

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::{
    Access, Driver, Extent, Granularity, Image, ImageInfo, Mapping, OpenContext, OptionSpec,
    StorageId, never_written,
};
use crate::num::{GuestOffset, HostOffset, len_u64, small, to_usize};
use crate::storage::Storage;
use crate::{Error, Result};

/// The driver.
pub struct BochsDriver;

const SECTOR: u64 = 512;
const MAGIC: &[u8] = b"Bochs Virtual HD Image\0";
const TYPE: &[u8] = b"Redolog\0";
const GROWING: &[u8] = b"Growing\0";
const VERSION1: u32 = 0x10000;
const VERSION2: u32 = 0x20000;
/// Catalog entry of an extent that was never written.
const NOWHERE: u32 = u32::MAX;
/// Most entries of a catalog.
const MAX_CATALOG: u32 = 0x10_0000;
/// Largest extent in bytes.
const MAX_EXTENT: u32 = 0x80_0000;

/// The header's fields; the rest of its 512 bytes is not used.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 32],
    kind: [u8; 16],
    subtype: [u8; 16],
    version: U32,
    /// Bytes of the header.
    header: U32,
    /// Entries.
    catalog: U32,
    /// Bytes of a bitmap.
    bitmap: U32,
    /// Bytes of an extent.
    extent: U32,
    /// Version 1: the disk's size. Version 2: a time, then the size.
    tail: [u8; 12],
}

const _: () = assert!(size_of::<Header>() == 96);

impl Header {
    fn is_bochs(&self) -> bool {
        self.magic.starts_with(MAGIC)
            && self.kind.starts_with(TYPE)
            && self.subtype.starts_with(GROWING)
            && matches!(self.version.get(), VERSION1 | VERSION2)
    }

    fn disk(&self) -> u64 {
        let from = if self.version.get() == VERSION1 { 0 } else { 4 };
        self.tail[from..].first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }
}

impl Driver for BochsDriver {
    fn name(&self) -> &'static str {
        "bochs"
    }

    fn probe(&self, head: &[u8], _name: &str) -> u32 {
        let known = Header::read_from_prefix(head).is_ok_and(|(h, _)| h.is_bochs());
        if known && head.len() >= small(SECTOR) { 100 } else { 0 }
    }

    fn open(&self, cx: OpenContext<'_>) -> Result<Box<dyn Image>> {
        if let Some((name, _)) = cx.options.first() {
            return Err(super::options::unknown(self.name(), name));
        }
        if cx.access == Access::Write {
            return Err(never_written());
        }
        BochsImage::open(cx.storage).map(|image| Box::new(image) as Box<dyn Image>)
    }

    fn create_options(&self) -> &'static [OptionSpec] {
        &[]
    }

    fn can_create(&self) -> bool {
        false
    }
}

/// The bitmap looked at last.
#[derive(Debug, Default)]
struct Bitmap {
    extent: Option<usize>,
    bits: Vec<u8>,
}

/// An opened image.
#[derive(Debug)]
struct BochsImage {
    storage: Arc<dyn Storage>,
    size: u64,
    extent: u64,
    /// Bytes of a bitmap on disk, a multiple of the sector.
    bitmap: u64,
    /// Where the first extent's bitmap begins.
    data: u64,
    catalog: Vec<U32>,
    seen: Mutex<Bitmap>,
}

impl BochsImage {
    fn open(storage: Arc<dyn Storage>) -> Result<Self> {
        let bad = |message: &str| Error::corrupt(message).at_path(storage.name()).at_offset(0);
        let mut bytes = [0; size_of::<Header>()];
        storage.read_at(0, &mut bytes)?;
        let header = Header::read_from_bytes(&bytes).map_err(|_| bad("no header"))?;
        if !header.is_bochs() {
            return Err(bad("Image not in Bochs format"));
        }
        let (extent, entries) = (header.extent.get(), header.catalog.get());
        if u64::from(extent) < SECTOR {
            return Err(bad("Extent size must be at least 512"));
        }
        if !extent.is_power_of_two() {
            return Err(bad(&format!("Extent size {extent} is not a power of two")));
        }
        if extent > MAX_EXTENT {
            return Err(bad(&format!("Extent size {extent} is too large")));
        }
        if entries > MAX_CATALOG {
            return Err(bad("Catalog size is too large"));
        }
        let sectors = header.disk() / SECTOR;
        if u64::from(entries) < sectors.div_ceil(u64::from(extent) / SECTOR) {
            return Err(bad("Catalog size is too small for this disk size"));
        }
        let at = u64::from(header.header.get());
        let len = u64::from(entries) * 4;
        if at + len > storage.len()? {
            return Err(bad(&format!(
                "the catalog of {entries} entries at {at:#x} lies beyond the end of the file"
            )));
        }
        let mut catalog = vec![U32::new(0); to_usize(u64::from(entries))?];
        storage.read_at(at, zerocopy::IntoBytes::as_mut_bytes(&mut catalog[..]))?;
        // One bit a sector, whatever the header says less.
        let bits = u64::from(extent) / SECTOR / 8;
        let bitmap = u64::from(header.bitmap.get());
        if bitmap < bits {
            return Err(bad(&format!("a bitmap of {bitmap} bytes is too small for an extent")));
        }
        Ok(BochsImage {
            size: sectors * SECTOR,
            extent: u64::from(extent),
            bitmap: crate::num::round_up(bitmap.max(1), SECTOR),
            data: at + len,
            catalog,
            storage,
            seen: Mutex::default(),
        })
    }

    /// Where an extent's bitmap is; nothing for one that was never written.
    fn place(&self, index: usize) -> Result<Option<u64>> {
        let Some(entry) = self.catalog.get(index).map(|e| e.get()).filter(|&e| e != NOWHERE) else {
            return Ok(None);
        };
        let at = self.data + u64::from(entry) * (self.extent + self.bitmap);
        let end = self.storage.len()?;
        if at + self.bitmap > end {
            return Err(Error::corrupt(format!(
                "extent {index} at {at:#x} lies beyond the end of the file ({end:#x} bytes)"
            ))
            .at_path(self.storage.name())
            .at_offset(at));
        }
        Ok(Some(at))
    }

    /// Whether sector `first` of an extent was written, and for how many sectors (at most `most`) that
    /// stays so.
    fn run(&self, index: usize, at: u64, first: u64, most: u64) -> Result<(bool, u64)> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.extent != Some(index) {
            seen.extent = None;
            seen.bits.resize(small((self.extent / SECTOR).div_ceil(8)), 0);
            self.storage.read_at(at, &mut seen.bits)?;
            seen.extent = Some(index);
        }
        let bit = |n: u64| seen.bits[small(n / 8)] >> (n % 8) & 1 != 0;
        let written = bit(first);
        let len = (first..first + most).take_while(|&n| bit(n) == written).count();
        Ok((written, len_u64(len)))
    }
}

impl Image for BochsImage {
    fn format_name(&self) -> &'static str {
        "bochs"
    }

    fn virtual_size(&self) -> u64 {
        self.size
    }

    fn granularity(&self) -> Granularity {
        Granularity { allocation: 1, zero: None, discard: None, encode: None, append_only: false }
    }

    fn storage(&self, _id: StorageId) -> &Arc<dyn Storage> {
        &self.storage
    }

    fn map(&self, at: GuestOffset, len: u64) -> Result<Extent> {
        let index = small(at.0 / self.extent);
        let skip = at.0 % self.extent;
        let rest = (self.extent - skip).min(len);
        let Some(place) = self.place(index)? else {
            return Ok(Extent { len: rest, mapping: Mapping::Zero { reserved: None } });
        };
        let first = skip / SECTOR;
        let most = (skip + rest).div_ceil(SECTOR) - first;
        let (written, sectors) = self.run(index, place, first, most)?;
        let len = ((first + sectors) * SECTOR - skip).min(rest);
        let mapping = if written {
            Mapping::Data {
                storage: StorageId(0),
                offset: HostOffset(place + self.bitmap + skip),
                in_place: false,
                probe_holes: false,
            }
        } else {
            Mapping::Zero { reserved: None }
        };
        Ok(Extent { len, mapping })
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn info(&self) -> Result<ImageInfo> {
        Ok(ImageInfo::default())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::storage::MemoryStorage;

    /// Two extents of 16 KiB, of which the second one's sectors 1 and 2 were written.
    fn image(version: u32) -> Vec<u8> {
        let mut file = vec![0; 512];
        file[..MAGIC.len()].copy_from_slice(MAGIC);
        file[32..40].copy_from_slice(TYPE);
        file[48..56].copy_from_slice(GROWING);
        for (i, n) in [version, 512, 2, 4, 16384].into_iter().enumerate() {
            file[64 + i * 4..68 + i * 4].copy_from_slice(&n.to_le_bytes());
        }
        let from = if version == VERSION1 { 84 } else { 88 };
        file[from..from + 8].copy_from_slice(&30000u64.to_le_bytes());
        file.extend(NOWHERE.to_le_bytes());
        file.extend(0u32.to_le_bytes());
        file.push(0b110);
        file.resize(512 + 8 + 512, 0);
        file.resize(512 + 8 + 512 + 512, 0);
        file.extend([5; 1024]);
        file
    }

    fn open(bytes: Vec<u8>) -> Result<BochsImage> {
        BochsImage::open(Arc::new(MemoryStorage::new("a.bochs", bytes)))
    }

    #[test]
    fn both_versions() {
        for version in [VERSION1, VERSION2] {
            let image = open(image(version)).unwrap();
            assert_eq!(image.virtual_size(), 29696);
            let mut at = 0;
            let mut found = Vec::new();
            while at < image.size {
                let extent = image.map(GuestOffset(at), image.size - at).unwrap();
                found.push((at, matches!(extent.mapping, Mapping::Data { .. })));
                at += extent.len;
            }
            assert_eq!(found, [(0, false), (16384, false), (16896, true), (17920, false)]);
        }
    }

    #[test]
    fn no_flipped_byte_panics() {
        let good = image(VERSION2);
        for at in 0..good.len() {
            for bit in [1, 0x80] {
                let mut bytes = good.clone();
                bytes[at] ^= bit;
                let Ok(image) = open(bytes) else { continue };
                for guest in (0..image.size.min(1 << 20)).step_by(512) {
                    let _ = image.map(GuestOffset(guest), image.size - guest);
                }
            }
        }
        for n in 0..good.len() {
            let _ = open(good[..n].to_vec());
        }
    }
}
