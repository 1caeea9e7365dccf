//! Networks behind this host: isolated, routed, NAT.

use std::net::Ipv4Addr;

use super::boot::{self, Starter};
use super::change::NetChange;
use super::models::{Model, NetworkWish, Persist, Stp, concerns};
use super::name::{Cidr, HostAddress, Subnet6, check_name};
use super::persist::{Addressing, PersistBridge, persist_files};
use super::registry::{self, Network};
use super::table::{table_body, table_name};
use crate::change::{Action, Compaction, Plan, STATE_FOLDER};
use crate::error::{Error, Result};
use crate::host::{Host, NetworkManager};

/// Refuses subnets that would hide addresses this host reaches.
pub fn check_subnets(
    host: &Host,
    name: &str,
    subnet: Cidr,
    subnet6: Option<Subnet6>,
) -> Result<()> {
    check_subnet(host, name, subnet)?;
    subnet6.map_or(Ok(()), |subnet| check_subnet6(host, name, subnet))
}

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

fn check_subnet6(host: &Host, name: &str, subnet: Subnet6) -> Result<()> {
    let clash = host.routes6().into_iter().find(|route| {
        route.interface != name && route.interface != "lo" && route.overlaps(subnet.network(), 64)
    });
    match clash {
        Some(route) => Err(Error::refused(format!(
            "{subnet} overlaps {}/{}, which this host reaches over {}",
            route.destination, route.prefix, route.interface
        ))
        .remedy("use another /64 of what was delegated to this host")),
        None => Ok(()),
    }
}

/// Where the pid of a network's dnsmasq is written.
fn pid_file(name: &str) -> String {
    format!("/run/rhostprep-dnsmasq-{name}.pid")
}

/// Starting dnsmasq for a network.
pub fn dnsmasq(host: &Host, network: &Network, subnet: Cidr) -> Result<NetChange> {
    let name = &network.name;
    let Some(program) = host.program("dnsmasq") else {
        return Err(Error::host("dnsmasq, which gives addresses out, is not installed").remedy(
            format!("{}; or leave --dhcp away", host.install_command("dnsmasq-base", "dnsmasq")),
        ));
    };
    let last = Ipv4Addr::from(u32::from(subnet.broadcast()).saturating_sub(1));
    let pid_file = pid_file(name);
    // Guests keep their addresses over a restart, and so forwards keep leading to them.
    let leases = format!("{STATE_FOLDER}/{name}.leases");
    let mut command = vec![
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
    if let Some(subnet) = network.subnet6 {
        // Router advertisements: guests make their own addresses; names are asked over IPv4.
        command.push("--enable-ra".into());
        command.push(format!("--dhcp-range={},ra-only", subnet.network()));
    }
    Ok(NetChange::Dnsmasq { bridge: name.into(), command, pid_file, files: vec![leases] })
}

/// Gone after a restart, as everything that the kernel holds: then the network is to be made again.
pub fn running_mark(name: &str) -> String {
    format!("/run/rhostprep-{name}.up")
}

/// The action that makes this mark.
pub fn mark(name: &str) -> Action {
    Action::File { path: running_mark(name), text: format!("{name}\n"), mode: 0o644 }
}

/// What was written down about this network; an error when it was asked for otherwise then.
fn known(host: &Host, wish: &NetworkWish) -> Result<Option<Network>> {
    if !registry::names(host).contains(&wish.name) {
        return Ok(None);
    }
    let old = registry::load(host, &wish.name)?;
    let same = old.subnet == Some(wish.subnet)
        && old.subnet6 == wish.subnet6
        && old.model == wish.model
        && old.dhcp == wish.dhcp;
    if same {
        return Ok(Some(old));
    }
    Err(Error::refused(format!("{} exists with other settings", wish.name))
        .remedy(format!("rhostprep net remove {} first", wish.name)))
}

/// The host's addresses in a network.
fn gateways(network: &Network, subnet: Cidr) -> Vec<HostAddress> {
    let mut addresses: Vec<HostAddress> =
        vec![Cidr { address: subnet.nth(1), prefix: subnet.prefix }.into()];
    addresses.extend(network.subnet6.map(Subnet6::gateway));
    addresses
}

/// Bridge, addresses and filters of a network, filters before anything can pass.
pub fn links(network: &Network, subnet: Cidr) -> Vec<NetChange> {
    let name = &network.name;
    let mut changes = vec![NetChange::Bridge { name: name.clone(), stp: false, mtu: 0 }];
    for address in gateways(network, subnet) {
        changes.push(NetChange::Address { link: name.clone(), address });
    }
    changes.push(NetChange::Table { name: table_name(name), body: table_body(network) });
    if network.model != Model::Isolated {
        changes.push(NetChange::Accept { bridge: name.clone() });
    }
    changes
}

/// The plan for a network behind the host.
pub fn network(host: &Host, wish: &NetworkWish) -> Result<Plan> {
    check_name(&wish.name)?;
    if wish.subnet6.is_some() && wish.model == Model::Nat {
        return Err(Error::refused("IPv6 addresses are not translated")
            .remedy("give guests addresses of their own: rhostprep net routed --subnet6"));
    }
    check_subnets(host, &wish.name, wish.subnet, wish.subnet6)?;
    let known = known(host, wish)?;
    let running = known.is_some() && host.exists(&running_mark(&wish.name));
    // One that was there before a restart keeps its forwards.
    let mut network = known.unwrap_or_else(|| Network {
        name: wish.name.clone(),
        model: wish.model,
        subnet: Some(wish.subnet),
        subnet6: wish.subnet6,
        dhcp: wish.dhcp,
        forwards: Vec::new(),
        persisted: false,
    });
    let mut plan = Plan::default();
    if !running {
        plan.actions.extend(links(&network, wish.subnet).into_iter().map(Action::Net));
        forwarding(host, &mut plan, &network);
        if network.dhcp {
            plan.actions.push(Action::Net(dnsmasq(host, &network, wish.subnet)?));
        }
    }
    match &wish.persist {
        Persist::Yes { program } => {
            network.persisted = true;
            persist(host, &mut plan, &network, program)?;
        }
        Persist::No if network.persisted => {
            plan.notes.push(format!("{} comes back after a restart, as asked before", wish.name));
        }
        Persist::No => {}
    }
    plan.add(host, registry::file(&network)?);
    if running {
        belong(&mut plan, &wish.name);
        return Ok(plan);
    }
    plan.add(host, mark(&wish.name));
    if wish.model == Model::Routed {
        let (network, prefix) = (wish.subnet.network(), wish.subnet.prefix);
        plan.notes.push(format!(
            "others need a route back: ip route add {network}/{prefix} via THIS-HOST"
        ));
        if let Some(subnet) = wish.subnet6 {
            plan.notes.push(format!(
                "and for IPv6, unless the prefix was delegated to this host: ip -6 route add {subnet} via THIS-HOST"
            ));
        }
    }
    Ok(plan)
}

/// Ties a plan to its network, so that removal finds it, when nothing else in it does.
pub fn belong(plan: &mut Plan, name: &str) {
    if !plan.actions.is_empty() && !plan.actions.iter().any(|action| concerns(action, name)) {
        plan.actions.insert(0, Action::Net(NetChange::Belongs { bridge: name.into() }));
    }
}

/// Switches forwarding on, where the network needs it.
pub fn forwarding(host: &Host, plan: &mut Plan, network: &Network) {
    if !matches!(network.model, Model::Nat | Model::Routed) {
        return;
    }
    let mut set = |path: String, value: &str| {
        plan.add(host, Action::Value { path, value: value.into(), compaction: Compaction::No });
    };
    set("/proc/sys/net/ipv4/ip_forward".into(), "1");
    if network.subnet6.is_none() {
        return;
    }
    // A host that forwards is a router and ignores other routers' advertisements unless accept_ra is 2
    // (networking/ip-sysctl.rst); it would lose its own default route when that runs out.
    for interface in host.uplinks6() {
        let path = format!("/proc/sys/net/ipv6/conf/{interface}/accept_ra");
        if host.number(&path) == Some(1) {
            set(path, "2");
        }
    }
    set("/proc/sys/net/ipv6/conf/all/forwarding".into(), "1");
}

/// Has a network made again at boot: the bridge by whoever manages the network here, where somebody does, and the
/// rest (all of it where nobody does) by `net restore`.
pub fn persist(host: &Host, plan: &mut Plan, network: &Network, program: &str) -> Result<()> {
    let Some(subnet) = network.subnet else { return Ok(()) };
    let name = &network.name;
    let starter = boot::starter(host)?;
    let addresses = gateways(network, subnet);
    let bridge = PersistBridge {
        name,
        port: None,
        addressing: Addressing::Static {
            addresses: &addresses,
            gateway: None,
            servers: Vec::new(),
        },
        stp: Stp::Off,
    };
    let mut files = match host.network_manager() {
        NetworkManager::None => Vec::new(),
        manager => persist_files(manager, &bridge)?,
    };
    match starter {
        Starter::Systemd => {
            let unit = boot::unit_files(host, program)?;
            // The one of a network before this may start another copy.
            let starts = unit.iter().find_map(|file| boot::program_of(&file.text));
            let program = starts.as_deref().unwrap_or(program);
            plan.notes.push(format!(
                "after a restart rhostprep-net.service makes {name} again, with {program}: keep that program"
            ));
            files.extend(unit);
        }
        Starter::Ifupdown => {
            let lines = boot::stanza_lines(program, name, &pid_file(name))?;
            // At the end, so behind the last address.
            if let Some(file) = files.last_mut() {
                file.text.push_str(&lines);
            }
            plan.notes.push(format!(
                "after a restart ifupdown makes {name} again, with {program}: keep that program"
            ));
        }
    }
    for file in files {
        plan.add(host, Action::File { path: file.path, text: file.text, mode: file.mode });
    }
    Ok(())
}
