//! Guest ranges as runs of open files, for callers that move bytes by themselves.
//!
//! A virtual machine monitor moves data between a file and a guest's memory with one vectored call,
//! without a buffer of its own. [`Node::with_runs`] tells it where the bytes are, and keeps the
//! mapping as it is until the caller is done. Ranges that need more than moving bytes (allocation,
//! decoding, storages that are no files) are not told: they go through [`Node::read`] and
//! [`Node::write`].

use std::fs::File;

use super::Node;
use super::open_request::DetectZeroes;
use super::range_lock::Hold;
use crate::Result;
use crate::format::{Access, Mapping};
use crate::num::GuestOffset;
use crate::storage::Storage;

/// Bytes that follow each other both on the guest's disk and where they come from.
#[derive(Clone, Copy, Debug)]
pub enum Run<'a> {
    /// Stored in a file. What lies past the file's end reads as zeroes.
    File {
        /// The file.
        file: &'a File,
        /// Where in the file.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Offset, length and memory addresses must be multiples of this (`O_DIRECT`); 1 for none.
        align: u32,
    },
    /// Reads as zeroes.
    Zero {
        /// Bytes.
        len: u64,
    },
}

/// What the caller is going to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Read all of the range.
    Read,
    /// Write all of it.
    Write,
}

/// More runs than this are not worth single calls.
const MAX_RUNS: usize = 64;

impl Node {
    /// Calls `each` with the runs that make up a guest range, in guest order. `None`, with nothing
    /// called, when some part of it cannot be told as runs. Meanwhile nobody changes the mapping.
    ///
    /// # Errors
    /// When the range is not inside the disk, tables cannot be read, or `each` fails.
    pub fn with_runs<T>(
        &self,
        at: u64,
        len: u64,
        direction: Direction,
        each: impl FnOnce(&[Run<'_>]) -> Result<T>,
    ) -> Result<Option<T>> {
        self.check_range(at, len)?;
        if len == 0 {
            return Ok(None);
        }
        if direction == Direction::Write {
            if !self.writes_plainly() {
                return Ok(None);
            }
            self.image.note_write(GuestOffset(at), len)?;
        }
        let _guard = self.lock(at, len, Hold::Shared);
        let mut runs = Vec::new();
        match self.collect(at, len, direction, &mut runs)? {
            true => each(&runs).map(Some),
            false => Ok(None),
        }
    }

    /// Whether a write is nothing but moving bytes, once its place is allocated.
    pub(super) fn writes_plainly(&self) -> bool {
        self.access == Access::Write
            && !self.writethrough
            && self.detect_zeroes == DetectZeroes::Off
    }

    /// Adds the runs of a range; false when some part of it is no run.
    pub(super) fn collect<'a>(
        &'a self,
        mut at: u64,
        len: u64,
        direction: Direction,
        runs: &mut Vec<Run<'a>>,
    ) -> Result<bool> {
        let end = at + len;
        while at < end {
            if runs.len() >= MAX_RUNS {
                return Ok(false);
            }
            let extent = self.image.map(GuestOffset(at), end - at)?;
            let known = match (extent.mapping, direction) {
                (Mapping::Data { storage, offset, in_place, .. }, _)
                    if in_place || direction == Direction::Read =>
                {
                    file_run(&**self.image.storage(storage), offset.0, extent.len)
                        .map(|run| runs.push(run))
                        .is_some()
                }
                (Mapping::Zero { .. }, Direction::Read) => {
                    runs.push(Run::Zero { len: extent.len });
                    true
                }
                (Mapping::Backing, Direction::Read) => self.collect_below(at, extent.len, runs)?,
                _ => false,
            };
            if !known {
                return Ok(false);
            }
            at += extent.len;
        }
        Ok(true)
    }

    /// The file below. One that is being written has range locks of its own, and is not looked into.
    fn collect_below<'a>(&'a self, at: u64, len: u64, runs: &mut Vec<Run<'a>>) -> Result<bool> {
        let Some(below) = &self.backing else {
            runs.push(Run::Zero { len });
            return Ok(true);
        };
        if below.writable() {
            return Ok(false);
        }
        self.image.check_backing(&*below.image)?;
        let have = below.virtual_size().saturating_sub(at).min(len);
        if have > 0 && !below.collect(at, have, Direction::Read, runs)? {
            return Ok(false);
        }
        if len > have {
            runs.push(Run::Zero { len: len - have });
        }
        Ok(true)
    }
}

/// The open file that holds a range of a storage, if there is one.
fn file_run(storage: &dyn Storage, offset: u64, len: u64) -> Option<Run<'_>> {
    let align = storage.limits().request_alignment;
    if let Some(file) = storage.as_file() {
        return Some(Run::File { file, offset, len, align });
    }
    let (whole, start) = storage.whole()?;
    // A window ends where it ends, whatever its file has behind it.
    if offset.checked_add(len)? > storage.len().ok()? {
        return None;
    }
    let file = whole.as_file()?;
    Some(Run::File { file, offset: start.checked_add(offset)?, len, align })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::open::{OpenOptions, OpenRequest, open};
    use crate::graph::temporary;

    fn told(node: &Node, at: u64, len: u64, direction: Direction) -> Option<Vec<(u64, u64)>> {
        node.with_runs(at, len, direction, |runs| {
            Ok(runs
                .iter()
                .map(|r| match r {
                    Run::File { offset, len, .. } => (*offset, *len),
                    Run::Zero { len } => (u64::MAX, *len),
                })
                .collect())
        })
        .unwrap()
    }

    #[test]
    fn runs_of_a_chain() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.raw");
        std::fs::write(&path, vec![7u8; 1 << 20]).unwrap();
        let request = OpenRequest::file(path.to_string_lossy()).with_driver(Some("raw"));
        let raw = open(&request, &OpenOptions::default()).unwrap();
        assert_eq!(told(&raw, 512, 1024, Direction::Read), Some(vec![(512, 1024)]));
        assert_eq!(told(&raw, 0, 512, Direction::Write), None, "opened for reading");
        let top = temporary::overlay(dir.path(), raw).unwrap();
        assert_eq!(told(&top, 4096, 4096, Direction::Read), Some(vec![(4096, 4096)]));
        assert_eq!(told(&top, 4096, 4096, Direction::Write), None, "needs allocation");
        top.write(65_536, &[1; 512]).unwrap();
        let place = told(&top, 65_536, 512, Direction::Write).unwrap();
        assert_eq!(place.len(), 1);
        let both = told(&top, 65_536 - 512, 1024, Direction::Read).unwrap();
        assert_eq!(both, [(65_536 - 512, 512), (place[0].0, 512)]);
        top.write_zeroes(131_072, 65_536, crate::format::ZeroSpace::Unmap).unwrap();
        assert_eq!(told(&top, 131_072, 512, Direction::Read), Some(vec![(u64::MAX, 512)]));
        assert!(top.with_runs(1 << 20, 1, Direction::Read, |_| Ok(())).is_err());
    }
}
