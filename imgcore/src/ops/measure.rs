//! `measure`: how large a new image would be.

use super::{ImageArg, Job};
use crate::format::{Measurement, SnapshotSelector};
use crate::{Error, Result};

/// What is to be converted.
#[derive(Clone, Debug)]
pub enum MeasureFrom {
    /// A disk full of zeroes of so many bytes.
    Size(u64),
    /// An image.
    Image(ImageArg),
}

/// What to do.
#[derive(Clone, Debug)]
pub struct MeasureOptions {
    /// From what.
    pub from: MeasureFrom,
    /// `-l`.
    pub snapshot: Option<SnapshotSelector>,
    /// `-O`.
    pub driver: String,
    /// `-o`, as name and text.
    pub options: Vec<(String, String)>,
}

/// Measures.
pub fn measure(_options: &MeasureOptions, _job: &Job<'_>) -> Result<Measurement> {
    Err(Error::unsupported("not yet"))
}
