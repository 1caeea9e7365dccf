//! isa-debug-exit: a write ends the process with status `(value << 1) | 1`.

use super::Lifecycle;
use crate::bus::{Device, Effect};

/// Its port unless told otherwise.
pub const PORT: u16 = 0x501;
/// Ports it occupies.
pub const LEN: u16 = 2;

/// The device.
#[derive(Clone, Copy, Debug, Default)]
pub struct DebugExit;

impl Device for DebugExit {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, data: &[u8]) -> Effect {
        Effect::Exit(crate::num::low8((crate::num::get_le(data) << 1) | 1))
    }
}

impl Lifecycle for DebugExit {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_is_never_zero() {
        assert_eq!(DebugExit.write(0, &[0]), Effect::Exit(1));
        assert_eq!(DebugExit.write(0, &[0x10]), Effect::Exit(0x21));
        assert_eq!(DebugExit.write(0, &[0xff, 0, 0, 0]), Effect::Exit(0xff));
    }
}
