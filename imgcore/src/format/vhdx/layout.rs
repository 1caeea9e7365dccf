//! What is on disk: Microsoft, *[MS-VHDX]: Virtual Hard Disk v2 (VHDX) File Format*; sections are named with
//! the structures. All numbers are little endian.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::format::uuid::Uuid;

/// Unit of places in the file.
pub(super) const MIB: u64 = 1 << 20;
/// Unit of the log (2.3) and of header copies.
pub(super) const LOG_SECTOR: u64 = 4096;
/// Room of each structure in the header section (2.2), except the log's.
pub(super) const STRUCTURE: u64 = 64 << 10;
/// Where the two headers are (2.2).
pub(super) const HEADERS_AT: [u64; 2] = [STRUCTURE, 2 * STRUCTURE];
/// Where the two region tables are (2.2).
pub(super) const REGIONS_AT: [u64; 2] = [3 * STRUCTURE, 4 * STRUCTURE];
/// First bytes of the file (2.2.1).
pub(super) const FILE_SIGNATURE: [u8; 8] = *b"vhdxfile";
/// 2.2.2
pub(super) const HEADER_SIGNATURE: [u8; 4] = *b"head";
/// 2.2.3
pub(super) const REGION_SIGNATURE: [u8; 4] = *b"regi";
/// 2.6.1.1
pub(super) const METADATA_SIGNATURE: [u8; 8] = *b"metadata";
/// Entries of region and metadata tables.
pub(super) const MAX_TABLE: u64 = 2047;
/// Largest disk.
pub(super) const MAX_SIZE: u64 = 64 << 40;
/// Largest block.
pub(super) const MAX_BLOCK: u64 = 256 << 20;
/// Sectors that a sector bitmap block tells of (2.4): 2^23.
pub(super) const BITMAP_SECTORS: u64 = 1 << 23;

const fn guid(text: [u8; 16]) -> Uuid {
    Uuid::from_be(text)
}

/// The block allocation table (2.2.3.2).
pub(super) const REGION_BAT: Uuid = guid([
    0x2d, 0xc2, 0x77, 0x66, 0xf6, 0x23, 0x42, 0x00, 0x9d, 0x64, 0x11, 0x5e, 0x9b, 0xfd, 0x4a, 0x08,
]);
/// The metadata region (2.2.3.2).
pub(super) const REGION_METADATA: Uuid = guid([
    0x8b, 0x7c, 0xa2, 0x06, 0x47, 0x90, 0x4b, 0x9a, 0xb8, 0xfe, 0x57, 0x5f, 0x05, 0x0f, 0x88, 0x6e,
]);
/// File parameters (2.6.2.1).
pub(super) const ITEM_PARAMETERS: Uuid = guid([
    0xca, 0xa1, 0x67, 0x37, 0xfa, 0x36, 0x4d, 0x43, 0xb3, 0xb6, 0x33, 0xf0, 0xaa, 0x44, 0xe7, 0x6b,
]);
/// Virtual disk size (2.6.2.2).
pub(super) const ITEM_SIZE: Uuid = guid([
    0x2f, 0xa5, 0x42, 0x24, 0xcd, 0x1b, 0x48, 0x76, 0xb2, 0x11, 0x5d, 0xbe, 0xd8, 0x3b, 0xf4, 0xb8,
]);
/// Virtual disk identifier (2.6.2.3).
pub(super) const ITEM_ID: Uuid = guid([
    0xbe, 0xca, 0x12, 0xab, 0xb2, 0xe6, 0x45, 0x23, 0x93, 0xef, 0xc3, 0x09, 0xe0, 0x00, 0xc7, 0x46,
]);
/// Logical sector size (2.6.2.4).
pub(super) const ITEM_LOGICAL: Uuid = guid([
    0x81, 0x41, 0xbf, 0x1d, 0xa9, 0x6f, 0x47, 0x09, 0xba, 0x47, 0xf2, 0x33, 0xa8, 0xfa, 0xab, 0x5f,
]);
/// Physical sector size (2.6.2.5).
pub(super) const ITEM_PHYSICAL: Uuid = guid([
    0xcd, 0xa3, 0x48, 0xc7, 0x44, 0x5d, 0x44, 0x71, 0x9c, 0xc9, 0xe9, 0x88, 0x52, 0x51, 0xc5, 0x56,
]);
/// Parent locator (2.6.2.6).
pub(super) const ITEM_PARENT: Uuid = guid([
    0xa8, 0xd3, 0x5f, 0x2d, 0xb3, 0x0b, 0x45, 0x4d, 0xab, 0xf7, 0xd3, 0xd8, 0x48, 0x34, 0xab, 0x0c,
]);
/// The only type of parent locator (2.6.2.6.3).
pub(super) const LOCATOR_VHDX: Uuid = guid([
    0xb0, 0x4a, 0xef, 0xb7, 0xd1, 0x9e, 0x4a, 0x81, 0xb7, 0x89, 0x25, 0xb8, 0xe9, 0x44, 0x59, 0x13,
]);

/// Header (2.2.2), 4 KiB.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Header {
    pub signature: [u8; 4],
    /// CRC-32C of all 4 KiB, this field counted as zero.
    pub checksum: U32,
    pub sequence: U64,
    /// Changes when anything in the file does.
    pub file_write: [u8; 16],
    /// Changes when the guest's bytes do.
    pub data_write: [u8; 16],
    /// Of valid log entries; zero: the log is empty.
    pub log: [u8; 16],
    pub log_version: U16,
    pub version: U16,
    pub log_length: U32,
    pub log_offset: U64,
    pub reserved: [u8; 4016],
}

/// Beginning of a region table (2.2.3.1), 64 KiB.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RegionTable {
    pub signature: [u8; 4],
    /// CRC-32C of all 64 KiB, this field counted as zero.
    pub checksum: U32,
    pub count: U32,
    pub reserved: U32,
}

/// Region table entry (2.2.3.2).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RegionEntry {
    pub guid: [u8; 16],
    pub offset: U64,
    pub length: U32,
    /// Bit 0: who does not know the region must not open the file.
    pub required: U32,
}

/// Beginning of the metadata table (2.6.1.1).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct MetadataTable {
    pub signature: [u8; 8],
    pub reserved: U16,
    pub count: U16,
    pub reserved2: [U32; 5],
}

/// Metadata table entry (2.6.1.2).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct MetadataEntry {
    pub guid: [u8; 16],
    /// From the beginning of the region.
    pub offset: U32,
    pub length: U32,
    pub flags: U32,
    pub reserved: U32,
}

/// `flags`: of a user, not of the format.
pub(super) const ITEM_IS_USER: u32 = 1;
/// `flags`: about the disk, not about the file.
pub(super) const ITEM_IS_DISK: u32 = 2;
/// `flags`: who does not know it must not open the file.
pub(super) const ITEM_IS_REQUIRED: u32 = 4;
/// File parameters, `flags`: all blocks stay allocated (a fixed disk).
pub(super) const PARAMETER_FIXED: u32 = 1;
/// File parameters, `flags`: a differencing disk.
pub(super) const PARAMETER_PARENT: u32 = 2;

/// Log entry header (2.3.1.1).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct LogHeader {
    pub signature: [u8; 4],
    /// CRC-32C of the whole entry, this field counted as zero.
    pub checksum: U32,
    pub length: U32,
    /// Where in the log the first entry is that must be replayed with this one.
    pub tail: U32,
    pub sequence: U64,
    pub descriptors: U32,
    pub reserved: U32,
    pub log: [u8; 16],
    /// Length of the file when the entry was written.
    pub flushed_length: U64,
    /// Length that the file must have.
    pub last_length: U64,
}

/// 2.3.1.1
pub(super) const LOG_SIGNATURE: [u8; 4] = *b"loge";
/// 2.3.1.2
pub(super) const ZERO_SIGNATURE: [u8; 4] = *b"zero";
/// 2.3.1.3
pub(super) const DATA_SIGNATURE: [u8; 4] = *b"desc";
/// 2.3.1.4
pub(super) const SECTOR_SIGNATURE: [u8; 4] = *b"data";

/// Zero (2.3.1.2) or data (2.3.1.3) descriptor.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Descriptor {
    pub signature: [u8; 4],
    /// Data: the last four bytes of the sector.
    pub trailing: [u8; 4],
    /// Data: the first eight bytes; zero: the length.
    pub leading: [u8; 8],
    pub offset: U64,
    pub sequence: U64,
}

/// Data sector (2.3.1.4).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct DataSector {
    pub signature: [u8; 4],
    pub sequence_high: U32,
    pub data: [u8; 4084],
    pub sequence_low: U32,
}

/// Parent locator header (2.6.2.6.1).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct LocatorHeader {
    pub kind: [u8; 16],
    pub reserved: U16,
    pub count: U16,
}

/// Parent locator entry (2.6.2.6.2); places from the beginning of the item.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct LocatorEntry {
    pub key: U32,
    pub value: U32,
    pub key_length: U16,
    pub value_length: U16,
}

const _: () = assert!(size_of::<Header>() == 4096);
const _: () = assert!(size_of::<RegionTable>() == 16);
const _: () = assert!(size_of::<RegionEntry>() == 32);
const _: () = assert!(size_of::<MetadataTable>() == 32);
const _: () = assert!(size_of::<MetadataEntry>() == 32);
const _: () = assert!(size_of::<LogHeader>() == 64);
const _: () = assert!(size_of::<Descriptor>() == 32);
const _: () = assert!(size_of::<DataSector>() == 4096);
const _: () = assert!(size_of::<LocatorHeader>() == 20);
const _: () = assert!(size_of::<LocatorEntry>() == 12);

/// States of an entry of the block allocation table (2.5.1).
pub(super) mod state {
    pub const NOT_PRESENT: u64 = 0;
    pub const UNDEFINED: u64 = 1;
    pub const ZERO: u64 = 2;
    pub const UNMAPPED: u64 = 3;
    pub const FULLY_PRESENT: u64 = 6;
    pub const PARTIALLY_PRESENT: u64 = 7;
}

/// The state in an entry.
pub(super) const fn state_of(entry: u64) -> u64 {
    entry & 7
}

/// The place in an entry: bytes, a multiple of 1 MiB.
pub(super) const fn place_of(entry: u64) -> u64 {
    entry & !(MIB - 1)
}

/// CRC-32C of `bytes`, whose bytes 4 to 7 hold it and count as zero.
pub(super) fn checksum(bytes: &[u8]) -> u32 {
    let (head, rest) = bytes.split_at(bytes.len().min(4));
    let crc = crc32c::crc32c_append(crc32c::crc32c(head), &[0; 4]);
    crc32c::crc32c_append(crc, rest.get(4..).unwrap_or_default())
}
