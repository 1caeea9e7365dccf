//! Back ends as plain data.

use std::path::PathBuf;
use std::time::Duration;

/// A character device: where bytes come from and go to, and whether several front ends share it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CharConfig {
    /// Where the bytes are.
    pub kind: CharKind,
    /// Who uses it.
    pub sharing: Sharing,
    /// A copy of everything the guest sends, too.
    pub log: Option<LogFile>,
}

impl From<CharKind> for CharConfig {
    fn from(kind: CharKind) -> Self {
        CharConfig { kind, sharing: Sharing::Alone, log: None }
    }
}

/// Whether one front end uses a back end, or several by turns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sharing {
    /// One.
    #[default]
    Alone,
    /// Several; the escape key says to whom input goes (`mux=on`).
    Mux,
}

/// Kinds of back ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CharKind {
    /// Nothing is connected; output is lost.
    #[default]
    Null,
    /// The caller's standard input and output.
    Stdio {
        /// What Ctrl-c and Ctrl-z do.
        signals: Signals,
    },
    /// Output goes to a file.
    File {
        /// The file.
        path: PathBuf,
        /// What becomes of what it held.
        mode: FileMode,
        /// Input comes from there.
        input: Option<PathBuf>,
    },
    /// A new pseudo terminal.
    Pty,
    /// Two named pipes, `PATH.in` and `PATH.out`; or one for both.
    Pipe(PathBuf),
    /// A stream socket.
    Socket(SocketConfig),
    /// Datagrams.
    Udp {
        /// Host and port to send to.
        to: (String, u16),
        /// Host and port to receive at; port 0 for any.
        from: (String, u16),
    },
    /// The last bytes are kept in memory; so many, a power of two.
    Ring(usize),
}

/// What the terminal's signal keys do while a guest uses it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Signals {
    /// They act on this program.
    #[default]
    Act,
    /// They go to the guest as characters.
    Pass,
}

/// What becomes of a file that exists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FileMode {
    /// It becomes empty.
    #[default]
    Truncate,
    /// Output is put behind.
    Append,
}

/// `logfile=`, `logappend=`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogFile {
    /// The file.
    pub path: PathBuf,
    /// What becomes of what it held.
    pub mode: FileMode,
}

/// A stream socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketConfig {
    /// Where.
    pub address: SocketAddress,
    /// Which side we are.
    pub role: Role,
    /// What is spoken.
    pub protocol: Protocol,
    /// Small packets are sent at once (TCP_NODELAY).
    pub nodelay: bool,
}

/// Address of a stream socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SocketAddress {
    /// A socket in the file system.
    Unix(PathBuf),
    /// Host (empty for all) and port.
    Tcp(String, u16),
    /// An open descriptor that this program was given.
    Fd(i32),
}

/// Which side of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Others connect to us.
    Server(Wait),
    /// We connect; and again so long after the connection broke or failed, if at all.
    Client(Option<Duration>),
}

/// Whether the machine waits for somebody to connect before it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// It does.
    On,
    /// It does not.
    Off,
}

/// What is spoken on a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// The bytes themselves.
    #[default]
    Raw,
    /// The TELNET protocol (RFC 854).
    Telnet,
}
