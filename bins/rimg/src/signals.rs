//! Signals as flags. A signal that was ignored when the program started stays ignored: `nohup`, and
//! shells for their background jobs, rely on that.
#![allow(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::flag;

/// Signals that end a job.
const ENDING: [i32; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

/// Sets the flag when the user wants the job to end; a second time ends the process.
pub fn on_end(end: &Arc<AtomicBool>) {
    for signal in ENDING.into_iter().filter(|s| !ignored(*s)) {
        // Without handlers the job still runs; it is only less polite when interrupted.
        let second = flag::register_conditional_default(signal, Arc::clone(end));
        let _ = second.and_then(|_| flag::register(signal, Arc::clone(end)));
    }
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
