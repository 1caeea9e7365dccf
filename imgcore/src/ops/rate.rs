//! A limit on bytes a second.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::parallel::lock;

/// Longest sleep at a time, so that cancelling stays quick.
const NAP: Duration = Duration::from_millis(100);

/// Lets bytes pass at a steady pace, all threads together.
#[derive(Debug)]
pub struct Rate {
    per_second: u64,
    /// When the bytes let through so far are due.
    due: Mutex<Option<Instant>>,
}

impl Rate {
    /// A limit; 0 for none.
    pub fn new(per_second: u64) -> Self {
        Rate { per_second, due: Mutex::default() }
    }

    /// Waits until `bytes` more may pass, or until `stop` says not to wait any longer.
    pub fn pass(&self, bytes: u64, stop: &dyn Fn() -> bool) {
        if self.per_second == 0 {
            return;
        }
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.per_second);
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let mine = {
            let mut due = lock(&self.due);
            let start = due.unwrap_or_else(Instant::now).max(Instant::now());
            *due = start.checked_add(cost);
            start
        };
        loop {
            let left = mine.saturating_duration_since(Instant::now());
            if left.is_zero() || stop() {
                return;
            }
            std::thread::sleep(left.min(NAP));
        }
    }
}
