//! Ports of the host that lead to a guest.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::change::NetChange;
use super::models::Model;
use super::registry;
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

/// The plan for a forward into one of our networks.
pub fn forward(host: &Host, forward: &Forward) -> Result<Plan> {
    let mut found = None;
    for name in registry::names(host) {
        let network = registry::load(host, &name)?;
        if network.subnet.is_some_and(|subnet| subnet.contains(forward.guest)) {
            found = Some(network);
        } else if network
            .forwards
            .iter()
            .any(|other| other.port == forward.port && other.protocol == forward.protocol)
        {
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
    if network.forwards.contains(forward) {
        return Ok(Plan::default());
    }
    if network
        .forwards
        .iter()
        .any(|other| other.port == forward.port && other.protocol == forward.protocol)
    {
        return Err(Error::refused(format!(
            "port {} is forwarded to another guest already",
            forward.port
        )));
    }
    network.forwards.push(forward.clone());
    let mut plan = Plan::default();
    plan.actions.push(Action::Net(NetChange::Table {
        name: table_name(&network.name),
        body: table_body(&network),
    }));
    plan.add(host, registry::file(&network)?);
    Ok(plan)
}
