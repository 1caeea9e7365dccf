//! What lies behind a guest's disks.
//!
//! * [`config`]: plain data: one disk as the command line describes it.
//! * [`open`](mod@open): from plain data to an opened image.
//! * [`image`]: the image as a [`BlockBackend`], and what may be done with it while the guest runs.
//! * [`remote`]: images that are on servers.
//! * [`disk`]: what a device talks to: limits, figures and the error policy around a back end.
//! * [`throttle`]: limits on bytes and requests a second.
//! * [`stats`]: figures for `info blockstats`.
//! * [`vector`]: moving bytes between open files and guest memory without a buffer.
//! * [`pool`]: the threads that carry requests out beside a queue's own.
//! * [`ring`]: requests to the kernel in batches (io_uring).
//!
//! Lock order: an image's chain lock, then what is inside imgcore. Nothing here is held while a
//! device's lock is being waited for.
//!
//! # Names inside images
//!
//! A name that the user wrote is opened; backing files and extents that images name are opened too, as
//! QEMU does it, because that is how chains are made. A guest cannot change these names: it writes guest
//! data, never headers, with one exception that is closed: the first bytes of a disk whose format was
//! *guessed* to be raw (see [`image`]). The sandbox confines the process to the files that were opened.

pub mod config;
pub mod disk;
pub mod image;
pub mod open;
pub mod pool;
pub mod remote;
pub mod ring;
pub mod stats;
pub mod throttle;
pub mod vector;

use std::sync::Arc;

use imgcore::format::ZeroSpace;
use imgcore::graph::Node;
use imgcore::graph::pin::{Job, PinnedCall, PinnedRun};
use imgcore::graph::runs::Direction;

pub use config::Drive;
pub use disk::Disk;

use crate::Result;
use vector::{GuestPieces, Patience};

/// Whether space is given back when zeroes are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmap {
    /// It stays reserved.
    Keep,
    /// It may be given back.
    Allowed,
}

/// Whether a request was carried out by a way that not all can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direct {
    /// It was.
    Done,
    /// Nothing was done: the caller uses a buffer.
    Impossible,
}

/// Keeps files open and mappings as they are.
pub type Held = Box<dyn Send>;

/// A disk's bytes. Called from several threads; every call is complete when it returns.
pub trait BlockBackend: Send + Sync {
    /// Bytes in all.
    fn len(&self) -> u64;
    /// True for a disk without bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Whether writing is refused.
    fn read_only(&self) -> bool;
    /// Fills `buf`.
    fn read(&self, at: u64, buf: &mut [u8]) -> Result<()>;
    /// Stores `buf`.
    fn write(&self, at: u64, buf: &[u8]) -> Result<()>;
    /// Fills guest memory without a buffer, where that is possible.
    fn read_direct(&self, _at: u64, _to: &GuestPieces<'_>) -> Result<Direct> {
        Ok(Direct::Impossible)
    }
    /// The same when the bytes are at hand, without waiting for a disk.
    fn read_ready(&self, _at: u64, _to: &GuestPieces<'_>) -> Result<Direct> {
        Ok(Direct::Impossible)
    }
    /// Stores guest memory without a buffer, where that is possible.
    fn write_direct(&self, _at: u64, _from: &GuestPieces<'_>) -> Result<Direct> {
        Ok(Direct::Impossible)
    }
    /// Where these bytes are, held until the answer is dropped, for somebody who moves them without
    /// waiting. `None` when that takes more, or others are at them: [`BlockBackend::read`] and
    /// [`BlockBackend::write`] wait.
    fn pin(&self, _at: u64, _len: u64, _direction: Direction) -> Option<(Held, Vec<PinnedRun>)> {
        None
    }
    /// The one call that does a job, the same way.
    fn pin_call(&self, _job: Job) -> Option<(Held, PinnedCall)> {
        None
    }
    /// Whether writes go to the page cache, so that they seldom wait for a disk.
    fn is_buffered(&self) -> bool {
        false
    }
    /// Whether a write is durable when its file says so.
    fn flushes_one_file(&self) -> bool {
        false
    }
    /// Makes durable what was stored before.
    fn flush(&self) -> Result<()>;
    /// These bytes are not needed any more.
    fn discard(&self, at: u64, len: u64) -> Result<()>;
    /// These bytes become zero.
    fn write_zeroes(&self, at: u64, len: u64, unmap: Unmap) -> Result<()>;
    /// The machine ends: leave the image clean.
    fn close(&self) -> Result<()>;
}

impl BlockBackend for Arc<Node> {
    fn len(&self) -> u64 {
        self.virtual_size()
    }
    fn read_only(&self) -> bool {
        !self.writable()
    }
    fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        Node::read(self, at, buf)
    }
    fn write(&self, at: u64, buf: &[u8]) -> Result<()> {
        Node::write(self, at, buf)
    }
    fn read_direct(&self, at: u64, to: &GuestPieces<'_>) -> Result<Direct> {
        vector::read(self, at, to, Patience::Any)
    }
    fn read_ready(&self, at: u64, to: &GuestPieces<'_>) -> Result<Direct> {
        vector::read(self, at, to, Patience::None)
    }
    fn write_direct(&self, at: u64, from: &GuestPieces<'_>) -> Result<Direct> {
        vector::write(self, at, from)
    }
    fn pin(&self, at: u64, len: u64, direction: Direction) -> Option<(Held, Vec<PinnedRun>)> {
        // Errors are told by those who do it the long way.
        let (held, runs) = Node::pin(self, at, len, direction).ok()??;
        Some((Box::new(held), runs))
    }
    fn pin_call(&self, job: Job) -> Option<(Held, PinnedCall)> {
        let (held, call) = Node::pin_call(self, job).ok()??;
        Some((Box::new(held), call))
    }
    fn is_buffered(&self) -> bool {
        self.image().storages().first().is_some_and(|s| s.limits().request_alignment <= 1)
    }
    fn flushes_one_file(&self) -> bool {
        Node::flushes_one_file(self)
    }
    fn flush(&self) -> Result<()> {
        Node::flush(self)
    }
    fn discard(&self, at: u64, len: u64) -> Result<()> {
        Node::discard(self, at, len)
    }
    fn write_zeroes(&self, at: u64, len: u64, unmap: Unmap) -> Result<()> {
        let space = match unmap {
            Unmap::Keep => ZeroSpace::Keep,
            Unmap::Allowed => ZeroSpace::Unmap,
        };
        Node::write_zeroes(self, at, len, space)
    }
    fn close(&self) -> Result<()> {
        Node::close(self)
    }
}
