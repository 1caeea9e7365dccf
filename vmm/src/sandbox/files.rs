//! Landlock rules made from the machine.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr,
};

use crate::block::Drive;
use crate::block::config::Persistence;
use crate::machine::MachineConfig;
use crate::machine::config::DeviceKind;
use crate::{Error, Result};

/// What may be done with a file, or below a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// Reading a file.
    Read,
    /// Reading and writing a file, and changing its length.
    Write,
    /// Removing files from a folder.
    Remove,
}

/// Newest rights that are asked for; an older kernel has fewer, and confines what it can.
const NEWEST: ABI = ABI::V5;

/// What the machine opens again while it runs.
pub fn allowed(config: &MachineConfig, removed: &[PathBuf]) -> Vec<(PathBuf, Right)> {
    let mut all = vec![(config.kernel.kernel.clone(), Right::Read)];
    // A reset loads them again.
    all.extend(config.kernel.initrds.iter().map(|p| (p.clone(), Right::Read)));
    for device in &config.devices {
        if let DeviceKind::Blk { drive, .. } = &device.kind {
            all.extend(of_drive(drive));
        }
    }
    for path in removed {
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
        all.push((folder.unwrap_or(Path::new(".")).to_owned(), Right::Remove));
    }
    all
}

/// `commit` writes what a temporary overlay holds into the image that the user named. Files below images
/// are never opened for writing: other guests may stand on them.
fn of_drive(drive: &Drive) -> Option<(PathBuf, Right)> {
    (drive.persistence == Persistence::Temporary)
        .then(|| (PathBuf::from(&drive.image.filename), Right::Write))
}

/// Rules that the kernel has taken.
#[derive(Debug)]
pub struct Rules(RulesetCreated);

fn failed(e: impl std::fmt::Display) -> Error {
    Error::invalid(format!("Landlock: {e}"))
}

impl Rules {
    /// Makes rules that allow this and nothing else. `None` where the kernel has no Landlock.
    ///
    /// # Errors
    /// When the kernel refuses a rule.
    pub fn new(allowed: &[(PathBuf, Right)]) -> Result<Option<Self>> {
        let handled = AccessFs::from_all(NEWEST);
        // IoctlDev stays free: disks and interfaces are ruled by the descriptors that there are.
        let handled = handled & !BitFlags::from(AccessFs::IoctlDev);
        // Is there anything at all?
        let present = Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::from_all(ABI::V1))
            .and_then(Ruleset::create);
        if present.is_err() {
            return Ok(None);
        }
        let mut rules = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(handled)
            .and_then(Ruleset::create)
            .map_err(failed)?;
        for (path, right) in allowed {
            // What is not there cannot be opened later either.
            let Ok(place) = PathFd::new(path) else { continue };
            let access: BitFlags<AccessFs> = match right {
                Right::Read => AccessFs::ReadFile.into(),
                Right::Write => AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate,
                Right::Remove => AccessFs::RemoveFile.into(),
            };
            rules = rules.add_rule(PathBeneath::new(place, access)).map_err(failed)?;
        }
        Ok(Some(Rules(rules)))
    }

    /// Confines the calling thread.
    pub fn enter(&self) -> Result<()> {
        let rules = self.0.try_clone().map_err(|e| Error::io(&e).context("Landlock"))?;
        rules.restrict_self().map(drop).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::config::DeviceConfig;
    use crate::virtio::blk::BlkConfig;
    use imgcore::graph::open::OpenRequest;

    #[test]
    fn rules_follow_the_machine() {
        let disk = |name: &str, persistence| DeviceConfig {
            id: name.into(),
            slot: None,
            kind: DeviceKind::Blk {
                drive: Box::new(Drive {
                    image: OpenRequest::file(name),
                    persistence,
                    ..Drive::default()
                }),
                queues: None,
                shown: BlkConfig::default(),
            },
        };
        let mut config = MachineConfig::default();
        config.kernel.kernel = "k".into();
        config.kernel.initrds = vec!["i".into()];
        config.devices = vec![disk("a", Persistence::Permanent), disk("b", Persistence::Temporary)];
        let all = allowed(&config, &["/run/x/pid".into(), "pid".into()]);
        let want = [
            ("k", Right::Read),
            ("i", Right::Read),
            ("b", Right::Write),
            ("/run/x", Right::Remove),
            (".", Right::Remove),
        ];
        assert_eq!(all, want.map(|(p, r)| (PathBuf::from(p), r)));
    }
}
