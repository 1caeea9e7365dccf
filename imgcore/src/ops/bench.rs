//! `bench`: many requests of one size, and how long they took.

use std::time::Duration;

use super::{ImageArg, Job};
use crate::{Error, Result};

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
    /// Latency of single requests: smallest, median, 99th percentile, largest.
    pub latency: [Duration; 4],
}

/// Runs the requests.
pub fn bench(_options: &BenchOptions, _job: &Job<'_>) -> Result<BenchReport> {
    Err(Error::unsupported("not yet"))
}
