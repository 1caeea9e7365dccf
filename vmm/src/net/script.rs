//! Scripts that set interfaces up and take them down.
//!
//! The script for the end is started at the beginning, in the hands of a shell that waits for a word on
//! its standard input: when the machine ends, this process is confined (sandbox, another user) and could
//! start nothing any more. When this process is killed, the shell ends without running the script, as
//! with QEMU.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};

use crate::{Error, Result};

/// Waits for a word, then becomes the script.
const WAIT: &str = r#"read -r word && [ "$word" = go ] && exec "$0" "$1"; exit 0"#;

/// Runs a network script with the interface's name.
///
/// # Errors
/// Say in full what to do.
pub fn run(script: &Path, interface: &str) -> Result<()> {
    let status = Command::new(script)
        .arg(interface)
        .stdin(Stdio::null())
        .status()
        .map_err(|e| could_not_launch(&e, script, interface))?;
    judge(status, script, interface)
}

fn judge(status: ExitStatus, script: &Path, interface: &str) -> Result<()> {
    if status.success() {
        return Ok(());
    }
    let shown = script.display();
    Err(Error::invalid(format!("network script {shown} {interface} failed ({status})"))
        .at_path(shown.to_string())
        .hint(advice(script, interface)))
}

fn advice(script: &Path, interface: &str) -> String {
    format!(
        "Make {} executable (it gets the interface's name as its argument), or use script=no,downscript=no \
         and set {interface} up yourself",
        script.display()
    )
}

fn could_not_launch(e: &std::io::Error, script: &Path, interface: &str) -> Error {
    let shown = script.display().to_string();
    Error::io(e)
        .context(format!("could not launch network script {shown}"))
        .at_path(&shown)
        .hint(advice(script, interface))
}

/// A script that will take an interface down.
#[derive(Debug)]
pub struct Downscript {
    script: PathBuf,
    interface: String,
    shell: Mutex<Option<Child>>,
}

impl Downscript {
    /// Makes everything ready, so that [`Downscript::run`] needs no rights any more.
    ///
    /// # Errors
    /// When the script is no executable file.
    pub fn prepare(script: &Path, interface: &str) -> Result<Self> {
        nix::unistd::access(script, nix::unistd::AccessFlags::X_OK)
            .map_err(|e| could_not_launch(&e.into(), script, interface))?;
        let shell = Command::new("/bin/sh")
            .args(["-c", WAIT])
            .arg(script)
            .arg(interface)
            .stdin(Stdio::piped())
            // Ctrl-C on our terminal is for us.
            .process_group(0)
            .spawn()
            .map_err(|e| could_not_launch(&e, script, interface))?;
        Ok(Downscript {
            script: script.to_owned(),
            interface: interface.to_owned(),
            shell: Mutex::new(Some(shell)),
        })
    }

    /// Runs it, and waits for its end. A second call does nothing.
    pub fn run(&self) -> Result<()> {
        let taken = self.shell.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut shell) = taken else { return Ok(()) };
        let told = match shell.stdin.take() {
            Some(mut input) => input.write_all(b"go\n"),
            None => Ok(()),
        };
        let status = told
            .and_then(|()| shell.wait())
            .map_err(|e| could_not_launch(&e, &self.script, &self.interface))?;
        judge(status, &self.script, &self.interface)
    }
}

impl Drop for Downscript {
    fn drop(&mut self) {
        let taken = self.shell.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut shell) = taken {
            // The end of its input ends it.
            drop(shell.stdin.take());
            let _ = shell.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn scripts_run_with_the_name_and_failures_are_explained() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("s");
        let log = dir.path().join("log");
        std::fs::write(
            &script,
            format!("#!/bin/sh\necho $1 >> {}\n[ $1 != bad ]\n", log.display()),
        )
        .unwrap();
        let e = run(&script, "tap0").unwrap_err();
        assert!(e.report().contains("could not launch network script"), "{}", e.report());
        assert!(e.hints()[0].contains("script=no"), "{:?}", e.hints());
        assert!(Downscript::prepare(&script, "tap0").is_err());
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        run(&script, "tap0").unwrap();
        assert!(run(&script, "bad").unwrap_err().report().contains("failed"));
        let down = Downscript::prepare(&script, "tap1").unwrap();
        drop(Downscript::prepare(&script, "tap2").unwrap());
        down.run().unwrap();
        down.run().unwrap();
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "tap0\nbad\ntap1\n");
    }
}
