//! Bytes of a volume, for the readers of file systems: cached, and charged for.
//!
//! Every read is charged to a [`Budget`] that all readers of one disk share, also when the cache has
//! the bytes. So a loop made by a hostile file system (a tree whose nodes all point to one child, a
//! chain of clusters that returns) ends: whatever it does, it has to read.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::guest::Volume;
use crate::num::{len_u64, round_down, small};
use crate::{Error, ErrorKind, Result};

/// Bytes of one entry of the cache.
const CHUNK: u64 = 64 << 10;
/// Entries: 8 MiB a volume.
const CHUNKS: usize = 128;
/// A hundred times what a large system needs, and seconds at most.
const DEFAULT: u64 = 8 << 30;
/// What a read costs at least, in bytes.
const MINIMUM: u64 = 256;

/// How much may be read, of all volumes of a disk together.
#[derive(Clone, Debug)]
pub struct Budget(Arc<AtomicU64>);

impl Budget {
    /// So many bytes.
    pub fn new(bytes: u64) -> Self {
        Budget(Arc::new(AtomicU64::new(bytes)))
    }

    /// What looking at a disk may cost: some times its length, and never more than by default.
    pub(crate) fn of_disk(len: u64) -> Self {
        Budget::new(len.saturating_mul(16).saturating_add(256 << 20).min(DEFAULT))
    }

    /// What reading all metadata of a volume may cost: some times its length.
    pub(crate) fn of_metadata(len: u64) -> Self {
        Budget::new(len.saturating_mul(8).saturating_add(32 << 20))
    }

    /// Takes `bytes` off.
    ///
    /// # Errors
    /// When there is not as much left.
    pub fn charge(&self, bytes: u64) -> Result<()> {
        let taken = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            left.checked_sub(bytes.max(MINIMUM))
        });
        taken.map(|_| ()).map_err(|_| {
            Error::new(
                ErrorKind::TooLarge,
                "the file systems want more reading than an inspection may do",
            )
            .hint("they are damaged, or made to keep programs busy")
        })
    }
}

impl Default for Budget {
    fn default() -> Self {
        Budget::new(DEFAULT)
    }
}

/// A volume as the readers see it.
pub struct VolumeReader {
    volume: Volume,
    budget: Budget,
    cache: Mutex<Cache>,
}

#[derive(Default)]
struct Cache {
    chunks: HashMap<u64, (u64, Box<[u8]>)>,
    clock: u64,
}

impl VolumeReader {
    /// A volume, charged to `budget`.
    pub fn new(volume: Volume, budget: Budget) -> Self {
        VolumeReader { volume, budget, cache: Mutex::default() }
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.volume.len()
    }

    /// Takes `bytes` off the budget for work that reads nothing.
    ///
    /// # Errors
    /// When there is not as much left.
    pub fn charge(&self, bytes: u64) -> Result<()> {
        self.budget.charge(bytes)
    }

    /// Fills `buf` from `at`.
    ///
    /// # Errors
    /// When the range is not inside of the volume, the image cannot be read, or the budget is used up.
    pub fn read_at(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let len = len_u64(buf.len());
        self.budget.charge(len)?;
        let end = at.checked_add(len).filter(|e| *e <= self.size());
        let end = end.ok_or_else(|| outside().at_offset(at))?;
        let mut pos = at;
        while pos < end {
            let start = round_down(pos, CHUNK);
            let n = (start + CHUNK).min(end) - pos;
            let done = small(pos - at);
            self.take_chunk(start, small(pos - start), &mut buf[done..done + small(n)])?;
            pos += n;
        }
        Ok(())
    }

    /// `len` bytes from `at`; the caller has bounded `len`.
    ///
    /// # Errors
    /// As [`VolumeReader::read_at`].
    pub fn bytes(&self, at: u64, len: usize) -> Result<Vec<u8>> {
        let end = at.checked_add(len_u64(len)).filter(|e| *e <= self.size());
        end.ok_or_else(|| outside().at_offset(at))?;
        let mut buf = vec![0; len];
        self.read_at(at, &mut buf)?;
        Ok(buf)
    }

    fn take_chunk(&self, start: u64, offset: usize, out: &mut [u8]) -> Result<()> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.clock += 1;
        let now = cache.clock;
        if let Some((used, chunk)) = cache.chunks.get_mut(&start) {
            *used = now;
            out.copy_from_slice(&chunk[offset..offset + out.len()]);
            return Ok(());
        }
        // What the image is asked for costs as much as it is, however little of it was wanted.
        self.budget.charge(CHUNK)?;
        let mut chunk = vec![0; small(CHUNK.min(self.size() - start))].into_boxed_slice();
        self.volume.read_at(start, &mut chunk)?;
        out.copy_from_slice(&chunk[offset..offset + out.len()]);
        if cache.chunks.len() >= CHUNKS
            && let Some(oldest) = cache.chunks.iter().min_by_key(|(_, (used, _))| *used)
        {
            let oldest = *oldest.0;
            cache.chunks.remove(&oldest);
        }
        cache.chunks.insert(start, (now, chunk));
        Ok(())
    }
}

/// A place that is not there.
fn outside() -> Error {
    Error::corrupt("the file system refers to a place outside of its volume")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::guest::GuestDisk;
    use crate::storage::MemoryStorage;

    fn volume(data: Vec<u8>) -> Volume {
        let storage = Arc::new(MemoryStorage::new("m", data));
        Volume::whole(&GuestDisk::from_storage(storage).unwrap())
    }

    #[test]
    fn reads_across_chunks_and_not_past_the_end() {
        let data: Vec<u8> = (0..200_000u32).map(|n| n.to_le_bytes()[0] ^ 7).collect();
        let source = VolumeReader::new(volume(data.clone()), Budget::new(1 << 20));
        let mut buf = vec![0; 70_000];
        source.read_at(65_000, &mut buf).unwrap();
        assert_eq!(buf, data[65_000..135_000]);
        assert!(source.read_at(199_999, &mut [0; 2]).is_err());
        assert!(source.read_at(u64::MAX, &mut [0; 2]).is_err());
        assert!(source.bytes(0, usize::MAX).is_err());
    }

    #[test]
    fn a_byte_here_and_there_costs_what_is_read() {
        let source =
            VolumeReader::new(volume(vec![0; 40 << 16]), Budget::new(10 * (CHUNK + MINIMUM)));
        let places = (0..40).map(|i| i * CHUNK);
        assert_eq!(places.take_while(|at| source.read_at(*at, &mut [0]).is_ok()).count(), 10);
    }

    #[test]
    fn a_loop_of_reads_ends() {
        let source = VolumeReader::new(volume(vec![0; 10]), Budget::new(CHUNK + 1000 * MINIMUM));
        let mut reads = 0;
        while source.read_at(0, &mut [0; 1]).is_ok() {
            reads += 1;
        }
        assert_eq!(reads, 1000);
    }
}
