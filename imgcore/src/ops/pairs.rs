//! Two disks side by side, cut into pieces that have one origin in each.
//!
//! A side is one image or several, one after the other (each but the last filled up with zeroes to whole
//! sectors, as `convert` puts them). Pieces come in guest order; ranges that are known to be zero on both
//! sides are passed over. Any thread may read a piece once it has it.

use crate::graph::Node;
use crate::num::{len_u64, round_up, small};
use crate::ops::source::{Origin, Run, Walk};
use crate::{Error, Result};

/// Largest piece: two buffers of it fit the second-level cache.
pub(super) const PIECE: u64 = 256 << 10;
/// Differences are told to this precision.
pub(super) const SECTOR: usize = 512;

/// One image of a side.
#[derive(Debug)]
struct Part<'a> {
    walk: Walk<'a>,
    name: &'a str,
    start: u64,
    /// Where its own bytes end, counted from `start`; zeroes follow.
    own: u64,
}

/// One of the disks.
#[derive(Debug)]
pub(super) struct Side<'a> {
    parts: Vec<Part<'a>>,
    size: u64,
}

impl<'a> Side<'a> {
    /// Of images that stand one after the other.
    pub fn new(nodes: impl IntoIterator<Item = &'a Node>) -> Self {
        let mut side = Side { parts: Vec::new(), size: 0 };
        for node in nodes {
            // A part that is not the last one is filled up to whole sectors.
            let start = round_up(side.size, len_u64(SECTOR));
            let own = node.virtual_size();
            side.parts.push(Part { walk: Walk::chain(node), name: node.name(), start, own });
            side.size = start.saturating_add(own);
        }
        side
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.size
    }

    fn part(&self, at: u64) -> Option<&Part<'a>> {
        let after = self.parts.partition_point(|p| p.start <= at);
        self.parts.get(after.checked_sub(1)?)
    }

    /// The image that has `at`, for messages.
    pub fn name(&self, at: u64) -> &'a str {
        self.part(at).map_or("", |p| p.name)
    }

    /// What the disk has at `at`, which is inside it.
    fn run(&self, at: u64) -> Result<Run> {
        let part = self.part(at).ok_or_else(|| Error::invalid("a disk without images"))?;
        let local = at - part.start;
        if local < part.own {
            return part.walk.run(local, part.own - local);
        }
        let next = self.parts.iter().map(|p| p.start).find(|s| *s > at).unwrap_or(self.size);
        Ok(Run {
            len: next - at,
            link: 0,
            origin: Origin::Zero,
            allocated: false,
            stored: false,
            compressed: false,
            place: None,
        })
    }
}

/// A run and where it was found.
pub(super) type Found = Option<(u64, Run)>;

/// What is known at the next offset.
#[derive(Debug)]
pub(super) struct Claims {
    at: u64,
    runs: [Found; 2],
}

/// A range with one origin on each side; `None` beyond the end of that side.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub at: u64,
    pub len: u64,
    pub runs: [Found; 2],
}

impl Piece {
    fn zero(run: Found) -> bool {
        run.is_none_or(|(_, r)| r.is_zero())
    }

    /// Whether side `side` is known to be zero here.
    pub fn is_zero(&self, side: usize) -> bool {
        Self::zero(self.runs[side])
    }

    /// Whether there is nothing to be read on either side.
    pub fn both_zero(&self) -> bool {
        self.is_zero(0) && self.is_zero(1)
    }
}

/// Why there is no next piece.
#[derive(Debug)]
pub(super) struct StatusFailure {
    pub at: u64,
    pub side: usize,
    pub error: Error,
}

/// Two disks.
#[derive(Debug)]
pub(super) struct Pairs<'a> {
    pub sides: [Side<'a>; 2],
    pub end: u64,
}

impl<'a> Pairs<'a> {
    /// All of both disks.
    pub fn new(sides: [Side<'a>; 2]) -> Self {
        let end = sides[0].size().max(sides[1].size());
        Pairs { sides, end }
    }

    /// Claims that begin at `at`.
    pub fn claims(&self, at: u64) -> Claims {
        Claims { at, runs: [None; 2] }
    }

    /// The next piece, up to `end`; also one that is zero on both sides, which may be long.
    pub fn next(
        &self,
        claims: &mut Claims,
        end: u64,
    ) -> std::result::Result<Option<Piece>, StatusFailure> {
        let at = claims.at;
        if at >= end {
            return Ok(None);
        }
        let mut len = end - at;
        for (i, (side, slot)) in self.sides.iter().zip(&mut claims.runs).enumerate() {
            let known = slot.filter(|(start, run)| at < start + run.len);
            *slot = match known {
                _ if at >= side.size() => None,
                Some(known) => Some(known),
                None => match side.run(at) {
                    Ok(run) => Some((at, run)),
                    Err(error) => return Err(StatusFailure { at, side: i, error }),
                },
            };
            if let Some((start, run)) = *slot {
                len = len.min(start + run.len - at);
            }
        }
        let mut piece = Piece { at, len, runs: claims.runs };
        if !piece.both_zero() {
            // Cut at multiples of the piece, so that reads stay aligned.
            piece.len = len.min(PIECE - at % PIECE);
        }
        claims.at += piece.len;
        Ok(Some(piece))
    }

    /// Reads what side `side` has of a piece. Not for a piece that is zero there.
    pub fn read(&self, piece: &Piece, side: usize, buf: &mut [u8]) -> Result<()> {
        let (Some((found, run)), Some(part)) = (piece.runs[side], self.sides[side].part(piece.at))
        else {
            buf.fill(0);
            return Ok(());
        };
        part.walk.read(&run, found - part.start, piece.at - part.start, buf)
    }
}

/// Both buffers of a thread, and the reading into them.
#[derive(Debug, Default)]
pub(super) struct Buffers([Vec<u8>; 2]);

/// A side could not be read.
#[derive(Debug)]
pub(super) struct ReadFailure {
    pub side: usize,
    pub error: Error,
}

impl Buffers {
    /// What both sides have of a piece; `None` where that is known to be zero.
    pub fn read(
        &mut self,
        pairs: &Pairs<'_>,
        piece: &Piece,
    ) -> std::result::Result<[Option<&[u8]>; 2], ReadFailure> {
        let len = small(piece.len);
        for (side, buffer) in
            self.0.iter_mut().enumerate().filter(|(side, _)| !piece.is_zero(*side))
        {
            buffer.resize(buffer.len().max(len), 0);
            pairs
                .read(piece, side, &mut buffer[..len])
                .map_err(|error| ReadFailure { side, error })?;
        }
        let filled = |side: usize| (!piece.is_zero(side)).then(|| &self.0[side][..len]);
        Ok([filled(0), filled(1)])
    }
}
