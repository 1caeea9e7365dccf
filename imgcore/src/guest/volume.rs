//! A part of the disk that holds one thing: the whole disk, a partition, a logical volume.

use std::sync::Arc;

use super::disk::{GuestDisk, beyond, buffer};
use super::parts::Partition;
use crate::num::{len_u64, small};
use crate::{Error, Result};

/// A range of the guest's disk in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DiskRange {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub len: u64,
}

impl DiskRange {
    /// The first byte behind it.
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.len)
    }
}

/// What a volume is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The whole disk, which has no partition table.
    Disk,
    /// A partition.
    Partition(Partition),
    /// A logical volume.
    Logical {
        /// Volume group.
        group: String,
        /// Name in the group.
        name: String,
        /// LVM's identifier, as LVM prints it.
        id: String,
    },
}

/// Neighbouring bytes of a volume: one lane for a linear mapping, several for stripes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First byte in the volume.
    pub at: u64,
    /// Bytes.
    pub len: u64,
    /// Where each lane begins on the disk; `None` for one that is on another disk.
    pub lanes: Vec<Option<u64>>,
    /// Bytes on one lane before the next one's turn; `len` for a linear mapping.
    pub stripe: u64,
}

/// A part of the disk with its mapping. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Volume {
    disk: GuestDisk,
    origin: Arc<Origin>,
    /// Sorted, without gaps.
    segments: Arc<[Segment]>,
    len: u64,
}

impl Volume {
    /// The whole disk.
    pub fn whole(disk: &GuestDisk) -> Self {
        let range = DiskRange { start: 0, len: disk.len() };
        Volume::linear(disk, Origin::Disk, range)
    }

    /// A partition.
    ///
    /// # Errors
    /// When it does not lie inside the disk.
    pub fn partition(disk: &GuestDisk, partition: &Partition) -> Result<Self> {
        let range = DiskRange { start: partition.start, len: partition.length };
        if range.start.checked_add(range.len).is_none_or(|end| end > disk.len()) {
            return Err(Error::corrupt(format!(
                "partition {} ends at {}, but the disk ends at {}",
                partition.number,
                range.end(),
                disk.len()
            ))
            .at_offset(range.start)
            .hint("the image was truncated, or the disk must be grown to the size it once had"));
        }
        Ok(Volume::linear(disk, Origin::Partition(partition.clone()), range))
    }

    fn linear(disk: &GuestDisk, origin: Origin, range: DiskRange) -> Self {
        let DiskRange { start, len } = range;
        let segment = Segment { at: 0, len, lanes: vec![Some(start)], stripe: len.max(1) };
        Volume { disk: disk.clone(), origin: Arc::new(origin), segments: [segment].into(), len }
    }

    /// A volume of segments. They must begin at 0, have no gaps, lanes and stripes that are not empty
    /// and multiples that come out even, and lie inside the disk.
    ///
    /// # Errors
    /// When they do not.
    pub fn mapped(disk: &GuestDisk, origin: Origin, segments: Vec<Segment>) -> Result<Self> {
        let mut len = 0u64;
        for s in &segments {
            let lanes = len_u64(s.lanes.len());
            let turn = s.stripe.checked_mul(lanes).filter(|&t| t > 0);
            let even = turn.is_some_and(|t| s.len > 0 && s.len.is_multiple_of(t));
            let end = s.at.checked_add(s.len);
            let (Some(end), true, true) = (end, even, s.at == len) else {
                return Err(Error::corrupt("the segments of a logical volume do not fit together")
                    .at_offset(s.at));
            };
            let lane = s.len / lanes;
            for start in s.lanes.iter().flatten() {
                if start.checked_add(lane).is_none_or(|e| e > disk.len()) {
                    return Err(beyond("the disk", *start, lane, disk.len()));
                }
            }
            len = end;
        }
        Ok(Volume { disk: disk.clone(), origin: Arc::new(origin), segments: segments.into(), len })
    }

    /// What it is.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The name for people: `disk`, `partition 2`, `group/name`.
    pub fn name(&self) -> String {
        match &*self.origin {
            Origin::Disk => "disk".to_owned(),
            Origin::Partition(p) => format!("partition {}", p.number),
            Origin::Logical { group, name, .. } => format!("{group}/{name}"),
        }
    }

    /// The disk it lies on.
    pub fn disk(&self) -> &GuestDisk {
        &self.disk
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// True when there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the volume's byte `at` (inside it) is on the disk, and how many bytes follow it there.
    /// `None`: on another disk.
    fn place(&self, at: u64) -> (Option<u64>, u64) {
        let index = self.segments.partition_point(|s| s.at <= at);
        let Some(s) = index.checked_sub(1).and_then(|i| self.segments.get(i)) else {
            return (None, self.len.saturating_sub(at).max(1));
        };
        let inner = at - s.at;
        let lanes = len_u64(s.lanes.len());
        let (stripe, inside) = (inner / s.stripe, inner % s.stripe);
        let left = (s.stripe - inside).min(s.len.saturating_sub(inner)).max(1);
        let lane = s.lanes.get(small(stripe % lanes)).copied().flatten();
        (lane.map(|start| start + stripe / lanes * s.stripe + inside), left)
    }

    /// The ranges of the disk that hold a range of the volume, in the volume's order. What lies beyond
    /// the end of the volume or on another disk is left out.
    pub fn on_disk(&self, at: u64, len: u64) -> impl Iterator<Item = DiskRange> + use<> {
        let volume = self.clone();
        let end = at.saturating_add(len).min(self.len);
        let mut at = at;
        std::iter::from_fn(move || {
            while at < end {
                let (start, left) = volume.place(at);
                let len = left.min(end - at);
                at += len;
                if let Some(start) = start {
                    return Some(DiskRange { start, len });
                }
            }
            None
        })
    }

    /// Fills `buf` from the volume's byte `at` on.
    ///
    /// # Errors
    /// When the range does not lie inside the volume, lies on another disk, or cannot be read.
    pub fn read_at(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let len = len_u64(buf.len());
        if at.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(beyond(&self.name(), at, len, self.len));
        }
        let (mut at, mut buf) = (at, buf);
        while !buf.is_empty() {
            let (start, left) = self.place(at);
            let n = small(left).min(buf.len());
            let (part, rest) = buf.split_at_mut(n);
            let start = start.ok_or_else(|| {
                Error::unsupported(format!("a part of {} is on another disk", self.name()))
                    .at_offset(at)
            })?;
            self.disk.read_at(start, part)?;
            at += len_u64(n);
            buf = rest;
        }
        Ok(())
    }

    /// `len` bytes from the volume's byte `at` on, at most [`super::disk::MAX_READ`].
    ///
    /// # Errors
    /// As [`Volume::read_at`], and when `len` is larger than the bound.
    pub fn read(&self, at: u64, len: u64) -> Result<Vec<u8>> {
        let mut buf = buffer(at, len)?;
        self.read_at(at, &mut buf)?;
        Ok(buf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemoryStorage;

    fn disk(len: usize) -> GuestDisk {
        let bytes = (0..len).map(|i| u8::try_from(i % 251).unwrap()).collect();
        GuestDisk::from_storage(Arc::new(MemoryStorage::new("m", bytes))).unwrap()
    }

    fn logical() -> Origin {
        Origin::Logical { group: "g".into(), name: "l".into(), id: String::new() }
    }

    #[test]
    fn stripes_and_lines() {
        let disk = disk(4096);
        let segments = vec![
            Segment { at: 0, len: 256, lanes: vec![Some(1000), Some(2000)], stripe: 64 },
            Segment { at: 256, len: 100, lanes: vec![Some(10)], stripe: 100 },
            Segment { at: 356, len: 8, lanes: vec![None], stripe: 8 },
        ];
        let volume = Volume::mapped(&disk, logical(), segments).unwrap();
        assert_eq!(volume.len(), 364);
        let at = |start, len| DiskRange { start, len };
        let ranges: Vec<_> = volume.on_disk(32, 1000).collect();
        let want = [at(1032, 32), at(2000, 64), at(1064, 64), at(2064, 64), at(10, 100)];
        assert_eq!(ranges, want);
        let mut got = [0; 130];
        volume.read_at(32, &mut got).unwrap();
        assert_eq!(got[..32], disk.read(1032, 32).unwrap());
        assert_eq!(got[32..96], disk.read(2000, 64).unwrap());
        assert_eq!(got[96..], disk.read(1064, 34).unwrap());
        assert!(volume.read(350, 10).is_err(), "on another disk");
        assert!(volume.read(360, 10).is_err(), "beyond the end");
    }

    #[test]
    fn bad_segments() {
        let disk = disk(4096);
        let bad = |s: Segment| Volume::mapped(&disk, logical(), vec![s]).unwrap_err();
        bad(Segment { at: 1, len: 8, lanes: vec![None], stripe: 8 });
        bad(Segment { at: 0, len: 8, lanes: vec![], stripe: 8 });
        bad(Segment { at: 0, len: 8, lanes: vec![None], stripe: 0 });
        bad(Segment { at: 0, len: 8, lanes: vec![None, None], stripe: 8 });
        bad(Segment { at: 0, len: 8, lanes: vec![Some(4089)], stripe: 8 });
        bad(Segment { at: 0, len: 8, lanes: vec![Some(u64::MAX)], stripe: 8 });
        bad(Segment { at: 0, len: u64::MAX, lanes: vec![Some(1)], stripe: u64::MAX });
    }
}
