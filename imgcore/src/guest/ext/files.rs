//! Files and folders.
//!
//! Blocks that the journal holds newer than their home are read from there ([`journal`]), so a disk that
//! was not unmounted shows what a mount would show. Folders are read from front to end: the inner nodes of
//! a hashed folder look like unused entries there.

use std::collections::BTreeMap;

use super::journal;
use super::layout::{
    Descriptor, ERROR_FS, FILETYPE, HAS_JOURNAL, JOURNAL_DEV, RECOVER, SUPER_AT, SUPER_SIZE,
    Superblock,
};
use crate::guest::fields::{Fields, share, uuid};
use crate::guest::files::{About, Entry, FileId, FileKind, FileSystem, Stat, VolumeReader};
use crate::num::{len_u64, small};
use crate::{Error, Result};

const ROOT: u64 = 2;

/// Those that change nothing for this reader, or are known to it: filetype, recover, meta_bg, extents,
/// 64bit, mmp, flex_bg, ea_inode, csum_seed, largedir, inline_data, encrypt (seen at the file), casefold.
const KNOWN: u32 = 0x2
    | 0x4
    | 0x10
    | 0x40
    | 0x80
    | 0x100
    | 0x200
    | 0x400
    | 0x2000
    | 0x4000
    | 0x8000
    | 0x1_0000
    | 0x2_0000;
// i_flags
const FLAG_ENCRYPT: u32 = 0x800;
pub(super) const FLAG_EXTENTS: u32 = 0x8_0000;
const FLAG_INLINE: u32 = 0x1000_0000;

/// Whether the superblock's magic number is there.
pub fn probe(source: &VolumeReader) -> bool {
    source.bytes(SUPER_AT + 0x38, 2).is_ok_and(|m| m == [0x53, 0xef])
}

/// An ext2, ext3 or ext4 file system.
pub struct Ext {
    pub(super) source: VolumeReader,
    pub(super) layout: Superblock,
    about: About,
    /// Blocks whose newest contents lie in the journal: home to place; `true` where the journal had to
    /// replace the first four bytes because they looked like its own.
    newer: BTreeMap<u64, (u64, bool)>,
}

/// The parts of an inode that are used here.
pub(super) struct Inode {
    mode: u16,
    size: u64,
    pub(super) flags: u32,
    /// `i_block`: extents, block numbers, or data.
    pub(super) block: [u8; 60],
    /// The rest of the inode, for data in it.
    raw: Vec<u8>,
}

impl Ext {
    /// Reads superblock and journal.
    ///
    /// # Errors
    /// When the superblock is damaged or has features that are unknown here.
    pub fn open(source: VolumeReader) -> Result<Self> {
        let layout = Superblock::parse(&source.bytes(SUPER_AT, SUPER_SIZE)?)?;
        if layout.incompat & JOURNAL_DEV != 0 {
            return Err(Error::unsupported("an external journal of ext4, no file system"));
        }
        if layout.incompat & !KNOWN != 0 {
            return Err(Error::unsupported(format!(
                "an ext4 file system with unknown features {:#x}",
                layout.incompat & !KNOWN
            )));
        }
        let used = layout.blocks.saturating_sub(layout.free_blocks);
        let mut about = About {
            kind: layout.kind(),
            label: Some(layout.label.clone()).filter(|l| !l.is_empty()),
            uuid: Some(uuid(&layout.uuid)),
            size: layout.blocks.saturating_mul(layout.block),
            used: Some(used.saturating_mul(layout.block)),
            notes: Vec::new(),
        };
        if layout.state & ERROR_FS != 0 {
            about.notes.push("the kernel has noticed errors in it: run e2fsck".to_owned());
        }
        if about.size > source.size() {
            about.notes.push("it is larger than the volume that holds it".to_owned());
        }
        let mut fs = Ext { source, layout, about, newer: BTreeMap::new() };
        if fs.layout.compat & HAS_JOURNAL != 0 && fs.layout.incompat & RECOVER != 0 {
            match journal::replay(&fs, fs.layout.journal_inode) {
                Ok(newer) => {
                    let n = newer.len();
                    fs.newer = newer;
                    fs.about.notes.push(format!(
                        "not cleanly unmounted: {n} blocks are read from its journal"
                    ));
                }
                Err(e) => fs.about.notes.push(format!(
                    "not cleanly unmounted, and its journal cannot be read: {}",
                    e.report()
                )),
            }
        }
        Ok(fs)
    }

    /// Fills `buf` from inside of a block, which may lie in the journal.
    pub(super) fn read_block(&self, block: u64, offset: u64, buf: &mut [u8]) -> Result<()> {
        let (place, escaped) = self.newer.get(&block).copied().unwrap_or((block, false));
        let at = place.checked_mul(self.layout.block).and_then(|at| at.checked_add(offset));
        let at = at.ok_or_else(|| Error::corrupt("a block number of ext4 is out of range"))?;
        self.source.read_at(at, buf)?;
        if escaped {
            let magic = journal::MAGIC.to_be_bytes();
            for (i, byte) in magic.iter().enumerate() {
                let i = len_u64(i);
                if i >= offset && i - offset < len_u64(buf.len()) {
                    buf[small(i - offset)] = *byte;
                }
            }
        }
        Ok(())
    }

    /// The first block of the table of inodes of a group.
    fn inode_table(&self, group: u64) -> Result<u64> {
        let (block, offset) = self.layout.descriptor_place(group);
        let mut raw = [0; 64];
        let raw = if self.layout.descriptor < 64 { &mut raw[..32] } else { &mut raw[..] };
        self.read_block(block, offset, raw)?;
        Ok(Descriptor::parse(raw)?.inode_table)
    }

    pub(super) fn inode(&self, number: u64) -> Result<Inode> {
        let l = &self.layout;
        if number == 0 || number > l.inodes {
            return Err(Error::corrupt(format!("ext4 has no inode {number}")));
        }
        let group = (number - 1) / l.inodes_per_group;
        let at = ((number - 1) % l.inodes_per_group) * len_u64(l.inode_size);
        let table = self.inode_table(group)?;
        let mut raw = vec![0; l.inode_size];
        self.read_block(table.saturating_add(at / l.block), at % l.block, &mut raw)?;
        let f = Fields(&raw);
        let mode = f.le16(0)?;
        // i_size_high counts for folders only with largedir, where it is zero otherwise.
        let size = u64::from(f.le32(4)?) | (u64::from(f.le32(0x6c)?) << 32);
        Ok(Inode { mode, size, flags: f.le32(0x20)?, block: f.array(0x28)?, raw })
    }

    /// Reads a file's bytes; what is not there is zero.
    fn read_inode(&self, inode: &Inode, at: u64, buf: &mut [u8]) -> Result<usize> {
        let n = share(inode.size, at, buf);
        let buf = &mut buf[..n];
        if inode.flags & FLAG_INLINE != 0 {
            let data = inline_data(inode)?;
            buf.fill(0);
            let from = small(at).min(data.len());
            let have = (data.len() - from).min(n);
            buf[..have].copy_from_slice(&data[from..from + have]);
            return Ok(n);
        }
        let mut done = 0;
        while done < n {
            let pos = at + len_u64(done);
            let (block, offset) = (pos / self.layout.block, pos % self.layout.block);
            let run = self.map(inode, block)?;
            let bytes = run.blocks.saturating_mul(self.layout.block).saturating_sub(offset);
            let part = small(bytes.min(len_u64(n - done)));
            let out = &mut buf[done..done + part];
            match run.start {
                None => {
                    self.source.charge(len_u64(part))?;
                    out.fill(0);
                }
                // Block by block where the journal may hold some of them.
                Some(start) if !self.newer.is_empty() => {
                    let mut block = start;
                    let mut offset = offset;
                    let mut out = out;
                    while !out.is_empty() {
                        let n = small(self.layout.block - offset).min(out.len());
                        let (head, tail) = out.split_at_mut(n);
                        self.read_block(block, offset, head)?;
                        (block, offset, out) = (block.saturating_add(1), 0, tail);
                    }
                }
                Some(start) => self.read_block(start, offset, out)?,
            }
            done += part;
        }
        Ok(n)
    }

    /// The entries of one block of a folder (or of data in an inode).
    fn entries(&self, block: &[u8], all: &mut Vec<Entry>, limit: usize) -> Result<()> {
        let f = Fields(block);
        let mut at = 0;
        while at + 8 <= block.len() && all.len() < limit {
            let inode = f.le32(at)?;
            let mut len = usize::from(f.le16(at + 4)?);
            // A block of 64 KiB does not fit in 16 bits.
            if len == 0xffff || (len == 0 && block.len() == 0x1_0000) {
                len = block.len() - at;
            }
            if len < 8 || len % 4 != 0 {
                return Err(Error::corrupt(
                    "a folder of ext4 has an entry of an impossible length",
                ));
            }
            let mut name_len = usize::from(f.le16(at + 6)?);
            if self.layout.incompat & FILETYPE != 0 {
                name_len &= 0xff;
            }
            if inode != 0 && name_len > 0 {
                let name = f.slice(at + 8, name_len)?;
                if name != b"." && name != b".." {
                    let name = String::from_utf8_lossy(name).into_owned();
                    all.push(Entry { name, id: FileId(u64::from(inode), 0) });
                }
            }
            at += len;
        }
        Ok(())
    }
}

/// Data kept in the inode: 60 bytes in `i_block`, the rest in the extended attribute `system.data`
/// ("Inline Data").
fn inline_data(inode: &Inode) -> Result<Vec<u8>> {
    let mut data = inode.block.to_vec();
    let f = Fields(&inode.raw);
    if inode.raw.len() <= 128 {
        return Ok(data);
    }
    let base = 128 + usize::from(f.le16(0x80)?);
    if f.le32(base).ok() != Some(0xea02_0000) {
        return Ok(data);
    }
    let first = base + 4;
    let mut at = first;
    while f.le32(at).is_ok_and(|word| word != 0) {
        let (len, index) = (usize::from(f.u8(at)?), f.u8(at + 1)?);
        let (value, size) = (usize::from(f.le16(at + 2)?), small(u64::from(f.le32(at + 8)?)));
        if index == 7 && f.slice(at + 16, len)? == b"data" && f.le32(at + 4)? == 0 {
            data.extend_from_slice(f.slice(first + value, size)?);
            break;
        }
        at += (16 + len).next_multiple_of(4);
    }
    Ok(data)
}

impl FileSystem for Ext {
    fn about(&self) -> &About {
        &self.about
    }

    fn root(&self) -> FileId {
        FileId(ROOT, 0)
    }

    fn list(&self, folder: FileId, limit: usize) -> Result<Vec<Entry>> {
        let inode = self.inode(folder.0)?;
        if FileKind::of_mode(inode.mode.into()) != FileKind::Folder {
            return Err(Error::invalid("not a folder"));
        }
        if inode.flags & FLAG_ENCRYPT != 0 {
            return Err(Error::unsupported("the folder's names are encrypted"));
        }
        let mut all = Vec::new();
        if inode.flags & FLAG_INLINE != 0 {
            let data = inline_data(&inode)?;
            let end = small(inode.size).min(data.len());
            // The parent's number, then entries; the attribute is a second block of them.
            self.entries(&data[4..end.clamp(4, 60)], &mut all, limit)?;
            self.entries(&data[end.min(60)..end], &mut all, limit)?;
            return Ok(all);
        }
        let mut block = vec![0; small(self.layout.block)];
        let mut at = 0;
        while at < inode.size && all.len() < limit {
            self.read_inode(&inode, at, &mut block)?;
            self.entries(&block, &mut all, limit)?;
            at += self.layout.block;
        }
        Ok(all)
    }

    fn stat(&self, file: FileId) -> Result<Stat> {
        let inode = self.inode(file.0)?;
        Ok(Stat { kind: FileKind::of_mode(inode.mode.into()), size: inode.size })
    }

    fn read(&self, file: FileId, at: u64, buf: &mut [u8]) -> Result<usize> {
        let inode = self.inode(file.0)?;
        if inode.flags & FLAG_ENCRYPT != 0 {
            return Err(Error::unsupported("the file is encrypted"));
        }
        if FileKind::of_mode(inode.mode.into()) == FileKind::Link
            && inode.size < 60
            && inode.flags & FLAG_INLINE == 0
        {
            // A short link lies where the block numbers of a long one are.
            let n = share(inode.size, at, buf);
            let from = small(at).min(60);
            let n = n.min(60 - from);
            buf[..n].copy_from_slice(&inode.block[from..from + n]);
            return Ok(n);
        }
        self.read_inode(&inode, at, buf)
    }
}
