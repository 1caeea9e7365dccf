//! Where a file on a web server is, and how it is asked for: `http://HOST/PATH`, `https://...`, and the options of
//! `driver=http` and `driver=https`.
//!
//! Options are those of QEMU's driver: `url`, `readahead`, `sslverify`, `timeout`, `cookie`, `cookie-secret`,
//! `username`, `password-secret`. A name and password in the URL (RFC 3986, 3.2.1) are taken out of it: what is shown
//! to people never has them.

use std::borrow::Cow;
use std::time::Duration;

use super::OptError;
use super::given::Given;
use super::nbd::decoded;
use super::value;
use crate::crypto::SecretBytes;

/// What is fetched at least, so that the next small reads ask nobody.
pub const DEFAULT_READAHEAD: u64 = 256 << 10;
/// More would be kept in memory several times.
pub const MAX_READAHEAD: u64 = 16 << 20;
/// Seconds.
const DEFAULT_TIMEOUT: u64 = 5;
const MAX_TIMEOUT: u64 = 10_000;
/// Longest URL; servers refuse shorter ones.
pub const MAX_URL: usize = 16 << 10;

/// Something that must not be shown: as it is, or by the name of a secret object.
#[derive(Clone, PartialEq, Eq)]
pub enum Hidden {
    /// The text itself.
    Text(SecretBytes),
    /// The identifier of a secret.
    Secret(String),
}

impl std::fmt::Debug for Hidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Hidden::Text(_) => f.write_str("Text(..)"),
            Hidden::Secret(id) => write!(f, "Secret({id})"),
        }
    }
}

/// Whether the server's certificate is checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verify {
    /// Against the certificates that the system trusts.
    #[default]
    Certificate,
    /// Not at all: whoever sits on the way can read and change everything.
    Nothing,
}

/// A file on a web server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpTarget {
    /// Its address, without name and password.
    pub url: String,
    /// Bytes fetched at least.
    pub readahead: u64,
    /// Whether the server must prove who it is.
    pub verify: Verify,
    /// How long a connection may take to come about, and a server may say nothing. Zero: for ever.
    pub timeout: Duration,
    /// Sent as `Cookie`.
    pub cookie: Option<Hidden>,
    /// Sent as `Authorization: Basic`.
    pub username: Option<String>,
    /// Its password.
    pub password: Option<Hidden>,
}

impl HttpTarget {
    /// From a URL.
    pub fn parse(url: &str) -> Result<Self, OptError> {
        let bad = |why: &str| OptError::new(format!("'{}' {why}", without_credentials(url)));
        let (scheme, rest) = url.split_once("://").ok_or_else(|| bad("is not a valid URL"))?;
        if !matches!(scheme, "http" | "https") {
            return Err(bad("is not a URL of http or https"));
        }
        if url.len() > MAX_URL {
            return Err(OptError::new(format!("the URL is longer than {MAX_URL} bytes")));
        }
        if let Some(c) = url.chars().find(|c| !c.is_ascii_graphic()) {
            return Err(bad(&format!(
                "is not a valid URL: '{}' must be written as %XX",
                c.escape_default()
            )));
        }
        let rest = rest.split('#').next().unwrap_or(rest);
        let at = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(at);
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, authority),
        };
        if host.is_empty() || host.starts_with(':') {
            return Err(bad("names no host"));
        }
        let (mut username, mut password) = (None, None);
        if let Some(user) = user {
            let (name, word) = user.split_once(':').map_or((user, None), |(n, w)| (n, Some(w)));
            let plain = |text: &str| decoded(text).ok_or_else(|| bad("is not a valid URL"));
            username = Some(plain(name)?);
            password = word.map(plain).transpose()?.map(|w| hidden(&w));
        }
        let slash = if path.starts_with('/') { "" } else { "/" };
        Ok(HttpTarget {
            url: format!("{scheme}://{host}{slash}{path}"),
            readahead: DEFAULT_READAHEAD,
            verify: Verify::default(),
            timeout: Duration::from_secs(DEFAULT_TIMEOUT),
            cookie: None,
            username,
            password,
        })
    }

    /// From the options of `driver=http` or `driver=https`, and its `filename` if there is one.
    pub fn from_options(
        driver: &str,
        filename: Option<&str>,
        options: &[(String, String)],
    ) -> Result<Self, OptError> {
        let mut given = Given::new(driver, options);
        let mut take = |name: &str| given.take(&[name]);
        let url = take("url").or_else(|| filename.map(str::to_owned)).ok_or_else(|| {
            OptError::new(format!("{driver} block driver requires an 'url' option"))
        })?;
        if !url.starts_with(&format!("{driver}://")) {
            return Err(OptError::new(format!(
                "{driver} curl driver cannot handle the URL '{}' (does not start with '{driver}://')",
                without_credentials(&url)
            )));
        }
        let mut target = HttpTarget::parse(&url)?;
        if let Some(text) = take("readahead") {
            target.readahead = value::size("readahead", &text)?;
            if target.readahead == 0 || !target.readahead.is_multiple_of(512) {
                return Err(OptError::new(format!(
                    "HTTP_READAHEAD_SIZE {} is not a multiple of 512",
                    target.readahead
                )));
            }
            if target.readahead > MAX_READAHEAD {
                return Err(OptError::new(format!(
                    "readahead is at most {} MiB: what follows a read is fetched by several \
                     connections at a time anyway",
                    MAX_READAHEAD >> 20
                )));
            }
        }
        if let Some(text) = take("timeout") {
            let seconds = value::number("timeout", &text)?;
            if seconds > MAX_TIMEOUT {
                return Err(OptError::new("timeout parameter is too large or negative"));
            }
            target.timeout = Duration::from_secs(seconds);
        }
        if let Some(text) = take("sslverify")
            && !value::boolean("sslverify", &text)?
        {
            target.verify = Verify::Nothing;
        }
        target.cookie = match (take("cookie"), take("cookie-secret")) {
            (Some(_), Some(_)) => {
                return Err(OptError::new(
                    "curl driver cannot handle both cookie and cookie secret",
                ));
            }
            (Some(text), None) => Some(hidden(&text)),
            (None, id) => id.map(Hidden::Secret),
        };
        target.username = take("username").or(target.username);
        if let Some(id) = take("password-secret") {
            target.password = Some(Hidden::Secret(id));
        }
        if target.password.is_some() && target.username.is_none() {
            return Err(OptError::new("password-secret needs a username"));
        }
        given.end()?;
        Ok(target)
    }

    /// Which of QEMU's drivers this is.
    pub fn driver(&self) -> &'static str {
        if self.url.starts_with("https:") { "https" } else { "http" }
    }
}

fn hidden(text: &str) -> Hidden {
    Hidden::Text(SecretBytes::new(text.as_bytes().to_vec()))
}

/// What a user wrote as the name of an image, without passwords of URLs and without cookies: fit for messages.
pub fn without_credentials(text: &str) -> Cow<'_, str> {
    let mut text = Cow::Borrowed(text);
    let mut from = 0;
    while let Some(at) = text[from..].find("://").map(|at| from + at) {
        let start = at + 3;
        let end =
            text[start..].find(['/', '?', '#', '"', ',', ' ']).map_or(text.len(), |n| start + n);
        // A name alone is part of where a file on a host reached by ssh is, and no secret.
        let name_only = |user: &str| text[..at].ends_with("ssh") && !user.contains(':');
        let host = text[start..end].rfind('@').filter(|at| !name_only(&text[start..start + at]));
        if let Some(host) = host {
            text.to_mut().replace_range(start..=start + host, "");
        }
        from = start;
    }
    for key in ["cookie", "file.cookie"] {
        // Behind "cookie": in JSON up to the closing quote, behind cookie= up to a comma that is not doubled.
        for (lead, json) in [(format!("\"{key}\""), true), (format!("{key}="), false)] {
            let Some(at) = text.find(&lead) else { continue };
            let start = at + lead.len();
            let end =
                if json { json_value_end(&text[start..]) } else { list_value_end(&text[start..]) };
            let shown = if json { ": \"...\"" } else { "..." };
            text.to_mut().replace_range(start..start + end, shown);
        }
    }
    text
}

/// Where a value behind a JSON key ends.
fn json_value_end(text: &str) -> usize {
    let Some(open) = text.find('"') else { return text.len() };
    let mut escaped = false;
    for (at, c) in text[open + 1..].char_indices() {
        match c {
            '"' if !escaped => return open + 1 + at + 1,
            _ => escaped = c == '\\' && !escaped,
        }
    }
    text.len()
}

/// Where a value of a `key=value` list ends.
fn list_value_end(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        match (bytes[at], bytes.get(at + 1)) {
            (b',', Some(b',')) => at += 2,
            (b',', _) => return at,
            _ => at += 1,
        }
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> Result<HttpTarget, OptError> {
        let all: Vec<(String, String)> = text
            .split(',')
            .filter_map(|p| p.split_once('='))
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect();
        HttpTarget::from_options("http", None, &all)
    }

    #[test]
    fn urls() {
        let url = |text: &str| HttpTarget::parse(text).map_or_else(|e| e.message, |t| t.url);
        for (text, wanted) in [
            ("http://h/x.qcow2", "http://h/x.qcow2"),
            ("http://h", "http://h/"),
            ("https://h:8443?a=b", "https://h:8443/?a=b"),
            ("http://u:p%40@[::1]:80/x#part", "http://[::1]:80/x"),
            ("http:///x", "'http:///x' names no host"),
            ("http:x", "'http:x' is not a valid URL"),
            ("http://h/a b", "'http://h/a b' is not a valid URL: ' ' must be written as %XX"),
            ("ftp://h/a", "'ftp://h/a' is not a URL of http or https"),
        ] {
            assert_eq!(url(text), wanted);
        }
        let target = HttpTarget::parse("http://me:a%3ab@h/").unwrap();
        assert_eq!(target.username.as_deref(), Some("me"));
        assert_eq!(target.password, Some(hidden("a:b")));
        assert!(!format!("{target:?}").contains("a:b"));
    }

    #[test]
    fn all_options() {
        let t = options("url=http://h/x,readahead=64k,timeout=0,sslverify=off,cookie=a").unwrap();
        assert_eq!((t.readahead, t.timeout, t.verify), (65536, Duration::ZERO, Verify::Nothing));
        assert_eq!(t.cookie, Some(hidden("a")));
        let t = options("url=http://h/x,username=u,password-secret=s,cookie-secret=c").unwrap();
        assert_eq!(t.password, Some(Hidden::Secret("s".into())));
        let message = |text: &str| options(text).unwrap_err().message;
        assert_eq!(message(""), "http block driver requires an 'url' option");
        assert!(message("url=https://h/x").contains("does not start with 'http://'"));
        assert!(message("url=http://h/x,readahead=100").contains("multiple of 512"));
        assert!(message("url=http://h/x,readahead=1G").contains("at most 16 MiB"));
        assert!(message("url=http://h/x,timeout=10001").contains("too large"));
        assert!(message("url=http://h/x,cookie=a,cookie-secret=b").contains("both"));
        assert!(message("url=http://h/x,proxy-username=a").contains("proxy-username"));
    }

    #[test]
    fn nothing_secret_is_shown() {
        for (text, wanted) in [
            ("a.qcow2", "a.qcow2"),
            ("http://h/x@y", "http://h/x@y"),
            ("ssh://me@h/x", "ssh://me@h/x"),
            ("ssh://me:word@h/x", "ssh://h/x"),
            ("http://u:p@h/x", "http://h/x"),
            (
                "driver=http,url=http://u:p@h/x,cookie=a,,b,timeout=1",
                "driver=http,url=http://h/x,cookie=...,timeout=1",
            ),
            (
                "json:{\"cookie\" : \"a\\\"b\", \"url\": \"http://u@h\"}",
                "json:{\"cookie\": \"...\", \"url\": \"http://h\"}",
            ),
            ("json:{\"file\":{\"cookie\":\"ab\"}}", "json:{\"file\":{\"cookie\": \"...\"}}"),
        ] {
            assert_eq!(without_credentials(text), wanted);
        }
    }
}
