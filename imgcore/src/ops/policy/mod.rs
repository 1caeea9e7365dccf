//! `inspect --policy`: may a service take this file from a stranger?
//!
//! The file alone is looked at: no name inside of it is followed, nothing of the disk is interpreted.
//! Every rule gives its result, also after one has failed; what cannot be found out counts as failed.
//!
//! Why each rule is there: a format probed from what a guest wrote lets it read the host's files
//! (CVE-2026-24708, CVE-2015-5163); so do backing files (CVE-2014-0223's family), external data files of
//! qcow2 (CVE-2024-32498, CVE-2024-4467) and extents of VMDK (CVE-2022-47951).

mod document;
mod magic;
mod rules;

pub use document::{Bytes, DOCUMENT, Demand, Policy};
pub use magic::{Kind, Magic};
pub use rules::{Outcome, RuleResult};

use serde::Serialize;

use super::{ImageArg, Job};
use crate::Result;
use crate::graph::open::{BackingChoice, Depth, OpenRequest, Purpose, open};

/// What came out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct PolicyReport {
    /// The file, as it was named.
    pub filename: String,
    /// All rules passed.
    pub accepted: bool,
    /// The format it was examined as.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// The format was given, not probed.
    pub format_given: bool,
    /// Bytes of the file.
    pub file_size: u64,
    /// Bytes of the disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub virtual_size: Option<u64>,
    /// Bytes of data that it unpacks to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_size: Option<u64>,
    /// All magic numbers.
    pub magics: Vec<Magic>,
    /// Every rule.
    pub rules: Vec<RuleResult>,
}

/// Examines a file.
///
/// # Errors
/// When the file itself cannot be read. A damaged image is no error but a failed rule.
pub fn examine(image: &ImageArg, policy: &Policy, job: &Job<'_>) -> Result<PolicyReport> {
    // As a plain file first, whatever it says it is.
    let mut how = image.options(job);
    how.depth = Depth::Top;
    how.purpose = Purpose::Header;
    how.policy = crate::graph::open::Policy::nothing();
    let plain = OpenRequest { driver: Some("raw".to_owned()), ..image.request.clone() };
    let raw = open(&plain, &how)?;
    let file = std::sync::Arc::clone(raw.image().storage(crate::format::StorageId(0)));
    let given = image.request.driver.clone();
    let mut look = rules::Look::new(policy, &*file, given)?;
    drop(raw);
    look.format();
    if let Some(format) = look.format_name() {
        let request = OpenRequest {
            driver: Some(format.to_owned()),
            backing: BackingChoice::Nothing,
            ..image.request.clone()
        };
        match open(&request, &how) {
            Ok(node) => look.opened(&node, image, job)?,
            Err(e) => look.unreadable(&e),
        }
    }
    let mut report = look.finish();
    image.request.name().clone_into(&mut report.filename);
    Ok(report)
}
