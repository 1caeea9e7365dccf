//! Opening back ends: terminals, files, pipes, sockets.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::IsTerminal;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};

use super::carrier::{set_nonblocking, terminal_open};
use super::config::{
    CharKind, FileMode, LogFile, Protocol, Role, SocketAddress, SocketConfig, Wait,
};
use super::device::Sink;
use crate::{Error, Result};

/// What the caller gives for [`CharKind::Stdio`].
#[derive(Debug, Default)]
pub struct Standard {
    /// To be read.
    pub input: Option<OwnedFd>,
    /// To be written.
    pub output: Option<OwnedFd>,
}

/// An open connection. Reads and writes do not block after poll has said that something is possible.
#[derive(Debug)]
pub(super) struct Link {
    pub input: Option<File>,
    pub output: Option<File>,
    pub filename: String,
}

/// Where connections come from.
#[derive(Debug)]
pub(super) enum Source {
    /// There is one, and there will be no other.
    Fixed,
    /// As before; errors of one datagram say nothing about the next.
    Datagrams,
    /// Whoever opens the other side.
    Pty { master: OwnedFd, name: String },
    /// Whoever connects.
    Server { listener: Listener, config: SocketConfig },
    /// We connect, again and again. The addresses were found at the start: later the sandbox may keep
    /// names from being looked up.
    Client { config: SocketConfig, pause: Duration, addresses: Vec<SocketAddr> },
    /// We have connected once.
    Once { config: SocketConfig },
}

#[derive(Debug)]
pub(super) enum Listener {
    Unix(UnixListener, PathBuf),
    Tcp(TcpListener),
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Listener::Unix(_, path) = self {
            // Somebody may have taken it away already.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// An open back end.
pub(super) struct Opened {
    pub source: Source,
    pub link: Option<Link>,
    pub sink: Sink,
    pub telnet: bool,
    pub filename: String,
}

fn fixed(link: Option<Link>, sink: Sink, filename: &str) -> Opened {
    Opened { source: Source::Fixed, link, sink, telnet: false, filename: filename.into() }
}

/// Opens a back end for the device named `label`; `notice` gets lines for people at once (the name of a
/// pseudo terminal, that a connection is waited for).
pub(super) fn open(
    kind: &CharKind,
    standard: &mut Standard,
    label: &str,
    notice: &mut dyn FnMut(&str),
) -> Result<Opened> {
    match kind {
        CharKind::Null => Ok(fixed(None, Sink::None, "null")),
        CharKind::Ring(most) => {
            let sink = Sink::Ring { bytes: VecDeque::new(), most: *most };
            Ok(fixed(None, sink, "ringbuf"))
        }
        CharKind::Stdio { .. } => stdio(standard),
        CharKind::File { path, mode, input } => file(path, *mode, input.as_deref()),
        CharKind::Pty => pty(label, notice),
        CharKind::Pipe(path) => pipe(path),
        CharKind::Udp { to, from } => udp(to, from),
        CharKind::Socket(config) => socket(config, notice),
    }
}

fn open_file(options: &mut OpenOptions, path: &Path) -> Result<File> {
    let shown = path.display().to_string();
    options
        .open(path)
        .map_err(|e| Error::io(&e).context(format!("Could not open '{shown}'")).at_path(&shown))
}

fn create(path: &Path, mode: FileMode) -> Result<File> {
    let mut options = OpenOptions::new();
    options.create(true);
    match mode {
        FileMode::Truncate => options.write(true).truncate(true),
        FileMode::Append => options.append(true),
    };
    open_file(&mut options, path)
}

/// The file of `logfile=`.
pub(super) fn open_log(log: &LogFile) -> Result<File> {
    create(&log.path, log.mode)
}

fn file(path: &Path, mode: FileMode, input: Option<&Path>) -> Result<Opened> {
    let output = create(path, mode)?;
    let Some(input) = input else { return Ok(fixed(None, Sink::File(output), "file")) };
    let input = open_file(OpenOptions::new().read(true), input)?;
    let link = Link { input: Some(input), output: Some(output), filename: "file".into() };
    Ok(fixed(Some(link), Sink::Queue, "file"))
}

/// A terminal is opened anew, so that it can be made non-blocking for us alone; other descriptors are
/// polled before each small piece.
fn own_handle(fd: OwnedFd, write: bool) -> File {
    use std::os::fd::AsRawFd;
    let file = File::from(fd);
    if !file.is_terminal() {
        return file;
    }
    let mut options = OpenOptions::new();
    options.read(!write).write(write).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    options.open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap_or(file)
}

fn stdio(standard: &mut Standard) -> Result<Opened> {
    let output = standard.output.take().ok_or_else(|| {
        Error::invalid("cannot use stdio by multiple character devices").hint(
            "Connect one device to stdio, the others elsewhere (-serial null), or share it: mon:stdio",
        )
    })?;
    let link = Link {
        input: standard.input.take().map(|fd| own_handle(fd, false)),
        output: Some(own_handle(output, true)),
        filename: "stdio".into(),
    };
    Ok(fixed(Some(link), Sink::Queue, "stdio"))
}

fn pty(label: &str, notice: &mut dyn FnMut(&str)) -> Result<Opened> {
    use nix::fcntl::OFlag;
    use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
    let explain = |e: nix::Error| Error::from(e).context("Failed to create PTY");
    let master =
        posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).map_err(explain)?;
    grantpt(&master).map_err(explain)?;
    unlockpt(&master).map_err(explain)?;
    let name = ptsname_r(&master).map_err(explain)?;
    {
        // Raw from the start; closing it again makes the master say that nobody is there.
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_NOCTTY);
        let slave = open_file(&mut options, Path::new(&name))?;
        let mut modes = tcgetattr(&slave).map_err(explain)?;
        cfmakeraw(&mut modes);
        tcsetattr(&slave, SetArg::TCSANOW, &modes).map_err(explain)?;
    }
    let master = master.as_fd().try_clone_to_owned().map_err(|e| Error::io(&e))?;
    set_nonblocking(&master).map_err(|e| Error::io(&e))?;
    notice(&format!("char device redirected to {name} (label {label})"));
    let filename = format!("pty:{name}");
    Ok(Opened {
        source: Source::Pty { master, name: filename.clone() },
        link: None,
        sink: Sink::Queue,
        telnet: false,
        filename,
    })
}

/// `PATH.in` and `PATH.out`; both ends are opened for reading and writing, so that neither opening nor a
/// peer that goes away blocks or ends anything.
fn pipe(path: &Path) -> Result<Opened> {
    let of = |suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let (into, out) = match (of(".in"), of(".out")) {
        (a, b) if a.exists() && b.exists() => (a, b),
        _ => (path.to_owned(), path.to_owned()),
    };
    let open_one = |p: &Path| {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
        let shown = path.display();
        let file = open_file(&mut options, p)
            .map_err(|e| e.hint(format!("Make the pipes first: mkfifo {shown}.in {shown}.out")))?;
        let is_pipe = file.metadata().is_ok_and(|m| m.file_type().is_fifo());
        if is_pipe {
            return Ok(file);
        }
        Err(Error::invalid(format!("'{}' is no named pipe", p.display()))
            .hint(format!("Make the pipes first: mkfifo {shown}.in {shown}.out")))
    };
    let link = Link {
        input: Some(open_one(&into)?),
        output: Some(open_one(&out)?),
        filename: "pipe".into(),
    };
    Ok(fixed(Some(link), Sink::Queue, "pipe"))
}

fn udp(to: &(String, u16), from: &(String, u16)) -> Result<Opened> {
    let host = |h: &str, other: &str| if h.is_empty() { other.to_owned() } else { h.to_owned() };
    let (to_host, from_host) = (host(&to.0, "127.0.0.1"), host(&from.0, "0.0.0.0"));
    let name = format!("udp:{to_host}:{}", to.1);
    let explain = |e: std::io::Error| Error::io(&e).context(format!("cannot open {name}"));
    let socket = UdpSocket::bind((from_host.as_str(), from.1)).map_err(explain)?;
    socket.connect((to_host.as_str(), to.1)).map_err(explain)?;
    socket.set_nonblocking(true).map_err(explain)?;
    let output = socket.try_clone().map_err(explain)?;
    let link = Link {
        input: Some(File::from(OwnedFd::from(socket))),
        output: Some(File::from(OwnedFd::from(output))),
        filename: name.clone(),
    };
    Ok(Opened {
        source: Source::Datagrams,
        link: Some(link),
        sink: Sink::Queue,
        telnet: false,
        filename: name,
    })
}

/// A socket as `info chardev` names it, without its state.
fn shown(config: &SocketConfig) -> String {
    let role = match config.role {
        Role::Server(_) => ",server=on",
        Role::Client(_) => "",
    };
    let scheme = if config.protocol == Protocol::Telnet { "telnet" } else { "tcp" };
    match &config.address {
        SocketAddress::Unix(path) => format!("unix:{}{role}", path.display()),
        SocketAddress::Tcp(host, port) => format!("{scheme}:{host}:{port}{role}"),
        SocketAddress::Fd(fd) => format!("fd:{fd}{role}"),
    }
}

fn socket(config: &SocketConfig, notice: &mut dyn FnMut(&str)) -> Result<Opened> {
    let telnet = config.protocol == Protocol::Telnet;
    let waiting = format!("disconnected:{}", shown(config));
    let (source, link) = match config.role {
        Role::Server(wait) => {
            let listener = listen(config)?;
            let link = match wait {
                Wait::Off => None,
                Wait::On => {
                    notice(&format!("rkvm waiting for connection on: {waiting}"));
                    Some(
                        accept(&listener, config)
                            .map_err(|e| Error::io(&e).context(waiting.clone()))?,
                    )
                }
            };
            if let Listener::Tcp(l) = &listener {
                l.set_nonblocking(true).map_err(|e| Error::io(&e))?;
            }
            if let Listener::Unix(l, _) = &listener {
                l.set_nonblocking(true).map_err(|e| Error::io(&e))?;
            }
            (Source::Server { listener, config: config.clone() }, link)
        }
        Role::Client(None) => {
            let link = dial(config).map_err(|e| {
                Error::io(&e)
                    .context(format!("Failed to connect to '{}'", shown(config)))
                    .hint("Start the other side first, let us listen (server=on), or try again by reconnect=SECONDS")
            })?;
            (Source::Once { config: config.clone() }, Some(link))
        }
        Role::Client(Some(pause)) => {
            let addresses = addresses(config).unwrap_or_default();
            let link = dial_one_of(config, &addresses).ok();
            (Source::Client { config: config.clone(), pause, addresses }, link)
        }
    };
    let filename = link.as_ref().map_or(waiting, |l| l.filename.clone());
    Ok(Opened { source, link, sink: Sink::Queue, telnet, filename })
}

fn listen(config: &SocketConfig) -> Result<Listener> {
    let explain =
        |e: std::io::Error| Error::io(&e).context(format!("Failed to listen on {}", shown(config)));
    match &config.address {
        SocketAddress::Unix(path) => {
            // A socket that an earlier run left behind, and only a socket.
            if path.symlink_metadata().is_ok_and(|m| m.file_type().is_socket())
                && UnixStream::connect(path).is_err()
            {
                let _ = std::fs::remove_file(path);
            }
            let listener = UnixListener::bind(path).map_err(|e| {
                explain(e).hint(
                    "Another program listens there, or the folder is missing: choose another path",
                )
            })?;
            let absolute = std::path::absolute(path).unwrap_or_else(|_| path.clone());
            Ok(Listener::Unix(listener, absolute))
        }
        SocketAddress::Tcp(host, port) => {
            let host = if host.is_empty() { "0.0.0.0" } else { host };
            let listener = TcpListener::bind((host, *port)).map_err(|e| {
                explain(e).hint("Choose another port, or stop the program that has this one")
            })?;
            Ok(Listener::Tcp(listener))
        }
        SocketAddress::Fd(fd) => {
            let own = crate::fd::borrow(*fd).try_clone_to_owned().map_err(explain)?;
            Ok(Listener::Tcp(TcpListener::from(own)))
        }
    }
}

fn accept(listener: &Listener, config: &SocketConfig) -> std::io::Result<Link> {
    match listener {
        Listener::Unix(l, _) => {
            let (stream, _) = l.accept()?;
            link_of(stream.into(), shown(config))
        }
        Listener::Tcp(l) => {
            let (stream, peer) = l.accept()?;
            stream.set_nodelay(config.nodelay).ok();
            link_of(stream.into(), format!("{} <-> {peer}", shown(config)))
        }
    }
}

/// What a host's name stands for; nothing for sockets without one.
fn addresses(config: &SocketConfig) -> std::io::Result<Vec<SocketAddr>> {
    let SocketAddress::Tcp(host, port) = &config.address else { return Ok(Vec::new()) };
    let host = if host.is_empty() { "127.0.0.1" } else { host };
    Ok((host, *port).to_socket_addrs()?.collect())
}

fn dial(config: &SocketConfig) -> std::io::Result<Link> {
    dial_one_of(config, &addresses(config)?)
}

fn dial_one_of(config: &SocketConfig, addresses: &[SocketAddr]) -> std::io::Result<Link> {
    match &config.address {
        SocketAddress::Unix(path) => link_of(UnixStream::connect(path)?.into(), shown(config)),
        SocketAddress::Tcp(..) => {
            let mut last = std::io::Error::from(std::io::ErrorKind::AddrNotAvailable);
            for address in addresses {
                match TcpStream::connect_timeout(address, Duration::from_secs(10)) {
                    Ok(stream) => {
                        stream.set_nodelay(config.nodelay).ok();
                        let here =
                            stream.local_addr().map_or_else(|_| String::new(), |a| a.to_string());
                        return link_of(stream.into(), format!("{} <-> {here}", shown(config)));
                    }
                    Err(e) => last = e,
                }
            }
            Err(last)
        }
        SocketAddress::Fd(fd) => {
            link_of(crate::fd::borrow(*fd).try_clone_to_owned()?, shown(config))
        }
    }
}

fn link_of(socket: OwnedFd, filename: String) -> std::io::Result<Link> {
    set_nonblocking(&socket)?;
    let output = socket.try_clone()?;
    Ok(Link { input: Some(File::from(socket)), output: Some(File::from(output)), filename })
}

impl Source {
    /// To be polled while nobody is connected.
    pub fn listener(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Source::Server { listener: Listener::Unix(l, _), .. } => Some(l.as_fd()),
            Source::Server { listener: Listener::Tcp(l), .. } => Some(l.as_fd()),
            _ => None,
        }
    }

    /// Takes a connection, if there still is one.
    pub fn accept(&self, _label: &str) -> Option<Link> {
        match self {
            Source::Server { listener, config } => accept(listener, config).ok(),
            _ => None,
        }
    }

    /// How long to wait before connecting again.
    pub fn redial_after(&self) -> Option<Duration> {
        match self {
            Source::Client { pause, .. } => Some(*pause),
            _ => None,
        }
    }

    /// Connects again.
    pub fn dial(&self) -> Option<Link> {
        match self {
            Source::Client { config, addresses, .. } if addresses.is_empty() => dial(config).ok(),
            Source::Client { config, addresses, .. } => dial_one_of(config, addresses).ok(),
            _ => None,
        }
    }

    /// The terminal, if somebody has its other side open.
    pub fn terminal(&self) -> Option<Link> {
        match self {
            Source::Pty { master, name } if terminal_open(master) => {
                let handle = || master.try_clone().ok().map(File::from);
                Some(Link { input: handle(), output: handle(), filename: name.clone() })
            }
            _ => None,
        }
    }

    /// What it is called while nobody is connected, where that differs.
    pub fn waiting_name(&self) -> Option<String> {
        match self {
            Source::Server { config, .. }
            | Source::Client { config, .. }
            | Source::Once { config } => Some(format!("disconnected:{}", shown(config))),
            _ => None,
        }
    }
}
