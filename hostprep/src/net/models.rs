//! The models as plans: isolated, routed, NAT, bridged; taps and port forwards.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::change::NetChange;
use super::name::{Cidr, check_name};
use super::persist::persist_files;
use super::registry::{self, Network};
use crate::change::{Action, Compaction, Plan};
use crate::error::{Error, Result};
use crate::host::{Host, LinkKind};

/// How guests reach others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Model {
    /// Each other and the host only.
    Isolated,
    /// Everybody, with their own addresses; others need a route back.
    Routed,
    /// Everybody, behind the host's address.
    Nat,
    /// The network of a physical port, as its equals.
    Bridged,
}

/// Spanning tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stp {
    /// Off: one bridge, no loops.
    Off,
    /// On.
    On,
}

/// A network behind the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkWish {
    /// The bridge.
    pub name: String,
    /// Not `Bridged`.
    pub model: Model,
    /// Its addresses; the first one becomes the host's.
    pub subnet: Cidr,
    /// Give addresses out (needs dnsmasq).
    pub dhcp: bool,
    /// Write the manager's files too.
    pub persist: bool,
}

/// What address the bridge gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Address {
    /// Those of the port.
    Keep,
    /// A lease.
    Dhcp,
    /// This one, besides those of the port.
    Static(Cidr),
}

/// A bridge with a physical port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BridgeWish {
    /// The bridge.
    pub name: String,
    /// The port; None for an empty bridge.
    pub port: Option<String>,
    /// Spanning tree.
    pub stp: Stp,
    /// Address.
    pub address: Address,
    /// Write the manager's files too.
    pub persist: bool,
}

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

/// Name of our table.
fn table_name(bridge: &str) -> String {
    format!("rhostprep_{bridge}")
}

/// The table's body.
fn table_body(network: &Network) -> String {
    let mut out = String::new();
    let bridge = &network.name;
    // Writing to a String cannot fail.
    let mut line = |text: &str| {
        let _ = writeln!(out, "{text}");
    };
    let Some(subnet) = network.subnet else { return out };
    let net = format!("{}/{}", subnet.network(), subnet.prefix);
    line("  chain forward {");
    line("    type filter hook forward priority filter; policy accept;");
    line(&format!("    iifname \"{bridge}\" oifname \"{bridge}\" accept"));
    match network.model {
        Model::Isolated => {
            line(&format!("    iifname \"{bridge}\" drop"));
            line(&format!("    oifname \"{bridge}\" drop"));
        }
        Model::Routed | Model::Bridged => {}
        Model::Nat => {
            // Guests open connections; into the network go answers and forwarded ports only.
            line(&format!("    iifname \"{bridge}\" ip saddr {net} accept"));
            line(&format!("    iifname \"{bridge}\" drop"));
            line(&format!("    oifname \"{bridge}\" ct state established,related accept"));
            line(&format!("    oifname \"{bridge}\" ct status dnat accept"));
            line(&format!("    oifname \"{bridge}\" drop"));
        }
    }
    line("  }");
    if network.model == Model::Nat {
        line("  chain postrouting {");
        line("    type nat hook postrouting priority srcnat; policy accept;");
        line(&format!(
            "    ip saddr {net} ip daddr != {{ {net}, 224.0.0.0/4, 255.255.255.255 }} masquerade"
        ));
        line("  }");
        if !network.forwards.is_empty() {
            for (hook, priority, guard) in
                [("prerouting", "dstnat", ""), ("output", "-100", "ip daddr != 127.0.0.0/8 ")]
            {
                line(&format!("  chain {hook} {{"));
                line(&format!("    type nat hook {hook} priority {priority}; policy accept;"));
                for Forward { protocol, port, guest, guest_port } in &network.forwards {
                    line(&format!(
                        "    fib daddr type local {guard}meta nfproto ipv4 {protocol} dport {port} dnat ip to {guest}:{guest_port}"
                    ));
                }
                line("  }");
            }
        }
    }
    out
}

fn registry_file(network: &Network) -> Result<Action> {
    let text = serde_json::to_string_pretty(network)
        .map_err(|error| Error::host(format!("the network cannot be written down: {error}")))?;
    Ok(Action::File { path: registry::path_of(&network.name), text: text + "\n", mode: 0o600 })
}

/// Refuses a subnet that would hide addresses this host reaches.
fn check_subnet(host: &Host, name: &str, subnet: Cidr) -> Result<()> {
    if subnet.prefix > 29 || subnet.prefix < 8 {
        return Err(Error::usage(format!("{subnet} is no subnet for guests"))
            .remedy("use a prefix from /8 to /29"));
    }
    let routes = host.routes4();
    let clash = |subnet: Cidr| {
        routes.iter().find(|route| {
            route.interface != name && route.overlaps(subnet.network(), subnet.prefix.into())
        })
    };
    let Some(route) = clash(subnet) else { return Ok(()) };
    let free = (100..=250)
        .map(|third| Cidr { address: Ipv4Addr::new(192, 168, third, 0), prefix: 24 })
        .find(|candidate| clash(*candidate).is_none());
    let hint = free.map_or_else(String::new, |free| format!("use {free}"));
    Err(Error::refused(format!(
        "{subnet} overlaps {}/{}, which this host reaches over {}",
        route.destination, route.prefix, route.interface
    ))
    .remedy(hint))
}

fn dnsmasq(host: &Host, name: &str, subnet: Cidr) -> Result<NetChange> {
    let Some(program) = host.program("dnsmasq") else {
        return Err(Error::host("dnsmasq, which gives addresses out, is not installed").remedy(
            format!("{}; or leave --dhcp away", host.install_command("dnsmasq-base", "dnsmasq")),
        ));
    };
    let last = Ipv4Addr::from(u32::from(subnet.broadcast()).saturating_sub(1));
    let pid_file = format!("/run/rhostprep-dnsmasq-{name}.pid");
    let leases = format!("/run/rhostprep-dnsmasq-{name}.leases");
    let command = vec![
        program,
        "--conf-file=".into(),
        "--strict-order".into(),
        "--bind-interfaces".into(),
        "--except-interface=lo".into(),
        format!("--interface={name}"),
        format!("--listen-address={}", subnet.nth(1)),
        format!("--dhcp-range={},{last}", subnet.nth(2)),
        "--dhcp-no-override".into(),
        format!("--dhcp-leasefile={leases}"),
        format!("--pid-file={pid_file}"),
    ];
    Ok(NetChange::Dnsmasq { bridge: name.into(), command, pid_file, files: vec![leases] })
}

/// The plan for a network behind the host.
pub fn network(host: &Host, wish: &NetworkWish) -> Result<Plan> {
    check_name(&wish.name)?;
    check_subnet(host, &wish.name, wish.subnet)?;
    if registry::names(host).contains(&wish.name) {
        let old = registry::load(host, &wish.name)?;
        if old.subnet == Some(wish.subnet) && old.model == wish.model && old.dhcp == wish.dhcp {
            return Ok(Plan::default());
        }
        return Err(Error::refused(format!("{} exists with other settings", wish.name))
            .remedy(format!("rhostprep net remove {} first", wish.name)));
    }
    let network = Network {
        name: wish.name.clone(),
        model: wish.model,
        subnet: Some(wish.subnet),
        dhcp: wish.dhcp,
        forwards: Vec::new(),
    };
    let mut plan = Plan::default();
    let mut add = |change: NetChange| plan.actions.push(Action::Net(change));
    add(NetChange::Bridge { name: wish.name.clone(), stp: false, mtu: 0 });
    let gateway = Cidr { address: wish.subnet.nth(1), prefix: wish.subnet.prefix };
    add(NetChange::Address { link: wish.name.clone(), address: gateway });
    add(NetChange::Table { name: table_name(&wish.name), body: table_body(&network) });
    if wish.model != Model::Isolated {
        add(NetChange::Accept { bridge: wish.name.clone() });
    }
    if wish.dhcp {
        add(dnsmasq(host, &wish.name, wish.subnet)?);
    }
    if wish.model != Model::Isolated {
        let forward = Action::Value {
            path: "/proc/sys/net/ipv4/ip_forward".into(),
            value: "1".into(),
            compaction: Compaction::No,
        };
        plan.add(host, forward);
    }
    plan.add(host, registry_file(&network)?);
    if wish.persist {
        let files = persist_files(
            host.network_manager(),
            &wish.name,
            None,
            Address::Static(gateway),
            Stp::Off,
        )?;
        for file in files {
            plan.add(host, Action::File { path: file.path, text: file.text, mode: file.mode });
        }
        plan.notes.push(
            "filters, forwarding and DHCP are made again by `rhostprep net nat` after a restart"
                .into(),
        );
    }
    if wish.model == Model::Routed {
        plan.notes.push(format!(
            "others need a route back: ip route add {}/{} via THIS-HOST",
            wish.subnet.network(),
            wish.subnet.prefix
        ));
    }
    Ok(plan)
}

fn dhcp_client(host: &Host, link: &str) -> Result<NetChange> {
    let pid_file = format!("/run/rhostprep-dhcp-{link}.pid");
    let clients: [(&str, &[&str]); 3] = [
        ("dhclient", &["-nw", "-pf", "PID", "LINK"]),
        ("udhcpc", &["-b", "-p", "PID", "-i", "LINK"]),
        ("dhcpcd", &["-b", "LINK"]),
    ];
    for (name, arguments) in clients {
        if let Some(program) = host.program(name) {
            let words = arguments.iter().map(|word| match *word {
                "PID" => pid_file.clone(),
                "LINK" => link.to_owned(),
                word => word.to_owned(),
            });
            let command = std::iter::once(program).chain(words).collect();
            return Ok(NetChange::DhcpClient { link: link.into(), command, pid_file });
        }
    }
    Err(Error::host("no DHCP client is installed (dhclient, udhcpc, dhcpcd)").remedy(format!(
        "{}, or use --address CIDR",
        host.install_command("isc-dhcp-client", "dhcp-client")
    )))
}

/// The plan for a bridge to the outside.
pub fn bridge(host: &Host, wish: &BridgeWish) -> Result<Plan> {
    check_name(&wish.name)?;
    let mut plan = Plan::default();
    let mut add = |change: NetChange| plan.actions.push(Action::Net(change));
    add(NetChange::Bridge { name: wish.name.clone(), stp: wish.stp == Stp::On, mtu: 0 });
    if let Some(port) = &wish.port {
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
            Some(master) if master == wish.name => return Ok(Plan::default()),
            Some(master) => {
                return Err(Error::refused(format!("{port} belongs to {master} already"))
                    .remedy(format!("use {master}, or take {port} from it first")));
            }
            None => {}
        }
        add(NetChange::Enslave { port: port.clone(), bridge: wish.name.clone() });
    }
    match wish.address {
        Address::Keep => {}
        Address::Static(address) => add(NetChange::Address { link: wish.name.clone(), address }),
        Address::Dhcp => add(dhcp_client(host, &wish.name)?),
    }
    let network = Network {
        name: wish.name.clone(),
        model: Model::Bridged,
        subnet: None,
        dhcp: false,
        forwards: Vec::new(),
    };
    plan.add(host, registry_file(&network)?);
    if wish.persist {
        let port = wish.port.as_deref();
        for file in persist_files(host.network_manager(), &wish.name, port, wish.address, wish.stp)?
        {
            plan.add(host, Action::File { path: file.path, text: file.text, mode: file.mode });
        }
    }
    Ok(plan)
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
    plan.add(host, registry_file(&network)?);
    Ok(plan)
}

/// The plan for a tap.
pub fn tap_plan(
    host: &Host,
    name: &str,
    owner: Option<&str>,
    bridge: Option<&str>,
) -> Result<Plan> {
    check_name(name)?;
    let owner = owner.map(|owner| user(host, owner)).transpose()?;
    if let Some(bridge) = bridge {
        check_name(bridge)?;
        if host.link(bridge).is_none_or(|link| link.kind != LinkKind::Bridge) {
            return Err(Error::host(format!("there is no bridge {bridge}")).remedy(format!(
                "rhostprep net bridge {bridge} --port IF, or rhostprep net nat {bridge}"
            )));
        }
    }
    let mut plan = Plan::default();
    let there = host
        .link(name)
        .is_some_and(|link| link.kind == LinkKind::Tap && link.master.as_deref() == bridge);
    if !there {
        plan.actions.push(Action::Net(NetChange::Tap {
            name: name.into(),
            owner,
            bridge: bridge.map(str::to_owned),
        }));
    }
    Ok(plan)
}

fn user(host: &Host, name: &str) -> Result<u32> {
    if let Ok(uid) = name.parse() {
        return Ok(uid);
    }
    let text = host.read("/etc/passwd").unwrap_or_default();
    let uid = text.lines().find_map(|line| {
        let parts: Vec<&str> = line.split(':').collect();
        if parts.first() == Some(&name) { parts.get(2)?.parse().ok() } else { None }
    });
    uid.ok_or_else(|| {
        Error::usage(format!("there is no user {name} in /etc/passwd")).remedy("give the number")
    })
}

/// Whether a plan's changes concern this bridge: how removal finds what to undo.
pub fn concerns(action: &Action, bridge: &str) -> bool {
    let Action::Net(change) = action else { return false };
    match change {
        NetChange::Bridge { name, .. } | NetChange::RemoveBridge { name } => name == bridge,
        NetChange::Tap { name, bridge: on, .. } => name == bridge || on.as_deref() == Some(bridge),
        NetChange::Enslave { bridge: name, .. }
        | NetChange::Accept { bridge: name }
        | NetChange::Dnsmasq { bridge: name, .. } => name == bridge,
        NetChange::Address { link, .. } | NetChange::DhcpClient { link, .. } => link == bridge,
        NetChange::Table { name, .. } => *name == table_name(bridge),
    }
}
