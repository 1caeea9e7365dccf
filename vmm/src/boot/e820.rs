//! The map of memory that a kernel is given (ACPI 6.5, 15.1).

use crate::kvm::vm::IDENTITY_MAP;
use crate::mem::layout::{self, ECAM, ECAM_LEN};

/// What a range is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Usable memory.
    Ram = 1,
    /// Not for the guest's own use.
    Reserved = 2,
}

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First address.
    pub base: u64,
    /// Bytes.
    pub len: u64,
    /// What it is.
    pub kind: Kind,
}

/// Conventional memory ends here: the last KiB is the extended BIOS data area.
const CONVENTIONAL_END: u64 = 0x9_fc00;
const HOLE: u64 = 0xa_0000;
const BIOS: u64 = 0xe_0000;
const EXTENDED: u64 = 0x10_0000;

/// The map of a machine with `memory` bytes.
pub fn map(memory: u64) -> Vec<Range> {
    let ram = |base, len| Range { base, len, kind: Kind::Ram };
    let reserved = |base, len| Range { base, len, kind: Kind::Reserved };
    let mut all = vec![
        ram(0, CONVENTIONAL_END),
        reserved(CONVENTIONAL_END, HOLE - CONVENTIONAL_END),
        reserved(BIOS, EXTENDED - BIOS),
    ];
    for piece in layout::place(0, memory) {
        let base = piece.guest.max(EXTENDED);
        if let Some(len) = (piece.guest + piece.len).checked_sub(base).filter(|l| *l > 0) {
            all.push(ram(base, len));
        }
    }
    all.push(reserved(ECAM, ECAM_LEN));
    // KVM's own pages.
    all.push(reserved(IDENTITY_MAP, 0x4000));
    all.sort_by_key(|r| r.base);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_in_order_and_do_not_overlap() {
        for memory in [1 << 20, 128 << 20, 3 << 30, 6 << 30] {
            let map = map(memory);
            assert!(map.windows(2).all(|w| w[0].base + w[0].len <= w[1].base), "{map:x?}");
            let usable: u64 = map.iter().filter(|r| r.kind == Kind::Ram).map(|r| r.len).sum();
            assert_eq!(usable, memory - (EXTENDED - CONVENTIONAL_END));
        }
    }
}
