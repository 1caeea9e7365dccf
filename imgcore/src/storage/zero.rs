//! Finding zeroes in buffers, at memory speed.

/// True if every byte is zero.
///
/// Written so that the compiler makes wide vector code of it: blocks of 256 bytes are or-ed together
/// and tested once; most non-zero data is decided by the first block.
pub fn is_zero(buf: &[u8]) -> bool {
    let (head, rest) = buf.split_at(buf.len().min(16));
    if head.iter().any(|&b| b != 0) {
        return false;
    }
    let mut blocks = rest.chunks_exact(256);
    for block in &mut blocks {
        let mut acc = [0u8; 64];
        for part in block.chunks_exact(64) {
            for (a, b) in acc.iter_mut().zip(part) {
                *a |= b;
            }
        }
        if acc.iter().fold(0, |x, y| x | y) != 0 {
            return false;
        }
    }
    blocks.remainder().iter().all(|&b| b == 0)
}

/// The length of the first run of units that are all zero or all not zero, and which of both it is.
/// The last unit may be short. `buf` must not be empty.
pub fn first_run(buf: &[u8], unit: usize) -> (bool, usize) {
    let mut chunks = buf.chunks(unit);
    let Some(first) = chunks.next() else { return (true, 0) };
    let zero = is_zero(first);
    let mut len = first.len();
    for chunk in chunks {
        if is_zero(chunk) != zero {
            break;
        }
        len += chunk.len();
    }
    (zero, len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_any_single_byte() {
        for len in [0usize, 1, 15, 16, 17, 255, 256, 257, 272, 511, 512, 4096, 4097] {
            let mut buf = vec![0u8; len];
            assert!(is_zero(&buf));
            for at in 0..len {
                buf[at] = 1;
                assert!(!is_zero(&buf), "len {len} at {at}");
                buf[at] = 0;
            }
        }
    }

    #[test]
    fn runs() {
        let mut buf = vec![0u8; 10];
        buf[5] = 1;
        assert_eq!(first_run(&buf, 4), (true, 4));
        assert_eq!(first_run(&buf[4..], 4), (false, 4));
        assert_eq!(first_run(&buf[8..], 4), (true, 2));
    }
}
