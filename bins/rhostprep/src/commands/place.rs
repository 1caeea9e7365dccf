//! `rhostprep memory`, `cpu` and `pin`.

use std::fmt::Write as _;

use hostprep::cpu::{self, Binding, Role};
use hostprep::host::Host;
use hostprep::memory::MemoryPlan;
use hostprep::units::{CpuSet, MIB, parse_size};
use hostprep::{Error, Result};

use super::{print, wanted};
use crate::args::{Cpu, Memory, Output, Pin};

fn as_json(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string_pretty(value)
        .map(|text| text + "\n")
        .map_err(|error| Error::host(format!("cannot be written as JSON: {error}")))
}

pub fn memory(host: &Host, args: &Memory) -> Result<u8> {
    let share = match &args.ksm_share {
        None => 0,
        Some(text) => {
            text.trim_end_matches('%').parse().ok().filter(|share| *share <= 100).ok_or_else(
                || Error::usage(format!("--ksm-share {text}: not a percentage from 0 to 100")),
            )?
        }
    };
    let ram = args.ram.as_deref().map(|text| parse_size(text, MIB)).transpose()?;
    let page = parse_size(&args.page, 1)?;
    if !page.is_power_of_two() || page < 4096 {
        return Err(
            Error::usage(format!("--page {}: not a page size", args.page)).remedy("use 2M or 1G")
        );
    }
    let plan = MemoryPlan::new(host, &wanted(&args.wanted)?, share, ram, page);
    print(&if args.output == Output::Json { as_json(&plan)? } else { plan.text() });
    Ok(u8::from(plan.swap_missing > 0))
}

pub fn cpu(host: &Host, args: &Cpu) -> Result<u8> {
    let wanted = wanted(&args.wanted)?;
    let proposal = cpu::propose(host, &wanted);
    if args.output == Output::Json {
        print(&as_json(&proposal)?);
        return Ok(0);
    }
    let mut text = cpu::draw(host);
    if !wanted.guests.is_empty() {
        text.push('\n');
        text.push_str(&proposal.text());
    }
    print(&text);
    Ok(0)
}

fn cpus(text: &str) -> Result<CpuSet> {
    CpuSet::parse(text).filter(|set| !set.is_empty()).ok_or_else(|| {
        Error::usage(format!("'{text}' is not a list of CPUs")).remedy("write it like 4 or 4-7,12")
    })
}

pub fn pin(host: &Host, args: &Pin) -> Result<u8> {
    let pid = cpu::find_process(host, &args.process)?;
    let mut binding = Binding::default();
    for text in &args.vcpu {
        let (vcpu, list) = text
            .split_once('=')
            .ok_or_else(|| Error::usage(format!("--vcpu {text}: write VCPU=CPUS, like 0=4")))?;
        let number = vcpu
            .parse()
            .map_err(|_| Error::usage(format!("--vcpu {text}: '{vcpu}' is not a number")))?;
        binding.vcpus.push((number, cpus(list)?));
    }
    binding.emulator = args.emulator.as_deref().map(cpus).transpose()?;
    if !binding.vcpus.is_empty() || binding.emulator.is_some() {
        if args_root_is_fake(host) {
            return Err(Error::usage("threads of a tree cannot be bound"));
        }
        cpu::bind(host, pid, &binding)?;
    }
    let mut out = String::new();
    for thread in cpu::threads(host, pid) {
        let role = match thread.role {
            Role::Vcpu(number) => format!("vCPU {number}"),
            Role::Emulator => "emulator".to_owned(),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "{:>8}  {role:<9} {:<16} CPUs {}",
            thread.tid, thread.name, thread.allowed
        );
    }
    print(&out);
    Ok(0)
}

fn args_root_is_fake(host: &Host) -> bool {
    host.root() != std::path::Path::new("/")
}
