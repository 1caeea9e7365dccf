//! Getting a vCPU out of guest mode from another thread.
//!
//! Two things together leave no gap: `immediate_exit` in the shared run structure makes a KVM_RUN that
//! is about to begin return at once, and a signal interrupts one that has begun. The signal's handler
//! does nothing; its arrival is what counts.

use std::sync::{Arc, Mutex, Once, PoisonError};

use nix::sys::pthread::{Pthread, pthread_kill, pthread_self};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::{Error, Result};

/// Not used for anything else by Rust, libc or this crate; ignored harmlessly outside KVM_RUN.
const KICK_SIGNAL: Signal = Signal::SIGUSR1;

#[derive(Debug)]
struct Target {
    thread: Pthread,
    immediate_exit: *mut u8,
}

// SAFETY: the pointer is only dereferenced while the mutex around the target is held and the target
// is present; the vCPU's thread takes it away before it unmaps the run structure.
unsafe impl Send for Target {}

/// Interrupts one vCPU. Clones mean the same vCPU.
#[derive(Clone, Debug, Default)]
pub struct Kick(Arc<Mutex<Option<Target>>>);

impl Kick {
    /// For a vCPU whose thread has not started.
    pub fn new() -> Self {
        Kick::default()
    }

    /// Makes the vCPU leave guest mode soon; nothing when it is not there.
    pub fn kick(&self) {
        let target = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(t) = target.as_ref() {
            // SAFETY: the run structure is mapped while the target is present (see `Target`). The
            // kernel reads this byte, the vCPU's thread clears it: a volatile write is all it takes.
            unsafe { t.immediate_exit.write_volatile(1) };
            // Fails only when the thread is gone, and then there is nobody to interrupt.
            let _ = pthread_kill(t.thread, KICK_SIGNAL);
        }
    }

    /// Says that the calling thread runs the vCPU whose run structure has this flag, until the guard is
    /// dropped.
    pub(super) fn register(&self, immediate_exit: *mut u8) -> Result<Registered> {
        install_handler()?;
        let mut target = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *target = Some(Target { thread: pthread_self(), immediate_exit });
        Ok(Registered(self.clone()))
    }
}

/// Keeps a vCPU reachable by its [`Kick`].
#[derive(Debug)]
pub struct Registered(Kick);

impl Drop for Registered {
    fn drop(&mut self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

extern "C" fn nothing(_signal: libc::c_int) {}

/// Once per process. Without SA_RESTART, so that blocking calls in a vCPU's thread return as well.
fn install_handler() -> Result<()> {
    static ONCE: Once = Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| {
        let action =
            SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
        // SAFETY: the handler does nothing at all, hence nothing that is not async-signal-safe.
        result = unsafe { sigaction(KICK_SIGNAL, &action) }
            .map(|_| ())
            .map_err(|e| Error::from(e).context("cannot install the signal handler for vCPUs"));
    });
    result
}
