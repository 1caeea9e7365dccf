//! Storages over storages: what QEMU calls filters.
//!
//! * [`BlkDebugStorage`]: injects errors, and pretends limits that the storage below does not have.
//! * [`ThrottleStorage`]: makes requests wait so that limits of a [`ThrottleGroup`](crate::throttle::ThrottleGroup) hold.
//! * [`NullStorage`] is no filter, but of the same use: it keeps nothing.

mod blkdebug;
mod null;
mod throttle;

pub use blkdebug::BlkDebugStorage;
pub use null::NullStorage;
pub use throttle::ThrottleStorage;

use super::Storage;

/// What a filter says of itself.
#[derive(Clone, Copy, Debug)]
pub struct FilterView<'a> {
    /// QEMU's name of it.
    pub driver: &'static str,
    /// The name to show.
    pub name: &'a str,
    /// What it calls the storage below.
    pub child: &'static str,
    /// The storage below.
    pub below: &'a dyn Storage,
}
