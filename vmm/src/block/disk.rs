//! What a device talks to: a back end with limits, figures, a write cache and an error policy.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use super::BlockBackend;
use super::config::{OnError, WriteCache};
use super::image::ImageBackend;
use super::stats::{BlockStats, Counters, Op};
use super::throttle::{Direction, Limits, Throttle};
use crate::{Error, Result};

/// What was done about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorAction {
    /// The guest was told.
    Report,
    /// Nobody was told.
    Ignore,
    /// The machine is to stop, and the request is kept.
    Stop,
}

/// A request has failed (`BLOCK_IO_ERROR`).
#[derive(Clone, Debug)]
pub struct IoError {
    /// Name of the disk.
    pub disk: String,
    /// Reading, writing, ...
    pub operation: Op,
    /// What was done about it.
    pub action: ErrorAction,
    /// There was no space left.
    pub no_space: bool,
    /// In words.
    pub reason: String,
}

/// Gets errors. Called by the threads of a disk: it must not wait for them.
pub type ErrorSink = Box<dyn Fn(&IoError) + Send + Sync>;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Well, as far as the guest is to know.
    Done,
    /// With an error that the guest sees.
    Failed,
    /// Not at all: the machine stops; do it again when it goes on.
    Hold,
}

/// A request that is being carried out.
#[derive(Clone, Copy, Debug)]
pub struct Started {
    op: Op,
    at: u64,
    bytes: u64,
    since: Instant,
}

impl Started {
    /// A request of `bytes` at `at` that begins now.
    pub fn now(op: Op, at: u64, bytes: u64) -> Self {
        Started { op, at, bytes, since: Instant::now() }
    }
}

/// How a disk behaves.
#[derive(Debug, Default)]
pub struct Behaviour {
    /// Name of the disk.
    pub name: String,
    /// Whether the guest has to flush.
    pub write_cache: WriteCache,
    /// When writing fails.
    pub write_error: OnError,
    /// When reading fails.
    pub read_error: OnError,
    /// Limits.
    pub throttle: Option<Arc<Throttle>>,
}

/// A disk, shared by the threads of its device and those who ask about it.
pub struct Disk {
    behaviour: Behaviour,
    backend: Arc<dyn BlockBackend>,
    image: Option<Arc<ImageBackend>>,
    write_cache: AtomicBool,
    counters: Counters,
    hurry: AtomicBool,
    sink: OnceLock<ErrorSink>,
    /// The error number of a flush that failed where nobody below has taken notice (see [`Disk::note_lost`]).
    lost: OnceLock<i32>,
}

impl Disk {
    /// A disk over any back end.
    pub fn new(backend: Arc<dyn BlockBackend>, behaviour: Behaviour) -> Self {
        let write_cache = AtomicBool::new(behaviour.write_cache == WriteCache::Writeback);
        Disk {
            behaviour,
            backend,
            image: None,
            write_cache,
            counters: Counters::default(),
            hurry: AtomicBool::new(false),
            sink: OnceLock::new(),
            lost: OnceLock::new(),
        }
    }

    /// A disk over an image.
    pub fn over_image(image: Arc<ImageBackend>, behaviour: Behaviour) -> Self {
        Disk { image: Some(image.clone()), ..Disk::new(image, behaviour) }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.behaviour.name
    }

    /// Bytes in all.
    pub fn len(&self) -> u64 {
        self.backend.len()
    }

    /// True for a disk without bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether writing is refused.
    pub fn read_only(&self) -> bool {
        self.backend.read_only()
    }

    /// The image behind it, if it is one.
    pub fn image(&self) -> Option<&Arc<ImageBackend>> {
        self.image.as_ref()
    }

    /// Figures so far.
    pub fn stats(&self) -> BlockStats {
        self.counters.snapshot()
    }

    /// Limits in force.
    pub fn limits(&self) -> Option<Limits> {
        self.behaviour.throttle.as_ref().map(|t| t.limits())
    }

    /// Error policies: of writing, of reading.
    pub fn error_policy(&self) -> (OnError, OnError) {
        (self.behaviour.write_error, self.behaviour.read_error)
    }

    /// Whether the guest has to flush.
    pub fn write_cache(&self) -> WriteCache {
        if self.write_cache.load(Ordering::SeqCst) {
            WriteCache::Writeback
        } else {
            WriteCache::Writethrough
        }
    }

    /// The guest, or the device's reset, turns the write cache on or off.
    pub fn set_write_cache(&self, cache: WriteCache) {
        // Whoever has written before looks at it behind the write: one of both sides sees the other.
        self.write_cache.store(cache == WriteCache::Writeback, Ordering::SeqCst);
    }

    /// The write cache as the user wanted it.
    pub fn initial_write_cache(&self) -> WriteCache {
        self.behaviour.write_cache
    }

    /// Who is told of errors; the first one stays.
    pub fn on_error(&self, sink: ErrorSink) {
        // A second sink is not needed by anybody: machines connect their disks once.
        let _ = self.sink.set(sink);
    }

    /// While on, limits keep nobody waiting: somebody waits for the requests to end.
    pub fn hurry(&self, on: bool) {
        self.hurry.store(on, Ordering::Release);
        if let (true, Some(throttle)) = (on, &self.behaviour.throttle) {
            throttle.wake();
        }
    }

    /// What the bytes are in.
    pub fn backend(&self) -> &dyn BlockBackend {
        &*self.backend
    }

    /// Whether requests may have to wait for limits.
    pub fn is_limited(&self) -> bool {
        self.behaviour.throttle.is_some()
    }

    /// Carries out one request of `bytes` at `at`: waits for limits, counts, flushes behind writes when
    /// there is no write cache, and decides what an error means.
    pub fn run(
        &self,
        op: Op,
        at: u64,
        bytes: u64,
        work: impl FnOnce(&dyn BlockBackend) -> Result<()>,
    ) -> Outcome {
        let started = Started::now(op, at, bytes);
        let direction = if op == Op::Read { Direction::Read } else { Direction::Write };
        if let (Some(throttle), true) = (&self.behaviour.throttle, op != Op::Flush) {
            throttle.pass(direction, bytes, &self.hurry);
        }
        let mut result = work(&*self.backend);
        let writes = matches!(op, Op::Write | Op::Unmap);
        if writes && result.is_ok() && self.write_cache() == WriteCache::Writethrough {
            result = self.flush();
        }
        self.finish(&started, result)
    }

    /// Counts a request that somebody else has carried out, and decides what an error means.
    pub fn finish(&self, started: &Started, result: Result<()>) -> Outcome {
        let Started { op, at, bytes, since } = *started;
        match result {
            Ok(()) => {
                self.counters.done(op, bytes, since);
                if matches!(op, Op::Write | Op::Unmap) {
                    self.counters.wrote_up_to(at.saturating_add(bytes));
                }
                Outcome::Done
            }
            Err(e) => self.failed(op, &e),
        }
    }

    fn failed(&self, op: Op, error: &Error) -> Outcome {
        self.counters.failed(op);
        let no_space = error.raw_errno() == Some(libc::ENOSPC);
        let policy =
            if op == Op::Read { self.behaviour.read_error } else { self.behaviour.write_error };
        let action = match policy {
            OnError::Ignore => ErrorAction::Ignore,
            OnError::Stop => ErrorAction::Stop,
            OnError::StopWhenFull if no_space => ErrorAction::Stop,
            OnError::Report | OnError::StopWhenFull => ErrorAction::Report,
        };
        // Without anybody who could stop the machine, holding the request would hang the guest.
        let action = match (action, self.sink.get()) {
            (ErrorAction::Stop, None) => ErrorAction::Report,
            (action, _) => action,
        };
        if let Some(sink) = self.sink.get() {
            sink(&IoError {
                disk: self.behaviour.name.clone(),
                operation: op,
                action,
                no_space,
                reason: error.report(),
            });
        }
        match action {
            ErrorAction::Report => Outcome::Failed,
            ErrorAction::Ignore => Outcome::Done,
            ErrorAction::Stop => Outcome::Hold,
        }
    }

    /// Makes durable what was stored before.
    ///
    /// # Errors
    /// Also when that has failed before and what was lost then cannot be known.
    pub fn flush(&self) -> Result<()> {
        match self.lost.get() {
            Some(errno) => Err(Error::errno(*errno).context(
                "an earlier flush has failed, and what was written before it may be lost",
            )),
            None => self.backend.flush(),
        }
    }

    /// Whether a flush can only fail.
    pub fn has_lost(&self) -> bool {
        self.lost.get().is_some()
    }

    /// The kernel has carried a flush out for somebody who asked it directly, and failed. It takes pages for clean
    /// that it could not write, and tells of them once: no later flush may succeed. Without a page cache they may.
    pub fn note_lost(&self, error: &std::io::Error) {
        if self.backend.is_buffered() {
            self.lost.get_or_init(|| error.raw_os_error().unwrap_or(libc::EIO));
        }
    }

    /// The machine ends: leaves the image clean.
    pub fn close(&self) -> Result<()> {
        self.flush()?;
        self.backend.close()
    }
}
