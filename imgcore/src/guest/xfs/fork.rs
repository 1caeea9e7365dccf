//! Which block of the disk a block of a file is: extents in the inode, or in a tree ("Data Extents",
//! "B+tree Extent List").

use super::files::{Format, Inode, Xfs};
use crate::guest::fields::Fields;
use crate::num::small;
use crate::{Error, Result};

/// A run of a file's blocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    /// The first one's number; `None` reads as zeroes.
    pub start: Option<u64>,
    /// Blocks, at least one.
    pub blocks: u64,
}

/// Levels of a tree; XFS needs five at most.
const MAX_LEVEL: u16 = 9;

/// 128 bits: a flag, 54 bits of the file's block, 52 of the disk's, 21 of the count.
struct Extent {
    first: u64,
    start: u64,
    blocks: u64,
    written: bool,
}

impl Extent {
    fn new(f: Fields<'_>, at: usize) -> Result<Self> {
        let (high, low) = (f.be64(at)?, f.be64(at + 8)?);
        Ok(Extent {
            written: high >> 63 == 0,
            first: (high >> 9) & ((1 << 54) - 1),
            start: ((high & 0x1ff) << 43) | (low >> 21),
            blocks: low & ((1 << 21) - 1),
        })
    }
}

impl Xfs {
    /// The run that begins with block `wanted` of a file.
    pub(super) fn map(&self, inode: &Inode, wanted: u64) -> Result<Run> {
        match inode.format {
            Some(Format::Extents) => {
                let room = crate::num::len_u64(inode.fork.len() / 16);
                let count = small(inode.extents.min(room));
                search(Fields(&inode.fork), 0, count, wanted, u64::MAX)
            }
            Some(Format::Tree) => self.map_tree(&inode.fork, wanted),
            _ => Err(Error::corrupt("a file of XFS has no blocks")),
        }
    }

    fn map_tree(&self, fork: &[u8], wanted: u64) -> Result<Run> {
        let bad = || Error::corrupt("an extent tree of XFS is damaged");
        let root = Fields(fork);
        let mut level = root.be16(0)?;
        if level == 0 || level > MAX_LEVEL {
            return Err(bad());
        }
        let mut until = u64::MAX;
        let room = fork.len().saturating_sub(4) / 16;
        let mut child = choose(root, (4, room), usize::from(root.be16(2)?), wanted, &mut until)?;
        let header = if self.layout.version5 { 72 } else { 24 };
        loop {
            level -= 1;
            let Some(block) = child else { return Ok(hole(wanted, until)) };
            let raw = self.source.bytes(self.layout.place(block)?, small(self.layout.block))?;
            let f = Fields(&raw);
            let magic: [u8; 4] = f.array(0)?;
            let expected = if self.layout.version5 { *b"BMA3" } else { *b"BMAP" };
            if magic != expected || f.be16(4)? != level {
                return Err(bad());
            }
            let count = usize::from(f.be16(6)?);
            let room = (raw.len() - header) / 16;
            if count > room {
                return Err(bad());
            }
            if level == 0 {
                return search(f, header, count, wanted, until);
            }
            child = choose(f, (header, room), count, wanted, &mut until)?;
        }
    }
}

fn hole(wanted: u64, until: u64) -> Run {
    Run { start: None, blocks: (until - wanted).max(1) }
}

/// Of a node: the child whose first block is the last one not after `wanted`. Keys come first, then, behind
/// the room for all keys, the children.
fn choose(
    f: Fields<'_>,
    (header, room): (usize, usize),
    count: usize,
    wanted: u64,
    until: &mut u64,
) -> Result<Option<u64>> {
    let mut chosen = None;
    for i in 0..count.min(room) {
        let first = f.be64(header + 8 * i)?;
        if first > wanted {
            *until = (*until).min(first);
            break;
        }
        chosen = Some(f.be64(header + 8 * room + 8 * i)?);
    }
    Ok(chosen)
}

/// Of a list of extents.
fn search(f: Fields<'_>, at: usize, count: usize, wanted: u64, until: u64) -> Result<Run> {
    let mut until = until;
    let mut found = None;
    for i in 0..count {
        let extent = Extent::new(f, at + 16 * i)?;
        if extent.first > wanted {
            until = until.min(extent.first);
            break;
        }
        found = Some(extent);
    }
    match found {
        Some(e) if wanted - e.first < e.blocks => {
            let into = wanted - e.first;
            let start = e.written.then_some(e.start + into);
            Ok(Run { start, blocks: e.blocks - into })
        }
        _ => Ok(hole(wanted, until)),
    }
}
