//! What networks share: forwarding, and the unit that makes them again at boot.
//!
//! Each is in the journal of the network that needed it first, and undone with it. Others may need it still; then it
//! becomes part of a journal of theirs.

use super::boot::{self, Starter};
use super::inside::{belong, forwarding, running_mark};
use super::persist::PersistFile;
use super::registry::{self, Network};
use crate::change::{Action, Applied, Effects, Plan, apply};
use crate::error::Result;
use crate::host::Host;

/// The unit's files, as they are before something is undone.
#[derive(Debug)]
pub struct Shared {
    files: Vec<PersistFile>,
}

impl Shared {
    /// What is there, or would be for this program.
    pub fn of(host: &Host, program: &str) -> Self {
        if let Some(files) = boot::present(host) {
            return Self { files };
        }
        let unit = boot::starter(host).is_ok_and(|starter| starter == Starter::Systemd);
        // Where there can be no unit, none is kept.
        let files =
            if unit { boot::unit_files(host, program).unwrap_or_default() } else { Vec::new() };
        Self { files }
    }

    /// What one network lacks of it.
    fn lacking(&self, host: &Host, network: &Network) -> Plan {
        let mut plan = Plan::default();
        if host.exists(&running_mark(&network.name)) {
            forwarding(host, &mut plan, network);
        }
        if network.persisted && network.subnet.is_some() {
            for file in &self.files {
                let PersistFile { path, mode, text } = file.clone();
                plan.add(host, Action::File { path, text, mode });
            }
        }
        belong(&mut plan, &network.name);
        plan
    }
}

/// Gives networks back what they share and lack, each in a journal of its own. Returns the networks with the
/// journals' numbers; none when nothing was lacking.
pub fn keep(
    host: &Host,
    effects: &mut dyn Effects,
    shared: &Shared,
) -> Result<Vec<(String, String)>> {
    let mut kept = Vec::new();
    for name in registry::names(host) {
        // One whose file is damaged cannot say what it needs; all that reads it says so.
        let Ok(network) = registry::load(host, &name) else { continue };
        let plan = shared.lacking(host, &network);
        if let Applied::Done(id) = apply(effects, &plan, &mut |_, _| ())? {
            kept.push((name, id));
        }
    }
    Ok(kept)
}
