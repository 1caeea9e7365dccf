//! What a storage would ask of the kernel, for callers that ask by themselves.
//!
//! A virtual machine monitor hands requests to the kernel in batches (io_uring) and is told later that they
//! are done. [`Storage::as_call`](super::Storage::as_call) says which single call on which open file is all
//! that a flush, a discard or a zeroing comes to. Where it is more than that (another storage, writing zeroes
//! by hand, growing a file) there is no such call, and the storage's own method is used.

use std::fs::File;

use super::ZeroMode;

/// What the caller wants done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// [`Storage::flush`](super::Storage::flush).
    Flush,
    /// [`Storage::discard`](super::Storage::discard).
    Discard {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// [`Storage::write_zeroes`](super::Storage::write_zeroes).
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// What becomes of the space.
        mode: ZeroMode,
    },
}

/// The call that does it.
#[derive(Clone, Copy, Debug)]
pub enum Call<'a> {
    /// None is needed.
    Nothing,
    /// `fdatasync`. Its error must reach whoever flushes: the kernel reports a failed write-back once.
    Sync(&'a File),
    /// `fallocate` without a change of the file's length. Where the file system cannot do it
    /// (`EOPNOTSUPP`), the storage's own method finds another way.
    Fallocate {
        /// The file.
        file: &'a File,
        /// `FALLOC_FL_*`.
        mode: i32,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
}
