//! Interfaces from sysfs and IPv4 routes from `/proc/net/route`.

use std::net::Ipv4Addr;

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

    /// Local IPv4 networks of an interface: its routes without a gateway.
    pub fn has_ipv4(&self, interface: &str) -> bool {
        self.routes4().iter().any(|route| route.interface == interface)
    }
}
