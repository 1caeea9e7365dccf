//! Volumes and disks made by the tools that people make theirs with (`volumes/make`), unpacked.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;

use super::guard::{Guard, guards};
use crate::num::{len_u64, small};

/// Bytes of a page: what is not zero is kept in pages.
pub(super) const PAGE: usize = 4096;
/// A page.
pub(super) type Page = [u8; PAGE];

/// Bytes among which a change is placed.
pub(super) const LINE: u64 = 32;
/// Bytes that a file's or a removed file's word stands for.
const SECTOR: usize = 512;

/// Samples that belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// ext2, ext3, ext4.
    Ext,
    /// XFS.
    Xfs,
    /// btrfs.
    Btrfs,
    /// NTFS.
    Ntfs,
    /// FAT and exFAT.
    Fat,
    /// ISO 9660.
    Iso,
    /// Partition tables, LVM, swap, whole systems.
    Disk,
}

impl Family {
    /// All of them.
    pub const ALL: [Family; 7] = [
        Family::Ext,
        Family::Xfs,
        Family::Btrfs,
        Family::Ntfs,
        Family::Fat,
        Family::Iso,
        Family::Disk,
    ];

    /// Its samples: name, what the free map calls the file system whose every number is guarded by a
    /// checksum of 32 bits, and the packed bytes.
    fn packed(self) -> &'static [(&'static str, Option<&'static str>, &'static [u8])] {
        macro_rules! list {
            ($(($name:literal, $guarded:expr)),* $(,)?) => {
                &[$(($name, $guarded, include_bytes!(concat!("volumes/", $name, ".zst")))),*]
            };
        }
        match self {
            Family::Ext => list![
                ("ext2", None),
                ("ext3", None),
                ("ext4-plain", None),
                ("ext4", Some("ext4")),
                ("ext4-4k", Some("ext4")),
                ("ext4-bigalloc", Some("ext4")),
                ("ext4-journal", Some("ext4")),
            ],
            Family::Xfs => {
                list![("xfs5", Some("XFS")), ("xfs5-4k", Some("XFS")), ("xfs4", None)]
            }
            Family::Btrfs => list![
                ("btrfs-mixed", Some("btrfs")),
                ("btrfs", Some("btrfs")),
                ("btrfs-packed", Some("btrfs")),
            ],
            Family::Ntfs => list![("ntfs", None), ("ntfs-small", None), ("ntfs-packed", None)],
            Family::Fat => {
                list![("fat12", None), ("fat16", None), ("fat32", None), ("exfat", None)]
            }
            Family::Iso => list![("iso-rock", None), ("iso-joliet", None), ("iso-plain", None)],
            Family::Disk => list![
                ("disk-gpt", None),
                ("disk-mbr", None),
                ("disk-windows", None),
                ("lvm", None),
                ("swap", None),
            ],
        }
    }
}

/// A good volume or disk.
#[derive(Debug)]
pub struct Sample {
    /// Its name in the folder `volumes`.
    pub name: &'static str,
    pub(super) len: u64,
    /// By number; what is missing is zero.
    pub(super) pages: BTreeMap<u64, Box<Page>>,
    /// Where lines of [`LINE`] bytes begin that are not all zero, and hold no file's bytes.
    pub(super) lines: Vec<u64>,
    /// Checksums and copies.
    pub(super) guards: Vec<Guard>,
    /// Sectors that hold bytes of files.
    pub(super) kept: Vec<u64>,
    /// Sectors that held bytes of a removed file.
    pub(super) gone: Vec<u64>,
    /// What its free map is called, if every number behind it is guarded by a checksum of 32 bits.
    pub(super) guarded: Option<&'static str>,
}

/// The samples of a family.
///
/// # Panics
///
/// If one cannot be unpacked.
pub fn samples(family: Family) -> Vec<Arc<Sample>> {
    family.packed().iter().map(|sample| Arc::new(unpack(sample))).collect()
}

fn unpack(&(name, guarded, packed): &(&'static str, Option<&'static str>, &[u8])) -> Sample {
    let mut stream = zstd::stream::read::Decoder::new(packed).unwrap();
    let mut sample = Sample {
        name,
        len: 0,
        pages: BTreeMap::new(),
        lines: Vec::new(),
        guards: Vec::new(),
        kept: Vec::new(),
        gone: Vec::new(),
        guarded,
    };
    loop {
        let mut page = Vec::new();
        stream.by_ref().take(len_u64(PAGE)).read_to_end(&mut page).unwrap();
        if page.is_empty() {
            break;
        }
        let at = sample.len;
        sample.len += len_u64(page.len());
        page.resize(PAGE, 0);
        if page.iter().all(|b| *b == 0) {
            continue;
        }
        for (sector, at) in page.chunks(SECTOR).zip((at..).step_by(SECTOR)) {
            if sector.starts_with(b"KEPT") {
                sample.kept.push(at);
            } else if sector.starts_with(b"GONE") {
                sample.gone.push(at);
            } else {
                let lines = sector.chunks(small(LINE)).zip((at..).step_by(small(LINE)));
                let busy = lines.filter(|(line, _)| line.iter().any(|b| *b != 0));
                sample.lines.extend(busy.map(|(_, at)| at));
            }
        }
        sample.pages.insert(at / len_u64(PAGE), page.into_boxed_slice().try_into().unwrap());
    }
    sample.guards = guards(&sample);
    sample
}

impl Sample {
    /// Its bytes as they were made.
    pub(super) fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let byte = |at: u64| {
            let page = self.pages.get(&(at / len_u64(PAGE)));
            page.map_or(0, |p| p[small(at % len_u64(PAGE))])
        };
        (at..at + len_u64(len)).map(byte).collect()
    }

    pub(super) fn le16(&self, at: u64) -> u64 {
        self.get(at, 2).iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
    }

    pub(super) fn le32(&self, at: u64) -> u64 {
        self.get(at, 4).iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
    }

    pub(super) fn le64(&self, at: u64) -> u64 {
        self.get(at, 8).iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
    }

    pub(super) fn be32(&self, at: u64) -> u64 {
        self.get(at, 4).iter().fold(0, |n, b| n << 8 | u64::from(*b))
    }

    /// Places of this alignment that lie in a page which is not all zero.
    pub(super) fn places(&self, step: usize) -> impl Iterator<Item = u64> + '_ {
        let within = PAGE.div_ceil(step).max(1);
        let pages = self.pages.keys().map(|n| n * len_u64(PAGE));
        pages.flat_map(move |page| {
            (0..within)
                .map(move |i| page + len_u64(i * step))
                .filter(move |at| at.is_multiple_of(len_u64(step)) && *at < page + len_u64(PAGE))
        })
    }
}
