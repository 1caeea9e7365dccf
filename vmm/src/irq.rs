//! Interrupt lines as devices see them.
//!
//! A device sets the level of its line; whether the controller looks at edges or levels is the
//! guest's choice. Lines that several devices share (PCI INTx) are joined by [`SharedLine`].

use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::eventfd::EventFd;

/// Level of an interrupt line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Level {
    /// Not asserted.
    #[default]
    Low,
    /// Asserted.
    High,
}

impl From<bool> for Level {
    fn from(asserted: bool) -> Self {
        if asserted { Level::High } else { Level::Low }
    }
}

/// One input of an interrupt controller.
pub trait Line: Send + Sync + Debug {
    /// Sets the level. Setting the level it has is allowed and cheap.
    fn set(&self, level: Level);

    /// High, then low: an edge.
    fn pulse(&self) {
        self.set(Level::High);
        self.set(Level::Low);
    }
}

/// A message-signalled interrupt that can be raised from any thread.
pub trait Message: Send + Sync + Debug {
    /// Raises it.
    fn raise(&self);
}

/// Where a message-signalled interrupt goes, as the guest wrote it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MsiTarget {
    /// Message address.
    pub address: u64,
    /// Message data.
    pub data: u32,
}

/// A message whose target the guest chooses.
pub trait Vector: Message {
    /// Points it somewhere, or nowhere (masked).
    fn set(&self, target: Option<MsiTarget>) -> crate::Result<()>;
}

/// Where vectors come from.
pub trait VectorSource: Send + Sync + Debug {
    /// One more; given back when dropped.
    fn allocate(&self) -> crate::Result<Arc<dyn Vector>>;
}

impl Message for EventFd {
    fn raise(&self) {
        // Fails only when 2^64-2 interrupts are pending already; then one more means nothing.
        let _ = self.write(1);
    }
}

/// A line that goes nowhere.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoLine;

impl Line for NoLine {
    fn set(&self, _level: Level) {}
}

/// A line with several drivers; high while any of them is.
#[derive(Debug)]
pub struct SharedLine {
    below: Arc<dyn Line>,
    drivers: Arc<Mutex<Vec<Level>>>,
}

impl SharedLine {
    /// Joins drivers onto `below`.
    pub fn new(below: Arc<dyn Line>) -> Self {
        SharedLine { below, drivers: Arc::default() }
    }

    /// One more driver.
    pub fn driver(&self) -> Arc<dyn Line> {
        let mut drivers = self.drivers.lock().unwrap_or_else(PoisonError::into_inner);
        drivers.push(Level::Low);
        let index = drivers.len() - 1;
        Arc::new(Driver { below: self.below.clone(), drivers: self.drivers.clone(), index })
    }
}

#[derive(Debug)]
struct Driver {
    below: Arc<dyn Line>,
    drivers: Arc<Mutex<Vec<Level>>>,
    index: usize,
}

impl Line for Driver {
    fn set(&self, level: Level) {
        // Held while the line below is set, so that two drivers cannot leave it at a stale level.
        let mut drivers = self.drivers.lock().unwrap_or_else(PoisonError::into_inner);
        if drivers[self.index] != level {
            drivers[self.index] = level;
            self.below.set(drivers.contains(&Level::High).into());
        }
    }
}

/// A line that remembers what happened to it, for tests of devices.
#[derive(Debug, Default)]
pub struct RecordedLine(Mutex<(Level, u32)>);

impl RecordedLine {
    /// The present level.
    pub fn level(&self) -> Level {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0
    }

    /// How often it went from low to high.
    pub fn rises(&self) -> u32 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1
    }
}

impl Line for RecordedLine {
    fn set(&self, level: Level) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.0 == Level::Low && level == Level::High {
            state.1 += 1;
        }
        state.0 = level;
    }
}

/// A vector that remembers what happened to it, for tests of devices.
#[derive(Debug, Default)]
pub struct RecordedVector(Mutex<(Option<MsiTarget>, u32)>);

impl RecordedVector {
    /// Its target.
    pub fn target(&self) -> Option<MsiTarget> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0
    }

    /// How often it was raised.
    pub fn count(&self) -> u32 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1
    }
}

impl Message for RecordedVector {
    fn raise(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1 += 1;
    }
}

impl Vector for RecordedVector {
    fn set(&self, target: Option<MsiTarget>) -> crate::Result<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0 = target;
        Ok(())
    }
}

/// Hands out [`RecordedVector`]s and keeps them.
#[derive(Debug, Default)]
pub struct RecordedVectors(pub Mutex<Vec<Arc<RecordedVector>>>);

impl VectorSource for RecordedVectors {
    fn allocate(&self) -> crate::Result<Arc<dyn Vector>> {
        let v = Arc::new(RecordedVector::default());
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(v.clone());
        Ok(v)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_line_is_high_while_any_driver_is() {
        let below = Arc::new(RecordedLine::default());
        let shared = SharedLine::new(below.clone());
        let (a, b) = (shared.driver(), shared.driver());
        a.set(Level::High);
        b.set(Level::High);
        a.set(Level::Low);
        assert_eq!((below.level(), below.rises()), (Level::High, 1));
        b.set(Level::Low);
        assert_eq!(below.level(), Level::Low);
    }
}
