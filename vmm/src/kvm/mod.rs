//! All ioctls of KVM, and all `unsafe` code that they need.
//!
//! * [`system`]: `/dev/kvm` itself; what it can do and what to do when it cannot.
//! * [`vm`]: one virtual machine: memory slots, interrupt chips, irqfd, ioeventfd.
//! * [`routes`]: the interrupt routing table: which GSI is a pin, which is a message.
//! * [`vcpu`]: one virtual processor and why it came back.
//! * [`inspect`]: its registers, to be looked at.
//! * [`baseline`]: the state to go back to at a reset.
//! * [`kick`]: getting a processor out of guest mode from another thread.

#![allow(unsafe_code)]

pub mod baseline;
pub mod inspect;
pub mod kick;
pub mod routes;
pub mod system;
pub mod vcpu;
pub mod vm;

pub use inspect::CpuState;
pub use kick::Kick;
pub use system::System;
pub use vcpu::{Exit, Vcpu};
pub use vm::Vm;

/// Turns an errno of kvm-ioctls into this crate's error.
pub(crate) fn failed(what: impl Into<String>) -> impl FnOnce(kvm_ioctls::Error) -> crate::Error {
    move |e| crate::Error::errno(e.errno()).context(what)
}
