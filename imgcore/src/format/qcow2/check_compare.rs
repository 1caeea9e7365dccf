//! Comparing the counts found with those in the file, and repairing them in place.

use super::check::Check;
use super::check_counts::CHUNK;
use super::layout::REFTABLE_MASK;
use super::refcount::{get_count, set_count};
use crate::format::{Repair, check_cancelled};
use crate::num::{len_u64, small};
use crate::{Error, Result};

/// A piece of a refcount block that lies in one chunk of counts.
struct Piece {
    /// First cluster, number of clusters.
    first: u64,
    n: u64,
    /// Host offset of the bytes; 0: there is no block, all counts are zero.
    at: u64,
}

impl Check<'_> {
    /// Compares all counts and reports (or repairs, as `fix` says) the differences. With `keep_disk` the
    /// counts in memory are replaced by those in the file.
    pub(super) fn compare(&mut self, fix: Repair, keep_disk: bool) -> Result<()> {
        let order = self.tables.refs.order;
        let block_bits = self.tables.refs.block_bits();
        let cluster = self.tables.geometry.cluster();
        let step = CHUNK.min(1 << block_bits);
        self.highest = 0;
        self.unreadable.clear();
        let mut freed = Vec::new();
        let mut bytes = Vec::new();
        let mut first = 0;
        while first < self.counts.len() {
            let n = step.min(self.counts.len() - first);
            let index = small(first >> block_bits);
            let block = self.tables.refs.table.get(index).copied().unwrap_or(0) & REFTABLE_MASK;
            let piece = Piece { first, n, at: block };
            first += n;
            if block == 0 && self.counts.all_zero(piece.first, n) {
                continue;
            }
            if !block.is_multiple_of(cluster) {
                self.unreadable_piece(&piece);
                continue;
            }
            let inner = (piece.first & ((1 << block_bits) - 1)) << order >> 3;
            let piece = Piece { at: if block == 0 { 0 } else { block + inner }, ..piece };
            bytes.clear();
            bytes.resize(small((n << order).div_ceil(8)), 0);
            // A block behind the end of the file reads as zeroes.
            if block != 0
                && let Err(e) = self.file.read_at(piece.at, &mut bytes)
            {
                let _ = e;
                self.unreadable_piece(&piece);
                continue;
            }
            if self.counts.same_as_block(piece.first, &bytes, order) {
                if let Some(last) = self.last_counted(&piece) {
                    self.highest = last;
                }
                continue;
            }
            check_cancelled(self.watcher)?;
            let changed = self.compare_piece(&piece, &mut bytes, fix, keep_disk, &mut freed);
            if changed {
                self.file.write_at(piece.at, &bytes)?;
            }
        }
        self.give_back(&freed)
    }

    /// The last cluster of a piece with a count.
    fn last_counted(&self, piece: &Piece) -> Option<u64> {
        let start = small(piece.first % CHUNK);
        let slots = self.counts.chunk(piece.first / CHUNK)?.get(start..start + small(piece.n))?;
        slots.iter().rposition(|&c| c != 0).map(|i| piece.first + len_u64(i))
    }

    fn unreadable_piece(&mut self, piece: &Piece) {
        let reason = Error::errno(libc::EIO).report();
        self.unreadable.push(piece.first..piece.first + piece.n);
        for cluster in piece.first..piece.first + piece.n {
            self.note(&format!("Can't get refcount for cluster {cluster}: {reason}"));
            self.report.check_errors += 1;
        }
    }

    /// Goes through a piece count by count; returns whether `bytes` changed.
    fn compare_piece(
        &mut self,
        piece: &Piece,
        bytes: &mut [u8],
        fix: Repair,
        keep_disk: bool,
        freed: &mut Vec<(u64, u64)>,
    ) -> bool {
        let order = self.tables.refs.order;
        let mut changed = false;
        for i in 0..piece.n {
            let cluster = piece.first + i;
            let slot = small(i);
            let (stored, found) = (get_count(bytes, order, slot), self.counts.get(cluster));
            if stored > 0 || found > 0 {
                self.highest = cluster;
            }
            if stored == found {
                continue;
            }
            let repairable = match (stored, fix) {
                (0, _) => {
                    self.rebuild = true;
                    false
                }
                (_, Repair::Nothing) => false,
                (_, Repair::Leaks) => stored > found,
                (_, Repair::All) => true,
            };
            let verb = match (repairable, stored < found) {
                (true, _) => "Repairing",
                (false, true) => "ERROR",
                (false, false) => "Leaked",
            };
            self.note(&format!("{verb} cluster {cluster} refcount={stored} reference={found}"));
            let report = &mut self.report;
            if repairable {
                set_count(bytes, order, slot, found);
                changed = true;
                if stored < found {
                    report.corruptions_fixed += 1;
                } else {
                    report.leaks_fixed += 1;
                }
                if found == 0 {
                    match freed.last_mut() {
                        Some((start, n)) if *start + *n == cluster => *n += 1,
                        _ => freed.push((cluster, 1)),
                    }
                }
            } else {
                if stored < found {
                    report.corruptions += 1;
                } else {
                    report.leaks += 1;
                }
                if keep_disk {
                    self.counts.set(cluster, stored);
                }
            }
        }
        changed
    }

    /// Gives the space of clusters back that nothing refers to any more.
    fn give_back(&self, freed: &[(u64, u64)]) -> Result<()> {
        if freed.is_empty() {
            return Ok(());
        }
        self.file.flush()?;
        let cluster = self.tables.geometry.cluster();
        for &(first, n) in freed {
            self.file.discard(first * cluster, n * cluster)?;
        }
        Ok(())
    }
}
