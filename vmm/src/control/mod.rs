//! Monitors: how people and programs steer a running machine.
//!
//! One table ([`table::TABLE`]) has every command: its names for people (the human monitor, as QEMU's) and
//! for programs (QMP, JSON), its arguments with their types, its line of help, and its handler. A handler
//! works on [`Steered`], which the machine implements, and the tests' fake machine too; it returns JSON,
//! from which the text for people is made.
//!
//! * [`steered`]: what commands can ask and do; plain data in, plain data out.
//! * [`command`]: what a command is; [`table`]: all of them; [`handlers`]: what they do.
//! * [`hmp`]: the human monitor: lines, expressions, completion, editing.
//! * [`qmp`]: the monitor for programs: JSON streams, negotiation, errors.
//! * [`events`]: what monitors are told of without having asked.
//! * [`port`]: the thread of one monitor, between a character device and the machine.
//! * [`paging`]: guest virtual addresses.
//!
//! # Threads
//!
//! Each monitor has a thread of its own, which reads, writes and waits for its client. Commands run on the
//! machine's main thread, one at a time, so that two monitors never see half a change. A client that
//! does not read delays its own monitor and nothing else: events for it wait in a queue with a limit.
//!
//! # Clients are not trusted with this process's memory
//!
//! Lines, JSON values, their nesting and the queues are limited; what is too long is refused with an error
//! and skipped. Whoever reaches a monitor may stop the guest and read its memory, as with QEMU: sockets
//! are protected by the rights of their folders.

pub mod command;
pub mod events;
pub mod handlers;
pub mod hmp;
pub mod paging;
pub mod port;
pub mod qmp;
pub mod steered;
pub mod table;

#[cfg(any(test, feature = "testing"))]
pub(crate) mod fake;
#[cfg(any(test, feature = "testing"))]
pub mod hostile;
#[cfg(test)]
mod tests;

pub use command::{Args, Command, Failure};
pub use events::{Broadcast, MachineEvent};
pub use port::{Ask, Monitor};
pub use steered::{RunState, Steered};

/// A monitor as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MonitorConfig {
    /// Name of its character device.
    pub chardev: String,
    /// What is spoken.
    pub mode: MonitorMode,
}

/// What a monitor speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MonitorMode {
    /// Lines, for people.
    Human,
    /// JSON, for programs (QMP).
    Control {
        /// With line breaks and indentation.
        pretty: bool,
    },
}

/// The version that monitors report. Clients choose commands by QEMU's numbers, so this is the release
/// whose commands and answers ours follow; the package names this program.
pub const COMPATIBLE: (u32, u32, u32) = (7, 2, 0);

/// This program's name and version.
pub fn package() -> String {
    format!("rkvm-{}", env!("CARGO_PKG_VERSION"))
}
