//! One child process: run under limits, its output caught, its cost measured.
//!
//! Invariants:
//! * A child that outlives its time limit is killed with its whole process group and reaped; no call
//!   returns while the child lives.
//! * Output goes to unlinked files, not pipes, so that a talkative child never blocks and nothing of
//!   ours runs while the child is being measured.
//! * Costs come from the kernel at the child's death: `wait4` for CPU and memory, `/proc/PID/io` of
//!   the not yet reaped child for bytes. Peak memory as Linux reports it is never below the
//!   spawning process's own at the time of the fork, so a measuring process must stay small.

#![allow(unsafe_code)]

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// At most this much of each output stream is kept.
const OUTPUT_LIMIT: u64 = 4 << 20;

/// What to run and within which bounds.
#[derive(Debug, Clone)]
pub struct Invocation {
    /// Program file.
    pub program: PathBuf,
    /// Arguments, without the program's name.
    pub args: Vec<OsString>,
    /// Working directory.
    pub dir: PathBuf,
    /// Variables set on top of a plain environment (`LC_ALL=C`, `TZ=UTC`).
    pub env: Vec<(OsString, OsString)>,
    /// The child and its group are killed after this time.
    pub time_limit: Duration,
}

impl Invocation {
    /// A call of `program` in `dir` with 30 seconds to live.
    pub fn new(program: impl Into<PathBuf>, dir: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            dir: dir.into(),
            env: Vec::new(),
            time_limit: Duration::from_secs(30),
        }
    }

    /// Appends arguments.
    #[must_use]
    pub fn args<I, S>(mut self, args: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: Into<OsString>,
    {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets one environment variable.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Sets the time limit.
    #[must_use]
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = limit;
        self
    }

    /// Runs it to its end. Should this thread die before, the child is killed.
    ///
    /// # Errors
    /// When the program cannot be started or waited for; a failing program is not an error here.
    pub fn run(&self) -> io::Result<Outcome> {
        let mut out = tempfile::tempfile()?;
        let mut err = tempfile::tempfile()?;
        let mut command = Command::new(&self.program);
        command
            .args(&self.args)
            .current_dir(&self.dir)
            .env("LC_ALL", "C")
            .env("TZ", "UTC")
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::from(out.try_clone()?))
            .stderr(Stdio::from(err.try_clone()?))
            .process_group(0);
        die_with_us(&mut command);
        let start = Instant::now();
        let child = command.spawn().map_err(|e| {
            io::Error::new(e.kind(), format!("cannot start {}: {e}", self.program.display()))
        })?;
        let pid = libc::pid_t::try_from(child.id()).map_err(io::Error::other)?;
        let timed_out = !ended_within(pid, self.time_limit)?;
        if timed_out {
            kill_group(pid);
            while !ended_within(pid, Duration::from_secs(60))? {}
        }
        let wall = start.elapsed();
        let written = bytes_written(pid);
        // Grandchildren may still write to our files. Not reaped yet, so the number is still ours.
        kill_group(pid);
        let (end, usage) = reap(pid)?;
        Ok(Outcome {
            end: if timed_out { End::TimedOut } else { end },
            stdout: slurp(&mut out)?,
            stderr: slurp(&mut err)?,
            cost: Cost {
                wall,
                user: time_of(usage.ru_utime),
                system: time_of(usage.ru_stime),
                peak_rss: u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024,
                written,
            },
        })
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It exited with this code.
    Exit(i32),
    /// A signal killed it.
    Signal(i32),
    /// We killed it at its time limit.
    TimedOut,
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exit(code) => write!(f, "exit {code}"),
            Self::Signal(number) => write!(f, "killed by signal {number}"),
            Self::TimedOut => write!(f, "killed at its time limit"),
        }
    }
}

/// What a process cost.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cost {
    /// From the spawn to the death.
    pub wall: Duration,
    /// CPU time in user mode, all threads.
    pub user: Duration,
    /// CPU time in the kernel, all threads.
    pub system: Duration,
    /// Peak resident memory in bytes.
    pub peak_rss: u64,
    /// Bytes the process caused to be written to storage, where the kernel tells.
    pub written: Option<u64>,
}

impl Cost {
    /// User and system CPU time together.
    #[must_use]
    pub fn cpu(&self) -> Duration {
        self.user + self.system
    }
}

/// A finished process.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// Standard output, its first 4 MiB.
    pub stdout: Vec<u8>,
    /// Standard error, its first 4 MiB.
    pub stderr: Vec<u8>,
    /// What it cost.
    pub cost: Cost,
}

impl Outcome {
    /// Whether it exited with code 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.end == End::Exit(0)
    }

    /// Standard output as text.
    #[must_use]
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    #[must_use]
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

/// Runs `program args…` in `dir` and demands success; the standard output comes back.
///
/// # Errors
/// A sentence naming the command and its standard error.
pub fn must(program: &Path, dir: &Path, args: &[&str]) -> Result<String, String> {
    let call = Invocation::new(program, dir).args(args).time_limit(Duration::from_secs(600));
    let outcome = call.run().map_err(|e| e.to_string())?;
    if outcome.success() {
        Ok(outcome.out())
    } else {
        Err(format!(
            "{} {}: {}: {}",
            program.display(),
            args.join(" "),
            outcome.end,
            outcome.err().trim()
        ))
    }
}

fn slurp(file: &mut File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.by_ref().take(OUTPUT_LIMIT).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn time_of(value: libc::timeval) -> Duration {
    Duration::from_secs(u64::try_from(value.tv_sec).unwrap_or(0))
        + Duration::from_micros(u64::try_from(value.tv_usec).unwrap_or(0))
}

/// The child is killed when the thread that started it, and waits for it, goes away.
fn die_with_us(command: &mut Command) {
    // SAFETY: between fork and exec only prctl is called, which is async-signal-safe.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
}

/// Waits until `pid` has ended (not yet reaped) or the time is up; says whether it ended.
fn ended_within(pid: libc::pid_t, limit: Duration) -> io::Result<bool> {
    // SAFETY: pidfd_open takes two integers; `pid` is our own child and not reaped yet, so the
    // number cannot belong to another process.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor and nobody else knows it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let millis = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
        let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: `poll` is one valid pollfd that lives through the call.
        match unsafe { libc::poll(&raw mut poll, 1, millis) } {
            0 => return Ok(false),
            n if n > 0 => return Ok(true),
            _ => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

fn kill_group(pid: libc::pid_t) {
    // SAFETY: kill takes two integers; the group was made for this child alone (process_group(0)).
    unsafe { libc::kill(-pid, libc::SIGKILL) };
}

/// `write_bytes` less `cancelled_write_bytes` of a process that has ended and is not reaped:
/// pages dirtied for storage, which counts a byte written twice to the cache once.
fn bytes_written(pid: libc::pid_t) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
    let field = |name: &str| -> Option<u64> {
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
    };
    let dropped = field("cancelled_write_bytes:").unwrap_or(0);
    field("write_bytes:").map(|bytes| bytes.saturating_sub(dropped))
}

fn reap(pid: libc::pid_t) -> io::Result<(End, libc::rusage)> {
    let mut status = 0;
    // SAFETY: rusage is plain integers, for which all zeroes are valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: both pointers are to live locals of the right types.
        let got = unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) };
        if got == pid {
            break;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    let end = if libc::WIFSIGNALED(status) {
        End::Signal(libc::WTERMSIG(status))
    } else {
        End::Exit(libc::WEXITSTATUS(status))
    };
    Ok((end, usage))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Invocation {
        Invocation::new("/bin/sh", "/").args(["-c", script])
    }

    #[test]
    fn says_how_it_ended() {
        assert_eq!(sh("exit 7").run().unwrap().end, End::Exit(7));
        assert_eq!(sh("kill -TERM $$").run().unwrap().end, End::Signal(libc::SIGTERM));
        let both = sh("echo a; echo b >&2").run().unwrap();
        assert_eq!((both.out().as_str(), both.err().as_str()), ("a\n", "b\n"));
    }

    #[test]
    fn kills_the_whole_group_at_the_limit() {
        let start = Instant::now();
        let call = sh("sleep 100 & sleep 100").time_limit(Duration::from_millis(200));
        assert_eq!(call.run().unwrap().end, End::TimedOut);
        assert!(start.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn counts_what_was_written() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let call = Invocation::new("/bin/sh", dir.path())
            .args(["-c", "exec head -c 8388608 /dev/zero > f"]);
        let cost = call.run().unwrap().cost;
        // Some file systems do not account writes; where they do, the number is the file's.
        if let Some(bytes) = cost.written.filter(|bytes| *bytes > 0) {
            assert!((8 << 20..9 << 20).contains(&bytes), "{bytes}");
        }
        assert!(cost.peak_rss > 0);
    }
}
