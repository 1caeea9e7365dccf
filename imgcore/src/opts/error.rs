//! What is wrong with an option, in the words QEMU uses.

use std::fmt;

/// A refused option: one message, and lines of advice below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptError {
    /// What is wrong, without a full stop unless QEMU prints one.
    pub message: String,
    /// Lines to print below the message, without a prefix.
    pub hints: Vec<String>,
}

impl OptError {
    /// An error without advice.
    pub fn new(message: impl Into<String>) -> Self {
        OptError { message: message.into(), hints: Vec::new() }
    }

    /// Adds a line of advice (see [`crate::Error::hint`] for its first letter).
    #[must_use]
    pub fn hint(mut self, line: impl Into<String>) -> Self {
        self.hints.push(line.into());
        self
    }

    /// Puts `prefix: ` before the message.
    #[must_use]
    pub fn prefix(mut self, prefix: &str) -> Self {
        self.message = format!("{prefix}: {}", self.message);
        self
    }

    /// `Invalid parameter 'x'`: an option that does not exist.
    pub fn unknown(name: &str) -> Self {
        OptError::new(format!("Invalid parameter '{name}'"))
    }

    /// `Parameter 'x' does not accept value 'y'`.
    pub fn not_accepted(name: &str, value: &str) -> Self {
        OptError::new(format!("Parameter '{name}' does not accept value '{value}'"))
    }
}

impl fmt::Display for OptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for OptError {}

impl From<OptError> for crate::Error {
    fn from(e: OptError) -> Self {
        let error = crate::Error::invalid(e.message);
        if e.hints.is_empty() { error } else { error.hint(e.hints.join("\n")) }
    }
}
