//! FAT12, FAT16, FAT32: a cluster whose entry in the file allocation table is zero is free.
//!
//! Microsoft, *FAT: General Overview of On-Disk Format*, version 1.03 (and ECMA-107); offsets are those of
//! its tables. All copies of the table must be the same, and every entry must be one that a file can have.

use super::{Cursor, FreeMap, FreeRange, unclean};
use crate::guest::fields::Fields;
use crate::guest::volume::Volume;
use crate::num::small;
use crate::{Error, Result};

/// Bytes of the table that are looked at together: a multiple of three, so that entries of 12 bits come
/// out even.
const PIECE: u64 = 3 << 18;

/// Width of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Width {
    Fat12,
    Fat16,
    Fat32,
}

impl Width {
    /// Largest value of an entry, which also marks the end of a file.
    fn mask(self) -> u32 {
        match self {
            Width::Fat12 => 0xfff,
            Width::Fat16 => 0xffff,
            Width::Fat32 => 0x0fff_ffff,
        }
    }

    /// Clusters in so many bytes of a table.
    fn entries(self, bytes: u64) -> u64 {
        match self {
            Width::Fat12 => bytes * 2 / 3,
            Width::Fat16 => bytes / 2,
            Width::Fat32 => bytes / 4,
        }
    }
}

/// A FAT file system that was left cleanly.
#[derive(Debug)]
pub(super) struct Fat {
    volume: Volume,
    width: Width,
    cluster: u64,
    /// Where the tables begin, in bytes.
    table: u64,
    /// Bytes of one table.
    table_len: u64,
    copies: u64,
    /// The copy in use, if only one is (FAT32 without mirroring).
    only: Option<u64>,
    /// Where cluster 2 begins.
    data: u64,
    clusters: u64,
}

impl Fat {
    pub fn open(volume: &Volume) -> Result<Self> {
        let bytes = volume.read(0, 512)?;
        let b = Fields::little(&bytes);
        let either = |small: usize, large: usize| match b.u16(small) {
            0 => u64::from(b.u32(large)),
            n => u64::from(n),
        };
        let sector = u64::from(b.u16(11));
        let cluster = sector * u64::from(b.u8(13));
        let reserved = u64::from(b.u16(14));
        let copies = u64::from(b.u8(16));
        let root_entries = u64::from(b.u16(17));
        let sectors = either(19, 32);
        let table_sectors = either(22, 36);
        if sector == 0 || cluster == 0 || !sector.is_power_of_two() {
            return Err(damaged("sector or cluster size"));
        }
        let root = (root_entries * 32).div_ceil(sector);
        let overhead = reserved + copies * table_sectors + root;
        let clusters = sectors
            .checked_sub(overhead)
            .map(|s| s / (cluster / sector))
            .filter(|&n| n > 0 && copies > 0 && sectors * sector <= volume.len())
            .ok_or_else(|| {
                damaged("the boot sector's numbers do not fit together or the volume")
            })?;
        // FAT32 has no 16-bit size of the table; otherwise the number of clusters decides.
        let width = match clusters {
            _ if b.u16(22) == 0 => Width::Fat32,
            0..4085 => Width::Fat12,
            4085..65525 => Width::Fat16,
            _ => return Err(damaged("too many clusters for a FAT16")),
        };
        let table_len = table_sectors * sector;
        if width.entries(table_len) < clusters + 2 || clusters + 1 >= u64::from(width.mask()) {
            return Err(damaged("the file allocation table is too short for the clusters"));
        }
        let flags = b.u16(40);
        let only = (width == Width::Fat32 && flags & 0x80 != 0).then_some(u64::from(flags & 0xf));
        if only.is_some_and(|n| n >= copies) {
            return Err(damaged("the table in use does not exist"));
        }
        let fat = Fat {
            volume: volume.clone(),
            width,
            cluster,
            table: reserved * sector,
            table_len,
            copies,
            only,
            data: overhead * sector,
            clusters,
        };
        fat.check_clean(&bytes)?;
        Ok(fat)
    }

    /// Entry 1 has bits that are cleared while mounted and after errors; Linux and Windows also mark the
    /// boot sector (`BS_Reserved1`, bit 0).
    fn check_clean(&self, boot: &[u8]) -> Result<()> {
        const CHECK: &str = "check it first (fsck.vfat or chkdsk), or shut the guest down cleanly";
        let reserved = Fields::little(boot).u8(if self.width == Width::Fat32 { 65 } else { 37 });
        if reserved & 1 != 0 {
            return Err(unclean("the file system was not unmounted cleanly", CHECK));
        }
        if reserved & 2 != 0 {
            return Err(unclean("the file system is marked as damaged", CHECK));
        }
        let head = self.piece(0, 8)?;
        let table = Fields::little(&head);
        let (clean, sound) = match self.width {
            Width::Fat12 => return Ok(()),
            Width::Fat16 => (table.u16(2) & 0x8000 != 0, table.u16(2) & 0x4000 != 0),
            Width::Fat32 => (table.u32(4) & 0x0800_0000 != 0, table.u32(4) & 0x0400_0000 != 0),
        };
        if !clean {
            return Err(unclean("the file system was not unmounted cleanly", CHECK));
        }
        if !sound {
            return Err(unclean("the file system met errors of the disk", CHECK));
        }
        Ok(())
    }

    /// Bytes of the table, which all copies must agree on.
    fn piece(&self, at: u64, len: u64) -> Result<Vec<u8>> {
        let copy = |n: u64| self.volume.read(self.table + n * self.table_len + at, len);
        if let Some(only) = self.only {
            return copy(only);
        }
        let first = copy(0)?;
        for n in 1..self.copies {
            if copy(n)? != first {
                return Err(damaged("the copies of the file allocation table differ").at_offset(at));
            }
        }
        Ok(first)
    }

    fn entry(&self, piece: &[u8], index: u64) -> u32 {
        let f = Fields::little(piece);
        let at = small(index);
        match self.width {
            Width::Fat12 => {
                let pair = u32::from(f.u16(at + at / 2));
                if index.is_multiple_of(2) { pair & 0xfff } else { pair >> 4 }
            }
            Width::Fat16 => u32::from(f.u16(at * 2)),
            Width::Fat32 => f.u32(at * 4) & 0x0fff_ffff,
        }
    }
}

impl FreeMap for Fat {
    fn kind(&self) -> &'static str {
        match self.width {
            Width::Fat12 => "FAT12",
            Width::Fat16 => "FAT16",
            Width::Fat32 => "FAT32",
        }
    }

    fn unit(&self) -> u64 {
        self.cluster
    }

    fn managed(&self) -> u64 {
        self.data + self.clusters * self.cluster
    }

    fn batch(&self, cursor: &mut Cursor) -> Result<Option<Vec<FreeRange>>> {
        let at = cursor.step * PIECE;
        let first = self.width.entries(at);
        let end = (self.clusters + 2).min(self.width.entries(at + PIECE));
        if first >= self.clusters + 2 {
            return Ok(None);
        }
        cursor.step += 1;
        let piece = self.piece(at, PIECE.min(self.table_len - at))?;
        let mut runs: Vec<FreeRange> = Vec::new();
        for cluster in first.max(2)..end {
            let entry = self.entry(&piece, cluster - first);
            if entry == 0 {
                let at = self.data + (cluster - 2) * self.cluster;
                match runs.last_mut() {
                    Some(run) if run.at + run.len == at => run.len += self.cluster,
                    _ => runs.push(FreeRange { at, len: self.cluster }),
                }
                continue;
            }
            // The next cluster of a file, a bad cluster (..f7), the end of a file (..f8 to ..ff).
            let next = (2..self.clusters + 2).contains(&u64::from(entry));
            if !next && entry < self.width.mask() - 8 {
                let text = format!("the entry of cluster {cluster} is {entry:#x}");
                return Err(damaged(&text).at_offset(self.table + at));
            }
        }
        Ok(Some(runs))
    }
}

fn damaged(what: &str) -> Error {
    Error::corrupt(what).hint("check it first: fsck.vfat or chkdsk")
}
