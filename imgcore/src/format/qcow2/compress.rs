//! Compressed clusters: raw deflate with a 4 KiB window, or zstd ("Compressed Clusters Descriptor").

use super::header::Compression;
use super::image::Qcow2Image;
use crate::format::{Encoded, Encoder, Level};
use crate::num::{GuestOffset, round_down, small};
use crate::{Error, Result};

/// QEMU inflates with a window of 2^12 bytes.
const WINDOW_BITS: u8 = 12;
/// Deflate level: less than half the work of the usual 6 for output a few percent larger.
const ZLIB_LEVEL: u32 = 3;
/// Zstd level: libzstd's default.
const ZSTD_LEVEL: i32 = 3;

/// Compresses clusters; keeps its working memory from one to the next.
pub(super) struct ClusterEncoder {
    codec: Codec,
}

enum Codec {
    Deflate(Box<flate2::Compress>),
    Zstd(Box<zstd::bulk::Compressor<'static>>),
    Broken,
}

impl ClusterEncoder {
    pub(super) fn new(method: Compression, level: Level) -> Self {
        let codec = match method {
            Compression::Zlib => {
                let level = match level {
                    Level::Default => ZLIB_LEVEL,
                    Level::Exactly(n) => n.min(9),
                };
                Codec::Deflate(Box::new(flate2::Compress::new_with_window_bits(
                    flate2::Compression::new(level),
                    false,
                    WINDOW_BITS,
                )))
            }
            Compression::Zstd => {
                let level = match level {
                    Level::Default => ZSTD_LEVEL,
                    Level::Exactly(n) => i32::try_from(n).unwrap_or(ZSTD_LEVEL),
                };
                zstd::bulk::Compressor::new(level)
                    .map_or(Codec::Broken, |c| Codec::Zstd(Box::new(c)))
            }
        };
        ClusterEncoder { codec }
    }
}

impl Encoder for ClusterEncoder {
    fn encode(&mut self, _at: GuestOffset, unit: &[u8], out: &mut Vec<u8>) -> Result<Encoded> {
        // A cluster that does not become smaller is stored as it is.
        let room = unit.len() - 1;
        match &mut self.codec {
            Codec::Deflate(z) => {
                z.reset();
                out.clear();
                out.reserve(room);
                out.resize(room, 0);
                let status = z
                    .compress(unit, out, flate2::FlushCompress::Finish)
                    .map_err(|e| Error::invalid(format!("deflate failed: {e}")))?;
                if status != flate2::Status::StreamEnd {
                    return Ok(Encoded::Incompressible);
                }
                out.truncate(small(z.total_out()));
                Ok(Encoded::Done)
            }
            Codec::Zstd(z) => {
                out.resize(room, 0);
                match z.compress_to_buffer(unit, out.as_mut_slice()) {
                    Ok(n) => {
                        out.truncate(n);
                        Ok(Encoded::Done)
                    }
                    Err(_) => Ok(Encoded::Incompressible),
                }
            }
            Codec::Broken => Err(Error::errno(libc::ENOMEM).context("zstd could not be set up")),
        }
    }
}

/// Decompresses `from` (with up to a sector of garbage behind the stream) into exactly `to.len()` bytes.
pub(super) fn decode(method: Compression, from: &[u8], to: &mut [u8]) -> Result<()> {
    let good = match method {
        Compression::Zlib => inflate(from, to),
        Compression::Zstd => unzstd(from, to),
    };
    if good { Ok(()) } else { Err(Error::errno(libc::EIO)) }
}

fn inflate(from: &[u8], to: &mut [u8]) -> bool {
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

fn unzstd(from: &[u8], to: &mut [u8]) -> bool {
    let Ok(len) = zstd::zstd_safe::find_frame_compressed_size(from) else { return false };
    let Some(frame) = from.get(..len) else { return false };
    thread_local! {
        static UNZSTD: std::cell::RefCell<zstd::zstd_safe::DCtx<'static>> =
            std::cell::RefCell::new(zstd::zstd_safe::DCtx::create());
    }
    let room = to.len();
    UNZSTD.with(|d| d.borrow_mut().decompress(to, frame)) == Ok(room)
}

/// The cluster that was decompressed last: small reads of it do not decompress it again.
#[derive(Debug, Default)]
pub(super) struct DecodedCluster {
    /// Guest offset of the cluster, if one is held.
    at: Option<u64>,
    bytes: Vec<u8>,
}

impl Qcow2Image {
    /// See [`crate::format::Image::read_encoded`].
    pub(super) fn read_clusters(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        if !self.guest_keyed() {
            return self.read_compressed(at, buf);
        }
        let cluster = self.geometry.cluster();
        let mut done = 0;
        while done < buf.len() {
            let here = at + crate::num::len_u64(done);
            let n = (buf.len() - done).min(small(cluster - here % cluster));
            let part = &mut buf[done..done + n];
            let entry = self.write_tables().entry(&*self.file, here)?;
            match entry.host() {
                _ if entry.is_compressed() => self.read_compressed(here, part)?,
                Some(host) => self.read_guest_keyed(host, here, part)?,
                None => return Err(Error::errno(libc::EIO).at_offset(here)),
            }
            done += n;
        }
        Ok(())
    }

    /// Whether data are encrypted by guest sectors.
    pub(super) fn guest_keyed(&self) -> bool {
        self.crypt.as_ref().is_some_and(|c| c.guest_keyed().is_some())
    }

    fn read_compressed(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let cluster = self.geometry.cluster();
        let mut done = 0;
        while done < buf.len() {
            let here = at + crate::num::len_u64(done);
            let start = round_down(here, cluster);
            let skip = small(here - start);
            let n = (buf.len() - done).min(small(cluster) - skip);
            let part = &mut buf[done..done + n];
            if n == small(cluster) {
                self.decode_cluster(start, part)?;
            } else {
                let mut held =
                    self.decoded.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                if held.at != Some(start) {
                    held.at = None;
                    held.bytes.resize(small(cluster), 0);
                    self.decode_cluster(start, &mut held.bytes)?;
                    held.at = Some(start);
                }
                part.copy_from_slice(&held.bytes[skip..skip + n]);
            }
            done += n;
        }
        Ok(())
    }

    /// Decompresses the cluster at guest offset `start` into `to` (a whole cluster).
    fn decode_cluster(&self, start: u64, to: &mut [u8]) -> Result<()> {
        let (entry, method) = {
            let mut tables = self.write_tables();
            (tables.entry(&*self.file, start)?, tables.header.compression)
        };
        if !entry.is_compressed() {
            return Err(Error::errno(libc::EIO).at_offset(start));
        }
        let (offset, len) = self.geometry.compressed_place(entry.descriptor);
        let mut packed = vec![0u8; small(len)];
        if offset >= self.file.len()? {
            return Err(Error::errno(libc::EIO)
                .context(format!(
                    "compressed cluster at {offset:#x} lies beyond the end of the image file"
                ))
                .at_path(self.file.name())
                .at_offset(offset));
        }
        self.file.read_at(offset, &mut packed)?;
        decode(method, &packed, to).map_err(|e| {
            e.context(format!(
                "compressed cluster at {offset:#x} (guest offset {start:#x}) is damaged"
            ))
            .at_path(self.file.name())
            .at_offset(offset)
        })
    }

    /// Forgets the decompressed cluster if it is this one.
    pub(super) fn forget_decoded(&self, guest: u64) {
        let mut held = self.decoded.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if held.at == Some(guest) {
            held.at = None;
        }
    }
}
