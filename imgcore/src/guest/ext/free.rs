//! Free space: one bitmap a block group ("Block and Inode Bitmaps", "Checksums").
//!
//! Read are 32- and 64-bit descriptors, `flex_bg`, `meta_bg`, `bigalloc` (bitmaps of clusters), `uninit_bg` and
//! `metadata_csum`. The file system must have been left cleanly.

use super::layout::{
    CSUM_SEED, Descriptor, ERROR_FS, JOURNAL_DEV, META_BG, METADATA_CSUM, RECOVER, SHARED_BLOCKS,
    SUPER_AT, SUPER_SIZE, SUPER_SUM_AT, Superblock, VALID_FS, crc,
};
use crate::guest::free::bitmap::{all_used, count_free, free_runs};
use crate::guest::free::{Cursor, FreeMap, FreeRange, unclean};
use crate::guest::volume::Volume;
use crate::num::{len_u64, small};
use crate::{Error, Result};

/// filetype, recover, meta_bg, extents, 64bit, mmp, flex_bg, ea_inode, dirdata, csum_seed,
/// largedir, inline_data, encrypt, casefold.
const KNOWN_INCOMPAT: u32 = 0x3_f7d6;
// bg_flags
const BLOCK_UNINIT: u16 = 0x2;

/// An ext file system that was left cleanly.
#[derive(Debug)]
pub struct ExtFree {
    volume: Volume,
    sb: Superblock,
    groups: u64,
    seed: u32,
}

impl ExtFree {
    /// Reads the superblock.
    ///
    /// # Errors
    /// When it is damaged, has unknown features, or the file system was not left cleanly.
    pub fn open(volume: &Volume) -> Result<Self> {
        let bytes = volume.read(SUPER_AT, len_u64(SUPER_SIZE))?;
        let sb = Superblock::parse(&bytes).map_err(|e| e.hint(CHECK))?;
        if sb.ro_compat & METADATA_CSUM != 0 {
            let (covered, told) = bytes.split_at(SUPER_SUM_AT);
            if crc(!0, covered).to_le_bytes() != *told {
                return Err(damaged("the checksum of the superblock is wrong"));
            }
        }
        check_state(&sb)?;
        let per_group = sb.clusters_per_group;
        let sound = sb.blocks_per_group == per_group.saturating_mul(sb.ratio)
            && (8..=sb.block * 8).contains(&per_group)
            && sb.first_data_block < sb.blocks
            && sb.first_data_block <= 1
            && sb.blocks.checked_mul(sb.block).is_some_and(|len| len <= volume.len());
        if !sound {
            return Err(damaged("the superblock's numbers do not fit together or the volume"));
        }
        let seed = if sb.incompat & CSUM_SEED != 0 { sb.checksum_seed } else { crc(!0, &sb.uuid) };
        let groups = (sb.blocks - sb.first_data_block).div_ceil(sb.blocks_per_group);
        Ok(ExtFree { volume: volume.clone(), sb, groups, seed })
    }

    /// Blocks of a group; the last one may be short.
    fn group_blocks(&self, group: u64) -> u64 {
        self.sb.blocks_per_group.min(self.sb.blocks - self.sb.group_start(group))
    }

    /// Reads and checks a descriptor.
    fn group(&self, group: u64) -> Result<Descriptor> {
        let (block, inside) = self.sb.descriptor_place(group);
        let at = block.saturating_mul(self.sb.block).saturating_add(inside);
        let bytes = self.volume.read(at, self.sb.descriptor)?;
        let mut found = Descriptor::parse(&bytes)?;
        if !self.sb.has_descriptor_sums() {
            found.flags = 0;
        } else if self.descriptor_crc(group, &bytes) != found.sum {
            return Err(damaged(&format!("the checksum of group {group}'s descriptor is wrong"))
                .at_offset(at));
        }
        Ok(found)
    }

    fn descriptor_crc(&self, group: u64, bytes: &[u8]) -> u16 {
        let number = u32::try_from(group).unwrap_or(u32::MAX).to_le_bytes();
        let (head, rest) = bytes.split_at_checked(0x1e).unwrap_or((bytes, &[]));
        let tail = rest.get(2..).unwrap_or_default();
        if self.sb.ro_compat & METADATA_CSUM != 0 {
            let sum = crc(self.seed, &number);
            let sum = crc(crc(crc(sum, head), &[0; 2]), tail);
            return u16::try_from(sum & 0xffff).unwrap_or(0);
        }
        let sum = crc16(crc16(crc16(!0, &self.sb.uuid), &number), head);
        if self.sb.descriptor > 32 { crc16(sum, tail) } else { sum }
    }

    /// Blocks at the beginning of a group that hold a copy of the superblock and of the descriptors.
    fn base_metadata(&self, group: u64) -> u64 {
        let per_block = self.sb.descriptors_per_block();
        let mut blocks = u64::from(self.sb.has_super(group));
        if self.sb.incompat & META_BG == 0 || group / per_block < self.sb.first_meta_bg {
            if blocks > 0 {
                let tables = self.groups.div_ceil(per_block);
                let tables = if self.sb.incompat & META_BG != 0 {
                    tables.min(self.sb.first_meta_bg)
                } else {
                    tables
                };
                blocks += tables + self.sb.reserved_gdt;
            }
        } else if matches!(group % per_block, 0 | 1) || group % per_block == per_block - 1 {
            blocks += 1;
        }
        blocks
    }

    /// The bitmap of a group: read and checked, or what an uninitialised one stands for.
    fn bitmap(&self, number: u64, group: &Descriptor, clusters: u64) -> Result<Vec<u8>> {
        if group.flags & BLOCK_UNINIT != 0 {
            return Ok(self.uninitialised(number, clusters));
        }
        if group.bitmap < self.sb.first_data_block || group.bitmap >= self.sb.blocks {
            return Err(damaged(&format!("the block bitmap of group {number} lies outside")));
        }
        let bytes = self.volume.read(group.bitmap * self.sb.block, self.sb.block)?;
        if self.sb.ro_compat & METADATA_CSUM != 0 {
            let covered = bytes.get(..small(self.sb.clusters_per_group / 8)).unwrap_or_default();
            let sum = crc(self.seed, covered);
            let (sum, told) = if self.sb.descriptor >= 64 {
                (sum, group.bitmap_sum)
            } else {
                (sum & 0xffff, group.bitmap_sum & 0xffff)
            };
            if sum != told {
                let what = format!("the checksum of group {number}'s block bitmap is wrong");
                return Err(damaged(&what).at_offset(group.bitmap * self.sb.block));
            }
        }
        Ok(bytes)
    }

    /// The bitmap that the kernel would make of an uninitialised group: its copies of tables in use. Its own
    /// bitmaps and inode table are marked by the caller, as are all those of a `flex_bg`.
    fn uninitialised(&self, number: u64, clusters: u64) -> Vec<u8> {
        let mut bytes = vec![0; small(self.sb.block)];
        let used = self.base_metadata(number).div_ceil(self.sb.ratio).min(clusters);
        mark(&mut bytes, 0, used);
        bytes
    }

    /// The clusters of `group` that its own tables take, as far as they lie in it: first and number.
    fn own_tables(&self, number: u64, group: &Descriptor) -> Result<Vec<(u64, u64)>> {
        let start = self.sb.group_start(number);
        let end = start + self.group_blocks(number);
        let table = self
            .sb
            .inodes_per_group
            .saturating_mul(len_u64(self.sb.inode_size))
            .div_ceil(self.sb.block);
        let mut found = Vec::new();
        for (at, count) in [(group.bitmap, 1), (group.inode_bitmap, 1), (group.inode_table, table)]
        {
            let beyond = at.checked_add(count).is_none_or(|e| e > self.sb.blocks);
            if at < self.sb.first_data_block || beyond {
                return Err(damaged(&format!("a table of group {number} lies outside")));
            }
            let (from, to) = (at.max(start), (at + count).min(end));
            if from < to {
                let first = (from - start) / self.sb.ratio;
                found.push((first, (to - start).div_ceil(self.sb.ratio) - first));
            }
        }
        Ok(found)
    }
}

impl FreeMap for ExtFree {
    fn kind(&self) -> &'static str {
        self.sb.kind().name()
    }

    fn unit(&self) -> u64 {
        self.sb.block * self.sb.ratio
    }

    fn managed(&self) -> u64 {
        self.sb.blocks * self.sb.block
    }

    fn batch(&self, cursor: &mut Cursor) -> Result<Option<Vec<FreeRange>>> {
        let number = cursor.step;
        if number >= self.groups {
            return Ok(None);
        }
        cursor.step += 1;
        let group = self.group(number)?;
        let blocks = self.group_blocks(number);
        let clusters = blocks.div_ceil(self.sb.ratio);
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
        let base = self.sb.group_start(number);
        let end = (base + blocks) * self.sb.block;
        let mut runs = free_runs(&bitmap, clusters, 0, self.unit());
        for run in &mut runs {
            run.at += base * self.sb.block;
            // The last cluster may be cut off by the end of the file system.
            run.len = run.len.min(end.saturating_sub(run.at));
        }
        Ok(Some(runs))
    }

    fn finish(&self, free: u64) -> Result<()> {
        let (found, told) = (free.div_ceil(self.unit()), self.sb.free_blocks / self.sb.ratio);
        if found == told {
            return Ok(());
        }
        Err(damaged(&format!("{found} free clusters were found, but the superblock counts {told}")))
    }
}

fn mark(bytes: &mut [u8], first: u64, count: u64) {
    for bit in first..first.saturating_add(count) {
        if let Some(byte) = bytes.get_mut(small(bit / 8)) {
            *byte |= 1 << (bit % 8);
        }
    }
}

const CHECK: &str =
    "check it first: e2fsck -f on the partition, or start the guest and shut it down";

fn check_state(sb: &Superblock) -> Result<()> {
    if sb.incompat & JOURNAL_DEV != 0 {
        return Err(Error::unsupported("is the journal of another file system"));
    }
    if sb.incompat & RECOVER != 0 {
        return Err(unclean("the journal has not been replayed", CHECK));
    }
    if sb.state & ERROR_FS != 0 {
        return Err(unclean("the file system is marked as having errors", CHECK));
    }
    if sb.state & VALID_FS == 0 {
        return Err(unclean("the file system was not unmounted cleanly", CHECK));
    }
    if sb.incompat & !KNOWN_INCOMPAT != 0 {
        let text = format!("uses unknown features ({:#x})", sb.incompat & !KNOWN_INCOMPAT);
        return Err(Error::unsupported(text));
    }
    if sb.ro_compat & SHARED_BLOCKS != 0 {
        return Err(Error::unsupported("shares blocks between files (a read-only Android image)"));
    }
    Ok(())
}

fn damaged(what: &str) -> Error {
    Error::corrupt(what).hint("check it first: e2fsck -f on the partition")
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
