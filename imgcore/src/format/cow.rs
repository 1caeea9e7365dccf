//! UML cow: overlays of User-mode Linux.
//!
//! A header that names the file below, a bitmap with a bit for each sector that was written, and the
//! sectors, each at its own place. Version 1 is in the byte order of its machine (only little endian is
//! read), 2 and 3 are big endian. Facts are from User-mode Linux (`cow_user.c`). Read only.

use std::sync::{Arc, Mutex, PoisonError};

use zerocopy::{
    FromBytes, Immutable, KnownLayout, Unaligned, big_endian as be, little_endian as le,
};

use super::{
    Access, BackingRef, Driver, Extent, Granularity, Image, ImageInfo, Mapping, OpenContext,
    OptionSpec, StorageId, never_written,
};
use crate::num::{GuestOffset, HostOffset, checked_round_up, len_u64, round_down, small};
use crate::storage::Storage;
use crate::{Error, Result};

/// The driver.
pub struct CowDriver;

const MAGIC: u32 = u32::from_be_bytes(*b"OOOM");
/// Largest sector; User-mode Linux uses 512 bytes.
const MAX_SECTOR: u32 = 1 << 20;
/// Largest alignment (a page).
const MAX_ALIGN: u32 = 1 << 20;
/// Bytes of the bitmap looked at together: a quarter of a gigabyte of disk.
const WINDOW: u64 = 64 << 10;

#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Version1 {
    magic: le::U32,
    version: le::U32,
    backing: [u8; 256],
    mtime: le::U32,
    size: le::U64,
    sector: le::U32,
}

#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Version2 {
    magic: be::U32,
    version: be::U32,
    backing: [u8; 1024],
    mtime: be::U32,
    size: be::U64,
    sector: be::U32,
}

#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Version3 {
    magic: be::U32,
    version: be::U32,
    mtime: be::U32,
    size: be::U64,
    sector: be::U32,
    alignment: be::U32,
    format: be::U32,
    backing: [u8; 4096],
}

const _: () = assert!(size_of::<Version1>() == 280);
const _: () = assert!(size_of::<Version2>() == 1048);
const _: () = assert!(size_of::<Version3>() == 4128);

/// What all versions say.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Header {
    backing: String,
    size: u64,
    sector: u32,
    /// Where the bitmap begins.
    bitmap: u64,
    /// Where sector 0 would be.
    data: u64,
}

fn version_of(head: &[u8]) -> Option<u32> {
    let (magic, rest) = head.split_first_chunk::<4>()?;
    let version = rest.first_chunk::<4>()?;
    match (u32::from_be_bytes(*magic), u32::from_le_bytes(*magic)) {
        (MAGIC, _) => Some(u32::from_be_bytes(*version)).filter(|v| matches!(v, 2 | 3)),
        (_, MAGIC) => Some(u32::from_le_bytes(*version)).filter(|&v| v == 1),
        _ => None,
    }
}

impl Header {
    fn read(storage: &dyn Storage) -> Result<Self> {
        let bad = |message: String| Error::corrupt(message).at_path(storage.name()).at_offset(0);
        let mut head = vec![0; size_of::<Version3>()];
        storage.read_at(0, &mut head)?;
        let none = || bad("Image not in cow format".to_owned());
        // (name, size, sector, bytes of the header, alignment of what follows)
        let (name, size, sector, own, align) = match version_of(&head).ok_or_else(none)? {
            1 => {
                let (h, _) = Version1::read_from_prefix(&head).map_err(|_| none())?;
                (h.backing.to_vec(), h.size.get(), h.sector.get(), size_of::<Version1>(), None)
            }
            2 => {
                let (h, _) = Version2::read_from_prefix(&head).map_err(|_| none())?;
                (h.backing.to_vec(), h.size.get(), h.sector.get(), size_of::<Version2>(), None)
            }
            _ => {
                let (h, _) = Version3::read_from_prefix(&head).map_err(|_| none())?;
                if h.format.get() != 0 {
                    return Err(bad(format!("unknown layout {} of sectors", h.format.get())));
                }
                let align = Some(h.alignment.get());
                (h.backing.to_vec(), h.size.get(), h.sector.get(), size_of::<Version3>(), align)
            }
        };
        if !sector.is_power_of_two() || !(512..=MAX_SECTOR).contains(&sector) {
            return Err(bad(format!("sector size {sector} is no power of two from 512 on")));
        }
        if let Some(a) = align
            && (!a.is_power_of_two() || a > MAX_ALIGN)
        {
            return Err(bad(format!("alignment {a} is no power of two")));
        }
        let too_large = || bad(format!("a disk of {size} bytes is too large"));
        let bits = size.div_ceil(u64::from(sector));
        let bitmap = match align {
            Some(a) => checked_round_up(len_u64(own), u64::from(a)),
            None => Some(len_u64(own)),
        };
        let unit = u64::from(align.unwrap_or(sector));
        let data = bitmap
            .and_then(|b| b.checked_add(bits.div_ceil(8)))
            .and_then(|end| checked_round_up(end, unit))
            .filter(|d| d.checked_add(size).is_some_and(|end| i64::try_from(end).is_ok()));
        let (Some(bitmap), Some(data)) = (bitmap, data) else { return Err(too_large()) };
        let name = name.split(|&b| b == 0).next().unwrap_or_default();
        let backing = String::from_utf8_lossy(name).into_owned();
        Ok(Header { backing, size, sector, bitmap, data })
    }
}

impl Driver for CowDriver {
    fn name(&self) -> &'static str {
        "cow"
    }

    fn probe(&self, head: &[u8], _name: &str) -> u32 {
        if version_of(head).is_some() { 100 } else { 0 }
    }

    fn open(&self, cx: OpenContext<'_>) -> Result<Box<dyn Image>> {
        if let Some((name, _)) = cx.options.first() {
            return Err(super::options::unknown(self.name(), name));
        }
        if cx.access == Access::Write {
            return Err(never_written());
        }
        let header = Header::read(&*cx.storage)?;
        Ok(Box::new(CowImage { storage: cx.storage, header, seen: Mutex::default() }))
    }

    fn create_options(&self) -> &'static [OptionSpec] {
        &[]
    }

    fn can_create(&self) -> bool {
        false
    }

    fn supports_backing(&self) -> bool {
        true
    }
}

/// A part of the bitmap.
#[derive(Debug, Default)]
struct Window {
    /// First byte in the bitmap.
    start: u64,
    bits: Vec<u8>,
}

#[derive(Debug)]
struct CowImage {
    storage: Arc<dyn Storage>,
    header: Header,
    seen: Mutex<Window>,
}

impl CowImage {
    /// Whether sector `first` was written, and for how many sectors (at most `most`) that is known to
    /// stay so.
    fn run(&self, first: u64, most: u64) -> Result<(bool, u64)> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let start = round_down(first / 8, WINDOW);
        if seen.bits.is_empty() || seen.start != start {
            let all = self.header.size.div_ceil(u64::from(self.header.sector)).div_ceil(8);
            seen.bits.clear();
            seen.bits.resize(small(WINDOW.min(all - start)), 0);
            let read = self.storage.read_at(self.header.bitmap + start, &mut seen.bits);
            if read.is_err() {
                seen.bits.clear();
            }
            read?;
            seen.start = start;
        }
        let bit = |n: u64| seen.bits.get(small(n / 8 - start)).map(|byte| byte >> (n % 8) & 1 != 0);
        let written = bit(first);
        let same = if written == Some(true) { 0xff } else { 0 };
        let (mut at, end) = (first, first + most);
        while at < end {
            if at.is_multiple_of(8)
                && end - at >= 8
                && seen.bits.get(small(at / 8 - start)) == Some(&same)
            {
                at += 8;
            } else if bit(at) == written {
                at += 1;
            } else {
                break;
            }
        }
        Ok((written == Some(true), (at - first).max(1)))
    }
}

impl Image for CowImage {
    fn format_name(&self) -> &'static str {
        "cow"
    }

    fn virtual_size(&self) -> u64 {
        self.header.size
    }

    fn granularity(&self) -> Granularity {
        Granularity { allocation: 1, zero: None, discard: None, encode: None, append_only: false }
    }

    fn storage(&self, _id: StorageId) -> &Arc<dyn Storage> {
        &self.storage
    }

    fn backing(&self) -> Option<BackingRef> {
        let name = &self.header.backing;
        // User-mode Linux knows no formats: what lies below is the disk itself.
        (!name.is_empty())
            .then(|| BackingRef { name: name.clone(), format: Some("raw".to_owned()) })
    }

    fn map(&self, at: GuestOffset, len: u64) -> Result<Extent> {
        let sector = u64::from(self.header.sector);
        let first = at.0 / sector;
        let most = (at.0 + len).div_ceil(sector) - first;
        let (written, sectors) = self.run(first, most)?;
        let len = ((first + sectors) * sector - at.0).min(len);
        let mapping = if written {
            Mapping::Data {
                storage: StorageId(0),
                offset: HostOffset(self.header.data + at.0),
                in_place: false,
                probe_holes: false,
            }
        } else {
            Mapping::Backing
        };
        Ok(Extent { len, mapping })
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn info(&self) -> Result<ImageInfo> {
        let cluster_size = Some(u64::from(self.header.sector));
        Ok(ImageInfo { cluster_size, ..ImageInfo::default() })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::storage::MemoryStorage;

    fn image(version: u32) -> Vec<u8> {
        let mut file = Vec::new();
        let name = |n: usize| {
            let mut name = b"below.img".to_vec();
            name.resize(n, 0);
            name
        };
        match version {
            1 => {
                file.extend(MAGIC.to_le_bytes());
                file.extend(1u32.to_le_bytes());
                file.extend(name(256));
                file.extend(7u32.to_le_bytes());
                file.extend(8192u64.to_le_bytes());
                file.extend(512u32.to_le_bytes());
            }
            2 => {
                file.extend(MAGIC.to_be_bytes());
                file.extend(2u32.to_be_bytes());
                file.extend(name(1024));
                file.extend(7u32.to_be_bytes());
                file.extend(8192u64.to_be_bytes());
                file.extend(512u32.to_be_bytes());
            }
            _ => {
                file.extend(MAGIC.to_be_bytes());
                file.extend(3u32.to_be_bytes());
                file.extend(7u32.to_be_bytes());
                file.extend(8192u64.to_be_bytes());
                for n in [512u32, 4096, 0] {
                    file.extend(n.to_be_bytes());
                }
                file.extend(name(4096));
                file.resize(8192, 0);
            }
        }
        // Sectors 1, 2 and 9.
        file.extend([0b110, 0b10]);
        let unit = if version == 3 { 4096 } else { 512 };
        file.resize(file.len().next_multiple_of(unit), 0);
        file.resize(file.len() + 8192, 3);
        file
    }

    fn open(bytes: Vec<u8>) -> Result<CowImage> {
        let storage = Arc::new(MemoryStorage::new("a.cow", bytes));
        let header = Header::read(&*storage)?;
        Ok(CowImage { storage, header, seen: Mutex::default() })
    }

    #[test]
    fn all_versions() {
        for version in 1..=3 {
            let image = open(image(version)).unwrap();
            assert_eq!(image.backing().unwrap().name, "below.img");
            let mut at = 0;
            let mut found = Vec::new();
            while at < image.virtual_size() {
                let extent = image.map(GuestOffset(at), image.virtual_size() - at).unwrap();
                if let Mapping::Data { offset, .. } = extent.mapping {
                    assert_eq!(offset.0, image.header.data + at);
                    found.push((at, extent.len));
                }
                at += extent.len;
            }
            assert_eq!(found, [(512, 1024), (4608, 512)], "version {version}");
        }
    }

    #[test]
    fn no_flipped_byte_panics() {
        for version in 1..=3 {
            let good = image(version);
            for at in (0..64).chain(good.len() - 8300..good.len() - 8100) {
                for bit in [1, 0x80] {
                    let mut bytes = good.clone();
                    bytes[at] ^= bit;
                    let Ok(image) = open(bytes) else { continue };
                    for guest in (0..image.virtual_size().min(1 << 16)).step_by(512) {
                        let _ = image.map(GuestOffset(guest), image.virtual_size() - guest);
                    }
                }
            }
            for n in 0..good.len().min(5000) {
                let _ = open(good[..n].to_vec());
            }
        }
    }
}
