//! Allocating clusters and publishing them. The order of writes is told in [`super`].

use std::sync::PoisonError;

use super::image::{Cluster, PLAIN, QcowImage, State};
use crate::format::{Grant, Mapping, StorageId, ZeroSpace};
use crate::num::{GuestOffset, HostOffset, round_down};
use crate::storage::ZeroMode;
use crate::{Error, Result};

/// How many clusters after the first, which has `entry`, a grant of at most `max` goes on for, and whether
/// they have their place already.
fn grantable(state: &State, index: u64, max: u64, encrypted: bool) -> (u64, Option<u64>) {
    let cluster = state.geometry.cluster();
    let fixed = |e: u64| matches!(Cluster::of(e), Cluster::Plain(_));
    let run = state.tables.run(index, max, |first, i, e| match (fixed(first), fixed(e)) {
        (true, true) => encrypted && e == first + i * cluster,
        (a, b) => a == b,
    });
    match run {
        Some(run) if fixed(run.first) => (run.len, Some(run.first)),
        Some(run) => (run.len, None),
        None => (1, None),
    }
}

impl QcowImage {
    fn check_writable(&self, at: u64) -> Result<()> {
        self.access.check_writable("qcow", at)
    }

    /// Grants clusters for a write; see [`crate::format::Image::prepare_write`]. Encrypted clusters that
    /// have a place are granted in that place: what a crash leaves of them is sectors, old or new.
    pub(super) fn grant(&self, at: u64, len: u64) -> Result<Grant> {
        self.check_writable(at)?;
        let mut state = self.write_state();
        let cluster = state.geometry.cluster();
        let first = at / cluster;
        let wanted = (at % cluster + len.max(1)).div_ceil(cluster);
        state.tables.fetch(&*self.storage, first)?;
        let (n, place) = grantable(&state, first, wanted, self.encrypted());
        if place.is_some() && !self.encrypted() {
            return Err(Error::invalid("clusters with a place are written in place").at_offset(at));
        }
        let host = match place {
            Some(host) => host,
            None => {
                state.make_tables(&*self.storage, (first, first + n))?;
                state.take(n * cluster)?
            }
        };
        let storage = match &self.keyed {
            Some(keyed) => {
                keyed.places.granted(host, n * cluster, first * cluster);
                PLAIN
            }
            None => StorageId(0),
        };
        Ok(Grant {
            at: GuestOffset(first * cluster),
            len: n * cluster,
            storage,
            offset: HostOffset(host),
            // What is linked already needs no link.
            token: if place.is_some() { 0 } else { host },
            state: None,
        })
    }

    /// Grants room for one compressed cluster: behind the last one, at any byte.
    pub(super) fn grant_packed(&self, at: u64, len: u64) -> Result<Grant> {
        self.check_writable(at)?;
        let mut state = self.write_state();
        let cluster = state.geometry.cluster();
        if self.encrypted() || !at.is_multiple_of(cluster) {
            return Err(Error::errno(libc::ENOTSUP).at_offset(at));
        }
        let index = at / cluster;
        state.make_tables(&*self.storage, (index, index + 1))?;
        let host = state.next;
        let Some(entry) = state.geometry.pack(host, len) else {
            return Err(Error::errno(libc::EFBIG).at_path(self.storage.name()));
        };
        state.next += len;
        Ok(Grant {
            at: GuestOffset(at),
            len: cluster,
            storage: StorageId(0),
            offset: HostOffset(host),
            token: entry,
            state: None,
        })
    }

    /// Links what was stored at a granted place.
    pub(super) fn link(&self, grant: &Grant) -> Result<()> {
        self.forget_grant(grant);
        if grant.token == 0 {
            return Ok(());
        }
        let many = {
            let mut state = self.write_state();
            let cluster = state.geometry.cluster();
            let first = grant.at.0 / cluster;
            let packed = Cluster::of(grant.token) == Cluster::Packed;
            for i in 0..grant.len / cluster {
                let entry = grant.token + if packed { 0 } else { i * cluster };
                state.tables.set(&*self.storage, first + i, entry)?;
                self.decoded.forget((first + i) * cluster);
            }
            state.tables.many_dirty()
        };
        if many { self.write_back() } else { Ok(()) }
    }

    /// Gives a granted place back: at the end of the file, or it is lost.
    pub(super) fn give_back(&self, grant: &Grant) {
        self.forget_grant(grant);
        if grant.token == 0 {
            return;
        }
        let mut state = self.write_state();
        let len = match Cluster::of(grant.token) {
            Cluster::Packed => state.geometry.packed(grant.token).1,
            _ => grant.len,
        };
        if state.next == grant.offset.0 + len {
            state.next = grant.offset.0;
        }
    }

    fn forget_grant(&self, grant: &Grant) {
        if let Some(keyed) = &self.keyed {
            keyed.places.done(grant.offset.0);
        }
    }

    /// Makes whole clusters zero, where that needs no new ones: those with a place in their place. There
    /// is no entry that says zero while there is a file below.
    pub(super) fn zero(&self, at: u64, len: u64, space: ZeroSpace) -> Result<()> {
        self.check_writable(at)?;
        let mode = ZeroMode::from(space);
        let end = at + len;
        let mut here = at;
        // Nothing is changed before it is known that everything can be.
        while here < end {
            let extent = self.locate(here, end - here)?;
            let can = match extent.mapping {
                Mapping::Data { .. } => true,
                Mapping::Encoded { compressed, .. } => compressed && !self.has_backing(),
                Mapping::Zero { .. } | Mapping::Backing => !self.has_backing(),
            };
            if !can {
                return Err(Error::errno(libc::ENOTSUP).at_offset(here));
            }
            here += extent.len;
        }
        here = at;
        while here < end {
            let extent = self.locate(here, end - here)?;
            match extent.mapping {
                Mapping::Data { offset, .. } => {
                    self.storage.write_zeroes(offset.0, extent.len, mode)?;
                }
                Mapping::Encoded { .. } => self.unlink(here, extent.len)?,
                _ => {}
            }
            here += extent.len;
        }
        Ok(())
    }

    /// Gives the space of clusters back that have a place and would read as zeroes without it.
    pub(super) fn give_space(&self, at: u64, len: u64) -> Result<()> {
        self.check_writable(at)?;
        let end = at + len;
        let mut here = at;
        while here < end {
            let extent = self.locate(here, end - here)?;
            if let Mapping::Data { offset, .. } = extent.mapping {
                self.storage.write_zeroes(offset.0, extent.len, ZeroMode::MayUnmap)?;
            }
            here += extent.len;
        }
        Ok(())
    }

    fn has_backing(&self) -> bool {
        self.read_state().geometry.backing.is_some()
    }

    /// Forgets whole clusters.
    fn unlink(&self, at: u64, len: u64) -> Result<()> {
        let mut state = self.write_state();
        let cluster = state.geometry.cluster();
        for index in round_down(at, cluster) / cluster..(at + len).div_ceil(cluster) {
            state.tables.set(&*self.storage, index, 0)?;
            self.decoded.forget(index * cluster);
        }
        Ok(())
    }

    /// Writes what changed in the tables, in the order that [`super`] tells. What was written last is
    /// durable only after the storage's flush.
    pub(super) fn write_back(&self) -> Result<()> {
        let _turn = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        let changes = self.write_state().tables.changes();
        let result = changes.write(&*self.storage, || self.barrier());
        self.write_state().tables.written(result.is_ok());
        result
    }

    /// Waits until everything written so far is on disk; a scratch image needs no order, and only its
    /// last flush counts.
    pub(super) fn barrier(&self) -> Result<()> {
        if self.scratch { Ok(()) } else { self.storage.flush() }
    }
}
