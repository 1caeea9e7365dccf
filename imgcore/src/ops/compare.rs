//! `compare`: whether two images show the guest the same bytes.
//!
//! Threads claim pieces in guest order, each a range with one origin in both images, and read and
//! compare them side by side. What counts is the event (difference or error) at the lowest offset:
//! nobody claims beyond one that was found, and everything before it has been claimed already.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::parallel::{default_threads, lock};
use super::source::{Run, Walk};
use super::{ImageArg, Job};
use crate::Error;
use crate::format::check_cancelled;
use crate::graph::open::Purpose;
use crate::num::{len_u64, small};
use crate::storage::zero::is_zero;

/// Bytes read from each image at a time; two such buffers fit the second-level cache.
const PIECE: u64 = 256 << 10;
/// Differences are told to this precision.
const SECTOR: usize = 512;

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
    /// The lines that qemu-img prints (to stdout).
    pub fn lines(&self) -> Vec<String> {
        let warning = self.size_warning.then(|| "Warning: Image size mismatch!".to_owned());
        warning.into_iter().chain([self.outcome.line()]).collect()
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
    let sizes = [first.virtual_size(), second.virtual_size()];
    if options.strictness == Strictness::Strict && sizes[0] != sizes[1] {
        return Ok(CompareReport { size_warning: false, outcome: CompareOutcome::SizeMismatch });
    }
    let (common, all) = (sizes[0].min(sizes[1]), sizes[0].max(sizes[1]));
    let run = Comparison {
        sides: [
            Side { walk: Walk::chain(&first), name: first.name(), size: sizes[0] },
            Side { walk: Walk::chain(&second), name: second.name(), size: sizes[1] },
        ],
        strictness: options.strictness,
        end: all,
        claims: Mutex::new(Claims::default()),
        event: Mutex::new(None),
        done: AtomicU64::new(0),
        job: *job,
    };
    let threads = default_threads();
    if threads < 2 || all <= PIECE {
        run.work();
    } else {
        std::thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(|| run.work());
            }
            run.work();
        });
    }
    let event = run.event.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let beyond = |offset: u64| sizes[0] != sizes[1] && offset >= common;
    match event {
        None => Ok(CompareReport {
            size_warning: sizes[0] != sizes[1],
            outcome: CompareOutcome::Identical,
        }),
        Some((offset, Event::Different(outcome))) => {
            Ok(CompareReport { size_warning: beyond(offset), outcome })
        }
        Some((_, Event::Failed(failure))) => Err(failure),
    }
}

struct Side<'a> {
    walk: Walk<'a>,
    name: &'a str,
    size: u64,
}

/// The next offset to claim, and what is known of both images there.
#[derive(Debug, Default)]
struct Claims {
    at: u64,
    /// Where each side's present run was found, and the run.
    runs: [Option<(u64, Run)>; 2],
}

/// A range with one origin on each side; `None` beyond the end of that image.
struct Piece {
    at: u64,
    len: u64,
    runs: [Option<(u64, Run)>; 2],
}

struct Comparison<'a> {
    sides: [Side<'a>; 2],
    strictness: Strictness,
    end: u64,
    claims: Mutex<Claims>,
    event: Mutex<Option<(u64, Event)>>,
    done: AtomicU64,
    job: Job<'a>,
}

impl Comparison<'_> {
    fn work(&self) {
        let mut buffers = [Vec::new(), Vec::new()];
        while let Some(piece) = self.claim() {
            self.compare_piece(&piece, &mut buffers);
            let done = self.done.fetch_add(piece.len, Ordering::Relaxed) + piece.len;
            self.job.watcher.progress(done, self.end);
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
            let at = claims.at;
            if at >= self.end || lock(&self.event).is_some() {
                return None;
            }
            if let Err(e) = check_cancelled(self.job.watcher) {
                self.fail(at, 4, e);
                return None;
            }
            let mut len = self.end - at;
            for (side, slot) in self.sides.iter().zip(&mut claims.runs) {
                let known = slot.filter(|(start, run)| at < start + run.len);
                *slot = match known {
                    _ if at >= side.size => None,
                    Some(known) => Some(known),
                    None => match side.walk.run(at, side.size - at) {
                        Ok(run) => Some((at, run)),
                        Err(e) => {
                            let text = format!("Sector allocation test failed for {}", side.name);
                            self.fail(at, 3, e.context(text));
                            return None;
                        }
                    },
                };
                if let Some((start, run)) = *slot {
                    len = len.min(start + run.len - at);
                }
            }
            let runs = claims.runs;
            if self.strictness == Strictness::Strict && kind(runs[0]) != kind(runs[1]) {
                self.tell(at, Event::Different(CompareOutcome::StatusMismatch { offset: at }));
                return None;
            }
            let zero = |run: Option<(u64, Run)>| run.is_none_or(|(_, r)| r.is_zero());
            if zero(runs[0]) && zero(runs[1]) {
                claims.at += len;
                self.done.fetch_add(len, Ordering::Relaxed);
                continue;
            }
            // Cut at multiples of the piece, so that reads stay aligned.
            len = len.min(PIECE - at % PIECE);
            claims.at += len;
            return Some(Piece { at, len, runs });
        }
    }

    fn compare_piece(&self, piece: &Piece, buffers: &mut [Vec<u8>; 2]) {
        let len = small(piece.len);
        let mut data = [false; 2];
        for (i, (side, buffer)) in self.sides.iter().zip(buffers.iter_mut()).enumerate() {
            let Some((found, run)) = piece.runs[i].filter(|(_, r)| !r.is_zero()) else { continue };
            data[i] = true;
            buffer.resize(buffer.len().max(len), 0);
            if let Err(e) = side.walk.read(&run, found, piece.at, &mut buffer[..len]) {
                let text = format!("Error while reading offset {} of {}", piece.at, side.name);
                self.fail(piece.at, 4, e.context(text));
                return;
            }
        }
        let difference = match data {
            [true, true] => first_difference(&buffers[0][..len], &buffers[1][..len]),
            [true, false] => first_not_zero(&buffers[0][..len]),
            [false, true] => first_not_zero(&buffers[1][..len]),
            [false, false] => None,
        };
        if let Some(index) = difference {
            let offset = piece.at + len_u64(index);
            self.tell(offset, Event::Different(CompareOutcome::ContentMismatch { offset }));
        }
    }
}

/// What strict mode compares.
fn kind(run: Option<(u64, Run)>) -> Option<(bool, bool, bool, bool, bool)> {
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
