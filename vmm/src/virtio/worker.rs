//! The thread that serves a queue.
//!
//! Work is an object that waits for file descriptors and handles what becomes ready. Stopping the
//! thread gives the object back, so that pausing a machine is stopping its workers, and going on is
//! starting them again.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use crate::num::{index, len_u64};
use crate::{Error, Result, sandbox};

/// The driver has broken the rules so that the device cannot go on until it is reset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken(pub String);

/// What a thread does for a device.
pub trait Work: Send {
    /// The thread's name.
    fn name(&self) -> String;
    /// What kind of thread it needs, when the process is confined.
    fn kind(&self) -> sandbox::Kind {
        sandbox::Kind::Device
    }
    /// What to wait for. The same list each time.
    fn sources(&self) -> Vec<RawFd>;
    /// Whether a source matters at present.
    fn wants(&self, _source: usize) -> bool {
        true
    }
    /// Whether a source is a bell that need not be answered: each ring of an event descriptor is told once, and
    /// nobody reads it.
    fn is_bell(&self, _source: usize) -> bool {
        false
    }
    /// A source is ready. Also called once for each source when the thread starts: requests may have
    /// been waiting.
    fn ready(&mut self, source: usize) -> std::result::Result<(), Broken>;
    /// The thread is about to end: waits for what others are still doing for this work.
    fn quiesce(&mut self) {}
}

/// Whether somebody took notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Yes.
    Yes,
    /// Not now.
    No,
}

/// Milliseconds between two tries to be heard.
const SOON: u16 = 2;

/// Whether the thread is told to stop, now or in a few milliseconds.
fn told_within(stop: &EventFd, milliseconds: u16) -> bool {
    let mut set = [PollFd::new(crate::fd::of(stop), PollFlags::POLLIN)];
    matches!(poll(&mut set, PollTimeout::from(milliseconds)), Ok(n) if n > 0)
}

type Ended = (Box<dyn Work>, Option<Broken>);

/// A running thread.
pub struct Worker {
    thread: JoinHandle<Ended>,
    stop: EventFd,
}

impl Worker {
    /// Starts. `broken` is called from the thread when the work cannot go on, again and again until it says
    /// that it was heard or the thread is told to stop: whoever is to hear it may be busy waiting for
    /// another thread.
    pub fn start(
        mut work: Box<dyn Work>,
        broken: impl Fn(&Broken) -> Heard + Send + 'static,
    ) -> Result<Self> {
        let no_event =
            |e: std::io::Error| Error::io(&e).context("cannot create an event descriptor");
        let stop = EventFd::new(libc::EFD_NONBLOCK).map_err(no_event)?;
        let inner = stop.try_clone().map_err(no_event)?;
        let thread = std::thread::Builder::new()
            .name(work.name())
            .spawn(move || {
                let confined = sandbox::narrow(work.kind());
                let result = match confined {
                    Ok(()) => serve(&mut *work, &inner).err(),
                    Err(e) => Some(Broken(e.report())),
                };
                work.quiesce();
                if let Some(b) = &result {
                    while broken(b) == Heard::No && !told_within(&inner, SOON) {}
                }
                (work, result)
            })
            .map_err(|e| Error::io(&e).context("cannot start a device's thread"))?;
        Ok(Worker { thread, stop })
    }

    /// Ends the thread after what it is at, and gives the work back (`None` after a panic).
    pub fn stop(self) -> Option<Box<dyn Work>> {
        // An event descriptor of our own at zero can always be written.
        let _ = self.stop.write(1);
        self.thread.join().ok().map(|(work, _)| work)
    }
}

/// Duplicates, so that a descriptor that its owner closes does not become another file's meanwhile.
fn duplicate(fds: &[RawFd]) -> std::result::Result<Vec<OwnedFd>, Broken> {
    fds.iter()
        .map(|fd| crate::fd::borrow(*fd).try_clone_to_owned())
        .collect::<std::io::Result<_>>()
        .map_err(|e| Broken(format!("cannot duplicate a descriptor: {e}")))
}

/// What to wait for, kept by the kernel: queues wait once for each request or two.
struct Waiting {
    epoll: Epoll,
    sources: Vec<OwnedFd>,
    /// Which sources are waited for at present.
    armed: Vec<bool>,
}

/// Stands for the request to stop among the numbers of sources.
const STOP: u64 = u64::MAX;

fn cannot_wait(e: impl std::fmt::Display) -> Broken {
    Broken(format!("cannot wait for events: {e}"))
}

impl Waiting {
    fn new(sources: &[RawFd], stop: &EventFd) -> std::result::Result<Self, Broken> {
        let epoll = Epoll::new().map_err(cannot_wait)?;
        let event = EpollEvent::new(EventSet::IN, STOP);
        epoll.ctl(ControlOperation::Add, stop.as_raw_fd(), event).map_err(cannot_wait)?;
        let sources = duplicate(sources)?;
        let armed = vec![false; sources.len()];
        Ok(Waiting { epoll, sources, armed })
    }

    /// Descriptors that do not matter at present are left out: errors would be told all the same.
    fn arm(&mut self, work: &dyn Work) -> std::result::Result<(), Broken> {
        for (i, (source, armed)) in self.sources.iter().zip(&mut self.armed).enumerate() {
            let wanted = work.wants(i);
            if wanted != *armed {
                let how = if wanted { ControlOperation::Add } else { ControlOperation::Delete };
                let bell =
                    if work.is_bell(i) { EventSet::EDGE_TRIGGERED } else { EventSet::empty() };
                let event = EpollEvent::new(EventSet::IN | bell, len_u64(i));
                self.epoll.ctl(how, source.as_raw_fd(), event).map_err(cannot_wait)?;
                *armed = wanted;
            }
        }
        Ok(())
    }
}

fn serve(work: &mut dyn Work, stop: &EventFd) -> std::result::Result<(), Broken> {
    let mut waiting = Waiting::new(&work.sources(), stop)?;
    for i in 0..waiting.sources.len() {
        work.ready(i)?;
    }
    let mut events = vec![EpollEvent::default(); waiting.sources.len() + 1];
    loop {
        waiting.arm(work)?;
        let count = match waiting.epoll.wait(-1, &mut events) {
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(cannot_wait(e)),
            Ok(count) => count,
        };
        let events = &events[..count];
        if events.iter().any(|e| e.data() == STOP) {
            return Ok(());
        }
        for event in events {
            let source = index(event.data());
            if event.event_set().contains(EventSet::IN) {
                work.ready(source)?;
            } else if work.wants(source) {
                // Only an error, or hung up: that would keep this thread from waiting.
                return Err(Broken("a back end has failed".into()));
            }
        }
    }
}
