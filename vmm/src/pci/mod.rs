//! PCI.
//!
//! * [`config`]: one function's configuration space: what the guest may write, BARs, capabilities.
//! * [`msix`]: message-signalled interrupts.
//! * [`root`]: bus 0, configuration ports, ECAM, where BARs are mapped.
//! * [`routing`]: which interrupt pin of a slot goes to which input of the I/O APIC.
//!
//! A function is reached in three ways: through its configuration space, through its BARs, which the
//! root maps onto the buses as the guest places them, and through the machine's [`Lifecycle`].
//!
//! Lock order: root's table, then a function's own locks, then the buses'.

pub mod config;
pub mod msix;
pub mod root;
pub mod routing;

use std::sync::Arc;

pub use config::{BarKind, ConfigSpace, Identity};
pub use root::Root;

use crate::bus::{Device, Effect};
use crate::devices::Lifecycle;

/// A BAR as the guest has placed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Number of the BAR.
    pub bar: u8,
    /// Ports or memory.
    pub kind: BarKind,
    /// Address.
    pub base: u64,
    /// Bytes.
    pub len: u64,
}

/// One function in a slot.
pub trait Function: Lifecycle {
    /// Its name, for `info pci` and messages.
    fn name(&self) -> String;
    /// Reads configuration space.
    fn config_read(&self, offset: u16, data: &mut [u8]);
    /// Writes configuration space; answers `Effect::Layout` when BARs were moved, or decoding switched.
    fn config_write(&self, offset: u16, data: &[u8]) -> Effect;
    /// All BARs with their sizes, placed or not: for the one who places them first.
    fn bars(&self) -> Vec<Placed>;
    /// BARs that answer at present.
    fn decoded(&self) -> Vec<Placed>;
    /// What answers at a BAR.
    fn bar(&self, bar: u8) -> Arc<dyn Device>;
    /// A BAR now lies there, or nowhere. For doorbells, which KVM watches itself.
    fn bar_moved(&self, _bar: u8, _base: Option<u64>) {}
}
