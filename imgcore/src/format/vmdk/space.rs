//! Which space of a sparse extent's file something refers to.
//!
//! One bit for each *unit* of the file: the grain, or a smaller power of two where grains do not lie at
//! multiples of it. The map never takes more than [`MAX_UNITS`] bits: units get larger with the file. A
//! unit that anything reaches into counts as used, so what the map calls free surely is: in doubt space
//! is used. For the same reason the entries of both copies of each grain table count, and those of
//! guest offsets beyond the end of the disk.

use super::geometry::Geometry;
use super::image::{Sparse, VmdkImage};
use super::layout::SECTOR;
use crate::Result;
use crate::format::{Watcher, check_cancelled};
use crate::num::{round_up, small};

/// Most bits of a map (8 MiB).
const MAX_UNITS: u64 = 64 << 20;
/// Sector numbers have 32 bits: nothing leads to space behind 2 TiB.
const REACH: u64 = SECTOR << 32;

/// A map of a file.
#[derive(Debug)]
pub(super) struct UsedSpace {
    unit: u64,
    bits: Vec<u64>,
    len: u64,
    /// All places of grains or-ed together: their lowest bit is what all are multiples of.
    places: u64,
}

/// Free space, from `start` to `end` (bytes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Free {
    pub start: u64,
    pub end: u64,
}

impl UsedSpace {
    /// Makes the map of an extent's file of `len` bytes.
    pub(super) fn of(
        image: &VmdkImage,
        sparse: Sparse<'_>,
        len: u64,
        watcher: &dyn Watcher,
    ) -> Result<UsedSpace> {
        let grain = sparse.geometry.grain;
        let map = UsedSpace::new(lowest_bit(grain), len).filled(image, sparse, watcher)?;
        let finer = UsedSpace::new(lowest_bit(grain | map.places), len);
        if finer.unit < map.unit { finer.filled(image, sparse, watcher) } else { Ok(map) }
    }

    /// An empty map, in `unit` or the next larger unit that keeps it small.
    fn new(unit: u64, len: u64) -> UsedSpace {
        let covered = len.min(REACH);
        let mut unit = unit.max(SECTOR);
        while covered.div_ceil(unit) > MAX_UNITS {
            unit *= 2;
        }
        UsedSpace { unit, bits: Vec::new(), len, places: 0 }
    }

    /// Enters everything that the extent's metadata take or lead to.
    fn filled(
        mut self,
        image: &VmdkImage,
        sparse: Sparse<'_>,
        watcher: &dyn Watcher,
    ) -> Result<UsedSpace> {
        let g = sparse.geometry;
        let words = self.len.min(REACH).div_ceil(self.unit).div_ceil(64);
        self.bits = vec![0; small(words)];
        self.take(0, g.overhead.max(SECTOR));
        if let Some((at, size)) = g.descriptor {
            self.take(at, size);
        }
        for directory in [Some(g.gd), g.rgd].into_iter().flatten() {
            self.take(directory, round_up(g.gd_room, SECTOR));
        }
        let mut raw = vec![0; small(g.table_bytes())];
        let number = small(u64::from(sparse.number));
        let mut start = sparse.extent.start;
        for index in (0..=u32::MAX).take(small(g.gd_len)) {
            check_cancelled(watcher)?;
            watcher.progress(start.min(image.size), image.size);
            let copies = {
                let tables = image.read_tables();
                let dir = &tables.dirs[number];
                [dir.table_at(index, g), dir.redundant_at(index)]
            };
            for place in copies.into_iter().flatten() {
                sparse.storage.read_at(place, &mut raw)?;
                self.take(place, round_up(g.table_bytes(), SECTOR));
                self.take_grains(&raw, g);
            }
            start = start.saturating_add(g.table_cover());
        }
        Ok(self)
    }

    /// Enters the grains of a table as it is on disk.
    fn take_grains(&mut self, raw: &[u8], g: &Geometry) {
        for &entry in raw.as_chunks::<4>().0 {
            let sector = u32::from_le_bytes(entry);
            let place = u64::from(sector) * SECTOR;
            // 1 is a grain of zeroes where it means anything, and sector 1 is never free.
            if sector > 1 && place < self.len {
                self.places |= place;
                self.take(place, g.grain);
            }
        }
    }

    fn take(&mut self, at: u64, len: u64) {
        let end = at.saturating_add(len).min(self.len).div_ceil(self.unit);
        for unit in at / self.unit..end {
            if let Some(word) = self.bits.get_mut(small(unit / 64)) {
                *word |= 1 << (unit % 64);
            }
        }
    }

    /// The first free space from `from` (the beginning of a unit) on.
    pub(super) fn free_from(&self, from: u64) -> Option<Free> {
        let first = self.find(from / self.unit, Wanted::Free);
        let start = first.map_or(u64::MAX, |unit| unit.saturating_mul(self.unit));
        if start >= self.len {
            return None;
        }
        let end = first.and_then(|unit| self.find(unit, Wanted::Used));
        let end = end.map_or(self.len, |unit| (unit * self.unit).min(self.len));
        Some(Free { start, end })
    }

    /// The first unit of that kind from `from` on. Behind the map all is free.
    fn find(&self, from: u64, wanted: Wanted) -> Option<u64> {
        let flip = match wanted {
            Wanted::Used => 0,
            Wanted::Free => u64::MAX,
        };
        let mut unit = from;
        while let Some(word) = self.bits.get(small(unit / 64)) {
            let rest = (word ^ flip) >> (unit % 64);
            if rest != 0 {
                return Some(unit + u64::from(rest.trailing_zeros()));
            }
            unit = (unit / 64 + 1) * 64;
        }
        (wanted == Wanted::Free).then_some(unit)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Used,
    Free,
}

fn lowest_bit(n: u64) -> u64 {
    n & n.wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(unit: u64, len: u64, taken: &[(u64, u64)]) -> UsedSpace {
        let mut map = UsedSpace::new(unit, len);
        map.bits = vec![0; small(len.div_ceil(map.unit).div_ceil(64))];
        taken.iter().for_each(|&(at, len)| map.take(at, len));
        map
    }

    fn free(map: &UsedSpace) -> Vec<(u64, u64)> {
        let mut found = Vec::new();
        let mut at = 0;
        while let Some(free) = map.free_from(at) {
            found.push((free.start / map.unit, free.end.div_ceil(map.unit)));
            at = round_up(free.end, map.unit);
        }
        found
    }

    #[test]
    fn what_is_touched_is_used() {
        let u = 65536;
        let map = map(u, 200 * u + 1, &[(0, u), (3 * u - 1, 2), (63 * u, 3 * u), (199 * u, u)]);
        assert_eq!(free(&map), [(1, 2), (4, 63), (66, 199), (200, 201)]);
        assert_eq!(map.free_from(4 * u), Some(Free { start: 4 * u, end: 63 * u }));
    }

    #[test]
    fn full_and_empty() {
        assert_eq!(free(&map(512, 128 * 512, &[(0, 128 * 512)])), []);
        assert_eq!(free(&map(512, 100 * 512, &[(0, 128 * 512)])), []);
        assert_eq!(free(&map(512, 100 * 512, &[])), [(0, 100)]);
        assert_eq!(free(&map(512, 0, &[])), []);
    }

    #[test]
    fn memory_is_bounded() {
        let map = UsedSpace::new(512, u64::MAX);
        assert_eq!(map.unit, 32768);
        assert!(map.len.min(REACH).div_ceil(map.unit) <= MAX_UNITS);
    }
}
