//! What is on disk, field by field, all big endian.
//!
//! Apple does not document the format. The fields are those that `hdiutil` writes, as described by
//! J. Levin, *Demystifying the DMG file format* (newosxbook.com), and by libdmg-hfsplus.

use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// Everything is counted in sectors of this many bytes.
pub(super) const SECTOR: u64 = 512;

pub(super) const KOLY: [u8; 4] = *b"koly";
pub(super) const MISH: [u8; 4] = *b"mish";

/// `UDIFResourceFile`: the last 512 bytes of a file.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Trailer {
    pub magic: [u8; 4],
    pub version: U32,
    pub header_size: U32,
    pub flags: U32,
    pub running_data_fork_offset: U64,
    pub data_fork_offset: U64,
    pub data_fork_length: U64,
    pub rsrc_fork_offset: U64,
    pub rsrc_fork_length: U64,
    pub segment_number: U32,
    pub segment_count: U32,
    pub segment_id: [u8; 16],
    pub data_checksum: [u8; 136],
    pub xml_offset: U64,
    pub xml_length: U64,
    pub reserved1: [u8; 120],
    pub checksum: [u8; 136],
    pub image_variant: U32,
    pub sector_count: U64,
    pub reserved2: [u8; 12],
}

/// Bytes of the trailer.
pub(super) const TRAILER: u64 = 512;
const _: () = assert!(size_of::<Trailer>() == 512);

/// `BLKXTable`: begins the table of one partition; its chunks follow.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct TableHeader {
    pub magic: [u8; 4],
    pub version: U32,
    pub first_sector: U64,
    pub sector_count: U64,
    pub data_offset: U64,
    pub buffers_needed: U32,
    pub descriptors: U32,
    pub reserved: [u8; 24],
    pub checksum: [u8; 136],
    pub chunks: U32,
}

const _: () = assert!(size_of::<TableHeader>() == 204);

/// `BLKXChunkEntry`.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Chunk {
    pub kind: U32,
    pub comment: U32,
    /// Counted from the table's first sector.
    pub sector: U64,
    pub sectors: U64,
    /// Counted from the data fork.
    pub offset: U64,
    pub length: U64,
}

const _: () = assert!(size_of::<Chunk>() == 40);

pub(super) const ZERO: u32 = 0;
pub(super) const RAW: u32 = 1;
/// Free space: reads as zeroes.
pub(super) const IGNORE: u32 = 2;
pub(super) const ADC: u32 = 0x8000_0004;
pub(super) const ZLIB: u32 = 0x8000_0005;
pub(super) const BZIP2: u32 = 0x8000_0006;
pub(super) const LZFSE: u32 = 0x8000_0007;
pub(super) const LZMA: u32 = 0x8000_0008;
pub(super) const COMMENT: u32 = 0x7fff_fffe;
pub(super) const TERMINATOR: u32 = 0xffff_ffff;
