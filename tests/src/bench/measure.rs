//! Running pairs: reference and ours in turn, on files in the same state.
//!
//! Before each run outputs are removed, files that the job changes are copied afresh, and the file
//! system is synced, so that no run pays for the writes of the one before.

use super::input;
use super::jobs::{Job, Verify};
use crate::process::{Cost, End, Invocation, Outcome, must};
use crate::tools::find;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The programs and the place of a benchmark.
#[derive(Debug, Clone)]
pub struct Setting {
    /// Ours.
    pub rimg: PathBuf,
    /// Both wait until a converted image is on disk; otherwise neither does.
    pub durable: bool,
    /// The reference.
    pub qemu_img: PathBuf,
    /// Where the images are.
    pub dir: PathBuf,
    /// Bytes of files in the large input.
    pub payload: u64,
    /// Rounds, unless a job has fewer.
    pub rounds: usize,
}

/// What one round of one job cost.
#[derive(Debug, Clone, Copy)]
pub struct Round {
    /// The reference.
    pub theirs: Cost,
    /// Ours.
    pub ours: Cost,
    /// The plain copy, for jobs that have that limit.
    pub limit: Option<Cost>,
}

/// Measures one job.
///
/// # Errors
/// A sentence when a program fails, or when the verification finds a wrong result.
pub fn measure(setting: &Setting, job: &Job) -> Result<Vec<Round>, String> {
    for name in job.inputs.iter().chain(job.fresh.iter().map(|(from, _)| from)) {
        input::derive(&setting.qemu_img, &setting.dir, name, setting.payload)?;
    }
    let mut rounds: Vec<Round> = Vec::new();
    // The first pair fills the page cache and is verified; jobs of minutes cannot afford an extra one.
    let mut warm = job.rounds != usize::MAX;
    let mut verified = false;
    while rounds.len() < setting.rounds.min(job.rounds) {
        let (theirs, said) = run(setting, job, &setting.qemu_img)?;
        let (ours, saying) = run(setting, job, &setting.rimg)?;
        if !std::mem::replace(&mut verified, true) {
            verify(setting, job, [&said, &saying])?;
        }
        if !std::mem::replace(&mut warm, true) {
            continue;
        }
        let limit = job.limit.map(|name| plain_copy(setting, name)).transpose()?;
        rounds.push(Round { theirs, ours, limit });
    }
    clean(setting, job);
    Ok(rounds)
}

fn run(setting: &Setting, job: &Job, program: &Path) -> Result<(Cost, Outcome), String> {
    clean(setting, job);
    for (from, to) in job.fresh {
        input::copy(&setting.dir, from, to)?;
    }
    settle(&setting.dir)?;
    let mut total = Cost::default();
    let mut last = None;
    for _ in 0..job.repeat {
        let line = match job.line.strip_prefix("convert ") {
            Some(rest) if setting.durable => format!("convert -t writeback {rest}"),
            _ => job.line.to_owned(),
        };
        let call = Invocation::new(program, &setting.dir)
            .args(line.split(' '))
            .time_limit(Duration::from_secs(1800));
        let outcome = call.run().map_err(|e| e.to_string())?;
        if outcome.end != End::Exit(0) {
            let said = outcome.out() + &outcome.err();
            return Err(format!(
                "{} {}: {}: {}",
                program.display(),
                job.line,
                outcome.end,
                said.trim()
            ));
        }
        total = add(total, outcome.cost);
        last = Some(outcome);
    }
    last.map(|outcome| (total, outcome)).ok_or_else(|| format!("{}: no runs", job.name))
}

fn add(sum: Cost, one: Cost) -> Cost {
    Cost {
        wall: sum.wall + one.wall,
        user: sum.user + one.user,
        system: sum.system + one.system,
        peak_rss: sum.peak_rss.max(one.peak_rss),
        written: one.written.map(|bytes| bytes + sum.written.unwrap_or(0)),
    }
}

fn plain_copy(setting: &Setting, name: &str) -> Result<Cost, String> {
    let cp = find("cp").ok_or("no cp here")?;
    let _ = std::fs::remove_file(setting.dir.join("copy"));
    settle(&setting.dir)?;
    let call = Invocation::new(cp, &setting.dir)
        .args(["--sparse=always", "--reflink=never", name, "copy"])
        .time_limit(Duration::from_secs(1800));
    let outcome = call.run().map_err(|e| e.to_string())?;
    let _ = std::fs::remove_file(setting.dir.join("copy"));
    if outcome.success() { Ok(outcome.cost) } else { Err(format!("cp {name}: {}", outcome.err())) }
}

fn clean(setting: &Setting, job: &Job) {
    for name in job.outputs {
        let _ = std::fs::remove_file(setting.dir.join(name));
    }
}

fn settle(dir: &Path) -> Result<(), String> {
    let file = std::fs::File::open(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    nix::unistd::syncfs(&file).map_err(|e| format!("{}: {e}", dir.display()))
}

/// Looks at what our run has left (the reference's is gone by then).
fn verify(setting: &Setting, job: &Job, said: [&Outcome; 2]) -> Result<(), String> {
    let judge = |args: &[&str]| {
        must(&setting.qemu_img, &setting.dir, args)
            .map(drop)
            .map_err(|why| format!("{}: our result is wrong: {why}", job.name))
    };
    match job.verify {
        Verify::Same((a, a_format), (b, b_format)) => {
            judge(&["compare", "-f", a_format, "-F", b_format, a, b])?;
            // qemu-img has no check for these.
            if matches!(b_format, "raw" | "vpc" | "qcow") {
                return Ok(());
            }
            judge(&["check", "-f", b_format, b])
        }
        Verify::Check(name) => judge(&["check", "-f", "qcow2", name]),
        Verify::Output => {
            let [theirs, ours] =
                said.map(|outcome| serde_json::from_slice::<Value>(&outcome.stdout).ok());
            match (theirs, ours) {
                (Some(theirs), Some(ours)) if theirs == ours => Ok(()),
                _ => Err(format!("{}: the two programs print different JSON", job.name)),
            }
        }
        Verify::Exit => Ok(()),
    }
}
