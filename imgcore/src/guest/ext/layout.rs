//! The superblock ("Super Block") and where the descriptors of block groups are ("Block Group Descriptors").

use crate::guest::fields::Fields;
use crate::guest::files::FsKind;
use crate::num::len_u64;
use crate::{Error, Result};

/// Where the superblock is, and its bytes.
pub(super) const SUPER_AT: u64 = 1024;
pub(super) const SUPER_SIZE: usize = 1024;
/// Where its checksum is in it.
pub(super) const SUPER_SUM_AT: usize = 0x3fc;

// s_state
pub(super) const VALID_FS: u16 = 1;
pub(super) const ERROR_FS: u16 = 2;
// s_feature_compat
pub(super) const HAS_JOURNAL: u32 = 0x4;
const SPARSE_SUPER2: u32 = 0x200;
// s_feature_incompat
pub(super) const FILETYPE: u32 = 0x2;
pub(super) const RECOVER: u32 = 0x4;
pub(super) const JOURNAL_DEV: u32 = 0x8;
pub(super) const META_BG: u32 = 0x10;
const EXTENTS: u32 = 0x40;
const BITS64: u32 = 0x80;
const FLEX_BG: u32 = 0x200;
pub(super) const CSUM_SEED: u32 = 0x2000;
// s_feature_ro_compat
const SPARSE_SUPER: u32 = 0x1;
pub(super) const GDT_CSUM: u32 = 0x10;
pub(super) const BIGALLOC: u32 = 0x200;
pub(super) const METADATA_CSUM: u32 = 0x400;
pub(super) const SHARED_BLOCKS: u32 = 0x4000;
/// huge_file, uninit_bg, dir_nlink, extra_isize, bigalloc, metadata_csum: what only ext4 has.
const RO_EXT4: u32 = 0x8 | 0x10 | 0x20 | 0x40 | 0x200 | 0x400;

/// What the superblock says. Sizes are possible ones; that the numbers fit the volume is not looked at.
#[derive(Clone, Debug)]
pub(super) struct Superblock {
    /// Bytes of a block.
    pub block: u64,
    /// Blocks of a cluster; 1 without bigalloc.
    pub ratio: u64,
    pub blocks: u64,
    pub free_blocks: u64,
    pub first_data_block: u64,
    pub blocks_per_group: u64,
    pub clusters_per_group: u64,
    pub inodes: u64,
    pub inodes_per_group: u64,
    pub inode_size: usize,
    /// Bytes of a group's descriptor.
    pub descriptor: u64,
    pub compat: u32,
    pub incompat: u32,
    pub ro_compat: u32,
    pub state: u16,
    pub first_meta_bg: u64,
    pub reserved_gdt: u64,
    backup_groups: [u64; 2],
    pub journal_inode: u64,
    pub label: String,
    pub uuid: [u8; 16],
    /// `s_checksum_seed`, where the feature is on.
    pub checksum_seed: u32,
}

impl Superblock {
    /// Reads the bytes of a superblock.
    pub fn parse(raw: &[u8]) -> Result<Self> {
        let sb = Fields(raw);
        let (compat, incompat, ro_compat) = (sb.le32(0x5c)?, sb.le32(0x60)?, sb.le32(0x64)?);
        let shift = sb.le32(0x18)?;
        let cluster_shift = if ro_compat & BIGALLOC != 0 { sb.le32(0x1c)? } else { shift };
        if shift > 6 || cluster_shift < shift || cluster_shift > 26 {
            return Err(bad("blocks or clusters of an impossible size"));
        }
        let block = 1024u64 << shift;
        let ratio = 1u64 << (cluster_shift - shift);
        let wide = incompat & BITS64 != 0;
        let high = |at| Ok::<_, Error>(if wide { u64::from(sb.le32(at)?) << 32 } else { 0 });
        let blocks_per_group = u64::from(sb.le32(0x20)?);
        let clusters = u64::from(sb.le32(0x24)?);
        let dynamic = sb.le32(0x4c)? > 0;
        let found = Superblock {
            block,
            ratio,
            blocks: u64::from(sb.le32(0x4)?) | high(0x150)?,
            free_blocks: u64::from(sb.le32(0xc)?) | high(0x158)?,
            first_data_block: u64::from(sb.le32(0x14)?),
            blocks_per_group,
            clusters_per_group: if ratio > 1 { clusters } else { blocks_per_group },
            inodes: u64::from(sb.le32(0)?),
            inodes_per_group: u64::from(sb.le32(0x28)?),
            inode_size: if dynamic { usize::from(sb.le16(0x58)?) } else { 128 },
            descriptor: if wide { u64::from(sb.le16(0xfe)?) } else { 32 },
            compat,
            incompat,
            ro_compat,
            state: sb.le16(0x3a)?,
            first_meta_bg: u64::from(sb.le32(0x104)?),
            reserved_gdt: u64::from(sb.le16(0xce)?),
            backup_groups: [u64::from(sb.le32(0x24c)?), u64::from(sb.le32(0x250)?)],
            journal_inode: u64::from(sb.le32(0xe0)?),
            label: sb.text(0x78, 16)?,
            uuid: sb.array(0x68)?,
            checksum_seed: sb.le32(0x270)?,
        };
        if found.inodes_per_group == 0 || found.blocks_per_group == 0 {
            return Err(bad("its groups are empty"));
        }
        let inode = found.inode_size;
        if !inode.is_power_of_two() || inode < 128 || len_u64(inode) > block {
            return Err(bad("inodes of an impossible size"));
        }
        let descriptor = found.descriptor;
        if !descriptor.is_power_of_two() || !(32..=1024).contains(&descriptor) {
            return Err(bad("group descriptors of an impossible size"));
        }
        Ok(found)
    }

    /// Which of the three it is, by its features.
    pub fn kind(&self) -> FsKind {
        if self.incompat & (EXTENTS | BITS64 | META_BG | FLEX_BG) != 0
            || self.ro_compat & RO_EXT4 != 0
        {
            FsKind::Ext4
        } else if self.compat & HAS_JOURNAL != 0 {
            FsKind::Ext3
        } else {
            FsKind::Ext2
        }
    }

    /// Whether group descriptors carry checksums, without which their flags mean nothing.
    pub fn has_descriptor_sums(&self) -> bool {
        self.ro_compat & (METADATA_CSUM | GDT_CSUM) != 0
    }

    pub fn descriptors_per_block(&self) -> u64 {
        self.block / self.descriptor
    }

    /// The first block of a group.
    pub fn group_start(&self, group: u64) -> u64 {
        self.first_data_block.saturating_add(group.saturating_mul(self.blocks_per_group))
    }

    /// Whether a group begins with a copy of the superblock.
    pub fn has_super(&self, group: u64) -> bool {
        if group == 0 {
            return true;
        }
        if self.compat & SPARSE_SUPER2 != 0 {
            return self.backup_groups.contains(&group);
        }
        self.ro_compat & SPARSE_SUPER == 0
            || group == 1
            || [3u64, 5, 7].iter().any(|&base| {
                let mut power = base;
                while power < group {
                    power = power.saturating_mul(base);
                }
                power == group
            })
    }

    /// The block that holds a group's descriptor, and the byte in it.
    pub fn descriptor_place(&self, group: u64) -> (u64, u64) {
        let per_block = self.descriptors_per_block();
        let (index, inside) = (group / per_block, group % per_block);
        let block = if self.incompat & META_BG != 0 && index >= self.first_meta_bg {
            let first = index.saturating_mul(per_block);
            // With clusters, blocks of 1 KiB are counted from 0, and the superblock is block 1.
            let boot = first == 0 && self.block == 1024 && self.first_data_block == 0;
            let before = u64::from(self.has_super(first)) + u64::from(boot);
            self.group_start(first).saturating_add(before)
        } else {
            SUPER_AT / self.block + 1 + index
        };
        (block, inside * self.descriptor)
    }
}

/// A group's descriptor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Descriptor {
    pub bitmap: u64,
    pub inode_bitmap: u64,
    pub inode_table: u64,
    /// Free clusters.
    pub free: u64,
    pub flags: u16,
    pub bitmap_sum: u32,
    pub sum: u16,
}

impl Descriptor {
    /// Reads one, of 32 or at least 64 bytes.
    pub fn parse(raw: &[u8]) -> Result<Self> {
        let d = Fields(raw);
        let wide = raw.len() >= 64;
        let pair = |low, high| {
            let high = if wide { u64::from(d.le32(high)?) << 32 } else { 0 };
            Ok::<_, Error>(u64::from(d.le32(low)?) | high)
        };
        let half = |low, high| {
            let high = if wide { u32::from(d.le16(high)?) << 16 } else { 0 };
            Ok::<_, Error>(u32::from(d.le16(low)?) | high)
        };
        Ok(Descriptor {
            bitmap: pair(0x0, 0x20)?,
            inode_bitmap: pair(0x4, 0x24)?,
            inode_table: pair(0x8, 0x28)?,
            free: u64::from(half(0xc, 0x2c)?),
            flags: d.le16(0x12)?,
            bitmap_sum: half(0x18, 0x38)?,
            sum: d.le16(0x1e)?,
        })
    }
}

/// CRC-32C as the kernel's `crc32c()` chains it: without turning the bits over at both ends.
pub(super) fn crc(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

fn bad(what: &str) -> Error {
    Error::corrupt(format!("the superblock of ext4 is damaged: {what}"))
}
