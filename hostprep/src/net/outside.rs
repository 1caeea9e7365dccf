//! Bridges to the outside: a physical port, and guests as equals of this host.

use std::net::{IpAddr, Ipv4Addr};

use super::change::NetChange;
use super::models::{Address, BridgeWish, Model, Stp};
use super::name::{Cidr, HostAddress, check_name};
use super::persist::{Addressing, PersistBridge, persist_files};
use super::registry::{self, Network};
use crate::change::{Action, Plan};
use crate::error::{Error, Result};
use crate::host::{Host, LinkKind, NetworkManager};

/// Who can ask for a lease of a bridge, in this order: dhclient, udhcpc (of busybox), systemd-networkd.
///
/// The clients are asked for addresses and routes only: names are looked up as before, as resolv.conf belongs to
/// whoever manages the network. They end when no lease comes, and the whole change is undone.
fn dhcp_client(host: &Host, link: &str, plan: &mut Plan) -> Result<()> {
    let pid_file = format!("/run/rhostprep-dhcp-{link}.pid");
    if let Some(program) = host.program("dhclient") {
        let settings = format!("/run/rhostprep-dhcp-{link}.conf");
        let leases = format!("/run/rhostprep-dhcp-{link}.leases");
        let text = "timeout 20;\nrequest subnet-mask, broadcast-address, routers;\n";
        plan.add(host, Action::File { path: settings.clone(), text: text.into(), mode: 0o644 });
        let words = ["-1", "-4", "-q", "-cf", &settings, "-lf", &leases, "-pf", &pid_file, link];
        let command = std::iter::once(program).chain(words.map(str::to_owned)).collect();
        plan.actions.push(Action::Net(NetChange::DhcpClient {
            link: link.into(),
            command,
            pid_file,
            files: vec![leases],
        }));
        return Ok(());
    }
    // Without its script udhcpc gets a lease and tells nobody.
    let scripts = ["/etc/udhcpc/default.script", "/usr/share/udhcpc/default.script"];
    let script = scripts.into_iter().find(|path| host.exists(path));
    if let (Some(program), Some(script)) = (host.program("udhcpc"), script) {
        let words = [
            "-n",
            "-t",
            "5",
            "-T",
            "3",
            "-o",
            "-O",
            "subnet",
            "-O",
            "broadcast",
            "-O",
            "router",
            "-s",
            script,
            "-p",
            &pid_file,
            "-i",
            link,
        ];
        let command = std::iter::once(program).chain(words.map(str::to_owned)).collect();
        plan.actions.push(Action::Net(NetChange::DhcpClient {
            link: link.into(),
            command,
            pid_file,
            files: Vec::new(),
        }));
        return Ok(());
    }
    if host.network_manager() == NetworkManager::Networkd && host.has_program("networkctl") {
        plan.actions.push(Action::Net(NetChange::Networkd {
            link: link.into(),
            path: format!("/run/systemd/network/10-rhostprep-{link}.network"),
            text: format!("[Match]\nName={link}\n\n[Network]\nDHCP=ipv4\n"),
        }));
        plan.notes.push(format!("`networkctl status {link}` shows the lease when it has come"));
        return Ok(());
    }
    Err(Error::host(
        "no DHCP client is here: neither dhclient nor udhcpc, and systemd-networkd does not run",
    )
    .remedy(format!(
        "{}, or use --address CIDR",
        host.install_command("isc-dhcp-client", "dhcp-client")
    )))
}

/// Whether the port can join, and whether it has joined already.
fn joined(host: &Host, port: &str, bridge: &str) -> Result<bool> {
    check_name(port)?;
    let link = host.link(port).ok_or_else(|| {
        Error::host(format!("there is no interface {port}"))
            .remedy("`rhostprep net show` lists them")
    })?;
    if link.kind == LinkKind::Wireless {
        return Err(Error::refused(format!(
            "{port} is wireless: an access point takes one address a station, so guests behind a bridge would get no answer"
        ))
        .remedy("rhostprep net nat virbr0 --subnet 192.168.122.0/24 --dhcp"));
    }
    if link.kind == LinkKind::Bridge || port == "lo" {
        return Err(Error::refused(format!("{port} cannot be a port of a bridge")));
    }
    match link.master.as_deref() {
        Some(master) if master == bridge => Ok(true),
        Some(master) => Err(Error::refused(format!("{port} belongs to {master} already"))
            .remedy(format!("use {master}, or take {port} from it first"))),
        None => Ok(false),
    }
}

/// The plan for a bridge to the outside.
pub fn bridge(host: &Host, wish: &BridgeWish) -> Result<Plan> {
    check_name(&wish.name)?;
    let mut plan = Plan::default();
    let there = match &wish.port {
        Some(port) => joined(host, port, &wish.name)?,
        None => {
            registry::names(host).contains(&wish.name)
                && host.link(&wish.name).is_some_and(|link| link.kind == LinkKind::Bridge)
        }
    };
    let mut network = Network {
        name: wish.name.clone(),
        model: Model::Bridged,
        subnet: None,
        subnet6: None,
        dhcp: false,
        forwards: Vec::new(),
        persisted: wish.persist,
    };
    if !there {
        let mut add = |change: NetChange| plan.actions.push(Action::Net(change));
        add(NetChange::Bridge { name: wish.name.clone(), stp: wish.stp == Stp::On, mtu: 0 });
        if let Some(port) = &wish.port {
            add(NetChange::Enslave { port: port.clone(), bridge: wish.name.clone() });
        }
        match wish.address {
            Address::Keep => {}
            Address::Static(address) => {
                add(NetChange::Address { link: wish.name.clone(), address });
            }
            Address::Dhcp => dhcp_client(host, &wish.name, &mut plan)?,
        }
    }
    if registry::names(host).contains(&wish.name) {
        let old = registry::load(host, &wish.name)?;
        if old.model != Model::Bridged {
            return Err(Error::refused(format!(
                "{} is a network of another kind, made by rhostprep",
                wish.name
            ))
            .remedy(format!("use another name, or rhostprep net remove {} first", wish.name)));
        }
        network.persisted |= old.persisted;
    }
    if !there || wish.persist {
        plan.add(host, registry::file(&network)?);
    }
    if wish.persist {
        persist(host, &mut plan, wish)?;
    }
    Ok(plan)
}

fn persist(host: &Host, plan: &mut Plan, wish: &BridgeWish) -> Result<()> {
    let fixed: Vec<HostAddress> = match wish.address {
        Address::Static(address) => vec![address],
        Address::Keep | Address::Dhcp => Vec::new(),
    };
    let bridge = PersistBridge {
        name: &wish.name,
        port: wish.port.as_deref(),
        addressing: if fixed.is_empty() {
            Addressing::Automatic
        } else {
            let gateway = gateway(host, wish, &fixed);
            let servers = if gateway.is_some() { name_servers(host) } else { Vec::new() };
            Addressing::Static { addresses: &fixed, gateway, servers }
        },
        stp: wish.stp,
    };
    for file in persist_files(host.network_manager(), &bridge)? {
        plan.add(host, Action::File { path: file.path, text: file.text, mode: file.mode });
    }
    if wish.address == Address::Keep && wish.port.is_some() {
        plan.notes.push(format!(
            "after a restart {} gets its address automatically (DHCP); give --address CIDR for a fixed one",
            wish.name
        ));
    }
    Ok(())
}

/// The next hop that this host has over the port now, when the fixed address reaches it.
fn gateway(host: &Host, wish: &BridgeWish, fixed: &[HostAddress]) -> Option<Ipv4Addr> {
    let over = [wish.port.as_deref(), Some(wish.name.as_str())];
    let mut routes = host.routes4().into_iter();
    let route =
        routes.find(|route| route.prefix == 0 && over.contains(&Some(route.interface.as_str())))?;
    let reached = fixed.iter().any(|own| match own.address {
        IpAddr::V4(address) => Cidr { address, prefix: own.prefix }.contains(route.gateway),
        IpAddr::V6(_) => false,
    });
    (reached && !route.gateway.is_unspecified()).then_some(route.gateway)
}

/// Name servers in use, but those on this host, which have their own configuration.
fn name_servers(host: &Host) -> Vec<IpAddr> {
    let text = host.read("/etc/resolv.conf").unwrap_or_default();
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.parse().ok()).flatten()
    });
    servers.filter(|server: &IpAddr| !server.is_loopback()).take(3).collect()
}
