//! The terminal while the guest has it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::termios::{LocalFlags, SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use vmm::chardev::config::Signals;

/// The terminal of standard input. Clones mean the same one.
#[derive(Clone, Default)]
pub struct Terminal(Arc<Mutex<Option<Modes>>>);

/// Keeps the terminal in raw mode; when dropped, also by a panic, it is as it was found.
pub struct Raw(Terminal);

struct Modes {
    terminal: OwnedFd,
    before: Termios,
    raw: Termios,
}

impl Terminal {
    /// Characters go to the guest as they are typed, if standard input is a terminal. The signal keys act
    /// on this program only if they are to.
    pub fn enter(&self, signals: Signals) -> Raw {
        let stdin = std::io::stdin();
        let (Ok(before), Ok(terminal)) =
            (tcgetattr(stdin.as_fd()), stdin.as_fd().try_clone_to_owned())
        else {
            return Raw(self.clone());
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
        Raw(self.clone())
    }

    /// Raw again, after the program was stopped.
    pub fn resume(&self) {
        if let Some(m) = &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            // A terminal that refuses, or whose program is in the background, stays as it is.
            let _ = tcsetattr(&m.terminal, SetArg::TCSANOW, &m.raw);
        }
    }

    /// As it was found.
    fn leave(&self) {
        if let Some(m) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = tcsetattr(&m.terminal, SetArg::TCSANOW, &m.before);
        }
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.0.leave();
    }
}
