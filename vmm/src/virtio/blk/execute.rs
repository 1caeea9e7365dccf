//! Carrying requests out.

use std::sync::Arc;

use imgcore::graph::runs::Direction;

use super::BlkConfig;
use super::batch::{Group, HEADER, Item, Transfer};
use super::request::{Geometry, Malformed, Request, Segment, parse};
use crate::Result;
use crate::block::config::WriteCache;
use crate::block::disk::{Outcome, Started};
use crate::block::pool::Scratch;
use crate::block::stats::Op;
use crate::block::vector::GuestPieces;
use crate::block::{BlockBackend, Direct, Disk, Unmap};
use crate::mem::Memory;
use crate::num::{index, len_u64, low32};
use crate::virtio::{Broken, Chain};

const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

/// Carries requests out; used by several threads at once.
pub struct Executor {
    disk: Arc<Disk>,
    id: [u8; 20],
    geometry: Geometry,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// Its status is written; so many bytes were written to the guest.
    Done(u32),
    /// To be done again when the machine goes on; nothing was written to the guest that matters.
    Held,
}

/// A request that was carried out: status, and bytes written to the guest without it.
#[derive(Clone, Copy)]
struct Done(u8, u64);

/// What the guest is told of an outcome; `None`: nothing yet.
fn answer(outcome: Outcome, written: u64) -> Option<Done> {
    match outcome {
        Outcome::Done => Some(Done(OK, written)),
        Outcome::Failed => Some(Done(IO_ERROR, 0)),
        Outcome::Hold => None,
    }
}

impl Executor {
    /// Over a disk.
    pub fn new(disk: Arc<Disk>, config: &BlkConfig) -> Self {
        let mut id = [0; 20];
        let n = config.serial.len().min(id.len());
        id[..n].copy_from_slice(&config.serial.as_bytes()[..n]);
        let block = u64::from(config.logical_block);
        let geometry = Geometry {
            len: disk.len() / block * block,
            block,
            max_discard: config.max_discard.into(),
            max_zeroes: config.max_zeroes.into(),
        };
        Executor { disk, id, geometry }
    }

    /// The disk.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Reads what a request asks for.
    pub fn take_apart(&self, memory: &Memory, chain: Chain) -> Item {
        let request = parse(memory, &chain, &self.geometry);
        Item { chain, request }
    }

    /// Does all of a request.
    pub fn serve(
        &self,
        memory: &Memory,
        item: &Item,
        scratch: &mut Scratch,
    ) -> std::result::Result<Served, Broken> {
        let done = match &item.request {
            Ok(request) => self.execute(memory, &item.chain, request, scratch),
            Err(Malformed::NoStatus) => {
                return Err(Broken("a block request has no room for its status".into()));
            }
            Err(Malformed::Error) => Some(Done(IO_ERROR, 0)),
            Err(Malformed::Unsupported) => Some(Done(UNSUPPORTED, 0)),
        };
        tell(memory, &item.chain, done)
    }

    /// Reads all of a group if its bytes are at hand. `None`: that needs somebody who waits.
    pub fn serve_ready(
        &self,
        memory: &Memory,
        group: &Group,
    ) -> Option<Vec<std::result::Result<Served, Broken>>> {
        let Transfer { direction: Direction::Read, at, .. } = group.transfer()? else {
            return None;
        };
        if self.disk.is_limited() {
            return None;
        }
        let started = self.begin(&group.items);
        let pieces = group.memory(memory)?;
        let read = self.disk.backend().read_ready(at, &pieces).ok()?;
        (read == Direct::Done).then(|| self.conclude_all(memory, group, &started))
    }

    fn conclude_all(
        &self,
        memory: &Memory,
        group: &Group,
        started: &[Option<Started>],
    ) -> Vec<std::result::Result<Served, Broken>> {
        let pairs = group.items.iter().zip(started);
        pairs.map(|(item, s)| self.conclude(memory, item, s.as_ref(), Ok(()))).collect()
    }

    /// Does all of a group of neighbours with one call. `None`: each has to be done by itself.
    pub fn serve_together(
        &self,
        memory: &Memory,
        group: &Group,
    ) -> Option<Vec<std::result::Result<Served, Broken>>> {
        let Transfer { direction, at, .. } = group.transfer()?;
        let backend = self.disk.backend();
        if group.items.len() < 2
            || self.disk.is_limited()
            || (direction == Direction::Write && (backend.read_only() || self.is_durable()))
        {
            return None;
        }
        let started = self.begin(&group.items);
        let pieces = group.memory(memory)?;
        let moved = match direction {
            Direction::Read => backend.read_direct(at, &pieces),
            Direction::Write => backend.write_direct(at, &pieces),
        };
        // What went wrong is found out for each of them.
        if moved.ok()? != Direct::Done {
            return None;
        }
        // The guest has turned its cache off meanwhile, and counts on what comes back from now on.
        if direction == Direction::Write && self.is_durable() {
            self.disk.flush().ok()?;
        }
        Some(self.conclude_all(memory, group, &started))
    }

    /// Whether a write is to be durable before the guest hears of it.
    pub fn is_durable(&self) -> bool {
        self.disk.write_cache() == WriteCache::Writethrough
    }

    /// Requests that somebody else carries out begin now.
    pub fn begin(&self, items: &[Item]) -> Vec<Option<Started>> {
        let started = |(op, at, len)| Started::now(op, at, len);
        items.iter().map(|item| item.counted().map(started)).collect()
    }

    /// Somebody else has carried a request out, with this result.
    pub fn conclude(
        &self,
        memory: &Memory,
        item: &Item,
        started: Option<&Started>,
        result: Result<()>,
    ) -> std::result::Result<Served, Broken> {
        let outcome = match (started, &result) {
            (Some(started), _) => self.disk.finish(started, result),
            (None, Ok(())) => Outcome::Done,
            (None, Err(_)) => Outcome::Failed,
        };
        let written = match item.request {
            Ok(Request::Read { len, .. }) => len,
            _ => 0,
        };
        tell(memory, &item.chain, answer(outcome, written))
    }

    /// `None`: held.
    fn execute(
        &self,
        memory: &Memory,
        chain: &Chain,
        request: &Request,
        scratch: &mut Scratch,
    ) -> Option<Done> {
        let read_only = self.disk.read_only();
        match request {
            Request::Read { at, len } => {
                let Some(to) = GuestPieces::gather(memory, chain.writable_pieces(0, *len)) else {
                    return Some(Done(IO_ERROR, 0));
                };
                let outcome = self.disk.run(Op::Read, *at, *len, |b| {
                    read(b, memory, chain, (*at, *len), &to, scratch)
                });
                answer(outcome, *len)
            }
            Request::Write { .. } | Request::WriteZeroes(_) | Request::Discard(_) if read_only => {
                Some(Done(IO_ERROR, 0))
            }
            Request::Write { at, len } => {
                let Some(from) = GuestPieces::gather(memory, chain.readable_pieces(HEADER, *len))
                else {
                    return Some(Done(IO_ERROR, 0));
                };
                let outcome = self.disk.run(Op::Write, *at, *len, |b| {
                    write(b, memory, chain, (*at, *len), &from, scratch)
                });
                answer(outcome, 0)
            }
            Request::Flush => answer(self.disk.run(Op::Flush, 0, 0, |_| self.disk.flush()), 0),
            Request::GetId { len } => {
                let n = index(*len);
                match chain.write(memory, 0, &self.id[..n]) {
                    Ok(()) => Some(Done(OK, *len)),
                    Err(_) => Some(Done(IO_ERROR, 0)),
                }
            }
            Request::Discard(all) => self.segments(all, |b, s| b.discard(s.at, s.len)),
            Request::WriteZeroes(all) => self.segments(all, |b, s| {
                let unmap = if s.unmap { Unmap::Allowed } else { Unmap::Keep };
                b.write_zeroes(s.at, s.len, unmap)
            }),
            Request::Unknown(_) => Some(Done(UNSUPPORTED, 0)),
        }
    }

    fn segments(
        &self,
        all: &[Segment],
        work: impl Fn(&dyn BlockBackend, &Segment) -> Result<()>,
    ) -> Option<Done> {
        for s in all {
            match self.disk.run(Op::Unmap, s.at, s.len, |b| work(b, s)) {
                Outcome::Done => {}
                Outcome::Failed => return Some(Done(IO_ERROR, 0)),
                // All of it is done again: making zeroes twice does no harm.
                Outcome::Hold => return None,
            }
        }
        Some(Done(OK, 0))
    }
}

/// Writes a request's status.
fn tell(memory: &Memory, chain: &Chain, done: Option<Done>) -> std::result::Result<Served, Broken> {
    let Some(Done(status, written)) = done else { return Ok(Served::Held) };
    chain
        .write_last(memory, status)
        .map_err(|_| Broken("the status of a block request lies outside guest memory".into()))?;
    // Drivers expect the status to be covered whenever data were written in full.
    Ok(Served::Done(low32((written + 1).min(u64::from(u32::MAX)))))
}

/// A range of the disk: first byte and length.
type Range = (u64, u64);

fn bad_buffer() -> crate::Error {
    crate::Error::errno(libc::EFAULT)
}

fn read(
    backend: &dyn BlockBackend,
    memory: &Memory,
    chain: &Chain,
    (at, len): Range,
    to: &GuestPieces<'_>,
    scratch: &mut Scratch,
) -> Result<()> {
    if len == 0 || backend.read_direct(at, to)? == Direct::Done {
        return Ok(());
    }
    let mut done = 0;
    while done < len {
        let buf = scratch.buffer(index(len - done));
        backend.read(at + done, buf)?;
        chain.write(memory, done, buf).map_err(|_| bad_buffer())?;
        done += len_u64(buf.len());
    }
    Ok(())
}

fn write(
    backend: &dyn BlockBackend,
    memory: &Memory,
    chain: &Chain,
    (at, len): Range,
    from: &GuestPieces<'_>,
    scratch: &mut Scratch,
) -> Result<()> {
    if len == 0 || backend.write_direct(at, from)? == Direct::Done {
        return Ok(());
    }
    let mut done = 0;
    while done < len {
        let buf = scratch.buffer(index(len - done));
        // Data begin behind the header.
        chain.read(memory, HEADER + done, buf).map_err(|_| bad_buffer())?;
        backend.write(at + done, buf)?;
        done += len_u64(buf.len());
    }
    Ok(())
}
