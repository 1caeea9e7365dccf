//! Checksums and copies, made right again after bytes were changed, so that what they guard is reached.
//!
//! Where they are is read from the sample as it was made. That they are the right ones is shown by the test
//! that seals a sample nobody changed: nothing may change by it.

use std::ops::Range;

use super::sample::Sample;
use super::storage::Changed;
use crate::num::{len_u64, small};

/// A checksum or a copy.
#[derive(Debug)]
pub(super) enum Guard {
    /// A checksum of the bytes that stand in a list of places.
    Sum {
        how: Sum,
        /// What goes into the checksum before the bytes.
        before: Vec<u8>,
        parts: Vec<Part>,
        /// Where it stands, little endian, and its bytes.
        field: u64,
        width: usize,
        /// How often it stands there.
        times: u64,
        /// How many of its lower bits stand elsewhere.
        shift: u32,
    },
    /// Bytes that stand in a second place, too.
    Copy { from: Range<u64>, to: u64 },
    /// A record of NTFS: the last two bytes of its sectors are those of its update sequence.
    Fixup { record: Range<u64>, mark: u64 },
}

/// Bytes that are guarded.
#[derive(Clone, Debug)]
pub(super) enum Part {
    Bytes(Range<u64>),
    /// The field itself, which counts as zero.
    Zeroes(usize),
}

/// A way to add up bytes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Sum {
    /// CRC-32C as XFS and btrfs use it.
    Crc32c,
    /// CRC-32C that begins with a seed and is not turned over.
    Seeded(u32),
    /// CRC-16 of the older group descriptors.
    Crc16,
    /// CRC-32 of GPT.
    Crc32,
    /// CRC-32 of LVM, not turned over.
    Lvm,
    /// The boot region of exFAT.
    ExFat,
}

impl Sum {
    fn of(self, bytes: &[u8]) -> u32 {
        match self {
            Sum::Crc32c => crc32c::crc32c(bytes),
            Sum::Seeded(seed) => !crc32c::crc32c_append(!seed, bytes),
            Sum::Crc16 => {
                let mut sum = u16::MAX;
                for byte in bytes {
                    sum ^= u16::from(*byte);
                    for _ in 0..8 {
                        sum = if sum & 1 == 1 { sum >> 1 ^ 0xa001 } else { sum >> 1 };
                    }
                }
                u32::from(sum)
            }
            Sum::Crc32 => crc32fast::hash(bytes),
            Sum::Lvm => {
                let mut hasher = crc32fast::Hasher::new_with_initial(!0xf597_a6cf);
                hasher.update(bytes);
                !hasher.finalize()
            }
            Sum::ExFat => bytes.iter().enumerate().fold(0u32, |sum, (i, byte)| match i {
                106 | 107 | 112 => sum,
                _ => sum.rotate_right(1).wrapping_add(u32::from(*byte)),
            }),
        }
    }
}

impl Guard {
    fn sum(how: Sum, parts: Vec<Part>, field: u64) -> Self {
        Guard::Sum { how, before: Vec::new(), parts, field, width: 4, times: 1, shift: 0 }
    }

    /// A checksum inside of what it guards, where it counts as zero.
    fn inside(how: Sum, whole: Range<u64>, field: u64) -> Self {
        let parts = vec![
            Part::Bytes(whole.start..field),
            Part::Zeroes(4),
            Part::Bytes(field + 4..whole.end),
        ];
        Guard::sum(how, parts, field)
    }

    /// Makes it right.
    pub fn seal(&self, disk: &mut Changed) {
        match self {
            Guard::Sum { how, before, parts, field, width, times, shift } => {
                let mut bytes = before.clone();
                for part in parts {
                    match part {
                        Part::Bytes(range) => {
                            bytes.extend(disk.get(range.start, small(range.end - range.start)));
                        }
                        Part::Zeroes(n) => bytes.resize(bytes.len() + n, 0),
                    }
                }
                let sum = (how.of(&bytes) >> shift).to_le_bytes();
                for i in 0..*times {
                    disk.put(field + i * len_u64(*width), &sum[..*width]);
                }
            }
            Guard::Copy { from, to } => {
                let bytes = disk.get(from.start, small(from.end - from.start));
                disk.put(*to, &bytes);
            }
            Guard::Fixup { record, mark } => {
                let mark = disk.get(*mark, 2);
                for sector in record.clone().step_by(512) {
                    disk.put(sector + 510, &mark);
                }
            }
        }
    }

    /// Whether a byte is a part of the checksum itself.
    pub fn is_field(&self, at: u64) -> bool {
        match self {
            Guard::Sum { field, width, times, .. } => {
                (*field..field + len_u64(*width) * times).contains(&at)
            }
            _ => false,
        }
    }
}

/// All guards of a sample, those within others first.
pub(super) fn guards(sample: &Sample) -> Vec<Guard> {
    match sample.name.split('-').next().unwrap_or_default() {
        "ext2" | "ext3" | "ext4" => ext(sample),
        "xfs5" => xfs(sample),
        "btrfs" => btrfs(sample),
        "ntfs" => ntfs(sample, 0),
        "fat12" | "fat16" | "fat32" => fat(sample),
        "exfat" => {
            vec![Guard::Sum {
                how: Sum::ExFat,
                before: Vec::new(),
                parts: vec![Part::Bytes(0..11 * 512)],
                field: 11 * 512,
                width: 4,
                times: 128,
                shift: 0,
            }]
        }
        "disk" if sample.get(512, 8) == b"EFI PART" => gpt(sample),
        "lvm" => lvm(sample),
        _ => Vec::new(),
    }
}

/// Bitmaps, group descriptors, superblock ("Checksums").
fn ext(sample: &Sample) -> Vec<Guard> {
    const SB: u64 = 1024;
    let (incompat, ro_compat) = (sample.le32(SB + 0x60), sample.le32(SB + 0x64));
    let csum = ro_compat & 0x400 != 0;
    if !csum && ro_compat & 0x10 == 0 {
        return Vec::new();
    }
    let block = 1024 << sample.le32(SB + 0x18);
    let size = if incompat & 0x80 != 0 { sample.le16(SB + 0xfe) } else { 32 };
    let uuid = sample.get(SB + 0x68, 16);
    let seed = if incompat & 0x2000 != 0 {
        u32::try_from(sample.le32(SB + 0x270)).unwrap()
    } else {
        Sum::Seeded(!0).of(&uuid)
    };
    let (blocks, first) = (sample.le32(SB + 4), sample.le32(SB + 0x14));
    let groups = (blocks - first).div_ceil(sample.le32(SB + 0x20));
    let mut all = Vec::new();
    for group in 0..groups {
        let at = (1024 / block + 1) * block + group * size;
        if csum && sample.le16(at + 0x12) & 2 == 0 {
            let bitmap = sample.le32(at) * block;
            let bytes = sample.le32(SB + if ro_compat & 0x200 != 0 { 0x24 } else { 0x20 }) / 8;
            let half = |field, shift| Guard::Sum {
                how: Sum::Seeded(seed),
                before: Vec::new(),
                parts: vec![Part::Bytes(bitmap..bitmap + bytes)],
                field,
                width: 2,
                times: 1,
                shift,
            };
            all.push(half(at + 0x18, 0));
            if size >= 64 {
                all.push(half(at + 0x38, 16));
            }
        }
        let number = u32::try_from(group).unwrap().to_le_bytes();
        let parts = |tail| {
            let mut parts = vec![Part::Bytes(at..at + 0x1e)];
            if csum {
                parts.push(Part::Zeroes(2));
            }
            if tail {
                parts.push(Part::Bytes(at + 0x20..at + size));
            }
            parts
        };
        all.push(if csum {
            Guard::Sum {
                how: Sum::Seeded(seed),
                before: number.to_vec(),
                parts: parts(true),
                field: at + 0x1e,
                width: 2,
                times: 1,
                shift: 0,
            }
        } else {
            Guard::Sum {
                how: Sum::Crc16,
                before: [&uuid[..], &number].concat(),
                parts: parts(size > 32),
                field: at + 0x1e,
                width: 2,
                times: 1,
                shift: 0,
            }
        });
    }
    if csum {
        let parts = vec![Part::Bytes(SB..SB + 0x3fc)];
        all.push(Guard::sum(Sum::Seeded(!0), parts, SB + 0x3fc));
    }
    all
}

/// Superblock, headers of the groups' free space, blocks of trees of free extents.
fn xfs(sample: &Sample) -> Vec<Guard> {
    let mut all = Vec::new();
    let block = sample.be32(4);
    for at in sample.places(512) {
        let whole = |len| at..at + len;
        match &sample.get(at, 4)[..] {
            b"XFSB" => all.push(Guard::inside(Sum::Crc32c, whole(512), at + 224)),
            b"XAGF" => all.push(Guard::inside(Sum::Crc32c, whole(512), at + 216)),
            b"AB3B" | b"AB3C" => all.push(Guard::inside(Sum::Crc32c, whole(block), at + 52)),
            _ => {}
        }
    }
    all
}

/// Nodes of trees, superblocks.
fn btrfs(sample: &Sample) -> Vec<Guard> {
    const SB: u64 = 64 << 10;
    let node = sample.le32(SB + 148);
    let id = sample.get(SB + 32, 16);
    let mut all = Vec::new();
    for at in sample.places(small(node.min(4096))) {
        // A node names its own generation, which is not beyond the superblock's.
        let held = sample.get(at + 32, 16) == id && sample.le64(at + 80) <= sample.le64(SB + 72);
        if sample.get(at + 64, 8) == b"_BHRfS_M" {
            all.push(Guard::sum(Sum::Crc32c, vec![Part::Bytes(at + 32..at + 4096)], at));
        } else if held {
            all.push(Guard::sum(Sum::Crc32c, vec![Part::Bytes(at + 32..at + node)], at));
        }
    }
    all
}

fn ntfs(sample: &Sample, start: u64) -> Vec<Guard> {
    let mut all = Vec::new();
    for at in sample.places(512).filter(|at| *at >= start) {
        let len = match &sample.get(at, 4)[..] {
            b"FILE" => 1024,
            b"INDX" => 4096,
            _ => continue,
        };
        all.push(Guard::Fixup { record: at..at + len, mark: at + sample.le16(at + 4) });
    }
    all
}

/// The second table.
fn fat(sample: &Sample) -> Vec<Guard> {
    let start = sample.le16(14) * 512;
    let len = match sample.le16(22) {
        0 => sample.le32(36),
        n => n,
    } * 512;
    vec![Guard::Copy { from: start..start + len, to: start + len }]
}

/// Entries and headers, in front and at the end.
fn gpt(sample: &Sample) -> Vec<Guard> {
    let mut all = Vec::new();
    for header in [512, sample.len - 512] {
        let entries = sample.le64(header + 72) * 512;
        let len = sample.le32(header + 80) * sample.le32(header + 84);
        let parts = vec![Part::Bytes(entries..entries + len)];
        all.push(Guard::sum(Sum::Crc32, parts, header + 88));
        all.push(Guard::inside(Sum::Crc32, header..header + 92, header + 16));
    }
    all
}

/// Text, header of its area, label.
fn lvm(sample: &Sample) -> Vec<Guard> {
    const AREA: u64 = 4096;
    let raw = AREA + 40;
    let (offset, len) = (sample.le64(raw), sample.le64(raw + 8));
    vec![
        Guard::sum(Sum::Lvm, vec![Part::Bytes(AREA + offset..AREA + offset + len)], raw + 16),
        Guard::sum(Sum::Lvm, vec![Part::Bytes(AREA + 4..AREA + 512)], AREA),
        Guard::sum(Sum::Lvm, vec![Part::Bytes(512 + 20..1024)], 512 + 16),
    ]
}
