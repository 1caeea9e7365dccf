//! `check`: looking for damage, and the exit code that says what was found.

use serde::{Deserialize, Serialize};

use super::{ImageArg, Job};
use crate::Error;
use crate::format::{CheckReport, Repair};

/// What to do.
#[derive(Clone, Debug, Default)]
pub struct CheckOptions {
    /// The image.
    pub image: ImageArg,
    /// `-r`.
    pub repair: Repair,
}

/// What came out, in QEMU's field names and order (`qapi/block-core.json`, `ImageCheck`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CheckOutcome {
    /// As the user named it.
    pub filename: String,
    /// The driver.
    pub format: String,
    /// Findings; after a repair those of the second look, with the counts of what was repaired.
    #[serde(skip)]
    pub report: CheckReport,
    /// 0 clean, 1 could not be checked, 2 damaged, 3 leaks only.
    #[serde(skip)]
    pub exit_code: u8,
}

/// Why there is no outcome.
#[derive(Debug)]
pub enum CheckFailure {
    /// This format has no check (exit code 63).
    NotSupported,
    /// It could not be carried out (exit code 1).
    Failed(Error),
}

impl CheckFailure {
    /// The exit code of the command.
    pub fn exit_code(&self) -> u8 {
        match self {
            CheckFailure::NotSupported => 63,
            CheckFailure::Failed(_) => 1,
        }
    }
}

/// Checks an image. Findings are told to the watcher line by line (`note`).
pub fn check(
    _options: &CheckOptions,
    _job: &Job<'_>,
) -> std::result::Result<CheckOutcome, CheckFailure> {
    Err(CheckFailure::NotSupported)
}
