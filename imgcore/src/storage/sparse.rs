//! The kernel's calls for sparse files and shared blocks, each as a safe function on an open file.
//!
//! A call that the file system does not know answers [`Outcome::Unsupported`], so that callers can
//! fall back; every other failure is an error.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, copy_file_range, fallocate};
use nix::unistd::{Whence, lseek};

use super::{HostExtent, HostKind, ZeroMode};
use crate::{Error, Result};

/// Whether the kernel could do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done.
    Done,
    /// Not possible on this file; nothing was changed.
    Unsupported,
}

mod ioctls {
    //! Numbers from `linux/fs.h`.
    nix::ioctl_write_ptr!(ficlonerange, 0x94, 13, libc::file_clone_range);
    nix::ioctl_read!(blkgetsize64, 0x12, 114, u64);
    nix::ioctl_write_ptr_bad!(blkdiscard, nix::request_code_none!(0x12, 119), [u64; 2]);
    nix::ioctl_write_ptr_bad!(blkzeroout, nix::request_code_none!(0x12, 127), [u64; 2]);
    nix::ioctl_read_bad!(blksszget, nix::request_code_none!(0x12, 104), libc::c_int);
}

/// The mode of `fallocate` by which [`punch_hole`] gives space back.
pub const PUNCH_MODE: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
/// The mode of `fallocate` that makes zeroes and keeps both the space and the file's length.
pub const ZERO_MODE: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

fn off(value: u64) -> Result<libc::off_t> {
    libc::off_t::try_from(value).map_err(|_| Error::errno(libc::EFBIG))
}

/// Turns the errno values by which file systems say "I cannot do that" into `Unsupported`.
fn outcome(result: nix::Result<()>) -> Result<Outcome> {
    match result {
        Ok(()) => Ok(Outcome::Done),
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::ENOTTY | Errno::EINVAL | Errno::EPERM) => {
            Ok(Outcome::Unsupported)
        }
        Err(e) => Err(e.into()),
    }
}

fn allocate(file: &File, flags: FallocateFlags, offset: u64, len: u64) -> Result<Outcome> {
    if len == 0 {
        return Ok(Outcome::Done);
    }
    let (offset, len) = (off(offset)?, off(len)?);
    loop {
        match fallocate(file, flags, offset, len) {
            Err(Errno::EINTR) => {}
            other => return outcome(other),
        }
    }
}

/// Gives blocks back; the range then reads as zeroes.
pub fn punch_hole(file: &File, offset: u64, len: u64) -> Result<Outcome> {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    allocate(file, flags, offset, len)
}

/// Makes a range read as zeroes and keeps it reserved; grows the file if necessary.
pub fn zero_range(file: &File, offset: u64, len: u64) -> Result<Outcome> {
    allocate(file, FallocateFlags::FALLOC_FL_ZERO_RANGE, offset, len)
}

/// Reserves blocks for a range; grows the file if necessary.
pub fn reserve(file: &File, offset: u64, len: u64) -> Result<Outcome> {
    allocate(file, FallocateFlags::empty(), offset, len)
}

/// Reserves blocks for a range and leaves the file's length alone.
pub fn reserve_inside(file: &File, offset: u64, len: u64) -> Result<Outcome> {
    allocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, len)
}

/// Whether the file lies on ext2, ext3 or ext4, which share one number.
pub fn on_ext4(file: &File) -> bool {
    nix::sys::statfs::fstatfs(file)
        .is_ok_and(|s| s.filesystem_type() == nix::sys::statfs::EXT4_SUPER_MAGIC)
}

/// Whether data or a hole lies at `offset`, and how far (at most `len`). File systems that do not
/// know holes report data.
pub fn extent_at(file: &File, offset: u64, len: u64) -> Result<HostExtent> {
    let start = off(offset)?;
    let whole = HostExtent { kind: HostKind::Data, len };
    let clip = |kind, end: i64| {
        let end = u64::try_from(end).unwrap_or(0);
        HostExtent { kind, len: len.min(end.saturating_sub(offset)).max(1) }
    };
    match lseek(file.as_fd(), start, Whence::SeekData) {
        Ok(at) if at > start => Ok(clip(HostKind::Hole, at)),
        Ok(_) => match lseek(file.as_fd(), start, Whence::SeekHole) {
            Ok(end) if end > start => Ok(clip(HostKind::Data, end)),
            // The file changed between the two calls; data is the safe answer.
            Ok(_) | Err(_) => Ok(whole),
        },
        // No data from here to the end of the file.
        Err(Errno::ENXIO) => Ok(HostExtent { kind: HostKind::Hole, len }),
        Err(_) => Ok(whole),
    }
}

/// Shares blocks of `source` with `target` (`FICLONERANGE`).
pub fn reflink(
    source: &File,
    source_offset: u64,
    target: &File,
    offset: u64,
    len: u64,
) -> Result<Outcome> {
    let range = libc::file_clone_range {
        src_fd: i64::from(source.as_raw_fd()),
        src_offset: source_offset,
        src_length: len,
        dest_offset: offset,
    };
    // SAFETY: both descriptors are open for the duration of the call, and the kernel only reads
    // `range`.
    let result = unsafe { ioctls::ficlonerange(target.as_raw_fd(), &raw const range) };
    match result {
        Err(Errno::EXDEV | Errno::EISDIR | Errno::ETXTBSY | Errno::EBADF) => {
            Ok(Outcome::Unsupported)
        }
        other => outcome(other.map(drop)),
    }
}

/// Lets the kernel copy a range. `Unsupported` may leave a part of the target written.
pub fn kernel_copy(
    source: &File,
    source_offset: u64,
    target: &File,
    offset: u64,
    len: u64,
) -> Result<Outcome> {
    let (mut from, mut to) = (off(source_offset)?, off(offset)?);
    let mut left = crate::num::to_usize(len)?;
    while left > 0 {
        match copy_file_range(source, Some(&mut from), target, Some(&mut to), left) {
            Ok(0) => return Ok(Outcome::Unsupported),
            Ok(n) => left = left.saturating_sub(n),
            Err(Errno::EINTR) => {}
            Err(Errno::EXDEV | Errno::EBADF | Errno::ETXTBSY | Errno::EISDIR) => {
                return Ok(Outcome::Unsupported);
            }
            Err(e) => return outcome(Err(e)),
        }
    }
    Ok(Outcome::Done)
}

/// Length of a block device in bytes.
pub fn device_len(file: &File) -> Result<u64> {
    let mut len = 0u64;
    // SAFETY: the kernel writes one u64 to the pointer, which is valid and exclusive here.
    unsafe { ioctls::blkgetsize64(file.as_raw_fd(), &raw mut len) }?;
    Ok(len)
}

/// Logical sector size of a block device in bytes.
pub fn device_sector(file: &File) -> Result<u32> {
    let mut size: libc::c_int = 0;
    // SAFETY: the kernel writes one int to the pointer, which is valid and exclusive here.
    unsafe { ioctls::blksszget(file.as_raw_fd(), &raw mut size) }?;
    Ok(u32::try_from(size).unwrap_or(512).max(512))
}

/// Discards a range of a block device.
pub fn device_discard(file: &File, offset: u64, len: u64) -> Result<Outcome> {
    let range = [offset, len];
    // SAFETY: the kernel only reads the two numbers behind the pointer.
    outcome(unsafe { ioctls::blkdiscard(file.as_raw_fd(), &raw const range) }.map(drop))
}

/// Makes a range of a block device read as zeroes; both ends must lie on sectors. With `MayUnmap` by
/// unmapping where the device promises zeroes after that (the kernel knows), else by its command for
/// zeroes.
pub fn device_zero(file: &File, offset: u64, len: u64, mode: ZeroMode) -> Result<Outcome> {
    if mode == ZeroMode::MayUnmap && punch_hole(file, offset, len)? == Outcome::Done {
        return Ok(Outcome::Done);
    }
    let range = [offset, len];
    // SAFETY: the kernel only reads the two numbers behind the pointer.
    outcome(unsafe { ioctls::blkzeroout(file.as_raw_fd(), &raw const range) }.map(drop))
}

/// Begins to write out dirty pages of a file and does not wait. Advice: failing is no error.
pub fn begin_writeback(file: &File) {
    // SAFETY: a system call on an open descriptor without any pointers.
    let _ = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}
