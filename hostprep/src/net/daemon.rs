//! Programs that run on for a network (dnsmasq, a DHCP client): found again by pid file and command line.
#![allow(unsafe_code)]

use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// The process that the pid file names, when it still is that program: pids are used again, and pid files stay
/// behind, so the command line must hold the pid file's name.
pub fn running(pid_file: &str) -> Option<i32> {
    let pid: i32 =
        std::fs::read_to_string(pid_file).ok()?.trim().parse().ok().filter(|pid| *pid > 1)?;
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let line = String::from_utf8_lossy(&line).into_owned();
    line.contains(pid_file).then_some(pid)
}

/// Stops it and waits; one that is gone is fine.
pub fn stop(pid_file: &str) -> Result<()> {
    if let Some(pid) = running(pid_file) {
        // SAFETY: sends a signal; `running` made sure whom it meets.
        unsafe { libc::kill(pid, libc::SIGTERM) };
        let start = Instant::now();
        while running(pid_file) == Some(pid) {
            if start.elapsed() > Duration::from_secs(5) {
                return Err(Error::host(format!("process {pid} does not end")).at(pid_file));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
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
