//! The superblock, keys, and chunks; offsets are those of the documentation's tables.

use crate::guest::fields::Fields;
use crate::num::small;
use crate::{Error, ErrorKind, Result};

/// Where the superblock is, and its bytes.
pub(super) const SUPER_AT: u64 = 64 << 10;
pub(super) const SUPER_SIZE: usize = 4096;
/// Chunks of one file system: they are seldom smaller than 32 MiB.
pub(super) const MAX_CHUNKS: usize = 1 << 20;
/// Bytes of a key.
pub(super) const KEY: usize = 17;
/// Bytes of a chunk item before its stripes, and of a stripe.
const CHUNK: usize = 48;
const STRIPE: usize = 32;
/// Profiles whose chunks are whole in several places alike: RAID1, DUP, RAID1C3, RAID1C4.
const MIRRORED: u64 = 0x10 | 0x20 | 0x200 | 0x400;
/// RAID0, RAID10, RAID5, RAID6.
const STRIPED: u64 = 0x8 | 0x40 | 0x80 | 0x100;
/// The identifier in metadata is not the one that users see.
const METADATA_UUID: u64 = 0x400;

/// What items are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub object: u64,
    pub kind: u8,
    pub offset: u64,
}

impl Key {
    /// Before all others.
    pub const FIRST: Key = Key { object: 0, kind: 0, offset: 0 };
    /// Behind all others.
    pub const LAST: Key = Key { object: u64::MAX, kind: u8::MAX, offset: u64::MAX };

    pub fn read(f: Fields<'_>, at: usize) -> Result<Self> {
        Ok(Key { object: f.le64(at)?, kind: f.u8(at + 8)?, offset: f.le64(at + 9)? })
    }
}

/// A tree, or a part of one: its topmost node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Root {
    pub block: u64,
    pub level: u8,
    pub generation: u64,
}

/// What the superblock says. Sizes are possible ones.
#[derive(Clone, Debug)]
pub(super) struct Superblock {
    /// Where it says that it is.
    pub place: u64,
    pub node_size: usize,
    pub sector: usize,
    /// Bytes of all devices, and those in use.
    pub size: u64,
    pub used: u64,
    pub flags: u64,
    pub incompat: u64,
    pub checksum: u16,
    pub devices: u64,
    /// This device, and its bytes.
    pub device: u64,
    pub device_size: u64,
    /// The tree of roots and that of chunks.
    pub roots: Root,
    pub chunks: Root,
    /// Address of the tree of files synchronised since the last transaction; 0 when there is none.
    pub log: u64,
    /// The chunks in which the tree of chunks is: keys and items.
    pub system_chunks: Vec<u8>,
    pub label: String,
    pub uuid: String,
    /// What nodes carry.
    pub metadata_uuid: [u8; 16],
}

impl Superblock {
    /// Reads the bytes of a superblock.
    pub fn parse(raw: &[u8]) -> Result<Self> {
        let sb = Fields(raw);
        let bad =
            |what: &str| Error::corrupt(format!("the superblock of btrfs is damaged: {what}"));
        let (sector, node) = (small(sb.le32(0x90)?.into()), small(sb.le32(0x94)?.into()));
        if !node.is_power_of_two() || !(4096..=65536).contains(&node) {
            return Err(bad("nodes of an impossible size"));
        }
        if !sector.is_power_of_two() || !(512..=65536).contains(&sector) {
            return Err(bad("sectors of an impossible size"));
        }
        let incompat = sb.le64(0xbc)?;
        let array = small(sb.le32(0xa0)?.into()).min(2048);
        Ok(Superblock {
            place: sb.le64(0x30)?,
            node_size: node,
            sector,
            size: sb.le64(0x70)?,
            used: sb.le64(0x78)?,
            flags: sb.le64(0x38)?,
            incompat,
            checksum: sb.le16(0xc4)?,
            devices: sb.le64(0x88)?,
            device: sb.le64(0xc9)?,
            device_size: sb.le64(0xc9 + 8)?,
            roots: Root { block: sb.le64(0x50)?, level: sb.u8(0xc6)?, generation: sb.le64(0x48)? },
            chunks: Root { block: sb.le64(0x58)?, level: sb.u8(0xc7)?, generation: sb.le64(0xa4)? },
            log: sb.le64(0x60)?,
            system_chunks: sb.slice(0x32b, array)?.to_vec(),
            label: sb.text(0x12b, 256)?,
            uuid: sb.uuid(0x20)?,
            metadata_uuid: sb.array(if incompat & METADATA_UUID != 0 { 0x23b } else { 0x20 })?,
        })
    }
}

/// A range of logical addresses, and where it is.
#[derive(Clone, Debug)]
pub(super) struct Chunk {
    pub logical: u64,
    pub len: u64,
    profile: u64,
    stripes: usize,
    /// Its places on this device.
    pub places: Vec<u64>,
}

impl Chunk {
    /// Reads an item; gives its bytes, too.
    fn parse(logical: u64, f: Fields<'_>, device: u64) -> Result<(Self, usize)> {
        let (len, profile, stripes) = (f.le64(0)?, f.le64(24)?, usize::from(f.le16(44)?));
        let mut places = Vec::new();
        for i in 0..stripes {
            let at = CHUNK + STRIPE * i;
            if f.le64(at)? == device {
                places.push(f.le64(at + 8)?);
            }
        }
        Ok((Chunk { logical, len, profile, stripes, places }, CHUNK + STRIPE * stripes))
    }

    /// The first address behind it.
    pub fn end(&self) -> u64 {
        self.logical.saturating_add(self.len)
    }

    /// Where it is whole; `None` when it is on other devices, or in stripes.
    fn whole_place(&self) -> Option<u64> {
        let striped = self.profile & STRIPED != 0 && self.stripes > 1;
        self.places.first().copied().filter(|_| !striped)
    }

    /// Whether all of its places hold all of it.
    pub fn is_whole_everywhere(&self) -> bool {
        // A chunk of RAID0 on one device is one whole piece; the others are never.
        self.profile & (STRIPED & !0x8) == 0 && (self.stripes == 1 || self.profile & MIRRORED != 0)
    }

    /// Whether all of its places are on this device, and inside of it.
    pub fn is_inside(&self, size: u64) -> bool {
        self.len > 0
            && self.stripes > 0
            && self.places.len() == self.stripes
            && self.logical.checked_add(self.len).is_some()
            && self.places.iter().all(|p| p.checked_add(self.len).is_some_and(|end| end <= size))
    }
}

/// All chunks, sorted by address.
#[derive(Clone, Debug)]
pub(super) struct Chunks {
    device: u64,
    pub all: Vec<Chunk>,
}

impl Chunks {
    /// None yet, of a device.
    pub fn new(device: u64) -> Self {
        Chunks { device, all: Vec::new() }
    }

    /// Those that the superblock names, so that the tree of chunks can be found.
    pub fn of_system(sb: &Superblock) -> Result<Self> {
        let mut chunks = Chunks::new(sb.device);
        let mut rest = Fields(&sb.system_chunks);
        while rest.0.len() >= KEY + CHUNK {
            let key = Key::read(rest, 0)?;
            let (chunk, len) = Chunk::parse(key.offset, rest.rest(KEY)?, sb.device)?;
            chunks.all.push(chunk);
            rest = rest.rest(KEY + len)?;
        }
        chunks.sort();
        Ok(chunks)
    }

    /// Adds an item of the tree of chunks; the caller sorts at the end.
    pub fn add(&mut self, key: Key, item: &[u8]) -> Result<()> {
        if self.all.len() >= MAX_CHUNKS {
            return Err(Error::new(ErrorKind::TooLarge, "btrfs has too many chunks"));
        }
        let (chunk, _) = Chunk::parse(key.offset, Fields(item), self.device)?;
        self.all.push(chunk);
        Ok(())
    }

    pub fn sort(&mut self) {
        self.all.sort_by_key(|c| c.logical);
    }

    /// Where an address is, and how many bytes follow there.
    pub fn place(&self, logical: u64) -> Result<(u64, u64)> {
        let index = self.all.partition_point(|c| c.logical <= logical);
        let chunk = index.checked_sub(1).and_then(|i| self.all.get(i));
        let chunk = chunk.filter(|c| logical - c.logical < c.len).ok_or_else(|| {
            Error::corrupt(format!("btrfs has no chunk for address {logical:#x}"))
        })?;
        let place = chunk.whole_place().ok_or_else(|| {
            Error::unsupported(
                "a part of the file system is on another device, or in stripes over several",
            )
        })?;
        let into = logical - chunk.logical;
        let at = place.checked_add(into);
        let at = at.ok_or_else(|| Error::corrupt("a chunk of btrfs is out of range"))?;
        Ok((at, chunk.len - into))
    }
}
