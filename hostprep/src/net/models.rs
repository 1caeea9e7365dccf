//! The models: isolated, routed, NAT, bridged; what is wished of them, and taps.

use serde::{Deserialize, Serialize};

use super::change::NetChange;
use super::name::{Cidr, HostAddress, Subnet6, check_name};
use super::registry;
use super::table::table_name;
use crate::change::{Action, Plan};
use crate::error::{Error, Result};
use crate::host::{Host, LinkKind};

/// How guests reach others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Model {
    /// Each other and the host only.
    Isolated,
    /// Everybody, with their own addresses; others need a route back.
    Routed,
    /// Everybody, behind the host's address.
    Nat,
    /// The network of a physical port, as its equals.
    Bridged,
}

/// Spanning tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stp {
    /// Off: one bridge, no loops.
    Off,
    /// On.
    On,
}

/// Whether a network comes back after a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Persist {
    /// It is gone then; one that was to come back still does.
    No,
    /// The manager's files are written, and this host is told to run `net restore` at boot.
    Yes {
        /// Absolute path of the program that has this command.
        program: String,
    },
}

/// A network behind the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkWish {
    /// The bridge.
    pub name: String,
    /// Not `Bridged`.
    pub model: Model,
    /// Its addresses; the first one becomes the host's.
    pub subnet: Cidr,
    /// IPv6 addresses of the guests; not with `Nat`.
    pub subnet6: Option<Subnet6>,
    /// Give addresses out (needs dnsmasq).
    pub dhcp: bool,
    /// Whether it comes back after a restart.
    pub persist: Persist,
}

/// What address the bridge gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Address {
    /// Those of the port.
    Keep,
    /// A lease.
    Dhcp,
    /// This one, besides those of the port.
    Static(HostAddress),
}

/// A bridge with a physical port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BridgeWish {
    /// The bridge.
    pub name: String,
    /// The port; None for an empty bridge.
    pub port: Option<String>,
    /// Spanning tree.
    pub stp: Stp,
    /// Address.
    pub address: Address,
    /// Write the manager's files too.
    pub persist: bool,
}

/// The plan for a tap.
pub fn tap_plan(
    host: &Host,
    name: &str,
    owner: Option<&str>,
    bridge: Option<&str>,
) -> Result<Plan> {
    check_name(name)?;
    let owner = owner.map(|owner| user(host, owner)).transpose()?;
    if let Some(bridge) = bridge {
        check_name(bridge)?;
        if host.link(bridge).is_none_or(|link| link.kind != LinkKind::Bridge) {
            return Err(Error::host(format!("there is no bridge {bridge}")).remedy(format!(
                "rhostprep net bridge {bridge} --port IF, or rhostprep net nat {bridge}"
            )));
        }
    }
    let mut plan = Plan::default();
    let there = host
        .link(name)
        .is_some_and(|link| link.kind == LinkKind::Tap && link.master.as_deref() == bridge);
    if !there {
        plan.actions.push(Action::Net(NetChange::Tap {
            name: name.into(),
            owner,
            bridge: bridge.map(str::to_owned),
        }));
    }
    Ok(plan)
}

fn user(host: &Host, name: &str) -> Result<u32> {
    if let Ok(uid) = name.parse() {
        return Ok(uid);
    }
    let text = host.read("/etc/passwd").unwrap_or_default();
    let uid = text.lines().find_map(|line| {
        let parts: Vec<&str> = line.split(':').collect();
        if parts.first() == Some(&name) { parts.get(2)?.parse().ok() } else { None }
    });
    uid.ok_or_else(|| {
        Error::usage(format!("there is no user {name} in /etc/passwd")).remedy("give the number")
    })
}

/// Whether a plan's changes concern this bridge: how removal finds what to undo.
pub fn concerns(action: &Action, bridge: &str) -> bool {
    let change = match action {
        Action::Net(change) => change,
        Action::File { path, .. } => return *path == registry::path_of(bridge),
        _ => return false,
    };
    match change {
        NetChange::Bridge { name, .. } | NetChange::RemoveBridge { name } => name == bridge,
        NetChange::Tap { name, bridge: on, .. } => name == bridge || on.as_deref() == Some(bridge),
        NetChange::Enslave { bridge: name, .. }
        | NetChange::Accept { bridge: name }
        | NetChange::Belongs { bridge: name }
        | NetChange::Dnsmasq { bridge: name, .. } => name == bridge,
        NetChange::Address { link, .. }
        | NetChange::DhcpClient { link, .. }
        | NetChange::Networkd { link, .. } => link == bridge,
        NetChange::Table { name, .. } => *name == table_name(bridge),
    }
}
