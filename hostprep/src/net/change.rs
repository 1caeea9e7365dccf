//! One change of the network, and what was before it.

use serde::{Deserialize, Serialize};

use super::name::HostAddress;

/// One change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "change")]
pub enum NetChange {
    /// Makes a bridge and brings it up.
    Bridge {
        /// Its name.
        name: String,
        /// Spanning tree.
        stp: bool,
        /// MTU, 0 for the default.
        mtu: u32,
    },
    /// Makes a port of an interface, and moves its addresses, routes and MAC to the bridge.
    Enslave {
        /// The interface.
        port: String,
        /// The bridge.
        bridge: String,
    },
    /// Adds an address.
    Address {
        /// The interface.
        link: String,
        /// The address.
        address: HostAddress,
    },
    /// Makes a tap that outlives its maker.
    Tap {
        /// Its name.
        name: String,
        /// User who may open it.
        owner: Option<u32>,
        /// Bridge to join.
        bridge: Option<String>,
    },
    /// Replaces a table of packet filters.
    Table {
        /// Its name, in family inet.
        name: String,
        /// nftables syntax of its body; empty to remove the table.
        body: String,
    },
    /// Lets a bridge through others' filters.
    Accept {
        /// The bridge.
        bridge: String,
    },
    /// Starts dnsmasq.
    Dnsmasq {
        /// The bridge.
        bridge: String,
        /// Full command.
        command: Vec<String>,
        /// Its pid file.
        pid_file: String,
        /// Files it makes.
        files: Vec<String>,
    },
    /// Asks for an address by DHCP.
    DhcpClient {
        /// The interface.
        link: String,
        /// Full command.
        command: Vec<String>,
        /// Its pid file.
        pid_file: String,
        /// Files it makes.
        #[serde(default)]
        files: Vec<String>,
    },
    /// Lets systemd-networkd ask for an address by DHCP, by a file that is gone after a restart.
    Networkd {
        /// The interface.
        link: String,
        /// Its file, below /run/systemd/network.
        path: String,
        /// What is in it.
        text: String,
    },
    /// Changes nothing: what follows in the plan is for this network, and goes when it is removed.
    Belongs {
        /// The network's bridge.
        bridge: String,
    },
    /// Removes a bridge that has no ports left but taps.
    RemoveBridge {
        /// Its name.
        name: String,
    },
}

/// What was before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "net")]
pub enum NetBefore {
    /// Whether it was there.
    There {
        /// It was.
        there: bool,
    },
    /// An interface before it became a port.
    Port(PortState),
    /// An interface before it got addresses from elsewhere.
    Leased {
        /// The client ran already.
        there: bool,
        /// Its addresses and routes.
        state: PortState,
    },
    /// The table's old body, None when there was none.
    Table {
        /// As `nft list table` prints it.
        text: Option<String>,
    },
}

/// An interface's addresses and routes as netlink messages in hexadecimal, to be replayed word for word.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortState {
    /// Hardware address.
    pub mac: String,
    /// The bridge's or bond's index before, 0 for none.
    pub master: u32,
    /// It was up.
    pub up: bool,
    /// Addresses.
    pub addresses: Vec<String>,
    /// Routes, those without a gateway first.
    pub routes: Vec<String>,
}

impl NetChange {
    /// One line about it.
    pub fn describe(&self) -> String {
        match self {
            Self::Bridge { name, stp, .. } => {
                format!(
                    "make the bridge {name} (spanning tree {})",
                    if *stp { "on" } else { "off" }
                )
            }
            Self::Enslave { port, bridge } => {
                format!(
                    "make {port} a port of {bridge}; its addresses, routes and MAC move to {bridge}"
                )
            }
            Self::Address { link, address } => format!("give {link} the address {address}"),
            Self::Tap { name, owner, bridge } => {
                let owner = owner.map(|uid| format!(" for user {uid}")).unwrap_or_default();
                let bridge = bridge.as_ref().map(|name| format!(" on {name}")).unwrap_or_default();
                format!("make the tap {name}{owner}{bridge}")
            }
            Self::Table { name, body } if body.is_empty() => {
                format!("remove the nftables table inet {name}")
            }
            Self::Table { name, body } => {
                format!("replace the nftables table inet {name} {{\n{body}   }}")
            }
            Self::Accept { bridge } => {
                format!("let {bridge} through forward chains of others that drop")
            }
            Self::Dnsmasq { command, .. } => format!("start {}", command.join(" ")),
            Self::DhcpClient { command, .. } => format!("start {}", command.join(" ")),
            Self::Networkd { link, path, .. } => {
                format!("let systemd-networkd ask for an address of {link} ({path})")
            }
            Self::Belongs { bridge } => format!("what follows is for the network {bridge}"),
            Self::RemoveBridge { name } => format!("remove the bridge {name}"),
        }
    }

    /// One line about its undo.
    pub fn describe_undo(&self) -> String {
        match self {
            Self::Bridge { name, .. } => format!("remove {name}"),
            Self::Enslave { port, .. } => format!("move everything back to {port}"),
            Self::Address { .. } => "remove the address".into(),
            Self::Tap { name, .. } => format!("remove {name}"),
            Self::Table { .. } => "put the old table back, or remove it".into(),
            Self::Accept { .. } => "take exactly these rules out".into(),
            Self::Dnsmasq { .. } => "stop it".into(),
            Self::DhcpClient { .. } => "stop it and take its addresses away".into(),
            Self::Networkd { .. } => "remove the file and the addresses".into(),
            Self::Belongs { .. } => "nothing".into(),
            Self::RemoveBridge { name } => format!("make {name} again"),
        }
    }
}
