//! `rebase`: another file below an image.
//!
//! In safe mode every unit that the image does not have itself, and that differs between the old and
//! the new file below, is copied into the image first. All copies are on disk before the name of the
//! file below changes, so that after a crash the image shows the same bytes with the old name or with
//! the new one.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use super::convert::may_compress;
use super::source::{Origin, Walk};
use super::{ImageArg, Job};
use crate::format::{self, BackingRef, Encoded, Encoder, Level, ZeroSpace, check_cancelled};
use crate::graph::Node;
use crate::graph::gate::combine;
use crate::graph::open::{Depth, OpenOptions, OpenRequest, Sharing, open};
use crate::num::{GuestOffset, len_u64, round_down, round_up, small};
use crate::storage::CacheMode;
use crate::storage::zero::is_zero;
use crate::{Error, Result};

/// Bytes compared at a time; more if a unit of the image is larger.
const PIECE: u64 = 1 << 20;

/// Whether the guest's view is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RebaseMode {
    /// What differs between the old and the new file below is copied into the image first.
    #[default]
    Safe,
    /// Only the name is changed (`-u`).
    Unsafe,
}

/// What to do.
#[derive(Clone, Debug, Default)]
pub struct RebaseOptions {
    /// The image.
    pub image: ImageArg,
    /// `-b`; `None` for no file below (`-b ""` or no `-b`).
    pub backing: Option<String>,
    /// `-F`.
    pub backing_format: Option<String>,
    /// `-T`.
    pub backing_cache: CacheMode,
    /// `-u`.
    pub mode: RebaseMode,
    /// `-c`: copied clusters are stored compressed.
    pub compress: bool,
}

/// Rebases.
pub fn rebase(options: &RebaseOptions, job: &Job<'_>) -> Result<()> {
    let backing = options.backing.as_deref().filter(|b| !b.is_empty());
    let mut how = options.image.options(job).writable();
    // `-U` is about the new file below; the image itself is written.
    how.sharing = Sharing::Locked;
    if options.mode == RebaseMode::Unsafe {
        how.depth = Depth::Top;
    }
    let node = options.image.open(job, &how)?;
    if let Some(format) = &options.backing_format
        && format::driver(format).is_none()
    {
        return Err(Error::invalid(format!("Invalid format name: '{format}'")));
    }
    let failed = |e: Error| {
        let name = options.backing.as_deref().unwrap_or("");
        e.context(format!("Could not change the backing file to '{name}'"))
    };
    let below = if options.mode == RebaseMode::Safe {
        backing.map(|name| open_new(options, &node, name, job)).transpose()?
    } else {
        None
    };
    if backing.is_some() && options.backing_format.is_none() {
        return Err(failed(Error::invalid("backing format must be specified")));
    }
    let driver = format::driver(node.image().format_name());
    if !driver.is_some_and(format::Driver::supports_backing) {
        return Err(failed(Error::errno(libc::ENOTSUP)));
    }
    if options.mode == RebaseMode::Safe {
        copy_differences(options, &node, below.as_ref(), job)?;
        node.flush()?;
    }
    let reference = backing
        .map(|name| BackingRef { name: name.to_owned(), format: options.backing_format.clone() });
    node.image().set_backing(reference.as_ref()).map_err(failed)?;
    node.close()
}

/// Opens the new file below, as seen from the image.
fn open_new(options: &RebaseOptions, node: &Node, name: &str, job: &Job<'_>) -> Result<Arc<Node>> {
    let full = combine(node.name(), name);
    let how = OpenOptions {
        cache: options.backing_cache,
        sharing: options.image.sharing,
        purpose: crate::graph::open::Purpose::Source,
        policy: job.policy.clone().allow_file(Path::new(&full)),
        secrets: job.secrets.clone(),
        ..OpenOptions::default()
    };
    OpenRequest::parse(&full, options.backing_format.as_deref())
        .and_then(|request| open(&request, &how))
        .map_err(|e| {
            if e.report().starts_with(&format!("Could not open '{full}': Failed to get")) {
                // The lock is the news, not the file.
                return Error::new(e.kind(), e.report().split(": ").skip(1).collect::<String>())
                    .hint(e.hints().join("\n"));
            }
            e
        })
        .map_err(|e| e.context(format!("Could not open new backing file '{name}'")))
}

/// What copying needs to know.
struct Copying<'a> {
    node: &'a Node,
    below: Option<&'a Arc<Node>>,
    unit: u64,
    encoder: Option<Box<dyn Encoder>>,
    encoded: Vec<u8>,
}

fn copy_differences(
    options: &RebaseOptions,
    node: &Node,
    below: Option<&Arc<Node>>,
    job: &Job<'_>,
) -> Result<()> {
    let granularity = node.image().granularity();
    let mut unit = granularity.allocation.max(1);
    let mut encoder = None;
    match granularity.encode {
        Some(encoded) if options.compress => {
            unit = encoded;
            encoder = node.image().encoder(Level::Default);
        }
        None if options.compress && !may_compress(node) => {
            return Err(Error::unsupported("Compression not supported for this file format"));
        }
        _ => {}
    }
    let mut copying = Copying { node, below, unit, encoder, encoded: Vec::new() };
    let own = Walk::first(node, 1);
    // Where the new file below is a part of the old chain, what lies above it decides.
    let above_new = below.and_then(|b| position_in_chain(node, b)).map(|n| Walk::first(node, n));
    let size = node.virtual_size();
    let piece = PIECE.max(unit);
    let mut old_buf = vec![0u8; small(piece)];
    let mut new_buf = vec![0u8; small(piece)];
    let mut at = 0;
    while at < size {
        check_cancelled(job.watcher)?;
        let run = own.run(at, size - at)?;
        let mut len = run.len;
        if !run.allocated && !matches!(run.origin, Origin::Plain(..) | Origin::Encoded) {
            len = match &above_new {
                Some(walk) => {
                    let upper = walk.run(at, len)?;
                    if upper.origin == Origin::Below { upper.len } else { 0 }
                }
                None => copying.both_zero(at, len)?,
            };
            if len == 0 {
                len = (piece - at % piece).min(run.len);
                let (old, new) = (&mut old_buf[..small(len)], &mut new_buf[..small(len)]);
                copying.compare(at, old, new)?;
            }
        }
        at += len;
        job.watcher.progress(at, size);
    }
    Ok(())
}

/// Number of images above `below` in the chain of `node`.
fn position_in_chain(node: &Node, below: &Node) -> Option<usize> {
    let id = |n: &Node| {
        let storages = n.image().storages();
        let meta = storages.first()?.as_file()?.metadata().ok()?;
        Some((meta.dev(), meta.ino()))
    };
    let wanted = id(below)?;
    node.chain().iter().position(|n| id(n) == Some(wanted)).filter(|&n| n > 0)
}

impl Copying<'_> {
    /// How far (in whole units) both files below are known to be zero without reading.
    fn both_zero(&self, at: u64, len: u64) -> Result<u64> {
        let mut len = len;
        for lower in [self.node.backing(), self.below].into_iter().flatten() {
            let have = lower.virtual_size().saturating_sub(at);
            if have == 0 {
                continue;
            }
            let run = Walk::chain(lower).run(at, len.min(have))?;
            if !run.is_zero() {
                return Ok(0);
            }
            // Beyond the end of a short file everything is zero.
            if run.len < have {
                len = len.min(run.len);
            }
        }
        if at + len >= self.node.virtual_size() { Ok(len) } else { Ok(round_down(len, self.unit)) }
    }

    /// Reads both sides and copies what differs, unit by unit; neighbours go together.
    fn compare(&mut self, at: u64, old: &mut [u8], new: &mut [u8]) -> Result<()> {
        read_below(self.node.backing(), at, old)
            .map_err(|e| e.context("error while reading from old backing file"))?;
        read_below(self.below, at, new)
            .map_err(|e| e.context("error while reading from new backing file"))?;
        let unit = small(self.unit);
        let old_end = self.node.backing().map_or(0, |b| b.virtual_size());
        let differs = |start: usize| {
            let end = (start + unit).min(old.len());
            old[start..end] != new[start..end]
        };
        let mut start = 0;
        while start < old.len() {
            let mut end = (start + unit).min(old.len());
            if differs(start) {
                let straddles = |end: usize| at + len_u64(end) == round_up(old_end, self.unit);
                while end < old.len() && self.encoder.is_none() && !straddles(end) && differs(end) {
                    end = (end + unit).min(old.len());
                }
                self.store(at + len_u64(start), &old[start..end])
                    .map_err(|e| e.context("Error while writing to COW image"))?;
            }
            start = end;
        }
        Ok(())
    }

    fn store(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        // As in qemu-img, zeroes become a zero range where the old file below had ended, and are
        // stored where it had zeroes.
        let old_end = self.node.backing().map_or(0, |b| b.virtual_size());
        if at >= old_end || (self.encoder.is_some() && is_zero(bytes)) {
            return self.node.write_zeroes(at, len_u64(bytes.len()), ZeroSpace::Keep);
        }
        let Some(encoder) = &mut self.encoder else { return self.node.write(at, bytes) };
        let image = self.node.image();
        let mut whole;
        let mut unit = bytes;
        if len_u64(bytes.len()) < self.unit {
            whole = vec![0u8; small(self.unit)];
            whole[..bytes.len()].copy_from_slice(bytes);
            unit = &whole;
        }
        if encoder.encode(GuestOffset(at), unit, &mut self.encoded)? == Encoded::Incompressible {
            return self.node.write(at, bytes);
        }
        image.note_write(GuestOffset(at), len_u64(bytes.len()))?;
        let grant = image.prepare_encoded(GuestOffset(at), len_u64(self.encoded.len()))?;
        match image.storage(grant.storage).write_at(grant.offset.0, &self.encoded) {
            Ok(()) => image.commit_write(grant),
            Err(e) => {
                image.abort_write(grant);
                Err(e)
            }
        }
    }
}

/// What a file below shows; zeroes beyond its end, and everywhere without one.
fn read_below(node: Option<&Arc<Node>>, at: u64, buf: &mut [u8]) -> Result<()> {
    let Some(node) = node else {
        buf.fill(0);
        return Ok(());
    };
    let have = small(node.virtual_size().saturating_sub(at)).min(buf.len());
    let (inside, beyond) = buf.split_at_mut(have);
    beyond.fill(0);
    if inside.is_empty() { Ok(()) } else { node.read(at, inside) }
}
