//! `rhostprep net`, `scripts`, `ifup` and `ifdown`.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use hostprep::change::{self, Action, Force, JournalState, STATE_FOLDER};
use hostprep::check::{self, Status};
use hostprep::host::Host;
use hostprep::net::{
    self, Address, BridgeWish, Cidr, Forward, HostAddress, Model, NetworkWish, Outcome, Persist,
    RestoreWish, Restored, Shared, Stp, Subnet6,
};
use hostprep::wanted::Wanted;
use hostprep::{Error, Result, scripts as qemu};

use super::change::{carry_out, effects, full_number};
use super::{print, warn};
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
        Net::Forward { words, persist, consent } => {
            let forward = Forward::parse(&words.join(" "))?;
            carry_out(host, &net::forward(host, &forward, &lasting(*persist)?)?, *consent)
                .map(|_| 0)
        }
        Net::Restore { names, wait } => restore(host, names, *wait),
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
        persist: lasting(args.persist)?,
    };
    carry_out(host, &net::network(host, &wish)?, args.consent).map(|_| 0)
}

/// Where this program is, for those who start it at boot.
fn own_path() -> Result<String> {
    let path = std::env::current_exe()
        .map_err(|error| Error::host(format!("this program does not find itself: {error}")))?;
    match path.to_str() {
        Some(text) if path.exists() => Ok(text.to_owned()),
        _ => Err(Error::host("this program is not where it was started from any more")
            .at(&path)
            .remedy("start the installed one")),
    }
}

fn lasting(persist: bool) -> Result<Persist> {
    Ok(if persist { Persist::Yes { program: own_path()? } } else { Persist::No })
}

/// Makes networks again, and says what became of each.
fn restore(host: &Host, names: &[String], wait: u64) -> Result<u8> {
    let wish = RestoreWish {
        names: names.to_vec(),
        patience: Duration::from_secs(wait),
        program: own_path()?,
    };
    let mut code = 0;
    let restored = net::restore(host, effects(host).as_mut(), &wish)?;
    for Restored { name, outcome } in &restored {
        let text = match outcome {
            Outcome::AsRecorded => "is as recorded".to_owned(),
            Outcome::MadeAgain(parts) => format!("made again: {}", parts.join(", ")),
            Outcome::NotPersisted => "was made without --persist and is left alone".to_owned(),
            Outcome::ByManager => "comes by the network manager alone".to_owned(),
            Outcome::Failed(error) => {
                code = 2;
                let said = error.to_string();
                let named = said.starts_with(name.as_str());
                let text = if named { said } else { format!("{name}: {said}") };
                warn(&text, error.remedy_text());
                continue;
            }
        };
        print(&format!("{name}: {text}\n"));
    }
    if restored.is_empty() {
        print("no networks were made by rhostprep\n");
    }
    for id in interrupted(host)? {
        code = code.max(1);
        warn(
            &format!("an earlier change ({id}) was interrupted"),
            Some(&format!("`rhostprep undo {id}` puts the host back as it was")),
        );
    }
    Ok(code)
}

/// Changes that ended in the middle.
fn interrupted(host: &Host) -> Result<Vec<String>> {
    let half = |journal: &change::Journal| {
        matches!(journal.state(), JournalState::Interrupted(_) | JournalState::HalfUndone)
    };
    Ok(change::list(host.root())?.into_iter().filter(half).map(|journal| journal.id).collect())
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
    let id = id.map(full_number);
    let open = journals.iter().rfind(|journal| match &id {
        Some(id) => journal.id == *id,
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
    let shared = shared(host);
    let journals = change::list(host.root())?;
    let (mut removed, mut profile) = (false, false);
    for journal in journals.iter().rev() {
        let about = journal.actions().iter().any(|action| net::concerns(action, name));
        if about && journal.state() != JournalState::Undone {
            change::undo(effects(host).as_mut(), Some(&journal.id), Force::No)?;
            removed = true;
            profile |= journal.actions().iter().any(|action| {
                matches!(action, Action::File { path, .. } if path.starts_with("/etc/NetworkManager/"))
            });
        }
    }
    // Also when we were killed before this the last time.
    keep(host, &shared)?;
    if !removed {
        return Err(Error::usage(format!("{name} was not made by rhostprep"))
            .remedy("`rhostprep net show` lists what was"));
    }
    print(&format!("{name} is removed\n"));
    if profile {
        print("if NetworkManager has read its profile: nmcli connection reload\n");
    }
    Ok(0)
}

/// What networks share, before something is undone.
pub fn shared(host: &Host) -> Shared {
    // Undoing does not depend on where this program is.
    Shared::of(host, &own_path().unwrap_or_default())
}

/// Networks that stay keep what they shared with one that has gone.
pub fn keep(host: &Host, shared: &Shared) -> Result<()> {
    for (name, id) in net::keep(host, effects(host).as_mut(), shared)? {
        print(&format!(
            "{name} keeps what it shared (forwarding, start at boot), as change {id}\n"
        ));
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
