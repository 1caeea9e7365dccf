//! One error type: what went wrong, where, and what to do about it.

use std::fmt;
use std::path::{Path, PathBuf};

/// Result with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// What callers may want to act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The caller asked for something that makes no sense.
    Usage,
    /// The host refuses: rights, missing tools, devices, read-only places.
    Host,
    /// A file holds something it should not.
    Damaged,
    /// Doing it would harm, so it was not done.
    Refused,
}

/// An error with the place and the remedy, both optional.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    path: Option<PathBuf>,
    remedy: Option<String>,
    source: Option<std::io::Error>,
}

impl Error {
    /// A new error; `message` says what could not be done.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), path: None, remedy: None, source: None }
    }

    /// Wrong use of a command or option.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Usage, message)
    }

    /// The host refuses or lacks something.
    pub fn host(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Host, message)
    }

    /// Not done because it would harm.
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Refused, message)
    }

    /// A failed system call on `path`.
    pub fn io(message: impl Into<String>, path: &Path, source: std::io::Error) -> Self {
        Self {
            kind: ErrorKind::Host,
            message: message.into(),
            path: Some(path.to_path_buf()),
            remedy: None,
            source: Some(source),
        }
    }

    /// Adds the file concerned.
    #[must_use]
    pub fn at(mut self, path: impl Into<PathBuf>) -> Self {
        self.path = Some(path.into());
        self
    }

    /// Adds what the user can do.
    #[must_use]
    pub fn remedy(mut self, text: impl Into<String>) -> Self {
        self.remedy = Some(text.into());
        self
    }

    /// What kind of failure this is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The message alone, without place and remedy.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What the user can do, when known.
    pub fn remedy_text(&self) -> Option<&str> {
        self.remedy.as_deref()
    }

    /// The system call's error number, when there is one.
    pub fn errno(&self) -> Option<i32> {
        self.source.as_ref().and_then(std::io::Error::raw_os_error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(path) = &self.path {
            write!(f, " ({})", path.display())?;
        }
        if let Some(source) = &self.source {
            write!(f, ": {source}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}
