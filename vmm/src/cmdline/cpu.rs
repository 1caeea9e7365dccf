//! `-smp`, `-cpu`, `-vcpu-pin`.

use super::builder::Builder;
use super::options::{Options, boolean, number};
use crate::cpu::cpuid::Switch;
use crate::cpu::{features, models};
use crate::{Error, Result};

/// `-smp [cpus=]n,maxcpus=,sockets=,cores=,threads=`.
pub fn smp(b: &mut Builder, text: &str) -> Result<()> {
    let mut o = Options::parse(text, Some("cpus"));
    b.smp.cpus = o.take_u32("cpus")?;
    b.smp.max_cpus = o.take_u32("maxcpus")?;
    b.smp.sockets = o.take_u32("sockets")?;
    b.smp.cores = o.take_u32("cores")?;
    b.smp.threads = o.take_u32("threads")?;
    for level in ["dies", "clusters", "modules", "books", "drawers"] {
        if o.take_u32(level)?.is_some_and(|n| n != 1) {
            return Err(Error::unsupported(format!("'{level}' greater than 1 is not supported"))
                .hint("Use sockets=, cores= and threads="));
        }
    }
    o.finish(&[])
}

/// `-cpu model,+flag,-flag,flag=on`.
pub fn cpu(b: &mut Builder, text: &str) -> Result<()> {
    if text == "help" || text == "?" {
        b.show = Some(list());
        return Ok(());
    }
    let mut items = text.split(',');
    b.machine.cpu.model = items.next().unwrap_or_default().to_owned();
    b.machine.cpu.flags.clear();
    for item in items.filter(|i| !i.is_empty()) {
        if let Some(flag) = item.strip_prefix('+') {
            flag_switch(b, flag, Switch::On)?;
        } else if let Some(flag) = item.strip_prefix('-') {
            flag_switch(b, flag, Switch::Off)?;
        } else {
            let (key, value) = item.split_once('=').unwrap_or((item, "on"));
            property(b, key, value)?;
        }
    }
    Ok(())
}

fn property(b: &mut Builder, key: &str, value: &str) -> Result<()> {
    match key {
        "enforce" => b.machine.cpu.enforce = boolean(key, value)?,
        "check" => drop(boolean(key, value)?),
        "kvm" => b.machine.cpu.expose_kvm = boolean(key, value)?,
        "migratable" | "host-phys-bits" | "pmu" | "hv-passthrough" | "phys-bits" | "level"
        | "model-id" | "family" | "model" | "stepping" | "vendor" => {
            return Err(Error::unsupported(format!("CPU property '{key}' is not supported yet"))
                .hint("Leave it out; the model's own value is used"));
        }
        _ => {
            let switch = if boolean(key, value)? { Switch::On } else { Switch::Off };
            flag_switch(b, key, switch)?;
        }
    }
    Ok(())
}

fn flag_switch(b: &mut Builder, flag: &str, switch: Switch) -> Result<()> {
    if features::find(flag).is_none() {
        return Err(Error::invalid(format!(
            "Property '{}-x86_64-cpu.{flag}' not found",
            b.machine.cpu.model
        ))
        .hint("List the flags with -cpu help"));
    }
    b.machine.cpu.flags.push((flag.to_owned(), switch));
    Ok(())
}

fn list() -> String {
    let mut text = String::from("Available CPUs:\n");
    for m in models::MODELS.iter().filter(|m| m.name != "base") {
        text.push_str(&format!("  {:<26} {}\n", m.name, m.title.trim_end()));
    }
    text.push_str(&format!("  {:<26} {}\n", "host", "processor with all supported host features"));
    text.push_str(&format!("  {:<26} {}\n", "max", "the same as host"));
    text.push_str("\nRecognized CPUID flags:\n");
    let mut line = String::new();
    for name in features::all() {
        if line.len() + name.len() > 74 {
            text.push_str(&format!("  {}\n", line.trim_end()));
            line.clear();
        }
        line.push_str(name);
        line.push(' ');
    }
    text.push_str(&format!("  {}\n", line.trim_end()));
    text
}

/// `-vcpu-pin vcpu=0,cpus=2-3+5` (the list takes `+` between ranges, as commas separate parameters).
pub fn pin(b: &mut Builder, text: &str) -> Result<()> {
    let mut o = Options::parse(text, Some("vcpu"));
    let vcpu = o.need("vcpu")?;
    let vcpu = usize::try_from(number("vcpu", &vcpu)?).unwrap_or(usize::MAX);
    let cpus = ranges("cpus", &o.need("cpus")?)?;
    o.finish(&[])?;
    if vcpu > 254 {
        return Err(Error::invalid(format!("there is no vCPU {vcpu}")));
    }
    if b.machine.pin.len() <= vcpu {
        b.machine.pin.resize(vcpu + 1, Vec::new());
    }
    b.machine.pin[vcpu] = cpus.into_iter().map(|c| c as usize).collect();
    Ok(())
}

/// `0-3+7` as numbers.
pub fn ranges(key: &str, text: &str) -> Result<Vec<u32>> {
    let mut all = Vec::new();
    for part in text.split('+') {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let bound = |t: &str| {
            number(key, t)
                .ok()
                .and_then(|n| u32::try_from(n).ok())
                .filter(|n| *n < 4096)
                .ok_or_else(|| {
                    Error::invalid(format!(
                        "Parameter '{key}' expects CPU numbers like 0-3, not '{text}'"
                    ))
                })
        };
        let (from, to) = (bound(from)?, bound(to)?);
        if from > to {
            return Err(Error::invalid(format!(
                "Parameter '{key}': {from}-{to} is an empty range"
            )));
        }
        all.extend(from..=to);
    }
    Ok(all)
}
