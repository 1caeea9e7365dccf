//! Runs in allocation bitmaps, lowest bit first.

use super::FreeRange;
use crate::num::{len_u64, round_down, round_up, small};

/// The runs of zero bits among the first `bits` of a bitmap, as ranges of units that begin at `base` (in
/// units), `unit` bytes each.
pub(in crate::guest) fn free_runs(bytes: &[u8], bits: u64, base: u64, unit: u64) -> Vec<FreeRange> {
    let mut runs = Vec::new();
    let mut open: Option<u64> = None;
    let mut close = |open: &mut Option<u64>, end: u64| {
        if let Some(start) = open.take() {
            runs.push(FreeRange { at: (base + start) * unit, len: (end - start) * unit });
        }
    };
    let bits = bits.min(len_u64(bytes.len()) * 8);
    for (index, &byte) in (0u64..).zip(bytes) {
        let first = index * 8;
        if first >= bits {
            break;
        }
        match byte {
            0 => {
                open.get_or_insert(first);
            }
            0xff => close(&mut open, first),
            _ => {
                for bit in 0..8 {
                    let used = byte >> bit & 1 == 1;
                    if used {
                        close(&mut open, (first + bit).min(bits));
                    } else if first + bit < bits {
                        open.get_or_insert(first + bit);
                    }
                }
            }
        }
    }
    close(&mut open, bits);
    runs
}

/// Zero bits among the first `bits`.
pub(in crate::guest) fn count_free(bytes: &[u8], bits: u64) -> u64 {
    let whole = small(bits / 8).min(bytes.len());
    let (head, tail) = bytes.split_at(whole);
    let mut free: u64 = head.iter().map(|b| u64::from(b.count_zeros())).sum();
    if let (Some(&last), rest @ 1..) = (tail.first(), bits % 8) {
        let mask = (1u16 << rest) - 1;
        free += u64::from((!u16::from(last) & mask).count_ones());
    }
    free
}

/// Whether all bits of a range are set; bits beyond the bitmap count as not set.
pub(in crate::guest) fn all_used(bytes: &[u8], first: u64, count: u64) -> bool {
    let set = |bit: u64| bytes.get(small(bit / 8)).is_some_and(|b| b >> (bit % 8) & 1 == 1);
    let end = first.saturating_add(count);
    let (head, tail) = (round_up(first, 8).min(end), round_down(end, 8));
    if head >= tail {
        return (first..end).all(set);
    }
    let whole = bytes.get(small(head / 8)..small(tail / 8));
    (first..head).all(set)
        && whole.is_some_and(|w| w.iter().all(|&b| b == 0xff))
        && (tail..end).all(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs() {
        let at = |at, len| FreeRange { at, len };
        let bytes = [0b1111_0001, 0xff, 0, 0, 0b0000_1000];
        let want = [at(1010, 30), at(1160, 190), at(1360, 20)];
        assert_eq!(free_runs(&bytes, 38, 100, 10), want);
        assert_eq!(count_free(&bytes, 38), 3 + 16 + 5);
        assert_eq!(count_free(&bytes, 40), 3 + 16 + 7);
        assert_eq!(free_runs(&bytes, 1000, 0, 1).last(), Some(&at(36, 4)));
        assert!(free_runs(&[0xff; 4], 32, 0, 1).is_empty());
        assert_eq!(free_runs(&[0], 3, 0, 1), [at(0, 3)]);
        assert!(all_used(&bytes, 4, 12) && !all_used(&bytes, 3, 2) && !all_used(&bytes, 40, 1));
        assert!(all_used(&[0xff; 4], 3, 29) && !all_used(&[0xff, 0xfe, 0xff], 3, 20));
        assert!(!all_used(&[0xff; 4], 3, 30) && !all_used(&[0xff; 4], 3, u64::MAX));
    }
}
