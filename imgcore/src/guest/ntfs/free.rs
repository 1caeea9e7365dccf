//! Free space: `$Bitmap`, compared with what every file of the master file table claims.
//!
//! NTFS has no checksums: the bitmap is believed only when each cluster that an attribute of any file uses is
//! marked in it. The volume must have been shut down completely: no dirty flag, a closed `$LogFile`, no
//! `hiberfil.sys` with a system in it (Windows leaves one with Fast Startup, too).

use super::layout::{
    BITMAP, DATA, FILE_NAME, LOG_FILE, Layout, NUMBER, ROOT, VOLUME, VOLUME_INFORMATION,
};
use super::record::{Attribute, Record};
use super::runs::{Run, parse};
use super::stream::Stream;
use super::table::Table;
use crate::guest::fields::{Fields, utf16};
use crate::guest::files::{Budget, VolumeReader};
use crate::guest::free::bitmap::{all_used, free_runs};
use crate::guest::free::{Cursor, FreeMap, FreeRange, unclean};
use crate::guest::volume::Volume;
use crate::num::{len_u64, small};
use crate::{Error, Result};

/// Bytes of the bitmap that are told together.
const PIECE: u64 = 128 << 10;
/// The longest bitmap that is held in memory: a volume of 8 TiB with clusters of 4 KiB.
const MAX_BITMAP: u64 = 256 << 20;
/// Bytes of the master file table that are read together.
const MFT_PIECE: usize = 1 << 20;
/// Bytes of the log's two restart pages.
const RESTART: usize = 0x2000;

const SHUT_DOWN: &str = "start Windows and shut it down completely: shutdown /s /f /t 0 (Fast Startup off: \
    powercfg /h off); a damaged volume needs chkdsk /f first";

/// An NTFS that was left cleanly.
#[derive(Debug)]
pub struct NtfsFree {
    cluster: u64,
    clusters: u64,
    bitmap: Vec<u8>,
}

impl NtfsFree {
    /// Reads the whole file table.
    ///
    /// # Errors
    /// When it is damaged, does not agree with the bitmap, or Windows was not shut down completely.
    pub fn open(volume: &Volume) -> Result<Self> {
        let source = VolumeReader::new(volume.clone(), Budget::of_metadata(volume.len()));
        let table = Table::open(source).map_err(|e| e.hint(CHECK))?;
        let (cluster, clusters) = (table.layout.cluster, table.layout.clusters);
        if table.layout.size > volume.len() {
            return Err(damaged("the file system is larger than its volume"));
        }
        check_table(&table.mft.runs, table.mft.size, &table.layout)?;
        check_clean(&table)?;
        let need = clusters.div_ceil(8);
        if need > MAX_BITMAP {
            return Err(Error::unsupported("has more clusters than are looked at here"));
        }
        let mut bitmap = vec![0; small(need)];
        if data_of(&table, BITMAP)?.read(&table, 0, &mut bitmap)? != bitmap.len() {
            return Err(damaged("$Bitmap is too short"));
        }
        compare(&table, &bitmap)?;
        Ok(NtfsFree { cluster, clusters, bitmap })
    }
}

/// No part of the file table is a hole, or there twice: what is stored covers its length, and is not more than
/// there is.
fn check_table(runs: &[Run], size: u64, layout: &Layout) -> Result<()> {
    let sum = |runs: &mut dyn Iterator<Item = &Run>| {
        runs.fold(0u64, |sum, run| sum.saturating_add(run.len))
    };
    let all = sum(&mut runs.iter());
    let stored = sum(&mut runs.iter().filter(|run| run.place.is_some()));
    let covers = stored.saturating_mul(layout.cluster) >= size;
    if stored != all || stored > layout.clusters || !covers {
        return Err(damaged("the master file table is cut off"));
    }
    Ok(())
}

/// A system file's data.
fn data_of(table: &Table, number: u64) -> Result<Stream> {
    let stream = table.stream(&table.record(number)?, DATA, "")?;
    stream.ok_or_else(|| damaged(&format!("file {number} has no data")))
}

/// The dirty flag and the log.
fn check_clean(table: &Table) -> Result<()> {
    let volume = table.record(VOLUME)?;
    let info = volume.resident(VOLUME_INFORMATION)?;
    let info = info.ok_or_else(|| damaged("$Volume says nothing about the volume"))?;
    // Dirty, or chkdsk at work.
    if Fields(info).le16(10)? & 0x4001 != 0 {
        return Err(unclean("the volume is marked as dirty", SHUT_DOWN));
    }
    let mut pages = vec![0; RESTART];
    if data_of(table, LOG_FILE)?.read(table, 0, &mut pages)? != RESTART {
        return Err(damaged("$LogFile is too short"));
    }
    if log_is_closed(&pages)? {
        Ok(())
    } else {
        Err(unclean("the volume was not shut down cleanly", SHUT_DOWN))
    }
}

/// Goes through all files: what they use must be marked, and none may hold a hibernated system.
fn compare(table: &Table, bitmap: &[u8]) -> Result<()> {
    let size = table.layout.record;
    let mut used = 0u64;
    let mut at = 0;
    let mut piece = vec![0; MFT_PIECE / size * size];
    loop {
        let n = table.mft.read(table, at, &mut piece)?;
        for raw in piece[..n].chunks_exact(size) {
            let number = at / len_u64(size);
            at += len_u64(size);
            let named = |e: Error| e.context(format!("file record {number}")).hint(CHECK);
            let Some(record) = in_use(raw, table.layout.sector).map_err(named)? else { continue };
            used = used
                .saturating_add(claimed(&record, bitmap, table.layout.clusters).map_err(named)?);
            check_names(table, &record)?;
        }
        if n < piece.len() {
            break;
        }
    }
    let marked: u64 = bitmap.iter().map(|b| u64::from(b.count_ones())).sum();
    if used > marked {
        return Err(damaged("files share clusters, or $Bitmap lacks some"));
    }
    Ok(())
}

/// A record, if it is in use. Fresh ones are zeroes; chkdsk writes `BAAD` over what it could not read.
fn in_use(raw: &[u8], sector: usize) -> Result<Option<Record>> {
    let f = Fields(raw);
    match &f.array(0)? {
        b"FILE" if f.le16(22)? & 1 != 0 => Record::new(raw.to_vec(), sector).map(Some),
        b"BAAD" => Err(Error::corrupt("it is damaged")),
        _ => Ok(None),
    }
}

/// The clusters of a record's attributes, which must be marked.
fn claimed(record: &Record, bitmap: &[u8], clusters: u64) -> Result<u64> {
    let mut used = 0u64;
    for attribute in record.all()? {
        if !attribute.nonresident()? {
            continue;
        }
        for run in checked_runs(attribute, clusters)? {
            let Some(place) = run.place else { continue };
            used = used.saturating_add(run.len);
            if !all_used(bitmap, place, run.len) {
                return Err(Error::corrupt("$Bitmap counts its clusters as free"));
            }
        }
    }
    Ok(used)
}

/// Runs that lie inside the volume, and are as many as the attribute says.
fn checked_runs(attribute: Attribute<'_>, clusters: u64) -> Result<Vec<Run>> {
    let f = attribute.0;
    let (first, last) = (f.le64(0x10)?, f.le64(0x18)?);
    let runs = parse(f.rest(usize::from(f.le16(0x20)?))?, first)?;
    let inside = |run: &Run| {
        run.place.is_none_or(|p| p.checked_add(run.len).is_some_and(|end| end <= clusters))
    };
    let end = runs.last().map(|run| run.first.saturating_add(run.len));
    if !runs.iter().all(inside) || end.is_some_and(|end| last.wrapping_add(1) != end) {
        return Err(Error::corrupt("its runs are damaged"));
    }
    Ok(runs)
}

/// A hibernated system, or the differences that a shadow copy keeps: what was deleted since it was taken is
/// free in `$Bitmap`, but the shadow copy still reads it there.
fn check_names(table: &Table, record: &Record) -> Result<()> {
    let mut hiberfil = false;
    for attribute in record.all()?.into_iter().filter(|a| a.kind().ok() == Some(FILE_NAME)) {
        if attribute.nonresident()? {
            continue;
        }
        let name = Fields(attribute.value()?);
        if is_shadow_copy(name)? {
            return Err(Error::unsupported(
                "holds shadow copies (restore points), which use free clusters",
            )
            .hint("if they are not needed, delete them in Windows: vssadmin delete shadows /all"));
        }
        hiberfil |= is_hiberfil(name)?;
    }
    if !hiberfil {
        return Ok(());
    }
    let mut magic = [0; 4];
    if let Some(data) = table.stream(record, DATA, "")? {
        data.read(table, 0, &mut magic)?;
    }
    if magic.eq_ignore_ascii_case(b"hibr") {
        return Err(unclean("Windows is hibernated on it (or Fast Startup is on)", SHUT_DOWN));
    }
    Ok(())
}

/// The name in a `$FILE_NAME`.
fn file_name(value: Fields<'_>) -> Result<String> {
    Ok(utf16(value.slice(66, usize::from(value.u8(64)?) * 2)?))
}

/// A `$FILE_NAME` of `hiberfil.sys` in the root folder.
fn is_hiberfil(value: Fields<'_>) -> Result<bool> {
    Ok(value.le64(0)? & NUMBER == ROOT && file_name(value)?.eq_ignore_ascii_case("hiberfil.sys"))
}

/// A `$FILE_NAME` of a shadow copy's store: its identifier, then that of all shadow copies. (The latter alone
/// is the name of their catalogue, which may be empty.)
fn is_shadow_copy(value: Fields<'_>) -> Result<bool> {
    const STORES: &str = "{3808876b-c176-4e48-b7ae-04046e6cc752}";
    let name = file_name(value)?.to_ascii_lowercase();
    Ok(name.len() > STORES.len() && name.ends_with(STORES))
}

/// The newer of the two restart pages says that no client has the log open, or that the volume is clean. A
/// log that was never used is filled with ones; chkdsk leaves `CHKD`.
fn log_is_closed(pages: &[u8]) -> Result<bool> {
    const NO_CLIENT: u16 = 0xffff;
    const CLEAN: u16 = 0x2;
    let mut newest: Option<(u64, bool)> = None;
    for page in pages.chunks_exact(0x1000) {
        let p = Fields(page);
        match &p.array(0)? {
            b"\xff\xff\xff\xff" | b"CHKD" => continue,
            b"RSTR" => {}
            // The second page of a log whose pages are larger than 4 KiB holds other things.
            _ if newest.is_some() => continue,
            _ => return Ok(false),
        }
        let area = usize::from(p.le16(24)?);
        if !(0x18..=0x1e0).contains(&area) {
            return Ok(false);
        }
        let (lsn, in_use, flags) = (p.le64(area)?, p.le16(area + 12)?, p.le16(area + 14)?);
        let clean = in_use == NO_CLIENT || flags & CLEAN != 0;
        if newest.is_none_or(|(best, _)| lsn > best) {
            newest = Some((lsn, clean));
        }
    }
    Ok(newest.is_none_or(|(_, clean)| clean))
}

impl FreeMap for NtfsFree {
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

const CHECK: &str = "check it first: chkdsk /f";

fn damaged(what: &str) -> Error {
    Error::corrupt(what).hint(CHECK)
}

/// The first cluster of the first run in a file record, for tests that damage it.
#[cfg(test)]
pub(in crate::guest) fn first_cluster(record: &[u8]) -> u64 {
    let record = Record::new(record.to_vec(), 512).unwrap();
    let data = record.attribute(DATA, "").unwrap().unwrap();
    checked_runs(data, u64::MAX / 4).unwrap()[0].place.unwrap()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_table_is_no_larger_than_its_volume() {
        let layout = Layout {
            sector: 512,
            cluster: 4096,
            clusters: 150,
            record: 1024,
            mft: 1,
            size: 150 * 4096,
            serial: 0,
        };
        let run = |first, place, len| Run { first, place, len };
        let twice = [run(0, Some(1), 100), run(100, Some(1), 100)];
        check_table(&twice[..1], 100 * 4096, &layout).unwrap();
        assert!(check_table(&twice[..1], 100 * 4096 + 1, &layout).is_err());
        assert!(
            check_table(&twice, 200 * 4096, &layout).is_err(),
            "the same clusters again and again"
        );
        assert!(check_table(&[run(0, Some(1), 9), run(9, None, 1)], 4096, &layout).is_err());
    }
}
