//! Where an NBD export is: `nbd:HOST:PORT`, `nbd://HOST/NAME`, `nbd+unix:///NAME?socket=PATH`, and the
//! options of `driver=nbd`.
//!
//! URIs are those of `doc/uri.md` of the NBD project; the form with colons is QEMU's older one. `nbds` in the place of
//! `nbd` means TLS; how it is spoken is said in the query, by the names that libnbd has for it: `tls-certificates=FOLDER`,
//! `tls-hostname=NAME`, `tls-verify-peer=true|false`. The options of `driver=nbd` are QEMU's: `tls-creds=ID` and
//! `tls-hostname=NAME`.

use std::fmt::Write;
use std::time::Duration;

use super::OptError;
use super::given::Given;
use super::tls::VerifyPeer;
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

/// Where the credentials for TLS come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NbdTls {
    /// From the object of this identifier (`tls-creds=ID`).
    Object(String),
    /// From an `nbds` URI.
    Uri {
        /// Folder of certificates, with the names of `tls-creds-x509`. Without: no certificate of our own, and the
        /// authorities that the system trusts.
        dir: Option<String>,
        /// Whether the server is checked.
        verify: VerifyPeer,
    },
}

/// An export of a server, and how patiently it is spoken to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdTarget {
    /// The server.
    pub server: NbdServer,
    /// Name of the export; may be empty.
    pub export: String,
    /// Over TLS, and never in plain text.
    pub tls: Option<NbdTls>,
    /// The name in the server's certificate, where it is not the host's.
    pub tls_hostname: Option<String>,
    /// After a connection broke: how long a new one is tried before requests fail. Zero: not at all.
    pub reconnect_delay: Duration,
    /// How long the first connection is tried. Zero: once.
    pub open_timeout: Duration,
}

impl NbdTarget {
    /// An export in plain text.
    ///
    /// # Errors
    /// A name that is longer than the protocol allows.
    pub fn new(server: NbdServer, export: String) -> Result<Self, OptError> {
        if crate::num::len_u64(export.len()) > u64::from(MAX_STRING) {
            return Err(OptError::new(format!(
                "NBD export name is longer than {MAX_STRING} bytes"
            )));
        }
        let zero = Duration::ZERO;
        Ok(NbdTarget {
            server,
            export,
            tls: None,
            tls_hostname: None,
            reconnect_delay: zero,
            open_timeout: zero,
        })
    }

    /// The name that the server's certificate must have, if there is one.
    pub fn host_name(&self) -> Option<&str> {
        match (&self.tls_hostname, &self.server) {
            (Some(name), _) => Some(name),
            (None, NbdServer::Inet { host, .. }) => Some(host),
            (None, NbdServer::Unix { .. }) => None,
        }
    }

    /// From a file name with an NBD prefix.
    pub fn parse(name: &str) -> Result<Self, OptError> {
        let (scheme, rest) = name.split_once(':').unwrap_or((name, ""));
        if let Some(rest) = rest.strip_prefix("//") {
            return from_uri(scheme, rest, name);
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
        let mut given = Given::new("nbd", options);
        let mut take = |names: &[&str]| given.take(names);
        let kind = take(&["server.type"]);
        let path = take(&["server.path", "server.data.path", "path"]);
        let host = take(&["server.host", "server.data.host", "host"]);
        let port = take(&["server.port", "server.data.port", "port"]);
        let export = take(&["export"]);
        let delay = seconds("reconnect-delay", take(&["reconnect-delay"]))?;
        let timeout = seconds("open-timeout", take(&["open-timeout"]))?;
        let (creds, tls_hostname) = (take(&["tls-creds"]), take(&["tls-hostname"]));
        given.end()?;
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
        if creds.is_some() && target.tls.is_some() {
            return Err(OptError::new("tls-creds and an nbds URI exclude each other"));
        }
        target.tls = creds.map(NbdTls::Object).or(target.tls);
        if target.tls.is_none() && tls_hostname.is_some() {
            return Err(OptError::new("tls-hostname is not permitted without tls-creds"));
        }
        target.tls_hostname = tls_hostname.or(target.tls_hostname);
        Ok(target)
    }

    /// As a URI, which is how QEMU shows it however it was given. Credentials that an object has are not part of it.
    pub fn uri(&self) -> String {
        let mut query = Vec::new();
        let s = match &self.tls {
            None | Some(NbdTls::Object(_)) => "",
            Some(NbdTls::Uri { dir, verify }) => {
                query.extend(dir.iter().map(|dir| ("tls-certificates", dir.as_str())));
                query.extend(self.tls_hostname.iter().map(|name| ("tls-hostname", name.as_str())));
                if *verify == VerifyPeer::No {
                    query.push(("tls-verify-peer", "false"));
                }
                "s"
            }
        };
        let slash = if self.export.is_empty() { "" } else { "/" };
        let export = encoded(&self.export);
        let mut uri = match &self.server {
            NbdServer::Inet { host, port } => {
                let bracketed = format!("[{host}]");
                let host = if host.contains(':') { bracketed } else { encoded(host) };
                format!("nbd{s}://{host}:{port}{slash}{export}")
            }
            NbdServer::Unix { path } => {
                query.insert(0, ("socket", path));
                format!("nbd{s}+unix://{slash}{export}")
            }
        };
        for (n, (key, value)) in query.iter().enumerate() {
            let mark = if n == 0 { '?' } else { '&' };
            let _ = write!(uri, "{mark}{key}={}", encoded(value));
        }
        uri
    }

    /// The server alone, for messages: `HOST:PORT` or the socket's path.
    pub fn address(&self) -> String {
        match &self.server {
            NbdServer::Inet { host, port } => format!("{host}:{port}"),
            NbdServer::Unix { path } => path.clone(),
        }
    }
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

fn from_uri(scheme: &str, rest: &str, whole: &str) -> Result<NbdTarget, OptError> {
    let bad = || OptError::new(format!("'{whole}' is not a valid NBD URI"));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = match rest.find('/') {
        Some(at) => (&rest[..at], rest[at..].trim_start_matches('/')),
        None => (rest, ""),
    };
    let export = decoded(path).ok_or_else(bad)?;
    let mut query = Query::parse(query).ok_or_else(bad)?;
    let server = if scheme.ends_with("+unix") {
        if !authority.is_empty() {
            return Err(bad());
        }
        unix(&query.take("socket").ok_or_else(bad)?)?
    } else {
        let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port),
            _ => (authority, ""),
        };
        let port = if port.is_empty() { DEFAULT_PORT } else { port.parse().map_err(|_| bad())? };
        let host = if host.is_empty() { "localhost" } else { host };
        let host = decoded(&bare_host(host).ok_or_else(bad)?).ok_or_else(bad)?;
        NbdServer::Inet { host, port }
    };
    let mut target = NbdTarget::new(server, export)?;
    if scheme.starts_with("nbds") {
        let verify = match query.take("tls-verify-peer").as_deref() {
            None | Some("true" | "1") => VerifyPeer::Yes,
            Some("false" | "0") => VerifyPeer::No,
            Some(_) => return Err(bad().hint("tls-verify-peer is 'true' or 'false'")),
        };
        target.tls = Some(NbdTls::Uri { dir: query.take("tls-certificates"), verify });
        target.tls_hostname = query.take("tls-hostname");
    }
    match query.0.first() {
        None => Ok(target),
        Some((key, _)) => Err(bad().hint(format!("'{key}' is not known in '{scheme}' URIs"))),
    }
}

/// What stands behind the question mark of a URI, not yet taken.
struct Query(Vec<(String, String)>);

impl Query {
    /// `None` for what is no list of names and values.
    fn parse(text: &str) -> Option<Self> {
        let parts = text.split('&').filter(|part| !part.is_empty());
        let pair = |part: &str| {
            let (key, value) = part.split_once('=')?;
            Some((decoded(key)?, decoded(value)?))
        };
        parts.map(pair).collect::<Option<_>>().map(Query)
    }

    fn take(&mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|(key, _)| key == name)?;
        Some(self.0.remove(at).1)
    }
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
            ("nbds://h/x", "nbds://h:10809/x"),
            ("nbds://?tls-verify-peer=false", "nbds://localhost:10809?tls-verify-peer=false"),
            (
                "nbds+unix:///x?tls-hostname=h&tls-certificates=/a%26b&socket=/s",
                "nbds+unix:///x?socket=/s&tls-certificates=/a%26b&tls-hostname=h",
            ),
            ("nbds://h?tls-foo=x", "'nbds://h?tls-foo=x' is not a valid NBD URI"),
            ("nbds://h?tls-verify-peer=x", "'nbds://h?tls-verify-peer=x' is not a valid NBD URI"),
            ("nbd://h?tls-hostname=x", "'nbd://h?tls-hostname=x' is not a valid NBD URI"),
            ("nbds+unix:///x", "'nbds+unix:///x' is not a valid NBD URI"),
            ("nbds:h:1", "error parsing address 'h:1'"),
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
            ("host=h,tls-creds=a,tls-hostname=b", "nbd://h:10809"),
            ("host=h,tls-hostname=b", "tls-hostname is not permitted without tls-creds"),
            ("host=h,foo=a", "Block protocol 'nbd' doesn't support the option 'foo'"),
        ] {
            assert_eq!(shown(text), wanted, "{text}");
        }
        let target = from("host=h,reconnect-delay=5,open-timeout=7").unwrap();
        assert_eq!(target.host_name(), Some("h"));
        let encrypted = from("path=/s,tls-creds=a,tls-hostname=b").unwrap();
        assert_eq!(encrypted.tls, Some(NbdTls::Object("a".to_owned())));
        assert_eq!(encrypted.host_name(), Some("b"));
        assert_eq!((target.reconnect_delay.as_secs(), target.open_timeout.as_secs()), (5, 7));
    }
}
