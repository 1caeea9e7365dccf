//! An export of an NBD server as a storage.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::THREADS;
use super::connection::{Answer, Connection, Failed, Request};
use super::handshake::{Export, Peer};
use super::status::StatusCache;
use crate::nbd::*;
use crate::num::{len_u64, round_down, round_up, small};
use crate::opts::nbd::NbdTarget;
use crate::opts::secret::Secrets;
use crate::storage::zero::is_zero;
use crate::storage::{FileOptions, HostExtent, HostKind, Limits, Preallocation, Storage, ZeroMode};
use crate::{Error, ErrorKind, Result};

/// Between two attempts to connect again.
const RETRY: Duration = Duration::from_millis(200);
/// More than is asked for, so that the next question needs no answer of the server.
const STATUS_AHEAD: u64 = 256 << 20;

/// Connections that are opened besides the first one.
const MORE: usize = 3;
/// Reads before they are: who looks at a header needs none.
const MANY_READS: usize = 16;

/// Connections besides the first one, for reading. Where one breaks, the first one is asked instead.
#[derive(Debug, Default)]
struct More {
    open: Mutex<Vec<Arc<Connection>>>,
    reads: AtomicUsize,
}

impl More {
    fn open(&self) -> MutexGuard<'_, Vec<Arc<Connection>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An export of an NBD server.
///
/// Any number of threads may use it at the same time; their requests are in flight together on one
/// connection, and reads on up to three more where the server says that all see the same bytes. Requests that do not fit the server's block size go through a buffer.
#[derive(Debug)]
pub struct NbdStorage {
    peer: Peer,
    name: String,
    options: FileOptions,
    export: Export,
    connection: Mutex<Arc<Connection>>,
    more: Arc<More>,
    /// Serialises read-modify-write of requests that are smaller than the server's blocks.
    bounce: Mutex<()>,
    cache: StatusCache,
}

impl NbdStorage {
    /// Connects to a server; `secrets` has the credentials that the target may name.
    ///
    /// Errors: credentials that are missing or do not fit, no connection (after `open-timeout`), an export that the server does not have or will
    /// not give for writing, and a server that breaks the protocol.
    pub fn open(target: &NbdTarget, options: FileOptions, secrets: &Secrets) -> Result<Self> {
        let peer = Peer::new(target, secrets)?;
        let connection = connect_within(&peer, target.open_timeout)?;
        let export = *connection.export();
        if options.writable && export.has(READ_ONLY) {
            return Err(Error::new(
                ErrorKind::ReadOnly,
                "request on write denied without write permission",
            )
            .hint("the NBD server offers this export for reading only"));
        }
        Ok(NbdStorage {
            peer,
            name: target.uri(),
            options,
            export,
            connection: Mutex::new(Arc::new(connection)),
            more: Arc::default(),
            bounce: Mutex::new(()),
            cache: StatusCache::default(),
        })
    }

    fn error(&self, error: Error, offset: u64) -> Error {
        error.at_path(&self.name).at_offset(offset)
    }

    fn current(&self) -> MutexGuard<'_, Arc<Connection>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection whose turn it is for this request, if it is not the first one's. Changes stay on that one: a
    /// write that was lost on one connection and repeated on another could be overtaken by itself.
    fn another(&self, request: &Request) -> Option<Arc<Connection>> {
        if request.command != CMD_READ || !self.export.has(CAN_MULTI_CONN) {
            return None;
        }
        let turn = self.more.reads.fetch_add(1, Ordering::Relaxed);
        if turn == MANY_READS {
            self.open_more();
        }
        let open = self.more.open();
        open.get(turn % (open.len() + 1)).cloned()
    }

    /// Opens further connections, without waiting: a server that takes no more of them is no error.
    fn open_more(&self) {
        let (more, peer, export) = (Arc::clone(&self.more), self.peer.clone(), self.export);
        let thread = std::thread::Builder::new().name(format!("{THREADS}more"));
        // A system that has no more threads reads slower.
        let _ = thread.spawn(move || {
            for _ in 0..MORE {
                match Connection::open(&peer) {
                    // Nobody else holds it any more: the storage was dropped.
                    Ok(new) if *new.export() == export && Arc::strong_count(&more) > 1 => {
                        more.open().push(Arc::new(new));
                    }
                    _ => return,
                }
            }
        });
    }

    /// Runs one request; where the connection breaks, again on a new one if that is wished for.
    fn run(&self, request: Request, payload: &[u8]) -> Result<Answer> {
        if let Some(connection) = self.another(&request) {
            match connection.run(request, payload) {
                Ok(answer) => return Ok(answer),
                Err(Failed::Refused(error)) => return Err(self.error(error, request.offset)),
                Err(Failed::Broken(_)) => {
                    self.more.open().retain(|c| !Arc::ptr_eq(c, &connection));
                }
            }
        }
        let mut deadline = None;
        loop {
            let connection = Arc::clone(&self.current());
            let reason = match connection.run(request, payload) {
                Ok(answer) => return Ok(answer),
                Err(Failed::Refused(error)) => return Err(self.error(error, request.offset)),
                Err(Failed::Broken(reason)) => reason,
            };
            let deadline =
                *deadline.get_or_insert_with(|| Instant::now() + self.peer.target.reconnect_delay);
            let broken = Error::new(
                ErrorKind::Io(libc::EIO),
                format!(
                    "the connection to NBD server '{}' broke: {reason}",
                    self.peer.target.address()
                ),
            );
            if self.peer.target.reconnect_delay.is_zero() || Instant::now() >= deadline {
                return Err(self.error(broken, request.offset));
            }
            self.reconnect(&connection, deadline)
                .map_err(|e| self.error(e.context(broken.message().to_owned()), request.offset))?;
        }
    }

    /// Replaces a broken connection, unless somebody else has done so already.
    fn reconnect(&self, broken: &Arc<Connection>, deadline: Instant) -> Result<()> {
        let mut current = self.current();
        if !Arc::ptr_eq(&current, broken) {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let new = connect_within(&self.peer, left)?;
        if *new.export() != self.export {
            return Err(Error::corrupt("the NBD export is another one than before"));
        }
        *current = Arc::new(new);
        Ok(())
    }

    fn min(&self) -> u64 {
        self.export.min_block.into()
    }

    /// Cuts an aligned range into requests.
    fn pieces(&self, offset: u64, len: u64) -> impl Iterator<Item = (u64, u32)> + use<> {
        let max = u64::from(self.export.max_block);
        (0..len.div_ceil(max)).map(move |i| {
            let at = i * max;
            (offset + at, u32::try_from((len - at).min(max)).unwrap_or(u32::MAX))
        })
    }

    fn aligned(&self, offset: u64, len: u64) -> bool {
        offset.is_multiple_of(self.min()) && len.is_multiple_of(self.min())
    }

    /// Reads whole blocks inside the export.
    fn read_blocks(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        for (at, len) in self.pieces(offset, len_u64(buf.len())) {
            let request = Request { command: CMD_READ, flags: 0, offset: at, len };
            let from = small(at - offset);
            let answer = self.run(request, &[])?;
            buf[from..from + answer.data.len()].copy_from_slice(&answer.data);
        }
        Ok(())
    }

    /// Writes whole blocks inside the export.
    fn write_blocks(&self, offset: u64, buf: &[u8]) -> Result<()> {
        for (at, len) in self.pieces(offset, len_u64(buf.len())) {
            let request = Request { command: CMD_WRITE, flags: self.fua(), offset: at, len };
            let from = small(at - offset);
            self.run(request, &buf[from..from + small(len.into())])?;
        }
        Ok(())
    }

    fn fua(&self) -> u16 {
        let wanted = self.options.cache.writethrough() && self.export.has(SEND_FUA);
        if wanted { CMD_FLAG_FUA } else { 0 }
    }

    fn after_write(&self) -> Result<()> {
        self.cache.forget();
        let by_flush = self.options.cache.writethrough() && !self.export.has(SEND_FUA);
        if by_flush { self.flush() } else { Ok(()) }
    }

    /// Blocks around a range that does not fit them: where they begin, their bytes.
    fn around(&self, offset: u64, len: u64) -> Result<(u64, Vec<u8>)> {
        let start = round_down(offset, self.min());
        let mut blocks = vec![0; small(round_up(offset + len, self.min()) - start)];
        self.read_blocks(start, &mut blocks)?;
        Ok((start, blocks))
    }

    /// Refuses a range that reaches beyond the end; gives the part inside.
    fn check_write(&self, offset: u64, len: u64) -> Result<u64> {
        if !self.options.writable {
            return Err(self.error(Error::errno(libc::EBADF), offset));
        }
        offset.checked_add(len).ok_or_else(|| self.error(Error::errno(libc::EFBIG), offset))?;
        Ok(self.export.size.saturating_sub(offset).min(len))
    }

    /// Has the server make zeroes of whole blocks.
    fn zero_blocks(&self, first: u64, last: u64, flags: u16) -> Result<()> {
        self.cache.forget();
        for (at, len) in self.pieces(first, last - first) {
            let flags = flags | self.fua();
            self.run(Request { command: CMD_WRITE_ZEROES, flags, offset: at, len }, &[])?;
        }
        self.after_write()
    }

    fn zero_by_writing(&self, offset: u64, len: u64) -> Result<()> {
        let zeroes = vec![0; small(len.min(1 << 20))];
        let mut done = 0;
        while done < len {
            let n = (len - done).min(len_u64(zeroes.len()));
            self.write_at(offset + done, &zeroes[..small(n)])?;
            done += n;
        }
        Ok(())
    }
}

fn connect_within(peer: &Peer, patience: Duration) -> Result<Connection> {
    let deadline = Instant::now() + patience;
    loop {
        match Connection::open(peer) {
            Err(_) if Instant::now() + RETRY < deadline => std::thread::sleep(RETRY),
            result => return result,
        }
    }
}

impl Storage for NbdStorage {
    fn name(&self) -> &str {
        &self.name
    }

    fn protocol(&self) -> Option<&'static str> {
        Some("nbd")
    }

    fn len(&self) -> Result<u64> {
        Ok(self.export.size)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let inside = self.export.size.saturating_sub(offset).min(len_u64(buf.len()));
        let (buf, beyond) = buf.split_at_mut(small(inside));
        beyond.fill(0);
        if buf.is_empty() {
            return Ok(());
        }
        if self.aligned(offset, inside) {
            return self.read_blocks(offset, buf);
        }
        let (start, blocks) = self.around(offset, inside)?;
        let skip = small(offset - start);
        buf.copy_from_slice(&blocks[skip..skip + buf.len()]);
        Ok(())
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        let inside = small(self.check_write(offset, len_u64(buf.len()))?);
        let (buf, beyond) = buf.split_at(inside);
        // Disks are shown in whole sectors: their last zeroes may have no place in the export.
        if !is_zero(beyond) {
            return Err(self.error(
                Error::errno(libc::ENOSPC).context(format!(
                    "the NBD export has {} bytes and cannot grow",
                    self.export.size
                )),
                self.export.size,
            ));
        }
        if buf.is_empty() {
            return Ok(());
        }
        self.cache.forget();
        if self.aligned(offset, len_u64(buf.len())) {
            self.write_blocks(offset, buf)?;
        } else {
            let _turn = self.bounce.lock().unwrap_or_else(PoisonError::into_inner);
            let (start, mut blocks) = self.around(offset, len_u64(buf.len()))?;
            let skip = small(offset - start);
            blocks[skip..skip + buf.len()].copy_from_slice(buf);
            self.write_blocks(start, &blocks)?;
        }
        self.after_write()
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        let end = offset + self.check_write(offset, len)?;
        if end <= offset {
            return Ok(());
        }
        let (first, last) = (round_up(offset, self.min()), round_down(end, self.min()));
        if !self.export.has(SEND_WRITE_ZEROES) || last <= first {
            return self.zero_by_writing(offset, end - offset);
        }
        let keep = if mode == ZeroMode::KeepAllocated { CMD_FLAG_NO_HOLE } else { 0 };
        self.zero_blocks(first, last, keep)?;
        self.zero_by_writing(offset, first - offset)?;
        self.zero_by_writing(last, end - last)
    }

    fn zero_quickly(&self, offset: u64, len: u64) -> Result<bool> {
        let end = offset + self.check_write(offset, len)?;
        let (first, last) = (round_up(offset, self.min()), round_down(end, self.min()));
        if !self.export.has(SEND_WRITE_ZEROES | SEND_FAST_ZERO) || last <= first {
            return Ok(false);
        }
        match self.zero_blocks(first, last, CMD_FLAG_FAST_ZERO) {
            // The server would have to write them.
            Err(e) if e.raw_errno() == Some(libc::EOPNOTSUPP) => return Ok(false),
            result => result?,
        }
        self.zero_by_writing(offset, first - offset)?;
        self.zero_by_writing(last, end - last)?;
        Ok(true)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let end = offset + self.check_write(offset, len)?;
        let (first, last) = (round_up(offset, self.min()), round_down(end, self.min()));
        if !self.export.has(SEND_TRIM) || last <= first {
            return Ok(());
        }
        self.cache.forget();
        for (at, len) in self.pieces(first, last - first) {
            let flags = self.fua();
            self.run(Request { command: CMD_TRIM, flags, offset: at, len }, &[])?;
        }
        self.after_write()
    }

    fn flush(&self) -> Result<()> {
        let ignored = self.options.cache == crate::storage::CacheMode::Unsafe;
        if ignored || !self.options.writable || !self.export.has(SEND_FLUSH) {
            return Ok(());
        }
        self.run(Request { command: CMD_FLUSH, flags: 0, offset: 0, len: 0 }, &[]).map(drop)
    }

    fn set_len(&self, len: u64, _how: Preallocation) -> Result<()> {
        if len <= self.export.size {
            return Ok(());
        }
        Err(Error::invalid("Cannot grow NBD nodes").at_path(&self.name))
    }

    fn status(&self, offset: u64, len: u64) -> Result<HostExtent> {
        let rest = self.export.size.saturating_sub(offset);
        if rest == 0 {
            return Ok(HostExtent { kind: HostKind::Hole, len });
        }
        let len = len.min(rest);
        let data = HostExtent { kind: HostKind::Data, len };
        let Some(_) = self.export.allocation else { return Ok(data) };
        if let Some(known) = self.cache.look_up(offset, len) {
            return Ok(known);
        }
        let start = round_down(offset, self.min());
        let asked = (len + (offset - start)).max(STATUS_AHEAD).min(self.export.size - start);
        let asked = u32::try_from(round_up(asked, self.min()).min(2 << 30)).unwrap_or(2 << 30);
        let before = self.cache.state();
        let request = Request { command: CMD_BLOCK_STATUS, flags: 0, offset: start, len: asked };
        let answer = match self.run(request, &[]) {
            Ok(answer) => answer,
            // A server that cannot tell: all of it has to be read.
            Err(e) if matches!(e.raw_errno(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {
                return Ok(data);
            }
            Err(e) => return Err(e),
        };
        let end = start + u64::from(asked);
        let known = self.cache.learn(before, start, end, &answer.extents);
        // The answer may end before a range that does not begin with a block.
        Ok(known.at(offset, len).unwrap_or(HostExtent { len: len.min(self.min()), ..data }))
    }

    fn limits(&self) -> Limits {
        Limits {
            request_alignment: self.export.min_block,
            discard_alignment: self.export.preferred_block.max(4096),
            opt_transfer: 0,
            block_device: false,
        }
    }

    fn read_only(&self) -> bool {
        !self.options.writable
    }

    fn zero_init(&self) -> bool {
        false
    }
}
