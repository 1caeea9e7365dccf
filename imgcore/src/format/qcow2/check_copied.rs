//! Comparing the copied flags of the active tables with the counts in the file.

use std::collections::HashMap;

use super::check::Check;
use super::check_refs::words;
use super::layout::{COMPRESSED, COPIED, OFFSET_MASK, REFTABLE_MASK, ZERO};
use crate::format::{Repair, check_cancelled};
use crate::num::{len_u64, small};
use crate::{Error, Result};

impl Check<'_> {
    /// A flag may be repaired when everything is (`-r all`), or when the counts are sure to be right.
    fn may_fix_flags(&self) -> bool {
        let r = &self.report;
        match self.repair {
            Repair::Nothing => false,
            Repair::Leaks => r.check_errors == 0 && r.corruptions == 0 && r.leaks == 0,
            Repair::All => true,
        }
    }

    /// Checks (and repairs) the flag of every entry of the active tables.
    pub(super) fn check_copied(&mut self) -> Result<()> {
        let repair = self.may_fix_flags();
        let verb = if repair { "Repairing" } else { "ERROR" };
        let cluster = self.tables.geometry.cluster();
        let mut bytes = vec![0u8; small(cluster)];
        let mut entries = Vec::new();
        // Tables that several entries share: damage found in each.
        let mut shared: HashMap<u64, u64> = HashMap::new();
        if repair {
            // Counts that rose must be on disk before a flag goes, and the other way round it is safe.
            self.file.flush()?;
        }
        for index in 0..self.tables.l1.len() {
            let entry = self.tables.l1[index];
            let at = entry & OFFSET_MASK;
            if at == 0 {
                continue;
            }
            let Some(count) = self.count_on_disk(at / cluster) else { continue };
            if (count == 1) != (entry & COPIED != 0) {
                self.corrupt(
                    1,
                    &format!(
                        "{verb} OFLAG_COPIED L2 cluster: l1_index={index} l1_entry={entry:x} refcount={count}"
                    ),
                );
                if repair {
                    self.write_l1_entry(index, entry ^ COPIED)?;
                }
            }
            if at >= self.file_len {
                continue;
            }
            if count != 1
                && let Some(&found) = shared.get(&at)
            {
                self.report.corruptions += found;
                continue;
            }
            check_cancelled(self.watcher)?;
            if let Err(e) = self.file.read_at(at, &mut bytes) {
                let line = format!("ERROR: Could not read L2 table: {}", e.report());
                return Err(self.failed(&line, e));
            }
            words(&bytes, &mut entries);
            let wrong = self.wrong_flags(&entries, verb);
            self.report.corruptions += len_u64(wrong.len());
            if count != 1 {
                shared.insert(at, if repair { 0 } else { len_u64(wrong.len()) });
            }
            if repair && !wrong.is_empty() {
                for &i in &wrong {
                    bytes[i * 8] ^= COPIED.to_be_bytes()[0];
                }
                self.write_l2_table(at, &bytes)?;
                self.report.corruptions -= len_u64(wrong.len());
                self.report.corruptions_fixed += len_u64(wrong.len());
            }
        }
        Ok(())
    }

    /// The count in the file, if it can be read; that it cannot was said before.
    fn count_on_disk(&mut self, cluster: u64) -> Option<u64> {
        if cluster < self.counts.len() {
            let lost = self.unreadable.iter().any(|r| r.contains(&cluster));
            return (!lost).then(|| self.counts.get(cluster));
        }
        // Behind the end of the file: blocks may say anything, most have none.
        let refs = &mut self.tables.refs;
        let index = small(cluster >> refs.block_bits());
        let block = refs.table.get(index).copied().unwrap_or(0) & REFTABLE_MASK;
        let aligned = block.is_multiple_of(self.tables.geometry.cluster());
        aligned.then(|| refs.get(self.file, cluster).unwrap_or(0))
    }

    /// Indexes (in words) of entries whose flag is wrong.
    fn wrong_flags(&mut self, entries: &[u64], verb: &str) -> Vec<usize> {
        let g = self.tables.geometry;
        let step = if g.extended { 2 } else { 1 };
        let mut wrong = Vec::new();
        for (i, &entry) in entries.iter().enumerate().step_by(step) {
            if entry == 0 || entry & COMPRESSED != 0 {
                continue;
            }
            let at = entry & OFFSET_MASK;
            let zero = !g.extended && entry & ZERO != 0;
            if at == 0 && (zero || !(g.external && entry & COPIED != 0)) {
                continue;
            }
            let count = if g.external { Some(1) } else { self.count_on_disk(at >> g.cluster_bits) };
            let Some(count) = count else { continue };
            if (count == 1) != (entry & COPIED != 0) {
                self.note(&format!(
                    "{verb} OFLAG_COPIED data cluster: l2_entry={entry:x} refcount={count}"
                ));
                wrong.push(i);
            }
        }
        wrong
    }

    fn write_l1_entry(&mut self, index: usize, entry: u64) -> Result<()> {
        let at = self.tables.header.l1_offset + len_u64(index) * 8;
        if let Err(e) = self.file.write_at(at, &entry.to_be_bytes()) {
            self.report.check_errors += 1;
            return Err(e);
        }
        self.tables.l1[index] = entry;
        self.report.corruptions -= 1;
        self.report.corruptions_fixed += 1;
        Ok(())
    }

    fn write_l2_table(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        if self.overlaps_metadata(at, len_u64(bytes.len())) {
            let e = Error::corrupt(format!("L2 table at {at:#x} overlaps other metadata"))
                .at_offset(at);
            return Err(self.failed(
                "ERROR: Could not write L2 table; metadata overlap check failed: Input/output error",
                e,
            ));
        }
        self.file.write_at(at, bytes).map_err(|e| {
            let line = format!("ERROR: Could not write L2 table: {}", e.report());
            self.failed(&line, e)
        })
    }
}
