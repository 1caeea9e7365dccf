//! Trees of nodes: a header of 101 bytes; in leaves keys with places of their data, above keys with
//! addresses of nodes.

use super::{Btrfs, Fields};
use crate::num::small;
use crate::{Error, Result};

const HEADER: usize = 101;
/// Levels that a tree can have.
const MAX_LEVEL: u8 = 7;

/// What items are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub object: u64,
    pub kind: u8,
    pub offset: u64,
}

impl Key {
    pub(super) fn read(f: Fields<'_>, at: usize) -> Result<Self> {
        Ok(Key { object: f.le64(at)?, kind: f.u8(at + 8)?, offset: f.le64(at + 9)? })
    }
}

/// A tree: its topmost node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Root {
    pub block: u64,
    pub level: u8,
}

/// Gets key and data of an item; says whether to go on.
pub(super) type Each<'a> = dyn FnMut(Key, &[u8]) -> Result<bool> + 'a;

impl Btrfs {
    /// All items of one object and kind.
    pub(super) fn items(
        &self,
        root: Root,
        object: u64,
        kind: u8,
        each: &mut Each<'_>,
    ) -> Result<()> {
        let key = |offset| Key { object, kind, offset };
        self.range(root, key(0), key(u64::MAX), each)
    }

    /// All items from one key to another one.
    pub(super) fn range(&self, root: Root, from: Key, to: Key, each: &mut Each<'_>) -> Result<()> {
        if root.level > MAX_LEVEL {
            return Err(damaged());
        }
        self.walk(root, from, to, each).map(|_| ())
    }

    fn node(&self, node: Root) -> Result<Vec<u8>> {
        let (at, left) = self.chunks.place(node.block)?;
        if left < crate::num::len_u64(self.node_size) {
            return Err(damaged());
        }
        let raw = self.source.bytes(at, self.node_size)?;
        let f = Fields(&raw);
        // A node names its own address and level, which also keeps a tree from leading in circles.
        if f.le64(48)? != node.block || f.u8(100)? != node.level {
            return Err(damaged());
        }
        Ok(raw)
    }

    fn walk(&self, node: Root, from: Key, to: Key, each: &mut Each<'_>) -> Result<bool> {
        let raw = self.node(node)?;
        let f = Fields(&raw);
        let count = small(u64::from(f.le32(96)?));
        let width = if node.level == 0 { 25 } else { 33 };
        if count > (raw.len() - HEADER) / width {
            return Err(damaged());
        }
        if node.level == 0 {
            for i in 0..count {
                let at = HEADER + width * i;
                let key = Key::read(f, at)?;
                if key > to {
                    return Ok(false);
                }
                if key >= from {
                    let (offset, len) = (f.le32(at + 17)?, f.le32(at + 21)?);
                    let start = HEADER + small(u64::from(offset));
                    if !each(key, f.slice(start, small(u64::from(len)))?)? {
                        return Ok(false);
                    }
                }
            }
            return Ok(true);
        }
        for i in 0..count {
            let at = HEADER + width * i;
            if Key::read(f, at)? > to {
                return Ok(false);
            }
            // A child ends where the next one begins.
            if i + 1 < count && Key::read(f, at + width)? <= from {
                continue;
            }
            let child = Root { block: f.le64(at + 17)?, level: node.level - 1 };
            if !self.walk(child, from, to, each)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn damaged() -> Error {
    Error::corrupt("a tree of btrfs is damaged")
}
