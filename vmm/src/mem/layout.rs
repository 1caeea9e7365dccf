//! Where things lie in the guest's physical address space.
//!
//! ```text
//! 0          .. 640 KiB   memory (the top KiB reserved)
//! 640 KiB    .. 1 MiB     hole of the PC; memory lies below it all the same, and holds the tables
//! 1 MiB      .. 3 GiB     memory, as far as it goes
//! 0xc0000000 .. 0xe0000000  window of 32-bit PCI BARs
//! 0xe0000000 .. 0xf0000000  PCI configuration space (ECAM)
//! 0xfec00000              I/O APIC
//! 0xfee00000              local APICs
//! 0xfeffc000 .. 0xff000000  pages of KVM
//! 4 GiB      ..           the rest of memory, then the window of 64-bit BARs
//! ```

/// Memory below 4 GiB ends here at the latest.
pub const LOW_END: u64 = 0xc000_0000;
/// Window of 32-bit BARs.
pub const PCI32: u64 = 0xc000_0000;
/// Its length.
pub const PCI32_LEN: u64 = 0x2000_0000;
/// PCI configuration space in memory: 256 buses of 1 MiB.
pub const ECAM: u64 = 0xe000_0000;
/// Its length.
pub const ECAM_LEN: u64 = 0x1000_0000;
/// Registers of the I/O APIC.
pub const IOAPIC: u64 = 0xfec0_0000;
/// Registers of the local APIC.
pub const LAPIC: u64 = 0xfee0_0000;
/// Memory beyond the hole.
pub const HIGH_START: u64 = 1 << 32;
/// Length of the window of 64-bit BARs.
pub const PCI64_LEN: u64 = 1 << 36;

/// A contiguous piece of memory and which bytes of "all memory in a row" it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Guest physical address.
    pub guest: u64,
    /// Offset among all bytes of memory, or of a node.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// Lays `len` bytes of memory, which come after `before` bytes of other memory, around the hole.
pub fn place(before: u64, len: u64) -> Vec<Piece> {
    let low = LOW_END.saturating_sub(before).min(len);
    let high = len - low;
    let mut pieces = Vec::with_capacity(2);
    if low > 0 {
        pieces.push(Piece { guest: before, offset: 0, len: low });
    }
    if high > 0 {
        let beyond = before.saturating_sub(LOW_END);
        pieces.push(Piece { guest: HIGH_START + beyond, offset: low, len: high });
    }
    pieces
}

/// Where the window of 64-bit BARs begins: after memory, at a multiple of 1 GiB.
pub fn pci64(memory: u64) -> u64 {
    let end = HIGH_START + memory.saturating_sub(LOW_END);
    crate::num::align_up(end, 1 << 30)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_goes_around_the_hole() {
        assert_eq!(place(0, 4096), [Piece { guest: 0, offset: 0, len: 4096 }]);
        assert_eq!(place(0, LOW_END).len(), 1);
        assert_eq!(
            place(0, LOW_END + 4096)[1],
            Piece { guest: HIGH_START, offset: LOW_END, len: 4096 }
        );
        // A second node that begins below the hole and one that begins beyond it.
        assert_eq!(
            place(LOW_END - 4096, 8192),
            [
                Piece { guest: LOW_END - 4096, offset: 0, len: 4096 },
                Piece { guest: HIGH_START, offset: 4096, len: 4096 }
            ]
        );
        assert_eq!(
            place(LOW_END + 4096, 4096),
            [Piece { guest: HIGH_START + 4096, offset: 0, len: 4096 }]
        );
        assert!(place(0, 0).is_empty());
    }

    #[test]
    fn the_64_bit_window_begins_after_memory() {
        assert_eq!(pci64(1 << 20), 1 << 32);
        assert_eq!(pci64(4 << 30), 5 << 30);
    }
}
