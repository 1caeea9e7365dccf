//! Blocks of a file that were fetched or are being fetched, and guesses at what is wanted next.
//!
//! One lock guards all of it and is never held over network I/O. A block is fetched by one thread at a time; others
//! that want it wait for that one. Where fetching fails, the block is forgotten and whoever waited for it tries
//! himself, so that he gets his own error.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Streams of reads that are followed at the same time.
const STREAMS: usize = 4;
/// Reads in a row that make a stream worth reading ahead of.
const STREAK: u32 = 3;

/// A block.
#[derive(Clone, Debug)]
enum Slot {
    Ready { bytes: Arc<Vec<u8>>, used: u64 },
    Pending,
}

/// What is known of a block.
pub(super) enum Found {
    /// Its bytes.
    Ready(Arc<Vec<u8>>),
    /// Somebody fetches it.
    Pending,
    /// Nobody does.
    Missing,
}

/// Sizes, in blocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    /// Blocks of the file.
    pub total: u64,
    /// Blocks that are kept.
    pub kept: usize,
    /// Blocks fetched by one request.
    pub run: u64,
    /// Blocks fetched ahead of a stream.
    pub ahead: u64,
}

/// Reads that follow each other.
#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    /// The block that is expected next.
    next: u64,
    /// Everything below was fetched or queued.
    queued: u64,
    streak: u32,
    used: u64,
}

/// All of it.
#[derive(Debug)]
pub(super) struct Cache {
    sizes: Sizes,
    slots: HashMap<u64, Slot>,
    clock: u64,
    streams: Vec<Stream>,
    queue: VecDeque<(u64, u64)>,
    /// Nobody wants anything any more.
    pub ended: bool,
}

impl Cache {
    pub fn new(sizes: Sizes) -> Self {
        Cache {
            sizes,
            slots: HashMap::new(),
            clock: 0,
            streams: Vec::new(),
            queue: VecDeque::new(),
            ended: false,
        }
    }

    pub fn find(&mut self, block: u64) -> Found {
        self.clock += 1;
        match self.slots.get_mut(&block) {
            Some(Slot::Ready { bytes, used }) => {
                *used = self.clock;
                Found::Ready(Arc::clone(bytes))
            }
            Some(Slot::Pending) => Found::Pending,
            None => Found::Missing,
        }
    }

    /// Takes blocks from `first` on, at most `count`, as long as nobody has them. How many.
    pub fn claim(&mut self, first: u64, count: u64) -> u64 {
        let count = count.min(self.sizes.run).min(self.sizes.total.saturating_sub(first));
        let free = (0..count).take_while(|n| !self.slots.contains_key(&(first + n))).count() as u64;
        for block in first..first + free {
            self.slots.insert(block, Slot::Pending);
        }
        free
    }

    /// A block that was claimed is here.
    pub fn fill(&mut self, block: u64, bytes: Vec<u8>) {
        self.clock += 1;
        let used = self.clock;
        self.slots.insert(block, Slot::Ready { bytes: Arc::new(bytes), used });
        while self.slots.len() > self.sizes.kept {
            let ready = self.slots.iter().filter_map(|(block, slot)| match slot {
                Slot::Ready { used, .. } => Some((*used, *block)),
                Slot::Pending => None,
            });
            // What is being fetched is bounded by the number of those who fetch.
            let Some((_, oldest)) = ready.min() else { break };
            self.slots.remove(&oldest);
        }
    }

    /// Blocks that were claimed will not come.
    pub fn give_up(&mut self, first: u64, count: u64) {
        for block in first..first + count {
            if matches!(self.slots.get(&block), Some(Slot::Pending)) {
                self.slots.remove(&block);
            }
        }
    }

    /// Somebody reads these blocks: queues what follows where that is how he reads. Whether anything was queued.
    pub fn note(&mut self, first: u64, count: u64) -> bool {
        self.clock += 1;
        let (sizes, clock) = (self.sizes, self.clock);
        let end = first + count;
        // Threads that share a stream are a little ahead of and behind each other.
        let near = |s: &Stream| first <= s.next + 2 * sizes.run && first + sizes.ahead >= s.next;
        let stream = match self.streams.iter().position(near) {
            Some(at) => &mut self.streams[at],
            None => {
                let new = Stream { next: end, queued: end, streak: 0, used: clock };
                if self.streams.len() < STREAMS {
                    self.streams.push(new);
                } else if let Some(oldest) = self.streams.iter_mut().min_by_key(|s| s.used) {
                    *oldest = new;
                }
                return false;
            }
        };
        stream.used = clock;
        if end > stream.next {
            stream.next = end;
            stream.streak += 1;
        }
        if stream.streak < STREAK {
            return false;
        }
        let until = (stream.next + sizes.ahead).min(sizes.total);
        stream.queued = stream.queued.max(stream.next);
        let mut queued = false;
        // Whole runs only, but for the end of the file: many small requests would be slower.
        while stream.queued < until && (until - stream.queued >= sizes.run || until == sizes.total)
        {
            let len = sizes.run.min(until - stream.queued);
            self.queue.push_back((stream.queued, len));
            stream.queued += len;
            queued = true;
        }
        queued
    }

    /// Blocks to be fetched ahead, claimed.
    pub fn next_ahead(&mut self) -> Option<(u64, u64)> {
        while let Some((mut first, mut count)) = self.queue.pop_front() {
            while count > 0 && self.slots.contains_key(&first) {
                first += 1;
                count -= 1;
            }
            let claimed = self.claim(first, count);
            if claimed > 0 {
                return Some((first, claimed));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> Cache {
        Cache::new(Sizes { total: 100, kept: 8, run: 4, ahead: 8 })
    }

    #[test]
    fn blocks_are_claimed_once_and_the_oldest_go() {
        let mut cache = cache();
        assert_eq!(cache.claim(0, 10), 4, "no more than a run");
        assert_eq!(cache.claim(2, 4), 0);
        assert!(matches!(cache.find(3), Found::Pending));
        cache.fill(0, vec![1]);
        cache.give_up(0, 4);
        assert!(
            matches!(cache.find(0), Found::Ready(_)) && matches!(cache.find(1), Found::Missing)
        );
        for block in 10..18 {
            assert_eq!(cache.claim(block, 1), 1);
            assert!(matches!(cache.find(0), Found::Ready(_)), "in use");
            cache.fill(block, vec![2]);
        }
        assert!(
            matches!(cache.find(0), Found::Ready(_)) && matches!(cache.find(10), Found::Missing)
        );
        assert_eq!(cache.slots.len(), 8);
        assert_eq!(cache.claim(98, 4), 2, "the file ends");
    }

    #[test]
    fn what_follows_a_stream_is_queued() {
        let mut cache = cache();
        let mut queued = Vec::new();
        for block in 0..40 {
            // Somebody looks something up in between.
            cache.note(90, 1);
            cache.note(block, 1);
            while let Some((first, count)) = cache.next_ahead() {
                queued.extend(first..first + count);
                cache.give_up(first, count);
            }
        }
        assert_eq!(queued, (queued[0]..queued[0] + 44).collect::<Vec<_>>());
        let mut random = Cache::new(Sizes { total: 10_000, kept: 8, run: 4, ahead: 8 });
        for n in 0..200u64 {
            assert!(!random.note(n * 7919 % 10_000, 1), "{n}");
        }
    }
}
