//! The bits of one bitmap, cluster by cluster ("Bitmap table").
//!
//! Clusters stay on disk until they are needed; a cluster of zeroes or ones takes no memory.

use super::bitmap_dir::{ENTRY_ONES, Entry, MAX_BITMAP_BYTES, table_entry};
use super::open::read_table;
use crate::num::{len_u64, small};
use crate::storage::Storage;
use crate::{Error, Result};

/// Bits of one cluster of the bitmap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Chunk {
    Zero,
    Ones,
    /// As in the file, at this host offset.
    Stored(u64),
    /// Changed.
    Held(Box<[u8]>),
}

/// All bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bits {
    pub(super) chunks: Vec<Chunk>,
    /// Host clusters that the file's table names and this one does not need any more.
    pub(super) replaced: Vec<u64>,
    granularity_bits: u8,
    cluster: u64,
    disk: u64,
}

/// Clusters of a bitmap for a disk of `disk` bytes.
pub(super) fn clusters_needed(disk: u64, granularity_bits: u8, cluster: u64) -> u64 {
    disk.div_ceil(1 << granularity_bits).div_ceil(8).div_ceil(cluster)
}

impl Bits {
    /// None set.
    pub(super) fn empty(disk: u64, granularity_bits: u8, cluster: u64) -> Result<Self> {
        let n = clusters_needed(disk, granularity_bits, cluster);
        if n.saturating_mul(cluster) > MAX_BITMAP_BYTES.saturating_add(cluster) {
            return Err(Error::invalid(
                "Too much space will be occupied by the bitmap. Use larger granularity",
            ));
        }
        let chunks = vec![Chunk::Zero; small(n)];
        Ok(Bits { chunks, replaced: Vec::new(), granularity_bits, cluster, disk })
    }

    /// As stored.
    pub(super) fn load(file: &dyn Storage, entry: &Entry, disk: u64, cluster: u64) -> Result<Self> {
        let mut bits = Bits::empty(disk, entry.granularity_bits, cluster)?;
        let expected = len_u64(bits.chunks.len());
        let name = entry.name_text();
        if u64::from(entry.table_entries) != expected {
            return Err(Error::corrupt(format!(
                "Bitmap table size {} does not correspond to bitmap size and cluster size. Expected {expected}",
                entry.table_entries
            ))
            .at_path(file.name())
            .at_offset(entry.table_offset));
        }
        let table = read_table(file, entry.table_offset, expected).map_err(|e| {
            e.context(format!("Could not read bitmap_table table from image for bitmap '{name}'"))
        })?;
        let end = file.len()?;
        for (word, chunk) in table.into_iter().zip(&mut bits.chunks) {
            *chunk = match table_entry(word, cluster).map_err(|e| {
                e.context(format!("Could not read bitmap '{name}' from image"))
                    .at_path(file.name())
                    .at_offset(entry.table_offset)
            })? {
                Some(at) if at >= end => {
                    return Err(Error::corrupt(format!(
                        "Could not read bitmap '{name}' from image: its data at {at:#x} lie beyond the end of the file"
                    ))
                    .at_path(file.name())
                    .at_offset(at));
                }
                Some(at) => Chunk::Stored(at),
                None if word & ENTRY_ONES != 0 => Chunk::Ones,
                None => Chunk::Zero,
            };
        }
        Ok(bits)
    }

    fn per_chunk(&self) -> u64 {
        self.cluster * 8
    }

    fn put(&mut self, index: usize, chunk: Chunk) {
        if let Chunk::Stored(at) = std::mem::replace(&mut self.chunks[index], chunk) {
            self.replaced.push(at);
        }
    }

    /// A chunk's bytes, to be changed.
    fn hold(&mut self, file: &dyn Storage, index: usize) -> Result<&mut [u8]> {
        if !matches!(self.chunks[index], Chunk::Held(_)) {
            let bytes = read_chunk(file, &self.chunks[index], self.cluster)?;
            self.put(index, Chunk::Held(bytes.into_boxed_slice()));
        }
        match &mut self.chunks[index] {
            Chunk::Held(bytes) => Ok(bytes),
            _ => Err(Error::corrupt("bitmap cluster vanished")),
        }
    }

    /// Marks bytes of the disk as dirty.
    pub(super) fn mark(&mut self, file: &dyn Storage, at: u64, len: u64) -> Result<()> {
        let end = at.saturating_add(len).min(self.disk);
        if at >= end {
            return Ok(());
        }
        let (mut bit, last) = (at >> self.granularity_bits, (end - 1) >> self.granularity_bits);
        let all = self.disk.div_ceil(1 << self.granularity_bits);
        while bit <= last {
            let index = small(bit / self.per_chunk());
            let base = bit - bit % self.per_chunk();
            let stop = (base + self.per_chunk()).min(last + 1);
            if self.chunks[index] == Chunk::Ones {
            } else if bit == base && (stop == base + self.per_chunk() || stop == all) {
                self.put(index, Chunk::Ones);
            } else {
                let bytes = self.hold(file, index)?;
                set_bits(bytes, small(bit - base), small(stop - base));
            }
            bit = stop;
        }
        Ok(())
    }

    /// Clears all.
    pub(super) fn clear(&mut self) {
        for index in 0..self.chunks.len() {
            self.put(index, Chunk::Zero);
        }
    }

    /// For a disk of another size: new bits are clear.
    pub(super) fn resize(&mut self, file: &dyn Storage, disk: u64) -> Result<()> {
        let n = clusters_needed(disk, self.granularity_bits, self.cluster);
        let bits = disk
            .div_ceil(1 << self.granularity_bits)
            .min(self.disk.div_ceil(1 << self.granularity_bits));
        for index in small(n)..self.chunks.len() {
            self.put(index, Chunk::Zero);
        }
        // Bits behind the end may be anything; they must not appear when the disk grows.
        let tail = bits % self.per_chunk();
        let index = small(bits / self.per_chunk());
        if tail != 0 && index < self.chunks.len() && self.chunks[index] != Chunk::Zero {
            let bytes = self.hold(file, index)?;
            clear_bits(bytes, small(tail));
        }
        let wider = Bits::empty(disk, self.granularity_bits, self.cluster)?;
        self.chunks.resize(wider.chunks.len(), Chunk::Zero);
        self.disk = disk;
        Ok(())
    }

    /// Dirty ranges in bytes, ascending, not touching.
    pub(super) fn ranges(&self, file: &dyn Storage) -> Result<Vec<(u64, u64)>> {
        let mut out: Vec<(u64, u64)> = Vec::new();
        let unit = 1u64 << self.granularity_bits;
        let mut push = |first: u64, n: u64| {
            let start = first * unit;
            let end = (start + n * unit).min(self.disk);
            if start >= end {
                return;
            }
            match out.last_mut() {
                Some((at, len)) if *at + *len == start => *len += end - start,
                _ => out.push((start, end - start)),
            }
        };
        for (index, chunk) in self.chunks.iter().enumerate() {
            let base = len_u64(index) * self.per_chunk();
            match chunk {
                Chunk::Zero => {}
                Chunk::Ones => push(base, self.per_chunk()),
                _ => {
                    let bytes = read_chunk(file, chunk, self.cluster)?;
                    for (i, &byte) in bytes.iter().enumerate().filter(|(_, b)| **b != 0) {
                        let first = base + len_u64(i) * 8;
                        if byte == 0xff {
                            push(first, 8);
                            continue;
                        }
                        for bit in (0..8).filter(|b| byte >> b & 1 != 0) {
                            push(first + bit, 1);
                        }
                    }
                }
            }
        }
        Ok(out)
    }
}

fn read_chunk(file: &dyn Storage, chunk: &Chunk, cluster: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![0u8; small(cluster)];
    match chunk {
        Chunk::Zero => {}
        Chunk::Ones => bytes.fill(0xff),
        Chunk::Stored(at) => file
            .read_at(*at, &mut bytes)
            .map_err(|e| e.context("Failed to read bitmap data cluster"))?,
        Chunk::Held(held) => bytes.copy_from_slice(held),
    }
    Ok(bytes)
}

/// Sets bits `from..to`; bit 0 is the lowest of the first byte.
fn set_bits(bytes: &mut [u8], mut from: usize, to: usize) {
    while from < to {
        if from.is_multiple_of(8) && to - from >= 8 {
            let whole = (to - from) / 8;
            bytes[from / 8..from / 8 + whole].fill(0xff);
            from += whole * 8;
        } else {
            bytes[from / 8] |= 1 << (from % 8);
            from += 1;
        }
    }
}

/// Clears all bits from `from` on.
fn clear_bits(bytes: &mut [u8], from: usize) {
    let mut rest = from.div_ceil(8);
    if !from.is_multiple_of(8) {
        bytes[from / 8] &= (1u8 << (from % 8)) - 1;
    }
    while let Some(byte) = bytes.get_mut(rest) {
        *byte = 0;
        rest += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemoryStorage;

    #[test]
    fn marks_and_ranges() {
        let file = MemoryStorage::new("m", Vec::new());
        let disk = 3 * 512 * 8 * 512 + 100;
        let mut bits = Bits::empty(disk, 9, 512).unwrap();
        assert_eq!(bits.chunks.len(), 4);
        bits.mark(&file, 1000, 2000).unwrap();
        bits.mark(&file, disk - 1, 500).unwrap();
        bits.mark(&file, 512 * 8 * 512, 512 * 8 * 512).unwrap();
        assert_eq!(bits.chunks[1], Chunk::Ones);
        let want = [(512, 2560), (512 * 8 * 512, 512 * 8 * 512), (disk - 100, 100)];
        assert_eq!(bits.ranges(&file).unwrap(), want);
        bits.resize(&file, 1600).unwrap();
        assert_eq!(bits.ranges(&file).unwrap(), [(512, 1088)]);
        bits.resize(&file, 1 << 20).unwrap();
        assert_eq!(bits.ranges(&file).unwrap(), [(512, 1536)]);
        bits.clear();
        assert_eq!(bits.ranges(&file).unwrap(), []);
    }
}
