//! Debug ports: 0xe9 (Bochs) and 0x402 (SeaBIOS, EDK2). Bytes written go out; a read tells that the
//! port is there.

use std::sync::{Mutex, PoisonError};

use super::{Lifecycle, Output};
use crate::bus::{Device, Effect};

/// Bochs' port.
pub const BOCHS: u16 = 0xe9;
/// The firmware's port.
pub const FIRMWARE: u16 = 0x402;

/// What a read returns at either port.
const PRESENT: u8 = 0xe9;

/// A debug port.
pub struct DebugPort {
    out: Mutex<Box<dyn Output>>,
}

impl std::fmt::Debug for DebugPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DebugPort")
    }
}

impl DebugPort {
    /// Bytes go to `out`.
    pub fn new(out: Box<dyn Output>) -> Self {
        DebugPort { out: Mutex::new(out) }
    }
}

impl Device for DebugPort {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(PRESENT);
    }

    fn write(&self, _offset: u64, data: &[u8]) -> Effect {
        self.out.lock().unwrap_or_else(PoisonError::into_inner).put(data);
        Effect::None
    }
}

impl Lifecycle for DebugPort {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::Captured;

    #[test]
    fn writes_go_out_and_reads_tell_it_is_there() {
        let out = Captured::default();
        let port = DebugPort::new(Box::new(out.clone()));
        port.write(0, b"h");
        port.write(0, b"i");
        let mut b = [0];
        port.read(0, &mut b);
        assert_eq!((out.text().as_str(), b), ("hi", [0xe9]));
    }
}
