//! A file on a web server as a storage, for reading (HTTP/1.1, RFC 9110 and 9112; TLS 1.2 and 1.3).
//!
//! * `client`: one request for a range and the checks of its answer; redirects; what may be tried again.
//! * `cache`: blocks that were fetched, who fetches what, and what is going to be wanted next.
//! * [`HttpStorage`]: reads of any size and alignment; reading ahead on several connections.
//! * [`HttpStream`]: a server that does not give parts of a file, from front to end only.
//!
//! # What is relied on
//!
//! A server is hostile: sizes and ranges of its answers are checked against what was asked, memory is bounded by
//! the cache, and every wait has an end. The file must stay what it is: every answer tells its length and, where the
//! server has them, `ETag` and `Last-Modified`; when one differs from the first answer's, reading fails, since
//! bytes of two files must not be mixed. Connections that break, time-outs and answers that say "later" (408, 429,
//! 5xx) are tried again with growing pauses, from where the bytes ended; an end is put to it when several tries in a row
//! bring nothing.
//!
//! Redirects are followed, at most ten, and never from https to http. Name, password and cookie are only sent to the
//! host, port and scheme that the user named. Later requests go where the first one ended. Proxies are those of the
//! variables `http_proxy`, `https_proxy`, `all_proxy` and `no_proxy`; certificates are checked against those that the
//! system trusts (`SSL_CERT_FILE` and `SSL_CERT_DIR` name others).

mod cache;
mod client;
mod store;
mod stream;

pub use store::HttpStorage;
pub use stream::HttpStream;

use crate::Result;
use crate::opts::http::HttpTarget;
use crate::opts::secret::Secrets;

/// A file on a server, opened as the server allows.
#[derive(Debug)]
pub enum Opened {
    /// In any order.
    Ranges(HttpStorage),
    /// From front to end.
    Stream(HttpStream),
}

/// Opens a file on a server.
///
/// # Errors
/// When there is no such file or no connection, a secret is not defined, or the answers make no sense.
pub fn open(target: &HttpTarget, secrets: &Secrets) -> Result<Opened> {
    let client = client::Client::new(target, secrets)?;
    let block = store::block_of(target);
    Ok(match client.begin(block)? {
        client::Beginning::Ranges { size, head } => {
            Opened::Ranges(HttpStorage::new(client, size, block, head))
        }
        client::Beginning::Whole { size, body } => {
            Opened::Stream(HttpStream::new(client.name().to_owned(), size, body))
        }
    })
}

#[cfg(test)]
mod tests;
