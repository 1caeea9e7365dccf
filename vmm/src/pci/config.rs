//! One function's configuration space (PCI Local Bus 3.0, chapter 6; PCI Express Base 4.0, 7.5).
//!
//! Every bit is either fixed or writable by the guest; a mask says which. That makes the sizing of
//! BARs (write ones, read back) work without special cases.

use super::Placed;
use crate::num::{get_le, index, low8, put_le, read_within};
use crate::{Error, Result};

/// What kind of address a BAR takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// Ports.
    Io,
    /// Memory below 4 GiB.
    Memory32,
    /// Memory anywhere; takes two BARs.
    Memory64,
}

/// Who the function is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Vendor.
    pub vendor: u16,
    /// Device.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Class, subclass, programming interface.
    pub class: (u8, u8, u8),
    /// Subsystem vendor.
    pub subsystem_vendor: u16,
    /// Subsystem.
    pub subsystem: u16,
    /// Interrupt pin: 1 for INTA, 0 for none.
    pub pin: u8,
}

const COMMAND: usize = 4;
const STATUS: usize = 6;
const BAR0: usize = 0x10;
const CAPABILITIES: usize = 0x34;
const COMMAND_IO: u16 = 1;
const COMMAND_MEMORY: u16 = 2;
const COMMAND_INTX_OFF: u16 = 1 << 10;

/// What a write did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// BARs or their decoding changed.
    pub layout: bool,
}

/// Configuration space.
#[derive(Debug)]
pub struct ConfigSpace {
    bytes: Vec<u8>,
    writable: Vec<u8>,
    bars: Vec<(u8, BarKind, u64)>,
    last_capability: usize,
    next_capability: usize,
}

impl ConfigSpace {
    /// For a function without BARs and capabilities.
    pub fn new(id: &Identity) -> Self {
        let mut c = ConfigSpace {
            bytes: vec![0; 4096],
            writable: vec![0; 4096],
            bars: Vec::new(),
            last_capability: CAPABILITIES,
            next_capability: 0x40,
        };
        let b = &mut c.bytes;
        put_le(&mut b[0..2], id.vendor.into());
        put_le(&mut b[2..4], id.device.into());
        b[8] = id.revision;
        (b[11], b[10], b[9]) = id.class;
        put_le(&mut b[0x2c..0x2e], id.subsystem_vendor.into());
        put_le(&mut b[0x2e..0x30], id.subsystem.into());
        b[0x3d] = id.pin;
        // I/O, memory, bus master, parity and system errors, INTx off.
        put_le(&mut c.writable[COMMAND..COMMAND + 2], 0x547);
        c.writable[0x0c] = 0xff;
        c.writable[0x3c] = 0xff;
        c
    }

    /// Adds a BAR of `len` bytes, a power of two.
    ///
    /// # Errors
    /// When the BAR is taken or the length impossible.
    pub fn add_bar(&mut self, number: u8, kind: BarKind, len: u64) -> Result<()> {
        let least = if kind == BarKind::Io { 4 } else { 16 };
        let width = if kind == BarKind::Memory64 { 2 } else { 1 };
        let taken = self.bars.iter().any(|(n, k, _)| {
            let end = n + if *k == BarKind::Memory64 { 2 } else { 1 };
            number < end && *n < number + width
        });
        if taken || number + width > 6 || !len.is_power_of_two() || len < least || len > 1 << 40 {
            return Err(Error::invalid(format!("BAR {number} of {len:#x} bytes is not possible")));
        }
        let at = BAR0 + 4 * usize::from(number);
        let mask = !(len - 1);
        match kind {
            BarKind::Io => {
                self.bytes[at] = 1;
                put_le(&mut self.writable[at..at + 4], mask & 0xffff_fffc);
            }
            BarKind::Memory32 => put_le(&mut self.writable[at..at + 4], mask),
            BarKind::Memory64 => {
                self.bytes[at] = 4;
                put_le(&mut self.writable[at..at + 8], mask);
            }
        }
        self.bars.push((number, kind, len));
        Ok(())
    }

    /// Adds a capability; `writable` masks `body`, which begins behind the two header bytes. Returns
    /// where the capability (its header) is.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> Result<usize> {
        let at = self.next_capability;
        let end = at + 2 + body.len();
        if end > 0x100 {
            return Err(Error::invalid(format!("no room for PCI capability {id:#x}")));
        }
        self.bytes[at] = id;
        self.bytes[at + 2..end].copy_from_slice(body);
        for (w, mask) in self.writable[at + 2..end].iter_mut().zip(writable) {
            *w = *mask;
        }
        // Of the last one (or of the header) to this one.
        let link = if self.last_capability == CAPABILITIES {
            CAPABILITIES
        } else {
            self.last_capability + 1
        };
        self.bytes[link] = low8(crate::num::len_u64(at));
        self.bytes[STATUS] |= 0x10;
        self.last_capability = at;
        self.next_capability = end.next_multiple_of(4);
        Ok(at)
    }

    /// Reads; beyond the end there are zeroes.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        read_within(&self.bytes, offset.into(), data);
    }

    /// A guest's write.
    pub fn write(&mut self, offset: u16, data: &[u8]) -> Written {
        let before = self.decoded();
        for (i, value) in data.iter().enumerate() {
            let at = usize::from(offset) + i;
            if let (Some(b), Some(w)) = (self.bytes.get_mut(at), self.writable.get(at)) {
                *b = (*b & !w) | (value & w);
            }
        }
        Written { layout: before != self.decoded() }
    }

    /// Sets bytes that the guest may not write.
    pub fn set(&mut self, offset: usize, data: &[u8]) {
        if let Some(b) =
            offset.checked_add(data.len()).and_then(|end| self.bytes.get_mut(offset..end))
        {
            b.copy_from_slice(data);
        }
    }

    /// A field of up to 8 bytes.
    pub fn get(&self, offset: usize, len: usize) -> u64 {
        offset.checked_add(len).and_then(|end| self.bytes.get(offset..end)).map_or(0, get_le)
    }

    fn command(&self) -> u16 {
        crate::num::low16(self.get(COMMAND, 2))
    }

    /// Whether the function may pull its interrupt pin.
    pub fn intx_allowed(&self) -> bool {
        self.command() & COMMAND_INTX_OFF == 0
    }

    /// Shows the state of the interrupt pin in the status register.
    pub fn show_intx(&mut self, asserted: bool) {
        self.bytes[STATUS] = (self.bytes[STATUS] & !8) | if asserted { 8 } else { 0 };
    }

    /// All BARs.
    pub fn bars(&self) -> Vec<Placed> {
        let address = |number: u8, kind| {
            let at = BAR0 + 4 * usize::from(number);
            match kind {
                BarKind::Io => self.get(at, 4) & !3,
                BarKind::Memory32 => self.get(at, 4) & !15,
                BarKind::Memory64 => self.get(at, 8) & !15,
            }
        };
        self.bars
            .iter()
            .map(|&(bar, kind, len)| Placed { bar, kind, base: address(bar, kind), len })
            .collect()
    }

    /// BARs that answer: decoding is on and an address has been given.
    pub fn decoded(&self) -> Vec<Placed> {
        let command = self.command();
        let on = |kind| match kind {
            BarKind::Io => command & COMMAND_IO != 0,
            _ => command & COMMAND_MEMORY != 0,
        };
        let mut all = self.bars();
        all.retain(|p| on(p.kind) && p.base != 0 && p.base.checked_add(p.len).is_some());
        all
    }

    /// Places a BAR and turns its decoding on, as firmware would.
    pub fn place(&mut self, number: u8, base: u64) {
        let Some(&(_, kind, _)) = self.bars.iter().find(|b| b.0 == number) else { return };
        let at = 0x10 + 4 * u16::from(number);
        let bytes = base.to_le_bytes();
        let (len, bit) = match kind {
            BarKind::Io => (4, COMMAND_IO),
            BarKind::Memory32 => (4, COMMAND_MEMORY),
            BarKind::Memory64 => (8, COMMAND_MEMORY),
        };
        self.write(at, &bytes[..len]);
        let command = self.command() | bit;
        self.set(COMMAND, &command.to_le_bytes());
    }

    /// What the guest wrote is forgotten, except where BARs lie: there is no firmware to place them anew.
    pub fn reset(&mut self) {
        let kept = [BAR0..BAR0 + 24, COMMAND..COMMAND + 1, 0x3c..0x3d];
        for i in 0..self.bytes.len() {
            if !kept.iter().any(|k| k.contains(&i)) {
                self.bytes[i] &= !self.writable[i];
            }
        }
        let on = self.command() & (COMMAND_IO | COMMAND_MEMORY);
        self.set(COMMAND, &on.to_le_bytes());
    }

    /// An offset as it comes with accesses.
    pub fn offset(raw: u64) -> u16 {
        crate::num::low16(raw & 0xfff)
    }
}

/// The first address at or after `at` where `len` bytes (a power of two) may lie.
pub fn next_place(at: u64, len: u64) -> u64 {
    crate::num::align_up(at, len.clamp(1 << 12, 1 << 40))
}

/// As an index for arrays of BARs.
pub fn bar_index(bar: u8) -> usize {
    index(bar.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        ConfigSpace::new(&Identity {
            vendor: 0x1af4,
            device: 0x1042,
            pin: 1,
            ..Identity::default()
        })
    }

    #[test]
    fn bars_are_sized_and_placed() {
        let mut c = space();
        c.add_bar(0, BarKind::Io, 64).unwrap();
        c.add_bar(1, BarKind::Memory32, 4096).unwrap();
        c.add_bar(4, BarKind::Memory64, 0x4000).unwrap();
        assert!(c.add_bar(5, BarKind::Memory32, 4096).is_err());
        assert!(c.add_bar(2, BarKind::Memory32, 3000).is_err());
        c.write(0x10, &[0xff; 8]);
        assert_eq!((c.get(0x10, 4), c.get(0x14, 4)), (0xffff_ffc1, 0xffff_f000));
        c.write(0x20, &[0xff; 8]);
        assert_eq!(c.get(0x20, 8), 0xffff_ffff_ffff_c004);
        c.write(0x10, &0xc000u32.to_le_bytes());
        c.write(0x14, &0xc000_0000u32.to_le_bytes());
        c.write(0x20, &0x1_4000_0000u64.to_le_bytes());
        assert!(c.decoded().is_empty());
        assert!(c.write(4, &[2]).layout);
        assert_eq!(c.decoded().len(), 2);
        assert_eq!(c.decoded()[1].base, 0x1_4000_0000);
        assert!(c.write(4, &[3]).layout && !c.write(4, &[7]).layout);
        assert!(!c.write(0x3c, &[5]).layout);
        c.reset();
        assert_eq!((c.decoded().len(), c.get(4, 2)), (3, 3));
    }

    #[test]
    fn capabilities_form_a_list() {
        let mut c = space();
        let a = c.add_capability(0x11, &[1, 2, 3, 4], &[0, 0xc0]).unwrap();
        let b = c.add_capability(9, &[5], &[]).unwrap();
        assert_eq!((c.get(0x34, 1), c.get(a, 2)), (0x40, 0x4811));
        assert_eq!((b, c.get(b, 2), c.get(6, 2)), (0x48, 9, 0x10));
        c.write(0x42, &[0xff; 4]);
        assert_eq!(c.get(a + 2, 4), 0x0403_c201);
        assert!(c.add_capability(9, &[0; 200], &[]).is_err());
    }

    #[test]
    fn identity_is_fixed() {
        let mut c = space();
        c.write(0, &[0xff; 64]);
        assert_eq!(c.get(0, 4), 0x1042_1af4);
        let mut data = [1; 8];
        c.read(4092, &mut data);
        assert_eq!(data, [0; 8]);
        c.write(4095, &[1; 8]);
    }
}
