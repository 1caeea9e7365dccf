//! A file on a web server as a storage.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::cache::{Cache, Found, Sizes};
use super::client::Client;
use crate::num::{len_u64, round_up, small};
use crate::opts::http::HttpTarget;
use crate::opts::secret::Secrets;
use crate::storage::{HostExtent, Limits, Preallocation, Storage, ZeroMode};
use crate::{Error, ErrorKind, Result};

/// Connections that read ahead of a stream.
pub(super) const CONNECTIONS: usize = 4;
/// Bytes of one request of a stream.
const RUN: u64 = 4 << 20;
/// Bytes that are kept, unless blocks are large.
const KEPT: u64 = 64 << 20;
/// Blocks begin at multiples of this.
const UNIT: u64 = 64 << 10;

/// The size of blocks that `readahead` asks for.
pub(super) fn block_of(target: &HttpTarget) -> u64 {
    round_up(target.readahead, UNIT)
}

/// A file on a server that gives parts of files.
///
/// Any number of threads may read it at the same time. Small reads fetch a block of `readahead` bytes and remember
/// it; reads that follow each other make up to four connections fetch what comes next.
#[derive(Debug)]
pub struct HttpStorage(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    client: Client,
    name: String,
    size: u64,
    block: u64,
    /// Blocks of one request.
    run: u64,
    cache: Mutex<Cache>,
    /// A block came or will not come.
    arrived: Condvar,
    /// There is something to fetch ahead, or an end.
    work: Condvar,
    /// Whether threads that read ahead were started.
    helped: Mutex<bool>,
}

impl HttpStorage {
    /// Opens a file on a server for reading.
    ///
    /// # Errors
    /// As [`super::open`], and when the server does not give parts of files.
    pub fn open(target: &HttpTarget, secrets: &Secrets) -> Result<Self> {
        match super::open(target, secrets)? {
            super::Opened::Ranges(storage) => Ok(storage),
            super::Opened::Stream(stream) => Err(Error::unsupported(
                "Server does not support 'range' (byte ranges).",
            )
            .at_path(stream.name())
            .hint(
                "copy the file here first (curl -O); rimg convert, compare and digest do so by \
                         themselves, into a temporary file",
            )),
        }
    }

    pub(super) fn new(client: Client, size: u64, block: u64, head: Vec<u8>) -> Self {
        let run = (RUN / block).max(1);
        let ahead = run * CONNECTIONS as u64;
        let total = size.div_ceil(block);
        let kept = small((KEPT / block).max(2 * ahead));
        let mut cache = Cache::new(Sizes { total, kept, run, ahead });
        if cache.claim(0, 1) == 1 {
            cache.fill(0, head);
        }
        HttpStorage(Arc::new(Inner {
            name: client.name().to_owned(),
            client,
            size,
            block,
            run,
            cache: Mutex::new(cache),
            arrived: Condvar::new(),
            work: Condvar::new(),
            helped: Mutex::new(false),
        }))
    }

    /// Starts the threads that read ahead; a system that has no more threads reads slower.
    fn help(&self) {
        let mut helped = self.0.helped.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut *helped, true) {
            return;
        }
        for _ in 0..CONNECTIONS {
            let inner = Arc::clone(&self.0);
            let thread = std::thread::Builder::new().name("http-ahead".to_owned());
            // What nobody fetches ahead is fetched by whoever reads it.
            let _ = thread.spawn(move || inner.read_ahead());
        }
    }
}

impl Drop for HttpStorage {
    fn drop(&mut self) {
        self.0.lock().ended = true;
        self.0.work.notify_all();
        self.0.client.shutdown();
    }
}

/// Blocks that one thread fetches: whatever happens to it, others are not left waiting.
struct Claim<'a> {
    inner: &'a Inner,
    first: u64,
    count: u64,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.inner.lock().give_up(self.first, self.count);
        self.inner.arrived.notify_all();
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_ahead(&self) {
        let mut cache = self.lock();
        while !cache.ended {
            match cache.next_ahead() {
                Some((first, count)) => {
                    drop(cache);
                    // Whoever wants these bytes asks again and hears what is wrong.
                    let _ = self.fetch(first, count);
                    cache = self.lock();
                }
                None => cache = self.work.wait(cache).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// Fetches blocks that were claimed.
    fn fetch(&self, first: u64, count: u64) -> Result<()> {
        let _claim = Claim { inner: self, first, count };
        let start = first * self.block;
        let end = ((first + count) * self.block).min(self.size);
        let mut bytes = vec![0; small(end - start)];
        self.client.fetch(start, &mut bytes)?;
        let mut cache = self.lock();
        for (block, bytes) in (first..).zip(bytes.chunks(small(self.block))) {
            cache.fill(block, bytes.to_vec());
        }
        Ok(())
    }

    /// The bytes of a block.
    fn block(&self, block: u64, last: u64) -> Result<Arc<Vec<u8>>> {
        let mut cache = self.lock();
        loop {
            match cache.find(block) {
                Found::Ready(bytes) => return Ok(bytes),
                Found::Pending => {
                    cache = self.arrived.wait(cache).unwrap_or_else(PoisonError::into_inner);
                }
                Found::Missing => {
                    // The rest of what this reader wants comes along.
                    let claimed = cache.claim(block, (last - block + 1).min(self.run));
                    drop(cache);
                    self.fetch(block, claimed.max(1))?;
                    cache = self.lock();
                }
            }
        }
    }

    fn read_only(&self) -> Error {
        Error::new(ErrorKind::ReadOnly, "curl driver does not support writes").at_path(&self.name)
    }
}

impl Storage for HttpStorage {
    fn name(&self) -> &str {
        &self.0.name
    }

    fn protocol(&self) -> Option<&'static str> {
        Some(if self.0.name.starts_with("https:") { "https" } else { "http" })
    }

    fn identity(&self) -> Option<String> {
        self.0.client.identity()
    }

    fn len(&self) -> Result<u64> {
        Ok(self.0.size)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let inner = &*self.0;
        let inside = small(inner.size.saturating_sub(offset)).min(buf.len());
        let (buf, beyond) = buf.split_at_mut(inside);
        beyond.fill(0);
        if buf.is_empty() {
            return Ok(());
        }
        let (first, last) = (offset / inner.block, (offset + len_u64(buf.len()) - 1) / inner.block);
        if inner.lock().note(first, last - first + 1) {
            self.help();
            inner.work.notify_all();
        }
        let mut done = 0;
        for block in first..=last {
            let bytes = inner.block(block, last)?;
            let skip = small((offset + len_u64(done)) % inner.block);
            let have = bytes.get(skip..).unwrap_or_default();
            let n = have.len().min(buf.len() - done);
            buf[done..done + n].copy_from_slice(&have[..n]);
            done += n;
        }
        if done < buf.len() {
            return Err(Error::corrupt("a block is shorter than it should be").at_path(&inner.name));
        }
        Ok(())
    }

    fn write_at(&self, _offset: u64, _buf: &[u8]) -> Result<()> {
        Err(self.0.read_only())
    }

    fn write_zeroes(&self, _offset: u64, _len: u64, _mode: ZeroMode) -> Result<()> {
        Err(self.0.read_only())
    }

    fn discard(&self, _offset: u64, _len: u64) -> Result<()> {
        Err(self.0.read_only())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn set_len(&self, _len: u64, _how: Preallocation) -> Result<()> {
        Err(self.0.read_only())
    }

    fn status(&self, offset: u64, len: u64) -> Result<HostExtent> {
        Ok(HostExtent::without_holes(self.0.size, offset, len))
    }

    fn limits(&self) -> Limits {
        Limits {
            request_alignment: 1,
            discard_alignment: 4096,
            opt_transfer: 0,
            block_device: false,
        }
    }

    fn read_only(&self) -> bool {
        true
    }

    fn zero_init(&self) -> bool {
        false
    }
}
