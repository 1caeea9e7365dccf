//! What all vCPUs should do, and which of them do it.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::kvm::Kick;

/// What all vCPUs should do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Wait, doing jobs.
    Pause,
    /// Run guest code.
    Run,
    /// End their threads.
    Stop,
}

#[derive(Debug)]
struct Inner {
    wish: Wish,
    /// Raised whenever the wish changes or a job arrives, so that waiting threads look again.
    epoch: u64,
    /// By vCPU: what it does at present.
    doing: Vec<Wish>,
}

/// Shared by all vCPU threads and those who steer them.
#[derive(Debug)]
pub struct Control {
    inner: Mutex<Inner>,
    changed: Condvar,
    kicks: Vec<Kick>,
}

impl Control {
    /// For `count` vCPUs, all paused.
    pub fn new(count: usize) -> Arc<Self> {
        Arc::new(Control {
            inner: Mutex::new(Inner {
                wish: Wish::Pause,
                epoch: 0,
                doing: vec![Wish::Pause; count],
            }),
            changed: Condvar::new(),
            kicks: (0..count).map(|_| Kick::new()).collect(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The kick of one vCPU.
    pub(super) fn kick_of(&self, index: usize) -> Kick {
        self.kicks.get(index).cloned().unwrap_or_default()
    }

    /// Makes every vCPU look at the wish again. Does not wait.
    pub fn nudge(&self) {
        let mut inner = self.lock();
        inner.epoch += 1;
        self.changed.notify_all();
        // Only guest code has to be interrupted: a vCPU that is about to run it sees the new epoch before.
        for (kick, doing) in self.kicks.iter().zip(&inner.doing) {
            if *doing == Wish::Run {
                kick.kick();
            }
        }
    }

    /// Changes the wish. `Stop` is final. Does not wait.
    pub fn set(&self, wish: Wish) {
        {
            let mut inner = self.lock();
            if inner.wish != Wish::Stop {
                inner.wish = wish;
            }
        }
        self.nudge();
    }

    /// Waits until all vCPUs do as wished, or the time is over; true when they do. Must not be called
    /// from a vCPU's thread.
    pub fn wait_settled(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        let mut inner = self.lock();
        loop {
            if inner.doing.iter().all(|d| *d == inner.wish || *d == Wish::Stop) {
                return true;
            }
            let Some(left) = end.checked_duration_since(Instant::now()) else { return false };
            inner =
                self.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// What is wished at present.
    pub fn wish(&self) -> Wish {
        self.lock().wish
    }

    /// A vCPU reports what it does, and learns what it should do.
    pub(super) fn report(&self, index: usize, doing: Wish) -> Wish {
        let mut inner = self.lock();
        if let Some(d) = inner.doing.get_mut(index)
            && *d != doing
        {
            *d = doing;
            self.changed.notify_all();
        }
        inner.wish
    }

    /// A vCPU says that it runs guest code from now on, unless there is news since `epoch` was read: then it does not,
    /// and looks again.
    pub(super) fn may_run(&self, index: usize, epoch: u64) -> bool {
        let mut inner = self.lock();
        if inner.epoch != epoch {
            return false;
        }
        if let Some(d) = inner.doing.get_mut(index)
            && *d != Wish::Run
        {
            *d = Wish::Run;
            self.changed.notify_all();
        }
        true
    }

    /// A number that changes when there may be something new; to be read before looking for jobs.
    pub(super) fn epoch(&self) -> u64 {
        self.lock().epoch
    }

    /// Waits until the wish or the jobs may have changed since `epoch` was read.
    pub(super) fn wait_news(&self, epoch: u64) {
        let mut inner = self.lock();
        while inner.epoch == epoch {
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
