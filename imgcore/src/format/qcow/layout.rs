//! What is on disk: the qcow format, version 1, as QEMU's documentation of formats and the header of its
//! `block/qcow.c` describe the fields. There is no other specification.
//!
//! All numbers are big endian. Places are in bytes.

use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `QFI\xfb`.
pub(super) const MAGIC: u32 = 0x5146_49fb;
/// This version; 2 and 3 are another format.
pub(super) const VERSION: u32 = 1;

/// Legal log2 of the cluster size.
pub(super) const CLUSTER_BITS: std::ops::RangeInclusive<u8> = 9..=16;
/// Legal log2 of the number of entries of an L2 table.
pub(super) const L2_BITS: std::ops::RangeInclusive<u8> = 6..=13;
/// Most entries of L1 that other programs read.
pub(super) const MAX_L1: u64 = i32::MAX as u64 / 8;
/// Longest name of a backing file.
pub(super) const MAX_NAME: u64 = 1023;

/// `crypt_method`: AES-128 in CBC mode under the passphrase.
pub(super) const CRYPT_AES: u32 = 1;

/// Entry of an L2 table: the cluster is compressed. Below it are the bytes of the stream (as many bits as
/// a cluster size has), below these its place.
pub(super) const COMPRESSED: u64 = 1 << 63;

/// The header.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Header {
    pub magic: U32,
    pub version: U32,
    /// Where the name of the backing file is; 0 for none.
    pub backing_offset: U64,
    pub backing_len: U32,
    /// Of the backing file, seconds since 1970; never used.
    pub mtime: U32,
    /// Bytes of the guest's disk.
    pub size: U64,
    pub cluster_bits: u8,
    pub l2_bits: u8,
    pub padding: [u8; 2],
    pub crypt_method: U32,
    pub l1_offset: U64,
}

/// Bytes of the header.
pub(super) const HEADER: u64 = 48;

const _: () = assert!(size_of::<Header>() == 48);
