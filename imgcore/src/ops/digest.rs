//! `digest`: a hash of what the guest sees, the same for the same bytes in any format.
//!
//! Two kinds:
//!
//! * [`Kind::Tree`], made for disks: ranges known to be zero cost nothing, and all cores take part.
//!   The disk is cut into blocks of 1 MiB, the last one filled up with zeroes. A block's hash is
//!   SHA-256 of a byte 0 and the block. Hashes are joined by 256s, missing ones being those of zeroes:
//!   SHA-256 of a byte 1 and the hashes; and so on until one is left (a disk of one block has that of
//!   the block). The digest is SHA-256 of the text `rimg-digest-1` and a line feed, the disk's size in bytes as
//!   64 bits, little endian, and the last hash. An empty disk has the hash of a block of zeroes.
//! * [`Kind::Sha256`], what `sha256sum` says of the disk as a raw file: every zero is hashed, by one core.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha256};

use super::parallel::{Failure, default_threads, lock};
use super::source::{Run, Walk};
use super::{ImageArg, Job};
use crate::format::check_cancelled;
use crate::graph::Node;
use crate::graph::open::Purpose;
use crate::num::{len_u64, round_down, small};
use crate::{Error, Result};

/// Bytes of a block.
const BLOCK: u64 = 1 << 20;
/// Hashes that are joined to one.
const FAN: u64 = 256;

/// SHA-256's result.
pub type Hash = [u8; 32];

/// What kind of hash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// A tree of hashes that skips zeroes.
    #[default]
    Tree,
    /// Of all bytes in a row.
    Sha256,
}

impl Kind {
    /// What stands before the colon where a digest is written.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Tree => "rimg1",
            Kind::Sha256 => "sha256",
        }
    }
}

/// A digest as it is written: kind, colon, 64 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// The kind.
    pub kind: Kind,
    /// The hash.
    pub hash: Hash,
}

impl std::fmt::Display for Written {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:", self.kind.name())?;
        self.hash.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::str::FromStr for Written {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || {
            Error::invalid(format!("'{text}' is no digest"))
                .hint("it looks like rimg1: or sha256: and 64 hexadecimal digits")
        };
        let (kind, digits) = text.trim().split_once(':').ok_or_else(bad)?;
        let kind = [Kind::Tree, Kind::Sha256].into_iter().find(|k| k.name() == kind);
        let mut hash = [0; 32];
        if digits.len() != 64 || !digits.is_ascii() {
            return Err(bad());
        }
        for (i, byte) in hash.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&digits[2 * i..2 * i + 2], 16).map_err(|_| bad())?;
        }
        Ok(Written { kind: kind.ok_or_else(bad)?, hash })
    }
}

/// What came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DigestReport {
    /// Kind and hash.
    pub digest: Written,
    /// Bytes of the guest's disk.
    pub virtual_size: u64,
    /// Bytes that had to be read.
    pub bytes_read: u64,
}

/// Computes the digest of an image.
///
/// # Errors
/// When the image cannot be opened, or a part of it cannot be read.
pub fn digest(image: &ImageArg, kind: Kind, job: &Job<'_>) -> Result<DigestReport> {
    let mut how = image.options(job);
    how.purpose = Purpose::Source;
    let node = image.open(job, &how)?;
    digest_node(&node, kind, job)
}

/// Computes the digest of an open image.
///
/// # Errors
/// When a part of it cannot be read.
pub fn digest_node(node: &Node, kind: Kind, job: &Job<'_>) -> Result<DigestReport> {
    let (hash, bytes_read) = match kind {
        Kind::Tree => tree(node, job)?,
        Kind::Sha256 => plain(node, job)?,
    };
    let digest = Written { kind, hash };
    Ok(DigestReport { digest, virtual_size: node.virtual_size(), bytes_read })
}

fn read_error(at: u64, e: Error) -> Error {
    e.context(format!("error while reading at byte {at}")).at_offset(at)
}

fn plain(node: &Node, job: &Job<'_>) -> Result<(Hash, u64)> {
    let size = node.virtual_size();
    let walk = Walk::chain(node);
    let mut sha = Sha256::new();
    let mut buf = vec![0; small(BLOCK)];
    let (mut at, mut read) = (0, 0);
    while at < size {
        check_cancelled(job.watcher)?;
        let run = walk.run(at, size - at).map_err(|e| read_error(at, e))?;
        let end = at + run.len;
        let found = at;
        if run.is_zero() {
            buf.fill(0);
        }
        while at < end {
            let piece = &mut buf[..small(BLOCK.min(end - at))];
            if !run.is_zero() {
                walk.read(&run, found, at, piece).map_err(|e| read_error(at, e))?;
                read += len_u64(piece.len());
            }
            sha.update(&*piece);
            at += len_u64(piece.len());
            job.watcher.progress(at, size);
        }
    }
    Ok((sha.finalize().into(), read))
}

fn leaf(block: &[u8]) -> Hash {
    let mut sha = Sha256::new();
    sha.update([0]);
    sha.update(block);
    sha.finalize().into()
}

/// Joins hashes that come in order.
struct Tree {
    /// Hash of zeroes, by level.
    zeroes: Vec<Hash>,
    /// Of each level: the group being filled, and what it has so far.
    levels: Vec<(u64, Vec<Hash>)>,
}

impl Tree {
    /// For a disk of so many blocks (at least one).
    fn new(blocks: u64) -> Self {
        let mut zeroes = vec![leaf(&vec![0; small(BLOCK)])];
        let mut levels = Vec::new();
        let mut left = blocks;
        while left > 1 {
            left = left.div_ceil(FAN);
            levels.push((0, Vec::new()));
            let below = zeroes[zeroes.len() - 1];
            zeroes.push(Self::join(&vec![below; small(FAN)]));
        }
        Tree { zeroes, levels }
    }

    fn join(hashes: &[Hash]) -> Hash {
        let mut sha = Sha256::new();
        sha.update([1]);
        hashes.iter().for_each(|h| sha.update(h));
        sha.finalize().into()
    }

    /// Adds the hash with number `index` of a level; numbers only go up, those left out are zeroes.
    /// The top's hash comes back when the level has no group above it.
    fn push(&mut self, level: usize, index: u64, hash: Hash) -> Option<Hash> {
        let zero = self.zeroes[level];
        let Some((group, have)) = self.levels.get_mut(level) else { return Some(hash) };
        let full = if *group == index / FAN || have.is_empty() {
            None
        } else {
            have.resize(small(FAN), zero);
            Some((*group, Self::join(have)))
        };
        if full.is_some() {
            have.clear();
        }
        *group = index / FAN;
        have.resize(small(index % FAN), zero);
        have.push(hash);
        full.and_then(|(group, joined)| self.push(level + 1, group, joined))
    }

    /// The hash at the top.
    fn finish(mut self) -> Hash {
        let mut top = None;
        for level in 0..self.levels.len() {
            let zero = self.zeroes[level];
            let (group, have) = &mut self.levels[level];
            if have.is_empty() {
                continue;
            }
            have.resize(small(FAN), zero);
            let (group, joined) = (*group, Self::join(have));
            have.clear();
            top = self.push(level + 1, group, joined).or(top);
        }
        top.unwrap_or(self.zeroes[self.zeroes.len() - 1])
    }
}

fn tree(node: &Node, job: &Job<'_>) -> Result<(Hash, u64)> {
    let size = node.virtual_size();
    let blocks = size.div_ceil(BLOCK).max(1);
    let work = Work {
        walk: Walk::chain(node),
        size,
        job: *job,
        claims: Mutex::default(),
        done: Mutex::new(Done {
            next: 0,
            early: BTreeMap::new(),
            tree: Tree::new(blocks),
            top: None,
        }),
        read: AtomicU64::new(0),
        failure: Failure::default(),
    };
    let threads = default_threads().min(small(blocks));
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(|| work.run());
        }
        work.run();
    });
    let read = work.read.load(Ordering::Relaxed);
    let done = work.done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    work.failure.into_result()?;
    job.watcher.progress(size, size);
    // A disk of one block has no level above it.
    let top = done.top.unwrap_or_else(|| done.tree.finish());
    let mut sha = Sha256::new();
    sha.update(b"rimg-digest-1\n");
    sha.update(size.to_le_bytes());
    sha.update(top);
    Ok((sha.finalize().into(), read))
}

/// A range of one block with one origin.
struct Part {
    at: u64,
    len: u64,
    found: u64,
    run: Run,
}

/// A block that is not known to be zero.
struct Block {
    ticket: u64,
    at: u64,
    parts: Vec<Part>,
}

#[derive(Default)]
struct Claims {
    at: u64,
    ticket: u64,
    known: Option<(u64, Run)>,
}

/// Hashes of blocks, put back in order.
struct Done {
    next: u64,
    early: BTreeMap<u64, (u64, Hash)>,
    tree: Tree,
    top: Option<Hash>,
}

struct Work<'a> {
    walk: Walk<'a>,
    size: u64,
    job: Job<'a>,
    claims: Mutex<Claims>,
    done: Mutex<Done>,
    read: AtomicU64,
    failure: Failure,
}

impl Work<'_> {
    fn run(&self) {
        let mut buf = vec![0; small(BLOCK)];
        loop {
            let (ticket, next) = {
                let mut claims = lock(&self.claims);
                (claims.ticket, self.claim(&mut claims))
            };
            let block = match next {
                Ok(Some(block)) if !self.failure.happened() => block,
                Ok(_) => return,
                Err(e) => return self.failure.report(ticket, e),
            };
            match self.hash(&block, &mut buf) {
                Ok(hash) => self.put(&block, hash),
                Err(e) => return self.failure.report(block.ticket, e),
            }
            self.job.watcher.progress(block.at, self.size);
        }
    }

    fn hash(&self, block: &Block, buf: &mut [u8]) -> Result<Hash> {
        check_cancelled(self.job.watcher)?;
        buf.fill(0);
        for part in block.parts.iter().filter(|p| !p.run.is_zero()) {
            let start = small(part.at - block.at);
            let area = &mut buf[start..start + small(part.len)];
            let outcome = self.walk.read(&part.run, part.found, part.at, area);
            outcome.map_err(|e| read_error(part.at, e))?;
            self.read.fetch_add(part.len, Ordering::Relaxed);
        }
        Ok(leaf(buf))
    }

    fn put(&self, block: &Block, hash: Hash) {
        let mut done = lock(&self.done);
        let done = &mut *done;
        done.early.insert(block.ticket, (block.at / BLOCK, hash));
        while let Some((index, hash)) = done.early.remove(&done.next) {
            done.top = done.tree.push(0, index, hash).or(done.top);
            done.next += 1;
        }
    }

    /// The next block with anything but zeroes in it.
    fn claim(&self, claims: &mut Claims) -> Result<Option<Block>> {
        while claims.at < self.size {
            let first = self.run_at(claims, claims.at)?;
            let end = first.0 + first.1.len;
            if first.1.is_zero() && (end >= self.size || round_down(end, BLOCK) > claims.at) {
                claims.at = if end >= self.size { self.size } else { round_down(end, BLOCK) };
                continue;
            }
            let at = claims.at;
            let stop = (at + BLOCK).min(self.size);
            let mut parts = Vec::new();
            let mut here = at;
            while here < stop {
                let (found, run) = self.run_at(claims, here)?;
                let len = (found + run.len).min(stop) - here;
                parts.push(Part { at: here, len, found, run });
                here += len;
            }
            let ticket = claims.ticket;
            claims.at = stop;
            claims.ticket += 1;
            return Ok(Some(Block { ticket, at, parts }));
        }
        Ok(None)
    }

    fn run_at(&self, claims: &mut Claims, at: u64) -> Result<(u64, Run)> {
        if let Some((found, run)) = claims.known
            && (found..found + run.len).contains(&at)
        {
            return Ok((found, run));
        }
        let run = self.walk.run(at, self.size - at).map_err(|e| read_error(at, e))?;
        claims.known = Some((at, run));
        Ok((at, run))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// The definition, word for word.
    fn slow(blocks: &[Hash]) -> Hash {
        let mut hashes = blocks.to_vec();
        let mut zero = leaf(&vec![0; small(BLOCK)]);
        while hashes.len() > 1 {
            hashes.resize(hashes.len().next_multiple_of(256), zero);
            hashes = hashes.chunks(256).map(Tree::join).collect();
            zero = Tree::join(&vec![zero; 256]);
        }
        hashes[0]
    }

    #[test]
    fn zeroes_left_out_are_zeroes() {
        let zero = leaf(&vec![0; small(BLOCK)]);
        for blocks in [1u64, 2, 255, 256, 257, 300, 65_536, 65_537, 70_000] {
            for seed in 0..4u64 {
                let mut all = vec![zero; small(blocks)];
                let mut tree = Tree::new(blocks);
                let mut top = None;
                for index in 0..blocks {
                    let n = index.wrapping_mul(0x9e37_79b9).wrapping_add(seed * 77) % 1000;
                    if (seed == 3 && index + 1 == blocks) || n < seed * 30 {
                        let hash = leaf(&index.to_le_bytes());
                        all[small(index)] = hash;
                        top = tree.push(0, index, hash).or(top);
                    }
                }
                let top = top.unwrap_or_else(|| tree.finish());
                assert_eq!(top, slow(&all), "{blocks} blocks, {seed}");
            }
        }
    }

    #[test]
    fn digests_are_read_as_they_are_written() {
        let written = Written { kind: Kind::Tree, hash: [0xa5; 32] };
        assert_eq!(written.to_string().parse::<Written>().unwrap(), written);
        for bad in ["", "rimg1:", "rimg1:zz", "md5:00", &format!("rimg2:{}", "0".repeat(64))] {
            assert!(bad.parse::<Written>().is_err(), "{bad}");
        }
    }
}
