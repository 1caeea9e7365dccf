//! The one error type of the crate.
//!
//! `kind` steers code; `message` is for people and never repeats what the source says. An error
//! prints as `message: source: source ...` through [`Error::report`], the form in which the
//! programs show it.

use std::fmt;

/// What went wrong, as far as code has to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The operating system refused; the errno is kept.
    Io(i32),
    /// The file or the named thing does not exist.
    NotFound,
    /// Another process holds a lock that excludes this use.
    Locked,
    /// The bytes of an image contradict its format.
    Corrupt,
    /// Valid, but this program cannot do it (an unknown feature, a missing operation).
    Unsupported,
    /// The caller asked for something that makes no sense.
    Invalid,
    /// The image is open for reading only.
    ReadOnly,
    /// The open policy forbids a file that an image names.
    Forbidden,
    /// A limit that protects memory or time was hit.
    TooLarge,
    /// The caller cancelled the job.
    Cancelled,
}

/// An error with the file and the offset it is about.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    message: String,
    path: Option<String>,
    offset: Option<u64>,
    hint: Option<String>,
    source: Option<Error>,
}

/// Result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A new error. `message` says what is wrong, without a full stop.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error(Box::new(Inner {
            kind,
            message: message.into(),
            path: None,
            offset: None,
            hint: None,
            source: None,
        }))
    }

    /// The bytes of an image contradict its format.
    pub fn corrupt(message: impl Into<String>) -> Self {
        Error::new(ErrorKind::Corrupt, message)
    }

    /// The caller asked for something impossible.
    pub fn invalid(message: impl Into<String>) -> Self {
        Error::new(ErrorKind::Invalid, message)
    }

    /// Valid, but not something this program does.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Error::new(ErrorKind::Unsupported, message)
    }

    /// From an operating system error; the message is the system's own words.
    pub fn io(err: &std::io::Error) -> Self {
        let errno = err.raw_os_error().unwrap_or(5);
        let kind = if err.kind() == std::io::ErrorKind::NotFound {
            ErrorKind::NotFound
        } else {
            ErrorKind::Io(errno)
        };
        let text = err.to_string();
        let text = text.split(" (os error").next().unwrap_or(&text).to_owned();
        Error::new(kind, text)
    }

    /// From an errno value.
    pub fn errno(errno: i32) -> Self {
        Error::io(&std::io::Error::from_raw_os_error(errno))
    }

    /// Wraps this error: the new one has the same kind, says `message` and has this one as source.
    #[must_use]
    pub fn context(self, message: impl Into<String>) -> Self {
        Error(Box::new(Inner {
            kind: self.0.kind,
            message: message.into(),
            path: self.0.path.clone(),
            offset: self.0.offset,
            hint: None,
            source: Some(self),
        }))
    }

    /// Names the file this error is about.
    #[must_use]
    pub fn at_path(mut self, path: impl Into<String>) -> Self {
        self.0.path.get_or_insert(path.into());
        self
    }

    /// Names the byte offset (in the file, or in the guest's disk where the message says so).
    #[must_use]
    pub fn at_offset(mut self, offset: u64) -> Self {
        self.0.offset.get_or_insert(offset);
        self
    }

    /// Adds a line that tells what to do about it. Lines that QEMU has too keep its words, which begin
    /// with a capital; our own begin with a small letter, and the programs show them as `hint: ...`.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// What went wrong, for code.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The errno, if the operating system gave one.
    pub fn raw_errno(&self) -> Option<i32> {
        match self.0.kind {
            ErrorKind::Io(n) => Some(n),
            ErrorKind::NotFound => Some(2),
            _ => None,
        }
    }

    /// The message alone, without source.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The file, if known.
    pub fn path(&self) -> Option<&str> {
        self.0.path.as_deref()
    }

    /// The offset, if known.
    pub fn offset(&self) -> Option<u64> {
        self.0.offset
    }

    /// All advice along the chain of sources, outermost first.
    pub fn hints(&self) -> Vec<&str> {
        let mut all = Vec::new();
        let mut at = Some(self);
        while let Some(e) = at {
            all.extend(e.0.hint.as_deref());
            at = e.0.source.as_ref();
        }
        all
    }

    /// `message: source: source`, on one line.
    pub fn report(&self) -> String {
        let mut text = self.0.message.clone();
        let mut at = self.0.source.as_ref();
        while let Some(e) = at {
            text.push_str(": ");
            text.push_str(&e.0.message);
            at = e.0.source.as_ref();
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.0.kind, self.report())?;
        if let Some(p) = &self.0.path {
            write!(f, " [{p}]")?;
        }
        if let Some(o) = self.0.offset {
            write!(f, " @{o:#x}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|e| e as _)
    }
}

impl From<std::io::Error> for Error {
    fn from(err: std::io::Error) -> Self {
        Error::io(&err)
    }
}

impl From<nix::errno::Errno> for Error {
    fn from(err: nix::errno::Errno) -> Self {
        Error::errno(err as i32)
    }
}
