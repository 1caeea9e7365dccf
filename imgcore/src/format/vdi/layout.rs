//! What is on disk: Oracle VirtualBox, *VDI image format, version 1.1*, as laid out in the forum article
//! "All about VDIs" and in the public headers of VirtualBox (`VDICore.h`, which describes the fields).
//!
//! All numbers are little endian. Places are in bytes.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Unit of places and sizes.
pub(super) const SECTOR: u64 = 512;
/// Second field of every VDI.
pub(super) const SIGNATURE: u32 = 0xbeda_107f;
/// Where the signature is.
pub(super) const SIGNATURE_AT: usize = 64;
/// Version 1.1, the only one written since 2006.
pub(super) const VERSION: u32 = 0x0001_0001;
/// Bytes of the header after signature and version, as QEMU writes it.
pub(super) const HEADER_SIZE: u32 = 0x180;
/// Text at the beginning of the file, for people.
pub(super) const TEXT: &[u8] = b"<<< rimg VirtualBox Disk Image >>>\n";

/// Grows as it is written.
pub(super) const TYPE_DYNAMIC: u32 = 1;
/// All blocks have their place.
pub(super) const TYPE_STATIC: u32 = 2;
/// Discardable changes on top of another disk.
pub(super) const TYPE_UNDO: u32 = 3;
/// Changes on top of another disk.
pub(super) const TYPE_DIFF: u32 = 4;

/// Entry of the block map: nothing here; zeroes, or the parent's bytes.
pub(super) const FREE: u64 = 0xffff_ffff;
/// Entry of the block map: zeroes.
pub(super) const ZERO: u64 = 0xffff_fffe;

/// The usual block.
pub(super) const BLOCK: u64 = 1 << 20;
/// Most blocks that any program accepts: a block map of 2 GiB.
pub(super) const MAX_BLOCKS: u64 = 0x1fff_ff80;
/// Largest disk that any program accepts.
pub(super) const MAX_SIZE: u64 = MAX_BLOCKS * BLOCK;

/// The header: sector 0.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Header {
    /// For people.
    pub text: [u8; 64],
    pub signature: U32,
    pub version: U32,
    /// Bytes of what follows.
    pub header_size: U32,
    pub image_type: U32,
    pub flags: U32,
    /// Comment, ended by a zero byte.
    pub description: [u8; 256],
    /// Where the block map is.
    pub offset_map: U32,
    /// Where block 0 of the file is.
    pub offset_data: U32,
    /// Geometry; all zeroes when it was never needed.
    pub cylinders: U32,
    pub heads: U32,
    pub sectors: U32,
    pub sector_size: U32,
    pub unused: U32,
    /// Bytes of the guest's disk.
    pub disk_size: U64,
    pub block_size: U32,
    /// Bytes in front of each block's data.
    pub block_extra: U32,
    /// Entries of the block map.
    pub blocks: U32,
    /// Blocks that the file holds.
    pub blocks_allocated: U32,
    /// Of this image.
    pub uuid: [u8; 16],
    /// Changes whenever the content does.
    pub uuid_modify: [u8; 16],
    /// Of the parent; all zeroes without one.
    pub uuid_parent: [u8; 16],
    /// The parent's `uuid_modify` when this image was made on it.
    pub uuid_parent_modify: [u8; 16],
    /// Geometry that the BIOS shows, and reserved bytes.
    pub rest: [u8; 56],
}

const _: () = assert!(size_of::<Header>() == 512);
