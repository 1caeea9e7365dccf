//! `compare`: whether two images show the guest the same bytes.
//!
//! Threads claim pieces in guest order, each a range with one origin in both images, and read and
//! compare them side by side. What counts is the event (difference or error) at the lowest offset:
//! nobody claims beyond one that was found, and everything before it has been claimed already.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::pairs::{
    Buffers, Claims, Found, PIECE, Pairs, Piece, ReadFailure, SECTOR, Side, StatusFailure,
};
use super::parallel::{default_threads, lock};
use super::{ImageArg, Job};
use crate::Error;
use crate::format::check_cancelled;
use crate::graph::open::Purpose;
use crate::num::len_u64;
use crate::storage::zero::is_zero;

/// How sizes and allocation count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strictness {
    /// A longer image is the same if the rest is zero.
    #[default]
    Content,
    /// Sizes and allocation must be the same (`-s`).
    Strict,
}

/// What to do.
#[derive(Clone, Debug, Default)]
pub struct CompareOptions {
    /// The first image.
    pub first: ImageArg,
    /// The second.
    pub second: ImageArg,
    /// `-s`.
    pub strictness: Strictness,
}

/// What came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
pub enum CompareOutcome {
    /// `Images are identical.`
    Identical,
    /// `Strict mode: Image size mismatch!`
    SizeMismatch,
    /// `Strict mode: Offset N block status mismatch!`
    StatusMismatch {
        /// N
        offset: u64,
    },
    /// `Content mismatch at offset N!`
    ContentMismatch {
        /// N
        offset: u64,
    },
}

/// The outcome, and whether `Warning: Image size mismatch!` is shown before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CompareReport {
    /// The common part is the same, but one image is longer.
    pub size_warning: bool,
    /// The outcome.
    #[serde(flatten)]
    pub outcome: CompareOutcome,
}

impl CompareReport {
    /// The line that qemu-img prints (to stdout) before that of the outcome.
    pub fn warning(&self) -> Option<&'static str> {
        self.size_warning.then_some("Warning: Image size mismatch!")
    }
}

impl CompareOutcome {
    /// The exit code of the command.
    pub fn exit_code(self) -> u8 {
        u8::from(self != CompareOutcome::Identical)
    }

    /// The line to show.
    pub fn line(self) -> String {
        match self {
            CompareOutcome::Identical => "Images are identical.".to_owned(),
            CompareOutcome::SizeMismatch => "Strict mode: Image size mismatch!".to_owned(),
            CompareOutcome::StatusMismatch { offset } => {
                format!("Strict mode: Offset {offset} block status mismatch!")
            }
            CompareOutcome::ContentMismatch { offset } => {
                format!("Content mismatch at offset {offset}!")
            }
        }
    }
}

/// Why there is no outcome.
#[derive(Debug)]
pub struct CompareFailure {
    /// 2 could not be opened, 3 could not be mapped, 4 could not be read.
    pub exit_code: u8,
    /// Why.
    pub error: Error,
}

/// What happened at an offset.
#[derive(Debug)]
enum Event {
    Different(CompareOutcome),
    Failed(CompareFailure),
}

/// Compares.
pub fn compare(
    options: &CompareOptions,
    job: &Job<'_>,
) -> std::result::Result<CompareReport, CompareFailure> {
    let open = |image: &ImageArg| {
        let mut how = image.options(job);
        how.purpose = Purpose::Source;
        image.open(job, &how).map_err(|error| CompareFailure { exit_code: 2, error })
    };
    let (first, second) = (open(&options.first)?, open(&options.second)?);
    job.watcher.progress(0, first.virtual_size().max(second.virtual_size()).max(1));
    let pairs = Pairs::new([Side::new([&*first]), Side::new([&*second])]);
    let sizes = [first.virtual_size(), second.virtual_size()];
    if options.strictness == Strictness::Strict && sizes[0] != sizes[1] {
        return Ok(CompareReport { size_warning: false, outcome: CompareOutcome::SizeMismatch });
    }
    let beyond = |offset: u64| sizes[0] != sizes[1] && offset >= sizes[0].min(sizes[1]);
    match compare_pairs(&pairs, 0..pairs.end, options.strictness, job)? {
        CompareOutcome::Identical => Ok(CompareReport {
            size_warning: sizes[0] != sizes[1],
            outcome: CompareOutcome::Identical,
        }),
        outcome => {
            let offset = match outcome {
                CompareOutcome::StatusMismatch { offset }
                | CompareOutcome::ContentMismatch { offset } => offset,
                CompareOutcome::Identical | CompareOutcome::SizeMismatch => 0,
            };
            Ok(CompareReport { size_warning: beyond(offset), outcome })
        }
    }
}

/// Compares a range of two disks on all cores; the outcome at the lowest offset.
pub(super) fn compare_pairs(
    pairs: &Pairs<'_>,
    range: Range<u64>,
    strictness: Strictness,
    job: &Job<'_>,
) -> std::result::Result<CompareOutcome, CompareFailure> {
    let len = range.end.saturating_sub(range.start);
    let run = Comparison {
        pairs,
        strictness,
        claims: Mutex::new(pairs.claims(range.start)),
        range,
        event: Mutex::new(None),
        done: AtomicU64::new(0),
        job: *job,
    };
    let threads = default_threads();
    if threads < 2 || len <= PIECE {
        run.work();
    } else {
        std::thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(|| run.work());
            }
            run.work();
        });
    }
    match run.event.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        None => Ok(CompareOutcome::Identical),
        Some((_, Event::Different(outcome))) => Ok(outcome),
        Some((_, Event::Failed(failure))) => Err(failure),
    }
}

struct Comparison<'a> {
    pairs: &'a Pairs<'a>,
    strictness: Strictness,
    range: Range<u64>,
    claims: Mutex<Claims>,
    event: Mutex<Option<(u64, Event)>>,
    done: AtomicU64,
    job: Job<'a>,
}

impl Comparison<'_> {
    fn work(&self) {
        let mut buffers = Buffers::default();
        while let Some(piece) = self.claim() {
            self.compare_piece(&piece, &mut buffers);
            let done = self.done.fetch_add(piece.len, Ordering::Relaxed) + piece.len;
            self.job.watcher.progress(done, self.range.end - self.range.start);
        }
    }

    fn tell(&self, offset: u64, event: Event) {
        let mut first = lock(&self.event);
        if first.as_ref().is_none_or(|(at, _)| offset < *at) {
            *first = Some((offset, event));
        }
    }

    fn fail(&self, offset: u64, exit_code: u8, error: Error) {
        self.tell(offset, Event::Failed(CompareFailure { exit_code, error }));
    }

    /// The next range that has to be looked at; zeroes on both sides are passed over.
    fn claim(&self) -> Option<Piece> {
        let mut claims = lock(&self.claims);
        loop {
            if lock(&self.event).is_some() {
                return None;
            }
            let next = self.pairs.next(&mut claims, self.range.end);
            let piece = match next {
                Ok(piece) => piece?,
                Err(StatusFailure { at, side, error }) => {
                    let name = self.pairs.sides[side].name(at);
                    let text = format!("Sector allocation test failed for {name}");
                    self.fail(at, 3, error.context(text));
                    return None;
                }
            };
            if let Err(e) = check_cancelled(self.job.watcher) {
                self.fail(piece.at, 4, e);
                return None;
            }
            if self.strictness == Strictness::Strict && kind(piece.runs[0]) != kind(piece.runs[1]) {
                let outcome = CompareOutcome::StatusMismatch { offset: piece.at };
                self.tell(piece.at, Event::Different(outcome));
                return None;
            }
            if piece.both_zero() {
                self.done.fetch_add(piece.len, Ordering::Relaxed);
                continue;
            }
            return Some(piece);
        }
    }

    fn compare_piece(&self, piece: &Piece, buffers: &mut Buffers) {
        let read = match buffers.read(self.pairs, piece) {
            Ok(read) => read,
            Err(ReadFailure { side, error }) => {
                let name = self.pairs.sides[side].name(piece.at);
                let text = format!("Error while reading offset {} of {name}", piece.at);
                self.fail(piece.at, 4, error.context(text));
                return;
            }
        };
        let difference = match read {
            [Some(first), Some(second)] => first_difference(first, second),
            [Some(only), None] | [None, Some(only)] => first_not_zero(only),
            [None, None] => None,
        };
        if let Some(index) = difference {
            let offset = piece.at + len_u64(index);
            self.tell(offset, Event::Different(CompareOutcome::ContentMismatch { offset }));
        }
    }
}

/// What strict mode compares.
fn kind(run: Found) -> Option<(bool, bool, bool, bool, bool)> {
    run.map(|(_, r)| (r.is_zero(), r.stored, r.allocated, r.compressed, r.place.is_some()))
}

/// The beginning of the first sector that differs.
fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    if a == b {
        return None;
    }
    a.chunks(SECTOR).zip(b.chunks(SECTOR)).position(|(x, y)| x != y).map(|i| i * SECTOR)
}

/// The beginning of the first sector that is not zero.
fn first_not_zero(a: &[u8]) -> Option<usize> {
    if is_zero(a) {
        return None;
    }
    a.chunks(SECTOR).position(|x| !is_zero(x)).map(|i| i * SECTOR)
}

#[cfg(test)]
#[path = "compare_test.rs"]
mod tests;
