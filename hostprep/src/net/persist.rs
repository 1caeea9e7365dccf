//! Bridges in the files of whoever manages the network: NetworkManager keyfiles (nm-settings-keyfile(5)),
//! systemd.netdev(5) and systemd.network(5), netplan(5), interfaces(5) with bridge-utils-interfaces(5).

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};

use super::models::Stp;
use super::name::{HostAddress, check_name};
use crate::error::{Error, Result};
use crate::host::NetworkManager;

/// A file to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PersistFile {
    /// Where.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// Contents.
    pub text: String,
}

/// How the bridge gets its addresses at boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Addressing<'a> {
    /// By DHCP, and IPv6 by router advertisements.
    Automatic,
    /// These.
    Static {
        /// Of either family.
        addresses: &'a [HostAddress],
        /// Next hop of the default route; None for no such route.
        gateway: Option<Ipv4Addr>,
        /// Name servers.
        servers: Vec<IpAddr>,
    },
}

/// A bridge as it is to be at boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PersistBridge<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its port; None for a bridge that only guests join.
    pub port: Option<&'a str>,
    /// Its addresses.
    pub addressing: Addressing<'a>,
    /// Spanning tree.
    pub stp: Stp,
}

pub(super) const HEADER: &str = "# Written by rhostprep; `rhostprep undo` takes it back.\n";

/// The files for a bridge.
pub fn persist_files(manager: NetworkManager, bridge: &PersistBridge) -> Result<Vec<PersistFile>> {
    check_name(bridge.name)?;
    bridge.port.map_or(Ok(()), check_name)?;
    match manager {
        NetworkManager::NetworkManager => Ok(network_manager(bridge)),
        NetworkManager::Networkd => Ok(networkd(bridge)),
        NetworkManager::Netplan => Ok(vec![netplan(bridge)]),
        NetworkManager::Ifupdown => Ok(vec![ifupdown(bridge)]),
        NetworkManager::None => {
            Err(Error::host("no network manager was recognised, so nothing can be made to last")
                .remedy("leave --persist away and run the command at boot"))
        }
    }
}

impl PersistBridge<'_> {
    fn stp_on(&self) -> bool {
        self.stp == Stp::On
    }

    /// Seconds before a port forwards: the least that the standard allows, or none without spanning tree.
    fn delay(&self) -> u32 {
        if self.stp_on() { 2 } else { 0 }
    }

    /// Fixed addresses of one family.
    fn addresses(&self, four: bool) -> Vec<HostAddress> {
        match &self.addressing {
            Addressing::Automatic => Vec::new(),
            Addressing::Static { addresses, .. } => {
                addresses.iter().filter(|one| one.address.is_ipv4() == four).copied().collect()
            }
        }
    }

    fn gateway(&self) -> Option<Ipv4Addr> {
        match self.addressing {
            Addressing::Static { gateway, .. } => gateway,
            Addressing::Automatic => None,
        }
    }

    fn servers(&self, four: bool) -> Vec<String> {
        match &self.addressing {
            Addressing::Automatic => Vec::new(),
            Addressing::Static { servers, .. } => {
                let own = servers.iter().filter(|server| server.is_ipv4() == four);
                own.map(ToString::to_string).collect()
            }
        }
    }
}

fn network_manager(bridge: &PersistBridge) -> Vec<PersistFile> {
    let folder = "/etc/NetworkManager/system-connections";
    let name = bridge.name;
    let mut text = format!(
        "{HEADER}[connection]\nid={name}\ntype=bridge\ninterface-name={name}\n\n[bridge]\nstp={}\n",
        bridge.stp_on()
    );
    if bridge.stp_on() {
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(text, "forward-delay={}", bridge.delay());
    }
    for (section, four) in [("ipv4", true), ("ipv6", false)] {
        let addresses = bridge.addresses(four);
        let _ = write!(text, "\n[{section}]\n");
        if bridge.addressing == Addressing::Automatic {
            text.push_str("method=auto\n");
            continue;
        }
        if addresses.is_empty() {
            text.push_str(if four { "method=disabled\n" } else { "method=link-local\n" });
            continue;
        }
        text.push_str("method=manual\n");
        for (index, address) in addresses.iter().enumerate() {
            let _ = writeln!(text, "address{}={address}", index + 1);
        }
        if let Some(gateway) = bridge.gateway().filter(|_| four) {
            let _ = writeln!(text, "gateway={gateway}");
        }
        let servers = bridge.servers(four);
        if !servers.is_empty() {
            let _ = writeln!(text, "dns={};", servers.join(";"));
        }
    }
    // NetworkManager ignores files that others may read.
    let mode = 0o600;
    let path = format!("{folder}/{name}.nmconnection");
    let mut files = vec![PersistFile { path, mode, text }];
    if let Some(port) = bridge.port {
        files.push(PersistFile {
            path: format!("{folder}/{name}-{port}.nmconnection"),
            mode,
            text: format!(
                "{HEADER}[connection]\nid={name}-{port}\ntype=ethernet\ninterface-name={port}\nmaster={name}\nslave-type=bridge\nautoconnect-priority=10\n"
            ),
        });
    }
    files
}

fn networkd(bridge: &PersistBridge) -> Vec<PersistFile> {
    let folder = "/etc/systemd/network";
    let name = bridge.name;
    let file = |name: String, text: String| PersistFile {
        path: format!("{folder}/{name}"),
        mode: 0o644,
        text: format!("{HEADER}{text}"),
    };
    let mut network = String::new();
    match &bridge.addressing {
        Addressing::Automatic => network.push_str("DHCP=yes\n"),
        Addressing::Static { addresses, gateway, servers } => {
            for address in *addresses {
                let _ = writeln!(network, "Address={address}");
            }
            if let Some(gateway) = gateway {
                let _ = writeln!(network, "Gateway={gateway}");
            }
            for server in servers {
                let _ = writeln!(network, "DNS={server}");
            }
            network.push_str("ConfigureWithoutCarrier=yes\n");
        }
    }
    let mut netdev = format!(
        "[NetDev]\nName={name}\nKind=bridge\n\n[Bridge]\nSTP={}\n",
        if bridge.stp_on() { "yes" } else { "no" }
    );
    if bridge.stp_on() {
        let _ = writeln!(netdev, "ForwardDelaySec={}", bridge.delay());
    }
    let mut files = vec![
        file(format!("10-{name}.netdev"), netdev),
        file(format!("10-{name}.network"), format!("[Match]\nName={name}\n\n[Network]\n{network}")),
    ];
    if let Some(port) = bridge.port {
        files.push(file(
            format!("09-{name}-{port}.network"),
            format!("[Match]\nName={port}\n\n[Network]\nBridge={name}\n"),
        ));
    }
    files
}

fn netplan(bridge: &PersistBridge) -> PersistFile {
    let name = bridge.name;
    let mut text = format!("{HEADER}network:\n  version: 2\n");
    if let Some(port) = bridge.port {
        // Names are quoted: YAML reads some of them (1e3, no) as numbers or truth values.
        let _ =
            write!(text, "  ethernets:\n    \"{port}\":\n      dhcp4: false\n      dhcp6: false\n");
    }
    let ports = bridge.port.map_or_else(|| "[]".into(), |port| format!("[\"{port}\"]"));
    let _ = write!(text, "  bridges:\n    \"{name}\":\n      interfaces: {ports}\n");
    match &bridge.addressing {
        Addressing::Automatic => text.push_str("      dhcp4: true\n"),
        Addressing::Static { addresses, gateway, servers } => {
            let quoted = |list: Vec<String>| {
                list.iter().map(|one| format!("\"{one}\"")).collect::<Vec<_>>().join(", ")
            };
            let addresses = addresses.iter().map(ToString::to_string).collect();
            let _ = writeln!(text, "      addresses: [{}]", quoted(addresses));
            if let Some(gateway) = gateway {
                let _ = write!(
                    text,
                    "      routes:\n        - to: \"0.0.0.0/0\"\n          via: \"{gateway}\"\n"
                );
            }
            if !servers.is_empty() {
                let servers = servers.iter().map(ToString::to_string).collect();
                let _ =
                    write!(text, "      nameservers:\n        addresses: [{}]\n", quoted(servers));
            }
        }
    }
    let _ = write!(
        text,
        "      parameters:\n        stp: {}\n        forward-delay: {}\n",
        bridge.stp_on(),
        bridge.delay()
    );
    PersistFile { path: format!("/etc/netplan/90-rhostprep-{name}.yaml"), mode: 0o600, text }
}

fn ifupdown(bridge: &PersistBridge) -> PersistFile {
    let name = bridge.name;
    let mut text = HEADER.to_owned();
    if let Some(port) = bridge.port {
        let _ = write!(text, "iface {port} inet manual\n\n");
    }
    let _ = writeln!(text, "auto {name}");
    let (four, six) = (bridge.addresses(true), bridge.addresses(false));
    let first = match (&bridge.addressing, four.first()) {
        (Addressing::Automatic, _) => "dhcp\n".to_owned(),
        (_, None) => "manual\n".to_owned(),
        (_, Some(address)) => format!("static\n    address {address}\n"),
    };
    let _ = write!(text, "iface {name} inet {first}");
    if let Some(gateway) = bridge.gateway() {
        let _ = writeln!(text, "    gateway {gateway}");
    }
    let servers = bridge.servers(true);
    if !servers.is_empty() {
        let _ = writeln!(text, "    dns-nameservers {}", servers.join(" "));
    }
    let _ = write!(
        text,
        "    bridge_ports {}\n    bridge_stp {}\n    bridge_fd {}\n",
        bridge.port.unwrap_or("none"),
        if bridge.stp_on() { "on" } else { "off" },
        bridge.delay()
    );
    for address in four.iter().skip(1) {
        let _ = write!(text, "\niface {name} inet static\n    address {address}\n");
    }
    for address in six {
        let _ = write!(text, "\niface {name} inet6 static\n    address {address}\n");
    }
    // Debian's /etc/network/interfaces sources this folder; names there may not hold dots.
    PersistFile {
        path: format!("/etc/network/interfaces.d/rhostprep-{}", name.replace('.', "_")),
        mode: 0o644,
        text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_manager() {
        let addresses = ["10.0.0.1/24", "2001:db8::1/64"];
        let addresses = addresses.map(|text| HostAddress::parse(text).unwrap());
        let mut bridge = PersistBridge {
            name: "br0",
            port: Some("eth0"),
            addressing: Addressing::Static {
                addresses: &addresses,
                gateway: Some(Ipv4Addr::new(10, 0, 0, 254)),
                servers: vec!["10.0.0.53".parse().unwrap()],
            },
            stp: Stp::On,
        };
        for (manager, count, words) in [
            (NetworkManager::NetworkManager, 2, ["address1=10.0.0.1/24", "gateway=10.0.0.254"]),
            (NetworkManager::Networkd, 3, ["Address=10.0.0.1/24", "Gateway=10.0.0.254"]),
            (
                NetworkManager::Netplan,
                1,
                ["\"10.0.0.1/24\", \"2001:db8::1/64\"", "via: \"10.0.0.254\""],
            ),
            (NetworkManager::Ifupdown, 1, ["address 10.0.0.1/24", "gateway 10.0.0.254"]),
        ] {
            let files = persist_files(manager, &bridge).unwrap();
            assert_eq!(files.len(), count);
            let all: String = files.iter().map(|file| file.text.as_str()).collect();
            let known = ["2001:db8::1/64", "10.0.0.53", "br0", "eth0"];
            for word in words.iter().chain(&known) {
                assert!(all.contains(word), "{word}: {all}");
            }
        }
        assert!(persist_files(NetworkManager::None, &bridge).is_err());
        bridge.name = "br0\nX=1";
        assert!(persist_files(NetworkManager::Networkd, &bridge).is_err());
    }
}
