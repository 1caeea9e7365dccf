//! What lies behind a guest's disk.

use std::sync::Arc;

use imgcore::format::ZeroSpace;
use imgcore::graph::Node;

use crate::Result;

/// Whether space is given back when zeroes are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmap {
    /// It stays reserved.
    Keep,
    /// It may be given back.
    Allowed,
}

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
