//! `-serial`, `-monitor`, `-qmp`, `-mon`, `-chardev`, `-debugcon`, `-nographic`, `-echr`.
//!
//! Everything becomes a named character device, and a reference to it. The short spellings make devices
//! with QEMU's own names: `serial0`, `compat_monitor0`, `debugcon`.

use std::time::Duration;

use super::builder::Builder;
use super::options::{Options, number};
use crate::chardev::config::{
    CharConfig, CharKind, FileMode, LogFile, Protocol, Role, Sharing, Signals, SocketAddress,
    SocketConfig, Wait,
};
use crate::control::{MonitorConfig, MonitorMode};
use crate::devices::debug_port;
use crate::{Error, Result};

/// Bytes that `ringbuf` keeps when no size is given.
const RING: u64 = 64 << 10;

/// What a short spelling means.
struct Short {
    config: CharConfig,
    /// A monitor shares it (`mon:`).
    monitor: bool,
}

/// A back end as `-serial` names it.
fn short(text: &str) -> Result<Short> {
    if let Some(rest) = text.strip_prefix("mon:") {
        let mut inner = short(rest)?;
        if let CharKind::Stdio { signals } = &mut inner.config.kind {
            *signals = Signals::Pass;
        }
        inner.config.sharing = Sharing::Mux;
        return Ok(Short { monitor: true, ..inner });
    }
    let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
    let kind = match kind {
        "null" => CharKind::Null,
        "stdio" => CharKind::Stdio { signals: Signals::Act },
        "pty" => CharKind::Pty,
        "ringbuf" => CharKind::Ring(crate::num::index(RING)),
        "file" if !rest.is_empty() => {
            let mut o = Options::parse(rest, Some("path"));
            let kind = file(&mut o)?;
            o.finish(&[])?;
            kind
        }
        "pipe" if !rest.is_empty() => CharKind::Pipe(rest.into()),
        "unix" if !rest.is_empty() => {
            let mut o = Options::parse(rest, Some("path"));
            let address = SocketAddress::Unix(o.need("path")?.into());
            socket(o, address, Protocol::Raw)?
        }
        "tcp" | "telnet" => {
            let mut o = Options::parse(rest, Some("addr"));
            let (host, port) = host_port(&o.take("addr").unwrap_or_default())?;
            let protocol = if kind == "telnet" { Protocol::Telnet } else { Protocol::Raw };
            socket(o, SocketAddress::Tcp(host, port), protocol)?
        }
        "udp" => {
            let (to, from) = rest.split_once('@').unwrap_or((rest, ""));
            let from = if from.is_empty() { (String::new(), 0) } else { host_port(from)? };
            CharKind::Udp { to: host_port(to)?, from }
        }
        "vc" => {
            return Err(Error::unsupported("character back end 'vc' is not supported yet").hint(
                "There is no display yet; use stdio, pty, unix:PATH,server=on or file:NAME",
            ));
        }
        "msmouse" | "braille" | "wctablet" | "tn3270" | "websocket" | "parport" | "con" => {
            return Err(Error::unsupported(format!(
                "character back end '{kind}' is not supported yet"
            ))
            .hint(
                "stdio, pty, file:, pipe:, unix:, tcp:, telnet:, udp:, ringbuf, null and none are",
            ));
        }
        _ if text.starts_with("/dev/") => {
            return Err(Error::unsupported(format!("host device {text} is not supported yet"))
                .hint(format!(
                    "Connect it with socat: -serial pty, then socat /dev/pts/N,raw {text},raw"
                )));
        }
        _ => return Err(Error::invalid(format!("'{text}' is not a valid char driver"))),
    };
    Ok(Short { config: kind.into(), monitor: false })
}

/// `host:port`; the host may be empty, or an IPv6 address in brackets.
fn host_port(text: &str) -> Result<(String, u16)> {
    let wrong = || {
        Error::invalid(format!("error parsing address '{text}'"))
            .hint("Write HOST:PORT, or :PORT for all addresses of this host")
    };
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Ok((host.to_owned(), port.parse().map_err(|_| wrong())?))
}

fn file(o: &mut Options) -> Result<CharKind> {
    Ok(CharKind::File {
        path: o.need("path")?.into(),
        mode: file_mode(o.take_bool("append")?),
        input: o.take("input-path").map(Into::into),
    })
}

fn file_mode(append: Option<bool>) -> FileMode {
    if append == Some(true) { FileMode::Append } else { FileMode::Truncate }
}

/// What remains of a socket's parameters.
fn socket(mut o: Options, address: SocketAddress, protocol: Protocol) -> Result<CharKind> {
    let server = o.take_bool("server")?.unwrap_or(false);
    let wait = o.take_bool("wait")?;
    // `nodelay` without a value reads as delay=off.
    let nodelay = o.take_bool("nodelay")?.unwrap_or(false) || o.take_bool("delay")? == Some(false);
    let telnet = o.take_bool("telnet")?.unwrap_or(false);
    let seconds = o.take_number("reconnect")?.map(Duration::from_secs);
    let millis = o.take_number("reconnect-ms")?.map(Duration::from_millis);
    let reconnect = seconds.or(millis).filter(|d| !d.is_zero());
    if server && reconnect.is_some() {
        return Err(Error::invalid(
            "'reconnect' option is incompatible with socket in server listen mode",
        ));
    }
    if !server && wait.is_some() {
        return Err(Error::invalid(
            "'wait' option is incompatible with socket in client connect mode",
        )
        .hint("Add server=on"));
    }
    o.finish(&[
        ("tls-creds", "Tunnel it: ssh -L, stunnel"),
        ("tls-authz", "Tunnel it: ssh -L, stunnel"),
        ("websocket", "Use telnet or the bytes themselves"),
        ("tn3270", "Use telnet"),
        ("abstract", "Use path=, or a TCP port"),
        ("tight", "Leave it out"),
        ("to", "Give one port"),
        ("ipv4", "Write the address as a number"),
        ("ipv6", "Write the address as a number"),
    ])?;
    let wait = if wait.unwrap_or(true) { Wait::On } else { Wait::Off };
    Ok(CharKind::Socket(SocketConfig {
        address,
        role: if server { Role::Server(wait) } else { Role::Client(reconnect) },
        protocol: if telnet { Protocol::Telnet } else { protocol },
        nodelay,
    }))
}

/// Makes a device of a short spelling and returns its name.
fn named(b: &mut Builder, label: &str, text: &str) -> Result<String> {
    if let Some(id) = text.strip_prefix("chardev:") {
        return Ok(id.to_owned());
    }
    let short = short(text)?;
    add(b, label, short.config)?;
    if short.monitor {
        b.machine.monitors.push(MonitorConfig { chardev: label.into(), mode: MonitorMode::Human });
        b.monitor_given = true;
    }
    Ok(label.to_owned())
}

fn add(b: &mut Builder, label: &str, config: CharConfig) -> Result<()> {
    if b.machine.chardevs.iter().any(|(l, _)| l == label) {
        return Err(Error::invalid(format!("Duplicate ID '{label}' for chardev")));
    }
    b.machine.chardevs.push((label.to_owned(), config));
    Ok(())
}

/// `-serial`.
pub fn serial(b: &mut Builder, text: &str) -> Result<()> {
    b.serial_given = true;
    if text != "none" {
        let label = named(b, &format!("serial{}", b.machine.serial.len()), text)?;
        b.machine.serial.push(label);
    }
    Ok(())
}

/// `-parallel none`.
pub fn parallel(_b: &mut Builder, text: &str) -> Result<()> {
    if matches!(text, "none" | "null") {
        return Ok(());
    }
    Err(Error::unsupported("there is no parallel port yet").hint("Use -parallel none"))
}

/// `-chardev socket,id=c0,...`.
pub fn chardev(b: &mut Builder, text: &str) -> Result<()> {
    if text == "help" || text == "?" {
        b.show = Some(
            "Available chardev backend types:\n  file\n  null\n  pipe\n  pty\n  ringbuf\n  socket\n  stdio\n  udp\n"
                .into(),
        );
        return Ok(());
    }
    let mut o = Options::parse(text, Some("backend"));
    let backend = o.need("backend")?;
    let id = o.need("id")?;
    let mux = o.take_bool("mux")?.unwrap_or(false);
    let log = match o.take("logfile") {
        None => None,
        Some(path) => {
            Some(LogFile { path: path.into(), mode: file_mode(o.take_bool("logappend")?) })
        }
    };
    let kind = match backend.as_str() {
        "null" => CharKind::Null,
        "stdio" => {
            // As in QEMU: shared devices get Ctrl-c as a character unless told otherwise.
            let act = o.take_bool("signal")?.unwrap_or(!mux);
            CharKind::Stdio { signals: if act { Signals::Act } else { Signals::Pass } }
        }
        "pty" => {
            if o.has("path") {
                return Err(Error::unsupported("path= of a pty is not supported yet").hint(
                    "The name of the terminal is printed at the start, and by 'info chardev'",
                ));
            }
            CharKind::Pty
        }
        "file" => file(&mut o)?,
        "pipe" => CharKind::Pipe(o.need("path")?.into()),
        "ringbuf" | "memory" => ring(&mut o)?,
        "udp" => CharKind::Udp {
            to: (o.take("host").unwrap_or_default(), port(&o.need("port")?)?),
            from: (
                o.take("localaddr").unwrap_or_default(),
                o.take("localport").map(|p| port(&p)).transpose()?.unwrap_or(0),
            ),
        },
        "socket" => {
            let address = match (o.take("path"), o.take("fd"), o.take("port")) {
                (Some(path), _, _) => SocketAddress::Unix(path.into()),
                (None, Some(fd), _) => SocketAddress::Fd(
                    i32::try_from(number("fd", &fd)?)
                        .map_err(|_| Error::invalid(format!("fd={fd} is no descriptor")))?,
                ),
                (None, None, Some(p)) => {
                    SocketAddress::Tcp(o.take("host").unwrap_or_default(), port(&p)?)
                }
                (None, None, None) => {
                    return Err(Error::invalid("chardev: socket: no path, port or fd given")
                        .hint("Give path=FILE for a Unix socket, host= and port= for TCP"));
                }
            };
            let kind = socket(std::mem::take(&mut o), address, Protocol::Raw)?;
            return finish_chardev(b, &id, CharConfig { kind, sharing: sharing(mux), log });
        }
        other => {
            return Err(Error::unsupported(format!(
                "character back end '{other}' is not supported yet"
            ))
            .hint("stdio, pty, file, pipe, socket, udp, ringbuf and null are"));
        }
    };
    o.finish(&[])?;
    finish_chardev(b, &id, CharConfig { kind, sharing: sharing(mux), log })
}

fn finish_chardev(b: &mut Builder, id: &str, config: CharConfig) -> Result<()> {
    add(b, id, config)
}

fn sharing(mux: bool) -> Sharing {
    if mux { Sharing::Mux } else { Sharing::Alone }
}

fn port(text: &str) -> Result<u16> {
    text.parse().map_err(|_| {
        Error::invalid(format!("port '{text}' is not a port")).hint("Ports are numbers up to 65535")
    })
}

fn ring(o: &mut Options) -> Result<CharKind> {
    let size = o.take_size("size", 1)?.unwrap_or(RING);
    if !size.is_power_of_two() || size > 1 << 30 {
        return Err(Error::invalid("size of ringbuf chardev must be power of two (1G at most)"));
    }
    Ok(CharKind::Ring(crate::num::index(size)))
}

/// `-debugcon file:log`: at port 0xe9.
pub fn debugcon(b: &mut Builder, text: &str) -> Result<()> {
    let label = named(b, "debugcon", text)?;
    b.machine.debug_port = Some((debug_port::BOCHS, label));
    Ok(())
}

fn monitor_on(b: &mut Builder, text: &str, mode: MonitorMode) -> Result<()> {
    b.monitor_given = true;
    if text == "none" {
        return Ok(());
    }
    let label = format!("compat_monitor{}", b.short_monitors);
    b.short_monitors += 1;
    let rest = text.strip_prefix("mon:").unwrap_or(text);
    let chardev = named(b, &label, rest)?;
    b.machine.monitors.push(MonitorConfig { chardev, mode });
    Ok(())
}

/// `-monitor`.
pub fn monitor(b: &mut Builder, text: &str) -> Result<()> {
    monitor_on(b, text, MonitorMode::Human)
}

/// `-qmp`.
pub fn qmp(b: &mut Builder, text: &str) -> Result<()> {
    let given = b.monitor_given;
    monitor_on(b, text, MonitorMode::Control { pretty: false })?;
    // A machine interface does not replace the human monitor of -nographic.
    b.monitor_given = given;
    Ok(())
}

/// `-qmp-pretty`.
pub fn qmp_pretty(b: &mut Builder, text: &str) -> Result<()> {
    let given = b.monitor_given;
    monitor_on(b, text, MonitorMode::Control { pretty: true })?;
    b.monitor_given = given;
    Ok(())
}

/// `-mon chardev=c0,mode=control`.
pub fn mon(b: &mut Builder, text: &str) -> Result<()> {
    let mut o = Options::parse(text, Some("chardev"));
    let chardev = o.need("chardev")?;
    let pretty = o.take_bool("pretty")?.unwrap_or(false);
    let mode = match o.take("mode").as_deref() {
        None | Some("readline") => MonitorMode::Human,
        Some("control") => MonitorMode::Control { pretty },
        Some(other) => return Err(Error::invalid(format!("unknown monitor mode \"{other}\""))),
    };
    // The monitor's name, which nothing refers to.
    o.take("id");
    // Only one default in old versions; all events go to all monitors.
    o.take_bool("default")?;
    o.finish(&[])?;
    b.monitor_given |= mode == MonitorMode::Human;
    b.machine.monitors.push(MonitorConfig { chardev, mode });
    Ok(())
}

/// `-echr 0x14`.
pub fn echr(b: &mut Builder, text: &str) -> Result<()> {
    let value = number("echr", text)?;
    b.machine.escape = u8::try_from(value).map_err(|_| {
        Error::invalid(format!("'{text}' is no character")).hint("Ctrl-a is 1, Ctrl-t is 0x14")
    })?;
    Ok(())
}

/// `-nographic`.
pub fn nographic(b: &mut Builder, _text: &str) -> Result<()> {
    b.nographic = true;
    b.no_display = true;
    Ok(())
}

/// Serial ports and monitors of those who did not ask for any.
pub fn defaults(b: &mut Builder) -> Result<()> {
    if b.nographic && !b.nodefaults {
        match (b.serial_given, b.monitor_given) {
            (false, false) => serial(b, "mon:stdio")?,
            (false, true) => serial(b, "stdio")?,
            (true, false) => {
                let stdio_taken = b
                    .machine
                    .chardevs
                    .iter()
                    .any(|(_, c)| matches!(c.kind, CharKind::Stdio { .. }));
                if !stdio_taken {
                    monitor(b, "stdio")?;
                }
            }
            (true, true) => {}
        }
    } else if !b.serial_given && !b.nodefaults {
        serial(b, "null")?;
        if !b.no_display {
            b.warnings.push(
                "there is no display yet; the guest runs without one (-nographic shows its serial port)"
                    .into(),
            );
        }
    }
    if b.machine.start_paused && b.machine.monitors.is_empty() {
        b.warnings.push(
            "-S: there is no monitor in which somebody could let the guest go on (-monitor, -qmp)"
                .into(),
        );
    }
    let known = |id: &str| b.machine.chardevs.iter().any(|(l, _)| l == id);
    let serial = b.machine.serial.iter().map(|s| ("-serial", s));
    let monitors = b.machine.monitors.iter().map(|m| ("-mon", &m.chardev));
    let debug = b.machine.debug_port.iter().map(|(_, c)| ("-debugcon", c));
    let mut users: Vec<(&str, &str)> = Vec::new();
    for (option, id) in serial.chain(monitors).chain(debug) {
        if !known(id) {
            return Err(Error::invalid(format!("{option}: chardev '{id}' not found"))
                .hint(format!("Make it: -chardev stdio,id={id}")));
        }
        users.push((option, id));
    }
    for (label, config) in &b.machine.chardevs {
        let number = users.iter().filter(|(_, id)| id == label).count();
        if number > 1 && config.sharing == Sharing::Alone {
            return Err(Error::invalid(format!("chardev '{label}' has {number} users"))
                .hint(format!("Share it: -chardev ...,id={label},mux=on")));
        }
    }
    let stdio =
        b.machine.chardevs.iter().filter(|(_, c)| matches!(c.kind, CharKind::Stdio { .. })).count();
    if stdio > 1 {
        return Err(Error::invalid("cannot use stdio by multiple character devices").hint(
            "Share it (-serial mon:stdio), or connect the others elsewhere (-serial null, -monitor none)",
        ));
    }
    Ok(())
}

/// `-device isa-debugcon,iobase=0x402,chardev=c0`.
pub fn debug_device(b: &mut Builder, o: &mut Options) -> Result<()> {
    let port = match o.take("iobase") {
        None => debug_port::BOCHS,
        Some(p) => u16::try_from(number("iobase", &p)?)
            .map_err(|_| Error::invalid(format!("iobase={p} is no port")))?,
    };
    b.machine.debug_port = Some((port, o.need("chardev")?));
    Ok(())
}
