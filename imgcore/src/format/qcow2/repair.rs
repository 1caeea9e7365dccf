//! Writing the whole refcount structure anew, beside the old one.
//!
//! Blocks and table go to clusters that nothing refers to; the header then switches from the old
//! structure to the new one in a single write. The old structure's clusters are free in the new one,
//! so nothing leaks.

use std::collections::BTreeMap;

use super::check_counts::{CHUNK, Counts};
use super::image::Qcow2Image;
use super::layout::MAX_REFTABLE_BYTES;
use super::refcount::{Refcounts, max_count};
use super::tables::Tables;
use crate::num::{len_u64, small};
use crate::storage::Storage;
use crate::{Error, Result};

/// A structure on disk that the header does not name yet.
#[derive(Debug)]
pub(super) struct NewStructure {
    table: Vec<u64>,
    offset: u64,
    clusters: u64,
}

struct Planner<'a> {
    counts: &'a mut Counts,
    block_bits: u32,
    cluster_bits: u32,
    /// No free cluster lies below.
    cursor: u64,
    /// Cluster of each block, by index.
    blocks: BTreeMap<u64, u64>,
}

impl Planner<'_> {
    fn take(&mut self, n: u64) -> u64 {
        let mut at = self.counts.first_zero(self.cursor);
        if n == 1 {
            self.cursor = at + 1;
        }
        let mut run = 0;
        while run < n {
            if at + run < self.counts.len() && self.counts.get(at + run) != 0 {
                at = self.counts.first_zero(at + run);
                run = 0;
            } else {
                run += 1;
            }
        }
        self.counts.grow(at + n);
        self.counts.add(at, n, 1, |_, _| ());
        at
    }

    fn used(&self, block: u64) -> bool {
        let mut at = block << self.block_bits;
        let end = (at + (1 << self.block_bits)).min(self.counts.len());
        while at < end {
            let n = (CHUNK - at % CHUNK).min(end - at);
            if !self.counts.all_zero(at, n) {
                return true;
            }
            at += n;
        }
        false
    }

    /// Gives every range with a count a block. A new block may lie in a range without one.
    fn place_blocks(&mut self) {
        loop {
            let before = self.blocks.len();
            let mut index = 0;
            while index << self.block_bits < self.counts.len() {
                if !self.blocks.contains_key(&index) && self.used(index) {
                    let at = self.take(1);
                    self.blocks.insert(index, at);
                }
                index += 1;
            }
            if self.blocks.len() == before {
                return;
            }
        }
    }

    /// Places blocks and table until neither needs more room. Returns the table's first cluster and its
    /// length in clusters.
    fn place(&mut self) -> Result<(u64, u64)> {
        self.place_blocks();
        loop {
            let entries = self.blocks.last_key_value().map_or(1, |(&last, _)| last + 1);
            let clusters = (entries * 8).div_ceil(1 << self.cluster_bits);
            if clusters << self.cluster_bits > MAX_REFTABLE_BYTES {
                return Err(Error::errno(libc::EFBIG)
                    .context("refcount table would become larger than the format allows"));
            }
            let at = self.take(clusters);
            self.place_blocks();
            let entries = self.blocks.last_key_value().map_or(1, |(&last, _)| last + 1);
            if (entries * 8).div_ceil(1 << self.cluster_bits) == clusters {
                return Ok((at, clusters));
            }
            for cluster in at..at + clusters {
                self.counts.set(cluster, 0);
            }
            self.cursor = 0;
        }
    }
}

/// The structure that is replaced. The counts cover it, so that its places are not used.
#[derive(Clone, Copy)]
pub(super) struct OldStructure<'a> {
    /// Its places: offset, length.
    pub(super) places: &'a [(u64, u64)],
    /// False: counts stop at the width's maximum, and a count that did so may stand for more. Such
    /// places are left as leaks, for the comparison that follows a rebuild.
    pub(super) exact: bool,
}

/// Writes blocks and table for `counts`, of `1 << order` bits each. The old structure's places become
/// free.
pub(super) fn write_structure(
    file: &dyn Storage,
    cluster_bits: u32,
    order: u32,
    counts: &mut Counts,
    old: OldStructure<'_>,
) -> Result<NewStructure> {
    counts.set_order(order);
    let block_bits = cluster_bits + 3 - order;
    let mut planner =
        Planner { counts, block_bits, cluster_bits, cursor: 0, blocks: BTreeMap::new() };
    let (at, clusters) = planner.place()?;
    let blocks = std::mem::take(&mut planner.blocks);
    let most = if old.exact { u64::MAX } else { max_count(order) };
    for &(offset, len) in old.places {
        let first = offset >> cluster_bits;
        for cluster in first..first + len.div_ceil(1 << cluster_bits) {
            let count = counts.get(cluster);
            if count > 0 && count < most {
                counts.set(cluster, count - 1);
            }
        }
    }
    let mut table = vec![0u64; small(clusters << cluster_bits) / 8];
    let mut bytes = vec![0u8; 1 << cluster_bits];
    for (&index, &cluster) in &blocks {
        counts.to_block(index << block_bits, &mut bytes, order);
        file.write_at(cluster << cluster_bits, &bytes)?;
        table[small(index)] = cluster << cluster_bits;
    }
    file.flush()?;
    let raw: Vec<u8> = table.iter().flat_map(|e| e.to_be_bytes()).collect();
    debug_assert_eq!(len_u64(raw.len()), clusters << cluster_bits);
    file.write_at(at << cluster_bits, &raw)?;
    file.flush()?;
    Ok(NewStructure { table, offset: at << cluster_bits, clusters })
}

impl Qcow2Image {
    /// Lets the header name a new structure.
    pub(super) fn link_structure(
        &self,
        tables: &mut Tables,
        new: NewStructure,
        order: u32,
    ) -> Result<()> {
        let old = tables.header.clone();
        tables.header.reftable_offset = new.offset;
        tables.header.reftable_clusters =
            u32::try_from(new.clusters).map_err(|_| Error::errno(libc::EFBIG))?;
        tables.header.refcount_order = order;
        let written = tables.header.write(&*self.file).and_then(|()| self.file.flush());
        if let Err(e) = written {
            tables.header = old;
            return Err(e);
        }
        tables.refs = Refcounts::new(tables.header.cluster_bits, order, new.table, new.offset);
        tables.file_len = self.file.len()?;
        Ok(())
    }
}
