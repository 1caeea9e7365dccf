//! Several threads on one job: how many, whose turn it is, and whose failure counts.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::{Error, Result};

/// Threads for a job that was not told how many.
pub fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// A lock whose holder cannot have left half-done work behind.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The failure that stops a job: of several, the one of the earliest piece, so that the message does
/// not depend on which thread was faster.
#[derive(Debug, Default)]
pub struct Failure {
    first: Mutex<Option<(u64, Error)>>,
    stopped: AtomicBool,
}

impl Failure {
    /// Whether somebody failed.
    pub fn happened(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Reports that piece `ticket` failed.
    pub fn report(&self, ticket: u64, error: Error) {
        let mut first = lock(&self.first);
        if first.as_ref().is_none_or(|(t, _)| ticket < *t) {
            *first = Some((ticket, error));
        }
        self.stopped.store(true, Ordering::Release);
    }

    /// The outcome of the job.
    pub fn into_result(self) -> Result<()> {
        match self.first.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }
}

/// Makes the owners of tickets 0, 1, 2, ... go one after the other. Who has nothing to do in his turn
/// passes without waiting.
#[derive(Debug, Default)]
pub struct Turns {
    state: Mutex<TurnState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct TurnState {
    next: u64,
    /// Passed before their turn.
    passed: BTreeSet<u64>,
    /// Threads that wait; without any there is nobody to wake.
    waiting: usize,
    /// The job has failed; nobody waits any more.
    stopped: bool,
}

impl Turns {
    /// Waits until it is the turn of `ticket`; `false` when the job was stopped instead.
    pub fn wait(&self, ticket: u64) -> bool {
        let mut state = lock(&self.state);
        state.waiting += 1;
        while state.next != ticket && !state.stopped {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.waiting -= 1;
        !state.stopped
    }

    /// Ends the turn of `ticket`, also before it has begun.
    pub fn pass(&self, ticket: u64) {
        let mut state = lock(&self.state);
        if state.next > ticket {
            // Passed already.
            return;
        }
        if state.next != ticket {
            state.passed.insert(ticket);
            return;
        }
        let mut next = ticket + 1;
        while state.passed.remove(&next) {
            next += 1;
        }
        state.next = next;
        let wake = state.waiting > 0;
        drop(state);
        if wake {
            self.changed.notify_all();
        }
    }

    /// Nobody waits any more.
    pub fn stop(&self) {
        lock(&self.state).stopped = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn turns_come_in_order() {
        let turns = Turns::default();
        let ticket = AtomicU64::new(0);
        let order = Mutex::new(Vec::new());
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    loop {
                        let mine = ticket.fetch_add(1, Ordering::Relaxed);
                        if mine >= 1000 {
                            return;
                        }
                        if mine.is_multiple_of(3) {
                            turns.pass(mine);
                            continue;
                        }
                        assert!(turns.wait(mine));
                        lock(&order).push(mine);
                        turns.pass(mine);
                    }
                });
            }
        });
        let order = order.into_inner().unwrap();
        assert!(order.is_sorted());
        assert_eq!(order.len(), 666);
    }

    #[test]
    fn the_earliest_failure_counts() {
        let failure = Failure::default();
        failure.report(7, Error::invalid("late"));
        failure.report(3, Error::invalid("early"));
        failure.report(5, Error::invalid("between"));
        assert!(failure.happened());
        assert_eq!(failure.into_result().unwrap_err().message(), "early");
    }
}
