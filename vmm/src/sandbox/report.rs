//! What happens when a system call is refused.
//!
//! The kernel sends SIGSYS instead of making the call. The handler writes one line that names call and
//! thread, and lets the call end with `EPERM`: a library that asks for something unimportant goes on, and
//! nothing is left to guess.

#![allow(unsafe_code)]

use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::{Error, Result};

/// Lines that are written before it is enough.
const MOST: u32 = 20;
static SAID: AtomicU32 = AtomicU32::new(0);
static INSTALLED: Once = Once::new();

/// Lets refused calls be reported; once for the process.
///
/// # Errors
/// When the handler cannot be set.
pub fn install() -> Result<()> {
    let mut result = Ok(());
    INSTALLED.call_once(|| {
        let flags = SaFlags::SA_SIGINFO | SaFlags::SA_RESTART | SaFlags::SA_ONSTACK;
        let action = SigAction::new(SigHandler::SigAction(refused), flags, SigSet::empty());
        // SAFETY: the handler makes only calls that are safe in signal handlers (`write`, `prctl`), touches
        // no lock and no heap, and changes nothing but the result register of the interrupted call.
        result = unsafe { sigaction(Signal::SIGSYS, &action) }
            .map(drop)
            .map_err(|e| Error::from(e).context("cannot watch for refused system calls"));
    });
    result
}

/// A line in a buffer of its own: nothing may be allocated here.
struct Line {
    bytes: [u8; 256],
    len: usize,
}

impl Line {
    fn add(&mut self, text: &[u8]) {
        let end = (self.len + text.len()).min(self.bytes.len());
        let n = end - self.len;
        self.bytes[self.len..end].copy_from_slice(&text[..n]);
        self.len = end;
    }

    fn add_number(&mut self, mut n: u64) {
        let mut digits = [0u8; 20];
        let mut at = digits.len();
        loop {
            at -= 1;
            digits[at] = b'0' + crate::num::low8(n % 10);
            n /= 10;
            if n == 0 {
                break;
            }
        }
        self.add(&digits[at..]);
    }
}

extern "C" fn refused(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let context = context.cast::<libc::ucontext_t>();
    // SAFETY: the kernel passes the interrupted thread's registers, which live until the handler returns.
    let Some(registers) = (unsafe { context.as_mut() }) else { return };
    let Some(result) =
        registers.uc_mcontext.gregs.get_mut(usize::try_from(libc::REG_RAX).unwrap_or(usize::MAX))
    else {
        return;
    };
    let number = result.unsigned_abs();
    *result = i64::from(-libc::EPERM);
    if SAID.fetch_add(1, Ordering::Relaxed) >= MOST {
        return;
    }
    let mut name = [0u8; 16];
    // SAFETY: the kernel writes at most 16 bytes of the thread's name.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    let name_len = name.iter().position(|b| *b == 0).unwrap_or(name.len());
    let mut line = Line { bytes: [0; 256], len: 0 };
    line.add(b"rkvm: sandbox: system call ");
    line.add_number(number);
    line.add(b" of thread '");
    line.add(&name[..name_len]);
    line.add(b"' was refused; if that is in your way, start with -sandbox off and report it\n");
    // SAFETY: the buffer is valid for its length. Nothing can be done when nobody reads it.
    unsafe { libc::write(libc::STDERR_FILENO, line.bytes.as_ptr().cast(), line.len) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_and_numbers_written() {
        let mut line = Line { bytes: [0; 256], len: 0 };
        line.add_number(0);
        line.add(b" ");
        line.add_number(u64::MAX);
        assert_eq!(&line.bytes[..line.len], b"0 18446744073709551615");
        line.add(&[b'x'; 300]);
        assert_eq!(line.len, 256);
    }
}
