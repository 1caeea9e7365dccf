//! Files and block devices.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Mutex, OnceLock};

use super::calls::{Call, Want};
use super::lock::{FileLock, LockSet};
use super::sparse::{self, Outcome};
use super::{CopyKind, HostExtent, HostKind, Limits, Preallocation, Storage, ZeroMode};
use crate::num::{len_u64, round_down, round_up, small};
use crate::{Error, ErrorKind, Result};

/// QEMU's cache modes, as far as they change how a file is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum CacheMode {
    /// The host's page cache; flushes are honoured.
    #[default]
    Writeback,
    /// As writeback, and every write is followed by a flush.
    Writethrough,
    /// `O_DIRECT`; flushes are honoured.
    None,
    /// `O_DIRECT`, and every write is followed by a flush.
    Directsync,
    /// The page cache; flushes are ignored.
    Unsafe,
}

impl CacheMode {
    /// From QEMU's name of it.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "writeback" => CacheMode::Writeback,
            "writethrough" => CacheMode::Writethrough,
            "none" | "off" => CacheMode::None,
            "directsync" => CacheMode::Directsync,
            "unsafe" => CacheMode::Unsafe,
            _ => return None,
        })
    }

    /// Whether the page cache is bypassed.
    pub fn direct(self) -> bool {
        matches!(self, CacheMode::None | CacheMode::Directsync)
    }

    /// Whether every write is followed by a flush.
    pub fn writethrough(self) -> bool {
        matches!(self, CacheMode::Writethrough | CacheMode::Directsync)
    }
}

/// How to open a file.
#[derive(Clone, Copy, Debug, Default)]
pub struct FileOptions {
    /// For writing too.
    pub writable: bool,
    /// Cache mode.
    pub cache: CacheMode,
}

/// A regular file or block device.
#[derive(Debug)]
pub struct FileStorage {
    file: File,
    name: String,
    options: FileOptions,
    device: bool,
    align: u32,
    /// Serialises read-modify-write of unaligned requests under `O_DIRECT`.
    bounce: Mutex<()>,
    /// Whether reserving blocks makes writes cheaper; found out at the first large write.
    reserves: OnceLock<bool>,
    /// Whether the file system makes holes; found out when somebody asks.
    punches: OnceLock<bool>,
    /// QEMU's locks, once taken.
    lock: Mutex<Option<FileLock>>,
    /// The error number of the first flush that failed, when the page cache may have lost what it was to store.
    lost: OnceLock<i32>,
}

/// Alignment of `O_DIRECT` buffers in memory; a page suits every device.
const MEMORY_ALIGN: usize = 4096;
/// Shortest write that is worth a call to reserve its blocks.
const RESERVE_MIN: u64 = 256 << 10;
/// Largest piece of a bounced or zero-filled transfer.
const PIECE: usize = 1 << 20;

impl FileStorage {
    /// Opens an existing file or device.
    pub fn open(path: &Path, options: FileOptions) -> Result<Self> {
        let name = path.to_string_lossy().into_owned();
        if name.is_empty() {
            return Err(Error::invalid("The 'file' block driver requires a file name"));
        }
        let mut how = OpenOptions::new();
        how.read(true).write(options.writable);
        // O_NONBLOCK: opening a FIFO must not hang; it has no effect on files and disks.
        let mut flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        if options.cache.direct() {
            flags |= libc::O_DIRECT;
        }
        let file = how.custom_flags(flags).open(path).map_err(|e| {
            let direct = options.cache.direct() && e.raw_os_error() == Some(libc::EINVAL);
            let why =
                if direct { " with O_DIRECT, which its file system may not have" } else { "" };
            Error::io(&e).context(format!("Could not open '{name}'{why}")).at_path(&name)
        })?;
        Self::from_file(file, name, options)
    }

    /// Creates a file (or empties an existing one) and opens it for writing.
    pub fn create(path: &Path, options: FileOptions) -> Result<Self> {
        let name = path.to_string_lossy().into_owned();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK)
            .open(path)
            .map_err(|e| {
                Error::io(&e).context(format!("Could not create '{name}'")).at_path(&name)
            })?;
        let storage = Self::from_file(file, name, FileOptions { writable: true, ..options })?;
        if !storage.device && storage.len()? > 0 {
            storage.file.set_len(0).map_err(|e| storage.error(&e, 0))?;
        }
        Ok(storage)
    }

    /// Wraps an open file.
    pub fn from_file(file: File, name: String, options: FileOptions) -> Result<Self> {
        let meta = file.metadata().map_err(|e| Error::io(&e).at_path(&name))?;
        let kind = meta.file_type();
        let device = kind.is_block_device();
        if !device && !kind.is_file() && !kind.is_char_device() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("'file' driver requires '{name}' to be a regular file"),
            )
            .at_path(&name));
        }
        let align = match (options.cache.direct(), device) {
            (true, true) => sparse::device_sector(&file)?,
            // The block size of the file system is always a valid alignment for direct I/O.
            (true, false) => u32::try_from(meta.blksize()).unwrap_or(4096).clamp(512, 65536),
            (false, _) => 1,
        };
        let (bounce, lock) = (Mutex::new(()), Mutex::new(None));
        let reserves = OnceLock::new();
        Ok(FileStorage {
            file,
            name,
            options,
            device,
            align,
            bounce,
            reserves,
            punches: OnceLock::new(),
            lock,
            lost: OnceLock::new(),
        })
    }

    /// Takes QEMU's locks on the file, or goes over to another set of them. `shown` is the image as
    /// the user called it.
    pub fn lock(&self, set: LockSet, shown: &str) -> Result<()> {
        let mut held = self.lock.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match held.as_mut() {
            Some(lock) => lock.change(set),
            None => FileLock::acquire(&self.file, set).map(|lock| *held = Some(lock)),
        }
        .map_err(|e| e.into_error(shown))
    }

    fn error(&self, err: &std::io::Error, offset: u64) -> Error {
        Error::io(err).at_path(&self.name).at_offset(offset)
    }

    /// Reads until the buffer is full or the file ends, and zero-fills the rest.
    fn read_all(&self, mut offset: u64, mut buf: &mut [u8]) -> Result<()> {
        let start = offset;
        while !buf.is_empty() {
            match self.file.read_at(buf, offset) {
                Ok(0) => {
                    buf.fill(0);
                    break;
                }
                Ok(n) => {
                    offset += len_u64(n);
                    buf = &mut buf[n..];
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.error(&e, start)),
            }
        }
        Ok(())
    }

    fn write_all(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.file.write_all_at(buf, offset).map_err(|e| self.error(&e, offset))
    }

    fn aligned(&self, offset: u64, buf: &[u8]) -> bool {
        let align = u64::from(self.align);
        self.align == 1
            || (offset.is_multiple_of(align)
                && len_u64(buf.len()).is_multiple_of(align)
                && buf.as_ptr().addr().is_multiple_of(MEMORY_ALIGN.min(small(align))))
    }

    /// Reads through an aligned buffer.
    fn read_bounced(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let align = u64::from(self.align);
        let mut bounce = AlignedBuf::new(PIECE + 2 * self.align as usize);
        let mut done = 0;
        while done < buf.len() {
            let at = offset + len_u64(done);
            let n = PIECE.min(buf.len() - done);
            let start = round_down(at, align);
            let end = round_up(at + len_u64(n), align);
            let area = &mut bounce.bytes()[..small(end - start)];
            self.read_all(start, area)?;
            let skip = small(at - start);
            buf[done..done + n].copy_from_slice(&area[skip..skip + n]);
            done += n;
        }
        Ok(())
    }

    /// Writes through an aligned buffer, reading the edges first.
    fn write_bounced(&self, offset: u64, buf: &[u8]) -> Result<()> {
        let _turn = self.bounce.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let align = u64::from(self.align);
        let mut bounce = AlignedBuf::new(PIECE + 2 * self.align as usize);
        let old_len = self.len()?;
        let mut done = 0;
        while done < buf.len() {
            let at = offset + len_u64(done);
            let n = PIECE.min(buf.len() - done);
            let start = round_down(at, align);
            let end = round_up(at + len_u64(n), align);
            let area = &mut bounce.bytes()[..small(end - start)];
            let skip = small(at - start);
            if skip != 0 || end != at + len_u64(n) {
                self.read_all(start, area)?;
            }
            area[skip..skip + n].copy_from_slice(&buf[done..done + n]);
            self.write_all(start, area)?;
            done += n;
        }
        let end = offset + len_u64(buf.len());
        let padded = round_up(end, align);
        if !self.device && padded > end && padded > old_len {
            // The padding must not count as content.
            let keep = end.max(old_len);
            self.file.set_len(keep).map_err(|e| self.error(&e, keep))?;
        }
        Ok(())
    }

    /// Zeroes by writing, the last resort.
    fn write_zero_bytes(&self, offset: u64, len: u64) -> Result<()> {
        let mut buf = AlignedBuf::new(small(len).min(PIECE));
        let mut done = 0;
        while done < len {
            let n = small((len - done).min(len_u64(PIECE)));
            self.write_at(offset + done, &buf.bytes()[..n])?;
            done += len_u64(n);
        }
        Ok(())
    }

    /// Zeroes a range of a block device: whole sectors by the device, what sticks out by writing.
    fn zero_device(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        let at = |e: Error| e.at_path(&self.name).at_offset(offset);
        let sector = u64::from(sparse::device_sector(&self.file).map_err(at)?);
        let end = offset.checked_add(len).ok_or_else(|| at(Error::errno(libc::EFBIG)))?;
        let (first, last) = (round_up(offset, sector).min(end), round_down(end, sector));
        if last <= first {
            return self.write_zero_bytes(offset, len);
        }
        if sparse::device_zero(&self.file, first, last - first, mode).map_err(at)? == Outcome::Done
        {
            self.after_write()?;
        } else {
            self.write_zero_bytes(first, last - first)?;
        }
        self.write_zero_bytes(offset, first - offset)?;
        self.write_zero_bytes(last, end - last)
    }

    /// Whoever opens the file for direct I/O finds out the alignment by reading its first block; on some
    /// network file systems a hole there would answer anything. QEMU allocates it for the same reason.
    fn allocate_first_block(&self, len: u64) -> Result<()> {
        match len {
            0 => Ok(()),
            1..4096 => self.write_zero_bytes(0, len.min(512)),
            _ => self.write_zero_bytes(0, 4096),
        }
    }

    fn after_write(&self) -> Result<()> {
        if self.options.cache.writethrough() { self.sync() } else { Ok(()) }
    }

    /// Makes durable what was written. Once that has failed it fails for good: the kernel takes pages that it could not
    /// write for clean and tells of them once, so that a second call would hide what is lost. `O_DIRECT` has no such
    /// pages.
    fn sync(&self) -> Result<()> {
        match self.lost.get() {
            Some(errno) => Err(self.error(&std::io::Error::from_raw_os_error(*errno), 0).context(
                "an earlier flush has failed, and what was written before it may be lost",
            )),
            None => self.settle_sync(self.file.sync_data()),
        }
    }

    fn settle_sync(&self, done: std::io::Result<()>) -> Result<()> {
        done.map_err(|e| {
            let errno = e.raw_os_error().filter(|n| *n != libc::EINTR);
            if let (Some(errno), false) = (errno, self.options.cache.direct()) {
                self.lost.get_or_init(|| errno);
            }
            self.error(&e, 0)
        })
    }
}

impl Storage for FileStorage {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> Result<u64> {
        if self.device {
            return sparse::device_len(&self.file).map_err(|e| e.at_path(&self.name));
        }
        Ok(self.file.metadata().map_err(|e| self.error(&e, 0))?.len())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        if self.aligned(offset, buf) {
            self.read_all(offset, buf)
        } else {
            self.read_bounced(offset, buf)
        }
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        if self.aligned(offset, buf) {
            self.write_all(offset, buf)?;
        } else {
            self.write_bounced(offset, buf)?;
        }
        self.after_write()
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        let at = |e: Error| e.at_path(&self.name).at_offset(offset);
        if self.device {
            return self.zero_device(offset, len, mode);
        }
        let end = offset.checked_add(len).ok_or_else(|| at(Error::errno(libc::EFBIG)))?;
        let old = self.len()?;
        if mode == ZeroMode::MayUnmap {
            // Beyond the end a hole is made by growing alone.
            let inside = old.min(end).saturating_sub(offset);
            if sparse::punch_hole(&self.file, offset, inside).map_err(at)? == Outcome::Done {
                if end > old {
                    self.file.set_len(end).map_err(|e| self.error(&e, end))?;
                }
                return self.after_write();
            }
        }
        if sparse::zero_range(&self.file, offset, len).map_err(at)? == Outcome::Done {
            return self.after_write();
        }
        self.write_zero_bytes(offset, len)
    }

    fn zeroes_are_quick(&self, mode: ZeroMode) -> bool {
        // Devices do not tell before they are asked to, and keeping space takes a call that fewer file systems have.
        if self.device || mode == ZeroMode::KeepAllocated || !self.options.writable {
            return false;
        }
        *self.punches.get_or_init(|| {
            // A hole behind the end changes nothing.
            let end = self.len().map(|len| round_up(len, 1 << 20));
            let tried = end.and_then(|end| sparse::punch_hole(&self.file, end, 1 << 20));
            tried.is_ok_and(|outcome| outcome == Outcome::Done)
        })
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let outcome = if self.device {
            sparse::device_discard(&self.file, offset, len)
        } else {
            sparse::punch_hole(&self.file, offset, len.min(self.len()?.saturating_sub(offset)))
        };
        // Discarding is advice: not being able to is no error.
        outcome.map(drop).map_err(|e| e.at_path(&self.name).at_offset(offset))
    }

    fn flush(&self) -> Result<()> {
        if self.options.cache == CacheMode::Unsafe || !self.options.writable {
            return Ok(());
        }
        self.sync()
    }

    /// Reserves the blocks on ext4. Without that it keeps a book of every single block until it is
    /// written out, which costs a quarter of a buffered copy; other file systems keep books by extents
    /// (or, as tmpfs, would fill the blocks with zeroes first).
    fn expect_write(&self, offset: u64, len: u64) {
        if len < RESERVE_MIN || self.device || self.options.cache.direct() {
            return;
        }
        if *self.reserves.get_or_init(|| sparse::on_ext4(&self.file)) {
            let _ = sparse::reserve_inside(&self.file, offset, len);
        }
    }

    fn begin_writeback(&self) {
        sparse::begin_writeback(&self.file);
    }

    fn forget_cached(&self) {
        use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
        let _ = posix_fadvise(&self.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    }

    fn set_len(&self, len: u64, how: Preallocation) -> Result<()> {
        let old = self.len()?;
        if len == old {
            return Ok(());
        }
        if self.device {
            if len <= old {
                return Ok(());
            }
            return Err(Error::invalid("Cannot grow device files").at_path(&self.name));
        }
        let at = |e: Error| e.at_path(&self.name).at_offset(len);
        if len <= old || matches!(how, Preallocation::Off | Preallocation::Metadata) {
            self.file.set_len(len).map_err(|e| self.error(&e, len))?;
            return if old == 0 { self.allocate_first_block(len) } else { Ok(()) };
        }
        if how == Preallocation::Falloc {
            return match sparse::reserve(&self.file, old, len - old).map_err(at)? {
                Outcome::Done if old == 0 => self.allocate_first_block(len),
                Outcome::Done => Ok(()),
                Outcome::Unsupported => Err(at(Error::errno(libc::EOPNOTSUPP)
                    .context("Could not preallocate data for the new file"))),
            };
        }
        let grown = self.write_zero_bytes(old, len - old).and_then(|()| self.sync());
        if grown.is_err() {
            // Leave the file as it was; the first error is the one that matters.
            let _ = self.file.set_len(old);
        }
        grown
    }

    fn status(&self, offset: u64, len: u64) -> Result<HostExtent> {
        if self.device {
            return Ok(HostExtent { kind: HostKind::Data, len });
        }
        sparse::extent_at(&self.file, offset, len)
    }

    fn allocated(&self) -> Result<Option<u64>> {
        let meta = self.file.metadata().map_err(|e| self.error(&e, 0))?;
        Ok(Some(meta.blocks().saturating_mul(512)))
    }

    fn limits(&self) -> Limits {
        Limits {
            request_alignment: self.align,
            discard_alignment: if self.device { 512 } else { 4096 },
            opt_transfer: 0,
            block_device: self.device,
        }
    }

    fn read_only(&self) -> bool {
        !self.options.writable
    }

    fn copy_from(
        &self,
        source: &dyn Storage,
        source_offset: u64,
        offset: u64,
        len: u64,
        kind: CopyKind,
    ) -> Result<bool> {
        let Some(from) = source.as_file() else { return Ok(false) };
        let outcome = match kind {
            CopyKind::Reflink => sparse::reflink(from, source_offset, &self.file, offset, len),
            CopyKind::Kernel => sparse::kernel_copy(from, source_offset, &self.file, offset, len),
        };
        Ok(outcome.map_err(|e| e.at_path(&self.name).at_offset(offset))? == Outcome::Done)
    }

    fn as_file(&self) -> Option<&File> {
        Some(&self.file)
    }

    fn as_call(&self, want: Want) -> Option<Call<'_>> {
        let synced = self.options.cache.writethrough();
        // Devices are zeroed and discarded by ioctls; a file's length is looked at for each request.
        let inside = |offset: u64, len: u64| {
            let end = offset.checked_add(len)?;
            (!self.device && len > 0 && end <= self.len().ok()?).then_some(())
        };
        match want {
            Want::Flush if self.options.cache == CacheMode::Unsafe || !self.options.writable => {
                Some(Call::Nothing)
            }
            Want::Flush => Some(Call::Sync(&self.file)),
            Want::Discard { offset, len } => {
                inside(offset, len)?;
                let mode = sparse::PUNCH_MODE;
                Some(Call::Fallocate { file: &self.file, mode, offset, len })
            }
            Want::WriteZeroes { offset, len, mode } if !synced => {
                inside(offset, len)?;
                let mode = match mode {
                    ZeroMode::MayUnmap => sparse::PUNCH_MODE,
                    ZeroMode::KeepAllocated => sparse::ZERO_MODE,
                };
                Some(Call::Fallocate { file: &self.file, mode, offset, len })
            }
            Want::WriteZeroes { .. } => None,
        }
    }

    fn zero_init(&self) -> bool {
        !self.device
    }
}

/// A zeroed buffer that starts on a page boundary.
pub struct AlignedBuf {
    raw: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuf {
    /// A buffer of `len` zero bytes.
    pub fn new(len: usize) -> Self {
        let raw = vec![0u8; len + MEMORY_ALIGN];
        let start = raw.as_ptr().align_offset(MEMORY_ALIGN).min(MEMORY_ALIGN);
        AlignedBuf { raw, start, len }
    }

    /// The bytes.
    pub fn bytes(&mut self) -> &mut [u8] {
        &mut self.raw[self.start..self.start + self.len]
    }
}

#[cfg(test)]
#[path = "file_test.rs"]
mod tests;
