//! Programs that a change starts.
//!
//! Each has the lock of changes as its standard input: nobody reads from it, but the lock is held as long as the
//! program runs, whatever becomes of us. What we would have written to a standard input goes as an argument, so
//! a program never sees half of it.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use super::journal::Lock;
use crate::error::{Error, Result};

/// How to start programs: with the lock, when a change is going on.
#[derive(Debug, Clone, Default)]
pub struct Programs {
    lock: Option<Lock>,
}

impl Programs {
    /// Children hold this lock from now on; None for no lock.
    pub fn hold(&mut self, lock: Option<Lock>) {
        self.lock = lock;
    }

    fn start(&self, command: &[String]) -> Result<Output> {
        let [program, arguments @ ..] = command else {
            return Err(Error::usage("no program given"));
        };
        let failed =
            |error| Error::io(format!("{program} cannot be run"), Path::new(program), error);
        let input = match &self.lock {
            Some(lock) => Stdio::from(lock.share().map_err(failed)?),
            None => Stdio::null(),
        };
        Command::new(program)
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LC_ALL", "C")
            .stdin(input)
            .output()
            .map_err(|error| match error.kind() {
                std::io::ErrorKind::NotFound => {
                    Error::host(format!("the program {program} is not installed"))
                        .remedy(format!("install the package that has {program}"))
                }
                _ => failed(error),
            })
    }

    /// Runs a program with nothing of the caller's environment but PATH, and gives what it wrote to its standard
    /// output. An error holds what it wrote to standard error.
    pub fn output(&self, command: &[String]) -> Result<String> {
        let output = self.start(command)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let said = if said.trim().is_empty() { output.status.to_string() } else { said.into() };
        Err(Error::host(format!("`{}` failed: {}", command.join(" "), said.trim())))
    }

    /// Runs a program and waits.
    pub fn run(&self, command: &[String]) -> Result<()> {
        self.output(command).map(drop)
    }

    /// Runs a program that leaves another one behind (a daemon). A shell holds the lock until the program has
    /// ended, which is when its daemon can be found; the daemon itself does not hold it. (With one command only, a
    /// shell becomes that program instead of waiting for it; hence the second one.)
    pub fn start_daemon(&self, command: &[String]) -> Result<()> {
        let shell = ["/bin/sh", "-c", "\"$@\" </dev/null; exit $?", "sh"].map(str::to_owned);
        let whole: Vec<String> = shell.into_iter().chain(command.iter().cloned()).collect();
        let output = self.start(&whole)?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(Error::host(format!("`{}` failed: {}", command.join(" "), said.trim())))
    }
}
