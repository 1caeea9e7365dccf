//! Disks that are packed with gzip, or cut into pieces: they are put together in a file without a name in
//! the output folder, and converted from there.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use flate2::read::MultiGzDecoder;

use super::super::Job;
use super::bundle::{Bundle, Place};
use crate::format::check_cancelled;
use crate::num::len_u64;
use crate::{Error, Result};

/// A file that goes away when nobody has it open.
pub(super) struct Unpacked(File);

impl Unpacked {
    /// A name to open it by, in this process.
    pub fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.0.as_raw_fd())
    }
}

/// Whether a disk is in pieces.
pub(super) struct Pieces<'a> {
    pub bundle: &'a Bundle,
    pub policy: &'a crate::graph::gate::Policy,
    pub reference: &'a str,
}

/// Pieces of one disk.
const MAX_PIECES: usize = 100_000;

/// Puts a disk together.
///
/// # Errors
/// When it cannot be read, does not unpack, or does not fit.
pub(super) fn unpack(
    place: &Place,
    pieces: Option<&Pieces<'_>>,
    gzip: bool,
    folder: &str,
    job: &Job<'_>,
) -> Result<Unpacked> {
    let mut how = File::options();
    how.read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE | libc::O_CLOEXEC);
    let mut file = how.open(folder).map_err(|e| {
        Error::io(&e).context(format!("Could not make a temporary file in '{folder}'"))
    })?;
    let first = place.open()?;
    let source: Box<dyn Read> = match pieces {
        None => Box::new(first),
        Some(pieces) => Box::new(Chained { pieces, at: 0, now: Some(first) }),
    };
    let mut source: Box<dyn Read> = if gzip {
        Box::new(MultiGzDecoder::new(std::io::BufReader::with_capacity(1 << 16, source)))
    } else {
        source
    };
    job.watcher.phase("unpacking");
    let mut buf = vec![0; 1 << 20];
    let mut done = 0;
    loop {
        check_cancelled(job.watcher)?;
        let len = match source.read(&mut buf) {
            Ok(0) => break,
            Ok(len) => len,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(Error::io(&e).context("it does not unpack")),
        };
        file.write_all(&buf[..len])?;
        done += len_u64(len);
        job.watcher.progress(done, done.max(place.window.map_or(0, |(_, len)| len)));
    }
    Ok(Unpacked(file))
}

/// The pieces one after the other, until there is no next one.
struct Chained<'a> {
    pieces: &'a Pieces<'a>,
    at: usize,
    now: Option<std::io::Take<File>>,
}

impl Read for Chained<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        while let Some(now) = &mut self.now {
            let len = now.read(buf)?;
            if len > 0 || buf.is_empty() {
                return Ok(len);
            }
            self.at += 1;
            let name = format!("{}.{:09}", self.pieces.reference, self.at);
            let next = self.pieces.bundle.find(&name, self.pieces.policy);
            let next =
                next.ok().filter(|p| p.window.is_some() || std::path::Path::new(&p.path).exists());
            self.now = match next {
                Some(place) if self.at < MAX_PIECES => {
                    Some(place.open().map_err(|e| std::io::Error::other(e.report()))?)
                }
                _ => None,
            };
        }
        Ok(0)
    }
}
