//! `-daemonize`: the program returns when the machine is ready, and the machine runs on without it.
//!
//! The process forks before it has threads. The parent waits for one line from the child: either that the
//! machine is ready, or why it is not; messages meanwhile go to the caller's standard error as usual. So
//! whoever calls gets the right exit status and the right text, and finds sockets, PID file and pseudo
//! terminals in place when the program returns.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::fd::AsFd;

use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, dup2_stderr, dup2_stdin, dup2_stdout, fork, setsid};

/// What the child says when the machine is ready.
const READY: u8 = b'+';

/// Who we are after the fork.
pub enum Side {
    /// The caller's process; it ends with this status.
    Parent(u8),
    /// The machine's process.
    Child(Daemon),
}

/// The machine's process, before the machine is ready.
pub struct Daemon(std::io::PipeWriter);

/// Splits the process. Must be called before there are threads.
///
/// # Errors
/// When there can be no further process.
#[allow(unsafe_code)]
pub fn split() -> vmm::Result<Side> {
    let (mut reader, writer) = std::io::pipe().map_err(|e| vmm::Error::io(&e))?;
    // SAFETY: there is one thread only: nothing has been started yet, and the child goes on as the parent
    // would have, with all of the parent's memory in a consistent state.
    match unsafe { fork() }.map_err(|e| vmm::Error::from(e).context("-daemonize: cannot fork"))? {
        ForkResult::Child => {
            drop(reader);
            setsid()
                .map_err(|e| vmm::Error::from(e).context("-daemonize: no session of its own"))?;
            Ok(Side::Child(Daemon(writer)))
        }
        ForkResult::Parent { child } => {
            drop(writer);
            let mut said = [0];
            let ready = reader.read_exact(&mut said).is_ok() && said[0] == READY;
            if !ready {
                // It has said why on standard error; it has ended, or does so now.
                let _ = waitpid(child, None);
            }
            Ok(Side::Parent(u8::from(!ready)))
        }
    }
}

impl Daemon {
    /// The machine is ready: standard input, output and error go nowhere from here on, and the parent
    /// returns. The working folder stays: images may have to be opened again by their relative names.
    ///
    /// # Errors
    /// When `/dev/null` cannot be opened.
    pub fn ready(mut self) -> vmm::Result<()> {
        let null = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/null")
            .map_err(|e| vmm::Error::io(&e).context("-daemonize: /dev/null"))?;
        dup2_stdin(null.as_fd()).map_err(vmm::Error::from)?;
        dup2_stdout(null.as_fd()).map_err(vmm::Error::from)?;
        // Errors until here still reach the caller.
        self.0.write_all(&[READY]).map_err(|e| vmm::Error::io(&e))?;
        dup2_stderr(null.as_fd()).map_err(vmm::Error::from)?;
        Ok(())
    }
}
