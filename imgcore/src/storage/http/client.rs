//! One request for a range, and what its answer must be.

use std::io::Read;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ureq::http::header::HeaderMap;
use ureq::http::{Response, StatusCode};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body};

use crate::crypto::SecretBytes;
use crate::num::{len_u64, small};
use crate::opts::http::{Hidden, HttpTarget, MAX_URL, Verify};
use crate::opts::secret::Secrets;
use crate::{Error, ErrorKind};

/// With this crate's error unless another one is named.
type Result<T, E = Error> = std::result::Result<T, E>;

/// Redirects in a row.
const MAX_REDIRECTS: usize = 10;
/// Before a try that follows one that brought nothing.
const PAUSES: [Duration; 6] = [
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
];
/// The longest pause that a server may ask for.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// A try that brings this much was worth it: the count begins anew.
const PROGRESS: u64 = 4096;

/// Why a try failed.
enum Failed {
    /// It may go better next time; the server may have said when.
    Later { why: Error, pause: Option<Duration> },
    /// It will not.
    Final(Error),
}

/// What the first request brought.
pub(super) enum Beginning {
    /// The server gives parts.
    Ranges {
        /// Bytes of the file.
        size: u64,
        /// The first of them.
        head: Vec<u8>,
    },
    /// The server gives everything or nothing; this is everything.
    Whole {
        /// Bytes of the file, where the server tells.
        size: Option<u64>,
        /// Them.
        body: Box<dyn Read + Send>,
    },
}

/// What tells a file from another one of the same name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Validators {
    tag: Option<String>,
    modified: Option<String>,
}

impl Validators {
    fn of(headers: &HeaderMap) -> Self {
        let text = |name: &str| {
            headers
                .get(name)
                .and_then(|v| v.to_str().ok())
                .map(str::to_owned)
                .filter(|v| v.len() < 1024)
        };
        Validators { tag: text("etag"), modified: text("last-modified") }
    }

    /// What one of them lacks says nothing.
    fn fits(&self, other: &Self) -> bool {
        let same = |a: &Option<String>, b: &Option<String>| a.is_none() || b.is_none() || a == b;
        same(&self.tag, &other.tag) && same(&self.modified, &other.modified)
    }
}

/// What the first answer said.
#[derive(Clone, Debug)]
struct Known {
    /// Where it came from in the end.
    url: String,
    size: u64,
    validators: Validators,
}

/// Asks a server for one file.
#[derive(Debug)]
pub(super) struct Client {
    agent: Agent,
    /// As the user named it.
    url: String,
    authorization: Option<SecretBytes>,
    cookie: Option<SecretBytes>,
    known: Mutex<Option<Known>>,
}

impl Client {
    pub fn new(target: &HttpTarget, secrets: &Secrets) -> Result<Self> {
        let resolve = |hidden: &Hidden| -> Result<SecretBytes> {
            Ok(match hidden {
                Hidden::Text(text) => text.clone(),
                Hidden::Secret(id) => SecretBytes::new(secrets.get(id)?.to_vec()),
            })
        };
        let cookie = target.cookie.as_ref().map(resolve).transpose()?;
        let password = target.password.as_ref().map(resolve).transpose()?;
        let authorization = target.username.as_ref().map(|user| basic(user, password.as_deref()));
        let some = Some(target.timeout).filter(|t| !t.is_zero());
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_resolve(some)
            .timeout_connect(some)
            .timeout_send_request(some)
            .timeout_recv_response(some)
            .timeout_per_read(some)
            .max_idle_connections_per_host(super::store::CONNECTIONS + 2)
            .user_agent(concat!("rimg/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity");
        if target.driver() == "https" {
            config = config.https_only(true);
        }
        let config = config.tls_config(tls(target)?).build();
        Ok(Client {
            agent: config.new_agent(),
            url: target.url.clone(),
            authorization,
            cookie,
            known: Mutex::default(),
        })
    }

    /// The URL, fit for messages.
    pub fn name(&self) -> &str {
        &self.url
    }

    /// What the file was at the first answer, in one line.
    pub fn identity(&self) -> Option<String> {
        let known = self.known();
        let known = known.as_ref()?;
        let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        let (tag, modified) = (or_none(&known.validators.tag), or_none(&known.validators.modified));
        Some(format!("{} bytes, ETag {tag}, Last-Modified {modified}", known.size))
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Option<Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends what is going on, also in other threads.
    pub fn shutdown(&self) {
        self.agent.clone().shutdown();
    }

    /// Asks for the first `first` bytes, and finds out what the server can do.
    pub fn begin(&self, first: u64) -> Result<Beginning> {
        let mut tries = Tries::default();
        let (size, answer) = loop {
            let answer = self.send(&self.url, 0..first);
            match answer.and_then(|(url, answer)| Ok((self.learn(url, &answer)?, answer))) {
                Ok((Some(size), answer)) => break (size, answer),
                Ok((None, answer)) => {
                    let size = answer.body().content_length();
                    let body = Box::new(answer.into_body().into_reader());
                    return Ok(Beginning::Whole { size, body });
                }
                // Nothing was ever heard of this server: he who mistyped its name need not wait.
                Err(Failed::Later { why, .. }) if why.kind() != ErrorKind::Io(libc::EAGAIN) => {
                    return Err(self.named(why));
                }
                Err(failed) => tries.again(failed, 0).map_err(|e| self.named(e))?,
            }
        };
        let mut head = vec![0; small(size.min(first))];
        let mut done = 0;
        if !head.is_empty() {
            let known = self.known().clone();
            match known
                .ok_or_else(unknown)
                .and_then(|k| take(answer, &k, 0..first, &mut head, &mut done))
            {
                Ok(()) | Err(Failed::Later { .. }) => {}
                Err(Failed::Final(error)) => return Err(self.named(error)),
            }
            self.fetch(len_u64(done), &mut head[done..])?;
        }
        Ok(Beginning::Ranges { size, head })
    }

    /// What the first answer says of the file: its size, if the server gives parts.
    fn learn(&self, url: String, answer: &Response<Body>) -> Result<Option<u64>, Failed> {
        let validators = Validators::of(answer.headers());
        let size = match answer.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = content_range(answer.headers()).map_err(Failed::Final)?;
                range.total.ok_or_else(|| {
                    Failed::Final(Error::unsupported(
                        "the server does not tell how long the file is",
                    ))
                })?
            }
            // Nothing of it lies at 0.
            StatusCode::RANGE_NOT_SATISFIABLE
                if content_range(answer.headers()).is_ok_and(|r| r.total == Some(0)) =>
            {
                0
            }
            StatusCode::OK => {
                encoded(answer.headers()).map_err(Failed::Final)?;
                return Ok(None);
            }
            status => return Err(judged(status, answer.headers())),
        };
        if size > i64::MAX.unsigned_abs() {
            return Err(Failed::Final(Error::corrupt("the server tells an impossible length")));
        }
        *self.known() = Some(Known { url, size, validators });
        Ok(Some(size))
    }

    /// Fills a buffer from `offset`; all of it lies inside the file.
    pub fn fetch(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let mut done = 0;
        let mut tries = Tries::default();
        while done < buf.len() {
            let before = done;
            let at = offset + len_u64(done);
            if let Err(failed) = self.part(at, buf, &mut done) {
                let got = len_u64(done - before);
                tries.again(failed, got).map_err(|e| self.named(e).at_offset(at))?;
            }
        }
        Ok(())
    }

    /// One request; `done` counts what came.
    fn part(&self, at: u64, buf: &mut [u8], done: &mut usize) -> Result<(), Failed> {
        let known = self.known().clone().ok_or_else(unknown)?;
        let wanted = at..at + len_u64(buf.len() - *done);
        let (url, answer) = self.send(&known.url, wanted.clone())?;
        // The place that a redirect led to may have been for a while only.
        let expired = answer.status().is_client_error() && known.url != self.url;
        let (url, answer) =
            if expired { self.send(&self.url, wanted.clone())? } else { (url, answer) };
        take(answer, &known, wanted, buf, done)?;
        if url != known.url
            && let Some(known) = self.known().as_mut()
        {
            known.url = url;
        }
        Ok(())
    }

    /// Asks for a range, following redirects. The address that answered in the end, and its answer.
    fn send(&self, url: &str, range: Range<u64>) -> Result<(String, Response<Body>), Failed> {
        let mut url = url.to_owned();
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.agent.get(&url);
            request = request.header("Range", format!("bytes={}-{}", range.start, range.end - 1));
            if origin(&url) == origin(&self.url) {
                for (name, value) in
                    [("Authorization", &self.authorization), ("Cookie", &self.cookie)]
                {
                    if let Some(value) = value {
                        request = request.header(name, value.as_slice());
                    }
                }
            }
            let answer = request.call().map_err(|e| failed(&e))?;
            if !matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok((url, answer));
            }
            let to = answer.headers().get("location").and_then(|v| v.to_str().ok());
            let to = to.and_then(|to| join(&url, to)).ok_or_else(|| {
                Failed::Final(Error::corrupt("the server redirects without saying where to"))
            })?;
            if url.starts_with("https:") && !to.starts_with("https:") {
                return Err(Failed::Final(Error::new(
                    ErrorKind::Forbidden,
                    "the server redirects from https to http",
                )));
            }
            url = to;
        }
        Err(Failed::Final(Error::corrupt(format!(
            "the server redirects more than {MAX_REDIRECTS} times"
        ))))
    }

    fn named(&self, error: Error) -> Error {
        error.context(format!("CURL: Error reading '{}'", self.url)).at_path(&self.url)
    }
}

/// Takes the bytes of an answer that is as it should be; `done` counts what came.
fn take(
    answer: Response<Body>,
    known: &Known,
    wanted: Range<u64>,
    buf: &mut [u8],
    done: &mut usize,
) -> Result<(), Failed> {
    match answer.status() {
        StatusCode::PARTIAL_CONTENT => {}
        // The server gave parts before: it has another file now.
        StatusCode::OK | StatusCode::RANGE_NOT_SATISFIABLE => return Err(Failed::Final(changed())),
        status => return Err(judged(status, answer.headers())),
    }
    encoded(answer.headers()).map_err(Failed::Final)?;
    let range = content_range(answer.headers()).map_err(Failed::Final)?;
    let same = known.validators.fits(&Validators::of(answer.headers()));
    if !same || range.total.is_some_and(|t| t != known.size) {
        return Err(Failed::Final(changed()));
    }
    if range.start != wanted.start || range.end <= range.start || range.end > wanted.end {
        return Err(Failed::Final(Error::corrupt(format!(
            "the server sends bytes {} to {} instead of {} to {}",
            range.start, range.end, wanted.start, wanted.end
        ))));
    }
    let end = *done + small(range.end - range.start);
    let mut body = answer.into_body().into_reader();
    while *done < end {
        match body.read(&mut buf[*done..end]) {
            Ok(0) => return Err(later("the server ended its answer too early")),
            Ok(n) => *done += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Failed::Later { why: io_words(&e), pause: None }),
        }
    }
    // An answer that was read to its end leaves the connection to the next request.
    match body.read(&mut [0]) {
        Ok(n) if n > 0 => Err(Failed::Final(Error::corrupt("the server sends more than it said"))),
        _ => Ok(()),
    }
}

/// Tries that brought nothing, in a row.
#[derive(Default)]
struct Tries(usize);

impl Tries {
    /// Waits before the next try, or gives up.
    fn again(&mut self, failed: Failed, got: u64) -> Result<()> {
        let (why, asked) = match failed {
            Failed::Final(error) => return Err(error),
            Failed::Later { why, pause } => (why, pause),
        };
        if got >= PROGRESS {
            self.0 = 0;
        }
        let Some(pause) = PAUSES.get(self.0) else {
            let words = format!("given up after {} tries", self.0 + 1);
            return Err(why.context(words));
        };
        self.0 += 1;
        std::thread::sleep(asked.map_or(*pause, |a| a.clamp(*pause, MAX_PAUSE)));
        Ok(())
    }
}

fn tls(target: &HttpTarget) -> Result<TlsConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = TlsConfig::builder().unversioned_rustls_crypto_provider(provider);
    if target.driver() != "https" {
        return Ok(tls.root_certs(RootCerts::new_with_certs(&[])).build());
    }
    match target.verify {
        Verify::Nothing => {
            tls = tls.disable_verification(true).root_certs(RootCerts::new_with_certs(&[]));
        }
        Verify::Certificate => {
            let found = rustls_native_certs::load_native_certs();
            if found.certs.is_empty() {
                return Err(Error::unsupported(
                    "this system has no certificates to check servers against",
                )
                .hint("install ca-certificates, or name a file with them: SSL_CERT_FILE=..."));
            }
            let all: Vec<_> =
                found.certs.iter().map(|c| Certificate::from_der(c.as_ref()).to_owned()).collect();
            tls = tls.root_certs(RootCerts::new_with_certs(&all));
        }
    }
    Ok(tls.build())
}

/// RFC 7617.
fn basic(user: &str, password: Option<&Vec<u8>>) -> SecretBytes {
    use base64::Engine;
    let mut plain = SecretBytes::new(format!("{user}:").into_bytes());
    plain.extend_from_slice(password.map_or(&[], |p| p.as_slice()));
    let mut value = b"Basic ".to_vec();
    value.extend_from_slice(base64::engine::general_purpose::STANDARD.encode(&*plain).as_bytes());
    SecretBytes::new(value)
}

/// `Content-Range` (RFC 9110, 14.4).
struct ContentRange {
    start: u64,
    /// Exclusive.
    end: u64,
    total: Option<u64>,
}

fn content_range(headers: &HeaderMap) -> Result<ContentRange> {
    let bad = || Error::corrupt("the server does not say which part of the file it sends");
    let text = headers.get("content-range").and_then(|v| v.to_str().ok()).ok_or_else(bad)?;
    let (range, total) = text
        .trim()
        .strip_prefix("bytes")
        .map(str::trim_start)
        .ok_or_else(bad)?
        .split_once('/')
        .ok_or_else(bad)?;
    let total = match total.trim() {
        "*" => None,
        n => Some(n.parse().map_err(|_| bad())?),
    };
    if range.trim() == "*" {
        return Ok(ContentRange { start: 0, end: 0, total });
    }
    let (first, last) = range.trim().split_once('-').ok_or_else(bad)?;
    let start: u64 = first.trim().parse().map_err(|_| bad())?;
    let last: u64 = last.trim().parse().map_err(|_| bad())?;
    let end = last.checked_add(1).filter(|end| *end > start).ok_or_else(bad)?;
    if total.is_some_and(|t| end > t) {
        return Err(bad());
    }
    Ok(ContentRange { start, end, total })
}

/// Bytes that were packed on the way are not those of the file.
fn encoded(headers: &HeaderMap) -> Result<()> {
    match headers.get("content-encoding").map(|v| v.to_str().unwrap_or("?")) {
        None | Some("" | "identity") => Ok(()),
        Some(other) => Err(Error::unsupported(format!(
            "the server packs the file as '{}' though it was asked not to",
            other.escape_default()
        ))),
    }
}

fn changed() -> Error {
    Error::corrupt("the file on the server has changed since it was opened")
        .hint("begin again; bytes of the old and the new file are not mixed")
}

fn unknown() -> Failed {
    Failed::Final(Error::invalid("nothing is known of the file"))
}

fn later(why: &str) -> Failed {
    Failed::Later { why: Error::new(ErrorKind::Io(libc::EIO), why), pause: None }
}

/// A status that stands in the way.
fn refusal(status: StatusCode) -> Error {
    let words = status.canonical_reason().unwrap_or("unknown");
    let text = format!("The requested URL returned error: {} {words}", status.as_u16());
    match status.as_u16() {
        404 | 410 => Error::new(ErrorKind::NotFound, text),
        401 | 403 => Error::new(ErrorKind::Io(libc::EACCES), text).hint(
            "a name and password are given by --object secret,id=ID,file=PATH and \
             --image-opts ...,username=NAME,password-secret=ID",
        ),
        408 | 429 | 500..=599 => Error::new(ErrorKind::Io(libc::EAGAIN), text),
        _ => Error::new(ErrorKind::Io(libc::EIO), text),
    }
}

fn judged(status: StatusCode, headers: &HeaderMap) -> Failed {
    let why = refusal(status);
    if why.kind() != ErrorKind::Io(libc::EAGAIN) {
        return Failed::Final(why);
    }
    let asked = headers.get("retry-after").and_then(|v| v.to_str().ok()?.trim().parse().ok());
    Failed::Later { why, pause: asked.map(Duration::from_secs) }
}

/// What a failed call means.
fn failed(error: &ureq::Error) -> Failed {
    match error {
        ureq::Error::Io(e) => Failed::Later { why: io_words(e), pause: None },
        ureq::Error::Timeout(_) => later("the server did not answer in time"),
        ureq::Error::HostNotFound => Failed::Final(Error::new(
            ErrorKind::Io(libc::EHOSTUNREACH),
            "there is no host of this name",
        )),
        ureq::Error::ConnectionFailed => later("no connection"),
        ureq::Error::Rustls(e) => Failed::Final(certificate(&e.to_string())),
        ureq::Error::Tls(e) => Failed::Final(certificate(e)),
        other => Failed::Final(Error::new(ErrorKind::Io(libc::EIO), other.to_string())),
    }
}

/// TLS says what it does not like as an error of reading.
fn io_words(error: &std::io::Error) -> Error {
    match error.kind() {
        std::io::ErrorKind::TimedOut | std::io::ErrorKind::WouldBlock => {
            Error::new(ErrorKind::Io(libc::EIO), "the server did not answer in time")
        }
        std::io::ErrorKind::UnexpectedEof => {
            Error::new(ErrorKind::Io(libc::EIO), "the server closed the connection")
        }
        std::io::ErrorKind::InvalidData => certificate(&error.to_string()),
        _ => Error::io(error),
    }
}

fn certificate(why: &str) -> Error {
    let error = Error::new(ErrorKind::Io(libc::EPROTO), format!("TLS: {why}"));
    if why.contains("certificate") {
        return error.hint(
            "SSL_CERT_FILE=... names further certificates to trust; sslverify=off \
             (--image-opts driver=https,url=...) trusts everybody",
        );
    }
    error
}

/// Scheme, host and port.
fn origin(url: &str) -> &str {
    let start = url.find("://").map_or(0, |at| at + 3);
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |n| start + n);
    &url[..end]
}

/// A reference seen from a URL (RFC 3986, 5.2). `None`: not one of the web.
fn join(base: &str, to: &str) -> Option<String> {
    let to = to.split('#').next().unwrap_or(to);
    let joined = if to.starts_with("http://") || to.starts_with("https://") {
        let (scheme, rest) = to.split_once("://")?;
        let at = rest.find(['/', '?']).unwrap_or(rest.len());
        // A name and password of somebody else are not ours to send.
        let host = rest[..at].rsplit('@').next()?;
        let slash = if rest[at..].starts_with('/') { "" } else { "/" };
        format!("{scheme}://{host}{slash}{}", &rest[at..])
    } else if let Some(rest) = to.strip_prefix("//") {
        let scheme = base.split_once(':')?.0;
        return join(base, &format!("{scheme}://{rest}"));
    } else if to.starts_with('/') {
        format!("{}{to}", origin(base))
    } else if to.contains(':') && !to.contains('/') {
        return None;
    } else {
        let path = base.split('?').next()?;
        if to.starts_with('?') {
            format!("{path}{to}")
        } else {
            let folder = &path[..=path.rfind('/').filter(|at| *at >= origin(base).len())?];
            format!("{folder}{to}")
        }
    };
    (joined.len() <= MAX_URL).then_some(joined)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references() {
        let base = "http://h:1/a/b?q";
        for (to, wanted) in [
            ("https://x/y#z", Some("https://x/y")),
            ("http://me:pw@x", Some("http://x/")),
            ("//x/y", Some("http://x/y")),
            ("/c", Some("http://h:1/c")),
            ("c/d", Some("http://h:1/a/c/d")),
            ("?r", Some("http://h:1/a/b?r")),
            ("file:///etc/passwd", Some("http://h:1/a/file:///etc/passwd")),
            ("mailto:x", None),
        ] {
            assert_eq!(join(base, to).as_deref(), wanted, "{to}");
        }
        assert_eq!(origin("https://h:2/x"), "https://h:2");
    }

    #[test]
    fn ranges() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("content-range", text.parse().unwrap());
            content_range(&headers).map(|r| (r.start, r.end, r.total)).ok()
        };
        assert_eq!(of("bytes 0-9/10"), Some((0, 10, Some(10))));
        assert_eq!(of("bytes 5-5/*"), Some((5, 6, None)));
        assert_eq!(of("bytes */7"), Some((0, 0, Some(7))));
        for bad in [
            "bytes 5-4/10",
            "bytes 0-9/9",
            "items 0-1/2",
            "bytes 0-18446744073709551615/*",
            "bytes 1/2",
        ] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }
}
