//! On-disk structures of LUKS ("LUKS1 On-Disk Format Specification", figure 1; "LUKS2 On-Disk Format
//! Specification", section 2.1). All integers are big endian.
#![allow(missing_docs)]

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `LUKS\xba\xbe`.
pub const MAGIC: [u8; 6] = *b"LUKS\xba\xbe";
/// Of the second header of LUKS2: `SKUL\xba\xbe`.
pub const MAGIC_2ND: [u8; 6] = *b"SKUL\xba\xbe";

/// Marks an active key slot.
pub const ACTIVE: u32 = 0x00ac_71f3;
/// Marks an inactive key slot.
pub const INACTIVE: u32 = 0x0000_dead;

/// One key slot of LUKS1.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawKeySlot {
    pub active: U32,
    pub iterations: U32,
    pub salt: [u8; 32],
    pub key_material_offset: U32,
    pub stripes: U32,
}
const _: () = assert!(size_of::<RawKeySlot>() == 48);

/// The header of LUKS1.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawHeader {
    pub magic: [u8; 6],
    pub version: U16,
    pub cipher_name: [u8; 32],
    pub cipher_mode: [u8; 32],
    pub hash_spec: [u8; 32],
    pub payload_offset: U32,
    pub key_bytes: U32,
    pub mk_digest: [u8; 20],
    pub mk_digest_salt: [u8; 32],
    pub mk_digest_iterations: U32,
    pub uuid: [u8; 40],
    pub key_slots: [RawKeySlot; 8],
}
const _: () = assert!(size_of::<RawHeader>() == 592);

/// The binary header of LUKS2.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawHeader2 {
    pub magic: [u8; 6],
    pub version: U16,
    pub hdr_size: U64,
    pub seqid: U64,
    pub label: [u8; 48],
    pub csum_alg: [u8; 32],
    pub salt: [u8; 64],
    pub uuid: [u8; 40],
    pub subsystem: [u8; 48],
    pub hdr_offset: U64,
    pub padding: [u8; 184],
    pub csum: [u8; 64],
    pub padding4096: [u8; 3584],
}
const _: () = assert!(size_of::<RawHeader2>() == 4096);
