//! `diff`: all ranges in which two disks differ.
//!
//! Threads compare pieces side by side and tell what they found in guest order, so that a list of any
//! length takes no memory. Ranges are as exact as [`DiffOptions::granularity`]; neighbours are joined.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::pairs::{Buffers, Claims, Pairs, Piece, ReadFailure, SECTOR, Side, StatusFailure};
use super::parallel::{Failure, Turns, default_threads, lock};
use super::{ImageArg, Job};
use crate::format::check_cancelled;
use crate::graph::open::Purpose;
use crate::num::{len_u64, round_down, round_up};
use crate::storage::zero::is_zero;
use crate::{Error, Result};

/// What to do.
#[derive(Clone, Debug)]
pub struct DiffOptions {
    /// The first image.
    pub first: ImageArg,
    /// The second.
    pub second: ImageArg,
    /// Ranges begin and end at multiples of this many bytes, itself a multiple of 512.
    pub granularity: u64,
}

/// A range that differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DiffRange {
    /// Guest offset in bytes.
    pub start: u64,
    /// Bytes.
    pub length: u64,
}

impl DiffRange {
    fn end(&self) -> u64 {
        self.start + self.length
    }
}

/// What came out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DiffReport {
    /// Sizes of both disks in bytes. What only the longer one has counts as zero in the other.
    pub sizes: [u64; 2],
    /// Number of ranges.
    pub ranges: u64,
    /// Bytes in them.
    pub bytes: u64,
}

/// Tells every range that differs, in guest order, to `tell`.
///
/// # Errors
/// When an image cannot be opened or read, or when `tell` fails.
pub fn diff(
    options: &DiffOptions,
    job: &Job<'_>,
    tell: &mut (dyn FnMut(DiffRange) -> Result<()> + Send),
) -> Result<DiffReport> {
    if options.granularity == 0 || !options.granularity.is_multiple_of(len_u64(SECTOR)) {
        return Err(Error::invalid("the granularity must be a multiple of 512"));
    }
    let open = |image: &ImageArg| {
        let mut how = image.options(job);
        how.purpose = Purpose::Source;
        image.open(job, &how)
    };
    let (first, second) = (open(&options.first)?, open(&options.second)?);
    let pairs = Pairs::new([Side::new([&*first]), Side::new([&*second])]);
    let sizes = [first.virtual_size(), second.virtual_size()];
    let work = Work {
        claims: Mutex::new((pairs.claims(0), 0)),
        pairs: &pairs,
        granularity: options.granularity,
        turns: Turns::default(),
        list: Mutex::new(List {
            open: None,
            report: DiffReport { sizes, ..DiffReport::default() },
            tell,
        }),
        failure: Failure::default(),
        done: AtomicU64::new(0),
        job: *job,
    };
    std::thread::scope(|scope| {
        for _ in 1..default_threads() {
            scope.spawn(|| work.run());
        }
        work.run();
    });
    work.failure.into_result()?;
    let mut list = work.list.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    list.close()?;
    job.watcher.progress(pairs.end, pairs.end);
    Ok(list.report)
}

/// The list as far as it is told.
struct List<'a> {
    /// The last range, which may still grow.
    open: Option<DiffRange>,
    report: DiffReport,
    tell: &'a mut (dyn FnMut(DiffRange) -> Result<()> + Send),
}

impl List<'_> {
    /// Ranges come in order and may overlap the last one.
    fn add(&mut self, range: DiffRange) -> Result<()> {
        if let Some(open) = &mut self.open
            && range.start <= open.end()
        {
            open.length = open.length.max(range.end() - open.start);
            return Ok(());
        }
        self.close()?;
        self.open = Some(range);
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        if let Some(range) = self.open.take() {
            self.report.ranges += 1;
            self.report.bytes += range.length;
            (self.tell)(range)?;
        }
        Ok(())
    }
}

struct Work<'a> {
    pairs: &'a Pairs<'a>,
    /// With the number of the next piece.
    claims: Mutex<(Claims, u64)>,
    granularity: u64,
    turns: Turns,
    list: Mutex<List<'a>>,
    failure: Failure,
    done: AtomicU64,
    job: Job<'a>,
}

impl Work<'_> {
    fn run(&self) {
        let mut buffers = Buffers::default();
        let mut found = Vec::new();
        while !self.failure.happened() {
            let (ticket, next) = self.claim();
            let result = match next {
                Ok(None) => return,
                Ok(Some(piece)) => self.piece(ticket, &piece, &mut buffers, &mut found),
                Err(e) => Err(e),
            };
            if let Err(e) = result {
                self.failure.report(ticket, e);
                self.turns.stop();
                return;
            }
            self.turns.pass(ticket);
        }
    }

    /// The next piece that is not zero on both sides, and its number.
    fn claim(&self) -> (u64, Result<Option<Piece>>) {
        let mut claims = lock(&self.claims);
        let (claims, ticket) = &mut *claims;
        loop {
            let next = check_cancelled(self.job.watcher).and_then(|()| {
                self.pairs.next(claims, self.pairs.end).map_err(
                    |StatusFailure { at, side, error }| {
                        let name = self.pairs.sides[side].name(at);
                        error.context(format!(
                            "{name}: error while reading block status at offset {at}"
                        ))
                    },
                )
            });
            if let Ok(Some(piece)) = &next
                && piece.both_zero()
            {
                self.count(piece.len);
                continue;
            }
            *ticket += 1;
            return (*ticket - 1, next);
        }
    }

    fn count(&self, len: u64) {
        let done = self.done.fetch_add(len, Ordering::Relaxed) + len;
        self.job.watcher.progress(done, self.pairs.end);
    }

    fn piece(
        &self,
        ticket: u64,
        piece: &Piece,
        buffers: &mut Buffers,
        found: &mut Vec<DiffRange>,
    ) -> Result<()> {
        let read = buffers.read(self.pairs, piece).map_err(|ReadFailure { side, error }| {
            let name = self.pairs.sides[side].name(piece.at);
            error.context(format!("{name}: error while reading at byte {}", piece.at))
        })?;
        found.clear();
        differing(read, |start, len| {
            let start = piece.at + len_u64(start);
            let end = round_up(start + len_u64(len), self.granularity).min(self.pairs.end);
            let start = round_down(start, self.granularity);
            match found.last_mut() {
                Some(last) if last.end() >= start => last.length = end - last.start,
                _ => found.push(DiffRange { start, length: end - start }),
            }
        });
        self.count(piece.len);
        if found.is_empty() || !self.turns.wait(ticket) {
            return Ok(());
        }
        let mut list = lock(&self.list);
        found.iter().try_for_each(|range| list.add(*range))
    }
}

/// Calls `tell` with offset and length of every sector that differs.
fn differing([first, second]: [Option<&[u8]>; 2], mut tell: impl FnMut(usize, usize)) {
    match (first, second) {
        (Some(a), Some(b)) if a != b => {
            for (i, (x, y)) in a.chunks(SECTOR).zip(b.chunks(SECTOR)).enumerate() {
                if x != y {
                    tell(i * SECTOR, x.len());
                }
            }
        }
        (Some(only), None) | (None, Some(only)) if !is_zero(only) => {
            for (i, x) in only.chunks(SECTOR).enumerate() {
                if !is_zero(x) {
                    tell(i * SECTOR, x.len());
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
#[path = "diff_test.rs"]
mod tests;
