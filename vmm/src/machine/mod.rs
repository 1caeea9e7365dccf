//! From plain data to a running machine, and down again.
//!
//! * [`config`]: the plain data.
//! * [`parts`]: making the devices and putting them where they belong.
//! * [`boot`]: what lies in memory when the guest begins; also after each reset.
//! * [`events`]: what devices, keys and monitors want of the machine.
//! * [`build`]: a machine that has not run yet.
//! * [`run`]: the life of the machine.
//! * [`steer`]: the machine as monitors' commands see it.
//! * `loading`: the kernel comes into memory while the rest is made.
//! * [`timer`]: the thread behind the clock's interrupts.

pub mod boot;
pub mod build;
pub mod config;
pub mod events;
mod loading;
mod own_code;
pub mod parts;
pub mod run;
pub mod steer;
pub mod timer;

pub use build::{Caller, Silent};
pub use config::MachineConfig;
pub use events::{Command, Handle};
pub use run::{Exit, Machine};
