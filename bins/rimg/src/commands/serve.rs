//! `serve`

use std::io::Read;
use std::net::TcpListener;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use imgcore::format::{Access, SnapshotSelector};
use imgcore::graph::open::{DetectZeroes, Discard};
use imgcore::ops::selector;
use imgcore::ops::serve::{self, Lifetime, Listener, ServeOptions};
use imgcore::opts::http::without_credentials;
use imgcore::opts::nbd::{NbdServer, NbdTarget, NbdTls};
use imgcore::opts::size;
use imgcore::opts::tls::VerifyPeer;
use imgcore::storage::CacheMode;

use crate::activation;
use crate::args::getopt::{Given, Parser};
use crate::common::{Common, cache_mode};
use crate::failure::Failure;
use crate::output;
use crate::session::Session;
use crate::signals;

/// What the server in the background says to the one who started it.
const READY: &str = "ready\n";

/// What the options say.
#[derive(Default)]
struct Wish {
    options: ServeOptions,
    read_only: bool,
    snapshot: Option<SnapshotSelector>,
    socket: Option<String>,
    bind: Option<String>,
    port: Option<u16>,
    cache: CacheMode,
    discard: Option<Discard>,
    detect_zeroes: DetectZeroes,
    fork: bool,
    in_background: bool,
    pid_file: Option<String>,
    tls_creds: Option<String>,
}

/// Runs it.
pub fn run(session: &Session, mut parser: Parser) -> Result<u8, Failure> {
    let mut common = Common::new(session, parser.command);
    let mut wish = Wish::default();
    while let Some(given) = parser.next_option()? {
        wish.take(given, &mut common)?;
    }
    let name = common.one_image(parser.positionals())?;
    wish.check()?;
    if let Some(id) = &wish.tls_creds {
        let failed = |e| Failure::from(imgcore::Error::from(e)).prefix("Failed to get TLS creds");
        let credentials = common.secrets.credentials(id).map_err(failed)?;
        let server = credentials.server();
        let server = server.map_err(|e| Failure::from(e).prefix("Failed to get TLS creds"))?;
        wish.options.tls = Some(server);
    }
    if wish.fork && !wish.in_background {
        return in_background(session);
    }
    if !(wish.read_only || wish.snapshot.is_some()) {
        common.changes_images();
    }
    common.will_serve();
    for path in wish.socket.iter().chain(&wish.pid_file) {
        common.will_write(path);
    }
    let mut image = common.image(&name, wish.cache)?;
    image.request.discard = wish.discard.or(image.request.discard);
    if wish.detect_zeroes != DetectZeroes::Off {
        image.request.detect_zeroes = wish.detect_zeroes;
    }
    let read_only = wish.read_only || wish.snapshot.is_some();
    let access = if read_only { Access::Read } else { Access::Write };
    let (end, which) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    signals::on_end(&end, &which);
    let reporter = common.reporter();
    let node =
        common.run(&reporter, |job| serve::open(&image, access, wish.snapshot.clone(), job))?;
    let (listener, place) = wish.listen()?;
    let _files = Files::new(&wish)?;
    if !common.quiet {
        let name = without_credentials(&name);
        output::print(&format!("Serving '{name}' at {}\n", place.uri()));
    }
    if wish.in_background {
        output::print(READY);
        signals::leave_terminal()
            .map_err(|e| Failure::new(format!("Could not leave the terminal: {}", plain(&e))))?;
    }
    let control = Control { end, program: &session.program };
    let result = serve::serve(&node, &wish.options, &listener, &control);
    // The image is left clean whatever became of the clients; the first error is the one that counts.
    let closed = node.close();
    result.and(closed)?;
    Ok(0)
}

/// Ends the server at a signal, and tells whom it did not let in.
struct Control<'a> {
    end: Arc<AtomicBool>,
    program: &'a str,
}

impl serve::Control for Control<'_> {
    fn stop(&self) -> bool {
        self.end.load(Ordering::Relaxed)
    }

    fn refused(&self, why: &str) {
        eprintln!("{}: a client was not let in: {why}", self.program);
    }
}

impl Wish {
    fn take(&mut self, given: Given, common: &mut Common<'_>) -> Result<(), Failure> {
        let value = given.value;
        match given.id {
            "read-only" => self.read_only = true,
            "load-snapshot" => {
                let parsed =
                    selector::parse(&value).map_err(|e| super::convert::bad_snapshot(e, &value))?;
                self.snapshot = Some(parsed);
            }
            "socket" => self.socket = Some(value),
            "bind" => self.bind = Some(value),
            "port" => {
                let port = size::argument("port", &value, 0, u16::MAX.into())?;
                self.port = u16::try_from(port).ok();
            }
            "export-name" => self.options.name = text("Export name", value)?,
            "description" => self.options.description = text("Description", value)?,
            "shared" => {
                let n = size::argument("shared", &value, 0, 1024)?;
                self.options.shared = usize::try_from(n).unwrap_or(1);
            }
            "persistent" => self.options.lifetime = Lifetime::Persistent,
            "handshake-limit" => {
                let n = size::argument("handshake limit", &value, 1, 86_400)?;
                self.options.handshake_limit = Duration::from_secs(n);
            }
            "allocation-depth" => self.options.allocation_depth = true,
            "bitmap" => self.options.bitmap = Some(value),
            "cache" => self.cache = cache_mode("cache", &value)?,
            "nocache" => self.cache = CacheMode::None,
            "discard" => {
                self.discard = Some(match value.as_str() {
                    "ignore" | "off" => Discard::Ignore,
                    "unmap" | "on" => Discard::Unmap,
                    _ => return Err(Failure::new(format!("Invalid discard mode `{value}'"))),
                });
            }
            "detect-zeroes" => {
                self.detect_zeroes = match value.as_str() {
                    "off" => DetectZeroes::Off,
                    "on" => DetectZeroes::On,
                    "unmap" => DetectZeroes::Unmap,
                    _ => {
                        return Err(Failure::new(format!(
                            "Failed to parse detect_zeroes mode: invalid parameter value: {value}"
                        )));
                    }
                };
            }
            "fork" => self.fork = true,
            "in-background" => self.in_background = true,
            "pid-file" => self.pid_file = Some(value),
            "tls-creds" => self.tls_creds = Some(value),
            "tls-authz" => {
                return Err(Failure::new(
                    "--tls-authz is not supported: every client whose certificate the authority of \
                     ca-cert.pem has signed is let in; let an authority of its own sign those that \
                     may come",
                ));
            }
            "tls-hostname" => {
                return Err(Failure::new(
                    "--tls-hostname is not permitted: a server checks no host name; clients name it \
                     (tls-hostname= of driver=nbd, or of an nbds URI)",
                ));
            }
            id => common.take(Given { id, value })?,
        }
        Ok(())
    }

    /// Which options go together.
    fn check(&self) -> Result<(), Failure> {
        if activation::is_wanted() {
            let named = [
                ("--socket", self.socket.is_some()),
                ("--bind", self.bind.is_some()),
                ("--port", self.port.is_some()),
                ("--fork", self.fork),
            ];
            if let Some((option, _)) = named.iter().find(|(_, given)| *given) {
                return Err(Failure::new(format!(
                    "{option} can't be set when using socket activation (LISTEN_FDS)"
                )));
            }
        }
        if self.socket.is_some() && (self.bind.is_some() || self.port.is_some()) {
            return Err(Failure::new("--socket excludes --bind and --port"));
        }
        if self.detect_zeroes == DetectZeroes::Unmap && self.discard == Some(Discard::Ignore) {
            return Err(Failure::new(
                "setting detect-zeroes to unmap is not allowed without setting discard operation to \
                 unmap",
            ));
        }
        Ok(())
    }

    /// Opens the socket, and says where clients find the export.
    fn listen(&self) -> Result<(Listener, NbdTarget), Failure> {
        let (listener, server) = match &self.socket {
            _ if activation::is_wanted() => activation::take()?,
            Some(path) => {
                let listener = listen_at(path).map_err(|e| {
                    Failure::new(format!("Failed to bind socket to {path}: {}", plain(&e)))
                })?;
                (Listener::Unix(listener), NbdServer::Unix { path: path.clone() })
            }
            None => {
                let host = self.bind.clone().unwrap_or_else(|| "127.0.0.1".to_owned());
                let port = self.port.unwrap_or(imgcore::nbd::DEFAULT_PORT);
                let bound = TcpListener::bind((host.as_str(), port))
                    .and_then(|l| l.local_addr().map(|at| (l, at.port())));
                let (listener, port) = bound.map_err(|e| {
                    Failure::new(format!("Failed to bind socket to {host}:{port}: {}", plain(&e)))
                })?;
                (Listener::Tcp(listener), NbdServer::Inet { host, port })
            }
        };
        let mut target = NbdTarget::new(server, self.options.name.clone())?;
        if self.options.tls.is_some() {
            target.tls = Some(NbdTls::Uri { dir: None, verify: VerifyPeer::Yes });
        }
        Ok((listener, target))
    }
}

fn text(what: &str, value: String) -> Result<String, Failure> {
    if value.len() > 4096 {
        return Err(Failure::new(format!("{what} is longer than 4096 bytes")));
    }
    Ok(value)
}

/// The system's words for an error.
fn plain(error: &std::io::Error) -> String {
    imgcore::Error::io(error).report()
}

/// Listens at a UNIX socket. One that a dead server left behind is replaced, one in use is not.
fn listen_at(path: &str) -> std::io::Result<UnixListener> {
    let left_behind = std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket())
        && UnixStream::connect(path)
            .is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused);
    if left_behind {
        std::fs::remove_file(path)?;
    }
    UnixListener::bind(path)
}

/// Files that exist as long as the server does.
struct Files<'a>(&'a Wish);

impl<'a> Files<'a> {
    fn new(wish: &'a Wish) -> Result<Self, Failure> {
        let files = Files(wish);
        if let Some(path) = &wish.pid_file {
            let text = format!("{}\n", std::process::id());
            std::fs::write(path, text)
                .map_err(|e| Failure::new(format!("Cannot open PID file {path}: {}", plain(&e))))?;
        }
        Ok(files)
    }
}

impl Drop for Files<'_> {
    fn drop(&mut self) {
        for path in self.0.socket.iter().chain(&self.0.pid_file) {
            // Whoever took it away did what was to be done.
            let _ = std::fs::remove_file(Path::new(path));
        }
    }
}

/// Starts this program again as the server, and waits until clients can connect to it.
fn in_background(session: &Session) -> Result<u8, Failure> {
    let failed = |e: std::io::Error| Failure::new(format!("Failed to fork: {}", plain(&e)));
    let mut words = std::env::args_os();
    let argv0 = words.next().unwrap_or_else(|| session.called.clone().into());
    let mut args: Vec<_> = words.collect();
    // Behind the command, wherever that is: options before it are few and have none of our names.
    let at = args.iter().position(|word| word == "serve").map_or(args.len(), |at| at + 1);
    args.insert(at, "--in-background".into());
    let mut server = Command::new(std::env::current_exe().map_err(failed)?)
        .arg0(argv0)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let mut said = String::new();
    if let Some(mut stdout) = server.stdout.take() {
        stdout.read_to_string(&mut said).map_err(failed)?;
    }
    if let Some(rest) = said.strip_suffix(READY) {
        output::print(rest);
        return Ok(0);
    }
    let status = server.wait().map_err(failed)?;
    // It has said why.
    let code = status.code().and_then(|c| u8::try_from(c).ok()).filter(|c| *c != 0);
    Err(Failure::silent(code.unwrap_or(1)))
}
