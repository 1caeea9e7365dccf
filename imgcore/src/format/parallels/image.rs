//! An opened image file: its parts, and where guest bytes are.

use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::extension::{self, Features};
use super::header::{self, Geometry};
use super::layout::HEADER;
use super::space::Space;
use crate::format::block_table::{BlockTable, EntryKind};
use crate::format::header_mark::HeaderMark;
use crate::format::{Access, Extent, Mapping, OpenContext, StorageId};
use crate::num::HostOffset;
use crate::storage::Storage;
use crate::{Error, ErrorKind, Result};

/// Largest cluster that is written: copy-on-write takes a buffer of that size.
const MAX_WRITTEN_CLUSTER: u64 = 64 << 20;

/// What changes: all behind one lock, which is not held while data are read or written.
#[derive(Debug)]
pub(super) struct State {
    pub geometry: Geometry,
    pub table: BlockTable,
    /// Where new clusters go; found out when the first one is needed.
    pub space: Option<Space>,
    /// Where data end, as far as is known.
    pub limit: u64,
}

/// An opened image.
#[derive(Debug)]
pub(super) struct ParallelsImage {
    pub storage: Arc<dyn Storage>,
    pub access: Access,
    /// Private and unfinished: order of writes does not matter.
    pub scratch: bool,
    pub features: Features,
    pub state: RwLock<State>,
    /// One writer of tables or header at a time.
    pub flushing: Mutex<()>,
    /// The header on disk says that the image is being written.
    pub mark: HeaderMark,
}

/// The table of an image.
pub(super) fn table(g: &Geometry) -> BlockTable {
    BlockTable::new(HEADER, g.entries, EntryKind::Le32)
}

/// Opens an image file.
pub(super) fn open(cx: &OpenContext<'_>) -> Result<ParallelsImage> {
    let geometry = header::geometry(&*cx.storage)?;
    let features = extension::read(&*cx.storage, &geometry)?;
    if cx.access == Access::Write {
        features.check_writable(&*cx.storage)?;
        if geometry.cluster > MAX_WRITTEN_CLUSTER {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!("clusters of {} bytes are too large to be written", geometry.cluster),
            )
            .at_path(cx.storage.name())
            .at_offset(28));
        }
    }
    let in_use = geometry.in_use;
    let state = State { table: table(&geometry), limit: cx.storage.len()?, space: None, geometry };
    let image = ParallelsImage {
        storage: Arc::clone(&cx.storage),
        access: cx.access,
        scratch: cx.scratch,
        features,
        state: RwLock::new(state),
        flushing: Mutex::new(()),
        mark: HeaderMark::new(in_use),
    };
    if in_use && cx.access == Access::Write && !cx.for_check {
        super::check::mend_table(&image)?;
    }
    Ok(image)
}

/// The longest run with one mapping from `index` on, at most `max` clusters: the first entry, and how many
/// clusters.
pub(super) fn run(table: &BlockTable, step: u64, index: u64, max: u64) -> Option<(u64, u64)> {
    let first = table.get(index)?;
    let n = if first == 0 {
        table.run(index, max, |_, e| e == 0)
    } else {
        table.run(index, max, |i, e| e == first + i * step)
    };
    Some((first, n.max(1)))
}

impl ParallelsImage {
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
            let g = &state.geometry;
            let max = (at % g.cluster + len).div_ceil(g.cluster);
            if let Some(found) = run(&state.table, g.step(), at / g.cluster, max) {
                return self.extent(&state, (at, len), found);
            }
        }
        let mut state = self.write_state();
        let (cluster, step) = (state.geometry.cluster, state.geometry.step());
        let max = (at % cluster + len).div_ceil(cluster);
        state.table.fetch(&*self.storage, at / cluster)?;
        let found = run(&state.table, step, at / cluster, max)
            .ok_or_else(|| Error::errno(libc::EIO).at_path(self.storage.name()).at_offset(at))?;
        self.extent(&state, (at, len), found)
    }

    fn extent(
        &self,
        state: &State,
        (at, len): (u64, u64),
        (entry, n): (u64, u64),
    ) -> Result<Extent> {
        let g = &state.geometry;
        let inside = at % g.cluster;
        let len = (n * g.cluster - inside).min(len);
        if entry == 0 {
            return Ok(Extent { len, mapping: Mapping::Backing });
        }
        let last = g.place(entry + (n - 1) * g.step());
        // Another process may have made the file longer since it was opened (shared use).
        if last >= state.limit && last >= self.storage.len()? {
            return Err(beyond(&*self.storage, g, at / g.cluster, entry));
        }
        let mapping = Mapping::Data {
            storage: StorageId(0),
            offset: HostOffset(g.place(entry) + inside),
            in_place: self.access == Access::Write,
            probe_holes: false,
        };
        Ok(Extent { len, mapping })
    }
}

/// Error for an entry that leads out of the file.
pub(super) fn beyond(storage: &dyn Storage, g: &Geometry, index: u64, entry: u64) -> Error {
    Error::corrupt(format!(
        "the cluster for guest offset {:#x} is said to be at {:#x}, beyond the end of the file",
        index * g.cluster,
        g.place(entry)
    ))
    .at_path(storage.name())
    .at_offset(HEADER + index * 4)
    .hint("the file is truncated or damaged; restore it from its source")
}
