//! What devices, keys and monitors want of the machine.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::Error;
use crate::block::disk::IoError;
use crate::bus::Effect;
use crate::control::Ask;
use crate::control::port::Job;
use crate::pci::Root;
use crate::vcpu::{Buses, Control, EffectSink, Wish};

/// From outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// End now: somebody presses a key for it, or the process was told to by a signal.
    Quit,
    /// Press the power button.
    PowerDown,
    /// Press the reset button.
    Reset,
    /// Stop vCPUs.
    Stop,
    /// Let them go on.
    Continue,
    /// Make stored data durable.
    Flush,
}

/// What arrives at the machine's main thread.
pub enum Event {
    /// A device's answer to an access.
    Effect(Effect),
    /// A vCPU cannot go on.
    Failed(Error),
    /// From outside.
    Command(Command),
    /// A monitor's command; the sender says that it was done.
    Job(Job, Sender<()>),
    /// A disk reported an error.
    Disk(IoError),
}

/// Sends commands; can be cloned and used by any thread.
#[derive(Clone, Debug)]
pub struct Handle(pub(super) Sender<Event>);

impl Handle {
    /// Sends a command; a machine that has ended ignores it.
    pub fn send(&self, command: Command) {
        let _ = self.0.send(Event::Command(command));
    }
}

impl Ask for Handle {
    fn ask(&self, job: Job) -> bool {
        let (done, wait) = channel();
        self.0.send(Event::Job(job, done)).is_ok() && wait.recv().is_ok()
    }
}

/// Takes effects from vCPU threads.
pub(super) struct Sink {
    pub events: Mutex<Sender<Event>>,
    pub control: OnceLock<Arc<Control>>,
    pub root: Arc<Root>,
    pub buses: Buses,
}

impl Sink {
    fn send(&self, event: Event) {
        // Nobody listens any more when the machine is being taken down.
        let _ = self.events.lock().unwrap_or_else(PoisonError::into_inner).send(event);
    }
}

impl EffectSink for Sink {
    fn effect(&self, effect: Effect) {
        if effect == Effect::Layout {
            self.root.apply_layout(&self.buses);
            return;
        }
        // No guest instruction after the one that asked.
        if let Some(control) = self.control.get() {
            control.set(Wish::Pause);
        }
        self.send(Event::Effect(effect));
    }

    fn failed(&self, _vcpu: u8, error: Error) {
        self.send(Event::Failed(error));
    }
}
