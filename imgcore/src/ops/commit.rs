//! `commit`: moving an overlay's data into an image below it.

use super::{ImageArg, Job};
use crate::{Error, Result};

/// What becomes of the overlay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Afterwards {
    /// It is emptied.
    #[default]
    Empty,
    /// It stays as it is (`-d`, implied by `-b`).
    Keep,
}

/// What to do.
#[derive(Clone, Debug, Default)]
pub struct CommitOptions {
    /// The overlay.
    pub image: ImageArg,
    /// `-b`: an image of its chain, by name; the one directly below when not given.
    pub base: Option<String>,
    /// `-d`.
    pub afterwards: Afterwards,
    /// `-r`, bytes a second, 0 for no limit.
    pub rate: u64,
}

/// Copies the data down.
pub fn commit(_options: &CommitOptions, _job: &Job<'_>) -> Result<()> {
    Err(Error::unsupported("not yet"))
}
