//! Where an NBD export is: `nbd:HOST:PORT`, `nbd://HOST/NAME`, `nbd+unix:///NAME?socket=PATH`, and the
//! options of `driver=nbd`.
//!
//! URIs are those of `doc/uri.md` of the NBD project; the form with colons is QEMU's older one.

use std::fmt::Write;
use std::time::Duration;

use super::OptError;
use crate::nbd::{DEFAULT_PORT, MAX_STRING};

/// The server's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NbdServer {
    /// TCP.
    Inet {
        /// Host name or address, without brackets.
        host: String,
        /// Port.
        port: u16,
    },
    /// A UNIX socket.
    Unix {
        /// Its path.
        path: String,
    },
}

/// An export of a server, and how patiently it is spoken to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdTarget {
    /// The server.
    pub server: NbdServer,
    /// Name of the export; may be empty.
    pub export: String,
    /// After a connection broke: how long a new one is tried before requests fail. Zero: not at all.
    pub reconnect_delay: Duration,
    /// How long the first connection is tried. Zero: once.
    pub open_timeout: Duration,
}

impl NbdTarget {
    fn new(server: NbdServer, export: String) -> Result<Self, OptError> {
        if crate::num::len_u64(export.len()) > u64::from(MAX_STRING) {
            return Err(OptError::new(format!(
                "NBD export name is longer than {MAX_STRING} bytes"
            )));
        }
        let zero = Duration::ZERO;
        Ok(NbdTarget { server, export, reconnect_delay: zero, open_timeout: zero })
    }

    /// From a file name with an NBD prefix.
    pub fn parse(name: &str) -> Result<Self, OptError> {
        let (scheme, rest) = name.split_once(':').unwrap_or((name, ""));
        if scheme.starts_with("nbds") {
            return Err(no_tls());
        }
        if let Some(rest) = rest.strip_prefix("//") {
            return from_uri(scheme == "nbd+unix", rest, name);
        }
        if scheme != "nbd" {
            return Err(bad_address(rest));
        }
        let (address, export) = rest.split_once(":exportname=").unwrap_or((rest, ""));
        if let Some(path) = address.strip_prefix("unix:") {
            return NbdTarget::new(unix(path)?, export.to_owned());
        }
        let (host, port) = address.rsplit_once(':').ok_or_else(|| bad_address(address))?;
        let port = port.parse().map_err(|_| bad_address(address))?;
        let host = bare_host(host).ok_or_else(|| bad_address(address))?;
        NbdTarget::new(NbdServer::Inet { host, port }, export.to_owned())
    }

    /// From the options of `driver=nbd`, in dotted form, and its `filename` if there is one.
    pub fn from_options(
        filename: Option<&str>,
        options: &[(String, String)],
    ) -> Result<Self, OptError> {
        let mut left = options.to_vec();
        let mut take = |names: &[&str]| {
            let at = left.iter().position(|(key, _)| names.contains(&key.as_str()))?;
            Some(left.swap_remove(at).1)
        };
        let kind = take(&["server.type"]);
        let path = take(&["server.path", "server.data.path", "path"]);
        let host = take(&["server.host", "server.data.host", "host"]);
        let port = take(&["server.port", "server.data.port", "port"]);
        let export = take(&["export"]);
        let delay = seconds("reconnect-delay", take(&["reconnect-delay"]))?;
        let timeout = seconds("open-timeout", take(&["open-timeout"]))?;
        if left.iter().any(|(key, _)| key.starts_with("tls-")) {
            return Err(no_tls());
        }
        if let Some((key, _)) = left.first() {
            return Err(OptError::new(format!(
                "Block protocol 'nbd' doesn't support the option '{key}'"
            )));
        }
        let server = match (kind.as_deref(), path, host, port) {
            (None | Some("unix"), Some(path), None, None) => Some(unix(&path)?),
            (None | Some("inet"), None, Some(host), port) => {
                let port = match port {
                    None => DEFAULT_PORT,
                    Some(text) => text.parse().map_err(|_| {
                        OptError::new(format!("NBD port '{text}' is not a number up to 65535"))
                    })?,
                };
                Some(NbdServer::Inet { host, port })
            }
            (None, None, None, None) => None,
            (Some("unix"), ..) => {
                return Err(OptError::new(
                    "An NBD server of type 'unix' takes 'server.path' and nothing else",
                ));
            }
            (Some("inet"), ..) => {
                return Err(OptError::new(
                    "An NBD server of type 'inet' takes 'server.host' and 'server.port'",
                ));
            }
            (Some(other), ..) => {
                return Err(OptError::new(format!(
                    "NBD server type '{other}' is not supported: use 'inet' or 'unix'"
                )));
            }
            _ => return Err(OptError::new("path and host may not be used at the same time")),
        };
        let mut target = match (server, filename) {
            (Some(server), None) => NbdTarget::new(server, export.unwrap_or_default())?,
            (None, Some(name)) if export.is_none() => NbdTarget::parse(name)?,
            (None, None) => return Err(OptError::new("NBD server address missing")),
            _ => {
                return Err(OptError::new(
                    "NBD server, export and filename may not be used at the same time",
                ));
            }
        };
        target.reconnect_delay = delay;
        target.open_timeout = timeout;
        Ok(target)
    }

    /// As a URI, which is how QEMU shows it however it was given.
    pub fn uri(&self) -> String {
        match &self.server {
            NbdServer::Inet { host, port } => {
                let mut uri = String::from("nbd://");
                if host.contains(':') {
                    let _ = write!(uri, "[{host}]");
                } else {
                    uri.push_str(&encoded(host));
                }
                let _ = write!(uri, ":{port}");
                if !self.export.is_empty() {
                    uri.push('/');
                    uri.push_str(&encoded(&self.export));
                }
                uri
            }
            NbdServer::Unix { path } => {
                let slash = if self.export.is_empty() { "" } else { "/" };
                let (export, path) = (encoded(&self.export), encoded(path));
                format!("nbd+unix://{slash}{export}?socket={path}")
            }
        }
    }

    /// The server alone, for messages: `HOST:PORT` or the socket's path.
    pub fn address(&self) -> String {
        match &self.server {
            NbdServer::Inet { host, port } => format!("{host}:{port}"),
            NbdServer::Unix { path } => path.clone(),
        }
    }
}

fn no_tls() -> OptError {
    OptError::new("NBD over TLS is not supported")
        .hint("reach the server through a tunnel (ssh -L, stunnel) and a UNIX socket or localhost")
}

fn bad_address(text: &str) -> OptError {
    OptError::new(format!("error parsing address '{text}'"))
}

fn unix(path: &str) -> Result<NbdServer, OptError> {
    if path.is_empty() || path.contains('\0') {
        return Err(OptError::new("the path of an NBD socket is missing"));
    }
    Ok(NbdServer::Unix { path: path.to_owned() })
}

/// A host without the brackets of an IPv6 address.
fn bare_host(text: &str) -> Option<String> {
    let host = match text.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?,
        None => text,
    };
    (!host.is_empty() && !host.contains(['[', ']', '\0'])).then(|| host.to_owned())
}

fn from_uri(socket: bool, rest: &str, whole: &str) -> Result<NbdTarget, OptError> {
    let bad = || OptError::new(format!("'{whole}' is not a valid NBD URI"));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = match rest.find('/') {
        Some(at) => (&rest[..at], rest[at..].trim_start_matches('/')),
        None => (rest, ""),
    };
    let export = decoded(path).ok_or_else(bad)?;
    if !socket {
        if !query.is_empty() {
            return Err(bad());
        }
        let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port),
            _ => (authority, ""),
        };
        let port = if port.is_empty() { DEFAULT_PORT } else { port.parse().map_err(|_| bad())? };
        let host = if host.is_empty() { "localhost" } else { host };
        let host = decoded(&bare_host(host).ok_or_else(bad)?).ok_or_else(bad)?;
        return NbdTarget::new(NbdServer::Inet { host, port }, export);
    }
    // The socket is named in the query, and nothing else is.
    let path = query.strip_prefix("socket=").filter(|p| !p.contains('&')).ok_or_else(bad)?;
    if !authority.is_empty() {
        return Err(bad());
    }
    NbdTarget::new(unix(&decoded(path).ok_or_else(bad)?)?, export)
}

fn seconds(name: &str, text: Option<String>) -> Result<Duration, OptError> {
    let Some(text) = text else { return Ok(Duration::ZERO) };
    let n: u32 = text.parse().map_err(|_| {
        OptError::new(format!("Parameter '{name}' expects a number of seconds, not '{text}'"))
    })?;
    Ok(Duration::from_secs(n.into()))
}

/// Undoes percent-encoding; `None` for a broken one, for a NUL and for what is not UTF-8 then.
pub(super) fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        if first != b'%' {
            bytes.push(first);
            continue;
        }
        let (digits, tail) = rest.split_at_checked(2)?;
        let digits = std::str::from_utf8(digits).ok()?;
        if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        bytes.push(u8::from_str_radix(digits, 16).ok().filter(|b| *b != 0)?);
        rest = tail;
    }
    String::from_utf8(bytes).ok()
}

pub(super) fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/:@!$'()*+,;=".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(name: &str) -> String {
        NbdTarget::parse(name).map_or_else(|e| e.message, |t| t.uri())
    }

    #[test]
    fn names() {
        for (name, shown) in [
            ("nbd:localhost:10", "nbd://localhost:10"),
            ("nbd:[::1]:10:exportname=a b", "nbd://[::1]:10/a%20b"),
            ("nbd:unix:/tmp/s", "nbd+unix://?socket=/tmp/s"),
            ("nbd:unix:/tmp/s:exportname=x:y", "nbd+unix:///x:y?socket=/tmp/s"),
            ("nbd://h/x", "nbd://h:10809/x"),
            ("nbd://h:12", "nbd://h:12"),
            ("nbd+tcp://[fe80::1%25eth0]:12//x/y", "nbd://[fe80::1%eth0]:12/x/y"),
            ("nbd+unix:///a%2Fb?socket=/tmp/q%3f", "nbd+unix:///a/b?socket=/tmp/q%3F"),
            ("nbd+unix://?socket=s", "nbd+unix://?socket=s"),
            ("nbd:foo", "error parsing address 'foo'"),
            ("nbd:", "error parsing address ''"),
            ("nbd:h:99999", "error parsing address 'h:99999'"),
            ("nbd:unix:", "the path of an NBD socket is missing"),
            ("nbds://h/x", "NBD over TLS is not supported"),
            ("nbd+unix:///x", "'nbd+unix:///x' is not a valid NBD URI"),
            ("nbd://h/%zz", "'nbd://h/%zz' is not a valid NBD URI"),
            ("nbd://h/%00", "'nbd://h/%00' is not a valid NBD URI"),
            ("nbd://h/%", "'nbd://h/%' is not a valid NBD URI"),
        ] {
            assert_eq!(uri(name), shown, "{name}");
        }
        assert!(NbdTarget::parse(&format!("nbd://h/{}", "x".repeat(5000))).is_err());
    }

    #[test]
    fn options() {
        let from = |text: &str| {
            let options: Vec<(String, String)> = text
                .split(',')
                .filter_map(|p| p.split_once('='))
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .collect();
            NbdTarget::from_options(None, &options)
        };
        let shown = |text: &str| from(text).map_or_else(|e| e.message, |t| t.uri());
        for (text, wanted) in [
            ("server.type=unix,server.path=/s,export=x", "nbd+unix:///x?socket=/s"),
            ("server.type=inet,server.host=h,server.port=1", "nbd://h:1"),
            ("host=h,export=e", "nbd://h:10809/e"),
            ("path=/s", "nbd+unix://?socket=/s"),
            ("", "NBD server address missing"),
            ("path=/s,host=h", "path and host may not be used at the same time"),
            (
                "server.type=vsock,server.cid=1",
                "Block protocol 'nbd' doesn't support the option 'server.cid'",
            ),
            ("host=h,port=x", "NBD port 'x' is not a number up to 65535"),
            ("host=h,tls-creds=a", "NBD over TLS is not supported"),
            ("host=h,foo=a", "Block protocol 'nbd' doesn't support the option 'foo'"),
        ] {
            assert_eq!(shown(text), wanted, "{text}");
        }
        let target = from("host=h,reconnect-delay=5,open-timeout=7").unwrap();
        assert_eq!((target.reconnect_delay.as_secs(), target.open_timeout.as_secs()), (5, 7));
    }
}
