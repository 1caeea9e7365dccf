//! `bench`: many requests of one size, and how long they took.
//!
//! One thread stands for each request in flight, so the queue depth is real. Requests are numbered;
//! a number decides the offset, so that the same command does the same requests however the threads
//! take turns.

use std::sync::Barrier;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::parallel::{Failure, lock};
use super::{ImageArg, Job};
use crate::format::check_cancelled;
use crate::graph::Node;
use crate::num::{small, to_usize};
use crate::storage::AlignedBuf;
use crate::{Error, Result};

/// Most threads; deeper queues are cut to it.
const MAX_DEPTH: u32 = 1024;

/// What the requests do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BenchKind {
    /// Read.
    #[default]
    Read,
    /// Write this byte.
    Write {
        /// The byte.
        pattern: u8,
        /// Flush after so many requests, 0 for never.
        flush_interval: u64,
        /// Wait for requests in flight before flushing (not with `--no-drain`).
        drain: bool,
    },
}

/// What to do.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// The image.
    pub image: ImageArg,
    /// Requests.
    pub count: u64,
    /// Requests at a time.
    pub depth: u32,
    /// Guest offset of the first.
    pub offset: u64,
    /// Bytes of each.
    pub buffer_size: u64,
    /// From one request's offset to the next, 0 for `buffer_size`.
    pub step: u64,
    /// Read or write.
    pub kind: BenchKind,
}

impl Default for BenchOptions {
    fn default() -> Self {
        BenchOptions {
            image: ImageArg::default(),
            count: 75_000,
            depth: 64,
            offset: 0,
            buffer_size: 4096,
            step: 0,
            kind: BenchKind::Read,
        }
    }
}

/// What came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BenchReport {
    /// From the first request to the end of the last.
    pub elapsed: Duration,
    /// Requests done.
    pub requests: u64,
    /// Bytes moved.
    pub bytes: u64,
    /// Latency of single requests: smallest, median, 99th percentile, largest; the middle two are
    /// rounded up by at most a sixteenth.
    pub latency: [Duration; 4],
}

/// Runs the requests.
pub fn bench(options: &BenchOptions, job: &Job<'_>) -> Result<BenchReport> {
    if let BenchKind::Write { flush_interval, .. } = options.kind
        && flush_interval > 0
        && flush_interval < u64::from(options.depth)
    {
        return Err(Error::invalid("Flush interval can't be smaller than depth"));
    }
    let mut how = options.image.options(job);
    if options.kind != BenchKind::Read {
        how = how.writable();
    }
    let node = options.image.open(job, &how)?;
    let threads = u64::from(options.depth.clamp(1, MAX_DEPTH)).min(options.count.max(1));
    let run = Running {
        node: &node,
        options,
        job: *job,
        size: to_usize(options.buffer_size)?,
        step: if options.step == 0 { options.buffer_size } else { options.step },
        next: AtomicU64::new(0),
        round_end: AtomicU64::new(first_round(options)),
        barrier: Barrier::new(small(threads)),
        failure: Failure::default(),
        latencies: Mutex::default(),
    };
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(|| run.work());
        }
        run.work();
    });
    let elapsed = begin.elapsed();
    let Running { failure, latencies, .. } = run;
    failure.into_result().map_err(|e| match e.kind() {
        crate::ErrorKind::Cancelled => e,
        _ => e.context("Failed request"),
    })?;
    node.close()?;
    let latencies = latencies.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    Ok(BenchReport {
        elapsed,
        requests: options.count,
        bytes: options.count.saturating_mul(options.buffer_size),
        latency: [
            Duration::from_nanos(latencies.smallest.unwrap_or(0)),
            latencies.at(500),
            latencies.at(990),
            Duration::from_nanos(latencies.largest),
        ],
    })
}

/// Requests until the threads wait for each other.
fn first_round(options: &BenchOptions) -> u64 {
    match options.kind {
        BenchKind::Write { flush_interval, drain: true, .. } if flush_interval > 0 => {
            flush_interval.min(options.count)
        }
        _ => options.count,
    }
}

struct Running<'a> {
    node: &'a Node,
    options: &'a BenchOptions,
    job: Job<'a>,
    size: usize,
    step: u64,
    /// Number of the next request.
    next: AtomicU64,
    /// Number of the first request after the next flush.
    round_end: AtomicU64,
    barrier: Barrier,
    failure: Failure,
    latencies: Mutex<Latencies>,
}

impl Running<'_> {
    fn work(&self) {
        let mut buf = AlignedBuf::new(self.size);
        if let BenchKind::Write { pattern, .. } = self.options.kind {
            buf.bytes().fill(pattern);
        }
        let mut latencies = Latencies::default();
        loop {
            let end = self.round_end.load(Ordering::Acquire);
            self.round(end, &mut buf, &mut latencies);
            if end >= self.options.count {
                break;
            }
            // Everybody is done with this round: one flushes and opens the next.
            if self.barrier.wait().is_leader() {
                self.flush(end);
                let interval = first_round(self.options);
                self.next.store(end, Ordering::Release);
                let next = end.saturating_add(interval).min(self.options.count);
                self.round_end.store(next, Ordering::Release);
            }
            self.barrier.wait();
        }
        lock(&self.latencies).add(&latencies);
    }

    fn round(&self, end: u64, buf: &mut AlignedBuf, latencies: &mut Latencies) {
        while !self.failure.happened() {
            let number = self.next.fetch_add(1, Ordering::AcqRel);
            if number >= end {
                return;
            }
            let begin = Instant::now();
            let result = check_cancelled(self.job.watcher)
                .and_then(|()| self.request(self.offset(number), buf));
            latencies.record(begin.elapsed());
            if let Err(e) = result {
                self.failure.report(number, e);
                return;
            }
            if let BenchKind::Write { flush_interval, drain: false, .. } = self.options.kind
                && flush_interval > 0
                && (number + 1).is_multiple_of(flush_interval)
            {
                self.flush(number);
            }
            self.job.watcher.progress(number + 1, self.options.count);
        }
    }

    fn flush(&self, number: u64) {
        if let Err(e) = self.node.flush() {
            self.failure.report(number, e);
        }
    }

    /// Steps wrap around at the end of the disk; the first request is where the user put it.
    fn offset(&self, number: u64) -> u64 {
        if number == 0 {
            return self.options.offset;
        }
        let size = u128::from(self.node.virtual_size().max(1));
        let far = u128::from(self.options.offset) + u128::from(number) * u128::from(self.step);
        u64::try_from(far % size).unwrap_or(0)
    }

    fn request(&self, at: u64, buf: &mut AlignedBuf) -> Result<()> {
        match self.options.kind {
            BenchKind::Read => self.node.read(at, buf.bytes()),
            BenchKind::Write { .. } => self.node.write(at, buf.bytes()),
        }
        .map_err(|e| match e.raw_errno() {
            Some(errno) => Error::errno(errno).at_offset(at),
            None => e,
        })
    }
}

/// Latencies in buckets that are a sixteenth wide, so that any number of requests fits.
#[derive(Debug, Default)]
struct Latencies {
    buckets: Vec<u64>,
    smallest: Option<u64>,
    largest: u64,
}

impl Latencies {
    fn record(&mut self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        let index = bucket(nanos);
        if self.buckets.len() <= index {
            self.buckets.resize(index + 1, 0);
        }
        self.buckets[index] += 1;
        self.smallest = Some(self.smallest.map_or(nanos, |s| s.min(nanos)));
        self.largest = self.largest.max(nanos);
    }

    fn add(&mut self, other: &Latencies) {
        if self.buckets.len() < other.buckets.len() {
            self.buckets.resize(other.buckets.len(), 0);
        }
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
        self.smallest = [self.smallest, other.smallest].into_iter().flatten().min();
        self.largest = self.largest.max(other.largest);
    }

    /// The latency that so many of a thousand requests stay below.
    fn at(&self, thousandth: u64) -> Duration {
        let total: u64 = self.buckets.iter().sum();
        let wanted = total.saturating_mul(thousandth).div_ceil(1000);
        let mut seen = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return Duration::from_nanos(bucket_end(index).min(self.largest));
            }
        }
        Duration::from_nanos(self.largest)
    }
}

/// Values below 16 one by one, then 16 buckets for each power of two.
fn bucket(nanos: u64) -> usize {
    if nanos < 16 {
        return small(nanos);
    }
    let power = 63 - nanos.leading_zeros();
    let within = (nanos >> (power - 4)) & 15;
    16 + (power as usize - 4) * 16 + small(within)
}

/// The largest value of a bucket.
fn bucket_end(index: usize) -> u64 {
    if index < 16 {
        return crate::num::len_u64(index);
    }
    let (power, within) = ((index - 16) / 16 + 4, crate::num::len_u64((index - 16) % 16));
    let step = 1u64 << (power - 4);
    ((16 + within) * step).saturating_add(step - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_cover_everything_in_order() {
        let mut last = 0;
        for nanos in (0..5000).chain([1 << 20, (1 << 40) + 12345, u64::MAX >> 1]) {
            let index = bucket(nanos);
            assert!(index >= last && nanos <= bucket_end(index), "{nanos}");
            assert!(bucket_end(index) - nanos <= nanos / 16 + 1, "{nanos}");
            last = index;
        }
    }

    #[test]
    fn percentiles() {
        let mut l = Latencies::default();
        for n in 1..=1000u64 {
            l.record(Duration::from_micros(n));
        }
        let mid = l.at(500).as_micros();
        assert!((500..=535).contains(&mid), "{mid}");
        assert_eq!(l.largest, 1_000_000);
    }
}
