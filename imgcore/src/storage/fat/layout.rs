//! Where everything lies: sizes, boot sectors, tables, folders.

use super::names::{ENTRY, Names};
use super::tree::{Entry, Kind, refused};
use crate::num::{len_u64, round_up, small};
use crate::opts::fat::{FatTarget, FatType, Medium};
use crate::{Error, ErrorKind, Result};

pub(super) const SECTOR: u64 = 512;
/// Of the partition.
const START: u64 = 2048;
/// Entries that a folder may have (its size is limited to 2 MiB).
const MAX_FOLDER: usize = 65_536;
/// Clusters of a hard disk with FAT12 and FAT16: well within what makes it one.
const CLUSTERS_12: u64 = 4000;
const CLUSTERS_16: u64 = 64_000;
/// FAT32 has at least 65525; a little more, because programs disagree about the limit.
const LEAST_32: u64 = 66_000;
/// Sectors are counted in 32 bits.
const MAX_SECTORS: u64 = 0xffff_0000;

/// What lies at a place of the disk; the rest is zeroes.
#[derive(Debug)]
pub(super) enum What {
    /// These bytes.
    Bytes(Vec<u8>),
    /// The table, made when it is read.
    Table,
    /// A file, by its number in the tree.
    File(usize),
}

/// A piece of the disk.
#[derive(Debug)]
pub(super) struct Piece {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    pub what: What,
}

/// Sizes, in sectors unless said otherwise.
#[derive(Clone, Copy, Debug)]
struct Shape {
    fat: FatType,
    medium: Medium,
    /// Before the file system.
    start: u64,
    per_cluster: u64,
    clusters: u64,
    reserved: u64,
    table: u64,
    /// Entries of a root folder outside of the data area.
    root_entries: u64,
    /// Of the file system.
    total: u64,
}

impl Shape {
    fn cluster(&self) -> u64 {
        self.per_cluster * SECTOR
    }

    /// First byte of the root folder or, with FAT32, of the data area.
    fn root_at(&self) -> u64 {
        (self.start + self.reserved + 2 * self.table) * SECTOR
    }

    /// First byte of a cluster; they are counted from 2.
    fn at(&self, cluster: u64) -> u64 {
        self.root_at() + self.root_entries * len_u64(ENTRY) + (cluster - 2) * self.cluster()
    }
}

/// The whole disk.
#[derive(Debug)]
pub(super) struct Disk {
    /// In order; they do not overlap.
    pub pieces: Vec<Piece>,
    /// Bytes.
    pub len: u64,
    /// Last clusters of folders and files, ascending: where chains end. Everything up to the last is used.
    pub ends: Vec<u64>,
}

/// Plans the disk of a folder.
pub(super) fn plan(tree: &[Entry], target: &FatTarget) -> Result<Disk> {
    let folders = folder_bytes(tree)?;
    let shape = shape(tree, &folders, target)?;
    // The root of FAT32 is a folder like the others.
    let in_data = |n: usize| n != 0 || shape.fat == FatType::Fat32;
    let mut first = vec![0u64; tree.len()];
    let (mut next, mut ends) = (2u64, Vec::new());
    let mut give = |number: usize, bytes: u64, ends: &mut Vec<u64>| {
        if bytes > 0 {
            first[number] = next;
            next += bytes.div_ceil(shape.cluster());
            ends.push(next - 1);
        }
    };
    let is_folder = |e: &Entry| matches!(e.kind, Kind::Folder(_));
    for (n, _) in tree.iter().enumerate().filter(|(n, e)| is_folder(e) && in_data(*n)) {
        give(n, folders[n].max(1), &mut ends);
    }
    for (n, e) in tree.iter().enumerate().filter(|(_, e)| !is_folder(e)) {
        give(n, e.stamp.size, &mut ends);
    }
    let mut pieces = boot_pieces(&shape, target, next);
    let used = match shape.fat {
        FatType::Fat32 => next * 4,
        _ => 0,
    };
    for copy in 0..2 {
        let start = (shape.start + shape.reserved + copy * shape.table) * SECTOR;
        let (len, what) = match shape.fat {
            FatType::Fat32 => (used, What::Table),
            _ => {
                let bytes = small_table(&shape, &ends, next);
                (len_u64(bytes.len()), What::Bytes(bytes))
            }
        };
        pieces.push(Piece { start, len, what });
    }
    let mut files = Vec::new();
    for (n, entry) in tree.iter().enumerate() {
        let start = if in_data(n) { shape.at(first[n].max(2)) } else { shape.root_at() };
        match &entry.kind {
            Kind::Folder(inside) => {
                let bytes = folder(tree, n, inside, &first, target)?;
                pieces.push(Piece { start, len: len_u64(bytes.len()), what: What::Bytes(bytes) });
            }
            Kind::File if entry.stamp.size > 0 => {
                files.push(Piece { start, len: entry.stamp.size, what: What::File(n) });
            }
            Kind::File => {}
        }
    }
    pieces.extend(files);
    pieces.sort_by_key(|p| p.start);
    Ok(Disk { pieces, len: (shape.start + shape.total) * SECTOR, ends })
}

/// Bytes of each folder's entries, 0 for files. The names are checked here.
fn folder_bytes(tree: &[Entry]) -> Result<Vec<u64>> {
    let mut all = vec![0; tree.len()];
    for (n, entry) in tree.iter().enumerate() {
        let Kind::Folder(inside) = &entry.kind else { continue };
        let mut names = Names::default();
        // The label of the root, or "." and "..".
        let mut entries = if n == 0 { 1 } else { 2 };
        for child in inside {
            let name = names.add(&tree[*child].name);
            entries += name.map_err(|why| refused(&tree[*child].path, &why))?.long.len() + 1;
        }
        if entries > MAX_FOLDER {
            return Err(refused(&entry.path, "holds more files than a folder of a FAT can"));
        }
        all[n] = len_u64(entries * ENTRY);
    }
    Ok(all)
}

/// Clusters that everything takes, with the root or without.
fn needed(tree: &[Entry], folders: &[u64], cluster: u64, skip: usize) -> u64 {
    let bytes = tree.iter().zip(folders).skip(skip).map(|(entry, folder)| match entry.kind {
        Kind::Folder(_) => folder.div_ceil(cluster).max(1),
        Kind::File => entry.stamp.size.div_ceil(cluster),
    });
    bytes.sum()
}

fn shape(tree: &[Entry], folders: &[u64], target: &FatTarget) -> Result<Shape> {
    let too_large = |what: &str| {
        Err(Error::new(ErrorKind::TooLarge, format!("the folder does not fit on {what}"))
            .at_path(target.dir.clone()))
    };
    let root_entries = |least: u64| round_up((folders[0] / len_u64(ENTRY)).max(least), 16);
    if target.medium == Medium::Floppy {
        // 1.44 MB where FAT12 was asked for, 2.88 MB otherwise, as QEMU has it.
        let (total, per_cluster, root) =
            if target.fat_type.is_some() { (2880, 1, 224) } else { (5760, 2, 240) };
        let table = 9;
        let data = total - 1 - 2 * table - root * len_u64(ENTRY) / SECTOR;
        let clusters = data / per_cluster;
        let fits = needed(tree, folders, per_cluster * SECTOR, 1) <= clusters
            && folders[0] <= root * len_u64(ENTRY);
        if !fits {
            return too_large("a floppy disk");
        }
        return Ok(Shape {
            fat: FatType::Fat12,
            medium: Medium::Floppy,
            start: 0,
            per_cluster,
            clusters,
            reserved: 1,
            table,
            root_entries: root,
            total,
        });
    }
    let of = |fat: FatType, per_cluster: u64, clusters: u64| {
        let reserved = if fat == FatType::Fat32 { 32 } else { 1 };
        let bits = match fat {
            FatType::Fat12 => 12,
            FatType::Fat16 => 16,
            FatType::Fat32 => 32,
        };
        let table = ((clusters + 2) * bits).div_ceil(8 * SECTOR);
        let root_entries = if fat == FatType::Fat32 { 0 } else { root_entries(512) };
        let total =
            reserved + 2 * table + root_entries * len_u64(ENTRY) / SECTOR + clusters * per_cluster;
        let (medium, start) = (Medium::Disk, START);
        Shape { fat, medium, start, per_cluster, clusters, reserved, table, root_entries, total }
    };
    let small = |fat, clusters, from: u64| {
        [from, 2 * from, 4 * from, 64]
            .into_iter()
            .filter(|n| *n <= 64)
            .find(|per| needed(tree, folders, per * SECTOR, 1) <= clusters)
            .map(|per| of(fat, per, clusters))
    };
    let fits_16 = || small(FatType::Fat16, CLUSTERS_16, 16);
    let large = || {
        [8, 64].into_iter().find_map(|per| {
            let need = needed(tree, folders, per * SECTOR, 0);
            let shape = of(FatType::Fat32, per, (need + 1024).max(LEAST_32));
            let good = shape.total <= MAX_SECTORS && (per == 64 || need < 1 << 21);
            good.then_some(shape)
        })
    };
    let found = match target.fat_type {
        Some(FatType::Fat12) => small(FatType::Fat12, CLUSTERS_12, 4),
        Some(FatType::Fat16) => fits_16(),
        Some(FatType::Fat32) => large(),
        None => fits_16().or_else(large),
    };
    match (found, target.fat_type) {
        (Some(shape), _) => Ok(shape),
        (None, Some(FatType::Fat12)) => too_large("a disk with FAT12"),
        (None, Some(FatType::Fat16)) => too_large("a disk with FAT16"),
        (None, _) => too_large("a disk of 2 TiB"),
    }
}

fn put(to: &mut [u8], at: usize, bytes: &[u8]) {
    to[at..at + bytes.len()].copy_from_slice(bytes);
}

fn low16(n: u64) -> [u8; 2] {
    u16::try_from(n).unwrap_or(0).to_le_bytes()
}

fn low32(n: u64) -> [u8; 4] {
    u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes()
}

/// Names the disk; the same folder has the same.
fn serial(target: &FatTarget) -> u32 {
    crc32fast::hash(target.dir.as_bytes())
}

/// Master boot record, boot sector and, with FAT32, its copy and the sector of free space.
fn boot_pieces(shape: &Shape, target: &FatTarget, next: u64) -> Vec<Piece> {
    let mut all = Vec::new();
    let mut at = |sector: u64, bytes: Vec<u8>| {
        all.push(Piece { start: sector * SECTOR, len: SECTOR, what: What::Bytes(bytes) });
    };
    if shape.medium == Medium::Disk {
        at(0, master(shape, target));
    }
    let boot = boot_sector(shape, target);
    if shape.fat == FatType::Fat32 {
        let mut free = vec![0; 512];
        put(&mut free, 0, b"RRaA");
        put(&mut free, 484, b"rrAa");
        put(&mut free, 488, &low32(shape.clusters + 2 - next));
        put(&mut free, 492, &low32(next));
        put(&mut free, 508, &[0, 0, 0x55, 0xaa]);
        for copy in [0, 6] {
            at(shape.start + copy, boot.clone());
            at(shape.start + copy + 1, free.clone());
        }
    } else {
        at(shape.start, boot);
    }
    all
}

fn master(shape: &Shape, target: &FatTarget) -> Vec<u8> {
    let mut sector = vec![0; 512];
    put(&mut sector, 440, &serial(target).to_le_bytes());
    // Addresses beyond what cylinders, heads and sectors can say: by number only.
    let kind = match shape.fat {
        FatType::Fat12 => 0x01,
        FatType::Fat16 => 0x0e,
        FatType::Fat32 => 0x0c,
    };
    put(&mut sector, 446, &[0x80, 0xfe, 0xff, 0xff, kind, 0xfe, 0xff, 0xff]);
    put(&mut sector, 454, &low32(shape.start));
    put(&mut sector, 458, &low32(shape.total));
    put(&mut sector, 510, &[0x55, 0xaa]);
    sector
}

fn boot_sector(shape: &Shape, target: &FatTarget) -> Vec<u8> {
    let mut sector = vec![0; 512];
    let large = shape.fat == FatType::Fat32;
    put(&mut sector, 0, if large { &[0xeb, 0x58, 0x90] } else { &[0xeb, 0x3c, 0x90] });
    put(&mut sector, 3, b"RIMG    ");
    put(&mut sector, 11, &low16(SECTOR));
    sector[13] = u8::try_from(shape.per_cluster).unwrap_or(64);
    put(&mut sector, 14, &low16(shape.reserved));
    sector[16] = 2;
    put(&mut sector, 17, &low16(shape.root_entries));
    let floppy = shape.medium == Medium::Floppy;
    if shape.total < 0x10000 && !large {
        put(&mut sector, 19, &low16(shape.total));
    } else {
        put(&mut sector, 32, &low32(shape.total));
    }
    sector[21] = media(shape);
    if !large {
        put(&mut sector, 22, &low16(shape.table));
    }
    let (track, heads) = if floppy { (shape.total / 160, 2) } else { (63, 255) };
    put(&mut sector, 24, &low16(track));
    put(&mut sector, 26, &low16(heads));
    put(&mut sector, 28, &low32(shape.start));
    let mut tail = 36;
    if large {
        put(&mut sector, 36, &low32(shape.table));
        // The root folder, the sector of free space, the copy.
        put(&mut sector, 44, &low32(2));
        put(&mut sector, 48, &low16(1));
        put(&mut sector, 50, &low16(6));
        tail = 64;
    }
    sector[tail] = if floppy { 0 } else { 0x80 };
    sector[tail + 2] = 0x29;
    put(&mut sector, tail + 3, &serial(target).to_le_bytes());
    put(&mut sector, tail + 7, &label(target));
    let name: &[u8] = match shape.fat {
        FatType::Fat12 => b"FAT12   ",
        FatType::Fat16 => b"FAT16   ",
        FatType::Fat32 => b"FAT32   ",
    };
    put(&mut sector, tail + 18, name);
    put(&mut sector, 510, &[0x55, 0xaa]);
    sector
}

fn media(shape: &Shape) -> u8 {
    if shape.medium == Medium::Floppy { 0xf0 } else { 0xf8 }
}

fn label(target: &FatTarget) -> [u8; 11] {
    let mut label = [b' '; 11];
    put(&mut label, 0, target.label.as_bytes());
    label
}

/// A table of 12 or 16 bits.
fn small_table(shape: &Shape, ends: &[u64], next: u64) -> Vec<u8> {
    let end: u16 = if shape.fat == FatType::Fat12 { 0xfff } else { 0xffff };
    let head = (end & 0xff00) | u16::from(media(shape));
    let mut entries = vec![head, end];
    let mut ends = ends.iter().peekable();
    for cluster in 2..next {
        if ends.next_if(|e| **e == cluster).is_some() {
            entries.push(end);
        } else {
            entries.push(u16::try_from(cluster + 1).unwrap_or(end));
        }
    }
    if shape.fat == FatType::Fat16 {
        return entries.iter().flat_map(|e| e.to_le_bytes()).collect();
    }
    // Two entries in three bytes.
    let packed = entries.chunks(2).flat_map(|pair| {
        let (a, b) = (pair[0], pair.get(1).copied().unwrap_or(0));
        let [a0, a1] = a.to_le_bytes();
        let [b0, b1] = (b << 4).to_le_bytes();
        [a0, a1 | b0, b1]
    });
    packed.collect()
}

/// Part of a table of 32 bits: entries from `first` on. The first two are those of the medium.
pub(super) fn table_32(ends: &[u64], first: u64, out: &mut Vec<u8>, count: u64) {
    let mut at = ends.partition_point(|e| *e < first);
    let used = ends.last().copied().unwrap_or(1);
    for cluster in first..first + count {
        let entry = match cluster {
            0 => 0x0fff_fff8,
            1 => 0x0fff_ffff,
            c if c > used => 0,
            c if ends.get(at) == Some(&c) => {
                at += 1;
                0x0fff_ffff
            }
            c => c + 1,
        };
        out.extend_from_slice(&low32(entry));
    }
}

/// The entries of a folder.
fn folder(
    tree: &[Entry],
    number: usize,
    inside: &[usize],
    first: &[u64],
    target: &FatTarget,
) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(ENTRY * (inside.len() + 2));
    if number == 0 {
        let mut entry = described(&tree[0], label(target), 0);
        entry[11] = 0x08;
        bytes.extend(entry);
    } else {
        let parent = tree[number].parent;
        for (name, of, cluster) in [
            (b".          ", number, first[number]),
            // The root is 0 there, wherever it lies.
            (b"..         ", parent, if parent == 0 { 0 } else { first[parent] }),
        ] {
            bytes.extend(described(&tree[of], *name, cluster));
        }
    }
    let mut names = Names::default();
    for child in inside {
        let entry = &tree[*child];
        let name = names.add(&entry.name).map_err(|why| refused(&entry.path, &why))?;
        name.long.iter().for_each(|e| bytes.extend(e));
        bytes.extend(described(entry, name.short, first[*child]));
    }
    Ok(bytes)
}

/// An entry of a folder.
fn described(entry: &Entry, name: [u8; 11], cluster: u64) -> [u8; ENTRY] {
    let mut out = [0; ENTRY];
    put(&mut out, 0, &name);
    let folder = matches!(entry.kind, Kind::Folder(_));
    out[11] = if folder { 0x10 } else { 0x20 | u8::from(entry.read_only) };
    let (date, time) = dos_time(entry.stamp.modified.0);
    for at in [14, 22] {
        put(&mut out, at, &time.to_le_bytes());
        put(&mut out, at + 2, &date.to_le_bytes());
    }
    put(&mut out, 18, &date.to_le_bytes());
    let cluster = low32(cluster);
    put(&mut out, 20, &cluster[2..]);
    put(&mut out, 26, &cluster[..2]);
    if !folder {
        put(&mut out, 28, &low32(entry.stamp.size));
    }
    out
}

/// Date and time of FAT, in UTC. What it cannot say becomes its first or last day.
fn dos_time(seconds: i64) -> (u16, u16) {
    const FIRST: i64 = 315_532_800; // 1980-01-01
    const LAST: i64 = 4_354_819_198; // 2107-12-31 23:59:58
    let seconds = seconds.clamp(FIRST, LAST);
    let (day, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Civil date from a count of days, by the 400-year cycle that begins in March.
    let z = day + 719_468;
    let (era, doe) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (d, m) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let y = yoe + era * 400 + i64::from(m <= 2);
    let date = ((y - 1980) << 9) | (m << 5) | d;
    let time = (rest / 3600) << 11 | (rest % 3600 / 60) << 5 | (rest % 60 / 2);
    (u16::try_from(date).unwrap_or(0x21), u16::try_from(time).unwrap_or(0))
}

/// The piece that holds a byte, or the one that follows.
pub(super) fn piece_at(pieces: &[Piece], offset: u64) -> usize {
    pieces.partition_point(|p| p.start + p.len <= offset)
}

/// A length in memory that was bounded before.
pub(super) fn bytes_of(len: u64) -> usize {
    small(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        let shown = |seconds: i64| {
            let (date, time) = dos_time(seconds);
            format!(
                "{}-{}-{} {}:{}:{}",
                1980 + (date >> 9),
                (date >> 5) & 15,
                date & 31,
                time >> 11,
                (time >> 5) & 63,
                (time & 31) * 2
            )
        };
        assert_eq!(shown(0), "1980-1-1 0:0:0");
        assert_eq!(shown(951_827_696), "2000-2-29 12:34:56");
        assert_eq!(shown(1_700_000_000), "2023-11-14 22:13:20");
        assert_eq!(shown(i64::MAX), "2107-12-31 23:59:58");
    }

    #[test]
    fn tables_of_32_bits() {
        let mut out = Vec::new();
        table_32(&[2, 5], 0, &mut out, 8);
        let entries: Vec<u32> =
            out.chunks(4).map(|c| u32::from_le_bytes(c.try_into().unwrap())).collect();
        let end = 0x0fff_ffff;
        assert_eq!(entries, [0x0fff_fff8, end, end, 4, 5, end, 0, 0]);
        let mut part = Vec::new();
        table_32(&[2, 5], 4, &mut part, 2);
        assert_eq!(part, out[16..24]);
    }
}
