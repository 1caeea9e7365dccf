//! Devices whose queues the host's kernel serves: `/dev/vhost-net`, `/dev/vhost-vsock`
//! (Linux: include/uapi/linux/vhost.h).
//!
//! * [`Vhost`]: the calls.
//! * [`VhostWork`]: hands queues over to the kernel, takes them back, and passes its interrupts on.
//!
//! The kernel reads the rings by itself; it checks all that the guest writes there against the table of
//! guest memory that it was given.

mod calls;
mod work;

pub use calls::{RingAddresses, Vhost};
pub use work::{Target, VhostWork};
