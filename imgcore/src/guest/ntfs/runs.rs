//! Where an attribute's clusters are: runs ("Data Runs").

use crate::guest::fields::Fields;
use crate::{Error, Result};

/// Runs of one attribute.
const MAX_RUNS: usize = 1 << 20;

/// A run: first cluster of the file, first on the disk (`None` reads as zeroes), clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub first: u64,
    pub place: Option<u64>,
    pub len: u64,
}

/// Each run: a byte with the widths of two numbers, the length, and the distance from the last place.
pub(super) fn parse(f: Fields<'_>, first: u64) -> Result<Vec<Run>> {
    let bad = || Error::corrupt("a file of NTFS has a damaged list of runs");
    let (mut all, mut at, mut next, mut place) = (Vec::new(), 0, first, 0i64);
    loop {
        let head = f.u8(at)?;
        if head == 0 {
            return Ok(all);
        }
        let (len_width, place_width) = (usize::from(head & 0xf), usize::from(head >> 4));
        if len_width == 0 || len_width > 8 || place_width > 8 || all.len() >= MAX_RUNS {
            return Err(bad());
        }
        let len = number(f.slice(at + 1, len_width)?);
        let distance = number(f.slice(at + 1 + len_width, place_width)?);
        let len = u64::try_from(len).ok().filter(|l| *l > 0).ok_or_else(bad)?;
        let run = if place_width == 0 {
            Run { first: next, place: None, len }
        } else {
            place = place.checked_add(distance).filter(|p| *p >= 0).ok_or_else(bad)?;
            Run { first: next, place: u64::try_from(place).ok(), len }
        };
        next = next.checked_add(len).ok_or_else(bad)?;
        all.push(run);
        at += 1 + len_width + place_width;
    }
}

/// A signed number of up to eight bytes, the lowest first.
fn number(bytes: &[u8]) -> i64 {
    let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
    let mut raw = [if negative { 0xff } else { 0 }; 8];
    raw[..bytes.len()].copy_from_slice(bytes);
    i64::from_le_bytes(raw)
}
