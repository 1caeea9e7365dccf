//! Running `rimg` in a folder as a person does.

use std::path::Path;
use std::time::Duration;

use crate::process::{Invocation, Outcome};
use crate::tools;

/// Longest run.
const LIMIT: Duration = Duration::from_secs(300);

/// Runs rimg.
///
/// # Errors
/// A sentence when it cannot be started.
pub fn rimg(dir: &Path, args: &[&str]) -> Result<Outcome, String> {
    let call = Invocation::new(tools::rimg()?, dir).args(args);
    call.time_limit(LIMIT).run().map_err(|e| e.to_string())
}

/// Runs rimg and demands success.
///
/// # Errors
/// A sentence with what it printed.
pub fn good(dir: &Path, args: &[&str]) -> Result<Outcome, String> {
    let outcome = rimg(dir, args)?;
    let ok = outcome.success();
    if ok { Ok(outcome) } else { Err(format!("{args:?}: {}: {}", outcome.end, outcome.err())) }
}

/// Names in a folder, in order; none where it is not there.
#[must_use]
pub fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut all: Vec<_> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    all.sort();
    all
}
