//! `create`: a new, empty image.
//!
//! In two steps, because the program shows a line between them: [`plan`] checks everything and
//! resolves the options, [`Plan::run`] makes the files.

use super::Job;
use super::convert::Overwrite;
use crate::Result;

/// Whether the backing file must be there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackingCheck {
    /// It must open.
    #[default]
    Open,
    /// It is not looked at (`-u`).
    Skip,
}

/// What to do.
#[derive(Clone, Debug, Default)]
pub struct CreateImageOptions {
    /// File name.
    pub filename: String,
    /// Driver.
    pub driver: String,
    /// Size of the guest's disk; the backing file's when not given.
    pub size: Option<u64>,
    /// `-o`, as name and text (may hold `size`, `backing_file`, `backing_fmt`).
    pub options: Vec<(String, String)>,
    /// `-b`.
    pub backing: Option<String>,
    /// `-F`.
    pub backing_format: Option<String>,
    /// `-u`.
    pub backing_check: BackingCheck,
    /// Whether a file that exists may be replaced.
    pub overwrite: Overwrite,
}

/// A checked wish.
#[derive(Debug)]
pub struct Plan {
    line: String,
}

impl Plan {
    /// The line that qemu-img shows: `Formatting 'x', fmt=raw size=1024`.
    pub fn line(&self) -> &str {
        &self.line
    }

    /// Makes the image.
    pub fn run(self, _job: &Job<'_>) -> Result<()> {
        Err(crate::Error::unsupported("not yet"))
    }
}

/// Checks the wish.
pub fn plan(_options: CreateImageOptions, _job: &Job<'_>) -> Result<Plan> {
    Err(crate::Error::unsupported("not yet"))
}
