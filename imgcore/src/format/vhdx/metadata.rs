//! The metadata region (2.6): size of the disk, of blocks and sectors, and the parent's names.

use std::collections::HashMap;

use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::header::Region;
use super::layout::{
    self, LocatorEntry, LocatorHeader, MIB, MetadataEntry, MetadataTable, STRUCTURE,
};
use crate::format::uuid::Uuid;
use crate::num::small;
use crate::storage::Storage;
use crate::{Error, Result};

/// Most bytes of a parent locator.
const MAX_LOCATOR: u32 = 64 << 10;

/// What the metadata tell.
#[derive(Clone, Debug, Default)]
pub(super) struct Metadata {
    /// Bytes of a block.
    pub block: u64,
    /// All blocks stay allocated.
    pub fixed: bool,
    /// Bytes of the disk, and where in the file that is told.
    pub size: u64,
    pub size_at: u64,
    pub id: Uuid,
    /// Bytes of a sector, as guests address.
    pub logical: u64,
    pub physical: u64,
    /// Names of the parent by key (`relative_path`, `parent_linkage`, ...), for differencing disks.
    pub parent: Option<HashMap<String, String>>,
}

/// Reads and checks the region.
pub(super) fn read(storage: &dyn Storage, region: Region) -> Result<Metadata> {
    let bad = |at: u64, what: String| {
        Error::corrupt(what).at_path(storage.name()).at_offset(region.offset + at)
    };
    let mut raw = vec![0; small(STRUCTURE)];
    storage.read_at(region.offset, &mut raw)?;
    let broken = || bad(0, "no VHDX metadata table where it should be".to_owned());
    let (head, rest) = MetadataTable::read_from_prefix(&raw).map_err(|_| broken())?;
    if head.signature != layout::METADATA_SIGNATURE {
        return Err(broken());
    }
    let count = u64::from(head.count.get());
    if count > layout::MAX_TABLE {
        return Err(bad(10, format!("the VHDX metadata table has {count} entries")));
    }
    let mut items: HashMap<Uuid, (u64, u32)> = HashMap::new();
    for (i, raw) in (0..count).zip(rest.chunks_exact(32)) {
        let place = 32 + 32 * i;
        let entry = MetadataEntry::read_from_bytes(raw).map_err(|_| broken())?;
        let guid = Uuid::from_le(entry.guid);
        let (offset, length) = (u64::from(entry.offset.get()), entry.length.get());
        if length > 0 && (offset < STRUCTURE || offset + u64::from(length) > region.length) {
            return Err(bad(place, format!("VHDX metadata item {guid} lies outside its region")));
        }
        let flags = entry.flags.get();
        let known = [
            layout::ITEM_PARAMETERS,
            layout::ITEM_SIZE,
            layout::ITEM_ID,
            layout::ITEM_LOGICAL,
            layout::ITEM_PHYSICAL,
            layout::ITEM_PARENT,
        ];
        if flags & layout::ITEM_IS_USER != 0 {
            continue;
        }
        if !known.contains(&guid) {
            if flags & layout::ITEM_IS_REQUIRED != 0 {
                return Err(bad(place, format!("unknown required VHDX metadata item {guid}")));
            }
            continue;
        }
        if items.insert(guid, (offset, length)).is_some() {
            return Err(bad(place, format!("VHDX metadata item {guid} is told twice")));
        }
    }
    let item = |guid: Uuid, want: u32| -> Result<(u64, Vec<u8>)> {
        let &(offset, length) = items
            .get(&guid)
            .filter(|(_, length)| *length >= want)
            .ok_or_else(|| bad(0, format!("VHDX metadata lack item {guid}")))?;
        let mut bytes = vec![0; small(u64::from(length.min(MAX_LOCATOR)))];
        storage.read_at(region.offset + offset, &mut bytes)?;
        Ok((offset, bytes))
    };
    let number = |guid: Uuid| -> Result<(u64, u64)> {
        let (offset, bytes) = item(guid, 4)?;
        Ok((offset, le(&bytes, 4)))
    };
    let (parameters_at, parameters) = item(layout::ITEM_PARAMETERS, 8)?;
    let block = le(&parameters, 4);
    let flags = le(&parameters[4..], 4);
    if !block.is_power_of_two() || !(MIB..=layout::MAX_BLOCK).contains(&block) {
        return Err(bad(
            parameters_at,
            format!("VHDX block size {block} is not a power of two from 1 to 256 MiB"),
        ));
    }
    let (logical_at, logical) = number(layout::ITEM_LOGICAL)?;
    if logical != 512 && logical != 4096 {
        return Err(bad(
            logical_at,
            format!("VHDX logical sector size {logical} is neither 512 nor 4096"),
        ));
    }
    let (size_at, size) = item(layout::ITEM_SIZE, 8)?;
    let size = le(&size, 8);
    if size > layout::MAX_SIZE || !size.is_multiple_of(512) {
        return Err(bad(
            size_at,
            format!("VHDX disk size {size} is not a multiple of 512 up to 64 TiB"),
        ));
    }
    // Not everybody writes these two.
    let physical = number(layout::ITEM_PHYSICAL).map_or(logical, |(_, n)| n);
    let id = item(layout::ITEM_ID, 16).ok().and_then(|(_, b)| b.first_chunk::<16>().copied());
    let parent = if flags & u64::from(layout::PARAMETER_PARENT) != 0 {
        let (at, bytes) = item(layout::ITEM_PARENT, 20)?;
        Some(locator(&bytes).ok_or_else(|| bad(at, "unreadable VHDX parent locator".to_owned()))?)
    } else {
        None
    };
    Ok(Metadata {
        block,
        fixed: flags & u64::from(layout::PARAMETER_FIXED) != 0,
        size,
        size_at: region.offset + size_at,
        id: id.map(Uuid::from_le).unwrap_or_default(),
        logical,
        physical,
        parent,
    })
}

/// A little-endian number of so many bytes.
fn le(bytes: &[u8], width: usize) -> u64 {
    bytes.iter().take(width).rev().fold(0, |n, &b| n << 8 | u64::from(b))
}

/// Keys and values of a parent locator.
fn locator(bytes: &[u8]) -> Option<HashMap<String, String>> {
    let (head, rest) = LocatorHeader::read_from_prefix(bytes).ok()?;
    if Uuid::from_le(head.kind) != layout::LOCATOR_VHDX {
        return None;
    }
    let mut all = HashMap::new();
    for raw in rest.chunks_exact(12).take(usize::from(head.count.get())) {
        let entry = LocatorEntry::read_from_bytes(raw).ok()?;
        let text = |at: u32, len: u16| -> Option<String> {
            let start = small(u64::from(at));
            let part = bytes.get(start..start.checked_add(usize::from(len))?)?;
            let units: Vec<u16> =
                part.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b)).collect();
            String::from_utf16(&units).ok()
        };
        let key = text(entry.key.get(), entry.key_length.get())?;
        all.insert(key, text(entry.value.get(), entry.value_length.get())?);
    }
    Some(all)
}

/// What a new image's metadata say.
#[derive(Clone, Copy, Debug)]
pub(super) struct New {
    pub block: u32,
    pub fixed: bool,
    pub size: u64,
}

/// The bytes of a new region's table and items.
pub(super) fn bytes(new: New) -> Vec<u8> {
    let parameters = [
        new.block.to_le_bytes(),
        (if new.fixed { layout::PARAMETER_FIXED } else { 0 }).to_le_bytes(),
    ]
    .concat();
    let disk = layout::ITEM_IS_DISK | layout::ITEM_IS_REQUIRED;
    let items: [(Uuid, u32, Vec<u8>); 5] = [
        (layout::ITEM_PARAMETERS, layout::ITEM_IS_REQUIRED, parameters),
        (layout::ITEM_SIZE, disk, new.size.to_le_bytes().to_vec()),
        (layout::ITEM_ID, disk, Uuid::random().to_le().to_vec()),
        (layout::ITEM_LOGICAL, disk, 512u32.to_le_bytes().to_vec()),
        (layout::ITEM_PHYSICAL, disk, 512u32.to_le_bytes().to_vec()),
    ];
    let mut raw = vec![0; small(STRUCTURE)];
    let mut head = MetadataTable::new_zeroed();
    head.signature = layout::METADATA_SIGNATURE;
    head.count.set(5);
    raw[..32].copy_from_slice(head.as_bytes());
    for (at, (guid, flags, value)) in (32..).step_by(32).zip(items) {
        let mut entry = MetadataEntry::new_zeroed();
        entry.guid = guid.to_le();
        entry.offset.set(u32::try_from(raw.len()).unwrap_or(u32::MAX));
        entry.length.set(u32::try_from(value.len()).unwrap_or(u32::MAX));
        entry.flags.set(flags);
        raw[at..at + 32].copy_from_slice(entry.as_bytes());
        raw.extend_from_slice(&value);
    }
    raw
}
