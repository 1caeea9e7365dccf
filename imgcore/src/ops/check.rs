//! `check`: looking for damage, and the exit code that says what was found.

use serde::{Deserialize, Serialize};

use super::{ImageArg, Job};
use crate::format::{CheckReport, Repair};
use crate::graph::open::{Depth, Purpose};
use crate::{Error, ErrorKind};

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
    /// This image can be checked but not repaired (exit code 63).
    NotRepairable(Error),
    /// It could not be carried out (exit code 1).
    Failed(Error),
}

impl CheckFailure {
    /// The exit code of the command.
    pub fn exit_code(&self) -> u8 {
        match self {
            CheckFailure::NotSupported | CheckFailure::NotRepairable(_) => 63,
            CheckFailure::Failed(_) => 1,
        }
    }
}

impl From<Error> for CheckFailure {
    fn from(error: Error) -> Self {
        CheckFailure::Failed(error)
    }
}

/// Checks an image. Findings are told to the watcher line by line (`note`).
///
/// After a repair the image is looked at once more: what counts is what is left, and what the first
/// pass mended is added as fixed.
pub fn check(
    options: &CheckOptions,
    job: &Job<'_>,
) -> std::result::Result<CheckOutcome, CheckFailure> {
    let mut how = options.image.options(job);
    if options.repair != Repair::Nothing {
        how = how.writable();
    }
    how.purpose = Purpose::Check;
    // As QEMU: whether the chain is whole is part of opening it.
    how.depth = Depth::Chain;
    let node = options.image.open(job, &how)?;
    let look = |repair| match node.image().check(repair, job.watcher) {
        None => Err(CheckFailure::NotSupported),
        Some(Err(e)) if repair != Repair::Nothing && e.kind() == ErrorKind::Unsupported => {
            Err(CheckFailure::NotRepairable(e))
        }
        Some(report) => report.map_err(|e| CheckFailure::Failed(e.context("Check failed"))),
    };
    let mut report = look(options.repair)?;
    if options.repair != Repair::Nothing && (report.corruptions_fixed > 0 || report.leaks_fixed > 0)
    {
        let (corruptions, leaks) = (report.corruptions_fixed, report.leaks_fixed);
        report = look(Repair::Nothing)?;
        report.corruptions_fixed = corruptions;
        report.leaks_fixed = leaks;
    }
    if options.repair != Repair::Nothing {
        node.close()?;
    }
    Ok(CheckOutcome {
        filename: node.name().to_owned(),
        format: node.image().format_name().to_owned(),
        exit_code: exit_code(&report),
        report,
    })
}

fn exit_code(report: &CheckReport) -> u8 {
    if report.corruptions > 0 {
        2
    } else if report.leaks > 0 {
        3
    } else {
        u8::from(report.check_errors > 0)
    }
}
