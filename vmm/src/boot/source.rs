//! Files that are copied into guest memory as they are.
//!
//! They are read straight to their place, or mapped and copied there: what is faster differs by far. Mapping costs most
//! where page tables are dear (a host that is itself a guest without nested paging). Reading costs most where string
//! instructions are dear: an emulated processor, as that of a nested host in tests, does the kernel's `rep movsb` byte by
//! byte. So each way gets a piece of the first large part of a file, and the faster one the rest.
//!
//! The guest's memory is a copy, not the mapping itself, so that a kernel that is replaced on disk later does not
//! change under a running guest.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryError, VolatileMemory,
};

use crate::mem::Memory;
use crate::num::index;
use crate::{Error, Result};

/// With guest memory's errors.
type Copied<T = ()> = std::result::Result<T, GuestMemoryError>;

/// Bytes of a trial.
const TRIAL: u64 = 128 << 10;
/// Files and parts of files that are worth two trials.
const LARGE: u64 = 16 * TRIAL;
const PAGE: u64 = 4096;

/// A file and its name for messages.
pub(super) struct Source {
    file: File,
    /// Bytes.
    pub(super) len: u64,
    /// As it was given.
    pub(super) path: String,
    /// How its bytes get into guest memory.
    way: Way,
}

/// How bytes of a file get into guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// As the first large part shows.
    Undecided,
    Read,
    Map,
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
        Ok(Source { file, len: meta.len(), path: shown, way: Way::Undecided })
    }

    /// Some of it, for looking at.
    pub(super) fn bytes(&self, at: u64, len: usize) -> Result<Vec<u8>> {
        let mut buf = vec![0; len];
        self.file.read_exact_at(&mut buf, at).map_err(|e| {
            Error::io(&e)
                .context(format!("cannot read '{}'", self.path))
                .at_path(&self.path)
                .at_offset(at)
        })?;
        Ok(buf)
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
        if !memory.check_range(GuestAddress(to), index(len)) {
            return Err(self.no_room(to, "there is no memory"));
        }
        self.copy(memory, at, len, to).map_err(|e| self.no_room(to, e))
    }

    fn no_room(&self, to: u64, why: impl std::fmt::Display) -> Error {
        let text = format!("'{}' does not fit into guest memory at {to:#x}: {why}", self.path);
        Error::invalid(text).at_path(&self.path).hint("Give the guest more memory (-m)")
    }

    fn copy(&mut self, memory: &Memory, at: u64, len: u64, to: u64) -> Copied {
        let tried = if self.way == Way::Undecided && len >= LARGE {
            let (way, tried) = self.compare(memory, at, to)?;
            self.way = way;
            tried
        } else {
            0
        };
        let (at, len, to) = (at + tried, len - tried, to + tried);
        if self.way == Way::Map && self.map(memory, at, len, to)? {
            return Ok(());
        }
        self.read(memory, at, len, to)
    }

    /// Loads the first bytes, a part in each way; the faster one, and how many bytes are done.
    fn compare(&mut self, memory: &Memory, at: u64, to: u64) -> Copied<(Way, u64)> {
        // What the first touch of a large page costs is no part of it.
        self.read(memory, at, PAGE, to)?;
        let began = Instant::now();
        self.read(memory, at + PAGE, TRIAL, to + PAGE)?;
        let reading = began.elapsed();
        let began = Instant::now();
        let mapped = self.map(memory, at + PAGE + TRIAL, TRIAL, to + PAGE + TRIAL)?;
        let mapping = if mapped { began.elapsed() } else { Duration::MAX };
        let way = if mapping < reading { Way::Map } else { Way::Read };
        Ok((way, PAGE + TRIAL + if mapped { TRIAL } else { 0 }))
    }

    fn read(&mut self, memory: &Memory, at: u64, len: u64, to: u64) -> Copied {
        self.file.seek(SeekFrom::Start(at)).map_err(GuestMemoryError::IOError)?;
        memory.read_exact_volatile_from(GuestAddress(to), &mut self.file, index(len))
    }

    /// `Ok(false)`: this file cannot be mapped.
    fn map(&self, memory: &Memory, at: u64, len: u64, to: u64) -> Copied<bool> {
        // The C library takes vector registers for pieces of this size.
        const PIECE: usize = 2048;
        let first = at & !(PAGE - 1);
        let Ok(file) = self.file.try_clone() else { return Ok(false) };
        let mapping = MmapRegionBuilder::<()>::new(index(at - first + len))
            .with_file_offset(FileOffset::new(file, first))
            .with_mmap_prot(libc::PROT_READ)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_POPULATE | libc::MAP_NORESERVE)
            .build();
        let Ok(mapping) = mapping else { return Ok(false) };
        let source = mapping.get_slice(index(at - first), index(len))?;
        let mut done = 0;
        for target in memory.get_slices(GuestAddress(to), index(len)) {
            let target = target?;
            let end = done + target.len();
            let mut inside = 0;
            while done < end {
                let piece = PIECE.min(end - done);
                let place = target.subslice(inside, piece)?;
                source.subslice(done, piece)?.copy_to_volatile_slice(place);
                done += piece;
                inside += piece;
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::config::{Backend, MemoryConfig};
    use crate::num::len_u64;

    #[test]
    fn large_files_arrive_whole_wherever_they_lie() {
        let memory =
            crate::mem::build(&MemoryConfig::simple(32 << 20, Backend::default())).unwrap();
        let bytes: Vec<u8> = (0..9_000_001u32).map(|i| (i % 251) as u8).collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        let mut source = Source::open(file.path(), "kernel").unwrap();
        let ways = [Way::Undecided, Way::Read, Way::Map];
        for (way, skip, to) in ways
            .iter()
            .flat_map(|way| [(*way, 0, 0x10_0000), (*way, 7, 0x20_0003), (*way, 4096, 0)])
        {
            source.way = way;
            memory.write_slice(&vec![0; 16 << 20], GuestAddress(0)).unwrap();
            let len = len_u64(bytes.len()) - skip;
            source.load(&memory, skip, len, to).unwrap();
            let mut there = vec![0; index(len)];
            memory.read_slice(&mut there, GuestAddress(to)).unwrap();
            assert_ne!(source.way, Way::Undecided);
            assert!(there == bytes[index(skip)..], "{way:?} {skip} {to:#x}");
        }
        for to in [24 << 20, 1 << 40, u64::MAX - 100] {
            assert!(source.load(&memory, 0, len_u64(bytes.len()), to).is_err(), "{to:#x}");
        }
        assert!(source.load(&memory, 1, len_u64(bytes.len()), 0).is_err());
    }
}
