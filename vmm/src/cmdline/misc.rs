//! Everything that is neither memory, processor, disk nor network.

use super::builder::Builder;
use super::options::{Options, boolean};
use super::pages;
use crate::machine::config::{OnPowerOff, OnReset, RtcBase};
use crate::sandbox::Commit;
use crate::{Error, Result};

/// `-kernel`.
pub fn kernel(b: &mut Builder, text: &str) -> Result<()> {
    b.machine.kernel.kernel = text.into();
    Ok(())
}

/// `-initrd a,b`: several, one after the other; a comma in a name is doubled.
pub fn initrd(b: &mut Builder, text: &str) -> Result<()> {
    b.machine.kernel.initrds =
        text.replace(",,", "\0").split(',').map(|p| p.replace('\0', ",").into()).collect();
    Ok(())
}

/// `-append`.
pub fn append(b: &mut Builder, text: &str) -> Result<()> {
    b.machine.kernel.append = text.to_owned();
    Ok(())
}

/// `-uuid`.
pub fn uuid(b: &mut Builder, text: &str) -> Result<()> {
    let wrong = || Error::invalid(format!("failed to parse UUID string '{text}'"));
    let groups: Vec<usize> = text.split('-').map(str::len).collect();
    let hex: String = text.chars().filter(|c| *c != '-').collect();
    if groups != [8, 4, 4, 4, 12] || !hex.is_ascii() {
        return Err(wrong());
    }
    for (i, byte) in b.machine.smbios.uuid.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).map_err(|_| wrong())?;
    }
    Ok(())
}

/// `-machine`, `-M`.
pub fn machine(b: &mut Builder, text: &str) -> Result<()> {
    if text == "help" || text == "?" {
        b.show = Some(
            "Supported machines are:\npc                   the machine (direct kernel boot for now)\n\
             q35, microvm, pc-*   other names of the same machine\n"
                .into(),
        );
        return Ok(());
    }
    let mut o = Options::parse(text, Some("type"));
    if let Some(kind) = o.take("type") {
        match kind.as_str() {
            "pc" | "q35" | "microvm" => {}
            k if k.starts_with("pc-") => {
                b.warnings
                    .push(format!("-M {k}: there is one machine; it is used under that name"));
            }
            other => {
                return Err(Error::invalid(format!("unsupported machine type '{other}'"))
                    .hint("Use -machine help to list supported machines"));
            }
        }
    }
    if let Some(accel) = o.take("accel") {
        only_kvm(&accel)?;
    }
    if let Some(on) = o.take_bool("mem-merge")? {
        b.memory.set_merge(on);
    }
    if let Some(on) = o.take_bool("dump-guest-core")? {
        b.memory.set_dump(on);
    }
    b.memory.whole = o.take("memory-backend").or(b.memory.whole.take());
    // Things that this machine does not have anyway.
    for absent in ["usb", "graphics", "vmport", "hpet", "smm", "sata", "i8042"] {
        if o.take_bool(absent)?.unwrap_or(false) {
            return Err(Error::unsupported(format!("'{absent}=on' is not supported yet"))
                .hint(format!("Leave it out, or use {absent}=off")));
        }
    }
    // Things that it always has.
    for present in
        ["acpi", "pit", "pic", "rtc", "isa-serial", "pcie", "kernel-irqchip", "kernel_irqchip"]
    {
        if !o.take_bool(present)?.unwrap_or(true) {
            return Err(Error::unsupported(format!("'{present}=off' is not supported yet"))
                .hint("Leave it out"));
        }
    }
    o.finish(&[("nvdimm", "Leave it out"), ("hmat", "Leave it out")])
}

fn only_kvm(list: &str) -> Result<()> {
    if list.split([':', ',']).next() == Some("kvm") {
        return Ok(());
    }
    Err(Error::unsupported(format!("accelerator '{list}' is not supported")).hint("Use accel=kvm"))
}

/// `-accel`.
pub fn accel(_b: &mut Builder, text: &str) -> Result<()> {
    only_kvm(text)
}

/// `-display`.
pub fn display(b: &mut Builder, text: &str) -> Result<()> {
    if text == "none" {
        b.no_display = true;
        return Ok(());
    }
    Err(Error::unsupported("displays are not supported yet")
        .hint("Use -nographic or -display none"))
}

/// `-vga`.
pub fn vga(_b: &mut Builder, text: &str) -> Result<()> {
    if text == "none" {
        return Ok(());
    }
    Err(Error::unsupported("graphics cards are not supported yet").hint("Use -vga none"))
}

/// `-vnc none`.
pub fn vnc(b: &mut Builder, text: &str) -> Result<()> {
    if text == "none" {
        b.no_display = true;
        return Ok(());
    }
    Err(Error::unsupported("VNC is not supported yet")
        .hint("Leave it out; -nographic shows the serial port"))
}

/// `-nodefaults`.
pub fn nodefaults(b: &mut Builder, _text: &str) -> Result<()> {
    b.nodefaults = true;
    Ok(())
}

/// `-no-reboot`.
pub fn no_reboot(b: &mut Builder, _text: &str) -> Result<()> {
    b.machine.on_reset = OnReset::End;
    Ok(())
}

/// `-no-shutdown`.
pub fn no_shutdown(b: &mut Builder, _text: &str) -> Result<()> {
    b.machine.on_power_off = OnPowerOff::Pause;
    Ok(())
}

/// `-balloon virtio|none`.
pub fn balloon(b: &mut Builder, text: &str) -> Result<()> {
    b.balloon = match text.split(',').next() {
        Some("virtio") => true,
        Some("none") => false,
        _ => return Err(Error::invalid(format!("'{text}' is neither virtio nor none"))),
    };
    Ok(())
}

/// `-rtc base=utc|localtime|date`.
pub fn rtc(b: &mut Builder, text: &str) -> Result<()> {
    let mut o = Options::parse(text, None);
    b.machine.rtc = match o.take("base").as_deref() {
        None | Some("utc") => RtcBase::Utc,
        Some("localtime") => RtcBase::LocalTime,
        Some(date) => RtcBase::Date(seconds(date)?),
    };
    match o.take("clock").as_deref() {
        None | Some("host") => {}
        Some(other) => {
            return Err(Error::unsupported(format!("clock={other} is not supported yet"))
                .hint("Use clock=host"));
        }
    }
    match o.take("driftfix").as_deref() {
        None | Some("none") => {}
        Some(other) => {
            return Err(Error::unsupported(format!("driftfix={other} is not supported yet"))
                .hint("Use driftfix=none"));
        }
    }
    o.finish(&[])
}

/// `-localtime`.
pub fn localtime(b: &mut Builder, _text: &str) -> Result<()> {
    b.machine.rtc = RtcBase::LocalTime;
    Ok(())
}

/// `2006-06-17T16:01:21` or `2006-06-17`, as seconds since 1970.
fn seconds(date: &str) -> Result<i64> {
    let wrong = || {
        Error::invalid(format!("invalid datetime format '{date}'"))
            .hint("valid formats: '2006-06-17T16:01:21' or '2006-06-17'")
    };
    let (day, time) = date.split_once('T').unwrap_or((date, "00:00:00"));
    let numbers = |t: &str, sep: char| -> Option<[i64; 3]> {
        let v: Vec<i64> =
            t.split(sep).map(str::parse).collect::<std::result::Result<_, _>>().ok()?;
        v.try_into().ok()
    };
    let [y, m, d] = numbers(day, '-').ok_or_else(wrong)?;
    let [h, min, s] = numbers(time, ':').ok_or_else(wrong)?;
    let fits = (1970..10_000).contains(&y)
        && (1..=12).contains(&m)
        && (1..=31).contains(&d)
        && (0..24).contains(&h)
        && (0..60).contains(&min)
        && (0..62).contains(&s);
    if !fits {
        return Err(wrong());
    }
    Ok(crate::devices::rtc::days_of(y, m, d) * 86_400 + h * 3600 + min * 60 + s)
}

/// `-smbios type=0|1|3|11,...`.
pub fn smbios(b: &mut Builder, text: &str) -> Result<()> {
    let mut o = Options::parse(text, None);
    let c = &mut b.machine.smbios;
    match o.take("type").as_deref() {
        Some("0") => {
            for (i, key) in ["vendor", "version", "date"].into_iter().enumerate() {
                c.bios[i] = o.take(key).or(c.bios[i].take());
            }
            o.finish(&[("release", "Leave it out"), ("uefi", "Leave it out")])
        }
        Some("1") => {
            let keys = ["manufacturer", "product", "version", "serial", "sku", "family"];
            for (i, key) in keys.into_iter().enumerate() {
                c.system[i] = o.take(key).or(c.system[i].take());
            }
            if let Some(text) = o.take("uuid") {
                uuid(b, &text)?;
            }
            o.finish(&[])
        }
        Some("3") => {
            c.chassis = o.take("manufacturer");
            o.finish(&[
                ("version", "Leave it out"),
                ("serial", "Leave it out"),
                ("asset", "Leave it out"),
            ])
        }
        Some("11") => {
            c.oem.extend(o.take_all("value"));
            o.finish(&[("path", "Use value=")])
        }
        Some(other) => Err(Error::unsupported(format!("type={other} is not supported yet"))
            .hint("Types 0, 1, 3 and 11 can be set")),
        None if o.has("file") => {
            Err(Error::unsupported("file= is not supported yet").hint("Use type="))
        }
        None => Err(Error::invalid("Parameter 'type' is missing")),
    }
}

/// `-overcommit mem-lock=off`.
pub fn overcommit(_b: &mut Builder, text: &str) -> Result<()> {
    let mut o = Options::parse(text, None);
    for key in ["mem-lock", "cpu-pm"] {
        if o.take(key).map(|v| boolean(key, &v)).transpose()?.unwrap_or(false) {
            return Err(Error::unsupported(format!("{key}=on is not supported yet"))
                .hint(format!("Use {key}=off")));
        }
    }
    o.finish(&[])
}

/// `-boot`: only what makes no difference for a kernel.
pub fn boot(b: &mut Builder, _text: &str) -> Result<()> {
    b.warnings.push("-boot: the kernel of -kernel is booted".into());
    Ok(())
}

/// `-sandbox on|off[,commit=allow|deny][,obsolete=...][,elevateprivileges=...][,spawn=...][,resourcecontrol=...]`.
pub fn sandbox(b: &mut Builder, text: &str) -> Result<()> {
    let mut o = Options::parse(text, Some("enable"));
    b.sandbox_off = !o.take_bool("enable")?.unwrap_or(true);
    b.sandbox_commit = match o.take("commit").as_deref() {
        None | Some("allow") => Commit::Allowed,
        Some("deny") => Commit::Denied,
        Some(word) => {
            return Err(Error::invalid(format!("invalid argument {word} for -sandbox commit")));
        }
    };
    for (key, words) in [
        ("obsolete", &["deny", "allow"][..]),
        ("elevateprivileges", &["deny", "allow", "children"]),
        ("spawn", &["deny", "allow"]),
        ("resourcecontrol", &["deny", "allow"]),
    ] {
        match o.take(key) {
            None => {}
            Some(word) if word == "deny" => {}
            Some(word) if words.contains(&word.as_str()) => b
                .warnings
                .push(format!("-sandbox {key}={word}: the sandbox denies it all the same")),
            Some(word) => {
                return Err(Error::invalid(format!("invalid argument {word} for -sandbox {key}")));
            }
        }
    }
    o.finish(&[])
}

/// `-help`.
pub fn help(b: &mut Builder, _text: &str) -> Result<()> {
    b.show = Some(pages::help());
    Ok(())
}

/// `-man`.
pub fn man(b: &mut Builder, _text: &str) -> Result<()> {
    b.show = Some(pages::man());
    Ok(())
}

/// `-completions`.
pub fn completions(b: &mut Builder, text: &str) -> Result<()> {
    b.show = Some(pages::completions(text)?);
    Ok(())
}

/// `-version`.
pub fn version(b: &mut Builder, _text: &str) -> Result<()> {
    b.show = Some(format!("rkvm version {}\n", env!("CARGO_PKG_VERSION")));
    Ok(())
}
