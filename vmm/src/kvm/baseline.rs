//! The state of a fresh machine, to go back to at a reset.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip, kvm_pit_state2,
    kvm_vcpu_events,
};

use super::{Vcpu, Vm, failed};
use crate::Result;

/// Interrupt controllers and timer.
pub struct ChipBaseline {
    chips: Vec<kvm_irqchip>,
    pit: kvm_pit_state2,
}

impl ChipBaseline {
    /// As they are now.
    pub fn take(vm: &Vm) -> Result<Self> {
        let mut chips = Vec::new();
        for chip_id in [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC] {
            let mut chip = kvm_irqchip { chip_id, ..Default::default() };
            vm.fd.get_irqchip(&mut chip).map_err(failed("cannot read an interrupt controller"))?;
            chips.push(chip);
        }
        let pit = vm.fd.get_pit2().map_err(failed("cannot read the interval timer"))?;
        Ok(ChipBaseline { chips, pit })
    }

    /// Makes them so again.
    pub fn restore(&self, vm: &Vm) -> Result<()> {
        for chip in &self.chips {
            vm.fd.set_irqchip(chip).map_err(failed("cannot reset an interrupt controller"))?;
        }
        vm.fd.set_pit2(&self.pit).map_err(failed("cannot reset the interval timer"))
    }
}

/// Registers by which the guest has told KVM to write into its memory, and timers: zero after reset.
/// A host without one of them does not know it, and then there is nothing to clear.
const CLEARED: &[u32] = &[
    0x4b56_4d00, // wall clock
    0x4b56_4d01, // system time
    0x4b56_4d02, // asynchronous page faults
    0x4b56_4d03, // steal time
    0x4b56_4d04, // paravirtual end of interrupt
    0x11,        // wall clock, old number
    0x12,        // system time, old number
    0x6e0,       // TSC deadline
    0xc000_0081, // STAR
    0xc000_0082, // LSTAR
    0xc000_0083, // CSTAR
    0xc000_0084, // SYSCALL flag mask
    0xc000_0102, // kernel GS base
    0x174,       // SYSENTER
    0x175,
    0x176,
];

/// What of a vCPU is not in its boot registers.
#[derive(Clone)]
pub struct VcpuBaseline {
    lapic: kvm_bindings::kvm_lapic_state,
    events: kvm_vcpu_events,
    apic_base: u64,
}

impl VcpuBaseline {
    /// As it is now.
    pub fn take(vcpu: &Vcpu) -> Result<Self> {
        let events = vcpu.fd.get_vcpu_events().map_err(failed("cannot read a vCPU's events"))?;
        Ok(VcpuBaseline { lapic: vcpu.lapic()?, events, apic_base: vcpu.sregs()?.apic_base })
    }

    /// Makes it so again.
    pub fn restore(&self, vcpu: &Vcpu) -> Result<()> {
        for register in CLEARED {
            // See above for failures.
            let _ = vcpu.set_msrs(&[(*register, 0)]);
        }
        let mut sregs = vcpu.sregs()?;
        sregs.apic_base = self.apic_base;
        vcpu.set_sregs(&sregs)?;
        vcpu.set_lapic(&self.lapic)?;
        vcpu.fd.set_vcpu_events(&self.events).map_err(failed("cannot reset a vCPU's events"))?;
        let debug =
            kvm_bindings::kvm_debugregs { dr6: 0xffff_0ff0, dr7: 0x400, ..Default::default() };
        vcpu.fd.set_debug_regs(&debug).map_err(failed("cannot reset a vCPU's debug registers"))
    }
}
