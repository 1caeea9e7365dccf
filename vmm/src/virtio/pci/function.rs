//! The PCI function of a virtio device.
//!
//! Lock order: `inner` (registers and workers), then whatever the device has. Interrupts and doorbells
//! take no lock of the function, so that workers may raise them while the function waits for workers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use vmm_sys_util::eventfd::EventFd;

use super::common::{self, Action};
use super::interrupts::Interrupts;
use super::{
    DEVICE, ISR, LEGACY_BAR, LEGACY_LEN, MODERN_BAR, MODERN_LEN, MSIX_BAR, NOTIFY, NOTIFY_STRIDE,
};
use crate::bus::{Device, Effect};
use crate::devices::Lifecycle;
use crate::irq::{Line, Message, VectorSource};
use crate::kvm::Vm;
use crate::kvm::vm::Doorbell;
use crate::mem::Memory;
use crate::num::{len_u64, low16, put_le};
use crate::pci::msix::{self, Msix};
use crate::pci::{BarKind, ConfigSpace, Function, Identity, Placed};
use crate::virtio::registers::{Registers, status};
use crate::virtio::worker::{Heard, Work, Worker};
use crate::virtio::{Activation, ActiveQueue, Settle, VirtioDevice, feature};
use crate::{Error, Result};

/// Lets KVM ring doorbells by itself.
pub trait DoorbellPort: Send + Sync {
    /// From now on.
    fn attach(&self, event: &EventFd, bell: Doorbell) -> Result<()>;
    /// No longer.
    fn detach(&self, event: &EventFd, bell: Doorbell) -> Result<()>;
}

impl DoorbellPort for Vm {
    fn attach(&self, event: &EventFd, bell: Doorbell) -> Result<()> {
        self.attach_doorbell(event, bell)
    }
    fn detach(&self, event: &EventFd, bell: Doorbell) -> Result<()> {
        self.detach_doorbell(event, bell)
    }
}

/// What the machine gives every virtio function.
pub struct Settings {
    /// The guest's memory.
    pub memory: Arc<Memory>,
    /// Where MSI-X vectors come from.
    pub vectors: Arc<dyn VectorSource>,
    /// The line of the slot's interrupt pin.
    pub line: Arc<dyn Line>,
    /// KVM's doorbells, if there is a KVM.
    pub doorbells: Option<Arc<dyn DoorbellPort>>,
}

struct Inner {
    registers: Registers,
    config: ConfigSpace,
    running: Vec<Worker>,
    paused: Vec<Box<dyn Work>>,
    attached: Vec<(usize, Doorbell)>,
}

/// A virtio device on PCI.
pub struct VirtioPci {
    device: Arc<dyn VirtioDevice>,
    settings: Settings,
    interrupts: Arc<Interrupts>,
    bells: Vec<EventFd>,
    msix_at: usize,
    inner: Mutex<Inner>,
    me: Weak<VirtioPci>,
}

impl VirtioPci {
    /// Puts `device` behind a PCI function.
    pub fn new(device: Arc<dyn VirtioDevice>, settings: Settings) -> Result<Arc<Self>> {
        let sizes = device.queue_sizes();
        let kind = device.kind();
        let mut config = ConfigSpace::new(&Identity {
            vendor: 0x1af4,
            // Transitional: legacy drivers look for this number and for revision 0.
            device: kind.legacy_pci,
            class: kind.class,
            subsystem_vendor: 0x1af4,
            subsystem: kind.id,
            pin: 1,
            ..Identity::default()
        });
        config.add_bar(LEGACY_BAR, BarKind::Io, LEGACY_LEN)?;
        config.add_bar(MSIX_BAR, BarKind::Memory32, msix::BAR_LEN)?;
        config.add_bar(MODERN_BAR, BarKind::Memory64, MODERN_LEN)?;
        // One vector a queue, one for the configuration.
        let vectors = low16(len_u64(sizes.len()) + 1);
        let msix = Msix::new(vectors, settings.vectors.clone());
        let (body, mask) = msix.capability(MSIX_BAR);
        let msix_at = config.add_capability(msix::CAPABILITY, &body, &mask)?;
        for (kind, offset, len) in [(1, 0, 0x1000), (3, ISR, 0x1000), (4, DEVICE, 0x1000)] {
            config.add_capability(9, &capability(kind, offset, len, None), &[])?;
        }
        let stride = Some(NOTIFY_STRIDE);
        config.add_capability(9, &capability(2, NOTIFY, 0x1000, stride), &[])?;
        let mut bells = Vec::new();
        for _ in &sizes {
            let e = EventFd::new(libc::EFD_NONBLOCK)
                .map_err(|e| Error::io(&e).context("cannot create an event descriptor"))?;
            bells.push(e);
        }
        let inner = Inner {
            registers: Registers::new(device.features() | feature::ALL, &sizes),
            config,
            running: Vec::new(),
            paused: Vec::new(),
            attached: Vec::new(),
        };
        let interrupts = Arc::new(Interrupts::new(msix, settings.line.clone()));
        Ok(Arc::new_cyclic(|me| VirtioPci {
            device,
            settings,
            interrupts,
            bells,
            msix_at,
            inner: Mutex::new(inner),
            me: me.clone(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Device status as the driver reads it; for tests and `info qtree`.
    pub fn status(&self) -> u8 {
        self.lock().registers.status
    }

    fn act(&self, mut inner: MutexGuard<'_, Inner>, action: Action) {
        match action {
            Action::None => {}
            Action::Ring(queue) => {
                drop(inner);
                self.ring(queue);
            }
            Action::Reset => self.stop(&mut inner),
            Action::Begin => {
                if self.begin(&mut inner).is_err() {
                    self.needs_reset(inner);
                }
            }
        }
    }

    fn ring(&self, queue: u16) {
        if let Some(bell) = self.bells.get(usize::from(queue)) {
            bell.raise();
        }
    }

    /// The driver is told that the device is out of order until it is reset.
    fn needs_reset(&self, mut inner: MutexGuard<'_, Inner>) {
        inner.registers.status |= status::NEEDS_RESET;
        let vector = inner.registers.config_vector;
        drop(inner);
        self.interrupts.of_config(vector).raise();
    }

    fn begin(&self, inner: &mut Inner) -> Result<()> {
        let r = &inner.registers;
        let mut queues = Vec::new();
        for (setup, bell) in r.queues.iter().zip(&self.bells) {
            if !setup.ready {
                queues.push(None);
                continue;
            }
            let queue = setup.build(&self.settings.memory, r.accepted)?;
            let bell = bell.try_clone().map_err(|e| Error::io(&e))?;
            queues.push(Some(ActiveQueue::new(
                queue,
                bell,
                self.interrupts.of_queue(setup.vector),
            )));
        }
        let work = self.device.activate(Activation {
            memory: self.settings.memory.clone(),
            queues,
            features: r.accepted,
            config_changed: self.interrupts.of_config(r.config_vector),
        })?;
        for w in work {
            inner.running.push(self.start(w)?);
        }
        self.attach_bells(inner);
        Ok(())
    }

    fn start(&self, work: Box<dyn Work>) -> Result<Worker> {
        let me = self.me.clone();
        Worker::start(work, move |_broken| {
            let Some(me) = me.upgrade() else { return Heard::Yes };
            // Somebody who holds the lock may be waiting for this thread to end.
            match me.inner.try_lock() {
                Ok(inner) => {
                    me.needs_reset(inner);
                    Heard::Yes
                }
                Err(_) => Heard::No,
            }
        })
    }

    /// Ends all work and forgets what the driver has set up.
    fn stop(&self, inner: &mut Inner) {
        self.detach_bells(inner);
        self.device.settle(Settle::Begin);
        for worker in std::mem::take(&mut inner.running) {
            drop(worker.stop());
        }
        self.device.settle(Settle::End);
        inner.paused.clear();
        inner.registers.reset();
        self.interrupts.take_status();
        for bell in &self.bells {
            let _ = bell.read();
        }
        self.device.reset();
    }

    /// Doorbells where the BARs are; only while the device is active.
    fn attach_bells(&self, inner: &mut Inner) {
        let Some(port) = &self.settings.doorbells else { return };
        if inner.registers.status & status::DRIVER_OK == 0 {
            return;
        }
        for placed in inner.config.decoded() {
            for (i, bell) in self.bells.iter().enumerate() {
                let number = len_u64(i);
                let at = match placed.bar {
                    MODERN_BAR => Doorbell::Mmio(placed.base + NOTIFY + NOTIFY_STRIDE * number),
                    LEGACY_BAR => Doorbell::PortValue(low16(placed.base + 16), low16(number)),
                    _ => continue,
                };
                let known = inner.attached.contains(&(i, at));
                // When KVM refuses, the doorbell still works, as a register.
                if !known && port.attach(bell, at).is_ok() {
                    inner.attached.push((i, at));
                }
            }
        }
    }

    fn detach_bells(&self, inner: &mut Inner) {
        if let Some(port) = &self.settings.doorbells {
            for (i, at) in inner.attached.drain(..) {
                let _ = port.detach(&self.bells[i], at);
            }
        }
    }

    fn modern_read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match offset {
            0..ISR => common::read_modern(&self.lock().registers, offset, data),
            ISR..DEVICE => data[0] = self.interrupts.take_status(),
            DEVICE..NOTIFY => self.device.read_config(offset - DEVICE, data),
            _ => {}
        }
    }

    fn modern_write(&self, offset: u64, data: &[u8]) {
        match offset {
            0..ISR => {
                let mut inner = self.lock();
                let ok = |v| self.interrupts.msix.has(v);
                let action = common::write_modern(&mut inner.registers, offset, data, ok);
                self.act(inner, action);
            }
            DEVICE..NOTIFY => self.device.write_config(offset - DEVICE, data),
            NOTIFY.. => self.ring(low16((offset - NOTIFY) / NOTIFY_STRIDE)),
            _ => {}
        }
    }

    /// Where the device's configuration begins among the legacy registers.
    fn legacy_config(&self) -> u64 {
        if self.interrupts.msix.enabled() { 24 } else { 20 }
    }

    fn legacy_read(&self, offset: u64, data: &mut [u8]) {
        let config = self.legacy_config();
        match offset {
            19 => data[0] = self.interrupts.take_status(),
            o if o >= config => self.device.read_config(o - config, data),
            _ => common::read_legacy(&self.lock().registers, offset, data),
        }
    }

    fn legacy_write(&self, offset: u64, data: &[u8]) {
        let config = self.legacy_config();
        if offset >= config {
            self.device.write_config(offset - config, data);
            return;
        }
        let mut inner = self.lock();
        let ok = |v| self.interrupts.msix.has(v);
        let action = common::write_legacy(&mut inner.registers, offset, data, ok);
        self.act(inner, action);
    }
}

/// Body of a virtio capability behind its header (section 4.1.4).
fn capability(kind: u8, offset: u64, len: u64, stride: Option<u64>) -> Vec<u8> {
    let total = if stride.is_some() { 20 } else { 16 };
    let mut b = vec![0; total - 2];
    b[0] = if stride.is_some() { 20 } else { 16 };
    b[1] = kind;
    b[2] = MODERN_BAR;
    put_le(&mut b[6..10], offset);
    put_le(&mut b[10..14], len);
    if let Some(s) = stride {
        put_le(&mut b[14..18], s);
    }
    b
}

impl Lifecycle for VirtioPci {
    fn pause(&self) -> Result<()> {
        let mut inner = self.lock();
        self.device.settle(Settle::Begin);
        for worker in std::mem::take(&mut inner.running) {
            inner.paused.extend(worker.stop());
        }
        self.device.settle(Settle::End);
        Ok(())
    }

    fn resume(&self) -> Result<()> {
        let mut inner = self.lock();
        for work in std::mem::take(&mut inner.paused) {
            let worker = self.start(work)?;
            inner.running.push(worker);
        }
        Ok(())
    }

    fn reset(&self) {
        let mut inner = self.lock();
        self.stop(&mut inner);
        inner.config.reset();
        drop(inner);
        self.interrupts.reset();
    }

    fn flush(&self) -> Result<()> {
        self.device.flush()
    }

    fn shut_down(&self) -> Result<()> {
        {
            let mut inner = self.lock();
            self.stop(&mut inner);
        }
        self.device.shut_down()
    }
}

impl Function for VirtioPci {
    fn name(&self) -> String {
        format!("{}-pci", self.device.kind().name)
    }

    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.lock().config.read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) -> Effect {
        let mut inner = self.lock();
        let written = inner.config.write(offset, data);
        let control = low16(inner.config.get(self.msix_at + 2, 2));
        drop(inner);
        self.interrupts.msix.set_control(control);
        if written.layout { Effect::Layout } else { Effect::None }
    }

    fn bars(&self) -> Vec<Placed> {
        self.lock().config.bars()
    }

    fn decoded(&self) -> Vec<Placed> {
        self.lock().config.decoded()
    }

    fn bar(&self, bar: u8) -> Arc<dyn Device> {
        Arc::new(Window { function: self.me.clone(), bar })
    }

    fn bar_moved(&self, _bar: u8, _base: Option<u64>) {
        let mut inner = self.lock();
        self.detach_bells(&mut inner);
        self.attach_bells(&mut inner);
    }
}

/// One BAR on a bus.
struct Window {
    function: Weak<VirtioPci>,
    bar: u8,
}

impl Device for Window {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if data.is_empty() {
            return;
        }
        match (self.function.upgrade(), self.bar) {
            (Some(f), LEGACY_BAR) => f.legacy_read(offset, data),
            (Some(f), MSIX_BAR) => f.interrupts.msix.read(offset, data),
            (Some(f), MODERN_BAR) => f.modern_read(offset, data),
            _ => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Effect {
        match (self.function.upgrade(), self.bar) {
            (Some(f), LEGACY_BAR) => f.legacy_write(offset, data),
            (Some(f), MSIX_BAR) => f.interrupts.msix.write(offset, data),
            (Some(f), MODERN_BAR) => f.modern_write(offset, data),
            _ => {}
        }
        Effect::None
    }
}
