//! Classic devices of a PC, register by register.
//!
//! Each device answers accesses ([`crate::bus::Device`]), raises its interrupt through a
//! [`crate::irq::Line`], and follows the machine's life ([`Lifecycle`]). None of them knows KVM.

pub mod acpi_pm;
pub mod debug_exit;
pub mod debug_port;
pub mod i8042;
pub mod pvpanic;
pub mod rtc;
pub mod serial;

use crate::Result;

/// A device's part in the life of the machine. Everything that has nothing to do may leave it as it is.
///
/// `pause` is called when no vCPU runs guest code any more, `resume` before they do so again, `reset`
/// between the two, and `shut_down` once, after the last vCPU has ended.
pub trait Lifecycle: Send + Sync {
    /// Stop working on behalf of the guest; return when all that was begun has ended.
    fn pause(&self) -> Result<()> {
        Ok(())
    }
    /// Go on.
    fn resume(&self) -> Result<()> {
        Ok(())
    }
    /// Make stored data durable.
    fn flush(&self) -> Result<()> {
        Ok(())
    }
    /// Back to the state after power-on.
    fn reset(&self) {}
    /// End threads, make stored data durable.
    fn shut_down(&self) -> Result<()> {
        Ok(())
    }
}

/// Where characters go: a serial port's or a debug port's other side.
pub trait Output: Send {
    /// Takes all bytes. What a back end cannot take it drops; a guest does not wait for a slow reader.
    fn put(&mut self, bytes: &[u8]);
}

impl Output for Box<dyn Output> {
    fn put(&mut self, bytes: &[u8]) {
        (**self).put(bytes);
    }
}

/// Nowhere.
#[derive(Clone, Copy, Debug, Default)]
pub struct Discard;

impl Output for Discard {
    fn put(&mut self, _bytes: &[u8]) {}
}

/// Keeps what was put; for tests. Clones share their contents.
#[derive(Clone, Debug, Default)]
pub struct Captured(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

impl Captured {
    /// All bytes so far.
    pub fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// All bytes so far as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }
}

impl Output for Captured {
    fn put(&mut self, bytes: &[u8]) {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).extend_from_slice(bytes);
    }
}
