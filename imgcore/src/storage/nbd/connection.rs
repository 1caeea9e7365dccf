//! One connection in its transmission phase: any number of threads have requests in flight, told apart by
//! cookies; one thread reads all replies.
//!
//! The reader believes nothing: a cookie must be that of a request that waits, a chunk must lie inside
//! of what was asked for, bytes must be covered exactly, and a reply has a bounded number of chunks.
//! Whatever breaks these rules breaks the connection, because nothing after it can be trusted; every
//! waiting and every later request then fails with the reason.
//!
//! Locks: `writer` (held while a request is sent) is never held together with `waiting`.

use std::collections::HashMap;
use std::io::{BufReader, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::handshake::{Export, Peer, connect};
use super::stream::{Stream, why};
use crate::nbd::*;
use crate::num::{len_u64, small};
use crate::{Error, ErrorKind, Result};

/// A server that sends nothing at all for so long while a request waits is taken for dead.
const SILENCE: Duration = Duration::from_secs(300);
/// Extents of a status reply; servers send far fewer.
const MAX_EXTENTS: u32 = 1 << 20;

/// A request without its payload.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub command: u16,
    pub flags: u16,
    pub offset: u64,
    pub len: u32,
}

/// What came back.
#[derive(Debug, Default)]
pub(super) struct Answer {
    /// Bytes that were read.
    pub data: Vec<u8>,
    /// Extents of `base:allocation`: length and state.
    pub extents: Vec<(u32, u32)>,
}

/// Why a request failed.
#[derive(Debug)]
pub(super) enum Failed {
    /// The server refused it; the connection is fine.
    Refused(Error),
    /// The connection is no more.
    Broken(String),
}

/// A request whose reply has not come yet.
struct Waiting {
    request: Request,
    answer: Answer,
    /// Bytes of `answer.data` that came.
    covered: u64,
    chunks: u64,
    refused: Option<Error>,
    sender: SyncSender<std::result::Result<Answer, Failed>>,
}

#[derive(Default)]
struct State {
    waiting: HashMap<u64, Waiting>,
    broken: Option<String>,
}

/// What the reader and the requests share.
struct Shared {
    stream: Stream,
    export: Export,
    state: Mutex<State>,
    /// Milliseconds after `begin` at which the last bytes came.
    heard: AtomicU64,
    begin: Instant,
}

/// A connection.
pub(super) struct Connection {
    shared: Arc<Shared>,
    writer: Mutex<()>,
    cookie: AtomicU64,
    reader: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("export", &self.shared.export).finish_non_exhaustive()
    }
}

impl Connection {
    /// Connects and negotiates.
    pub fn open(peer: &Peer) -> Result<Self> {
        let (stream, export) = connect(peer)?;
        stream.set_timeouts(None, Some(SILENCE)).map_err(|e| Error::io(&e))?;
        let shared = Arc::new(Shared {
            stream,
            export,
            state: Mutex::default(),
            heard: AtomicU64::new(0),
            begin: Instant::now(),
        });
        let of_reader = Arc::clone(&shared);
        let reader = std::thread::Builder::new()
            .name(format!("{}replies", super::THREADS))
            .spawn(move || of_reader.read_replies())
            .map_err(|e| Error::io(&e).context("Could not start a thread for NBD replies"))?;
        let cookie = AtomicU64::new(1);
        Ok(Connection { shared, writer: Mutex::new(()), cookie, reader: Some(reader) })
    }

    /// What was agreed upon.
    pub fn export(&self) -> &Export {
        &self.shared.export
    }

    /// Sends a request and waits for its reply.
    pub fn run(&self, request: Request, payload: &[u8]) -> std::result::Result<Answer, Failed> {
        let cookie = self.cookie.fetch_add(1, Ordering::Relaxed);
        let receiver = self.shared.expect(cookie, request)?;
        let mut head = [0; 28];
        head[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        head[4..6].copy_from_slice(&request.flags.to_be_bytes());
        head[6..8].copy_from_slice(&request.command.to_be_bytes());
        head[8..16].copy_from_slice(&cookie.to_be_bytes());
        head[16..24].copy_from_slice(&request.offset.to_be_bytes());
        head[24..].copy_from_slice(&request.len.to_be_bytes());
        let sent = {
            let _turn = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
            self.shared.stream.send(&head, payload)
        };
        if let Err(e) = sent {
            self.shared.fail(&why(&e));
        }
        self.shared.wait(&receiver)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // The farewell is not answered; a server that cannot take it finds the connection closed.
        let mut head = [0; 28];
        head[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        head[6..8].copy_from_slice(&CMD_DISC.to_be_bytes());
        if self.shared.state().broken.is_none() {
            let _ = self.shared.stream.set_timeouts(None, Some(Duration::from_secs(1)));
            let _ = self.shared.stream.send(&head, &[]);
            self.shared.stream.farewell();
        }
        self.shared.stream.shutdown();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a reply will come.
    fn expect(
        &self,
        cookie: u64,
        request: Request,
    ) -> std::result::Result<Receiver<std::result::Result<Answer, Failed>>, Failed> {
        let len = if request.command == CMD_READ { small(request.len.into()) } else { 0 };
        let answer = Answer { data: vec![0; len], extents: Vec::new() };
        let (sender, receiver) = sync_channel(1);
        let waiting = Waiting { request, answer, covered: 0, chunks: 0, refused: None, sender };
        let mut state = self.state();
        if let Some(reason) = &state.broken {
            return Err(Failed::Broken(reason.clone()));
        }
        state.waiting.insert(cookie, waiting);
        Ok(receiver)
    }

    fn wait(
        &self,
        receiver: &Receiver<std::result::Result<Answer, Failed>>,
    ) -> std::result::Result<Answer, Failed> {
        let begin = self.begin.elapsed();
        loop {
            match receiver.recv_timeout(SILENCE / 10) {
                Ok(result) => return result,
                Err(RecvTimeoutError::Disconnected) => {
                    let reason = self.state().broken.clone();
                    return Err(Failed::Broken(reason.unwrap_or_else(|| "it ended".to_owned())));
                }
                Err(RecvTimeoutError::Timeout) => {
                    let heard = Duration::from_millis(self.heard.load(Ordering::Relaxed));
                    if self.begin.elapsed().saturating_sub(heard.max(begin)) >= SILENCE {
                        self.fail(&format!(
                            "the server has sent nothing for {} seconds",
                            SILENCE.as_secs()
                        ));
                    }
                }
            }
        }
    }

    /// Ends the connection: every request fails.
    fn fail(&self, reason: &str) {
        let mut state = self.state();
        let reason = state.broken.get_or_insert_with(|| reason.to_owned()).clone();
        let all = std::mem::take(&mut state.waiting);
        drop(state);
        self.stream.shutdown();
        for waiting in all.into_values() {
            // A requester that is gone needs no answer.
            let _ = waiting.sender.try_send(Err(Failed::Broken(reason.clone())));
        }
    }

    fn read_replies(&self) {
        let mut input = BufReader::with_capacity(16 << 10, &self.stream);
        let reason = loop {
            match self.read_reply(&mut input) {
                Ok(()) => {
                    let now = self.begin.elapsed().as_millis();
                    self.heard.store(u64::try_from(now).unwrap_or(u64::MAX), Ordering::Relaxed);
                }
                Err(reason) => break reason,
            }
        };
        self.fail(&reason);
    }

    /// Reads one reply or chunk; an error ends the connection.
    fn read_reply(&self, input: &mut impl Read) -> std::result::Result<(), String> {
        let magic = u32::from_be_bytes(take(input)?);
        let (flags, kind, error) = match (magic, self.export.structured) {
            (SIMPLE_MAGIC, _) => (REPLY_FLAG_DONE, REPLY_NONE, u32::from_be_bytes(take(input)?)),
            (STRUCTURED_MAGIC, true) => {
                (u16::from_be_bytes(take(input)?), u16::from_be_bytes(take(input)?), 0)
            }
            (STRUCTURED_MAGIC, false) => {
                return Err("the server sent a structured reply without being asked to".to_owned());
            }
            (other, _) => return Err(format!("the server sent no reply but {other:#x}")),
        };
        let cookie = u64::from_be_bytes(take(input)?);
        let simple = magic == SIMPLE_MAGIC;
        let len = if simple { 0 } else { u32::from_be_bytes(take(input)?) };
        let mut waiting = self.state().waiting.remove(&cookie).ok_or_else(|| {
            format!("the server answered a request that was not made ({cookie:#x})")
        })?;
        let read = if simple {
            waiting.simple(error, self.export.structured, input)
        } else {
            waiting.chunk(kind, len, self.export.allocation, input)
        };
        if let Err(reason) = read {
            let _ = waiting.sender.try_send(Err(Failed::Broken(reason.clone())));
            return Err(reason);
        }
        if flags & REPLY_FLAG_DONE != 0 {
            let result = waiting.finish()?;
            let _ = waiting.sender.try_send(result);
            return Ok(());
        }
        let mut state = self.state();
        if let Some(reason) = &state.broken {
            let _ = waiting.sender.try_send(Err(Failed::Broken(reason.clone())));
            return Err(reason.clone());
        }
        state.waiting.insert(cookie, waiting);
        Ok(())
    }
}

fn take<const N: usize>(input: &mut impl Read) -> std::result::Result<[u8; N], String> {
    let mut bytes = [0; N];
    input.read_exact(&mut bytes).map_err(|e| why(&e))?;
    Ok(bytes)
}

impl Waiting {
    /// A reply in one piece: for a successful read the bytes follow.
    fn simple(
        &mut self,
        error: u32,
        structured: bool,
        input: &mut impl Read,
    ) -> std::result::Result<(), String> {
        if error != 0 {
            self.refused = Some(refusal(error, ""));
        } else if self.request.command == CMD_READ {
            if structured {
                return Err(
                    "the server answered a read with a simple reply after it had agreed to \
                            structured ones"
                        .to_owned(),
                );
            }
            input.read_exact(&mut self.answer.data).map_err(|e| why(&e))?;
            self.covered = u64::from(self.request.len);
        } else if self.request.command == CMD_BLOCK_STATUS {
            return Err("the server answered a status request without a status".to_owned());
        }
        Ok(())
    }

    fn chunk(
        &mut self,
        kind: u16,
        len: u32,
        context: Option<u32>,
        input: &mut impl Read,
    ) -> std::result::Result<(), String> {
        self.chunks += 1;
        if self.chunks > 64 + u64::from(self.request.len) / 512 {
            return Err("the server sends a reply in too many pieces".to_owned());
        }
        let wrong = |what: &str| format!("the server sent a chunk {what} ({len} bytes)");
        match kind {
            REPLY_NONE if len == 0 => Ok(()),
            REPLY_OFFSET_DATA if self.request.command == CMD_READ => {
                let len = len.checked_sub(8).ok_or_else(|| wrong("of data that is too short"))?;
                let offset = u64::from_be_bytes(take(input)?);
                let place = self.place(offset, len)?;
                input.read_exact(&mut self.answer.data[place]).map_err(|e| why(&e))
            }
            REPLY_OFFSET_HOLE if self.request.command == CMD_READ && len == 12 => {
                let offset = u64::from_be_bytes(take(input)?);
                let hole = u32::from_be_bytes(take(input)?);
                let place = self.place(offset, hole)?;
                self.answer.data[place].fill(0);
                Ok(())
            }
            REPLY_BLOCK_STATUS if self.request.command == CMD_BLOCK_STATUS => {
                let count = len.checked_sub(4).filter(|n| n % 8 == 0 && *n > 0).map(|n| n / 8);
                let count = count
                    .filter(|n| *n <= MAX_EXTENTS)
                    .ok_or_else(|| wrong("of status with a wrong length"))?;
                if Some(u32::from_be_bytes(take(input)?)) != context {
                    return Err(wrong("of status for a context that was not asked for"));
                }
                if !self.answer.extents.is_empty() {
                    return Err(wrong("of status a second time"));
                }
                for _ in 0..count {
                    let extent =
                        (u32::from_be_bytes(take(input)?), u32::from_be_bytes(take(input)?));
                    if extent.0 == 0 {
                        return Err(wrong("of status with an empty extent"));
                    }
                    self.answer.extents.push(extent);
                }
                Ok(())
            }
            kind if kind & REPLY_ERROR_BIT != 0 => {
                let rest = len.checked_sub(6).filter(|rest| *rest <= 2 * MAX_STRING);
                let rest = rest.ok_or_else(|| wrong("of error with a wrong length"))?;
                let code = u32::from_be_bytes(take(input)?);
                let text = u16::from_be_bytes(take(input)?);
                if u32::from(text) > rest {
                    return Err(wrong("of error with a wrong length"));
                }
                let mut bytes = vec![0; small(rest.into())];
                input.read_exact(&mut bytes).map_err(|e| why(&e))?;
                let text = printable(&bytes[..usize::from(text)]);
                self.refused.get_or_insert_with(|| refusal(code, &text));
                Ok(())
            }
            kind => Err(wrong(&format!("of type {kind} that does not fit the request"))),
        }
    }

    /// Where in the buffer a chunk of data goes.
    fn place(
        &mut self,
        offset: u64,
        len: u32,
    ) -> std::result::Result<std::ops::Range<usize>, String> {
        let outside = || {
            format!(
                "the server sent {len} bytes at offset {offset}, outside of what was asked for ({} \
                 bytes at {})",
                self.request.len, self.request.offset
            )
        };
        let start = offset.checked_sub(self.request.offset).ok_or_else(outside)?;
        let end = start.checked_add(len.into()).ok_or_else(outside)?;
        if len == 0 || end > u64::from(self.request.len) {
            return Err(outside());
        }
        self.covered += u64::from(len);
        if self.covered > u64::from(self.request.len) {
            return Err("the server sent some bytes twice".to_owned());
        }
        Ok(small(start)..small(end))
    }

    /// The result, when the last chunk has come.
    fn finish(&mut self) -> std::result::Result<std::result::Result<Answer, Failed>, String> {
        if let Some(error) = self.refused.take() {
            return Ok(Err(Failed::Refused(error)));
        }
        if self.covered != len_u64(self.answer.data.len()) {
            let reason = format!(
                "the server sent {} of {} bytes and said that this was all",
                self.covered, self.request.len
            );
            let _ = self.sender.try_send(Err(Failed::Broken(reason.clone())));
            return Err(reason);
        }
        if self.request.command == CMD_BLOCK_STATUS && self.answer.extents.is_empty() {
            let reason = "the server answered a status request without a status".to_owned();
            let _ = self.sender.try_send(Err(Failed::Broken(reason.clone())));
            return Err(reason);
        }
        Ok(Ok(std::mem::take(&mut self.answer)))
    }
}

/// The error for an error number of the server, and what it says about it.
fn refusal(code: u32, text: &str) -> Error {
    let errno = if code == 0 { libc::EIO } else { errno_of(code) };
    if text.is_empty() {
        return Error::errno(errno);
    }
    Error::new(ErrorKind::Io(errno), format!("{} (server reported: {text})", Error::errno(errno)))
}
