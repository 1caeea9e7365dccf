//! Requests of one connection (`doc/proto.md`, "Transmission").
//!
//! One thread reads requests; a few others carry them out and answer, in any order. The payload of all
//! requests that are being worked on together is bounded; the reader waits when there is no room.

use std::io::{self, BufReader, Read};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Condvar, Mutex, PoisonError};

use super::Export;
use super::negotiate::Agreed;
use crate::format::ZeroSpace;
use crate::nbd::*;
use crate::num::small;
use crate::storage::nbd::stream::Stream;
use crate::storage::zero::is_zero;
use crate::{Error, Result};

/// Threads of a connection that carry out requests.
const WORKERS: usize = 8;
/// Bytes of payload of a connection in memory; two of the largest requests.
const BUDGET: u32 = 2 * DEFAULT_MAX_BLOCK;

/// A piece of an answer: its type, what comes before the bytes, the bytes. A simple reply has the bytes
/// alone.
type Chunk = (u16, Vec<u8>, Vec<u8>);

/// A request, with the bytes to be written.
struct Request {
    command: u16,
    flags: u16,
    cookie: u64,
    offset: u64,
    len: u32,
    payload: Vec<u8>,
    /// Bytes of the budget.
    cost: u32,
}

struct Transmission<'a> {
    export: &'a Export<'a>,
    stream: &'a Stream,
    agreed: &'a Agreed,
    answering: Mutex<()>,
    free: Mutex<u32>,
    freed: Condvar,
}

/// Serves one client until it leaves, or breaks the protocol.
pub(super) fn transmit(export: &Export<'_>, stream: &Stream, agreed: &Agreed) {
    let (answering, free, freed) = (Mutex::new(()), Mutex::new(BUDGET), Condvar::new());
    let transmission = Transmission { export, stream, agreed, answering, free, freed };
    let (sender, receiver) = sync_channel(WORKERS);
    let receiver = Mutex::new(receiver);
    std::thread::scope(|scope| {
        let mut workers = 0;
        for _ in 0..WORKERS {
            let work = || transmission.work(&receiver);
            workers += usize::from(std::thread::Builder::new().spawn_scoped(scope, work).is_ok());
        }
        let mut input = BufReader::with_capacity(16 << 10, stream);
        // Without a worker nobody would answer.
        if workers > 0 {
            while let Ok(Some(request)) = transmission.next(&mut input) {
                if sender.send(request).is_err() {
                    break;
                }
            }
        }
        drop(sender);
    });
}

impl Transmission<'_> {
    /// Reads a request; `None` for the client's farewell.
    fn next(&self, input: &mut impl Read) -> io::Result<Option<Request>> {
        let mut head = [0; 28];
        input.read_exact(&mut head)?;
        let number = |at: usize, n: usize| {
            head[at..at + n].iter().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte))
        };
        let short = |at: usize| u16::try_from(number(at, 2)).unwrap_or(0);
        let len = u32::try_from(number(24, 4)).unwrap_or(0);
        let command = short(6);
        let too_long = command == CMD_WRITE && len > DEFAULT_MAX_BLOCK;
        if number(0, 4) != u64::from(REQUEST_MAGIC) || too_long {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if command == CMD_DISC {
            return Ok(None);
        }
        let cost = match command {
            CMD_READ | CMD_WRITE if len <= DEFAULT_MAX_BLOCK => len,
            _ => 0,
        };
        self.reserve(cost);
        let mut payload = vec![0; if command == CMD_WRITE { small(len.into()) } else { 0 }];
        input.read_exact(&mut payload)?;
        let (cookie, offset) = (number(8, 8), number(16, 8));
        Ok(Some(Request { command, flags: short(4), cookie, offset, len, payload, cost }))
    }

    fn reserve(&self, cost: u32) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        while *free < cost {
            free = self.freed.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
        *free -= cost;
    }

    fn release(&self, cost: u32) {
        *self.free.lock().unwrap_or_else(PoisonError::into_inner) += cost;
        self.freed.notify_all();
    }

    fn work(&self, requests: &Mutex<Receiver<Request>>) {
        loop {
            let next = requests.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(request) = next else { return };
            let sent = self.answer(&request);
            self.release(request.cost);
            if sent.is_err() {
                // The reader finds the connection closed and ends this loop.
                self.stream.shutdown();
            }
        }
    }

    fn answer(&self, request: &Request) -> io::Result<()> {
        let in_chunks =
            self.agreed.structured && matches!(request.command, CMD_READ | CMD_BLOCK_STATUS);
        let result = self.carry_out(request);
        let error =
            result.as_ref().err().map_or(0, |e| wire_errno(e.raw_errno().unwrap_or(libc::EIO)));
        match result {
            Ok(chunks) if in_chunks => {
                let last = chunks.len().saturating_sub(1);
                for (index, (kind, head, body)) in chunks.iter().enumerate() {
                    let flags = if index == last { REPLY_FLAG_DONE } else { 0 };
                    self.chunk(request, flags, *kind, head, body)?;
                }
                Ok(())
            }
            Err(e) if in_chunks => {
                let text = printable(e.report().as_bytes());
                let text = text.as_bytes();
                let mut head = error.to_be_bytes().to_vec();
                head.extend_from_slice(&u16::try_from(text.len()).unwrap_or(0).to_be_bytes());
                self.chunk(request, REPLY_FLAG_DONE, REPLY_ERROR, &head, text)
            }
            result => {
                let mut head = SIMPLE_MAGIC.to_be_bytes().to_vec();
                head.extend_from_slice(&error.to_be_bytes());
                head.extend_from_slice(&request.cookie.to_be_bytes());
                let body = result.ok().and_then(|mut chunks| chunks.pop()).map(|chunk| chunk.2);
                self.send(&head, &body.unwrap_or_default())
            }
        }
    }

    fn send(&self, head: &[u8], body: &[u8]) -> io::Result<()> {
        let _turn = self.answering.lock().unwrap_or_else(PoisonError::into_inner);
        self.stream.send(head, body)
    }

    fn chunk(
        &self,
        r: &Request,
        flags: u16,
        kind: u16,
        head: &[u8],
        body: &[u8],
    ) -> io::Result<()> {
        let len = u32::try_from(head.len() + body.len()).unwrap_or(0);
        let mut all = STRUCTURED_MAGIC.to_be_bytes().to_vec();
        all.extend_from_slice(&flags.to_be_bytes());
        all.extend_from_slice(&kind.to_be_bytes());
        all.extend_from_slice(&r.cookie.to_be_bytes());
        all.extend_from_slice(&len.to_be_bytes());
        all.extend_from_slice(head);
        self.send(&all, body)
    }

    /// Does what was asked for.
    fn carry_out(&self, r: &Request) -> Result<Vec<Chunk>> {
        let node = self.export.node;
        let known = match r.command {
            CMD_READ => CMD_FLAG_DF | CMD_FLAG_FUA,
            CMD_WRITE | CMD_TRIM => CMD_FLAG_FUA,
            CMD_WRITE_ZEROES => CMD_FLAG_FUA | CMD_FLAG_NO_HOLE | CMD_FLAG_FAST_ZERO,
            CMD_BLOCK_STATUS => CMD_FLAG_REQ_ONE | CMD_FLAG_FUA,
            CMD_FLUSH => CMD_FLAG_FUA,
            _ => return Err(Error::errno(libc::EINVAL).context("unknown request")),
        };
        if r.flags & !known != 0 {
            return Err(Error::errno(libc::EINVAL).context("unknown flags of the request"));
        }
        let changes = matches!(r.command, CMD_WRITE | CMD_TRIM | CMD_WRITE_ZEROES);
        if changes && !node.writable() {
            return Err(Error::errno(libc::EPERM));
        }
        let end = r.offset.checked_add(r.len.into());
        if r.command != CMD_FLUSH && end.is_none_or(|end| end > node.virtual_size()) {
            let full = matches!(r.command, CMD_WRITE | CMD_WRITE_ZEROES);
            let errno = if full { libc::ENOSPC } else { libc::EINVAL };
            return Err(Error::errno(errno).context("request beyond the end of the export"));
        }
        match r.command {
            CMD_READ => return self.read(r),
            CMD_WRITE => node.write(r.offset, &r.payload)?,
            CMD_TRIM => node.discard(r.offset, r.len.into())?,
            CMD_WRITE_ZEROES => {
                let keep = r.flags & CMD_FLAG_NO_HOLE != 0;
                let space = if keep { ZeroSpace::Keep } else { ZeroSpace::Unmap };
                let quick = r.flags & CMD_FLAG_FAST_ZERO != 0;
                if quick && !node.zeroes_quickly(r.offset, r.len.into(), space) {
                    return Err(Error::errno(libc::EOPNOTSUPP).context("zeroes would be written"));
                }
                node.write_zeroes(r.offset, r.len.into(), space)?;
            }
            CMD_BLOCK_STATUS => return self.status(r),
            _ => node.flush()?,
        }
        if changes && r.flags & CMD_FLAG_FUA != 0 {
            node.flush()?;
        }
        Ok(Vec::new())
    }

    fn read(&self, r: &Request) -> Result<Vec<Chunk>> {
        if r.len > DEFAULT_MAX_BLOCK {
            return Err(Error::errno(libc::EINVAL).context("request longer than agreed upon"));
        }
        let mut buf = vec![0; small(r.len.into())];
        self.export.node.read(r.offset, &mut buf)?;
        let mut head = r.offset.to_be_bytes().to_vec();
        if self.agreed.structured && buf.is_empty() {
            return Ok(vec![(REPLY_NONE, Vec::new(), Vec::new())]);
        }
        if self.agreed.structured && is_zero(&buf) {
            head.extend_from_slice(&r.len.to_be_bytes());
            return Ok(vec![(REPLY_OFFSET_HOLE, head, Vec::new())]);
        }
        Ok(vec![(REPLY_OFFSET_DATA, head, buf)])
    }

    fn status(&self, r: &Request) -> Result<Vec<Chunk>> {
        if r.len == 0 || self.agreed.contexts.is_empty() {
            return Err(Error::errno(libc::EINVAL).context("status of nothing"));
        }
        let one = r.flags & CMD_FLAG_REQ_ONE != 0;
        let mut chunks = Vec::new();
        for &context in &self.agreed.contexts {
            let (at, len) = (r.offset, r.len.into());
            let extents = self.export.contexts.extents(self.export.node, context, at, len, one)?;
            let mut body = Vec::with_capacity(extents.len() * 8);
            for (len, flags) in extents {
                body.extend_from_slice(&len.to_be_bytes());
                body.extend_from_slice(&flags.to_be_bytes());
            }
            chunks.push((REPLY_BLOCK_STATUS, context.id().to_be_bytes().to_vec(), body));
        }
        Ok(chunks)
    }
}
