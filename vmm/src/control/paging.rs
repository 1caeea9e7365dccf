//! Guest virtual addresses (Intel SDM volume 3, chapter 4): for `x`, `memsave` and `info mem`.
//!
//! Tables are read out of guest memory, which is hostile: each walk has at most five steps, and the list
//! of ranges ends after a limit.

use super::steered::{CpuState, Steered};
use crate::num::get_le;

const PRESENT: u64 = 1;
const WRITE: u64 = 2;
const USER: u64 = 4;
const LARGE: u64 = 0x80;
/// Bits 51 to 12.
const FRAME: u64 = 0x000f_ffff_ffff_f000;
const CR0_PG: u64 = 1 << 31;
const CR4_PSE: u64 = 1 << 4;
const CR4_PAE: u64 = 1 << 5;
const CR4_LA57: u64 = 1 << 12;
const EFER_LMA: u64 = 1 << 10;
/// Most table entries that `info mem` looks at, and most ranges it shows.
const MOST_ENTRIES: usize = 1 << 22;
const MOST_RANGES: usize = 1 << 16;

/// How a vCPU translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paging {
    root: u64,
    mode: Mode,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Off,
    /// Two levels of 32-bit entries; with or without pages of 4 MiB.
    Bits32 {
        large: bool,
    },
    /// Three levels of 64-bit entries.
    Pae,
    /// Four or five levels.
    Long {
        levels: u32,
    },
}

/// A range of virtual addresses with the same rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// Programs may use it, not only the kernel.
    pub user: bool,
    /// It can be written.
    pub write: bool,
}

impl Paging {
    /// As the vCPU translates at present.
    pub fn of(cpu: &CpuState) -> Self {
        let s = &cpu.sregs;
        let (mode, mask) = if s.cr0 & CR0_PG == 0 {
            (Mode::Off, 0)
        } else if s.efer & EFER_LMA != 0 {
            (Mode::Long { levels: if s.cr4 & CR4_LA57 != 0 { 5 } else { 4 } }, FRAME)
        } else if s.cr4 & CR4_PAE != 0 {
            (Mode::Pae, 0xffff_ffe0)
        } else {
            (Mode::Bits32 { large: s.cr4 & CR4_PSE != 0 }, 0xffff_f000)
        };
        Paging { root: s.cr3 & mask, mode }
    }

    /// Whether addresses are translated at all.
    pub fn on(&self) -> bool {
        self.mode != Mode::Off
    }

    /// Whether addresses have 64 bits.
    pub fn long(&self) -> bool {
        matches!(self.mode, Mode::Long { .. })
    }

    /// Number of levels, bits of an index, bytes of an entry.
    fn shape(&self) -> (u32, u32, usize) {
        match self.mode {
            Mode::Off => (0, 0, 8),
            Mode::Bits32 { .. } => (2, 10, 4),
            Mode::Pae => (3, 9, 8),
            Mode::Long { levels } => (levels, 9, 8),
        }
    }

    /// The entry of a table, if it is present.
    fn entry(&self, table: u64, slot: u64, memory: &dyn Steered) -> Option<u64> {
        let (_, _, size) = self.shape();
        let mut bytes = [0; 8];
        let at = table.wrapping_add(slot * crate::num::len_u64(size));
        let entry = memory.read_physical(at, &mut bytes[..size]).then(|| get_le(&bytes[..size]))?;
        (entry & PRESENT != 0).then_some(entry)
    }

    /// Whether an entry at a level (counted from 0, the last) is a page and no table.
    fn is_page(&self, level: u32, entry: u64) -> bool {
        if level == 0 {
            return true;
        }
        let possible = match self.mode {
            Mode::Bits32 { large } => large && level == 1,
            Mode::Pae => level == 1,
            _ => level <= 2,
        };
        possible && entry & LARGE != 0
    }

    /// Where a page begins.
    fn frame(&self, level: u32, entry: u64) -> u64 {
        let (_, bits, _) = self.shape();
        let size = 1u64 << (12 + bits * level);
        match (self.mode, level) {
            // PSE-36: bits 20 to 13 are bits 39 to 32 of the address.
            (Mode::Bits32 { .. }, 1) => (entry & 0xffc0_0000) | ((entry >> 13 & 0xff) << 32),
            (Mode::Bits32 { .. }, _) => entry & 0xffff_f000,
            _ => entry & FRAME & !(size - 1),
        }
    }

    /// The physical address of a virtual one; `None` when nothing is mapped there.
    pub fn translate(&self, at: u64, memory: &dyn Steered) -> Option<u64> {
        let (levels, bits, _) = self.shape();
        if levels == 0 {
            return Some(at);
        }
        let at = if self.long() { at } else { at & 0xffff_ffff };
        let mut table = self.root;
        for level in (0..levels).rev() {
            let shift = 12 + bits * level;
            // The uppermost table of PAE has four entries; addresses end below.
            let slot = at >> shift & ((1 << bits) - 1);
            let entry = self.entry(table, slot, memory)?;
            if self.is_page(level, entry) {
                let size = 1u64 << shift;
                return Some(self.frame(level, entry) + (at & (size - 1)));
            }
            table =
                entry & if matches!(self.mode, Mode::Bits32 { .. }) { 0xffff_f000 } else { FRAME };
        }
        None
    }

    /// All that is mapped, neighbours with the same rights joined.
    pub fn ranges(&self, memory: &dyn Steered) -> Vec<Range> {
        let mut walk = Walk { paging: self, memory, ranges: Vec::new(), left: MOST_ENTRIES };
        let (levels, _, _) = self.shape();
        if levels > 0 {
            walk.table(self.root, levels - 1, 0, USER | WRITE);
        }
        walk.ranges
    }
}

struct Walk<'a> {
    paging: &'a Paging,
    memory: &'a dyn Steered,
    ranges: Vec<Range>,
    left: usize,
}

impl Walk<'_> {
    fn table(&mut self, table: u64, level: u32, base: u64, rights: u64) {
        let (levels, bits, size) = self.paging.shape();
        let slots = if self.paging.mode == Mode::Pae && level == 2 { 4 } else { 1usize << bits };
        let mut bytes = vec![0; slots * size];
        if !self.memory.read_physical(table, &mut bytes) {
            return;
        }
        let shift = 12 + bits * level;
        for (slot, raw) in bytes.chunks(size).enumerate() {
            if self.left == 0 || self.ranges.len() >= MOST_RANGES {
                return;
            }
            self.left -= 1;
            let entry = get_le(raw);
            if entry & PRESENT == 0 {
                continue;
            }
            let mut at = base | crate::num::len_u64(slot) << shift;
            // Addresses of 48 (57) bits are continued by their highest bit.
            let top = 12 + bits * levels;
            if self.paging.long() && at >> (top - 1) & 1 != 0 {
                at |= !0 << top;
            }
            // The uppermost entries of PAE have no rights of their own.
            let own =
                if self.paging.mode == Mode::Pae && level == 2 { USER | WRITE } else { entry };
            let rights = rights & own;
            if self.paging.is_page(level, entry) {
                self.page(at, 1 << shift, rights);
            } else {
                let mask = if size == 4 { 0xffff_f000 } else { FRAME };
                self.table(entry & mask, level - 1, at, rights);
            }
        }
    }

    fn page(&mut self, start: u64, len: u64, rights: u64) {
        let (user, write) = (rights & USER != 0, rights & WRITE != 0);
        match self.ranges.last_mut() {
            Some(r)
                if r.start.wrapping_add(r.len) == start && (r.user, r.write) == (user, write) =>
            {
                r.len = r.len.wrapping_add(len);
            }
            _ => self.ranges.push(Range { start, len, user, write }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::fake::Fake;

    fn cpu(cr0: u64, cr3: u64, cr4: u64, efer: u64) -> CpuState {
        let mut cpu = CpuState::default();
        (cpu.sregs.cr0, cpu.sregs.cr3, cpu.sregs.cr4, cpu.sregs.efer) = (cr0, cr3, cr4, efer);
        cpu
    }

    #[test]
    fn four_levels() {
        let mut m = Fake::default();
        m.poke(0x1000, &0x2007u64.to_le_bytes());
        m.poke(0x1000 + 511 * 8, &0x2007u64.to_le_bytes());
        m.poke(0x2000, &0x3007u64.to_le_bytes());
        m.poke(0x3000, &0x4007u64.to_le_bytes());
        // A page of 2 MiB, for the kernel and for reading.
        m.poke(0x3008, &0x60_0081u64.to_le_bytes());
        m.poke(0x4000 + 8, &0x5007u64.to_le_bytes());
        m.poke(0x4000 + 16, &0x6007u64.to_le_bytes());
        let p = Paging::of(&cpu(CR0_PG, 0x1000, CR4_PAE, EFER_LMA));
        assert_eq!(p.translate(0x1234, &m), Some(0x5234));
        assert_eq!(p.translate(0x20_0042, &m), Some(0x60_0042));
        assert_eq!(p.translate(0, &m), None);
        assert_eq!(p.translate(0xffff_ff80_0000_1234, &m), Some(0x5234));
        let low = [
            Range { start: 0x1000, len: 0x2000, user: true, write: true },
            Range { start: 0x20_0000, len: 0x20_0000, user: false, write: false },
        ];
        let ranges = p.ranges(&m);
        assert_eq!(ranges[..2], low);
        assert_eq!(ranges[2].start, 0xffff_ff80_0000_1000);
    }

    #[test]
    fn old_modes() {
        let mut m = Fake::default();
        let off = Paging::of(&cpu(0, 0, 0, 0));
        assert_eq!(
            (off.translate(0x77, &m), off.on(), off.ranges(&m).len()),
            (Some(0x77), false, 0)
        );
        m.poke(0x1000, &0x2003u32.to_le_bytes());
        m.poke(0x1004, &0x80_0083u32.to_le_bytes());
        m.poke(0x2004, &0x9003u32.to_le_bytes());
        let p = Paging::of(&cpu(CR0_PG, 0x1000, CR4_PSE, 0));
        assert_eq!(p.translate(0x1005, &m), Some(0x9005));
        assert_eq!(p.translate(0x40_0005, &m), Some(0x80_0005));
        assert_eq!(p.ranges(&m).len(), 2);
        let mut m = Fake::default();
        m.poke(0x1020, &0x2001u64.to_le_bytes());
        m.poke(0x2000, &0x3003u64.to_le_bytes());
        m.poke(0x3000, &0x4003u64.to_le_bytes());
        let p = Paging::of(&cpu(CR0_PG, 0x1020, CR4_PAE, 0));
        assert_eq!(p.translate(0x10, &m), Some(0x4010));
        assert_eq!(p.ranges(&m), [Range { start: 0, len: 4096, user: false, write: true }]);
    }

    #[test]
    fn tables_that_point_at_themselves_end() {
        let mut m = Fake::default();
        for slot in 0..512u64 {
            m.poke(0x1000 + 8 * slot, &0x1007u64.to_le_bytes());
        }
        let p = Paging::of(&cpu(CR0_PG, 0x1000, CR4_PAE, EFER_LMA));
        assert_eq!(p.translate(0, &m), Some(0x1000));
        assert!(p.ranges(&m).len() <= MOST_RANGES);
    }
}
