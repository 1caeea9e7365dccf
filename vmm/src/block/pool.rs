//! Threads that carry requests out beside a queue's own.
//!
//! Threads are started when there is more to do than those there are can begin at once, up to a limit,
//! and end when they have had nothing to do for a while. A disk that is used by one request at a time
//! never starts any.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use imgcore::storage::AlignedBuf;

/// Data that cannot be moved directly are moved in pieces of this size at most, whatever a guest asks for.
pub const BOUNCE: usize = 1 << 20;
/// Threads of one disk.
pub const THREADS: usize = 16;
/// How long a thread waits for something to do.
const PATIENCE: Duration = Duration::from_secs(10);

/// A thread's own buffer, made when it is needed.
#[derive(Default)]
pub struct Scratch(Option<AlignedBuf>);

impl Scratch {
    /// A buffer of `len` bytes, or of [`BOUNCE`] when that is less. Contents are whatever was there before.
    pub fn buffer(&mut self, len: usize) -> &mut [u8] {
        let len = len.min(BOUNCE);
        let have = self.0.as_mut().map_or(0, |b| b.bytes().len());
        if have < len {
            // Small requests need no large buffer.
            self.0 = Some(AlignedBuf::new(len.next_power_of_two().clamp(64 << 10, BOUNCE)));
        }
        match &mut self.0 {
            Some(buffer) => &mut buffer.bytes()[..len],
            None => &mut [],
        }
    }
}

/// Something to do.
pub type Job = Box<dyn FnOnce(&mut Scratch) + Send>;

/// What happens to a job when all threads are busy.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Busy {
    GiveBack,
    Queue,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    idle: usize,
    threads: Vec<JoinHandle<()>>,
    running: usize,
    ending: bool,
}

struct Shared {
    name: String,
    state: Mutex<State>,
    wake: Condvar,
}

/// The threads of one disk.
pub struct Pool(Arc<Shared>);

impl Pool {
    /// Without threads yet; `name` is theirs.
    pub fn new(name: &str) -> Self {
        let shared =
            Shared { name: format!("{name}/w"), state: Mutex::default(), wake: Condvar::new() };
        Pool(Arc::new(shared))
    }

    /// Lets a thread do it.
    ///
    /// # Errors
    /// Gives the job back when all threads are busy: the caller does it himself.
    pub fn submit(&self, job: Job) -> Result<(), Job> {
        self.take(job, Busy::GiveBack)
    }

    /// Lets a thread do it, after others where all are busy. For callers that must not wait.
    ///
    /// # Errors
    /// Gives the job back when no thread can be had at all.
    pub fn enqueue(&self, job: Job) -> Result<(), Job> {
        self.take(job, Busy::Queue)
    }

    fn take(&self, job: Job, busy: Busy) -> Result<(), Job> {
        let mut state = self.0.lock();
        if state.idle > state.jobs.len() {
            state.jobs.push_back(job);
            drop(state);
            self.0.wake.notify_one();
            return Ok(());
        }
        if state.running >= THREADS || state.ending {
            if busy == Busy::Queue && state.running > 0 && !state.ending {
                // A thread looks here when it is done with what it is at.
                state.jobs.push_back(job);
                return Ok(());
            }
            return Err(job);
        }
        state.threads.retain(|t| !t.is_finished());
        let shared = self.0.clone();
        state.jobs.push_back(job);
        match std::thread::Builder::new().name(self.0.name.clone()).spawn(move || shared.work()) {
            Ok(thread) => {
                state.running += 1;
                state.threads.push(thread);
                Ok(())
            }
            Err(_) if busy == Busy::Queue && state.running > 0 => Ok(()),
            // No more threads on this host: those there are will do.
            Err(_) => match state.jobs.pop_back() {
                Some(job) => Err(job),
                None => Ok(()),
            },
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut scratch = Scratch::default();
        let mut state = self.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                job(&mut scratch);
                state = self.lock();
                continue;
            }
            if state.ending {
                break;
            }
            state.idle += 1;
            let (back, result) =
                self.wake.wait_timeout(state, PATIENCE).unwrap_or_else(PoisonError::into_inner);
            state = back;
            state.idle -= 1;
            if result.timed_out() && state.jobs.is_empty() {
                break;
            }
        }
        state.running -= 1;
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let threads = {
            let mut state = self.0.lock();
            state.ending = true;
            std::mem::take(&mut state.threads)
        };
        self.0.wake.notify_all();
        let me = std::thread::current().id();
        for thread in threads {
            // The last reference may have been a job's own.
            if thread.thread().id() != me {
                let _ = thread.join();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn jobs_run_beside_each_other_and_all_end() {
        let done = Arc::new(AtomicUsize::new(0));
        let gate = Arc::new(std::sync::Barrier::new(4));
        let pool = Pool::new("t");
        for _ in 0..4 {
            let (done, gate) = (done.clone(), gate.clone());
            let job: Job = Box::new(move |s| {
                // Only four at once get past this.
                gate.wait();
                assert_eq!(s.buffer(100).len(), 100);
                assert_eq!(s.buffer(usize::MAX).len(), BOUNCE);
                done.fetch_add(1, Ordering::SeqCst);
            });
            assert!(pool.submit(job).is_ok());
        }
        drop(pool);
        assert_eq!(done.load(Ordering::SeqCst), 4);
    }

    #[test]
    fn a_full_pool_gives_jobs_back() {
        let gate = Arc::new(std::sync::Barrier::new(THREADS + 1));
        let pool = Pool::new("t");
        for _ in 0..THREADS {
            let gate = gate.clone();
            assert!(
                pool.submit(Box::new(move |_| {
                    gate.wait();
                }))
                .is_ok()
            );
        }
        assert!(pool.submit(Box::new(|_| ())).is_err());
        gate.wait();
    }
}
