//! ACPI fixed hardware (ACPI 6.5, 4.8.3): the power button, sleeping state S5, the power management
//! timer, and the reset register.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::Lifecycle;
use crate::bus::{Device, Effect};
use crate::irq::Line;
use crate::num::{get_le, low8, low16, put_le, read_within};

/// First port. Event block at +0, control at +4, timer at +8.
pub const BASE: u16 = 0x600;
/// Ports it occupies.
pub const LEN: u16 = 12;
/// The interrupt it raises.
pub const SCI: u32 = 9;
/// SLP_TYP of soft off, as the DSDT says.
pub const S5: u8 = 5;
/// Port of the reset register.
pub const RESET_PORT: u16 = 0xcf9;
/// What to write there.
pub const RESET_VALUE: u8 = 0x0f;
/// Frequency of the timer.
pub const TIMER_HZ: u64 = 3_579_545;

const POWER_BUTTON: u16 = 1 << 8;
const GLOBAL: u16 = 1 << 5;
const TIMER: u16 = 1;
const SCI_EN: u16 = 1;
const SLP_EN: u16 = 1 << 13;

#[derive(Debug, Default)]
struct State {
    status: u16,
    enable: u16,
    control: u16,
}

/// The registers.
#[derive(Debug)]
pub struct AcpiPm {
    state: Mutex<State>,
    line: Arc<dyn Line>,
    start: Instant,
}

impl AcpiPm {
    /// With the line of the system control interrupt.
    pub fn new(line: Arc<dyn Line>) -> Self {
        AcpiPm { state: Mutex::new(power_on()), line, start: Instant::now() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, state: &State) {
        let pending = state.status & state.enable & (POWER_BUTTON | GLOBAL | TIMER) != 0;
        self.line.set(pending.into());
    }

    /// Somebody presses the power button.
    pub fn press_power_button(&self) {
        let mut state = self.lock();
        state.status |= POWER_BUTTON;
        self.update(&state);
    }

    /// True when the guest listens to the power button.
    pub fn button_enabled(&self) -> bool {
        self.lock().enable & POWER_BUTTON != 0
    }

    /// 24 bits that count up.
    fn timer(&self) -> u64 {
        let elapsed = self.start.elapsed();
        let ticks = u128::from(TIMER_HZ) * elapsed.as_nanos() / 1_000_000_000;
        u64::try_from(ticks & 0xff_ffff).unwrap_or(0)
    }
}

/// ACPI mode from the start: there is no firmware that would have to hand over.
fn power_on() -> State {
    State { control: SCI_EN, ..State::default() }
}

impl Device for AcpiPm {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut block = [0; LEN as usize];
        {
            let state = self.lock();
            put_le(&mut block[0..2], state.status.into());
            put_le(&mut block[2..4], state.enable.into());
            put_le(&mut block[4..6], state.control.into());
        }
        put_le(&mut block[8..12], self.timer());
        read_within(&block, offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) -> Effect {
        let mut state = self.lock();
        // Byte by byte, so that every width and alignment does the right thing.
        let shifted = |register: u16, at: u64| {
            let mut bytes = register.to_le_bytes();
            for (i, b) in (offset..).zip(data) {
                if let Some(slot) =
                    i.checked_sub(at).and_then(|i| bytes.get_mut(crate::num::index(i)))
                {
                    *slot = *b;
                }
            }
            u16::from_le_bytes(bytes)
        };
        match offset {
            // Status bits are cleared by writing ones; untouched bytes count as zeroes.
            0..2 => state.status &= !low16(get_le(data) << (8 * offset)),
            2..4 => state.enable = shifted(state.enable, 2),
            4..6 => {
                let value = shifted(state.control, 4);
                state.control = (value & !SLP_EN) | SCI_EN;
                if value & SLP_EN != 0 && low8(u64::from(value >> 10) & 7) == S5 {
                    return Effect::PowerOff;
                }
            }
            _ => {}
        }
        if offset < 2 && data.len() > 2 {
            state.enable = shifted(state.enable, 2);
        }
        self.update(&state);
        Effect::None
    }
}

impl Lifecycle for AcpiPm {
    fn reset(&self) {
        let mut state = self.lock();
        *state = power_on();
        self.update(&state);
    }
}

/// The reset register, for FADT and for those who poke at 0xcf9 as chipsets have it: bit 2 resets.
#[derive(Clone, Copy, Debug, Default)]
pub struct ResetRegister;

impl Device for ResetRegister {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, data: &[u8]) -> Effect {
        match data {
            [value] if value & 4 != 0 => Effect::Reset,
            _ => Effect::None,
        }
    }
}

impl Lifecycle for ResetRegister {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::irq::{Level, RecordedLine};

    fn pm() -> (AcpiPm, Arc<RecordedLine>) {
        let line = Arc::new(RecordedLine::default());
        (AcpiPm::new(line.clone()), line)
    }

    fn get(pm: &AcpiPm, offset: u64) -> u16 {
        let mut b = [0; 2];
        pm.read(offset, &mut b);
        u16::from_le_bytes(b)
    }

    #[test]
    fn the_power_button_interrupts_when_enabled() {
        let (pm, line) = pm();
        pm.press_power_button();
        assert_eq!(line.level(), Level::Low);
        pm.write(2, &POWER_BUTTON.to_le_bytes());
        assert!(pm.button_enabled());
        assert_eq!(line.level(), Level::High);
        assert_eq!(get(&pm, 0), POWER_BUTTON);
        pm.write(0, &POWER_BUTTON.to_le_bytes());
        assert_eq!((line.level(), get(&pm, 0)), (Level::Low, 0));
        assert_eq!(get(&pm, 2), POWER_BUTTON);
        pm.press_power_button();
        pm.write(1, &[1]);
        assert_eq!(get(&pm, 0), 0, "byte write to the upper half");
    }

    #[test]
    fn s5_powers_off_and_nothing_else_does() {
        let (pm, _) = pm();
        assert_eq!(get(&pm, 4), SCI_EN);
        let sleep = |kind: u16| pm.write(4, &((kind << 10) | SLP_EN).to_le_bytes());
        assert_eq!(sleep(0), Effect::None);
        assert_eq!(sleep(5), Effect::PowerOff);
        assert_eq!(pm.write(4, &(5u16 << 10).to_le_bytes()), Effect::None);
        assert_eq!(get(&pm, 4), SCI_EN | (5 << 10));
    }

    #[test]
    fn the_timer_counts() {
        let (pm, _) = pm();
        let read = || {
            let mut b = [0; 4];
            pm.read(8, &mut b);
            u32::from_le_bytes(b)
        };
        let a = read();
        std::thread::sleep(std::time::Duration::from_millis(5));
        let b = read();
        assert!(b > a && b - a > 15_000, "{a} {b}");
    }

    #[test]
    fn reset_register() {
        assert_eq!(ResetRegister.write(0, &[RESET_VALUE]), Effect::Reset);
        assert_eq!(ResetRegister.write(0, &[2]), Effect::None);
        assert_eq!(
            ResetRegister.write(0, &[4, 0, 0, 0]),
            Effect::None,
            "that is port 0xcf8's width"
        );
    }
}
