//! Registers as bytes, and conversions that say what they keep.

/// The lowest 8 bits.
pub const fn low8(value: u64) -> u8 {
    value.to_le_bytes()[0]
}

/// The lowest 16 bits.
pub const fn low16(value: u64) -> u16 {
    let b = value.to_le_bytes();
    u16::from_le_bytes([b[0], b[1]])
}

/// The lowest 32 bits.
pub const fn low32(value: u64) -> u32 {
    let b = value.to_le_bytes();
    u32::from_le_bytes([b[0], b[1], b[2], b[3]])
}

/// The highest 32 bits.
pub const fn high32(value: u64) -> u32 {
    low32(value >> 32)
}

/// A length in memory as `u64`; always fits on the machines Rust supports.
pub const fn len_u64(len: usize) -> u64 {
    len as u64
}

/// A `u64` known to be small. Saturates otherwise, so that a mistake ends in a bounds check.
pub fn index(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// What a bus access of up to 8 bytes carries, little-endian.
pub fn get_le(data: &[u8]) -> u64 {
    let mut all = [0; 8];
    let n = data.len().min(8);
    all[..n].copy_from_slice(&data[..n]);
    u64::from_le_bytes(all)
}

/// Fills a bus access with `value`, little-endian; bytes beyond the eighth become zero.
pub fn put_le(data: &mut [u8], value: u64) {
    let bytes = value.to_le_bytes();
    for (i, b) in data.iter_mut().enumerate() {
        *b = bytes.get(i).copied().unwrap_or(0);
    }
}

/// Reads `data.len()` bytes at `offset` of a block of registers; bytes outside read as zero.
pub fn read_within(block: &[u8], offset: u64, data: &mut [u8]) {
    let start = index(offset);
    for (i, b) in data.iter_mut().enumerate() {
        *b = start.checked_add(i).and_then(|at| block.get(at)).copied().unwrap_or(0);
    }
}

/// Rounds up to a multiple of `unit` (a power of two), staying at the largest multiple.
pub const fn align_up(value: u64, unit: u64) -> u64 {
    match value.checked_next_multiple_of(unit) {
        Some(v) => v,
        None => u64::MAX - u64::MAX % unit,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_numbers() {
        assert_eq!(low8(0x1234), 0x34);
        assert_eq!(low16(0x12_3456), 0x3456);
        assert_eq!((low32(0x1_2345_6789), high32(0x1_2345_6789)), (0x2345_6789, 1));
        assert_eq!(get_le(&[1, 2]), 0x201);
        let mut d = [9; 10];
        put_le(&mut d, 0x0102);
        assert_eq!(d, [2, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
        let mut d = [9; 3];
        read_within(&[1, 2], 1, &mut d);
        assert_eq!(d, [2, 0, 0]);
        read_within(&[1, 2], u64::MAX, &mut d);
        assert_eq!(d, [0, 0, 0]);
        assert_eq!(align_up(5, 4), 8);
        assert_eq!(align_up(u64::MAX, 4096), u64::MAX - 4095);
    }
}
