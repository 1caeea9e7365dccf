//! Compressed clusters: raw deflate with a 4 KiB window, or zstd ("Compressed Clusters Descriptor").

use super::header::Compression;
use super::image::Qcow2Image;
use crate::format::deflate::{self, Deflater};
use crate::format::{Encoded, Encoder, Level};
use crate::num::{GuestOffset, small};
use crate::{Error, Result};

/// Zstd level: libzstd's default.
const ZSTD_LEVEL: i32 = 3;

/// Compresses clusters; keeps its working memory from one to the next.
pub(super) struct ClusterEncoder {
    codec: Codec,
}

enum Codec {
    Deflate(Deflater),
    Zstd(Box<zstd::bulk::Compressor<'static>>),
    Broken,
}

impl ClusterEncoder {
    pub(super) fn new(method: Compression, level: Level) -> Self {
        let codec = match method {
            Compression::Zlib => Codec::Deflate(Deflater::new(level)),
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
        match &mut self.codec {
            Codec::Deflate(z) => z.deflate(unit, out),
            Codec::Zstd(z) => {
                // A cluster that does not become smaller is stored as it is.
                out.resize(unit.len() - 1, 0);
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
        Compression::Zlib => deflate::inflate(from, to),
        Compression::Zstd => unzstd(from, to),
    };
    if good { Ok(()) } else { Err(Error::errno(libc::EIO)) }
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
        self.decoded.read(cluster, (at, buf), |start, to| self.decode_cluster(start, to))
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
}
