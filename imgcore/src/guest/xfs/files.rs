//! Inodes and files.
//!
//! The log is not played back: what a system that was switched off had only in its log is not seen.

use super::layout::{INCOMPAT_NEEDS_REPAIR, Superblock};
use crate::guest::fields::{Fields, cut_off, share, uuid};
use crate::guest::files::{About, Entry, FileId, FileKind, FileSystem, FsKind, Stat, VolumeReader};
use crate::num::{len_u64, small};
use crate::{Error, Result};

/// Known features: ftype, sparse inodes, meta UUID, big time, needs repair, large extent counts, exchange
/// range, parent pointers. What is not among them (a tree of metadata, zones) changes what is read here.
const KNOWN_INCOMPAT: u32 = 0xff;
const DIFLAG_REALTIME: u16 = 1;
const DIFLAG2_NREXT64: u64 = 1 << 4;

/// Whether the superblock's magic number is there.
pub fn probe(source: &VolumeReader) -> bool {
    source.bytes(0, 4).is_ok_and(|m| m == b"XFSB")
}

/// An XFS file system.
pub struct Xfs {
    pub(super) source: VolumeReader,
    pub(super) layout: Superblock,
    about: About,
}

/// How a fork keeps what belongs to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Local,
    Extents,
    Tree,
}

pub(super) struct Inode {
    mode: u16,
    pub(super) size: u64,
    pub(super) format: Option<Format>,
    realtime: bool,
    pub(super) extents: u64,
    /// The data fork.
    pub(super) fork: Vec<u8>,
}

impl Xfs {
    /// Reads the superblock.
    ///
    /// # Errors
    /// When it is damaged, or has features that are unknown here.
    pub fn open(source: VolumeReader) -> Result<Self> {
        let layout = Superblock::parse(&source.bytes(0, 512)?)?;
        let unknown = layout.incompat & !KNOWN_INCOMPAT;
        if unknown != 0 {
            return Err(Error::unsupported(format!("XFS with unknown features {unknown:#x}")));
        }
        let mut notes = Vec::new();
        if layout.incompat & INCOMPAT_NEEDS_REPAIR != 0 {
            notes.push(
                "marked as in need of xfs_repair: it cannot be mounted before that".to_owned(),
            );
        }
        let used = layout.blocks.saturating_sub(layout.free_blocks);
        let about = About {
            kind: FsKind::Xfs,
            label: Some(layout.label.clone()).filter(|l| !l.is_empty()),
            uuid: Some(uuid(&layout.uuid)),
            size: layout.blocks.saturating_mul(layout.block),
            used: Some(used.saturating_mul(layout.block)),
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
        let fork = raw.get(start..end).ok_or_else(cut_off)?.to_vec();
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

    pub(super) fn read_mapped(&self, inode: &Inode, at: u64, buf: &mut [u8]) -> Result<()> {
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
        if FileKind::of_mode(inode.mode.into()) != FileKind::Folder {
            return Err(Error::invalid("not a folder"));
        }
        self.names(&inode, limit)
    }

    fn stat(&self, file: FileId) -> Result<Stat> {
        let inode = self.inode(file.0)?;
        Ok(Stat { kind: FileKind::of_mode(inode.mode.into()), size: inode.size })
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
