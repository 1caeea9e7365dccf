//! Options about the process: `-daemonize`, `-pidfile`, `-runas`, `-name`, `-msg`, `-D`, `-S`, `-action`.

use std::path::PathBuf;

use super::builder::Builder;
use super::options::Options;
use crate::chardev::CharKind;
use crate::machine::MachineConfig;
use crate::machine::config::{OnPanic, OnPowerOff, OnReset};
use crate::{Error, Result};

/// What the process around a machine does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessConfig {
    /// `-daemonize`.
    pub foreground: Foreground,
    /// File for the process number, locked while the machine lives.
    pub pidfile: Option<PathBuf>,
    /// `-runas`: who the process becomes once everything is open.
    pub run_as: Option<RunAs>,
    /// `-name process=`: what the process is called.
    pub process_name: Option<String>,
    /// What stands before messages.
    pub messages: Messages,
    /// `-D`: messages go to this file instead of standard error.
    pub log: Option<PathBuf>,
}

/// Whether the program returns to its caller when the machine is ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Foreground {
    /// It ends with the machine.
    #[default]
    Stay,
    /// It returns as soon as the machine is ready, which then runs in the background.
    Daemonize,
}

/// What `-runas` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunAs {
    /// A user of this host, with that user's groups.
    User(String),
    /// Numbers of a user and a group.
    Ids(u32, u32),
}

/// What stands before messages (`-msg`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Messages {
    /// The time.
    pub timestamp: bool,
    /// The guest's name.
    pub guest_name: bool,
}

impl ProcessConfig {
    /// Refuses what cannot be together.
    pub fn check(&self, machine: &MachineConfig, nographic: bool) -> Result<()> {
        if self.foreground == Foreground::Stay {
            return Ok(());
        }
        if nographic {
            return Err(Error::invalid("-nographic cannot be used with -daemonize").hint(
                "Use -display none, and -serial, -monitor with unix:PATH,server=on,wait=off",
            ));
        }
        let stdio = machine.chardevs.iter().find(|(_, c)| matches!(c.kind, CharKind::Stdio { .. }));
        if let Some((label, _)) = stdio {
            return Err(Error::invalid(format!("{label}: cannot use stdio with -daemonize"))
                .hint("Use unix:PATH,server=on,wait=off, pty or file:NAME"));
        }
        Ok(())
    }
}

/// `-name guest=x,process=y,debug-threads=on`.
pub fn name(b: &mut Builder, text: &str) -> Result<()> {
    let mut o = Options::parse(text, Some("guest"));
    b.machine.name = o.take("guest").or(b.machine.name.take());
    b.process.process_name = o.take("process").or(b.process.process_name.take());
    // Threads always have names.
    o.take_bool("debug-threads")?;
    o.finish(&[])
}

/// `-daemonize`.
pub fn daemonize(b: &mut Builder, _text: &str) -> Result<()> {
    b.process.foreground = Foreground::Daemonize;
    Ok(())
}

/// `-pidfile`.
pub fn pidfile(b: &mut Builder, text: &str) -> Result<()> {
    b.process.pidfile = Some(text.into());
    Ok(())
}

/// `-runas user|uid:gid`.
pub fn run_as(b: &mut Builder, text: &str) -> Result<()> {
    if text.is_empty() {
        return Err(Error::invalid("a user is needed").hint("Give a name, or UID:GID"));
    }
    let ids = text.split_once(':').map(|(u, g)| (u.parse::<u32>(), g.parse::<u32>()));
    b.process.run_as = Some(match ids {
        Some((Ok(uid), Ok(gid))) => RunAs::Ids(uid, gid),
        Some(_) => {
            return Err(Error::invalid(format!("'{text}' is neither a user nor UID:GID"))
                .hint("Give the name of a user, or two numbers as in 107:107"));
        }
        None => RunAs::User(text.to_owned()),
    });
    Ok(())
}

/// `-run-with user=...`.
pub fn run_with(b: &mut Builder, text: &str) -> Result<()> {
    let mut o = Options::parse(text, None);
    if let Some(user) = o.take("user") {
        run_as(b, &user)?;
    }
    o.finish(&[
        ("chroot", "Use a namespace: unshare or systemd's RootDirectory="),
        ("async-teardown", "Leave it out"),
    ])
}

/// `-msg timestamp=on,guest-name=on`.
pub fn msg(b: &mut Builder, text: &str) -> Result<()> {
    let mut o = Options::parse(text, None);
    if let Some(on) = o.take_bool("timestamp")? {
        b.process.messages.timestamp = on;
    }
    if let Some(on) = o.take_bool("guest-name")? {
        b.process.messages.guest_name = on;
    }
    o.finish(&[])
}

/// `-D file`.
pub fn log_file(b: &mut Builder, text: &str) -> Result<()> {
    b.process.log = Some(text.into());
    Ok(())
}

/// `-S`.
pub fn start_paused(b: &mut Builder, _text: &str) -> Result<()> {
    b.machine.start_paused = true;
    Ok(())
}

/// `-action reboot=,shutdown=,panic=`.
pub fn action(b: &mut Builder, text: &str) -> Result<()> {
    let mut o = Options::parse(text, None);
    let wrong = |key: &str, value: &str, possible: &str| {
        Error::invalid(format!("{key}={value} is not possible"))
            .hint(format!("Use one of {possible}"))
    };
    match o.take("reboot").as_deref() {
        None => {}
        Some("reset") => b.machine.on_reset = OnReset::Restart,
        Some("shutdown") => b.machine.on_reset = OnReset::End,
        Some(other) => return Err(wrong("reboot", other, "reset, shutdown")),
    }
    match o.take("shutdown").as_deref() {
        None => {}
        Some("poweroff") => b.machine.on_power_off = OnPowerOff::End,
        Some("pause") => b.machine.on_power_off = OnPowerOff::Pause,
        Some(other) => return Err(wrong("shutdown", other, "poweroff, pause")),
    }
    match o.take("panic").as_deref() {
        None => {}
        Some("shutdown") => b.machine.on_panic = OnPanic::PowerOff,
        Some("pause") => b.machine.on_panic = OnPanic::Pause,
        Some("exit-failure") => b.machine.on_panic = OnPanic::Fail,
        Some("none") => b.machine.on_panic = OnPanic::Nothing,
        Some(other) => return Err(wrong("panic", other, "shutdown, pause, exit-failure, none")),
    }
    o.finish(&[("watchdog", "There is no watchdog yet")])
}
