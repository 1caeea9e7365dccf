//! A set of ranges in bounded memory.

use crate::guest::DiskRange;

/// Most ranges that are kept (64 MiB of them): a file system has more only when it is in very small pieces.
const MOST: usize = 4 << 20;

/// Ranges of the disk. Where there are too many, the shortest are forgotten: for free ranges that means that
/// less is freed.
#[derive(Debug, Default)]
pub(super) struct RangeSet {
    list: Vec<DiskRange>,
    /// Shorter ones are not taken.
    shortest: u64,
    sorted: bool,
}

impl RangeSet {
    /// Adds a range that overlaps none of the others.
    pub fn add(&mut self, range: DiskRange) {
        self.add_within(range, MOST);
    }

    fn add_within(&mut self, range: DiskRange, most: usize) {
        if range.len == 0 || range.len < self.shortest {
            return;
        }
        self.sorted = false;
        if let Some(last) = self.list.last_mut()
            && last.end() == range.start
        {
            last.len += range.len;
            return;
        }
        while self.list.len() >= most {
            self.shortest = (self.shortest * 2).max(8192);
            let shortest = self.shortest;
            self.list.retain(|r| r.len >= shortest);
        }
        self.list.push(range);
    }

    /// Sorts; to be called before [`RangeSet::find`].
    pub fn finish(&mut self) {
        self.list.sort_unstable();
        self.list.shrink_to_fit();
        self.sorted = true;
    }

    /// Whether `at` lies in a range, and how many bytes from there on are alike (at most `len`).
    pub fn find(&self, at: u64, len: u64) -> (bool, u64) {
        debug_assert!(self.sorted || self.list.is_empty());
        let index = self.list.partition_point(|r| r.end() <= at);
        match self.list.get(index) {
            Some(r) if r.start <= at => (true, (r.end() - at).min(len)),
            Some(r) => (false, (r.start - at).min(len)),
            None => (false, len),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn find_and_forget() {
        let at = |start, len| DiskRange { start, len };
        let mut set = RangeSet::default();
        for range in [at(1000, 10), at(1010, 10), at(100, 50), at(5000, 1)] {
            set.add(range);
        }
        set.finish();
        assert_eq!(set.find(0, 1000), (false, 100));
        assert_eq!(set.find(120, 1000), (true, 30));
        assert_eq!(set.find(1005, 5), (true, 5));
        assert_eq!(set.find(1005, 500), (true, 15));
        assert_eq!(set.find(6000, 7), (false, 7));
        let mut set = RangeSet::default();
        for i in 0..1000 {
            set.add_within(at(i << 20, 4096 << (i % 6)), 100);
        }
        set.finish();
        assert!(set.list.len() <= 100 && set.shortest > 4096);
        assert!(set.list.iter().all(|r| r.len >= set.shortest));
    }
}
