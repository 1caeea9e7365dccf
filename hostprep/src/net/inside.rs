//! Networks behind this host: isolated, routed, NAT.

use std::net::Ipv4Addr;

use super::change::NetChange;
use super::models::{Model, NetworkWish, Stp};
use super::name::{Cidr, HostAddress, Subnet6, check_name};
use super::persist::{Addressing, PersistBridge, persist_files};
use super::registry::{self, Network};
use super::table::{table_body, table_name};
use crate::change::{Action, Compaction, Plan};
use crate::error::{Error, Result};
use crate::host::Host;

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

fn dnsmasq(host: &Host, wish: &NetworkWish) -> Result<NetChange> {
    let (name, subnet) = (&wish.name, wish.subnet);
    let Some(program) = host.program("dnsmasq") else {
        return Err(Error::host("dnsmasq, which gives addresses out, is not installed").remedy(
            format!("{}; or leave --dhcp away", host.install_command("dnsmasq-base", "dnsmasq")),
        ));
    };
    let last = Ipv4Addr::from(u32::from(subnet.broadcast()).saturating_sub(1));
    let pid_file = format!("/run/rhostprep-dnsmasq-{name}.pid");
    let leases = format!("/run/rhostprep-dnsmasq-{name}.leases");
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
    if let Some(subnet) = wish.subnet6 {
        // Router advertisements: guests make their own addresses; names are asked over IPv4.
        command.push("--enable-ra".into());
        command.push(format!("--dhcp-range={},ra-only", subnet.network()));
    }
    Ok(NetChange::Dnsmasq { bridge: name.into(), command, pid_file, files: vec![leases] })
}

/// Gone after a restart, as everything that the kernel holds: then the network is to be made again.
fn running_mark(name: &str) -> String {
    format!("/run/rhostprep-{name}.up")
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

/// The plan for a network behind the host.
pub fn network(host: &Host, wish: &NetworkWish) -> Result<Plan> {
    check_name(&wish.name)?;
    check_subnet(host, &wish.name, wish.subnet)?;
    if let Some(subnet) = wish.subnet6 {
        if wish.model == Model::Nat {
            return Err(Error::refused("IPv6 addresses are not translated")
                .remedy("give guests addresses of their own: rhostprep net routed --subnet6"));
        }
        check_subnet6(host, &wish.name, subnet)?;
    }
    let known = known(host, wish)?;
    let mark = running_mark(&wish.name);
    if known.is_some() && host.exists(&mark) {
        return Ok(Plan::default());
    }
    // One that was there before a restart keeps its forwards.
    let network = known.unwrap_or_else(|| Network {
        name: wish.name.clone(),
        model: wish.model,
        subnet: Some(wish.subnet),
        subnet6: wish.subnet6,
        dhcp: wish.dhcp,
        forwards: Vec::new(),
    });
    let mut plan = Plan::default();
    let mut add = |change: NetChange| plan.actions.push(Action::Net(change));
    add(NetChange::Bridge { name: wish.name.clone(), stp: false, mtu: 0 });
    let gateway: HostAddress =
        Cidr { address: wish.subnet.nth(1), prefix: wish.subnet.prefix }.into();
    add(NetChange::Address { link: wish.name.clone(), address: gateway });
    if let Some(subnet) = wish.subnet6 {
        add(NetChange::Address { link: wish.name.clone(), address: subnet.gateway() });
    }
    add(NetChange::Table { name: table_name(&wish.name), body: table_body(&network) });
    if wish.model != Model::Isolated {
        add(NetChange::Accept { bridge: wish.name.clone() });
    }
    if wish.dhcp {
        add(dnsmasq(host, wish)?);
    }
    if wish.model != Model::Isolated {
        forwarding(host, &mut plan, wish);
    }
    plan.add(host, registry::file(&network)?);
    if wish.persist {
        persist(host, &mut plan, wish, gateway)?;
    }
    let text = format!("{}\n", wish.name);
    plan.add(host, Action::File { path: mark, text, mode: 0o644 });
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

/// Switches forwarding on.
fn forwarding(host: &Host, plan: &mut Plan, wish: &NetworkWish) {
    let mut set = |path: String, value: &str| {
        plan.add(host, Action::Value { path, value: value.into(), compaction: Compaction::No });
    };
    set("/proc/sys/net/ipv4/ip_forward".into(), "1");
    if wish.subnet6.is_none() {
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

fn persist(host: &Host, plan: &mut Plan, wish: &NetworkWish, gateway: HostAddress) -> Result<()> {
    let mut addresses = vec![gateway];
    addresses.extend(wish.subnet6.map(Subnet6::gateway));
    let bridge = PersistBridge {
        name: &wish.name,
        port: None,
        addressing: Addressing::Static {
            addresses: &addresses,
            gateway: None,
            servers: Vec::new(),
        },
        stp: Stp::Off,
    };
    for file in persist_files(host.network_manager(), &bridge)? {
        plan.add(host, Action::File { path: file.path, text: file.text, mode: file.mode });
    }
    let command = match wish.model {
        Model::Isolated => "isolated",
        Model::Routed => "routed",
        Model::Nat | Model::Bridged => "nat",
    };
    plan.notes.push(format!(
        "after a restart the bridge is there; the same `rhostprep net {command} {} ...` makes filters, forwarding and DHCP again",
        wish.name
    ));
    Ok(())
}
