//! How many threads copy when nobody says: as few as keep up.
//!
//! Copying what lies in the page cache is bound by memory: a second thread makes it a little faster and
//! a good deal dearer. Threads are added when the first one is seen to wait for a disk (then requests
//! should overlap, more of them than there are cores) or to decode (then cores count). The output is
//! the same for any number.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

use super::super::parallel::lock;

/// Bytes read between two looks at the clocks.
const WINDOW: u64 = 8 << 20;
/// Waits in a window that are no accident.
const MANY: u64 = 4;

/// How many threads there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// At the beginning.
    pub start: usize,
    /// When the work is computing.
    pub computing: usize,
    /// When the work is waiting.
    pub waiting: usize,
}

impl Limits {
    /// Exactly so many.
    pub fn exactly(n: usize) -> Self {
        Limits { start: n, computing: n, waiting: n }
    }

    /// None of them more than `most`.
    pub fn at_most(self, most: usize) -> Self {
        Limits {
            start: self.start.min(most),
            computing: self.computing.min(most),
            waiting: self.waiting.min(most),
        }
    }
}

/// Counts the threads and decides on more.
#[derive(Debug)]
pub(super) struct Workers {
    limits: Limits,
    running: AtomicUsize,
    seen: Mutex<Seen>,
}

/// Reads since the last decision.
#[derive(Debug, Default)]
struct Seen {
    bytes: u64,
    wall: Duration,
    usage: Usage,
}

/// What a thread has used since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Usage {
    cpu: Duration,
    /// How often it gave the processor up to wait. A thread that other programs push aside also takes
    /// longer than it computes, and more of it would not help.
    waits: u64,
}

/// The state before a read; nothing where no more threads are wanted.
pub(super) struct Started(Option<(Instant, Usage)>);

impl Workers {
    pub fn new(limits: Limits) -> Self {
        Workers { limits, running: AtomicUsize::new(limits.start), seen: Mutex::default() }
    }

    /// How many there are, or were at the end.
    pub fn running(&self) -> usize {
        self.running.load(Ordering::Relaxed)
    }

    /// To be called before a read.
    pub fn before_read(&self) -> Started {
        let most = self.limits.waiting.max(self.limits.computing);
        Started((self.running() < most).then(|| (Instant::now(), Usage::now())))
    }

    /// To be called after a read of `bytes`, some of which had to be `decoded` or not. How many threads
    /// the caller shall start; they count as running.
    pub fn after_read(&self, started: &Started, bytes: u64, decoded: bool) -> usize {
        let Some((instant, before)) = started.0 else { return 0 };
        let now = Usage::now();
        let used = Usage {
            cpu: now.cpu.saturating_sub(before.cpu),
            waits: now.waits.saturating_sub(before.waits),
        };
        self.decide(bytes, decoded, instant.elapsed(), used)
    }

    fn decide(&self, bytes: u64, decoded: bool, wall: Duration, used: Usage) -> usize {
        let mut seen = lock(&self.seen);
        // Read and changed below the lock only.
        let running = self.running();
        let more = if decoded && running < self.limits.computing {
            self.limits.computing - running
        } else {
            seen.bytes += bytes;
            seen.wall += wall;
            seen.usage.cpu += used.cpu;
            seen.usage.waits += used.waits;
            if seen.bytes < WINDOW {
                return 0;
            }
            let waits = seen.usage.waits >= MANY && seen.usage.cpu * 2 < seen.wall;
            *seen = Seen::default();
            usize::from(waits && running < self.limits.waiting)
        };
        self.running.store(running + more, Ordering::Relaxed);
        more
    }
}

impl Usage {
    /// That of this thread; nothing where the system does not tell.
    fn now() -> Self {
        let Ok(usage) = getrusage(UsageWho::RUSAGE_THREAD) else { return Usage::default() };
        let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
        Usage {
            cpu: Duration::from_micros(u64::try_from(micros).unwrap_or(0)),
            waits: u64::try_from(usage.voluntary_context_switches()).unwrap_or(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { start: 1, computing: 2, waiting: 4 };

    const LONG: Duration = Duration::from_secs(5);

    #[test]
    fn a_thread_for_every_window_of_waiting() {
        let workers = Workers::new(LIMITS);
        let used = Usage { cpu: LONG / 3, waits: MANY };
        let reads = |n: usize| -> usize {
            (0..n).map(|_| workers.decide(WINDOW / 4, false, LONG, used)).sum()
        };
        assert_eq!(reads(3), 0);
        assert_eq!(reads(1), 1);
        assert_eq!(reads(4), 1);
        assert_eq!(reads(40), 1);
        assert_eq!(workers.running(), 4);
        assert!(workers.before_read().0.is_none());
    }

    #[test]
    fn computing_is_no_waiting() {
        let workers = Workers::new(LIMITS);
        let busy = Usage { cpu: LONG, waits: 100 * MANY };
        let pushed_aside = Usage { cpu: LONG / 3, waits: 0 };
        for used in [busy, pushed_aside] {
            assert_eq!(workers.decide(WINDOW, false, LONG, used), 0);
        }
        assert_eq!(workers.after_read(&workers.before_read(), 1, true), 1);
        assert_eq!(workers.after_read(&workers.before_read(), 1, true), 0);
        assert_eq!(workers.running(), 2);
    }

    #[test]
    fn a_number_given_is_the_number() {
        let workers = Workers::new(Limits::exactly(3).at_most(2));
        assert_eq!(workers.running(), 2);
        assert_eq!(workers.after_read(&workers.before_read(), WINDOW, true), 0);
    }
}
