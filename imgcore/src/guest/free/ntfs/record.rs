//! File records: fixups, attributes, runs of clusters.

use super::{DATA, damaged};
use crate::Result;
use crate::guest::fields::Fields;

/// Bytes that one entry of the update sequence protects, whatever the sector size.
const STRIDE: usize = 512;
/// More runs than this in one file are not believed.
const MAX_RUNS: usize = 4 << 20;

/// A record in use, its fixups undone.
pub(super) struct Record {
    bytes: Vec<u8>,
    number: u64,
}

impl Record {
    /// `None`: a record that is not in use.
    pub fn parse(mut bytes: Vec<u8>, number: u64) -> Result<Option<Self>> {
        let f = Fields::little(&bytes);
        let in_use = f.u16(22) & 1 != 0;
        if f.bytes(0, 4) != b"FILE" {
            // Fresh table: zeroes. chkdsk writes BAAD over what it could not read.
            return if f.bytes(0, 4) == b"BAAD" {
                Err(damaged(&format!("file record {number} is damaged")))
            } else {
                Ok(None)
            };
        }
        if !in_use {
            return Ok(None);
        }
        let bad = || damaged(&format!("the update sequence of file record {number} is wrong"));
        let (start, count) = (usize::from(f.u16(4)), usize::from(f.u16(6)));
        if count != bytes.len() / STRIDE + 1 || start + count * 2 > STRIDE {
            return Err(bad());
        }
        let sequence: Vec<[u8; 2]> =
            bytes.get(start..start + count * 2).unwrap_or_default().as_chunks::<2>().0.to_vec();
        let Some((mark, saved)) = sequence.split_first() else { return Err(bad()) };
        for (sector, saved) in bytes.chunks_exact_mut(STRIDE).zip(saved) {
            match sector.last_chunk_mut::<2>() {
                Some(end) if end == mark => *end = *saved,
                _ => return Err(bad()),
            }
        }
        Ok(Some(Record { bytes, number }))
    }

    /// All attributes, as far as they make sense.
    pub fn attributes(&self) -> impl Iterator<Item = Attribute<'_>> {
        let mut at = usize::from(Fields::little(&self.bytes).u16(20));
        std::iter::from_fn(move || {
            let rest = self.bytes.get(at..)?;
            let f = Fields::little(rest);
            let len = usize::try_from(f.u32(4)).ok()?;
            if f.u32(0) == u32::MAX || len < 24 {
                return None;
            }
            let bytes = rest.get(..len)?;
            at += len;
            Some(Attribute { kind: f.u32(0), bytes, record: self.number })
        })
    }

    /// The part of the unnamed `$DATA` that begins at a cluster of the file, and the file's length.
    pub fn data_part(&self, vcn: u64, clusters: u64) -> Result<Option<(Runs, u64)>> {
        let mut parts = self.attributes().filter(|a| {
            a.kind == DATA && !a.named() && a.resident().is_none() && a.first_vcn() == vcn
        });
        parts.next().map(|a| a.runs(clusters)).transpose()
    }
}

/// An attribute of a record.
pub(super) struct Attribute<'a> {
    /// Type.
    pub kind: u32,
    bytes: &'a [u8],
    record: u64,
}

impl Attribute<'_> {
    fn fields(&self) -> Fields<'_> {
        Fields::little(self.bytes)
    }

    /// Whether it has a name, as all streams but the first have.
    pub fn named(&self) -> bool {
        self.fields().u8(9) > 0
    }

    /// The value, if it stands in the record.
    pub fn resident(&self) -> Option<&[u8]> {
        let f = self.fields();
        if f.u8(8) != 0 {
            return None;
        }
        let (len, at) = (usize::try_from(f.u32(16)).unwrap_or(0), usize::from(f.u16(20)));
        Some(f.bytes(at, len))
    }

    /// The first cluster of the file that a non-resident attribute maps.
    pub fn first_vcn(&self) -> u64 {
        self.fields().u64(16)
    }

    /// The runs of a non-resident attribute, and the length of its value. (Mapping pairs: a byte with the
    /// sizes of both numbers, the number of clusters, the signed distance from the last run.)
    pub fn runs(&self, clusters: u64) -> Result<(Runs, u64)> {
        let bad = || damaged(&format!("the runs of file record {} are damaged", self.record));
        let f = self.fields();
        let mut rest = self.bytes.get(usize::from(f.u16(32))..).ok_or_else(bad)?;
        let mut runs = Runs::default();
        let mut lcn = 0i64;
        let first = f.u64(16);
        while let Some((&head, tail)) = rest.split_first().filter(|(h, _)| **h != 0) {
            let (len_size, offset_size) = (usize::from(head & 0xf), usize::from(head >> 4));
            let (len, tail) = tail.split_at_checked(len_size).ok_or_else(bad)?;
            let (offset, tail) = tail.split_at_checked(offset_size).ok_or_else(bad)?;
            let count = signed(len).and_then(|n| u64::try_from(n).ok());
            let count = count.filter(|&n| n > 0 && n <= clusters.max(1 << 40)).ok_or_else(bad)?;
            let place = if offset.is_empty() {
                None
            } else {
                lcn = lcn.checked_add(signed(offset).ok_or_else(bad)?).ok_or_else(bad)?;
                let lcn = u64::try_from(lcn).map_err(|_| bad())?;
                if lcn.checked_add(count).is_none_or(|end| end > clusters) {
                    return Err(bad());
                }
                Some(lcn)
            };
            runs.push(place, count)?;
            rest = tail;
        }
        // The last cluster that it maps, where it says so.
        let last = f.u64(24);
        let mapped = first.checked_add(runs.clusters()).ok_or_else(bad)?;
        if runs.clusters() > 0 && last.wrapping_add(1) != mapped {
            return Err(bad());
        }
        Ok((runs, f.u64(48)))
    }
}

/// A little-endian signed number of at most eight bytes.
fn signed(bytes: &[u8]) -> Option<i64> {
    let (&last, _) = bytes.split_last()?;
    if bytes.len() > 8 {
        return None;
    }
    let mut wide = if last & 0x80 != 0 { [0xff; 8] } else { [0; 8] };
    wide.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(i64::from_le_bytes(wide))
}

/// Where the clusters of a file are, in the file's order.
#[derive(Clone, Debug, Default)]
pub(super) struct Runs {
    /// First cluster of the file, where it is (`None`: nowhere, zeroes), number of clusters.
    list: Vec<(u64, Option<u64>, u64)>,
}

impl Runs {
    /// One run.
    pub fn one(lcn: u64, count: u64) -> Self {
        Runs { list: vec![(0, Some(lcn), count)] }
    }

    fn push(&mut self, lcn: Option<u64>, count: u64) -> Result<()> {
        let at = self.clusters();
        if self.list.len() >= MAX_RUNS || at.checked_add(count).is_none() {
            return Err(damaged("a file has too many runs"));
        }
        self.list.push((at, lcn, count));
        Ok(())
    }

    /// Adds the runs of further records.
    pub fn extend(&mut self, more: Vec<Runs>) -> Result<()> {
        for runs in more {
            for (_, lcn, count) in runs.list {
                self.push(lcn, count)?;
            }
        }
        Ok(())
    }

    /// All clusters, also those that are nowhere.
    pub fn clusters(&self) -> u64 {
        self.list.last().map_or(0, |(at, _, count)| at + count)
    }

    /// Where a cluster of the file is, and how many follow it there.
    pub fn find(&self, vcn: u64) -> Option<(Option<u64>, u64)> {
        let index = self.list.partition_point(|(at, _, _)| *at <= vcn).checked_sub(1)?;
        let &(at, lcn, count) = self.list.get(index)?;
        let skip = vcn - at;
        (skip < count).then(|| (lcn.map(|l| l + skip), count - skip))
    }

    /// The runs that are somewhere: first cluster and number.
    pub fn stored(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.list.iter().filter_map(|&(_, lcn, count)| Some((lcn?, count)))
    }
}
