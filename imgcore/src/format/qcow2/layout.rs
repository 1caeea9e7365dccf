//! On-disk structures of qcow2 (QEMU `docs/interop/qcow2.rst`). All integers are big endian.
//! Fields without documentation of their own mean what the specification says under their name.
#![allow(missing_docs)]

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// "Header": `QFI\xfb`.
pub const MAGIC: u32 = 0x5146_49fb;

/// "Header", bytes 0..104; the first 72 are all of it in version 2.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawHeader {
    pub magic: U32,
    pub version: U32,
    pub backing_file_offset: U64,
    pub backing_file_size: U32,
    pub cluster_bits: U32,
    pub size: U64,
    pub crypt_method: U32,
    pub l1_size: U32,
    pub l1_table_offset: U64,
    pub refcount_table_offset: U64,
    pub refcount_table_clusters: U32,
    pub nb_snapshots: U32,
    pub snapshots_offset: U64,
    // Version 3 from here on.
    pub incompatible_features: U64,
    pub compatible_features: U64,
    pub autoclear_features: U64,
    pub refcount_order: U32,
    pub header_length: U32,
    // "Additional fields", present if header_length says so.
    pub compression_type: u8,
    pub padding: [u8; 7],
}
const _: () = assert!(size_of::<RawHeader>() == 112);

/// Length of a version 2 header.
pub const V2_HEADER_LEN: u64 = 72;
/// Shortest version 3 header.
pub const V3_HEADER_LEN: u64 = 104;

/// "Header extensions": type and length before each one's data.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawExtension {
    pub kind: U32,
    pub len: U32,
}
const _: () = assert!(size_of::<RawExtension>() == 8);

/// Types of header extensions.
pub mod ext {
    pub const END: u32 = 0;
    pub const BACKING_FORMAT: u32 = 0xe279_2aca;
    pub const FEATURE_NAMES: u32 = 0x6803_f857;
    pub const BITMAPS: u32 = 0x2385_2875;
    pub const CRYPTO: u32 = 0x0537_be77;
    pub const DATA_FILE: u32 = 0x4441_5441;
}

/// "Bitmaps extension".
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawBitmapExtension {
    pub nb_bitmaps: U32,
    pub reserved: U32,
    pub directory_size: U64,
    pub directory_offset: U64,
}
const _: () = assert!(size_of::<RawBitmapExtension>() == 24);

/// "Bitmap directory" entry, before extra data and name.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawBitmapEntry {
    pub table_offset: U64,
    pub table_size: U32,
    pub flags: U32,
    pub kind: u8,
    pub granularity_bits: u8,
    pub name_size: U16,
    pub extra_data_size: U32,
}
const _: () = assert!(size_of::<RawBitmapEntry>() == 24);

/// "Feature name table" entry.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawFeatureName {
    pub kind: u8,
    pub bit: u8,
    pub name: [u8; 46],
}
const _: () = assert!(size_of::<RawFeatureName>() == 48);

/// "Snapshots": table entry, before extra data, id and name.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawSnapshot {
    pub l1_table_offset: U64,
    pub l1_size: U32,
    pub id_size: U16,
    pub name_size: U16,
    pub date_sec: U32,
    pub date_nsec: U32,
    pub vm_clock_nsec: U64,
    pub vm_state_size: U32,
    pub extra_data_size: U32,
}
const _: () = assert!(size_of::<RawSnapshot>() == 40);

/// "Incompatible features".
pub mod incompatible {
    pub const DIRTY: u64 = 1 << 0;
    pub const CORRUPT: u64 = 1 << 1;
    pub const DATA_FILE: u64 = 1 << 2;
    pub const COMPRESSION: u64 = 1 << 3;
    pub const EXTENDED_L2: u64 = 1 << 4;
    pub const KNOWN: u64 = DIRTY | CORRUPT | DATA_FILE | COMPRESSION | EXTENDED_L2;
}

/// "Compatible features".
pub mod compatible {
    pub const LAZY_REFCOUNTS: u64 = 1 << 0;
}

/// "Autoclear features".
pub mod autoclear {
    pub const BITMAPS: u64 = 1 << 0;
    pub const DATA_FILE_RAW: u64 = 1 << 1;
    pub const KNOWN: u64 = BITMAPS | DATA_FILE_RAW;
}

/// Names of the feature bits, as the feature name table gives them: kind, bit, name.
pub const FEATURE_NAMES: &[(u8, u8, &str)] = &[
    (0, 0, "dirty bit"),
    (0, 1, "corrupt bit"),
    (0, 2, "external data file"),
    (0, 3, "compression type"),
    (0, 4, "extended L2 entries"),
    (1, 0, "lazy refcounts"),
    (2, 0, "bitmaps"),
    (2, 1, "raw external data"),
];

/// "L1 table entry" and "L2 table entry": bits 9-55 are a host offset.
pub const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// Bit 63: the reference count is exactly one.
pub const COPIED: u64 = 1 << 63;
/// Bit 62 of an L2 entry: compressed cluster descriptor.
pub const COMPRESSED: u64 = 1 << 62;
/// Bit 0 of a standard cluster descriptor (version 3): reads as zeroes.
pub const ZERO: u64 = 1;
/// Bits of an L1 entry that must be zero.
pub const L1_RESERVED: u64 = !(OFFSET_MASK | COPIED);
/// Bits of a standard cluster descriptor that must be zero.
pub const L2_RESERVED: u64 = !(OFFSET_MASK | COPIED | COMPRESSED | ZERO);
/// Bits of a refcount table entry that are the offset; the rest must be zero.
pub const REFTABLE_MASK: u64 = 0xffff_ffff_ffff_fe00;

/// Limits of QEMU's implementation, in bytes, which keep memory bounded.
pub const MAX_L1_BYTES: u64 = 32 << 20;
/// Largest refcount table.
pub const MAX_REFTABLE_BYTES: u64 = 8 << 20;
/// Most snapshots.
pub const MAX_SNAPSHOTS: u32 = 65536;
/// Largest snapshot table.
pub const MAX_SNAPSHOT_BYTES: u64 = 16 << 20;
/// Smallest and largest cluster size, as powers of two.
pub const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// Longest backing file name.
pub const MAX_BACKING_NAME: u32 = 1023;
/// Subclusters of an extended L2 entry.
pub const SUBCLUSTERS: u64 = 32;
