//! One virtual machine: memory slots, interrupt chips, irqfd, ioeventfd.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{
    KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, KVM_PIT_SPEAKER_DUMMY, KvmIrqRouting, kvm_msi,
    kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use super::{Vcpu, failed};
use crate::irq::{Level, Line};
use crate::mem::Memory;
use crate::{Error, Result};

/// Where KVM keeps its task state and identity map pages on Intel hosts; four pages that the guest is
/// told to leave alone (they lie in the hole below 4 GiB).
pub const TSS_ADDRESS: u64 = 0xfeff_d000;
/// The page of the identity map, just below.
pub const IDENTITY_MAP: u64 = 0xfeff_c000;

/// A virtual machine. Cheap to share; the ioctls take care of concurrency themselves.
#[derive(Debug)]
pub struct Vm {
    pub(super) fd: VmFd,
    memory: Mutex<Vec<Arc<Memory>>>,
}

/// What a guest must write for an ioeventfd to fire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doorbell {
    /// Any write of any length at a port.
    Port(u16),
    /// A 16-bit write of this value at a port.
    PortValue(u16, u16),
    /// Any write of any length at a memory address.
    Mmio(u64),
}

/// How a memory slot may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SlotKind {
    /// Read and write.
    #[default]
    Ram,
    /// Writes come back as exits (ROM).
    ReadOnly,
    /// Read and write, with a log of what was written.
    Logged,
}

impl Vm {
    pub(super) fn new(fd: VmFd) -> Self {
        Vm { fd, memory: Mutex::default() }
    }

    /// Interrupt controllers (two 8259, one I/O APIC, local APICs) and the interval timer, all in the
    /// kernel. Before the first vCPU.
    pub fn create_chips(&self) -> Result<()> {
        let tss = crate::num::index(TSS_ADDRESS);
        self.fd.set_tss_address(tss).map_err(failed("cannot place KVM's task state pages"))?;
        self.fd
            .set_identity_map_address(IDENTITY_MAP)
            .map_err(failed("cannot place KVM's identity map"))?;
        self.fd.create_irq_chip().map_err(failed("cannot create the interrupt controllers"))?;
        // The speaker port (0x61) is answered by the kernel too: its timer bit calibrates clocks.
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        self.fd.create_pit2(pit).map_err(failed("cannot create the interval timer"))
    }

    /// Gives the guest all regions of `memory`, slots numbered from `first_slot` on. The machine keeps
    /// the memory alive as long as it exists.
    pub fn map_memory(&self, memory: &Arc<Memory>, first_slot: u32, kind: SlotKind) -> Result<()> {
        let flags = match kind {
            SlotKind::Ram => 0,
            SlotKind::ReadOnly => KVM_MEM_READONLY,
            SlotKind::Logged => KVM_MEM_LOG_DIRTY_PAGES,
        };
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(memory));
        for (slot, region) in (first_slot..).zip(memory.iter()) {
            let start = region.start_addr();
            let host = memory.get_host_address(start).map_err(|e| {
                Error::invalid(format!("guest memory at {:#x} has no address: {e}", start.0))
            })?;
            let slot = kvm_userspace_memory_region {
                slot,
                flags,
                guest_phys_addr: start.0,
                memory_size: region.len(),
                userspace_addr: host as u64,
            };
            // SAFETY: the range is a mapping owned by `memory`, which `self.memory` keeps alive until
            // the VM file descriptor is closed (fields drop in order: `fd` first).
            unsafe { self.fd.set_user_memory_region(slot) }.map_err(|e| {
                failed(format!(
                    "cannot map {:#x} bytes of guest memory at {:#x}",
                    region.len(),
                    start.0
                ))(e)
            })?;
        }
        Ok(())
    }

    /// Pages written since the last call, one bit each. The slot must have been made `Logged`.
    pub fn dirty_log(&self, slot: u32, bytes: usize) -> Result<Vec<u64>> {
        self.fd.get_dirty_log(slot, bytes).map_err(failed("cannot read the dirty log"))
    }

    /// Makes vCPU `id` (its local APIC gets the same number).
    pub fn create_vcpu(&self, id: u8) -> Result<Vcpu> {
        let fd = self
            .fd
            .create_vcpu(u64::from(id))
            .map_err(|e| failed(format!("cannot create vCPU {id}"))(e))?;
        Ok(Vcpu::new(id, fd))
    }

    /// Sets the level of an interrupt pin.
    pub fn set_pin(&self, gsi: u32, level: Level) -> Result<()> {
        self.fd
            .set_irq_line(gsi, level == Level::High)
            .map_err(|e| failed(format!("cannot set interrupt {gsi}"))(e))
    }

    /// From now on a write to `event` raises `gsi`, without passing through this process.
    pub fn attach_irqfd(&self, event: &EventFd, gsi: u32) -> Result<()> {
        self.fd
            .register_irqfd(event, gsi)
            .map_err(|e| failed(format!("cannot attach an irqfd to interrupt {gsi}"))(e))
    }

    /// As [`Vm::attach_irqfd`] for a level-triggered pin; `resample` fires when the guest is done.
    pub fn attach_level_irqfd(&self, event: &EventFd, resample: &EventFd, gsi: u32) -> Result<()> {
        self.fd
            .register_irqfd_with_resample(event, resample, gsi)
            .map_err(|e| failed(format!("cannot attach a level irqfd to interrupt {gsi}"))(e))
    }

    /// Undoes [`Vm::attach_irqfd`].
    pub fn detach_irqfd(&self, event: &EventFd, gsi: u32) -> Result<()> {
        self.fd
            .unregister_irqfd(event, gsi)
            .map_err(|e| failed(format!("cannot detach the irqfd of interrupt {gsi}"))(e))
    }

    /// From now on a guest's write there counts up `event` instead of coming back as an exit.
    pub fn attach_doorbell(&self, event: &EventFd, bell: Doorbell) -> Result<()> {
        let result = match bell {
            Doorbell::Port(p) => {
                self.fd.register_ioevent(event, &IoEventAddress::Pio(p.into()), NoDatamatch)
            }
            Doorbell::PortValue(p, v) => {
                self.fd.register_ioevent(event, &IoEventAddress::Pio(p.into()), v)
            }
            Doorbell::Mmio(a) => {
                self.fd.register_ioevent(event, &IoEventAddress::Mmio(a), NoDatamatch)
            }
        };
        result.map_err(|e| failed(format!("cannot attach an ioeventfd ({bell:?})"))(e))
    }

    /// Undoes [`Vm::attach_doorbell`].
    pub fn detach_doorbell(&self, event: &EventFd, bell: Doorbell) -> Result<()> {
        let result = match bell {
            Doorbell::Port(p) => {
                self.fd.unregister_ioevent(event, &IoEventAddress::Pio(p.into()), NoDatamatch)
            }
            Doorbell::PortValue(p, v) => {
                self.fd.unregister_ioevent(event, &IoEventAddress::Pio(p.into()), v)
            }
            Doorbell::Mmio(a) => {
                self.fd.unregister_ioevent(event, &IoEventAddress::Mmio(a), NoDatamatch)
            }
        };
        result.map_err(|e| failed(format!("cannot detach an ioeventfd ({bell:?})"))(e))
    }

    /// Raises a message-signalled interrupt now.
    pub fn signal_msi(&self, address: u64, data: u32) -> Result<()> {
        let msi = kvm_msi {
            address_lo: crate::num::low32(address),
            address_hi: crate::num::high32(address),
            data,
            ..Default::default()
        };
        self.fd.signal_msi(msi).map(|_| ()).map_err(failed("cannot signal a message interrupt"))
    }

    pub(super) fn set_routes(&self, table: &KvmIrqRouting) -> Result<()> {
        self.fd.set_gsi_routing(table).map_err(failed("cannot set the interrupt routing table"))
    }

    /// Guest time, for stopping and continuing clocks.
    pub fn clock(&self) -> Result<u64> {
        self.fd.get_clock().map(|c| c.clock).map_err(failed("cannot read the guest's clock"))
    }

    /// Sets guest time.
    pub fn set_clock(&self, nanoseconds: u64) -> Result<()> {
        let data = kvm_bindings::kvm_clock_data { clock: nanoseconds, ..Default::default() };
        self.fd.set_clock(&data).map_err(failed("cannot set the guest's clock"))
    }

    /// First address that no region of guest memory reaches; for tests and messages.
    pub fn memory_end(&self) -> GuestAddress {
        let all = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|m| m.last_addr()).max().unwrap_or(GuestAddress(0))
    }
}

impl AsRawFd for Vm {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// A pin of the in-kernel interrupt controllers as a [`Line`].
#[derive(Debug)]
pub struct Pin {
    vm: Arc<Vm>,
    gsi: u32,
    level: Mutex<Level>,
}

impl Pin {
    /// The pin of `gsi`.
    pub fn new(vm: Arc<Vm>, gsi: u32) -> Self {
        Pin { vm, gsi, level: Mutex::default() }
    }
}

impl Line for Pin {
    fn set(&self, level: Level) {
        let mut now = self.level.lock().unwrap_or_else(PoisonError::into_inner);
        if *now != level {
            *now = level;
            // The only failure is a machine without interrupt controllers, which is refused when built.
            let _ = self.vm.set_pin(self.gsi, level);
        }
    }
}
