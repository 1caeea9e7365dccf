//! Guest ranges that stay where they are while somebody else moves their bytes.
//!
//! [`Node::with_runs`] serves callers that wait for each call. Whoever hands requests to the kernel and is
//! told later (io_uring) holds the range for that long: [`Node::pin`] answers the same runs, and keeps
//! mapping and files until the answer is dropped. Nothing here waits for a range: a thread that has
//! requests at the kernel must not wait for somebody who waits for them. A range that is not free now is
//! not told, and goes through [`Node::read`] and [`Node::write`] by a thread that may wait.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use super::Node;
use super::open_request::Discard;
use super::range_lock::Hold;
use super::runs::{Direction, Run};
use crate::Result;
use crate::format::{Access, ZeroSpace};
use crate::num::{GuestOffset, round_down, round_up};
use crate::storage::ZeroMode;
use crate::storage::calls::{Call, Want};

/// As [`Run`], with a descriptor that is open for as long as the [`Pinned`] is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinnedRun {
    /// Stored in a file.
    File {
        /// Descriptor of the file.
        fd: RawFd,
        /// Where in the file.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Offset, length and memory addresses must be multiples of this; 1 for none.
        align: u32,
    },
    /// Reads as zeroes.
    Zero {
        /// Bytes.
        len: u64,
    },
}

/// What a flush, a discard or a zeroing of a whole disk in one file is for the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinnedCall {
    /// Nothing to be done.
    Nothing,
    /// `fdatasync`; an error is final, a second call would hide it.
    Sync(RawFd),
    /// `fallocate`; after an error [`Node::discard`] or [`Node::write_zeroes`] find another way.
    Fallocate {
        /// Descriptor of the file.
        fd: RawFd,
        /// `FALLOC_FL_*`.
        mode: i32,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
}

/// What is asked of [`Node::pin_call`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// [`Node::flush`].
    Flush,
    /// [`Node::discard`].
    Discard {
        /// First guest byte.
        at: u64,
        /// Bytes.
        len: u64,
    },
    /// [`Node::write_zeroes`].
    WriteZeroes {
        /// First guest byte.
        at: u64,
        /// Bytes.
        len: u64,
        /// What may become of the space.
        space: ZeroSpace,
    },
}

/// A range that is held, and the node with its open files.
#[derive(Debug)]
pub struct Pinned {
    node: Arc<Node>,
    ticket: Option<u64>,
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.node.locks.leave(ticket);
        }
    }
}

impl Node {
    fn hold(self: &Arc<Self>, at: u64, len: u64, hold: Hold) -> Option<Pinned> {
        let unit = self.image.granularity().allocation;
        let end = round_up(at.saturating_add(len), unit);
        let ticket = self.locks.try_enter(round_down(at, unit), end, hold)?;
        Some(Pinned { node: self.clone(), ticket: Some(ticket) })
    }

    /// The runs of a guest range, held. `None` when some part of it cannot be told as runs, or somebody is
    /// changing it.
    ///
    /// # Errors
    /// When the range is not inside the disk, or tables cannot be read.
    pub fn pin(
        self: &Arc<Self>,
        at: u64,
        len: u64,
        direction: Direction,
    ) -> Result<Option<(Pinned, Vec<PinnedRun>)>> {
        self.check_range(at, len)?;
        if len == 0 || (direction == Direction::Write && !self.writes_plainly()) {
            return Ok(None);
        }
        if direction == Direction::Write {
            self.image.note_write(GuestOffset(at), len)?;
        }
        let Some(pinned) = self.hold(at, len, Hold::Shared) else { return Ok(None) };
        let mut runs = Vec::new();
        if !self.collect(at, len, direction, &mut runs)? {
            return Ok(None);
        }
        let runs = runs
            .iter()
            .map(|run| match *run {
                Run::File { file, offset, len, align } => {
                    PinnedRun::File { fd: file.as_raw_fd(), offset, len, align }
                }
                Run::Zero { len } => PinnedRun::Zero { len },
            })
            .collect();
        Ok(Some((pinned, runs)))
    }

    /// Whether [`Node::flush`] is a call on one file, so that a write is durable when the file says so.
    pub fn flushes_one_file(&self) -> bool {
        self.image.plain().is_some_and(|s| s.as_call(Want::Flush).is_some())
    }

    /// The one call that does a job, with the range held. `None` when it takes more, or somebody is
    /// using the range.
    ///
    /// # Errors
    /// When the range is not inside the disk.
    pub fn pin_call(self: &Arc<Self>, job: Job) -> Result<Option<(Pinned, PinnedCall)>> {
        let Some(storage) = self.image.plain() else { return Ok(None) };
        if self.access == Access::Read {
            let whole = Pinned { node: self.clone(), ticket: None };
            return Ok((job == Job::Flush).then_some((whole, PinnedCall::Nothing)));
        }
        let (range, want) = match job {
            Job::Flush => (None, Want::Flush),
            Job::Discard { at, len } if self.discard != Some(Discard::Ignore) => {
                (Some((at, len)), Want::Discard { offset: at, len })
            }
            Job::WriteZeroes { at, len, space } => {
                let unmap = space == ZeroSpace::Unmap && self.discard != Some(Discard::Ignore);
                let mode = if unmap { ZeroMode::MayUnmap } else { ZeroMode::KeepAllocated };
                (Some((at, len)), Want::WriteZeroes { offset: at, len, mode })
            }
            Job::Discard { .. } => return Ok(None),
        };
        let mut pinned = Pinned { node: self.clone(), ticket: None };
        if let Some((at, len)) = range {
            self.check_range(at, len)?;
            if self.writethrough {
                return Ok(None);
            }
            self.image.note_write(GuestOffset(at), len)?;
            match self.hold(at, len, Hold::Exclusive) {
                Some(held) => pinned = held,
                None => return Ok(None),
            }
        }
        let call = match storage.as_call(want) {
            None => return Ok(None),
            Some(Call::Nothing) => PinnedCall::Nothing,
            Some(Call::Sync(file)) => PinnedCall::Sync(file.as_raw_fd()),
            Some(Call::Fallocate { file, mode, offset, len }) => {
                PinnedCall::Fallocate { fd: file.as_raw_fd(), mode, offset, len }
            }
        };
        Ok(Some((pinned, call)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::open::{OpenOptions, OpenRequest, open};
    use crate::graph::temporary;

    #[test]
    fn what_is_pinned_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.raw");
        std::fs::write(&path, vec![7u8; 1 << 20]).unwrap();
        let request = OpenRequest::file(path.to_string_lossy()).with_driver(Some("raw"));
        let raw = open(&request, &OpenOptions::default().writable()).unwrap();
        let fd = raw.image().plain().unwrap().as_file().unwrap().as_raw_fd();
        let (held, runs) = raw.pin(512, 1024, Direction::Write).unwrap().unwrap();
        assert_eq!(runs, [PinnedRun::File { fd, offset: 512, len: 1024, align: 1 }]);
        let zero = |at| Job::WriteZeroes { at, len: 512, space: ZeroSpace::Keep };
        assert!(raw.pin_call(zero(1024)).unwrap().is_none(), "in use");
        let (other, call) = raw.pin_call(zero(4096)).unwrap().unwrap();
        let PinnedCall::Fallocate { mode, offset: 4096, len: 512, .. } = call else {
            panic!("{call:?}")
        };
        assert_eq!(mode, libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE);
        assert!(raw.pin(4096, 512, Direction::Read).unwrap().is_none(), "being zeroed");
        assert!(raw.pin(1024, 512, Direction::Read).unwrap().is_some(), "readers share");
        drop((held, other));
        assert!(raw.pin_call(zero(1024)).unwrap().is_some());
        assert_eq!(raw.pin_call(Job::Flush).unwrap().unwrap().1, PinnedCall::Sync(fd));
        let beyond = Job::Discard { at: 1 << 20, len: 512 };
        assert!(raw.pin_call(beyond).is_err());
        assert!(raw.flushes_one_file());
        // An overlay's tables are more than one call, its data are not.
        let top = temporary::overlay(dir.path(), raw).unwrap();
        assert!(top.pin_call(Job::Flush).unwrap().is_none() && !top.flushes_one_file());
        assert!(top.pin(0, 512, Direction::Write).unwrap().is_none(), "needs allocation");
        top.write(0, &[1; 512]).unwrap();
        assert!(top.pin(0, 512, Direction::Write).unwrap().is_some());
        assert!(top.pin(1 << 20, 1, Direction::Read).is_err());
    }
}
