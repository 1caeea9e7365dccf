//! Persistent dirty bitmaps: the operations, and recording what an open image's writes touch.
//!
//! # Order of writes
//!
//! New data, tables and directory go to clusters of their own; one write of the header makes them the
//! image's bitmaps; then the old ones become free. A crash leaves the bitmaps of before or of after,
//! and leaks at worst.
//!
//! Before the first write to a disk with enabled bitmaps their entries are marked "in use" in place
//! (one sector each) and that is waited for; the bits are kept in memory and stored when the image is
//! closed. After a crash the mark tells that the bitmap missed writes. The mark is taken off by the
//! same switch of the header that brings the new bits.
//!
//! Without the autoclear bit somebody wrote to the image who knows nothing of bitmaps: they are as good
//! as gone.
//!
//! Lock order: recorder, then tables.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::bitmap_bits::{Bits, Chunk};
use super::bitmap_dir::{
    ENTRY_ONES, Entry, GRANULARITY_BITS, MAX_BITMAP_BYTES, MAX_BITMAPS, MAX_NAME, Place, encode,
    flag, read,
};
use super::image::Qcow2Image;
use super::layout::{autoclear, ext};
use super::tables::Tables;
use crate::format::Resize;
use crate::format::info::Qcow2BitmapInfo;
use crate::format::{BitmapInfo, BitmapStore};
use crate::num::{len_u64, small};
use crate::{Error, ErrorKind, Result};

/// Bitmaps being recorded, by name.
type Recorded = Vec<(Vec<u8>, Bits)>;
/// Keeps others from recording.
pub(super) type RecorderGuard<'a> = MutexGuard<'a, Option<Recorded>>;

/// What writes are recorded in.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    /// Known that nothing has to be recorded.
    quiet: AtomicBool,
    /// `None` before the first write.
    active: Mutex<Option<Recorded>>,
}

impl Recorder {
    fn lock(&self) -> RecorderGuard<'_> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A bitmap to be stored; `None`: its table stays as it is.
struct Item {
    entry: Entry,
    bits: Option<Bits>,
}

impl Item {
    fn kept(entry: Entry) -> Self {
        Item { entry, bits: None }
    }
}

fn missing(name: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("Dirty bitmap '{name}' not found"))
}

impl Qcow2Image {
    /// The directory; empty where the autoclear bit says that it is not valid.
    fn bitmap_entries(&self, tables: &Tables) -> Result<Vec<Entry>> {
        let h = &tables.header;
        if h.autoclear & autoclear::BITMAPS == 0 {
            return Ok(Vec::new());
        }
        match Place::of(h).map_err(|e| e.at_path(self.file.name()))? {
            Some(place) => read(&*self.file, place, self.geometry.cluster(), h.size),
            None => Ok(Vec::new()),
        }
    }

    /// Finds a bitmap that can be used.
    fn usable(entries: &[Entry], name: &str) -> Result<usize> {
        let index =
            entries.iter().position(|e| e.name == name.as_bytes()).ok_or_else(|| missing(name))?;
        if entries[index].in_use() {
            return Err(Error::corrupt(format!(
                "Bitmap '{name}' is inconsistent and cannot be used"
            ))
            .hint("Try block-dirty-bitmap-remove to delete this bitmap from disk"));
        }
        Ok(index)
    }

    /// Stores bytes in clusters of their own.
    fn place_bitmap_bytes(&self, tables: &mut Tables, bytes: &[u8]) -> Result<u64> {
        let cluster = self.geometry.cluster();
        let n = len_u64(bytes.len()).div_ceil(cluster).max(1);
        let (at, _) = tables.refs.allocate(&*self.file, n, n)?;
        let mut whole = bytes.to_vec();
        whole.resize(small(n * cluster), 0);
        self.file.write_at(at, &whole)?;
        Ok(at)
    }

    /// Writes new bits and their table; returns what they replace.
    fn place_bits(&self, tables: &mut Tables, item: &mut Item) -> Result<Vec<(u64, u64)>> {
        let Some(bits) = &mut item.bits else { return Ok(Vec::new()) };
        let cluster = self.geometry.cluster();
        let mut old: Vec<(u64, u64)> = bits.replaced.drain(..).map(|at| (at, cluster)).collect();
        if item.entry.table_offset != 0 {
            old.push((item.entry.table_offset, u64::from(item.entry.table_entries) * 8));
        }
        let mut table = Vec::with_capacity(bits.chunks.len() * 8);
        for chunk in &mut bits.chunks {
            let word = match chunk {
                Chunk::Zero => 0,
                Chunk::Ones => ENTRY_ONES,
                Chunk::Stored(at) => *at,
                Chunk::Held(bytes) if crate::storage::zero::is_zero(bytes) => 0,
                Chunk::Held(bytes) => self.place_bitmap_bytes(tables, bytes)?,
            };
            table.extend_from_slice(&word.to_be_bytes());
        }
        item.entry.table_entries =
            u32::try_from(bits.chunks.len()).map_err(|_| Error::errno(libc::EFBIG))?;
        item.entry.table_offset = self.place_bitmap_bytes(tables, &table)?;
        Ok(old)
    }

    /// Makes `items` the image's bitmaps. `gone`: further places that become free.
    fn store_bitmaps(
        &self,
        tables: &mut Tables,
        mut items: Vec<Item>,
        mut gone: Vec<(u64, u64)>,
    ) -> Result<()> {
        for item in &mut items {
            gone.extend(self.place_bits(tables, item)?);
        }
        let list: Vec<Entry> = items.into_iter().map(|i| i.entry).collect();
        let valid = tables.header.autoclear & autoclear::BITMAPS != 0;
        let old_dir = if valid { Place::of(&tables.header)? } else { None };
        let mut header = tables.header.clone();
        if list.is_empty() {
            header.set_extension(ext::BITMAPS, None);
            header.autoclear &= !autoclear::BITMAPS;
        } else {
            let bytes = encode(&list)?;
            let offset = self.place_bitmap_bytes(tables, &bytes)?;
            let place = Place {
                count: u32::try_from(list.len()).map_err(|_| Error::errno(libc::EFBIG))?,
                size: len_u64(bytes.len()),
                offset,
            };
            header.set_extension(ext::BITMAPS, Some(place.to_bytes()));
            header.autoclear |= autoclear::BITMAPS;
        }
        self.settle(tables)?;
        // Settling may have moved the refcount table.
        header.reftable_offset = tables.header.reftable_offset;
        header.reftable_clusters = tables.header.reftable_clusters;
        header.incompatible = tables.header.incompatible;
        header
            .write(&*self.file)
            .and_then(|()| self.barrier())
            .map_err(|e| e.context("Failed to update bitmap extension"))?;
        tables.header = header;
        gone.extend(old_dir.map(|p| (p.offset, p.size)));
        for (at, len) in gone {
            tables.refs.free_later(at, len);
        }
        // Nothing on disk refers to them any more: the file system gets what became free.
        tables.freed.clear();
        self.settle(tables)?;
        for (at, len) in std::mem::take(&mut tables.freed) {
            self.file.discard(at, len)?;
        }
        Ok(())
    }

    /// Host ranges of a bitmap that goes away.
    fn bitmap_places(&self, entry: &Entry) -> Result<Vec<(u64, u64)>> {
        let cluster = self.geometry.cluster();
        let mut all = vec![(entry.table_offset, u64::from(entry.table_entries) * 8)];
        let table = super::open::read_table(
            &*self.file,
            entry.table_offset,
            u64::from(entry.table_entries),
        )?;
        for word in table {
            // What is not valid is left to a check.
            if let Ok(Some(at)) = super::bitmap_dir::table_entry(word, cluster) {
                all.push((at, cluster));
            }
        }
        Ok(all)
    }

    /// Sets or clears the "in use" mark of entries where they are.
    fn mark_in_use(&self, entries: &[Entry], on: bool) -> Result<()> {
        for e in entries {
            let flags = if on { e.flags | flag::IN_USE } else { e.flags & !flag::IN_USE };
            self.file.write_at(e.flags_at, &flags.to_be_bytes())?;
        }
        self.barrier()
    }

    /// See [`crate::format::Image::note_write`].
    pub(super) fn record_write(&self, at: u64, len: u64) -> Result<()> {
        if self.recorder.quiet.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut active = self.recorder.lock();
        if active.is_none() {
            *active = self.start_recording()?;
        }
        let Some(list) = &mut *active else {
            self.recorder.quiet.store(true, Ordering::Release);
            return Ok(());
        };
        for (_, bits) in list {
            bits.mark(&*self.file, at, len)?;
        }
        Ok(())
    }

    fn start_recording(&self) -> Result<Option<Recorded>> {
        let tables = self.write_tables();
        if self.check_usable(&tables).is_err() {
            return Ok(None);
        }
        let mut entries = self.bitmap_entries(&tables)?;
        entries.retain(|e| e.flags & flag::AUTO != 0 && !e.in_use());
        if entries.is_empty() {
            return Ok(None);
        }
        let mut list = Vec::new();
        for e in &entries {
            let bits = Bits::load(&*self.file, e, tables.header.size, self.geometry.cluster())?;
            list.push((e.name.clone(), bits));
        }
        self.mark_in_use(&entries, true)?;
        Ok(Some(list))
    }

    /// Stores what was recorded and takes the marks off. As long as the guard is held no write begins to
    /// record anew.
    pub(super) fn finish_recording(&self) -> Result<RecorderGuard<'_>> {
        let mut active = self.recorder.lock();
        self.recorder.quiet.store(false, Ordering::Release);
        let Some(list) = active.take() else { return Ok(active) };
        let mut tables = self.write_tables();
        if tables.broken {
            return Ok(active);
        }
        let entries = self.bitmap_entries(&tables)?;
        let mut recorded: Vec<(Vec<u8>, Option<Bits>)> =
            list.into_iter().map(|(name, bits)| (name, Some(bits))).collect();
        let mut items = Vec::new();
        for mut entry in entries {
            let bits = recorded
                .iter_mut()
                .find(|(name, _)| *name == entry.name)
                .and_then(|(_, bits)| bits.take());
            if bits.is_some() {
                entry.flags &= !flag::IN_USE;
            }
            items.push(Item { entry, bits });
        }
        self.store_bitmaps(&mut tables, items, Vec::new())?;
        drop(tables);
        Ok(active)
    }

    /// Changes one bitmap: `change` gets its entry and, if `bits` is wanted, its bits.
    fn change_bitmap(
        &self,
        name: &str,
        change: impl FnOnce(&mut Entry, &mut Bits) -> Result<()>,
    ) -> Result<()> {
        let _recorder = self.finish_recording()?;
        let mut tables = self.write_tables();
        self.check_usable(&tables)?;
        self.settle(&mut tables)?;
        let mut entries = self.bitmap_entries(&tables)?;
        let index = Self::usable(&entries, name)?;
        let disk = tables.header.size;
        let mut bits = Bits::load(&*self.file, &entries[index], disk, self.geometry.cluster())?;
        let before = bits.clone();
        change(&mut entries[index], &mut bits)?;
        let mut items: Vec<Item> = entries.into_iter().map(Item::kept).collect();
        if bits != before {
            items[index].bits = Some(bits);
        }
        self.store_bitmaps(&mut tables, items, Vec::new())
    }

    /// Changes the disk's size together with its bitmaps. While it happens they are marked "in use".
    pub(super) fn resize_with_bitmaps(&self, request: Resize) -> Result<()> {
        let _recorder = self.finish_recording()?;
        let (entries, disk) = {
            let tables = self.write_tables();
            self.check_usable(&tables)?;
            (self.bitmap_entries(&tables)?, tables.header.size)
        };
        if entries.is_empty() {
            return self.resize_disk(request);
        }
        if entries.iter().any(Entry::in_use) {
            return Err(Error::unsupported(
                "Cannot resize qcow2 with persistent bitmaps that were not loaded into memory",
            )
            .hint("remove the bitmaps that are in use first"));
        }
        let mut items = Vec::new();
        for entry in &entries {
            let mut bits = Bits::load(&*self.file, entry, disk, self.geometry.cluster())?;
            bits.resize(&*self.file, request.size)?;
            items.push(Item { entry: entry.clone(), bits: Some(bits) });
        }
        self.mark_in_use(&entries, true)?;
        if let Err(e) = self.resize_disk(request) {
            if self.disk_size() == disk {
                self.mark_in_use(&entries, false)?;
            }
            return Err(e);
        }
        let mut tables = self.write_tables();
        self.store_bitmaps(&mut tables, items, Vec::new())
    }

    /// Removes all bitmaps.
    pub(super) fn drop_bitmaps(&self, tables: &mut Tables) -> Result<()> {
        let mut gone = Vec::new();
        for entry in self.bitmap_entries(tables)? {
            gone.extend(self.bitmap_places(&entry)?);
        }
        if tables.header.extension(ext::BITMAPS).is_none() {
            return Ok(());
        }
        self.store_bitmaps(tables, Vec::new(), gone)
    }

    /// For `info`.
    pub(super) fn bitmap_details(&self, tables: &Tables) -> Result<Option<Vec<Qcow2BitmapInfo>>> {
        let entries = self.bitmap_entries(tables)?;
        let flags = |e: &Entry| {
            let named = [(flag::IN_USE, "in-use"), (flag::AUTO, "auto")];
            named.iter().filter(|(f, _)| e.flags & f != 0).map(|(_, n)| (*n).to_owned()).collect()
        };
        let list: Vec<Qcow2BitmapInfo> = entries
            .iter()
            .map(|e| Qcow2BitmapInfo {
                name: e.name_text(),
                granularity: e.granularity(),
                flags: flags(e),
            })
            .collect();
        Ok((!list.is_empty()).then_some(list))
    }

    /// Checks what a new bitmap must satisfy; returns log2 of its granularity.
    fn check_new_bitmap(
        &self,
        tables: &Tables,
        entries: &[Entry],
        name: &str,
        granularity: u64,
    ) -> Result<u8> {
        if name.is_empty() {
            return Err(Error::invalid("Bitmap name cannot be empty"));
        }
        let granularity = match granularity {
            0 => self.geometry.cluster().clamp(4096, 65536),
            g => g,
        };
        let bits = u8::try_from(granularity.trailing_zeros()).unwrap_or(u8::MAX);
        if !granularity.is_power_of_two() || !GRANULARITY_BITS.contains(&bits) {
            return Err(Error::invalid("Granularity must be power of 2 and at least 512"));
        }
        if entries.iter().any(|e| e.name == name.as_bytes()) {
            return Err(Error::invalid(format!("Bitmap already exists: {name}")));
        }
        let refuse = |why: String| {
            let file = self.file.name();
            Err(Error::invalid(format!("Can't make bitmap '{name}' persistent in '{file}': {why}")))
        };
        if self.version < 3 || tables.header.version < 3 {
            return refuse("Cannot store dirty bitmaps in qcow2 v2 files".to_owned());
        }
        if tables.header.size == 0 {
            return refuse("the disk is empty".to_owned());
        }
        if tables.header.size.div_ceil(granularity).div_ceil(8) > MAX_BITMAP_BYTES {
            return refuse(
                "Too much space will be occupied by the bitmap. Use larger granularity".to_owned(),
            );
        }
        if name.len() > MAX_NAME {
            return refuse(format!("Name length exceeds maximum ({MAX_NAME} characters)"));
        }
        if entries.len() >= MAX_BITMAPS {
            return refuse("Maximum number of persistent bitmaps is already reached".to_owned());
        }
        Ok(bits)
    }
}

impl BitmapStore for Qcow2Image {
    fn can_store(&self) -> bool {
        self.version >= 3
    }

    fn list(&self) -> Result<Vec<BitmapInfo>> {
        let active = self.recorder.lock();
        let recorded = |e: &Entry| {
            active.as_ref().is_some_and(|list| list.iter().any(|(name, _)| *name == e.name))
        };
        let tables = self.read_tables();
        let entries = self.bitmap_entries(&tables)?;
        Ok(entries
            .iter()
            .map(|e| BitmapInfo {
                name: e.name_text(),
                granularity: e.granularity(),
                in_use: e.in_use() && !recorded(e),
                auto: e.flags & flag::AUTO != 0,
            })
            .collect())
    }

    fn add(&self, name: &str, granularity: u64) -> Result<()> {
        let _recorder = self.finish_recording()?;
        let mut tables = self.write_tables();
        self.check_usable(&tables)?;
        let entries = self.bitmap_entries(&tables)?;
        let granularity_bits = self.check_new_bitmap(&tables, &entries, name, granularity)?;
        self.settle(&mut tables)?;
        let bits = Bits::empty(tables.header.size, granularity_bits, self.geometry.cluster())?;
        let mut items: Vec<Item> = entries.into_iter().map(Item::kept).collect();
        items.push(Item {
            entry: Entry {
                name: name.as_bytes().to_vec(),
                table_offset: 0,
                table_entries: 0,
                flags: flag::AUTO,
                granularity_bits,
                flags_at: 0,
            },
            bits: Some(bits),
        });
        self.store_bitmaps(&mut tables, items, Vec::new())
    }

    fn remove(&self, name: &str) -> Result<()> {
        let _recorder = self.finish_recording()?;
        let mut tables = self.write_tables();
        self.check_usable(&tables)?;
        self.settle(&mut tables)?;
        let mut entries = self.bitmap_entries(&tables)?;
        let index =
            entries.iter().position(|e| e.name == name.as_bytes()).ok_or_else(|| missing(name))?;
        let gone = self.bitmap_places(&entries.remove(index))?;
        let items = entries.into_iter().map(Item::kept).collect();
        self.store_bitmaps(&mut tables, items, gone)
    }

    fn clear(&self, name: &str) -> Result<()> {
        self.change_bitmap(name, |_, bits| {
            bits.clear();
            Ok(())
        })
    }

    fn set_enabled(&self, name: &str, enabled: bool) -> Result<()> {
        self.change_bitmap(name, |entry, _| {
            entry.flags =
                if enabled { entry.flags | flag::AUTO } else { entry.flags & !flag::AUTO };
            Ok(())
        })
    }

    fn dirty_ranges(&self, name: &str) -> Result<Vec<(u64, u64)>> {
        let active = self.recorder.lock();
        if let Some((_, bits)) =
            active.iter().flatten().find(|(recorded, _)| recorded == name.as_bytes())
        {
            return bits.ranges(&*self.file);
        }
        let tables = self.read_tables();
        let entries = self.bitmap_entries(&tables)?;
        let index = Self::usable(&entries, name)?;
        Bits::load(&*self.file, &entries[index], tables.header.size, self.geometry.cluster())?
            .ranges(&*self.file)
    }

    fn mark(&self, name: &str, ranges: &[(u64, u64)]) -> Result<()> {
        self.change_bitmap(name, |_, bits| {
            for &(at, len) in ranges {
                bits.mark(&*self.file, at, len)?;
            }
            Ok(())
        })
    }
}
