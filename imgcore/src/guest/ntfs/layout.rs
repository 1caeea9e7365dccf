//! The boot sector, and the numbers of files and types of attributes that matter here.

use crate::guest::fields::Fields;
use crate::num::{len_u64, small};
use crate::{Error, Result};

// Numbers of the system's files; the first is the table itself.
pub(super) const LOG_FILE: u64 = 2;
pub(super) const VOLUME: u64 = 3;
pub(super) const ROOT: u64 = 5;
pub(super) const BITMAP: u64 = 6;

// Types of attributes.
pub(super) const ATTRIBUTE_LIST: u32 = 0x20;
pub(super) const FILE_NAME: u32 = 0x30;
pub(super) const VOLUME_NAME: u32 = 0x60;
pub(super) const VOLUME_INFORMATION: u32 = 0x70;
pub(super) const DATA: u32 = 0x80;
pub(super) const INDEX_ROOT: u32 = 0x90;
pub(super) const INDEX_ALLOCATION: u32 = 0xa0;
pub(super) const INDEX_BITMAP: u32 = 0xb0;
pub(super) const REPARSE_POINT: u32 = 0xc0;

/// In a reference to a file: its number; above is how often the record was used.
pub(super) const NUMBER: u64 = 0xffff_ffff_ffff;

/// What the boot sector says. Sizes are possible ones.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub sector: usize,
    pub cluster: u64,
    pub clusters: u64,
    pub record: usize,
    /// The first cluster of the master file table.
    pub mft: u64,
    /// Bytes of all.
    pub size: u64,
    pub serial: u64,
}

impl Layout {
    /// Reads a boot sector.
    pub fn parse(raw: &[u8]) -> Result<Self> {
        let b = Fields(raw);
        let bad =
            |what: &str| Error::corrupt(format!("the boot sector of NTFS is damaged: {what}"));
        let sector = usize::from(b.le16(0x0b)?);
        let per_cluster = b.u8(0x0d)?;
        // More than 128 sectors are written as a power of two.
        let per_cluster: u64 = match per_cluster {
            n @ 1..=128 if n.is_power_of_two() => u64::from(n),
            n @ 0xf4..=0xff => 1 << (256 - u16::from(n)),
            _ => return Err(bad("clusters of an impossible size")),
        };
        if !matches!(sector, 256 | 512 | 1024 | 2048 | 4096) {
            return Err(bad("sectors of an impossible size"));
        }
        let cluster = per_cluster * len_u64(sector);
        if cluster > 2 << 20 {
            return Err(bad("clusters of an impossible size"));
        }
        let record = match b.u8(0x40)? {
            n @ 1..=0x7f => u64::from(n) * cluster,
            n @ 0xe1..=0xf7 => 1 << (256 - u16::from(n)),
            _ => return Err(bad("records of an impossible size")),
        };
        if !(512..=65536).contains(&record) {
            return Err(bad("records of an impossible size"));
        }
        let mft = b.le64(0x30)?;
        let sectors = b.le64(0x28)?;
        let clusters = sectors / per_cluster;
        if mft >= clusters {
            return Err(bad("its file table lies outside"));
        }
        Ok(Layout {
            sector,
            cluster,
            clusters,
            record: small(record),
            mft,
            size: sectors.saturating_mul(len_u64(sector)),
            serial: b.le64(0x48)?,
        })
    }
}
