//! Compressed clusters of qcow and qcow2: raw deflate streams with a window of 4 KiB, and reading parts of
//! clusters.

use std::sync::{Mutex, PoisonError};

use crate::format::{Encoded, Level};
use crate::num::{len_u64, round_down, small};
use crate::{Error, Result};

/// QEMU inflates with a window of 2^12 bytes.
const WINDOW_BITS: u8 = 12;
/// Level: less than half the work of the usual 6 for output a few percent larger.
const DEFAULT_LEVEL: u32 = 3;

/// Compresses clusters; keeps its working memory from one to the next.
pub(crate) struct Deflater(Box<flate2::Compress>);

impl Deflater {
    /// With a level of zlib's scale.
    pub fn new(level: Level) -> Self {
        let level = match level {
            Level::Default => DEFAULT_LEVEL,
            Level::Exactly(n) => n.min(9),
        };
        let level = flate2::Compression::new(level);
        Deflater(Box::new(flate2::Compress::new_with_window_bits(level, false, WINDOW_BITS)))
    }

    /// Replaces the content of `out` by the stream of `unit`, if that is shorter.
    pub fn deflate(&mut self, unit: &[u8], out: &mut Vec<u8>) -> Result<Encoded> {
        // Room for the worst case: a stream that is broken off for want of room, and then another one by the
        // same compressor, make zlib-rs (0.6) panic.
        let room = unit.len() + unit.len() / 4 + 64;
        self.0.reset();
        out.clear();
        out.reserve(room);
        out.resize(room, 0);
        let status = self
            .0
            .compress(unit, out, flate2::FlushCompress::Finish)
            .map_err(|e| Error::invalid(format!("deflate failed: {e}")))?;
        // A cluster that does not become smaller is stored as it is.
        let len = small(self.0.total_out());
        if status != flate2::Status::StreamEnd || len >= unit.len() {
            return Ok(Encoded::Incompressible);
        }
        out.truncate(len);
        Ok(Encoded::Done)
    }
}

/// Fills all of `to` from the stream that `from` begins with; `false` where that is not one.
pub(crate) fn inflate(from: &[u8], to: &mut [u8]) -> bool {
    thread_local! {
        static INFLATE: std::cell::RefCell<libdeflater::Decompressor> =
            std::cell::RefCell::new(libdeflater::Decompressor::new());
    }
    if INFLATE.with(|d| d.borrow_mut().deflate_decompress(from, to)) == Ok(to.len()) {
        return true;
    }
    // Some writers leave the stream without an end when the output is complete; libdeflate refuses that.
    let mut z = flate2::Decompress::new(false);
    z.decompress(from, to, flate2::FlushDecompress::Finish).is_ok()
        && small(z.total_out()) == to.len()
}

/// The cluster that was decompressed last: small reads of it do not decompress it again.
#[derive(Debug, Default)]
pub(crate) struct DecodedCluster(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    /// Guest offset of the cluster, if one is held.
    at: Option<u64>,
    bytes: Vec<u8>,
}

impl DecodedCluster {
    /// Reads guest bytes of compressed clusters of `cluster` bytes; `decode` fills one of them.
    pub fn read(
        &self,
        cluster: u64,
        (at, buf): (u64, &mut [u8]),
        decode: impl Fn(u64, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let mut done = 0;
        while done < buf.len() {
            let here = at + len_u64(done);
            let start = round_down(here, cluster);
            let skip = small(here - start);
            let n = (buf.len() - done).min(small(cluster) - skip);
            let part = &mut buf[done..done + n];
            if n == small(cluster) {
                decode(start, part)?;
            } else {
                let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                if held.at != Some(start) {
                    held.at = None;
                    held.bytes.resize(small(cluster), 0);
                    decode(start, &mut held.bytes)?;
                    held.at = Some(start);
                }
                part.copy_from_slice(&held.bytes[skip..skip + n]);
            }
            done += n;
        }
        Ok(())
    }

    /// Forgets the cluster if it is this one.
    pub fn forget(&self, guest: u64) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if held.at == Some(guest) {
            held.at = None;
        }
    }

    /// Forgets whatever it is.
    pub fn forget_all(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Held::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Clusters that do not become smaller, between others that do.
    #[test]
    fn any_bytes() {
        let mut n = 1u64;
        let mut byte = |mask: u8| {
            n = n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            n.to_le_bytes()[7] & mask
        };
        for level in [Level::Default, Level::Exactly(0), Level::Exactly(1), Level::Exactly(9)] {
            for len in [512, 4096, 65536, 2 << 20] {
                let mut z = Deflater::new(level);
                let mut out = Vec::new();
                for round in 0..12 {
                    let mask = [0xff, 3, 0xff, 0x7f, 0][round % 5];
                    let unit: Vec<u8> = (0..len).map(|_| byte(mask)).collect();
                    if z.deflate(&unit, &mut out).unwrap() == Encoded::Incompressible {
                        assert!(mask >= 0x7f || level == Level::Exactly(0), "{mask} {len}");
                        continue;
                    }
                    assert!(out.len() < unit.len());
                    let mut back = vec![0; len];
                    assert!(inflate(&out, &mut back) && back == unit);
                }
            }
        }
    }
}
