//! Requests that wait until limits allow them.
//!
//! Every limit is a leaky bucket: a request puts its units in, and they leak out at the limit's average rate. While
//! there is more in a bucket than it holds, requests wait for the surplus to leak out. Without bursts a bucket
//! holds a tenth of a second's units; with bursts it holds `burst` units for each second that a burst may last, and a
//! second bucket, which leaks at the burst's rate, keeps the burst itself at that rate.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::opts::throttle::{Limit, ThrottleDef};

/// Reading or writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Reading.
    Read,
    /// Writing, also of zeroes, and discarding.
    Write,
}

/// What is in the buckets of one limit.
#[derive(Clone, Copy, Debug, Default)]
struct Levels {
    average: f64,
    burst: f64,
}

#[derive(Debug)]
struct State {
    levels: [Levels; 6],
    /// When they were like this, in seconds since the group was made.
    at: f64,
}

/// Limits that some storages share.
#[derive(Debug)]
pub struct ThrottleGroup {
    def: ThrottleDef,
    begin: Instant,
    state: Mutex<State>,
}

impl ThrottleGroup {
    /// With empty buckets.
    pub fn new(def: ThrottleDef) -> Self {
        let state = State { levels: [Levels::default(); 6], at: 0.0 };
        ThrottleGroup { def, begin: Instant::now(), state: Mutex::new(state) }
    }

    /// What images call it.
    pub fn id(&self) -> &str {
        &self.def.id
    }

    /// Which limits a request counts for.
    fn applies(index: usize, direction: Direction) -> bool {
        match index % 3 {
            0 => true,
            1 => direction == Direction::Read,
            _ => direction == Direction::Write,
        }
    }

    /// What a request puts into the bucket of a limit.
    #[allow(clippy::cast_precision_loss)] // a count of bytes, for waiting only
    fn units(&self, index: usize, bytes: u64) -> f64 {
        match (index < 3, self.def.iops_size) {
            (true, _) => bytes as f64,
            (false, 0) => 1.0,
            (false, size) => bytes.div_ceil(size).max(1) as f64,
        }
    }

    /// Counts a request that is made at `now`: how many seconds it must wait.
    #[allow(clippy::cast_precision_loss)]
    fn count(&self, direction: Direction, bytes: u64, now: f64) -> f64 {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // Threads may come in another order than their clocks were read.
        let passed = (now - state.at).max(0.0);
        state.at = state.at.max(now);
        let mut wait = 0f64;
        for (index, limit) in self.def.limits.iter().enumerate() {
            let Limit { average, burst, burst_seconds } = *limit;
            if average == 0 {
                continue;
            }
            let (average, burst, seconds) = (average as f64, burst as f64, burst_seconds as f64);
            let levels = &mut state.levels[index];
            levels.average = (levels.average - average * passed).max(0.0);
            levels.burst = (levels.burst - burst * passed).max(0.0);
            if !Self::applies(index, direction) {
                continue;
            }
            // What was there before decides: one request larger than the bucket must get through too.
            let holds = if burst > 0.0 { burst * seconds } else { average / 10.0 };
            wait = wait.max((levels.average - holds) / average);
            let units = self.units(index, bytes);
            levels.average += units;
            if burst > 0.0 && burst_seconds > 1 {
                wait = wait.max((levels.burst - burst / 10.0) / burst);
                levels.burst += units;
            }
        }
        wait
    }

    /// Returns when a request may be made.
    pub fn wait(&self, direction: Direction, bytes: u64) {
        let wait = self.count(direction, bytes, self.begin.elapsed().as_secs_f64());
        if wait > 0.0 {
            std::thread::sleep(Duration::try_from_secs_f64(wait).unwrap_or(Duration::MAX));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::opts::list::{self, FirstItem};
    use crate::opts::tree::Flat;

    fn group(text: &str) -> ThrottleGroup {
        let mut flat = Flat::from_items(&list::parse(text, FirstItem::Flag));
        let def = ThrottleDef::take("t".into(), &mut flat).unwrap();
        assert!(flat.is_empty());
        ThrottleGroup::new(def)
    }

    /// Makes requests as fast as they are allowed; when the last one begins, in seconds.
    fn run(group: &ThrottleGroup, direction: Direction, count: usize, bytes: u64) -> f64 {
        let mut now = 0.0;
        for _ in 0..count {
            now += group.count(direction, bytes, now).max(0.0);
        }
        now
    }

    fn near(seconds: f64, wanted: f64) {
        assert!((seconds - wanted).abs() < 0.2, "{seconds} instead of {wanted}");
    }

    #[test]
    fn limits_hold() {
        near(run(&group("x-bps-total=1000000"), Direction::Read, 101, 100_000), 9.9);
        near(run(&group("limits.iops-total=100"), Direction::Write, 1000, 4096), 9.9);
        near(run(&group("x-bps-read=1000"), Direction::Write, 1000, 1_000_000), 0.0);
        near(run(&group("x-bps-write=1000000"), Direction::Write, 100, 100_000), 9.8);
        near(run(&group("x-iops-write=10,x-bps-total=1"), Direction::Write, 11, 1), 10.0);
        // A large request is several small ones.
        near(run(&group("x-iops-total=10,x-iops-size=4096"), Direction::Read, 11, 40_960), 9.9);
        // Both directions fill the bucket of the total.
        let both = group("x-iops-total=10");
        for _ in 0..50 {
            both.count(Direction::Read, 1, 0.0);
        }
        assert!(both.count(Direction::Write, 1, 0.0) > 4.0);
    }

    #[test]
    fn bursts_are_faster_and_end() {
        // Two seconds at 1000 a second, 100 a second afterwards.
        let burst = group("x-iops-total=100,x-iops-total-max=1000,x-iops-total-max-length=2");
        near(run(&burst, Direction::Read, 2000, 1), 1.9);
        let burst = group("x-iops-total=100,x-iops-total-max=1000");
        near(run(&burst, Direction::Read, 1500, 1), 5.0);
    }

    #[test]
    fn an_idle_group_recovers() {
        let group = group("x-iops-total=10");
        assert!(run(&group, Direction::Read, 100, 1) > 9.0);
        assert!(group.count(Direction::Read, 1, 1000.0) <= 0.0);
    }
}
