//! The 16550A serial port, by National Semiconductor's data sheet PC16550D.
//!
//! The transmitter is infinitely fast: a byte is out when the guest has stored it. The receiver keeps
//! at most a FIFO's worth; the back end asks [`Serial::room`] and holds the rest.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Lifecycle, Output};
use crate::bus::{Device, Effect};
use crate::chardev::{CharEvent, FrontEnd};
use crate::irq::Line;

/// Ports of COM1 to COM4 and their interrupts.
pub const PORTS: [(u16, u32); 4] = [(0x3f8, 4), (0x2f8, 3), (0x3e8, 4), (0x2e8, 3)];

const FIFO: usize = 16;

const IER_RDA: u8 = 1;
const IER_THRE: u8 = 2;
const IER_RLS: u8 = 4;
const IER_MSI: u8 = 8;
const IIR_NONE: u8 = 1;
const IIR_MSI: u8 = 0;
const IIR_THRE: u8 = 2;
const IIR_RDA: u8 = 4;
const IIR_RLS: u8 = 6;
const IIR_TIMEOUT: u8 = 0xc;
const IIR_FIFO: u8 = 0xc0;
const LCR_BREAK: u8 = 0x40;
const LCR_DLAB: u8 = 0x80;
const LSR_DR: u8 = 1;
const LSR_OE: u8 = 2;
const LSR_BI: u8 = 0x10;
const LSR_THRE: u8 = 0x20;
const LSR_TEMT: u8 = 0x40;
const MCR_LOOP: u8 = 0x10;
const MCR_OUT2: u8 = 8;

struct State {
    divisor: u16,
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    /// Errors only; the other bits follow from the rest.
    lsr: u8,
    msr: u8,
    scratch: u8,
    received: VecDeque<u8>,
    thre_pending: bool,
    out: Box<dyn Output>,
}

/// A serial port.
pub struct Serial {
    state: Mutex<State>,
    line: Arc<dyn Line>,
    /// Called when there is room again after the receiver was full.
    on_room: Mutex<Option<Box<dyn Fn() + Send>>>,
}

impl std::fmt::Debug for Serial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Serial")
    }
}

impl State {
    fn reset(&mut self) {
        self.divisor = 12;
        self.ier = 0;
        self.fcr = 0;
        self.lcr = 3;
        self.mcr = MCR_OUT2;
        self.lsr = 0;
        // Carrier, data set ready, clear to send: somebody is there.
        self.msr = 0xb0;
        self.scratch = 0;
        self.received.clear();
        self.thre_pending = false;
    }

    /// Data sheet, table IV: highest priority first.
    fn interrupt(&self) -> u8 {
        if self.ier & IER_RLS != 0 && self.lsr & (LSR_OE | LSR_BI) != 0 {
            IIR_RLS
        } else if self.ier & IER_RDA != 0 && !self.received.is_empty() {
            // Below the trigger level the data are announced by the time-out of the FIFO, which here
            // has always passed.
            if self.fcr & 1 != 0 && self.received.len() < self.trigger() {
                IIR_TIMEOUT
            } else {
                IIR_RDA
            }
        } else if self.ier & IER_THRE != 0 && self.thre_pending {
            IIR_THRE
        } else if self.ier & IER_MSI != 0 && self.msr & 0xf != 0 {
            IIR_MSI
        } else {
            IIR_NONE
        }
    }

    fn trigger(&self) -> usize {
        [1, 4, 8, 14][usize::from(self.fcr >> 6)]
    }

    fn capacity(&self) -> usize {
        if self.fcr & 1 != 0 { FIFO } else { 1 }
    }

    fn push(&mut self, byte: u8) {
        if self.received.len() < self.capacity() {
            self.received.push_back(byte);
        } else {
            self.lsr |= LSR_OE;
        }
    }

    fn transmit(&mut self, byte: u8) {
        if self.mcr & MCR_LOOP != 0 {
            self.push(byte);
        } else {
            self.out.put(&[byte]);
        }
        self.thre_pending = true;
    }

    fn modem_status(&self) -> u8 {
        if self.mcr & MCR_LOOP == 0 {
            return self.msr;
        }
        // In loop mode the outputs are the inputs: RTS to CTS, DTR to DSR, OUT1 to RI, OUT2 to DCD.
        let m = self.mcr;
        ((m & 2) << 3) | ((m & 1) << 5) | ((m & 4) << 4) | ((m & 8) << 4)
    }

    fn read(&mut self, register: u64) -> u8 {
        let dlab = self.lcr & LCR_DLAB != 0;
        match register {
            0 if dlab => self.divisor.to_le_bytes()[0],
            1 if dlab => self.divisor.to_le_bytes()[1],
            0 => self.received.pop_front().unwrap_or(0),
            1 => self.ier,
            2 => {
                let id = self.interrupt();
                if id == IIR_THRE {
                    self.thre_pending = false;
                }
                id | if self.fcr & 1 != 0 { IIR_FIFO } else { 0 }
            }
            3 => self.lcr,
            4 => self.mcr,
            5 => {
                let ready = if self.received.is_empty() { 0 } else { LSR_DR };
                let value = self.lsr | LSR_THRE | LSR_TEMT | ready;
                self.lsr = 0;
                value
            }
            6 => {
                let value = self.modem_status();
                self.msr &= 0xf0;
                value
            }
            7 => self.scratch,
            _ => 0xff,
        }
    }

    fn write(&mut self, register: u64, value: u8) {
        let dlab = self.lcr & LCR_DLAB != 0;
        match register {
            0 if dlab => self.divisor = (self.divisor & 0xff00) | u16::from(value),
            1 if dlab => self.divisor = (self.divisor & 0xff) | (u16::from(value) << 8),
            0 => self.transmit(value),
            1 => {
                // Enabling it while the transmitter is empty raises it at once.
                if value & IER_THRE != 0 && self.ier & IER_THRE == 0 {
                    self.thre_pending = true;
                }
                self.ier = value & 0xf;
            }
            2 => {
                if (value ^ self.fcr) & 1 != 0 || value & 2 != 0 {
                    self.received.clear();
                }
                self.fcr = value & 0xc9;
            }
            3 => {
                if value & !self.lcr & LCR_BREAK != 0 && self.mcr & MCR_LOOP != 0 {
                    self.lsr |= LSR_BI;
                    self.push(0);
                }
                self.lcr = value;
            }
            4 => self.mcr = value & 0x1f,
            7 => self.scratch = value,
            _ => {}
        }
    }
}

impl Serial {
    /// A port whose characters go to `out` and whose interrupt is `line`.
    pub fn new(line: Arc<dyn Line>, out: Box<dyn Output>) -> Self {
        let mut state = State {
            divisor: 12,
            ier: 0,
            fcr: 0,
            lcr: 0,
            mcr: 0,
            lsr: 0,
            msr: 0,
            scratch: 0,
            received: VecDeque::with_capacity(FIFO),
            thre_pending: false,
            out,
        };
        state.reset();
        Serial { state: Mutex::new(state), line, on_room: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the line; called with the state locked, so that levels cannot overtake each other.
    fn update(&self, state: &State) {
        self.line.set((state.interrupt() != IIR_NONE).into());
    }

    /// How many characters the receiver can take.
    pub fn room(&self) -> usize {
        let state = self.lock();
        state.capacity().saturating_sub(state.received.len())
    }

    /// Characters arrive; returns how many were taken. The others are for later.
    pub fn receive(&self, bytes: &[u8]) -> usize {
        let mut state = self.lock();
        if state.mcr & MCR_LOOP != 0 {
            return 0;
        }
        let n = state.capacity().saturating_sub(state.received.len()).min(bytes.len());
        state.received.extend(&bytes[..n]);
        self.update(&state);
        n
    }

    /// The other side sends a break.
    pub fn receive_break(&self) {
        let mut state = self.lock();
        state.lsr |= LSR_BI;
        state.push(0);
        self.update(&state);
    }

    /// `call` is called whenever the guest has made room for characters.
    pub fn notify_room(&self, call: Box<dyn Fn() + Send>) {
        *self.on_room.lock().unwrap_or_else(PoisonError::into_inner) = Some(call);
    }
}

impl Device for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        let Some(first) = data.first_mut() else { return };
        let mut state = self.lock();
        let before = state.received.len();
        *first = state.read(offset);
        let drained = before > 0 && state.received.is_empty();
        self.update(&state);
        drop(state);
        if drained && let Some(call) = &*self.on_room.lock().unwrap_or_else(PoisonError::into_inner)
        {
            call();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Effect {
        if let Some(value) = data.first() {
            let mut state = self.lock();
            state.write(offset, *value);
            self.update(&state);
        }
        Effect::None
    }
}

impl FrontEnd for Serial {
    fn receive(&self, bytes: &[u8]) -> usize {
        Serial::receive(self, bytes)
    }

    fn event(&self, event: CharEvent) {
        if event == CharEvent::Break {
            self.receive_break();
        }
    }
}

impl Lifecycle for Serial {
    fn reset(&self) {
        let mut state = self.lock();
        state.reset();
        self.update(&state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::Captured;
    use crate::irq::{Level, RecordedLine};

    fn port() -> (Serial, Captured, Arc<RecordedLine>) {
        let (out, line) = (Captured::default(), Arc::new(RecordedLine::default()));
        (Serial::new(line.clone(), Box::new(out.clone())), out, line)
    }

    fn get(s: &Serial, register: u64) -> u8 {
        let mut b = [0];
        s.read(register, &mut b);
        b[0]
    }

    fn put(s: &Serial, register: u64, value: u8) {
        assert_eq!(s.write(register, &[value]), Effect::None);
    }

    #[test]
    fn transmits_and_interrupts_when_empty() {
        let (s, out, line) = port();
        put(&s, 0, b'a');
        assert_eq!(line.level(), Level::Low);
        put(&s, 1, IER_THRE);
        assert_eq!(line.level(), Level::High);
        assert_eq!(get(&s, 2), IIR_THRE);
        assert_eq!((line.level(), get(&s, 2)), (Level::Low, IIR_NONE));
        put(&s, 0, b'b');
        assert_eq!(line.rises(), 2);
        assert_eq!(out.text(), "ab");
        assert_eq!(get(&s, 5), LSR_THRE | LSR_TEMT);
    }

    #[test]
    fn receives_as_much_as_there_is_room() {
        let (s, _, line) = port();
        assert_eq!(s.receive(b"xy"), 1);
        put(&s, 2, 1);
        assert_eq!(s.room(), FIFO, "enabling the FIFO clears it");
        put(&s, 2, 0x81);
        put(&s, 1, IER_RDA);
        assert_eq!(s.receive(b"hello"), 5);
        assert_eq!(get(&s, 2), IIR_FIFO | IIR_TIMEOUT);
        assert_eq!(s.receive(&[b'!'; 20]), 11);
        assert_eq!(get(&s, 2), IIR_FIFO | IIR_RDA);
        assert_eq!(line.level(), Level::High);
        assert_eq!(get(&s, 5) & LSR_DR, LSR_DR);
        let all: Vec<u8> = (0..16).map(|_| get(&s, 0)).collect();
        assert_eq!(&all[..6], b"hello!");
        assert_eq!((line.level(), get(&s, 5) & LSR_DR), (Level::Low, 0));
    }

    #[test]
    fn loop_mode_as_drivers_probe_it() {
        let (s, out, _) = port();
        put(&s, 4, MCR_LOOP | 0xa);
        assert_eq!(get(&s, 6) & 0xf0, 0x90, "Linux autoconfig's test");
        put(&s, 0, 7);
        assert_eq!((get(&s, 0), out.bytes().len()), (7, 0));
        put(&s, 4, 0);
        put(&s, 7, 0x5a);
        assert_eq!(get(&s, 7), 0x5a);
        put(&s, 3, LCR_DLAB);
        put(&s, 0, 0x34);
        put(&s, 1, 0x12);
        assert_eq!((get(&s, 0), get(&s, 1)), (0x34, 0x12));
        s.reset();
        assert_eq!((get(&s, 3), get(&s, 7)), (3, 0));
    }

    #[test]
    fn an_overrun_and_a_break_are_reported_once() {
        let (s, _, line) = port();
        put(&s, 1, IER_RLS);
        s.receive_break();
        s.receive_break();
        assert_eq!(line.level(), Level::High);
        assert_eq!(get(&s, 5) & (LSR_BI | LSR_OE), LSR_BI | LSR_OE);
        assert_eq!(get(&s, 5) & (LSR_BI | LSR_OE), 0);
        assert_eq!(line.level(), Level::Low);
    }

    #[test]
    fn room_is_announced_when_drained() {
        let (s, ..) = port();
        let count = Arc::new(Mutex::new(0));
        let seen = count.clone();
        s.notify_room(Box::new(move || *seen.lock().unwrap() += 1));
        get(&s, 0);
        s.receive(b"x");
        get(&s, 0);
        assert_eq!(*count.lock().unwrap(), 1);
    }
}
