//! What is on disk: *Parallels Expandable Image File Format* (QEMU's `docs/interop/parallels`, which was
//! written by the format's makers); the sections are named at the fields.
//!
//! All numbers are little endian. Places are in sectors of 512 bytes where nothing else is said.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Unit of places and sizes.
pub(super) const SECTOR: u64 = 512;
/// Entries of the table count sectors.
pub(super) const MAGIC_OLD: &[u8; 16] = b"WithoutFreeSpace";
/// Entries of the table count clusters.
pub(super) const MAGIC_EXT: &[u8; 16] = b"WithouFreSpacExt";
/// The only version.
pub(super) const VERSION: u32 = 2;
/// `in_use` of an image that somebody writes.
pub(super) const IN_USE: u32 = 0x746f_6e59;
/// Bytes of the header; the block allocation table follows.
pub(super) const HEADER: u64 = 64;
/// Most entries of the table that other programs read.
pub(super) const MAX_ENTRIES: u64 = i32::MAX as u64 / 4;
/// Cluster of a new image.
pub(super) const CLUSTER: u64 = 1 << 20;

/// "Header".
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Header {
    pub magic: [u8; 16],
    pub version: U32,
    pub heads: U32,
    pub cylinders: U32,
    /// Sectors of a cluster.
    pub tracks: U32,
    pub entries: U32,
    /// Of the guest's disk; with the old magic only the lower half counts.
    pub sectors: U64,
    pub in_use: U32,
    /// Where clusters begin; 0: behind the table.
    pub data: U32,
    pub flags: U32,
    /// Where the format extension is; 0 for none.
    pub extension: U64,
}

const _: () = assert!(size_of::<Header>() == 64);

/// "Format Extension": first number of its cluster.
pub(super) const EXTENSION_MAGIC: u64 = 0xab23_4cef_23dc_ea87;
/// "Dirty bitmaps feature".
pub(super) const FEATURE_BITMAP: u64 = 0x2038_5fae_252c_b34a;
/// "Feature section": an image with an unknown one of these must not be opened.
pub(super) const FEATURE_NECESSARY: u64 = 1;

/// "Format Extension": the beginning of its cluster.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Extension {
    pub magic: U64,
    /// MD5 of the rest of the cluster.
    pub checksum: [u8; 16],
}

/// "Feature section": its header.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Feature {
    pub magic: U64,
    pub flags: U64,
    /// Bytes of what follows, without padding up to 8.
    pub size: U32,
    pub unused: U32,
}

/// "Dirty bitmaps feature": its data, in front of the L1 table.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Bitmap {
    /// Sectors of the disk.
    pub size: U64,
    pub id: [u8; 16],
    /// Sectors of a bit.
    pub granularity: U32,
    pub l1_entries: U32,
}

const _: () = assert!(size_of::<Extension>() == 24);
const _: () = assert!(size_of::<Feature>() == 24);
const _: () = assert!(size_of::<Bitmap>() == 32);
