//! An opened VMDK: its parts, and where guest bytes are.

use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::descriptor::{Descriptor, ExtentAccess, ExtentKind};
use super::geometry::Geometry;
use super::grain::{self, GrainCache, Packed};
use super::layout::SECTOR;
use super::staging::{STAGING, Staging};
use super::stream::Stream;
use super::tables::{Cache, Directory, Entry, Key, decode};
use crate::format::{self as contract, Access, Mapping, StorageId};
use crate::num::{HostOffset, len_u64, small};
use crate::storage::Storage;
use crate::{Error, Result};

/// An extent's place on the disk and how it stores bytes.
#[derive(Debug)]
pub(super) struct Extent {
    /// First guest byte.
    pub start: u64,
    /// Guest bytes.
    pub len: u64,
    /// As the descriptor calls it; `None` for the extent that holds the descriptor.
    pub kind: Option<ExtentKind>,
    pub access: ExtentAccess,
    pub body: Body,
}

/// How an extent stores bytes.
#[derive(Debug)]
pub(super) enum Body {
    /// As they are, from `offset` on.
    Flat { id: StorageId, offset: u64 },
    /// Not at all.
    Zero,
    /// In grains.
    Sparse { id: StorageId, geometry: Geometry },
}

/// What changes: all behind one lock, which is not held while data are read or written.
#[derive(Debug, Default)]
pub(super) struct Tables {
    /// One for each extent (empty where it is not sparse).
    pub dirs: Vec<Directory>,
    pub cache: Cache,
    /// The stream being written, if this is one with its tables at the end.
    pub stream: Option<Stream>,
}

/// An opened VMDK.
#[derive(Debug)]
pub(super) struct VmdkImage {
    /// The image file, then one for each extent in a file of its own.
    pub storages: Vec<Arc<dyn Storage>>,
    pub extents: Vec<Extent>,
    pub size: u64,
    pub access: Access,
    pub scratch: bool,
    pub descriptor: Descriptor,
    /// Where the descriptor is in the image file: `None` for all of it.
    pub descriptor_at: Option<(u64, u64)>,
    pub tables: RwLock<Tables>,
    /// Lets one flush write at a time, so that no older table overwrites a newer one.
    pub flushing: Mutex<()>,
    /// The content id, and whether it was renewed since opening.
    pub cid: Mutex<u32>,
    pub cid_renewed: AtomicBool,
    pub parent_cid: AtomicU32,
    pub parent_checked: AtomicBool,
    /// What is unlinked will be looked for and given back ([`contract::Image::begin_release`]).
    pub releasing: AtomicBool,
    pub grains: GrainCache,
    /// Where plain writes to a stream wait; twice, because the contract hands out the trait object.
    pub staging: Arc<Staging>,
    pub staging_storage: Arc<dyn Storage>,
}

/// A sparse extent with everything needed to work on it.
#[derive(Clone, Copy)]
pub(super) struct Sparse<'a> {
    pub extent: &'a Extent,
    pub number: u32,
    pub id: StorageId,
    pub geometry: &'a Geometry,
    pub storage: &'a Arc<dyn Storage>,
}

impl Sparse<'_> {
    pub(super) fn key(&self, offset: u64) -> Result<Key> {
        let index = u32::try_from(offset / self.geometry.table_cover())
            .map_err(|_| self.damaged(0, "guest offset beyond the grain directory"))?;
        Ok(Key { extent: self.number, index })
    }

    /// Index in its grain table of the grain at `offset` of the extent.
    pub(super) fn slot(&self, offset: u64) -> usize {
        small(offset / self.geometry.grain % self.geometry.gtes)
    }

    pub(super) fn damaged(&self, at: u64, what: impl Into<String>) -> Error {
        Error::corrupt(what).at_path(self.storage.name()).at_offset(at)
    }

    /// Whether grains here may be overwritten.
    fn in_place(&self, image: &VmdkImage, host: u64) -> bool {
        image.access == Access::Write
            && self.extent.access == ExtentAccess::ReadWrite
            // A grain in the header, descriptor or directory area is none of ours: whoever writes
            // there would write metadata. Such grains are copied elsewhere before they change.
            && host >= self.geometry.overhead
    }
}

impl VmdkImage {
    pub(super) fn read_tables(&self) -> RwLockReadGuard<'_, Tables> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write_tables(&self) -> RwLockWriteGuard<'_, Tables> {
        self.tables.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The storage of that id; the image file stands in for ids that this image never gave.
    pub(super) fn storage_of(&self, id: StorageId) -> &Arc<dyn Storage> {
        if id == STAGING {
            return &self.staging_storage;
        }
        self.storages.get(small(u64::from(id.0))).unwrap_or(&self.storages[0])
    }

    /// The extent that holds a guest byte, and the byte's offset in it.
    pub(super) fn find(&self, at: u64) -> Result<(usize, u64)> {
        let index = self.extents.partition_point(|e| e.start <= at).saturating_sub(1);
        match self.extents.get(index) {
            Some(e) if at - e.start < e.len => Ok((index, at - e.start)),
            _ => Err(Error::errno(libc::EIO).context("no extent has this byte").at_offset(at)),
        }
    }

    /// The sparse extent of that number.
    pub(super) fn sparse(&self, index: usize) -> Option<Sparse<'_>> {
        let extent = self.extents.get(index)?;
        let Body::Sparse { id, geometry } = &extent.body else { return None };
        let storage = self.storages.get(small(u64::from(id.0)))?;
        let number = u32::try_from(index).ok()?;
        Some(Sparse { extent, number, id: *id, geometry, storage })
    }

    /// Whether the grains at a guest offset are packed.
    pub(super) fn packed_at(&self, at: u64) -> bool {
        let sparse = self.find(at).ok().and_then(|(index, _)| self.sparse(index));
        sparse.is_some_and(|s| s.geometry.compressed())
    }

    /// All sparse extents.
    pub(super) fn sparse_extents(&self) -> impl Iterator<Item = Sparse<'_>> {
        (0..self.extents.len()).filter_map(|i| self.sparse(i))
    }

    /// Where guest bytes are; see [`contract::Image::map`].
    pub(super) fn locate(&self, at: u64, len: u64) -> Result<contract::Extent> {
        let (index, offset) = self.find(at)?;
        let extent = &self.extents[index];
        let len = len.min(extent.len - offset);
        let mapping = match &extent.body {
            Body::Flat { id, offset: start } => Mapping::Data {
                storage: *id,
                offset: HostOffset(start + offset),
                in_place: self.access == Access::Write && extent.access == ExtentAccess::ReadWrite,
                probe_holes: true,
            },
            Body::Zero => Mapping::Zero { reserved: None },
            Body::Sparse { .. } => {
                let Some(sparse) = self.sparse(index) else {
                    return Err(Error::errno(libc::EIO).at_offset(at));
                };
                return self.locate_sparse(sparse, offset, len);
            }
        };
        Ok(contract::Extent { len, mapping })
    }

    fn locate_sparse(&self, sparse: Sparse<'_>, offset: u64, len: u64) -> Result<contract::Extent> {
        let key = sparse.key(offset)?;
        {
            let tables = self.read_tables();
            let dir = &tables.dirs[small(u64::from(sparse.number))];
            if let Some(run) = missing_tables(dir, sparse.geometry, offset, len) {
                return Ok(contract::Extent { len: run, mapping: Mapping::Backing });
            }
            if let Some(table) = tables.cache.get(key) {
                return self.run(sparse, table, dir.limit, offset, len);
            }
        }
        let table = self.load(sparse, key)?;
        let limit = self.limit(sparse);
        self.run(sparse, &table, limit, offset, len)
    }

    /// The table of that key, read if necessary; `key` must have one.
    pub(super) fn load(&self, sparse: Sparse<'_>, key: Key) -> Result<Arc<Vec<u64>>> {
        if let Some(table) = self.read_tables().cache.get(key) {
            return Ok(Arc::clone(table));
        }
        load_into(&mut self.write_tables(), sparse, key)
    }

    /// Where the grains of an extent end, as far as is known.
    fn limit(&self, sparse: Sparse<'_>) -> u64 {
        self.read_tables().dirs[small(u64::from(sparse.number))].limit
    }

    /// The longest run with one mapping inside one table.
    fn run(
        &self,
        sparse: Sparse<'_>,
        table: &[u64],
        limit: u64,
        offset: u64,
        len: u64,
    ) -> Result<contract::Extent> {
        let g = sparse.geometry;
        let first = sparse.slot(offset);
        let inside = offset % g.grain;
        let entry = table.get(first).copied().unwrap_or(Entry::BAD);
        let wanted = small((inside + len).div_ceil(g.grain));
        let rest = table.get(first..).unwrap_or_default();
        let rest = &rest[..wanted.min(rest.len())];
        let (count, mapping) = if entry <= Entry::ZERO {
            let same = rest.iter().take_while(|&&e| e == entry).count();
            let zero = Mapping::Zero { reserved: None };
            (same, if entry == Entry::NONE { Mapping::Backing } else { zero })
        } else if g.compressed() {
            let same = rest.iter().take_while(|&&e| e > Entry::ZERO && e != Entry::BAD).count();
            let host = HostOffset(entry.saturating_mul(SECTOR));
            (same, Mapping::Encoded { at: Some((sparse.id, host)), compressed: true })
        } else {
            let step = g.grain / SECTOR;
            let place = |sector: u64| sector.saturating_mul(SECTOR);
            let in_place = sparse.in_place(self, place(entry));
            let mut next = entry;
            let mut count = 0;
            for &e in rest {
                if e != next || sparse.in_place(self, place(e)) != in_place {
                    break;
                }
                count += 1;
                next = next.saturating_add(step);
            }
            let last = place(entry) + (len_u64(count.max(1)) - 1) * g.grain;
            self.check_place(sparse, offset, entry, last, limit)?;
            let host = HostOffset(place(entry) + inside);
            let data =
                Mapping::Data { storage: sparse.id, offset: host, in_place, probe_holes: false };
            (count, data)
        };
        if count == 0 {
            return Err(bad_entry(sparse, offset, entry, limit));
        }
        let run = len_u64(count) * g.grain - inside;
        Ok(contract::Extent { len: run.min(len), mapping })
    }

    /// Refuses grains that begin beyond the end of the file.
    fn check_place(
        &self,
        sparse: Sparse<'_>,
        offset: u64,
        entry: u64,
        last: u64,
        limit: u64,
    ) -> Result<()> {
        if entry == Entry::BAD {
            return Err(bad_entry(sparse, offset, entry, limit));
        }
        // Another process may have made the file longer since it was opened (shared use).
        if last >= limit && last >= sparse.storage.len()? {
            return Err(bad_entry(sparse, offset, entry, limit));
        }
        Ok(())
    }

    /// Reads from compressed grains.
    pub(super) fn read_packed(&self, mut at: u64, mut buf: &mut [u8]) -> Result<()> {
        while !buf.is_empty() {
            let (index, offset) = self.find(at)?;
            let sparse = self.sparse(index).ok_or_else(|| Error::errno(libc::EIO))?;
            let g = sparse.geometry;
            let inside = offset % g.grain;
            let here = (g.grain - inside).min(sparse.extent.len - offset).min(len_u64(buf.len()));
            let (part, rest) = buf.split_at_mut(small(here));
            let packed = self.packed_place(sparse, offset)?;
            let all = (sparse.extent.len - (offset - inside)).min(g.grain);
            if let Some(whole) = self.grains.get(sparse.number, packed.at) {
                part.copy_from_slice(&whole[small(inside)..small(inside) + part.len()]);
            } else if here == g.grain && all == g.grain {
                grain::unpack(&**sparse.storage, g, packed, part)?;
            } else {
                let mut whole = vec![0; small(g.grain)];
                grain::unpack(&**sparse.storage, g, packed, &mut whole)?;
                part.copy_from_slice(&whole[small(inside)..small(inside) + part.len()]);
                self.grains.put(sparse.number, packed.at, Arc::new(whole));
            }
            at += here;
            buf = rest;
        }
        Ok(())
    }

    /// Where the packed grain of `offset` is. The next entry tells how much to read at once: streams
    /// store grains one after the other.
    fn packed_place(&self, sparse: Sparse<'_>, offset: u64) -> Result<Packed> {
        let table = self.load(sparse, sparse.key(offset)?)?;
        let g = sparse.geometry;
        let slot = sparse.slot(offset);
        let entry = table.get(slot).copied().unwrap_or(Entry::BAD);
        let limit = self.limit(sparse);
        if entry <= Entry::ZERO || entry == Entry::BAD || entry.saturating_mul(SECTOR) >= limit {
            return Err(bad_entry(sparse, offset, entry, limit));
        }
        let at = entry * SECTOR;
        let next = table.get(slot + 1).copied().unwrap_or(Entry::NONE);
        let guess = match next.checked_sub(entry) {
            Some(d) if next != Entry::BAD && d > 0 && d * SECTOR <= 2 * g.grain => d * SECTOR,
            _ => g.grain / 2,
        };
        Ok(Packed { at, guess: guess.min(limit - at) })
    }
}

/// Guest bytes from `offset` on whose tables do not exist; `None` when the first one does.
fn missing_tables(dir: &Directory, g: &Geometry, offset: u64, len: u64) -> Option<u64> {
    let cover = g.table_cover();
    let first = offset / cover;
    let last = (offset + len).div_ceil(cover);
    let entries = dir.gd.get(small(first)..small(last)).unwrap_or_default();
    match entries.iter().position(|&e| e != 0) {
        Some(0) => None,
        Some(n) => Some(((first + len_u64(n)) * cover - offset).min(len)),
        None => Some(len),
    }
}

/// Reads a table into the cache, choosing the redundant copy if only that one makes sense.
pub(super) fn load_into(
    tables: &mut Tables,
    sparse: Sparse<'_>,
    key: Key,
) -> Result<Arc<Vec<u64>>> {
    if let Some(table) = tables.cache.get(key) {
        return Ok(Arc::clone(table));
    }
    let g = sparse.geometry;
    let dir = &tables.dirs[small(u64::from(sparse.number))];
    let Some(at) = dir.table_at(key.index, g) else {
        return Err(sparse.damaged(g.gd, "the grain directory has no such table"));
    };
    let mut raw = vec![0; small(g.table_bytes())];
    sparse.storage.read_at(at, &mut raw)?;
    let mut table = decode(&raw, g);
    if let Some(second) = dir.redundant_at(key.index)
        && !plausible(&table, dir.limit)
    {
        sparse.storage.read_at(second, &mut raw)?;
        let other = decode(&raw, g);
        if plausible(&other, dir.limit) {
            table = other;
        }
    }
    tables.cache.insert(key, table);
    tables.cache.get(key).cloned().ok_or_else(|| Error::errno(libc::EIO))
}

/// Whether all grains of a table lie inside the file.
fn plausible(table: &[u64], limit: u64) -> bool {
    table.iter().all(|&e| e <= Entry::ZERO || e.saturating_mul(SECTOR) < limit)
}

/// Error for an entry that leads nowhere.
fn bad_entry(sparse: Sparse<'_>, offset: u64, entry: u64, limit: u64) -> Error {
    let guest = sparse.extent.start + offset;
    let what = if entry == Entry::BAD {
        format!("The grain table entry for guest offset {guest:#x} is invalid")
    } else {
        format!(
            "The grain for guest offset {guest:#x} is said to be at {:#x}, beyond the end of the file ({limit:#x})",
            entry.saturating_mul(SECTOR)
        )
    };
    sparse
        .damaged(entry.saturating_mul(SECTOR), what)
        .hint("the file is truncated or damaged; restore it from its source")
}
