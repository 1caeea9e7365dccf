//! Networks made again after a restart of the host, from what is written down about them.

use std::time::{Duration, Instant};

use super::change::NetChange;
use super::inside::{check_subnets, dnsmasq, forwarding, links, mark};
use super::models::concerns;
use super::name::{Cidr, check_name};
use super::registry::{self, Network};
use super::shared::{Shared, keep};
use crate::change::{Action, Effects, Journal, JournalState, Plan, again, locked, readable};
use crate::error::{Error, Result};
use crate::host::{Host, LinkKind, NetworkManager};

/// What is to be made again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreWish {
    /// These networks; all that are to come back when none is named.
    pub names: Vec<String>,
    /// How long bridges are waited for that a network manager is still making. After that they are made here.
    pub patience: Duration,
    /// Absolute path of this program, for the unit when it is missing.
    pub program: String,
}

/// What became of a network.
#[derive(Debug)]
pub enum Outcome {
    /// Everything was as recorded.
    AsRecorded,
    /// These parts were made again.
    MadeAgain(Vec<String>),
    /// It was not to come back after a restart.
    NotPersisted,
    /// A bridge to the outside: its manager makes all of it.
    ByManager,
    /// It is not, or not wholly, there.
    Failed(Error),
}

/// One network.
#[derive(Debug)]
pub struct Restored {
    /// Its bridge.
    pub name: String,
    /// What became of it.
    pub outcome: Outcome,
}

/// Makes networks again, each whatever becomes of the others. What is so already stays untouched, so this may be
/// called at any time.
///
/// Nothing of it is a new entry of the journal: the entry that made a network undoes it. Where no entry holds what a
/// network needs (forwarding was on for another reason when it was made), one is made, once.
pub fn restore(
    host: &Host,
    effects: &mut dyn Effects,
    wish: &RestoreWish,
) -> Result<Vec<Restored>> {
    let names = if wish.names.is_empty() { registry::names(host) } else { wish.names.clone() };
    names.iter().try_for_each(|name| check_name(name))?;
    await_bridges(host, &names, wish.patience);
    let mut restored = locked(effects, |effects| {
        let journals = live_journals(host);
        let each = names.iter().map(|name| {
            let outcome = one(host, effects, &journals, name).unwrap_or_else(Outcome::Failed);
            Restored { name: name.clone(), outcome }
        });
        Ok(each.collect::<Vec<_>>())
    })?;
    match keep(host, effects, &Shared::of(host, &wish.program)) {
        Ok(kept) => {
            for (name, _) in kept {
                note(&mut restored, &name, "what it shares with others");
            }
        }
        Err(error) => {
            let name = names.first().cloned().unwrap_or_default();
            restored.push(Restored { name, outcome: Outcome::Failed(error) });
        }
    }
    Ok(restored)
}

/// Adds a part to what was made again of a network.
fn note(restored: &mut [Restored], name: &str, part: &str) {
    let Some(one) = restored.iter_mut().find(|one| one.name == name) else { return };
    match &mut one.outcome {
        Outcome::MadeAgain(parts) => parts.push(part.into()),
        outcome @ Outcome::AsRecorded => *outcome = Outcome::MadeAgain(vec![part.into()]),
        _ => {}
    }
}

/// Waits until each bridge has an address, or time is up.
fn await_bridges(host: &Host, names: &[String], patience: Duration) {
    if host.network_manager() == NetworkManager::None {
        return;
    }
    let there = |name: &String| {
        let awaited = registry::load(host, name)
            .is_ok_and(|network| network.persisted && network.subnet.is_some());
        let made = || {
            host.link(name).is_some_and(|link| link.kind == LinkKind::Bridge) && host.has_ipv4(name)
        };
        !awaited || made()
    };
    let start = Instant::now();
    while start.elapsed() < patience && !names.iter().all(there) {
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Entries that are not undone. One that cannot be read owns nothing here; `status` tells of it.
fn live_journals(host: &Host) -> Vec<Journal> {
    let mut journals = readable(host.root());
    journals.retain(|journal| journal.state() != JournalState::Undone);
    journals
}

/// The entry and step that made something, as the name of unfinished files: undoing removes these.
fn owner(journals: &[Journal], action: &Action) -> Option<String> {
    let same = |other: &Action| match (action, other) {
        (Action::File { path, .. }, Action::File { path: other, .. })
        | (Action::Value { path, .. }, Action::Value { path: other, .. }) => path == other,
        _ => action == other,
    };
    journals.iter().find_map(|journal| {
        let step = journal.actions().iter().position(same)?;
        Some(format!("{}-{step}", journal.id))
    })
}

/// Settings of uplinks that this network's entries made. They are not found out anew: at boot an uplink may have no
/// route yet.
fn recorded_values(journals: &[Journal], name: &str) -> Vec<Action> {
    let own = journals
        .iter()
        .filter(|journal| journal.actions().iter().any(|action| concerns(action, name)));
    let values = own.flat_map(|journal| journal.actions()).filter(
        |action| matches!(action, Action::Value { path, .. } if path.ends_with("/accept_ra")),
    );
    values.cloned().collect()
}

fn one(
    host: &Host,
    effects: &mut dyn Effects,
    journals: &[Journal],
    name: &str,
) -> Result<Outcome> {
    let network = registry::load(host, name)?;
    if !network.persisted {
        return Ok(Outcome::NotPersisted);
    }
    let Some(subnet) = network.subnet else { return Ok(Outcome::ByManager) };
    check_subnets(host, name, subnet, network.subnet6)?;
    let mut again = Again { effects, journals, parts: Vec::new() };
    for change in links(&network, subnet) {
        again.net(change)?;
    }
    let mut settings = Plan::default();
    for value in recorded_values(journals, name) {
        if matches!(&value, Action::Value { path, .. } if host.exists(path)) {
            settings.add(host, value);
        }
    }
    forwarding(host, &mut settings, &network);
    for action in &settings.actions {
        // What no entry holds is left to `keep`, which makes one.
        if owner(journals, action).is_some() {
            again.make(action, "forwarding")?;
        }
    }
    if network.dhcp {
        again.dnsmasq(host, &network, subnet)?;
    }
    let (action, parts) = (mark(name), again.parts.clone());
    again.make(&action, "")?;
    Ok(if parts.is_empty() { Outcome::AsRecorded } else { Outcome::MadeAgain(parts) })
}

/// What makes things again, and which ones were not there.
struct Again<'a> {
    effects: &'a mut dyn Effects,
    journals: &'a [Journal],
    parts: Vec<String>,
}

impl Again<'_> {
    fn make(&mut self, action: &Action, part: &str) -> Result<()> {
        let tag = owner(self.journals, action).unwrap_or_else(|| "restore".into());
        if again(self.effects, action, &tag)? && !self.parts.iter().any(|other| other == part) {
            self.parts.push(part.to_owned());
        }
        Ok(())
    }

    fn net(&mut self, change: NetChange) -> Result<()> {
        let part = match &change {
            NetChange::Bridge { .. } => "the bridge".to_owned(),
            NetChange::Address { address, .. } => format!("its address {address}"),
            NetChange::Table { .. } => "packet filters".to_owned(),
            NetChange::Accept { .. } => "ways through others' filters".to_owned(),
            _ => "dnsmasq".to_owned(),
        };
        self.make(&Action::Net(change), &part)
    }

    /// One that listens on a bridge which was made anew hears nothing any more.
    fn dnsmasq(&mut self, host: &Host, network: &Network, subnet: Cidr) -> Result<()> {
        let change = dnsmasq(host, network, subnet)?;
        let anew = self.parts.iter().any(|part| part == "the bridge");
        if anew
            && let NetChange::Dnsmasq { bridge, command, pid_file, .. } = &change
            && let Some(net) = self.effects.net()
        {
            let stopping = NetChange::Dnsmasq {
                bridge: bridge.clone(),
                command: command.clone(),
                pid_file: pid_file.clone(),
                // The leases stay.
                files: Vec::new(),
            };
            net.restore(&stopping, &super::NetBefore::There { there: false })?;
        }
        self.net(change)
    }
}
