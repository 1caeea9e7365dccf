//! What is on disk: Microsoft, *Virtual Hard Disk Image Format Specification*, version 1.0 (October 2006).
//!
//! All numbers are big endian.

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Unit of places and sizes.
pub(super) const SECTOR: u64 = 512;
/// `Cookie` of a footer.
pub(super) const COOKIE: [u8; 8] = *b"conectix";
/// `Cookie` of a dynamic disk's header.
pub(super) const HEADER_COOKIE: [u8; 8] = *b"cxsparse";
/// `Disk Type`: the data, then the footer.
pub(super) const TYPE_FIXED: u32 = 2;
/// `Disk Type`: grows as it is written.
pub(super) const TYPE_DYNAMIC: u32 = 3;
/// `Disk Type`: changes on top of another disk.
pub(super) const TYPE_DIFF: u32 = 4;
/// `Features`: a bit that is always set.
pub(super) const FEATURES: u32 = 2;
/// `File Format Version` and `Header Version`.
pub(super) const VERSION: u32 = 0x0001_0000;
/// Entry of the block allocation table: nothing here.
pub(super) const UNUSED: u64 = 0xffff_ffff;
/// Where the header of a new dynamic disk is.
pub(super) const HEADER_AT: u64 = 512;
/// Where its block allocation table is.
pub(super) const TABLE_AT: u64 = 1536;
/// The usual block.
pub(super) const BLOCK: u64 = 2 << 20;
/// Most sectors of a disk that any program accepts: 2040 GiB.
pub(super) const MAX_SECTORS: u64 = 0xff00_0000;
/// Sectors of the largest geometry.
pub(super) const MAX_CHS: u64 = 65535 * 16 * 255;
/// Seconds from 1970 to 2000, the beginning of `Time Stamp`.
pub(super) const EPOCH: u64 = 946_684_800;

/// "Hard Disk Footer Format".
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub(super) struct Footer {
    pub cookie: [u8; 8],
    pub features: U32,
    pub version: U32,
    /// Where the dynamic header is; all ones for fixed disks.
    pub data_offset: U64,
    /// Seconds since 2000.
    pub time_stamp: U32,
    pub creator: [u8; 4],
    pub creator_version: U32,
    pub creator_os: [u8; 4],
    pub original_size: U64,
    pub current_size: U64,
    pub cylinders: U16,
    pub heads: u8,
    pub sectors: u8,
    pub disk_type: U32,
    /// Complement of the sum of all bytes, this field counted as zero.
    pub checksum: U32,
    pub uuid: [u8; 16],
    pub saved_state: u8,
    pub reserved: [u8; 427],
}

/// "Dynamic Disk Header Format".
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Header {
    pub cookie: [u8; 8],
    /// Unused; all ones.
    pub data_offset: U64,
    /// Where the block allocation table is.
    pub table_offset: U64,
    pub version: U32,
    pub max_entries: U32,
    /// Bytes of a block without its bitmap.
    pub block_size: U32,
    pub checksum: U32,
    pub parent_uuid: [u8; 16],
    pub parent_time_stamp: U32,
    pub reserved: U32,
    /// UTF-16, big endian.
    pub parent_name: [U16; 256],
    pub locators: [Locator; 8],
    pub rest: [u8; 256],
}

/// "Parent Locator Entry".
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Locator {
    /// `W2ku`, `W2ru`, ...
    pub code: [u8; 4],
    pub space: U32,
    /// Bytes of the name.
    pub len: U32,
    pub reserved: U32,
    pub offset: U64,
}

const _: () = assert!(size_of::<Footer>() == 512);
const _: () = assert!(size_of::<Header>() == 1024);
const _: () = assert!(size_of::<Locator>() == 24);

/// The sum that both structures carry, over `bytes` with the field itself zero.
pub(super) fn checksum(bytes: &[u8], field: u32) -> u32 {
    let all: u32 = bytes.iter().map(|&b| u32::from(b)).sum();
    let own: u32 = field.to_be_bytes().iter().map(|&b| u32::from(b)).sum();
    !(all - own)
}

impl Footer {
    /// Whether cookie and checksum are right.
    pub fn is_valid(&self) -> bool {
        self.cookie == COOKIE
            && checksum(self.as_bytes(), self.checksum.get()) == self.checksum.get()
    }

    /// Computes the checksum.
    pub fn seal(&mut self) {
        self.checksum.set(checksum(self.as_bytes(), self.checksum.get()));
    }
}

impl Header {
    /// Whether the checksum is right.
    pub fn is_valid(&self) -> bool {
        checksum(self.as_bytes(), self.checksum.get()) == self.checksum.get()
    }

    /// Computes the checksum.
    pub fn seal(&mut self) {
        self.checksum.set(checksum(self.as_bytes(), self.checksum.get()));
    }
}
