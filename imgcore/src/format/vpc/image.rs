//! An opened VHD: its parts, and where guest bytes are.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::geometry::SizeRule;
use super::header::{self, Blocks, Geometry, Kind};
use super::layout::{SECTOR, UNUSED};
use super::parent;
use crate::format::block_table::{BlockTable, EntryKind};
use crate::format::{Access, BackingRef, Extent, Mapping, OpenContext, StorageId};
use crate::num::{HostOffset, len_u64, small};
use crate::storage::Storage;
use crate::{Error, ErrorKind, Result};

/// Largest block that is written: copy-on-write takes a buffer of that size.
const MAX_WRITTEN_BLOCK: u64 = 16 << 20;
/// Bitmaps of blocks that are kept.
const MAX_BITMAPS: usize = 1024;

/// What changes: all behind one lock, which is not held while data are read or written.
#[derive(Debug)]
pub(super) struct State {
    pub geometry: Geometry,
    pub table: BlockTable,
    /// All space from here on is free (but for the footer).
    pub next: u64,
    /// Space was handed out since the footer was written.
    pub grew: bool,
    /// Where data end, as far as is known.
    pub limit: u64,
    /// Bitmaps of a differencing disk's blocks.
    bitmaps: HashMap<u64, Arc<Vec<u8>>>,
    /// Blocks whose bitmap is known to be full.
    pub full: HashSet<u64>,
}

/// An opened image.
#[derive(Debug)]
pub(super) struct VpcImage {
    pub storage: Arc<dyn Storage>,
    pub access: Access,
    /// Private and unfinished: order of writes does not matter.
    pub scratch: bool,
    pub backing: Option<BackingRef>,
    pub parent_names: Vec<String>,
    pub state: RwLock<State>,
    /// One writer of tables at a time.
    pub flushing: Mutex<()>,
    /// The file below is the one that this image was made on.
    pub parent_checked: AtomicBool,
}

/// Opens an image file.
pub(super) fn open(cx: &OpenContext<'_>) -> Result<VpcImage> {
    let mut rule = SizeRule::default();
    for (name, value) in cx.options {
        match name.as_str() {
            "force_size_calc" => rule = SizeRule::parse(value)?,
            _ => return Err(crate::format::options::unknown("vpc", name)),
        }
    }
    let geometry = header::geometry(&*cx.storage, rule)?;
    if cx.access == Access::Write {
        check_writable(cx, &geometry)?;
    }
    let len = cx.storage.len()?;
    let mut image = VpcImage {
        storage: Arc::clone(&cx.storage),
        access: cx.access,
        scratch: cx.scratch,
        backing: None,
        parent_names: Vec::new(),
        state: RwLock::new(State::new(geometry, len)),
        flushing: Mutex::new(()),
        parent_checked: AtomicBool::new(false),
    };
    match &geometry.blocks {
        None if !cx.for_check && !cx.header_only => check_length(&image, &geometry)?,
        None => {}
        Some(blocks) => {
            let found = image.write_state().find_end(&*cx.storage, blocks);
            match found {
                Err(_) if cx.for_check => {}
                other => other?,
            }
            if geometry.kind == Kind::Differencing {
                image.parent_names = parent::names(cx, blocks);
                match parent::find(cx, blocks) {
                    Ok(found) => image.backing = Some(found),
                    // Without it there is enough to look at, or the user names another.
                    Err(_) if cx.parent_may_be_missing() => {}
                    Err(e) => return Err(e),
                }
            }
        }
    }
    Ok(image)
}

fn check_writable(cx: &OpenContext<'_>, geometry: &Geometry) -> Result<()> {
    let refused = |kind, what: String| Err(Error::new(kind, what).at_path(cx.storage.name()));
    match &geometry.blocks {
        Some(_) if geometry.kind == Kind::Differencing && !cx.for_check => {
            refused(ErrorKind::ReadOnly, "differencing VHD images are read-only".to_owned())
                .map_err(|e| {
                    e.hint("convert the disk to write to it; the copy holds the parent's data too")
                })
        }
        Some(b) if b.block > MAX_WRITTEN_BLOCK => refused(
            ErrorKind::TooLarge,
            format!("blocks of {} bytes are too large to be written", b.block),
        ),
        Some(b) if !b.table.is_multiple_of(SECTOR) => refused(
            ErrorKind::Corrupt,
            format!("the block allocation table at {:#x} does not begin with a sector", b.table),
        ),
        _ => Ok(()),
    }
}

/// A fixed disk holds all of its bytes, and then the footer.
fn check_length(image: &VpcImage, geometry: &Geometry) -> Result<()> {
    let end = header::footers(&*image.storage)?.last_at;
    if geometry.size > end {
        return Err(Error::corrupt(format!(
            "the disk has {} bytes, but the file holds only {end}",
            geometry.size
        ))
        .at_path(image.storage.name())
        .at_offset(end)
        .hint("the file is truncated; copy it again"));
    }
    Ok(())
}

impl State {
    pub fn new(geometry: Geometry, len: u64) -> State {
        let (table, next) = match &geometry.blocks {
            Some(b) => (BlockTable::new(b.table, b.entries, EntryKind::Be32), b.reserved_end()),
            None => (BlockTable::new(0, 0, EntryKind::Be32), geometry.size),
        };
        State {
            table,
            next,
            grew: false,
            limit: len,
            bitmaps: HashMap::new(),
            full: HashSet::new(),
            geometry,
        }
    }

    /// Finds where the last block ends. All blocks must begin inside the file.
    fn find_end(&mut self, storage: &dyn Storage, blocks: &Blocks) -> Result<()> {
        for locator in &blocks.header.locators {
            if locator.len.get() > 0 {
                let end = locator.offset.get().saturating_add(u64::from(locator.len.get()));
                self.next = self.next.max(end.min(self.limit).next_multiple_of(SECTOR));
            }
        }
        for index in 0..self.geometry.size.div_ceil(blocks.block) {
            let entry = self.table.fetch(storage, index)?;
            if entry == UNUSED {
                continue;
            }
            let at = entry * SECTOR;
            if at + blocks.bitmap >= self.limit {
                return Err(Error::corrupt(
                    "block-vpc: free_data_block_offset points after the end of file. The image has \
                     been truncated.",
                )
                .at_path(storage.name())
                .at_offset(self.table.entry_at(index)));
            }
            self.next = self.next.max(at + blocks.span());
        }
        Ok(())
    }

    /// Forgets what is known of blocks (they were moved).
    pub fn forget(&mut self) {
        self.bitmaps.clear();
        self.full.clear();
    }
}

impl VpcImage {
    pub(super) fn read_state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write_state(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where guest bytes are; see [`crate::format::Image::map`].
    pub(super) fn locate(&self, at: u64, len: u64) -> Result<Extent> {
        let (blocks, kind) = {
            let state = self.read_state();
            (state.geometry.blocks, state.geometry.kind)
        };
        let Some(b) = blocks else {
            let mapping = Mapping::Data {
                storage: StorageId(0),
                offset: HostOffset(at),
                in_place: self.access == Access::Write,
                probe_holes: true,
            };
            return Ok(Extent { len, mapping });
        };
        let index = at / b.block;
        let inside = at % b.block;
        let (entry, n) = self.entry(index, (inside + len).div_ceil(b.block))?;
        let len = (n.max(1) * b.block - inside).min(len);
        if entry == UNUSED {
            let mapping = match kind {
                Kind::Differencing => Mapping::Backing,
                _ => Mapping::Zero { reserved: None },
            };
            return Ok(Extent { len, mapping });
        }
        let place = entry * SECTOR + b.bitmap;
        let limit = self.read_state().limit;
        // Another process may have made the file longer since it was opened (shared use).
        if place >= limit && place >= self.storage.len()? {
            return Err(Error::corrupt(format!(
                "The block for guest offset {:#x} is said to be at {place:#x}, beyond the end of the file ({limit:#x})",
                index * b.block
            ))
            .at_path(self.storage.name())
            .at_offset(b.table + index * 4)
            .hint("the file is truncated or damaged; restore it from its source"));
        }
        let data = Mapping::Data {
            storage: StorageId(0),
            offset: HostOffset(place + inside),
            in_place: self.access == Access::Write,
            probe_holes: false,
        };
        if kind != Kind::Differencing {
            return Ok(Extent { len, mapping: data });
        }
        let bitmap = self.bitmap(index, entry * SECTOR, b.bitmap)?;
        let (own, run) =
            bit_run(&bitmap, inside / SECTOR, (inside % SECTOR + len).div_ceil(SECTOR));
        let len = (run * SECTOR - inside % SECTOR).min(len);
        Ok(Extent { len, mapping: if own { data } else { Mapping::Backing } })
    }

    /// An entry of the table, and how many from there on have none either.
    pub(super) fn entry(&self, index: u64, max: u64) -> Result<(u64, u64)> {
        let run = |state: &State| {
            let first = state.table.get(index)?;
            let n =
                if first == UNUSED { state.table.run(index, max, |_, e| e == UNUSED) } else { 1 };
            Some((first, n))
        };
        if let Some(found) = run(&self.read_state()) {
            return Ok(found);
        }
        let mut state = self.write_state();
        state.table.fetch(&*self.storage, index)?;
        run(&state).ok_or_else(|| Error::errno(libc::EIO).at_path(self.storage.name()))
    }

    /// The bitmap of a block: which sectors are this image's.
    fn bitmap(&self, index: u64, at: u64, len: u64) -> Result<Arc<Vec<u8>>> {
        if let Some(known) = self.read_state().bitmaps.get(&index) {
            return Ok(Arc::clone(known));
        }
        let mut bytes = vec![0; small(len)];
        self.storage.read_at(at, &mut bytes)?;
        let bytes = Arc::new(bytes);
        let mut state = self.write_state();
        if state.bitmaps.len() >= MAX_BITMAPS {
            state.bitmaps.clear();
        }
        state.bitmaps.insert(index, Arc::clone(&bytes));
        Ok(bytes)
    }
}

/// The bit of `first` (the highest bit of a byte comes first), and how many from there on are the same.
fn bit_run(bits: &[u8], first: u64, max: u64) -> (bool, u64) {
    let bit = |i: u64| bits.get(small(i / 8)).is_some_and(|b| b & (0x80 >> (i % 8)) != 0);
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

#[cfg(test)]
mod bits {
    use super::bit_run;

    #[test]
    fn runs() {
        let bits = [0xff, 0xff, 0xf0, 0, 0, 1];
        assert_eq!(bit_run(&bits, 0, 100), (true, 20));
        assert_eq!(bit_run(&bits, 3, 5), (true, 5));
        assert_eq!(bit_run(&bits, 20, 100), (false, 27));
        assert_eq!(bit_run(&bits, 47, 100), (true, 1));
        assert_eq!(bit_run(&bits, 500, 3), (false, 1));
    }
}
