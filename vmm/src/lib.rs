//! A virtual machine monitor for KVM as a library.
//!
//! Plain data comes in ([`machine::MachineConfig`], built by [`cmdline`] from a QEMU command line or by
//! hand), a running machine comes out. The floors, each using only those above it in this list:
//!
//! * [`num`]: registers as bytes, and conversions that cannot lose bits by accident.
//! * [`kvm`]: all ioctls and their `unsafe` code.
//! * [`mem`]: where guest memory lies and what backs it.
//! * [`bus`]: port and memory-mapped dispatch; a device answers an access with an [`bus::Effect`].
//! * [`irq`]: interrupt lines as devices see them.
//! * [`vcpu`]: the threads that run guest code; pause, resume, kick, stop.
//! * [`devices`], [`pci`], [`virtio`]: what the guest sees. [`block`] and [`net`] are what lies behind.
//! * [`boot`], [`cpu`]: kernels, tables, CPUID.
//! * [`chardev`]: where serial ports lead.
//! * [`control`]: monitors for people and for programs.
//! * [`sandbox`]: confines the process once everything is open.
//! * [`machine`]: builds all of it, runs it, takes it down in one order.
//!
//! The library never prints, exits, or reads arguments or the environment. A guest is hostile: nothing
//! it stores in memory or registers makes the monitor panic, hang, or touch what is not the guest's.

pub mod block;
pub mod boot;
pub mod bus;
pub mod chardev;
pub mod cmdline;
pub mod control;
pub mod cpu;
pub mod devices;
pub mod fd;
pub mod irq;
pub mod kvm;
pub mod machine;
pub mod mem;
pub mod net;
pub mod num;
pub mod pci;
pub mod sandbox;
pub mod vcpu;
pub mod virtio;

pub use imgcore::{Error, ErrorKind, Result};
