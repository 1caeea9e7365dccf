//! What there is: links, addresses, bridges with ports, networks made here.

use std::fmt::Write as _;

use super::kernel::{Netlink, address_of};
use super::registry;
use crate::error::Result;
use crate::host::Host;

/// Shows the network of this namespace.
pub fn show(host: &Host) -> Result<String> {
    let mut socket = Netlink::open()?;
    let links = socket.links()?;
    let mut out = String::new();
    for link in &links {
        let master = links.iter().find(|other| other.index == link.master && link.master != 0);
        let mut words = vec![format!("{:<16}", link.name)];
        words.push(if link.up { "up".into() } else { "down".into() });
        words.push(if link.kind.is_empty() { "hardware".into() } else { link.kind.clone() });
        words.push(format!("mtu {}", link.mtu));
        if let Some(master) = master {
            words.push(format!("on {}", master.name));
        }
        for message in socket.addresses(link.index)? {
            if let Some((address, prefix)) = address_of(&message) {
                words.push(format!("{address}/{prefix}"));
            }
        }
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{}", words.join("  "));
    }
    for name in registry::names(host) {
        let network = registry::load(host, &name)?;
        let subnet = network.subnet.map(|subnet| format!(" {subnet}")).unwrap_or_default();
        let subnet6 = network.subnet6.map(|subnet| format!(" {subnet}")).unwrap_or_default();
        let model = format!("{:?}", network.model).to_lowercase();
        let _ = writeln!(
            out,
            "network {name}: {model}{subnet}{subnet6}{}{}",
            if network.dhcp { ", DHCP" } else { "" },
            if network.persisted { ", comes back after a restart" } else { "" }
        );
        for forward in &network.forwards {
            let _ = writeln!(
                out,
                "  {} {} -> {}:{}",
                forward.protocol, forward.port, forward.guest, forward.guest_port
            );
        }
    }
    Ok(out)
}
