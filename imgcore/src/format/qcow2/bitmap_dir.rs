//! The bitmap directory ("Bitmaps"): the header's extension, directory entries, bitmap table entries.

use zerocopy::{FromBytes, IntoBytes};

use super::header::Header;
use super::layout::{RawBitmapEntry, RawBitmapExtension, ext};
use crate::num::{checked_round_up, len_u64, small};
use crate::storage::Storage;
use crate::{Error, Result};

/// Most bitmaps of an image.
pub(super) const MAX_BITMAPS: usize = 65535;
/// Largest directory.
pub(super) const MAX_DIRECTORY: u64 = 1024 * 65535;
/// Most entries of a bitmap table.
pub(super) const MAX_TABLE_ENTRIES: u64 = 0x800_0000;
/// Most bytes of one bitmap.
pub(super) const MAX_BITMAP_BYTES: u64 = 0x2000_0000;
/// Longest name.
pub(super) const MAX_NAME: usize = 1023;
/// log2 of the smallest and the largest granularity.
pub(super) const GRANULARITY_BITS: std::ops::RangeInclusive<u8> = 9..=31;

/// "Bitmap directory", flags.
pub(super) mod flag {
    pub const IN_USE: u32 = 1;
    pub const AUTO: u32 = 2;
    pub const KNOWN: u32 = IN_USE | AUTO;
}

/// The only type of bitmap: dirty tracking.
const DIRTY_TRACKING: u8 = 1;
/// Bits of a bitmap table entry that are an offset.
const ENTRY_OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// All bits of the cluster are set (only without an offset).
pub(super) const ENTRY_ONES: u64 = 1;

/// Where the directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) count: u32,
    pub(super) size: u64,
    pub(super) offset: u64,
}

impl Place {
    /// From the header's extension, checked; `None` without one.
    pub(super) fn of(header: &Header) -> Result<Option<Self>> {
        let Some(data) = header.extension(ext::BITMAPS) else { return Ok(None) };
        let bad = |what: &str| Err(Error::corrupt(format!("bitmaps_ext: {what}")));
        let Ok(raw) = RawBitmapExtension::read_from_bytes(data) else {
            return bad("Invalid extension length");
        };
        let place = Place {
            count: raw.nb_bitmaps.get(),
            size: raw.directory_size.get(),
            offset: raw.directory_offset.get(),
        };
        if raw.reserved.get() != 0 {
            return bad("Reserved field is not zero");
        }
        if place.count == 0 {
            return bad("found bitmaps extension with zero bitmaps");
        }
        if u64::from(place.count) > len_u64(MAX_BITMAPS) {
            return bad(&format!(
                "Image has {} bitmaps, exceeding the QEMU supported maximum of {MAX_BITMAPS}",
                place.count
            ));
        }
        if place.offset == 0 || !place.offset.is_multiple_of(header.cluster_size()) {
            return bad("invalid bitmap directory offset");
        }
        if place.size > MAX_DIRECTORY {
            return bad(&format!(
                "bitmap directory size ({}) exceeds the maximum supported size ({MAX_DIRECTORY})",
                place.size
            ));
        }
        Ok(Some(place))
    }

    /// The extension's content.
    pub(super) fn to_bytes(self) -> Vec<u8> {
        RawBitmapExtension {
            nb_bitmaps: self.count.into(),
            reserved: 0.into(),
            directory_size: self.size.into(),
            directory_offset: self.offset.into(),
        }
        .as_bytes()
        .to_vec()
    }
}

/// A directory entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) name: Vec<u8>,
    pub(super) table_offset: u64,
    pub(super) table_entries: u32,
    pub(super) flags: u32,
    pub(super) granularity_bits: u8,
    /// Host offset of this entry's flags.
    pub(super) flags_at: u64,
}

impl Entry {
    /// The name as text.
    pub(super) fn name_text(&self) -> String {
        String::from_utf8_lossy(&self.name).into_owned()
    }

    /// Was not stored cleanly.
    pub(super) fn in_use(&self) -> bool {
        self.flags & flag::IN_USE != 0
    }

    /// Bytes of the disk per bit.
    pub(super) fn granularity(&self) -> u64 {
        1 << self.granularity_bits
    }

    fn check(&self, kind: u8, cluster: u64, disk: u64) -> Result<()> {
        let bytes = u64::from(self.table_entries).saturating_mul(cluster);
        let good = self.table_entries != 0
            && self.table_offset != 0
            && self.table_offset.is_multiple_of(cluster)
            && u64::from(self.table_entries) <= MAX_TABLE_ENTRIES
            && GRANULARITY_BITS.contains(&self.granularity_bits)
            && self.flags & !flag::KNOWN == 0
            && self.name.len() <= MAX_NAME
            && kind == DIRTY_TRACKING
            && bytes <= MAX_BITMAP_BYTES
            // One that was not stored cleanly may have any size.
            && (self.in_use()
                || disk <= (bytes * 8).saturating_mul(self.granularity()));
        if good {
            return Ok(());
        }
        Err(Error::corrupt(format!(
            "Bitmap '{}' doesn't satisfy the constraints",
            self.name_text()
        ))
        .at_offset(self.flags_at))
    }
}

/// Reads and checks a directory.
pub(super) fn read(
    file: &dyn Storage,
    place: Place,
    cluster: u64,
    disk: u64,
) -> Result<Vec<Entry>> {
    let fail = |what: &str| Err(Error::corrupt(what).at_path(file.name()).at_offset(place.offset));
    if place.size == 0 {
        return fail("Requested bitmap directory size is zero");
    }
    if place.offset.saturating_add(place.size) > file.len()?.saturating_add(cluster) {
        return fail("the bitmap directory lies beyond the end of the image file");
    }
    let mut bytes = vec![0u8; small(place.size)];
    file.read_at(place.offset, &mut bytes)
        .map_err(|e| e.context("Failed to read bitmap directory"))?;
    let head_len = size_of::<RawBitmapEntry>();
    let mut list = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let Some(Ok(raw)) = bytes.get(at..at + head_len).map(RawBitmapEntry::read_from_bytes)
        else {
            return fail("Broken bitmap directory");
        };
        if len_u64(list.len()) >= u64::from(place.count) {
            return fail("More bitmaps found than specified in header extension");
        }
        let extra = small(u64::from(raw.extra_data_size.get()));
        let name_len = usize::from(raw.name_size.get());
        let end = checked_round_up(len_u64(head_len + name_len).saturating_add(len_u64(extra)), 8)
            .map_or(usize::MAX, small);
        if bytes.len() - at < end {
            return fail("Broken bitmap directory");
        }
        if extra != 0 {
            return fail("Bitmap extra data is not supported");
        }
        let entry = Entry {
            name: bytes[at + head_len..at + head_len + name_len].to_vec(),
            table_offset: raw.table_offset.get(),
            table_entries: raw.table_size.get(),
            flags: raw.flags.get(),
            granularity_bits: raw.granularity_bits,
            flags_at: place.offset + len_u64(at) + 12,
        };
        entry.check(raw.kind, cluster, disk).map_err(|e| e.at_path(file.name()))?;
        list.push(entry);
        at += end;
    }
    if len_u64(list.len()) != u64::from(place.count) {
        return fail("Less bitmaps found than specified in header extension");
    }
    Ok(list)
}

/// A directory as bytes.
pub(super) fn encode(list: &[Entry]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    for e in list {
        let name_size = u16::try_from(e.name.len()).map_err(|_| Error::errno(libc::EFBIG))?;
        let raw = RawBitmapEntry {
            table_offset: e.table_offset.into(),
            table_size: e.table_entries.into(),
            flags: e.flags.into(),
            kind: DIRTY_TRACKING,
            granularity_bits: e.granularity_bits,
            name_size: name_size.into(),
            extra_data_size: 0.into(),
        };
        out.extend_from_slice(raw.as_bytes());
        out.extend_from_slice(&e.name);
        out.resize(out.len().next_multiple_of(8), 0);
        if len_u64(out.len()) > MAX_DIRECTORY {
            return Err(Error::invalid("Bitmap directory is too large"));
        }
    }
    Ok(out)
}

/// The cluster that a bitmap table entry names, if it names one.
pub(super) fn table_entry(entry: u64, cluster: u64) -> Result<Option<u64>> {
    let at = entry & ENTRY_OFFSET;
    let bad = entry & !(ENTRY_OFFSET | ENTRY_ONES) != 0
        || (at != 0 && (entry & ENTRY_ONES != 0 || !at.is_multiple_of(cluster)));
    if bad {
        return Err(Error::corrupt(format!("bitmap table entry {entry:#x} is not valid")));
    }
    Ok((at != 0).then_some(at))
}
