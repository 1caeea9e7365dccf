//! Which block of the disk a block of a file is: extent trees, and the older tables of numbers.

use super::files::{Ext, FLAG_EXTENTS, Inode};
use crate::guest::fields::Fields;
use crate::{Error, Result};

/// A run of a file's blocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    /// The first one's place; `None` reads as zeroes.
    pub start: Option<u64>,
    /// Blocks, at least one.
    pub blocks: u64,
}

/// Levels of an extent tree; more cannot be needed for 2^32 blocks.
const MAX_DEPTH: u16 = 5;

impl Ext {
    /// The run that begins with block `wanted` of a file.
    pub(super) fn map(&self, inode: &Inode, wanted: u64) -> Result<Run> {
        if inode.flags & FLAG_EXTENTS != 0 {
            return self.map_extents(inode, wanted);
        }
        let place = self.map_numbers(inode, wanted)?;
        Ok(Run { start: Some(place).filter(|p| *p != 0), blocks: 1 })
    }

    /// "Extent Tree": one node a level, each a header of 12 bytes and entries of 12, sorted by the first
    /// block they are for.
    fn map_extents(&self, inode: &Inode, wanted: u64) -> Result<Run> {
        let mut node = inode.block.to_vec();
        let mut depth = None;
        // Blocks up to the next entry anywhere above, for the length of a hole.
        let mut until = u64::MAX;
        loop {
            let f = Fields(&node);
            let (magic, entries, here) = (f.le16(0)?, f.le16(2)?, f.le16(6)?);
            let expected = depth.unwrap_or(here);
            if magic != 0xf30a || here > MAX_DEPTH || here != expected {
                return Err(Error::corrupt("an extent tree of ext4 is damaged"));
            }
            let mut chosen = None;
            for i in 0..usize::from(entries) {
                let at = 12 + 12 * i;
                let first = u64::from(f.le32(at)?);
                if first > wanted {
                    until = until.min(first);
                    break;
                }
                chosen = Some((at, first));
            }
            let hole = Run { start: None, blocks: (until - wanted).max(1) };
            let Some((at, first)) = chosen else { return Ok(hole) };
            if here == 0 {
                let raw = u64::from(f.le16(at + 4)?);
                // More than 32768: allocated but never written.
                let (len, written) = if raw > 32768 { (raw - 32768, false) } else { (raw, true) };
                let into = wanted - first;
                if into >= len {
                    return Ok(hole);
                }
                let start = (u64::from(f.le16(at + 6)?) << 32) | u64::from(f.le32(at + 8)?);
                return Ok(Run { start: written.then_some(start + into), blocks: len - into });
            }
            let child = u64::from(f.le32(at + 4)?) | (u64::from(f.le16(at + 8)?) << 32);
            node = self.whole_block(child)?;
            depth = Some(here - 1);
        }
    }

    /// "Direct/Indirect Block Addressing": twelve numbers, then a table, a table of tables, and one more.
    fn map_numbers(&self, inode: &Inode, wanted: u64) -> Result<u64> {
        let root = Fields(&inode.block);
        let per = self.layout.block / 4;
        let number = |f: Fields<'_>, i: u64| f.le32(crate::num::small(i * 4)).map(u64::from);
        if wanted < 12 {
            return number(root, wanted);
        }
        let mut rest = wanted - 12;
        let mut span = per;
        for level in 1..=3u64 {
            if rest >= span {
                rest -= span;
                span *= per;
                continue;
            }
            let mut place = number(root, 11 + level)?;
            for _ in 0..level {
                if place == 0 {
                    return Ok(0);
                }
                span /= per;
                place = number(Fields(&self.whole_block(place)?), rest / span)?;
                rest %= span;
            }
            return Ok(place);
        }
        Err(Error::corrupt("a file of ext2 has more blocks than it can have"))
    }

    fn whole_block(&self, block: u64) -> Result<Vec<u8>> {
        let mut node = vec![0; crate::num::small(self.layout.block)];
        self.read_block(block, 0, &mut node)?;
        Ok(node)
    }
}
