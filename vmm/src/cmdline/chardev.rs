//! `-serial`, `-chardev`, `-debugcon`, `-monitor`, `-nographic`.

use super::builder::Builder;
use super::options::{Options, number};
use crate::chardev::CharConfig;
use crate::devices::debug_port;
use crate::{Error, Result};

/// A back end as `-serial` names it.
fn back_end(b: &Builder, text: &str) -> Result<CharConfig> {
    let kind = text.split([':', ',']).next().unwrap_or_default();
    Ok(match (kind, text) {
        (_, "null") => CharConfig::Null,
        (_, "stdio") => CharConfig::Stdio { keys: false },
        (_, "mon:stdio") => CharConfig::Stdio { keys: true },
        (_, "pty") => CharConfig::Pty,
        ("file", _) => CharConfig::File(text.trim_start_matches("file:").into()),
        ("chardev", _) => {
            let id = text.trim_start_matches("chardev:");
            b.chardevs
                .get(id)
                .cloned()
                .ok_or_else(|| Error::invalid(format!("chardev '{id}' not found")))?
        }
        ("unix" | "tcp" | "telnet" | "udp" | "pipe" | "vc" | "mon" | "msmouse" | "braille", _) => {
            return Err(Error::unsupported(format!(
                "character back end '{kind}:' is not supported yet"
            ))
            .hint("stdio, mon:stdio, pty, file:NAME, null and none are"));
        }
        _ => return Err(Error::invalid(format!("'{text}' is not a valid char driver"))),
    })
}

/// `-serial`.
pub fn serial(b: &mut Builder, text: &str) -> Result<()> {
    b.serial_given = true;
    if text != "none" {
        let config = back_end(b, text)?;
        b.machine.serial.push(config);
    }
    Ok(())
}

/// `-chardev stdio,id=c0`.
pub fn chardev(b: &mut Builder, text: &str) -> Result<()> {
    let mut o = Options::parse(text, Some("backend"));
    let kind = o.need("backend")?;
    let id = o.need("id")?;
    let config = match kind.as_str() {
        "null" => CharConfig::Null,
        "stdio" => {
            let _ = o.take_bool("signal")?;
            CharConfig::Stdio { keys: o.take_bool("mux")?.unwrap_or(false) }
        }
        "pty" => CharConfig::Pty,
        "file" => CharConfig::File(o.need("path")?.into()),
        other => {
            return Err(Error::unsupported(format!(
                "character back end '{other}' is not supported yet"
            ))
            .hint("stdio, pty, file and null are"));
        }
    };
    o.finish(&[
        ("logfile", "Leave it out"),
        ("append", "Leave it out"),
        ("input-path", "Leave it out"),
    ])?;
    if b.chardevs.insert(id.clone(), config).is_some() {
        return Err(Error::invalid(format!("Duplicate ID '{id}' for chardev")));
    }
    Ok(())
}

/// `-debugcon file:log`: at port 0xe9.
pub fn debugcon(b: &mut Builder, text: &str) -> Result<()> {
    let config = back_end(b, text)?;
    b.machine.debug_port = Some((debug_port::BOCHS, config));
    Ok(())
}

/// `-monitor none`.
pub fn monitor(b: &mut Builder, text: &str) -> Result<()> {
    match text {
        "none" | "null" => {
            b.no_monitor = true;
            Ok(())
        }
        _ => Err(Error::unsupported("the monitor is not supported yet")
            .hint("Use -monitor none; with -nographic, Ctrl-a x ends the guest")),
    }
}

/// `-nographic`.
pub fn nographic(b: &mut Builder, _text: &str) -> Result<()> {
    b.nographic = true;
    b.no_display = true;
    Ok(())
}

/// `-device isa-debugcon,iobase=0x402,chardev=c0`.
pub fn debug_device(b: &mut Builder, o: &mut Options) -> Result<()> {
    let port = match o.take("iobase") {
        None => debug_port::BOCHS,
        Some(p) => u16::try_from(number("iobase", &p)?)
            .map_err(|_| Error::invalid(format!("iobase={p} is no port")))?,
    };
    let id = o.need("chardev")?;
    let config = back_end(b, &format!("chardev:{id}"))?;
    b.machine.debug_port = Some((port, config));
    Ok(())
}
