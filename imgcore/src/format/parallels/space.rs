//! Where new clusters go: places that nothing leads to, lowest first, then the end.

use super::header::Geometry;
use super::layout::SECTOR;
use crate::format::block_table::BlockTable;
use crate::format::used::Used;
use crate::storage::Storage;
use crate::{Error, Result};

/// What is free: runs of bytes `(start, end)`, whole clusters.
#[derive(Debug)]
pub(super) struct Space {
    /// All is free from here on.
    pub next: u64,
    /// Free ones below; the last is handed out first.
    free: Vec<(u64, u64)>,
}

/// Sectors of header, table and format extension.
pub(super) fn front(g: &Geometry) -> Used {
    let mut used = Used::default();
    used.take_all(0, g.table_end().div_ceil(SECTOR));
    if let Some(at) = g.extension {
        used.take_all(at / SECTOR, (at + g.cluster).div_ceil(SECTOR));
    }
    used
}

impl Space {
    /// Looks at the whole table.
    pub fn find(storage: &dyn Storage, g: &Geometry, table: &mut BlockTable) -> Result<Space> {
        let len = storage.len()?;
        let mut used = front(g);
        for index in 0..g.entries {
            let entry = table.fetch(storage, index)?;
            if entry == 0 {
                continue;
            }
            let at = g.place(entry);
            if at >= len {
                return Err(super::image::beyond(storage, g, index, entry)
                    .hint("nothing can be added to a damaged image; look at it with 'check'"));
            }
            used.take_all(at / SECTOR, (at + g.cluster).div_ceil(SECTOR));
        }
        let next = g.align(used.high * SECTOR);
        let mut free = Vec::new();
        for (start, end) in used.gaps(next / SECTOR) {
            let start = g.align(start * SECTOR);
            let clusters = (end * SECTOR).saturating_sub(start) / g.cluster;
            if clusters > 0 {
                free.push((start, start + clusters * g.cluster));
            }
        }
        free.reverse();
        Ok(Space { next, free })
    }

    /// A run of at most `wanted` bytes, whole clusters.
    pub fn take(&mut self, g: &Geometry, wanted: u64) -> Result<(u64, u64)> {
        let run = match self.free.last_mut() {
            Some(last) => {
                let run = (last.0, last.1.min(last.0 + wanted));
                last.0 = run.1;
                if last.0 == last.1 {
                    self.free.pop();
                }
                run
            }
            None => {
                let run = (self.next, self.next + wanted);
                self.next = run.1;
                run
            }
        };
        if run.1 / g.unit() > u64::from(u32::MAX) {
            return Err(Error::errno(libc::EFBIG)
                .context("an entry of the block allocation table has no more than 32 bits"));
        }
        Ok(run)
    }

    /// Gives a run back that nothing ever led to.
    pub fn give_back(&mut self, run: (u64, u64)) {
        if self.next == run.1 {
            self.next = run.0;
        } else {
            self.free.push(run);
        }
    }
}
