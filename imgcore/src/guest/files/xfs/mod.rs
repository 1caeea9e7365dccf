//! XFS, versions 4 and 5 ("XFS Algorithms & Data Structures", 3rd edition). All numbers are big endian.
//!
//! The log is not played back: what a system that was switched off had only in its log is not seen.

mod folder;
mod fork;

use super::field::{Fields, share};
use super::{About, Entry, FileId, FileKind, FileSystem, FsKind, Stat, VolumeReader};
use crate::num::{len_u64, small};
use crate::{Error, Result};

/// Known features: ftype, sparse inodes, meta UUID, big time, needs repair, large extent counts, exchange
/// range, parent pointers. What is not among them (a tree of metadata, zones) changes what is read here.
const KNOWN_INCOMPAT: u32 = 0xff;
const INCOMPAT_FTYPE: u32 = 1;
const INCOMPAT_NEEDS_REPAIR: u32 = 16;
const FEATURES2_FTYPE: u32 = 0x200;
const DIFLAG_REALTIME: u16 = 1;
const DIFLAG2_NREXT64: u64 = 1 << 4;

/// Whether the superblock's magic number is there.
pub fn probe(source: &VolumeReader) -> bool {
    source.bytes(0, 4).is_ok_and(|m| m == b"XFSB")
}

/// An XFS file system.
pub struct Xfs {
    source: VolumeReader,
    layout: Layout,
    about: About,
}

#[derive(Clone, Copy, Debug)]
struct Layout {
    block: u64,
    blocks: u64,
    group_blocks: u64,
    groups: u64,
    /// Bits of a block's number in its group.
    group_bits: u32,
    /// Bits of an inode's number in its block.
    inode_bits: u32,
    inode_size: usize,
    folder_block: u64,
    root: u64,
    version5: bool,
    /// Names carry the type of what they name.
    ftype: bool,
}

/// How a fork keeps what belongs to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Local,
    Extents,
    Tree,
}

struct Inode {
    mode: u16,
    size: u64,
    format: Option<Format>,
    realtime: bool,
    extents: u64,
    /// The data fork.
    fork: Vec<u8>,
}

impl Layout {
    fn new(sb: Fields<'_>) -> Result<Self> {
        let bad = |what: &str| Error::corrupt(format!("the superblock of XFS is damaged: {what}"));
        let block = u64::from(sb.be32(4)?);
        let version = sb.be16(100)? & 0xf;
        let (inode_bits, group_bits) = (u32::from(sb.u8(123)?), u32::from(sb.u8(124)?));
        let inode_size = usize::from(sb.be16(104)?);
        let folder_bits = sb.u8(192)?;
        let version5 = version == 5;
        let ftype = if version5 {
            sb.be32(216)? & INCOMPAT_FTYPE != 0
        } else {
            sb.be32(200)? & FEATURES2_FTYPE != 0
        };
        let layout = Layout {
            block,
            blocks: sb.be64(8)?,
            group_blocks: u64::from(sb.be32(84)?),
            groups: u64::from(sb.be32(88)?),
            group_bits,
            inode_bits,
            inode_size,
            folder_block: block.checked_shl(u32::from(folder_bits)).unwrap_or(0),
            root: sb.be64(56)?,
            version5,
            ftype,
        };
        if !matches!(version, 4 | 5) {
            return Err(Error::unsupported(format!("XFS of version {version}")));
        }
        if !block.is_power_of_two() || !(512..=65536).contains(&block) {
            return Err(bad("blocks of an impossible size"));
        }
        if !inode_size.is_power_of_two() || !(256..=2048).contains(&inode_size) {
            return Err(bad("inodes of an impossible size"));
        }
        if len_u64(inode_size) << inode_bits.min(16) != block {
            return Err(bad("inodes that do not fill their blocks"));
        }
        if layout.folder_block < block || layout.folder_block > 65536 {
            return Err(bad("folders of an impossible block size"));
        }
        if layout.groups == 0 || layout.group_blocks == 0 || !(1..=31).contains(&group_bits) {
            return Err(bad("no allocation groups"));
        }
        Ok(layout)
    }

    /// Where a block is, by the number that has its group in the upper bits.
    fn place(&self, block: u64) -> Result<u64> {
        let (group, within) = (block >> self.group_bits, block & ((1 << self.group_bits) - 1));
        if group >= self.groups || within >= self.group_blocks {
            return Err(Error::corrupt(format!("XFS has no block {block:#x}")));
        }
        let at =
            (group * self.group_blocks).checked_add(within).and_then(|b| b.checked_mul(self.block));
        at.ok_or_else(|| Error::corrupt("a block of XFS is out of range"))
    }
}

impl Xfs {
    /// Reads the superblock.
    ///
    /// # Errors
    /// When it is damaged, or has features that are unknown here.
    pub fn open(source: VolumeReader) -> Result<Self> {
        let raw = source.bytes(0, 512)?;
        let sb = Fields(&raw);
        let layout = Layout::new(sb)?;
        let mut notes = Vec::new();
        if layout.version5 {
            let incompat = sb.be32(216)?;
            if incompat & !KNOWN_INCOMPAT != 0 {
                return Err(Error::unsupported(format!(
                    "XFS with unknown features {:#x}",
                    incompat & !KNOWN_INCOMPAT
                )));
            }
            if incompat & INCOMPAT_NEEDS_REPAIR != 0 {
                notes.push(
                    "marked as in need of xfs_repair: it cannot be mounted before that".to_owned(),
                );
            }
        }
        let free = sb.be64(144)?;
        let about = About {
            kind: FsKind::Xfs,
            label: Some(sb.text(108, 12)?).filter(|l| !l.is_empty()),
            uuid: Some(sb.uuid(32)?),
            size: layout.blocks.saturating_mul(layout.block),
            used: Some(layout.blocks.saturating_sub(free).saturating_mul(layout.block)),
            notes,
        };
        Ok(Xfs { source, layout, about })
    }

    fn inode(&self, number: u64) -> Result<Inode> {
        let l = &self.layout;
        let block = l.place(number >> l.inode_bits)?;
        let index = number & ((1 << l.inode_bits) - 1);
        let raw = self.source.bytes(block + index * len_u64(l.inode_size), l.inode_size)?;
        let f = Fields(&raw);
        if f.array::<2>(0)? != *b"IN" {
            return Err(Error::corrupt(format!("XFS has no inode {number}")));
        }
        let version = f.u8(4)?;
        let start = if version >= 3 { 176 } else { 100 };
        let format = match f.u8(5)? {
            1 => Some(Format::Local),
            2 => Some(Format::Extents),
            3 => Some(Format::Tree),
            _ => None,
        };
        let wide = version >= 3 && f.be64(120)? & DIFLAG2_NREXT64 != 0;
        let extents = if wide { f.be64(24)? } else { u64::from(f.be32(76)?) };
        // The attributes begin behind the data.
        let end = match usize::from(f.u8(82)?) * 8 {
            0 => l.inode_size,
            offset => start + offset,
        };
        let fork = raw.get(start..end).ok_or_else(super::field::cut_off)?.to_vec();
        Ok(Inode {
            mode: f.be16(2)?,
            size: f.be64(56)?,
            format,
            realtime: f.be16(90)? & DIFLAG_REALTIME != 0,
            extents,
            fork,
        })
    }

    /// Reads a file's bytes.
    fn read_inode(&self, inode: &Inode, at: u64, buf: &mut [u8]) -> Result<usize> {
        if inode.realtime {
            return Err(Error::unsupported("the file is on the realtime device of XFS"));
        }
        let n = share(inode.size, at, buf);
        let buf = &mut buf[..n];
        if inode.format == Some(Format::Local) {
            let from = small(at).min(inode.fork.len());
            let have = n.min(inode.fork.len() - from);
            buf[..have].copy_from_slice(&inode.fork[from..from + have]);
            return Ok(have);
        }
        self.read_mapped(inode, at, buf)?;
        Ok(n)
    }

    fn read_mapped(&self, inode: &Inode, at: u64, buf: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < buf.len() {
            let pos = at + len_u64(done);
            let (block, offset) = (pos / self.layout.block, pos % self.layout.block);
            let run = self.map(inode, block)?;
            let bytes = run.blocks.saturating_mul(self.layout.block).saturating_sub(offset);
            let n = small(bytes.min(len_u64(buf.len() - done)));
            let out = &mut buf[done..done + n];
            match run.start {
                None => {
                    self.source.charge(len_u64(n))?;
                    out.fill(0);
                }
                Some(start) => self.source.read_at(self.layout.place(start)? + offset, out)?,
            }
            done += n;
        }
        Ok(())
    }
}

impl FileSystem for Xfs {
    fn about(&self) -> &About {
        &self.about
    }

    fn root(&self) -> FileId {
        FileId(self.layout.root, 0)
    }

    fn list(&self, folder: FileId, limit: usize) -> Result<Vec<Entry>> {
        let inode = self.inode(folder.0)?;
        if kind(inode.mode) != FileKind::Folder {
            return Err(Error::invalid("not a folder"));
        }
        self.names(&inode, limit)
    }

    fn stat(&self, file: FileId) -> Result<Stat> {
        let inode = self.inode(file.0)?;
        Ok(Stat { kind: kind(inode.mode), size: inode.size })
    }

    fn read(&self, file: FileId, at: u64, buf: &mut [u8]) -> Result<usize> {
        self.read_inode(&self.inode(file.0)?, at, buf)
    }

    fn link(&self, file: FileId) -> Result<String> {
        let inode = self.inode(file.0)?;
        if inode.size > 1024 {
            return Err(Error::corrupt("a symbolic link of XFS is longer than can be"));
        }
        let mut text = vec![0; small(inode.size)];
        if inode.format == Some(Format::Local) {
            self.read_inode(&inode, 0, &mut text)?;
        } else {
            self.long_link(&inode, &mut text)?;
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

impl Xfs {
    /// A link in blocks of its own: since version 5 each run of blocks begins with a header of 56 bytes.
    fn long_link(&self, inode: &Inode, text: &mut [u8]) -> Result<()> {
        let header = if self.layout.version5 { 56 } else { 0 };
        let (mut done, mut block) = (0, 0);
        while done < text.len() {
            let run = self.map(inode, block)?;
            let start =
                run.start.ok_or_else(|| Error::corrupt("a symbolic link of XFS has a hole"))?;
            let room = run.blocks.min(8) * self.layout.block - header;
            let n = small(room).min(text.len() - done);
            self.source.read_at(self.layout.place(start)? + header, &mut text[done..done + n])?;
            done += n;
            block += run.blocks;
        }
        Ok(())
    }
}

fn kind(mode: u16) -> FileKind {
    match mode & 0xf000 {
        0x4000 => FileKind::Folder,
        0x8000 => FileKind::File,
        0xa000 => FileKind::Link,
        _ => FileKind::Other,
    }
}
