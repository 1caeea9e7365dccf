//! One request's buffers.

use smallvec::SmallVec;
use virtio_queue::DescriptorChain;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use crate::mem::Memory;
use crate::num::{index, len_u64, low16, low32};

/// A piece of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Where.
    pub at: GuestAddress,
    /// Bytes.
    pub len: u32,
}

/// Pieces of guest memory; a few are kept without an allocation.
pub type Spans = SmallVec<[Span; 2]>;

/// Bytes of a descriptor (section 2.7.5).
const DESCRIPTOR: usize = 16;
/// Longest indirect table that is read in one go; Linux makes them this long at most for a disk.
const BULK: usize = 258;
/// Another descriptor follows.
const NEXT: u16 = 1;
/// The device writes.
const WRITE: u16 = 2;

/// A chain of descriptors, copied out of the queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Number of its first descriptor, by which it is given back.
    pub head: u16,
    /// What the device may read.
    pub readable: Spans,
    /// What the device may write.
    pub writable: Spans,
}

/// Part of the request lies outside guest memory, or is shorter than it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadBuffer;

impl Chain {
    /// Walks the chain once. The queue crate ends chains that loop or leave guest memory. `table` is where the
    /// queue's descriptors are, `scratch` is kept for the next chain.
    pub fn collect(
        chain: DescriptorChain<&Memory>,
        table: GuestAddress,
        scratch: &mut Vec<u8>,
    ) -> Self {
        let head = chain.head_index();
        if let Some(all) = Chain::collect_table(chain.memory(), table, head, scratch) {
            return all;
        }
        let mut all = Chain { head: chain.head_index(), ..Chain::default() };
        for d in chain {
            all.add(Span { at: d.addr(), len: d.len() }, d.is_write_only());
        }
        all
    }

    /// A chain that is one indirect table with its descriptors one behind the other, as Linux makes them, read
    /// with one copy. `None`: some other chain, of which nothing is known yet.
    fn collect_table(
        memory: &Memory,
        table: GuestAddress,
        head: u16,
        scratch: &mut Vec<u8>,
    ) -> Option<Self> {
        let first = table.0.checked_add(u64::from(head) * len_u64(DESCRIPTOR))?;
        let first: Descriptor = memory.read_obj(GuestAddress(first)).ok()?;
        let bytes = index(first.len().into());
        let whole = first.refers_to_indirect_table()
            && bytes > 0
            && bytes.is_multiple_of(DESCRIPTOR)
            && bytes <= BULK * DESCRIPTOR;
        if !whole {
            return None;
        }
        if scratch.len() < bytes {
            scratch.resize(BULK * DESCRIPTOR, 0);
        }
        let copy = scratch.get_mut(..bytes)?;
        memory.read_slice(copy, first.addr()).ok()?;
        let mut all = Chain { head, ..Chain::default() };
        if bytes > 4 * DESCRIPTOR {
            // All but the header or the status are on one side.
            let reads = u16::from_le_bytes([copy[28], copy[29]]) & WRITE != 0;
            let side = if reads { &mut all.writable } else { &mut all.readable };
            side.reserve(bytes / DESCRIPTOR);
        }
        let mut sum = 0u32;
        for (i, d) in copy.as_chunks::<DESCRIPTOR>().0.iter().enumerate() {
            let [[at, rest], ..] = d.as_chunks::<8>().0.as_chunks::<2>().0 else { return None };
            let (at, rest) = (u64::from_le_bytes(*at), u64::from_le_bytes(*rest));
            let span = Span { at: GuestAddress(at), len: low32(rest) };
            let (flags, next) = (low16(rest >> 32), rest >> 48);
            sum = sum.checked_add(span.len)?;
            all.add(span, flags & WRITE != 0);
            match flags & !WRITE {
                0 => return Some(all),
                NEXT if next == len_u64(i) + 1 => {}
                _ => return None,
            }
        }
        None
    }

    fn add(&mut self, span: Span, written: bool) {
        let to = if written { &mut self.writable } else { &mut self.readable };
        to.push(span);
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
    ) -> impl Iterator<Item = (GuestAddress, u64)> + use<'_> {
        pieces(&self.readable, offset, len)
    }

    /// The same of the part that a transfer moves: the data of a write begin behind `header`.
    pub fn moved_pieces(
        &self,
        direction: imgcore::graph::runs::Direction,
        header: u64,
        len: u64,
    ) -> impl Iterator<Item = (GuestAddress, u64)> + use<'_> {
        match direction {
            imgcore::graph::runs::Direction::Read => pieces(&self.writable, 0, len),
            imgcore::graph::runs::Direction::Write => pieces(&self.readable, header, len),
        }
    }

    /// The same of the writable part.
    pub fn writable_pieces(
        &self,
        offset: u64,
        len: u64,
    ) -> impl Iterator<Item = (GuestAddress, u64)> {
        pieces(&self.writable, offset, len)
    }

    /// Stores the last byte that the device may write.
    pub fn write_last(&self, memory: &Memory, byte: u8) -> Result<(), BadBuffer> {
        let span = self.writable.iter().rev().find(|s| s.len > 0).ok_or(BadBuffer)?;
        let at = span.at.0.checked_add(u64::from(span.len) - 1).ok_or(BadBuffer)?;
        memory.write_slice(&[byte], GuestAddress(at)).map_err(|_| BadBuffer)
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
fn pieces(
    spans: &[Span],
    offset: u64,
    len: u64,
) -> impl Iterator<Item = (GuestAddress, u64)> + use<'_> {
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
            readable: vec![span(0x100, 3), span(0x200, 0), span(0x300, 4)].into(),
            writable: vec![span(0x400, 2), span(u64::MAX, 2)].into(),
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
        assert_eq!(c.write_last(&m, 9), Err(BadBuffer));
        let c = Chain { writable: vec![span(0x400, 2), span(0x500, 0)].into(), ..c };
        c.write_last(&m, 9).unwrap();
        assert_eq!(m.read_obj::<u8>(GuestAddress(0x401)).unwrap(), 9);
    }

    #[test]
    fn a_table_in_order_is_read_at_once_and_no_other() {
        let m = build(&MemoryConfig::simple(1 << 20, Backend::default())).unwrap();
        let put = |place: u64, at: u64, len: u32, flags: u16, next: u16| {
            m.write_obj(at, GuestAddress(place)).unwrap();
            m.write_obj(len, GuestAddress(place + 8)).unwrap();
            m.write_obj(flags, GuestAddress(place + 12)).unwrap();
            m.write_obj(next, GuestAddress(place + 14)).unwrap();
        };
        let (table, queue) = (0x2000, GuestAddress(0x1000));
        let read = || Chain::collect_table(&m, queue, 3, &mut Vec::new());
        for entries in [3u16, 8, 9, 258] {
            let len = 16 * u32::from(entries);
            put(0x1030, table, len, 4, 0);
            for i in 0..entries {
                let last = i + 1 == entries;
                let flags = u16::from(!last) | if i == 0 { 0 } else { 2 };
                put(table + 16 * u64::from(i), 0x8000 + u64::from(i), u32::from(i), flags, i + 1);
            }
            let all = read().unwrap();
            assert_eq!((all.head, all.readable.len()), (3, 1));
            let spans: Vec<(u64, u32)> = all.writable.iter().map(|s| (s.at.0, s.len)).collect();
            let same: Vec<(u64, u32)> =
                (1..entries).map(|i| (0x8000 + u64::from(i), i.into())).collect();
            assert_eq!(spans, same);
        }
        // Out of order, circular, nested, endless, too long, of odd length, outside memory, no table.
        let second = table + 16;
        for (place, at, len, flags, next) in [
            (second, 0x8000, 1, 1, 5),
            (second, 0x8000, 1, 1, 0),
            (second, 0x8000, 16, 4, 2),
            (second, 0x8000, u32::MAX, 3, 2),
            (table + 16 * 257, 0, 1, 3, 258),
            (0x1030, table, 16 * 259, 4, 0),
            (0x1030, table, 16 * 3 + 1, 4, 0),
            (0x1030, table, 0, 4, 0),
            (0x1030, u64::MAX - 8, 48, 4, 0),
            (0x1030, table, 48, 0, 0),
        ] {
            let mut old = [0; 16];
            m.read_slice(&mut old, GuestAddress(place)).unwrap();
            put(place, at, len, flags, next);
            assert_eq!(read(), None, "{place:#x} {at:#x} {len} {flags} {next}");
            m.write_slice(&old, GuestAddress(place)).unwrap();
        }
        assert!(read().is_some());
    }
}
