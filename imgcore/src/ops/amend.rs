//! `amend`: changing options of an existing image.

use super::{ImageArg, Job};
use crate::{Error, Result};

/// Whether dangerous changes are meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Force {
    /// No.
    #[default]
    No,
    /// Yes.
    Yes,
}

/// What to do.
#[derive(Clone, Debug, Default)]
pub struct AmendOptions {
    /// The image.
    pub image: ImageArg,
    /// `-o`, as name and text.
    pub options: Vec<(String, String)>,
    /// `--force`.
    pub force: Force,
}

/// Changes options of an image.
pub fn amend(_options: &AmendOptions, _job: &Job<'_>) -> Result<()> {
    Err(Error::unsupported("not yet"))
}
