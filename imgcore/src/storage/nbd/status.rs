//! What a server said about ranges of its export, kept until something is written.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::nbd::STATE_ZERO;
use crate::storage::{HostExtent, HostKind};

/// Runs that are kept of one answer.
const MAX_RUNS: usize = 1 << 16;

/// Runs that follow each other.
#[derive(Debug, Default)]
pub(super) struct Runs {
    start: u64,
    /// End and kind of each.
    runs: Vec<(u64, HostKind)>,
}

impl Runs {
    /// What is known at `offset`, at most `len` bytes of it.
    pub fn at(&self, offset: u64, len: u64) -> Option<HostExtent> {
        if offset < self.start {
            return None;
        }
        let index = self.runs.partition_point(|run| run.0 <= offset);
        let (end, kind) = *self.runs.get(index)?;
        Some(HostExtent { kind, len: len.min(end - offset) })
    }
}

/// The last answer. Only the last: whoever asks goes from the front to the back.
#[derive(Debug, Default)]
pub(super) struct StatusCache(Mutex<Cached>);

#[derive(Debug, Default)]
struct Cached {
    /// Counts writes, so that an answer from before a write is not kept after it.
    state: u64,
    runs: Arc<Runs>,
}

impl StatusCache {
    fn lock(&self) -> MutexGuard<'_, Cached> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something is about to be written, or was.
    pub fn forget(&self) {
        let mut cached = self.lock();
        cached.state += 1;
        if !cached.runs.runs.is_empty() {
            cached.runs = Arc::default();
        }
    }

    /// To be given to [`StatusCache::learn`] with the answer to a question asked afterwards.
    pub fn state(&self) -> u64 {
        self.lock().state
    }

    /// What is known.
    pub fn look_up(&self, offset: u64, len: u64) -> Option<HostExtent> {
        self.lock().runs.at(offset, len)
    }

    /// Takes an answer (lengths and states of `base:allocation`) about `start..end`.
    pub fn learn(&self, state: u64, start: u64, end: u64, extents: &[(u32, u32)]) -> Arc<Runs> {
        let mut runs: Vec<(u64, HostKind)> = Vec::new();
        let mut at = start;
        for &(len, flags) in extents {
            let kind = if flags & STATE_ZERO != 0 { HostKind::Hole } else { HostKind::Data };
            at = at.saturating_add(len.into()).min(end);
            let full = runs.len() >= MAX_RUNS;
            match runs.last_mut() {
                Some(last) if last.1 == kind => last.0 = at,
                _ if full => break,
                _ => runs.push((at, kind)),
            }
            if at == end {
                break;
            }
        }
        let runs = Arc::new(Runs { start, runs });
        let mut cached = self.lock();
        if cached.state == state {
            cached.runs = Arc::clone(&runs);
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_kept_until_a_write() {
        let cache = StatusCache::default();
        let before = cache.state();
        let runs = cache.learn(before, 100, 1000, &[(100, 0), (50, 1), (50, 3), (5000, 2)]);
        let (data, hole) = (HostKind::Data, HostKind::Hole);
        assert_eq!(runs.at(100, 1000), Some(HostExtent { kind: data, len: 150 }));
        assert_eq!(cache.look_up(260, 1000), Some(HostExtent { kind: hole, len: 740 }));
        assert_eq!(cache.look_up(260, 10), Some(HostExtent { kind: hole, len: 10 }));
        assert_eq!(cache.look_up(99, 10), None);
        assert_eq!(cache.look_up(1000, 10), None);
        cache.forget();
        assert_eq!(cache.look_up(260, 10), None);
        cache.learn(before, 100, 1000, &[(900, 0)]);
        assert_eq!(cache.look_up(260, 10), None);
    }
}
