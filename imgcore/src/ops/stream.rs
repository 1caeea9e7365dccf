//! Images that come or go as a stream: standard input, packed files, standard output.
//!
//! A format is read in any order, a stream in one. So a stream is unpacked into a file without a name, with
//! holes for its zeroes, and the image is opened there; that file goes away with its last user, also when
//! that is killed. Raw output needs no file: the disk is written as it is read.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use super::source::Walk;
use super::{ImageArg, Job};
use crate::format::check_cancelled;
use crate::graph::open::Purpose;
use crate::num::{len_u64, small};
use crate::storage::Storage;
use crate::storage::zero::is_zero;
use crate::{Error, Result};

/// Bytes taken at a time; zeroes as long as this become holes.
const BLOCK: usize = 64 << 10;
/// Bytes looked at to see how a stream is packed.
const MAGIC: usize = 6;

/// How a stream is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// Not at all.
    Plain,
    /// RFC 1952, also several members in a row.
    Gzip,
    /// The .xz format.
    Xz,
    /// RFC 8878.
    Zstd,
    /// bzip2, also several streams in a row.
    Bzip2,
}

impl Packing {
    /// From what a stream begins with.
    pub fn of(head: &[u8]) -> Self {
        if head.starts_with(&[0x1f, 0x8b, 8]) {
            Packing::Gzip
        } else if head.starts_with(b"\xfd7zXZ\0") {
            Packing::Xz
        } else if head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            Packing::Zstd
        } else if head.starts_with(b"BZh") && head.get(3).is_some_and(|d| (b'1'..=b'9').contains(d))
        {
            Packing::Bzip2
        } else {
            Packing::Plain
        }
    }

    /// From a file's name.
    fn promised(name: &str) -> Self {
        match name.rsplit_once('.').map(|(_, end)| end) {
            Some("gz") => Packing::Gzip,
            Some("xz") => Packing::Xz,
            Some("zst") => Packing::Zstd,
            Some("bz2") => Packing::Bzip2,
            _ => Packing::Plain,
        }
    }

    /// How a file is packed: its name and its first bytes must agree, because a raw disk may begin with
    /// anything.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn of_file(path: &str) -> Result<Self> {
        if Packing::promised(path) == Packing::Plain || !Path::new(path).is_file() {
            return Ok(Packing::Plain);
        }
        let mut head = Vec::new();
        let read = File::open(path).and_then(|f| f.take(len_u64(MAGIC)).read_to_end(&mut head));
        read.map_err(|e| Error::io(&e).context(format!("Could not open '{path}'")).at_path(path))?;
        Ok(Packing::agreed(path, &head))
    }

    /// How something of this name that begins like this is packed, where both say the same.
    pub fn agreed(name: &str, head: &[u8]) -> Self {
        let promised = Packing::promised(name);
        if Packing::of(head) == promised { promised } else { Packing::Plain }
    }

    /// How a file on a web server is packed: the path of its URL and its first bytes must agree.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn of_url(url: &str, storage: &dyn Storage) -> Result<Self> {
        let mut head = [0; MAGIC];
        storage.read_at(0, &mut head)?;
        Ok(Packing::agreed(path_of(url), &head))
    }
}

/// A URL without its query.
fn path_of(url: &str) -> &str {
    url.split('?').next().unwrap_or(url)
}

/// How a stream is unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unpack<'a> {
    /// As its first bytes say.
    AsItBegins,
    /// As its first bytes and this name say, where they agree.
    Named(&'a str),
}

/// A storage from front to end.
#[derive(Debug)]
pub struct StorageReader {
    storage: Arc<dyn Storage>,
    at: u64,
}

impl StorageReader {
    /// From its first byte on.
    pub fn new(storage: Arc<dyn Storage>) -> Self {
        StorageReader { storage, at: 0 }
    }
}

impl Read for StorageReader {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let failed = |e: Error| std::io::Error::other(e.report());
        let left = self.storage.len().map_err(failed)?.saturating_sub(self.at);
        let n = small(left).min(buf.len());
        self.storage.read_at(self.at, &mut buf[..n]).map_err(failed)?;
        self.at += len_u64(n);
        Ok(n)
    }
}

/// A stream in a file without a name.
#[derive(Debug)]
pub struct Spooled(File);

impl Spooled {
    /// A name to open it by, in this process.
    pub fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.0.as_raw_fd())
    }
}

/// Unpacks a stream into a file without a name in `folder`.
///
/// # Errors
/// When the stream cannot be read or is damaged, or the file cannot be written.
pub fn spool(
    stream: impl Read,
    unpack: Unpack<'_>,
    folder: &Path,
    job: &Job<'_>,
) -> Result<Spooled> {
    let mut how = File::options();
    how.read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE | libc::O_CLOEXEC);
    let file = how.open(folder).map_err(|e| {
        let text = format!("Could not make a temporary file in '{}'", folder.display());
        Error::io(&e).context(text).hint("TMPDIR names a folder with space for the whole disk")
    })?;
    let mut stream = BufReader::with_capacity(BLOCK, stream);
    let head = stream.fill_buf().map_err(|e| Error::io(&e).context("it cannot be read"))?;
    let packing = match unpack {
        Unpack::AsItBegins => Packing::of(head),
        Unpack::Named(name) => Packing::agreed(path_of(name), head),
    };
    let damaged = |e: std::io::Error| match packing {
        Packing::Plain => Error::io(&e).context("it cannot be read"),
        _ => Error::corrupt(format!("it does not unpack: {e}")),
    };
    let mut stream: Box<dyn Read + '_> = match packing {
        Packing::Plain => Box::new(stream),
        Packing::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(stream)),
        Packing::Xz => Box::new(liblzma::bufread::XzDecoder::new_multi_decoder(stream)),
        Packing::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(stream)?),
        Packing::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(stream)),
    };
    job.watcher.phase("unpacking");
    let mut buf = vec![0; BLOCK];
    let mut at = 0u64;
    loop {
        check_cancelled(job.watcher)?;
        let len = fill(&mut stream, &mut buf).map_err(damaged)?;
        if len == 0 {
            break;
        }
        if !is_zero(&buf[..len]) {
            file.write_all_at(&buf[..len], at)?;
        }
        at += len_u64(len);
    }
    file.set_len(at)?;
    Ok(Spooled(file))
}

/// As much as there is room for; less only at the end.
fn fill(stream: &mut dyn Read, buf: &mut [u8]) -> std::io::Result<usize> {
    let mut len = 0;
    while len < buf.len() {
        match stream.read(&mut buf[len..]) {
            Ok(0) => break,
            Ok(n) => len += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(len)
}

/// Writes a disk as a stream of all its bytes. How many there were.
///
/// # Errors
/// When the image cannot be opened or read, or the stream not written.
pub fn export(image: &ImageArg, out: &mut dyn Write, job: &Job<'_>) -> Result<u64> {
    let mut how = image.options(job);
    how.purpose = Purpose::Source;
    let node = image.open(job, &how)?;
    let size = node.virtual_size();
    let walk = Walk::chain(&node);
    let written = |e: std::io::Error| Error::io(&e).context("Could not write to standard output");
    let mut buf = vec![0; 1 << 20];
    let mut at = 0;
    while at < size {
        let found = at;
        let run = walk.run(at, size - at)?;
        let end = (at + run.len).min(size);
        if run.is_zero() {
            buf.fill(0);
        }
        while at < end {
            check_cancelled(job.watcher)?;
            let piece = &mut buf[..small((end - at).min(1 << 20))];
            if !run.is_zero() {
                walk.read(&run, found, at, piece)
                    .map_err(|e| e.context(format!("error while reading at byte {at}")))?;
            }
            out.write_all(piece).map_err(written)?;
            at += len_u64(piece.len());
            job.watcher.progress(at, size);
        }
    }
    out.flush().map_err(written)?;
    Ok(size)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::format::Unwatched;
    use crate::graph::open::Policy;
    use crate::opts::secret::Secrets;

    fn unpacked(bytes: &[u8]) -> Result<Vec<u8>> {
        let dir = tempfile::tempdir().unwrap();
        let (policy, secrets) = (Policy::folder(), Secrets::default());
        let job = Job { policy: &policy, watcher: &Unwatched, secrets: &secrets };
        let spooled = spool(bytes, Unpack::AsItBegins, dir.path(), &job)?;
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "it has a name");
        Ok(std::fs::read(spooled.path()).unwrap())
    }

    #[test]
    fn all_packings() {
        let mut plain = vec![0u8; 300_000];
        plain[200_000..].fill(7);
        plain[5] = 1;
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&plain).unwrap();
        let gz = gz.finish().unwrap();
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(&plain).unwrap();
        let xz = xz.finish().unwrap();
        let zst = zstd::encode_all(&plain[..], 1).unwrap();
        let mut bz = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        bz.write_all(&plain).unwrap();
        let bz = bz.finish().unwrap();
        for (packed, packing) in
            [(gz, Packing::Gzip), (xz, Packing::Xz), (zst, Packing::Zstd), (bz, Packing::Bzip2)]
        {
            assert_eq!(Packing::of(&packed), packing);
            assert!(unpacked(&packed).unwrap() == plain, "{packing:?}");
            let twice = [&packed[..], &packed[..]].concat();
            assert_eq!(unpacked(&twice).unwrap().len(), 600_000, "{packing:?}");
            let cut = unpacked(&packed[..packed.len() - 9]);
            assert!(cut.is_err(), "{packing:?}");
        }
        assert_eq!(Packing::of(&plain), Packing::Plain);
        assert!(unpacked(&plain).unwrap() == plain);
        assert!(unpacked(&[]).unwrap().is_empty());
    }
}
