//! pvpanic: a guest tells that it has crashed (Linux: Documentation of the pvpanic driver; QEMU:
//! docs/specs/pvpanic).

use super::Lifecycle;
use crate::bus::{Device, Effect, PanicKind};

/// Its port.
pub const PORT: u16 = 0x505;

const PANICKED: u8 = 1;
const CRASH_LOADED: u8 = 2;
const SHUTDOWN: u8 = 4;

/// The device.
#[derive(Clone, Copy, Debug, Default)]
pub struct PvPanic;

impl Device for PvPanic {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(b) = data.first_mut() {
            *b = PANICKED | CRASH_LOADED | SHUTDOWN;
        }
    }

    fn write(&self, _offset: u64, data: &[u8]) -> Effect {
        match data.first().copied().unwrap_or(0) {
            v if v & PANICKED != 0 => Effect::Panicked(PanicKind::Panicked),
            v if v & CRASH_LOADED != 0 => Effect::Panicked(PanicKind::CrashLoaded),
            v if v & SHUTDOWN != 0 => Effect::Panicked(PanicKind::Shutdown),
            _ => Effect::None,
        }
    }
}

impl Lifecycle for PvPanic {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events() {
        let mut b = [0];
        PvPanic.read(0, &mut b);
        assert_eq!(b, [7]);
        assert_eq!(PvPanic.write(0, &[1]), Effect::Panicked(PanicKind::Panicked));
        assert_eq!(PvPanic.write(0, &[2]), Effect::Panicked(PanicKind::CrashLoaded));
        assert_eq!(PvPanic.write(0, &[8]), Effect::None);
    }
}
