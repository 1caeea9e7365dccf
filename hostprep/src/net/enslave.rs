//! Moving everything an interface has to the bridge above it, and back.
//!
//! Order: the bridge takes the port's MAC (a DHCP server and the neighbours then see no change), the port joins, its
//! addresses of both families move (but link-local ones, which each link makes itself), and at last the routes,
//! which need them. Back: the same in reverse. Each single step may have
//! been done already, so both directions can be repeated after a kill.

use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::route::RouteMessage;

use super::change::PortState;
use super::kernel::{Link, Netlink, emit, parse_address, parse_route, same_address, same_route};
use crate::error::{Error, ErrorKind, Result};
use crate::hex::{from_hex, to_hex};

/// What a port-to-be has now.
pub fn remember(socket: &mut Netlink, port: &str) -> Result<PortState> {
    let link = socket.need(port)?;
    if link.master != 0 {
        return Err(Error::refused(format!("{port} belongs to another bridge or bond already"))
            .remedy("take it from there first"));
    }
    state(socket, &link)
}

/// Addresses and routes of an interface.
pub fn state(socket: &mut Netlink, link: &Link) -> Result<PortState> {
    let addresses =
        socket.addresses(link.index)?.iter().map(|message| to_hex(&emit(message))).collect();
    let routes = socket.routes(link.index)?.iter().map(|message| to_hex(&emit(message))).collect();
    Ok(PortState { mac: to_hex(&link.mac), master: link.master, up: link.up, addresses, routes })
}

fn damaged() -> Error {
    Error::new(ErrorKind::Damaged, "the journal's copy of addresses and routes is damaged")
}

fn addresses(state: &PortState) -> Result<Vec<AddressMessage>> {
    let parse = |text: &String| from_hex(text).and_then(|bytes| parse_address(&bytes));
    state.addresses.iter().map(|text| parse(text).ok_or_else(damaged)).collect()
}

fn routes(state: &PortState) -> Result<Vec<RouteMessage>> {
    let parse = |text: &String| from_hex(text).and_then(|bytes| parse_route(&bytes));
    state.routes.iter().map(|text| parse(text).ok_or_else(damaged)).collect()
}

fn move_all(socket: &mut Netlink, state: &PortState, from: Option<u32>, to: u32) -> Result<()> {
    for message in addresses(state)? {
        if let Some(from) = from {
            socket.drop_address(message.clone(), from)?;
        }
        socket.move_address(message, to)?;
    }
    for message in routes(state)? {
        // IPv4 routes go with their address; those of IPv6 stay, and would win or lose by chance.
        if let Some(from) = from {
            socket.drop_route(message.clone(), from)?;
        }
        socket.put_route(message, to)?;
    }
    Ok(())
}

/// Takes away what an interface got since, such as a lease's address and routes.
pub fn drop_new(socket: &mut Netlink, link: &Link, before: &PortState) -> Result<()> {
    let (old_addresses, old_routes) = (addresses(before)?, routes(before)?);
    for message in socket.routes(link.index)? {
        if !old_routes.iter().any(|old| same_route(old, &message)) {
            socket.drop_route(message, link.index)?;
        }
    }
    for message in socket.addresses(link.index)? {
        if !old_addresses.iter().any(|old| same_address(old, &message)) {
            socket.drop_address(message, link.index)?;
        }
    }
    Ok(())
}

/// Moves to the bridge.
pub fn perform(socket: &mut Netlink, port: &str, bridge: &str, state: &PortState) -> Result<()> {
    let port = socket.need(port)?;
    let bridge = socket.need(bridge)?;
    let mac = from_hex(&state.mac).ok_or_else(damaged)?;
    if mac.len() == 6 && bridge.mac != mac {
        socket.set_mac(bridge.index, &mac)?;
    }
    if bridge.mtu != port.mtu {
        socket.set_mtu(bridge.index, port.mtu)?;
    }
    socket.set_up(port.index, true)?;
    socket.set_master(port.index, bridge.index)?;
    socket.set_up(bridge.index, true)?;
    move_all(socket, state, Some(port.index), bridge.index)
}

/// Moves back. A port that has vanished has nothing to get.
pub fn restore(socket: &mut Netlink, port: &str, bridge: &str, state: &PortState) -> Result<()> {
    let Some(port) = socket.link(port)? else { return Ok(()) };
    let bridge = socket.link(bridge)?;
    if port.master != 0 && bridge.as_ref().is_some_and(|bridge| bridge.index == port.master) {
        socket.set_master(port.index, 0)?;
    }
    socket.set_up(port.index, state.up)?;
    let from = bridge.map(|bridge| bridge.index);
    if state.up {
        return move_all(socket, state, from, port.index);
    }
    // Routes cannot lie over an interface that is down, and addresses were there without them.
    let no_routes = PortState { routes: Vec::new(), ..state.clone() };
    move_all(socket, &no_routes, from, port.index)
}
