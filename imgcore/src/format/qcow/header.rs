//! From raw header to checked geometry.

use zerocopy::{FromZeros, IntoBytes};

use super::layout::{self, Header};
use crate::format::block_table::EntryKind;
use crate::format::two_level::Shape;
use crate::num::small;
use crate::storage::Storage;
use crate::{Error, Result};

/// A checked header.
#[derive(Clone, Debug)]
pub(super) struct Geometry {
    /// Bytes of the guest's disk.
    pub size: u64,
    pub cluster_bits: u8,
    pub l2_bits: u8,
    /// Where L1 is.
    pub l1: u64,
    /// Clusters are encrypted (the legacy AES).
    pub encrypted: bool,
    /// Name of the file below, and where it is written.
    pub backing: Option<(u64, String)>,
}

impl Geometry {
    /// Bytes of a cluster.
    pub fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bytes of the disk that an L2 table leads to.
    pub fn span(&self) -> u64 {
        1 << (self.cluster_bits + self.l2_bits)
    }

    /// Entries of L1.
    pub fn l1_entries(&self) -> u64 {
        self.size.div_ceil(self.span())
    }

    /// The tables.
    pub fn shape(&self) -> Shape {
        Shape {
            l1: self.l1,
            l1_entries: self.l1_entries(),
            l2_entries: 1 << self.l2_bits,
            // Other programs put tables at clusters, but nothing says that they must.
            align: 1,
            kind: EntryKind::Be64,
        }
    }

    /// Place and length of a compressed cluster.
    pub fn packed(&self, entry: u64) -> (u64, u64) {
        let bits = 63 - self.cluster_bits;
        (entry & ((1 << bits) - 1), entry >> bits & (self.cluster() - 1))
    }

    /// The entry of a compressed cluster; `None` where its place has too many bits.
    pub fn pack(&self, at: u64, len: u64) -> Option<u64> {
        let bits = 63 - self.cluster_bits;
        (at >> bits == 0 && len < self.cluster()).then_some(layout::COMPRESSED | len << bits | at)
    }
}

/// Reads the raw header of a file.
pub(super) fn read(storage: &dyn Storage) -> Result<Header> {
    let mut raw = Header::new_zeroed();
    storage.read_at(0, raw.as_mut_bytes())?;
    Ok(raw)
}

/// Most entries of L1 for clusters of that size.
pub(super) fn check_size(size: u64, span: u64) -> Result<()> {
    if size.checked_add(span).is_none() || size.div_ceil(span) > layout::MAX_L1 {
        return Err(Error::corrupt("Image too large"));
    }
    Ok(())
}

/// Reads and checks the header.
pub(super) fn geometry(storage: &dyn Storage) -> Result<Geometry> {
    let raw = read(storage)?;
    let len = storage.len()?;
    let bad = |at: u64, what: String| Error::corrupt(what).at_path(storage.name()).at_offset(at);
    if raw.magic.get() != layout::MAGIC {
        return Err(bad(0, "Image not in qcow format".to_owned()));
    }
    let version = raw.version.get();
    if version != layout::VERSION {
        return Err(bad(4, format!("qcow (v1) does not support qcow version {version}"))
            .hint("Try the 'qcow2' driver instead."));
    }
    let size = raw.size.get();
    if size <= 1 {
        return Err(bad(24, "Image size is too small (must be at least 2 bytes)".to_owned()));
    }
    if !layout::CLUSTER_BITS.contains(&raw.cluster_bits) {
        return Err(bad(32, "Cluster size must be between 512 and 64k".to_owned()));
    }
    if !layout::L2_BITS.contains(&raw.l2_bits) {
        return Err(bad(33, "L2 table size must be between 512 and 64k".to_owned()));
    }
    let crypt = raw.crypt_method.get();
    if crypt > layout::CRYPT_AES {
        return Err(bad(36, "invalid encryption method in qcow header".to_owned()));
    }
    check_size(size, 1 << (raw.cluster_bits + raw.l2_bits))
        .map_err(|e| e.at_path(storage.name()).at_offset(24))?;
    let geometry = Geometry {
        // A disk consists of whole sectors.
        size: crate::num::round_down(size, 512),
        cluster_bits: raw.cluster_bits,
        l2_bits: raw.l2_bits,
        l1: raw.l1_offset.get(),
        encrypted: crypt == layout::CRYPT_AES,
        backing: None,
    };
    let end = geometry.l1.checked_add(geometry.l1_entries() * 8);
    if end.is_none_or(|end| end > len) {
        return Err(bad(
            40,
            format!(
                "the L1 table at {:#x} ({} entries) ends beyond the end of the file ({len:#x})",
                geometry.l1,
                geometry.l1_entries()
            ),
        )
        .hint("the file is truncated or damaged; restore it from its source"));
    }
    let backing = backing(storage, &raw, len)?;
    Ok(Geometry { backing, ..geometry })
}

fn backing(storage: &dyn Storage, raw: &Header, len: u64) -> Result<Option<(u64, String)>> {
    let (at, name) = (raw.backing_offset.get(), u64::from(raw.backing_len.get()));
    if at == 0 {
        return Ok(None);
    }
    let bad = |at, what: &str| Error::corrupt(what).at_path(storage.name()).at_offset(at);
    if name > layout::MAX_NAME {
        return Err(bad(16, "Backing file name too long"));
    }
    if at.checked_add(name).is_none_or(|end| end > len) {
        return Err(bad(8, "the name of the backing file lies beyond the end of the file"));
    }
    let mut bytes = vec![0; small(name)];
    storage.read_at(at, &mut bytes)?;
    let name = String::from_utf8(bytes)
        .map_err(|_| bad(at, "the name of the backing file is not UTF-8"))?;
    Ok(Some((at, name)))
}

/// Changes fields of the header on disk; within one sector, so all or nothing.
pub(super) fn update(storage: &dyn Storage, change: impl FnOnce(&mut Header)) -> Result<()> {
    let mut raw = read(storage)?;
    change(&mut raw);
    storage.write_at(0, raw.as_bytes())
}
