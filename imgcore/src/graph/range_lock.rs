//! Locks on ranges of a guest's disk.
//!
//! In-place I/O holds its range *shared*: the mapping it looked up stays valid until it is done.
//! Whatever changes mappings (allocation, zeroing, discarding) holds it *exclusive*. Ranges are rounded
//! to the allocation unit by the caller, so that two writers never fill the same cluster at once.
//!
//! Waiting is in order of arrival for overlapping ranges, so nobody starves.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, PoisonError};

/// Whether others may be inside at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// With other shared holders.
    Shared,
    /// Alone.
    Exclusive,
}

#[derive(Debug)]
struct Entry {
    ticket: u64,
    start: u64,
    end: u64,
    hold: Hold,
}

impl Entry {
    fn conflicts(&self, other: &Entry) -> bool {
        self.start < other.end
            && other.start < self.end
            && (self.hold == Hold::Exclusive || other.hold == Hold::Exclusive)
    }
}

/// All locks of one disk.
#[derive(Debug, Default)]
pub struct RangeLocks {
    /// Held and waited-for ranges in order of arrival.
    queue: Mutex<(u64, VecDeque<Entry>)>,
    changed: Condvar,
}

/// A held range; given back when dropped.
#[derive(Debug)]
pub struct RangeGuard<'a> {
    locks: &'a RangeLocks,
    ticket: u64,
}

impl RangeLocks {
    /// Holds `start..end` if nobody is in the way; returns what [`RangeLocks::leave`] wants.
    pub fn try_enter(&self, start: u64, end: u64, hold: Hold) -> Option<u64> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let ticket = queue.0;
        let entry = Entry { ticket, start, end, hold };
        if queue.1.iter().any(|e| e.conflicts(&entry)) {
            return None;
        }
        queue.0 = queue.0.wrapping_add(1);
        queue.1.push_back(entry);
        Some(ticket)
    }

    /// Gives back what is held by a ticket.
    pub fn leave(&self, ticket: u64) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.1.retain(|e| e.ticket != ticket);
        let waiters = !queue.1.is_empty();
        drop(queue);
        if waiters {
            self.changed.notify_all();
        }
    }

    /// Waits until `start..end` can be held.
    pub fn lock(&self, start: u64, end: u64, hold: Hold) -> RangeGuard<'_> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let ticket = queue.0;
        queue.0 = queue.0.wrapping_add(1);
        queue.1.push_back(Entry { ticket, start, end, hold });
        // We may enter once nobody who came before us is in our way.
        while blocked(&queue.1, ticket) {
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        RangeGuard { locks: self, ticket }
    }
}

fn blocked(queue: &VecDeque<Entry>, ticket: u64) -> bool {
    let Some(own) = queue.iter().find(|e| e.ticket == ticket) else { return false };
    queue.iter().take_while(|e| e.ticket != ticket).any(|e| e.conflicts(own))
}

impl Drop for RangeGuard<'_> {
    fn drop(&mut self) {
        self.locks.leave(self.ticket);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn exclusive_excludes_and_shared_does_not() {
        let locks = RangeLocks::default();
        let a = locks.lock(0, 10, Hold::Shared);
        let b = locks.lock(5, 15, Hold::Shared);
        let c = locks.lock(20, 30, Hold::Exclusive);
        let inside = AtomicU32::new(0);
        std::thread::scope(|s| {
            s.spawn(|| {
                let _d = locks.lock(9, 11, Hold::Exclusive);
                inside.store(1, Ordering::SeqCst);
            });
            std::thread::sleep(std::time::Duration::from_millis(20));
            assert_eq!(inside.load(Ordering::SeqCst), 0);
            drop(a);
            drop(b);
            drop(c);
        });
        assert_eq!(inside.load(Ordering::SeqCst), 1);
    }
}
