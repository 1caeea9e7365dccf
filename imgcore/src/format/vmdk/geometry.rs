//! From the raw header of a sparse extent to numbers that are known to make sense.
//!
//! Everything here is checked against the length of the file before memory is taken for it: a grain
//! directory must lie inside the file, has at most [`MAX_DIRECTORY`] entries, tables have at most 4096.

use std::sync::Arc;

use zerocopy::FromBytes;

use super::layout::{self, SECTOR, SparseHeader};
use crate::storage::Storage;
use crate::{Error, ErrorKind, Result};

/// Most entries of a grain directory: 256 TiB in grains of 64 KiB.
pub(super) const MAX_DIRECTORY: u64 = 8 << 20;
/// Largest grain in sectors.
const MAX_GRAIN: u64 = 0x20_0000;
/// Largest compressed grain in bytes; bounds what inflating one takes.
const MAX_COMPRESSED_GRAIN: u64 = 16 << 20;

/// How entries of grain directory and grain tables are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TableKind {
    /// 32-bit sector numbers.
    Sectors,
    /// 64-bit numbers with a type in the highest four bits.
    SeSparse {
        /// Where grain tables begin (bytes).
        tables: u64,
        /// Where grains begin (sectors).
        grains: u64,
    },
}

/// Whether and how grains are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    Plain,
    /// zlib data after a marker that tells their length.
    Marked,
    /// zlib data alone.
    Bare,
}

/// A sparse extent's numbers. Bytes, where nothing else is said.
#[derive(Clone, Debug)]
pub(super) struct Geometry {
    pub capacity: u64,
    pub grain: u64,
    /// Entries of a grain table.
    pub gtes: u64,
    /// Entries of the grain directory.
    pub gd_len: u64,
    /// What the grain directory takes, with entries that the capacity does not need.
    pub gd_room: u64,
    pub gd: u64,
    pub rgd: Option<u64>,
    pub kind: TableKind,
    pub packing: Packing,
    /// A table entry of 1 is a grain of zeroes.
    pub zero_grain: bool,
    /// Where the first grain may begin.
    pub overhead: u64,
    /// The embedded descriptor's place, if any.
    pub descriptor: Option<(u64, u64)>,
    /// The grain directory was found through a footer.
    pub footer: bool,
    pub version: u32,
}

impl Geometry {
    /// Guest bytes that one grain table covers.
    pub(super) fn table_cover(&self) -> u64 {
        self.grain * self.gtes
    }

    /// Bytes of a grain table on disk.
    pub(super) fn table_bytes(&self) -> u64 {
        self.gtes * if self.kind == TableKind::Sectors { 4 } else { 8 }
    }

    pub(super) fn compressed(&self) -> bool {
        self.packing != Packing::Plain
    }
}

fn at(storage: &dyn Storage, offset: u64, error: Error) -> Error {
    error.at_path(storage.name()).at_offset(offset)
}

fn damaged(storage: &dyn Storage, offset: u64, message: impl Into<String>) -> Error {
    at(storage, offset, Error::corrupt(message))
}

/// Reads an on-disk structure.
fn read<T: FromBytes>(storage: &dyn Storage, offset: u64) -> Result<T> {
    let mut bytes = vec![0; size_of::<T>()];
    storage.read_at(offset, &mut bytes)?;
    T::read_from_bytes(&bytes).map_err(|_| damaged(storage, offset, "short read"))
}

/// A hosted sparse header: checked for magic only.
pub(super) fn sparse_header(storage: &dyn Storage) -> Result<SparseHeader> {
    let header: SparseHeader = read(storage, 0)?;
    if header.magic.get() != layout::MAGIC_KDMV {
        return Err(damaged(storage, 0, "Image not in VMDK format"));
    }
    Ok(header)
}

/// Numbers of a hosted sparse extent (`KDMV`).
pub(super) fn hosted(storage: &Arc<dyn Storage>) -> Result<Geometry> {
    let first = sparse_header(&**storage)?;
    let name = &**storage;
    let version = first.version.get();
    if version == 0 || version > 3 {
        return Err(at(name, 4, Error::unsupported(format!("Unsupported VMDK version {version}"))));
    }
    let footer = first.gd_offset.get() == layout::GD_AT_END;
    let header = if footer { super::footer::find(storage, &first)? } else { first };
    let flags = header.flags.get();
    let packing = match (flags & layout::FLAG_COMPRESSED, flags & layout::FLAG_MARKERS) {
        (0, _) => Packing::Plain,
        (_, 0) => Packing::Bare,
        _ => Packing::Marked,
    };
    if packing != Packing::Plain && header.compress.get() != layout::COMPRESS_DEFLATE {
        return Err(at(
            name,
            77,
            Error::unsupported(format!("Unsupported compression {}", header.compress.get())),
        ));
    }
    let grain = grain_bytes(name, header.grain_size.get(), packing)?;
    let gtes = u64::from(header.gtes_per_gt.get());
    if gtes > 512 {
        return Err(damaged(name, 44, "L2 table size too big"));
    }
    let bytes = |sectors: u64, field: u64, what: &str| {
        sectors
            .checked_mul(SECTOR)
            .filter(|&b| i64::try_from(b).is_ok())
            .ok_or_else(|| damaged(name, field, format!("{what} is too large ({sectors} sectors)")))
    };
    let too_big = || at(name, 12, Error::new(ErrorKind::TooLarge, "L1 size too big"));
    let capacity = bytes(header.capacity.get(), 12, "Capacity").map_err(|_| too_big())?;
    let redundant = flags & layout::FLAG_REDUNDANT != 0 && header.rgd_offset.get() != 0;
    let descriptor = match (first.descriptor_offset.get(), first.descriptor_size.get()) {
        (0, _) | (_, 0) => None,
        (offset, size) => {
            Some((bytes(offset, 28, "Descriptor offset")?, bytes(size, 36, "Descriptor size")?))
        }
    };
    let mut geometry = Geometry {
        capacity,
        grain,
        gtes,
        gd_len: 0,
        gd_room: 0,
        gd: bytes(header.gd_offset.get(), 56, "Grain directory offset")?,
        rgd: if redundant {
            Some(bytes(header.rgd_offset.get(), 48, "Redundant grain directory offset")?)
        } else {
            None
        },
        kind: TableKind::Sectors,
        packing,
        zero_grain: flags & layout::FLAG_ZERO_GRAIN != 0 || version == 2,
        overhead: bytes(header.overhead.get(), 64, "Overhead")?,
        descriptor,
        footer,
        version,
    };
    geometry.gd_len = directory_len(name, &geometry)?;
    geometry.gd_room = geometry.gd_len * 4;
    check_truncated(name, &geometry)?;
    check_directory(name, geometry.gd, geometry.gd_len * 4)?;
    Ok(geometry)
}

fn grain_bytes(name: &dyn Storage, sectors: u64, packing: Packing) -> Result<u64> {
    if sectors == 0 {
        return Err(damaged(name, 20, "L1 entry size is invalid"));
    }
    if sectors > MAX_GRAIN {
        return Err(damaged(name, 20, "Invalid granularity, image may be corrupt"));
    }
    let bytes = sectors * SECTOR;
    if packing != Packing::Plain && bytes > MAX_COMPRESSED_GRAIN {
        return Err(at(
            name,
            20,
            Error::new(
                ErrorKind::TooLarge,
                format!("compressed grains of {bytes} bytes are too large to be unpacked"),
            ),
        ));
    }
    Ok(bytes)
}

/// Entries that the grain directory must have for the capacity.
fn directory_len(name: &dyn Storage, g: &Geometry) -> Result<u64> {
    if g.gtes == 0 {
        return Err(damaged(name, 44, "L1 entry size is invalid"));
    }
    let entries = g.capacity.div_ceil(g.table_cover());
    if entries > MAX_DIRECTORY {
        return Err(at(name, 12, Error::new(ErrorKind::TooLarge, "L1 size too big")));
    }
    Ok(entries)
}

/// A file that ends before its first grain was cut off.
fn check_truncated(name: &dyn Storage, g: &Geometry) -> Result<()> {
    let len = name.len()?;
    if len.div_ceil(SECTOR) * SECTOR < g.overhead {
        return Err(at(
            name,
            len,
            Error::corrupt(format!("File truncated, expecting at least {} bytes", g.overhead)),
        ));
    }
    Ok(())
}

fn check_directory(name: &dyn Storage, offset: u64, bytes: u64) -> Result<()> {
    let len = name.len()?;
    let end = offset.checked_add(bytes);
    if offset < SECTOR || end.is_none_or(|end| end > crate::num::round_up(len, SECTOR)) {
        return Err(damaged(
            name,
            offset,
            format!("Grain directory ({bytes} bytes) lies outside the file ({len} bytes)"),
        ));
    }
    Ok(())
}

/// Numbers of an ESX sparse extent (`COWD`). Its header counts 32-bit sectors, so nothing overflows.
pub(super) fn cowd(storage: &Arc<dyn Storage>) -> Result<Geometry> {
    let name = &**storage;
    let header: layout::CowdHeader = read(name, 0)?;
    if header.magic.get() != layout::MAGIC_COWD {
        return Err(damaged(name, 0, "Image not in VMDK format"));
    }
    let sectors = |n: u32| u64::from(n) * SECTOR;
    let grain = grain_bytes(name, u64::from(header.grain_size.get()), Packing::Plain)?;
    let mut geometry = Geometry {
        capacity: sectors(header.sectors.get()),
        grain,
        gtes: layout::COWD_GTES,
        gd_len: u64::from(header.gd_entries.get()),
        gd_room: u64::from(header.gd_entries.get()) * 4,
        gd: sectors(header.gd_offset.get()),
        rgd: None,
        kind: TableKind::Sectors,
        packing: Packing::Plain,
        zero_grain: true,
        overhead: layout::COWD_HEADER_SECTORS * SECTOR,
        descriptor: None,
        footer: false,
        version: header.version.get(),
    };
    let need = directory_len(name, &geometry)?;
    if geometry.gd_len < need {
        return Err(damaged(
            name,
            24,
            format!("Grain directory has {} entries where {need} are needed", geometry.gd_len),
        ));
    }
    geometry.gd_len = need;
    check_directory(name, geometry.gd, need * 4)?;
    geometry.overhead = geometry.overhead.max(geometry.gd + need * 4);
    Ok(geometry)
}

/// Numbers of an seSparse extent.
pub(super) fn se_sparse(storage: &Arc<dyn Storage>) -> Result<Geometry> {
    let name = &**storage;
    let h: layout::SeSparseHeader = read(name, 0)?;
    if h.magic.get() != layout::MAGIC_SESPARSE {
        return Err(damaged(name, 0, "Image not in VMDK format"));
    }
    let unsupported = |offset, text: String| Err(at(name, offset, Error::unsupported(text)));
    if h.version.get() != layout::SESPARSE_VERSION {
        return unsupported(8, format!("Unsupported version: {:#x}", h.version.get()));
    }
    if h.grain_size.get() != 8 {
        return unsupported(24, format!("Unsupported grain size: {}", h.grain_size.get()));
    }
    if h.grain_table_size.get() != 64 {
        return unsupported(
            32,
            format!("Unsupported grain table size: {}", h.grain_table_size.get()),
        );
    }
    let bytes = |sectors: u64, field| {
        sectors
            .checked_mul(SECTOR)
            .filter(|&b| i64::try_from(b).is_ok())
            .ok_or_else(|| damaged(name, field, format!("place {sectors:#x} is out of range")))
    };
    let volatile_at = bytes(h.volatile_offset.get(), 80)?;
    let volatile: layout::SeSparseVolatile = read(name, volatile_at)?;
    if volatile.magic.get() != layout::MAGIC_SESPARSE_VOLATILE {
        return Err(damaged(name, volatile_at, "The volatile header of the extent is damaged"));
    }
    if volatile.replay_journal.get() != 0 {
        return Err(at(
            name,
            volatile_at + 24,
            Error::unsupported("Image is dirty, Replaying journal not supported")
                .hint("open and close the disk once on the ESX host that wrote it"),
        ));
    }
    let mut geometry = Geometry {
        capacity: bytes(h.capacity.get(), 16)?,
        grain: 8 * SECTOR,
        gtes: 64 * SECTOR / 8,
        gd_len: 0,
        gd_room: 0,
        gd: bytes(h.gd_offset.get(), 128)?,
        rgd: None,
        kind: TableKind::SeSparse {
            tables: bytes(h.gt_offset.get(), 144)?,
            grains: bytes(h.grains_offset.get(), 192)? / SECTOR,
        },
        packing: Packing::Plain,
        zero_grain: true,
        overhead: 0,
        descriptor: None,
        footer: false,
        version: 0,
    };
    geometry.gd_len = directory_len(name, &geometry)?;
    geometry.gd_room = geometry.gd_len * 8;
    if bytes(h.gd_size.get(), 136)? / 8 < geometry.gd_len {
        return Err(damaged(name, 136, "The grain directory is too small for the capacity"));
    }
    check_directory(name, geometry.gd, geometry.gd_len * 8)?;
    Ok(geometry)
}
