//! Reference counts of a whole image file in little memory.
//!
//! Two bytes a cluster, in chunks that exist only where something was counted: a fully allocated
//! 1 TiB image needs 32 MiB. A count that does not fit in 16 bits stands in a map beside the chunks.

use std::collections::BTreeMap;

use super::refcount::{get_count, max_count, set_count};
use crate::num::{len_u64, small};

/// Counts of one chunk; a power of two.
pub(super) const CHUNK: u64 = 32768;
/// The count is in the map.
const IN_MAP: u16 = u16::MAX;

/// Counts by cluster index.
#[derive(Debug)]
pub(super) struct Counts {
    chunks: Vec<Option<Box<[u16]>>>,
    large: BTreeMap<u64, u64>,
    clusters: u64,
    max: u64,
}

impl Counts {
    /// All zero, for `clusters` clusters and a width of `1 << order` bits.
    pub(super) fn new(clusters: u64, order: u32) -> Self {
        let mut chunks = Vec::new();
        chunks.resize_with(small(clusters.div_ceil(CHUNK)), || None);
        Counts { chunks, large: BTreeMap::new(), clusters, max: max_count(order) }
    }

    /// Clusters covered.
    pub(super) fn len(&self) -> u64 {
        self.clusters
    }

    /// Covers more clusters.
    pub(super) fn grow(&mut self, clusters: u64) {
        if clusters > self.clusters {
            self.clusters = clusters;
            self.chunks.resize_with(small(clusters.div_ceil(CHUNK)), || None);
        }
    }

    /// Another width: larger counts than it allows cannot be added any more.
    pub(super) fn set_order(&mut self, order: u32) {
        self.max = max_count(order);
    }

    /// The count of a cluster.
    pub(super) fn get(&self, cluster: u64) -> u64 {
        let Some(Some(chunk)) = self.chunks.get(small(cluster / CHUNK)) else { return 0 };
        match chunk.get(small(cluster % CHUNK)) {
            Some(&IN_MAP) => self.large.get(&cluster).copied().unwrap_or(u64::from(IN_MAP)),
            Some(&n) => u64::from(n),
            None => 0,
        }
    }

    /// Sets the count of a cluster inside the range.
    pub(super) fn set(&mut self, cluster: u64, value: u64) {
        if value == 0 && self.chunk(cluster / CHUNK).is_none() {
            return;
        }
        if let Some(slot) = self.chunk_mut(cluster / CHUNK).get_mut(small(cluster % CHUNK)) {
            let old = *slot;
            *slot = u16::try_from(value).unwrap_or(IN_MAP);
            if *slot == IN_MAP {
                self.large.insert(cluster, value);
            } else if old == IN_MAP {
                self.large.remove(&cluster);
            }
        }
    }

    /// The counts of chunk `index`, if any were ever set there. Slots of `u16::MAX` stand for larger
    /// counts, see [`Counts::get`].
    pub(super) fn chunk(&self, index: u64) -> Option<&[u16]> {
        self.chunks.get(small(index)).and_then(|c| c.as_deref())
    }

    fn chunk_mut(&mut self, index: u64) -> &mut [u16] {
        let index = small(index);
        if index >= self.chunks.len() {
            self.chunks.resize_with(index + 1, || None);
        }
        self.chunks[index].get_or_insert_with(|| vec![0; small(CHUNK)].into_boxed_slice())
    }

    /// Adds `times` to the counts of `n` clusters from `first` on. Counts stop at the width's maximum;
    /// calls `overflow(cluster, excess)` for each that would pass it.
    pub(super) fn add(
        &mut self,
        first: u64,
        n: u64,
        times: u64,
        mut overflow: impl FnMut(u64, u64),
    ) {
        let mut at = first;
        let end = first.saturating_add(n);
        while at < end {
            let base = at - at % CHUNK;
            let stop = end.min(base + CHUNK);
            let max = self.max;
            let slots = &mut self.chunk_mut(at / CHUNK)[small(at - base)..small(stop - base)];
            let top = u64::from(slots.iter().copied().max().unwrap_or(0));
            let sum = top.saturating_add(times);
            match u16::try_from(times) {
                Ok(step) if sum < u64::from(IN_MAP) && sum <= max => {
                    for slot in slots {
                        *slot += step;
                    }
                }
                _ => {
                    for cluster in at..stop {
                        let sum = self.get(cluster).saturating_add(times);
                        if sum > max {
                            overflow(cluster, sum - max);
                        }
                        self.set(cluster, sum.min(max));
                    }
                }
            }
            at = stop;
        }
    }

    /// The first cluster from `from` on with count zero, at most [`Counts::len`].
    pub(super) fn first_zero(&self, mut from: u64) -> u64 {
        while from < self.clusters {
            let Some(chunk) = self.chunk(from / CHUNK) else { return from };
            let start = small(from % CHUNK);
            match chunk[start..].iter().position(|&n| n == 0) {
                Some(i) => return (from + len_u64(i)).min(self.clusters),
                None => from += CHUNK - len_u64(start),
            }
        }
        self.clusters
    }

    /// Whether all counts in `first..first + n` are zero; the range must not cross a chunk.
    pub(super) fn all_zero(&self, first: u64, n: u64) -> bool {
        self.chunk(first / CHUNK).is_none_or(|chunk| {
            let start = small(first % CHUNK);
            chunk.iter().skip(start).take(small(n)).all(|&c| c == 0)
        })
    }

    /// Whether a refcount block piece holds the counts from `first` on. Only for ranges inside a chunk.
    pub(super) fn same_as_block(&self, first: u64, bytes: &[u8], order: u32) -> bool {
        let n = (bytes.len() * 8) >> order;
        let start = small(first % CHUNK);
        let Some(chunk) = self.chunk(first / CHUNK) else {
            return bytes.iter().all(|&b| b == 0);
        };
        let Some(slots) = chunk.get(start..start + n) else { return false };
        if order == 4 {
            return slots
                .iter()
                .zip(bytes.chunks_exact(2))
                .all(|(&s, b)| s != IN_MAP && s == u16::from_be_bytes([b[0], b[1]]));
        }
        slots
            .iter()
            .enumerate()
            .all(|(i, &s)| s != IN_MAP && u64::from(s) == get_count(bytes, order, i))
    }

    /// Fills a piece of a refcount block with the counts from `first` on.
    pub(super) fn to_block(&self, first: u64, bytes: &mut [u8], order: u32) {
        let n = (bytes.len() * 8) >> order;
        bytes.fill(0);
        for i in 0..n {
            let count = self.get(first + len_u64(i));
            if count != 0 {
                set_count(bytes, order, i, count);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_and_large_counts() {
        let mut counts = Counts::new(100_000, 5);
        counts.add(32_760, 20, 3, |_, _| panic!("no overflow"));
        assert_eq!(counts.get(32_759), 0);
        assert_eq!(counts.get(32_760), 3);
        assert_eq!(counts.get(32_779), 3);
        counts.add(32_770, 1, 70_000, |_, _| panic!("no overflow"));
        assert_eq!(counts.get(32_770), 70_003);
        counts.set(32_770, 5);
        assert_eq!(counts.get(32_770), 5);
        assert_eq!(counts.first_zero(32_760), 32_780);
    }

    #[test]
    fn counts_stop_at_the_width() {
        let mut counts = Counts::new(10, 1);
        let mut seen = Vec::new();
        counts.add(3, 2, 2, |_, _| panic!("no overflow"));
        counts.add(2, 2, 2, |c, n| seen.push((c, n)));
        assert_eq!(seen, [(3, 1)]);
        assert_eq!((counts.get(2), counts.get(3), counts.get(4)), (2, 3, 2));
    }

    #[test]
    fn blocks_of_every_width() {
        for order in 0..=6 {
            let mut counts = Counts::new(1 << 16, order);
            for i in 0..4096 {
                counts.set(i, i & max_count(order).min(300));
            }
            let mut bytes = vec![0u8; (4096 << order) / 8];
            counts.to_block(0, &mut bytes, order);
            assert!(counts.same_as_block(0, &bytes, order));
            bytes[77] ^= 1;
            assert!(!counts.same_as_block(0, &bytes, order));
        }
    }
}
