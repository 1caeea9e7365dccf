//! Bridges in the files of whoever manages the network: NetworkManager keyfiles (nm-settings-keyfile(5)),
//! systemd.netdev(5) and systemd.network(5), netplan(5), interfaces(5).

use super::models::{Address, Stp};
use super::name::check_name;
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

const HEADER: &str = "# Written by rhostprep; `rhostprep undo` takes it back.\n";

/// The files for a bridge. A bridge that keeps its port's addresses is taken to get them by DHCP at boot, as the
/// port's own settings are not ours to translate.
pub fn persist_files(
    manager: NetworkManager,
    bridge: &str,
    port: Option<&str>,
    address: Address,
    stp: Stp,
) -> Result<Vec<PersistFile>> {
    check_name(bridge)?;
    port.map_or(Ok(()), check_name)?;
    let on = stp == Stp::On;
    match manager {
        NetworkManager::NetworkManager => Ok(network_manager(bridge, port, address, on)),
        NetworkManager::Networkd => Ok(networkd(bridge, port, address, on)),
        NetworkManager::Netplan => Ok(vec![netplan(bridge, port, address, on)]),
        NetworkManager::Ifupdown => Ok(vec![ifupdown(bridge, port, address, on)]),
        NetworkManager::None => {
            Err(Error::host("no network manager was recognised, so nothing can be made to last")
                .remedy("leave --persist away and run the command at boot"))
        }
    }
}

fn network_manager(
    bridge: &str,
    port: Option<&str>,
    address: Address,
    stp: bool,
) -> Vec<PersistFile> {
    let folder = "/etc/NetworkManager/system-connections";
    let ipv4 = match address {
        Address::Static(cidr) => format!("method=manual\naddress1={cidr}\n"),
        Address::Keep | Address::Dhcp => "method=auto\n".to_owned(),
    };
    let mut files = vec![PersistFile {
        path: format!("{folder}/{bridge}.nmconnection"),
        // NetworkManager ignores files that others may read.
        mode: 0o600,
        text: format!(
            "{HEADER}[connection]\nid={bridge}\ntype=bridge\ninterface-name={bridge}\n\n[bridge]\nstp={stp}\n\n[ipv4]\n{ipv4}\n[ipv6]\nmethod=auto\n"
        ),
    }];
    if let Some(port) = port {
        files.push(PersistFile {
            path: format!("{folder}/{bridge}-{port}.nmconnection"),
            mode: 0o600,
            text: format!(
                "{HEADER}[connection]\nid={bridge}-{port}\ntype=ethernet\ninterface-name={port}\nmaster={bridge}\nslave-type=bridge\nautoconnect-priority=10\n"
            ),
        });
    }
    files
}

fn networkd(bridge: &str, port: Option<&str>, address: Address, stp: bool) -> Vec<PersistFile> {
    let folder = "/etc/systemd/network";
    let file = |name: String, text: String| PersistFile {
        path: format!("{folder}/{name}"),
        mode: 0o644,
        text: format!("{HEADER}{text}"),
    };
    let network = match address {
        Address::Static(cidr) => format!("Address={cidr}\nConfigureWithoutCarrier=yes\n"),
        Address::Keep | Address::Dhcp => "DHCP=yes\n".to_owned(),
    };
    let mut files = vec![
        file(
            format!("10-{bridge}.netdev"),
            format!("[NetDev]\nName={bridge}\nKind=bridge\n\n[Bridge]\nSTP={stp}\n"),
        ),
        file(
            format!("10-{bridge}.network"),
            format!("[Match]\nName={bridge}\n\n[Network]\n{network}"),
        ),
    ];
    if let Some(port) = port {
        files.push(file(
            format!("09-{bridge}-{port}.network"),
            format!("[Match]\nName={port}\n\n[Network]\nBridge={bridge}\n"),
        ));
    }
    files
}

fn netplan(bridge: &str, port: Option<&str>, address: Address, stp: bool) -> PersistFile {
    let mut text = format!("{HEADER}network:\n  version: 2\n");
    if let Some(port) = port {
        text.push_str(&format!(
            "  ethernets:\n    {port}:\n      dhcp4: false\n      dhcp6: false\n"
        ));
    }
    let ports = port.map(|port| format!("[{port}]")).unwrap_or_else(|| "[]".into());
    text.push_str(&format!("  bridges:\n    {bridge}:\n      interfaces: {ports}\n"));
    match address {
        Address::Static(cidr) => text.push_str(&format!("      addresses: [\"{cidr}\"]\n")),
        Address::Keep | Address::Dhcp => text.push_str("      dhcp4: true\n"),
    }
    text.push_str(&format!(
        "      parameters:\n        stp: {stp}\n        forward-delay: {}\n",
        if stp { 2 } else { 0 }
    ));
    PersistFile { path: format!("/etc/netplan/90-rhostprep-{bridge}.yaml"), mode: 0o600, text }
}

fn ifupdown(bridge: &str, port: Option<&str>, address: Address, stp: bool) -> PersistFile {
    let mut text = HEADER.to_owned();
    if let Some(port) = port {
        text.push_str(&format!("iface {port} inet manual\n\n"));
    }
    let method = match address {
        Address::Static(cidr) => format!("static\n    address {cidr}\n"),
        Address::Keep | Address::Dhcp => "dhcp\n".to_owned(),
    };
    text.push_str(&format!(
        "auto {bridge}\niface {bridge} inet {method}    bridge_ports {}\n    bridge_stp {}\n    bridge_fd {}\n",
        port.unwrap_or("none"),
        if stp { "on" } else { "off" },
        if stp { 2 } else { 0 }
    ));
    // Debian's /etc/network/interfaces sources this folder; names there may not hold dots.
    PersistFile {
        path: format!("/etc/network/interfaces.d/rhostprep-{}", bridge.replace('.', "_")),
        mode: 0o644,
        text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Cidr;

    #[test]
    fn every_manager() {
        let address = Address::Static(Cidr::parse("10.0.0.1/24").unwrap());
        for (manager, count, word) in [
            (NetworkManager::NetworkManager, 2, "address1=10.0.0.1/24"),
            (NetworkManager::Networkd, 3, "Address=10.0.0.1/24"),
            (NetworkManager::Netplan, 1, "addresses: [\"10.0.0.1/24\"]"),
            (NetworkManager::Ifupdown, 1, "address 10.0.0.1/24"),
        ] {
            let files = persist_files(manager, "br0", Some("eth0"), address, Stp::On).unwrap();
            assert_eq!(files.len(), count);
            let all: String = files.iter().map(|file| file.text.as_str()).collect();
            assert!(all.contains(word) && all.contains("br0") && all.contains("eth0"), "{all}");
        }
        assert!(persist_files(NetworkManager::None, "br0", None, address, Stp::Off).is_err());
        assert!(
            persist_files(NetworkManager::Networkd, "br0\nX=1", None, address, Stp::Off).is_err()
        );
    }
}
