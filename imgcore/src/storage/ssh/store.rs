//! A file of a host as a storage.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use super::session::{Pending, Session};
use super::wire::{
    self, Attributes, CLOSE, EXTENDED, FSETSTAT, FSTAT, OPEN, OPEN_CREATE, OPEN_NEW, OPEN_READ,
    OPEN_WRITE, Packet, READ, REALPATH, REMOVE, Reply, STAT, STATUS_EOF, STATUS_NO_SUCH_FILE,
    STATUS_OK, STATUS_PERMISSION_DENIED, STATUS_UNSUPPORTED, WRITE,
};
use crate::num::{len_u64, small};
use crate::opts::ssh::SshTarget;
use crate::storage::{
    CacheMode, FileOptions, HostExtent, Limits, Preallocation, Storage, ZeroMode,
};
use crate::{Error, ErrorKind, Result};

/// Bytes of one request where the server tells no limit: what every server must take.
const PLAIN: u64 = 32 << 10;
/// More in one request makes nothing faster.
const LARGEST: u64 = 128 << 10;
/// Requests that one call has in flight.
const IN_FLIGHT: usize = 32;
/// Kinds of files in the mode (POSIX, <sys/stat.h>).
const KIND: u32 = 0o170_000;
const REGULAR: u32 = 0o100_000;

/// What becomes of a file that a new one would replace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// It is replaced when the new one is whole.
    Replaced,
    /// It stays, and the new one is not made; unless it is empty.
    Kept,
}

/// The names of a file that is being made.
#[derive(Clone, Debug)]
struct Making {
    /// Until then.
    part: String,
    /// Then.
    path: String,
}

/// A file on a host reached by ssh.
///
/// Any number of threads may use it at the same time; their requests are in flight together on one connection.
#[derive(Debug)]
pub struct SshStorage {
    session: Session,
    name: String,
    /// Where it is a new file that has not got its name yet.
    making: Mutex<Option<Making>>,
    handle: Vec<u8>,
    options: FileOptions,
    /// What it was at opening.
    opened: Attributes,
    /// Length, as far as it was changed here. Held for reading by writes and for writing by what cuts or grows the
    /// file.
    size: RwLock<u64>,
    /// Bytes of a read, and of a write.
    read: u64,
    write: u64,
}

/// What a status that is no success means.
fn status(code: u32, message: &str) -> Error {
    match code {
        STATUS_NO_SUCH_FILE => Error::errno(libc::ENOENT),
        STATUS_PERMISSION_DENIED => Error::errno(libc::EACCES),
        STATUS_UNSUPPORTED => Error::errno(libc::EOPNOTSUPP),
        STATUS_EOF => Error::errno(libc::EIO).context("the file ends before"),
        _ if message.is_empty() => {
            Error::new(ErrorKind::Io(libc::EIO), format!("the server failed (code {code})"))
        }
        _ => Error::new(ErrorKind::Io(libc::EIO), format!("the server says: {message}")),
    }
}

fn unexpected() -> Error {
    Error::new(ErrorKind::Io(libc::EPROTO), "the server answered another question")
}

/// A reply that tells success and no more.
fn done(reply: Reply) -> Result<()> {
    match reply {
        Reply::Status { code: STATUS_OK, .. } => Ok(()),
        Reply::Status { code, message } => Err(status(code, &message)),
        _ => Err(unexpected()),
    }
}

/// Whether what is written is on the disk before it is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDisk {
    /// Yes.
    Yes,
    /// When the server likes.
    Later,
}

fn check_regular(attributes: Attributes) -> Result<()> {
    if attributes.mode.is_some_and(|mode| mode & KIND != 0 && mode & KIND != REGULAR) {
        return Err(Error::unsupported("it is not a regular file on the server").hint(
            "a device there can be reached with an NBD server (rimg serve) over an ssh tunnel",
        ));
    }
    Ok(())
}

fn attributes(reply: Reply) -> Result<Attributes> {
    match reply {
        Reply::Attributes(attributes) => Ok(attributes),
        Reply::Status { code, message } => Err(status(code, &message)),
        _ => Err(unexpected()),
    }
}

impl SshStorage {
    /// Opens a file that is there.
    ///
    /// # Errors
    /// When the host cannot be reached, is not the right one or refuses the user, and when there is no such file or it
    /// may not be used so.
    pub fn open(target: &SshTarget, options: FileOptions) -> Result<Self> {
        Self::opened(target, options).map_err(|e| e.at_path(target.url()))
    }

    /// Makes a file beside `target` (`PATH.part`), which gets that name by [`SshStorage::publish`]. Dropped before, it is
    /// removed. A symbolic link is followed: what it points to is replaced.
    ///
    /// # Errors
    /// As [`SshStorage::open`], and when the part is there already, what would be replaced is no regular file or must
    /// stay, or the server cannot do what a replacement takes.
    pub fn create(target: &SshTarget, options: FileOptions, existing: Existing) -> Result<Self> {
        let name = target.url();
        Self::made(target, options, existing).map_err(|e| e.at_path(name))
    }

    fn made(target: &SshTarget, options: FileOptions, existing: Existing) -> Result<Self> {
        let session = Session::open(target)?;
        let extensions = session.extensions();
        if !extensions.fsync || !extensions.rename {
            return Err(Error::unsupported(
                "the ssh server cannot put a new file safely in its place (no fsync@openssh.com or \
                 posix-rename@openssh.com)",
            )
            .hint("write to a file here and copy it (scp), or to one that is there (convert -n)"));
        }
        let real = session.ask(Packet::new(REALPATH).bytes(target.path.as_bytes()))?;
        let path = match real {
            Reply::Name(path) => String::from_utf8(path).map_err(|_| unexpected())?,
            // The folder is missing: making the part will tell.
            _ => target.path.clone(),
        };
        let part = format!("{path}.part");
        let look = |path: &str| match session.ask(Packet::new(STAT).bytes(path.as_bytes()))? {
            Reply::Status { code: STATUS_NO_SUCH_FILE, .. } => Ok(None),
            reply => attributes(reply).map(Some),
        };
        let old = look(&path)?;
        if let Some(old) = old {
            check_regular(old)?;
            if existing == Existing::Kept && old.size != Some(0) {
                return Err(Error::invalid(format!("'{}' exists and is not empty", target.url()))
                    .hint("use --force to replace it"));
            }
        }
        let mode = old.and_then(|old| old.mode).map_or(0o644, |mode| mode & 0o7777);
        let flags = OPEN_READ | OPEN_WRITE | OPEN_CREATE | OPEN_NEW;
        let open = Packet::new(OPEN).bytes(part.as_bytes()).u32(flags).mode(mode);
        let handle = match session.ask(open)? {
            Reply::Handle(handle) => handle,
            Reply::Status { code, message } => {
                return Err(match look(&part) {
                    Ok(Some(_)) => Error::new(
                        ErrorKind::Locked,
                        format!("'{part}' is there: somebody may be writing it"),
                    )
                    .hint("if it was left by a conversion that was killed, remove it"),
                    _ => status(code, &message),
                });
            }
            _ => return Err(unexpected()),
        };
        let made = Self::begin(session, target.url(), handle, options)?;
        *made.making() = Some(Making { part, path });
        Ok(made)
    }

    fn opened(target: &SshTarget, options: FileOptions) -> Result<Self> {
        let session = Session::open(target)?;
        if options.writable && !session.extensions().fsync && options.cache != CacheMode::Unsafe {
            return Err(Error::unsupported(
                "the ssh server cannot bring what is written to its disk (no fsync@openssh.com)",
            )
            .hint("the cache mode 'unsafe' (-t unsafe) writes all the same"));
        }
        let flags = if options.writable { OPEN_READ | OPEN_WRITE } else { OPEN_READ };
        let open = Packet::new(OPEN).bytes(target.path.as_bytes()).u32(flags).no_attributes();
        let handle = match session.ask(open)? {
            Reply::Handle(handle) => handle,
            Reply::Status { code, message } => return Err(status(code, &message)),
            _ => return Err(unexpected()),
        };
        Self::begin(session, target.url(), handle, options)
    }

    /// With an open file.
    fn begin(
        session: Session,
        name: String,
        handle: Vec<u8>,
        options: FileOptions,
    ) -> Result<Self> {
        let (mut read, mut write) = (PLAIN, PLAIN);
        if session.extensions().limits {
            let reply = session.ask(Packet::new(EXTENDED).bytes(b"limits@openssh.com"))?;
            if let Reply::Extended(bytes) = reply {
                let (_, most_read, most_write) = wire::limits(&bytes).ok_or_else(unexpected)?;
                let within = |most: u64| if most == 0 { PLAIN } else { most.min(LARGEST) };
                (read, write) = (within(most_read), within(most_write));
            }
        }
        let opened = attributes(session.ask(Packet::new(FSTAT).bytes(&handle))?)?;
        check_regular(opened)?;
        let size = opened
            .size
            .ok_or_else(|| Error::unsupported("the server does not tell the file's length"))?;
        Ok(SshStorage {
            session,
            name,
            making: Mutex::new(None),
            handle,
            options,
            opened,
            size: RwLock::new(size),
            read,
            write,
        })
    }

    fn making(&self) -> MutexGuard<'_, Option<Making>> {
        self.making.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a new file its name, in place of what stood there. With `on_disk` its bytes are on the server's disk
    /// before. (SFTP has nothing to bring the folder to disk.)
    ///
    /// # Errors
    /// When the server refuses.
    pub fn publish(&self, on_disk: OnDisk) -> Result<()> {
        let failed = |e: Error| e.context(format!("Could not create '{}'", self.name));
        if on_disk == OnDisk::Yes {
            self.sync().map_err(failed)?;
        }
        let mut making = self.making();
        if let Some(Making { part, path }) = &*making {
            let rename = Packet::new(EXTENDED).bytes(b"posix-rename@openssh.com");
            let rename = rename.bytes(part.as_bytes()).bytes(path.as_bytes());
            done(self.session.ask(rename)?).map_err(failed)?;
        }
        *making = None;
        Ok(())
    }

    /// Removes a new file that has not got its name.
    pub fn withdraw(&self) {
        if let Some(Making { part, .. }) = self.making().take() {
            // Nothing can be done about a file that does not go away.
            let _ = self.session.ask(Packet::new(REMOVE).bytes(part.as_bytes()));
        }
    }

    fn error(&self, error: Error, offset: u64) -> Error {
        error.at_path(&self.name).at_offset(offset)
    }

    fn size(&self) -> u64 {
        *self.size.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask_attributes(&self) -> Result<Pending<'_>> {
        self.session.start(Packet::new(FSTAT).bytes(&self.handle))
    }

    fn check_unchanged(&self, now: Attributes) -> Result<()> {
        let same = |then: Attributes| (then.size, then.changed) == (now.size, now.changed);
        if self.options.writable || same(self.opened) {
            return Ok(());
        }
        Err(Error::corrupt("the file has changed since it was opened").hint(
            "bytes of two files must not be mixed: begin again when nobody writes to it any more",
        ))
    }

    /// Reads what is inside the file.
    fn read_inside(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let ask = |at: usize, len: usize| {
            let packet = Packet::new(READ).bytes(&self.handle).u64(offset + len_u64(at));
            self.session.start(packet.u32(u32::try_from(len).unwrap_or(u32::MAX)))
        };
        let mut flight = VecDeque::new();
        let mut next = 0;
        while next < buf.len() || !flight.is_empty() {
            while next < buf.len() && flight.len() < IN_FLIGHT {
                let len = (buf.len() - next).min(small(self.read));
                flight.push_back((next, len, ask(next, len)?));
                next += len;
            }
            let Some((at, len, pending)) = flight.pop_front() else { break };
            match pending.wait()? {
                Reply::Data(data) if !data.is_empty() && data.len() <= len => {
                    buf[at..at + data.len()].copy_from_slice(&data);
                    // A server may give less than was asked for.
                    let (at, len) = (at + data.len(), len - data.len());
                    if len > 0 {
                        flight.push_back((at, len, ask(at, len)?));
                    }
                }
                Reply::Data(_) => return Err(unexpected()),
                Reply::Status { code: STATUS_EOF, .. } => {
                    return Err(Error::corrupt("the file has become shorter since it was opened"));
                }
                Reply::Status { code, message } => return Err(status(code, &message)),
                _ => return Err(unexpected()),
            }
        }
        Ok(())
    }

    fn check_write(&self, offset: u64, len: u64) -> Result<u64> {
        if !self.options.writable {
            return Err(Error::errno(libc::EBADF));
        }
        let end = offset.checked_add(len).filter(|end| i64::try_from(*end).is_ok());
        end.ok_or_else(|| Error::errno(libc::EFBIG))
    }

    /// Writes all pieces that `bytes` gives for a place and a length.
    fn write_pieces<'a>(
        &self,
        offset: u64,
        len: u64,
        bytes: impl Fn(usize, usize) -> &'a [u8],
    ) -> Result<()> {
        let mut flight: VecDeque<Pending<'_>> = VecDeque::new();
        let mut at = 0;
        while at < len {
            let n = (len - at).min(self.write);
            let packet = Packet::new(WRITE).bytes(&self.handle).u64(offset + at);
            flight.push_back(self.session.start(packet.bytes(bytes(small(at), small(n))))?);
            at += n;
            if flight.len() >= IN_FLIGHT
                && let Some(first) = flight.pop_front()
            {
                done(first.wait()?)?;
            }
        }
        flight.into_iter().try_for_each(|pending| done(pending.wait()?))
    }

    fn after_write(&self, end: u64) -> Result<()> {
        if end > self.size() {
            let mut size = self.size.write().unwrap_or_else(PoisonError::into_inner);
            *size = end.max(*size);
        }
        if self.options.cache.writethrough() { self.flush() } else { Ok(()) }
    }

    fn write_zero_bytes(&self, offset: u64, len: u64) -> Result<()> {
        let zeroes = vec![0; small(self.write.min(len))];
        {
            let _cutting = self.size.read().unwrap_or_else(PoisonError::into_inner);
            self.write_pieces(offset, len, |_, n| &zeroes[..n])?;
        }
        self.after_write(offset + len)
    }

    /// Asks the server for another length.
    fn resize(&self, len: u64) -> Result<()> {
        done(self.session.ask(Packet::new(FSETSTAT).bytes(&self.handle).size(len))?)
    }

    fn sync(&self) -> Result<()> {
        if !self.session.extensions().fsync {
            return Ok(());
        }
        done(
            self.session
                .ask(Packet::new(EXTENDED).bytes(b"fsync@openssh.com").bytes(&self.handle))?,
        )
    }
}

impl Drop for SshStorage {
    fn drop(&mut self) {
        self.withdraw();
        // Closing only gives the handle back; the end of the session does so too.
        let _ = self.session.start(Packet::new(CLOSE).bytes(&self.handle));
    }
}

impl Storage for SshStorage {
    fn name(&self) -> &str {
        &self.name
    }

    fn protocol(&self) -> Option<&'static str> {
        Some("ssh")
    }

    fn identity(&self) -> Option<String> {
        let changed = self.opened.changed?;
        Some(format!("{} bytes, changed at {changed}", self.opened.size?))
    }

    fn len(&self) -> Result<u64> {
        Ok(self.size())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let inside = small(self.size().saturating_sub(offset).min(len_u64(buf.len())));
        let (buf, beyond) = buf.split_at_mut(inside);
        beyond.fill(0);
        if buf.is_empty() {
            return Ok(());
        }
        self.read_inside(offset, buf)
            .and_then(|()| self.check_unchanged(attributes(self.ask_attributes()?.wait()?)?))
            .map_err(|e| self.error(e, offset))
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        let end =
            self.check_write(offset, len_u64(buf.len())).map_err(|e| self.error(e, offset))?;
        let written = {
            let _cutting = self.size.read().unwrap_or_else(PoisonError::into_inner);
            self.write_pieces(offset, len_u64(buf.len()), |at, n| &buf[at..at + n])
        };
        written.and_then(|()| self.after_write(end)).map_err(|e| self.error(e, offset))
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        let failed = |e| self.error(e, offset);
        let end = self.check_write(offset, len).map_err(failed)?;
        let mut inside = len;
        {
            let mut size = self.size.write().unwrap_or_else(PoisonError::into_inner);
            if end > *size && mode == ZeroMode::MayUnmap {
                // Growing makes zeroes, and so does cutting off and growing again.
                inside = size.saturating_sub(offset).min(len);
                if end - *size >= inside && inside > 0 {
                    self.resize(offset).map_err(failed)?;
                    *size = offset;
                    inside = 0;
                }
                self.resize(end).map_err(failed)?;
                *size = end;
            } else if end == *size && offset < end && mode == ZeroMode::MayUnmap {
                self.resize(offset).map_err(failed)?;
                *size = offset;
                self.resize(end).map_err(failed)?;
                *size = end;
                inside = 0;
            }
        }
        if inside == 0 {
            return if self.options.cache.writethrough() { self.flush() } else { Ok(()) };
        }
        self.write_zero_bytes(offset, inside).map_err(failed)
    }

    fn discard(&self, _offset: u64, _len: u64) -> Result<()> {
        // SFTP has nothing for it.
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        if !self.options.writable || self.options.cache == CacheMode::Unsafe {
            return Ok(());
        }
        self.sync().map_err(|e| e.context("Could not flush").at_path(&self.name))
    }

    fn set_len(&self, len: u64, how: Preallocation) -> Result<()> {
        self.check_write(0, len).map_err(|e| self.error(e, 0))?;
        let from = {
            let mut size = self.size.write().unwrap_or_else(PoisonError::into_inner);
            let from = *size;
            if len != from {
                self.resize(len).map_err(|e| self.error(e, len))?;
                *size = len;
            }
            from
        };
        match how {
            Preallocation::Full if len > from => {
                self.write_zero_bytes(from, len - from).map_err(|e| self.error(e, from))
            }
            Preallocation::Falloc if len > from => {
                let error = Error::unsupported("SFTP cannot reserve space without writing");
                Err(error.hint("preallocation=full writes zeroes").at_path(&self.name))
            }
            _ => Ok(()),
        }
    }

    fn status(&self, offset: u64, len: u64) -> Result<HostExtent> {
        Ok(HostExtent::without_holes(self.size(), offset, len))
    }

    fn limits(&self) -> Limits {
        Limits {
            request_alignment: 1,
            discard_alignment: 4096,
            opt_transfer: 0,
            block_device: false,
        }
    }

    fn read_only(&self) -> bool {
        !self.options.writable
    }
}
