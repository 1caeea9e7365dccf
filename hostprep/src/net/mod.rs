//! Bridges, taps, address translation: the models isolated, routed, NAT and bridged.
//!
//! * Links, addresses and routes go over netlink; packet filters are nftables in a table of our own for each
//!   network (`inet rhostprep_NAME`), replaced in one transaction and never mixed with others' rules. Where another
//!   table drops forwarded packets (Docker does), accept rules with our mark in their comment are put into the
//!   chain that is meant for it, and only these are taken out again; the same with the old iptables.
//! * A network that is to come back after a restart is made again at boot by [`restore`], from what is written down
//!   about it. That is no new change: the journal that made the network undoes it, however often it was made again.
//! * Forwarding and the unit of systemd serve all networks: when the one goes whose journal holds them, [`keep`]
//!   gives them to another one that needs them.
//! * Everything here is a [`NetChange`] of a plan, so it is journalled and undone like all other actions.

mod backend;
mod boot;
mod change;
mod daemon;
mod enslave;
mod firewall;
mod forward;
mod inside;
mod kernel;
mod legacy;
mod models;
mod name;
mod outside;
mod persist;
mod registry;
mod restore;
mod shared;
mod show;
mod table;
mod tap;

pub use backend::{Kernel, NetBackend};
pub use change::{NetBefore, NetChange};
pub use forward::{Forward, forward};
pub use inside::network;
pub use models::{Address, BridgeWish, Model, NetworkWish, Persist, Stp, concerns, tap_plan};
pub use name::{Cidr, HostAddress, Subnet6, check_name};
pub use outside::bridge;
pub use persist::{Addressing, PersistBridge, PersistFile, persist_files};
pub use registry::{Network, load, names, path_of};
pub use restore::{Outcome, RestoreWish, Restored, restore};
pub use shared::{Shared, keep};
pub use show::show;

/// Attaches an interface to a bridge and brings it up (what qemu-ifup does).
pub fn attach(port: &str, bridge: &str) -> crate::Result<()> {
    check_name(port)?;
    check_name(bridge)?;
    let mut socket = kernel::Netlink::open()?;
    let port = socket.need(port)?;
    let bridge = socket.need(bridge)?;
    socket.set_up(port.index, true)?;
    socket.set_master(port.index, bridge.index)
}

/// Takes an interface from its bridge and down (what qemu-ifdown does); one that has gone is no error.
pub fn detach(port: &str) -> crate::Result<()> {
    check_name(port)?;
    let mut socket = kernel::Netlink::open()?;
    let Some(port) = socket.link(port)? else { return Ok(()) };
    socket.set_master(port.index, 0)?;
    socket.set_up(port.index, false)
}
