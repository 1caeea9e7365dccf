//! From raw footer and header to checked geometry.

use zerocopy::{FromZeros, IntoBytes};

use super::geometry::SizeRule;
use super::layout::{self, COOKIE, Footer, Header, SECTOR};
use crate::format::uuid::Uuid;
use crate::num::round_up;
use crate::storage::Storage;
use crate::{Error, Result};

/// Smallest block that is taken.
const MIN_BLOCK: u64 = 64 << 10;
/// Largest block that is taken.
const MAX_BLOCK: u64 = 256 << 20;
/// Most table entries, QEMU's limit.
const MAX_ENTRIES: u64 = 0x1fff_ffff;

/// What kind of image it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Fixed,
    Dynamic,
    Differencing,
}

impl Kind {
    /// The name that `info` shows.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Fixed => "fixed",
            Kind::Dynamic => "dynamic",
            Kind::Differencing => "differencing",
        }
    }
}

/// The part of a disk that has blocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blocks {
    /// Where the header is.
    pub header_at: u64,
    pub header: Header,
    /// Where the block allocation table is.
    pub table: u64,
    /// Its entries.
    pub entries: u64,
    /// Guest bytes of a block, a power of two.
    pub block: u64,
    /// Bytes of the bitmap in front of each block.
    pub bitmap: u64,
}

impl Blocks {
    /// Bytes of the file that a block takes.
    pub fn span(&self) -> u64 {
        self.block + self.bitmap
    }

    /// Where the table ends.
    pub fn table_end(&self) -> u64 {
        round_up(self.table + self.entries * 4, SECTOR)
    }

    /// What blocks must not lie over, as `start..end`: copy of the footer, header, table.
    pub fn reserved(&self) -> [(u64, u64); 3] {
        [(0, SECTOR), (self.header_at, self.header_at + 1024), (self.table, self.table_end())]
    }

    /// Where all of that ends.
    pub fn reserved_end(&self) -> u64 {
        self.table_end().max(self.header_at + 1024)
    }

    /// Of the disk below.
    pub fn parent(&self) -> Uuid {
        Uuid::from_be(self.header.parent_uuid)
    }
}

/// A checked image.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    pub kind: Kind,
    pub footer: Footer,
    /// Bytes of the guest's disk.
    pub size: u64,
    /// `None` for fixed disks.
    pub blocks: Option<Blocks>,
}

impl Geometry {
    /// Of this image.
    pub fn uuid(&self) -> Uuid {
        Uuid::from_be(self.footer.uuid)
    }
}

/// Both footers as they are.
pub(super) struct Footers {
    /// At the beginning of the file, where dynamic disks have a copy.
    pub first: Footer,
    /// At its end.
    pub last: Footer,
    /// Where the last one is.
    pub last_at: u64,
}

/// Reads both footers.
pub(super) fn footers(storage: &dyn Storage) -> Result<Footers> {
    let len = storage.len()?;
    let read = |at: u64| -> Result<Footer> {
        let mut footer = Footer::new_zeroed();
        storage.read_at(at, footer.as_mut_bytes())?;
        Ok(footer)
    };
    let first = read(0)?;
    let mut last_at = len.saturating_sub(SECTOR);
    let mut last = read(last_at)?;
    if last.cookie != COOKIE && len >= SECTOR {
        // Before 2004 a footer had 511 bytes.
        let short = read(len - SECTOR + 1)?;
        if short.cookie == COOKIE {
            (last, last_at) = (short, len - SECTOR + 1);
        }
    }
    Ok(Footers { first, last, last_at })
}

/// The footer that counts. The one at the end decides that a disk is fixed: what its first sector holds
/// is the guest's.
fn choose(storage: &dyn Storage) -> Result<Footer> {
    let all = footers(storage)?;
    let here = |e: Error| e.at_path(storage.name());
    if all.last.is_valid() && all.last.disk_type.get() == layout::TYPE_FIXED {
        return Ok(all.last);
    }
    if all.first.is_valid() {
        return Ok(all.first);
    }
    if all.last.is_valid() {
        return Ok(all.last);
    }
    if all.first.cookie == COOKIE || all.last.cookie == COOKIE {
        return Err(here(Error::corrupt("Incorrect header checksum")).at_offset(64));
    }
    let len = storage.len()?;
    let what = if len < SECTOR { "File too small for a VHD header" } else { "invalid VPC image" };
    Err(here(Error::corrupt(what)).at_offset(len.saturating_sub(SECTOR)))
}

/// Reads and checks footer and header.
pub(super) fn geometry(storage: &dyn Storage, rule: SizeRule) -> Result<Geometry> {
    let footer = choose(storage)?;
    let bad = |at: u64, what: String| Error::corrupt(what).at_path(storage.name()).at_offset(at);
    let kind = match footer.disk_type.get() {
        layout::TYPE_FIXED => Kind::Fixed,
        layout::TYPE_DYNAMIC => Kind::Dynamic,
        layout::TYPE_DIFF => Kind::Differencing,
        other => return Err(bad(60, format!("unsupported VHD disk type {other}"))),
    };
    let version = footer.version.get();
    if version >> 16 != layout::VERSION >> 16 {
        return Err(bad(
            12,
            format!("unsupported VHD version {}.{}", version >> 16, version & 0xffff),
        ));
    }
    let size = rule.size(&footer).map_err(|e| e.at_path(storage.name()))?;
    let blocks = match kind {
        Kind::Fixed => None,
        _ => Some(blocks(storage, &footer, size)?),
    };
    Ok(Geometry { kind, footer, size, blocks })
}

fn blocks(storage: &dyn Storage, footer: &Footer, size: u64) -> Result<Blocks> {
    let bad = |at: u64, what: String| Error::corrupt(what).at_path(storage.name()).at_offset(at);
    let len = storage.len()?;
    let at = footer.data_offset.get();
    let mut header = Header::new_zeroed();
    if at.checked_add(1024).is_none_or(|end| end > len) {
        let what = if at > i64::MAX.unsigned_abs() {
            "Error reading dynamic VHD header"
        } else {
            "Invalid header magic"
        };
        return Err(bad(16, what.to_owned()));
    }
    storage.read_at(at, header.as_mut_bytes())?;
    if header.cookie != layout::HEADER_COOKIE {
        return Err(bad(at, "Invalid header magic".to_owned()));
    }
    let block = u64::from(header.block_size.get());
    if !block.is_power_of_two() || !(MIN_BLOCK..=MAX_BLOCK).contains(&block) {
        return Err(bad(at + 32, format!("Invalid block size {block}")));
    }
    let entries = u64::from(header.max_entries.get());
    if size.div_ceil(block) > entries {
        return Err(bad(at + 28, "Page table too small".to_owned()));
    }
    if entries > MAX_ENTRIES {
        return Err(bad(at + 28, format!("Max Table Entries too large ({entries})")));
    }
    let table = header.table_offset.get();
    let end = table.checked_add(entries * 4);
    if end.is_none_or(|end| end > len) || table < SECTOR {
        return Err(bad(
            at + 16,
            format!(
                "The block allocation table at {table:#x} lies outside the file ({len:#x} bytes). The image has been truncated."
            ),
        ));
    }
    let bitmap = round_up(block / SECTOR / 8, SECTOR);
    Ok(Blocks { header_at: at, header, table, entries, block, bitmap })
}
