//! Where the characters of serial ports and consoles come from and go to.
//!
//! A back end is a pair of file descriptors. Writing never blocks a vCPU for long: a reader that does
//! not keep up loses characters, and the guest goes on.
//!
//! * [`input`]: the thread that carries characters to the guest, and the Ctrl-a keys.

pub mod input;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::devices::{Discard, Output};
use crate::{Error, Result};

/// A back end as plain data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CharConfig {
    /// Nothing is connected; output is lost.
    #[default]
    Null,
    /// The caller's standard input and output.
    Stdio {
        /// Ctrl-a is the escape key (`mon:stdio`, `-nographic`).
        keys: bool,
    },
    /// Output goes to a file.
    File(PathBuf),
    /// A new pseudo terminal.
    Pty,
}

/// What the caller gives for [`CharConfig::Stdio`].
#[derive(Debug, Default)]
pub struct Standard {
    /// To be read.
    pub input: Option<OwnedFd>,
    /// To be written.
    pub output: Option<OwnedFd>,
}

/// An open back end.
pub struct Opened {
    /// Takes the guest's characters.
    pub output: Box<dyn Output>,
    /// Gives characters for the guest.
    pub input: Option<OwnedFd>,
    /// Ctrl-a is the escape key.
    pub keys: bool,
    /// What to tell people about it (the name of a pseudo terminal).
    pub note: Option<String>,
}

/// Opens a back end for the device named `label`.
pub fn open(config: &CharConfig, standard: &mut Standard, label: &str) -> Result<Opened> {
    let plain = |output: Box<dyn Output>| Opened { output, input: None, keys: false, note: None };
    match config {
        CharConfig::Null => Ok(plain(Box::new(Discard))),
        CharConfig::Stdio { keys } => {
            let output = standard.output.take().ok_or_else(|| {
                Error::invalid(format!("{label}: cannot use stdio by multiple character devices"))
                    .hint("Connect one device to stdio, the others elsewhere (-serial null)")
            })?;
            let input = standard.input.take();
            Ok(Opened {
                output: Box::new(FdOutput(File::from(output))),
                input,
                keys: *keys,
                note: None,
            })
        }
        CharConfig::File(path) => {
            let shown = path.display().to_string();
            let mut options = OpenOptions::new();
            let file = options.write(true).create(true).truncate(true).open(path).map_err(|e| {
                Error::io(&e).context(format!("{label}: cannot open '{shown}'")).at_path(&shown)
            })?;
            Ok(plain(Box::new(FdOutput(file))))
        }
        CharConfig::Pty => pty(label),
    }
}

fn pty(label: &str) -> Result<Opened> {
    use nix::fcntl::OFlag;
    use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
    let explain =
        |e: nix::Error| Error::from(e).context(format!("{label}: cannot make a pseudo terminal"));
    let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY).map_err(explain)?;
    grantpt(&master).map_err(explain)?;
    unlockpt(&master).map_err(explain)?;
    let name = ptsname_r(&master).map_err(explain)?;
    let input = master.as_fd().try_clone_to_owned().map_err(|e| Error::io(&e))?;
    let output = master.as_fd().try_clone_to_owned().map_err(|e| Error::io(&e))?;
    Ok(Opened {
        output: Box::new(FdOutput(File::from(output))),
        input: Some(input),
        keys: false,
        note: Some(format!("char device redirected to {name} (label {label})")),
    })
}

/// Writes to a descriptor, and drops what it does not take within a moment.
struct FdOutput(File);

impl Output for FdOutput {
    fn put(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let mut set = [PollFd::new(self.0.as_fd(), PollFlags::POLLOUT)];
            match poll(&mut set, PollTimeout::from(100u8)) {
                Err(nix::errno::Errno::EINTR) => continue,
                Ok(1..) => {}
                _ => return,
            }
            match self.0.write(bytes) {
                Ok(n) if n > 0 => bytes = &bytes[n..],
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                _ => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stdio_can_be_given_once() {
        let null = || Some(OwnedFd::from(File::open("/dev/null").unwrap()));
        let mut standard = Standard { input: null(), output: null() };
        let config = CharConfig::Stdio { keys: true };
        assert!(open(&config, &mut standard, "serial0").unwrap().keys);
        let e = open(&config, &mut standard, "serial1").err().unwrap();
        assert!(e.to_string().contains("multiple"), "{e}");
    }

    #[test]
    fn files_and_terminals() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut o = open(&CharConfig::File(path.clone()), &mut Standard::default(), "s").unwrap();
        o.output.put(b"hello");
        assert_eq!(std::fs::read(&path).unwrap(), b"hello");
        let missing =
            open(&CharConfig::File("/nonexistent/x".into()), &mut Standard::default(), "s");
        assert!(missing.err().unwrap().report().contains("/nonexistent/x"));
        if let Ok(o) = open(&CharConfig::Pty, &mut Standard::default(), "serial0") {
            assert!(o.note.unwrap().contains("/dev/pts/"));
        }
    }
}
