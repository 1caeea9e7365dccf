//! `convert`: one or several images into one, in any format.

mod options;

pub use options::{
    Bitmaps, Compress, ConvertOptions, ConvertReport, Durability, Offload, OnReadError, Overwrite,
    Target,
};

use super::Job;
use crate::{Error, Result};

/// Converts.
pub fn convert(_options: &ConvertOptions, _job: &Job<'_>) -> Result<ConvertReport> {
    Err(Error::unsupported("not yet"))
}
