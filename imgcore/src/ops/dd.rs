//! `dd`: a part of an image into a new one, in blocks.

use super::convert::Overwrite;
use super::{ImageArg, Job};
use crate::{Error, Result};

/// What to do.
#[derive(Clone, Debug)]
pub struct DdOptions {
    /// `if=`
    pub input: ImageArg,
    /// `of=`
    pub output: String,
    /// `-O`
    pub output_driver: String,
    /// `bs=`
    pub block_size: u64,
    /// `count=`, in blocks.
    pub count: Option<u64>,
    /// `skip=`, in blocks of the input.
    pub skip: u64,
    /// Whether a file that exists may be replaced.
    pub overwrite: Overwrite,
}

impl DdOptions {
    /// From `input` to `output`, raw, blocks of 512 bytes.
    pub fn new(input: ImageArg, output: impl Into<String>) -> Self {
        DdOptions {
            input,
            output: output.into(),
            output_driver: "raw".to_owned(),
            block_size: 512,
            count: None,
            skip: 0,
            overwrite: Overwrite::Allow,
        }
    }
}

/// Copies.
pub fn dd(_options: &DdOptions, _job: &Job<'_>) -> Result<()> {
    Err(Error::unsupported("not yet"))
}
