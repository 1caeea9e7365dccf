//! Where the characters of serial ports, consoles and monitors come from and go to.
//!
//! A character device ([`Chardev`]) has a back end (a terminal, a file, a socket ...) and one front end,
//! or several that share it by turns. It is made from plain data ([`CharConfig`]), found by its name
//! ([`Chardevs`]), and carried by one thread of its own.
//!
//! * [`config`]: back ends as plain data.
//! * `transport`: opening them.
//! * [`device`]: what front ends hold on to: queues, patience with slow readers.
//! * `carrier`: the thread that connects, reads and writes.
//! * [`keys`]: the escape character of shared devices; [`telnet`]: that protocol.
//! * [`registry`]: all devices of a machine.

mod carrier;
pub mod config;
pub mod device;
pub mod keys;
pub mod registry;
pub mod telnet;
mod transport;

#[cfg(test)]
mod tests;

pub use carrier::OnKey;
pub use config::{CharConfig, CharKind};
pub use device::{CharEvent, Chardev, FrontEnd, Patience, Waker, Writer};
pub use keys::Key;
pub use registry::Chardevs;
pub use transport::Standard;
