//! An opened VHDX: its parts, and where guest bytes are.

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::header::{self, Current, Region, Regions};
use super::layout::{self, BITMAP_SECTORS, FILE_SIGNATURE, MIB, place_of, state, state_of};
use super::log::{self, LogWriter};
use super::metadata::{self, Metadata};
use super::overlay::{OnDisk, Overlay};
use super::parent;
use crate::format::block_table::{BlockTable, EntryKind};
use crate::format::uuid::Uuid;
use crate::format::{Access, BackingRef, Extent, Mapping, OpenContext, StorageId};
use crate::num::{HostOffset, len_u64, small};
use crate::storage::Storage;
use crate::{Error, ErrorKind, Result};

/// Bitmaps of blocks that are kept.
const MAX_BITMAPS: usize = 256;

/// What changes: all behind one lock, which is not held while data are read or written.
#[derive(Debug)]
pub(super) struct State {
    pub meta: Metadata,
    pub regions: Regions,
    pub bat: BlockTable,
    /// Where data end, as far as is known.
    pub limit: u64,
    bitmaps: HashMap<u64, Arc<Vec<u8>>>,
}

/// What a writer needs: one at a time.
#[derive(Debug)]
pub(super) struct Writing {
    pub header: Current,
    /// Present from the first change on.
    pub log: Option<LogWriter>,
}

/// An opened image.
#[derive(Debug)]
pub(super) struct VhdxImage {
    /// The file, or what it will be when its log is replayed.
    pub storage: Arc<dyn Storage>,
    pub access: Access,
    /// Private and unfinished: order of writes does not matter.
    pub scratch: bool,
    pub creator: String,
    /// The log was not empty.
    pub dirty: bool,
    pub backing: Option<BackingRef>,
    pub state: RwLock<State>,
    pub writing: Mutex<Writing>,
    /// The file below is the one that this image was made on.
    pub parent_checked: AtomicBool,
    /// This opening has told that it writes.
    pub begun: AtomicBool,
}

impl State {
    pub fn new(meta: Metadata, regions: Regions, limit: u64) -> Self {
        let count = bat_entries(&meta, meta.size);
        let bat = BlockTable::new(regions.bat.offset, count, EntryKind::Le64);
        State { meta, regions, bat, limit, bitmaps: HashMap::new() }
    }

    /// Blocks of the guest's disk.
    pub fn blocks(&self) -> u64 {
        self.meta.size.div_ceil(self.meta.block)
    }

    /// The entry of a block: after each chunk comes the entry of its sector bitmap.
    pub fn entry_of(&self, block: u64) -> u64 {
        block + block / chunk(&self.meta)
    }
}

/// Blocks that a sector bitmap block tells of (2.5).
pub(super) fn chunk(meta: &Metadata) -> u64 {
    (BITMAP_SECTORS * meta.logical / meta.block).max(1)
}

/// Entries of the table for a disk of `size` bytes (2.5).
pub(super) fn bat_entries(meta: &Metadata, size: u64) -> u64 {
    let blocks = size.div_ceil(meta.block);
    let chunk = chunk(meta);
    if meta.parent.is_some() {
        blocks.div_ceil(chunk) * (chunk + 1)
    } else {
        blocks + blocks.saturating_sub(1) / chunk
    }
}

/// Opens an image file.
pub(super) fn open(cx: &OpenContext<'_>) -> Result<VhdxImage> {
    if let Some((name, _)) = cx.options.first() {
        return Err(crate::format::options::unknown("vhdx", name));
    }
    let mut first = [0; 520];
    cx.storage.read_at(0, &mut first)?;
    if first[..8] != FILE_SIGNATURE {
        return Err(Error::corrupt("Image not in VHDX format")
            .at_path(cx.storage.name())
            .at_offset(0));
    }
    let mut header = header::current(&*cx.storage)?;
    let (storage, dirty) = replayed(cx, &mut header)?;
    let log = log_region(&header);
    let regions = header::regions(&*storage, log)?;
    let meta = metadata::read(&*storage, regions.metadata)?;
    let bytes = bat_entries(&meta, meta.size) * 8;
    if bytes > regions.bat.length {
        return Err(Error::corrupt(format!(
            "the VHDX block allocation table has {} bytes, the disk needs {bytes}",
            regions.bat.length
        ))
        .at_path(storage.name())
        .at_offset(regions.bat.offset));
    }
    let mut backing = None;
    if let Some(locator) = &meta.parent {
        if cx.access == Access::Write && !cx.for_check {
            return Err(Error::new(ErrorKind::ReadOnly, "differencing VHDX images are read-only")
                .at_path(storage.name())
                .hint("convert the disk to write to it; the copy holds the parent's data too"));
        }
        match parent::find(cx, locator) {
            Ok(found) => backing = Some(found),
            // Without it there is enough to look at, or the user names another.
            Err(_) if cx.parent_may_be_missing() => {}
            Err(e) => return Err(e),
        }
    }
    let creator: Vec<u16> =
        first[8..].as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b)).collect();
    let end = creator.iter().position(|&u| u == 0).unwrap_or(creator.len());
    let limit = storage.len()?;
    Ok(VhdxImage {
        access: cx.access,
        scratch: cx.scratch,
        creator: String::from_utf16_lossy(&creator[..end]),
        dirty,
        backing,
        state: RwLock::new(State::new(meta, regions, limit)),
        writing: Mutex::new(Writing { header, log: None }),
        parent_checked: AtomicBool::new(false),
        begun: AtomicBool::new(false),
        storage,
    })
}

/// Where the log is.
pub(super) fn log_region(header: &Current) -> Region {
    Region { offset: header.raw.log_offset.get(), length: u64::from(header.raw.log_length.get()) }
}

/// The file after its log was replayed: on disk for writers, in memory for readers.
fn replayed(cx: &OpenContext<'_>, header: &mut Current) -> Result<(Arc<dyn Storage>, bool)> {
    let storage = Arc::clone(&cx.storage);
    let guid = Uuid::from_le(header.raw.log);
    if guid.is_nil() {
        return Ok((storage, false));
    }
    let region = log_region(header);
    if cx.access == Access::Read {
        let mut overlay = Overlay::new(Arc::clone(&storage))?;
        let any = log::replay(&*storage, region, guid, &mut overlay)?;
        return Ok(if any { (Arc::new(overlay), true) } else { (storage, false) });
    }
    let any = log::replay(&*storage, region, guid, &mut OnDisk(&*storage))?;
    storage.flush()?;
    // Both headers: neither may lead to entries that are older than the file.
    for _ in 0..2 {
        header::advance(&*storage, header, |h| h.log = [0; 16])?;
    }
    Ok((storage, any))
}

impl VhdxImage {
    pub(super) fn read_state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write_state(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The entry of a block.
    pub(super) fn entry(&self, block: u64) -> Result<u64> {
        {
            let state = self.read_state();
            if let Some(entry) = state.bat.get(state.entry_of(block)) {
                return Ok(entry);
            }
        }
        let mut state = self.write_state();
        let index = state.entry_of(block);
        state.bat.fetch(&*self.storage, index)
    }

    /// Entry of a block, and how many blocks from there on have the same kind of place: none, or one
    /// right behind the other.
    pub(super) fn run(&self, block: u64, max: u64) -> Result<(u64, u64)> {
        let first = self.entry(block)?;
        let state = self.read_state();
        let (kind, size) = (state_of(first), state.meta.block);
        let mut n = 1;
        while n < max {
            let Some(entry) = state.bat.get(state.entry_of(block + n)) else { break };
            let same = match kind {
                state::PARTIALLY_PRESENT => false,
                state::FULLY_PRESENT => entry == first + n * size,
                _ => state_of(entry) == kind,
            };
            if !same {
                break;
            }
            n += 1;
        }
        Ok((first, n))
    }

    /// Where guest bytes are; see [`crate::format::Image::map`].
    pub(super) fn locate(&self, at: u64, len: u64) -> Result<Extent> {
        let (block, fixed, child) = {
            let m = &self.read_state().meta;
            (m.block, m.fixed, m.parent.is_some())
        };
        let inside = at % block;
        let (entry, n) = self.run(at / block, (inside + len).div_ceil(block))?;
        let len = (n * block - inside).min(len);
        let zero = Mapping::Zero { reserved: None };
        let data = |n: u64| -> Result<Mapping> {
            self.check_place(at / block, entry, place_of(entry) + (n - 1) * block)?;
            Ok(Mapping::Data {
                storage: StorageId(0),
                offset: HostOffset(place_of(entry) + inside),
                in_place: self.access == Access::Write,
                probe_holes: fixed,
            })
        };
        let mapping = match state_of(entry) {
            state::NOT_PRESENT if child => Mapping::Backing,
            state::NOT_PRESENT | state::UNDEFINED | state::ZERO | state::UNMAPPED => zero,
            state::FULLY_PRESENT => data(n)?,
            state::PARTIALLY_PRESENT if child => {
                let logical = self.read_state().meta.logical;
                let bits = self.bitmap(at / block)?;
                let first = inside / logical;
                let max = (inside % logical + len).div_ceil(logical);
                let (own, run) = bit_run(&bits, first, max);
                let len = (run * logical - inside % logical).min(len);
                return Ok(Extent { len, mapping: if own { data(1)? } else { Mapping::Backing } });
            }
            _ => return Err(self.bad_entry(at / block, entry, "has an invalid state")),
        };
        Ok(Extent { len, mapping })
    }

    fn bad_entry(&self, block: u64, entry: u64, what: &str) -> Error {
        let state = self.read_state();
        Error::corrupt(format!(
            "The block allocation table entry {entry:#x} for guest offset {:#x} {what}",
            block * state.meta.block
        ))
        .at_path(self.storage.name())
        .at_offset(state.bat.entry_at(state.entry_of(block)))
        .hint("the file is truncated or damaged; restore it from its source")
    }

    /// Refuses blocks that begin outside the file, or where the header section is.
    fn check_place(&self, block: u64, entry: u64, last: u64) -> Result<()> {
        let limit = self.read_state().limit;
        // Another process may have made the file longer since it was opened (shared use).
        if last >= limit && last >= self.storage.len()? {
            return Err(self.bad_entry(block, entry, "leads beyond the end of the file"));
        }
        if place_of(entry) < MIB {
            return Err(self.bad_entry(block, entry, "leads into the header"));
        }
        Ok(())
    }

    /// The part of a sector bitmap block that tells of one block.
    fn bitmap(&self, block: u64) -> Result<Arc<Vec<u8>>> {
        let (index, from, len) = {
            let state = self.read_state();
            if let Some(known) = state.bitmaps.get(&block) {
                return Ok(Arc::clone(known));
            }
            let chunk = chunk(&state.meta);
            let bytes = state.meta.block / state.meta.logical / 8;
            (block / chunk * (chunk + 1) + chunk, block % chunk * bytes, bytes)
        };
        let entry = self.write_state().bat.fetch(&*self.storage, index)?;
        if state_of(entry) != state::FULLY_PRESENT
            || place_of(entry) < MIB
            || place_of(entry) + MIB > self.storage.len()?
        {
            return Err(self.bad_entry(block, entry, "leads to no sector bitmap"));
        }
        let mut bytes = vec![0; small(len)];
        self.storage.read_at(place_of(entry) + from, &mut bytes)?;
        let bytes = Arc::new(bytes);
        let mut state = self.write_state();
        if state.bitmaps.len() >= MAX_BITMAPS {
            state.bitmaps.clear();
        }
        state.bitmaps.insert(block, Arc::clone(&bytes));
        Ok(bytes)
    }

    /// Whether a place lies over the header section, the log or a region.
    pub(super) fn reserved(&self) -> Vec<(u64, u64)> {
        let log = log_region(&self.writing.lock().unwrap_or_else(PoisonError::into_inner).header);
        let regions = self.read_state().regions;
        let mut all: Vec<(u64, u64)> = [log, regions.bat, regions.metadata]
            .iter()
            .map(|r| (r.offset, r.offset + r.length))
            .chain([(0, layout::MIB)])
            .collect();
        all.sort_unstable();
        all
    }
}

/// The bit of `first` (the lowest bit of a byte comes first), and how many from there on are the same.
fn bit_run(bits: &[u8], first: u64, max: u64) -> (bool, u64) {
    let bit = |i: u64| bits.get(small(i / 8)).is_some_and(|b| b & (1 << (i % 8)) != 0);
    let own = bit(first);
    let same = if own { 0xff } else { 0 };
    let end = (first + max).min(len_u64(bits.len()) * 8);
    let mut at = first + 1;
    while at < end {
        if at.is_multiple_of(8) && bits[small(at / 8)] == same {
            at += 8;
        } else if bit(at) == own {
            at += 1;
        } else {
            break;
        }
    }
    (own, at.min(end).max(first + 1) - first)
}
