//! A vCPU's registers, to be looked at.

use kvm_bindings::{KVM_MP_STATE_HALTED, kvm_debugregs, kvm_fpu, kvm_regs, kvm_sregs};

use super::{Vcpu, failed};
use crate::Result;

/// A vCPU's registers.
#[derive(Clone, Debug, Default)]
pub struct CpuState {
    /// General registers.
    pub regs: kvm_regs,
    /// Segments and control registers.
    pub sregs: kvm_sregs,
    /// Floating point and vectors.
    pub fpu: kvm_fpu,
    /// Debug registers.
    pub debug: kvm_debugregs,
    /// It waits for an interrupt.
    pub halted: bool,
}

impl Vcpu {
    /// All that people look at. What a host's KVM does not tell reads as zero, except general and
    /// control registers.
    ///
    /// # Errors
    /// When these cannot be read.
    pub fn state(&self) -> Result<CpuState> {
        Ok(CpuState {
            regs: self.regs()?,
            sregs: self.sregs()?,
            fpu: self.fd.get_fpu().unwrap_or_default(),
            debug: self.fd.get_debug_regs().unwrap_or_default(),
            halted: self
                .fd
                .get_mp_state()
                .map_err(failed("cannot read the processor's state"))
                .is_ok_and(|s| s.mp_state == KVM_MP_STATE_HALTED),
        })
    }
}
