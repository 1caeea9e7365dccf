//! Which units of a file are in use: what `check` collects, however large the file says it is.

use std::collections::BTreeMap;

/// Words of a page: what one entry far away from the others costs.
const WORDS: usize = 8;
/// Units of a page.
const PAGE: u64 = 512;

/// A set of unit numbers.
#[derive(Debug, Default)]
pub(crate) struct Used {
    pages: BTreeMap<u64, [u64; WORDS]>,
    /// How many.
    pub count: u64,
    /// One more than the highest.
    pub high: u64,
}

impl Used {
    fn place(unit: u64) -> (u64, usize, u64) {
        let inside = unit % PAGE;
        (unit / PAGE, crate::num::small(inside / 64), 1 << (inside % 64))
    }

    /// Enters `start..end`; `false` if one of them was there before.
    pub fn take_all(&mut self, start: u64, end: u64) -> bool {
        let mut new = true;
        let mut unit = start;
        while unit < end {
            let (page, word, first) = Self::place(unit);
            let next = (unit / 64 + 1) * 64;
            // From the first bit on, up to the end of the word or of the range.
            let below_end = if end >= next { u64::MAX } else { (1 << (end % 64)) - 1 };
            let mask = below_end & !(first - 1);
            let word = &mut self.pages.entry(page).or_default()[word];
            new &= *word & mask == 0;
            self.count += u64::from((mask & !*word).count_ones());
            *word |= mask;
            unit = next.min(end);
        }
        self.high = self.high.max(end);
        new
    }

    /// Whether one of `start..end` is in the set.
    pub fn any(&self, start: u64, end: u64) -> bool {
        (start..end).any(|unit| self.contains(unit))
    }

    /// Whether a unit is in the set.
    pub fn contains(&self, unit: u64) -> bool {
        let (page, word, mask) = Self::place(unit);
        self.pages.get(&page).is_some_and(|p| p[word] & mask != 0)
    }

    /// Runs `(start, end)` of units below `end` that are not in use, ascending.
    pub fn gaps(&self, end: u64) -> Vec<(u64, u64)> {
        let mut gaps = Vec::new();
        let mut free_from = 0;
        for (page, words) in &self.pages {
            for (index, &word) in (0u64..).zip(words) {
                let first = page * PAGE + index * 64;
                let mut bit = 0;
                while bit < 64 && first + bit < end {
                    let rest = word >> bit;
                    if rest == 0 {
                        break;
                    }
                    let at = first + bit + u64::from(rest.trailing_zeros());
                    if at >= end {
                        break;
                    }
                    if at > free_from {
                        gaps.push((free_from, at));
                    }
                    let run = u64::from((word >> (at - first)).trailing_ones());
                    free_from = at + run;
                    bit = free_from - first;
                }
            }
        }
        if free_from < end {
            gaps.push((free_from, end));
        }
        gaps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_between_units() {
        let mut used = Used::default();
        assert_eq!(used.gaps(10), [(0, 10)]);
        assert_eq!(used.gaps(0), []);
        for unit in [0, 1, 5, 63, 64, 65, 130, 511, 512, 1 << 40] {
            assert!(used.take_all(unit, unit + 1));
        }
        assert!(!used.take_all(5, 6) && used.contains(64) && !used.contains(66));
        assert_eq!((used.count, used.high), (10, (1 << 40) + 1));
        let all = [
            (2, 5),
            (6, 63),
            (66, 130),
            (131, 511),
            (513, 1 << 40),
            ((1 << 40) + 1, (1 << 40) + 9),
        ];
        assert_eq!(used.gaps((1 << 40) + 9), all);
        assert_eq!(used.gaps(64), [(2, 5), (6, 63)]);
        assert_eq!(used.gaps(100), [(2, 5), (6, 63), (66, 100)]);
        assert!(used.take_all(66, 130) && !used.take_all(129, 140));
        let mut dense = Used::default();
        dense.take_all(0, 1000);
        assert_eq!(dense.gaps(1000), []);
        assert_eq!(dense.gaps(1003), [(1000, 1003)]);
    }
}
