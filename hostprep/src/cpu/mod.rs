//! Drawing processors, placing guests on them, and binding threads to CPUs.

mod affinity;
mod draw;
mod pinning;

pub use affinity::{Binding, Role, Thread, bind, find_process, threads};
pub use draw::draw;
pub use pinning::{GuestPlace, Proposal, propose};
