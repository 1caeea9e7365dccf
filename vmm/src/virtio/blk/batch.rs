//! Requests that were found on the ring together.
//!
//! A guest that reads or writes on and on often does so in requests that follow each other on the disk.
//! Neighbours of one batch are carried out as one transfer; when that fails, each is done again by itself,
//! so that only what cannot be done is told to have failed.

use imgcore::graph::runs::Direction;
use vm_memory::GuestAddress;

use super::request::{Malformed, Request};
use crate::block::stats::Op;
use crate::block::vector::GuestPieces;
use crate::mem::Memory;
use crate::num::len_u64;
use crate::virtio::Chain;

/// Bytes of a request's header.
pub const HEADER: u64 = 16;
/// Bytes that neighbours may have together; a longer request is carried out alone.
const MOST_BYTES: u64 = 1 << 20;
/// Pieces of memory that they may have together.
const MOST_PIECES: usize = 512;

/// A request with what it asks for, read once.
#[derive(Debug)]
pub struct Item {
    /// Its buffers.
    pub chain: Chain,
    /// What it asks for.
    pub request: Result<Request, Malformed>,
}

/// A range of the disk that bytes move from or to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Which way.
    pub direction: Direction,
    /// First byte.
    pub at: u64,
    /// Bytes.
    pub len: u64,
}

impl Item {
    /// What moves, if the request only moves bytes, and any.
    pub fn transfer(&self) -> Option<Transfer> {
        let (direction, at, len) = match self.request {
            Ok(Request::Read { at, len }) => (Direction::Read, at, len),
            Ok(Request::Write { at, len }) => (Direction::Write, at, len),
            _ => return None,
        };
        (len > 0).then_some(Transfer { direction, at, len })
    }

    /// As it is counted.
    pub fn counted(&self) -> Option<(Op, u64, u64)> {
        match self.request {
            Ok(Request::Read { at, len }) => Some((Op::Read, at, len)),
            Ok(Request::Write { at, len }) => Some((Op::Write, at, len)),
            Ok(Request::Flush) => Some((Op::Flush, 0, 0)),
            _ => None,
        }
    }

    /// The guest's memory that bytes move from or to.
    fn spans(&self) -> impl Iterator<Item = (GuestAddress, u64)> + use<'_> {
        let moved = self.transfer().map(|t| self.chain.moved_pieces(t.direction, HEADER, t.len));
        moved.into_iter().flatten()
    }

    fn pieces(&self) -> usize {
        self.chain.readable.len() + self.chain.writable.len()
    }
}

/// What is carried out as one: a request, or transfers that follow each other.
#[derive(Debug)]
pub struct Group {
    /// In the order of the disk; at least one.
    pub items: Vec<Item>,
    pieces: usize,
    transfer: Option<Transfer>,
}

impl Group {
    /// A request by itself.
    pub fn of(item: Item) -> Self {
        Group { pieces: item.pieces(), transfer: item.transfer(), items: vec![item] }
    }

    /// All that moves.
    pub fn transfer(&self) -> Option<Transfer> {
        self.transfer
    }

    /// The guest's memory of all of it. `None` when some of it is none.
    pub fn memory<'a>(&self, memory: &'a Memory) -> Option<GuestPieces<'a>> {
        GuestPieces::gather_many(memory, self.items.iter().flat_map(Item::spans), self.pieces)
    }

    /// Adds a request that begins where this ends; gives back one that does not.
    fn join(&mut self, item: Item) -> Option<Item> {
        let (Some(own), Some(next)) = (self.transfer, item.transfer()) else { return Some(item) };
        let len = own.len + next.len;
        let pieces = self.pieces + item.pieces();
        let fits = own.direction == next.direction
            && own.at + own.len == next.at
            && len <= MOST_BYTES
            && pieces <= MOST_PIECES;
        if !fits {
            return Some(item);
        }
        self.transfer = Some(Transfer { len, ..own });
        self.pieces = pieces;
        self.items.push(item);
        None
    }
}

/// Whether neighbours may be carried out as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merging {
    /// They are.
    On,
    /// Each counts against limits by itself.
    Off,
}

/// Puts neighbours together; their order stays.
pub fn group(items: Vec<Item>, merging: Merging) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::with_capacity(items.len());
    for item in items {
        let alone = match groups.last_mut() {
            Some(last) if merging == Merging::On => last.join(item),
            _ => Some(item),
        };
        if let Some(item) = alone {
            groups.push(Group::of(item));
        }
    }
    groups
}

/// Bytes of a group's items, each with where its own begin.
pub fn offsets(items: &[Item]) -> impl Iterator<Item = (&Item, u64, u64)> {
    let mut start = 0;
    items.iter().map(move |item| {
        let len = item.transfer().map_or(0, |t| t.len);
        let here = start;
        start += len;
        (item, here, len)
    })
}

/// Copies between a buffer for all of a group and the guest's memory.
pub fn copy(
    memory: &Memory,
    items: &[Item],
    direction: Direction,
    buffer: &mut [u8],
) -> Result<(), crate::virtio::chain::BadBuffer> {
    for (item, start, len) in offsets(items) {
        let range = crate::num::index(start)..crate::num::index(start + len);
        let part = buffer.get_mut(range).ok_or(crate::virtio::chain::BadBuffer)?;
        match direction {
            Direction::Read => item.chain.write(memory, 0, part)?,
            Direction::Write => item.chain.read(memory, HEADER, part)?,
        }
    }
    debug_assert_eq!(offsets(items).map(|o| o.2).sum::<u64>(), len_u64(buffer.len()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(request: Request) -> Item {
        Item { chain: Chain::default(), request: Ok(request) }
    }

    #[test]
    fn neighbours_go_together() {
        let read = |at, len| item(Request::Read { at, len });
        let write = |at, len| item(Request::Write { at, len });
        let items = || {
            vec![
                read(0, 512),
                read(512, 1024),
                write(1536, 512),
                read(2048, 512),
                read(4096, 512),
                item(Request::Flush),
                read(4608, MOST_BYTES),
                read(4608 + MOST_BYTES, 512),
                Item { chain: Chain::default(), request: Err(Malformed::Error) },
            ]
        };
        let groups = group(items(), Merging::On);
        let counts: Vec<usize> = groups.iter().map(|g| g.items.len()).collect();
        assert_eq!(counts, [2, 1, 1, 1, 1, 1, 1, 1]);
        let (direction, at, len) = (Direction::Read, 0, 1536);
        assert_eq!(groups[0].transfer(), Some(Transfer { direction, at, len }));
        let places: Vec<_> = offsets(&groups[0].items).map(|o| (o.1, o.2)).collect();
        assert_eq!(places, [(0, 512), (512, 1024)]);
        assert_eq!(group(items(), Merging::Off).len(), 9);
    }
}
