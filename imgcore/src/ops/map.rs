//! `map`: where the guest's bytes are.

use serde::{Deserialize, Serialize};

use super::source::{Run, Walk};
use super::{ImageArg, Job};
use crate::format::check_cancelled;
use crate::{Error, Result};

/// What to do.
#[derive(Clone, Debug, Default)]
pub struct MapOptions {
    /// The image.
    pub image: ImageArg,
    /// `-s`, bytes.
    pub start: u64,
    /// `-l`, bytes; to the end when not given.
    pub max_length: Option<u64>,
}

/// A run of guest bytes, in QEMU's field names and order (`qapi/block-core.json`, `MapEntry`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapEntry {
    /// Guest offset.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// Links from the top to the image that has it.
    pub depth: u32,
    /// Some image of the chain has it.
    pub present: bool,
    /// Reads as zeroes.
    pub zero: bool,
    /// Stored bytes.
    pub data: bool,
    /// Stored compressed.
    pub compressed: bool,
    /// Where in `filename`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// The file that has it, for the human form; qemu-img's JSON does not have it.
    #[serde(skip)]
    pub filename: Option<String>,
}

impl MapEntry {
    /// Whether `next` goes on where this ends, as the same kind.
    fn joins(&self, next: &MapEntry) -> bool {
        let kind = |e: &MapEntry| (e.depth, e.present, e.zero, e.data, e.compressed);
        self.length > 0
            && kind(self) == kind(next)
            && self.filename == next.filename
            && self.offset.map(|o| o + self.length) == next.offset
    }
}

/// Calls `each` with every run in order. The last call is also made for an empty range, with an entry
/// of length 0.
pub fn map(
    options: &MapOptions,
    job: &Job<'_>,
    each: &mut dyn FnMut(MapEntry) -> Result<()>,
) -> Result<()> {
    let node = options.image.open(job, &options.image.options(job))?;
    let walk = Walk::chain(&node);
    let size = node.virtual_size();
    let end = options.max_length.map_or(size, |l| options.start.saturating_add(l).min(size));
    let mut current = MapEntry { start: options.start, ..MapEntry::default() };
    loop {
        let at = current.start + current.length;
        if at >= end {
            break;
        }
        check_cancelled(job.watcher)?;
        let run = walk
            .run(at, end - at)
            .map_err(|e| e.context("Could not read image metadata").at_offset(at))?;
        let next = entry(&walk, at, &run);
        if current.joins(&next) {
            current.length += next.length;
        } else {
            if current.length > 0 {
                each(current)?;
            }
            current = next;
        }
    }
    each(current)
}

fn entry(walk: &Walk<'_>, at: u64, run: &Run) -> MapEntry {
    let place = if run.compressed { None } else { run.place };
    let node = walk.image(run.link);
    let filename = place.and_then(|(storage, _)| Some(node?.host_name(storage).to_owned()));
    // Where the file begins, not the part of it that the image lies in.
    let start = |storage| node.and_then(|n| n.image().storage(storage).whole()).map_or(0, |w| w.1);
    MapEntry {
        start: at,
        length: run.len,
        depth: u32::try_from(run.link).unwrap_or(u32::MAX),
        present: run.allocated,
        zero: run.is_zero(),
        data: run.stored,
        compressed: run.compressed,
        offset: place.map(|(storage, offset)| start(storage).saturating_add(offset.0)),
        filename,
    }
}

/// What the human form says of data that it cannot place.
pub fn unplaced() -> Error {
    Error::unsupported("File contains external, encrypted or compressed clusters.")
}
