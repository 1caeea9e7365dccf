//! The label of a physical volume and its metadata areas.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::guest::volume::Volume;
use crate::num::small;
use crate::{Error, Result};

/// Sectors that may hold the label.
const LABEL_SECTORS: u64 = 4;
const LABEL_SIZE: usize = 512;
/// Room of the header of a metadata area.
const AREA_HEADER: u64 = 512;
/// The initial value of LVM's CRC-32, which is not inverted at the end.
const CRC_START: u32 = 0xf597_a6cf;
/// The largest metadata text that is read.
const MAX_TEXT: u64 = 32 << 20;
/// Areas that are followed.
const MAX_AREAS: usize = 16;
/// Flag of a place that must not be read.
const IGNORED: u32 = 1;

/// `struct label_header`, and the identifier that follows in `struct pv_header`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawLabel {
    signature: [u8; 8],
    sector: U64,
    crc: U32,
    offset: U32,
    kind: [u8; 8],
}
const _: () = assert!(size_of::<RawLabel>() == 32);

/// `struct mda_header` up to its list of places.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawArea {
    crc: U32,
    magic: [u8; 16],
    version: U32,
    start: U64,
    size: U64,
    text: RawPlace,
}
const _: () = assert!(size_of::<RawArea>() == 64);

/// `struct raw_locn`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawPlace {
    offset: U64,
    size: U64,
    crc: U32,
    flags: U32,
}
const _: () = assert!(size_of::<RawPlace>() == 24);

/// A physical volume as it describes itself.
pub(super) struct Pv {
    /// Identifier, as LVM prints it.
    pub id: String,
    /// The text of each metadata area that has one, or what is wrong with it.
    pub metadata: Vec<Result<Vec<u8>>>,
}

/// LVM's checksum.
fn crc(start: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(!start);
    hasher.update(bytes);
    !hasher.finalize()
}

/// Whether a volume begins with the label of a physical volume.
pub(crate) fn is_physical(volume: &Volume) -> Result<bool> {
    Ok(find(volume)?.is_some())
}

/// The sector of the label with a right checksum.
fn find(volume: &Volume) -> Result<Option<Vec<u8>>> {
    for sector in 0..LABEL_SECTORS {
        let at = sector * 512;
        if at + 512 > volume.len() {
            break;
        }
        let bytes = volume.read(at, 512)?;
        let Ok((label, _)) = RawLabel::read_from_prefix(&bytes) else { break };
        if label.signature == *b"LABELONE"
            && label.kind == *b"LVM2 001"
            && label.sector.get() == sector
            && label.crc.get() == crc(CRC_START, bytes.get(20..).unwrap_or_default())
        {
            return Ok(Some(bytes));
        }
    }
    Ok(None)
}

/// Reads the label and the metadata. `None`: not a physical volume.
pub(super) fn read(volume: &Volume) -> Result<Option<Pv>> {
    let Some(bytes) = find(volume)? else { return Ok(None) };
    let Ok((label, _)) = RawLabel::read_from_prefix(&bytes) else { return Ok(None) };
    let start = small(u64::from(label.offset.get()));
    let Some((raw_id, lists)) =
        bytes.get(start..LABEL_SIZE).and_then(|b| b.split_at_checked(32)).filter(|_| start >= 32)
    else {
        return Ok(None);
    };
    let id = print_id(raw_id);
    // The size of the device, then areas of data, then areas of metadata; a zero offset ends a list.
    let areas = lists.get(8..).unwrap_or_default().as_chunks::<16>().0;
    let mut areas = areas.iter().map(|a| {
        let (offset, size) = a.split_at(8);
        (le64(offset), le64(size))
    });
    for (offset, _) in areas.by_ref() {
        if offset == 0 {
            break;
        }
    }
    let metadata = areas
        .take_while(|(offset, _)| *offset != 0)
        .take(MAX_AREAS)
        .filter_map(|(offset, size)| area(volume, offset, size).transpose())
        .collect();
    Ok(Some(Pv { id, metadata }))
}

fn le64(bytes: &[u8]) -> u64 {
    U64::read_from_bytes(bytes).map_or(0, U64::get)
}

/// The text of an area; `None` when it holds none.
fn area(volume: &Volume, offset: u64, size: u64) -> Result<Option<Vec<u8>>> {
    let bad = |what: &str| Error::corrupt(what).at_offset(offset);
    let bytes = volume.read(offset, AREA_HEADER)?;
    let (raw, _) =
        RawArea::read_from_prefix(&bytes).map_err(|_| bad("the header of an area is cut off"))?;
    if raw.magic != *b" LVM2 x[5A%r0N*>" || raw.version.get() != 1 {
        return Err(bad("the header of an area has another signature or version"));
    }
    if raw.crc.get() != crc(CRC_START, bytes.get(4..).unwrap_or_default()) {
        return Err(bad("the checksum of an area's header is wrong"));
    }
    if raw.start.get() != offset || raw.size.get() != size || size <= AREA_HEADER {
        return Err(bad("an area does not lie where the label says"));
    }
    let text = raw.text;
    if text.offset.get() == 0 || text.flags.get() & IGNORED != 0 {
        return Ok(None);
    }
    let (from, len) = (text.offset.get(), text.size.get());
    if from < AREA_HEADER || from >= size || len > (size - AREA_HEADER).min(MAX_TEXT) {
        return Err(bad("the text of an area lies outside of it"));
    }
    // The text runs round the end of the area.
    let first = len.min(size - from);
    let mut all = volume.read(offset.saturating_add(from), first)?;
    if len > first {
        all.extend(volume.read(offset.saturating_add(AREA_HEADER), len - first)?);
    }
    if crc(CRC_START, &all) != text.crc.get() {
        return Err(bad("the checksum of an area's text is wrong"));
    }
    Ok(Some(all))
}

/// 32 characters as LVM prints them: groups of 6-4-4-4-4-4-6.
fn print_id(raw: &[u8]) -> String {
    let mut text = String::new();
    for (i, &byte) in raw.iter().enumerate() {
        if matches!(i, 6 | 10 | 14 | 18 | 22 | 26) {
            text.push('-');
        }
        text.push(if byte.is_ascii_graphic() { char::from(byte) } else { '?' });
    }
    text
}
