//! Images that must be refused, or read within seconds and little memory, and never crash a program.
//!
//! A refusal by `convert` names the file: in a chain or a directory of hundreds that is what people need.
//! The manifest's note says what a reader must do with each ([`Expect`]); the bounds are the same for all.

use crate::corpus::{Corpus, Row};
use crate::process::{End, Invocation, Outcome};
use std::path::Path;
use std::time::Duration;

/// No command may take longer.
pub const TIME_LIMIT: Duration = Duration::from_secs(10);
/// No command may hold more memory.
pub const MEMORY_LIMIT: u64 = 256 << 20;

/// What a reader must do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// `info` and `convert` fail.
    RefusedAtOpen,
    /// `convert` fails; `info` may describe the header.
    RefusedByConvert,
    /// `convert` fails or `check` reports.
    FailsOrReports,
    /// Nothing but the bounds.
    Bounded,
}

/// Reads the note of a manifest row.
#[must_use]
pub fn expectation(row: &Row) -> Expect {
    let note = &row.note;
    let says = |words: &str| note.contains(words);
    if says("refuse at open") || says("-> refuse") || says("qemu refuses") {
        // Where the reference reads the header and fails later, either place is right.
        return if says("10.0.2: info ok") {
            Expect::RefusedByConvert
        } else {
            Expect::RefusedAtOpen
        };
    }
    if says("must fail or report corruption") {
        return Expect::FailsOrReports;
    }
    let by_convert = [
        "EIO on read",
        "error, not recursion",
        "must fail cleanly",
        "as above",
        "must not open /etc/passwd",
        "protocol in extent name",
        "parent hint to itself",
    ];
    if by_convert.iter().any(|words| says(words)) {
        return Expect::RefusedByConvert;
    }
    Expect::Bounded
}

/// Gives one image to every reading command, in the empty directory `dir`; complaints come back.
///
/// # Errors
/// A sentence when the image cannot be laid out.
pub fn challenge(
    rimg: &Path,
    corpus: &Corpus,
    row: &Row,
    dir: &Path,
) -> Result<Vec<String>, String> {
    corpus.unpack(row, dir)?;
    let name = row.name();
    close_the_cycle(dir, name)?;
    let format: Vec<&str> = row.driver().map(|driver| vec!["-f", driver]).unwrap_or_default();
    let mut complaints = Vec::new();
    let mut run = |words: &[&str]| -> Option<End> {
        let args: Vec<&str> =
            words[..1].iter().chain(&format).chain(&words[1..]).copied().collect();
        let call = Invocation::new(rimg, dir).args(args).time_limit(TIME_LIMIT);
        match call.run() {
            Ok(outcome) => {
                complaints.extend(unbounded(&words.join(" "), &outcome));
                if words[0] == "convert"
                    && outcome.end == End::Exit(1)
                    && !outcome.err().contains(name)
                {
                    complaints
                        .push(format!("convert does not name the file: {}", outcome.err().trim()));
                }
                Some(outcome.end)
            }
            Err(error) => {
                complaints.push(error.to_string());
                None
            }
        }
    };
    let info = run(&["info", name]);
    run(&["info", "--output=json", "--backing-chain", name]);
    run(&["map", "--output=json", name]);
    run(&["measure", "-O", "qcow2", name]);
    let check = run(&["check", name]);
    let convert = run(&["convert", "-O", "raw", name, "out.raw"]);
    run(&["convert", "-O", "qcow2", name, "out.qcow2"]);
    run(&["compare", name, name]);
    run(&["snapshot", "-l", name]);
    run(&["check", "-r", "all", name]);
    run(&["resize", name, "64M"]);
    let ok = Some(End::Exit(0));
    let fault = match expectation(row) {
        Expect::RefusedAtOpen if info == ok => Some("info accepts it"),
        Expect::RefusedAtOpen | Expect::RefusedByConvert if convert == ok => {
            Some("convert accepts it")
        }
        Expect::RefusedByConvert if row.note.contains("info works") && info != ok => {
            Some("info refuses it")
        }
        Expect::FailsOrReports if convert == ok && check == ok => {
            Some("neither convert nor check finds anything")
        }
        _ => None,
    };
    complaints.extend(fault.map(|fault| format!("{fault}; the manifest says: {}", row.note)));
    Ok(complaints)
}

/// What a command did that no command may do, whatever it was given.
fn unbounded(command: &str, outcome: &Outcome) -> Vec<String> {
    let mut found = Vec::new();
    let stderr = outcome.err();
    match outcome.end {
        End::Exit(101) | End::Signal(_) | End::TimedOut => {
            found.push(format!("{command}: {}", outcome.end));
        }
        End::Exit(code) if code != 0 && stderr.trim().is_empty() && outcome.stdout.is_empty() => {
            found.push(format!("{command}: exit {code} without a word"));
        }
        End::Exit(_) => {}
    }
    if stderr.contains("panicked") {
        found.push(format!("{command}: panicked: {}", stderr.trim()));
    }
    if outcome.cost.peak_rss > MEMORY_LIMIT {
        found.push(format!("{command}: {} MiB of memory", outcome.cost.peak_rss >> 20));
    }
    found
}

/// The corpus holds one half of a cycle `a -> b -> a`; makes the other.
fn close_the_cycle(dir: &Path, name: &str) -> Result<(), String> {
    if !name.contains("backing-cycle-a") {
        return Ok(());
    }
    let other = name.replace("cycle-a", "cycle-b");
    let mut bytes = std::fs::read(dir.join(name)).map_err(|e| format!("{name}: {e}"))?;
    let Some(at) = bytes.windows(other.len()).position(|window| window == other.as_bytes()) else {
        return Err(format!("{name} does not name {other}"));
    };
    bytes[at..at + other.len()].copy_from_slice(name.as_bytes());
    std::fs::write(dir.join(&other), bytes).map_err(|e| format!("{other}: {e}"))
}
