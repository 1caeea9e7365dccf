//! What is on disk, field by field.
//!
//! * Hosted sparse extents (`KDMV`): VMware, *Virtual Disk Format 5.0*, "Hosted Sparse Extents" and
//!   "Stream-Optimized Compressed Sparse Extents".
//! * ESX sparse extents (`COWD`): the same note, "ESX Server Sparse Extents".
//! * seSparse extents: not in the note; the fields are those that ESXi 5.1 and later write.
//!
//! All numbers are little endian; all places are counted in sectors of 512 bytes.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Everything is counted in sectors of this many bytes.
pub(super) const SECTOR: u64 = 512;

/// `KDMV`, read as a little-endian number.
pub(super) const MAGIC_KDMV: u32 = u32::from_le_bytes(*b"KDMV");
/// `COWD`, read as a little-endian number.
pub(super) const MAGIC_COWD: u32 = u32::from_le_bytes(*b"COWD");
/// First field of an seSparse extent.
pub(super) const MAGIC_SESPARSE: u64 = 0xcafe_babe;
/// First field of seSparse's volatile header.
pub(super) const MAGIC_SESPARSE_VOLATILE: u64 = 0xcafe_cafe;
/// The only version of seSparse seen (2.1).
pub(super) const SESPARSE_VERSION: u64 = 0x2_0000_0001;

/// `flags`: the four newline bytes are valid.
pub(super) const FLAG_NEWLINES: u32 = 1;
/// `flags`: there is a redundant grain directory.
pub(super) const FLAG_REDUNDANT: u32 = 1 << 1;
/// `flags`: a grain table entry of 1 stands for a grain of zeroes.
pub(super) const FLAG_ZERO_GRAIN: u32 = 1 << 2;
/// `flags`: grains are compressed.
pub(super) const FLAG_COMPRESSED: u32 = 1 << 16;
/// `flags`: grains and metadata have markers.
pub(super) const FLAG_MARKERS: u32 = 1 << 17;
/// `compressAlgorithm`: RFC 1950 with RFC 1951 inside.
pub(super) const COMPRESS_DEFLATE: u16 = 1;
/// `gdOffset`: look into the footer.
pub(super) const GD_AT_END: u64 = u64::MAX;

/// `SparseExtentHeader`: sector 0 of a hosted sparse extent, and of a footer.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct SparseHeader {
    pub magic: U32,
    pub version: U32,
    pub flags: U32,
    pub capacity: U64,
    pub grain_size: U64,
    pub descriptor_offset: U64,
    pub descriptor_size: U64,
    pub gtes_per_gt: U32,
    pub rgd_offset: U64,
    pub gd_offset: U64,
    pub overhead: U64,
    pub unclean_shutdown: u8,
    pub newlines: [u8; 4],
    pub compress: U16,
    pub pad: [u8; 433],
}

/// The bytes that show damage by a transfer in text mode.
pub(super) const NEWLINES: [u8; 4] = *b"\n \r\n";

/// What precedes each grain of a stream: only these 12 bytes, then the data.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct GrainMarker {
    /// First guest sector.
    pub lba: U64,
    /// Bytes of compressed data that follow; never 0.
    pub size: U32,
}

/// What precedes each piece of metadata in a stream: a sector.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct MetadataMarker {
    /// Sectors of metadata that follow.
    pub sectors: U64,
    /// 0, which tells it from a grain.
    pub size: U32,
    pub kind: U32,
    pub pad: [u8; 496],
}

/// Kinds of metadata in a stream.
pub(super) const MARKER_EOS: u32 = 0;
pub(super) const MARKER_GT: u32 = 1;
pub(super) const MARKER_GD: u32 = 2;
pub(super) const MARKER_FOOTER: u32 = 3;

impl MetadataMarker {
    pub(super) fn new(kind: u32, sectors: u64) -> Self {
        MetadataMarker {
            sectors: U64::new(sectors),
            size: U32::new(0),
            kind: U32::new(kind),
            pad: [0; 496],
        }
    }
}

/// `COWDisk_Header` as far as it is needed; the whole takes 4 sectors.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct CowdHeader {
    pub magic: U32,
    pub version: U32,
    pub flags: U32,
    pub sectors: U32,
    pub grain_size: U32,
    pub gd_offset: U32,
    pub gd_entries: U32,
    pub free_sector: U32,
}

/// Sectors of the whole COWD header.
pub(super) const COWD_HEADER_SECTORS: u64 = 4;
/// Entries of a COWD grain table.
pub(super) const COWD_GTES: u64 = 4096;

/// Constant header of an seSparse extent (sector 0).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct SeSparseHeader {
    pub magic: U64,
    pub version: U64,
    pub capacity: U64,
    pub grain_size: U64,
    pub grain_table_size: U64,
    pub flags: U64,
    pub reserved: [U64; 4],
    pub volatile_offset: U64,
    pub volatile_size: U64,
    pub journal_header_offset: U64,
    pub journal_header_size: U64,
    pub journal_offset: U64,
    pub journal_size: U64,
    pub gd_offset: U64,
    pub gd_size: U64,
    pub gt_offset: U64,
    pub gt_size: U64,
    pub free_bitmap_offset: U64,
    pub free_bitmap_size: U64,
    pub backmap_offset: U64,
    pub backmap_size: U64,
    pub grains_offset: U64,
    pub grains_size: U64,
    pub pad: [u8; 304],
}

/// Volatile header of an seSparse extent.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct SeSparseVolatile {
    pub magic: U64,
    pub free_gt_number: U64,
    pub next_txn_seq_number: U64,
    pub replay_journal: U64,
}

const _: () = assert!(size_of::<SparseHeader>() == 512);
const _: () = assert!(size_of::<GrainMarker>() == 12);
const _: () = assert!(size_of::<MetadataMarker>() == 512);
const _: () = assert!(size_of::<CowdHeader>() == 32);
const _: () = assert!(size_of::<SeSparseHeader>() == 512);
const _: () = assert!(size_of::<SeSparseVolatile>() == 32);
