//! An image of a Ceph cluster as a storage.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use super::library::{Cluster, Image, Keep, Mode, Pool};
use crate::num::{len_u64, round_down, round_up, small};
use crate::opts::rbd::RbdTarget;
use crate::storage::{
    CacheMode, FileOptions, HostExtent, HostKind, Limits, Preallocation, Storage, ZeroMode,
};
use crate::{Error, ErrorKind, Result};

/// Seconds after which a cluster that does not answer is given up.
pub const CONNECT: u64 = 30;
/// Most bytes of one request: the library cuts them into objects and has these in flight together.
const PIECE: usize = 64 << 20;
/// `RBD_FEATURE_FAST_DIFF`: the objects that exist are known without asking for each.
const FAST_DIFF: u64 = 1 << 4;
/// `RBD_FLAG_OBJECT_MAP_INVALID`, `RBD_FLAG_FAST_DIFF_INVALID`.
const INVALID: u64 = 3;

/// An image of a Ceph cluster.
///
/// Any number of threads may use it at the same time.
pub struct RbdStorage {
    /// `None` when it was closed to be removed.
    image: Mutex<Option<Arc<Image>>>,
    pool: Arc<Pool>,
    /// The names of a new image that has not got its own yet: until then, and then.
    making: Mutex<Option<(String, String)>>,
    name: String,
    options: FileOptions,
    /// Held for reading by writes and for writing by what changes it.
    size: RwLock<u64>,
    object: u64,
    /// Whether holes are known.
    mapped: bool,
}

impl std::fmt::Debug for RbdStorage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RbdStorage").field("name", &self.name).finish_non_exhaustive()
    }
}

fn connect(target: &RbdTarget) -> Result<Cluster> {
    let cluster = Cluster::new(target.user.as_deref())?;
    let seconds = CONNECT.to_string();
    // Set before the configuration is read, which may say otherwise. A library prints nothing.
    for (key, value) in [
        ("client_mount_timeout", seconds.as_str()),
        ("rados_mon_op_timeout", seconds.as_str()),
        ("log_to_stderr", "false"),
        ("err_to_stderr", "false"),
    ] {
        cluster.set(key, value)?;
    }
    match target.conf.as_deref() {
        Some("") => {}
        Some(path) => cluster
            .read_conf(Some(path))
            .map_err(|e| e.context(format!("error reading conf file {path}")).at_path(path))?,
        // Without a file, options may say where the cluster is.
        None => match cluster.read_conf(None) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                return Err(e.context("error reading Ceph's default conf file"));
            }
            _ => {}
        },
    }
    for (key, value) in &target.settings {
        cluster.set(key, value).map_err(|e| e.context(format!("invalid conf option {key}")))?;
    }
    cluster.connect().map_err(|e| {
        let hint = match e.raw_errno() {
            Some(libc::ETIMEDOUT) => "no monitor answered: check mon_host and the network",
            Some(libc::ENOENT) => {
                "no monitor is named: give conf=FILE or server.0.host, or fill /etc/ceph/ceph.conf"
            }
            Some(libc::EACCES | libc::EPERM) => "check the user (id=) and its keyring",
            _ => "ceph -s shows whether the cluster can be reached",
        };
        e.context("error connecting").hint(hint)
    })?;
    Ok(cluster)
}

impl RbdStorage {
    /// Connects to the cluster and opens the image.
    ///
    /// # Errors
    /// When Ceph's library is not here, the configuration cannot be used, the cluster does not answer or refuses the user,
    /// and when there is no such pool, image or snapshot.
    pub fn open(target: &RbdTarget, options: FileOptions) -> Result<Self> {
        let name = target.name();
        Self::opened(target, options).map_err(|e| e.at_path(name))
    }

    fn opened(target: &RbdTarget, options: FileOptions) -> Result<Self> {
        if options.writable && target.snapshot.is_some() {
            return Err(Error::new(ErrorKind::ReadOnly, "rbd snapshots can only be read"));
        }
        let cluster = Arc::new(connect(target)?);
        let pool = open_pool(&cluster, target)?;
        let mode = if options.writable { Mode::Write } else { Mode::Read };
        let image = Image::open(&pool, &target.image, target.snapshot.as_deref(), mode)
            .map_err(|e| e.context(format!("error reading header from {}", target.image)))?;
        Self::begin(image, pool, target.name(), options)
    }

    fn begin(image: Image, pool: Arc<Pool>, name: String, options: FileOptions) -> Result<Self> {
        let size = RwLock::new(image.size()?);
        let object = image.object_size()?.max(4096);
        let mapped = image.features()? & FAST_DIFF != 0 && image.flags()? & INVALID == 0;
        let image = Mutex::new(Some(Arc::new(image)));
        Ok(RbdStorage {
            image,
            pool,
            making: Mutex::new(None),
            name,
            options,
            size,
            object,
            mapped,
        })
    }

    /// Makes an image (`IMAGE.part`), which gets its name by [`RbdStorage::publish`]. Dropped before, it is removed.
    ///
    /// # Errors
    /// As [`RbdStorage::open`], and when an image of that name is there: clusters do not replace images.
    pub fn create(target: &RbdTarget, options: FileOptions) -> Result<Self> {
        let name = target.name();
        Self::made(target, options).map_err(|e| e.at_path(name))
    }

    fn made(target: &RbdTarget, options: FileOptions) -> Result<Self> {
        if target.snapshot.is_some() {
            return Err(Error::invalid("a snapshot cannot be made this way"));
        }
        let cluster = Arc::new(connect(target)?);
        let pool = open_pool(&cluster, target)?;
        match Image::open(&pool, &target.image, None, Mode::Read) {
            Ok(_) => {
                return Err(Error::invalid(format!("'{}' exists", target.name()))
                    .hint("images of a cluster are not replaced: remove it (rbd rm), or write into it (convert -n)"));
            }
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(e.context(format!("error reading header from {}", target.image))),
        }
        let part = format!("{}.part", target.image);
        pool.create(&part).map_err(|e| {
            let there = e.raw_errno() == Some(libc::EEXIST);
            let e = e.context(format!("error rbd create: {part}"));
            if there {
                e.hint("somebody may be writing it; if it was left by a conversion that was killed, remove it (rbd rm)")
            } else {
                e
            }
        })?;
        let made = Image::open(&pool, &part, None, Mode::Write)
            .and_then(|image| Self::begin(image, Arc::clone(&pool), target.name(), options));
        match made {
            Ok(made) => {
                *lock(&made.making) = Some((part, target.image.clone()));
                Ok(made)
            }
            Err(e) => {
                // Nothing can be done about an image that does not go away.
                let _ = pool.remove(&part);
                Err(e)
            }
        }
    }

    /// Gives a new image its name; the cluster has all of it before.
    ///
    /// # Errors
    /// When the cluster refuses, and when there is an image of that name by now.
    pub fn publish(&self) -> Result<()> {
        let failed = |e: Error| e.context(format!("Could not create '{}'", self.name));
        self.image()?.flush().map_err(failed)?;
        let mut making = lock(&self.making);
        if let Some((part, name)) = &*making {
            self.pool.rename(part, name).map_err(failed)?;
        }
        *making = None;
        Ok(())
    }

    /// Removes a new image that has not got its name.
    pub fn withdraw(&self) {
        if let Some((part, _)) = lock(&self.making).take() {
            // Only what nobody has open can be removed.
            drop(lock(&self.image).take());
            // Nothing can be done about an image that does not go away.
            let _ = self.pool.remove(&part);
        }
    }

    fn image(&self) -> Result<Arc<Image>> {
        lock(&self.image)
            .clone()
            .ok_or_else(|| Error::new(ErrorKind::Io(libc::EBADF), "the image was removed"))
    }

    fn error(&self, error: Error, offset: u64) -> Error {
        error.at_path(&self.name).at_offset(offset)
    }

    fn size(&self) -> u64 {
        *self.size.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes room for a write, and tells where it ends.
    fn make_room(&self, offset: u64, len: u64) -> Result<u64> {
        if !self.options.writable {
            return Err(Error::errno(libc::EBADF));
        }
        let end = offset.checked_add(len).filter(|end| i64::try_from(*end).is_ok());
        let end = end.ok_or_else(|| Error::errno(libc::EFBIG))?;
        if end > self.size() {
            let mut size = self.size.write().unwrap_or_else(PoisonError::into_inner);
            if end > *size {
                self.image()?.resize(end)?;
                *size = end;
            }
        }
        Ok(end)
    }

    fn after_write(&self) -> Result<()> {
        if self.options.cache.writethrough() { self.flush() } else { Ok(()) }
    }

    /// Calls `step` with the pieces of a range, each one's place and length, until it has done all of them.
    fn pieces(
        offset: u64,
        len: usize,
        mut step: impl FnMut(u64, std::ops::Range<usize>) -> Result<usize>,
    ) -> Result<()> {
        let mut done = 0;
        while done < len {
            let n = step(offset + len_u64(done), done..len.min(done + PIECE))?;
            if n == 0 {
                return Err(Error::new(ErrorKind::Io(libc::EIO), "the cluster did nothing"));
            }
            done += n;
        }
        Ok(())
    }
}

impl Drop for RbdStorage {
    fn drop(&mut self) {
        self.withdraw();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn open_pool(cluster: &Arc<Cluster>, target: &RbdTarget) -> Result<Arc<Pool>> {
    Pool::open(cluster, &target.pool, target.namespace.as_deref())
        .map(Arc::new)
        .map_err(|e| e.context(format!("error opening pool {}", target.pool)))
}

impl Storage for RbdStorage {
    fn name(&self) -> &str {
        &self.name
    }

    fn protocol(&self) -> Option<&'static str> {
        Some("rbd")
    }

    fn len(&self) -> Result<u64> {
        Ok(self.size())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let inside = small(self.size().saturating_sub(offset).min(len_u64(buf.len())));
        let (buf, beyond) = buf.split_at_mut(inside);
        beyond.fill(0);
        Self::pieces(offset, buf.len(), |at, range| self.image()?.read(at, &mut buf[range]))
            .map_err(|e| self.error(e, offset))
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        let write = || {
            self.make_room(offset, len_u64(buf.len()))?;
            let _sized = self.size.read().unwrap_or_else(PoisonError::into_inner);
            Self::pieces(offset, buf.len(), |at, range| self.image()?.write(at, &buf[range]))
        };
        write().and_then(|()| self.after_write()).map_err(|e| self.error(e, offset))
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        let keep = if mode == ZeroMode::KeepAllocated { Keep::Yes } else { Keep::No };
        let write = || {
            self.make_room(offset, len)?;
            let _sized = self.size.read().unwrap_or_else(PoisonError::into_inner);
            let mut at = offset;
            while at < offset + len {
                // Reserved space is written: in pieces that end.
                let most = if keep == Keep::Yes { len_u64(PIECE) } else { 1 << 40 };
                let n = (offset + len - at).min(most);
                self.image()?.write_zeroes(at, small(n), keep)?;
                at += n;
            }
            Ok(())
        };
        write().and_then(|()| self.after_write()).map_err(|e| self.error(e, offset))
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        if !self.options.writable {
            return Err(self.error(Error::errno(libc::EBADF), offset));
        }
        let end = offset.saturating_add(len).min(self.size());
        let mut at = offset;
        while at < end {
            let n = (end - at).min(1 << 30);
            self.image()?.discard(at, n).map_err(|e| self.error(e, at))?;
            at += n;
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        if !self.options.writable || self.options.cache == CacheMode::Unsafe {
            return Ok(());
        }
        self.image()?.flush().map_err(|e| e.context("Could not flush").at_path(&self.name))
    }

    fn set_len(&self, len: u64, how: Preallocation) -> Result<()> {
        if !self.options.writable {
            return Err(self.error(Error::errno(libc::EBADF), len));
        }
        let from = {
            let mut size = self.size.write().unwrap_or_else(PoisonError::into_inner);
            let from = *size;
            if len != from {
                self.image()?.resize(len).map_err(|e| self.error(e, len))?;
                *size = len;
            }
            from
        };
        let reserved = matches!(how, Preallocation::Falloc | Preallocation::Full);
        if reserved && len > from {
            return self.write_zeroes(from, len - from, ZeroMode::KeepAllocated);
        }
        Ok(())
    }

    fn status(&self, offset: u64, len: u64) -> Result<HostExtent> {
        let size = self.size();
        let rest = size.saturating_sub(offset);
        if rest == 0 {
            return Ok(HostExtent { kind: HostKind::Hole, len });
        }
        let len = len.min(rest);
        if !self.mapped {
            return Ok(HostExtent { kind: HostKind::Data, len });
        }
        // Whole objects are told.
        let start = round_down(offset, self.object);
        let end = round_up(offset + len, self.object).min(size);
        let (stored, until) =
            self.image()?.first_run(start, end - start).map_err(|e| self.error(e, offset))?;
        let kind = if stored { HostKind::Data } else { HostKind::Hole };
        let until = until.min(offset + len);
        if until <= offset {
            return Ok(HostExtent { kind: HostKind::Data, len });
        }
        Ok(HostExtent { kind, len: until - offset })
    }

    fn limits(&self) -> Limits {
        Limits {
            request_alignment: 1,
            discard_alignment: u32::try_from(self.object).unwrap_or(4 << 20),
            opt_transfer: u32::try_from(self.object).unwrap_or(4 << 20),
            block_device: false,
        }
    }

    fn read_only(&self) -> bool {
        !self.options.writable
    }
}
