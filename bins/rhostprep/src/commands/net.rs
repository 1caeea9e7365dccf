//! `rhostprep net`, `scripts`, `ifup` and `ifdown`.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use hostprep::change::{self, Action, Force, JournalState, Plan, STATE_FOLDER};
use hostprep::check::{self, Status};
use hostprep::host::Host;
use hostprep::net::{
    self, Address, BridgeWish, Cidr, Forward, HostAddress, Model, NetChange, NetworkWish, Stp,
    Subnet6,
};
use hostprep::wanted::Wanted;
use hostprep::{Error, Result, scripts as qemu};

use super::change::{carry_out, effects};
use super::print;
use crate::args::{Ifup, Net, NetBridge, NetInside, Scripts, Switch};

/// Seconds to confirm when the present connection is at stake and nothing was said.
const CONFIRM_WITHIN: u64 = 60;

pub fn run(host: &Host, command: &Net) -> Result<u8> {
    match command {
        Net::Bridge(args) => bridge(host, args),
        Net::Nat(args) => inside(host, args, Model::Nat),
        Net::Isolated(args) => inside(host, args, Model::Isolated),
        Net::Routed(args) => inside(host, args, Model::Routed),
        Net::Tap { name, bridge, owner, consent } => {
            let plan = net::tap_plan(host, name, owner.as_deref(), bridge.as_deref())?;
            carry_out(host, &plan, *consent).map(|_| 0)
        }
        Net::Forward { words, consent } => {
            let plan = net::forward(host, &Forward::parse(&words.join(" "))?)?;
            carry_out(host, &plan, *consent).map(|_| 0)
        }
        Net::Show => {
            print(&net::show(host)?);
            Ok(0)
        }
        Net::Remove { name } => remove(host, name),
        Net::Confirm { id } => confirm(host, id.as_deref()),
        Net::Watch { seconds, above } => watch(host, *seconds, *above),
    }
}

fn inside(host: &Host, args: &NetInside, model: Model) -> Result<u8> {
    let wish = NetworkWish {
        name: args.name.clone(),
        model,
        subnet: Cidr::parse(&args.subnet)?,
        subnet6: args.subnet6.as_deref().map(Subnet6::parse).transpose()?,
        dhcp: args.dhcp,
        persist: args.persist,
    };
    carry_out(host, &net::network(host, &wish)?, args.consent).map(|_| 0)
}

fn bridge(host: &Host, args: &NetBridge) -> Result<u8> {
    let address = match args.address.as_deref() {
        None => Address::Keep,
        Some("dhcp") => Address::Dhcp,
        Some(text) => Address::Static(HostAddress::parse(text)?),
    };
    let wish = BridgeWish {
        name: args.name.clone(),
        port: args.port.clone(),
        stp: if args.stp == Switch::On { Stp::On } else { Stp::Off },
        address,
        persist: args.persist,
    };
    let plan = net::bridge(host, &wish)?;
    let seconds = match args.confirm_within {
        Some(seconds) => seconds,
        None if carries_connection(host, args)? => CONFIRM_WITHIN,
        None => 0,
    };
    let guarded =
        seconds > 0 && args.port.is_some() && !args.consent.dry_run && !plan.actions.is_empty();
    // The guard starts first: whatever happens to us after that, it rolls back.
    let mut guard = if guarded { Some(start_watch(host, seconds)?) } else { None };
    match carry_out(host, &plan, args.consent) {
        Ok(Some(id)) if guarded => {
            print(&format!(
                "rolls back in {seconds} s unless you run: rhostprep net confirm {id}\n"
            ));
            Ok(0)
        }
        other => {
            if let Some(guard) = &mut guard {
                // Nothing is left to roll back.
                let _ = guard.kill();
                let _ = guard.wait();
            }
            other.map(|_| 0)
        }
    }
}

/// Whether the check says that the present connection runs over the port.
fn carries_connection(host: &Host, args: &NetBridge) -> Result<bool> {
    let wanted = Wanted {
        bridge_port: args.port.clone(),
        ssh_connection: std::env::var("SSH_CONNECTION").ok(),
        ..Wanted::default()
    };
    let findings = check::run(host, &wanted, &["net.bridge-safety".to_owned()])?;
    Ok(findings.iter().any(|finding| finding.outcome.status == Status::Warning))
}

fn newest(host: &Host) -> Result<u32> {
    let journals = change::list(host.root())?;
    Ok(journals.iter().filter_map(|journal| journal.id.parse().ok()).max().unwrap_or(0))
}

/// Starts ourselves as a guard that outlives this terminal and its connection.
fn start_watch(host: &Host, seconds: u64) -> Result<std::process::Child> {
    let program = std::env::current_exe()
        .map_err(|error| Error::host(format!("the guard cannot be started: {error}")))?;
    Command::new(&program)
        .arg("--root")
        .arg(host.root())
        .args(["net", "watch", "--seconds", &seconds.to_string()])
        .args(["--above", &newest(host)?.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // A group of its own: the terminal's hang-up does not reach it.
        .process_group(0)
        .spawn()
        .map_err(|error| Error::io("the guard cannot be started", &program, error))
}

fn mark(host: &Host, id: &str) -> PathBuf {
    host.place(STATE_FOLDER).join(format!("{id}.confirmed"))
}

fn confirm(host: &Host, id: Option<&str>) -> Result<u8> {
    let journals = change::list(host.root())?;
    let open = journals.iter().rfind(|journal| match id {
        Some(id) => journal.id == id,
        None => journal.state() == JournalState::Applied,
    });
    let Some(journal) = open.filter(|journal| journal.state() == JournalState::Applied) else {
        return Err(Error::usage("there is no such change to confirm")
            .remedy("`rhostprep status` lists them; perhaps it has rolled back already"));
    };
    let path = mark(host, &journal.id);
    std::fs::write(&path, b"").map_err(|error| Error::io("cannot be confirmed", &path, error))?;
    print(&format!("{} stays\n", journal.id));
    Ok(0)
}

/// The guard: waits, then undoes every change made since it started that nobody confirmed.
fn watch(host: &Host, seconds: u64, above: u32) -> Result<u8> {
    ignore_hangup();
    let end = std::time::Instant::now() + Duration::from_secs(seconds);
    let since =
        |journal: &&change::Journal| journal.id.parse::<u32>().is_ok_and(|number| number > above);
    while std::time::Instant::now() < end {
        std::thread::sleep(Duration::from_millis(200));
        let journals = change::list(host.root())?;
        let mut ours = journals.iter().filter(since).peekable();
        if ours.peek().is_some() && ours.all(|journal| mark(host, &journal.id).exists()) {
            return Ok(0);
        }
    }
    let journals = change::list(host.root())?;
    for journal in journals.iter().filter(since).rev() {
        let settled = journal.state() == JournalState::Undone || mark(host, &journal.id).exists();
        if !settled {
            change::undo(effects(host).as_mut(), Some(&journal.id), Force::Yes)?;
        }
    }
    Ok(0)
}

#[allow(unsafe_code)]
fn ignore_hangup() {
    // SAFETY: sets a disposition; no handler of ours runs.
    unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
}

fn remove(host: &Host, name: &str) -> Result<u8> {
    net::check_name(name)?;
    let journals = change::list(host.root())?;
    let mut removed = false;
    for journal in journals.iter().rev() {
        let about = journal.actions().iter().any(|action| net::concerns(action, name));
        if about && journal.state() != JournalState::Undone {
            change::undo(effects(host).as_mut(), Some(&journal.id), Force::No)?;
            removed = true;
        }
    }
    if !removed {
        return Err(Error::usage(format!("{name} was not made by rhostprep"))
            .remedy("`rhostprep net show` lists what was"));
    }
    keep_forwarding(host)?;
    print(&format!("{name} is removed\n"));
    Ok(0)
}

/// The first network made switches forwarding on; when it goes before the others, they still need it.
fn keep_forwarding(host: &Host) -> Result<()> {
    for name in net::names(host) {
        let network = net::load(host, &name)?;
        let (Some(subnet), Model::Nat | Model::Routed) = (network.subnet, network.model) else {
            continue;
        };
        let mut plan = Plan::default();
        let path = "/proc/sys/net/ipv4/ip_forward".to_owned();
        let value = "1".to_owned();
        plan.add(host, Action::Value { path, value, compaction: change::Compaction::No });
        if plan.actions.is_empty() {
            return Ok(());
        }
        // Ties the change to that network: its removal undoes it.
        let address = Cidr { address: subnet.nth(1), prefix: subnet.prefix };
        plan.actions.push(Action::Net(NetChange::Address { link: name, address: address.into() }));
        change::apply(effects(host).as_mut(), &plan, &mut |_, _| ())?;
        return Ok(());
    }
    Ok(())
}

pub fn scripts(host: &Host, args: &Scripts) -> Result<u8> {
    let kind = if args.nat {
        qemu::Kind::Nat {
            bridge: args.bridge.clone().unwrap_or_else(|| "virbr0".into()),
            subnet: Cidr::parse(&args.subnet)?,
        }
    } else {
        qemu::Kind::Bridge(args.bridge.clone().unwrap_or_else(|| "br0".into()))
    };
    if args.install {
        return carry_out(host, &qemu::install(host, &kind)?, args.consent).map(|_| 0);
    }
    for script in qemu::scripts(&kind)? {
        print(&format!("### {}\n{}", script.path, script.text));
    }
    Ok(0)
}

pub fn ifup(args: &Ifup) -> Result<u8> {
    net::attach(&args.interface, &args.bridge).map(|()| 0)
}

pub fn ifdown(args: &Ifup) -> Result<u8> {
    net::detach(&args.interface).map(|()| 0)
}
