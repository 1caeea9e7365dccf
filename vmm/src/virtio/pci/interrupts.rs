//! How a device's interrupts reach the guest: MSI-X when the guest has turned it on, otherwise the pin
//! with the interrupt status register.

use std::sync::{Arc, Mutex, PoisonError};

use crate::irq::{Level, Line, Message};
use crate::pci::msix::Msix;

const QUEUE: u8 = 1;
const CONFIG: u8 = 2;

/// Both ways.
#[derive(Debug)]
pub struct Interrupts {
    /// Messages.
    pub msix: Msix,
    line: Arc<dyn Line>,
    isr: Mutex<u8>,
}

impl Interrupts {
    /// With the line of the slot's pin.
    pub fn new(msix: Msix, line: Arc<dyn Line>) -> Self {
        Interrupts { msix, line, isr: Mutex::default() }
    }

    fn raise(&self, bit: u8, vector: u16) {
        if self.msix.enabled() {
            self.msix.raise(vector);
        } else {
            let mut isr = self.isr.lock().unwrap_or_else(PoisonError::into_inner);
            *isr |= bit;
            self.line.set(Level::High);
        }
    }

    /// The guest reads the status: that clears it, and the pin.
    pub fn take_status(&self) -> u8 {
        let mut isr = self.isr.lock().unwrap_or_else(PoisonError::into_inner);
        self.line.set(Level::Low);
        std::mem::take(&mut *isr)
    }

    /// Back to the state after power-on.
    pub fn reset(&self) {
        self.take_status();
        self.msix.reset();
    }

    /// The interrupt of a queue with this vector.
    pub fn of_queue(self: &Arc<Self>, vector: u16) -> Arc<dyn Message> {
        Arc::new(Signal { interrupts: self.clone(), bit: QUEUE, vector })
    }

    /// The interrupt for changes of the configuration.
    pub fn of_config(self: &Arc<Self>, vector: u16) -> Arc<dyn Message> {
        Arc::new(Signal { interrupts: self.clone(), bit: CONFIG, vector })
    }
}

#[derive(Debug)]
struct Signal {
    interrupts: Arc<Interrupts>,
    bit: u8,
    vector: u16,
}

impl Message for Signal {
    fn raise(&self) {
        self.interrupts.raise(self.bit, self.vector);
    }
}
