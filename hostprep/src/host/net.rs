//! Interfaces from sysfs and routes from `/proc/net/route` and `/proc/net/ipv6_route`.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::Host;

/// What sort of interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkKind {
    /// A bridge.
    Bridge,
    /// A tap or tun.
    Tap,
    /// A wireless station.
    Wireless,
    /// Has a device behind it (PCI, USB, virtio).
    Physical,
    /// The loopback, veth, vlan, dummy, ...
    Virtual,
}

/// One interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: LinkKind,
    /// Octets a frame may carry.
    pub mtu: u64,
    /// `up`, `down`, `unknown`, ...
    pub state: String,
    /// The bridge or bond it belongs to.
    pub master: Option<String>,
}

/// One IPv4 route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route4 {
    /// Interface.
    pub interface: String,
    /// Network.
    pub destination: Ipv4Addr,
    /// Prefix length.
    pub prefix: u32,
    /// Next hop, 0.0.0.0 for none.
    pub gateway: Ipv4Addr,
}

impl Route4 {
    /// Whether two networks share addresses. The default route overlaps nothing.
    pub fn overlaps(&self, network: Ipv4Addr, prefix: u32) -> bool {
        let shorter = self.prefix.min(prefix);
        if shorter == 0 {
            return false;
        }
        let mask = u32::MAX << (32 - shorter);
        u32::from(self.destination) & mask == u32::from(network) & mask
    }

    /// Whether an address is reached by this route.
    pub fn covers(&self, address: Ipv4Addr) -> bool {
        self.prefix == 0 || self.overlaps(address, 32)
    }
}

/// One IPv6 route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route6 {
    /// Interface.
    pub interface: String,
    /// Network.
    pub destination: Ipv6Addr,
    /// Prefix length, 0 to 128.
    pub prefix: u32,
}

impl Route6 {
    /// Whether two networks share addresses. The default route overlaps nothing.
    pub fn overlaps(&self, network: Ipv6Addr, prefix: u32) -> bool {
        let shorter = self.prefix.min(prefix);
        if shorter == 0 {
            return false;
        }
        let mask = u128::MAX << (128 - shorter);
        u128::from(self.destination) & mask == u128::from(network) & mask
    }
}

impl Host {
    /// All interfaces by name.
    pub fn links(&self) -> Vec<Link> {
        self.list("/sys/class/net").into_iter().filter_map(|name| self.link(&name)).collect()
    }

    /// One interface.
    pub fn link(&self, name: &str) -> Option<Link> {
        let folder = format!("/sys/class/net/{name}");
        let mtu = self.number(&format!("{folder}/mtu"))?;
        let has = |entry: &str| self.exists(&format!("{folder}/{entry}"));
        let kind = if has("bridge") {
            LinkKind::Bridge
        } else if has("tun_flags") {
            LinkKind::Tap
        } else if has("phy80211") || has("wireless") {
            LinkKind::Wireless
        } else if has("device") {
            LinkKind::Physical
        } else {
            LinkKind::Virtual
        };
        Some(Link {
            name: name.to_owned(),
            kind,
            mtu,
            state: self.text(&format!("{folder}/operstate")).unwrap_or_default(),
            master: self.link_name(&format!("{folder}/master")),
        })
    }

    /// IPv4 routes of the main table.
    pub fn routes4(&self) -> Vec<Route4> {
        let text = self.read("/proc/net/route").unwrap_or_default();
        let address = |word: &str| {
            // The kernel prints the number as it lies in memory: least significant byte first.
            u32::from_str_radix(word, 16).ok().map(|raw| Ipv4Addr::from(raw.swap_bytes()))
        };
        let routes = text.lines().skip(1).filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [interface, destination, gateway, _, _, _, _, mask, ..] = words.as_slice() else {
                return None;
            };
            Some(Route4 {
                interface: (*interface).to_owned(),
                destination: address(destination)?,
                prefix: u32::from(address(mask)?).count_ones(),
                gateway: address(gateway)?,
            })
        });
        routes.collect()
    }

    /// IPv6 routes of all tables.
    pub fn routes6(&self) -> Vec<Route6> {
        let text = self.read("/proc/net/ipv6_route").unwrap_or_default();
        // Destination, its prefix length, source, its prefix length, next hop, metric, reference count, use, flags
        // and interface, numbers in hexadecimal.
        let routes = text.lines().filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [destination, prefix, _, _, _, _, _, _, _, interface] = words.as_slice() else {
                return None;
            };
            Some(Route6 {
                interface: (*interface).to_owned(),
                destination: Ipv6Addr::from(u128::from_str_radix(destination, 16).ok()?),
                prefix: u32::from_str_radix(prefix, 16).ok().filter(|prefix| *prefix <= 128)?,
            })
        });
        routes.collect()
    }

    /// Interfaces with a default route of IPv6. The loopback has one that refuses.
    pub fn uplinks6(&self) -> Vec<String> {
        let routes = self.routes6().into_iter();
        let mut names: Vec<String> = routes
            .filter(|route| route.prefix == 0 && route.interface != "lo")
            .map(|route| route.interface)
            .collect();
        names.sort();
        names.dedup();
        names
    }

    /// Local IPv4 networks of an interface: its routes without a gateway.
    pub fn has_ipv4(&self, interface: &str) -> bool {
        self.routes4().iter().any(|route| route.interface == interface)
    }
}
