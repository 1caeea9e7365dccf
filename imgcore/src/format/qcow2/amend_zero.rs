//! Turning zero clusters into data or nothing, for version 2, which knows no zero clusters.
//!
//! All L2 tables, also those of snapshots, each once. The clusters that a batch of tables needs are
//! filled and counted on disk before the tables change; places that a table drops become free after it.

use super::check_refs::{L2Use, L2Uses, Owner, words};
use super::image::Qcow2Image;
use super::layout::{COMPRESSED, COPIED, OFFSET_MASK, ZERO};
use super::tables::Tables;
use crate::Result;
use crate::format::{Watcher, check_cancelled};
use crate::num::{len_u64, small};
use crate::storage::ZeroMode;

/// Bytes of changed tables held before they are written.
const BATCH: u64 = 4 << 20;

/// Whether any of these tables has a compressed cluster.
pub(super) fn has_compressed(image: &Qcow2Image, uses: &L2Uses) -> Result<bool> {
    let mut bytes = vec![0u8; small(image.geometry.cluster())];
    let mut entries = Vec::new();
    let step = if image.geometry.extended { 2 } else { 1 };
    for table in &uses.list {
        image.file.read_at(table.at, &mut bytes)?;
        words(&bytes, &mut entries);
        if entries.iter().step_by(step).any(|e| e & COMPRESSED != 0) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The job.
pub(super) struct Expansion<'a> {
    image: &'a Qcow2Image,
    tables: &'a mut Tables,
    watcher: &'a dyn Watcher,
    /// A backing file would show through an entry that says nothing.
    backing: bool,
    changed: Vec<(u64, Vec<u8>)>,
    /// Places to free, and how many references each loses.
    dropped: Vec<(u64, u32)>,
}

impl<'a> Expansion<'a> {
    pub(super) fn new(
        image: &'a Qcow2Image,
        tables: &'a mut Tables,
        watcher: &'a dyn Watcher,
    ) -> Self {
        let backing = tables.header.backing_name.is_some();
        Expansion { image, tables, watcher, backing, changed: Vec::new(), dropped: Vec::new() }
    }

    pub(super) fn run(mut self, uses: &L2Uses) -> Result<()> {
        let cluster = self.image.geometry.cluster();
        let total = len_u64(uses.list.len());
        let mut bytes = vec![0u8; small(cluster)];
        let mut entries = Vec::new();
        for (i, table) in uses.list.iter().enumerate() {
            check_cancelled(self.watcher)?;
            self.watcher.progress(len_u64(i), total);
            self.image.file.read_at(table.at, &mut bytes)?;
            words(&bytes, &mut entries);
            let mut changed = false;
            for entry in entries.iter_mut().filter(|e| **e & COMPRESSED == 0 && **e & ZERO != 0) {
                *entry = self.expand(*entry, table.times)?;
                changed = true;
            }
            if changed {
                let new = entries.iter().flat_map(|e| e.to_be_bytes()).collect();
                self.changed.push((table.at, new));
            }
            if len_u64(self.changed.len()) * cluster >= BATCH {
                self.write_batch()?;
            }
        }
        self.write_batch()
    }

    /// The entry that says in version 2 what `entry` said; its table is reached `times` times.
    fn expand(&mut self, entry: u64, times: u32) -> Result<u64> {
        let at = entry & OFFSET_MASK;
        let file = &*self.image.file;
        let cluster = self.image.geometry.cluster();
        if !self.backing {
            if at != 0 {
                self.dropped.push((at, times));
            }
            return Ok(0);
        }
        let copied = if times == 1 { COPIED } else { 0 };
        if at != 0 {
            let index = at >> self.image.geometry.cluster_bits;
            if self.tables.refs.get(file, index)? == u64::from(times) {
                // Nobody else looks at this place.
                file.write_zeroes(at, cluster, ZeroMode::KeepAllocated)?;
                return Ok(at | copied);
            }
            self.dropped.push((at, times));
        }
        let (new, _) = self.tables.refs.allocate(file, 1, 1)?;
        self.tables.refs.set(file, new >> self.image.geometry.cluster_bits, u64::from(times))?;
        file.write_zeroes(new, cluster, ZeroMode::KeepAllocated)?;
        if self.tables.refs.cache.is_crowded() {
            self.image.settle(self.tables)?;
        }
        Ok(new | copied)
    }

    fn write_batch(&mut self) -> Result<()> {
        self.image.settle(self.tables)?;
        for (at, bytes) in self.changed.drain(..) {
            self.image.file.write_at(at, &bytes)?;
        }
        self.image.barrier()?;
        self.tables.l2.forget_clean();
        for (at, times) in self.dropped.drain(..) {
            for _ in 0..times {
                self.tables.refs.free_later(at, self.image.geometry.cluster());
            }
        }
        self.image.settle(self.tables)
    }
}

impl Qcow2Image {
    /// The L2 tables of the disk and of all snapshots, checked.
    pub(super) fn all_l2_tables(&self, tables: &Tables) -> Result<L2Uses> {
        let mut uses = L2Uses::default();
        let mut add = |l1: &[u64]| -> Result<()> {
            let list = self.reach(tables, l1)?.tables.list;
            let paths = |t: &L2Use| std::iter::repeat_n(t.at, small(u64::from(t.times)));
            uses.add(list.iter().flat_map(paths).collect(), Owner::Active);
            Ok(())
        };
        add(&tables.l1)?;
        for s in &self.read_snapshots(tables)?.list {
            add(&self.read_snapshot_l1(s)?)?;
        }
        Ok(uses)
    }
}
