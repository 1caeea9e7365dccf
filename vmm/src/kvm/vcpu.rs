//! One virtual processor, and why it came back.

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED, Msrs, kvm_fpu,
    kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs,
};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::kick::Registered;
use super::{Kick, failed};
use crate::num::index;
use crate::{Error, Result};

/// Why a vCPU left guest mode. Data are those of the access; reads are to be filled in.
#[derive(Debug)]
pub enum Exit<'a> {
    /// `out`, possibly repeated: consecutive accesses of `size` bytes each at the same port.
    Out {
        /// Port number.
        port: u16,
        /// Bytes of one access: 1, 2 or 4.
        size: usize,
        /// All accesses.
        data: &'a [u8],
    },
    /// `in`, possibly repeated.
    In {
        /// Port number.
        port: u16,
        /// Bytes of one access: 1, 2 or 4.
        size: usize,
        /// All accesses.
        data: &'a mut [u8],
    },
    /// A load from an address without memory.
    MmioRead(u64, &'a mut [u8]),
    /// A store to an address without memory.
    MmioWrite(u64, &'a [u8]),
    /// `hlt`, where there is no interrupt controller in the kernel.
    Halt,
    /// A triple fault.
    TripleFault,
    /// A signal or a kick.
    Interrupted,
}

/// What a vCPU does after reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Runs.
    AtOnce,
    /// Waits for the start-up interrupt of another processor.
    OnRequest,
}

/// One vCPU. Owned by the thread that runs it.
#[derive(Debug)]
pub struct Vcpu {
    id: u8,
    pub(super) fd: VcpuFd,
}

/// A reason of [`VcpuExit`] without its borrow, so that the run structure can be looked at again.
enum Reason {
    Out(u16, *const u8, usize),
    In(u16, *mut u8, usize),
    Read(u64, *mut u8, usize),
    Write(u64, *const u8, usize),
    Halt,
    TripleFault,
    Interrupted,
    Failed(String),
}

impl Vcpu {
    pub(super) fn new(id: u8, fd: VcpuFd) -> Self {
        Vcpu { id, fd }
    }

    /// Its number, which is its local APIC's too.
    pub fn id(&self) -> u8 {
        self.id
    }

    /// Makes this vCPU reachable by `kick` from other threads; called by the thread that runs it.
    pub fn register(&mut self, kick: &Kick) -> Result<Registered> {
        let flag: *mut u8 = &raw mut self.fd.get_kvm_run().immediate_exit;
        kick.register(flag)
    }

    /// Clears the request that [`Kick::kick`] leaves behind.
    pub fn clear_kick(&mut self) {
        self.fd.set_kvm_immediate_exit(0);
    }

    /// Runs guest code until something has to be done.
    ///
    /// # Errors
    /// When KVM cannot go on; the message has the reason and the place in the guest.
    pub fn run(&mut self) -> Result<Exit<'_>> {
        let reason = match self.fd.run() {
            Ok(exit) => reason(exit),
            Err(e) if e.errno() == libc::EINTR || e.errno() == libc::EAGAIN => Reason::Interrupted,
            Err(e) => return Err(failed(format!("vCPU {} cannot run", self.id))(e)),
        };
        match reason {
            Reason::Out(port, data, len) => {
                let size = self.io_size();
                // SAFETY: pointer and length are of a slice that `run` returned a moment ago, in the
                // run structure's mapping; nothing else refers to it while `self` is borrowed.
                let data = unsafe { std::slice::from_raw_parts(data, len) };
                Ok(Exit::Out { port, size, data })
            }
            Reason::In(port, data, len) => {
                let size = self.io_size();
                // SAFETY: as above, from a mutable slice.
                let data = unsafe { std::slice::from_raw_parts_mut(data, len) };
                Ok(Exit::In { port, size, data })
            }
            Reason::Read(addr, data, len) => {
                // SAFETY: as above, from a mutable slice.
                Ok(Exit::MmioRead(addr, unsafe { std::slice::from_raw_parts_mut(data, len) }))
            }
            Reason::Write(addr, data, len) => {
                // SAFETY: as above.
                Ok(Exit::MmioWrite(addr, unsafe { std::slice::from_raw_parts(data, len) }))
            }
            Reason::Halt => Ok(Exit::Halt),
            Reason::TripleFault => Ok(Exit::TripleFault),
            Reason::Interrupted => Ok(Exit::Interrupted),
            Reason::Failed(what) => Err(self.explain(&what)),
        }
    }

    /// Bytes of one access of a port instruction (the slices cover all repetitions).
    fn io_size(&mut self) -> usize {
        // SAFETY: the last exit was KVM_EXIT_IO, so this is the union's live member; all its bit
        // patterns are valid.
        let size = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.io.size };
        usize::from(size).clamp(1, 4)
    }

    /// An internal error of KVM with all that helps to find out about it.
    fn explain(&mut self, what: &str) -> Error {
        let run = self.fd.get_kvm_run();
        let mut text = format!("vCPU {} stopped: {what}", self.id);
        if run.exit_reason == kvm_bindings::KVM_EXIT_INTERNAL_ERROR {
            // SAFETY: live member of the union for this exit reason; plain numbers.
            let internal = unsafe { run.__bindgen_anon_1.internal };
            let (sub, n) = (internal.suberror, index(internal.ndata.into()).min(16));
            let words: Vec<String> = internal.data[..n].iter().map(|d| format!("{d:#x}")).collect();
            text.push_str(&format!(", suberror {sub} [{}]", words.join(" ")));
        }
        if let (Ok(regs), Ok(sregs)) = (self.fd.get_regs(), self.fd.get_sregs()) {
            text.push_str(&format!(
                " at cs:ip {:#x}:{:#x}, flags {:#x}, cr0 {:#x}, cr3 {:#x}, efer {:#x}",
                sregs.cs.base, regs.rip, regs.rflags, sregs.cr0, sregs.cr3, sregs.efer
            ));
        }
        Error::unsupported(text)
            .hint("The host's KVM could not run the guest's instruction; see the kernel log")
    }

    /// Sets CPUID. Before the vCPU first runs.
    pub fn set_cpuid(&self, cpuid: &CpuId) -> Result<()> {
        self.fd
            .set_cpuid2(cpuid)
            .map_err(|e| failed(format!("cannot set CPUID of vCPU {}", self.id))(e))
    }

    /// CPUID as the guest sees it.
    pub fn cpuid(&self) -> Result<CpuId> {
        self.fd.get_cpuid2(KVM_MAX_CPUID_ENTRIES).map_err(failed("cannot read CPUID"))
    }

    /// General registers.
    pub fn regs(&self) -> Result<kvm_regs> {
        self.fd.get_regs().map_err(failed("cannot read registers"))
    }

    /// Sets general registers.
    pub fn set_regs(&self, regs: &kvm_regs) -> Result<()> {
        self.fd.set_regs(regs).map_err(failed("cannot set registers"))
    }

    /// Segments, control registers, APIC base.
    pub fn sregs(&self) -> Result<kvm_sregs> {
        self.fd.get_sregs().map_err(failed("cannot read system registers"))
    }

    /// Sets segments, control registers, APIC base.
    pub fn set_sregs(&self, sregs: &kvm_sregs) -> Result<()> {
        self.fd.set_sregs(sregs).map_err(failed("cannot set system registers"))
    }

    /// Sets the floating-point unit.
    pub fn set_fpu(&self, fpu: &kvm_fpu) -> Result<()> {
        self.fd.set_fpu(fpu).map_err(failed("cannot set the floating-point unit"))
    }

    /// Sets model-specific registers.
    ///
    /// # Errors
    /// Names the register that KVM refused.
    pub fn set_msrs(&self, values: &[(u32, u64)]) -> Result<()> {
        let entries: Vec<kvm_msr_entry> = values
            .iter()
            .map(|&(index, data)| kvm_msr_entry { index, data, ..Default::default() })
            .collect();
        let msrs = Msrs::from_entries(&entries)
            .map_err(|e| Error::invalid(format!("list of model-specific registers: {e:?}")))?;
        let done =
            self.fd.set_msrs(&msrs).map_err(failed("cannot set model-specific registers"))?;
        match values.get(done) {
            None => Ok(()),
            Some((index, value)) => Err(Error::unsupported(format!(
                "KVM refuses the value {value:#x} for model-specific register {index:#x}"
            ))),
        }
    }

    /// The local APIC's registers.
    pub fn lapic(&self) -> Result<kvm_lapic_state> {
        self.fd.get_lapic().map_err(failed("cannot read the local APIC"))
    }

    /// Sets the local APIC's registers.
    pub fn set_lapic(&self, state: &kvm_lapic_state) -> Result<()> {
        self.fd.set_lapic(state).map_err(failed("cannot set the local APIC"))
    }

    /// Whether it runs at once, or waits for another processor.
    pub fn set_start(&self, start: Start) -> Result<()> {
        let mp_state = match start {
            Start::AtOnce => KVM_MP_STATE_RUNNABLE,
            Start::OnRequest => KVM_MP_STATE_UNINITIALIZED,
        };
        self.fd
            .set_mp_state(kvm_mp_state { mp_state })
            .map_err(failed("cannot set the processor's state"))
    }

    /// Sends a non-maskable interrupt.
    pub fn nmi(&self) -> Result<()> {
        self.fd.nmi().map_err(failed("cannot send a non-maskable interrupt"))
    }

    /// Tells kvm-clock that the guest was stopped, so that its watchdogs keep quiet. Guests that do not
    /// use kvm-clock have nothing to be told.
    pub fn note_paused(&self) {
        let _ = self.fd.kvmclock_ctrl();
    }
}

fn reason(exit: VcpuExit<'_>) -> Reason {
    match exit {
        VcpuExit::IoOut(port, data) => Reason::Out(port, data.as_ptr(), data.len()),
        VcpuExit::IoIn(port, data) => Reason::In(port, data.as_mut_ptr(), data.len()),
        VcpuExit::MmioRead(addr, data) => Reason::Read(addr, data.as_mut_ptr(), data.len()),
        VcpuExit::MmioWrite(addr, data) => Reason::Write(addr, data.as_ptr(), data.len()),
        VcpuExit::Hlt => Reason::Halt,
        VcpuExit::Shutdown => Reason::TripleFault,
        VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::IoapicEoi(_) => Reason::Interrupted,
        VcpuExit::FailEntry(code, cpu) => Reason::Failed(format!(
            "the processor refused to enter the guest (reason {code:#x} on host CPU {cpu})"
        )),
        VcpuExit::InternalError => Reason::Failed("KVM internal error".to_owned()),
        VcpuExit::MemoryFault { gpa, size, .. } => {
            Reason::Failed(format!("memory fault at {gpa:#x} ({size} bytes)"))
        }
        other => Reason::Failed(format!("exit that is not handled: {other:?}")),
    }
}
