//! `/dev/kvm` itself.

use kvm_bindings::{CpuId, KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES, MsrList};
use kvm_ioctls::{Cap, Kvm};

use super::{Vm, failed};
use crate::{Error, Result};

/// The device that makes virtual machines.
#[derive(Debug)]
pub struct System {
    kvm: Kvm,
}

/// What the machine cannot do without, with the words for its absence.
const NEEDED: &[(Cap, &str)] = &[
    (Cap::Irqchip, "an interrupt controller in the kernel (KVM_CAP_IRQCHIP)"),
    (Cap::Pit2, "an interval timer in the kernel (KVM_CAP_PIT2)"),
    (Cap::Irqfd, "irqfd (KVM_CAP_IRQFD)"),
    (Cap::Ioeventfd, "ioeventfd (KVM_CAP_IOEVENTFD)"),
    (Cap::UserMemory, "user memory slots (KVM_CAP_USER_MEMORY)"),
    (Cap::SetTssAddr, "a settable task state address (KVM_CAP_SET_TSS_ADDR)"),
    (Cap::ExtCpuid, "settable CPUID (KVM_CAP_EXT_CPUID)"),
    (Cap::ImmediateExit, "immediate exit (KVM_CAP_IMMEDIATE_EXIT)"),
    (Cap::MpState, "processor states (KVM_CAP_MP_STATE)"),
];

impl System {
    /// Opens `/dev/kvm` and checks that it has what every machine needs.
    ///
    /// # Errors
    /// Each failure says what is missing on this host and what to do about it.
    pub fn open() -> Result<Self> {
        let kvm = Kvm::new().map_err(|e| explain_open(e.errno()))?;
        let version = kvm.get_api_version();
        if u32::try_from(version) != Ok(KVM_API_VERSION) {
            return Err(Error::unsupported(format!(
                "/dev/kvm speaks version {version} of its interface, {KVM_API_VERSION} is needed"
            ))
            .hint("Run a kernel of version 2.6.22 or later"));
        }
        for (cap, what) in NEEDED {
            if !kvm.check_extension(*cap) {
                return Err(Error::unsupported(format!("this host's KVM lacks {what}"))
                    .at_path("/dev/kvm")
                    .hint("Run a kernel of version 4.13 or later with KVM enabled"));
            }
        }
        Ok(System { kvm })
    }

    /// Makes a virtual machine.
    pub fn create_vm(&self) -> Result<Vm> {
        loop {
            match self.kvm.create_vm() {
                Ok(fd) => return Ok(Vm::new(fd)),
                // A signal while the kernel was at it.
                Err(e) if e.errno() == libc::EINTR => {}
                Err(e) if e.errno() == libc::EBUSY => {
                    return Err(failed("cannot create a virtual machine")(e).hint(
                        "Another hypervisor (VirtualBox, VMware) holds the processor's \
                         virtualization; stop it or unload its modules",
                    ));
                }
                Err(e) => return Err(failed("cannot create a virtual machine")(e)),
            }
        }
    }

    /// True when the host has an optional capability.
    pub fn has(&self, cap: Cap) -> bool {
        self.kvm.check_extension(cap)
    }

    /// The most vCPUs a machine may have.
    pub fn max_vcpus(&self) -> usize {
        self.kvm.get_max_vcpus()
    }

    /// The most vCPUs that the host's makers recommend.
    pub fn recommended_vcpus(&self) -> usize {
        self.kvm.get_nr_vcpus()
    }

    /// CPUID leaves that the host can give to guests.
    pub fn supported_cpuid(&self) -> Result<CpuId> {
        let mut leaves = self
            .kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(failed("cannot ask KVM which CPUID leaves it supports"))?;
        // KVM tells of the deadline timer by its capability alone. Without it guests calibrate the local APIC's timer
        // at boot (0.1 s), and need more exits to set it.
        let deadline = self.kvm.check_extension(Cap::TscDeadlineTimer);
        for leaf in leaves.as_mut_slice() {
            if leaf.function == 1 && deadline {
                leaf.ecx |= 1 << 24;
            }
            // It leaves the brand string to us, too; a guest without one makes a name up.
            let empty = [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx] == [0; 4];
            if empty && (0x8000_0002..=0x8000_0004).contains(&leaf.function) {
                let own = std::arch::x86_64::__cpuid(leaf.function);
                (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (own.eax, own.ebx, own.ecx, own.edx);
            }
        }
        Ok(leaves)
    }

    /// The model-specific registers that make up a vCPU's state.
    pub fn msr_list(&self) -> Result<MsrList> {
        self.kvm.get_msr_index_list().map_err(failed("cannot ask KVM for its list of MSRs"))
    }
}

fn explain_open(errno: i32) -> Error {
    let error =
        Error::errno(errno).context("could not access KVM kernel module").at_path("/dev/kvm");
    error.hint(match errno {
        libc::ENOENT => {
            "Load the module (modprobe kvm_intel or modprobe kvm_amd); when that fails, enable VT-x or \
             AMD-V in the firmware, or nested virtualization where this host is itself a guest"
        }
        libc::EACCES | libc::EPERM => {
            "Add the user to the group that owns /dev/kvm (usermod -aG kvm USER, then log in again)"
        }
        libc::ENODEV | libc::ENXIO => {
            "The kernel has no driver behind /dev/kvm: modprobe kvm_intel or modprobe kvm_amd"
        }
        _ => "Check that /dev/kvm is a character device 10,232",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_name_a_remedy() {
        let e = explain_open(libc::EACCES);
        assert!(e.report().contains("Permission denied"), "{}", e.report());
        assert!(format!("{e:?}").contains("/dev/kvm"));
    }
}
