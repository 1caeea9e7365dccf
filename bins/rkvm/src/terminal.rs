//! The terminal while the guest has it.

use std::os::fd::AsFd;

use nix::sys::termios::{LocalFlags, SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

/// Characters go to the guest as they are typed; undone when dropped.
pub struct RawMode(Option<Termios>);

impl RawMode {
    /// When the guest uses standard input and it is a terminal. Without the Ctrl-a keys Ctrl-c still ends
    /// the program.
    pub fn enter(wanted: bool, keys: bool) -> Self {
        let stdin = std::io::stdin();
        let Some(before) = wanted.then(|| tcgetattr(stdin.as_fd()).ok()).flatten() else {
            return RawMode(None);
        };
        let mut raw = before.clone();
        let output = before.output_flags;
        cfmakeraw(&mut raw);
        raw.output_flags = output;
        if !keys {
            raw.local_flags |= LocalFlags::ISIG;
        }
        // A terminal that refuses stays as it is.
        let _ = tcsetattr(stdin.as_fd(), SetArg::TCSANOW, &raw);
        RawMode(Some(before))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(std::io::stdin().as_fd(), SetArg::TCSANOW, before);
        }
    }
}
