//! From raw header to checked geometry.

use zerocopy::{FromZeros, IntoBytes};

use super::layout::{self, Header, feature};
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
    /// Bytes of a cluster.
    pub cluster: u64,
    /// Clusters of a table.
    pub table_size: u64,
    /// Bytes of the header.
    pub header: u64,
    pub features: u64,
    pub compat_features: u64,
    pub autoclear_features: u64,
    /// Where L1 is.
    pub l1: u64,
    /// Name of the file below, and where it is written.
    pub backing: Option<(u64, String)>,
}

impl Geometry {
    /// Bytes of a table.
    pub fn table(&self) -> u64 {
        self.cluster * self.table_size
    }

    /// Entries of a table.
    pub fn entries(&self) -> u64 {
        self.table() / 8
    }

    /// The tables.
    pub fn shape(&self) -> Shape {
        Shape {
            l1: self.l1,
            l1_entries: self.entries(),
            l2_entries: self.entries(),
            align: self.cluster,
            kind: EntryKind::Le64,
        }
    }

    /// Whether a cluster may lie there: behind the header, in a file of `len` bytes.
    pub fn may_lie(&self, at: u64, len: u64) -> bool {
        at.is_multiple_of(self.cluster) && at >= self.header && at < len
    }
}

/// Largest disk of such tables; `None` where nothing limits it.
pub(super) fn max_size(cluster: u64, table_size: u64) -> Option<u64> {
    let entries = cluster * table_size / 8;
    entries.checked_mul(entries)?.checked_mul(cluster)
}

/// Whether a cluster may be of that many bytes.
pub(super) fn is_cluster(size: u64) -> bool {
    size.is_power_of_two() && (layout::MIN_CLUSTER..=layout::MAX_CLUSTER).contains(&size)
}

/// Whether a table may be of that many clusters.
pub(super) fn is_table(clusters: u64) -> bool {
    clusters.is_power_of_two() && clusters <= layout::MAX_TABLE
}

/// Reads the raw header of a file.
pub(super) fn read(storage: &dyn Storage) -> Result<Header> {
    let mut raw = Header::new_zeroed();
    storage.read_at(0, raw.as_mut_bytes())?;
    Ok(raw)
}

/// Reads and checks the header.
pub(super) fn geometry(storage: &dyn Storage) -> Result<Geometry> {
    let raw = read(storage)?;
    let len = storage.len()?;
    let bad = |at: u64, what: &str| Error::corrupt(what).at_path(storage.name()).at_offset(at);
    if raw.magic.get() != layout::MAGIC {
        return Err(bad(0, "Image not in QED format"));
    }
    let features = raw.features.get();
    let unknown = features & !feature::KNOWN;
    if unknown != 0 {
        return Err(Error::unsupported(format!("Unsupported QED features: {unknown:x}"))
            .at_path(storage.name())
            .at_offset(16));
    }
    let cluster = u64::from(raw.cluster_size.get());
    if !is_cluster(cluster) {
        return Err(bad(4, "QED cluster size is invalid"));
    }
    let table_size = u64::from(raw.table_size.get());
    if !is_table(table_size) {
        return Err(bad(8, "QED table size is invalid"));
    }
    let size = raw.size.get();
    let fits = max_size(cluster, table_size).is_none_or(|max| size <= max);
    if !size.is_multiple_of(512) || !fits || i64::try_from(size).is_err() {
        return Err(bad(48, "QED image size is invalid"));
    }
    let mut geometry = Geometry {
        size,
        cluster,
        table_size,
        header: u64::from(raw.header_size.get()) * cluster,
        features,
        compat_features: raw.compat_features.get(),
        autoclear_features: raw.autoclear_features.get(),
        l1: raw.l1_offset.get(),
        backing: None,
    };
    let last = geometry.l1.checked_add(geometry.table() - cluster);
    if !geometry.may_lie(geometry.l1, len) || last.is_none_or(|last| last >= len) {
        return Err(bad(40, "QED table offset is invalid"));
    }
    if features & feature::BACKING != 0 {
        geometry.backing = Some(backing(storage, &raw, &geometry)?);
    }
    Ok(geometry)
}

fn backing(storage: &dyn Storage, raw: &Header, g: &Geometry) -> Result<(u64, String)> {
    let (at, name) = (u64::from(raw.backing_offset.get()), u64::from(raw.backing_len.get()));
    let bad = |at, what: &str| Error::corrupt(what).at_path(storage.name()).at_offset(at);
    if at + name > g.header {
        return Err(bad(56, "QED backing filename offset is invalid"));
    }
    if name > layout::MAX_NAME {
        return Err(bad(60, "QED backing filename is too long"));
    }
    let mut bytes = vec![0; small(name)];
    storage.read_at(at, &mut bytes)?;
    let name = String::from_utf8(bytes)
        .map_err(|_| bad(at, "the name of the backing file is not UTF-8"))?;
    Ok((at, name))
}

/// Changes fields of the header on disk; within one sector, so all or nothing.
pub(super) fn update(storage: &dyn Storage, change: impl FnOnce(&mut Header)) -> Result<()> {
    let mut raw = read(storage)?;
    change(&mut raw);
    storage.write_at(0, raw.as_bytes())
}
