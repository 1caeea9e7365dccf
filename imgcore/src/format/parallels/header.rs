//! From raw header to checked geometry.

use zerocopy::{FromZeros, IntoBytes};

use super::layout::{self, Header, SECTOR};
use crate::num::round_up;
use crate::storage::Storage;
use crate::{Error, Result};

/// Largest cluster.
const MAX_CLUSTER: u64 = i32::MAX as u64 / 2;

/// A checked header.
#[derive(Clone, Debug)]
pub(super) struct Geometry {
    /// Entries count clusters.
    pub ext: bool,
    /// Bytes of the guest's disk.
    pub size: u64,
    /// Bytes of a cluster.
    pub cluster: u64,
    /// Entries of the table.
    pub entries: u64,
    /// Where clusters begin, in bytes.
    pub data: u64,
    pub in_use: bool,
    pub cylinders: u32,
    pub heads: u32,
    /// Where the format extension is, in bytes.
    pub extension: Option<u64>,
}

impl Geometry {
    /// Bytes that an entry counts.
    pub fn unit(&self) -> u64 {
        if self.ext { self.cluster } else { SECTOR }
    }

    /// Entries from one cluster to the next.
    pub fn step(&self) -> u64 {
        self.cluster / self.unit()
    }

    /// Where the cluster of an entry (not 0) is, in bytes.
    pub fn place(&self, entry: u64) -> u64 {
        entry * self.unit()
    }

    /// Where the table ends, in bytes.
    pub fn table_end(&self) -> u64 {
        layout::HEADER + self.entries * 4
    }

    /// Clusters lie at multiples of the cluster size from here on.
    pub fn phase(&self) -> u64 {
        if self.ext { 0 } else { self.data % self.cluster }
    }

    /// The first place for a cluster at or behind `at`.
    pub fn align(&self, at: u64) -> u64 {
        let phase = self.phase();
        round_up(at.max(self.data).max(phase) - phase, self.cluster) + phase
    }

    /// Entries of the table for a disk of that size.
    pub fn entries_for(&self, size: u64) -> u64 {
        size.div_ceil(self.cluster)
    }
}

/// Whether a file begins as one of the format.
pub(super) fn is_magic(head: &[u8]) -> bool {
    head.len() >= size_of::<Header>()
        && (head.starts_with(layout::MAGIC_OLD) || head.starts_with(layout::MAGIC_EXT))
        && head[16..20] == layout::VERSION.to_le_bytes()
}

/// Reads the raw header of a file.
pub(super) fn read(storage: &dyn Storage) -> Result<Header> {
    let mut raw = Header::new_zeroed();
    storage.read_at(0, raw.as_mut_bytes())?;
    Ok(raw)
}

/// Reads and checks the header.
pub(super) fn geometry(storage: &dyn Storage) -> Result<Geometry> {
    let raw = read(storage)?;
    let len = storage.len()?;
    let bad = |at: u64, what: &str| Error::corrupt(what).at_path(storage.name()).at_offset(at);
    if !is_magic(raw.as_bytes()) {
        return Err(bad(0, "Image not in Parallels format"));
    }
    let ext = raw.magic == *layout::MAGIC_EXT;
    let tracks = u64::from(raw.tracks.get());
    if tracks == 0 {
        return Err(bad(28, "Invalid image: Zero sectors per track"));
    }
    let cluster = tracks * SECTOR;
    if cluster > MAX_CLUSTER {
        return Err(bad(28, "Invalid image: Too big cluster"));
    }
    let entries = u64::from(raw.entries.get());
    if entries > layout::MAX_ENTRIES {
        return Err(bad(32, "Catalog too large"));
    }
    let table_end = layout::HEADER + entries * 4;
    if table_end > len {
        return Err(bad(32, "the block allocation table ends beyond the end of the file")
            .hint("the file is truncated or damaged; restore it from its source"));
    }
    let sectors = if ext { raw.sectors.get() } else { raw.sectors.get() & 0xffff_ffff };
    let size = sectors.checked_mul(SECTOR).filter(|&size| i64::try_from(size).is_ok());
    let size = size.ok_or_else(|| bad(36, "Invalid image: the disk is too large"))?;
    if size > entries * cluster {
        return Err(bad(
            32,
            &format!(
                "a disk of {size} bytes, but the block allocation table has room for {}",
                entries * cluster
            ),
        ));
    }
    let least = round_up(table_end, if ext { cluster } else { SECTOR });
    // Some programs leave the field empty, or write nonsense; the table tells where data cannot be.
    let told = u64::from(raw.data.get()) * SECTOR;
    let data = if told < round_up(table_end, SECTOR) || told > round_up(len, SECTOR).max(least) {
        least
    } else {
        told
    };
    let extension = match raw.extension.get() {
        0 => None,
        at => {
            let place = at.checked_mul(SECTOR);
            let fits =
                |p: &u64| *p >= table_end && p.checked_add(cluster).is_some_and(|end| end <= len);
            Some(place.filter(fits).ok_or_else(|| {
                bad(56, "the format extension lies beyond the end of the file or in the table")
            })?)
        }
    };
    Ok(Geometry {
        ext,
        size,
        cluster,
        entries,
        data,
        in_use: raw.in_use.get() == layout::IN_USE,
        cylinders: raw.cylinders.get(),
        heads: raw.heads.get(),
        extension,
    })
}

/// Changes fields of the header on disk; one sector, so all or nothing.
pub(super) fn update(storage: &dyn Storage, change: impl FnOnce(&mut Header)) -> Result<()> {
    let mut raw = read(storage)?;
    change(&mut raw);
    storage.write_at(0, raw.as_bytes())
}

/// A number that is known to fit 32 bits.
pub(super) fn narrow(value: u64) -> zerocopy::little_endian::U32 {
    zerocopy::little_endian::U32::new(u32::try_from(value).unwrap_or(u32::MAX))
}
