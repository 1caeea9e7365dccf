//! QMP, the monitor for programs (QEMU's `qmp-spec`): JSON values on a stream.
//!
//! * [`stream`]: cuts a stream into values, whatever pieces it comes in; junk becomes errors.
//! * [`session`]: greeting, negotiation, commands, answers, events.

pub mod session;
pub mod stream;

pub use session::Session;
