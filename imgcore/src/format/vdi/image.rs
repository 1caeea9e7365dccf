//! An opened VDI: its parts, and where guest bytes are.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::header::{self, Geometry, Kind};
use super::layout::{FREE, ZERO};
use super::parent;
use super::space::Space;
use crate::format::block_table::{BlockTable, EntryKind};
use crate::format::header_mark::HeaderMark;
use crate::format::{Access, BackingRef, Extent, Mapping, OpenContext, StorageId};
use crate::num::HostOffset;
use crate::storage::Storage;
use crate::{Error, ErrorKind, Result};

/// Largest block that is written: copy-on-write takes a buffer of that size.
const MAX_WRITTEN_BLOCK: u64 = 16 << 20;

/// What changes: all behind one lock, which is not held while data are read or written.
#[derive(Debug)]
pub(super) struct State {
    pub geometry: Geometry,
    pub map: BlockTable,
    /// Where new blocks go; found out when the first one is needed.
    pub space: Option<Space>,
    /// The number of blocks in the header on disk is too small.
    pub header_behind: bool,
    /// Where data end, as far as is known.
    pub limit: u64,
}

/// An opened image.
#[derive(Debug)]
pub(super) struct VdiImage {
    pub storage: Arc<dyn Storage>,
    pub access: Access,
    /// Private and unfinished: order of writes does not matter.
    pub scratch: bool,
    pub backing: Option<BackingRef>,
    pub state: RwLock<State>,
    /// One writer of tables at a time.
    pub flushing: Mutex<()>,
    /// The file below is the one that this image was made on.
    pub parent_checked: AtomicBool,
    /// This opening has told that the content changes.
    pub modify_renewed: HeaderMark,
}

/// Opens an image file.
pub(super) fn open(cx: &OpenContext<'_>) -> Result<VdiImage> {
    if let Some((name, _)) = cx.options.first() {
        return Err(crate::format::options::unknown("vdi", name));
    }
    let geometry = header::geometry(&*cx.storage)?;
    if cx.access == Access::Write && geometry.block > MAX_WRITTEN_BLOCK {
        return Err(Error::new(
            ErrorKind::TooLarge,
            format!("blocks of {} bytes are too large to be written", geometry.block),
        )
        .at_path(cx.storage.name())
        .at_offset(376));
    }
    let backing = match geometry.has_parent() {
        false => None,
        true => match parent::find(cx, geometry.parent) {
            Ok(found) => Some(found),
            // Without it there is enough to look at, or the user names another.
            Err(_) if cx.parent_may_be_missing() => None,
            Err(e) => return Err(e),
        },
    };
    let state = State {
        map: BlockTable::new(geometry.map, geometry.blocks, EntryKind::Le32),
        limit: cx.storage.len()?,
        space: None,
        header_behind: false,
        geometry,
    };
    Ok(VdiImage {
        storage: Arc::clone(&cx.storage),
        access: cx.access,
        scratch: cx.scratch,
        backing,
        state: RwLock::new(state),
        flushing: Mutex::new(()),
        parent_checked: AtomicBool::new(false),
        modify_renewed: HeaderMark::new(false),
    })
}

impl State {
    /// The longest run with one mapping from `index` on, at most `max` blocks: the first entry, and how
    /// many blocks.
    fn run(&self, index: u64, max: u64) -> Option<(u64, u64)> {
        let first = self.map.get(index)?;
        let n = if first >= ZERO {
            self.map.run(index, max, |_, e| e == first)
        } else if self.geometry.extra > 0 {
            1
        } else {
            self.map.run(index, max, |i, e| e == first + i && e < ZERO)
        };
        Some((first, n))
    }
}

impl VdiImage {
    pub(super) fn read_state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write_state(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where guest bytes are; see [`crate::format::Image::map`].
    pub(super) fn locate(&self, at: u64, len: u64) -> Result<Extent> {
        {
            let state = self.read_state();
            let block = state.geometry.block;
            let max = (at % block + len).div_ceil(block);
            if let Some((entry, n)) = state.run(at / block, max) {
                return self.extent(&state, at, len, (entry, n));
            }
        }
        let mut state = self.write_state();
        let block = state.geometry.block;
        let max = (at % block + len).div_ceil(block);
        state.map.fetch(&*self.storage, at / block)?;
        let run = state
            .run(at / block, max)
            .ok_or_else(|| Error::errno(libc::EIO).at_path(self.storage.name()).at_offset(at))?;
        self.extent(&state, at, len, run)
    }

    fn extent(&self, state: &State, at: u64, len: u64, (entry, n): (u64, u64)) -> Result<Extent> {
        let g = &state.geometry;
        let inside = at % g.block;
        let len = (n.max(1) * g.block - inside).min(len);
        let mapping = match entry {
            FREE if g.has_parent() => Mapping::Backing,
            FREE | ZERO => Mapping::Zero { reserved: None },
            number => {
                let last = g.place(number + n.max(1) - 1);
                // Another process may have made the file longer since it was opened (shared use).
                if last >= state.limit && last >= self.storage.len()? {
                    return Err(beyond(&*self.storage, g, at / g.block, number, state.limit));
                }
                Mapping::Data {
                    storage: StorageId(0),
                    offset: HostOffset(g.place(number) + inside),
                    in_place: self.access == Access::Write,
                    probe_holes: g.kind == Kind::Static,
                }
            }
        };
        Ok(Extent { len, mapping })
    }
}

/// Error for an entry that leads out of the file.
fn beyond(storage: &dyn Storage, g: &Geometry, index: u64, number: u64, end: u64) -> Error {
    Error::corrupt(format!(
        "The block for guest offset {:#x} is said to be at {:#x}, beyond the end of the file ({end:#x})",
        index * g.block,
        g.place(number)
    ))
    .at_path(storage.name())
    .at_offset(g.map + index * 4)
    .hint("the file is truncated or damaged; restore it from its source")
}
