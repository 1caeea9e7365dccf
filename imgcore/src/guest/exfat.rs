//! exFAT: an allocation bitmap in a file of its own.
//!
//! Microsoft, *exFAT file system specification*; sections are named where they are used. The checksum of the
//! boot region, the dirty flag and the bitmap's own place are checked.

use crate::guest::fields::Fields;
use crate::guest::free::bitmap::{all_used, free_runs};
use crate::guest::free::{Cursor, FreeMap, FreeRange, unclean};
use crate::guest::volume::Volume;
use crate::num::{len_u64, small};
use crate::{Error, Result};

/// Bytes of the bitmap that are looked at together.
const PIECE: u64 = 128 << 10;
/// Clusters of the root directory that are searched for the bitmap, which stands at its beginning.
const MAX_ROOT: usize = 1024;
/// The longest bitmap (3.1.9: at most 2^32 clusters).
const MAX_BITMAP: u64 = 512 << 20;
/// Larger entries of the table end a file or mark a bad cluster (4.1).
const LAST_CLUSTER: u32 = 0xffff_fff6;

/// An exFAT file system that was left cleanly.
#[derive(Debug)]
pub struct ExFatFree {
    volume: Volume,
    cluster: u64,
    /// Where the table begins, in bytes.
    table: u64,
    /// Where cluster 2 begins, in bytes.
    heap: u64,
    clusters: u64,
    /// The clusters of the bitmap, as runs: first cluster and number.
    bitmap: Vec<(u64, u64)>,
    root: u64,
}

impl ExFatFree {
    /// Reads the boot region and finds the bitmap.
    ///
    /// # Errors
    /// When they are damaged, or the file system was not left cleanly.
    pub fn open(volume: &Volume) -> Result<Self> {
        let boot = volume.read(0, 512)?;
        let b = Fields(&boot);
        let (sector_shift, cluster_shift) = (b.u8(108)?, b.u8(109)?);
        if !(9..=12).contains(&sector_shift) || cluster_shift > 25 - sector_shift {
            return Err(damaged("sector or cluster size"));
        }
        let sector = 1u64 << sector_shift;
        check_boot_region(volume, sector)?;
        if b.le16(106)? & 0x2 != 0 {
            return Err(unclean(
                "the file system was not unmounted cleanly",
                "check it first (fsck.exfat or chkdsk), or shut the guest down cleanly",
            ));
        }
        if b.u8(110)? != 1 {
            return Err(Error::unsupported("is TexFAT, with two tables"));
        }
        let cluster = sector << cluster_shift;
        let heap = u64::from(b.le32(88)?) * sector;
        let clusters = u64::from(b.le32(92)?);
        let table = u64::from(b.le32(80)?) * sector;
        let table_len = u64::from(b.le32(84)?) * sector;
        let sectors = b.le64(72)?;
        let end = clusters.checked_mul(cluster).and_then(|n| n.checked_add(heap));
        let len = sectors.checked_mul(sector).filter(|&n| n <= volume.len());
        let sound = end.is_some_and(|e| len.is_some_and(|l| e <= l))
            && (clusters + 2) * 4 <= table_len
            && table.checked_add(table_len).is_some_and(|e| e <= heap);
        if !sound {
            return Err(damaged("the boot sector's numbers do not fit together or the volume"));
        }
        let root = u64::from(b.le32(96)?);
        let mut found = ExFatFree {
            volume: volume.clone(),
            cluster,
            table,
            heap,
            clusters,
            bitmap: Vec::new(),
            root,
        };
        found.bitmap = found.find_bitmap()?;
        Ok(found)
    }

    fn at(&self, cluster: u64) -> Result<u64> {
        if (2..self.clusters + 2).contains(&cluster) {
            Ok(self.heap + (cluster - 2) * self.cluster)
        } else {
            Err(damaged(&format!("cluster {cluster} does not exist")))
        }
    }

    /// The next cluster of a chain; `None` at its end (4.1).
    fn next(&self, cluster: u64) -> Result<Option<u64>> {
        self.at(cluster)?;
        let bytes = self.volume.read(self.table + cluster * 4, 4)?;
        let next = Fields(&bytes).le32(0)?;
        Ok((next <= LAST_CLUSTER).then_some(u64::from(next)))
    }

    /// Looks for the bitmap's entry in the root directory (7.1) and follows its chain.
    fn find_bitmap(&self) -> Result<Vec<(u64, u64)>> {
        let mut at = Some(self.root);
        for _ in 0..MAX_ROOT {
            let Some(cluster) = at else { break };
            let bytes = self.volume.read(self.at(cluster)?, self.cluster)?;
            for entry in bytes.chunks_exact(32) {
                let e = Fields(entry);
                match e.u8(0)? {
                    0 => return Err(damaged("the root directory names no allocation bitmap")),
                    0x81 if e.u8(1)? & 1 == 0 => {
                        return self.chain(u64::from(e.le32(20)?), e.le64(24)?);
                    }
                    _ => {}
                }
            }
            at = self.next(cluster)?;
        }
        Err(damaged("the root directory names no allocation bitmap"))
    }

    /// The clusters of the bitmap.
    fn chain(&self, first: u64, len: u64) -> Result<Vec<(u64, u64)>> {
        if len < self.clusters.div_ceil(8) || len > MAX_BITMAP {
            return Err(damaged("the allocation bitmap is too short for the clusters"));
        }
        let mut runs: Vec<(u64, u64)> = Vec::new();
        let mut at = first;
        for left in (0..len.div_ceil(self.cluster)).rev() {
            self.at(at)?;
            match runs.last_mut() {
                Some((start, count)) if *start + *count == at => *count += 1,
                _ => runs.push((at, 1)),
            }
            if left > 0 {
                at = self.next(at)?.ok_or_else(|| damaged("the bitmap's chain is too short"))?;
            }
        }
        Ok(runs)
    }

    /// `len` bytes of the bitmap.
    fn bitmap_bytes(&self, mut at: u64, len: u64) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        for &(first, count) in &self.bitmap {
            let room = count * self.cluster;
            if at < room {
                let n = (room - at).min(len - len_u64(all.len()));
                all.extend(self.volume.read(self.at(first)? + at, n)?);
                if len_u64(all.len()) == len {
                    return Ok(all);
                }
                at = 0;
            } else {
                at -= room;
            }
        }
        Err(damaged("the allocation bitmap is too short"))
    }
}

impl FreeMap for ExFatFree {
    fn kind(&self) -> &'static str {
        "exFAT"
    }

    fn unit(&self) -> u64 {
        self.cluster
    }

    fn managed(&self) -> u64 {
        self.heap + self.clusters * self.cluster
    }

    fn batch(&self, cursor: &mut Cursor) -> Result<Option<Vec<FreeRange>>> {
        let (at, first) = (cursor.step * PIECE, cursor.step * PIECE * 8);
        if first >= self.clusters {
            return Ok(None);
        }
        cursor.step += 1;
        let bits = (self.clusters - first).min(PIECE * 8);
        let bytes = self.bitmap_bytes(at, bits.div_ceil(8))?;
        // What is surely in use must be marked: the bitmap's own clusters and the root directory's.
        for &(start, count) in self.bitmap.iter().chain(&[(self.root, 1)]) {
            let (from, to) = ((start - 2).max(first), (start - 2 + count).min(first + bits));
            if from < to && !all_used(&bytes, from - first, to - from) {
                return Err(damaged("the allocation bitmap counts its own clusters as free"));
            }
        }
        let mut runs = free_runs(&bytes, bits, first, self.cluster);
        runs.iter_mut().for_each(|r| r.at += self.heap);
        Ok(Some(runs))
    }
}

/// The checksum of the first eleven sectors, which fills the twelfth (3.4).
fn check_boot_region(volume: &Volume, sector: u64) -> Result<()> {
    let bytes = volume.read(0, 12 * sector)?;
    let (region, sums) = bytes.split_at(small(11 * sector));
    let mut sum = 0u32;
    for (i, &byte) in region.iter().enumerate() {
        // The flags and the percentage change while the file system is in use.
        if !matches!(i, 106 | 107 | 112) {
            sum = sum.rotate_right(1).wrapping_add(u32::from(byte));
        }
    }
    if sums.chunks_exact(4).all(|s| *s == sum.to_le_bytes()) {
        Ok(())
    } else {
        Err(damaged("the checksum of the boot region is wrong"))
    }
}

fn damaged(what: &str) -> Error {
    Error::corrupt(what).hint("check it first: fsck.exfat or chkdsk")
}
