//! Files and folders, with long names.

use super::layout::{Layout, Width};
use crate::guest::fields::{Fields, share, utf16};
use crate::guest::files::{
    About, Entry, FileId, FileKind, FileSystem, MAX_ENTRIES, Stat, VolumeReader,
};
use crate::num::{len_u64, small};
use crate::{Error, Result};

/// A root folder that has no cluster of its own.
const FIXED_ROOT: u64 = u64::MAX;
/// In [`FileId`]'s second number: the upper half says that it is a folder, the lower is the size.
const FOLDER: u64 = 1 << 32;

const VOLUME_ID: u8 = 0x08;
const DIRECTORY: u8 = 0x10;
const LONG_NAME: u8 = 0x0f;

/// Whether the first sector is a boot sector of FAT.
pub fn probe(source: &VolumeReader) -> bool {
    source.bytes(0, 512).is_ok_and(|b| layout(&b, source.size()).is_ok())
}

/// A FAT file system.
pub struct Fat {
    source: VolumeReader,
    layout: Layout,
    about: About,
}

/// The boot sector's numbers, which must fit the volume.
fn layout(boot: &[u8], size: u64) -> Result<Layout> {
    let layout = Layout::parse(boot)?;
    // A volume may end inside of the last sector.
    if layout.total.saturating_sub(size) >= 4096 {
        return Err(Error::corrupt("a FAT file system is larger than its volume"));
    }
    Ok(layout)
}

impl Fat {
    /// Reads the boot sector.
    ///
    /// # Errors
    /// When it is damaged.
    pub fn open(source: VolumeReader) -> Result<Self> {
        let raw = source.bytes(0, 512)?;
        let b = Fields(&raw);
        let layout = layout(&raw, source.size())?;
        let ext = if layout.width == Width::Fat32 { 66 } else { 38 };
        let extended = b.u8(ext)? == 0x29;
        let serial = b.le32(ext + 1)?;
        let named = b.text(ext + 5, 11)?;
        let mut fat = Fat {
            source,
            layout,
            about: About {
                kind: layout.width.kind(),
                label: None,
                uuid: extended.then(|| format!("{:04X}-{:04X}", serial >> 16, serial & 0xffff)),
                size: layout.total,
                used: None,
                notes: Vec::new(),
            },
        };
        fat.about.used = fat.used();
        // The entry in the root folder is what tools change; the boot sector's copy stays behind.
        fat.about.label = fat
            .volume_label()
            .or(Some(named).filter(|n| extended && n != "NO NAME"))
            .filter(|n| !n.is_empty());
        if fat.entry(1).is_ok_and(|e| match layout.width {
            Width::Fat32 => e & 0x0800_0000 == 0,
            Width::Fat16 => e & 0x8000 == 0,
            _ => false,
        }) {
            fat.about.notes.push("not cleanly unmounted".to_owned());
        }
        Ok(fat)
    }

    fn volume_label(&self) -> Option<String> {
        let mut label = None;
        let _ = self.walk(self.root(), |entry, _| {
            if entry.u8(11)? & 0x3f == VOLUME_ID {
                label = Some(entry.text(0, 11)?);
                return Ok(false);
            }
            Ok(true)
        });
        label
    }

    /// Counts what is in use; `None` for tables too large to be read for a number.
    fn used(&self) -> Option<u64> {
        let width = match self.layout.width {
            Width::Fat12 => {
                let taken =
                    (2..self.layout.clusters + 2).filter(|c| self.entry(*c).ok() != Some(0));
                return Some(len_u64(taken.count()) * self.layout.cluster);
            }
            Width::Fat16 => 2,
            _ => 4,
        };
        let (mut at, end) = (2 * width, (self.layout.clusters + 2) * width);
        if end > self.layout.table_len || end > 64 << 20 {
            return None;
        }
        let mut used = 0;
        while at < end {
            let part =
                self.source.bytes(self.layout.table + at, small((end - at).min(1 << 16))).ok()?;
            at += len_u64(part.len());
            // The upper four bits of FAT32 are not part of the number.
            let taken = part.chunks_exact(small(width)).filter(|e| match e {
                [a, b, c, d] => [*a, *b, *c, *d & 0x0f] != [0; 4],
                other => other.iter().any(|b| *b != 0),
            });
            used += len_u64(taken.count());
        }
        Some(used * self.layout.cluster)
    }

    /// An entry of the table.
    fn entry(&self, cluster: u64) -> Result<u32> {
        let width = self.layout.width;
        let (at, len) = width.place(cluster);
        if at + len_u64(len) > self.layout.table_len {
            return Err(Error::corrupt("a chain of FAT leads out of its table"));
        }
        let mut raw = [0; 4];
        self.source.read_at(self.layout.table + at, &mut raw[..len])?;
        width.value(Fields(&raw[..len]), cluster)
    }

    /// The cluster after this one; `None` at the end.
    fn next(&self, cluster: u64) -> Result<Option<u64>> {
        let next = self.entry(cluster)?;
        Ok(Some(u64::from(next)).filter(|_| next < self.layout.width.mask() - 7))
    }

    /// Where a cluster's bytes are.
    fn place(&self, cluster: u64) -> Result<u64> {
        let index = cluster.checked_sub(2).filter(|i| *i < self.layout.clusters);
        let index = index.ok_or_else(|| Error::corrupt("a chain of FAT leads to no cluster"))?;
        Ok(self.layout.data + index * self.layout.cluster)
    }

    /// Goes through the entries of a folder; long names are given with the entry they are for. Ends when
    /// `each` says `false`.
    fn walk(
        &self,
        folder: FileId,
        mut each: impl FnMut(Fields<'_>, Option<String>) -> Result<bool>,
    ) -> Result<()> {
        let mut long = LongName::default();
        let mut block = |bytes: &[u8]| -> Result<bool> {
            for raw in bytes.chunks_exact(32) {
                let entry = Fields(raw);
                match (raw[0], raw[11]) {
                    (0, _) => return Ok(false),
                    (0xe5, _) => long = LongName::default(),
                    (_, attr) if attr & 0x3f == LONG_NAME => long.take(raw),
                    _ => {
                        let name = std::mem::take(&mut long).of(&raw[..11]);
                        if !each(entry, name)? {
                            return Ok(false);
                        }
                    }
                }
            }
            Ok(true)
        };
        if folder.0 == FIXED_ROOT {
            let (at, len) = self.layout.root;
            block(&self.source.bytes(at, small(len))?)?;
            return Ok(());
        }
        let mut cluster = Some(folder.0);
        // 2^16 entries of 32 bytes are all a folder may have.
        let mut left = (2u64 << 20).div_ceil(self.layout.cluster).max(1) + 1;
        while let Some(here) = cluster {
            left =
                left.checked_sub(1).ok_or_else(|| Error::corrupt("a folder of FAT has no end"))?;
            if !block(&self.source.bytes(self.place(here)?, small(self.layout.cluster))?)? {
                break;
            }
            cluster = self.next(here)?;
        }
        Ok(())
    }
}

/// A long name, which lies in entries before the one it is for, its end first.
#[derive(Default)]
struct LongName {
    units: Vec<u8>,
    checksum: u8,
    left: u8,
}

impl LongName {
    fn take(&mut self, raw: &[u8]) {
        let order = raw[0];
        if order & 0x40 != 0 {
            *self = LongName { units: Vec::new(), checksum: raw[13], left: order & 0x3f };
        } else if order != self.left || raw[13] != self.checksum {
            *self = LongName::default();
            return;
        }
        if self.left == 0 || self.left > 20 {
            *self = LongName::default();
            return;
        }
        self.left -= 1;
        let mut part = [&raw[1..11], &raw[14..26], &raw[28..32]].concat();
        part.append(&mut self.units);
        self.units = part;
    }

    /// The name, if all of its parts were there and it is the one of this short name.
    fn of(mut self, short: &[u8]) -> Option<String> {
        let sum = short.iter().fold(0u8, |s, b| s.rotate_right(1).wrapping_add(*b));
        if self.units.is_empty() || self.left != 0 || sum != self.checksum {
            return None;
        }
        let end = self.units.chunks_exact(2).position(|u| u == [0, 0]);
        self.units.truncate(end.map_or(self.units.len(), |e| e * 2));
        Some(utf16(&self.units))
    }
}

/// `NAME.EXT` of eight and three bytes; bits say where Windows NT means small letters.
fn short_name(raw: &[u8], case: u8) -> String {
    let part = |bytes: &[u8], small_letters: bool| {
        let text: String = bytes.iter().map(|b| char::from(*b)).collect();
        let text = text.trim_end().to_owned();
        if small_letters { text.to_lowercase() } else { text }
    };
    let name = part(&raw[..8], case & 0x08 != 0);
    let extension = part(&raw[8..11], case & 0x10 != 0);
    if extension.is_empty() { name } else { format!("{name}.{extension}") }
}

impl FileSystem for Fat {
    fn about(&self) -> &About {
        &self.about
    }

    fn root(&self) -> FileId {
        match self.layout.width {
            Width::Fat32 => FileId(self.layout.root_cluster, FOLDER),
            _ => FileId(FIXED_ROOT, FOLDER),
        }
    }

    fn list(&self, folder: FileId, limit: usize) -> Result<Vec<Entry>> {
        if folder.1 & FOLDER == 0 {
            return Err(Error::invalid("not a folder"));
        }
        let mut all = Vec::new();
        self.walk(folder, |entry, long| {
            let attr = entry.u8(11)?;
            if attr & VOLUME_ID != 0 || entry.u8(0)? == b'.' {
                return Ok(true);
            }
            let high =
                if self.layout.width == Width::Fat32 { u64::from(entry.le16(20)?) } else { 0 };
            let cluster = (high << 16) | u64::from(entry.le16(26)?);
            let second = if attr & DIRECTORY != 0 { FOLDER } else { u64::from(entry.le32(28)?) };
            let name = match long {
                Some(name) => name,
                None => short_name(entry.slice(0, 11)?, entry.u8(12)?),
            };
            all.push(Entry { name, id: FileId(cluster, second) });
            Ok(all.len() < limit)
        })?;
        Ok(all)
    }

    fn lookup(&self, folder: FileId, name: &str) -> Result<Option<FileId>> {
        let wanted = name.to_lowercase();
        let entries = self.list(folder, MAX_ENTRIES)?;
        Ok(entries.into_iter().find(|e| e.name.to_lowercase() == wanted).map(|e| e.id))
    }

    fn stat(&self, file: FileId) -> Result<Stat> {
        let kind = if file.1 & FOLDER != 0 { FileKind::Folder } else { FileKind::File };
        Ok(Stat { kind, size: file.1 & 0xffff_ffff })
    }

    fn read(&self, file: FileId, at: u64, buf: &mut [u8]) -> Result<usize> {
        let size = self.stat(file)?.size;
        let n = share(size, at, buf);
        let mut done = 0;
        let mut cluster = Some(file.0);
        let mut start = 0u64;
        while done < n {
            let here =
                cluster.ok_or_else(|| Error::corrupt("a file of FAT ends before its size"))?;
            let pos = at + len_u64(done);
            let end = start + self.layout.cluster;
            if pos < end {
                let part = small(end - pos).min(n - done);
                let place = self.place(here)? + (pos - start);
                self.source.read_at(place, &mut buf[done..done + part])?;
                done += part;
            }
            start = end;
            if done < n {
                cluster = self.next(here)?;
            }
        }
        Ok(n)
    }
}
