//! ext2, ext3, ext4: one bitmap a block group.
//!
//! Described by the kernel's `Documentation/filesystems/ext4/` (super, group_descr, bitmaps, checksums);
//! offsets are those of its tables. Read are 32- and 64-bit descriptors, `flex_bg`, `meta_bg`, `bigalloc`
//! (bitmaps of clusters), `uninit_bg` and `metadata_csum`.

use super::bitmap::{all_used, count_free, free_runs};
use super::{Cursor, FreeMap, FreeRange, unclean};
use crate::guest::fields::Fields;
use crate::guest::volume::Volume;
use crate::num::small;
use crate::{Error, Result};

const SUPER_AT: u64 = 1024;
const SUPER_SIZE: u64 = 1024;

// s_state
const VALID_FS: u16 = 1;
const ERROR_FS: u16 = 2;
// s_feature_compat
const HAS_JOURNAL: u32 = 0x4;
const SPARSE_SUPER2: u32 = 0x200;
// s_feature_incompat
const RECOVER: u32 = 0x4;
const JOURNAL_DEV: u32 = 0x8;
const META_BG: u32 = 0x10;
const BIT64: u32 = 0x80;
const CSUM_SEED: u32 = 0x2000;
/// filetype, recover, meta_bg, extents, 64bit, mmp, flex_bg, ea_inode, dirdata, csum_seed,
/// largedir, inline_data, encrypt, casefold.
const KNOWN_INCOMPAT: u32 = 0x3_f7d6;
// s_feature_ro_compat
const SPARSE_SUPER: u32 = 0x1;
const GDT_CSUM: u32 = 0x10;
const BIGALLOC: u32 = 0x200;
const METADATA_CSUM: u32 = 0x400;
const SHARED_BLOCKS: u32 = 0x4000;
// bg_flags
const BLOCK_UNINIT: u16 = 0x2;

/// An ext file system that was left cleanly.
#[derive(Debug)]
pub(super) struct Ext {
    volume: Volume,
    kind: &'static str,
    block: u64,
    /// Blocks of a cluster; 1 without bigalloc.
    ratio: u64,
    blocks: u64,
    first_data_block: u64,
    blocks_per_group: u64,
    clusters_per_group: u64,
    groups: u64,
    inodes_per_group: u64,
    inode_size: u64,
    descriptor: u64,
    compat: u32,
    incompat: u32,
    ro_compat: u32,
    first_meta_bg: u64,
    reserved_gdt: u64,
    backup_groups: [u64; 2],
    free_clusters: u64,
    uuid: [u8; 16],
    seed: u32,
}

/// One group's descriptor.
struct Group {
    bitmap: u64,
    inode_bitmap: u64,
    inode_table: u64,
    free: u64,
    flags: u16,
    bitmap_crc: u32,
}

impl Ext {
    pub fn open(volume: &Volume) -> Result<Self> {
        let bytes = volume.read(SUPER_AT, SUPER_SIZE)?;
        let sb = Fields::little(&bytes);
        let (compat, incompat, ro_compat) = (sb.u32(0x5c), sb.u32(0x60), sb.u32(0x64));
        if ro_compat & METADATA_CSUM != 0 {
            let covered = bytes.get(..0x3fc).unwrap_or_default();
            if crc(!0, covered) != sb.u32(0x3fc) {
                return Err(damaged("the checksum of the superblock is wrong"));
            }
        }
        check_state(sb.u16(0x3a), incompat, ro_compat)?;
        let shift = sb.u32(0x18);
        let cluster_shift = if ro_compat & BIGALLOC != 0 { sb.u32(0x1c) } else { shift };
        if shift > 6 || cluster_shift < shift || cluster_shift > 26 {
            return Err(damaged("block or cluster size"));
        }
        let block = 1024u64 << shift;
        let ratio = 1u64 << (cluster_shift - shift);
        let wide = incompat & BIT64 != 0;
        let high = |at: usize| if wide { u64::from(sb.u32(at)) << 32 } else { 0 };
        let blocks = u64::from(sb.u32(0x4)) | high(0x150);
        let free_blocks = u64::from(sb.u32(0xc)) | high(0x158);
        let first_data_block = u64::from(sb.u32(0x14));
        let blocks_per_group = u64::from(sb.u32(0x20));
        let clusters_per_group = if ratio > 1 { u64::from(sb.u32(0x24)) } else { blocks_per_group };
        let descriptor = if wide { u64::from(sb.u16(0xfe)) } else { 32 };
        let sound = blocks_per_group == clusters_per_group.saturating_mul(ratio)
            && (8..=block * 8).contains(&clusters_per_group)
            && descriptor.is_power_of_two()
            && (32..=1024).contains(&descriptor)
            && first_data_block < blocks
            && first_data_block <= 1
            && blocks.checked_mul(block).is_some_and(|len| len <= volume.len());
        if !sound {
            return Err(damaged("the superblock's numbers do not fit together or the volume"));
        }
        let inode_size = if sb.u32(0x4c) == 0 { 128 } else { u64::from(sb.u16(0x58)) };
        let mut uuid = [0; 16];
        uuid.copy_from_slice(sb.bytes(0x68, 16));
        let seed = if incompat & CSUM_SEED != 0 { sb.u32(0x270) } else { crc(!0, &uuid) };
        Ok(Ext {
            volume: volume.clone(),
            kind: kind(compat, incompat, ro_compat),
            block,
            ratio,
            blocks,
            first_data_block,
            blocks_per_group,
            clusters_per_group,
            groups: (blocks - first_data_block).div_ceil(blocks_per_group),
            inodes_per_group: u64::from(sb.u32(0x28)),
            inode_size,
            descriptor,
            compat,
            incompat,
            ro_compat,
            first_meta_bg: u64::from(sb.u32(0x104)),
            reserved_gdt: u64::from(sb.u16(0xce)),
            backup_groups: [u64::from(sb.u32(0x24c)), u64::from(sb.u32(0x250))],
            free_clusters: free_blocks / ratio,
            uuid,
            seed,
        })
    }

    fn descriptors_per_block(&self) -> u64 {
        self.block / self.descriptor
    }

    fn group_start(&self, group: u64) -> u64 {
        self.first_data_block + group * self.blocks_per_group
    }

    /// Blocks of a group; the last one may be short.
    fn group_blocks(&self, group: u64) -> u64 {
        self.blocks_per_group.min(self.blocks - self.group_start(group))
    }

    /// Whether a group begins with a copy of the superblock.
    fn has_super(&self, group: u64) -> bool {
        if group == 0 {
            return true;
        }
        if self.compat & SPARSE_SUPER2 != 0 {
            return self.backup_groups.contains(&group);
        }
        self.ro_compat & SPARSE_SUPER == 0
            || group == 1
            || [3, 5, 7].iter().any(|&base| {
                let mut power = base;
                while power < group {
                    power *= base;
                }
                power == group
            })
    }

    /// Where the descriptor of a group is in the volume.
    fn descriptor_at(&self, group: u64) -> u64 {
        let (index, inside) =
            (group / self.descriptors_per_block(), group % self.descriptors_per_block());
        let block = if self.incompat & META_BG != 0 && index >= self.first_meta_bg {
            let first = index * self.descriptors_per_block();
            // With blocks of 1 KiB the boot sectors have a block of their own, which bigalloc counts.
            let boot = first == 0 && self.block == 1024 && self.first_data_block == 0;
            self.group_start(first) + u64::from(self.has_super(first)) + u64::from(boot)
        } else {
            SUPER_AT / self.block + 1 + index
        };
        block * self.block + inside * self.descriptor
    }

    /// Reads and checks a descriptor.
    fn group(&self, group: u64) -> Result<Group> {
        let at = self.descriptor_at(group);
        let bytes = self.volume.read(at, self.descriptor)?;
        let d = Fields::little(&bytes);
        let wide = self.descriptor >= 64;
        let pair = |low: usize, high: usize| {
            u64::from(d.u32(low)) | if wide { u64::from(d.u32(high)) << 32 } else { 0 }
        };
        let half = |low: usize, high: usize| {
            u32::from(d.u16(low)) | if wide { u32::from(d.u16(high)) << 16 } else { 0 }
        };
        if self.ro_compat & (METADATA_CSUM | GDT_CSUM) != 0
            && self.descriptor_crc(group, &bytes) != d.u16(0x1e)
        {
            return Err(damaged(&format!("the checksum of group {group}'s descriptor is wrong"))
                .at_offset(at));
        }
        // Without checksums the flags mean nothing.
        let has_flags = self.ro_compat & (METADATA_CSUM | GDT_CSUM) != 0;
        Ok(Group {
            bitmap: pair(0x0, 0x20),
            inode_bitmap: pair(0x4, 0x24),
            inode_table: pair(0x8, 0x28),
            free: u64::from(half(0xc, 0x2c)),
            flags: if has_flags { d.u16(0x12) } else { 0 },
            bitmap_crc: half(0x18, 0x38),
        })
    }

    fn descriptor_crc(&self, group: u64, bytes: &[u8]) -> u16 {
        let number = u32::try_from(group).unwrap_or(u32::MAX).to_le_bytes();
        let (head, rest) = bytes.split_at_checked(0x1e).unwrap_or((bytes, &[]));
        let tail = rest.get(2..).unwrap_or_default();
        if self.ro_compat & METADATA_CSUM != 0 {
            let sum = crc(self.seed, &number);
            let sum = crc(crc(crc(sum, head), &[0; 2]), tail);
            return u16::try_from(sum & 0xffff).unwrap_or(0);
        }
        let sum = crc16(crc16(crc16(!0, &self.uuid), &number), head);
        if self.descriptor > 32 { crc16(sum, tail) } else { sum }
    }

    /// Blocks at the beginning of a group that hold a copy of the superblock and of the descriptors.
    fn base_metadata(&self, group: u64) -> u64 {
        let per_block = self.descriptors_per_block();
        let mut blocks = u64::from(self.has_super(group));
        if self.incompat & META_BG == 0 || group / per_block < self.first_meta_bg {
            if blocks > 0 {
                let tables = self.groups.div_ceil(per_block);
                let tables = if self.incompat & META_BG != 0 {
                    tables.min(self.first_meta_bg)
                } else {
                    tables
                };
                blocks += tables + self.reserved_gdt;
            }
        } else if matches!(group % per_block, 0 | 1) || group % per_block == per_block - 1 {
            blocks += 1;
        }
        blocks
    }

    /// The bitmap of a group: read and checked, or what an uninitialised one stands for.
    fn bitmap(&self, number: u64, group: &Group, clusters: u64) -> Result<Vec<u8>> {
        if group.flags & BLOCK_UNINIT != 0 {
            return Ok(self.uninitialised(number, clusters));
        }
        if group.bitmap < self.first_data_block || group.bitmap >= self.blocks {
            return Err(damaged(&format!("the block bitmap of group {number} lies outside")));
        }
        let bytes = self.volume.read(group.bitmap * self.block, self.block)?;
        if self.ro_compat & METADATA_CSUM != 0 {
            let covered = bytes.get(..small(self.clusters_per_group / 8)).unwrap_or_default();
            let sum = crc(self.seed, covered);
            let (sum, told) = if self.descriptor >= 64 {
                (sum, group.bitmap_crc)
            } else {
                (sum & 0xffff, group.bitmap_crc & 0xffff)
            };
            if sum != told {
                let what = format!("the checksum of group {number}'s block bitmap is wrong");
                return Err(damaged(&what).at_offset(group.bitmap * self.block));
            }
        }
        Ok(bytes)
    }

    /// The bitmap that the kernel would make of an uninitialised group: its copies of tables in use. Its own
    /// bitmaps and inode table are marked by the caller, as are all those of a `flex_bg`.
    fn uninitialised(&self, number: u64, clusters: u64) -> Vec<u8> {
        let mut bytes = vec![0; small(self.block)];
        let used = self.base_metadata(number).div_ceil(self.ratio).min(clusters);
        mark(&mut bytes, 0, used);
        bytes
    }

    /// The clusters of `group` that its own tables take, as far as they lie in it: first and number.
    fn own_tables(&self, number: u64, group: &Group) -> Result<Vec<(u64, u64)>> {
        let start = self.group_start(number);
        let end = start + self.group_blocks(number);
        let table = self.inodes_per_group.saturating_mul(self.inode_size).div_ceil(self.block);
        let mut found = Vec::new();
        for (at, count) in [(group.bitmap, 1), (group.inode_bitmap, 1), (group.inode_table, table)]
        {
            let beyond = at.checked_add(count).is_none_or(|e| e > self.blocks);
            if at < self.first_data_block || beyond {
                return Err(damaged(&format!("a table of group {number} lies outside")));
            }
            let (from, to) = (at.max(start), (at + count).min(end));
            if from < to {
                let first = (from - start) / self.ratio;
                found.push((first, (to - start).div_ceil(self.ratio) - first));
            }
        }
        Ok(found)
    }
}

impl FreeMap for Ext {
    fn kind(&self) -> &'static str {
        self.kind
    }

    fn unit(&self) -> u64 {
        self.block * self.ratio
    }

    fn managed(&self) -> u64 {
        self.blocks * self.block
    }

    fn batch(&self, cursor: &mut Cursor) -> Result<Option<Vec<FreeRange>>> {
        let number = cursor.step;
        if number >= self.groups {
            return Ok(None);
        }
        cursor.step += 1;
        let group = self.group(number)?;
        let blocks = self.group_blocks(number);
        let clusters = blocks.div_ceil(self.ratio);
        let mut bitmap = self.bitmap(number, &group, clusters)?;
        for (first, count) in self.own_tables(number, &group)? {
            if group.flags & BLOCK_UNINIT != 0 {
                mark(&mut bitmap, first, count);
            } else if !all_used(&bitmap, first, count) {
                return Err(damaged(&format!("group {number} counts its own tables as free")));
            }
        }
        let free = count_free(&bitmap, clusters);
        if free != group.free {
            return Err(damaged(&format!(
                "group {number} has {free} free clusters, but counts {}",
                group.free
            )));
        }
        let base = self.group_start(number);
        let end = (base + blocks) * self.block;
        let mut runs = free_runs(&bitmap, clusters, 0, self.unit());
        for run in &mut runs {
            run.at += base * self.block;
            // The last cluster may be cut off by the end of the file system.
            run.len = run.len.min(end.saturating_sub(run.at));
        }
        Ok(Some(runs))
    }

    fn finish(&self, free: u64) -> Result<()> {
        if free.div_ceil(self.unit()) == self.free_clusters {
            return Ok(());
        }
        Err(damaged(&format!(
            "{} free clusters were found, but the superblock counts {}",
            free.div_ceil(self.unit()),
            self.free_clusters
        )))
    }
}

fn mark(bytes: &mut [u8], first: u64, count: u64) {
    for bit in first..first.saturating_add(count) {
        if let Some(byte) = bytes.get_mut(small(bit / 8)) {
            *byte |= 1 << (bit % 8);
        }
    }
}

fn kind(compat: u32, incompat: u32, ro_compat: u32) -> &'static str {
    if incompat & 0x2c0 != 0 || ro_compat & (METADATA_CSUM | GDT_CSUM | BIGALLOC | 0x8) != 0 {
        "ext4"
    } else if compat & HAS_JOURNAL != 0 {
        "ext3"
    } else {
        "ext2"
    }
}

fn check_state(state: u16, incompat: u32, ro_compat: u32) -> Result<()> {
    const CHECK: &str =
        "check it first: e2fsck -f on the partition, or start the guest and shut it down";
    if incompat & JOURNAL_DEV != 0 {
        return Err(Error::unsupported("is the journal of another file system"));
    }
    if incompat & RECOVER != 0 {
        return Err(unclean("the journal has not been replayed", CHECK));
    }
    if state & ERROR_FS != 0 {
        return Err(unclean("the file system is marked as having errors", CHECK));
    }
    if state & VALID_FS == 0 {
        return Err(unclean("the file system was not unmounted cleanly", CHECK));
    }
    if incompat & !KNOWN_INCOMPAT != 0 {
        let text = format!("uses unknown features ({:#x})", incompat & !KNOWN_INCOMPAT);
        return Err(Error::unsupported(text));
    }
    if ro_compat & SHARED_BLOCKS != 0 {
        return Err(Error::unsupported("shares blocks between files (a read-only Android image)"));
    }
    Ok(())
}

fn damaged(what: &str) -> Error {
    Error::corrupt(what).hint("check it first: e2fsck -f on the partition")
}

/// CRC-32C as ext4 uses it: neither the start nor the end is inverted.
fn crc(start: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!start, bytes)
}

/// CRC-16 (polynomial 0x8005, reflected).
fn crc16(start: u16, bytes: &[u8]) -> u16 {
    bytes.iter().fold(start, |mut sum, &byte| {
        sum ^= u16::from(byte);
        for _ in 0..8 {
            sum = if sum & 1 == 1 { sum >> 1 ^ 0xa001 } else { sum >> 1 };
        }
        sum
    })
}
