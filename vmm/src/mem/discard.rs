//! Dropping guest pages on the host.

#![allow(unsafe_code)]

use nix::errno::Errno;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::Memory;
use crate::num::index;
use crate::{Error, Result};

/// Drops all whole pages of `len` bytes at `at`; they read as zeroes afterwards.
///
/// # Errors
/// When the range is not within one region of guest memory, or its host pages are huge.
pub fn discard(memory: &Memory, at: GuestAddress, len: u64) -> Result<()> {
    let outside = || Error::invalid(format!("{len:#x} bytes at {:#x} are no guest memory", at.0));
    let region = memory.find_region(at).ok_or_else(outside)?;
    let end = at.0.checked_add(len).ok_or_else(outside)?;
    let inside = len > 0 && end - 1 <= region.last_addr().0;
    if !inside || !at.0.is_multiple_of(4096) || !len.is_multiple_of(4096) {
        return Err(outside());
    }
    let host = memory.get_host_address(at).map_err(|_| outside())?;
    // A private mapping forgets its copies; a shared one must have the hole in the file itself.
    let shared = region.flags() & libc::MAP_SHARED != 0;
    let advice = if shared { libc::MADV_REMOVE } else { libc::MADV_DONTNEED };
    // SAFETY: the range lies within one mapping of guest memory, which this process reads and writes by
    // volatile accesses only, and of which it keeps no Rust references.
    let rc = unsafe { libc::madvise(host.cast(), index(len), advice) };
    Errno::result(rc).map(|_| ()).map_err(|e| Error::from(e).context("cannot drop guest pages"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::config::{Backend, MemoryConfig, Source};
    use vm_memory::Bytes;

    #[test]
    fn dropped_pages_read_as_zeroes() {
        for source in [Source::Anonymous, Source::Memfd { huge_page: None }] {
            let backend = Backend { source, ..Backend::default() };
            let m = crate::mem::build(&MemoryConfig::simple(1 << 20, backend)).unwrap();
            for at in [0x1000, 0x2000, 0x3000] {
                m.write_obj(7u8, GuestAddress(at)).unwrap();
            }
            discard(&m, GuestAddress(0x2000), 4096).unwrap();
            let get = |at| m.read_obj::<u8>(GuestAddress(at)).unwrap();
            assert_eq!((get(0x1000), get(0x2000), get(0x3000)), (7, 0, 7));
            for (at, len) in
                [(0x2001, 4096), (0x2000, 100), (1 << 20, 4096), (0xff000, 8192), (0, 0)]
            {
                assert!(discard(&m, GuestAddress(at), len).is_err());
            }
        }
    }
}
