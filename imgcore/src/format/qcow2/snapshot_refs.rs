//! References in bulk: what a whole L1 table reaches, and adding or dropping one reference to all of it.
//!
//! Taking a snapshot touches every cluster's count and every L2 table. Entry by entry through the
//! small slice caches that costs minutes for a large image; here tables are read and written whole, in
//! the order of the file, each once. Callers settle the caches first ([`Qcow2Image::settle`]) and drop
//! what they hold afterwards.

use super::check_counts::{CHUNK, Counts};
use super::check_refs::{L2Uses, Owner, words};
use super::image::Qcow2Image;
use super::layout::{COMPRESSED, COPIED, L1_RESERVED, OFFSET_MASK, REFTABLE_MASK};
use super::refcount::{get_count, max_count, set_count};
use super::tables::{L2Entry, Tables};
use crate::num::{len_u64, round_up, small};
use crate::{Error, Result};

/// What an L1 table reaches.
pub(super) struct Reach {
    /// References to each cluster: one for every path.
    pub(super) counts: Counts,
    /// L2 tables.
    pub(super) tables: L2Uses,
}

/// Up or down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sign {
    Add,
    Drop,
}

/// Whether counts are only looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    Verify,
    Write,
}

/// A set of clusters.
#[derive(Debug, Default)]
pub(super) struct ClusterSet {
    bits: Vec<u64>,
    some: bool,
}

impl ClusterSet {
    fn insert(&mut self, cluster: u64) {
        let word = small(cluster / 64);
        if word >= self.bits.len() {
            self.bits.resize(word + 1, 0);
        }
        self.bits[word] |= 1 << (cluster % 64);
        self.some = true;
    }

    fn has(&self, cluster: u64) -> bool {
        self.bits.get(small(cluster / 64)).is_some_and(|w| w >> (cluster % 64) & 1 != 0)
    }
}

/// What dropping references led to.
#[derive(Debug, Default)]
pub(super) struct Dropped {
    /// Clusters nothing refers to any more: first and number.
    pub(super) freed: Vec<(u64, u64)>,
    /// Clusters with exactly one reference left.
    pub(super) single: ClusterSet,
}

fn corrupt(message: String, offset: u64) -> Error {
    Error::corrupt(message).at_offset(offset).hint("look at the image with 'check'")
}

impl Qcow2Image {
    /// Brings everything in memory to disk, also dropped references.
    pub(super) fn settle(&self, tables: &mut Tables) -> Result<()> {
        self.flush_tables(tables)?;
        while tables.refs.is_dirty() {
            self.write_refcounts(tables)?;
            self.barrier()?;
            self.drop_references(tables)?;
        }
        Ok(())
    }

    /// Goes through all that `l1` reaches. Refuses anything that does not look right.
    pub(super) fn reach(&self, tables: &Tables, l1: &[u64]) -> Result<Reach> {
        let cluster = self.geometry.cluster();
        let end = round_up(self.file.len()?, cluster);
        let mut offsets = Vec::new();
        for (index, &entry) in l1.iter().enumerate() {
            let at = entry & OFFSET_MASK;
            if entry & L1_RESERVED != 0 || !at.is_multiple_of(cluster) || at >= end {
                return Err(corrupt(
                    format!("L1 entry {entry:#x} (L1 index: {index:#x}) is not valid"),
                    at,
                ));
            }
            if at != 0 {
                offsets.push(at);
            }
        }
        let mut uses = L2Uses::default();
        uses.add(offsets, Owner::Active);
        let mut reach = Reach { counts: Counts::new(end / cluster, 6), tables: uses };
        let mut bytes = vec![0u8; small(cluster)];
        let mut entries = Vec::new();
        for i in 0..reach.tables.list.len() {
            let table = reach.tables.list[i];
            let times = u64::from(table.times);
            reach.counts.add(table.at / cluster, 1, times, |_, _| ());
            self.file.read_at(table.at, &mut bytes)?;
            words(&bytes, &mut entries);
            self.reach_table(tables, &entries, (table.at, times, end), &mut reach.counts)?;
        }
        Ok(reach)
    }

    /// Counts the clusters of one table (`place`: its offset, its weight, the end of the file).
    fn reach_table(
        &self,
        tables: &Tables,
        words: &[u64],
        place: (u64, u64, u64),
        counts: &mut Counts,
    ) -> Result<()> {
        let (table, times, end) = place;
        let g = self.geometry;
        let cluster = g.cluster();
        let ordinary = COPIED | (OFFSET_MASK & !(cluster - 1));
        let step = if g.extended { 2 } else { 1 };
        let outside = |at: u64| {
            corrupt(
                format!(
                    "an entry of the L2 table at {table:#x} points to {at:#x}, beyond the end of the image file"
                ),
                table,
            )
        };
        let mut i = 0;
        while i < words.len() {
            let word = words[i];
            let at = word & OFFSET_MASK;
            if word & !ordinary == 0 && !g.extended {
                if at == 0 {
                    i += 1;
                    continue;
                }
                let start = i;
                let mut last = at;
                i += 1;
                while i < words.len()
                    && words[i] & !ordinary == 0
                    && words[i] & OFFSET_MASK == last.wrapping_add(cluster)
                {
                    last += cluster;
                    i += 1;
                }
                if last >= end {
                    return Err(outside(last));
                }
                counts.add(at / cluster, len_u64(i - start), times, |_, _| ());
                continue;
            }
            let bitmap = if g.extended { words.get(i + 1).copied().unwrap_or(0) } else { 0 };
            let entry = L2Entry { descriptor: word, bitmap };
            entry.check(&g, tables.header.version, 0).map_err(|e| {
                let said = e.report();
                corrupt(format!("damaged entry in the L2 table at {table:#x}: {said}"), table)
            })?;
            let (from, len) = if entry.is_compressed() {
                g.compressed_place(word)
            } else {
                (at, if at == 0 { 0 } else { cluster })
            };
            if len > 0 {
                let last = from.saturating_add(len - 1);
                if last >= end {
                    return Err(outside(from));
                }
                let first = from / cluster;
                counts.add(first, last / cluster - first + 1, times, |_, _| ());
            }
            i += step;
        }
        Ok(())
    }

    /// Fails, changing nothing, if counts cannot be changed by `deltas`.
    pub(super) fn verify_counts(&self, tables: &Tables, deltas: &Counts, sign: Sign) -> Result<()> {
        self.change_counts(tables, deltas, sign, Pass::Verify).map(drop)
    }

    /// Changes the counts on disk by `deltas`, which was verified. Whoever calls this drops the cache of
    /// counts afterwards.
    pub(super) fn write_counts(
        &self,
        tables: &mut Tables,
        deltas: &Counts,
        sign: Sign,
    ) -> Result<Dropped> {
        let dropped = self.change_counts(tables, deltas, sign, Pass::Write)?;
        tables.refs.cache.forget_clean();
        if let Some(&(first, _)) = dropped.freed.first() {
            tables.refs.hint = tables.refs.hint.min(first);
        }
        Ok(dropped)
    }

    fn change_counts(
        &self,
        tables: &Tables,
        deltas: &Counts,
        sign: Sign,
        pass: Pass,
    ) -> Result<Dropped> {
        let order = tables.refs.order;
        let block_bits = tables.refs.block_bits();
        let cluster = self.geometry.cluster();
        let step = CHUNK.min(1 << block_bits);
        let mut dropped = Dropped::default();
        let mut bytes = vec![0u8; small((step << order).div_ceil(8))];
        let mut first = 0;
        while first < deltas.len() {
            let here = first;
            first += step;
            if deltas.all_zero(here, step) {
                continue;
            }
            let index = small(here >> block_bits);
            let block = tables.refs.table.get(index).copied().unwrap_or(0) & REFTABLE_MASK;
            if block == 0 || !block.is_multiple_of(cluster) {
                return Err(corrupt(
                    format!("the counts from cluster {here:#x} on have no valid refcount block"),
                    here * cluster,
                ));
            }
            let at = block + ((here & ((1 << block_bits) - 1)) << order >> 3);
            self.file.read_at(at, &mut bytes)?;
            match (order, sign) {
                (4, Sign::Add) => self.add_16(deltas, here, &mut bytes)?,
                _ => self.change_any(deltas, here, (sign, order), &mut bytes, &mut dropped)?,
            }
            if pass == Pass::Write {
                self.file.write_at(at, &bytes)?;
            }
        }
        Ok(dropped)
    }

    /// 16 bits wide, upwards: the usual case, in a form that compiles to vector code.
    fn add_16(&self, deltas: &Counts, first: u64, bytes: &mut [u8]) -> Result<()> {
        let start = small(first % CHUNK);
        let chunk = deltas.chunk(first / CHUNK).unwrap_or_default();
        let slots = chunk.get(start..start + bytes.len() / 2).unwrap_or_default();
        let mut bad = false;
        for (slot, pair) in slots.iter().zip(bytes.chunks_exact(2)) {
            let old = u16::from_be_bytes([pair[0], pair[1]]);
            bad |= (*slot != 0) & ((old == 0) | (*slot > u16::MAX - old) | (*slot == u16::MAX));
        }
        if bad {
            // Finds out which, and says so.
            return self.change_any(deltas, first, (Sign::Add, 4), bytes, &mut Dropped::default());
        }
        for (slot, pair) in slots.iter().zip(bytes.chunks_exact_mut(2)) {
            let sum = u16::from_be_bytes([pair[0], pair[1]]).wrapping_add(*slot).to_be_bytes();
            pair.copy_from_slice(&sum);
        }
        Ok(())
    }

    fn change_any(
        &self,
        deltas: &Counts,
        first: u64,
        (sign, order): (Sign, u32),
        bytes: &mut [u8],
        dropped: &mut Dropped,
    ) -> Result<()> {
        let cluster_size = self.geometry.cluster();
        let n = (len_u64(bytes.len()) * 8) >> order;
        for i in 0..n {
            let cluster = first + i;
            let delta = deltas.get(cluster);
            if delta == 0 {
                continue;
            }
            let old = get_count(bytes, order, small(i));
            let new = match sign {
                Sign::Add if old == 0 => None,
                Sign::Add => {
                    let sum = old.checked_add(delta).filter(|&n| n <= max_count(order));
                    if sum.is_none() {
                        return Err(Error::errno(libc::EINVAL)
                            .at_offset(cluster * cluster_size)
                            .hint(format!(
                                "the cluster at {:#x} has {old} references, and {} bits hold no more than {}; widen the counts with 'amend -o refcount_bits=16'",
                                cluster * cluster_size,
                                1u32 << order,
                                max_count(order)
                            )));
                    }
                    sum
                }
                Sign::Drop => old.checked_sub(delta),
            };
            let Some(new) = new else {
                return Err(corrupt(
                    format!(
                        "the cluster at {:#x} has {old} references although more were found",
                        cluster * cluster_size
                    ),
                    cluster * cluster_size,
                ));
            };
            set_count(bytes, order, small(i), new);
            match (sign, new) {
                (Sign::Drop, 0) => match dropped.freed.last_mut() {
                    Some((start, run)) if *start + *run == cluster => *run += 1,
                    _ => dropped.freed.push((cluster, 1)),
                },
                (Sign::Drop, 1) => dropped.single.insert(cluster),
                _ => {}
            }
        }
        Ok(())
    }

    /// Clears the copied flags in L2 tables. Each that has any is written once.
    pub(super) fn clear_copied(&self, uses: &L2Uses) -> Result<()> {
        let step = 1usize << self.geometry.entry_bits;
        let flag = COPIED.to_be_bytes()[0];
        self.edit_l2_tables(uses, |bytes| {
            let mut seen = 0;
            for entry in bytes.chunks_exact_mut(step) {
                seen |= entry[0];
                entry[0] &= !flag;
            }
            seen & flag != 0
        })
    }

    /// Sets the copied flag of entries whose cluster is in `single`.
    pub(super) fn set_copied(&self, uses: &L2Uses, single: &ClusterSet) -> Result<()> {
        if !single.some {
            return Ok(());
        }
        let g = self.geometry;
        let step = 1usize << g.entry_bits;
        self.edit_l2_tables(uses, |bytes| {
            let mut changed = false;
            for entry in bytes.chunks_exact_mut(step) {
                let word = entry[..8].iter().fold(0u64, |v, &b| v << 8 | u64::from(b));
                let at = word & OFFSET_MASK;
                if at != 0 && word & (COMPRESSED | COPIED) == 0 && single.has(at >> g.cluster_bits)
                {
                    entry[0] |= COPIED.to_be_bytes()[0];
                    changed = true;
                }
            }
            changed
        })
    }

    /// Sets the copied flag of L1 entries whose table is in `single`. Returns whether any changed.
    pub(super) fn set_copied_l1(&self, l1: &mut [u64], single: &ClusterSet) -> bool {
        let mut changed = false;
        for entry in l1 {
            let at = *entry & OFFSET_MASK;
            if at != 0 && *entry & COPIED == 0 && single.has(at >> self.geometry.cluster_bits) {
                *entry |= COPIED;
                changed = true;
            }
        }
        changed
    }

    fn edit_l2_tables(&self, uses: &L2Uses, mut edit: impl FnMut(&mut [u8]) -> bool) -> Result<()> {
        let mut bytes = vec![0u8; small(self.geometry.cluster())];
        for table in &uses.list {
            self.file.read_at(table.at, &mut bytes)?;
            if edit(&mut bytes) {
                self.file.write_at(table.at, &bytes)?;
            }
        }
        Ok(())
    }
}
