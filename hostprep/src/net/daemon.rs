//! Programs that run on for a network (dnsmasq, a DHCP client): found again by pid file and command line.
#![allow(unsafe_code)]

use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

fn is_it(pid: i32, pid_file: &str) -> bool {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    pid > 1 && String::from_utf8_lossy(&line).contains(pid_file)
}

/// The process that the pid file names, when it still is that program: pids are used again, and pid files stay
/// behind, so the command line must hold the pid file's name. A program that was started and has not written its
/// pid file yet (we were killed in between) is found by its command line alone.
pub fn running(pid_file: &str) -> Option<i32> {
    let named = std::fs::read_to_string(pid_file).ok().and_then(|text| text.trim().parse().ok());
    if let Some(pid) = named.filter(|pid| is_it(*pid, pid_file)) {
        return Some(pid);
    }
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let entries = std::fs::read_dir("/proc").ok()?;
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    pids.into_iter().find(|pid| *pid != own && is_it(*pid, pid_file))
}

/// Whether it still lets go of what it has: its memory, and the command line with it, goes before its sockets do
/// (exit_mm and exit_files in the kernel's do_exit). A zombie has nothing left.
fn ending(pid: i32) -> bool {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name is in parentheses and may hold any; the state is behind them (proc_pid_stat(5)).
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    line.is_empty() && state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

/// Stops it and waits; one that is gone is fine. Where there are several (a daemon and who started it), all.
pub fn stop(pid_file: &str) -> Result<()> {
    let start = Instant::now();
    let mut told: Option<i32> = None;
    while let Some(pid) = running(pid_file).or(told.filter(|pid| ending(*pid))) {
        if told != Some(pid) {
            // SAFETY: sends a signal; `running` made sure whom it meets.
            unsafe { libc::kill(pid, libc::SIGTERM) };
            told = Some(pid);
        }
        if start.elapsed() > Duration::from_secs(10) {
            return Err(Error::host(format!("process {pid} does not end")).at(pid_file));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    remove(pid_file)
}

/// Removes a file that may have gone.
pub fn remove(path: &str) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io("cannot be removed", Path::new(path), error))
        }
        _ => Ok(()),
    }
}

/// Writes a file that is gone after a restart, and its folder.
pub fn write(path: &str, text: &str) -> Result<()> {
    let place = Path::new(path);
    let fail = |error| Error::io("cannot be written", place, error);
    if let Some(folder) = place.parent() {
        std::fs::create_dir_all(folder).map_err(fail)?;
    }
    std::fs::write(place, text).map_err(fail)
}
