//! `--verify`: the finished target is read again and compared with the sources before it gets its name.
//!
//! The target is opened anew, as its users will open it. What was synced is dropped from the page cache
//! first, so that the bytes come from where they are kept; the sources mostly still are in the cache.

use std::ops::Range;
use std::sync::Arc;

use super::super::Job;
use super::super::compare::{CompareOutcome, Strictness, compare_pairs};
use super::super::pairs::{Pairs, Side};
use crate::graph::Node;
use crate::{Error, ErrorKind, Result};

/// Compares `range` of the sources, one after the other, with the same range of `target`.
///
/// # Errors
/// When they differ, or one cannot be read.
pub(super) fn compare(
    sources: &[Arc<Node>],
    target: &Node,
    range: Range<u64>,
    job: &Job<'_>,
) -> Result<()> {
    let pairs = Pairs::new([Side::new(sources.iter().map(|n| &**n)), Side::new([target])]);
    match compare_pairs(&pairs, range, Strictness::Content, job) {
        Ok(CompareOutcome::Identical) => Ok(()),
        Ok(
            CompareOutcome::ContentMismatch { offset } | CompareOutcome::StatusMismatch { offset },
        ) => Err(differs(target.name(), offset)),
        Ok(CompareOutcome::SizeMismatch) => Err(differs(target.name(), 0)),
        Err(failure) => Err(failure.error),
    }
}

fn differs(name: &str, offset: u64) -> Error {
    let text = format!("verification failed: '{name}' differs from the source at byte {offset}");
    Error::new(ErrorKind::Corrupt, text).at_path(name).at_offset(offset).hint(
        "the source changed while it was copied, or disk or memory do not keep what is written",
    )
}
