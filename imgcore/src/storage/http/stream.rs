//! A file that a server gives from front to end only.

use std::io::{self, Read};

/// The bytes of one answer. What was lost on the way cannot be asked for again: reading fails then.
pub struct HttpStream {
    name: String,
    left: Option<u64>,
    body: Box<dyn Read + Send>,
}

impl HttpStream {
    pub(super) fn new(name: String, size: Option<u64>, body: Box<dyn Read + Send>) -> Self {
        HttpStream { name, left: size, body }
    }

    /// The URL, fit for messages.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl std::fmt::Debug for HttpStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HttpStream({}, {:?} bytes left)", self.name, self.left)
    }
}

impl Read for HttpStream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.body.read(buf)?;
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(n as u64);
            if n == 0 && *left > 0 && !buf.is_empty() {
                let text = format!("the server ended its answer {left} bytes too early");
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
            }
        }
        Ok(n)
    }
}
