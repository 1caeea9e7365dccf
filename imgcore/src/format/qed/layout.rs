//! What is on disk: *QED Image File Format* (QEMU's `docs/interop/qed_spec`); the sections are named at the
//! fields.
//!
//! All numbers are little endian. Places are in bytes.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `QED\0`.
pub(super) const MAGIC: u32 = u32::from_le_bytes(*b"QED\0");

/// "Feature bits": an image with an unknown one must not be opened.
pub(super) mod feature {
    /// The image has a backing file.
    pub const BACKING: u64 = 1;
    /// The image needs a consistency check before it is written.
    pub const NEED_CHECK: u64 = 2;
    /// The backing file is raw, whatever it begins with.
    pub const BACKING_RAW: u64 = 4;
    /// All of them.
    pub const KNOWN: u64 = BACKING | NEED_CHECK | BACKING_RAW;
}

/// Smallest cluster.
pub(super) const MIN_CLUSTER: u64 = 4096;
/// Largest cluster.
pub(super) const MAX_CLUSTER: u64 = 64 << 20;
/// Most clusters of a table.
pub(super) const MAX_TABLE: u64 = 16;
/// Cluster of a new image.
pub(super) const CLUSTER: u64 = 64 << 10;
/// Clusters of a table of a new image.
pub(super) const TABLE: u64 = 4;
/// Longest name of a backing file.
pub(super) const MAX_NAME: u64 = 1023;

/// "L2 table": entry of a cluster that reads as zeroes.
pub(super) const ZERO: u64 = 1;

/// "Header": the beginning of the first cluster.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Header {
    pub magic: U32,
    pub cluster_size: U32,
    /// Clusters of each table.
    pub table_size: U32,
    /// Clusters of the header.
    pub header_size: U32,
    pub features: U64,
    /// "Compatible feature bits": unknown ones may be ignored.
    pub compat_features: U64,
    /// "Autoclear feature bits": unknown ones must be cleared before writing.
    pub autoclear_features: U64,
    pub l1_offset: U64,
    /// Bytes of the guest's disk.
    pub size: U64,
    /// With [`feature::BACKING`]: where the name is.
    pub backing_offset: U32,
    pub backing_len: U32,
}

/// Bytes of the header's fields.
pub(super) const HEADER: u64 = 64;

const _: () = assert!(size_of::<Header>() == 64);
