//! Disks that are packed with gzip, or cut into pieces: they are put together in a file without a name in
//! the output folder, and converted from there.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::super::Job;
use super::super::stream::{Spooled, Unpack, spool};
use super::bundle::{Bundle, Place};
use crate::Result;
use crate::graph::gate::Policy;

/// Pieces of one disk.
const MAX_PIECES: usize = 100_000;

/// A disk in pieces.
pub(super) struct Pieces<'a> {
    pub bundle: &'a Bundle,
    pub policy: &'a Policy,
    pub reference: &'a str,
}

/// Puts a disk together.
///
/// # Errors
/// When it cannot be read, does not unpack, or does not fit.
pub(super) fn unpack(
    place: &Place,
    pieces: Option<&Pieces<'_>>,
    folder: &str,
    job: &Job<'_>,
) -> Result<Spooled> {
    let first = place.open()?;
    match pieces {
        None => spool(first, Unpack::AsItBegins, Path::new(folder), job),
        Some(pieces) => spool(
            Chained { pieces, at: 0, now: Some(first) },
            Unpack::AsItBegins,
            Path::new(folder),
            job,
        ),
    }
}

/// The pieces one after the other, until there is no next one.
struct Chained<'a> {
    pieces: &'a Pieces<'a>,
    at: usize,
    now: Option<std::io::Take<File>>,
}

impl Read for Chained<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        while let Some(now) = &mut self.now {
            let len = now.read(buf)?;
            if len > 0 || buf.is_empty() {
                return Ok(len);
            }
            self.at += 1;
            let name = format!("{}.{:09}", self.pieces.reference, self.at);
            let next = self.pieces.bundle.find(&name, self.pieces.policy);
            let next = next.ok().filter(|p| p.window.is_some() || Path::new(&p.path).exists());
            self.now = match next {
                Some(place) if self.at < MAX_PIECES => {
                    Some(place.open().map_err(|e| std::io::Error::other(e.report()))?)
                }
                _ => None,
            };
        }
        Ok(0)
    }
}
