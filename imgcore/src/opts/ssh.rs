//! Where a file on a host reached by ssh is: `ssh://[USER@]HOST[:PORT]/PATH[?host_key_check=...]`, and the options of
//! `driver=ssh`.
//!
//! Options are those of QEMU's driver: `server.host`, `server.port` (or `host`, `port`), `user`, `path`,
//! `host-key-check.mode` (`none`, `hash`, `known_hosts`) with `.type` and `.hash`, and the older `host_key_check`
//! (`no`, `yes`, `md5:...`, `sha1:...`, `sha256:...`).
//!
//! A fingerprint is written in hexadecimal digits, with or without colons. One of SHA-256 may also be written as
//! `ssh-keygen -l` shows it (Base64 without padding).

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;

use super::OptError;
use super::given::Given;
use super::nbd::{decoded, encoded};

/// Port of the protocol (RFC 4253, 4.1).
pub const DEFAULT_PORT: u16 = 22;
/// Longest path that is sent to a server.
const MAX_PATH: usize = 4096;

/// How a fingerprint was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashKind {
    /// MD5, 16 bytes.
    Md5,
    /// SHA-1, 20 bytes.
    Sha1,
    /// SHA-256, 32 bytes.
    Sha256,
}

impl HashKind {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "md5" => Some(HashKind::Md5),
            "sha1" => Some(HashKind::Sha1),
            "sha256" => Some(HashKind::Sha256),
            _ => None,
        }
    }

    /// Its name in options.
    pub fn name(self) -> &'static str {
        match self {
            HashKind::Md5 => "md5",
            HashKind::Sha1 => "sha1",
            HashKind::Sha256 => "sha256",
        }
    }

    fn len(self) -> usize {
        match self {
            HashKind::Md5 => 16,
            HashKind::Sha1 => 20,
            HashKind::Sha256 => 32,
        }
    }
}

/// How the server proves that it is the right one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HostKeyCheck {
    /// Its key is in the user's or the system's `known_hosts`.
    #[default]
    KnownHosts,
    /// Its key has this fingerprint.
    Hash {
        /// How it is made.
        kind: HashKind,
        /// The fingerprint.
        hash: Vec<u8>,
    },
    /// Not at all: whoever sits on the way can read and change everything.
    Nothing,
}

impl HostKeyCheck {
    /// The form of `host_key_check`.
    fn parse(text: &str) -> Result<Self, OptError> {
        match text {
            "yes" => Ok(HostKeyCheck::KnownHosts),
            "no" => Ok(HostKeyCheck::Nothing),
            _ => {
                let (kind, hash) = text
                    .split_once(':')
                    .and_then(|(kind, hash)| Some((HashKind::parse(kind)?, hash)))
                    .ok_or_else(|| unknown_check(text))?;
                HostKeyCheck::hash(kind, hash)
            }
        }
    }

    fn hash(kind: HashKind, text: &str) -> Result<Self, OptError> {
        let bad = || {
            OptError::new(format!(
                "'{text}' is not a fingerprint of {}: it has {} hexadecimal digits",
                kind.name(),
                2 * kind.len()
            ))
            .hint("ssh-keygen -l -f FILE.pub on the server shows the fingerprints of its keys")
        };
        if kind == HashKind::Sha256
            && let Ok(hash) = STANDARD_NO_PAD.decode(text)
            && hash.len() == kind.len()
        {
            return Ok(HostKeyCheck::Hash { kind, hash });
        }
        let digits: Vec<u8> = text.bytes().filter(|b| *b != b':').collect();
        if digits.len() != 2 * kind.len() || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(bad());
        }
        let byte = |pair: &[u8]| {
            std::str::from_utf8(pair).ok().and_then(|p| u8::from_str_radix(p, 16).ok())
        };
        let hash: Option<Vec<u8>> = digits.chunks(2).map(byte).collect();
        Ok(HostKeyCheck::Hash { kind, hash: hash.ok_or_else(bad)? })
    }

    /// The form of `host-key-check.*`.
    fn from_parts(
        mode: Option<&str>,
        kind: Option<&str>,
        hash: Option<&str>,
    ) -> Result<Self, OptError> {
        match (mode, kind, hash) {
            (Some("none"), None, None) => Ok(HostKeyCheck::Nothing),
            (None | Some("known_hosts"), None, None) => Ok(HostKeyCheck::KnownHosts),
            (Some("hash"), Some(kind), Some(hash)) => {
                let kind = HashKind::parse(kind).ok_or_else(|| {
                    OptError::not_accepted("host-key-check.type", kind)
                        .hint("types are md5, sha1 and sha256")
                })?;
                HostKeyCheck::hash(kind, hash)
            }
            (Some("hash"), None, _) => {
                Err(OptError::new("Parameter 'host-key-check.type' is missing"))
            }
            (Some("hash"), _, None) => {
                Err(OptError::new("Parameter 'host-key-check.hash' is missing"))
            }
            (Some(mode @ ("none" | "known_hosts")), ..) => Err(OptError::new(format!(
                "host-key-check.type and .hash do not go with host-key-check.mode={mode}"
            ))),
            (Some(mode), ..) => Err(OptError::not_accepted("host-key-check.mode", mode)
                .hint("modes are none, hash and known_hosts")),
            (None, ..) => Err(OptError::new("Parameter 'host-key-check.mode' is missing")),
        }
    }

    /// The form of `host_key_check`, where it is not the default.
    fn shown(&self) -> Option<String> {
        match self {
            HostKeyCheck::KnownHosts => None,
            HostKeyCheck::Nothing => Some("no".to_owned()),
            HostKeyCheck::Hash { kind, hash } => Some(format!("{}:{}", kind.name(), hex(hash))),
        }
    }
}

/// Hexadecimal digits of a fingerprint.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unknown_check(text: &str) -> OptError {
    OptError::new(format!("unknown host_key_check setting ({text})"))
        .hint("settings are yes, no, md5:HEX, sha1:HEX and sha256:HEX")
}

/// A file on a host reached by ssh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SshTarget {
    /// Name or address of the host; an IPv6 address without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
    /// The user there; the one here when not given.
    pub user: Option<String>,
    /// The file's path on the server.
    pub path: String,
    /// How the server is recognised.
    pub check: HostKeyCheck,
}

impl SshTarget {
    fn new(host: &str, path: String) -> Result<Self, OptError> {
        if host.is_empty() {
            return Err(OptError::new("No hostname was specified"));
        }
        if path.is_empty() {
            return Err(OptError::new("No path was specified"));
        }
        if path.len() > MAX_PATH {
            return Err(OptError::new(format!("the path is longer than {MAX_PATH} bytes")));
        }
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        let odd = |c: char| c.is_whitespace() || c.is_control() || "[]/,".contains(c);
        if host.contains(odd) {
            return Err(OptError::new(format!("'{host}' is not a host name")));
        }
        let check = HostKeyCheck::default();
        Ok(SshTarget { host: host.to_owned(), port: DEFAULT_PORT, user: None, path, check })
    }

    /// From a URL.
    pub fn parse(url: &str) -> Result<Self, OptError> {
        let bad = |why: &str| OptError::new(format!("'{}' {why}", without_password(url)));
        let rest = url
            .strip_prefix("ssh://")
            .ok_or_else(|| bad("is not a URL of ssh (ssh://USER@HOST:PORT/PATH)"))?;
        let (rest, query) = rest.split_once('?').map_or((rest, None), |(r, q)| (r, Some(q)));
        let at = rest.find('/').unwrap_or(rest.len());
        let (authority, path) = rest.split_at(at);
        let (user, server) = match authority.rsplit_once('@') {
            Some((user, server)) => (Some(user), server),
            None => (None, authority),
        };
        if user.is_some_and(|u| u.contains(':')) {
            return Err(bad("holds a password, which is not used")
                .hint("keys are taken from the agent (ssh-add) and from ~/.ssh"));
        }
        let plain = |text: &str| decoded(text).ok_or_else(|| bad("is not a valid URL"));
        // The colon of a port stands behind the brackets of an address.
        let colon = server.rfind(':').filter(|at| !server[*at..].contains(']'));
        let (host, port) = match colon {
            Some(at) => (&server[..at], Some(&server[at + 1..])),
            None => (server, None),
        };
        let mut target = SshTarget::new(&plain(host)?, plain(path)?)?;
        if let Some(port) = port {
            target.port = port_of(port)?;
        }
        target.user = user.map(plain).transpose()?.filter(|u| !u.is_empty());
        for item in query.unwrap_or_default().split('&').filter(|i| !i.is_empty()) {
            match item.split_once('=') {
                Some(("host_key_check", value)) => {
                    target.check = HostKeyCheck::parse(&plain(value)?)?;
                }
                _ => return Err(bad(&format!("has an unknown parameter '{item}'"))),
            }
        }
        Ok(target)
    }

    /// From the options of `driver=ssh`, and its `filename` if there is one.
    pub fn from_options(
        filename: Option<&str>,
        options: &[(String, String)],
    ) -> Result<Self, OptError> {
        let mut given = Given::new("ssh", options);
        let mut take = |names: &[&str]| given.take(names);
        let host = take(&["server.host", "host"]);
        let port = take(&["server.port", "port"]);
        let (path, user) = (take(&["path"]), take(&["user"]));
        let old = take(&["host_key_check"]);
        let (mode, kind, hash) = (
            take(&["host-key-check.mode"]),
            take(&["host-key-check.type"]),
            take(&["host-key-check.hash"]),
        );
        given.end()?;
        let mut target = match filename {
            Some(_) if host.is_some() || path.is_some() || port.is_some() => {
                return Err(OptError::new(
                    "host, port, path and filename may not be used at the same time",
                ));
            }
            Some(name) => SshTarget::parse(name)?,
            None => SshTarget::new(&host.unwrap_or_default(), path.unwrap_or_default())?,
        };
        if let Some(port) = port {
            target.port = port_of(&port)?;
        }
        target.user = user.or(target.user);
        let newer = mode.is_some() || kind.is_some() || hash.is_some();
        match (old, newer) {
            (Some(_), true) => {
                return Err(OptError::new(
                    "host_key_check and host-key-check may not be used at the same time",
                ));
            }
            (Some(old), false) => target.check = HostKeyCheck::parse(&old)?,
            (None, true) => {
                target.check =
                    HostKeyCheck::from_parts(mode.as_deref(), kind.as_deref(), hash.as_deref())?;
            }
            (None, false) => {}
        }
        Ok(target)
    }

    /// The host and its port as `known_hosts` writes them: `host`, or `[host]:port` (sshd(8)).
    pub fn known_name(&self) -> String {
        match self.port {
            DEFAULT_PORT => self.host.clone(),
            port => format!("[{}]:{port}", self.host),
        }
    }

    /// The URL that says all of it.
    pub fn url(&self) -> String {
        let user = self.user.as_ref().map(|u| format!("{}@", encoded(u))).unwrap_or_default();
        let host =
            if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let port =
            if self.port == DEFAULT_PORT { String::new() } else { format!(":{}", self.port) };
        let path = encoded(&self.path);
        let slash = if path.starts_with('/') { "" } else { "/" };
        let check = self.check.shown().map(|c| format!("?host_key_check={c}")).unwrap_or_default();
        format!("ssh://{user}{host}{port}{slash}{path}{check}")
    }

    /// The same on the same host under another path.
    #[must_use]
    pub fn beside(&self, path: String) -> Self {
        SshTarget { path, ..self.clone() }
    }
}

fn port_of(text: &str) -> Result<u16, OptError> {
    text.parse()
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| OptError::new(format!("ssh port '{text}' is not a number from 1 to 65535")))
}

/// A URL without a password that somebody wrote into it.
fn without_password(url: &str) -> std::borrow::Cow<'_, str> {
    super::http::without_credentials(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> Result<SshTarget, OptError> {
        let all: Vec<(String, String)> = text
            .split(',')
            .filter_map(|p| p.split_once('='))
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect();
        SshTarget::from_options(None, &all)
    }

    const MD5: &str = "00112233445566778899aabbccddeeff";

    #[test]
    fn urls() {
        let shown = |text: &str| SshTarget::parse(text).map_or_else(|e| e.message, |t| t.url());
        for (text, wanted) in [
            ("ssh://h/a.qcow2", "ssh://h/a.qcow2"),
            ("ssh://me@h:22/a", "ssh://me@h/a"),
            ("ssh://me@[::1]:2222/a%20b", "ssh://me@[::1]:2222/a%20b"),
            ("ssh://h/a?host_key_check=no", "ssh://h/a?host_key_check=no"),
            ("ssh://h/a?host_key_check=yes", "ssh://h/a"),
            ("ssh://h", "No path was specified"),
            ("ssh:///a", "No hostname was specified"),
            ("ssh:h", "'ssh:h' is not a URL of ssh (ssh://USER@HOST:PORT/PATH)"),
            ("ssh://h:x/a", "ssh port 'x' is not a number from 1 to 65535"),
            ("ssh://h:0/a", "ssh port '0' is not a number from 1 to 65535"),
            ("ssh://h/%zz", "'ssh://h/%zz' is not a valid URL"),
            ("ssh://h/a?b=c", "'ssh://h/a?b=c' has an unknown parameter 'b=c'"),
            ("ssh://h/a?host_key_check=maybe", "unknown host_key_check setting (maybe)"),
        ] {
            assert_eq!(shown(text), wanted, "{text}");
        }
        let refused = SshTarget::parse("ssh://me:sesame@h/a").unwrap_err().message;
        assert!(refused.contains("holds a password") && !refused.contains("sesame"), "{refused}");
        let colons = format!(
            "ssh://h/a?host_key_check=md5:{}",
            "00:11:22:33:44:55:66:77:88:99:aa:bb:cc:dd:ee:ff"
        );
        assert_eq!(shown(&colons), format!("ssh://h/a?host_key_check=md5:{MD5}"));
    }

    #[test]
    fn all_options() {
        let t = options("server.host=::1,server.port=2222,user=u,path=/a").unwrap();
        assert_eq!(t.url(), "ssh://u@[::1]:2222/a");
        assert_eq!(t.known_name(), "[::1]:2222");
        let t = options("host=h,path=a,host-key-check.mode=none").unwrap();
        assert_eq!((t.check, t.port, t.path.as_str()), (HostKeyCheck::Nothing, 22, "a"));
        let hash = format!(
            "host=h,path=/a,host-key-check.mode=hash,host-key-check.type=md5,host-key-check.hash={MD5}"
        );
        assert_eq!(options(&hash).unwrap().url(), format!("ssh://h/a?host_key_check=md5:{MD5}"));
        let base = STANDARD_NO_PAD.encode([7; 32]);
        let t = options(&format!("host=h,path=/a,host_key_check=sha256:{base}")).unwrap();
        assert_eq!(t.check, HostKeyCheck::Hash { kind: HashKind::Sha256, hash: vec![7; 32] });
        let message = |text: &str| options(text).unwrap_err().message;
        for (text, wanted) in [
            ("", "No hostname was specified"),
            ("host=h", "No path was specified"),
            ("host=h,path=/a,foo=b", "Block protocol 'ssh' doesn't support the option 'foo'"),
            (
                "host=h,path=/a,host-key-check.mode=hash",
                "Parameter 'host-key-check.type' is missing",
            ),
            ("host=h,path=/a,host-key-check.hash=a", "Parameter 'host-key-check.mode' is missing"),
            (
                "host=h,path=/a,host_key_check=sha1:abc",
                "'abc' is not a fingerprint of sha1: it has 40 hexadecimal digits",
            ),
        ] {
            assert_eq!(message(text), wanted, "{text}");
        }
        assert!(
            message("host=h,path=/a,host_key_check=no,host-key-check.mode=none")
                .contains("same time")
        );
    }
}
