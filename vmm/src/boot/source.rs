//! Files that are copied into guest memory as they are.
//!
//! They are mapped and copied straight to their place. The guest's memory is a copy, not the mapping itself, so that a
//! kernel that is replaced on disk later does not change under a running guest.

use std::cell::OnceCell;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryError, MmapRegion,
    VolatileMemory,
};

use crate::mem::Memory;
use crate::num::{index, len_u64};
use crate::{Error, Result};

/// A file and its name for messages.
pub(super) struct Source {
    file: File,
    /// Bytes.
    pub(super) len: u64,
    /// As it was given.
    pub(super) path: String,
    /// All of it, once it was wanted.
    mapping: OnceCell<Option<MmapRegion>>,
}

impl Source {
    /// Opens a regular file, `what` in messages.
    pub(super) fn open(path: &Path, what: &str) -> Result<Self> {
        let shown = path.display().to_string();
        let explain = |e: std::io::Error| {
            Error::io(&e).context(format!("could not open {what} '{shown}'")).at_path(&shown)
        };
        let file = File::open(path).map_err(explain)?;
        let meta = file.metadata().map_err(explain)?;
        if !meta.is_file() {
            return Err(Error::invalid(format!("{what} '{shown}' is not a file")).at_path(&shown));
        }
        Ok(Source { file, len: meta.len(), path: shown, mapping: OnceCell::new() })
    }

    /// Some of it, for looking at.
    pub(super) fn bytes(&self, at: u64, len: usize) -> Result<Vec<u8>> {
        let mut buf = vec![0; len];
        self.file.read_exact_at(&mut buf, at).map_err(|e| self.explain(&e, at))?;
        Ok(buf)
    }

    fn explain(&self, e: &std::io::Error, at: u64) -> Error {
        Error::io(e)
            .context(format!("cannot read '{}'", self.path))
            .at_path(&self.path)
            .at_offset(at)
    }

    /// The error for a file that cannot be what it says it is.
    pub(super) fn corrupt(&self, at: u64, what: impl Into<String>) -> Error {
        Error::corrupt(format!("kernel '{}': {}", self.path, what.into()))
            .at_path(&self.path)
            .at_offset(at)
    }

    /// Copies part of the file to guest memory.
    pub(super) fn load(&mut self, memory: &Memory, at: u64, len: u64, to: u64) -> Result<()> {
        if at.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(self.corrupt(at, format!("{len} bytes at {at:#x} are beyond its end")));
        }
        let done = match self.mapping() {
            Some(mapping) => copy(mapping, index(at), memory, to, index(len)),
            None => {
                self.file.seek(SeekFrom::Start(at)).map_err(|e| self.explain(&e, at))?;
                memory.read_exact_volatile_from(GuestAddress(to), &mut self.file, index(len))
            }
        };
        done.map_err(|e| {
            Error::invalid(format!(
                "'{}' does not fit into guest memory at {to:#x}: {e}",
                self.path
            ))
            .at_path(&self.path)
            .hint("Give the guest more memory (-m)")
        })
    }

    /// All of the file; nothing for files that cannot be mapped.
    fn mapping(&self) -> Option<&MmapRegion> {
        let make = || {
            let file = FileOffset::new(self.file.try_clone().ok()?, 0);
            MmapRegionBuilder::new(index(self.len))
                .with_file_offset(file)
                .with_mmap_prot(libc::PROT_READ)
                .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_POPULATE | libc::MAP_NORESERVE)
                .build()
                .ok()
        };
        self.mapping.get_or_init(make).as_ref()
    }
}

/// Copies bytes of a mapped file, large ones on two processors: most of the time is the kernel's, which clears the
/// pages that are touched for the first time.
fn copy(
    from: &MmapRegion,
    at: usize,
    memory: &Memory,
    to: u64,
    len: usize,
) -> std::result::Result<(), GuestMemoryError> {
    const WORTH_A_THREAD: usize = 4 << 20;
    const HUGE_PAGE: u64 = 2 << 20;
    let middle = to.saturating_add(len_u64(len / 2)) & !(HUGE_PAGE - 1);
    let first = index(middle.saturating_sub(to));
    if len < WORTH_A_THREAD || first == 0 {
        return copy_here(from, at, memory, to, len);
    }
    std::thread::scope(|scope| {
        let begin = || copy_here(from, at, memory, to, first);
        let other = std::thread::Builder::new().name("load".into()).spawn_scoped(scope, begin);
        let here = copy_here(from, at + first, memory, middle, len - first);
        match other {
            Ok(thread) => match thread.join() {
                Ok(there) => there.and(here),
                Err(panic) => std::panic::resume_unwind(panic),
            },
            Err(_) => begin().and(here),
        }
    })
}

/// Copies them on this thread.
///
/// `read` is slower where string instructions are: an emulated processor, as that of a nested host, does `rep movsb`
/// byte by byte. The C library takes vector registers for pieces of this size.
fn copy_here(
    from: &MmapRegion,
    at: usize,
    memory: &Memory,
    to: u64,
    len: usize,
) -> std::result::Result<(), GuestMemoryError> {
    const PIECE: usize = 2048;
    let source = from.get_slice(at, len)?;
    let mut done = 0;
    for target in memory.get_slices(GuestAddress(to), len) {
        let target = target?;
        let end = done + target.len();
        let mut inside = 0;
        while done < end {
            let piece = PIECE.min(end - done);
            source.subslice(done, piece)?.copy_to_volatile_slice(target.subslice(inside, piece)?);
            done += piece;
            inside += piece;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::config::{Backend, MemoryConfig};

    #[test]
    fn large_files_arrive_whole_wherever_they_lie() {
        let memory =
            crate::mem::build(&MemoryConfig::simple(32 << 20, Backend::default())).unwrap();
        let bytes: Vec<u8> = (0..9_000_001u32).map(|i| (i % 251) as u8).collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        let mut source = Source::open(file.path(), "kernel").unwrap();
        for (skip, to) in [(0, 0x10_0000), (7, 0x20_0003), (4096, 0)] {
            let len = len_u64(bytes.len()) - skip;
            source.load(&memory, skip, len, to).unwrap();
            let mut there = vec![0; index(len)];
            memory.read_slice(&mut there, GuestAddress(to)).unwrap();
            assert!(there == bytes[index(skip)..], "{skip} {to:#x}");
        }
        for to in [24 << 20, 1 << 40, u64::MAX - 100] {
            assert!(source.load(&memory, 0, len_u64(bytes.len()), to).is_err(), "{to:#x}");
        }
        assert!(source.load(&memory, 1, len_u64(bytes.len()), 0).is_err());
    }
}
