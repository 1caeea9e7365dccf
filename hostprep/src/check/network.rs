//! The network (checks 59 to 63).

use std::net::Ipv4Addr;

use super::outcome::{Outcome, Remedy};
use crate::host::{Host, Link, LinkKind, NetworkManager};
use crate::wanted::Wanted;

/// 59: the manager.
pub fn manager(host: &Host, _wanted: &Wanted) -> Outcome {
    let manager = host.network_manager();
    let shown = manager.name();
    let source = "/etc/netplan, /run/NetworkManager, /run/systemd/netif, /etc/network/interfaces";
    if manager == NetworkManager::None {
        let text = if host.exists("/run/systemd/system") {
            "no manager was recognised: bridges to the outside are gone after a restart; networks behind this host come back with --persist"
        } else {
            "no manager was recognised: bridges made here are gone after a restart"
        };
        return Outcome::info(text).read(source, "none");
    }
    Outcome::info(format!("{shown}; `rhostprep net ... --persist` writes its files"))
        .read(source, shown)
}

/// The interface by which the peer of this SSH connection is reached.
fn connection_interface(host: &Host, connection: &str) -> Option<String> {
    let peer: Ipv4Addr = connection.split_whitespace().next()?.parse().ok()?;
    host.routes4()
        .into_iter()
        .filter(|route| route.covers(peer))
        .max_by_key(|route| route.prefix)
        .map(|route| route.interface)
}

/// 60: what bridging would do to this session.
pub fn bridge_safety(host: &Host, wanted: &Wanted) -> Outcome {
    let links = host.links();
    let default =
        host.routes4().into_iter().find(|route| route.prefix == 0).map(|route| route.interface);
    let mine = wanted.ssh_connection.as_deref().and_then(|text| connection_interface(host, text));
    let port = wanted.bridge_port.clone().or_else(|| default.clone());
    let evidence = |outcome: Outcome| {
        outcome
            .read_opt("/proc/net/route default", default.clone())
            .read_opt("SSH_CONNECTION", wanted.ssh_connection.clone())
    };
    let Some(port) = port else {
        return evidence(Outcome::skipped("no interface with a default route"));
    };
    let Some(link) = links.iter().find(|link| link.name == port) else {
        return evidence(Outcome::error(format!("there is no interface {port}")))
            .remedy(Remedy::command("see what there is", "rhostprep net show"));
    };
    match link.kind {
        LinkKind::Wireless => evidence(Outcome::error(format!(
            "{port} is wireless: an access point accepts one address a station, so it cannot be a bridge port"
        )))
        .remedy(Remedy::command("use NAT instead", "rhostprep net nat virbr0 --subnet 192.168.122.0/24 --dhcp")),
        LinkKind::Bridge => evidence(Outcome::pass(format!("{port} is a bridge already; guests can join it"))),
        _ if link.master.is_some() => evidence(Outcome::pass(format!("{port} belongs to a bridge or bond already"))),
        _ if mine.as_deref() == Some(port.as_str()) => evidence(Outcome::warning(format!(
            "your SSH connection runs over {port}: bridging it by hand would cut it"
        )))
        .remedy(Remedy::command(
            "let it roll back by itself unless confirmed",
            format!("rhostprep net bridge br0 --port {port} --confirm-within 60"),
        )),
        _ => evidence(Outcome::pass(format!("{port} is wired and can be bridged"))),
    }
}

fn sick(host: &Host, bridge: &Link, links: &[Link]) -> Vec<String> {
    let folder = format!("/sys/class/net/{}", bridge.name);
    let mut wrong = Vec::new();
    let ports = host.list(&format!("{folder}/brif"));
    for port in &ports {
        let Some(link) = links.iter().find(|link| link.name == *port) else {
            wrong.push(format!("port {port} of {} has vanished", bridge.name));
            continue;
        };
        if host.has_ipv4(port) {
            wrong.push(format!("{port} has an address of its own; it belongs on {}", bridge.name));
        }
        if link.mtu < bridge.mtu {
            wrong.push(format!("{port} has MTU {}, {} has {}", link.mtu, bridge.name, bridge.mtu));
        }
    }
    let stp = host.number(&format!("{folder}/bridge/stp_state")).unwrap_or(0) != 0;
    let delay = host.number(&format!("{folder}/bridge/forward_delay")).unwrap_or(0);
    // The delay is in hundredths of a second; guests' DHCP gives up before two times 15 s have passed.
    if stp && delay > 400 {
        wrong.push(format!(
            "{} waits {} s before a new port forwards (STP)",
            bridge.name,
            2 * delay / 100
        ));
    }
    if bridge.state == "down" && !ports.is_empty() {
        wrong.push(format!("{} is down", bridge.name));
    }
    wrong
}

/// 61: health of bridges.
pub fn bridges(host: &Host, wanted: &Wanted) -> Outcome {
    let links = host.links();
    let bridges: Vec<&Link> = links.iter().filter(|link| link.kind == LinkKind::Bridge).collect();
    let names: Vec<&str> = bridges.iter().map(|link| link.name.as_str()).collect();
    let shown = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    if let Some(name) = &wanted.bridge
        && !names.contains(&name.as_str())
    {
        return Outcome::error(format!("there is no bridge {name}"))
            .read("/sys/class/net/*/bridge", shown)
            .remedy(Remedy::command("make it", format!("rhostprep net bridge {name} --port IF")));
    }
    if bridges.is_empty() {
        return Outcome::skipped("there is no bridge").read("/sys/class/net/*/bridge", "none");
    }
    let wrong: Vec<String> = bridges.iter().flat_map(|bridge| sick(host, bridge, &links)).collect();
    if wrong.is_empty() {
        return Outcome::pass(format!("{shown}: nothing wrong"))
            .read("/sys/class/net/*/bridge", shown);
    }
    Outcome::warning(wrong.join("; ")).read("/sys/class/net/*/bridge", shown).remedy(
        Remedy::text("move addresses to the bridge, set equal MTUs, use --stp off or a short delay where there is one bridge only")
            .then("rhostprep net bridge NAME --port IF --stp off"),
    )
}

/// 62: forwarding for NAT and routed guests.
pub fn forwarding(host: &Host, wanted: &Wanted) -> Outcome {
    let path = "/proc/sys/net/ipv4/ip_forward";
    let on = host.number(path) == Some(1);
    let shown = host.text(path);
    let six = "/proc/sys/net/ipv6/conf/all/forwarding";
    // A bridge with an address and without a physical port carries guests behind this host.
    let links = host.links();
    let inner: Vec<&Link> = links
        .iter()
        .filter(|link| link.kind == LinkKind::Bridge && host.has_ipv4(&link.name))
        .filter(|link| {
            let ports = host.list(&format!("/sys/class/net/{}/brif", link.name));
            !ports.iter().any(|port| {
                links.iter().any(|link| link.name == *port && link.kind == LinkKind::Physical)
            })
        })
        .collect();
    let routes = host.routes4();
    let overlap = inner.iter().find_map(|bridge| {
        let own = routes.iter().find(|route| route.interface == bridge.name && route.prefix > 0)?;
        let other = routes.iter().find(|route| {
            route.interface != bridge.name && route.overlaps(own.destination, own.prefix)
        })?;
        Some(format!("the subnet of {} overlaps a route over {}", bridge.name, other.interface))
    });
    let evidence =
        |outcome: Outcome| outcome.read_opt(path, shown.clone()).read_opt(six, host.text(six));
    if let Some(overlap) = overlap {
        return evidence(Outcome::error(overlap)).remedy(Remedy::command(
            "use another subnet",
            "rhostprep net remove virbr0 && rhostprep net nat virbr0 --subnet 192.168.200.0/24",
        ));
    }
    // A host that forwards IPv6 is a router and takes no default route from another one, unless told (accept_ra 2).
    let deaf = host.uplinks6().into_iter().find(|uplink| {
        let accepts = format!("/proc/sys/net/ipv6/conf/{uplink}/accept_ra");
        host.number(six) == Some(1) && host.number(&accepts) == Some(1)
    });
    if let Some(uplink) = deaf {
        let path = format!("/proc/sys/net/ipv6/conf/{uplink}/accept_ra");
        return evidence(Outcome::warning(format!(
            "IPv6 is forwarded, so {uplink} ignores router advertisements: a default route that came by them runs out"
        )))
        .read_opt(&path, host.text(&path))
        .remedy(
            Remedy::command(
                "accept them all the same",
                format!("rhostprep apply --sysctl net/ipv6/conf/{uplink}/accept_ra=2"),
            )
            .file("/etc/sysctl.d/60-rhostprep.conf"),
        );
    }
    if inner.is_empty() && !wanted.tap.yes() {
        return evidence(Outcome::skipped("no guests behind NAT"));
    }
    if on {
        return evidence(Outcome::pass("IPv4 is forwarded"));
    }
    let names: Vec<&str> = inner.iter().map(|link| link.name.as_str()).collect();
    let text =
        format!("IPv4 is not forwarded: guests on {} reach nobody outside", names.join(", "));
    let outcome = if inner.is_empty() {
        Outcome::info("IPv4 is not forwarded; a bridge to the outside needs none")
    } else {
        Outcome::error(text)
    };
    evidence(outcome).remedy(
        Remedy::command("switch it on", "rhostprep apply --sysctl net.ipv4.ip_forward=1")
            .file("/etc/sysctl.d/60-rhostprep.conf"),
    )
}

/// 63: br_netfilter, Docker and the FORWARD policy. The policy itself is in no file; Docker's presence and
/// br_netfilter are.
pub fn forward_drop(host: &Host, _wanted: &Wanted) -> Outcome {
    let four = "/proc/sys/net/bridge/bridge-nf-call-iptables";
    let six = "/proc/sys/net/bridge/bridge-nf-call-ip6tables";
    let filtered = host.number(four) == Some(1);
    let docker = host.exists("/sys/class/net/docker0") || host.exists("/run/docker.sock");
    let bridges =
        host.links().iter().any(|link| link.kind == LinkKind::Bridge && link.name != "docker0");
    let evidence = |outcome: Outcome| {
        outcome.read_opt(four, host.text(four)).read_opt(six, host.text(six)).read(
            "/sys/class/net/docker0, /run/docker.sock",
            if docker { "there" } else { "not there" },
        )
    };
    match (filtered, docker) {
        (true, true) if bridges => evidence(Outcome::warning(
            "Docker sets the FORWARD policy to drop, and bridged traffic passes it: guests are cut off",
        ))
        .remedy(
            Remedy::text("accept the guests' bridge in the chain Docker leaves to users; never flip the policy")
                .then("nft insert rule ip filter DOCKER-USER iifname BRIDGE accept")
                .then("nft insert rule ip filter DOCKER-USER oifname BRIDGE accept"),
        ),
        (true, _) => evidence(Outcome::info("bridged traffic passes the firewall's FORWARD chain (br_netfilter)")).remedy(
            Remedy::command("where that is not wanted", "rhostprep apply --sysctl net.bridge.bridge-nf-call-iptables=0"),
        ),
        (false, true) => evidence(Outcome::info("Docker drops forwarded traffic; `rhostprep net nat` adds its own accept rules")),
        (false, false) => evidence(Outcome::pass("neither br_netfilter nor Docker is in the way")),
    }
}
