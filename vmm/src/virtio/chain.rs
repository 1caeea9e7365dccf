//! One request's buffers.

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress};

use crate::mem::Memory;
use crate::num::{index, len_u64};

/// A piece of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Where.
    pub at: GuestAddress,
    /// Bytes.
    pub len: u32,
}

/// A chain of descriptors, copied out of the queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Number of its first descriptor, by which it is given back.
    pub head: u16,
    /// What the device may read.
    pub readable: Vec<Span>,
    /// What the device may write.
    pub writable: Vec<Span>,
}

/// Part of the request lies outside guest memory, or is shorter than it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadBuffer;

impl Chain {
    /// Walks the chain once. The queue crate ends chains that loop or leave guest memory.
    pub fn collect(chain: DescriptorChain<&Memory>) -> Self {
        let mut all = Chain { head: chain.head_index(), ..Chain::default() };
        for d in chain {
            let span = Span { at: d.addr(), len: d.len() };
            if d.is_write_only() {
                all.writable.push(span);
            } else {
                all.readable.push(span);
            }
        }
        all
    }

    /// Bytes that the device may read.
    pub fn readable_len(&self) -> u64 {
        total(&self.readable)
    }

    /// Bytes that the device may write.
    pub fn writable_len(&self) -> u64 {
        total(&self.writable)
    }

    /// The places in guest memory that hold `len` bytes of the readable part from `offset` on.
    pub fn readable_pieces(
        &self,
        offset: u64,
        len: u64,
    ) -> impl Iterator<Item = (GuestAddress, u64)> {
        pieces(&self.readable, offset, len)
    }

    /// The same of the writable part.
    pub fn writable_pieces(
        &self,
        offset: u64,
        len: u64,
    ) -> impl Iterator<Item = (GuestAddress, u64)> {
        pieces(&self.writable, offset, len)
    }

    /// Copies from the readable part, `offset` bytes in.
    pub fn read(&self, memory: &Memory, offset: u64, buf: &mut [u8]) -> Result<(), BadBuffer> {
        let mut done = 0;
        for (at, len) in pieces(&self.readable, offset, len_u64(buf.len())) {
            let end = done + index(len);
            memory.read_slice(&mut buf[done..end], at).map_err(|_| BadBuffer)?;
            done = end;
        }
        if done == buf.len() { Ok(()) } else { Err(BadBuffer) }
    }

    /// Copies into the writable part, `offset` bytes in.
    pub fn write(&self, memory: &Memory, offset: u64, buf: &[u8]) -> Result<(), BadBuffer> {
        let mut done = 0;
        for (at, len) in pieces(&self.writable, offset, len_u64(buf.len())) {
            let end = done + index(len);
            memory.write_slice(&buf[done..end], at).map_err(|_| BadBuffer)?;
            done = end;
        }
        if done == buf.len() { Ok(()) } else { Err(BadBuffer) }
    }
}

fn total(spans: &[Span]) -> u64 {
    spans.iter().map(|s| u64::from(s.len)).sum()
}

/// The pieces of `spans` that hold bytes `offset..offset + len`.
fn pieces(spans: &[Span], offset: u64, len: u64) -> impl Iterator<Item = (GuestAddress, u64)> {
    let mut start: u64 = 0;
    let end = offset.saturating_add(len);
    spans.iter().filter_map(move |s| {
        let (from, to) = (start.max(offset), (start + u64::from(s.len)).min(end));
        let inside = from.wrapping_sub(start);
        start += u64::from(s.len);
        let at = s.at.0.checked_add(inside)?;
        (from < to).then(|| (GuestAddress(at), to - from))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::{Backend, MemoryConfig, build};

    #[test]
    fn bytes_are_found_across_pieces() {
        let m = build(&MemoryConfig::simple(1 << 20, Backend::default())).unwrap();
        let span = |at, len| Span { at: GuestAddress(at), len };
        let c = Chain {
            head: 0,
            readable: vec![span(0x100, 3), span(0x200, 0), span(0x300, 4)],
            writable: vec![span(0x400, 2), span(u64::MAX, 2)],
        };
        m.write_slice(b"abc", GuestAddress(0x100)).unwrap();
        m.write_slice(b"defg", GuestAddress(0x300)).unwrap();
        let mut b = [0; 4];
        c.read(&m, 2, &mut b).unwrap();
        assert_eq!(&b, b"cdef");
        assert_eq!(c.read(&m, 4, &mut b), Err(BadBuffer));
        assert_eq!(c.read(&m, u64::MAX, &mut b), Err(BadBuffer));
        c.write(&m, 1, b"x").unwrap();
        assert_eq!(c.write(&m, 1, b"xy"), Err(BadBuffer));
        assert_eq!((c.readable_len(), c.writable_len()), (7, 4));
    }
}
