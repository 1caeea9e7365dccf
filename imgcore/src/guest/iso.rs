//! ISO 9660 (ECMA-119), with Rock Ridge (IEEE P1282) or Joliet where they are.

use crate::guest::fields::{Fields, share};
use crate::guest::files::{
    About, Entry, FileId, FileKind, FileSystem, FsKind, MAX_ENTRIES, Stat, VolumeReader,
};
use crate::num::{len_u64, small};
use crate::{Error, Result};

const SECTOR: u64 = 2048;
const FIRST_DESCRIPTOR: u64 = 16;
/// Volume descriptors that are looked at.
const MAX_DESCRIPTORS: u64 = 32;
/// Bytes of one folder.
const MAX_FOLDER: u64 = 16 << 20;

/// Whether a volume descriptor is there.
pub fn probe(source: &VolumeReader) -> bool {
    source.bytes(FIRST_DESCRIPTOR * SECTOR, 6).is_ok_and(|m| &m[1..] == b"CD001")
}

/// How names are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Names {
    /// Capitals, a version after a semicolon.
    Plain,
    /// UTF-16.
    Joliet,
    /// Names of POSIX in the system use area, of which so many bytes are skipped.
    RockRidge(usize),
}

/// An ISO 9660 file system. A file is known by where its folder's record of it is.
pub struct Iso {
    source: VolumeReader,
    names: Names,
    root: u64,
    about: About,
}

/// A record of a folder.
struct Record {
    extent: u64,
    size: u64,
    flags: u8,
    name: Vec<u8>,
    /// The system use area.
    system: Vec<u8>,
    len: u64,
}

impl Iso {
    /// Reads the volume descriptors.
    ///
    /// # Errors
    /// When the primary one is missing or damaged.
    pub fn open(source: VolumeReader) -> Result<Self> {
        let (mut primary, mut joliet) = (None, None);
        for sector in FIRST_DESCRIPTOR..FIRST_DESCRIPTOR + MAX_DESCRIPTORS {
            let Ok(raw) = source.bytes(sector * SECTOR, small(SECTOR)) else { break };
            if &raw[1..6] != b"CD001" || raw[0] == 255 {
                break;
            }
            let escape = &raw[88..91];
            match raw[0] {
                1 => primary = primary.or(Some((sector, raw))),
                2 if matches!(escape, b"%/@" | b"%/C" | b"%/E") => joliet = joliet.or(Some(sector)),
                _ => {}
            }
        }
        let (sector, raw) =
            primary.ok_or_else(|| Error::corrupt("the disc has no primary volume descriptor"))?;
        let f = Fields(&raw);
        if f.le16(128)? != 2048 {
            return Err(Error::unsupported("a disc with blocks of another size than 2048 bytes"));
        }
        let size = u64::from(f.le32(80)?) * SECTOR;
        // blkid's form: the time it was made.
        let digits = f.text(813, 16)?;
        let uuid = (digits.len() == 16
            && digits.bytes().all(|b| b.is_ascii_digit())
            && digits != "0".repeat(16))
        .then(|| {
            let d = |a: usize, b: usize| &digits[a..b];
            let parts = [d(0, 4), d(4, 6), d(6, 8), d(8, 10), d(10, 12), d(12, 14), d(14, 16)];
            parts.join("-")
        });
        let about = About {
            kind: FsKind::Iso9660,
            label: Some(f.text(40, 32)?).filter(|l| !l.is_empty()),
            uuid,
            size,
            used: Some(size),
            notes: Vec::new(),
        };
        let mut iso = Iso { source, names: Names::Plain, root: sector * SECTOR + 156, about };
        if let Some(skip) = iso.rock_ridge()? {
            iso.names = Names::RockRidge(skip);
        } else if let Some(sector) = joliet {
            iso.names = Names::Joliet;
            iso.root = sector * SECTOR + 156;
        }
        Ok(iso)
    }

    /// The first record of the root says `SP` when system use areas are used, and names belong to Rock
    /// Ridge when they carry `PX` or `RR`.
    fn rock_ridge(&self) -> Result<Option<usize>> {
        let root = self.record(self.root)?;
        let first = self.record(root.extent)?;
        let mut skip = None;
        let mut names = false;
        self.system(&first.system, &mut |kind, data| match kind {
            b"SP" if data.starts_with(&[0xbe, 0xef]) => {
                skip = Some(data.get(2).copied().map_or(0, usize::from));
            }
            b"PX" | b"RR" | b"ER" => names = true,
            _ => {}
        })?;
        Ok(skip.filter(|_| names))
    }

    fn record(&self, at: u64) -> Result<Record> {
        let len = u64::from(self.source.bytes(at, 1)?[0]);
        if len < 34 {
            return Err(Error::corrupt("a record of the disc has an impossible length"));
        }
        let raw = self.source.bytes(at, small(len))?;
        let f = Fields(&raw);
        let name_len = usize::from(f.u8(32)?);
        let name = f.slice(33, name_len)?.to_vec();
        // A byte more where the name has an even length.
        let system =
            f.rest((33 + name_len).next_multiple_of(2)).map(|s| s.0.to_vec()).unwrap_or_default();
        Ok(Record {
            extent: (u64::from(f.le32(2)?) + u64::from(f.u8(1)?)) * SECTOR,
            size: u64::from(f.le32(10)?),
            flags: f.u8(25)?,
            name,
            system,
            len,
        })
    }

    /// Goes through a system use area and what it is continued by ("SUSP", 5.1 `CE`).
    fn system(&self, area: &[u8], each: &mut dyn FnMut(&[u8; 2], &[u8])) -> Result<()> {
        let mut area = area.to_vec();
        for _ in 0..16 {
            let mut next = None;
            let mut at = 0;
            while at + 4 <= area.len() {
                let len = usize::from(area[at + 2]);
                let Some(data) = area.get(at + 4..at + len).filter(|_| len >= 4) else { break };
                let kind = [area[at], area[at + 1]];
                if &kind == b"CE" {
                    let f = Fields(data);
                    next = Some((u64::from(f.le32(0)?), u64::from(f.le32(8)?), f.le32(16)?));
                } else if &kind == b"ST" {
                    break;
                }
                each(&kind, data);
                at += len;
            }
            let Some((block, offset, len)) = next else { return Ok(()) };
            if len > 65536 || offset > 65536 {
                return Err(Error::corrupt(
                    "a record of the disc is continued at an impossible place",
                ));
            }
            area = self.source.bytes(block * SECTOR + offset, small(u64::from(len)))?;
        }
        Ok(())
    }

    /// What Rock Ridge says about a record: name, mode, and where it points.
    fn posix(&self, record: &Record, skip: usize) -> Result<Posix> {
        let mut found = Posix::default();
        let area = record.system.get(skip..).unwrap_or_default();
        let mut joined = true;
        self.system(area, &mut |kind, data| match kind {
            b"NM" if data.len() > 1 && data[0] & 0x6 == 0 && found.name.len() < 4096 => {
                found.name.extend_from_slice(&data[1..]);
            }
            b"PX" => found.mode = Fields(data).le32(0).unwrap_or(0),
            b"SL" if data.len() > 1 && found.target.len() < 4096 => {
                let mut rest = &data[1..];
                while let [flags, len, tail @ ..] = rest {
                    let Some(text) = tail.get(..usize::from(*len)) else { break };
                    if !joined && !found.target.ends_with('/') {
                        found.target.push('/');
                    }
                    match flags & 0xe {
                        2 => found.target.push('.'),
                        4 => found.target.push_str(".."),
                        8 => found.target.push('/'),
                        _ => found.target.push_str(&String::from_utf8_lossy(text)),
                    }
                    // The name goes on in the next component.
                    joined = flags & 1 != 0;
                    rest = &tail[usize::from(*len)..];
                }
            }
            b"CL" => found.relocated = Fields(data).le32(0).ok().map(|b| u64::from(b) * SECTOR),
            b"RE" => found.hidden = true,
            _ => {}
        })?;
        Ok(found)
    }

    /// The records of a folder with where they are; parts of a file after the first one are left out.
    fn records(
        &self,
        folder: FileId,
        each: &mut dyn FnMut(u64, Record) -> Result<bool>,
    ) -> Result<()> {
        let record = self.record(folder.0)?;
        let (start, size) = match self.relocated(&record)? {
            Some(place) => (place, self.record(place)?.size),
            None if record.flags & 2 != 0 => (record.extent, record.size),
            None => return Err(Error::invalid("not a folder")),
        };
        if size > MAX_FOLDER {
            return Err(Error::corrupt("a folder of the disc is larger than can be"));
        }
        let (mut at, end) = (start, start.saturating_add(size));
        let mut more = false;
        while at < end {
            if self.source.bytes(at, 1)?[0] == 0 {
                // Records do not cross sectors.
                at = (at / SECTOR + 1) * SECTOR;
                continue;
            }
            let record = self.record(at)?;
            let (len, flags) = (record.len, record.flags);
            let special = matches!(record.name.as_slice(), [0] | [1]);
            if !special && !more && !each(at, record)? {
                return Ok(());
            }
            more = flags & 0x80 != 0;
            at += len;
        }
        Ok(())
    }

    /// Where a folder that lies too deep for the standard is in truth.
    fn relocated(&self, record: &Record) -> Result<Option<u64>> {
        match self.names {
            Names::RockRidge(skip) => Ok(self.posix(record, skip)?.relocated),
            _ => Ok(None),
        }
    }

    fn name(&self, record: &Record) -> Result<String> {
        Ok(match self.names {
            Names::RockRidge(skip) => {
                let posix = self.posix(record, skip)?;
                if posix.name.is_empty() {
                    plain(&record.name)
                } else {
                    String::from_utf8_lossy(&posix.name).into_owned()
                }
            }
            Names::Joliet => {
                let units = record.name.chunks_exact(2).map(|p| u16::from_be_bytes([p[0], p[1]]));
                let name: String = char::decode_utf16(units)
                    .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
                    .collect();
                name.trim_end_matches(";1").to_owned()
            }
            Names::Plain => plain(&record.name),
        })
    }
}

#[derive(Default)]
struct Posix {
    name: Vec<u8>,
    mode: u32,
    target: String,
    relocated: Option<u64>,
    hidden: bool,
}

/// Without version, without the dot of an empty extension.
fn plain(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    let text = text.split(';').next().unwrap_or_default();
    text.trim_end_matches('.').to_owned()
}

impl FileSystem for Iso {
    fn about(&self) -> &About {
        &self.about
    }

    fn root(&self) -> FileId {
        FileId(self.root, 0)
    }

    fn list(&self, folder: FileId, limit: usize) -> Result<Vec<Entry>> {
        let mut all = Vec::new();
        self.records(folder, &mut |at, record| {
            let hidden = match self.names {
                Names::RockRidge(skip) => self.posix(&record, skip)?.hidden,
                _ => false,
            };
            if !hidden {
                all.push(Entry { name: self.name(&record)?, id: FileId(at, 0) });
            }
            Ok(all.len() < limit)
        })?;
        Ok(all)
    }

    fn lookup(&self, folder: FileId, name: &str) -> Result<Option<FileId>> {
        let entries = self.list(folder, MAX_ENTRIES)?;
        let exact = entries.iter().find(|e| e.name == name);
        let found = match self.names {
            Names::RockRidge(_) => exact,
            _ => exact.or_else(|| entries.iter().find(|e| e.name.eq_ignore_ascii_case(name))),
        };
        Ok(found.map(|e| e.id))
    }

    fn stat(&self, file: FileId) -> Result<Stat> {
        let mut record = self.record(file.0)?;
        if let Names::RockRidge(skip) = self.names
            && file.0 != self.root
        {
            let posix = self.posix(&record, skip)?;
            if posix.relocated.is_some() {
                return Ok(Stat { kind: FileKind::Folder, size: 0 });
            }
            match posix.mode & 0xf000 {
                0xa000 => {
                    return Ok(Stat { kind: FileKind::Link, size: len_u64(posix.target.len()) });
                }
                0 | 0x4000 | 0x8000 => {}
                _ => return Ok(Stat { kind: FileKind::Other, size: 0 }),
            }
        }
        if record.flags & 2 != 0 {
            return Ok(Stat { kind: FileKind::Folder, size: record.size });
        }
        let (mut at, mut size) = (file.0, record.size);
        while record.flags & 0x80 != 0 {
            at += record.len;
            record = self.next(&mut at)?;
            size = size.saturating_add(record.size);
        }
        Ok(Stat { kind: FileKind::File, size })
    }

    fn read(&self, file: FileId, at: u64, buf: &mut [u8]) -> Result<usize> {
        let mut place = file.0;
        let mut record = self.record(place)?;
        let (mut start, mut done) = (0u64, 0);
        loop {
            let pos = at + len_u64(done);
            if pos >= start && pos - start < record.size {
                let n = share(record.size, pos - start, &buf[done..]);
                self.source.read_at(record.extent + (pos - start), &mut buf[done..done + n])?;
                done += n;
            }
            if record.flags & 0x80 == 0 || done == buf.len() {
                return Ok(done);
            }
            start = start.saturating_add(record.size);
            place += record.len;
            record = self.next(&mut place)?;
        }
    }

    fn link(&self, file: FileId) -> Result<String> {
        match self.names {
            Names::RockRidge(skip) => Ok(self.posix(&self.record(file.0)?, skip)?.target),
            _ => Err(Error::invalid("not a symbolic link")),
        }
    }
}

impl Iso {
    /// The record at or after a place, over the end of a sector.
    fn next(&self, at: &mut u64) -> Result<Record> {
        if self.source.bytes(*at, 1)?[0] == 0 {
            *at = (*at / SECTOR + 1) * SECTOR;
        }
        self.record(*at)
    }
}
