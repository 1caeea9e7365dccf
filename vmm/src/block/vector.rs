//! Moving bytes between open files and guest memory without a buffer.
//!
//! Guest memory is never borrowed as Rust memory: the addresses go to the kernel, which copies. The guest
//! may change the bytes meanwhile; it then gets, or stores, some mixture of its own making.

#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};

use imgcore::graph::Node;
use imgcore::graph::runs::{self, Run};
use smallvec::SmallVec;
use vm_memory::guest_memory::GuestMemoryBackend;
use vm_memory::{GuestAddress, GuestMemoryRegion, MemoryRegionAddress, VolatileSlice};

use super::Direct;
use crate::mem::{Memory, Region};
use crate::num::{index, len_u64};
use crate::{Error, Result};

/// Pieces of guest memory, checked to lie inside it, that make up one request's data.
#[derive(Debug)]
pub struct GuestPieces<'a> {
    memory: &'a Memory,
    pieces: Pieces<'a>,
    len: u64,
}

/// A few pieces are kept without an allocation.
type Pieces<'a> = SmallVec<[VolatileSlice<'a>; 4]>;
/// As the kernel wants them.
type IoList = SmallVec<[libc::iovec; 4]>;

/// Longest list that the kernel takes in one call (`IOV_MAX`).
const MOST_PIECES: usize = 1024;

impl<'a> GuestPieces<'a> {
    /// From addresses and lengths. `None` when some of it is not guest memory.
    pub fn gather(
        memory: &'a Memory,
        spans: impl Iterator<Item = (GuestAddress, u64)>,
    ) -> Option<Self> {
        let most = spans.size_hint().1.unwrap_or(0);
        GuestPieces::gather_many(memory, spans, most)
    }

    /// The same, for about `most` of them.
    pub fn gather_many(
        memory: &'a Memory,
        spans: impl Iterator<Item = (GuestAddress, u64)>,
        most: usize,
    ) -> Option<Self> {
        let (mut pieces, mut len) = (Pieces::new(), 0u64);
        pieces.reserve(most);
        // Nearly all of them lie in the same region.
        let mut region: Option<&'a Region> = None;
        for (at, n) in spans {
            len = len.checked_add(n)?;
            let inside = region.and_then(|r| {
                let start = at.0.checked_sub(r.start_addr().0)?;
                r.get_slice(MemoryRegionAddress(start), index(n)).ok()
            });
            if let Some(piece) = inside {
                pieces.push(piece);
                continue;
            }
            for piece in GuestMemoryBackend::get_slices(memory, at, index(n)) {
                pieces.push(piece.ok()?);
            }
            region = memory.find_region(at);
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
    pub(super) fn addresses(&self, memory: &Memory, offset: u64, len: u64) -> Option<IoList> {
        let part = self.part(offset, len);
        if !std::ptr::eq(memory, self.memory) || part.len() > MOST_PIECES {
            return None;
        }
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
    fn part(&self, offset: u64, len: u64) -> Pieces<'a> {
        if offset == 0 && len == self.len {
            return self.pieces.clone();
        }
        let (mut start, end) = (0, offset.saturating_add(len));
        let mut found = Pieces::new();
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

/// Whether a call may wait for a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// It may.
    Any,
    /// It fails instead.
    None,
}

/// Fills guest memory from a node's files.
pub fn read(node: &Node, at: u64, to: &GuestPieces<'_>, patience: Patience) -> Result<Direct> {
    transfer(node, at, to, runs::Direction::Read, patience)
}

/// Stores guest memory into a node's files, where that needs no allocation.
pub fn write(node: &Node, at: u64, from: &GuestPieces<'_>) -> Result<Direct> {
    transfer(node, at, from, runs::Direction::Write, Patience::Any)
}

fn transfer(
    node: &Node,
    at: u64,
    pieces: &GuestPieces<'_>,
    direction: runs::Direction,
    patience: Patience,
) -> Result<Direct> {
    let moved = node.with_runs(at, pieces.len, direction, |runs| {
        let failed =
            |offset| move |e: std::io::Error| Error::io(&e).at_path(node.name()).at_offset(offset);
        // Most requests are one run.
        if let [run @ Run::File { file, offset, .. }] = runs {
            if !aligned(run, &pieces.pieces) {
                return Ok(Direct::Impossible);
            }
            return match move_all(file, *offset, &pieces.pieces, (direction, patience)) {
                Err(e) if patience == Patience::None && not_ready(&e) => Ok(Direct::Impossible),
                moved => moved.map(|()| Direct::Done).map_err(failed(*offset)),
            };
        }
        if patience == Patience::None {
            return Ok(Direct::Impossible);
        }
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
                Run::File { file, offset, .. } => {
                    move_all(file, *offset, &part, (direction, patience))
                        .map_err(failed(*offset))?;
                }
            }
        }
        Ok(Direct::Done)
    })?;
    Ok(moved.unwrap_or(Direct::Impossible))
}

/// What the kernel says instead of waiting, or where it cannot say.
fn not_ready(e: &std::io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EOPNOTSUPP))
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

/// Which way, and whether it may take time.
type Manner = (runs::Direction, Patience);

/// Repeats calls until all is moved; past the end of a file there are zeroes.
fn move_all(
    file: &File,
    offset: u64,
    part: &[VolatileSlice<'_>],
    manner: Manner,
) -> std::io::Result<()> {
    let (mut at, mut moved) = (offset, 0);
    // Pieces that are done with, and bytes of the next one.
    let (mut gone, mut skip) = (0, 0);
    while gone < part.len() {
        let n = match one_call(file, at, &part[gone..], skip, manner) {
            Ok(n) => n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            // What was moved already is moved again by those who wait.
            Err(e) => return Err(e),
        };
        if n == 0 && manner.0 == runs::Direction::Write {
            return Err(std::io::ErrorKind::WriteZero.into());
        }
        if n == 0 {
            if let Ok(rest) = part[gone].offset(skip) {
                zero(&[rest]);
            }
            zero(&part[gone + 1..]);
            return Ok(());
        }
        at += len_u64(n);
        moved += n;
        skip += n;
        while gone < part.len() && skip >= part[gone].len() {
            skip -= part[gone].len();
            gone += 1;
        }
    }
    debug_assert_eq!(moved, part.iter().map(VolatileSlice::len).sum::<usize>());
    Ok(())
}

/// One call for pieces, without the first `skip` bytes of the first of them.
fn one_call(
    file: &File,
    offset: u64,
    pieces: &[VolatileSlice<'_>],
    skip: usize,
    (direction, patience): Manner,
) -> std::io::Result<usize> {
    let pieces = &pieces[..pieces.len().min(MOST_PIECES)];
    let mut list: IoList = pieces.iter().map(entry).collect();
    if let (Some(first), true) = (list.first_mut(), skip > 0) {
        // SAFETY: `skip` is less than the length of this piece.
        first.iov_base = unsafe { first.iov_base.cast::<u8>().add(skip) }.cast();
        first.iov_len -= skip;
    }
    let count = libc::c_int::try_from(list.len()).unwrap_or(0);
    let offset = libc::off_t::try_from(offset)
        .map_err(|_| std::io::Error::from_raw_os_error(libc::EFBIG))?;
    let fd = file.as_raw_fd();
    // SAFETY: every entry is a slice of mapped guest memory, and the slices that it comes from keep that
    // memory mapped until after the call; the kernel copies within these lengths. Guest memory may change at
    // any time for all who use it, and no Rust reference to it exists.
    let n = unsafe {
        match (direction, patience) {
            (runs::Direction::Read, Patience::Any) => {
                libc::preadv(fd, list.as_ptr(), count, offset)
            }
            (runs::Direction::Read, Patience::None) => {
                libc::preadv2(fd, list.as_ptr(), count, offset, libc::RWF_NOWAIT)
            }
            (runs::Direction::Write, _) => libc::pwritev(fd, list.as_ptr(), count, offset),
        }
    };
    usize::try_from(n).map_err(|_| std::io::Error::last_os_error())
}

/// The address and length of a piece. The mappings of [`Memory`] are there for as long as the slice's borrow,
/// whether its guard is kept or not (guards are for memory of Xen, which is mapped for each access).
fn entry(piece: &VolatileSlice<'_>) -> libc::iovec {
    libc::iovec { iov_base: piece.ptr_guard_mut().as_ptr().cast(), iov_len: piece.len() }
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
        assert_eq!(read(&node, 512, &pieces, Patience::Any).unwrap(), Direct::Done);
        let mut got = vec![0; 4096];
        memory.read_slice(&mut got[..3000], GuestAddress(0x1001)).unwrap();
        memory.read_slice(&mut got[3000..], GuestAddress(0x5000)).unwrap();
        assert_eq!(got, content[512..4608]);
        assert_eq!(write(&node, 8192, &pieces).unwrap(), Direct::Done);
        assert_eq!(std::fs::read(&path).unwrap()[8192..12288], content[512..4608]);
        // The last sector reaches beyond the file.
        let tail = GuestPieces::gather(&memory, [(GuestAddress(0), 512)].into_iter()).unwrap();
        assert_eq!(read(&node, 100_352 - 512, &tail, Patience::Any).unwrap(), Direct::Done);
        memory.read_slice(&mut got[..512], GuestAddress(0)).unwrap();
        assert_eq!(got[..160], content[99_840..]);
        assert_eq!(got[160..512], [0; 352]);
        let outside = [(GuestAddress((1 << 20) - 1), 2)];
        assert!(GuestPieces::gather(&memory, outside.into_iter()).is_none());
    }
}
