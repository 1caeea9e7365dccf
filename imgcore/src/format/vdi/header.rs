//! From raw header to checked geometry.

use zerocopy::{FromZeros, IntoBytes};

use super::layout::{self, Header, SECTOR};
use crate::format::uuid::Uuid;
use crate::num::{checked_round_up, small};
use crate::storage::Storage;
use crate::{Error, Result};

/// Smallest block that is taken; smaller ones would make the block map larger than the data.
const MIN_BLOCK: u64 = 4096;
/// Largest block that is taken.
const MAX_BLOCK: u64 = 256 << 20;
/// Most bytes in front of a block.
const MAX_EXTRA: u64 = 1 << 20;

/// What kind of image it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Dynamic,
    Static,
    Undo,
    Differencing,
}

impl Kind {
    /// The name that `info` shows.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Dynamic => "dynamic",
            Kind::Static => "static",
            Kind::Undo => "undo",
            Kind::Differencing => "differencing",
        }
    }
}

/// A checked header.
#[derive(Clone, Debug)]
pub(super) struct Geometry {
    pub kind: Kind,
    /// Bytes of the guest's disk, a multiple of 512.
    pub size: u64,
    /// Where the block map is in the file.
    pub map: u64,
    /// Entries of the block map.
    pub blocks: u64,
    /// Where block 0 of the file is.
    pub data: u64,
    /// Guest bytes of a block, a power of two.
    pub block: u64,
    /// Bytes in front of each block's data.
    pub extra: u64,
    /// Blocks of the file in use, as the header counts them.
    pub allocated: u64,
    pub description: String,
    pub uuid: Uuid,
    pub modify: Uuid,
    pub parent: Uuid,
    pub parent_modify: Uuid,
}

impl Geometry {
    /// Bytes of the file that a block takes.
    pub fn stride(&self) -> u64 {
        self.block + self.extra
    }

    /// Where the data of the file's block `number` are.
    pub fn place(&self, number: u64) -> u64 {
        self.data + number * self.stride() + self.extra
    }

    /// Whether bytes that are not here come from a parent.
    pub fn has_parent(&self) -> bool {
        !self.parent.is_nil()
    }
}

/// Reads the raw header of a file.
pub(super) fn read(storage: &dyn Storage) -> Result<Header> {
    let mut raw = Header::new_zeroed();
    storage.read_at(0, raw.as_mut_bytes())?;
    Ok(raw)
}

/// The bytes of a description up to its end.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).trim_end().to_owned()
}

/// Reads and checks the header.
pub(super) fn geometry(storage: &dyn Storage) -> Result<Geometry> {
    let raw = read(storage)?;
    let len = storage.len()?;
    let bad = |at: u64, what: String| {
        Error::corrupt(format!("unsupported VDI image ({what})"))
            .at_path(storage.name())
            .at_offset(at)
    };
    if raw.signature.get() != layout::SIGNATURE {
        return Err(Error::corrupt("Image not in VDI format")
            .at_path(storage.name())
            .at_offset(64));
    }
    let version = raw.version.get();
    if version != layout::VERSION {
        return Err(bad(68, format!("version {}.{}", version >> 16, version & 0xffff)));
    }
    let kind = match raw.image_type.get() {
        layout::TYPE_DYNAMIC => Kind::Dynamic,
        layout::TYPE_STATIC => Kind::Static,
        layout::TYPE_UNDO => Kind::Undo,
        layout::TYPE_DIFF => Kind::Differencing,
        other => return Err(bad(76, format!("image type {other}"))),
    };
    let map = u64::from(raw.offset_map.get());
    if !map.is_multiple_of(SECTOR) || map < SECTOR {
        return Err(bad(340, format!("unaligned block map offset {map:#x}")));
    }
    let data = u64::from(raw.offset_data.get());
    if !data.is_multiple_of(SECTOR) {
        return Err(bad(344, format!("unaligned data offset {data:#x}")));
    }
    let sector = raw.sector_size.get();
    if u64::from(sector) != SECTOR {
        return Err(bad(360, format!("sector size {sector} is not 512")));
    }
    let block = u64::from(raw.block_size.get());
    if !block.is_power_of_two() || !(MIN_BLOCK..=MAX_BLOCK).contains(&block) {
        return Err(bad(
            376,
            format!("block size {block} is not a power of two from {MIN_BLOCK} to {MAX_BLOCK}"),
        ));
    }
    let extra = u64::from(raw.block_extra.get());
    if !extra.is_multiple_of(SECTOR) || extra > MAX_EXTRA {
        return Err(bad(380, format!("{extra} extra bytes for each block")));
    }
    let size = raw.disk_size.get();
    if size > layout::MAX_SIZE {
        return Err(Error::corrupt(format!(
            "Unsupported VDI image size (size is {size:#x}, max supported is {:#x})",
            layout::MAX_SIZE
        ))
        .at_path(storage.name())
        .at_offset(368));
    }
    let size = checked_round_up(size, SECTOR).unwrap_or(size);
    let blocks = u64::from(raw.blocks.get());
    if blocks > layout::MAX_BLOCKS {
        return Err(bad(384, format!("too many blocks {blocks}, max is {}", layout::MAX_BLOCKS)));
    }
    if size > blocks * block {
        return Err(bad(
            384,
            format!("disk size {size}, image bitmap has room for {}", blocks * block),
        ));
    }
    if map + blocks * 4 > len {
        return Err(bad(
            340,
            format!(
                "its block map ends at {:#x}, beyond the end of the file ({len:#x})",
                map + blocks * 4
            ),
        )
        .hint("the file is truncated; restore it from its source"));
    }
    // While a disk is being resized its map may be behind the data.
    if blocks > 0 && map < data && map + blocks * 4 > data {
        return Err(bad(344, format!("block map and data overlap at {data:#x}")));
    }
    let parent = Uuid::from_le(raw.uuid_parent);
    if parent.is_nil() && kind == Kind::Differencing {
        return Err(bad(424, "differencing, but it names no parent".to_owned()));
    }
    Ok(Geometry {
        kind,
        size,
        map,
        blocks,
        data,
        block,
        extra,
        allocated: u64::from(raw.blocks_allocated.get()),
        description: text(&raw.description),
        uuid: Uuid::from_le(raw.uuid),
        modify: Uuid::from_le(raw.uuid_modify),
        parent,
        parent_modify: Uuid::from_le(raw.uuid_parent_modify),
    })
}

/// Changes fields of the header on disk; one sector, so all or nothing.
pub(super) fn update(storage: &dyn Storage, change: impl FnOnce(&mut Header)) -> Result<()> {
    let mut raw = read(storage)?;
    change(&mut raw);
    storage.write_at(0, raw.as_bytes())
}

/// A number that is known to fit 32 bits, because places and counts were checked against limits.
pub(super) fn narrow(value: u64) -> zerocopy::little_endian::U32 {
    zerocopy::little_endian::U32::new(u32::try_from(small(value)).unwrap_or(u32::MAX))
}
