//! Limits on bytes and requests a second.
//!
//! Each limit is a leaky bucket. A request is poured in when it passes; the bucket leaks at the allowed
//! rate, and a request waits while the bucket is over-full. Without a burst rate the bucket holds a
//! tenth of a second's worth, so that short unevenness does not matter. With `*_max` it holds the burst
//! (`max` times its length), and a second bucket keeps the burst itself below `max`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::{Error, Result};

/// One limit, in units a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limit {
    /// Lasting rate; 0 for no limit.
    pub average: u64,
    /// Rate during a burst; 0 for none.
    pub burst: u64,
    /// Seconds that a burst may last, at least 1.
    pub burst_length: u64,
}

/// All limits of a disk or group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes: reading and writing together, reading, writing.
    pub bytes: [Limit; 3],
    /// Requests: the same.
    pub requests: [Limit; 3],
    /// Requests larger than this many bytes count as several; 0: each counts once.
    pub request_size: u64,
}

/// Which limits a request falls under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Reading.
    Read,
    /// Writing.
    Write,
}

/// Greatest rate that can be given.
const MOST: u64 = 1_000_000_000_000_000;
/// Largest part of a second that counting in floating point may be asked to wait for at once.
const LONGEST_WAIT: f64 = 60.0;

impl Limits {
    /// Whether there is any limit.
    pub fn any(&self) -> bool {
        self.bytes.iter().chain(&self.requests).any(|l| l.average > 0 || l.burst > 0)
    }

    /// Refuses what makes no sense together.
    pub fn check(&self) -> Result<()> {
        for [total, read, write] in [self.bytes, self.requests] {
            let both = |of: fn(&Limit) -> u64| of(&total) > 0 && (of(&read) > 0 || of(&write) > 0);
            if both(|l| l.average) || both(|l| l.burst) {
                return Err(Error::invalid(
                    "bps/iops/max total values and read/write values cannot be used at the same time",
                ));
            }
        }
        if self.request_size > 0 && self.requests.iter().all(|l| l.average == 0) {
            return Err(Error::invalid("iops size requires an iops value to be set"));
        }
        for l in self.bytes.iter().chain(&self.requests) {
            if l.average > MOST || l.burst > MOST {
                return Err(Error::invalid(format!(
                    "bps/iops/max values must be within [0, {MOST}]"
                )));
            }
            if l.burst > 0 && l.average == 0 {
                return Err(Error::invalid(
                    "bps_max/iops_max require corresponding bps/iops values",
                ));
            }
            if l.burst > 0 && l.burst < l.average {
                return Err(Error::invalid("bps_max/iops_max cannot be lower than bps/iops"));
            }
            if l.burst_length > 1 && l.burst == 0 {
                return Err(Error::invalid("burst length set without burst rate"));
            }
            if l.burst.saturating_mul(l.burst_length.max(1)) > MOST {
                return Err(Error::invalid("burst length too high for this burst rate"));
            }
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    limit: Limit,
    level: f64,
    burst_level: f64,
}

/// Numbers up to [`MOST`] are exact.
#[allow(clippy::cast_precision_loss)]
fn real(n: u64) -> f64 {
    n as f64
}

impl Bucket {
    fn leak(&mut self, seconds: f64) {
        self.level = (self.level - real(self.limit.average) * seconds).max(0.0);
        self.burst_level = (self.burst_level - real(self.limit.burst) * seconds).max(0.0);
    }

    /// Seconds until a request may pass.
    fn wait(&self) -> f64 {
        let Limit { average, burst, burst_length } = self.limit;
        if average == 0 {
            return 0.0;
        }
        let size = match burst {
            0 => real(average) / 10.0,
            max => real(max) * real(burst_length.max(1)),
        };
        let lasting = ((self.level - size) / real(average)).max(0.0);
        let in_burst = if burst > 0 && burst_length > 1 {
            ((self.burst_level - real(burst) / 10.0) / real(burst)).max(0.0)
        } else {
            0.0
        };
        lasting.max(in_burst)
    }

    fn pour(&mut self, units: f64) {
        self.level += units;
        self.burst_level += units;
    }
}

#[derive(Debug)]
struct State {
    limits: Limits,
    buckets: [Bucket; 6],
    last: Instant,
}

/// The buckets of a disk, or of a group of disks.
#[derive(Debug)]
pub struct Throttle {
    state: Mutex<State>,
    changed: Condvar,
}

impl Throttle {
    /// Empty buckets.
    pub fn new(limits: Limits) -> Self {
        let state = State { limits, buckets: buckets(&limits), last: Instant::now() };
        Throttle { state: Mutex::new(state), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Other limits from now on.
    pub fn set(&self, limits: Limits) {
        let mut state = self.lock();
        (state.limits, state.buckets) = (limits, buckets(&limits));
        drop(state);
        self.changed.notify_all();
    }

    /// The limits.
    pub fn limits(&self) -> Limits {
        self.lock().limits
    }

    /// Waits until a request of `bytes` may pass. While `hurry` is set nobody waits; call
    /// [`Throttle::wake`] after setting it.
    pub fn pass(&self, direction: Direction, bytes: u64, hurry: &AtomicBool) {
        let mut state = self.lock();
        loop {
            let wait = state.wait(direction, Instant::now());
            if wait.is_zero() || hurry.load(Ordering::Acquire) {
                state.account(direction, bytes);
                return;
            }
            state =
                self.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Lets those who wait look again.
    pub fn wake(&self) {
        drop(self.lock());
        self.changed.notify_all();
    }
}

fn buckets(limits: &Limits) -> [Bucket; 6] {
    let [a, b, c] = limits.bytes;
    let [d, e, f] = limits.requests;
    [a, b, c, d, e, f].map(|limit| Bucket { limit, ..Bucket::default() })
}

impl State {
    /// Numbers of the buckets that a direction fills.
    fn filled(direction: Direction) -> [usize; 4] {
        match direction {
            Direction::Read => [0, 1, 3, 4],
            Direction::Write => [0, 2, 3, 5],
        }
    }

    fn wait(&mut self, direction: Direction, now: Instant) -> Duration {
        let seconds = now.saturating_duration_since(self.last).as_secs_f64();
        self.last = now;
        self.buckets.iter_mut().for_each(|b| b.leak(seconds));
        let wait =
            Self::filled(direction).iter().map(|i| self.buckets[*i].wait()).fold(0.0, f64::max);
        Duration::try_from_secs_f64(wait.min(LONGEST_WAIT)).unwrap_or_default()
    }

    fn account(&mut self, direction: Direction, bytes: u64) {
        let requests = match self.limits.request_size {
            0 => 1.0,
            size => (real(bytes) / real(size)).max(1.0),
        };
        for (n, i) in Self::filled(direction).into_iter().enumerate() {
            self.buckets[i].pour(if n < 2 { real(bytes) } else { requests });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(average: u64, burst: u64, burst_length: u64) -> Limit {
        Limit { average, burst, burst_length }
    }

    /// Seconds of clock that `count` requests of `bytes` take, without waiting for real.
    fn run(limits: Limits, count: u32, bytes: u64) -> f64 {
        let throttle = Throttle::new(limits);
        let start = throttle.lock().last;
        let mut now = start;
        for _ in 0..count {
            let mut state = throttle.lock();
            loop {
                let wait = state.wait(Direction::Write, now);
                if wait < Duration::from_nanos(10) {
                    break;
                }
                now += wait;
            }
            state.account(Direction::Write, bytes);
        }
        (now - start).as_secs_f64()
    }

    #[test]
    fn rates_are_kept() {
        let mut l = Limits {
            bytes: [limit(1 << 20, 0, 1), Limit::default(), Limit::default()],
            ..Limits::default()
        };
        let t = run(l, 100, 64 << 10);
        assert!((5.9..6.4).contains(&t), "100 x 64 KiB at 1 MiB/s: {t}");
        l.bytes[0] = limit(1 << 20, 4 << 20, 1);
        let t = run(l, 100, 64 << 10);
        assert!((2.0..2.6).contains(&t), "the first 4 MiB pass at once: {t}");
        l.bytes[0] = limit(1 << 20, 2 << 20, 2);
        let t = run(l, 100, 64 << 10);
        assert!((2.9..4.0).contains(&t), "a burst of 2 s at 2 MiB/s: {t}");
        let l = Limits {
            requests: [Limit::default(), limit(1, 0, 1), limit(100, 0, 1)],
            ..Limits::default()
        };
        let t = run(l, 300, 1 << 20);
        assert!((2.8..3.1).contains(&t), "300 writes at 100/s: {t}");
        let l = Limits {
            request_size: 4096,
            requests: [limit(100, 0, 1), Limit::default(), Limit::default()],
            ..Limits::default()
        };
        let t = run(l, 100, 8192);
        assert!((1.8..2.1).contains(&t), "each counts twice: {t}");
    }

    #[test]
    fn nobody_waits_in_a_hurry() {
        let throttle = Throttle::new(Limits { bytes: [limit(1, 0, 1); 3], ..Limits::default() });
        let hurry = AtomicBool::new(false);
        throttle.pass(Direction::Read, 1 << 30, &hurry);
        std::thread::scope(|s| {
            let waiting = s.spawn(|| throttle.pass(Direction::Read, 1, &hurry));
            hurry.store(true, Ordering::Release);
            throttle.wake();
            waiting.join().unwrap();
        });
    }

    #[test]
    fn nonsense_is_refused() {
        let ok = |bytes: [Limit; 3]| Limits { bytes, ..Limits::default() }.check();
        let none = Limit::default();
        assert!(ok([limit(1, 0, 0), none, none]).is_ok());
        assert!(ok([limit(1, 0, 0), limit(1, 0, 0), none]).is_err());
        assert!(ok([none, limit(5, 4, 1), none]).is_err());
        assert!(ok([none, limit(0, 4, 1), none]).is_err());
        assert!(ok([limit(5, 0, 2), none, none]).is_err());
        assert!(ok([limit(u64::MAX, 0, 1), none, none]).is_err());
        assert!(Limits { request_size: 1, ..Limits::default() }.check().is_err());
    }
}
