//! `rebase`: another file below an image.

use super::{ImageArg, Job};
use crate::storage::CacheMode;
use crate::{Error, Result};

/// Whether the guest's view is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RebaseMode {
    /// What differs between the old and the new file below is copied into the image first.
    #[default]
    Safe,
    /// Only the name is changed (`-u`).
    Unsafe,
}

/// What to do.
#[derive(Clone, Debug, Default)]
pub struct RebaseOptions {
    /// The image.
    pub image: ImageArg,
    /// `-b`; `None` for no file below (`-b ""` or no `-b`).
    pub backing: Option<String>,
    /// `-F`.
    pub backing_format: Option<String>,
    /// `-T`.
    pub backing_cache: CacheMode,
    /// `-u`.
    pub mode: RebaseMode,
    /// `-c`: copied clusters are stored compressed.
    pub compress: bool,
}

/// Rebases.
pub fn rebase(_options: &RebaseOptions, _job: &Job<'_>) -> Result<()> {
    Err(Error::unsupported("not yet"))
}
