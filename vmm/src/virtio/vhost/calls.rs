//! The calls.

#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use vmm_sys_util::eventfd::EventFd;

use crate::mem::Memory;
use crate::num::len_u64;
use crate::{Error, Result};
use vm_memory::guest_memory::GuestMemoryBackend;
use vm_memory::{GuestAddress, GuestMemoryRegion};

/// A number for one ring (`struct vhost_vring_state`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct RingState {
    index: u32,
    number: u32,
}

/// A descriptor for one ring (`struct vhost_vring_file`).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct RingFile {
    index: u32,
    fd: i32,
}

/// `struct vhost_vring_addr`: addresses in this process.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct RingAddr {
    index: u32,
    flags: u32,
    descriptors: u64,
    used: u64,
    available: u64,
    log: u64,
}

/// `struct vhost_memory_region`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Region {
    guest: u64,
    size: u64,
    user: u64,
    flags: u64,
}

/// Regions of guest memory that are told; a machine has a few.
const MOST_REGIONS: usize = 64;

/// `struct vhost_memory` with room for its regions.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Table {
    count: u32,
    padding: u32,
    regions: [Region; MOST_REGIONS],
}

const _: () = assert!(size_of::<RingAddr>() == 40 && size_of::<Region>() == 32);

nix::ioctl_read_bad!(get_features, 0x8008_af00, u64);
nix::ioctl_write_ptr_bad!(set_features, 0x4008_af00, u64);
nix::ioctl_none_bad!(set_owner, 0xaf01);
nix::ioctl_write_ptr_bad!(set_mem_table, 0x4008_af03, Table);
nix::ioctl_write_ptr_bad!(set_vring_num, 0x4008_af10, RingState);
nix::ioctl_write_ptr_bad!(set_vring_addr, 0x4028_af11, RingAddr);
nix::ioctl_write_ptr_bad!(set_vring_base, 0x4008_af12, RingState);
nix::ioctl_readwrite_bad!(get_vring_base, 0xc008_af12, RingState);
nix::ioctl_write_ptr_bad!(set_vring_kick, 0x4008_af20, RingFile);
nix::ioctl_write_ptr_bad!(set_vring_call, 0x4008_af21, RingFile);
nix::ioctl_write_ptr_bad!(net_set_backend, 0x4008_af30, RingFile);
nix::ioctl_write_ptr_bad!(vsock_set_guest_cid, 0x4008_af60, u64);
nix::ioctl_write_ptr_bad!(vsock_set_running, 0x4004_af61, libc::c_int);

/// Where a ring is, as the guest says; checked to lie in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingAddresses {
    /// Descriptors in it.
    pub size: u16,
    /// Descriptor table.
    pub descriptors: GuestAddress,
    /// Available ring.
    pub available: GuestAddress,
    /// Used ring.
    pub used: GuestAddress,
}

/// An open vhost device.
#[derive(Debug)]
pub struct Vhost(File);

fn told(result: nix::Result<libc::c_int>, what: &str) -> Result<()> {
    match result {
        Ok(_) => Ok(()),
        Err(e) => Err(Error::from(e).context(format!("vhost: cannot {what}"))),
    }
}

impl Vhost {
    /// Takes the device for this process.
    ///
    /// # Errors
    /// When the descriptor is no vhost device, or belongs to another process.
    pub fn new(file: File) -> Result<Self> {
        let device = Vhost(file);
        // SAFETY: no argument.
        match unsafe { set_owner(device.fd()) } {
            // Ours already.
            Ok(_) | Err(nix::Error::EBUSY) => {}
            Err(e) => return Err(Error::from(e).context("the descriptor is no vhost device")),
        }
        Ok(device)
    }

    fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// What it can do, as virtio feature bits.
    pub fn features(&self) -> Result<u64> {
        let mut features = 0;
        // SAFETY: the kernel writes one number.
        told(unsafe { get_features(self.fd(), &raw mut features) }, "read its features")?;
        Ok(features)
    }

    /// What was agreed upon.
    pub fn set_features(&self, features: u64) -> Result<()> {
        // SAFETY: the kernel reads one number.
        told(unsafe { set_features(self.fd(), &raw const features) }, "set its features")
    }

    /// Tells where guest memory is in this process.
    ///
    /// # Errors
    /// When it has more pieces than can be told.
    pub fn set_memory(&self, memory: &Memory) -> Result<()> {
        let mut table = Table { count: 0, padding: 0, regions: [Region::default(); MOST_REGIONS] };
        for region in memory.iter() {
            let n = crate::num::index(table.count.into());
            let Some(place) = table.regions.get_mut(n) else {
                return Err(Error::unsupported("guest memory has too many pieces for vhost"));
            };
            let user = GuestMemoryBackend::get_host_address(memory, region.start_addr())
                .map_err(|e| Error::invalid(format!("guest memory: {e}")))?;
            *place = Region {
                guest: region.start_addr().0,
                size: region.len(),
                user: len_u64(user.addr()),
                flags: 0,
            };
            table.count += 1;
        }
        // SAFETY: the kernel reads `count` entries, which are there. It uses the addresses as this
        // process's own for as long as the device is open; they stay mapped while the machine exists.
        told(unsafe { set_mem_table(self.fd(), &raw const table) }, "tell it guest memory")
    }

    /// Sets one ring up, to go on at `base`.
    ///
    /// # Errors
    /// When the ring is outside guest memory.
    pub fn set_ring(
        &self,
        index: u32,
        memory: &Memory,
        ring: &RingAddresses,
        base: u16,
    ) -> Result<()> {
        let address = |at: GuestAddress| {
            GuestMemoryBackend::get_host_address(memory, at)
                .map(|p| len_u64(p.addr()))
                .map_err(|e| Error::invalid(format!("vhost: a ring is outside guest memory: {e}")))
        };
        let size = RingState { index, number: ring.size.into() };
        // SAFETY: the kernel reads one `vhost_vring_state`.
        told(unsafe { set_vring_num(self.fd(), &raw const size) }, "set a ring's size")?;
        let start = RingState { index, number: base.into() };
        // SAFETY: as above.
        told(unsafe { set_vring_base(self.fd(), &raw const start) }, "set a ring's start")?;
        let addresses = RingAddr {
            index,
            flags: 0,
            descriptors: address(ring.descriptors)?,
            used: address(ring.used)?,
            available: address(ring.available)?,
            log: 0,
        };
        // SAFETY: the kernel reads one `vhost_vring_addr`, and checks that the addresses are this
        // process's.
        told(unsafe { set_vring_addr(self.fd(), &raw const addresses) }, "set a ring's addresses")
    }

    /// Sets a ring's doorbell and interrupt.
    pub fn set_events(&self, index: u32, kick: BorrowedFd<'_>, call: &EventFd) -> Result<()> {
        let kick = RingFile { index, fd: kick.as_raw_fd() };
        let call = RingFile { index, fd: call.as_raw_fd() };
        // SAFETY: the kernel reads one `vhost_vring_file`, and holds the file behind the descriptor.
        told(unsafe { set_vring_kick(self.fd(), &raw const kick) }, "set a doorbell")?;
        // SAFETY: as above.
        told(unsafe { set_vring_call(self.fd(), &raw const call) }, "set an interrupt")
    }

    /// Where a ring, which is served no longer, goes on.
    pub fn base(&self, index: u32) -> Result<u16> {
        let mut state = RingState { index, number: 0 };
        // SAFETY: the kernel reads and writes one `vhost_vring_state`.
        told(unsafe { get_vring_base(self.fd(), &raw mut state) }, "ask where a ring goes on")?;
        Ok(crate::num::low16(state.number.into()))
    }

    /// vhost-net: a ring's interface, or none: the kernel begins or ends serving it.
    pub fn set_interface(&self, index: u32, tap: Option<BorrowedFd<'_>>) -> Result<()> {
        let file = RingFile { index, fd: tap.map_or(-1, |t| t.as_raw_fd()) };
        // SAFETY: the kernel reads one `vhost_vring_file`, and holds the file behind the descriptor.
        told(unsafe { net_set_backend(self.fd(), &raw const file) }, "connect the interface")
    }

    /// vhost-vsock: the guest's address.
    pub fn set_guest_cid(&self, cid: u64) -> Result<()> {
        // SAFETY: the kernel reads one number.
        let result = unsafe { vsock_set_guest_cid(self.fd(), &raw const cid) };
        match result {
            Err(nix::Error::EADDRINUSE) => Err(Error::from(nix::Error::EADDRINUSE)
                .context(format!("guest-cid={cid} belongs to another guest"))
                .hint("Choose another number from 3 on")),
            other => told(other, "set the guest's address"),
        }
    }

    /// vhost-vsock: begins or ends serving.
    pub fn set_running(&self, running: bool) -> Result<()> {
        let on = libc::c_int::from(running);
        // SAFETY: the kernel reads one int.
        told(unsafe { vsock_set_running(self.fd(), &raw const on) }, "start or stop it")
    }
}
