//! NTFS: `$Bitmap`, compared with what every file of the master file table claims.
//!
//! Described by the Linux-NTFS project's *NTFS Documentation* and Microsoft's open specifications;
//! [`record`] reads file records and their attributes. NTFS has no checksums: the bitmap is believed only
//! when each cluster that an attribute of any file uses is marked in it. The volume must have been shut down
//! completely: no dirty flag, a closed `$LogFile`, no `hiberfil.sys` with a system in it (Windows leaves one
//! with Fast Startup, too).

mod record;

use super::bitmap::{all_used, free_runs};
use super::{Cursor, FreeMap, FreeRange, unclean};
use crate::guest::fields::Fields;
use crate::guest::volume::Volume;
use crate::num::{len_u64, small};
use crate::{Error, Result};
use record::{Record, Runs};

/// Bytes of the bitmap that are told together.
const PIECE: u64 = 128 << 10;
/// The longest bitmap that is held in memory: a volume of 8 TiB with clusters of 4 KiB.
const MAX_BITMAP: u64 = 256 << 20;
/// Bytes of the master file table that are read together.
const MFT_PIECE: u64 = 1 << 20;

// Numbers of the system's files.
const MFT: u64 = 0;
const LOG_FILE: u64 = 2;
const VOLUME: u64 = 3;
const ROOT: u64 = 5;
const BITMAP: u64 = 6;

// Types of attributes.
const ATTRIBUTE_LIST: u32 = 0x20;
const FILE_NAME: u32 = 0x30;
const VOLUME_INFORMATION: u32 = 0x70;
const DATA: u32 = 0x80;

const SHUT_DOWN: &str = "start Windows and shut it down completely: shutdown /s /f /t 0 (Fast Startup off: \
    powercfg /h off); a damaged volume needs chkdsk /f first";

/// An NTFS that was left cleanly.
#[derive(Debug)]
pub(super) struct Ntfs {
    cluster: u64,
    clusters: u64,
    bitmap: Vec<u8>,
}

/// What is needed to read files.
struct Reader<'a> {
    volume: &'a Volume,
    cluster: u64,
    clusters: u64,
    record_size: u64,
    mft: Runs,
    mft_len: u64,
}

impl Ntfs {
    pub fn open(volume: &Volume) -> Result<Self> {
        let mut reader = Reader::open(volume)?;
        reader.load_mft()?;
        reader.check_clean()?;
        let clusters = reader.clusters;
        let (runs, len) = reader.data_of(BITMAP)?;
        let need = clusters.div_ceil(8);
        if len < need {
            return Err(damaged("$Bitmap is too short"));
        }
        if need > MAX_BITMAP {
            return Err(Error::unsupported("has more clusters than are looked at here"));
        }
        let mut bitmap = vec![0; small(need)];
        reader.read_runs(&runs, 0, &mut bitmap)?;
        reader.compare(&bitmap)?;
        Ok(Ntfs { cluster: reader.cluster, clusters, bitmap })
    }
}

impl<'a> Reader<'a> {
    fn open(volume: &'a Volume) -> Result<Self> {
        let boot = volume.read(0, 512)?;
        let b = Fields::little(&boot);
        let sector = u64::from(b.u16(11));
        // More than 128 sectors are given as a negative power of two.
        let per_cluster = match b.u8(13) {
            n @ 1..=128 => u64::from(n),
            n => 1u64.checked_shl(u32::from(n.wrapping_neg())).unwrap_or(0),
        };
        let cluster = sector * per_cluster;
        // Clusters, or a negative power of two of bytes.
        let record_size = match b.u8(64) {
            n @ 1..=127 => u64::from(n) * cluster,
            n => 1u64.checked_shl(u32::from(n.wrapping_neg())).unwrap_or(0),
        };
        let sizes = matches!(sector, 256 | 512 | 1024 | 2048 | 4096)
            && cluster.is_power_of_two()
            && cluster <= 2 << 20
            && matches!(record_size, 512 | 1024 | 2048 | 4096);
        if !sizes {
            return Err(damaged("sector, cluster or record size"));
        }
        let len = b.u64(40).checked_mul(sector).filter(|&n| n > 0 && n <= volume.len());
        let len = len.ok_or_else(|| damaged("the file system is larger than its volume"))?;
        let clusters = len / cluster;
        let first = b.u64(48);
        if first >= clusters {
            return Err(damaged("the master file table lies outside"));
        }
        // The first record says where the others are.
        let mft = Runs::one(first, record_size.div_ceil(cluster));
        Ok(Reader { volume, cluster, clusters, record_size, mft, mft_len: record_size })
    }

    /// Finds all of the master file table.
    fn load_mft(&mut self) -> Result<()> {
        let record = self.record(MFT)?;
        let first = record.data_part(0, self.clusters)?;
        let (runs, len) = first.ok_or_else(|| damaged("the master file table has no data"))?;
        (self.mft, self.mft_len) = (runs, len);
        // More of its runs may stand in records that the runs known so far reach.
        let rest = self.more_runs(MFT, &record)?;
        self.mft.extend(rest)?;
        if self.mft.clusters().saturating_mul(self.cluster) < self.mft_len {
            return Err(damaged("the master file table is cut off"));
        }
        Ok(())
    }

    /// Fills `buf` from a file's bytes.
    fn read_runs(&self, runs: &Runs, at: u64, buf: &mut [u8]) -> Result<()> {
        let (mut at, mut buf) = (at, buf);
        while !buf.is_empty() {
            let vcn = at / self.cluster;
            let (lcn, left) = runs
                .find(vcn)
                .ok_or_else(|| damaged("a file ends before its length").at_offset(at))?;
            let inside = at % self.cluster;
            let room = left.saturating_mul(self.cluster) - inside;
            let n = small(room).min(buf.len());
            let (part, rest) = buf.split_at_mut(n);
            match lcn {
                Some(lcn) => self.volume.read_at(lcn * self.cluster + inside, part)?,
                None => part.fill(0),
            }
            at += len_u64(n);
            buf = rest;
        }
        Ok(())
    }

    fn record(&self, number: u64) -> Result<Record> {
        let at = number.checked_mul(self.record_size);
        let at = at.filter(|at| at.saturating_add(self.record_size) <= self.mft_len);
        let at = at.ok_or_else(|| damaged(&format!("file record {number} does not exist")))?;
        let mut bytes = vec![0; small(self.record_size)];
        self.read_runs(&self.mft, at, &mut bytes)?;
        Record::parse(bytes, number)?
            .ok_or_else(|| damaged(&format!("file record {number} is not in use")))
    }

    /// The runs of an unnamed `$DATA` that other records hold, as the attribute list says.
    fn more_runs(&self, number: u64, base: &Record) -> Result<Vec<Runs>> {
        let Some(list) = base.attributes().find(|a| a.kind == ATTRIBUTE_LIST) else {
            return Ok(Vec::new());
        };
        let bytes = match list.resident() {
            Some(value) => value.to_vec(),
            None => {
                let (runs, len) = list.runs(self.clusters)?;
                // 256 KiB is what Windows allows.
                let mut bytes = vec![0; small(len.min(256 << 10))];
                self.read_runs(&runs, 0, &mut bytes)?;
                bytes
            }
        };
        let mut more = Vec::new();
        let mut rest = bytes.as_slice();
        while rest.len() >= 24 {
            let e = Fields::little(rest);
            let len = usize::from(e.u16(4));
            if len < 24 {
                break;
            }
            let (kind, named, vcn) = (e.u32(0), e.u8(6) > 0, e.u64(8));
            let place = e.u64(16) & 0xffff_ffff_ffff;
            if kind == DATA && !named && vcn > 0 && place != number {
                let record = self.record(place)?;
                let part = record.data_part(vcn, self.clusters)?;
                let part = part.ok_or_else(|| damaged("an attribute list leads nowhere"))?;
                more.push(part.0);
            }
            rest = rest.get(len..).unwrap_or_default();
        }
        Ok(more)
    }

    /// The runs and the length of a file's data.
    fn data_of(&self, number: u64) -> Result<(Runs, u64)> {
        let record = self.record(number)?;
        let part = record.data_part(0, self.clusters)?;
        let (mut runs, len) = part.ok_or_else(|| damaged(&format!("file {number} has no data")))?;
        runs.extend(self.more_runs(number, &record)?)?;
        Ok((runs, len))
    }

    /// The dirty flag and the log.
    fn check_clean(&self) -> Result<()> {
        let volume = self.record(VOLUME)?;
        let info = volume.attributes().find(|a| a.kind == VOLUME_INFORMATION);
        let info = info.and_then(|a| a.resident().map(<[u8]>::to_vec));
        let info = info.ok_or_else(|| damaged("$Volume says nothing about the volume"))?;
        // Dirty, or chkdsk at work.
        if Fields::little(&info).u16(10) & 0x4001 != 0 {
            return Err(unclean("the volume is marked as dirty", SHUT_DOWN));
        }
        let (runs, len) = self.data_of(LOG_FILE)?;
        if len < 0x2000 {
            return Err(damaged("$LogFile is too short"));
        }
        let mut pages = vec![0; 0x2000];
        self.read_runs(&runs, 0, &mut pages)?;
        if log_is_closed(&pages) {
            Ok(())
        } else {
            Err(unclean("the volume was not shut down cleanly", SHUT_DOWN))
        }
    }

    /// Goes through all files: what they use must be marked, and none may hold a hibernated system.
    fn compare(&self, bitmap: &[u8]) -> Result<()> {
        let mut used = 0u64;
        let mut at = 0;
        while at + self.record_size <= self.mft_len {
            let whole = (self.mft_len - at) / self.record_size * self.record_size;
            let mut piece = vec![0; small(whole.min(MFT_PIECE))];
            self.read_runs(&self.mft, at, &mut piece)?;
            for bytes in piece.chunks_exact(small(self.record_size)) {
                let number = at / self.record_size;
                at += self.record_size;
                let Some(record) = Record::parse(bytes.to_vec(), number)? else { continue };
                for attribute in record.attributes().filter(|a| a.resident().is_none()) {
                    let (runs, _) = attribute.runs(self.clusters)?;
                    for (lcn, count) in runs.stored() {
                        used = used.saturating_add(count);
                        if !all_used(bitmap, lcn, count) {
                            return Err(damaged(&format!(
                                "$Bitmap counts clusters of file record {number} as free"
                            )));
                        }
                    }
                }
                self.check_hibernation(&record)?;
            }
        }
        let marked: u64 = bitmap.iter().map(|b| u64::from(b.count_ones())).sum();
        if used > marked {
            return Err(damaged("files share clusters, or $Bitmap lacks some"));
        }
        Ok(())
    }

    /// `hiberfil.sys` in the root folder.
    fn check_hibernation(&self, record: &Record) -> Result<()> {
        let named = record
            .attributes()
            .any(|a| a.kind == FILE_NAME && a.resident().is_some_and(is_hiberfil));
        if !named {
            return Ok(());
        }
        let mut magic = [0; 4];
        for attribute in record.attributes().filter(|a| a.kind == DATA && !a.named()) {
            match attribute.resident() {
                Some(value) => {
                    magic = value.first_chunk().copied().unwrap_or_default();
                }
                None => {
                    let (runs, len) = attribute.runs(self.clusters)?;
                    if attribute.first_vcn() == 0 && len >= 4 {
                        self.read_runs(&runs, 0, &mut magic)?;
                    }
                }
            }
        }
        if magic.eq_ignore_ascii_case(b"hibr") {
            return Err(unclean("Windows is hibernated on it (or Fast Startup is on)", SHUT_DOWN));
        }
        Ok(())
    }
}

/// A `$FILE_NAME` of `hiberfil.sys` in the root folder.
fn is_hiberfil(value: &[u8]) -> bool {
    let f = Fields::little(value);
    let name = f.bytes(66, usize::from(f.u8(64)) * 2);
    let name: Vec<u16> = name.chunks_exact(2).map(|c| Fields::little(c).u16(0)).collect();
    f.u64(0) & 0xffff_ffff_ffff == ROOT
        && String::from_utf16_lossy(&name).eq_ignore_ascii_case("hiberfil.sys")
}

/// The newer of the two restart pages says that no client has the log open, or that the volume is clean. A
/// log that was never used is filled with ones; chkdsk leaves `CHKD`.
fn log_is_closed(pages: &[u8]) -> bool {
    const NO_CLIENT: u16 = 0xffff;
    const CLEAN: u16 = 0x2;
    let mut newest: Option<(u64, bool)> = None;
    for page in pages.chunks_exact(0x1000) {
        let p = Fields::little(page);
        match p.bytes(0, 4) {
            b"\xff\xff\xff\xff" | b"CHKD" => continue,
            b"RSTR" => {}
            // The second page of a log whose pages are larger than 4 KiB holds other things.
            _ if newest.is_some() => continue,
            _ => return false,
        }
        let area = usize::from(p.u16(24));
        if !(0x18..=0x1e0).contains(&area) {
            return false;
        }
        let (lsn, in_use, flags) = (p.u64(area), p.u16(area + 12), p.u16(area + 14));
        let clean = in_use == NO_CLIENT || flags & CLEAN != 0;
        if newest.is_none_or(|(best, _)| lsn > best) {
            newest = Some((lsn, clean));
        }
    }
    newest.is_none_or(|(_, clean)| clean)
}

impl FreeMap for Ntfs {
    fn kind(&self) -> &'static str {
        "NTFS"
    }

    fn unit(&self) -> u64 {
        self.cluster
    }

    fn managed(&self) -> u64 {
        self.clusters * self.cluster
    }

    fn batch(&self, cursor: &mut Cursor) -> Result<Option<Vec<FreeRange>>> {
        let first = cursor.step * PIECE * 8;
        if first >= self.clusters {
            return Ok(None);
        }
        let bits = (self.clusters - first).min(PIECE * 8);
        let bytes = self.bitmap.get(small(cursor.step * PIECE)..).unwrap_or_default();
        cursor.step += 1;
        Ok(Some(free_runs(bytes.get(..small(PIECE)).unwrap_or(bytes), bits, first, self.cluster)))
    }
}

fn damaged(what: &str) -> Error {
    Error::corrupt(what).hint("check it first: chkdsk /f")
}

/// The first cluster of the first run in a file record, for tests that damage it.
#[cfg(test)]
pub(super) fn first_cluster(record: &[u8]) -> u64 {
    let record = Record::parse(record.to_vec(), 0).unwrap().unwrap();
    let (runs, _) = record.data_part(0, u64::MAX / 4).unwrap().unwrap();
    runs.stored().next().unwrap().0
}
