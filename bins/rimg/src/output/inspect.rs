//! What `inspect` found, for people.

use std::fmt::Write;

use imgcore::ops::inspect::{
    Firmware, InspectReport, Level, Outcome, Reason, Starts, SystemReport,
};
use imgcore::ops::policy::{self, PolicyReport};
use imgcore::opts::human;

/// The whole report.
pub fn text(report: &InspectReport) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{}  {}, {}",
        report.filename,
        report.format,
        human::size(report.virtual_size)
    );
    table(report, &mut out);
    for system in &report.operating_systems {
        match system {
            SystemReport::Linux(linux) => self::linux(linux, &mut out),
            SystemReport::Windows(windows) => self::windows(windows, &mut out),
        }
    }
    verdict(report, &mut out);
    out
}

fn table(report: &InspectReport, out: &mut String) {
    let table = &report.partition_table;
    let kind = match table.kind {
        "none" => "no partition table".to_owned(),
        kind => format!("{} partition table", kind.to_uppercase()),
    };
    let _ = writeln!(out, "\n{kind}");
    for warning in &table.warnings {
        let _ = writeln!(out, "  ! {warning}");
    }
    for volume in &report.volumes {
        let _ = write!(
            out,
            "  {:<16} {:>10}  {:<12}",
            volume.name,
            human::size(volume.size),
            volume.content
        );
        if let Some(label) = &volume.label {
            let _ = write!(out, " \"{label}\"");
        }
        if let Some(used) = volume.used {
            let _ = write!(out, " {} used", human::size(used));
        }
        let partition = report.partitions.iter().find(|p| Some(p.number) == volume.partition);
        if let Some(name) = partition.and_then(|p| p.type_name) {
            let _ = write!(out, "  ({name})");
        }
        out.push('\n');
        if let Some(uuid) = &volume.uuid {
            let _ = writeln!(out, "                   UUID {uuid}");
        }
        for note in &volume.notes {
            let _ = writeln!(out, "                   {note}");
        }
    }
}

fn linux(linux: &imgcore::ops::inspect::LinuxReport, out: &mut String) {
    let architecture = linux.release.architecture.as_deref().unwrap_or("unknown processor");
    let _ = writeln!(out, "\n{}, {architecture}, on {}", linux.release.name, linux.root);
    if let Some(host) = &linux.release.hostname {
        let _ = writeln!(out, "  host name      {host}");
    }
    for kernel in &linux.kernels {
        let version = kernel.version.as_deref().unwrap_or("of unknown version");
        let mark = if kernel.default { ", default" } else { "" };
        let _ = write!(out, "  kernel         {version}{mark}");
        if let Some(initramfs) = &kernel.initramfs {
            let only = if initramfs.host_only { ", for one machine only" } else { "" };
            let _ = write!(out, ", initial RAM disk with {} files{only}", initramfs.files);
        }
        out.push('\n');
    }
    if let Some(entry) = linux.boot_entries.first() {
        let _ = writeln!(out, "  command line   {}", entry.arguments);
    }
    for mount in &linux.mounts {
        let place = mount.volume.as_deref().map(|v| format!(" ({v})")).unwrap_or_default();
        let at = match mount.mount_point.as_str() {
            "none" | "swap" => "as swap space".to_owned(),
            path => format!("at {path}"),
        };
        let _ = writeln!(out, "  mounts         {} {at}{place}", mount.what);
    }
}

fn windows(report: &imgcore::ops::inspect::WindowsReport, out: &mut String) {
    let windows = &report.system;
    let architecture = windows.architecture.as_deref().unwrap_or("unknown processor");
    let release = windows.release.as_deref().map(|r| format!(" {r}")).unwrap_or_default();
    let build = windows.build.map(|b| format!(", build {b}")).unwrap_or_default();
    let _ = writeln!(out, "\n{}{release}{build}, {architecture}, on {}", windows.name, report.root);
    if let Some(host) = &windows.hostname {
        let _ = writeln!(out, "  host name      {host}");
    }
    for (name, service) in &windows.services {
        let start = match service.start {
            None => "no service".to_owned(),
            Some(start) => {
                let words = ["at boot", "by the kernel", "automatically", "on demand", "disabled"];
                let word = usize::try_from(start).ok().and_then(|s| words.get(s));
                word.map_or_else(|| format!("Start {start}"), |w| (*w).to_owned())
            }
        };
        let turned =
            service.start_override.filter(|s| *s > 0).map(|s| format!(", StartOverride {s}"));
        let file = if service.file { "" } else { ", file missing" };
        let _ =
            writeln!(out, "  driver         {name}: {start}{}{file}", turned.unwrap_or_default());
    }
}

fn verdict(report: &InspectReport, out: &mut String) {
    let verdict = &report.verdict;
    let firmware = match verdict.firmware {
        Some(Firmware::Bios) => "BIOS",
        Some(Firmware::Uefi) => "UEFI",
        None => "no firmware",
    };
    let bus = verdict.bus.map_or("no bus", |b| b.name());
    let nic = verdict.nic.unwrap_or("");
    let line = match verdict.outcome {
        Outcome::BootsVirtio => {
            format!("will boot under KVM: {firmware}, disk on {bus}, network card {nic}")
        }
        Outcome::BootsOther => {
            format!(
                "will boot under KVM, but not on virtio: {firmware}, disk on {bus}, network card {nic}"
            )
        }
        Outcome::NeedsChange => "will NOT boot under KVM before something is changed".to_owned(),
        Outcome::NoSystem => "nothing to boot was found".to_owned(),
    };
    let _ = writeln!(out, "\n{line}");
    let mut buses = Vec::new();
    for answer in &verdict.buses {
        let word = match answer.starts {
            Starts::Yes => "yes",
            Starts::Unknown => "perhaps",
            Starts::No => "no",
        };
        buses.push(format!("{} {word}", answer.bus.name()));
    }
    if !buses.is_empty() {
        let _ = writeln!(out, "  {}", buses.join(", "));
    }
    for reason in &verdict.reasons {
        self::reason(reason, out);
    }
    // Of the buses: the one that was taken, and those before it that would have been better.
    for answer in &verdict.buses {
        for r in &answer.reasons {
            self::reason(r, out);
        }
        if Some(answer.bus) == verdict.bus {
            break;
        }
    }
    if !verdict.command.is_empty() && verdict.bus.is_some() {
        let _ = writeln!(out, "\n{}", imgcore::ops::import::shown(&verdict.command));
    }
}

fn reason(reason: &Reason, out: &mut String) {
    let mark = match reason.level {
        Level::Blocker => "x",
        Level::Warning => "!",
        Level::Note => "-",
    };
    let _ = writeln!(out, "  {mark} {}", reason.what);
    for step in &reason.remedy {
        let _ = writeln!(out, "      {step}");
    }
}

/// What a policy says.
pub fn policy(report: &PolicyReport) -> String {
    let mut out = String::new();
    let format = report.format.as_deref().unwrap_or("of no format");
    let _ =
        writeln!(out, "{}  {format}, {} on disk", report.filename, human::size(report.file_size));
    for rule in &report.rules {
        let mark = match rule.result {
            policy::Outcome::Pass => "pass",
            policy::Outcome::Fail => "FAIL",
            policy::Outcome::NotAsked => "  - ",
        };
        let _ = writeln!(out, "  {mark}  {:<18} {}", rule.rule, rule.message);
    }
    out.push_str(if report.accepted { "acceptable\n" } else { "NOT acceptable\n" });
    out
}
