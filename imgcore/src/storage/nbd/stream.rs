//! The socket to a server, TCP or UNIX, encrypted or not, and reading from it against a deadline.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rustls::ServerConfig;

use crate::opts::nbd::{NbdServer, NbdTarget};
use crate::tls::{self, Dialer};
use crate::{Error, Result};

/// A connected socket, and what encrypts it once both sides agreed to. Reading and writing take turns of their own:
/// both work on `&Stream`.
#[derive(Debug)]
pub(crate) struct Stream {
    socket: Socket,
    tls: OnceLock<tls::Channel>,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl From<TcpStream> for Stream {
    fn from(socket: TcpStream) -> Self {
        Stream { socket: Socket::Tcp(socket), tls: OnceLock::new() }
    }
}

impl From<UnixStream> for Stream {
    fn from(socket: UnixStream) -> Self {
        Stream { socket: Socket::Unix(socket), tls: OnceLock::new() }
    }
}

impl Stream {
    /// Connects, waiting at most `patience` for each address of the host.
    pub fn connect(target: &NbdTarget, patience: Duration) -> Result<Self> {
        let failed = |e: &io::Error| {
            Error::io(e).context(format!("Failed to connect to '{}'", target.address()))
        };
        match &target.server {
            NbdServer::Unix { path } => {
                UnixStream::connect(path).map(Stream::from).map_err(|e| failed(&e))
            }
            NbdServer::Inet { host, port } => {
                let all = (host.as_str(), *port).to_socket_addrs().map_err(|e| failed(&e))?;
                let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
                for address in all {
                    match TcpStream::connect_timeout(&address, patience) {
                        Ok(stream) => {
                            // Requests are small and wait for answers.
                            stream.set_nodelay(true).map_err(|e| failed(&e))?;
                            return Ok(stream.into());
                        }
                        Err(e) => last = e,
                    }
                }
                Err(failed(&last))
            }
        }
    }

    /// Changes over to TLS as the client; everything after this is encrypted.
    pub fn start_tls_as_client(&self, with: &Dialer, deadline: Instant) -> io::Result<()> {
        let socket = Until { socket: &self.socket, deadline };
        let config = Arc::clone(&with.config);
        self.encrypt(tls::Channel::client(config, with.name.clone(), socket)?)
    }

    /// Changes over to TLS as the server; everything after this is encrypted.
    pub fn start_tls_as_server(
        &self,
        with: &Arc<ServerConfig>,
        deadline: Instant,
    ) -> io::Result<()> {
        let socket = Until { socket: &self.socket, deadline };
        self.encrypt(tls::Channel::server(Arc::clone(with), socket)?)
    }

    fn encrypt(&self, channel: tls::Channel) -> io::Result<()> {
        self.tls.set(channel).map_err(|_| io::ErrorKind::AlreadyExists.into())
    }

    /// Whether what goes over it is encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.tls.get().is_some()
    }

    /// Bounds each read and each write.
    pub fn set_timeouts(&self, read: Option<Duration>, write: Option<Duration>) -> io::Result<()> {
        self.socket.set_timeouts(read, write)
    }

    /// Tells the other side that nothing more will come, where there is a way to.
    pub fn farewell(&self) {
        if let Some(channel) = self.tls.get()
            && self.set_timeouts(None, Some(Duration::from_secs(1))).is_ok()
        {
            channel.farewell(&self.socket);
        }
    }

    /// Ends both directions; whoever waits on the socket wakes up.
    pub fn shutdown(&self) {
        // A socket that is closed already needs nothing.
        let _ = match &self.socket {
            Socket::Tcp(s) => s.shutdown(Shutdown::Both),
            Socket::Unix(s) => s.shutdown(Shutdown::Both),
        };
    }

    /// Writes two pieces as one message.
    pub fn send(&self, head: &[u8], body: &[u8]) -> io::Result<()> {
        if let Some(channel) = self.tls.get() {
            return channel.send(&self.socket, head, body);
        }
        let mut done = 0;
        let mut to = &self.socket;
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
        match self.tls.get() {
            Some(channel) => channel.read(&self.socket, buf),
            None => (&self.socket).read(buf),
        }
    }
}

impl Socket {
    fn set_timeouts(&self, read: Option<Duration>, write: Option<Duration>) -> io::Result<()> {
        match self {
            Socket::Tcp(s) => s.set_read_timeout(read).and_then(|()| s.set_write_timeout(write)),
            Socket::Unix(s) => s.set_read_timeout(read).and_then(|()| s.set_write_timeout(write)),
        }
    }
}

impl Read for &Socket {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(s) => (&*s).read(buf),
            Socket::Unix(s) => (&*s).read(buf),
        }
    }
}

impl Write for &Socket {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(s) => (&*s).write(buf),
            Socket::Unix(s) => (&*s).write(buf),
        }
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Socket::Tcp(s) => (&*s).write_vectored(bufs),
            Socket::Unix(s) => (&*s).write_vectored(bufs),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A socket until a deadline, however slowly the bytes trickle.
struct Until<'a> {
    socket: &'a Socket,
    deadline: Instant,
}

impl Until<'_> {
    fn prepare(&self) -> io::Result<()> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.socket.set_timeouts(Some(left), Some(left))
    }
}

impl Read for Until<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.prepare()?;
        self.socket.read(buf)
    }
}

impl Write for Until<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.prepare()?;
        self.socket.write(buf)
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
    if let Some(words) = tls::words(error) {
        return words;
    }
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "the server closed the connection".to_owned(),
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
            "the server did not answer in time".to_owned()
        }
        _ => Error::io(error).message().to_owned(),
    }
}
