//! What lies behind a guest's network card.
//!
//! * [`tap`]: a network interface of the host.

pub mod tap;

/// A back end that moves whole Ethernet frames, each behind a `virtio_net_hdr` of
/// [`NetBackend::header_len`] bytes.
pub trait NetBackend: Send {
    /// To be polled: readable when a frame is there.
    fn fd(&self) -> std::os::fd::RawFd;
    /// Takes the next frame, header first; `None` when there is none. Frames longer than the buffer are cut.
    fn receive(&mut self, buf: &mut [u8]) -> std::io::Result<Option<usize>>;
    /// Sends a frame, header first. False when it was dropped because the back end is busy.
    fn send(&mut self, frame: &[u8]) -> std::io::Result<bool>;
    /// Agrees upon the header's length, and which offloads the guest can take (bits as in virtio-net's
    /// features).
    fn configure(&mut self, header_len: u8, guest_offloads: u64) -> std::io::Result<()>;
    /// Offloads that it can do for the guest, as virtio-net feature bits.
    fn offloads(&self) -> u64;
    /// Another handle of the same back end for another activation.
    fn reopen(&self) -> std::io::Result<Box<dyn NetBackend>>;
}
