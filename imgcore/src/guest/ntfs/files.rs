//! Files and folders.
//!
//! Folders are read block by block with the help of their bitmap, not down their tree: a tree may lead in
//! circles, a bitmap ends. Files may be packed by the file system (LZNT1); those packed by "Compact OS" and
//! encrypted ones are refused by name.

use std::cell::RefCell;
use std::rc::Rc;

use super::layout::{
    BITMAP, DATA, INDEX_ALLOCATION, INDEX_BITMAP, INDEX_ROOT, NUMBER, REPARSE_POINT, ROOT, VOLUME,
    VOLUME_INFORMATION, VOLUME_NAME,
};
use super::record::{self, Record};
use super::stream::Stream;
use super::table::Table;
use crate::guest::fields::{Fields, share, utf16};
use crate::guest::files::{
    About, Entry, FileId, FileKind, FileSystem, FsKind, MAX_ENTRIES, Stat, VolumeReader,
};
use crate::num::{len_u64, small};
use crate::{Error, Result};

/// Names for programs of old stand beside the long ones.
const FILE_NAME_NAMESPACE_DOS: u8 = 2;
/// The index of names of a folder.
const I30: &str = "$I30";

/// Whether the first sector is a boot sector of NTFS.
pub fn probe(source: &VolumeReader) -> bool {
    source.bytes(3, 8).is_ok_and(|m| m == b"NTFS    ")
}

/// An NTFS file system.
pub struct Ntfs {
    table: Table,
    about: About,
    /// The file read last, since files are read in pieces.
    last_file: RefCell<Option<(u64, Rc<Stream>)>>,
    /// The folder looked at last.
    last_folder: RefCell<Option<(u64, Rc<Vec<Entry>>)>>,
}

impl Ntfs {
    /// Reads the boot sector, the file table's own record, and the volume's.
    ///
    /// # Errors
    /// When one of them is damaged.
    pub fn open(source: VolumeReader) -> Result<Self> {
        let table = Table::open(source)?;
        let about = About {
            kind: FsKind::Ntfs,
            label: None,
            uuid: Some(format!("{:016X}", table.layout.serial)),
            size: table.layout.clusters.saturating_mul(table.layout.cluster),
            used: None,
            notes: Vec::new(),
        };
        let mut fs =
            Ntfs { table, about, last_file: RefCell::new(None), last_folder: RefCell::new(None) };
        fs.volume()?;
        fs.about.used = fs.used();
        Ok(fs)
    }

    /// Its name, and whether it is marked to be checked.
    fn volume(&mut self) -> Result<()> {
        let record = self.table.record(VOLUME)?;
        if let Some(name) = record.resident(VOLUME_NAME)? {
            self.about.label = Some(utf16(name)).filter(|n| !n.is_empty());
        }
        if let Some(info) = record.resident(VOLUME_INFORMATION)?
            && Fields(info).le16(0xa)? & 1 != 0
        {
            self.about
                .notes
                .push("marked dirty: Windows will check it at the next start".to_owned());
        }
        Ok(())
    }

    /// Bytes in use, by the bitmap.
    fn used(&self) -> Option<u64> {
        let record = self.table.record(BITMAP).ok()?;
        let stream = self.table.stream(&record, DATA, "").ok()??;
        let bytes = self.table.layout.clusters.div_ceil(8);
        if bytes > 64 << 20 || stream.size < bytes {
            return None;
        }
        let (mut used, mut at) = (0u64, 0);
        let mut buf = vec![0; 1 << 16];
        while at < bytes {
            let n = small((bytes - at).min(len_u64(buf.len())));
            if stream.read(&self.table, at, &mut buf[..n]).ok()? != n {
                return None;
            }
            used += buf[..n].iter().map(|b| u64::from(b.count_ones())).sum::<u64>();
            at += len_u64(n);
        }
        // Bits past the end are set.
        let past = bytes * 8 - self.table.layout.clusters;
        Some(used.saturating_sub(past).saturating_mul(self.table.layout.cluster))
    }

    fn folder(&self, number: u64) -> Result<Rc<Vec<Entry>>> {
        if let Some((known, entries)) = &*self.last_folder.borrow()
            && *known == number
        {
            return Ok(Rc::clone(entries));
        }
        let record = self.table.record(number)?;
        if !record.folder {
            return Err(Error::invalid("not a folder"));
        }
        let mut all = Vec::new();
        let root = self.table.stream(&record, INDEX_ROOT, I30)?;
        let root = root.ok_or_else(|| Error::corrupt("a folder of NTFS has no index"))?;
        let root = root.all(&self.table, 64 << 10)?;
        let f = Fields(&root);
        let block = small(u64::from(f.le32(8)?));
        entries(f.rest(0x10)?, &mut all)?;
        if let Some(blocks) = self.table.stream(&record, INDEX_ALLOCATION, I30)? {
            self.blocks(&record, &blocks, block, &mut all)?;
        }
        let all = Rc::new(all);
        *self.last_folder.borrow_mut() = Some((number, Rc::clone(&all)));
        Ok(all)
    }

    /// The blocks of an index that are in use.
    fn blocks(
        &self,
        record: &Record,
        blocks: &Stream,
        size: usize,
        all: &mut Vec<Entry>,
    ) -> Result<()> {
        if !(512..=65536).contains(&size) || !size.is_power_of_two() {
            return Err(Error::corrupt("an index of NTFS has blocks of an impossible size"));
        }
        let bitmap = match self.table.stream(record, INDEX_BITMAP, I30)? {
            Some(bitmap) => bitmap.all(&self.table, 1 << 20)?,
            None => return Ok(()),
        };
        // Blocks that the bitmap does not reach are not in use, however long the index says it is.
        let count = (blocks.size / len_u64(size)).min(len_u64(bitmap.len()) * 8);
        for index in 0..count {
            let byte = bitmap.get(small(index / 8)).copied().unwrap_or(0);
            if byte & (1 << (index % 8)) == 0 {
                continue;
            }
            let mut raw = vec![0; size];
            blocks.read(&self.table, index * len_u64(size), &mut raw)?;
            record::fix_up(&mut raw, b"INDX", self.table.layout.sector)?;
            entries(Fields(&raw).rest(0x18)?, all)?;
            if all.len() > MAX_ENTRIES {
                break;
            }
        }
        Ok(())
    }

    fn data(&self, number: u64) -> Result<Rc<Stream>> {
        if let Some((known, stream)) = &*self.last_file.borrow()
            && *known == number
        {
            return Ok(Rc::clone(stream));
        }
        let record = self.table.record(number)?;
        let stream = self.table.stream(&record, DATA, "")?.unwrap_or_default();
        let stream = Rc::new(stream);
        *self.last_file.borrow_mut() = Some((number, Rc::clone(&stream)));
        Ok(stream)
    }
}

/// The entries of an index node, which begins with its header.
fn entries(node: Fields<'_>, all: &mut Vec<Entry>) -> Result<()> {
    let (mut at, end) = (small(u64::from(node.le32(0)?)), small(u64::from(node.le32(4)?)));
    while at < end {
        let entry = node.rest(at)?;
        let (len, flags) = (usize::from(entry.le16(8)?), entry.le16(0xc)?);
        if flags & 2 != 0 {
            break;
        }
        if len < 0x52 {
            return Err(Error::corrupt("an index of NTFS has an entry of an impossible length"));
        }
        let name_len = usize::from(entry.u8(0x50)?);
        if entry.u8(0x51)? != FILE_NAME_NAMESPACE_DOS {
            let name = utf16(entry.slice(0x52, name_len * 2)?);
            let number = entry.le64(0)? & NUMBER;
            // The root names itself.
            if name != "." {
                all.push(Entry { name, id: FileId(number, 0) });
            }
        }
        at += len;
    }
    Ok(())
}

impl FileSystem for Ntfs {
    fn about(&self) -> &About {
        &self.about
    }

    fn root(&self) -> FileId {
        FileId(ROOT, 0)
    }

    fn list(&self, folder: FileId, limit: usize) -> Result<Vec<Entry>> {
        let all = self.folder(folder.0)?;
        Ok(all.iter().take(limit).cloned().collect())
    }

    fn lookup(&self, folder: FileId, name: &str) -> Result<Option<FileId>> {
        let wanted = name.to_uppercase();
        let all = self.folder(folder.0)?;
        Ok(all.iter().find(|e| e.name.to_uppercase() == wanted).map(|e| e.id))
    }

    fn stat(&self, file: FileId) -> Result<Stat> {
        let record = self.table.record(file.0)?;
        if record.folder {
            // A junction is a folder that stands for another place.
            let kind = match record.attribute(REPARSE_POINT, "")? {
                Some(_) => FileKind::Other,
                None => FileKind::Folder,
            };
            return Ok(Stat { kind, size: 0 });
        }
        let link =
            record.resident(REPARSE_POINT)?.is_some_and(|r| r.starts_with(&[0x0c, 0, 0, 0xa0]));
        let kind = if link { FileKind::Other } else { FileKind::File };
        Ok(Stat { kind, size: self.data(file.0)?.size })
    }

    fn read(&self, file: FileId, at: u64, buf: &mut [u8]) -> Result<usize> {
        let record = self.table.record(file.0)?;
        let wof =
            record.resident(REPARSE_POINT)?.is_some_and(|r| r.starts_with(&[0x17, 0, 0, 0x80]));
        if wof {
            return Err(Error::unsupported(
                "the file is packed by Windows' Compact OS, which is not read",
            ));
        }
        let stream = self.data(file.0)?;
        if stream.encrypted {
            return Err(Error::unsupported("the file is encrypted (EFS)"));
        }
        let n = share(stream.size, at, buf);
        stream.read(&self.table, at, &mut buf[..n])
    }
}
