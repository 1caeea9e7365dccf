//! The boot sector, and entries of the file allocation table; offsets are those of the specification's tables.

use crate::guest::fields::Fields;
use crate::guest::files::FsKind;
use crate::num::small;
use crate::{Error, Result};

/// Tables of one file system; two are usual.
const MAX_TABLES: u64 = 8;

/// Width of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    Fat12,
    Fat16,
    Fat32,
}

impl Width {
    pub fn kind(self) -> FsKind {
        match self {
            Width::Fat12 => FsKind::Fat12,
            Width::Fat16 => FsKind::Fat16,
            Width::Fat32 => FsKind::Fat32,
        }
    }

    /// Largest value of an entry, which also marks the end of a file.
    pub fn mask(self) -> u32 {
        match self {
            Width::Fat12 => 0xfff,
            Width::Fat16 => 0xffff,
            Width::Fat32 => 0x0fff_ffff,
        }
    }

    /// Clusters in so many bytes of a table.
    pub fn entries(self, bytes: u64) -> u64 {
        match self {
            Width::Fat12 => bytes * 2 / 3,
            Width::Fat16 => bytes / 2,
            Width::Fat32 => bytes / 4,
        }
    }

    /// Where an entry begins in a table, and the bytes that hold it.
    pub fn place(self, index: u64) -> (u64, usize) {
        match self {
            Width::Fat12 => (index + index / 2, 2),
            Width::Fat16 => (index * 2, 2),
            Width::Fat32 => (index * 4, 4),
        }
    }

    /// The entry in a table, or in a piece of one that begins with an even entry.
    pub fn entry(self, table: &[u8], index: u64) -> Result<u32> {
        let (at, _) = self.place(index);
        self.value(Fields(table).rest(small(at))?, index)
    }

    /// The entry whose bytes these are. The upper four bits of FAT32 are not part of it.
    pub fn value(self, bytes: Fields<'_>, index: u64) -> Result<u32> {
        Ok(match self {
            Width::Fat12 => {
                let pair = u32::from(bytes.le16(0)?);
                if index.is_multiple_of(2) { pair & 0xfff } else { pair >> 4 }
            }
            Width::Fat16 => u32::from(bytes.le16(0)?),
            Width::Fat32 => bytes.le32(0)? & 0x0fff_ffff,
        })
    }
}

/// What the boot sector says. That it fits the volume is not looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub width: Width,
    /// Bytes of a cluster.
    pub cluster: u64,
    /// Where the tables begin, in bytes.
    pub table: u64,
    /// Bytes of one table.
    pub table_len: u64,
    pub copies: u64,
    /// The copy in use, if only one is (FAT32 without mirroring).
    pub only: Option<u64>,
    /// Where the root folder of FAT12 and FAT16 is, and its bytes.
    pub root: (u64, u64),
    /// The first cluster of FAT32's root folder.
    pub root_cluster: u64,
    /// Where cluster 2 begins.
    pub data: u64,
    /// Clusters, counted from 2.
    pub clusters: u64,
    /// Bytes of all.
    pub total: u64,
}

impl Layout {
    /// Reads a boot sector of 512 bytes.
    pub fn parse(raw: &[u8]) -> Result<Self> {
        let b = Fields(raw);
        if b.le16(510)? != 0xaa55 || !matches!(b.u8(0)?, 0xeb | 0xe9) {
            return Err(bad("no signature"));
        }
        let sector = u64::from(b.le16(11)?);
        let per_cluster = u64::from(b.u8(13)?);
        if !matches!(sector, 512 | 1024 | 2048 | 4096) || !per_cluster.is_power_of_two() {
            return Err(bad("no such size of a sector or cluster"));
        }
        let either = |short: u16, long: u32| match short {
            0 => u64::from(long),
            n => u64::from(n),
        };
        let (reserved, copies) = (u64::from(b.le16(14)?), u64::from(b.u8(16)?));
        let roots = u64::from(b.le16(17)?);
        let sectors = either(b.le16(19)?, b.le32(32)?);
        let short_table = b.le16(22)?;
        let table = either(short_table, b.le32(36)?);
        let media = b.u8(21)?;
        if reserved == 0
            || !(1..=MAX_TABLES).contains(&copies)
            || table == 0
            || !(media == 0xf0 || media >= 0xf8)
        {
            return Err(bad("no tables"));
        }
        let before = reserved + copies * table + (roots * 32).div_ceil(sector);
        let room = sectors.checked_sub(before).ok_or_else(|| bad("no room for data"))?;
        let clusters = room / per_cluster;
        // FAT32 has no 16-bit size of the table; otherwise the number of clusters decides.
        let width = match clusters {
            _ if short_table == 0 => Width::Fat32,
            0..4085 => Width::Fat12,
            4085..65525 => Width::Fat16,
            _ => return Err(bad("too many clusters for a FAT16")),
        };
        let flags = b.le16(40)?;
        let only = (width == Width::Fat32 && flags & 0x80 != 0).then_some(u64::from(flags & 0xf));
        Ok(Layout {
            width,
            cluster: per_cluster * sector,
            table: reserved * sector,
            table_len: table * sector,
            copies,
            only,
            root: ((reserved + copies * table) * sector, roots * 32),
            root_cluster: u64::from(b.le32(44)?),
            data: before * sector,
            clusters,
            total: sectors * sector,
        })
    }
}

fn bad(what: &str) -> Error {
    Error::corrupt(format!("the boot sector of FAT is damaged: {what}"))
}
