//! Requests that the kernel carries out, and what is done when it comes back with them.
//!
//! Only what is nothing but calls on open files goes to the kernel: transfers between guest memory and
//! allocated places, flushes, discards and zeroing of images that are one file. Everything else, and
//! everything while others hold the range, is for the disk's pool. What the kernel could not do is done
//! again there too, as that names the error and knows other ways, with two exceptions: a failed flush and
//! a failed durable write are final, because the kernel tells of lost bytes only once. Through the page cache a failed
//! flush is final for the disk ([`crate::block::Disk::note_lost`]), even for a machine that stops and goes on.
//!
//! Writes that the kernel had while the guest turned its cache off are done again, with a flush behind them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use imgcore::format::ZeroSpace;
use imgcore::graph::pin::{Job, PinnedCall, PinnedRun};
use imgcore::graph::runs::Direction;
use imgcore::storage::AlignedBuf;

use super::batch::{Group, Transfer, copy};
use super::execute::Executor;
use super::request::{Request, Segment};
use crate::Result;
use crate::block::Held;
use crate::block::config::WriteCache;
use crate::block::disk::Started;
use crate::block::pool::BOUNCE;
use crate::block::ring::{Buffers, Done, Durable, Ring, Task};
use crate::block::stats::Op;
use crate::mem::Memory;
use crate::num::{index, len_u64};

/// Bytes of buffers of one queue, for guests whose own do not fit `O_DIRECT`.
const MOST_BOUNCED: u64 = 8 << 20;

/// A request that is back.
pub struct Landed {
    /// The request, or neighbours.
    pub group: Group,
    /// When each began.
    pub started: Vec<Option<Started>>,
    /// When the segments of a discard began.
    pub segments: Vec<Started>,
    /// It stores something, and leaves making that durable to a flush.
    pub cached: bool,
    /// What to do now.
    pub how: Landing,
}

/// How a request came back.
#[derive(Debug)]
pub enum Landing {
    /// It is done.
    Well,
    /// It has failed for good.
    Failed(std::io::Error),
    /// To be done another way.
    Again,
}

struct Flight {
    group: Group,
    started: Vec<Option<Started>>,
    segments: Vec<Started>,
    /// Tasks that are not back yet.
    tasks: usize,
    error: Option<std::io::Error>,
    cached: bool,
    /// An error is not to be tried again.
    last_word: bool,
    /// Bytes of an own buffer.
    bounced: u64,
    /// Let go of when all tasks are back.
    held: Vec<Held>,
}

/// What a group comes to.
#[derive(Default)]
struct Plan {
    tasks: Vec<Task>,
    held: Vec<Held>,
    bounced: u64,
    last_word: bool,
}

/// The requests of one queue that the kernel has.
pub struct Flights {
    ring: Arc<Mutex<Ring>>,
    flying: Vec<Option<Flight>>,
    free: Vec<usize>,
    bounced: u64,
}

impl Flights {
    /// None yet; nobody else uses the ring meanwhile.
    pub fn new(ring: Arc<Mutex<Ring>>) -> Self {
        Flights { ring, flying: Vec::new(), free: Vec::new(), bounced: 0 }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Readable when requests are back.
    pub fn descriptor(&self) -> i32 {
        use std::os::fd::AsRawFd;
        self.ring().as_raw_fd()
    }

    /// Whether the kernel has any.
    pub fn is_empty(&self) -> bool {
        self.free.len() == self.flying.len()
    }

    /// Requests that the kernel has.
    pub fn requests(&self) -> usize {
        self.flying.iter().flatten().map(|f| f.group.items.len()).sum()
    }

    /// Prepares a group for the kernel. `Err` gives it back: it is one for the pool. `Ok(Some)` when the
    /// kernel has nothing to do for it.
    pub fn launch(
        &mut self,
        executor: &Executor,
        memory: &Arc<Memory>,
        group: Group,
    ) -> std::result::Result<Option<Landed>, Group> {
        let Some(plan) = self.plan(executor, memory, &group) else { return Err(group) };
        let started = executor.begin(&group.items);
        let segments = match &group.items[..] {
            [item] => segments(item.request.as_ref().ok()),
            _ => &[],
        };
        let segments: Vec<_> =
            segments.iter().map(|s| Started::now(Op::Unmap, s.at, s.len)).collect();
        let stores = group.transfer().is_some_and(|t| t.direction == Direction::Write);
        let cached = (stores && !plan.last_word) || !segments.is_empty();
        if plan.tasks.is_empty() {
            return Ok(Some(Landed { group, started, segments, cached, how: Landing::Well }));
        }
        let Plan { tasks, held, bounced, last_word } = plan;
        let token = self.free.pop().unwrap_or_else(|| {
            self.flying.push(None);
            self.flying.len() - 1
        });
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pushed = 0;
        let mut error = None;
        for task in tasks {
            // There is room: the plan has looked. Should there be none, the group is done again.
            match ring.push(token, task) {
                Ok(()) => pushed += 1,
                Err(_) => error = Some(std::io::Error::from_raw_os_error(libc::EAGAIN)),
            }
        }
        drop(ring);
        self.bounced += bounced;
        let flight = Flight {
            group,
            started,
            segments,
            tasks: pushed,
            error,
            cached,
            last_word,
            bounced,
            held,
        };
        self.flying[token] = Some(flight);
        Ok(if pushed == 0 { self.land_if_back(token, memory, None) } else { None })
    }

    fn plan(&self, executor: &Executor, memory: &Arc<Memory>, group: &Group) -> Option<Plan> {
        let disk = executor.disk();
        if disk.is_limited() {
            return None;
        }
        let durable = disk.write_cache() == WriteCache::Writethrough;
        let plan = match group.transfer() {
            Some(t) => self.plan_transfer(executor, memory, (group, t), durable)?,
            None => plan_call(executor, group.items.first()?.request.as_ref().ok()?, durable)?,
        };
        (plan.tasks.len() <= self.ring().room()).then_some(plan)
    }

    fn plan_transfer(
        &self,
        executor: &Executor,
        memory: &Arc<Memory>,
        (group, transfer): (&Group, Transfer),
        durable: bool,
    ) -> Option<Plan> {
        let Transfer { direction, at, len } = transfer;
        let backend = executor.disk().backend();
        let durable = durable && direction == Direction::Write;
        if direction == Direction::Write
            && (backend.read_only() || (durable && !backend.flushes_one_file()))
        {
            return None;
        }
        let durable = if durable { Durable::Now } else { Durable::Later };
        let pieces = group.memory(memory)?;
        let (held, runs) = backend.pin(at, len, direction)?;
        let mut plan = Plan { last_word: durable == Durable::Now, ..Plan::default() };
        plan.held.push(held);
        let mut start = 0;
        for run in &runs {
            match *run {
                PinnedRun::Zero { len } => {
                    pieces.zero(start, len);
                    start += len;
                }
                PinnedRun::File { fd, offset, len: here, align } => {
                    let align = u64::from(align.max(1));
                    let fits = offset.is_multiple_of(align) && here.is_multiple_of(align);
                    let buffers = if fits && pieces.is_aligned(start, here, align) {
                        Buffers::guest(memory, &pieces, start, here)?
                    } else if fits && runs.len() == 1 && self.may_bounce(len) {
                        plan.bounced = len;
                        Buffers::own(bounce(memory, group, transfer)?)
                    } else {
                        return None;
                    };
                    plan.tasks.push(Task::Transfer { fd, offset, direction, durable, buffers });
                    start += here;
                }
            }
        }
        Some(plan)
    }

    fn may_bounce(&self, len: u64) -> bool {
        len <= len_u64(BOUNCE) && self.bounced + len <= MOST_BOUNCED
    }

    /// Hands over what was prepared.
    ///
    /// # Errors
    /// When the kernel takes nothing more.
    pub fn submit(&mut self) -> Result<()> {
        self.ring().submit()
    }

    /// Waits until something is back, if the kernel has anything.
    ///
    /// # Errors
    /// When that is impossible.
    pub fn wait(&mut self) -> Result<()> {
        self.ring().wait()
    }

    /// Takes requests that are back.
    pub fn land(&mut self, memory: &Memory) -> Vec<Landed> {
        let done = self.ring().reap();
        let mut landed = Vec::with_capacity(done.len());
        for Done { token, result, task } in done {
            if let Some(Some(flight)) = self.flying.get_mut(token) {
                flight.tasks -= 1;
                if let Err(e) = result {
                    flight.error.get_or_insert(e);
                }
            }
            landed.extend(self.land_if_back(token, memory, Some(task)));
        }
        landed
    }

    fn land_if_back(
        &mut self,
        token: usize,
        memory: &Memory,
        task: Option<Task>,
    ) -> Option<Landed> {
        let place = self.flying.get_mut(token)?;
        let flight = place.take_if(|f| f.tasks == 0)?;
        self.free.push(token);
        self.bounced -= flight.bounced;
        let Flight {
            group, started, segments, mut error, cached, last_word, bounced, held, ..
        } = flight;
        // Others may have the range before the guest hears of it.
        drop(held);
        if let (None, true, Some(Task::Transfer { direction: Direction::Read, buffers, .. })) =
            (&error, bounced > 0, task)
        {
            let copied = buffers.into_own().is_some_and(|mut b| {
                copy(memory, &group.items, Direction::Read, b.bytes()).is_ok()
            });
            if !copied {
                error = Some(std::io::Error::from_raw_os_error(libc::EFAULT));
            }
        }
        let how = match error {
            None => Landing::Well,
            Some(e) if last_word => Landing::Failed(e),
            Some(_) => Landing::Again,
        };
        Some(Landed { group, started, segments, cached, how })
    }
}

impl Drop for Flights {
    fn drop(&mut self) {
        // Places and memory are held until the kernel is done with them.
        let mut ring = self.ring();
        while ring.in_flight() > 0 {
            if ring.wait().is_err() {
                drop(ring);
                std::mem::forget(std::mem::take(&mut self.flying));
                return;
            }
            ring.reap();
        }
    }
}

/// A buffer for all of a group, with the guest's bytes in it when they are to be written.
fn bounce(memory: &Memory, group: &Group, transfer: Transfer) -> Option<AlignedBuf> {
    let mut buffer = AlignedBuf::new(index(transfer.len));
    if transfer.direction == Direction::Write {
        copy(memory, &group.items, Direction::Write, buffer.bytes()).ok()?;
    }
    Some(buffer)
}

fn segments(request: Option<&Request>) -> &[Segment] {
    match request {
        Some(Request::Discard(all) | Request::WriteZeroes(all)) => all,
        _ => &[],
    }
}

fn plan_call(executor: &Executor, request: &Request, durable: bool) -> Option<Plan> {
    let backend = executor.disk().backend();
    let mut plan = Plan::default();
    let jobs: Vec<Job> = match request {
        // Whoever waits is told why.
        Request::Flush if executor.disk().has_lost() => return None,
        Request::Flush => {
            plan.last_word = true;
            vec![Job::Flush]
        }
        Request::Discard(_) | Request::WriteZeroes(_) if backend.read_only() || durable => {
            return None;
        }
        Request::Discard(all) => {
            all.iter().map(|s| Job::Discard { at: s.at, len: s.len }).collect()
        }
        Request::WriteZeroes(all) => {
            let space = |s: &Segment| if s.unmap { ZeroSpace::Unmap } else { ZeroSpace::Keep };
            let job = |s: &Segment| Job::WriteZeroes { at: s.at, len: s.len, space: space(s) };
            all.iter().map(job).collect()
        }
        _ => return None,
    };
    for job in jobs {
        let (held, call) = backend.pin_call(job)?;
        plan.held.push(held);
        match call {
            PinnedCall::Nothing => {}
            PinnedCall::Sync(fd) => plan.tasks.push(Task::Sync(fd)),
            PinnedCall::Fallocate { fd, mode, offset, len } => {
                plan.tasks.push(Task::Fallocate { fd, mode, offset, len });
            }
        }
    }
    Some(plan)
}
