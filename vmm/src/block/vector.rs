//! Moving bytes between open files and guest memory without a buffer.
//!
//! Guest memory is never borrowed as Rust memory: the addresses go to the kernel, which copies. The guest
//! may change the bytes meanwhile; it then gets, or stores, some mixture of its own making.

#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};

use imgcore::graph::Node;
use imgcore::graph::runs::{self, Run};
use vm_memory::guest_memory::GuestMemoryBackend;
use vm_memory::{GuestAddress, VolatileSlice};

use super::Direct;
use crate::mem::Memory;
use crate::num::{index, len_u64};
use crate::{Error, Result};

/// Pieces of guest memory, checked to lie inside it, that make up one request's data.
#[derive(Debug)]
pub struct GuestPieces<'a> {
    memory: &'a Memory,
    pieces: Vec<VolatileSlice<'a>>,
    len: u64,
}

/// Longest list that the kernel takes in one call (`IOV_MAX`).
const MOST_PIECES: usize = 1024;

impl<'a> GuestPieces<'a> {
    /// From addresses and lengths. `None` when some of it is not guest memory.
    pub fn gather(
        memory: &'a Memory,
        spans: impl Iterator<Item = (GuestAddress, u64)>,
    ) -> Option<Self> {
        let (mut pieces, mut len) = (Vec::new(), 0u64);
        for (at, n) in spans {
            for piece in GuestMemoryBackend::get_slices(memory, at, index(n)) {
                pieces.push(piece.ok()?);
            }
            len = len.checked_add(n)?;
        }
        Some(GuestPieces { memory, pieces, len })
    }

    /// Bytes in all.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Writes all of it to a descriptor that keeps no position with one call (one frame of a network).
    ///
    /// # Errors
    /// Those of `writev`.
    pub fn write_once(&self, fd: BorrowedFd<'_>) -> std::io::Result<usize> {
        if self.pieces.len() > MOST_PIECES {
            return Err(std::io::Error::from_raw_os_error(libc::EINVAL));
        }
        let guards: Vec<_> = self.pieces.iter().map(VolatileSlice::ptr_guard).collect();
        let list: Vec<libc::iovec> = guards
            .iter()
            .map(|g| libc::iovec { iov_base: g.as_ptr().cast_mut().cast(), iov_len: g.len() })
            .collect();
        let count = libc::c_int::try_from(list.len()).unwrap_or(0);
        // SAFETY: every entry is a slice of mapped guest memory that its guard keeps mapped until after the
        // call; the kernel only reads it.
        let n = unsafe { libc::writev(fd.as_raw_fd(), list.as_ptr(), count) };
        drop(guards);
        usize::try_from(n).map_err(|_| std::io::Error::last_os_error())
    }

    /// The addresses of `len` bytes from `offset` on, for somebody who keeps `memory` mapped while they are
    /// used. `None` when these are pieces of another memory, or too many for one call.
    pub(super) fn addresses(
        &self,
        memory: &Memory,
        offset: u64,
        len: u64,
    ) -> Option<Vec<libc::iovec>> {
        let part = self.part(offset, len);
        if !std::ptr::eq(memory, self.memory) || part.len() > MOST_PIECES {
            return None;
        }
        let entry = |p: &VolatileSlice<'_>| libc::iovec {
            iov_base: p.ptr_guard_mut().as_ptr().cast(),
            iov_len: p.len(),
        };
        Some(part.iter().map(entry).collect())
    }

    /// Makes a part zero.
    pub fn zero(&self, offset: u64, len: u64) {
        zero(&self.part(offset, len));
    }

    /// Whether the addresses and lengths of a part are multiples of `align`.
    pub fn is_aligned(&self, offset: u64, len: u64, align: u64) -> bool {
        fit(&self.part(offset, len), align)
    }

    /// The pieces that hold `len` bytes from `offset` on.
    fn part(&self, offset: u64, len: u64) -> Vec<VolatileSlice<'a>> {
        let (mut start, end) = (0, offset.saturating_add(len));
        let mut found = Vec::new();
        for piece in &self.pieces {
            let here = len_u64(piece.len());
            let (from, to) = (start.max(offset), (start + here).min(end));
            if from < to {
                found.extend(piece.subslice(index(from - start), index(to - from)));
            }
            start += here;
        }
        found
    }
}

/// Fills guest memory from a node's files.
pub fn read(node: &Node, at: u64, to: &GuestPieces<'_>) -> Result<Direct> {
    transfer(node, at, to, runs::Direction::Read)
}

/// Stores guest memory into a node's files, where that needs no allocation.
pub fn write(node: &Node, at: u64, from: &GuestPieces<'_>) -> Result<Direct> {
    transfer(node, at, from, runs::Direction::Write)
}

fn transfer(
    node: &Node,
    at: u64,
    pieces: &GuestPieces<'_>,
    direction: runs::Direction,
) -> Result<Direct> {
    let moved = node.with_runs(at, pieces.len, direction, |runs| {
        let mut start = 0;
        let mut steps = Vec::with_capacity(runs.len());
        for run in runs {
            let len = match run {
                Run::File { len, .. } | Run::Zero { len } => *len,
            };
            let part = pieces.part(start, len);
            if !aligned(run, &part) {
                return Ok(Direct::Impossible);
            }
            steps.push((run, part));
            start += len;
        }
        for (run, part) in steps {
            match run {
                Run::Zero { .. } => zero(&part),
                Run::File { file, offset, .. } => each_call(file, *offset, &part, direction)
                    .map_err(|e| Error::io(&e).at_path(node.name()).at_offset(*offset))?,
            }
        }
        Ok(Direct::Done)
    })?;
    Ok(moved.unwrap_or(Direct::Impossible))
}

/// What `O_DIRECT` wants.
fn aligned(run: &Run<'_>, part: &[VolatileSlice<'_>]) -> bool {
    let Run::File { offset, align, .. } = run else { return true };
    let align = u64::from(*align);
    align <= 1 || offset.is_multiple_of(align) && fit(part, align)
}

fn fit(part: &[VolatileSlice<'_>], align: u64) -> bool {
    let fits = |n: u64| n.is_multiple_of(align);
    part.iter().all(|p| fits(len_u64(p.len())) && fits(len_u64(p.ptr_guard().as_ptr().addr())))
}

fn zero(part: &[VolatileSlice<'_>]) {
    const ZEROES: [u8; 4096] = [0; 4096];
    for piece in part {
        let mut done = 0;
        while done < piece.len() {
            let n = (piece.len() - done).min(ZEROES.len());
            if let Ok(here) = piece.subslice(done, n) {
                here.copy_from(&ZEROES[..n]);
            }
            done += n;
        }
    }
}

/// Repeats calls until all is moved; past the end of a file there are zeroes.
fn each_call(
    file: &File,
    offset: u64,
    part: &[VolatileSlice<'_>],
    direction: runs::Direction,
) -> std::io::Result<()> {
    let mut left: Vec<VolatileSlice<'_>> = part.to_vec();
    let mut at = offset;
    while !left.is_empty() {
        let n = match one_call(file, at, &left, direction) {
            Ok(n) => n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        if n == 0 {
            match direction {
                runs::Direction::Read => zero(&left),
                runs::Direction::Write => return Err(std::io::ErrorKind::WriteZero.into()),
            }
            return Ok(());
        }
        at += len_u64(n);
        let mut skip = n;
        let gone = left
            .iter()
            .take_while(|p| {
                let all = skip >= p.len();
                if all {
                    skip -= p.len();
                }
                all
            })
            .count();
        left.drain(..gone);
        if let (Some(first), true) = (left.first_mut(), skip > 0) {
            let rest = first.len() - skip;
            *first = first.subslice(skip, rest).map_err(std::io::Error::other)?;
        }
    }
    Ok(())
}

fn one_call(
    file: &File,
    offset: u64,
    pieces: &[VolatileSlice<'_>],
    direction: runs::Direction,
) -> std::io::Result<usize> {
    let pieces = &pieces[..pieces.len().min(MOST_PIECES)];
    let guards: Vec<_> = pieces.iter().map(VolatileSlice::ptr_guard_mut).collect();
    let list: Vec<libc::iovec> = guards
        .iter()
        .map(|g| libc::iovec { iov_base: g.as_ptr().cast(), iov_len: g.len() })
        .collect();
    let count = libc::c_int::try_from(list.len()).unwrap_or(0);
    let offset = libc::off_t::try_from(offset)
        .map_err(|_| std::io::Error::from_raw_os_error(libc::EFBIG))?;
    // SAFETY: every entry is a slice of mapped guest memory that its guard keeps mapped until after the
    // call; the kernel copies within these lengths. Guest memory may change at any time for all who use it,
    // and no Rust reference to it exists.
    let n = unsafe {
        match direction {
            runs::Direction::Read => libc::preadv(file.as_raw_fd(), list.as_ptr(), count, offset),
            runs::Direction::Write => libc::pwritev(file.as_raw_fd(), list.as_ptr(), count, offset),
        }
    };
    drop(guards);
    usize::try_from(n).map_err(|_| std::io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::{Backend, MemoryConfig, build};
    use imgcore::graph::open::{OpenOptions, OpenRequest, open};
    use vm_memory::Bytes;

    #[test]
    fn bytes_go_both_ways() {
        let memory = build(&MemoryConfig::simple(1 << 20, Backend::default())).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d");
        let content: Vec<u8> = (0..100_000u32).map(|n| n.to_le_bytes()[1]).collect();
        std::fs::write(&path, &content).unwrap();
        let request = OpenRequest::file(path.to_string_lossy()).with_driver(Some("raw"));
        let node = open(&request, &OpenOptions::default().writable()).unwrap();
        let spans = [
            (GuestAddress(0x1001), 3000u64),
            (GuestAddress(0x8000), 0),
            (GuestAddress(0x5000), 1096),
        ];
        memory.write_slice(&[9; 0x9000], GuestAddress(0)).unwrap();
        let pieces = GuestPieces::gather(&memory, spans.into_iter()).unwrap();
        assert_eq!(read(&node, 512, &pieces).unwrap(), Direct::Done);
        let mut got = vec![0; 4096];
        memory.read_slice(&mut got[..3000], GuestAddress(0x1001)).unwrap();
        memory.read_slice(&mut got[3000..], GuestAddress(0x5000)).unwrap();
        assert_eq!(got, content[512..4608]);
        assert_eq!(write(&node, 8192, &pieces).unwrap(), Direct::Done);
        assert_eq!(std::fs::read(&path).unwrap()[8192..12288], content[512..4608]);
        // The last sector reaches beyond the file.
        let tail = GuestPieces::gather(&memory, [(GuestAddress(0), 512)].into_iter()).unwrap();
        assert_eq!(read(&node, 100_352 - 512, &tail).unwrap(), Direct::Done);
        memory.read_slice(&mut got[..512], GuestAddress(0)).unwrap();
        assert_eq!(got[..160], content[99_840..]);
        assert_eq!(got[160..512], [0; 352]);
        let outside = [(GuestAddress((1 << 20) - 1), 2)];
        assert!(GuestPieces::gather(&memory, outside.into_iter()).is_none());
    }
}
