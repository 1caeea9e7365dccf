//! The terminal while the guest has it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::termios::{LocalFlags, SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use vmm::chardev::config::Signals;

/// A terminal in raw mode; undone when dropped, by [`Terminal::leave`], or for as long as the program is
/// stopped (Ctrl-z). Clones mean the same terminal.
#[derive(Clone, Default)]
pub struct Terminal(Arc<Mutex<Option<Modes>>>);

struct Modes {
    terminal: OwnedFd,
    before: Termios,
    raw: Termios,
}

impl Terminal {
    /// Characters go to the guest as they are typed, if standard input is a terminal. The signal keys act
    /// on this program only if they are to.
    pub fn enter(&self, signals: Signals) {
        let stdin = std::io::stdin();
        let (Ok(before), Ok(terminal)) =
            (tcgetattr(stdin.as_fd()), stdin.as_fd().try_clone_to_owned())
        else {
            return;
        };
        let mut raw = before.clone();
        // A line feed still begins a line at its left margin.
        let output = before.output_flags;
        cfmakeraw(&mut raw);
        raw.output_flags = output;
        if signals == Signals::Act {
            raw.local_flags |= LocalFlags::ISIG;
        }
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Modes { terminal, before, raw });
        self.resume();
    }

    /// Raw again, after the program was stopped.
    pub fn resume(&self) {
        if let Some(m) = &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            // A terminal that refuses, or whose program is in the background, stays as it is.
            let _ = tcsetattr(&m.terminal, SetArg::TCSANOW, &m.raw);
        }
    }

    /// As it was found.
    pub fn leave(&self) {
        if let Some(m) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = tcsetattr(&m.terminal, SetArg::TCSANOW, &m.before);
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if Arc::strong_count(&self.0) == 1 {
            self.leave();
        }
    }
}
