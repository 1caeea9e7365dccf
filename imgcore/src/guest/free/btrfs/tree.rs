//! Nodes of btrfs' trees, and the chunks that say where logical addresses are.

use super::damaged;
use crate::guest::fields::Fields;
use crate::guest::volume::Volume;
use crate::num::{len_u64, small};
use crate::{Error, Result};

/// Bytes of a node's header, of an item's header in a leaf, of a pointer in an inner node.
const HEADER: usize = 101;
const ITEM: usize = 25;
const POINTER: usize = 33;
/// Bytes of a key.
const KEY: usize = 17;
/// Bytes of a chunk item before its stripes, and of a stripe.
const CHUNK: usize = 48;
const STRIPE: usize = 32;
/// Levels of a tree.
const MAX_LEVEL: u8 = 7;
/// Chunks of one file system; they are seldom smaller than 32 MiB.
const MAX_CHUNKS: usize = 4 << 20;
/// Profiles whose chunks are whole in one place, or in several places alike: RAID1, DUP, RAID1C3, RAID1C4.
const MIRRORED: u64 = 0x10 | 0x20 | 0x200 | 0x400;
/// RAID10, RAID5, RAID6.
const STRIPED: u64 = 0x40 | 0x80 | 0x100;
/// Type of a root's item.
const ROOT_ITEM: u8 = 132;

/// How nodes are protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Checksum {
    Crc32c,
    Sha256,
}

impl Checksum {
    pub fn of_type(kind: u16) -> Result<Self> {
        match kind {
            0 => Ok(Checksum::Crc32c),
            2 => Ok(Checksum::Sha256),
            _ => Err(Error::unsupported("uses a kind of checksum that is not computed here")
                .hint("trim it in the guest: fstrim")),
        }
    }

    /// Whether the checksum in the first 32 bytes is that of the rest.
    pub fn is_right(self, bytes: &[u8]) -> bool {
        let Some((told, rest)) = bytes.split_at_checked(32) else { return false };
        match self {
            Checksum::Crc32c => told.starts_with(&crc32c::crc32c(rest).to_le_bytes()),
            Checksum::Sha256 => {
                use sha2::Digest;
                sha2::Sha256::digest(rest).as_slice() == told
            }
        }
    }
}

/// A key, in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub objectid: u64,
    pub kind: u8,
    pub offset: u64,
}

impl Key {
    fn read(bytes: &Fields<'_>, at: usize) -> Key {
        Key { objectid: bytes.u64(at), kind: bytes.u8(at + 8), offset: bytes.u64(at + 9) }
    }
}

/// A range of logical addresses with one or more places on the device.
#[derive(Clone, Debug)]
pub(super) struct Chunk {
    pub logical: u64,
    pub len: u64,
    pub places: Vec<u64>,
}

impl Chunk {
    pub fn end(&self) -> u64 {
        self.logical + self.len
    }
}

/// A root: logical address, level, generation.
pub(super) type Root = (u64, u8, u64);

/// Called for each item.
pub(super) type Tell<'a> = &'a mut dyn FnMut(&Key, &[u8]) -> Result<()>;

/// Reads nodes.
pub(super) struct Trees<'a> {
    volume: &'a Volume,
    checksum: Checksum,
    node: u64,
    id: Vec<u8>,
    device: u64,
    /// Sorted by logical address.
    chunks: Vec<Chunk>,
}

impl<'a> Trees<'a> {
    pub fn new(
        volume: &'a Volume,
        checksum: Checksum,
        node: u64,
        id: Vec<u8>,
        device: u64,
    ) -> Self {
        Trees { volume, checksum, node, id, device, chunks: Vec::new() }
    }

    /// All chunks, sorted.
    pub fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    /// The chunks that the superblock holds: those in which the chunk tree lies.
    pub fn add_system_chunks(&mut self, array: &[u8]) -> Result<()> {
        let mut rest = array;
        while !rest.is_empty() {
            let key = Key::read(&Fields::little(rest), 0);
            let value = rest.get(KEY..).unwrap_or_default();
            let chunk = self.chunk(&key, value)?;
            let stripes = usize::from(Fields::little(value).u16(44));
            rest = value.get(CHUNK + stripes * STRIPE..).unwrap_or_default();
            self.chunks.push(chunk);
        }
        self.sort_chunks()
    }

    /// All chunks, from the chunk tree.
    pub fn load_chunks(&mut self, root: Root, kind: u8) -> Result<()> {
        let mut chunks = Vec::new();
        self.walk(root, &mut |key, value| {
            if key.kind == kind {
                chunks.push(self.chunk(key, value)?);
            }
            if chunks.len() > MAX_CHUNKS { Err(damaged("too many chunks")) } else { Ok(()) }
        })?;
        self.chunks = chunks;
        self.sort_chunks()
    }

    fn sort_chunks(&mut self) -> Result<()> {
        self.chunks.sort_by_key(|c| c.logical);
        let apart = self.chunks.windows(2).all(|w| match w {
            [a, b] => a.end() <= b.logical,
            _ => true,
        });
        if apart { Ok(()) } else { Err(damaged("chunks overlap")) }
    }

    fn chunk(&self, key: &Key, value: &[u8]) -> Result<Chunk> {
        let c = Fields::little(value);
        let (len, profile, stripes) = (c.u64(0), c.u64(24), usize::from(c.u16(44)));
        if value.len() < CHUNK + stripes * STRIPE || stripes == 0 {
            return Err(damaged("a chunk is cut off"));
        }
        if profile & STRIPED != 0 || (stripes > 1 && profile & MIRRORED == 0) {
            return Err(Error::unsupported("spreads its chunks over stripes")
                .hint("trim it in the guest: fstrim"));
        }
        let mut places = Vec::with_capacity(stripes);
        for stripe in 0..stripes {
            let at = CHUNK + stripe * STRIPE;
            let (device, place) = (c.u64(at), c.u64(at + 8));
            let inside = place.checked_add(len).is_some_and(|e| e <= self.volume.len());
            if device != self.device || !inside || key.offset.checked_add(len).is_none() || len == 0
            {
                return Err(damaged("a chunk lies outside of the device"));
            }
            places.push(place);
        }
        Ok(Chunk { logical: key.offset, len, places })
    }

    /// A node, checked.
    fn read_node(&self, (logical, level, generation): Root) -> Result<Vec<u8>> {
        let bad = |what: &str| damaged(&format!("tree block {logical}: {what}"));
        let index = self.chunks.partition_point(|c| c.logical <= logical);
        let chunk = index.checked_sub(1).and_then(|i| self.chunks.get(i));
        let end = logical.checked_add(self.node);
        let chunk = chunk.filter(|c| end.is_some_and(|e| e <= c.end()));
        let chunk = chunk.ok_or_else(|| bad("it lies in no chunk"))?;
        let place = chunk.places.first().copied().unwrap_or(0) + (logical - chunk.logical);
        let bytes = self.volume.read(place, self.node)?;
        let n = Fields::little(&bytes);
        let right = self.checksum.is_right(&bytes)
            && n.bytes(32, 16) == self.id
            && n.u64(48) == logical
            && n.u64(80) == generation
            && n.u8(100) == level
            && level <= MAX_LEVEL;
        if !right {
            return Err(bad("its checksum, place or generation is wrong").at_offset(place));
        }
        let size = if level == 0 { ITEM } else { POINTER };
        if u64::from(n.u32(96)) * len_u64(size) > self.node - len_u64(HEADER) {
            return Err(bad("it has too many items").at_offset(place));
        }
        Ok(bytes)
    }

    /// Calls `tell` for every item of a tree, in the order of the keys.
    pub fn walk(&self, root: Root, tell: Tell<'_>) -> Result<()> {
        let mut last = None;
        self.walk_node(root, None, &mut last, tell)
    }

    /// `first` is the key by which the parent knows the node; keys ascend, so that no node comes twice.
    fn walk_node(
        &self,
        root: Root,
        first: Option<Key>,
        last: &mut Option<Key>,
        tell: Tell<'_>,
    ) -> Result<()> {
        let (logical, level, _) = root;
        let bytes = self.read_node(root)?;
        let n = Fields::little(&bytes);
        let bad = || damaged(&format!("tree block {logical}: its keys are out of order"));
        let count = small(u64::from(n.u32(96)));
        let mut before = None;
        for i in 0..count {
            let at = HEADER + i * if level == 0 { ITEM } else { POINTER };
            let key = Key::read(&n, at);
            let expected = i > 0 || first.is_none_or(|f| f == key);
            if !expected || before.is_some_and(|b| b >= key) {
                return Err(bad());
            }
            before = Some(key);
            if level == 0 {
                if last.is_some_and(|l| l >= key) {
                    return Err(bad());
                }
                *last = Some(key);
                let place = HEADER + small(u64::from(n.u32(at + KEY)));
                let len = small(u64::from(n.u32(at + KEY + 4)));
                tell(&key, n.bytes(place, len))?;
            } else {
                let child = (n.u64(at + KEY), level - 1, n.u64(at + KEY + 8));
                self.walk_node(child, Some(key), last, tell)?;
            }
        }
        if count == 0 && level > 0 { Err(bad()) } else { Ok(()) }
    }

    /// The root of another tree, as the tree of roots has it.
    pub fn find_root(&self, roots: Root, objectid: u64) -> Result<Option<Root>> {
        let mut found = None;
        self.walk(roots, &mut |key, value| {
            if key.objectid == objectid && key.kind == ROOT_ITEM {
                // Behind the inode: generation, directory, address; at the end the level.
                let r = Fields::little(value);
                found = Some((r.u64(176), r.u8(238), r.u64(160)));
            }
            Ok(())
        })?;
        Ok(found)
    }
}
