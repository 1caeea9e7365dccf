//! Writing a stream-optimized image: append-only, grains in the order in which they are prepared.
//!
//! Layout (VMware, *Virtual Disk Format 5.0*, "Stream-Optimized Compressed Sparse Extents"):
//!
//! ```text
//! header (gdOffset = at end) | descriptor | grains ... | GT marker, table | grains ... | GT marker, table |
//! GD marker, directory | footer marker, footer | end-of-stream marker
//! ```
//!
//! A grain table follows the grains it covers: its place is reserved when the first grain of another
//! table is prepared, and it is written when its last grain is committed. Guests of an unusual order get
//! a second, newer table for the same range; the directory names the newest.
//!
//! Images made by QEMU have their tables in front and no footer; those are written like any sparse
//! extent ([`super::write`]), with compressed grains.

use std::collections::HashMap;

use zerocopy::IntoBytes;
use zerocopy::little_endian::U64;

use super::geometry;
use super::image::{Sparse, Tables, VmdkImage, load_into};
use super::layout::{self, MetadataMarker, SECTOR};
use super::tables::{Entry, Key, encode};
use super::write::check_room;
use crate::format::Grant;
use crate::num::{GuestOffset, HostOffset, len_u64, round_down, round_up, small};
use crate::storage::Preallocation;
use crate::{Error, Result};

/// Directory entry of a table that is only in memory so far.
const IN_MEMORY: u32 = u32::MAX;

/// A stream with its tables at the end, being written.
#[derive(Debug, Default)]
pub(super) struct Stream {
    /// Something was prepared: the old end of the file is gone.
    started: bool,
    /// The table that grains go to at present.
    open: Option<Key>,
    /// Grains prepared and not yet committed, by table.
    pending: HashMap<Key, u32>,
    /// Tables whose place is reserved and which wait for their last grains.
    closing: Vec<(Key, u64)>,
}

/// Bytes of a table with its marker.
fn table_room(sparse: Sparse<'_>) -> u64 {
    SECTOR + round_up(sparse.geometry.table_bytes(), SECTOR)
}

/// A marker and what follows it, padded to whole sectors.
fn marked(kind: u32, content: &[u8]) -> Vec<u8> {
    let sectors = len_u64(content.len()).div_ceil(SECTOR);
    let mut bytes = MetadataMarker::new(kind, sectors).as_bytes().to_vec();
    bytes.extend_from_slice(content);
    bytes.resize(small(SECTOR + sectors * SECTOR), 0);
    bytes
}

/// Error for a grain that is written a second time.
pub(super) fn allocated(sparse: Sparse<'_>, at: u64) -> Error {
    Error::errno(libc::EIO)
        .context("Could not write to allocated cluster for streamOptimized")
        .at_path(sparse.storage.name())
        .at_offset(at)
}

impl VmdkImage {
    /// Grants a place for a packed grain.
    pub(super) fn grant_packed(&self, at: u64, encoded_len: u64) -> Result<Grant> {
        let (sparse, offset) = self.writable_sparse(at)?;
        let g = sparse.geometry;
        if !g.compressed() {
            return Err(Error::errno(libc::ENOTSUP).at_offset(at));
        }
        if !offset.is_multiple_of(g.grain) {
            return Err(Error::errno(libc::EINVAL).at_offset(at));
        }
        let key = sparse.key(offset)?;
        let mut tables = self.write_tables();
        self.start(&mut tables, sparse)?;
        self.open_table(&mut tables, sparse, key)?;
        let table = load_into(&mut tables, sparse, key)?;
        if table.get(sparse.slot(offset)).is_none_or(|&e| e != Entry::NONE) {
            return Err(allocated(sparse, at));
        }
        let dir = &mut tables.dirs[small(u64::from(sparse.number))];
        let place = dir.next_free;
        let end = place + round_up(encoded_len, SECTOR);
        check_room(sparse, end)?;
        dir.next_free = end;
        if let Some(stream) = &mut tables.stream {
            *stream.pending.entry(key).or_default() += 1;
        }
        Ok(Grant {
            at: GuestOffset(at),
            len: g.grain.min(sparse.extent.len - offset),
            storage: sparse.id,
            offset: HostOffset(place),
            token: end,
            state: None,
        })
    }

    /// Takes the old directory and footer away before the first grain.
    fn start(&self, tables: &mut Tables, sparse: Sparse<'_>) -> Result<()> {
        let Some(stream) = &mut tables.stream else { return Ok(()) };
        if !std::mem::replace(&mut stream.started, true) {
            let end = sparse.geometry.overhead;
            sparse.storage.set_len(end, Preallocation::Off)?;
            let dir = &mut tables.dirs[small(u64::from(sparse.number))];
            dir.next_free = end;
            dir.gd.fill(0);
        }
        Ok(())
    }

    /// Makes `key` the table that grains go to.
    fn open_table(&self, tables: &mut Tables, sparse: Sparse<'_>, key: Key) -> Result<()> {
        let number = small(u64::from(sparse.number));
        let index = small(u64::from(key.index));
        let Some(stream) = &mut tables.stream else {
            // Tables in front: QEMU makes all of them beforehand.
            return match tables.dirs[number].gd.get(index) {
                Some(&e) if e != 0 => Ok(()),
                _ => Err(sparse.damaged(sparse.geometry.gd, "the grain table is missing")),
            };
        };
        if stream.open == Some(key) {
            return Ok(());
        }
        if let Some(old) = stream.open.replace(key) {
            let dir = &mut tables.dirs[number];
            let place = dir.next_free;
            dir.next_free += table_room(sparse);
            stream.closing.push((old, place));
            self.emit(tables, sparse, old)?;
        }
        let dir = &mut tables.dirs[number];
        let Some(slot) = dir.gd.get_mut(index) else {
            return Err(sparse.damaged(sparse.geometry.gd, "guest offset beyond the directory"));
        };
        if *slot == 0 {
            *slot = IN_MEMORY;
            tables.cache.insert(key, vec![Entry::NONE; small(sparse.geometry.gtes)]);
        } else {
            load_into(tables, sparse, key)?;
        }
        // Dirty from here on: it stays in memory until it has a place of its own.
        tables.cache.change(key);
        Ok(())
    }

    /// Writes a closed table if all its grains are there.
    fn emit(&self, tables: &mut Tables, sparse: Sparse<'_>, key: Key) -> Result<()> {
        let Some(stream) = &mut tables.stream else { return Ok(()) };
        if stream.pending.get(&key).is_some_and(|&n| n > 0) {
            return Ok(());
        }
        stream.pending.remove(&key);
        let open = stream.open;
        let mut places = Vec::new();
        stream.closing.retain(|&(k, place)| {
            if k == key {
                places.push(place);
            }
            k != key
        });
        let Some(table) = tables.cache.get(key).cloned() else { return Ok(()) };
        let bytes = marked(layout::MARKER_GT, &encode(&table));
        for place in places {
            sparse.storage.write_at(place, &bytes)?;
            let sector = u32::try_from(place / SECTOR + 1)
                .map_err(|_| sparse.damaged(place, "grain table out of reach"))?;
            let dir = &mut tables.dirs[small(u64::from(sparse.number))];
            if let Some(slot) = dir.gd.get_mut(small(u64::from(key.index))) {
                *slot = sector;
            }
            if open != Some(key) {
                tables.cache.written(key, &table);
            }
        }
        Ok(())
    }

    /// Links a packed grain.
    pub(super) fn link_packed(&self, grant: &Grant) -> Result<()> {
        let (sparse, offset) = self.writable_sparse(grant.at.0)?;
        let key = sparse.key(offset)?;
        let mut tables = self.write_tables();
        load_into(&mut tables, sparse, key)?;
        let table = tables.cache.change(key).ok_or_else(|| Error::errno(libc::EIO))?;
        let entry = table.get_mut(sparse.slot(offset)).ok_or_else(|| Error::errno(libc::EIO))?;
        *entry = grant.offset.0 / SECTOR;
        let dir = &mut tables.dirs[small(u64::from(sparse.number))];
        dir.limit = dir.limit.max(grant.token);
        self.settle(&mut tables, sparse, key)
    }

    /// One grain less to wait for.
    fn settle(&self, tables: &mut Tables, sparse: Sparse<'_>, key: Key) -> Result<()> {
        let Some(stream) = &mut tables.stream else { return Ok(()) };
        if let Some(n) = stream.pending.get_mut(&key) {
            *n = n.saturating_sub(1);
        }
        if stream.closing.iter().any(|&(k, _)| k == key) {
            self.emit(tables, sparse, key)?;
        }
        Ok(())
    }

    /// Gives the place of a packed grain back, or at least forgets about it.
    pub(super) fn give_back_packed(&self, grant: &Grant) {
        self.give_back(grant);
        let Ok((sparse, offset)) = self.writable_sparse(grant.at.0) else { return };
        let Ok(key) = sparse.key(offset) else { return };
        // An error here comes again when the stream is closed.
        let _ = self.settle(&mut self.write_tables(), sparse, key);
    }

    /// Writes what follows the last grain. Does nothing if there is no stream or nothing was written.
    pub(super) fn finish_stream(&self) -> Result<()> {
        let Some(sparse) = self.sparse(0) else { return Ok(()) };
        let mut tables = self.write_tables();
        let Some(stream) = &mut tables.stream else { return Ok(()) };
        if !stream.started {
            return Ok(());
        }
        if stream.pending.values().any(|&n| n > 0) {
            return Err(Error::invalid("grains of the stream were prepared and never stored")
                .at_path(sparse.storage.name()));
        }
        if let Some(last) = stream.open.take() {
            let dir = &mut tables.dirs[0];
            let place = dir.next_free;
            dir.next_free += table_room(sparse);
            if let Some(stream) = &mut tables.stream {
                stream.closing.push((last, place));
            }
            self.emit(&mut tables, sparse, last)?;
        }
        let (gd, place) = (tables.dirs[0].gd.clone(), tables.dirs[0].next_free);
        let header = geometry::sparse_header(&**sparse.storage)?;
        let end = write_tail(&**sparse.storage, header, &gd, place)?;
        sparse.storage.set_len(end, Preallocation::Off)?;
        tables.dirs[0].next_free = end;
        tables.stream = None;
        Ok(())
    }
}

/// Writes directory, footer and end-of-stream marker at `place`; gives the end of the file.
pub(super) fn write_tail(
    storage: &dyn crate::storage::Storage,
    header: layout::SparseHeader,
    gd: &[u32],
    place: u64,
) -> Result<u64> {
    debug_assert_eq!(place, round_down(place, SECTOR));
    let raw: Vec<u8> = gd.iter().flat_map(|e| e.to_le_bytes()).collect();
    let mut bytes = marked(layout::MARKER_GD, &raw);
    let footer = layout::SparseHeader { gd_offset: U64::new(place / SECTOR + 1), ..header };
    bytes.extend(marked(layout::MARKER_FOOTER, footer.as_bytes()));
    bytes.extend(MetadataMarker::new(layout::MARKER_EOS, 0).as_bytes());
    storage.write_at(place, &bytes)?;
    Ok(place + len_u64(bytes.len()))
}
