//! What an open image keeps in memory: header, L1 table, caches of L2 tables and refcounts.

use super::cache::SliceCache;
use super::header::Header;
use super::layout::{
    COMPRESSED, COPIED, L1_RESERVED, L2_RESERVED, OFFSET_MASK, SUBCLUSTERS, ZERO, autoclear,
    compatible, incompatible,
};
use super::refcount::Refcounts;
use crate::num::{len_u64, small};
use crate::storage::Storage;
use crate::{Error, Result};

/// Bytes of L2 tables kept in memory: maps 128 GiB with 64 KiB clusters.
const L2_CACHE_BYTES: u64 = 16 << 20;

/// Sizes that follow from the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// log2 of the cluster size.
    pub cluster_bits: u32,
    /// log2 of the bytes of an L2 entry.
    pub entry_bits: u32,
    /// Extended L2 entries.
    pub extended: bool,
    /// Clusters of guest data live in an external file.
    pub external: bool,
    /// That file must also make sense on its own: host offsets equal guest offsets.
    pub external_raw: bool,
}

impl Geometry {
    /// From a checked header.
    pub fn new(header: &Header) -> Self {
        let extended = header.has(incompatible::EXTENDED_L2);
        Geometry {
            cluster_bits: header.cluster_bits,
            entry_bits: if extended { 4 } else { 3 },
            extended,
            external: header.has(incompatible::DATA_FILE),
            external_raw: header.has(incompatible::DATA_FILE)
                && header.autoclear & autoclear::DATA_FILE_RAW != 0,
        }
    }

    /// Bytes of a cluster.
    pub fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bytes of the smallest unit with a mapping of its own.
    pub fn subcluster(&self) -> u64 {
        if self.extended { self.cluster() / SUBCLUSTERS } else { self.cluster() }
    }

    /// log2 of the entries of an L2 table.
    pub fn l2_bits(&self) -> u32 {
        self.cluster_bits - self.entry_bits
    }

    /// Guest bytes that one L2 table maps.
    pub fn l2_span(&self) -> u64 {
        1 << (self.l2_bits() + self.cluster_bits)
    }

    /// Entries of an L1 table for a disk of `size` bytes.
    pub fn l1_entries(&self, size: u64) -> u64 {
        size.div_ceil(self.l2_span())
    }

    /// Index into the L1 table.
    pub fn l1_index(&self, guest: u64) -> usize {
        small(guest >> (self.l2_bits() + self.cluster_bits))
    }

    /// Byte offset of the entry within its L2 table.
    pub fn l2_byte(&self, guest: u64) -> u64 {
        (guest >> self.cluster_bits & ((1 << self.l2_bits()) - 1)) << self.entry_bits
    }

    /// Where a compressed cluster's bytes are: host offset and length (its sectors to their end).
    pub fn compressed_place(&self, descriptor: u64) -> (u64, u64) {
        let shift = 62 - (self.cluster_bits - 8);
        let offset = descriptor & ((1 << shift) - 1);
        let sectors = (descriptor & !(COPIED | COMPRESSED)) >> shift;
        (offset, (sectors + 1) * 512 - offset % 512)
    }

    /// The descriptor of a compressed cluster.
    pub fn compressed_descriptor(&self, offset: u64, len: u64) -> u64 {
        let shift = 62 - (self.cluster_bits - 8);
        let sectors = ((offset + len - 1) >> 9) - (offset >> 9);
        COMPRESSED | offset | sectors << shift
    }
}

/// An L2 entry; `bitmap` is used with extended entries only (low half: allocated subclusters, high half:
/// zero subclusters).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct L2Entry {
    /// Cluster descriptor.
    pub descriptor: u64,
    /// Subcluster allocation bitmap.
    pub bitmap: u64,
}

/// What a cluster (or subcluster) is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cluster {
    /// Nothing here.
    Unallocated,
    /// As above, but the cluster has a place (extended entries).
    UnallocatedPlaced(u64),
    /// Stored at this host offset (of the cluster).
    Data(u64),
    /// Zero; maybe with a place.
    Zero(Option<u64>),
    /// Compressed descriptor.
    Compressed,
}

impl L2Entry {
    /// Whether the reference count is exactly one, so that the place may be written.
    pub fn copied(self) -> bool {
        self.descriptor & COPIED != 0
    }

    /// Host offset of the cluster, if it has one (not for compressed ones).
    pub fn host(self) -> Option<u64> {
        match self.descriptor & OFFSET_MASK {
            _ if self.is_compressed() => None,
            0 => None,
            at => Some(at),
        }
    }

    /// Compressed.
    pub fn is_compressed(self) -> bool {
        self.descriptor & COMPRESSED != 0
    }

    /// What subcluster `sub` is (0 without extended entries). An external data file may have a cluster at
    /// host offset 0: there the copied flag tells allocation.
    pub fn kind(self, geometry: &Geometry, sub: u32) -> Cluster {
        if self.is_compressed() {
            return Cluster::Compressed;
        }
        let at = self.descriptor & OFFSET_MASK;
        let placed = at != 0 || (geometry.external && self.copied());
        if geometry.extended {
            let allocated = self.bitmap >> sub & 1 != 0;
            let zero = self.bitmap >> (32 + sub) & 1 != 0;
            return match (allocated && placed, zero) {
                (true, _) => Cluster::Data(at),
                (false, true) => Cluster::Zero(placed.then_some(at)),
                (false, false) if placed => Cluster::UnallocatedPlaced(at),
                (false, false) => Cluster::Unallocated,
            };
        }
        match (self.descriptor & ZERO != 0, placed) {
            (true, _) => Cluster::Zero(placed.then_some(at)),
            (false, true) => Cluster::Data(at),
            (false, false) => Cluster::Unallocated,
        }
    }

    /// Refuses entries that no writer makes.
    pub fn check(self, geometry: &Geometry, version: u32, guest: u64) -> Result<()> {
        if self.is_compressed() {
            if geometry.external {
                return Err(Error::corrupt(format!(
                    "Compressed cluster at guest offset {guest:#x} although guest data are in an external file"
                ))
                .at_offset(guest));
            }
            if geometry.extended && self.bitmap != 0 {
                return Err(Error::corrupt(format!(
                    "Compressed cluster with subclusters at guest offset {guest:#x}"
                ))
                .at_offset(guest));
            }
            return Ok(());
        }
        let zero_allowed = version >= 3 && !geometry.extended;
        let reserved = if zero_allowed { L2_RESERVED } else { L2_RESERVED | ZERO };
        if self.descriptor & reserved != 0 {
            return Err(Error::corrupt(format!(
                "L2 entry {:#x} for guest offset {guest:#x} has reserved bits set",
                self.descriptor
            ))
            .at_offset(guest));
        }
        let at = self.descriptor & OFFSET_MASK;
        if !at.is_multiple_of(geometry.cluster()) {
            return Err(Error::corrupt(format!(
                "Cluster allocation offset {at:#x} unaligned (guest offset: {guest:#x})"
            ))
            .at_offset(guest));
        }
        let placed = at != 0 || self.copied();
        if geometry.external_raw
            && placed
            && at != crate::num::round_down(guest, geometry.cluster())
        {
            return Err(Error::corrupt(format!(
                "External data file host cluster offset {at:#x} does not match guest cluster offset: {guest:#x}"
            ))
            .at_offset(guest));
        }
        if geometry.extended && self.bitmap & (self.bitmap >> 32) & 0xffff_ffff != 0 {
            return Err(Error::corrupt(format!(
                "Invalid cluster entry found (offset: {guest:#x}, bitmap: {:#x}): subclusters both allocated and zero",
                self.bitmap
            ))
            .at_offset(guest));
        }
        Ok(())
    }
}

/// The tables of an open image.
#[derive(Debug)]
pub struct Tables {
    /// The header as it should be on disk.
    pub header: Header,
    /// Sizes.
    pub geometry: Geometry,
    /// Active L1 table (or a snapshot's, for reading it).
    pub l1: Vec<u64>,
    /// First and last changed L1 entry.
    pub l1_dirty: Option<(usize, usize)>,
    /// L2 table slices.
    pub l2: SliceCache,
    /// Reference counts.
    pub refs: Refcounts,
    /// Where the next compressed cluster may continue, 0 for nowhere.
    pub compressed_end: u64,
    /// Some allocation or unmapping happened since the last flush.
    pub changed: bool,
    /// Length of the image file when last asked.
    pub file_len: u64,
    /// Set when the image was found corrupt: no more writing.
    pub broken: bool,
    /// Ranges `(offset, len)` that became free, to be discarded if wanted.
    pub freed: Vec<(u64, u64)>,
    /// Somebody gave up guest data since references were dropped last: what becomes free then goes back to the file
    /// system.
    pub gives_back: bool,
    /// What the `lazy-refcounts` option said at opening; it stands above the header's flag, and is not
    /// written down.
    pub lazy_asked: Option<bool>,
}

impl Tables {
    /// True if a flush would write nothing, free nothing, and refuse nothing.
    pub fn is_clean(&self) -> bool {
        !self.broken
            && !self.changed
            && self.l1_dirty.is_none()
            && !self.l2.is_dirty()
            && !self.refs.is_dirty()
            && !self.refs.has_pending()
    }

    /// Tables over checked parts.
    pub fn new(header: Header, l1: Vec<u64>, refs: Refcounts, file_len: u64) -> Self {
        let geometry = Geometry::new(&header);
        Tables {
            l2: SliceCache::new(geometry.cluster(), L2_CACHE_BYTES),
            header,
            geometry,
            l1,
            l1_dirty: None,
            refs,
            compressed_end: 0,
            changed: false,
            file_len,
            broken: false,
            freed: Vec::new(),
            gives_back: false,
            lazy_asked: None,
        }
    }

    /// Whether reference counts may stay behind until the image is closed.
    pub fn is_lazy(&self) -> bool {
        self.lazy_asked.unwrap_or(self.header.compatible & compatible::LAZY_REFCOUNTS != 0)
    }

    /// The checked L1 entry for a guest offset: host offset of the L2 table, if there is one, and whether
    /// it may be changed in place.
    pub fn l2_table(&self, guest: u64) -> Result<Option<(u64, bool)>> {
        let index = self.geometry.l1_index(guest);
        let entry = self.l1.get(index).copied().unwrap_or(0);
        let at = entry & OFFSET_MASK;
        if entry & L1_RESERVED != 0 {
            return Err(Error::corrupt(format!(
                "L1 entry {entry:#x} (L1 index: {index:#x}) has reserved bits set"
            ))
            .at_offset(self.header.l1_offset + len_u64(index) * 8));
        }
        if !at.is_multiple_of(self.geometry.cluster()) {
            return Err(Error::corrupt(format!(
                "L2 table offset {at:#x} unaligned (L1 index: {index:#x})"
            ))
            .at_offset(self.header.l1_offset + len_u64(index) * 8));
        }
        if at == 0 {
            return Ok(None);
        }
        Ok(Some((at, entry & COPIED != 0)))
    }

    /// An error if `offset..offset+len` is not inside the image file.
    pub fn check_inside(
        &mut self,
        storage: &dyn Storage,
        what: &str,
        offset: u64,
        len: u64,
    ) -> Result<()> {
        let end = offset.saturating_add(len);
        if end > self.file_len {
            self.file_len = storage.len()?;
        }
        // The last cluster of a file may be short.
        let limit = crate::num::round_up(self.file_len, self.geometry.cluster());
        if end > limit {
            return Err(Error::corrupt(format!(
                "{what} at {offset:#x} lies beyond the end of the image file ({:#x} bytes)",
                self.file_len
            ))
            .at_path(storage.name())
            .at_offset(offset));
        }
        Ok(())
    }

    /// Parses an entry from table bytes.
    pub fn parse_entry(&self, bytes: &[u8], at: usize) -> L2Entry {
        let be = |from: usize| {
            bytes
                .get(from..from + 8)
                .map_or(0, |b| b.iter().fold(0u64, |v, &x| v << 8 | u64::from(x)))
        };
        L2Entry { descriptor: be(at), bitmap: if self.geometry.extended { be(at + 8) } else { 0 } }
    }

    /// Reads the L2 entry of a guest offset; loads the slice if necessary.
    pub fn entry(&mut self, storage: &dyn Storage, guest: u64) -> Result<L2Entry> {
        let Some((table, _)) = self.l2_table(guest)? else { return Ok(L2Entry::default()) };
        let at = table + self.geometry.l2_byte(guest);
        if self.l2.peek(at).is_none() {
            self.load_slice(storage, table, at)?;
        }
        let Some((bytes, from)) = self.l2.peek(at) else { return Ok(L2Entry::default()) };
        let entry = self.parse_entry(bytes, from);
        entry.check(&self.geometry, self.header.version, guest)?;
        Ok(entry)
    }

    /// Brings the slice with the entry at host offset `at` of table `table` into memory.
    pub fn load_slice(&mut self, storage: &dyn Storage, table: u64, at: u64) -> Result<()> {
        self.check_inside(storage, "L2 table", table, self.geometry.cluster())?;
        self.l2.make_room(1);
        self.l2.load(storage, at)?;
        Ok(())
    }

    /// Stores an L2 entry; the table must be there and writable.
    pub fn set_entry(&mut self, storage: &dyn Storage, guest: u64, entry: L2Entry) -> Result<()> {
        let Some((table, true)) = self.l2_table(guest)? else {
            return Err(Error::corrupt(format!(
                "L2 table for guest offset {guest:#x} cannot be changed"
            )));
        };
        let at = table + self.geometry.l2_byte(guest);
        let extended = self.geometry.extended;
        let bytes = self.l2.edit(storage, at)?;
        bytes[..8].copy_from_slice(&entry.descriptor.to_be_bytes());
        if extended {
            bytes[8..16].copy_from_slice(&entry.bitmap.to_be_bytes());
        }
        self.changed = true;
        Ok(())
    }

    /// Marks an L1 entry as changed.
    pub fn touch_l1(&mut self, index: usize) {
        let (low, high) = self.l1_dirty.unwrap_or((index, index));
        self.l1_dirty = Some((low.min(index), high.max(index)));
        self.changed = true;
    }
}
