//! The thread that serves a queue.
//!
//! Work is an object that waits for file descriptors and handles what becomes ready. Stopping the
//! thread gives the object back, so that pausing a machine is stopping its workers, and going on is
//! starting them again.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vmm_sys_util::eventfd::EventFd;

use crate::{Error, Result};

/// The driver has broken the rules so that the device cannot go on until it is reset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken(pub String);

/// What a thread does for a device.
pub trait Work: Send {
    /// The thread's name.
    fn name(&self) -> String;
    /// What to wait for. The same list each time.
    fn sources(&self) -> Vec<RawFd>;
    /// Whether a source matters at present.
    fn wants(&self, _source: usize) -> bool {
        true
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
                let confined = crate::sandbox::narrow(crate::sandbox::Kind::Device);
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

fn serve(work: &mut dyn Work, stop: &EventFd) -> std::result::Result<(), Broken> {
    let sources = duplicate(&work.sources())?;
    for i in 0..sources.len() {
        work.ready(i)?;
    }
    let stop_fd: BorrowedFd<'_> = crate::fd::of(stop);
    let (mut wanted, mut set) = (Vec::new(), Vec::new());
    loop {
        // Descriptors that do not matter at present are left out: errors would be told all the same.
        wanted.clear();
        wanted.extend((0..sources.len()).filter(|i| work.wants(*i)));
        set.clear();
        set.push(PollFd::new(stop_fd, PollFlags::POLLIN));
        set.extend(wanted.iter().map(|i| PollFd::new(sources[*i].as_fd(), PollFlags::POLLIN)));
        match poll(&mut set, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            Err(e) => return Err(Broken(format!("cannot wait for events: {e}"))),
            Ok(_) => {}
        }
        let fired = |p: &PollFd<'_>| p.revents().is_some_and(|r| r.contains(PollFlags::POLLIN));
        // A source that only has an error or is hung up would keep poll from waiting.
        let dead = set.iter().skip(1).zip(&wanted).any(|(p, i)| {
            let failed = |r: PollFlags| r.contains(PollFlags::POLLNVAL) || r == PollFlags::POLLERR;
            // It may have been turned off meanwhile.
            p.revents().is_some_and(failed) && work.wants(*i)
        });
        if fired(&set[0]) {
            return Ok(());
        }
        if dead {
            return Err(Broken("a back end has failed".into()));
        }
        for (i, _) in wanted.iter().zip(set.iter().skip(1)).filter(|(_, p)| fired(p)) {
            work.ready(*i)?;
        }
    }
}
