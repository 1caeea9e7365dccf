//! Which parts of a buffer count as data: qemu-img's rules for `-S`.
//!
//! Zeroes count as such only in runs of at least the sparse size, and a run of zeroes begins and ends
//! at multiples of the alignment (the sparse size rounded down to a power of two). The same rules give
//! the same allocation as qemu-img's, which tools that compare `map` rely on.

use crate::num::{len_u64, small};
use crate::storage::zero::is_zero;

const SECTOR: usize = 512;

/// The rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sparse {
    /// Shortest run of zeroes in bytes, a multiple of 512; 0 makes everything data.
    pub min: u64,
    /// Alignment of runs in bytes, a power of two and at least 512.
    pub align: u64,
}

impl Sparse {
    /// From `-S` and the smallest request that the target takes.
    pub fn new(sparse_size: u64, request_alignment: u64) -> Self {
        let floor = match sparse_size {
            0 => 0,
            n => 1u64 << (63 - n.leading_zeros()),
        };
        let align = floor.max(request_alignment.max(1).next_power_of_two()).max(512);
        Sparse { min: sparse_size, align }
    }

    /// Appends the runs `(start, len)` of data in `buf`, which lies at guest offset `at` (a multiple
    /// of 512); `start` counts from the beginning of `buf`, plus `shift`.
    pub fn data_runs(&self, buf: &[u8], at: u64, shift: usize, out: &mut Vec<(usize, usize)>) {
        if buf.is_empty() {
            return;
        }
        if self.min == 0 {
            push(out, shift, buf.len());
        } else if self.min == self.align && at.is_multiple_of(self.align) {
            self.blocks(buf, shift, out);
        } else {
            self.sectors(buf, at, shift, out);
        }
    }

    /// The usual case: aligned blocks that are zero or not.
    fn blocks(&self, buf: &[u8], shift: usize, out: &mut Vec<(usize, usize)>) {
        let block = small(self.align);
        for (i, part) in buf.chunks(block).enumerate() {
            if !is_zero(part) {
                push(out, shift + i * block, part.len());
            }
        }
    }

    /// Any sparse size and any position.
    fn sectors(&self, buf: &[u8], at: u64, shift: usize, out: &mut Vec<(usize, usize)>) {
        let mut done = 0;
        while done < buf.len() {
            let rest = &buf[done..];
            let (data, len) = self.first_run(rest, at + len_u64(done));
            if data {
                push(out, shift + done, len);
            }
            done += len;
        }
    }

    /// The first run and its length; a run of data takes in zeroes that are too short to matter.
    fn first_run(&self, buf: &[u8], at: u64) -> (bool, usize) {
        let min = small(self.min).min(buf.len());
        let (data, len) = self.aligned_run(buf, at);
        if !data {
            return (false, len);
        }
        let (mut used, mut checked) = (len, len);
        while checked < buf.len() {
            let (data, len) = self.aligned_run(&buf[checked..], at + len_u64(checked));
            checked += len;
            if data {
                used = checked;
            } else if len >= min {
                break;
            }
        }
        (true, used)
    }

    /// The first run of zero or other sectors; data are extended and zeroes cut to the alignment.
    fn aligned_run(&self, buf: &[u8], at: u64) -> (bool, usize) {
        let mut sectors = buf.chunks(SECTOR);
        let Some(first) = sectors.next() else { return (false, 0) };
        let zero = is_zero(first);
        let mut len = first.len();
        for sector in sectors {
            if is_zero(sector) != zero {
                break;
            }
            len += sector.len();
        }
        if len == buf.len() {
            return (!zero, len);
        }
        let tail = small((at + len_u64(len)) % self.align);
        if tail == 0 {
            return (!zero, len);
        }
        if zero && len > tail {
            return (false, len - tail);
        }
        // Data, or zeroes that do not fill an aligned block.
        (true, (len + small(self.align) - tail).min(buf.len()))
    }
}

/// Appends a run, joined to the one before where they touch.
pub fn push(out: &mut Vec<(usize, usize)>, start: usize, len: usize) {
    match out.last_mut() {
        Some((s, l)) if *s + *l == start => *l += len,
        _ => out.push((start, len)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(sparse: Sparse, buf: &[u8], at: u64) -> Vec<(usize, usize)> {
        let mut out = Vec::new();
        sparse.data_runs(buf, at, 0, &mut out);
        out
    }

    #[test]
    fn four_kib_blocks() {
        let s = Sparse::new(4096, 1);
        let mut buf = vec![0u8; 32768];
        assert!(runs(s, &buf, 0).is_empty());
        buf[5000] = 1;
        buf[20480] = 1;
        assert_eq!(runs(s, &buf, 0), [(4096, 4096), (20480, 4096)]);
        // At an odd position the blocks are those of the disk, not of the buffer.
        assert_eq!(runs(s, &buf, 512), [(3584, 4096), (19968, 4096)]);
    }

    #[test]
    fn both_ways_agree() {
        let s = Sparse::new(4096, 1);
        let mut seed = 1u64;
        for _ in 0..200 {
            let mut buf = vec![0u8; 64 << 10];
            for _ in 0..6 {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let at = small(seed >> 33) % buf.len();
                buf[at] = 1;
            }
            let mut slow = Vec::new();
            s.sectors(&buf, 0, 0, &mut slow);
            assert_eq!(runs(s, &buf, 0), slow);
        }
    }

    #[test]
    fn short_zeroes_are_data() {
        let s = Sparse::new(12 << 10, 1);
        assert_eq!(s.align, 8192);
        let mut buf = vec![1u8; 64 << 10];
        buf[8192..16384].fill(0);
        assert_eq!(runs(s, &buf, 0), [(0, 64 << 10)]);
        buf[16384..24576].fill(0);
        assert_eq!(runs(s, &buf, 0), [(0, 8192), (24576, 40960)]);
        assert_eq!(runs(Sparse::new(0, 1), &[0; 1024], 0), [(0, 1024)]);
    }
}
