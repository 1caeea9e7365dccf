//! The checks. A check is a row of the table with a stable number and name, and a plain function
//! `fn(&Host, &Wanted) -> Outcome`; it reads, never changes, starts no program and asks no network.

mod access;
mod clocks;
mod cpus;
mod devices;
mod firmware;
mod hugepages;
mod kvm;
mod memory;
mod network;
mod outcome;
mod parameters;
mod security;
mod storage;
mod table;

pub use outcome::{Evidence, Finding, Needs, Outcome, Remedy, Status};
pub use table::{CHECKS, Check};

use crate::error::{Error, Result};
use crate::host::Host;
use crate::wanted::Wanted;

/// Runs the checks named in `only` (names, numbers, or a group such as `mem`), or all when it is empty.
pub fn run(host: &Host, wanted: &Wanted, only: &[String]) -> Result<Vec<Finding>> {
    for name in only {
        if !CHECKS.iter().any(|check| check.answers_to(name)) {
            let close = CHECKS.iter().map(|check| check.id).filter(|id| id.contains(name.as_str()));
            let close: Vec<&str> = close.collect();
            let hint = if close.is_empty() {
                "`rhostprep check --list` shows all names".to_owned()
            } else {
                format!("did you mean {}?", close.join(", "))
            };
            return Err(Error::usage(format!("there is no check '{name}'")).remedy(hint));
        }
    }
    let chosen = CHECKS
        .iter()
        .filter(|check| only.is_empty() || only.iter().any(|name| check.answers_to(name)));
    Ok(chosen.map(|check| Finding::new(check, (check.run)(host, wanted))).collect())
}

/// The worst status among findings.
pub fn worst(findings: &[Finding]) -> Status {
    findings.iter().map(|finding| finding.outcome.status).max().unwrap_or(Status::Pass)
}
