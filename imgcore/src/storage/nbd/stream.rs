//! The socket to a server, TCP or UNIX, and reading from it against a deadline.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::opts::nbd::{NbdServer, NbdTarget};
use crate::{Error, Result};

/// A connected socket. Reading and writing take turns of their own: both work on `&Stream`.
#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    /// Connects, waiting at most `patience` for each address of the host.
    pub fn connect(target: &NbdTarget, patience: Duration) -> Result<Self> {
        let failed = |e: &io::Error| {
            Error::io(e).context(format!("Failed to connect to '{}'", target.address()))
        };
        match &target.server {
            NbdServer::Unix { path } => {
                UnixStream::connect(path).map(Stream::Unix).map_err(|e| failed(&e))
            }
            NbdServer::Inet { host, port } => {
                let all = (host.as_str(), *port).to_socket_addrs().map_err(|e| failed(&e))?;
                let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
                for address in all {
                    match TcpStream::connect_timeout(&address, patience) {
                        Ok(stream) => {
                            // Requests are small and wait for answers.
                            stream.set_nodelay(true).map_err(|e| failed(&e))?;
                            return Ok(Stream::Tcp(stream));
                        }
                        Err(e) => last = e,
                    }
                }
                Err(failed(&last))
            }
        }
    }

    /// Bounds each read and each write.
    pub fn set_timeouts(&self, read: Option<Duration>, write: Option<Duration>) -> io::Result<()> {
        match self {
            Stream::Tcp(s) => s.set_read_timeout(read).and_then(|()| s.set_write_timeout(write)),
            Stream::Unix(s) => s.set_read_timeout(read).and_then(|()| s.set_write_timeout(write)),
        }
    }

    /// Ends both directions; whoever waits on the socket wakes up.
    pub fn shutdown(&self) {
        // A socket that is closed already needs nothing.
        let _ = match self {
            Stream::Tcp(s) => s.shutdown(Shutdown::Both),
            Stream::Unix(s) => s.shutdown(Shutdown::Both),
        };
    }

    /// Writes two pieces as one message.
    pub fn send(&self, head: &[u8], body: &[u8]) -> io::Result<()> {
        let mut done = 0;
        let mut to = self;
        while done < head.len() {
            match to.write_vectored(&[IoSlice::new(&head[done..]), IoSlice::new(body)]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        to.write_all(&body[done - head.len()..])
    }
}

impl Read for &Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(s) => (&*s).read(buf),
            Stream::Unix(s) => (&*s).read(buf),
        }
    }
}

impl Write for &Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(s) => (&*s).write(buf),
            Stream::Unix(s) => (&*s).write(buf),
        }
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Stream::Tcp(s) => (&*s).write_vectored(bufs),
            Stream::Unix(s) => (&*s).write_vectored(bufs),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads numbers from a socket until a deadline, however slowly the bytes trickle in.
pub(crate) struct Patient<'a> {
    pub stream: &'a Stream,
    pub deadline: Instant,
}

impl Patient<'_> {
    /// Fills a buffer.
    pub fn fill(&self, mut buf: &mut [u8]) -> io::Result<()> {
        while !buf.is_empty() {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.stream.set_timeouts(Some(left), Some(left))?;
            match (&mut &*self.stream).read(buf) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => buf = &mut buf[n..],
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// The next `N` bytes.
    pub fn bytes<const N: usize>(&self) -> io::Result<[u8; N]> {
        let mut buf = [0; N];
        self.fill(&mut buf)?;
        Ok(buf)
    }
}

/// What a failed read or write means, in words.
pub(crate) fn why(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "the server closed the connection".to_owned(),
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
            "the server did not answer in time".to_owned()
        }
        _ => Error::io(error).message().to_owned(),
    }
}
