//! NTFS 3.x, as the NTFS-3G project documents it ("NTFS Documentation", Russon and Fledel).
//!
//! Folders are read block by block with the help of their bitmap, not down their tree: a tree may lead in
//! circles, a bitmap ends. Files may be packed by the file system (LZNT1); those packed by "Compact OS" and
//! encrypted ones are refused by name.

mod record;
mod runs;
mod unpack;

use std::cell::RefCell;
use std::rc::Rc;

use record::Record;
use runs::Stream;

use super::field::{Fields, share, utf16};
use super::{About, Entry, FileId, FileKind, FileSystem, FsKind, Stat, VolumeReader};
use crate::num::{len_u64, small};
use crate::{Error, Result};

const VOLUME: u64 = 3;
const ROOT: u64 = 5;
const BITMAP: u64 = 6;

// Types of attributes.
const FILE_NAME_NAMESPACE_DOS: u8 = 2;
const VOLUME_NAME: u32 = 0x60;
const VOLUME_INFORMATION: u32 = 0x70;
const DATA: u32 = 0x80;
const INDEX_ROOT: u32 = 0x90;
const INDEX_ALLOCATION: u32 = 0xa0;
const INDEX_BITMAP: u32 = 0xb0;
const REPARSE_POINT: u32 = 0xc0;

/// The index of names of a folder.
const I30: &str = "$I30";

/// Whether the first sector is a boot sector of NTFS.
pub fn probe(source: &VolumeReader) -> bool {
    source.bytes(3, 8).is_ok_and(|m| m == b"NTFS    ")
}

/// An NTFS file system.
pub struct Ntfs {
    source: VolumeReader,
    layout: Layout,
    mft: Stream,
    about: About,
    /// The file read last, since files are read in pieces.
    last_file: RefCell<Option<(u64, Rc<Stream>)>>,
    /// The folder looked at last.
    last_folder: RefCell<Option<(u64, Rc<Vec<Entry>>)>>,
}

#[derive(Clone, Copy, Debug)]
struct Layout {
    sector: usize,
    cluster: u64,
    clusters: u64,
    record: usize,
    mft: u64,
}

impl Layout {
    fn new(b: Fields<'_>) -> Result<Self> {
        let bad =
            |what: &str| Error::corrupt(format!("the boot sector of NTFS is damaged: {what}"));
        let sector = usize::from(b.le16(0x0b)?);
        let per_cluster = b.u8(0x0d)?;
        // More than 128 sectors are written as a power of two.
        let per_cluster: u64 = match per_cluster {
            n @ 1..=128 if n.is_power_of_two() => u64::from(n),
            n @ 0xf4..=0xff => 1 << (256 - u16::from(n)),
            _ => return Err(bad("clusters of an impossible size")),
        };
        if !matches!(sector, 256 | 512 | 1024 | 2048 | 4096) {
            return Err(bad("sectors of an impossible size"));
        }
        let cluster = per_cluster * len_u64(sector);
        if cluster > 2 << 20 {
            return Err(bad("clusters of an impossible size"));
        }
        let record = match b.u8(0x40)? {
            n @ 1..=0x7f => u64::from(n) * cluster,
            n @ 0xe1..=0xf7 => 1 << (256 - u16::from(n)),
            _ => return Err(bad("records of an impossible size")),
        };
        if !(512..=65536).contains(&record) {
            return Err(bad("records of an impossible size"));
        }
        let mft = b.le64(0x30)?;
        let clusters = b.le64(0x28)? / per_cluster;
        if mft >= clusters {
            return Err(bad("its file table lies outside"));
        }
        Ok(Layout { sector, cluster, clusters, record: small(record), mft })
    }
}

impl Ntfs {
    /// Reads the boot sector, the file table's own record, and the volume's.
    ///
    /// # Errors
    /// When one of them is damaged.
    pub fn open(source: VolumeReader) -> Result<Self> {
        let raw = source.bytes(0, 512)?;
        let b = Fields(&raw);
        let layout = Layout::new(b)?;
        let about = About {
            kind: FsKind::Ntfs,
            label: None,
            uuid: Some(format!("{:016X}", b.le64(0x48)?)),
            size: layout.clusters.saturating_mul(layout.cluster),
            used: None,
            notes: Vec::new(),
        };
        let mut fs = Ntfs {
            source,
            layout,
            mft: Stream::default(),
            about,
            last_file: RefCell::new(None),
            last_folder: RefCell::new(None),
        };
        let at = layout.mft.saturating_mul(layout.cluster);
        let first = Record::new(fs.source.bytes(at, layout.record)?, layout.sector)?;
        // The table's own record is in its first run; a list of further runs is inside of what is known.
        fs.mft = runs::of_record(&first, DATA, "")?
            .ok_or_else(|| Error::corrupt("NTFS's file table has no data"))?;
        fs.mft = fs.stream(&first, DATA, "")?.unwrap_or_else(|| std::mem::take(&mut fs.mft));
        fs.volume()?;
        fs.about.used = fs.used();
        Ok(fs)
    }

    fn volume(&mut self) -> Result<()> {
        let record = self.record(VOLUME)?;
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

    /// Whether the volume is marked to be checked.
    fn used(&self) -> Option<u64> {
        let record = self.record(BITMAP).ok()?;
        let stream = self.stream(&record, DATA, "").ok()??;
        let bytes = self.layout.clusters.div_ceil(8);
        if bytes > 64 << 20 || stream.size < bytes {
            return None;
        }
        let (mut used, mut at) = (0u64, 0);
        let mut buf = vec![0; 1 << 16];
        while at < bytes {
            let n = small((bytes - at).min(len_u64(buf.len())));
            if stream.read(&self.source, &self.layout, at, &mut buf[..n]).ok()? != n {
                return None;
            }
            used += buf[..n].iter().map(|b| u64::from(b.count_ones())).sum::<u64>();
            at += len_u64(n);
        }
        // Bits past the end are set.
        let past = bytes * 8 - self.layout.clusters;
        Some(used.saturating_sub(past).saturating_mul(self.layout.cluster))
    }

    fn record(&self, number: u64) -> Result<Record> {
        let mut raw = vec![0; self.layout.record];
        let at = number.saturating_mul(len_u64(raw.len()));
        if self.mft.read(&self.source, &self.layout, at, &mut raw)? != raw.len() {
            return Err(Error::corrupt(format!("NTFS has no file {number}")));
        }
        Record::new(raw, self.layout.sector)
    }

    /// A stream of a file, gathered from all records that hold parts of it.
    fn stream(&self, base: &Record, kind: u32, name: &str) -> Result<Option<Stream>> {
        let list = match base.attribute(record::ATTRIBUTE_LIST, "")? {
            None => return runs::of_record(base, kind, name),
            Some(attribute) => runs::whole(&attribute)?,
        };
        let list = list.all(&self.source, &self.layout, 256 << 10)?;
        let mut parts: Vec<Stream> = Vec::new();
        for reference in record::references(&list, kind, name)? {
            let found = if reference == base.number {
                runs::of_record(base, kind, name)?
            } else {
                runs::of_record(&self.record(reference)?, kind, name)?
            };
            parts.extend(found);
        }
        Ok(runs::join(parts))
    }

    fn folder(&self, number: u64) -> Result<Rc<Vec<Entry>>> {
        if let Some((known, entries)) = &*self.last_folder.borrow()
            && *known == number
        {
            return Ok(Rc::clone(entries));
        }
        let record = self.record(number)?;
        if !record.folder {
            return Err(Error::invalid("not a folder"));
        }
        let mut all = Vec::new();
        let root = self.stream(&record, INDEX_ROOT, I30)?;
        let root = root.ok_or_else(|| Error::corrupt("a folder of NTFS has no index"))?;
        let root = root.all(&self.source, &self.layout, 64 << 10)?;
        let f = Fields(&root);
        let block = small(u64::from(f.le32(8)?));
        entries(f.rest(0x10)?, &mut all)?;
        if let Some(blocks) = self.stream(&record, INDEX_ALLOCATION, I30)? {
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
        let bitmap = match self.stream(record, INDEX_BITMAP, I30)? {
            Some(bitmap) => bitmap.all(&self.source, &self.layout, 1 << 20)?,
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
            blocks.read(&self.source, &self.layout, index * len_u64(size), &mut raw)?;
            record::fix_up(&mut raw, b"INDX", self.layout.sector)?;
            entries(Fields(&raw).rest(0x18)?, all)?;
            if all.len() > super::MAX_ENTRIES {
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
        let record = self.record(number)?;
        let stream = self.stream(&record, DATA, "")?.unwrap_or_default();
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
            let number = entry.le64(0)? & 0xffff_ffff_ffff;
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
        let record = self.record(file.0)?;
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
        let record = self.record(file.0)?;
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
        stream.read(&self.source, &self.layout, at, &mut buf[..n])
    }
}
