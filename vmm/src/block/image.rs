//! An image as a back end.
//!
//! # Guessed raw images
//!
//! When the user named no format and none was recognised, the image is raw. A guest that then wrote the
//! header of another format into its first bytes would choose, at the next start, which files of the
//! host are opened as backing files. So writes that would make the beginning of such a disk look like
//! another format are refused with an error; all others pass. Naming `format=raw` lifts the restriction.

use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use imgcore::format::{PROBE_LEN, Unwatched, probe};
use imgcore::graph::Node;
use imgcore::graph::open::{OpenOptions, OpenRequest, open};
use imgcore::graph::pin::{Job, PinnedCall, PinnedRun};
use imgcore::graph::runs::Direction;
use imgcore::ops::commit::copy_down;

use super::vector::GuestPieces;
use super::{BlockBackend, Direct, Held, Unmap};
use crate::num::{index, len_u64};
use crate::{Error, Result};

/// How surely the format is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certainty {
    /// The user named it, or the image has a header.
    Known,
    /// It looks like nothing: taken for raw.
    GuessedRaw,
}

/// How the file below the top of a chain is opened again.
#[derive(Clone, Debug)]
pub struct Reopen {
    /// Which one.
    pub request: OpenRequest,
    /// How, for reading.
    pub options: OpenOptions,
}

/// What people may want to know of an image in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageDescription {
    /// The name by which the user called it.
    pub file: PathBuf,
    /// Its format.
    pub format: String,
    /// Its data are encrypted.
    pub encrypted: bool,
    /// Bytes of the guest's disk.
    pub virtual_size: u64,
    /// Bytes of disk used by the image's own file, where that is known.
    pub allocated: Option<u64>,
    /// The images below, top first: name and format.
    pub below: Vec<(String, String)>,
    /// Whether writing is refused.
    pub read_only: bool,
    /// Whether writes go to a temporary overlay.
    pub temporary: bool,
}

/// An opened image.
#[derive(Debug)]
pub struct ImageBackend {
    /// `None` only after a commit that could not put the chain together again.
    chain: RwLock<Option<Arc<Node>>>,
    len: u64,
    read_only: bool,
    certainty: Certainty,
    temporary: bool,
    below: Option<Reopen>,
    /// Held while the first bytes of a guessed image are looked at and written.
    head: Mutex<()>,
    pins: Arc<Pins>,
}

/// Counts requests that use the chain without holding its lock.
#[derive(Debug, Default)]
struct Pins {
    count: Mutex<usize>,
    none: Condvar,
}

impl Pins {
    fn count(&self) -> MutexGuard<'_, usize> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there are none. Whoever waits keeps new ones from coming.
    fn wait(&self) {
        let mut count = self.count();
        while *count > 0 {
            count = self.none.wait(count).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// What is held of an image, and the count of it.
struct Pin {
    /// `None` only while this is dropped: the chain is let go of before the count says so.
    held: Option<Held>,
    pins: Arc<Pins>,
}

impl Drop for Pin {
    fn drop(&mut self) {
        drop(self.held.take());
        let mut count = self.pins.count();
        *count -= 1;
        if *count == 0 {
            self.pins.none.notify_all();
        }
    }
}

impl ImageBackend {
    /// Over an opened chain. `below` tells how to open the file below its top again, for `commit`.
    pub fn new(
        node: Arc<Node>,
        certainty: Certainty,
        temporary: bool,
        below: Option<Reopen>,
    ) -> Self {
        ImageBackend {
            len: node.virtual_size(),
            read_only: !node.writable(),
            chain: RwLock::new(Some(node)),
            certainty,
            temporary,
            below,
            head: Mutex::new(()),
            pins: Arc::default(),
        }
    }

    /// Holds something of the chain. A chain that is being put together again is not waited for: a commit
    /// waits for what is held, and whoever asks here has to let go of it.
    fn hold<T>(&self, take: impl FnOnce(&Arc<Node>) -> Option<(Held, T)>) -> Option<(Held, T)> {
        let chain = self.chain.try_read().ok()?;
        let (held, what) = take(chain.as_ref()?)?;
        *self.pins.count() += 1;
        Some((Box::new(Pin { held: Some(held), pins: self.pins.clone() }), what))
    }

    fn chain(&self) -> RwLockReadGuard<'_, Option<Arc<Node>>> {
        self.chain.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, work: impl FnOnce(&Arc<Node>) -> Result<T>) -> Result<T> {
        match &*self.chain() {
            Some(node) => work(node),
            None => Err(Error::errno(libc::EIO)
                .context("the image could not be opened again after a commit")),
        }
    }

    /// For `info block`.
    ///
    /// # Errors
    /// After a commit that failed half-way.
    pub fn describe(&self) -> Result<ImageDescription> {
        self.with(|node| {
            let chain = node.chain();
            let skip = usize::from(self.temporary);
            let own = chain.get(skip).copied().unwrap_or(node);
            let name = |n: &Node| (n.name().to_owned(), n.image().format_name().to_owned());
            let allocated =
                own.image().storages().first().and_then(|s| s.allocated().ok().flatten());
            Ok(ImageDescription {
                file: own.name().into(),
                format: own.image().format_name().to_owned(),
                encrypted: own.image().encrypts(),
                virtual_size: self.len,
                allocated,
                below: chain.iter().skip(skip + 1).map(|n| name(n)).collect(),
                read_only: self.read_only,
                temporary: self.temporary,
            })
        })
    }

    /// What `commit` opens again: the files of the image below the top, for writing, and of those further below, for
    /// reading; by descriptors of what is open now, and by the images' names, as some formats describe their files in
    /// a file of its own. Nothing for a disk that cannot be committed.
    ///
    /// # Errors
    /// When no more files can be open.
    pub fn commit_files(&self) -> Result<Vec<(CommitFile, CommitAccess)>> {
        if self.below.is_none() || (self.read_only && !self.temporary) {
            return Ok(Vec::new());
        }
        self.with(|node| {
            let mut all = Vec::new();
            for (depth, below) in node.chain().iter().enumerate().skip(1) {
                let access = if depth == 1 { CommitAccess::Write } else { CommitAccess::Read };
                for storage in below.image().storages() {
                    if let Some(file) = storage.as_file() {
                        let file = file.try_clone().map_err(|e| Error::io(&e))?;
                        all.push((CommitFile::Open(file), access));
                    }
                }
                all.push((CommitFile::Named(below.name().into()), access));
            }
            Ok(all)
        })
    }

    /// Writes what the top of the chain has into the file below it, and empties the top (`commit`).
    /// Requests of the guest wait meanwhile.
    ///
    /// # Errors
    /// When there is nothing below, or it cannot be opened for writing or written. The guest's disk has the
    /// same bytes as before in any case; a disk over an image on a server that cannot be connected to again fails from
    /// then on.
    pub fn commit(&self) -> Result<()> {
        let Some(reopen) = &self.below else {
            return Err(Error::invalid("the image has no backing file to commit into"));
        };
        let mut place = self.chain.write().unwrap_or_else(PoisonError::into_inner);
        self.pins.wait();
        let node = place.take().ok_or_else(|| Error::errno(libc::EIO))?;
        // The image below is going to be let go of. What keeps files from being opened again is found before; a server
        // may take one client only, and is connected to when it has lost this one.
        let local = |n: &&Node| n.image().storages().iter().all(|s| s.protocol().is_none());
        if node.chain().iter().skip(1).all(local)
            && let Err(e) = open(&reopen.request, &reopen.options)
        {
            *place = Some(node);
            return Err(sandboxed(e));
        }
        let top = match Arc::try_unwrap(node) {
            Ok(top) => top,
            Err(shared) => {
                *place = Some(shared);
                return Err(Error::errno(libc::EBUSY).context("the image is in use"));
            }
        };
        let (top, below) = top.detach();
        // Gives back the locks that keep writers away, ours included.
        drop(below);
        let result = self.commit_into(&top, reopen);
        let below = open(&reopen.request, &reopen.options)
            .map_err(|e| e.context("the backing file cannot be opened again after the commit"))?;
        *place = Some(Arc::new(top.attach(Some(below))));
        result
    }

    fn commit_into(&self, top: &Node, reopen: &Reopen) -> Result<()> {
        let base = open(&reopen.request, &reopen.options.clone().writable()).map_err(sandboxed)?;
        if self.certainty == Certainty::GuessedRaw {
            let mut head = vec![0; PROBE_LEN.min(index(self.len))];
            base.read(0, &mut head)?;
            self.overlay_head(top, &mut head)?;
            check_head(&head, base.name())?;
        }
        copy_down(top, &base, &Unwatched)?;
        base.close()?;
        match top.image().make_empty() {
            // A format that cannot drop its mappings keeps them: they say the same as the file below.
            Err(e) if e.raw_errno() == Some(libc::ENOTSUP) => Ok(()),
            emptied => emptied,
        }
    }

    /// What the head will be with the top's bytes in it.
    fn overlay_head(&self, top: &Node, head: &mut [u8]) -> Result<()> {
        let mut at = 0;
        while at < len_u64(head.len()) {
            let status = top.status(at, len_u64(head.len()) - at, None)?;
            if status.present {
                let end = index(at + status.len);
                top.read(at, &mut head[index(at)..end])?;
            }
            at += status.len;
        }
        Ok(())
    }

    /// Whether a write to this place has to be looked at first.
    fn guarded(&self, at: u64) -> bool {
        self.certainty == Certainty::GuessedRaw && !self.temporary && at < len_u64(PROBE_LEN)
    }

    /// Writes into the first bytes of a guessed image.
    fn write_head(
        &self,
        node: &Node,
        at: u64,
        change: &[u8],
        write: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let _one_at_a_time = self.head.lock().unwrap_or_else(PoisonError::into_inner);
        let mut head = vec![0; PROBE_LEN.min(index(self.len))];
        node.read(0, &mut head)?;
        let from = index(at).min(head.len());
        let to = from.saturating_add(change.len()).min(head.len());
        head[from..to].copy_from_slice(&change[..to - from]);
        check_head(&head, node.name())?;
        write()
    }
}

/// A file that `commit` opens again.
#[derive(Debug)]
pub enum CommitFile {
    /// This one.
    Open(File),
    /// The one of this name.
    Named(PathBuf),
}

/// What `commit` does with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitAccess {
    /// Reading.
    Read,
    /// Reading and writing.
    Write,
}

/// What to do when a file below cannot be opened.
fn sandboxed(e: Error) -> Error {
    match e.raw_errno() {
        Some(libc::EACCES) => e.hint(
            "if the user may open it, the sandbox keeps it from being opened (-sandbox on,commit=deny, or a server): \
             start without, or commit when the guest has ended: rimg commit",
        ),
        _ => e,
    }
}

/// Refuses a beginning that looks like another format.
fn check_head(head: &[u8], name: &str) -> Result<()> {
    let format = probe(head, name).name();
    if format == "raw" {
        return Ok(());
    }
    Err(Error::errno(libc::EPERM)
        .context(format!(
            "the guest wants to write the header of a {format} image to a disk whose format was guessed"
        ))
        .at_path(name)
        .hint("name the format to allow that: format=raw"))
}

impl BlockBackend for ImageBackend {
    fn len(&self) -> u64 {
        self.len
    }
    fn read_only(&self) -> bool {
        self.read_only
    }
    fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.with(|node| Node::read(node, at, buf))
    }
    fn write(&self, at: u64, buf: &[u8]) -> Result<()> {
        self.with(|node| {
            if self.guarded(at) {
                return self.write_head(node, at, buf, || Node::write(node, at, buf));
            }
            Node::write(node, at, buf)
        })
    }
    fn read_direct(&self, at: u64, to: &GuestPieces<'_>) -> Result<Direct> {
        self.with(|node| node.read_direct(at, to))
    }
    fn read_ready(&self, at: u64, to: &GuestPieces<'_>) -> Result<Direct> {
        self.with(|node| node.read_ready(at, to))
    }
    fn write_direct(&self, at: u64, from: &GuestPieces<'_>) -> Result<Direct> {
        if self.guarded(at) {
            return Ok(Direct::Impossible);
        }
        self.with(|node| node.write_direct(at, from))
    }
    fn pin(&self, at: u64, len: u64, direction: Direction) -> Option<(Held, Vec<PinnedRun>)> {
        if direction == Direction::Write && self.guarded(at) {
            return None;
        }
        self.hold(|node| BlockBackend::pin(node, at, len, direction))
    }
    fn pin_call(&self, job: Job) -> Option<(Held, PinnedCall)> {
        match job {
            Job::Discard { at, .. } | Job::WriteZeroes { at, .. } if self.guarded(at) => None,
            _ => self.hold(|node| BlockBackend::pin_call(node, job)),
        }
    }
    fn is_buffered(&self) -> bool {
        self.chain.try_read().is_ok_and(|c| c.as_ref().is_some_and(BlockBackend::is_buffered))
    }
    fn flushes_one_file(&self) -> bool {
        self.chain.try_read().is_ok_and(|c| c.as_ref().is_some_and(|n| n.flushes_one_file()))
    }
    fn flush(&self) -> Result<()> {
        self.with(|node| Node::flush(node))
    }
    fn discard(&self, at: u64, len: u64) -> Result<()> {
        self.with(|node| {
            let write = || Node::discard(node, at, len);
            if self.guarded(at) {
                let zeroes = vec![0; PROBE_LEN.min(index(len))];
                return self.write_head(node, at, &zeroes, write);
            }
            write()
        })
    }
    fn write_zeroes(&self, at: u64, len: u64, unmap: Unmap) -> Result<()> {
        self.with(|node| {
            let write = || BlockBackend::write_zeroes(node, at, len, unmap);
            if self.guarded(at) {
                let zeroes = vec![0; PROBE_LEN.min(index(len))];
                return self.write_head(node, at, &zeroes, write);
            }
            write()
        })
    }
    fn close(&self) -> Result<()> {
        self.with(|node| Node::close(node))
    }
}
