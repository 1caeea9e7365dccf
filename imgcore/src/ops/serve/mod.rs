//! `serve`: an image as an export of an NBD server (`doc/proto.md` of the NetworkBlockDevice/nbd
//! project).
//!
//! * `negotiate`: the handshake; it has a deadline and bounded options.
//! * `transmit`: requests of one connection, carried out by a few threads of its own.
//! * `context`: what block status tells: `base:allocation`, and on request `qemu:allocation-depth` and
//!   `qemu:dirty-bitmap:NAME`.
//!
//! All connections share one [`Node`]: what one wrote the others read, and a flush of any covers the
//! writes of all, so `CAN_MULTI_CONN` is true also for a writable image, where more than one client is let in. A client is hostile: it can make
//! a connection use at most 64 MiB of payload, and there are never more connections than asked for.

mod context;
mod negotiate;
mod transmit;

use std::collections::HashMap;
use std::io::ErrorKind as IoKind;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustls::ServerConfig;

use super::{ImageArg, Job};
use crate::format::{Access, SnapshotSelector};
use crate::graph::Node;
use crate::graph::open::OpenOptions;
use crate::storage::nbd::stream::Stream;
use crate::{Error, Result, tls};
use context::Contexts;

/// How often the listener looks whether it is to stop.
const TICK: Duration = Duration::from_millis(200);
/// Connections where their number is not limited by the user.
const MAX_CONNECTIONS: usize = 256;

/// Whether the server outlives its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// It ends when the last client that used the export is gone.
    UntilUnused,
    /// It ends when it is told to.
    Persistent,
}

/// What is offered, and to how many.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Name of the export; may be empty.
    pub name: String,
    /// For people; may be empty.
    pub description: String,
    /// Clients at a time; 0 for as many as come (up to 256).
    pub shared: usize,
    /// When it ends.
    pub lifetime: Lifetime,
    /// How long a client may take to negotiate.
    pub handshake_limit: Duration,
    /// Tell `qemu:allocation-depth`.
    pub allocation_depth: bool,
    /// Tell `qemu:dirty-bitmap:NAME`.
    pub bitmap: Option<String>,
    /// Clients come over TLS, and see nothing of the export before. Without: in plain text.
    pub tls: Option<Arc<ServerConfig>>,
}

impl Default for ServeOptions {
    fn default() -> Self {
        ServeOptions {
            name: String::new(),
            description: String::new(),
            shared: 1,
            lifetime: Lifetime::UntilUnused,
            handshake_limit: Duration::from_secs(10),
            allocation_depth: false,
            bitmap: None,
            tls: None,
        }
    }
}

/// Where clients come from.
#[derive(Debug)]
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// A UNIX socket.
    Unix(UnixListener),
}

impl Listener {
    /// Makes `accept` return now and then.
    fn prepare(&self) -> std::io::Result<()> {
        let same: OwnedFd = match self {
            Listener::Tcp(l) => l.try_clone()?.into(),
            Listener::Unix(l) => l.try_clone()?.into(),
        };
        // The time-out of receiving, which all kinds of sockets have, is that of accepting too.
        TcpStream::from(same).set_read_timeout(Some(TICK))
    }

    fn accept(&self) -> std::io::Result<Stream> {
        Ok(match self {
            Listener::Tcp(l) => {
                let stream = l.accept()?.0;
                stream.set_nodelay(true)?;
                stream.into()
            }
            Listener::Unix(l) => l.accept()?.0.into(),
        })
    }
}

/// Who watches over a server.
pub trait Control: Sync {
    /// Whether it is to end.
    fn stop(&self) -> bool;

    /// A client was not let in, or what it said was no TLS; `why` in a few words.
    fn refused(&self, why: &str);
}

/// One export.
struct Export<'a> {
    node: &'a Node,
    options: &'a ServeOptions,
    contexts: Contexts,
}

/// The clients of a server.
#[derive(Default)]
struct Clients {
    state: Mutex<Present>,
    left: Condvar,
}

#[derive(Default)]
struct Present {
    next: u64,
    sockets: HashMap<u64, Arc<Stream>>,
    /// A client has used the export and gone.
    used: bool,
}

impl Clients {
    fn lock(&self) -> MutexGuard<'_, Present> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens an image to be served: for reading only, or for writing too; `snapshot` shows an internal one.
pub fn open(
    image: &ImageArg,
    access: Access,
    snapshot: Option<SnapshotSelector>,
    job: &Job<'_>,
) -> Result<Arc<Node>> {
    let how = OpenOptions { access, snapshot, ..image.options(job) };
    image.open(job, &how)
}

/// Serves clients until `control` says so, or until the last one is gone. The image is flushed, not closed.
///
/// Errors: a bitmap that the image does not have, a listener that fails, a last flush that fails. What
/// clients do wrong is told to them alone.
pub fn serve(
    node: &Node,
    options: &ServeOptions,
    listener: &Listener,
    control: &dyn Control,
) -> Result<()> {
    let export = Export { node, options, contexts: Contexts::new(node, options)? };
    listener.prepare()?;
    let clients = Clients::default();
    let limit = if options.shared == 0 { MAX_CONNECTIONS } else { options.shared };
    let result = std::thread::scope(|scope| {
        let result = loop {
            let present = clients.lock();
            let unused = present.used && present.sockets.is_empty();
            if control.stop() || (unused && options.lifetime == Lifetime::UntilUnused) {
                break Ok(());
            }
            if present.sockets.len() >= limit {
                drop(clients.left.wait_timeout(present, TICK));
                continue;
            }
            drop(present);
            let stream = match listener.accept() {
                Ok(stream) => Arc::new(stream),
                Err(e) if quiet(&e) => continue,
                Err(e) => break Err(Error::io(&e).context("Could not accept a client")),
            };
            let mut present = clients.lock();
            let number = present.next;
            present.next += 1;
            present.sockets.insert(number, Arc::clone(&stream));
            drop(present);
            let (clients, export) = (&clients, &export);
            let started = std::thread::Builder::new().spawn_scoped(scope, move || {
                let used = client(export, &stream, control);
                leave(clients, number, used);
            });
            if started.is_err() {
                leave(clients, number, false);
            }
        };
        clients.lock().sockets.values().for_each(|s| s.shutdown());
        result
    });
    result.and(node.flush())
}

/// Whether an error of `accept` concerns one client, or none, and not the listener.
fn quiet(error: &std::io::Error) -> bool {
    let passing = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::ENOBUFS];
    if error.raw_os_error().is_some_and(|n| passing.contains(&n)) {
        std::thread::sleep(TICK);
        return true;
    }
    matches!(
        error.kind(),
        IoKind::WouldBlock | IoKind::TimedOut | IoKind::Interrupted | IoKind::ConnectionAborted
    )
}

fn leave(clients: &Clients, number: u64, used: bool) {
    let mut present = clients.lock();
    if let Some(socket) = present.sockets.remove(&number) {
        socket.shutdown();
    }
    present.used |= used;
    drop(present);
    clients.left.notify_all();
}

/// One client from the first byte to the last; whether it came to use the export.
fn client(export: &Export<'_>, stream: &Stream, control: &dyn Control) -> bool {
    let agreed = match negotiate::negotiate(export, stream) {
        Ok(Some(agreed)) => agreed,
        Ok(None) => return false,
        // Other things that go wrong here are the client's business: it finds the connection closed.
        Err(e) => {
            if let Some(why) = tls::words(&e) {
                control.refused(&why);
            }
            return false;
        }
    };
    if stream.set_timeouts(None, None).is_ok() {
        transmit::transmit(export, stream, &agreed);
    }
    stream.farewell();
    true
}

#[cfg(test)]
mod tests;
