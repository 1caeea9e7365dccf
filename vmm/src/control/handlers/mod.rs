//! What commands do.
//!
//! * [`life`]: stop, go on, reset, power, quit.
//! * [`info`]: who and what the machine is; vCPUs.
//! * [`devices`]: disks, networks, balloon, PCI, character devices.
//! * [`memory`]: memory and addresses.
//! * [`programs`]: what only programs ask.

pub mod devices;
pub mod info;
pub mod life;
pub mod memory;
pub mod programs;
