//! The superblock ("Superblocks"); offsets are those of the specification's table.

use crate::guest::fields::Fields;
use crate::num::len_u64;
use crate::{Error, Result};

// sb_features_incompat
const INCOMPAT_FTYPE: u32 = 0x1;
const INCOMPAT_META_UUID: u32 = 0x4;
pub(super) const INCOMPAT_NEEDS_REPAIR: u32 = 0x10;
// sb_features2
const FEATURES2_FTYPE: u32 = 0x200;

/// Where the checksum of the superblock is in its sector.
pub(super) const SUPER_SUM_AT: usize = 224;

/// What the superblock says. Sizes are possible ones; that the numbers fit the volume is not looked at.
#[derive(Clone, Debug)]
pub(super) struct Superblock {
    /// Bytes of a block.
    pub block: u64,
    /// Bytes of a sector, in which the headers of allocation groups are.
    pub sector: u64,
    pub blocks: u64,
    pub free_blocks: u64,
    /// Blocks of an allocation group; the last one may be shorter.
    pub group_blocks: u64,
    pub groups: u64,
    /// Bits of a block's number in its group.
    group_bits: u32,
    /// Bits of an inode's number in its block.
    pub inode_bits: u32,
    pub inode_size: usize,
    /// Bytes of a block of a folder.
    pub folder_block: u64,
    /// The inode of the root folder.
    pub root: u64,
    /// Metadata carry checksums and say where they belong.
    pub version5: bool,
    /// Names carry the type of what they name.
    pub ftype: bool,
    /// `sb_features_incompat`; 0 before version 5.
    pub incompat: u32,
    /// mkfs or growfs has not ended.
    pub in_progress: bool,
    /// The first block of the log (0: on another device), and its blocks.
    pub log_start: u64,
    pub log_blocks: u64,
    pub label: String,
    /// The identifier that users see.
    pub uuid: [u8; 16],
    /// The one that metadata carry: the same, unless users changed theirs.
    pub meta_uuid: [u8; 16],
}

impl Superblock {
    /// Reads the first 512 bytes of a superblock.
    pub fn parse(raw: &[u8]) -> Result<Self> {
        let sb = Fields(raw);
        let bad = |what: &str| Error::corrupt(format!("the superblock of XFS is damaged: {what}"));
        let version = sb.be16(100)? & 0xf;
        if !matches!(version, 4 | 5) {
            return Err(Error::unsupported(format!("XFS of version {version}")));
        }
        let version5 = version == 5;
        let incompat = if version5 { sb.be32(216)? } else { 0 };
        let ftype = match version5 {
            true => incompat & INCOMPAT_FTYPE != 0,
            false => sb.be32(200)? & FEATURES2_FTYPE != 0,
        };
        let block = u64::from(sb.be32(4)?);
        let uuid = sb.array(32)?;
        let found = Superblock {
            block,
            sector: u64::from(sb.be16(102)?),
            blocks: sb.be64(8)?,
            free_blocks: sb.be64(144)?,
            group_blocks: u64::from(sb.be32(84)?),
            groups: u64::from(sb.be32(88)?),
            group_bits: u32::from(sb.u8(124)?),
            inode_bits: u32::from(sb.u8(123)?),
            inode_size: usize::from(sb.be16(104)?),
            folder_block: block.checked_shl(u32::from(sb.u8(192)?)).unwrap_or(0),
            root: sb.be64(56)?,
            version5,
            ftype,
            incompat,
            in_progress: sb.u8(126)? != 0,
            log_start: sb.be64(48)?,
            log_blocks: u64::from(sb.be32(96)?),
            label: sb.text(108, 12)?,
            uuid,
            meta_uuid: if incompat & INCOMPAT_META_UUID != 0 { sb.array(248)? } else { uuid },
        };
        if !block.is_power_of_two() || !(512..=65536).contains(&block) {
            return Err(bad("blocks of an impossible size"));
        }
        if !found.sector.is_power_of_two() || !(512..=32768).contains(&found.sector) {
            return Err(bad("sectors of an impossible size"));
        }
        let inode = found.inode_size;
        if !inode.is_power_of_two() || !(256..=2048).contains(&inode) {
            return Err(bad("inodes of an impossible size"));
        }
        if len_u64(inode) << found.inode_bits.min(16) != block {
            return Err(bad("inodes that do not fill their blocks"));
        }
        if found.folder_block < block || found.folder_block > 65536 {
            return Err(bad("folders of an impossible block size"));
        }
        if found.groups == 0 || found.group_blocks == 0 || !(1..=31).contains(&found.group_bits) {
            return Err(bad("no allocation groups"));
        }
        Ok(found)
    }

    /// Where a block is in the volume, in bytes, by the number that has its group in the upper bits.
    pub fn place(&self, block: u64) -> Result<u64> {
        let (group, within) = (block >> self.group_bits, block & ((1 << self.group_bits) - 1));
        if group >= self.groups || within >= self.group_blocks {
            return Err(Error::corrupt(format!("XFS has no block {block:#x}")));
        }
        let at =
            (group * self.group_blocks).checked_add(within).and_then(|b| b.checked_mul(self.block));
        at.ok_or_else(|| Error::corrupt("a block of XFS is out of range"))
    }
}

/// The checksum at `field`, which counts as zero and is stored little endian ("Self-Describing Metadata").
pub(super) fn crc_is_right(bytes: &[u8], field: usize) -> bool {
    let Some((head, rest)) = bytes.split_at_checked(field) else { return false };
    let Some((told, tail)) = rest.split_first_chunk::<4>() else { return false };
    let sum = crc32c::crc32c(head);
    let sum = crc32c::crc32c_append(crc32c::crc32c_append(sum, &[0; 4]), tail);
    u32::from_le_bytes(*told) == sum
}
