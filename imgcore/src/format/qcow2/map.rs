//! Where guest bytes are.

use super::crypt::PLAIN;
use super::image::Qcow2Image;
use super::tables::{Cluster, L2Entry, Tables};
use crate::format::{Extent, Mapping, StorageId};
use crate::num::{GuestOffset, HostOffset, round_down};
use crate::{Error, Result};

/// Id of the image file.
pub const IMAGE: StorageId = StorageId(0);
/// Id of the external data file.
pub const DATA_FILE: StorageId = StorageId(1);

/// What one lookup found.
enum Found {
    Extent(Extent),
    /// This slice of this table has to be loaded first.
    Missing {
        table: u64,
        at: u64,
    },
}

impl Qcow2Image {
    /// See [`crate::format::Image::map`].
    pub(super) fn map_range(&self, at: GuestOffset, len: u64) -> Result<Extent> {
        self.find(at, len).map_err(|e| e.at_path(self.file.name()))
    }

    fn find(&self, at: GuestOffset, len: u64) -> Result<Extent> {
        if self.unreadable() {
            return Err(self.unreadable_error());
        }
        let (table, slice) = {
            let tables = self.read_tables();
            match self.lookup(&tables, at.0, len)? {
                Found::Extent(extent) => return self.checked(extent, tables.file_len, at),
                Found::Missing { table, at } => (table, at),
            }
        };
        let mut tables = self.cached_tables();
        tables.load_slice(&*self.file, table, slice)?;
        match self.lookup(&tables, at.0, len)? {
            Found::Extent(extent) => self.checked(extent, tables.file_len, at),
            Found::Missing { at, .. } => {
                Err(Error::corrupt("table slice could not be loaded").at_offset(at))
            }
        }
    }

    /// Refuses clusters that lie wholly beyond the end of the image file; the last one in it may be cut short
    /// and then ends with zeroes.
    fn checked(&self, mut extent: Extent, file_len: u64, at: GuestOffset) -> Result<Extent> {
        let Mapping::Data { storage, offset, .. } = extent.mapping else { return Ok(extent) };
        let own = storage == IMAGE || (storage == PLAIN && self.data_file.is_none());
        if !own || offset.0.saturating_add(extent.len) <= file_len {
            return Ok(extent);
        }
        let clusters =
            self.file.len()?.checked_next_multiple_of(self.geometry.cluster()).unwrap_or(u64::MAX);
        if offset.0 >= clusters {
            return Err(Error::corrupt(format!(
                "guest offset {at} is mapped to host offset {offset}, beyond the end of the image file"
            ))
            .at_path(self.file.name())
            .at_offset(offset.0));
        }
        extent.len = extent.len.min(clusters - offset.0);
        Ok(extent)
    }

    fn lookup(&self, tables: &Tables, guest: u64, len: u64) -> Result<Found> {
        let g = &tables.geometry;
        let len = len.min(g.l2_span() - guest % g.l2_span());
        let Some((table, _)) = tables.l2_table(guest)? else {
            return Ok(Found::Extent(Extent { len, mapping: Mapping::Backing }));
        };
        let at = table + g.l2_byte(guest);
        let Some((bytes, from)) = tables.l2.peek(at) else {
            return Ok(Found::Missing { table, at });
        };
        let mut end = guest;
        let mut mapping: Option<Mapping> = None;
        let mut from = from;
        // Merge what follows seamlessly, within this slice.
        while end - guest < len && from < bytes.len() {
            let entry = tables.parse_entry(bytes, from);
            entry.check(g, tables.header.version, end)?;
            let whole = !g.extended || entry.is_compressed();
            let unit = if whole { g.cluster() } else { g.subcluster() };
            let cluster_end = round_down(end, g.cluster()) + g.cluster();
            while end < cluster_end && end - guest < len {
                let sub =
                    if whole { 0 } else { u32::try_from(end % g.cluster() / unit).unwrap_or(0) };
                let this = self.mapping_of(tables, entry, sub, end);
                match mapping {
                    None => mapping = Some(this),
                    Some(first) if continues(first, this, end - guest) => {}
                    Some(first) => {
                        return Ok(Found::Extent(Extent { len: end - guest, mapping: first }));
                    }
                }
                end = round_down(end, unit) + unit;
            }
            from += 1 << g.entry_bits;
        }
        let len = len.min(end - guest);
        Ok(Found::Extent(Extent { len, mapping: mapping.unwrap_or(Mapping::Backing) }))
    }

    fn mapping_of(&self, tables: &Tables, entry: L2Entry, sub: u32, guest: u64) -> Mapping {
        let g = &tables.geometry;
        let place =
            |cluster: u64| (self.guest_storage(), HostOffset(cluster + guest % g.cluster()));
        match entry.kind(g, sub) {
            Cluster::Unallocated | Cluster::UnallocatedPlaced(_) => Mapping::Backing,
            Cluster::Zero(host) => Mapping::Zero {
                // Places of encrypted data are nothing to show.
                reserved: host.map(place).filter(|_| self.crypt.is_none()),
            },
            Cluster::Compressed => {
                let (offset, _) = g.compressed_place(entry.descriptor);
                Mapping::Encoded { at: Some((IMAGE, HostOffset(offset))), compressed: true }
            }
            // Decrypted by the guest offset.
            Cluster::Data(_) if self.guest_keyed() => {
                Mapping::Encoded { at: None, compressed: false }
            }
            Cluster::Data(host) => {
                let (storage, offset) = place(host);
                Mapping::Data {
                    storage,
                    offset,
                    in_place: self.writable && entry.copied() && !tables.broken,
                    probe_holes: self.probe_holes(),
                }
            }
        }
    }
}

/// Whether `next`, found `distance` bytes after `first`, belongs to the same extent.
fn continues(first: Mapping, next: Mapping, distance: u64) -> bool {
    let follows = |a: (StorageId, HostOffset), b: (StorageId, HostOffset)| {
        a.0 == b.0 && a.1.0.checked_add(distance) == Some(b.1.0)
    };
    match (first, next) {
        (Mapping::Backing, Mapping::Backing)
        | (Mapping::Zero { reserved: None }, Mapping::Zero { reserved: None }) => true,
        // Encrypted, not compressed: any number of clusters can be read at once.
        (
            Mapping::Encoded { compressed: false, .. },
            Mapping::Encoded { compressed: false, .. },
        ) => true,
        (Mapping::Zero { reserved: Some(a) }, Mapping::Zero { reserved: Some(b) }) => follows(a, b),
        (
            Mapping::Data { storage: s, offset: o, in_place: i, .. },
            Mapping::Data { storage: t, offset: p, in_place: j, .. },
        ) => i == j && follows((s, o), (t, p)),
        _ => false,
    }
}
