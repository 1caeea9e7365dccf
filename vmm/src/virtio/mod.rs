//! virtio devices (OASIS virtio 1.2; the legacy interface of section 4.1 for old guests).
//!
//! * [`chain`]: one request's buffers, taken from a queue once and not looked at in the queue again.
//! * [`queue`]: a queue that is in use: its ring, doorbell and interrupt.
//! * [`worker`]: the thread that serves a queue; can be stopped and started again with its work kept.
//! * [`registers`]: what the driver sets up, whatever the transport.
//! * [`pci`]: the transport.
//! * [`vhost`]: queues that the host's kernel serves.
//! * [`blk`], [`rng`], [`console`], [`balloon`], [`net`], [`vsock`]: the devices.
//!
//! Each device separates taking a request apart from carrying it out. Guest memory is read once: what
//! was checked is a copy, so a driver that changes it meanwhile gains nothing.

pub mod balloon;
pub mod blk;
pub mod chain;
pub mod console;
pub mod net;
pub mod pci;
pub mod queue;
pub mod registers;
pub mod rng;
pub mod vhost;
pub mod vsock;
pub mod worker;

#[cfg(any(test, feature = "testing"))]
pub mod driver;
#[cfg(any(test, feature = "testing"))]
pub mod hostile;
#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use chain::Chain;
pub use queue::ActiveQueue;
pub use worker::{Broken, Work};

use crate::Result;
use crate::irq::Message;
use crate::mem::Memory;

/// Feature bits that belong to the queue and the transport (section 6).
pub mod feature {
    /// Any arrangement of descriptors (legacy).
    pub const ANY_LAYOUT: u64 = 1 << 27;
    /// Indirect descriptors.
    pub const INDIRECT: u64 = 1 << 28;
    /// Used and available event indexes.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// Not the legacy interface.
    pub const VERSION_1: u64 = 1 << 32;
    /// What every device here has.
    pub const ALL: u64 = INDIRECT | EVENT_IDX | VERSION_1 | ANY_LAYOUT;
}

/// What kind of device it is (section 5), and how it looks on PCI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// Number of the device type.
    pub id: u16,
    /// Its name as in QEMU.
    pub name: &'static str,
    /// Device number on PCI where legacy drivers are to find it.
    pub legacy_pci: u16,
    /// Class, subclass, programming interface.
    pub class: (u8, u8, u8),
}

/// All a device gets when the driver says that it is ready.
pub struct Activation {
    /// The guest's memory.
    pub memory: Arc<Memory>,
    /// Queues that the driver has made; those it has left out are `None`.
    pub queues: Vec<Option<ActiveQueue>>,
    /// Features agreed upon.
    pub features: u64,
    /// Tells the driver that the device's configuration has changed.
    pub config_changed: Arc<dyn Message>,
}

/// Somebody waits for the requests of a device to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settle {
    /// From now on.
    Begin,
    /// No longer.
    End,
}

/// A device behind a transport.
pub trait VirtioDevice: Send + Sync {
    /// What it is.
    fn kind(&self) -> Kind;
    /// Features beyond those of [`feature::ALL`].
    fn features(&self) -> u64;
    /// Greatest size of each queue.
    fn queue_sizes(&self) -> Vec<u16>;
    /// Reads its configuration.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// Writes its configuration.
    fn write_config(&self, _offset: u64, _data: &[u8]) {}
    /// Begins; returns the work to be done in threads of its own.
    fn activate(&self, activation: Activation) -> Result<Vec<Box<dyn Work>>>;
    /// Requests should end soon, or may take their time again: its work is being stopped.
    fn settle(&self, _settle: Settle) {}
    /// The driver has reset the device. No work runs any more.
    fn reset(&self) {}
    /// Makes stored data durable; may run beside work.
    fn flush(&self) -> Result<()> {
        Ok(())
    }
    /// The machine ends. No work runs any more.
    fn shut_down(&self) -> Result<()> {
        Ok(())
    }
}
