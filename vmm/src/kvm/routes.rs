//! The interrupt routing table: GSI numbers 0 to 23 are pins of the I/O APIC (0 to 15 of the two 8259
//! too), numbers from 24 on are handed out for message-signalled interrupts.
//!
//! KVM takes the whole table at once; this keeps it and sends it again on every change.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry,
};
use vmm_sys_util::eventfd::EventFd;

use super::Vm;
use crate::irq::{Message, MsiTarget, Vector, VectorSource};
use crate::num::{high32, low32};
use crate::{Error, Result};

/// Pins of the I/O APIC.
pub const PINS: u32 = 24;
/// KVM's own limit on the table (KVM_MAX_IRQ_ROUTES), minus room for the pins.
const MAX_MESSAGES: usize = 4000;

/// The table of one machine.
#[derive(Debug)]
pub struct Routes {
    vm: Arc<Vm>,
    /// By GSI; `None` is reserved, but goes nowhere yet.
    messages: Mutex<BTreeMap<u32, Option<MsiTarget>>>,
}

impl Routes {
    /// The table as the kernel makes it: pins only.
    pub fn new(vm: Arc<Vm>) -> Arc<Self> {
        Arc::new(Routes { vm, messages: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Option<MsiTarget>>> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reserves a GSI with an irqfd for a message.
    pub fn allocate(self: &Arc<Self>) -> Result<Route> {
        let mut all = self.lock();
        if all.len() >= MAX_MESSAGES {
            return Err(Error::new(
                crate::ErrorKind::TooLarge,
                format!("more than {MAX_MESSAGES} message interrupts"),
            )
            .hint("Give the devices fewer queues (num-queues=, queues=)"));
        }
        let gsi = (PINS..).find(|g| !all.contains_key(g)).unwrap_or(PINS);
        let event = EventFd::new(libc::EFD_NONBLOCK)
            .map_err(|e| Error::io(&e).context("cannot create an event descriptor"))?;
        all.insert(gsi, None);
        Ok(Route { routes: Arc::clone(self), gsi, event, attached: Mutex::new(false) })
    }

    fn set(&self, gsi: u32, target: Option<MsiTarget>) -> Result<()> {
        let mut all = self.lock();
        if all.insert(gsi, target) == Some(target) {
            return Ok(());
        }
        self.send(&all)
    }

    fn send(&self, all: &BTreeMap<u32, Option<MsiTarget>>) -> Result<()> {
        let mut entries = pins();
        entries.extend(all.iter().filter_map(|(gsi, t)| t.map(|t| message(*gsi, t))));
        let table = KvmIrqRouting::from_entries(&entries)
            .map_err(|e| Error::invalid(format!("interrupt routing table: {e:?}")))?;
        self.vm.set_routes(&table)
    }
}

/// A reserved GSI; given back when dropped.
#[derive(Debug)]
pub struct Route {
    routes: Arc<Routes>,
    gsi: u32,
    event: EventFd,
    attached: Mutex<bool>,
}

impl VectorSource for Arc<Routes> {
    fn allocate(&self) -> Result<Arc<dyn Vector>> {
        Ok(Arc::new(Routes::allocate(self)?))
    }
}

impl Vector for Route {
    fn set(&self, target: Option<MsiTarget>) -> Result<()> {
        let mut attached = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
        match (target, *attached) {
            (Some(_), false) => {
                // KVM looks the route up when the irqfd is attached.
                self.routes.set(self.gsi, target)?;
                self.routes.vm.attach_irqfd(&self.event, self.gsi)?;
                *attached = true;
            }
            (None, true) => {
                self.routes.vm.detach_irqfd(&self.event, self.gsi)?;
                *attached = false;
                self.routes.set(self.gsi, target)?;
            }
            _ => self.routes.set(self.gsi, target)?,
        }
        Ok(())
    }
}

impl Route {
    /// The event whose write raises it.
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// The number, for `info irq` and tests.
    pub fn gsi(&self) -> u32 {
        self.gsi
    }
}

impl Message for Route {
    fn raise(&self) {
        self.event.raise();
    }
}

impl Drop for Route {
    fn drop(&mut self) {
        // Nothing to be done about failures: the machine is being taken down.
        let _ = self.set(None);
        self.routes.lock().remove(&self.gsi);
    }
}

/// The kernel's own default: pins 0 to 15 on both kinds of controller, 16 to 23 on the I/O APIC. Pin 0
/// of the 8259 (the timer) is pin 2 of the I/O APIC; the MADT says so to the guest.
fn pins() -> Vec<kvm_irq_routing_entry> {
    let mut entries = Vec::with_capacity(48);
    for pin in 0..PINS {
        if pin < 16 {
            let chip = if pin < 8 { KVM_IRQCHIP_PIC_MASTER } else { KVM_IRQCHIP_PIC_SLAVE };
            entries.push(chip_entry(pin, chip, pin % 8));
        }
        match pin {
            0 => entries.push(chip_entry(0, KVM_IRQCHIP_IOAPIC, 2)),
            2 => {}
            _ => entries.push(chip_entry(pin, KVM_IRQCHIP_IOAPIC, pin)),
        }
    }
    entries
}

fn chip_entry(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    let mut entry =
        kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
    entry.u.irqchip = kvm_bindings::kvm_irq_routing_irqchip { irqchip, pin };
    entry
}

fn message(gsi: u32, target: MsiTarget) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    entry.u.msi = kvm_bindings::kvm_irq_routing_msi {
        address_lo: low32(target.address),
        address_hi: high32(target.address),
        data: target.data,
        ..Default::default()
    };
    entry
}
