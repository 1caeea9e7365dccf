//! Directly on `/dev/kvm`: from exec to the first `KVM_RUN`.
//!
//! strace stops the program at `execve` and `ioctl` only (a seccomp filter lets all other calls pass at full speed)
//! and notes the time of each; the first `KVM_RUN` less the last `execve` is the start-up. The program is then
//! killed. Its guest is one that stays for longer.

use super::{Figure, median};
use crate::tools::find;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A program and how it is called.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Column of the table.
    pub who: String,
    /// What to run: program and arguments.
    pub line: Vec<String>,
}

const LIMIT: Duration = Duration::from_secs(60);

/// Ends and reaps what it holds.
struct Traced(Child);

impl Drop for Traced {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs all candidates in turn, `rounds` times; the medians in milliseconds, and the calls of `ioctl` before the guest.
///
/// # Errors
/// A sentence when strace is missing or a program never runs its guest.
pub fn measure(candidates: &[Candidate], rounds: usize, dir: &Path) -> Result<Vec<Figure>, String> {
    let strace = find("strace").ok_or("no strace here: apt-get install strace")?;
    let mut times = vec![Vec::new(); candidates.len()];
    let mut calls = vec![Vec::new(); candidates.len()];
    // The first round fills the page cache.
    for round in 0..=rounds {
        for (i, candidate) in candidates.iter().enumerate() {
            let (milliseconds, ioctls) = once(&strace, candidate, dir)?;
            if round > 0 {
                times[i].push(milliseconds);
                calls[i].push(ioctls);
            }
        }
    }
    let mut figures = Vec::new();
    for (i, candidate) in candidates.iter().enumerate() {
        let mut add = |what: &str, values: &mut [f64]| {
            let value = median(values);
            figures.push(Figure { what: what.into(), who: candidate.who.clone(), value });
        };
        add("start", &mut times[i]);
        add("ioctls", &mut calls[i]);
    }
    Ok(figures)
}

fn once(strace: &PathBuf, candidate: &Candidate, dir: &Path) -> Result<(f64, f64), String> {
    let log = dir.join("strace");
    let _ = std::fs::remove_file(&log);
    let child = Command::new(strace)
        .args([
            "-f",
            "--seccomp-bpf",
            "-ttt",
            "-e",
            "trace=execve,ioctl",
            "-e",
            "signal=none",
            "-o",
        ])
        .arg(&log)
        .args(&candidate.line)
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("{}: {e}", strace.display()))?;
    let mut traced = Traced(child);
    let began = Instant::now();
    let text = loop {
        let over = matches!(traced.0.try_wait(), Ok(Some(_)));
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        if text.contains("KVM_RUN") {
            break text;
        }
        if over || began.elapsed() > LIMIT {
            kill_all(&text);
            let mut said = String::new();
            if let Some(pipe) = traced.0.stderr.as_mut().filter(|_| over) {
                let _ = std::io::Read::read_to_string(pipe, &mut said);
            }
            return Err(format!("{} never ran its guest: {}", candidate.who, said.trim()));
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    kill_all(&text);
    let _ = traced.0.wait();
    parse(&text).ok_or_else(|| format!("{}: strace's output has no times", candidate.who))
}

/// The traced processes; strace ends with the last of them.
fn kill_all(log: &str) {
    let first = log.lines().next().and_then(|line| line.split_whitespace().next());
    if let Some(pid) = first.and_then(|word| word.parse::<i32>().ok()).filter(|pid| *pid > 1) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// Milliseconds from the last `execve` to the first `KVM_RUN`, and how many KVM calls are between.
fn parse(log: &str) -> Option<(f64, f64)> {
    let mut began = None;
    let mut calls = 0.0;
    for line in log.lines() {
        let mut words = line.split_whitespace();
        let time = words.nth(1)?.parse::<f64>().ok()?;
        let call = words.next()?;
        if call.starts_with("execve(") {
            (began, calls) = (Some(time), 0.0);
        } else if line.contains("KVM_RUN") {
            return Some(((time - began?) * 1000.0, calls));
        } else if call.starts_with("ioctl(") && line.contains("KVM_") {
            calls += 1.0;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn times_of_a_trace() {
        let log = "10 100.000000 execve(\"/bin/sh\", [\"sh\"], 0x0 /* 3 vars */) = 0\n\
                   10 100.500000 execve(\"/x\", [\"x\"], 0x0 /* 3 vars */) = 0\n\
                   10 100.501000 ioctl(1, TCGETS, 0x0) = -1 ENOTTY\n\
                   10 100.502000 ioctl(3, KVM_CREATE_VM, 0) = 4\n\
                   11 100.508000 ioctl(5, KVM_RUN <unfinished ...>\n";
        let (time, calls) = parse(log).unwrap_or_default();
        assert!((time - 8.0).abs() < 0.01, "{time}");
        assert!((calls - 1.0).abs() < f64::EPSILON);
        assert_eq!(parse("10 1.0 execve(\"/x\") = 0\n"), None);
    }
}
