//! The keyboard controller, as far as machines without a keyboard need it: its reset line, the A20
//! gate (always open), its self tests. Both of its ports answer as unconnected. The ACPI tables tell
//! guests not to look for a keyboard.

use std::sync::{Mutex, PoisonError};

use super::Lifecycle;
use crate::bus::{Device, Effect};

/// Data port; the command port is 4 further.
pub const DATA: u16 = 0x60;
/// Command and status port.
pub const COMMAND: u16 = 0x64;

const STATUS_FULL: u8 = 1;
const STATUS_SELF_TEST: u8 = 4;
const STATUS_COMMAND: u8 = 8;
const STATUS_UNLOCKED: u8 = 0x10;
const OUTPUT_RUN: u8 = 1;
const OUTPUT_A20: u8 = 2;

#[derive(Debug)]
struct State {
    config: u8,
    answer: Option<u8>,
    /// A command that waits for its byte at the data port.
    pending: Option<u8>,
    last_was_command: bool,
}

/// The controller. Put [`I8042::data`] at 0x60 and [`I8042::command`] at 0x64.
#[derive(Debug)]
pub struct I8042(Mutex<State>);

impl Default for I8042 {
    fn default() -> Self {
        I8042(Mutex::new(State::new()))
    }
}

impl State {
    fn new() -> Self {
        // Both ports disabled.
        State { config: 0x30, answer: None, pending: None, last_was_command: false }
    }

    fn status(&self) -> u8 {
        STATUS_SELF_TEST
            | STATUS_UNLOCKED
            | if self.answer.is_some() { STATUS_FULL } else { 0 }
            | if self.last_was_command { STATUS_COMMAND } else { 0 }
    }

    fn command(&mut self, command: u8) -> Effect {
        self.last_was_command = true;
        self.pending = None;
        match command {
            0x20 => self.answer = Some(self.config),
            0x60 | 0xd1 | 0xd2 | 0xd3 | 0xd4 => self.pending = Some(command),
            0xa7 => self.config |= 0x20,
            0xa8 => self.config &= !0x20,
            0xad => self.config |= 0x10,
            0xae => self.config &= !0x10,
            0xaa => self.answer = Some(0x55),
            // Interface tests: clock line stuck low, that is, nothing connected.
            0xa9 | 0xab => self.answer = Some(1),
            0xd0 => self.answer = Some(OUTPUT_RUN | OUTPUT_A20),
            // Pulse of the output port's lowest bit, which is the processor's reset line.
            c if c >= 0xf0 && c & 1 == 0 => return Effect::Reset,
            _ => {}
        }
        Effect::None
    }

    fn data(&mut self, value: u8) -> Effect {
        self.last_was_command = false;
        match self.pending.take() {
            Some(0x60) => self.config = value,
            Some(0xd1) if value & OUTPUT_RUN == 0 => return Effect::Reset,
            Some(0xd2 | 0xd3) => self.answer = Some(value),
            // To a device that is not there: no answer ever comes.
            _ => {}
        }
        Effect::None
    }
}

/// One of the two ports.
#[derive(Debug)]
pub struct Port {
    controller: std::sync::Arc<I8042>,
    command: bool,
}

impl I8042 {
    /// The port at 0x60.
    pub fn data(self: &std::sync::Arc<Self>) -> Port {
        Port { controller: self.clone(), command: false }
    }

    /// The port at 0x64.
    pub fn command(self: &std::sync::Arc<Self>) -> Port {
        Port { controller: self.clone(), command: true }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Device for Port {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        let mut state = self.controller.lock();
        let value = if self.command { state.status() } else { state.answer.take().unwrap_or(0) };
        data.fill(value);
    }

    fn write(&self, _offset: u64, data: &[u8]) -> Effect {
        let Some(value) = data.first() else { return Effect::None };
        let mut state = self.controller.lock();
        if self.command { state.command(*value) } else { state.data(*value) }
    }
}

impl Lifecycle for I8042 {
    fn reset(&self) {
        *self.lock() = State::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn get(p: &Port) -> u8 {
        let mut b = [0];
        p.read(0, &mut b);
        b[0]
    }

    #[test]
    fn reset_by_pulse_and_by_output_port() {
        let c = Arc::new(I8042::default());
        assert_eq!(c.command().write(0, &[0xfe]), Effect::Reset);
        assert_eq!(c.command().write(0, &[0xff]), Effect::None);
        assert_eq!(c.command().write(0, &[0xd1]), Effect::None);
        assert_eq!(c.data().write(0, &[2]), Effect::Reset);
        c.command().write(0, &[0xd1]);
        assert_eq!(c.data().write(0, &[3]), Effect::None);
    }

    #[test]
    fn self_test_and_configuration() {
        let c = Arc::new(I8042::default());
        let (data, command) = (c.data(), c.command());
        command.write(0, &[0xaa]);
        assert_eq!(get(&command) & STATUS_FULL, 1);
        assert_eq!(get(&data), 0x55);
        assert_eq!(get(&command) & STATUS_FULL, 0);
        command.write(0, &[0x60]);
        data.write(0, &[0x47]);
        command.write(0, &[0x20]);
        assert_eq!(get(&data), 0x47);
        data.write(0, &[0xff]);
        assert_eq!(get(&command) & STATUS_FULL, 0, "no keyboard answers");
    }
}
