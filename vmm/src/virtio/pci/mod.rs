//! virtio over PCI (section 4.1): one function with the modern registers in memory and, for old
//! drivers, the legacy registers in ports.
//!
//! ```text
//! BAR 0  legacy registers (ports)
//! BAR 1  MSI-X table and pending bits
//! BAR 4  0x0000 common configuration   0x1000 interrupt status
//!        0x2000 device configuration   0x3000 doorbells, 4 bytes a queue
//! ```
//!
//! Doorbells are event descriptors that KVM writes itself while the device is active; before and without
//! KVM they are ordinary registers.

mod common;
mod function;
mod interrupts;

pub use function::{DoorbellPort, Settings, VirtioPci};
pub use interrupts::Interrupts;

/// BAR of the legacy registers.
pub const LEGACY_BAR: u8 = 0;
/// BAR of MSI-X.
pub const MSIX_BAR: u8 = 1;
/// BAR of the modern registers.
pub const MODERN_BAR: u8 = 4;
/// Interrupt status in the modern BAR.
pub const ISR: u64 = 0x1000;
/// Device configuration in the modern BAR.
pub const DEVICE: u64 = 0x2000;
/// Doorbells in the modern BAR.
pub const NOTIFY: u64 = 0x3000;
/// Bytes between doorbells.
pub const NOTIFY_STRIDE: u64 = 4;
/// Bytes of the modern BAR.
pub const MODERN_LEN: u64 = 0x4000;
/// Bytes of the legacy BAR.
pub const LEGACY_LEN: u64 = 128;
