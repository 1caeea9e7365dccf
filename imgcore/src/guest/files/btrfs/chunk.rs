//! From addresses of the file system to places on the disk.

use std::collections::BTreeMap;

use super::tree::{Key, Root};
use super::{Btrfs, Fields};
use crate::{Error, ErrorKind, Result};

const CHUNK_TREE: u64 = 256;
pub(super) const CHUNK_ITEM: u8 = 228;
/// 16 million of them would be petabytes.
const MAX_CHUNKS: usize = 1 << 20;

/// RAID 0, 10, 5, 6: what is not on one device.
const STRIPED: u64 = 0x8 | 0x40 | 0x80 | 0x100;

struct Chunk {
    len: u64,
    /// Place on this device; `None` when it is on others, or in stripes.
    place: Option<u64>,
}

/// All chunks.
pub(super) struct Chunks {
    device: u64,
    all: BTreeMap<u64, Chunk>,
}

impl Chunks {
    pub(super) fn new(device: u64) -> Self {
        Chunks { device, all: BTreeMap::new() }
    }

    /// Those that the superblock names, so that the chunk tree can be found.
    pub(super) fn add_array(&mut self, array: &[u8]) -> Result<()> {
        let mut at = 0;
        while at + 17 + 48 <= array.len() {
            let f = Fields(array).rest(at)?;
            let key = Key::read(f, 0)?;
            let stripes = usize::from(f.le16(17 + 44)?);
            self.add(key.offset, f.rest(17)?)?;
            at += 17 + 48 + 32 * stripes;
        }
        Ok(())
    }

    fn add(&mut self, logical: u64, f: Fields<'_>) -> Result<()> {
        let (len, kind, stripes) = (f.le64(0)?, f.le64(24)?, usize::from(f.le16(44)?));
        let mut place = None;
        for i in 0..stripes {
            let at = 48 + 32 * i;
            if f.le64(at)? == self.device {
                place = Some(f.le64(at + 8)?);
                break;
            }
        }
        if kind & STRIPED != 0 && stripes > 1 {
            place = None;
        }
        if self.all.len() >= MAX_CHUNKS {
            return Err(Error::new(ErrorKind::TooLarge, "btrfs has too many chunks"));
        }
        self.all.insert(logical, Chunk { len, place });
        Ok(())
    }

    /// Where an address is, and how many bytes follow there.
    pub(super) fn place(&self, logical: u64) -> Result<(u64, u64)> {
        let found = self.all.range(..=logical).next_back();
        let found = found.filter(|(start, chunk)| logical - **start < chunk.len);
        let (start, chunk) = found.ok_or_else(|| {
            Error::corrupt(format!("btrfs has no chunk for address {logical:#x}"))
        })?;
        let place = chunk.place.ok_or_else(|| {
            Error::unsupported(
                "a part of the file system is on another device, or in stripes over several",
            )
        })?;
        let into = logical - start;
        let at = place
            .checked_add(into)
            .ok_or_else(|| Error::corrupt("a chunk of btrfs is out of range"))?;
        Ok((at, chunk.len - into))
    }
}

impl Btrfs {
    pub(super) fn read_chunks(&mut self, root: Root) -> Result<()> {
        let mut found = Vec::new();
        self.items(root, CHUNK_TREE, CHUNK_ITEM, &mut |key, data| {
            found.push((key.offset, data.to_vec()));
            Ok(found.len() < MAX_CHUNKS)
        })?;
        for (logical, data) in found {
            self.chunks.add(logical, Fields(&data))?;
        }
        Ok(())
    }
}
