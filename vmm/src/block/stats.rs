//! Figures of one disk, as `info blockstats` and `query-blockstats` show them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What kind of request it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Reading.
    Read,
    /// Writing.
    Write,
    /// Flushing.
    Flush,
    /// Discarding and writing zeroes.
    Unmap,
}

impl Op {
    const COUNT: usize = 4;

    const fn index(self) -> usize {
        match self {
            Op::Read => 0,
            Op::Write => 1,
            Op::Flush => 2,
            Op::Unmap => 3,
        }
    }
}

/// Figures of one kind of request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpStats {
    /// Requests carried out.
    pub operations: u64,
    /// Bytes moved.
    pub bytes: u64,
    /// Time that they took, waiting for limits included.
    pub time: Duration,
    /// Requests that failed.
    pub failed: u64,
}

/// Figures of a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockStats {
    /// Reading.
    pub read: OpStats,
    /// Writing.
    pub write: OpStats,
    /// Flushing.
    pub flush: OpStats,
    /// Discarding and writing zeroes.
    pub unmap: OpStats,
    /// Highest byte written, plus one.
    pub highest_write: u64,
}

#[derive(Debug, Default)]
struct Counter {
    operations: AtomicU64,
    bytes: AtomicU64,
    nanoseconds: AtomicU64,
    failed: AtomicU64,
}

/// Counts; shared by all threads of a disk.
#[derive(Debug, Default)]
pub struct Counters {
    ops: [Counter; Op::COUNT],
    highest_write: AtomicU64,
}

impl Counters {
    /// A request that began at `start` is complete.
    pub fn done(&self, op: Op, bytes: u64, start: Instant) {
        let c = &self.ops[op.index()];
        let time = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        c.operations.fetch_add(1, Ordering::Relaxed);
        c.bytes.fetch_add(bytes, Ordering::Relaxed);
        c.nanoseconds.fetch_add(time, Ordering::Relaxed);
    }

    /// A request has failed.
    pub fn failed(&self, op: Op) {
        self.ops[op.index()].failed.fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes up to `end` were written.
    pub fn wrote_up_to(&self, end: u64) {
        self.highest_write.fetch_max(end, Ordering::Relaxed);
    }

    /// All figures.
    pub fn snapshot(&self) -> BlockStats {
        let of = |op: Op| {
            let c = &self.ops[op.index()];
            OpStats {
                operations: c.operations.load(Ordering::Relaxed),
                bytes: c.bytes.load(Ordering::Relaxed),
                time: Duration::from_nanos(c.nanoseconds.load(Ordering::Relaxed)),
                failed: c.failed.load(Ordering::Relaxed),
            }
        };
        BlockStats {
            read: of(Op::Read),
            write: of(Op::Write),
            flush: of(Op::Flush),
            unmap: of(Op::Unmap),
            highest_write: self.highest_write.load(Ordering::Relaxed),
        }
    }
}
