//! The proof that KVM works: a VM with one page of memory and one vCPU runs a few real-mode instructions.
//!
//! The guest adds two numbers, writes the sum to a port and halts. No in-kernel interrupt controller is
//! created, so that `hlt` comes back as an exit (KVM API, 5: `KVM_EXIT_HLT`). It runs on a thread of its own,
//! because a broken host must cost a finding, not a hung check.
#![allow(unsafe_code)]

use std::sync::mpsc;
use std::time::Duration;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit};

use super::facts::VcpuRun;

/// mov al,40 / add al,2 / mov dx,0x3f8 / out dx,al / hlt
const CODE: [u8; 9] = [0xb0, 40, 0x04, 2, 0xba, 0xf8, 0x03, 0xee, 0xf4];
const LOAD_ADDRESS: u64 = 0x1000;
const PAGE: usize = 4096;
/// Measured: under 2 ms on the slowest kind of host (interpreting kernel); the rest is patience.
const PATIENCE: Duration = Duration::from_secs(5);

/// Runs the guest; never blocks longer than [`PATIENCE`].
pub fn run() -> VcpuRun {
    let (sender, receiver) = mpsc::channel();
    let started = std::thread::Builder::new().name("kvm-proof".into()).spawn(move || {
        // A receiver that gave up is no concern of ours.
        let _ = sender.send(attempt());
    });
    if let Err(error) = started {
        return failed("run", error.raw_os_error().unwrap_or(0), "no thread for the vCPU");
    }
    receiver
        .recv_timeout(PATIENCE)
        .unwrap_or_else(|_| failed("run", 0, "the vCPU did not come back within 5 seconds"))
}

fn failed(step: &str, errno: i32, text: &str) -> VcpuRun {
    VcpuRun::Failed { step: step.to_owned(), errno, text: text.to_owned() }
}

/// One anonymous page that is unmapped when dropped.
struct Page(*mut libc::c_void);

impl Page {
    fn new() -> std::io::Result<Self> {
        // SAFETY: an anonymous private mapping of one page at a place of the kernel's choice touches no
        // existing memory.
        let place = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if place == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        Ok(Self(place))
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this size and is not used any more.
        unsafe { libc::munmap(self.0, PAGE) };
    }
}

fn attempt() -> VcpuRun {
    attempt_steps().unwrap_or_else(|failure| failure)
}

fn attempt_steps() -> Result<VcpuRun, VcpuRun> {
    let at = |step: &'static str| {
        move |error: kvm_ioctls::Error| failed(step, error.errno(), &error.to_string())
    };
    let page = Page::new()
        .map_err(|error| failed("memory", error.raw_os_error().unwrap_or(0), &error.to_string()))?;
    let kvm = Kvm::new().map_err(at("open"))?;
    let api = kvm.get_api_version();
    if api != 12 {
        return Err(failed("version", 0, &format!("KVM API version {api}, expected 12")));
    }
    let vm = kvm.create_vm().map_err(at("create-vm"))?;
    // SAFETY: the page is writable, CODE is shorter, and nothing else refers to the page.
    unsafe { std::ptr::copy_nonoverlapping(CODE.as_ptr(), page.0.cast::<u8>(), CODE.len()) };
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: LOAD_ADDRESS,
        memory_size: PAGE as u64,
        userspace_addr: page.0 as u64,
    };
    // SAFETY: `page` outlives `vm` and `vcpu`, which are declared later and so dropped first.
    unsafe { vm.set_user_memory_region(region) }.map_err(at("memory"))?;
    let mut vcpu = vm.create_vcpu(0).map_err(at("create-vcpu"))?;
    let mut sregs = vcpu.get_sregs().map_err(at("registers"))?;
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    vcpu.set_sregs(&sregs).map_err(at("registers"))?;
    let mut regs = vcpu.get_regs().map_err(at("registers"))?;
    regs.rip = LOAD_ADDRESS;
    regs.rflags = 2;
    vcpu.set_regs(&regs).map_err(at("registers"))?;

    let mut sum = None;
    // The guest needs two exits; a few more are allowed for signals.
    for _ in 0..8 {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(0x3f8, data)) => sum = data.first().copied(),
            Ok(VcpuExit::Hlt) if sum == Some(42) => return Ok(VcpuRun::Works { api }),
            Ok(VcpuExit::Hlt) => {
                return Err(failed("run", 0, &format!("the guest computed {sum:?}, expected 42")));
            }
            Ok(exit) => return Err(failed("run", 0, &format!("unexpected exit {exit:?}"))),
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {}
            Err(error) => return Err(failed("run", error.errno(), &error.to_string())),
        }
    }
    Err(failed("run", 0, "the guest neither halted nor failed"))
}
