//! Compressed grains: packing them, unpacking them, and remembering the last few.
//!
//! Unpacking is bounded: the packed bytes by twice the grain, the result by the grain. A thread keeps
//! its (de)compressor and its buffer.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, PoisonError};

use libdeflater::{CompressionLvl, Compressor, Decompressor};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use super::geometry::{Geometry, Packing};
use super::layout::{GrainMarker, SECTOR};
use crate::format::{Encoded, Encoder, Level};
use crate::num::{GuestOffset, len_u64, round_up, small};
use crate::storage::Storage;
use crate::{Error, Result};

const MARKER: usize = size_of::<GrainMarker>();

/// libdeflate's level where none is asked for. Files of programs and libraries in grains of 64 KiB,
/// against zlib at level 6 (time 1, ratio 0.325): level 3 takes 0.21 (0.336), 4 takes 0.22 (0.334), 5
/// takes 0.27 (0.326), 6 takes 0.33 (0.324).
const DEFAULT_LEVEL: i32 = 4;

/// Packs grains for a stream-optimized extent: marker, zlib data, zeroes up to a whole sector.
pub(super) struct GrainEncoder {
    compressor: Compressor,
}

impl GrainEncoder {
    pub(super) fn new(level: Level) -> Self {
        let level = match level {
            Level::Default => DEFAULT_LEVEL,
            Level::Exactly(n) => i32::try_from(n).unwrap_or(12).clamp(1, 12),
        };
        let level = CompressionLvl::new(level).unwrap_or_default();
        GrainEncoder { compressor: Compressor::new(level) }
    }
}

impl Encoder for GrainEncoder {
    fn encode(&mut self, at: GuestOffset, unit: &[u8], out: &mut Vec<u8>) -> Result<Encoded> {
        let bound = MARKER + self.compressor.zlib_compress_bound(unit.len());
        let room = small(round_up(len_u64(bound), SECTOR));
        if out.len() < room {
            out.resize(room, 0);
        }
        let packed = self
            .compressor
            .zlib_compress(unit, &mut out[MARKER..])
            .map_err(|_| Error::corrupt("compressing a grain failed").at_offset(at.0))?;
        let size = u32::try_from(packed)
            .map_err(|_| Error::invalid("grain too large to be compressed").at_offset(at.0))?;
        let marker = GrainMarker { lba: U64::new(at.0 / SECTOR), size: U32::new(size) };
        out[..MARKER].copy_from_slice(marker.as_bytes());
        let used = MARKER + packed;
        let whole = small(round_up(len_u64(used), SECTOR));
        out[used..whole].fill(0);
        out.truncate(whole);
        Ok(Encoded::Done)
    }
}

thread_local! {
    static UNPACK: RefCell<(Decompressor, Vec<u8>)> =
        RefCell::new((Decompressor::new(), Vec::new()));
}

/// A packed grain: where it is, and how far the next thing in the file is if that is known.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packed {
    /// Bytes.
    pub at: u64,
    /// Bytes that surely hold marker and data, as a guess for reading both at once.
    pub guess: u64,
}

/// Unpacks a grain into `out` (at most a grain long); what the data do not fill is zero.
pub(super) fn unpack(
    storage: &dyn Storage,
    g: &Geometry,
    packed: Packed,
    out: &mut [u8],
) -> Result<()> {
    UNPACK.with_borrow_mut(|(decompressor, buffer)| {
        let limit = small(2 * g.grain);
        let guess = small(packed.guess).clamp(small(SECTOR), limit);
        if buffer.len() < guess {
            buffer.resize(guess, 0);
        }
        storage.read_at(packed.at, &mut buffer[..guess])?;
        let bad = |what: &str| {
            Error::corrupt(format!("Compressed grain is damaged: {what}"))
                .at_path(storage.name())
                .at_offset(packed.at)
        };
        let data = match g.packing {
            Packing::Marked => {
                let (marker, _) =
                    GrainMarker::read_from_prefix(buffer).map_err(|_| bad("no marker"))?;
                let size = small(u64::from(marker.size.get()));
                if size == 0 || size > limit {
                    return Err(bad(&format!("{size} bytes of data for {} of guest", g.grain)));
                }
                let end = MARKER + size;
                if end > guess {
                    if buffer.len() < end {
                        buffer.resize(end, 0);
                    }
                    let rest = packed.at + len_u64(guess);
                    storage.read_at(rest, &mut buffer[guess..end])?;
                }
                &buffer[MARKER..end]
            }
            Packing::Bare | Packing::Plain => {
                if buffer.len() < limit {
                    buffer.resize(limit, 0);
                }
                storage.read_at(packed.at + len_u64(guess), &mut buffer[guess..limit])?;
                &buffer[..limit]
            }
        };
        let have = decompressor.zlib_decompress(data, out).map_err(|e| match e {
            libdeflater::DecompressionError::InsufficientSpace => bad("more data than a grain"),
            libdeflater::DecompressionError::BadData => {
                bad("not zlib data, or the checksum is wrong")
            }
        })?;
        out[have..].fill(0);
        Ok(())
    })
}

/// Unpacked grains by the place of the packed ones. Places are written once, so nothing gets stale.
#[derive(Debug, Default)]
pub(super) struct GrainCache {
    slots: Mutex<Vec<CachedGrain>>,
}

#[derive(Debug)]
struct CachedGrain {
    extent: u32,
    at: u64,
    data: Arc<Vec<u8>>,
}

/// How many grains are remembered (of 64 KiB each, mostly).
const CACHED: usize = 4;

impl GrainCache {
    pub(super) fn get(&self, extent: u32, at: u64) -> Option<Arc<Vec<u8>>> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let found = slots.iter().find(|c| c.extent == extent && c.at == at)?;
        Some(Arc::clone(&found.data))
    }

    pub(super) fn put(&self, extent: u32, at: u64, data: Arc<Vec<u8>>) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        // Grains of megabytes are rare, and one of them is enough.
        let room = if data.len() > 1 << 20 { 1 } else { CACHED };
        slots.truncate(room - 1);
        slots.insert(0, CachedGrain { extent, at, data });
    }
}
