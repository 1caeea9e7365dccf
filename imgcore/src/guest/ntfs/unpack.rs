//! LZNT1, the packing of NTFS ([MS-XCA] 2.5).

use crate::{Error, Result};

/// Bytes that one chunk unpacks to.
const CHUNK: usize = 4096;

/// Unpacks the chunks of a unit; what is missing at its end is zero.
pub(super) fn unpack_unit(mut packed: &[u8], len: usize) -> Result<Vec<u8>> {
    let mut out = Vec::with_capacity(len);
    while let [a, b, rest @ ..] = packed {
        let header = u16::from_le_bytes([*a, *b]);
        if header == 0 || out.len() >= len {
            break;
        }
        let size = usize::from(header & 0xfff) + 1;
        let chunk = rest.get(..size).ok_or_else(bad)?;
        let start = out.len();
        if header & 0x8000 == 0 {
            out.extend_from_slice(chunk);
        } else {
            unpack_chunk(chunk, &mut out)?;
        }
        let end = start + CHUNK;
        if out.len() > end {
            return Err(bad());
        }
        packed = &rest[size..];
        // Only the last chunk may be short.
        if out.len() < end && !packed.is_empty() {
            out.resize(end, 0);
        }
    }
    out.resize(len, 0);
    Ok(out)
}

/// A byte of flags, then eight items: a byte, or a distance and a length that share 16 bits, the longer the
/// chunk already is the more of them for the distance.
fn unpack_chunk(mut chunk: &[u8], out: &mut Vec<u8>) -> Result<()> {
    let start = out.len();
    while let [flags, rest @ ..] = chunk {
        chunk = rest;
        for bit in 0..8 {
            if chunk.is_empty() {
                return Ok(());
            }
            if flags & (1 << bit) == 0 {
                out.push(chunk[0]);
                chunk = &chunk[1..];
            } else {
                let [a, b, rest @ ..] = chunk else { return Err(bad()) };
                chunk = rest;
                let pair = usize::from(u16::from_le_bytes([*a, *b]));
                let done = out.len() - start;
                let mut bits = 12;
                while bits > 4 && done > 1 << (16 - bits) {
                    bits -= 1;
                }
                let (len, distance) = ((pair & ((1 << bits) - 1)) + 3, (pair >> bits) + 1);
                if distance > done {
                    return Err(bad());
                }
                for _ in 0..len {
                    out.push(out[out.len() - distance]);
                }
            }
            if out.len() - start > CHUNK {
                return Err(bad());
            }
        }
    }
    Ok(())
}

fn bad() -> Error {
    Error::corrupt("a packed file of NTFS is damaged")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// The example of [MS-XCA] 3.3.
    #[test]
    fn the_example_of_the_specification() {
        let packed = [
            0x38, 0xb0, 0x88, 0x46, 0x23, 0x20, 0x00, 0x20, 0x47, 0x20, 0x41, 0x00, 0x10, 0xa2,
            0x47, 0x01, 0xa0, 0x45, 0x20, 0x44, 0x00, 0x08, 0x45, 0x01, 0x50, 0x79, 0x00, 0xc0,
            0x45, 0x20, 0x05, 0x24, 0x13, 0x88, 0x05, 0xb4, 0x02, 0x4a, 0x44, 0xef, 0x03, 0x58,
            0x02, 0x8c, 0x09, 0x16, 0x01, 0x48, 0x45, 0x00, 0xbe, 0x00, 0x9e, 0x00, 0x04, 0x01,
            0x18, 0x90, 0x00,
        ];
        let plain = b"F# F# G A A G F# E D D E F# F# E E F# F# G A A G F# E D D E F# E D D E E F# D E F# G F# D E F# G F# E D E A F# F# G A A G F# E D D E F# E D D\0";
        let out = unpack_unit(&packed, 4096).unwrap();
        assert_eq!(&out[..plain.len()], plain);
        assert!(out[plain.len()..].iter().all(|b| *b == 0));
    }

    #[test]
    fn damage() {
        for bytes in [&[0x38u8, 0xb0, 1][..], &[0x02, 0xb0, 0x01, 0xff, 0xff], &[0xff]] {
            let _ = unpack_unit(bytes, 65536);
        }
        assert!(unpack_unit(&[0x02, 0xb0, 0x01, 0xff, 0xff], 65536).is_err());
    }
}
