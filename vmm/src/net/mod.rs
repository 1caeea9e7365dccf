//! What lies behind a guest's network cards.
//!
//! * [`config`]: plain data: one back end as the command line describes it.
//! * [`open`](mod@open): from plain data to open descriptors, with scripts run.
//! * [`tap`]: network interfaces of the host.
//! * [`bridge`]: joining a bridge, by ourselves or through QEMU's helper program.
//! * [`script`]: qemu-ifup and qemu-ifdown.

pub mod bridge;
pub mod config;
pub mod open;
pub mod script;
pub mod tap;

use std::os::fd::{BorrowedFd, RawFd};

use crate::block::vector::GuestPieces;

/// Whether a queue of a back end is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueState {
    /// Frames may arrive on it.
    Attached,
    /// None do.
    Detached,
}

/// One queue of a back end that moves whole Ethernet frames, each behind a `virtio_net_hdr` of the
/// length agreed upon by [`NetBackend::configure`].
pub trait NetBackend: Send {
    /// To be polled: readable when a frame is there.
    fn fd(&self) -> RawFd;
    /// Takes the next frame, header first; `None` when there is none. Frames longer than the buffer are cut.
    fn receive(&mut self, buf: &mut [u8]) -> std::io::Result<Option<usize>>;
    /// Sends a frame, header first. False when it was dropped because the back end is busy.
    fn send(&mut self, frame: &[u8]) -> std::io::Result<bool>;
    /// Sends a frame straight out of guest memory; `None` when that is not possible and nothing was done.
    fn send_direct(&mut self, _frame: &GuestPieces<'_>) -> std::io::Result<Option<bool>> {
        Ok(None)
    }
    /// Agrees upon the header's length, and which offloads the guest can take (bits as in virtio-net's
    /// features).
    fn configure(&mut self, header_len: u8, guest_offloads: u64) -> std::io::Result<()>;
    /// Offloads that it can do for the guest, as virtio-net feature bits.
    fn offloads(&self) -> u64;
    /// Turns this queue on or off, where the back end has several.
    fn set_queue(&mut self, _state: QueueState) -> std::io::Result<()> {
        Ok(())
    }
    /// The descriptor that the kernel's own virtio-net (vhost) can use.
    fn for_vhost(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    /// Another handle of the same queue for another activation.
    fn reopen(&self) -> std::io::Result<Box<dyn NetBackend>>;
}
