//! A file's bytes: extents, plain or packed, and small ones in the tree itself.

use std::io::Read;

use super::files::{Btrfs, EXTENT_DATA};
use super::layout::Key;
use crate::guest::fields::Fields;
use crate::guest::files::FileId;
use crate::num::{len_u64, small};
use crate::{Error, Result};

/// A packed extent unpacks to 128 KiB at most.
const MAX_PACKED: u64 = 1 << 20;
/// The window of zstd, as a power of two: as large as such an extent (`ZSTD_BTRFS_MAX_WINDOWLOG`). A frame may
/// ask for a thousand times as much.
const MAX_WINDOW: u32 = 17;

impl Btrfs {
    /// Fills `buf` from `at`; where no extent is, it is zero.
    pub(super) fn read_extents(&self, file: FileId, at: u64, buf: &mut [u8]) -> Result<()> {
        buf.fill(0);
        if buf.is_empty() {
            return Ok(());
        }
        let root = self.subvolume_root(file.1)?;
        let end = at.saturating_add(len_u64(buf.len()));
        let key = |offset| Key { object: file.0, kind: EXTENT_DATA, offset };
        // The extent that holds `at` begins before it: how far, only the tree knows. Extents have 128 MiB
        // at most.
        let first = at.saturating_sub(128 << 20);
        self.trees.range(root, key(first), key(end - 1), &mut |found, data| {
            self.extent(found.offset, data, at, buf)?;
            Ok(true)
        })
    }

    /// Copies what one extent has of the range.
    fn extent(&self, start: u64, data: &[u8], at: u64, buf: &mut [u8]) -> Result<()> {
        let f = Fields(data);
        let (ram, packing, encryption, kind) = (f.le64(8)?, f.u8(16)?, f.u8(17)?, f.u8(20)?);
        if encryption != 0 {
            return Err(Error::unsupported("the file is encrypted"));
        }
        if kind == 0 {
            let inline = f.rest(21)?.0;
            if ram > MAX_PACKED {
                return Err(bad());
            }
            let plain = self.unpack(packing, inline, ram)?;
            copy(start, &plain, at, buf);
            return Ok(());
        }
        let (place, stored) = (f.le64(21)?, f.le64(29)?);
        let (offset, len) = (f.le64(37)?, f.le64(45)?);
        if place == 0 || kind == 2 {
            return Ok(());
        }
        if packing == 0 {
            return self.plain(start, (place.saturating_add(offset), len), at, buf);
        }
        // Only what is wanted is unpacked.
        let wanted =
            start < at.saturating_add(len_u64(buf.len())) && start.saturating_add(len) > at;
        if !wanted {
            return Ok(());
        }
        if ram > MAX_PACKED || stored > MAX_PACKED {
            return Err(bad());
        }
        let mut packed = vec![0; small(stored)];
        self.trees.read(place, &mut packed)?;
        let plain = self.unpack(packing, &packed, ram)?;
        let from = small(offset).min(plain.len());
        let to = from.saturating_add(small(len)).min(plain.len());
        copy(start, &plain[from..to], at, buf);
        Ok(())
    }

    fn plain(&self, start: u64, (place, len): (u64, u64), at: u64, buf: &mut [u8]) -> Result<()> {
        let from = start.max(at);
        let to = start.saturating_add(len).min(at.saturating_add(len_u64(buf.len())));
        if from >= to {
            return Ok(());
        }
        let out = &mut buf[small(from - at)..small(to - at)];
        self.trees.read(place.saturating_add(from - start), out)
    }

    fn unpack(&self, packing: u8, packed: &[u8], len: u64) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        match packing {
            0 => return Ok(packed.to_vec()),
            1 => {
                let stream = flate2::read::ZlibDecoder::new(packed);
                stream.take(len).read_to_end(&mut out).map_err(|_| bad())?;
            }
            2 => out = self.unpack_lzo(packed, small(len))?,
            3 => out = unpack_zstd(packed, len)?,
            other => {
                return Err(Error::unsupported(format!(
                    "the file is packed in a way ({other}) that is not known"
                )));
            }
        }
        out.resize(small(len), 0);
        Ok(out)
    }

    /// The length of all, then pieces of one sector each with their lengths before them; a length never
    /// crosses the end of a sector.
    fn unpack_lzo(&self, packed: &[u8], len: usize) -> Result<Vec<u8>> {
        let f = Fields(packed);
        let total = small(u64::from(f.le32(0)?)).min(packed.len());
        let mut out = Vec::new();
        let mut at = 4;
        while at + 4 <= total && out.len() < len {
            let piece = small(u64::from(f.le32(at)?));
            at += 4;
            let data = f.slice(at, piece)?;
            let mut block = vec![0; self.sector];
            let n = lzokay::decompress::decompress(data, &mut block).map_err(|_| bad())?;
            out.extend_from_slice(&block[..n]);
            at += piece;
            let left = self.sector - at % self.sector;
            if left < 4 {
                at += left;
            }
        }
        Ok(out)
    }
}

/// At most `len` bytes of the first frame: an extent is padded to whole sectors, and what follows is no frame.
fn unpack_zstd(packed: &[u8], len: u64) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let mut stream = zstd::stream::read::Decoder::with_buffer(packed).map_err(|_| bad())?;
    stream.window_log_max(MAX_WINDOW).map_err(|_| bad())?;
    stream.single_frame().take(len).read_to_end(&mut out).map_err(|_| bad())?;
    Ok(out)
}

fn copy(start: u64, data: &[u8], at: u64, buf: &mut [u8]) {
    let from = start.max(at);
    let to = start.saturating_add(len_u64(data.len())).min(at.saturating_add(len_u64(buf.len())));
    if from < to {
        let n = small(to - from);
        let (into, of) = (small(from - at), small(from - start));
        buf[into..into + n].copy_from_slice(&data[of..of + n]);
    }
}

fn bad() -> Error {
    Error::corrupt("a packed file of btrfs is damaged")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// RFC 8878: magic, a descriptor without sizes, the window's exponent, a last block of zero bytes.
    #[test]
    fn a_window_larger_than_an_extent_is_refused() {
        let frame = |exponent: u8| {
            [0x28, 0xb5, 0x2f, 0xfd, 0, (exponent - 10) << 3, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        };
        assert_eq!(unpack_zstd(&frame(17), 4096).unwrap(), [0; 0]);
        assert!(unpack_zstd(&frame(18), 4096).is_err());
        assert!(unpack_zstd(&frame(27), 4096).is_err());
    }
}
