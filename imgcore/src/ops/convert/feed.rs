//! What is to be copied, cut into chunks in guest order.
//!
//! The status of every run of the sources is asked for once. Ranges that need nothing are passed over
//! without making a chunk. Chunks begin at multiples of the target's unit and end at multiples of the
//! chunk size, and how they are cut depends on nothing but the sources and the [`Rules`]: that is what
//! makes the output independent of the number of threads.

use std::sync::Arc;

use super::super::source::{Origin, Run, Walk};
use crate::graph::Node;
use crate::num::{checked_round_up, round_down, round_up};
use crate::{Error, Result};

/// Zero runs shorter than this stay inside a chunk of data.
const SHORT: u64 = 64 << 10;

/// How the copy is made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// Bytes of all sources together.
    pub total: u64,
    /// Zeroes are written as data (`-S 0`).
    pub dense: bool,
    /// What is not written reads as zero.
    pub zero_init: bool,
    /// What is not in the first image of the source is left to the target's backing file.
    pub has_backing: bool,
    /// Where the target's backing file ends.
    pub backing_end: u64,
    /// What is decided as a whole: allocation unit, encoded unit, or sparse alignment.
    pub unit: u64,
    /// Largest chunk, a multiple of `unit`.
    pub chunk: u64,
    /// What stands in a place that the target has already is of no use.
    pub overwrite: bool,
}

/// What becomes of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    /// Read it.
    Data,
    /// It is zero.
    Zero,
    /// The target's backing file has it.
    Backing,
}

/// A piece of one run of one source.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    /// Offset in the target.
    pub at: u64,
    /// Bytes.
    pub len: u64,
    /// What becomes of it.
    pub status: Status,
    /// Which source.
    pub source: usize,
    /// The same offset in that source.
    pub local: u64,
    /// Where in the source the run was found.
    pub found: u64,
    /// The run.
    pub run: Run,
}

impl Part {
    /// `len` bytes of it, `skip` bytes from its beginning.
    pub fn inside(&self, skip: u64, len: u64) -> Part {
        Part { at: self.at + skip, local: self.local + skip, len, ..*self }
    }
}

/// What is to be done with a chunk.
#[derive(Clone, Debug)]
pub(super) enum Work {
    /// Copy the parts, which cover the chunk without gaps.
    Copy(Vec<Part>),
    /// Make it zero.
    Zero,
}

/// A range to be done by one thread.
#[derive(Clone, Debug)]
pub(super) struct Chunk {
    /// Number in guest order.
    pub ticket: u64,
    /// Offset in the target.
    pub at: u64,
    /// Bytes.
    pub len: u64,
    /// What to do.
    pub work: Work,
}

/// One source and where it begins in the target.
#[derive(Debug)]
pub(super) struct Span<'a> {
    pub walk: Walk<'a>,
    pub start: u64,
    /// Rounded up to sectors.
    pub len: u64,
    /// Where the image below the source's first one ends.
    pub own_end: u64,
}

/// Lays the sources out one after the other.
pub(super) fn spans(sources: &[Arc<Node>], first_only: bool) -> Result<Vec<Span<'_>>> {
    let mut start = 0u64;
    let mut all = Vec::with_capacity(sources.len());
    for node in sources {
        let walk = if first_only { Walk::first(node, 1) } else { Walk::chain(node) };
        let own_end = node.virtual_size();
        let len = checked_round_up(own_end, 512).unwrap_or(u64::MAX);
        all.push(Span { walk, start, len, own_end });
        start = start
            .checked_add(len)
            .filter(|&s| i64::try_from(s).is_ok())
            .ok_or_else(|| Error::errno(libc::EFBIG))?;
    }
    Ok(all)
}

/// Hands out chunks.
#[derive(Debug)]
pub(super) struct Feed<'a> {
    spans: &'a [Span<'a>],
    rules: Rules,
    at: u64,
    ticket: u64,
    /// Source that `at` lies in.
    current: usize,
    /// The run around `at` in that source, and where it was found.
    known: Option<(usize, u64, Run)>,
    /// A status that cannot be had is taken for data (`--salvage`).
    lenient: bool,
}

impl<'a> Feed<'a> {
    /// From the offset `at` on, which begins a chunk or ends the disk.
    pub fn new(spans: &'a [Span<'a>], rules: Rules, at: u64, lenient: bool) -> Self {
        Feed { spans, rules, at, ticket: 0, current: 0, known: None, lenient }
    }

    /// Where the next chunk will begin at the earliest.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// The number that the next chunk will have.
    pub fn next_ticket(&self) -> u64 {
        self.ticket
    }

    /// The next chunk; `None` at the end.
    pub fn next(&mut self) -> Result<Option<Chunk>> {
        let rules = self.rules;
        while self.at < rules.total {
            let part = self.part(self.at, rules.total - self.at)?;
            let end = self.whole_units(part.at, part.len);
            match self.quick(part.status) {
                Some(Quick::Skip) if end > self.at => self.at = end,
                Some(Quick::Zero) if end > self.at => {
                    let (at, len) = (self.at, end - self.at);
                    self.at = end;
                    return Ok(Some(self.chunk(at, len, Work::Zero)));
                }
                _ => return self.copy_chunk(part).map(Some),
            }
        }
        Ok(None)
    }

    fn chunk(&mut self, at: u64, len: u64, work: Work) -> Chunk {
        let ticket = self.ticket;
        self.ticket += 1;
        Chunk { ticket, at, len, work }
    }

    /// Where the last whole unit of a range ends; the end of the disk ends a unit.
    fn whole_units(&self, at: u64, len: u64) -> u64 {
        let end = at + len;
        if end >= self.rules.total { end } else { round_down(end, self.rules.unit).max(at) }
    }

    /// What can be done with whole units of this status without reading.
    fn quick(&self, status: Status) -> Option<Quick> {
        match status {
            Status::Backing => Some(Quick::Skip),
            Status::Zero if self.rules.dense => None,
            Status::Zero if self.rules.zero_init => Some(Quick::Skip),
            Status::Zero => Some(Quick::Zero),
            Status::Data => None,
        }
    }

    /// Gathers parts up to the end of the chunk, or to where a long run needs no reading.
    fn copy_chunk(&mut self, first: Part) -> Result<Chunk> {
        let (rules, start) = (self.rules, self.at);
        let mut end = (round_down(start, rules.chunk) + rules.chunk).min(rules.total);
        let mut parts = Vec::new();
        let mut part = first;
        loop {
            if part.at > start && part.len >= SHORT && self.quick(part.status).is_some() {
                end = end.min(round_up(part.at, rules.unit));
            }
            if part.at >= end {
                break;
            }
            part.len = part.len.min(end - part.at);
            parts.push(part);
            let next = part.at + part.len;
            if next >= end {
                break;
            }
            part = self.part(next, rules.total - next)?;
        }
        self.at = end;
        Ok(self.chunk(start, end - start, Work::Copy(parts)))
    }

    /// What the sources have at `at`, of one kind and from one source.
    fn part(&mut self, at: u64, len: u64) -> Result<Part> {
        while self.spans[self.current].start + self.spans[self.current].len <= at {
            self.current += 1;
        }
        let span = &self.spans[self.current];
        let local = at - span.start;
        let known = self.known.filter(|(s, found, run)| {
            *s == self.current && (*found..found + run.len).contains(&local)
        });
        let (found, run) = match known {
            Some((_, found, run)) => (found, run),
            None => {
                let run = self.ask(local)?;
                self.known = Some((self.current, local, run));
                (local, run)
            }
        };
        let mut len = len.min(found + run.len - local);
        let mut status = match run.origin {
            Origin::Zero => Status::Zero,
            Origin::Below if self.rules.has_backing => Status::Backing,
            Origin::Plain(..) | Origin::Encoded | Origin::Below => Status::Data,
        };
        if self.rules.has_backing && status == Status::Zero {
            // Beyond the end of its backing file the target reads as zeroes anyhow.
            if at >= self.rules.backing_end {
                status = Status::Backing;
            } else {
                len = len.min(self.rules.backing_end - at);
            }
        }
        Ok(Part { at, len, status, source: self.current, local, found, run })
    }

    fn ask(&self, local: u64) -> Result<Run> {
        let span = &self.spans[self.current];
        // The last sector of a disk that is not a multiple of it.
        let rest = span.own_end.max(local + 1).min(span.len) - local;
        match span.walk.run(local, rest) {
            Ok(run) => Ok(run),
            Err(_) if self.lenient => Ok(Run {
                len: rest.min(512),
                link: 0,
                origin: Origin::Encoded,
                allocated: true,
                stored: true,
                compressed: false,
                place: None,
            }),
            Err(e) => Err(e
                .context(format!("error while reading block status at offset {local}"))
                .at_offset(local)),
        }
    }
}

/// What needs no reading.
enum Quick {
    Skip,
    Zero,
}
