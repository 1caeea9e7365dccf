//! Who carries a request out.
//!
//! A queue's thread takes requests off the ring. When nothing else of the queue is being carried out, it
//! does a read or write itself: handing it over would cost more than most of them take. While it is at
//! that, further requests wait; as soon as there is more than one at a time, all go to the disk's pool,
//! and the queue's thread stays free to take more. Flushes and the like always go to the pool.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use super::execute::{Executor, Served};
use crate::block::pool::{Pool, Scratch};
use crate::irq::Message;
use crate::mem::Memory;
use crate::virtio::{ActiveQueue, Broken, Chain, Work};
use crate::{Error, Result};

/// Requests taken before the thread looks whether it is to stop.
const TURN: usize = 1024;

#[derive(Default)]
struct Progress {
    /// Requests that are being carried out.
    in_flight: usize,
    /// Requests to be done again when the machine goes on.
    held: Vec<Chain>,
    /// Why the queue cannot go on.
    broken: Option<Broken>,
}

struct Shared {
    queue: Mutex<ActiveQueue>,
    memory: Arc<Memory>,
    executor: Arc<Executor>,
    progress: Mutex<Progress>,
    settled: Condvar,
    /// Rung when `broken` is set.
    alarm: EventFd,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Carries a request out and gives it back.
    fn serve(&self, chain: Chain, scratch: &mut Scratch) {
        let result = match self.executor.serve(&self.memory, &chain, scratch) {
            Ok(Served::Done(len)) => self.give_back(chain.head, len),
            Ok(Served::Held) => {
                lock(&self.progress).held.push(chain);
                Ok(())
            }
            Err(broken) => Err(broken),
        };
        let mut progress = lock(&self.progress);
        progress.in_flight -= 1;
        if let Err(broken) = result {
            progress.broken.get_or_insert(broken);
            self.alarm.raise();
        }
        let last = progress.in_flight == 0;
        drop(progress);
        if last {
            self.settled.notify_all();
        }
    }

    fn give_back(&self, head: u16, len: u32) -> std::result::Result<(), Broken> {
        let mut queue = lock(&self.queue);
        queue.push(&self.memory, head, len)?;
        queue.announce(&self.memory)
    }
}

/// Ends a request that a panic kept from ending, so that nobody waits for it for ever.
struct Guard<'a>(&'a Shared, bool);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if !self.1 {
            let mut progress = lock(&self.0.progress);
            progress.in_flight -= 1;
            progress.broken.get_or_insert(Broken("a request could not be carried out".into()));
            drop(progress);
            self.0.alarm.raise();
            self.0.settled.notify_all();
        }
    }
}

fn guarded(shared: &Shared, chain: Chain, scratch: &mut Scratch) {
    let mut guard = Guard(shared, false);
    shared.serve(chain, scratch);
    guard.1 = true;
}

/// One queue of a disk.
pub struct BlkQueue {
    name: String,
    shared: Arc<Shared>,
    pool: Arc<Pool>,
    scratch: Scratch,
}

const RING: usize = 0;

impl BlkQueue {
    /// A queue that the driver has set up.
    pub fn new(
        name: String,
        queue: ActiveQueue,
        memory: Arc<Memory>,
        executor: Arc<Executor>,
        pool: Arc<Pool>,
    ) -> Result<Self> {
        let alarm = EventFd::new(libc::EFD_NONBLOCK)
            .map_err(|e| Error::io(&e).context("cannot create an event descriptor"))?;
        let shared = Arc::new(Shared {
            queue: Mutex::new(queue),
            memory,
            executor,
            progress: Mutex::default(),
            settled: Condvar::new(),
            alarm,
        });
        Ok(BlkQueue { name, shared, pool, scratch: Scratch::default() })
    }

    fn dispatch(&mut self, chain: Chain) {
        let alone = {
            let mut progress = lock(&self.shared.progress);
            progress.in_flight += 1;
            progress.in_flight == 1
        };
        if alone && self.shared.executor.is_quick(&self.shared.memory, &chain) {
            return guarded(&self.shared, chain, &mut self.scratch);
        }
        let shared = self.shared.clone();
        let job = Box::new(move |scratch: &mut Scratch| guarded(&shared, chain, scratch));
        if let Err(job) = self.pool.submit(job) {
            job(&mut self.scratch);
        }
    }

    fn broken(&self) -> std::result::Result<(), Broken> {
        match &lock(&self.shared.progress).broken {
            Some(broken) => Err(broken.clone()),
            None => Ok(()),
        }
    }

    fn serve_ring(&mut self) -> std::result::Result<(), Broken> {
        let held = std::mem::take(&mut lock(&self.shared.progress).held);
        for chain in held {
            self.dispatch(chain);
        }
        lock(&self.shared.queue).begin_turn(&self.shared.memory)?;
        for _ in 0..TURN {
            let next = lock(&self.shared.queue).pop_or_wait(&self.shared.memory)?;
            let Some(chain) = next else { return Ok(()) };
            self.dispatch(chain);
            self.broken()?;
        }
        lock(&self.shared.queue).ring_again();
        Ok(())
    }
}

impl Work for BlkQueue {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn sources(&self) -> Vec<i32> {
        use std::os::fd::AsRawFd;
        vec![lock(&self.shared.queue).doorbell(), self.shared.alarm.as_raw_fd()]
    }

    fn ready(&mut self, source: usize) -> std::result::Result<(), Broken> {
        if source != RING {
            return self.broken();
        }
        lock(&self.shared.queue).answer();
        self.serve_ring()
    }

    fn quiesce(&mut self) {
        let mut progress = lock(&self.shared.progress);
        while progress.in_flight > 0 {
            progress = self.shared.settled.wait(progress).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
