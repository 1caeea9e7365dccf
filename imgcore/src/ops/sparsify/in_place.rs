//! Giving space back in the image itself.

use std::sync::Arc;

use super::super::{ImageArg, Job};
use super::SparsifyReport;
use super::selection::Selection;
use super::survey::{Plan, Stored, each_stored, has_snapshots, unit, whole_units};
use crate::format::{Repair, Unwatched, ZeroSpace, check_cancelled};
use crate::graph::Node;
use crate::graph::open::Depth;
use crate::guest::DiskRange;
use crate::num::{len_u64, round_down, round_up, small};
use crate::storage::zero::is_zero;
use crate::{Error, Result};

/// Bytes that are read at a time while looking for zeroes.
const PIECE: u64 = 2 << 20;
/// Bytes whose stored parts are listed at a time; a multiple of every format's unit.
const WINDOW: u64 = 1 << 30;

/// Whether data are read to find those that are zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Zeroes {
    /// Yes: whole units of stored zeroes are given back, too.
    #[default]
    Free,
    /// No.
    Keep,
}

/// What to do.
#[derive(Clone, Debug)]
pub struct InPlaceOptions {
    /// The image, which is changed.
    pub image: ImageArg,
    /// Which volumes.
    pub selection: Selection,
    /// Stored zeroes.
    pub zeroes: Zeroes,
}

/// Frees in the image what its guest does not use. Nobody else may use the image meanwhile: it is locked.
///
/// # Errors
/// As [`super::survey`]; when the format cannot give space back; when the job is cancelled (what was freed so
/// far stays freed, and the image is sound).
pub fn in_place(options: &InPlaceOptions, job: &Job<'_>) -> Result<SparsifyReport> {
    let mut how = options.image.options(job).writable();
    how.depth = Depth::Chain;
    let node = options.image.open(job, &how)?;
    node.image().begin_release();
    let freer = Freer::new(&node)?;
    check_image(&node)?;
    if has_snapshots(&node)? {
        job.watcher.note(&format!(
            "'{}' has internal snapshots: what they share is not freed (rimg snapshot -d removes them)",
            node.name()
        ));
    }
    let result = freer.run(options, job);
    // Whatever happened, the image is left in order.
    let closed = node.close();
    let mut report = result?;
    closed?;
    report.allocated_after = allocated(&node)?;
    Ok(report)
}

/// What an image's tables call unused is believed only when they are sound.
fn check_image(node: &Node) -> Result<()> {
    let Some(found) = node.image().check(Repair::Nothing, &Unwatched) else { return Ok(()) };
    let found = found?;
    if found.corruptions == 0 && found.check_errors == 0 {
        return Ok(());
    }
    Err(Error::corrupt(format!(
        "the image has {} errors in its own tables, so nothing is freed in it",
        found.corruptions + found.check_errors
    ))
    .hint("repair it first: rimg check -r all; or make a copy: rimg sparsify SRC DST"))
}

/// Bytes of the host's disk that the image takes.
fn allocated(node: &Node) -> Result<Option<u64>> {
    node.image().storages().iter().try_fold(Some(0), |sum: Option<u64>, storage| {
        Ok(sum.zip(storage.allocated()?).map(|(a, b)| a + b))
    })
}

struct Freer<'a> {
    node: &'a Arc<Node>,
    unit: u64,
    discard: bool,
}

impl<'a> Freer<'a> {
    fn new(node: &'a Arc<Node>) -> Result<Self> {
        let g = node.image().granularity();
        if g.discard.is_none() && g.zero.is_none() {
            return Err(Error::unsupported(format!(
                "images of the format {} cannot give space back in place",
                node.image().format_name()
            ))
            .hint("make a copy instead: rimg sparsify SRC DST"));
        }
        Ok(Freer { node, unit: unit(node), discard: g.discard.is_some() })
    }

    fn run(&self, options: &InPlaceOptions, job: &Job<'_>) -> Result<SparsifyReport> {
        let mut plan = Plan::make(self.node, &options.selection, job)?;
        plan.report.allocated_before = allocated(self.node)?;
        // How far it is: the free bytes first, then the whole disk.
        let scan = match options.zeroes {
            Zeroes::Free => self.node.virtual_size(),
            Zeroes::Keep => 0,
        };
        let total = plan.report.free + scan;
        let mut done = 0;
        for index in 0..plan.reports().len() {
            let mut sum = Stored::default();
            plan.each_of(index, job, &mut |range| {
                let whole = whole_units(range, self.unit, self.node.virtual_size());
                self.free(whole, &mut sum)?;
                done += range.len;
                job.watcher.progress(done, total);
                Ok(())
            })?;
            if let Some(report) = plan.report.volumes.get_mut(index) {
                (report.savable, report.shared) = (sum.own, sum.shared);
                plan.report.savable += sum.own;
            }
        }
        if options.zeroes == Zeroes::Free {
            plan.report.zeroes = Some(self.free_zeroes(job, done, total)?);
        }
        self.node.flush()?;
        self.node.image().release_unused()?;
        job.watcher.progress(total, total);
        Ok(plan.report)
    }

    /// Frees the stored parts of whole units.
    fn free(&self, range: DiskRange, sum: &mut Stored) -> Result<()> {
        let mut at = range.start;
        while at < range.end() {
            let len = WINDOW.min(range.end() - at);
            self.free_window(DiskRange { start: at, len }, sum)?;
            at += len;
        }
        Ok(())
    }

    fn free_window(&self, range: DiskRange, sum: &mut Stored) -> Result<()> {
        let mut parts: Vec<DiskRange> = Vec::new();
        each_stored(self.node, range, &mut |part, stored| {
            sum.own += stored.own;
            sum.shared += stored.shared;
            // Holes inside a unit must not keep it.
            let part = self.around(part, range);
            match parts.last_mut() {
                Some(last) if part.start <= last.end() => last.len = part.end() - last.start,
                _ => parts.push(part),
            }
            Ok(())
        })?;
        parts.into_iter().try_for_each(|part| self.drop_range(part))
    }

    /// The units of `range` that a part of it lies in.
    fn around(&self, part: DiskRange, range: DiskRange) -> DiskRange {
        let start = round_down(part.start, self.unit).max(range.start);
        let end = round_up(part.end(), self.unit).min(range.end());
        DiskRange { start, len: end - start }
    }

    fn drop_range(&self, range: DiskRange) -> Result<()> {
        if self.discard {
            self.node.discard(range.start, range.len)
        } else {
            self.node.write_zeroes(range.start, range.len, ZeroSpace::Unmap)
        }
    }

    /// Frees whole units that hold nothing but zeroes; the bytes freed.
    fn free_zeroes(&self, job: &Job<'_>, done: u64, total: u64) -> Result<u64> {
        let size = self.node.virtual_size();
        // At least one unit; small units many at a time.
        let step = PIECE.max(self.unit);
        let mut buffer = vec![0; small(PIECE)];
        let mut freed = 0;
        let mut at = 0;
        while at < size {
            check_cancelled(job.watcher)?;
            let window = DiskRange { start: at, len: step.min(size - at) };
            let mut own = 0;
            each_stored(self.node, window, &mut |_, stored| {
                own += stored.own;
                Ok(())
            })?;
            if own > 0 {
                for zero in self.zero_units(window, &mut buffer)? {
                    let mut sum = Stored::default();
                    self.free(zero, &mut sum)?;
                    freed += sum.own;
                }
            }
            at = window.end();
            job.watcher.progress(done + at, total);
        }
        Ok(freed)
    }

    /// The runs of whole units in a window that are zero.
    fn zero_units(&self, window: DiskRange, buffer: &mut [u8]) -> Result<Vec<DiskRange>> {
        let mut found: Vec<DiskRange> = Vec::new();
        let mut add = |start: u64, len: u64| match found.last_mut() {
            Some(last) if last.end() == start => last.len += len,
            _ => found.push(DiskRange { start, len }),
        };
        if self.unit > PIECE {
            // One unit, read in pieces up to the first other byte.
            let mut at = window.start;
            while at < window.end() {
                let n = small(PIECE.min(window.end() - at));
                let part = buffer.get_mut(..n).unwrap_or_default();
                self.node.read(at, part)?;
                if !is_zero(part) {
                    return Ok(found);
                }
                at += len_u64(n);
            }
            add(window.start, window.len);
            return Ok(found);
        }
        let bytes = buffer.get_mut(..small(window.len)).unwrap_or_default();
        self.node.read(window.start, bytes)?;
        for (i, unit) in (0u64..).zip(bytes.chunks(small(self.unit))) {
            if is_zero(unit) {
                add(window.start + i * self.unit, len_u64(unit.len()));
            }
        }
        Ok(found)
    }
}
