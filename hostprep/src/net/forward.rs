//! Ports of the host that lead to a guest.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::change::NetChange;
use super::inside;
use super::models::{Model, Persist};
use super::registry::{self, Network};
use super::table::{table_body, table_name};
use crate::change::{Action, Plan};
use crate::error::{Error, Result};
use crate::host::Host;

/// A forwarded port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forward {
    /// `tcp` or `udp`.
    pub protocol: String,
    /// On the host.
    pub port: u16,
    /// The guest.
    pub guest: Ipv4Addr,
    /// On the guest.
    pub guest_port: u16,
}

impl Forward {
    /// Reads `8080 -> 192.168.122.140:80`, with `/udp` after the first port where wanted.
    pub fn parse(text: &str) -> Result<Self> {
        let bad = || {
            Error::usage(format!("'{text}' does not name a forward"))
                .remedy("write '8080 -> 192.168.122.140:80' (quoted), or 8080 192.168.122.140:80")
        };
        let text = text.replace("->", " ");
        let mut words = text.split_whitespace();
        let (Some(from), Some(to), None) = (words.next(), words.next(), words.next()) else {
            return Err(bad());
        };
        let (port, protocol) = from.split_once('/').unwrap_or((from, "tcp"));
        if !matches!(protocol, "tcp" | "udp") {
            return Err(bad());
        }
        let (guest, guest_port) = to.rsplit_once(':').ok_or_else(bad)?;
        let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(bad);
        Ok(Self {
            protocol: protocol.into(),
            port: number(port)?,
            guest: guest.parse().map_err(|_| bad())?,
            guest_port: number(guest_port)?,
        })
    }
}

/// The plan for a forward into one of our networks. It comes back after a restart when the network does, which
/// `persist` asks for.
pub fn forward(host: &Host, forward: &Forward, persist: &Persist) -> Result<Plan> {
    let mut found = None;
    let taken = |network: &Network| {
        network
            .forwards
            .iter()
            .any(|other| other.port == forward.port && other.protocol == forward.protocol)
    };
    for name in registry::names(host) {
        let network = registry::load(host, &name)?;
        if network.subnet.is_some_and(|subnet| subnet.contains(forward.guest)) {
            found = Some(network);
        } else if taken(&network) {
            return Err(Error::refused(format!(
                "port {} is forwarded into {name} already",
                forward.port
            )));
        }
    }
    let Some(mut network) = found.filter(|network| network.model == Model::Nat) else {
        return Err(Error::usage(format!(
            "{} is in no NAT network made by rhostprep",
            forward.guest
        ))
        .remedy("rhostprep net nat virbr0 --subnet 192.168.122.0/24"));
    };
    let mut plan = Plan::default();
    if !network.forwards.contains(forward) {
        if taken(&network) {
            return Err(Error::refused(format!(
                "port {} is forwarded to another guest already",
                forward.port
            )));
        }
        network.forwards.push(forward.clone());
        plan.actions.push(Action::Net(NetChange::Table {
            name: table_name(&network.name),
            body: table_body(&network),
        }));
        if network.persisted {
            let name = &network.name;
            plan.notes.push(format!("it comes back after a restart, as its network {name} does"));
        }
    }
    if let Persist::Yes { program } = persist {
        network.persisted = true;
        inside::persist(host, &mut plan, &network, program)?;
    }
    plan.add(host, registry::file(&network)?);
    inside::belong(&mut plan, &network.name);
    Ok(plan)
}
