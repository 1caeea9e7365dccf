//! The real-time clock and CMOS memory: MC146818, by Motorola's data sheet, with the century byte of
//! the PC at 0x32.
//!
//! Time runs on the host's clock plus an offset. Registers are computed when they are read. The three
//! interrupts (periodic, alarm, update ended) come from [`Rtc::tick`], which whoever owns a timer calls
//! when [`Rtc::next_event`] says so.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Lifecycle;
use crate::bus::{Device, Effect};
use crate::irq::Line;
use crate::num::low8;

/// Index port; the data port follows.
pub const BASE: u16 = 0x70;
/// Its interrupt.
pub const IRQ: u32 = 8;

const REG_A: usize = 0xa;
const REG_B: usize = 0xb;
const REG_C: usize = 0xc;
const REG_D: usize = 0xd;
const CENTURY: usize = 0x32;
const B_SET: u8 = 0x80;
const B_PIE: u8 = 0x40;
const B_AIE: u8 = 0x20;
const B_UIE: u8 = 0x10;
const B_BINARY: u8 = 4;
const B_24H: u8 = 2;
const C_IRQF: u8 = 0x80;
const C_PF: u8 = 0x40;
const C_AF: u8 = 0x20;
const C_UF: u8 = 0x10;

/// Where the time comes from: since 1970, in the guest's time zone.
pub type Clock = Box<dyn Fn() -> Duration + Send + Sync>;

struct State {
    index: usize,
    ram: [u8; 128],
    /// What the guest added by setting its clock, in seconds.
    offset: i64,
    /// Time registers while the guest holds them still (bit SET).
    frozen: Option<[u8; 10]>,
    /// When `tick` last looked.
    seen: Duration,
}

/// The clock.
pub struct Rtc {
    state: Mutex<State>,
    clock: Clock,
    line: Arc<dyn Line>,
    /// Called when `next_event` may have changed.
    on_change: Mutex<Option<Box<dyn Fn() + Send>>>,
}

impl std::fmt::Debug for Rtc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Rtc")
    }
}

/// Year, month, day of days since 1970-01-01 (proleptic Gregorian; algorithm by H. Hinnant).
fn civil(days: i64) -> (i64, u8, u8) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + i64::from(month <= 2);
    (year, u8::try_from(month).unwrap_or(1), u8::try_from(day).unwrap_or(1))
}

/// Days since 1970-01-01 of a date.
pub fn days_of(year: i64, month: i64, day: i64) -> i64 {
    let y = if month <= 2 { year - 1 } else { year };
    let era = y.div_euclid(400);
    let yoe = y.rem_euclid(400);
    let doy = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    era * 146_097 + yoe * 365 + yoe / 4 - yoe / 100 + doy - 719_468
}

impl State {
    fn encode(&self, value: u8) -> u8 {
        if self.ram[REG_B] & B_BINARY != 0 { value } else { (value / 10) << 4 | value % 10 }
    }

    fn decode(&self, value: u8) -> i64 {
        let v =
            if self.ram[REG_B] & B_BINARY != 0 { value } else { (value >> 4) * 10 + (value & 15) };
        v.into()
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.ram[REG_B] & B_24H != 0 {
            return self.encode(hour);
        }
        let twelve = if hour.is_multiple_of(12) { 12 } else { hour % 12 };
        self.encode(twelve) | if hour >= 12 { 0x80 } else { 0 }
    }

    fn decode_hour(&self, value: u8) -> i64 {
        if self.ram[REG_B] & B_24H != 0 {
            return self.decode(value);
        }
        self.decode(value & 0x7f) % 12 + if value & 0x80 != 0 { 12 } else { 0 }
    }

    /// Registers 0 to 9 (alarms left out) and, last but one wanted, the century.
    fn time_registers(&self, seconds: i64) -> ([u8; 10], u8) {
        let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
        let small = |v: i64| u8::try_from(v).unwrap_or(0);
        let (year, month, day) = civil(days);
        let mut r = [0; 10];
        r[0] = self.encode(small(rest % 60));
        r[2] = self.encode(small(rest / 60 % 60));
        r[4] = self.encode_hour(small(rest / 3600));
        // 1970-01-01 was a Thursday; Sunday is 1.
        r[6] = self.encode(small((days + 4).rem_euclid(7) + 1));
        r[7] = self.encode(day);
        r[8] = self.encode(month);
        r[9] = self.encode(small(year.rem_euclid(100)));
        (r, self.encode(small(year.div_euclid(100))))
    }

    /// What the guest has stored into the time registers, as seconds.
    fn seconds_of(&self, r: &[u8; 10]) -> i64 {
        let year = self.decode(self.ram[CENTURY]) * 100 + self.decode(r[9]);
        let month = self.decode(r[8]).clamp(1, 12);
        days_of(year, month, self.decode(r[7])) * 86_400
            + self.decode_hour(r[4]) * 3600
            + self.decode(r[2]) * 60
            + self.decode(r[0])
    }

    /// Period of the periodic interrupt (data sheet, table 5); none when it is off.
    fn period(&self) -> Option<Duration> {
        let rate = u32::from(self.ram[REG_A] & 15);
        let shift = match rate {
            0 => return None,
            1 | 2 => rate + 6,
            r => r - 1,
        };
        Some(Duration::from_nanos((1_000_000_000 << shift) / 32_768))
    }
}

impl Rtc {
    /// A clock that shows the time of `clock`.
    pub fn new(clock: Clock, line: Arc<dyn Line>) -> Self {
        let mut ram = [0; 128];
        ram[REG_A] = 0x26;
        ram[REG_B] = B_24H;
        ram[REG_D] = 0x80;
        let seen = clock();
        let state = State { index: 0, ram, offset: 0, frozen: None, seen };
        let rtc = Rtc { state: Mutex::new(state), clock, line, on_change: Mutex::default() };
        {
            let mut s = rtc.lock();
            let now = rtc.seconds(&s);
            s.ram[CENTURY] = s.time_registers(now).1;
        }
        rtc
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn seconds(&self, state: &State) -> i64 {
        i64::try_from((self.clock)().as_secs()).unwrap_or(0).saturating_add(state.offset)
    }

    /// Stores a byte of CMOS memory, as firmware of the machine would (memory size, boot order).
    pub fn set_cmos(&self, index: u8, value: u8) {
        if let Some(b) = self.lock().ram.get_mut(usize::from(index)) {
            *b = value;
        }
    }

    /// `call` is called whenever [`Rtc::next_event`] may have changed.
    pub fn on_change(&self, call: Box<dyn Fn() + Send>) {
        *self.on_change.lock().unwrap_or_else(PoisonError::into_inner) = Some(call);
    }

    /// How long until [`Rtc::tick`] has something to do; `None` when all interrupts are off.
    pub fn next_event(&self) -> Option<Duration> {
        let state = self.lock();
        let b = state.ram[REG_B];
        let now = (self.clock)();
        if b & B_PIE != 0
            && let Some(period) = state.period()
        {
            return Some((state.seen + period).saturating_sub(now));
        }
        let to_next = Duration::from_secs(1) - Duration::from_nanos(now.subsec_nanos().into());
        (b & (B_AIE | B_UIE) != 0 && b & B_SET == 0).then_some(to_next)
    }

    /// Raises what has become due since the last call.
    pub fn tick(&self) {
        let mut state = self.lock();
        let now = (self.clock)();
        let mut events = 0;
        if state.period().is_some_and(|p| now >= state.seen + p) {
            events |= C_PF;
        }
        let new_second = now.as_secs() != state.seen.as_secs();
        if new_second && state.ram[REG_B] & B_SET == 0 {
            events |= C_UF;
            let (r, _) = state.time_registers(self.seconds(&state));
            let matches = |i: usize| state.ram[i] & 0xc0 == 0xc0 || state.ram[i] == r[i - 1];
            if matches(1) && matches(3) && matches(5) {
                events |= C_AF;
            }
        }
        if events != 0 {
            state.seen = now;
        }
        state.ram[REG_C] |= events;
        self.update(&mut state);
    }

    fn update(&self, state: &mut State) {
        let (b, c) = (state.ram[REG_B], state.ram[REG_C]);
        let pending = b & c & (C_PF | C_AF | C_UF) != 0;
        state.ram[REG_C] = (c & !C_IRQF) | if pending { C_IRQF } else { 0 };
        self.line.set(pending.into());
    }

    fn read_data(&self) -> u8 {
        let mut state = self.lock();
        let now = self.seconds(&state);
        match state.index {
            i @ (0 | 2 | 4 | 6..=9) => {
                state.frozen.unwrap_or_else(|| state.time_registers(now).0)[i]
            }
            CENTURY if state.frozen.is_none() => state.time_registers(now).1,
            REG_A => {
                // The update cycle takes the last 244 microseconds of a second.
                let updating = (self.clock)().subsec_micros() >= 1_000_000 - 244
                    && state.ram[REG_B] & B_SET == 0;
                state.ram[REG_A] | if updating { 0x80 } else { 0 }
            }
            REG_C => {
                let value = state.ram[REG_C];
                state.ram[REG_C] = 0;
                self.update(&mut state);
                value
            }
            i => state.ram[i],
        }
    }

    fn write_data(&self, value: u8) {
        let mut state = self.lock();
        let now = self.seconds(&state);
        match state.index {
            i @ (0 | 2 | 4 | 6..=9) => {
                if let Some(frozen) = &mut state.frozen {
                    frozen[i] = value;
                } else {
                    let (mut r, century) = state.time_registers(now);
                    state.ram[CENTURY] = century;
                    r[i] = value;
                    state.offset += state.seconds_of(&r) - now;
                }
            }
            REG_A => state.ram[REG_A] = value & 0x7f,
            REG_B => {
                if value & B_SET != 0 && state.frozen.is_none() {
                    let (r, century) = state.time_registers(now);
                    state.ram[CENTURY] = century;
                    state.frozen = Some(r);
                } else if value & B_SET == 0
                    && let Some(r) = state.frozen.take()
                {
                    state.offset += state.seconds_of(&r) - now;
                }
                state.ram[REG_B] = if value & B_SET != 0 { value & !B_UIE } else { value };
                state.seen = (self.clock)();
                self.update(&mut state);
            }
            REG_C | REG_D => {}
            CENTURY if state.frozen.is_none() => {
                let (r, _) = state.time_registers(now);
                state.ram[CENTURY] = value;
                state.offset += state.seconds_of(&r) - now;
            }
            i => state.ram[i] = value,
        }
    }
}

impl Device for Rtc {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let value = if offset & 1 == 0 { 0xff } else { self.read_data() };
        data.fill(0xff);
        if let Some(b) = data.first_mut() {
            *b = value;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Effect {
        let value = low8(crate::num::get_le(data));
        if offset & 1 == 0 {
            // The highest bit masks non-maskable interrupts, of which there are none.
            self.lock().index = usize::from(value & 0x7f);
        } else {
            let steers = matches!(self.lock().index, REG_A | REG_B);
            self.write_data(value);
            if steers
                && let Some(call) = &*self.on_change.lock().unwrap_or_else(PoisonError::into_inner)
            {
                call();
            }
        }
        Effect::None
    }
}

impl Lifecycle for Rtc {
    /// The clock runs on a battery: only interrupts are reset.
    fn reset(&self) {
        let mut state = self.lock();
        state.ram[REG_B] &= !(B_PIE | B_AIE | B_UIE);
        state.ram[REG_C] = 0;
        self.update(&mut state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::irq::{Level, RecordedLine};

    struct Bench {
        rtc: Rtc,
        time: Arc<Mutex<Duration>>,
        line: Arc<RecordedLine>,
    }

    /// 2024-02-29 23:59:58 UTC, a Thursday.
    const LEAP: u64 = 1_709_251_198;

    fn bench() -> Bench {
        let time = Arc::new(Mutex::new(Duration::from_secs(LEAP)));
        let shared = time.clone();
        let line = Arc::new(RecordedLine::default());
        let rtc = Rtc::new(Box::new(move || *shared.lock().unwrap()), line.clone());
        Bench { rtc, time, line }
    }

    impl Bench {
        fn get(&self, index: u8) -> u8 {
            self.rtc.write(0, &[index]);
            let mut b = [0];
            self.rtc.read(1, &mut b);
            b[0]
        }
        fn put(&self, index: u8, value: u8) {
            self.rtc.write(0, &[index]);
            self.rtc.write(1, &[value]);
        }
        fn pass(&self, time: Duration) {
            *self.time.lock().unwrap() += time;
        }
        fn now(&self) -> [u8; 8] {
            [0x32, 9, 8, 7, 6, 4, 2, 0].map(|i| self.get(i))
        }
    }

    #[test]
    fn shows_the_time_in_every_form() {
        let b = bench();
        assert_eq!(b.now(), [0x20, 0x24, 0x02, 0x29, 0x05, 0x23, 0x59, 0x58]);
        b.put(0xb, B_24H | B_BINARY);
        assert_eq!(b.now(), [20, 24, 2, 29, 5, 23, 59, 58]);
        b.put(0xb, 0);
        assert_eq!(b.get(4), 0x91, "11 in the evening");
        b.pass(Duration::from_secs(2));
        b.put(0xb, B_24H);
        assert_eq!(b.now(), [0x20, 0x24, 0x03, 0x01, 0x06, 0, 0, 0]);
    }

    #[test]
    fn can_be_set_at_once_and_under_set() {
        let b = bench();
        b.put(4, 0x05);
        assert_eq!(b.get(4), 5);
        b.put(0xb, B_SET | B_24H);
        b.put(9, 0x99);
        b.put(0x32, 0x19);
        b.put(8, 0x12);
        b.put(7, 0x31);
        b.pass(Duration::from_secs(5));
        b.put(0xb, B_24H);
        assert_eq!(b.now()[..4], [0x19, 0x99, 0x12, 0x31]);
        b.pass(Duration::from_secs(86_400));
        assert_eq!(b.now()[..4], [0x20, 0x00, 0x01, 0x01]);
    }

    #[test]
    fn interrupts() {
        let b = bench();
        assert_eq!(b.rtc.next_event(), None);
        b.put(1, 0x00);
        b.put(3, 0x00);
        b.put(5, 0xff);
        b.put(0xb, B_24H | B_AIE);
        assert_eq!(b.rtc.next_event(), Some(Duration::from_secs(1)));
        b.pass(Duration::from_secs(1));
        b.rtc.tick();
        assert_eq!(b.line.level(), Level::Low);
        b.pass(Duration::from_secs(1));
        b.rtc.tick();
        assert_eq!(b.line.level(), Level::High, "midnight matches any hour");
        assert_eq!(b.get(0xc) & !C_PF, C_IRQF | C_AF | C_UF);
        assert_eq!(b.line.level(), Level::Low);
        b.put(0xa, 0x26);
        b.put(0xb, B_24H | B_PIE);
        assert_eq!(b.rtc.next_event(), Some(Duration::from_nanos(976_562)));
        b.pass(Duration::from_millis(1));
        b.rtc.tick();
        assert_eq!(b.get(0xc) & C_PF, C_PF);
    }

    #[test]
    fn calendar_both_ways() {
        for days in [-719_468, -1, 0, 59, 11_016, 19_782, 47_540] {
            let (y, m, d) = civil(days);
            assert_eq!(days_of(y, m.into(), d.into()), days);
        }
    }

    #[test]
    fn the_highest_index_bit_is_ignored() {
        let b = bench();
        b.put(0x80 | 0x40, 7);
        assert_eq!(b.get(0x40), 7);
    }
}
