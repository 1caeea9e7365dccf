//! An attribute's data, and reading them.

use super::record::{Attribute, Record};
use super::runs::{Run, parse};
use super::table::Table;
use super::unpack::unpack_unit;
use crate::guest::fields::share;
use crate::num::{len_u64, small};
use crate::{Error, ErrorKind, Result};

/// An attribute's data.
#[derive(Clone, Debug, Default)]
pub(super) struct Stream {
    /// Bytes.
    pub size: u64,
    /// EFS.
    pub encrypted: bool,
    /// From here on it reads as zeroes.
    initialized: u64,
    resident: Option<Vec<u8>>,
    /// Sorted by the clusters of the file.
    pub runs: Vec<Run>,
    /// Clusters of a unit that is packed on its own; 0 when nothing is.
    unit: u64,
}

/// What one record holds of an attribute.
pub(super) fn of_record(record: &Record, kind: u32, name: &str) -> Result<Option<Stream>> {
    let parts: Result<Vec<Stream>> = record.attributes(kind, name)?.iter().map(whole).collect();
    Ok(join(parts?))
}

/// One attribute.
pub(super) fn whole(attribute: &Attribute<'_>) -> Result<Stream> {
    let f = attribute.0;
    let flags = f.le16(0xc)?;
    let encrypted = flags & 0x4000 != 0;
    if !attribute.nonresident()? {
        let value = attribute.value()?.to_vec();
        let size = len_u64(value.len());
        let resident = Some(value);
        return Ok(Stream { size, encrypted, initialized: size, resident, ..Stream::default() });
    }
    let first = f.le64(0x10)?;
    let runs = parse(f.rest(usize::from(f.le16(0x20)?))?, first)?;
    // Sizes stand in the first part only.
    let (size, initialized) = if first == 0 { (f.le64(0x30)?, f.le64(0x38)?) } else { (0, 0) };
    let unit = match f.u8(0x22)? {
        n @ 1..=8 if flags & 0xff != 0 => 1 << n,
        _ => 0,
    };
    Ok(Stream { size, encrypted, initialized, resident: None, runs, unit })
}

/// The parts of an attribute as one.
pub(super) fn join(parts: Vec<Stream>) -> Option<Stream> {
    let mut parts = parts.into_iter();
    let mut all = parts.next()?;
    for part in parts {
        if part.size > all.size {
            (all.size, all.initialized, all.unit) = (part.size, part.initialized, part.unit);
        }
        all.encrypted |= part.encrypted;
        all.runs.extend(part.runs);
    }
    all.runs.sort_by_key(|r| r.first);
    Some(all)
}

impl Stream {
    /// All of it, if that is not more than `limit`.
    pub(super) fn all(&self, table: &Table, limit: u64) -> Result<Vec<u8>> {
        if self.size > limit {
            return Err(Error::new(
                ErrorKind::TooLarge,
                "a structure of NTFS is larger than can be",
            ));
        }
        let mut buf = vec![0; small(self.size)];
        let n = self.read(table, 0, &mut buf)?;
        buf.truncate(n);
        Ok(buf)
    }

    /// Reads from `at` on, up to its end.
    pub(super) fn read(&self, table: &Table, at: u64, buf: &mut [u8]) -> Result<usize> {
        let n = share(self.size, at, buf);
        let buf = &mut buf[..n];
        if let Some(resident) = &self.resident {
            let from = small(at).min(resident.len());
            let have = n.min(resident.len() - from);
            buf[..have].copy_from_slice(&resident[from..from + have]);
            return Ok(have);
        }
        if self.unit > 0 {
            self.read_packed(table, at, buf)?;
        } else {
            self.read_plain(table, at, buf)?;
        }
        let known = share(self.initialized, at, buf);
        buf[known..].fill(0);
        Ok(n)
    }

    fn run(&self, cluster: u64) -> Option<&Run> {
        let i = self.runs.partition_point(|r| r.first <= cluster).checked_sub(1)?;
        self.runs.get(i).filter(|r| cluster - r.first < r.len)
    }

    fn read_plain(&self, table: &Table, at: u64, buf: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < buf.len() {
            let pos = at + len_u64(done);
            let (cluster, offset) = (pos / table.layout.cluster, pos % table.layout.cluster);
            let run = self.run(cluster);
            let run = run
                .ok_or_else(|| Error::corrupt("a file of NTFS has fewer clusters than its size"))?;
            let into = cluster - run.first;
            let bytes =
                (run.len - into).saturating_mul(table.layout.cluster).saturating_sub(offset);
            let n = small(bytes.min(len_u64(buf.len() - done)));
            let out = &mut buf[done..done + n];
            match run.place {
                None => {
                    table.source.charge(len_u64(n))?;
                    out.fill(0);
                }
                Some(place) => {
                    let start =
                        place.checked_add(into).and_then(|p| p.checked_mul(table.layout.cluster));
                    let start = start.and_then(|s| s.checked_add(offset));
                    let start =
                        start.ok_or_else(|| Error::corrupt("a run of NTFS is out of range"))?;
                    table.source.read_at(start, out)?;
                }
            }
            done += n;
        }
        Ok(())
    }

    /// Packed files ("Compression"): of each unit so many clusters are stored as its packed data need; a
    /// unit without any reads as zeroes, one with all of them is not packed.
    fn read_packed(&self, table: &Table, at: u64, buf: &mut [u8]) -> Result<()> {
        let unit_bytes = self.unit * table.layout.cluster;
        if unit_bytes > 1 << 20 {
            return Err(Error::corrupt("a packed file of NTFS has units of an impossible size"));
        }
        let mut done = 0;
        while done < buf.len() {
            let pos = at + len_u64(done);
            let (unit, offset) = (pos / unit_bytes, small(pos % unit_bytes));
            let mut stored = Vec::new();
            let mut count = 0;
            for cluster in unit * self.unit..(unit + 1) * self.unit {
                let Some((run, place)) = self.run(cluster).and_then(|r| Some((r, r.place?))) else {
                    break;
                };
                let place = place.saturating_add(cluster - run.first);
                stored.extend(table.source.bytes(
                    place.saturating_mul(table.layout.cluster),
                    small(table.layout.cluster),
                )?);
                count += 1;
            }
            let plain = match count {
                0 => {
                    table.source.charge(unit_bytes)?;
                    vec![0; small(unit_bytes)]
                }
                n if n == self.unit => stored,
                _ => unpack_unit(&stored, small(unit_bytes))?,
            };
            let n = (plain.len() - offset).min(buf.len() - done);
            buf[done..done + n].copy_from_slice(&plain[offset..offset + n]);
            done += n;
        }
        Ok(())
    }
}
