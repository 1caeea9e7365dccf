//! The log (2.3): what a crash left unfinished is done again, and what must not be torn goes through it.
//!
//! Our own entries stand alone (their tail is themselves): each is written, flushed, carried out and flushed
//! before the next one, so that only the newest is ever needed.

use std::collections::HashMap;

use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::header::Region;
use super::layout::{self, DataSector, Descriptor, LOG_SECTOR, LogHeader, MAX_SIZE, MIB, checksum};
use crate::format::uuid::Uuid;
use crate::num::{len_u64, round_up, small};
use crate::storage::Storage;
use crate::{Error, Result};

/// A sector of the log or of what it changes.
pub(super) type Sector = [u8; 4096];

/// Sectors in one entry of ours: their descriptors fill one sector with the header.
const MAX_SECTORS: usize = 126;

/// A valid entry.
#[derive(Clone, Copy, Debug)]
struct Found {
    at: u64,
    header: LogHeader,
}

impl Found {
    fn len(&self) -> u64 {
        u64::from(self.header.length.get())
    }
}

/// What an entry changes.
pub(super) trait Sink {
    /// 4 KiB at a multiple of 4 KiB.
    fn data(&mut self, offset: u64, sector: &Sector) -> Result<()>;
    /// Zeroes, in multiples of 4 KiB.
    fn zero(&mut self, offset: u64, len: u64) -> Result<()>;
    /// The length that the file must have.
    fn length(&mut self, len: u64) -> Result<()>;
}

/// Carries out what the log holds; `false` when it holds nothing.
pub(super) fn replay(
    storage: &dyn Storage,
    region: Region,
    guid: Uuid,
    sink: &mut dyn Sink,
) -> Result<bool> {
    let reader = Reader { storage, region };
    let entries = reader.active(guid)?;
    for entry in &entries {
        reader.apply(entry, sink)?;
    }
    Ok(!entries.is_empty())
}

struct Reader<'a> {
    storage: &'a dyn Storage,
    region: Region,
}

impl Reader<'_> {
    fn bad(&self, at: u64, what: &str) -> Error {
        Error::corrupt(format!("VHDX log: {what}"))
            .at_path(self.storage.name())
            .at_offset(self.region.offset + at)
    }

    /// Reads at a place of the log, going on at its beginning.
    fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let at = at % self.region.length;
        let first = small(self.region.length - at).min(buf.len());
        let (head, tail) = buf.split_at_mut(first);
        self.storage.read_at(self.region.offset + at, head)?;
        self.storage.read_at(self.region.offset, tail)
    }

    /// All places that look like an entry of this log.
    fn candidates(&self, guid: Uuid) -> Result<Vec<Found>> {
        let mut all = Vec::new();
        let mut piece = vec![0; small(MIB)];
        for from in (0..self.region.length).step_by(small(MIB)) {
            self.storage.read_at(self.region.offset + from, &mut piece)?;
            for (at, sector) in (from..).step_by(small(LOG_SECTOR)).zip(piece.chunks_exact(4096)) {
                let Ok((header, _)) = LogHeader::read_from_prefix(sector) else { continue };
                let length = u64::from(header.length.get());
                let described = 64 + 32 * u64::from(header.descriptors.get());
                if header.signature == layout::LOG_SIGNATURE
                    && Uuid::from_le(header.log) == guid
                    && header.sequence.get() > 0
                    && length.is_multiple_of(LOG_SECTOR)
                    && (LOG_SECTOR..=self.region.length).contains(&length)
                    && described <= length
                {
                    all.push(Found { at, header });
                }
            }
        }
        Ok(all)
    }

    /// Whether the checksum of an entry is right.
    fn is_whole(&self, entry: &Found) -> Result<bool> {
        let mut crc = 0;
        let mut piece = vec![0; small(MIB.min(entry.len()))];
        let mut done = 0;
        while done < entry.len() {
            let n = small((entry.len() - done).min(MIB));
            self.read(entry.at + done, &mut piece[..n])?;
            if done == 0 {
                piece[4..8].fill(0);
            }
            crc = crc32c::crc32c_append(crc, &piece[..n]);
            done += len_u64(n);
        }
        Ok(crc == entry.header.checksum.get())
    }

    /// The active sequence (2.3.2): the entries to be replayed, in their order.
    fn active(&self, guid: Uuid) -> Result<Vec<Found>> {
        let mut candidates = self.candidates(guid)?;
        candidates.sort_unstable_by_key(|c| std::cmp::Reverse(c.header.sequence.get()));
        let by_place: HashMap<u64, Found> = candidates.iter().map(|c| (c.at, *c)).collect();
        // Entries that lie over each other would make this take long; real ones do not.
        let mut budget = 4 * self.region.length + MIB;
        for head in &candidates {
            let mut chain: Vec<Found> = Vec::new();
            let mut at = u64::from(head.header.tail.get());
            let whole = loop {
                let next = by_place.get(&at);
                let expected = chain.last().map(|l| l.header.sequence.get() + 1);
                let Some(next) = next.filter(|n| {
                    expected.is_none_or(|e| n.header.sequence.get() == e)
                        && n.header.sequence.get() <= head.header.sequence.get()
                }) else {
                    break false;
                };
                budget = budget
                    .checked_sub(next.len())
                    .ok_or_else(|| self.bad(next.at, "entries lie over each other"))?;
                if !self.is_whole(next)? {
                    break false;
                }
                chain.push(*next);
                if next.at == head.at {
                    break true;
                }
                at = (at + next.len()) % self.region.length;
            };
            if whole {
                return Ok(chain);
            }
        }
        Ok(Vec::new())
    }

    fn apply(&self, entry: &Found, sink: &mut dyn Sink) -> Result<()> {
        let header = &entry.header;
        let flushed = header.flushed_length.get();
        if flushed > self.storage.len()? {
            return Err(self
                .bad(entry.at, "the file is shorter than when the entry was written")
                .hint("the file is truncated; restore it from its source"));
        }
        let last = header.last_length.get();
        if last > 2 * MAX_SIZE {
            return Err(self.bad(entry.at, "an entry wants an impossible length of the file"));
        }
        let count = u64::from(header.descriptors.get());
        let mut sector_at = round_up(64 + 32 * count, LOG_SECTOR);
        for i in 0..count {
            let mut raw = Descriptor::new_zeroed();
            let at = entry.at + 64 + 32 * i;
            self.read(at, raw.as_mut_bytes())?;
            let offset = raw.offset.get();
            if raw.sequence.get() != header.sequence.get()
                || !offset.is_multiple_of(LOG_SECTOR)
                || offset > 2 * MAX_SIZE
            {
                return Err(self.bad(at, "invalid descriptor"));
            }
            match raw.signature {
                layout::ZERO_SIGNATURE => {
                    let len = u64::from_le_bytes(raw.leading);
                    if !len.is_multiple_of(LOG_SECTOR) || len > 2 * MAX_SIZE {
                        return Err(self.bad(at, "invalid zero descriptor"));
                    }
                    sink.zero(offset, len)?;
                }
                layout::DATA_SIGNATURE => {
                    if sector_at + LOG_SECTOR > entry.len() {
                        return Err(self.bad(at, "an entry lacks data"));
                    }
                    let sector = self.sector(entry, sector_at, &raw)?;
                    sink.data(offset, &sector)?;
                    sector_at += LOG_SECTOR;
                }
                _ => return Err(self.bad(at, "unknown descriptor")),
            }
        }
        sink.length(last)
    }

    fn sector(&self, entry: &Found, at: u64, descriptor: &Descriptor) -> Result<Sector> {
        let mut raw = DataSector::new_zeroed();
        self.read(entry.at + at, raw.as_mut_bytes())?;
        let sequence = u64::from(raw.sequence_high.get()) << 32 | u64::from(raw.sequence_low.get());
        if raw.signature != layout::SECTOR_SIGNATURE || sequence != entry.header.sequence.get() {
            return Err(self.bad(entry.at + at, "torn data sector"));
        }
        let mut sector = [0; 4096];
        sector[..8].copy_from_slice(&descriptor.leading);
        sector[8..4092].copy_from_slice(&raw.data);
        sector[4092..].copy_from_slice(&descriptor.trailing);
        Ok(sector)
    }
}

/// Writes entries.
#[derive(Debug)]
pub(super) struct LogWriter {
    region: Region,
    guid: Uuid,
    next: u64,
    sequence: u64,
}

impl LogWriter {
    /// A log that has no entry with this identifier yet.
    pub fn new(region: Region, guid: Uuid) -> Self {
        LogWriter { region, guid, next: 0, sequence: 1 }
    }

    /// Changes sectors of the file: through the log, and durable on return. All of one call become visible
    /// together as far as they fit in an entry (126 sectors).
    pub fn change(&mut self, storage: &dyn Storage, sectors: &[(u64, Sector)]) -> Result<()> {
        for part in sectors.chunks(MAX_SECTORS) {
            let bytes = self.entry(storage.len()?, part);
            if self.next + len_u64(bytes.len()) > self.region.length {
                self.next = 0;
            }
            // The place is part of the entry.
            let bytes = if self.next == 0 { self.entry(storage.len()?, part) } else { bytes };
            storage.write_at(self.region.offset + self.next, &bytes)?;
            storage.flush()?;
            for (at, sector) in part {
                storage.write_at(*at, sector)?;
            }
            storage.flush()?;
            self.next += len_u64(bytes.len());
            self.sequence += 1;
        }
        Ok(())
    }

    fn entry(&self, file_len: u64, sectors: &[(u64, Sector)]) -> Vec<u8> {
        let count = len_u64(sectors.len());
        let start = round_up(64 + 32 * count, LOG_SECTOR);
        let mut bytes = vec![0; small(start + LOG_SECTOR * count)];
        let narrow = |n: u64| u32::try_from(n & 0xffff_ffff).unwrap_or(u32::MAX);
        let mut header = LogHeader::new_zeroed();
        header.signature = layout::LOG_SIGNATURE;
        header.length.set(narrow(len_u64(bytes.len())));
        header.tail.set(narrow(self.next));
        header.sequence.set(self.sequence);
        header.descriptors.set(narrow(count));
        header.log = self.guid.to_le();
        header.flushed_length.set(file_len / MIB * MIB);
        header.last_length.set(file_len / MIB * MIB);
        bytes[..64].copy_from_slice(header.as_bytes());
        for (i, (offset, sector)) in sectors.iter().enumerate() {
            let mut descriptor = Descriptor::new_zeroed();
            descriptor.signature = layout::DATA_SIGNATURE;
            descriptor.leading.copy_from_slice(&sector[..8]);
            descriptor.trailing.copy_from_slice(&sector[4092..]);
            descriptor.offset.set(*offset);
            descriptor.sequence.set(self.sequence);
            let at = 64 + 32 * i;
            bytes[at..at + 32].copy_from_slice(descriptor.as_bytes());
            let mut data = DataSector::new_zeroed();
            data.signature = layout::SECTOR_SIGNATURE;
            data.sequence_high.set(narrow(self.sequence >> 32));
            data.data.copy_from_slice(&sector[8..4092]);
            data.sequence_low.set(narrow(self.sequence));
            let at = small(start) + 4096 * i;
            bytes[at..at + 4096].copy_from_slice(data.as_bytes());
        }
        let sum = checksum(&bytes);
        bytes[4..8].copy_from_slice(&sum.to_le_bytes());
        bytes
    }
}
