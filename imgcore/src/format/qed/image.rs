//! An opened QED: its parts, and where guest bytes are.

use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::header::{self, Geometry};
use super::layout::{ZERO, feature};
use crate::format::header_mark::HeaderMark;
use crate::format::two_level::{Run, TwoLevel};
use crate::format::{Access, Extent, Mapping, OpenContext, StorageId};
use crate::num::{HostOffset, round_up};
use crate::storage::Storage;
use crate::{Error, Result};

/// What changes: all behind one lock, which is not held while data are read or written.
#[derive(Debug)]
pub(super) struct State {
    pub geometry: Geometry,
    pub tables: TwoLevel,
    /// Where the next cluster or table goes: the end of the file.
    pub next: u64,
}

/// An opened image.
#[derive(Debug)]
pub(super) struct QedImage {
    pub storage: Arc<dyn Storage>,
    pub access: Access,
    /// Private and unfinished: order of writes does not matter.
    pub scratch: bool,
    pub state: RwLock<State>,
    /// One writer of tables or header at a time.
    pub flushing: Mutex<()>,
    /// The header on disk says that the image is being changed.
    pub mark: HeaderMark,
}

/// Opens an image file.
pub(super) fn open(cx: &OpenContext<'_>) -> Result<QedImage> {
    if let Some((name, _)) = cx.options.first() {
        return Err(crate::format::options::unknown("qed", name));
    }
    let geometry = header::geometry(&*cx.storage)?;
    let need_check = geometry.features & feature::NEED_CHECK != 0;
    let state = State {
        tables: TwoLevel::new(geometry.shape()),
        next: round_up(cx.storage.len()?, geometry.cluster),
        geometry,
    };
    let image = QedImage {
        storage: Arc::clone(&cx.storage),
        access: cx.access,
        scratch: cx.scratch,
        state: RwLock::new(state),
        flushing: Mutex::new(()),
        mark: HeaderMark::new(need_check),
    };
    if cx.access == Access::Write {
        image.forget_autoclear()?;
        if need_check && !cx.for_check {
            super::check::mend_tables(&image)?;
        }
    }
    Ok(image)
}

/// What an entry of an L2 table tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cluster {
    /// Nothing: the file below, or zeroes.
    Nothing,
    /// Zeroes, whatever lies below.
    Zero,
    /// A place in the file.
    At(u64),
}

impl Cluster {
    pub fn of(entry: u64) -> Self {
        match entry {
            0 => Cluster::Nothing,
            ZERO => Cluster::Zero,
            at => Cluster::At(at),
        }
    }
}

/// Whether an entry goes on where `first` began, `i` clusters ago.
fn same(cluster: u64) -> impl Fn(u64, u64, u64) -> bool + Copy {
    move |first, i, entry| match (Cluster::of(first), Cluster::of(entry)) {
        (Cluster::At(a), Cluster::At(b)) => a.checked_add(i * cluster) == Some(b),
        (a, b) => a == b,
    }
}

impl QedImage {
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
            let cluster = state.geometry.cluster;
            let max = (at % cluster + len).div_ceil(cluster);
            let run = state.tables.run(at / cluster, max, same(cluster));
            if let Some(run) = run.filter(|run| !run.unread) {
                return self.extent(&state, (at, len), run);
            }
        }
        let mut state = self.write_state();
        let cluster = state.geometry.cluster;
        let max = (at % cluster + len).div_ceil(cluster);
        let run = state.tables.run_reading(&*self.storage, (at / cluster, max), same(cluster))?;
        self.extent(&state, (at, len), run)
    }

    fn extent(&self, state: &State, (at, len): (u64, u64), run: Run) -> Result<Extent> {
        let g = &state.geometry;
        let inside = at % g.cluster;
        let len = (run.len * g.cluster - inside).min(len);
        let mapping = match Cluster::of(run.first) {
            Cluster::Nothing => Mapping::Backing,
            Cluster::Zero => Mapping::Zero { reserved: None },
            Cluster::At(host) => {
                let last = host + (run.len - 1) * g.cluster;
                let good = g.may_lie(host, u64::MAX)
                    // Another process may have made the file longer since it was opened (shared use).
                    && (last < state.next || last < self.storage.len()?);
                if !good {
                    return Err(self.misplaced(state, at, host));
                }
                Mapping::Data {
                    storage: StorageId(0),
                    offset: HostOffset(host + inside),
                    in_place: self.access == Access::Write,
                    probe_holes: false,
                }
            }
        };
        Ok(Extent { len, mapping })
    }

    /// Error for an entry that leads to no cluster.
    fn misplaced(&self, state: &State, at: u64, host: u64) -> Error {
        let what = if host.is_multiple_of(state.geometry.cluster) {
            "which is beyond the end of the file or in the header"
        } else {
            "which is no multiple of the cluster size"
        };
        Error::corrupt(format!(
            "the cluster for guest offset {at:#x} is said to be at {host:#x}, {what}"
        ))
        .at_path(self.storage.name())
        .at_offset(state.tables.entry_at(at / state.geometry.cluster))
        .hint("look at it with 'check'; if the file is truncated, restore it from its source")
    }
}

/// Takes room behind `next`.
pub(super) fn take(next: &mut u64, len: u64) -> u64 {
    let at = *next;
    *next = at.saturating_add(len);
    at
}

impl State {
    /// Makes sure that clusters have tables that lead to them.
    pub(super) fn make_tables(
        &mut self,
        storage: &dyn Storage,
        clusters: (u64, u64),
    ) -> Result<()> {
        let next = &mut self.next;
        self.tables.make_tables(storage, clusters, |len| take(next, len))
    }

    /// Takes room for whole clusters.
    pub(super) fn take(&mut self, len: u64) -> Result<u64> {
        let at = take(&mut self.next, len);
        if i64::try_from(self.next).is_ok() { Ok(at) } else { Err(Error::errno(libc::EFBIG)) }
    }
}
