//! The report for people: one line a finding, and below it what a reader needs to act.

use std::fmt::Write as _;

use crate::check::{Finding, Needs, Status};

/// Whether to colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    /// Plain text.
    Off,
    /// ANSI colours.
    On,
}

/// How much to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Only what needs action.
    Quiet,
    /// A line for everything that applies, details for what needs action.
    Normal,
    /// Everything, with evidence.
    Verbose,
}

fn paint(status: Status, colour: Colour) -> String {
    let word = format!("{:>5}", status.word());
    if colour == Colour::Off {
        return word;
    }
    let code = match status {
        Status::Pass => "32",
        Status::Skipped => "2",
        Status::Info => "36",
        Status::Unknown => "35",
        Status::Warning => "33",
        Status::Error | Status::Fatal => "1;31",
    };
    format!("\x1b[{code}m{word}\x1b[0m")
}

/// Control characters in what the host says must not reach a terminal.
fn safe(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}

fn needs(needs: Needs) -> Option<&'static str> {
    match needs {
        Needs::Nothing => None,
        Needs::NewLogin => Some("a new login"),
        Needs::Reboot => Some("a reboot"),
        Needs::PowerCycle => Some("power off, then on"),
    }
}

/// Writes the report.
pub fn human(findings: &[Finding], colour: Colour, detail: Detail) -> String {
    let mut out = String::new();
    for finding in findings {
        let outcome = &finding.outcome;
        let bad = outcome.status >= Status::Warning;
        let shown = match detail {
            Detail::Quiet => bad,
            Detail::Normal => outcome.status != Status::Skipped,
            Detail::Verbose => true,
        };
        if !shown {
            continue;
        }
        let word = paint(outcome.status, colour);
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{word}  {:<24} {}", finding.id, safe(&outcome.summary));
        if !bad && detail != Detail::Verbose {
            continue;
        }
        for evidence in &outcome.read {
            let _ = writeln!(
                out,
                "         read   {}: {}",
                safe(&evidence.source),
                safe(&evidence.value)
            );
        }
        let _ = writeln!(out, "         why    {}", finding.why);
        if let Some(remedy) = &outcome.remedy {
            let _ = writeln!(out, "         do     {}", safe(&remedy.text));
            for command in &remedy.commands {
                let _ = writeln!(out, "                $ {}", safe(command));
            }
            if let Some(file) = &remedy.file {
                let _ = writeln!(out, "         file   {}", safe(file));
            }
            if let Some(after) = needs(remedy.needs) {
                let _ = writeln!(out, "         needs  {after}");
            }
        }
    }
    if detail != Detail::Quiet {
        let _ = writeln!(out, "{}", summary(findings));
    }
    out
}

fn summary(findings: &[Finding]) -> String {
    let count =
        |status: Status| findings.iter().filter(|finding| finding.outcome.status == status).count();
    let works = findings
        .iter()
        .find(|finding| finding.id == "kvm.run")
        .map(|finding| finding.outcome.status);
    let first = match works {
        Some(Status::Pass) => "KVM guests run on this host",
        Some(Status::Fatal) => "no KVM guest runs on this host",
        _ => "done",
    };
    format!(
        "{first}: {} checks, {} ok, {} to know, {} unknown, {} warnings, {} errors, {} do not apply",
        findings.len(),
        count(Status::Pass),
        count(Status::Info),
        count(Status::Unknown),
        count(Status::Warning),
        count(Status::Error) + count(Status::Fatal),
        count(Status::Skipped),
    )
}
