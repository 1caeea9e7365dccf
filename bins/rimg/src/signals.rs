//! Signals as flags. A signal that was ignored when the program started stays ignored: `nohup`, and
//! shells for their background jobs, rely on that.
#![allow(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use signal_hook::flag;

/// Signals that end a job.
const ENDING: [i32; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

/// Sets the flag when the user wants the job to end, and `which` to the signal; a second time ends the
/// process.
pub fn on_end(end: &Arc<AtomicBool>, which: &Arc<AtomicUsize>) {
    for signal in ENDING.into_iter().filter(|s| !ignored(*s)) {
        // Without handlers the job still runs; it is only less polite when interrupted.
        let number = usize::try_from(signal).unwrap_or_default();
        let _ = flag::register_usize(signal, Arc::clone(which), number);
        let second = flag::register_conditional_default(signal, Arc::clone(end));
        let _ = second.and_then(|_| flag::register(signal, Arc::clone(end)));
    }
}

/// A write beyond the user's limit on file sizes shall fail with an error, which is told, and not kill
/// the program with its temporary files left behind.
pub fn fail_at_file_limit() {
    // SAFETY: ignoring a signal runs no code of ours; no other handler for it is installed here.
    let _ = unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Begins a session without a terminal and puts nothing in the place of standard output and standard error, for a server in the background:
/// whoever reads them shall not wait for it.
pub fn leave_terminal() -> std::io::Result<()> {
    // SAFETY: the call takes nothing and changes only to which session the process belongs. Until here it
    // belonged to the terminal, where a passphrase may have been asked for.
    if unsafe { libc::setsid() } < 0 {
        return Err(std::io::Error::last_os_error());
    }
    let nothing = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    for to in [libc::STDOUT_FILENO, libc::STDERR_FILENO] {
        // SAFETY: both are descriptor numbers; no Rust object owns 1 or 2, and `nothing` is open.
        if unsafe { libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&nothing), to) } < 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Sets the flag when the user asks how far the job is.
pub fn on_question(asked: &Arc<AtomicBool>) {
    let _ = flag::register(libc::SIGUSR1, Arc::clone(asked));
}

fn ignored(signal: i32) -> bool {
    // SAFETY: `sigaction` is a struct of integers and a handler that may be null; all zeroes are
    // valid.
    let mut old: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: without a new action the call only fills `old`, which lives until it returns.
    let done = unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut old) };
    done == 0 && old.sa_sigaction == libc::SIG_IGN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ignored_signals_are_ignored() {
        assert!(!ignored(libc::SIGUSR2));
        // Rust's runtime ignores this one.
        assert!(ignored(libc::SIGPIPE));
    }
}
