//! Who carries a request out.
//!
//! A queue's thread takes requests off the ring, as many as there are, and puts neighbours together
//! ([`super::batch`]).
//!
//! With threads (`aio=threads`): when one is all there is, the queue's thread does a read or write itself:
//! handing it over would cost more than most of them take. Of more than one it does the reads whose bytes
//! are in the page cache (`RWF_NOWAIT`); the others go to the disk's pool, and the queue's thread stays free to
//! take more. Flushes and the like always go to the pool.
//!
//! With a ring ([`super::flight`]): reads from the page cache and single writes into it are done by this
//! thread too, as the kernel would have its own threads do them on many file systems; a batch of all else goes to
//! the kernel with one call. What it cannot do goes to the pool, as this thread must not wait for anybody
//! while the kernel holds ranges for it.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use imgcore::graph::runs::Direction;
use smallvec::SmallVec;
use vmm_sys_util::eventfd::EventFd;

use super::batch::{Group, Item, Merging, group};
use super::execute::{Executor, Served};
use super::flight::{Flights, Landed, Landing};
use crate::block::pool::{Pool, Scratch};
use crate::block::remote::Place;
use crate::block::ring::Ring;
use crate::irq::Message;
use crate::mem::Memory;
use crate::sandbox::Kind;
use crate::virtio::{ActiveQueue, Broken, Chain, Work};
use crate::{Error, Result};

/// Requests taken before the thread looks whether it is to stop.
const TURN: usize = 1024;
/// After so many reads in a row that the page cache did not have, it is asked only that seldom.
const MISSES: u32 = 32;
/// Requests that are looked at together.
const BATCH: usize = 128;

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

/// Each request of a group with how it ended.
type Ended = (Item, std::result::Result<Served, Broken>);

impl Shared {
    /// Carries a group out and gives it back.
    fn serve(&self, group: Group, scratch: &mut Scratch) {
        let results = match self.executor.serve_together(&self.memory, &group) {
            Some(results) => results,
            None => {
                let one = |item| self.executor.serve(&self.memory, item, scratch);
                group.items.iter().map(one).collect()
            }
        };
        self.settle(group.items.into_iter().zip(results).collect());
    }

    /// So many requests more are being carried out; true when there are no others.
    fn enter(&self, requests: usize) -> bool {
        let mut progress = lock(&self.progress);
        progress.in_flight += requests;
        progress.in_flight == requests
    }

    /// As [`Shared::settle`], for one.
    fn settle_one(&self, item: Item, result: std::result::Result<Served, Broken>) {
        let Ok(Served::Done(len)) = result else { return self.settle(vec![(item, result)]) };
        let result = self.give_back(&[(item.chain.head, len)]);
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

    /// Gives requests back, or keeps them for later.
    fn settle(&self, ended: Vec<Ended>) {
        let count = ended.len();
        let (mut held, mut done, mut broken) = (Vec::new(), Vec::new(), None);
        for (item, result) in ended {
            match result {
                Ok(Served::Done(len)) => done.push((item.chain.head, len)),
                Ok(Served::Held) => held.push(item.chain),
                Err(b) => broken = Some(b),
            }
        }
        if let (Err(b), None) = (self.give_back(&done), &broken) {
            broken = Some(b);
        }
        let mut progress = lock(&self.progress);
        progress.held.append(&mut held);
        progress.in_flight -= count;
        if let Some(broken) = broken {
            progress.broken.get_or_insert(broken);
            self.alarm.raise();
        }
        let last = progress.in_flight == 0;
        drop(progress);
        if last {
            self.settled.notify_all();
        }
    }

    fn give_back(&self, done: &[(u16, u32)]) -> std::result::Result<(), Broken> {
        if done.is_empty() {
            return Ok(());
        }
        let mut queue = lock(&self.queue);
        for &(head, len) in done {
            queue.push(&self.memory, head, len)?;
        }
        queue.announce(&self.memory)
    }
}

/// Ends requests that a panic kept from ending, so that nobody waits for them for ever.
struct Guard(Arc<Shared>, usize);

impl Drop for Guard {
    fn drop(&mut self) {
        if self.1 > 0 {
            let mut progress = lock(&self.0.progress);
            progress.in_flight = progress.in_flight.saturating_sub(self.1);
            progress.broken.get_or_insert(Broken("a request could not be carried out".into()));
            drop(progress);
            self.0.alarm.raise();
            self.0.settled.notify_all();
        }
    }
}

/// Serves a group; should that never happen, or not come to its end, the guard tells.
fn guarded(mut guard: Guard, group: Group, scratch: &mut Scratch) {
    guard.0.serve(group, scratch);
    guard.1 = 0;
}

/// Requests found together.
type Batch = SmallVec<[Chain; 1]>;

/// One queue of a disk.
pub struct BlkQueue {
    name: String,
    shared: Arc<Shared>,
    pool: Arc<Pool>,
    scratch: Scratch,
    flights: Option<Flights>,
    place: Place,
    /// Whether the page cache may have what is read.
    buffered: bool,
    /// How often in a row it had not.
    misses: u32,
}

/// What a queue is made of.
pub struct Means {
    /// The guest's memory.
    pub memory: Arc<Memory>,
    /// Carries requests out.
    pub executor: Arc<Executor>,
    /// The disk's threads.
    pub pool: Arc<Pool>,
    /// Takes requests to the kernel, if the disk has such a thing.
    pub ring: Option<Arc<Mutex<Ring>>>,
    /// Where the disk's bytes are.
    pub place: Place,
}

const RING: usize = 0;
const ALARM: usize = 1;

impl BlkQueue {
    /// A queue that the driver has set up.
    pub fn new(name: String, queue: ActiveQueue, means: Means) -> Result<Self> {
        let alarm = EventFd::new(libc::EFD_NONBLOCK)
            .map_err(|e| Error::io(&e).context("cannot create an event descriptor"))?;
        let Means { memory, executor, pool, ring, place } = means;
        let shared = Arc::new(Shared {
            queue: Mutex::new(queue),
            memory,
            executor,
            progress: Mutex::default(),
            settled: Condvar::new(),
            alarm,
        });
        let flights = ring.map(Flights::new);
        let here = place == Place::Here;
        let buffered = here && shared.executor.disk().backend().is_buffered();
        let scratch = Scratch::default();
        Ok(BlkQueue { name, shared, pool, scratch, flights, place, buffered, misses: 0 })
    }

    /// Carries out what was found on the ring together.
    fn dispatch(&mut self, mut chains: Batch) -> std::result::Result<(), Broken> {
        if chains.len() < 2 {
            return chains.pop().map_or(Ok(()), |chain| self.dispatch_one(chain));
        }
        let executor = &self.shared.executor;
        let merging = if executor.disk().is_limited() { Merging::Off } else { Merging::On };
        let items: Vec<Item> = chains
            .into_iter()
            .map(|chain| executor.take_apart(&self.shared.memory, chain))
            .collect();
        let alone = self.shared.enter(items.len());
        let groups = group(items, merging);
        if self.flights.is_some() {
            return self.fly(groups);
        }
        let alone = alone && groups.len() == 1;
        for group in groups {
            if alone {
                let guard = Guard(self.shared.clone(), group.items.len());
                guarded(guard, group, &mut self.scratch);
            } else if let Some(group) = self.serve_ready(group)
                && let Err(job) = self.pool.submit(self.job(group))
            {
                job(&mut self.scratch);
            }
        }
        Ok(())
    }

    /// The same for one request: nothing is allocated for it that is not needed.
    fn dispatch_one(&mut self, chain: Chain) -> std::result::Result<(), Broken> {
        let shared = &self.shared;
        let item = shared.executor.take_apart(&shared.memory, chain);
        let alone = shared.enter(1);
        let Some(transfer) = item.transfer().filter(|_| alone) else { return self.one_later(item) };
        let quick = match (&self.flights, transfer.direction) {
            (None, _) => true,
            (Some(_), Direction::Read) => false,
            (Some(_), Direction::Write) => self.buffered,
        };
        if !quick {
            return self.one_later(item);
        }
        let mut guard = Guard(shared.clone(), 1);
        let result = shared.executor.serve(&shared.memory, &item, &mut self.scratch);
        guard.0.settle_one(item, result);
        guard.1 = 0;
        Ok(())
    }

    /// Reads a group whose bytes are at hand. `Some`: it is for somebody who waits.
    fn serve_ready(&mut self, group: Group) -> Option<Group> {
        let look = self.misses < MISSES || self.misses.is_multiple_of(MISSES);
        self.misses = self.misses.checked_add(1).unwrap_or(MISSES);
        if !self.buffered || !look {
            return Some(group);
        }
        let mut guard = Guard(self.shared.clone(), group.items.len());
        let shared = guard.0.clone();
        let left = match shared.executor.serve_ready(&shared.memory, &group) {
            Some(results) => {
                self.misses = 0;
                shared.settle(group.items.into_iter().zip(results).collect());
                None
            }
            None => Some(group),
        };
        guard.1 = 0;
        left
    }

    fn one_later(&mut self, item: Item) -> std::result::Result<(), Broken> {
        let group = Group::of(item);
        if self.flights.is_some() {
            return self.fly(vec![group]);
        }
        if let Err(job) = self.pool.submit(self.job(group)) {
            job(&mut self.scratch);
        }
        Ok(())
    }

    fn job(&self, group: Group) -> crate::block::pool::Job {
        let guard = Guard(self.shared.clone(), group.items.len());
        Box::new(move |scratch: &mut Scratch| guarded(guard, group, scratch))
    }

    /// To the kernel with all that it can do, and to the pool with the rest.
    fn fly(&mut self, groups: Vec<Group>) -> std::result::Result<(), Broken> {
        let mut landed = Vec::new();
        for group in groups {
            let Some(group) = self.serve_ready(group) else { continue };
            let shared = &self.shared;
            let Some(flights) = &mut self.flights else { return Ok(()) };
            match flights.launch(&shared.executor, &shared.memory, group) {
                Ok(back) => landed.extend(back),
                Err(group) => self.hand_over(group),
            }
        }
        self.welcome(landed);
        self.land()
    }

    /// Submits, and deals with what is back.
    fn land(&mut self) -> std::result::Result<(), Broken> {
        let Some(flights) = &mut self.flights else { return Ok(()) };
        flights.submit().map_err(|e| Broken(e.report()))?;
        let landed = flights.land(&self.shared.memory);
        let again = !landed.is_empty() || !flights.is_empty();
        self.welcome(landed);
        // What came back in part goes out again.
        match &mut self.flights {
            Some(flights) if again => flights.submit().map_err(|e| Broken(e.report())),
            _ => Ok(()),
        }
    }

    /// Tells the guest of requests that are back.
    fn welcome(&mut self, landed: Vec<Landed>) {
        let shared = self.shared.clone();
        let mut ended = Vec::new();
        for Landed { group, started, segments, how } in landed {
            let (disk, memory) = (shared.executor.disk(), &shared.memory);
            if matches!(how, Landing::Again) {
                for item in group.items {
                    self.hand_over(Group::of(item));
                }
                continue;
            }
            for started in &segments {
                disk.finish(started, Ok(()));
            }
            for (item, started) in group.items.into_iter().zip(started) {
                let result = match &how {
                    Landing::Failed(e) => Err(Error::io(e).context("io_uring")),
                    Landing::Well | Landing::Again => Ok(()),
                };
                let result = shared.executor.conclude(memory, &item, started.as_ref(), result);
                ended.push((item, result));
            }
        }
        if !ended.is_empty() {
            shared.settle(ended);
        }
    }

    /// Gives a group to the pool. This thread must not wait for ranges that it holds itself, or that
    /// others hold who wait for it: it does the work only when there is no other thread, and with empty hands.
    fn hand_over(&mut self, group: Group) {
        if let Err(job) = self.pool.enqueue(self.job(group))
            && self.come_home().is_ok()
        {
            job(&mut self.scratch);
        }
    }

    /// Waits for everything that the kernel has.
    fn come_home(&mut self) -> std::result::Result<(), Broken> {
        loop {
            let Some(flights) = &mut self.flights else { return Ok(()) };
            if flights.is_empty() {
                return Ok(());
            }
            flights.wait().map_err(|e| Broken(e.report()))?;
            let landed = flights.land(&self.shared.memory);
            self.welcome(landed);
        }
    }

    fn broken(&self) -> std::result::Result<(), Broken> {
        match &lock(&self.shared.progress).broken {
            Some(broken) => Err(broken.clone()),
            None => Ok(()),
        }
    }

    /// Requests that are on the ring now; none: the driver will ring.
    fn batch(&self) -> std::result::Result<Batch, Broken> {
        let memory = &self.shared.memory;
        let mut queue = lock(&self.shared.queue);
        let mut chains: Batch = queue.pop_or_wait(memory)?.into_iter().collect();
        while !chains.is_empty() && chains.len() < BATCH {
            let Some(chain) = queue.pop(memory) else { break };
            chains.push(chain);
        }
        Ok(chains)
    }

    fn serve_ring(&mut self) -> std::result::Result<(), Broken> {
        let held = std::mem::take(&mut lock(&self.shared.progress).held);
        self.dispatch(held.into())?;
        lock(&self.shared.queue).begin_turn(&self.shared.memory)?;
        let mut taken = 0;
        while taken < TURN {
            let chains = self.batch()?;
            if chains.is_empty() {
                return Ok(());
            }
            taken += chains.len();
            self.dispatch(chains)?;
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

    fn kind(&self) -> Kind {
        match self.place {
            Place::Here => Kind::Device,
            Place::Server => Kind::Server,
        }
    }

    fn sources(&self) -> Vec<i32> {
        use std::os::fd::AsRawFd;
        let mut all = vec![lock(&self.shared.queue).doorbell(), self.shared.alarm.as_raw_fd()];
        all.extend(self.flights.as_ref().map(Flights::descriptor));
        all
    }

    fn is_bell(&self, source: usize) -> bool {
        source == RING
    }

    fn ready(&mut self, source: usize) -> std::result::Result<(), Broken> {
        match source {
            RING => self.serve_ring(),
            ALARM => self.broken(),
            _ => self.land(),
        }
    }

    fn quiesce(&mut self) {
        if self.come_home().is_err() {
            // A ring that is of no use any more: what it has does not come back.
            let lost = self.flights.take().map_or(0, |f| f.requests());
            lock(&self.shared.progress).in_flight -= lost;
        }
        let mut progress = lock(&self.shared.progress);
        while progress.in_flight > 0 {
            progress = self.shared.settled.wait(progress).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
