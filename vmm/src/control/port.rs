//! The thread of one monitor, between a character device and the machine.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;

use super::events::Broadcast;
use super::steered::Steered;
use super::{MonitorMode, hmp, qmp};
use crate::chardev::{CharEvent, Chardev, FrontEnd, Patience, Waker, Writer};
use crate::{Error, Result};

/// Bytes of input that wait for the monitor's thread.
const INPUT: usize = 16 << 10;
/// Events that wait for a client that does not read; older ones give way.
const EVENTS: usize = 1024;

/// Work on a machine.
pub type Job = Box<dyn FnOnce(&mut dyn Steered) + Send>;

/// Gets work done on the machine's main thread.
pub trait Ask: Send + Sync {
    /// Has `job` done and waits for it; false when the machine has ended and it was not done.
    fn ask(&self, job: Job) -> bool;
}

/// Has `work` done and returns what it returns; `None` when the machine has ended.
pub fn ask<R: Send + 'static>(
    machine: &dyn Ask,
    work: impl FnOnce(&mut dyn Steered) -> R + Send + 'static,
) -> Option<R> {
    let result = Arc::new(Mutex::new(None));
    let inner = result.clone();
    let done = machine.ask(Box::new(move |m| {
        *inner.lock().unwrap_or_else(PoisonError::into_inner) = Some(work(m));
    }));
    let value = result.lock().unwrap_or_else(PoisonError::into_inner).take();
    value.filter(|_| done)
}

/// What a monitor's thread is told.
#[derive(Debug)]
pub(super) enum Note {
    /// The client has sent this.
    Input(Vec<u8>),
    /// A client came or went, or input of a shared device.
    Char(CharEvent),
    /// Something happened to the machine.
    Event(Value),
    /// The machine has ended.
    End,
}

#[derive(Default)]
struct Inbox {
    notes: VecDeque<Note>,
    events: VecDeque<Value>,
    bytes: usize,
    ending: bool,
    finished: bool,
}

/// What a character device and the machine leave for a monitor's thread.
#[derive(Default)]
pub struct Port {
    inbox: Mutex<Inbox>,
    changed: Condvar,
    waker: OnceLock<Waker>,
}

impl Port {
    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves an event.
    pub(super) fn tell(&self, event: Value) {
        let mut inbox = self.lock();
        // A guest may change its balloon as often as it likes; only the last size counts.
        if inbox.events.back().is_some_and(|last| {
            last["event"] == "BALLOON_CHANGE" && last["event"] == event["event"]
        }) {
            inbox.events.pop_back();
        }
        if inbox.events.len() >= EVENTS {
            inbox.events.pop_front();
        }
        inbox.events.push_back(event);
        self.changed.notify_all();
    }

    /// Events that have come meanwhile: they go out before the answer to the command that caused them.
    pub(super) fn take_events(&self) -> Vec<Value> {
        self.lock().events.drain(..).collect()
    }

    fn end(&self) {
        self.lock().ending = true;
        self.changed.notify_all();
    }

    fn next(&self) -> Note {
        let mut inbox = self.lock();
        loop {
            if let Some(event) = inbox.events.pop_front() {
                return Note::Event(event);
            }
            if let Some(note) = inbox.notes.pop_front() {
                if let Note::Input(bytes) = &note {
                    inbox.bytes -= bytes.len();
                    drop(inbox);
                    if let Some(w) = self.waker.get() {
                        w.wake();
                    }
                }
                return note;
            }
            if inbox.ending {
                return Note::End;
            }
            inbox = self.changed.wait(inbox).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl FrontEnd for Port {
    fn receive(&self, bytes: &[u8]) -> usize {
        let mut inbox = self.lock();
        let n = INPUT.saturating_sub(inbox.bytes).min(bytes.len());
        if n > 0 {
            inbox.bytes += n;
            inbox.notes.push_back(Note::Input(bytes[..n].to_vec()));
            self.changed.notify_all();
        }
        n
    }

    fn event(&self, event: CharEvent) {
        let mut inbox = self.lock();
        // Coming and going without anything in between leaves nothing to do.
        if inbox.notes.len() < EVENTS {
            inbox.notes.push_back(Note::Char(event));
        }
        self.changed.notify_all();
    }
}

/// A running monitor.
pub struct Monitor {
    port: Arc<Port>,
    thread: Option<JoinHandle<()>>,
}

impl Monitor {
    /// Puts a monitor in front of a character device and starts its thread.
    pub fn start(
        mode: MonitorMode,
        device: &Chardev,
        machine: Arc<dyn Ask>,
        broadcast: &Broadcast,
    ) -> Result<Self> {
        let port = Arc::new(Port::default());
        // Set once, here.
        let _ = port.waker.set(device.waker());
        device.attach(port.clone())?;
        if let MonitorMode::Control { .. } = mode {
            broadcast.join(port.clone());
        }
        let (inner, out) = (port.clone(), device.writer(Patience::UntilGone));
        let thread = std::thread::Builder::new()
            .name("monitor".into())
            .spawn(move || {
                serve(mode, &inner, out, &*machine);
                inner.lock().finished = true;
                inner.changed.notify_all();
            })
            .map_err(|e| Error::io(&e).context("cannot start a monitor's thread"))?;
        Ok(Monitor { port, thread: Some(thread) })
    }
}

impl Monitor {
    /// Lets it answer and tell what waits, for at most so long. Afterwards only a client that does not
    /// read can still keep its thread, until the character device is stopped.
    pub fn finish(&self, limit: Duration) {
        self.port.end();
        let inbox = self.port.lock();
        let waiting = |i: &mut Inbox| !i.finished;
        drop(self.port.changed.wait_timeout_while(inbox, limit, waiting));
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.port.end();
        if let Some(t) = self.thread.take() {
            let _ = t.join();
        }
    }
}

fn serve(mode: MonitorMode, port: &Port, mut out: Writer, machine: &dyn Ask) {
    match mode {
        MonitorMode::Human => {
            let mut session = hmp::Session::new();
            loop {
                match port.next() {
                    Note::Input(bytes) => session.input(&bytes, machine, &mut out),
                    Note::Char(event) => session.event(event, &mut out),
                    Note::Event(_) => {}
                    Note::End => return,
                }
            }
        }
        MonitorMode::Control { pretty } => {
            let mut session = qmp::Session::new(pretty);
            loop {
                match port.next() {
                    Note::Input(bytes) => session.input(&bytes, machine, port, &mut out),
                    Note::Char(event) => session.event(event, &mut out),
                    Note::Event(value) => session.tell(&value, &mut out),
                    Note::End => return,
                }
            }
        }
    }
}
