//! Names of a folder: in the inode ("Short Form Directories"), or in data blocks, which are the same for
//! folders of one block, with leaves, and with nodes. The hashes are not used: all blocks are read.

use super::files::{Format, Inode, Xfs};
use crate::guest::fields::Fields;
use crate::guest::files::{Entry, FileId};
use crate::num::{len_u64, small};
use crate::{Error, Result};

/// Leaves begin here in the folder's address space; data blocks are before.
const LEAF_OFFSET: u64 = 1 << 35;

impl Xfs {
    pub(super) fn names(&self, inode: &Inode, limit: usize) -> Result<Vec<Entry>> {
        let mut all = Vec::new();
        if inode.format == Some(Format::Local) {
            self.short_form(inode, &mut all, limit)?;
            return Ok(all);
        }
        let size = small(self.layout.folder_block);
        let end = inode.size.min(LEAF_OFFSET);
        let mut at = 0;
        while at < end && all.len() < limit {
            let run = self.map(inode, at / self.layout.block)?;
            if run.start.is_none() {
                // A block whose names were all removed. Over the hole in one step, in whole blocks.
                let bytes = run.blocks.saturating_mul(self.layout.block);
                at = at.saturating_add(bytes.max(len_u64(size))) / len_u64(size) * len_u64(size);
                self.source.charge(0)?;
                continue;
            }
            let mut block = vec![0; size];
            self.read_mapped(inode, at, &mut block)?;
            self.data_block(&block, &mut all, limit)?;
            at += len_u64(size);
        }
        Ok(all)
    }

    fn short_form(&self, inode: &Inode, all: &mut Vec<Entry>, limit: usize) -> Result<()> {
        let f = Fields(&inode.fork);
        let (count, wide) = (f.u8(0)?, f.u8(1)? > 0);
        let width = if wide { 8 } else { 4 };
        let mut at = 2 + width;
        for _ in 0..count {
            if all.len() >= limit {
                break;
            }
            let len = usize::from(f.u8(at)?);
            let name = String::from_utf8_lossy(f.slice(at + 3, len)?).into_owned();
            at += 3 + len + usize::from(self.layout.ftype);
            let number = if wide { f.be64(at)? } else { u64::from(f.be32(at)?) };
            at += width;
            all.push(Entry { name, id: FileId(number, 0) });
        }
        Ok(())
    }

    fn data_block(&self, block: &[u8], all: &mut Vec<Entry>, limit: usize) -> Result<()> {
        let f = Fields(block);
        let magic: [u8; 4] = f.array(0)?;
        let header = match &magic {
            b"XD2B" | b"XD2D" => 16,
            b"XDB3" | b"XDD3" => 64,
            _ => return Err(Error::corrupt("a folder of XFS has a block that is none")),
        };
        let mut end = block.len();
        if matches!(&magic, b"XD2B" | b"XDB3") {
            // The hashes of a folder of one block stand at its end, their count last.
            let count = small(u64::from(f.be32(end - 8)?));
            let tail = count.checked_mul(8).and_then(|n| n.checked_add(8));
            end = tail.and_then(|t| end.checked_sub(t)).ok_or_else(bad)?;
        }
        let mut at = header;
        while at < end && all.len() < limit {
            if f.be16(at)? == 0xffff {
                let len = usize::from(f.be16(at + 2)?);
                if len < 8 {
                    return Err(bad());
                }
                at += len;
                continue;
            }
            let len = usize::from(f.u8(at + 8)?);
            let name = f.slice(at + 9, len)?;
            if name != b"." && name != b".." {
                let name = String::from_utf8_lossy(name).into_owned();
                all.push(Entry { name, id: FileId(f.be64(at)?, 0) });
            }
            at += (8 + 1 + len + usize::from(self.layout.ftype) + 2).next_multiple_of(8);
        }
        Ok(())
    }
}

fn bad() -> Error {
    Error::corrupt("a folder of XFS has a damaged block")
}
