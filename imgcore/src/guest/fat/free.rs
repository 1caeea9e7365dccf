//! Free space: a cluster whose entry in the file allocation table is zero.
//!
//! All copies of the table must be the same, and every entry must be one that a file can have.

use super::layout::{Layout, Width};
use crate::guest::fields::Fields;
use crate::guest::free::{Cursor, FreeMap, FreeRange, unclean};
use crate::guest::volume::Volume;
use crate::{Error, Result};

/// Bytes of the table that are looked at together: a multiple of three, so that entries of 12 bits come
/// out even.
const PIECE: u64 = 3 << 18;

/// A FAT file system that was left cleanly.
#[derive(Debug)]
pub struct FatFree {
    volume: Volume,
    layout: Layout,
}

impl FatFree {
    /// Reads the boot sector.
    ///
    /// # Errors
    /// When it is damaged, or the file system was not left cleanly.
    pub fn open(volume: &Volume) -> Result<Self> {
        let boot = volume.read(0, 512)?;
        let layout = Layout::parse(&boot).map_err(|e| e.hint(CHECK))?;
        let Layout { width, clusters, copies, .. } = layout;
        if clusters == 0 || layout.total > volume.len() {
            return Err(damaged("the boot sector's numbers do not fit together or the volume"));
        }
        if width.entries(layout.table_len) < clusters + 2 || clusters + 1 >= width.mask().into() {
            return Err(damaged("the file allocation table is too short for the clusters"));
        }
        if layout.only.is_some_and(|n| n >= copies) {
            return Err(damaged("the table in use does not exist"));
        }
        let fat = FatFree { volume: volume.clone(), layout };
        fat.check_clean(&boot)?;
        Ok(fat)
    }

    /// Entry 1 has bits that are cleared while mounted and after errors; Linux and Windows also mark the
    /// boot sector (`BS_Reserved1`, bit 0).
    fn check_clean(&self, boot: &[u8]) -> Result<()> {
        const CLEAN: &str = "check it first (fsck.vfat or chkdsk), or shut the guest down cleanly";
        let reserved = Fields(boot).u8(if self.layout.width == Width::Fat32 { 65 } else { 37 })?;
        if reserved & 1 != 0 {
            return Err(unclean("the file system was not unmounted cleanly", CLEAN));
        }
        if reserved & 2 != 0 {
            return Err(unclean("the file system is marked as damaged", CLEAN));
        }
        let entry = self.layout.width.entry(&self.piece(0, 8)?, 1)?;
        let (clean, sound) = match self.layout.width {
            Width::Fat12 => return Ok(()),
            Width::Fat16 => (entry & 0x8000 != 0, entry & 0x4000 != 0),
            Width::Fat32 => (entry & 0x0800_0000 != 0, entry & 0x0400_0000 != 0),
        };
        if !clean {
            return Err(unclean("the file system was not unmounted cleanly", CLEAN));
        }
        if !sound {
            return Err(unclean("the file system met errors of the disk", CLEAN));
        }
        Ok(())
    }

    /// Bytes of the table, which all copies must agree on.
    fn piece(&self, at: u64, len: u64) -> Result<Vec<u8>> {
        let copy =
            |n: u64| self.volume.read(self.layout.table + n * self.layout.table_len + at, len);
        if let Some(only) = self.layout.only {
            return copy(only);
        }
        let first = copy(0)?;
        for n in 1..self.layout.copies {
            if copy(n)? != first {
                return Err(damaged("the copies of the file allocation table differ").at_offset(at));
            }
        }
        Ok(first)
    }
}

impl FreeMap for FatFree {
    fn kind(&self) -> &'static str {
        match self.layout.width {
            Width::Fat12 => "FAT12",
            Width::Fat16 => "FAT16",
            Width::Fat32 => "FAT32",
        }
    }

    fn unit(&self) -> u64 {
        self.layout.cluster
    }

    fn managed(&self) -> u64 {
        self.layout.data + self.layout.clusters * self.layout.cluster
    }

    fn batch(&self, cursor: &mut Cursor) -> Result<Option<Vec<FreeRange>>> {
        let at = cursor.step * PIECE;
        let first = self.layout.width.entries(at);
        let end = (self.layout.clusters + 2).min(self.layout.width.entries(at + PIECE));
        if first >= self.layout.clusters + 2 {
            return Ok(None);
        }
        cursor.step += 1;
        let piece = self.piece(at, PIECE.min(self.layout.table_len - at))?;
        let mut runs: Vec<FreeRange> = Vec::new();
        for cluster in first.max(2)..end {
            let entry = self.layout.width.entry(&piece, cluster - first)?;
            if entry == 0 {
                let at = self.layout.data + (cluster - 2) * self.layout.cluster;
                match runs.last_mut() {
                    Some(run) if run.at + run.len == at => run.len += self.layout.cluster,
                    _ => runs.push(FreeRange { at, len: self.layout.cluster }),
                }
                continue;
            }
            // The next cluster of a file, a bad cluster (..f7), the end of a file (..f8 to ..ff).
            let next = (2..self.layout.clusters + 2).contains(&u64::from(entry));
            if !next && entry < self.layout.width.mask() - 8 {
                let text = format!("the entry of cluster {cluster} is {entry:#x}");
                return Err(damaged(&text).at_offset(self.layout.table + at));
            }
        }
        Ok(Some(runs))
    }
}

const CHECK: &str = "check it first: fsck.vfat or chkdsk";

fn damaged(what: &str) -> Error {
    Error::corrupt(what).hint(CHECK)
}
