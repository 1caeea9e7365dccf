//! Where bytes live: files, block devices, memory, exports of NBD servers, files of web
//! servers, files of hosts reached by ssh, images of Ceph clusters.
//!
//! A [`Storage`] is a flat run of bytes with positional, thread-safe access. Reading past the end
//! gives zeroes (QEMU's protocol layer does the same, and images end with short clusters because of
//! it); writing past the end grows a file.
//!
//! Nothing here knows a format. Durability: after [`Storage::flush`] returned, everything written
//! before it survives a crash; between two flushes the order of writes is undefined after a power
//! failure (and the order of the calls after the death of the process).

pub mod calls;
#[cfg(any(test, feature = "testing"))]
pub mod crash;
mod crypt;
pub mod culprit;
pub mod fat;
mod file;
pub mod filter;
pub mod http;
pub mod lock;
mod memory;
pub mod nbd;
#[cfg(feature = "rbd")]
pub mod rbd;
pub mod secret;
mod slice;
pub mod sparse;
#[cfg(feature = "ssh")]
pub mod ssh;
pub mod zero;

use crate::Result;

pub use crypt::CryptStorage;
pub use file::{AlignedBuf, CacheMode, FileOptions, FileStorage};
pub use http::HttpStorage;
pub use memory::MemoryStorage;
pub use nbd::NbdStorage;
#[cfg(feature = "rbd")]
pub use rbd::RbdStorage;
pub use slice::SliceStorage;
#[cfg(feature = "ssh")]
pub use ssh::SshStorage;

/// How the bytes of a new length come to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Preallocation {
    /// A hole.
    #[default]
    Off,
    /// The format's own tables only; for a storage the same as `Off`.
    Metadata,
    /// Reserved by the file system, not written.
    Falloc,
    /// Written with zeroes.
    Full,
}

/// What a range of a storage is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostKind {
    /// Bytes are stored.
    Data,
    /// Reads as zeroes, nothing stored.
    Hole,
}

/// A run of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostExtent {
    /// What it is.
    pub kind: HostKind,
    /// Its length in bytes, never zero and never more than was asked for.
    pub len: u64,
}

impl HostExtent {
    /// What lies at `offset` of a storage of `size` bytes that cannot tell its holes: data, and nothing past the end.
    pub fn without_holes(size: u64, offset: u64, len: u64) -> Self {
        match size.saturating_sub(offset) {
            0 => HostExtent { kind: HostKind::Hole, len },
            rest => HostExtent { kind: HostKind::Data, len: len.min(rest) },
        }
    }
}

/// How zeroes may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroMode {
    /// Space may be given back.
    MayUnmap,
    /// Space must stay reserved.
    KeepAllocated,
}

/// How bytes may get from one storage to another without passing through this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyKind {
    /// Share blocks (`FICLONERANGE`); offsets and length must be multiples of the block size.
    Reflink,
    /// Let the kernel copy (`copy_file_range`).
    Kernel,
}

/// Alignment and size wishes of a storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Every request must be a multiple of this many bytes, or is bounced (slow).
    pub request_alignment: u32,
    /// Preferred unit of discarding and zeroing.
    pub discard_alignment: u32,
    /// Preferred size of a transfer, 0 if there is none.
    pub opt_transfer: u32,
    /// True for a block device.
    pub block_device: bool,
}

/// A flat run of bytes.
pub trait Storage: Send + Sync + std::fmt::Debug {
    /// The name to show to people: usually the file's path.
    fn name(&self) -> &str;

    /// Length in bytes.
    fn len(&self) -> Result<u64>;

    /// True when there are no bytes.
    fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Fills `buf` from `offset`; what lies past the end is zero.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()>;

    /// Writes all of `buf` at `offset`, growing a file where necessary.
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()>;

    /// Makes a range read as zeroes, as cheaply as the storage can.
    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()>;

    /// Makes a range read as zeroes if that is faster than writing zero bytes there. `Ok(false)`: it is not, or this
    /// storage cannot tell; parts of the range may then be zero already.
    fn zero_quickly(&self, _offset: u64, _len: u64) -> Result<bool> {
        Ok(false)
    }

    /// Whether zeroes made by [`Storage::write_zeroes`] are a change of metadata, and not bytes that are written.
    fn zeroes_are_quick(&self, _mode: ZeroMode) -> bool {
        false
    }

    /// Gives the space of a range back; what it reads as afterwards is undefined. May do nothing.
    fn discard(&self, offset: u64, len: u64) -> Result<()>;

    /// Returns when everything written so far is on stable storage.
    fn flush(&self) -> Result<()>;

    /// Says that `len` bytes at `offset` are about to be written, where that makes the write cheaper.
    /// Advice: nothing that can be read changes, and failing is no error (the write will tell).
    fn expect_write(&self, _offset: u64, _len: u64) {}

    /// Lets the system begin to write out what was written so far, without waiting: a flush later on
    /// then has less to wait for. May do nothing.
    fn begin_writeback(&self) {}

    /// Lets the page cache forget what is on disk already: the next read comes from there. Advice.
    fn forget_cached(&self) {}

    /// Sets the length. Growth reads as zeroes and is reserved as `how` says.
    fn set_len(&self, len: u64, how: Preallocation) -> Result<()>;

    /// What lies at `offset`, at most `len` bytes of it. Past the end: a hole.
    fn status(&self, offset: u64, len: u64) -> Result<HostExtent>;

    /// Bytes of disk used, where that can be known.
    fn allocated(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    /// Alignment and size wishes.
    fn limits(&self) -> Limits;

    /// True if writing is refused.
    fn read_only(&self) -> bool;

    /// Moves `len` bytes from `source` here without reading them into this process. `Ok(false)`:
    /// not possible for this pair, nothing was changed that is not also right to overwrite.
    fn copy_from(
        &self,
        _source: &dyn Storage,
        _source_offset: u64,
        _offset: u64,
        _len: u64,
        _kind: CopyKind,
    ) -> Result<bool> {
        Ok(false)
    }

    /// The open file behind this storage, if it is one from offset 0 on.
    fn as_file(&self) -> Option<&std::fs::File> {
        None
    }

    /// The one call on an open file that does what is wanted, where there is one.
    fn as_call(&self, _want: calls::Want) -> Option<calls::Call<'_>> {
        None
    }

    /// The network protocol behind this storage, by the name of QEMU's driver.
    fn protocol(&self) -> Option<&'static str> {
        None
    }

    /// What tells these bytes from others of the same name, for what is no file: size and time of change as the
    /// other side tells them.
    fn identity(&self) -> Option<String> {
        None
    }

    /// What this storage is, where it stands between an image and another storage to change what happens.
    fn filter(&self) -> Option<filter::FilterView<'_>> {
        None
    }

    /// The storage that this one is a window on, and where in it this one begins.
    fn whole(&self) -> Option<(&dyn Storage, u64)> {
        None
    }

    /// Whether a fresh growth of this storage surely reads as zeroes (files: yes; devices: no).
    fn zero_init(&self) -> bool {
        true
    }

    /// Takes the locks of a writer (or gives them back). Storages without locks do nothing.
    fn set_sharing(&self, _write: bool) -> Result<()> {
        Ok(())
    }
}

/// Reserves space for a range without changing what it reads as; only for ranges that hold no data
/// (`Full` writes zeroes).
pub fn reserve(storage: &dyn Storage, offset: u64, len: u64, how: Preallocation) -> Result<()> {
    match how {
        Preallocation::Off | Preallocation::Metadata => Ok(()),
        Preallocation::Falloc => storage.write_zeroes(offset, len, ZeroMode::KeepAllocated),
        Preallocation::Full => {
            let zeroes = vec![0u8; crate::num::small(len.min(1 << 20))];
            let mut done = 0;
            while done < len {
                let n = crate::num::small((len - done).min(crate::num::len_u64(zeroes.len())));
                storage.write_at(offset + done, &zeroes[..n])?;
                done += crate::num::len_u64(n);
            }
            Ok(())
        }
    }
}
