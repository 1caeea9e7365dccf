//! The thread behind the clock's interrupts. It sleeps unless the guest has turned one on.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::devices::rtc::Rtc;
use crate::{Error, Result};

#[derive(Default)]
struct Shared {
    state: Mutex<(bool, u64)>,
    changed: Condvar,
}

/// The thread.
pub struct RtcTimer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl RtcTimer {
    /// Starts it.
    pub fn start(rtc: Arc<Rtc>) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let inner = shared.clone();
        rtc.on_change(Box::new(move || {
            inner.state.lock().unwrap_or_else(PoisonError::into_inner).1 += 1;
            inner.changed.notify_all();
        }));
        let inner = shared.clone();
        let thread = std::thread::Builder::new()
            .name("rtc".into())
            .spawn(move || inner.run(&rtc))
            .map_err(|e| Error::io(&e).context("cannot start the clock's thread"))?;
        Ok(RtcTimer { shared, thread: Some(thread) })
    }
}

impl Shared {
    fn run(&self, rtc: &Rtc) {
        loop {
            let epoch = self.state.lock().unwrap_or_else(PoisonError::into_inner).1;
            let next = rtc.next_event();
            let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.0 {
                return;
            }
            if state.1 != epoch {
                continue;
            }
            let stopped = match next {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner).0,
                Some(d) => {
                    self.changed.wait_timeout(state, d).unwrap_or_else(PoisonError::into_inner).0.0
                }
            };
            if stopped {
                return;
            }
            rtc.tick();
        }
    }
}

impl Drop for RtcTimer {
    fn drop(&mut self) {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner).0 = true;
        self.shared.changed.notify_all();
        if let Some(t) = self.thread.take() {
            let _ = t.join();
        }
    }
}
