//! Layouts that are made by hand: damaged directories, parents, missing tables, streams.

use super::{Dir, content, pattern, write_packed};
use crate::ErrorKind;
use crate::format::{Access, Image, Repair, SpecificInfo, Unwatched, Watcher};
use crate::num::GuestOffset;

/// Image file with `len` bytes of pattern at its beginning.
pub(super) fn written(dir: &Dir, options: &[(&str, &str)], len: usize) -> Vec<u8> {
    dir.create(64 << 20, options).unwrap();
    let node = dir.node(Access::Write);
    let bytes = pattern(len, 5);
    node.write(0, &bytes).unwrap();
    node.close().unwrap();
    bytes
}

pub(super) fn poke(dir: &Dir, at: usize, bytes: &[u8]) {
    let mut file = std::fs::read(dir.main()).unwrap();
    file[at..at + bytes.len()].copy_from_slice(bytes);
    std::fs::write(dir.main(), file).unwrap();
}

pub(super) fn peek(dir: &Dir, at: usize) -> u64 {
    let file = std::fs::read(dir.main()).unwrap();
    u64::from_le_bytes(file[at..at + 8].try_into().unwrap())
}

#[test]
fn redundant_directory_stands_in() {
    let dir = Dir::new();
    let bytes = written(&dir, &[], 300_000);
    let gd = usize::try_from(peek(&dir, 56)).unwrap() * 512;
    let gt = usize::try_from(peek(&dir, gd) & 0xffff_ffff).unwrap() * 512;
    // A damaged table: its grains lie outside.
    poke(&dir, gt, &[0xff; 64]);
    assert!(content(&dir.node(Access::Read))[..300_000] == bytes);
    // A damaged directory.
    poke(&dir, gd, &[0xee; 8]);
    assert!(content(&dir.node(Access::Read))[..300_000] == bytes);
    let refused = dir.open(Access::Write).map(drop).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Corrupt);
    // Both.
    let rgd = usize::try_from(peek(&dir, 48)).unwrap() * 512;
    poke(&dir, rgd, &[0xee; 8]);
    let refused = dir.refused();
    assert_eq!(refused.offset(), Some(gd as u64));
    assert!(refused.message().contains("grain directory"), "{refused:?}");
}

#[test]
fn tables_are_made_where_missing() {
    let dir = Dir::new();
    written(&dir, &[], 10);
    let gd = usize::try_from(peek(&dir, 56)).unwrap() * 512;
    let rgd = usize::try_from(peek(&dir, 48)).unwrap() * 512;
    for base in [gd, rgd] {
        poke(&dir, base, &[0; 8]);
    }
    let node = dir.node(Access::Write);
    assert!(content(&node).iter().all(|&b| b == 0));
    let bytes = pattern(200_000, 8);
    node.write(33_400_000, &bytes).unwrap();
    node.close().unwrap();
    let all = content(&dir.node(Access::Read));
    assert!(all[33_400_000..33_600_000] == bytes);
    super::oracle::check_clean(&dir);
    super::oracle::same_content(&dir, &all);
}

#[test]
fn grains_in_the_header_are_not_overwritten() {
    let dir = Dir::new();
    written(&dir, &[], 65536);
    let gd = usize::try_from(peek(&dir, 56)).unwrap() * 512;
    let gt = usize::try_from(peek(&dir, gd) & 0xffff_ffff).unwrap() * 512;
    poke(&dir, gt, &2u32.to_le_bytes());
    let node = dir.node(Access::Write);
    node.write(100, b"over").unwrap();
    node.close().unwrap();
    let mut have = [0; 4];
    dir.node(Access::Read).read(100, &mut have).unwrap();
    assert_eq!(&have, b"over");
}

#[test]
fn grain_beyond_the_file() {
    #[derive(Default)]
    struct Lines(std::sync::Mutex<Vec<String>>);
    impl Watcher for Lines {
        fn note(&self, line: &str) {
            self.0.lock().unwrap().push(line.to_owned());
        }
    }
    let dir = Dir::new();
    written(&dir, &[], 300_000);
    for field in [48, 56] {
        let gd = usize::try_from(peek(&dir, field)).unwrap() * 512;
        let gt = usize::try_from(peek(&dir, gd) & 0xffff_ffff).unwrap() * 512;
        poke(&dir, gt + 8, &0x10000u32.to_le_bytes());
    }
    let node = dir.node(Access::Read);
    let refused = node.read(2 * 65536, &mut [0; 10]).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Corrupt);
    assert_eq!(refused.offset(), Some(0x10000 * 512));
    node.read(0, &mut [0; 100]).unwrap();
    let lines = Lines::default();
    let failed = node.image().check(Repair::Nothing, &lines).unwrap().unwrap_err();
    assert_eq!(failed.raw_errno(), Some(libc::EINVAL));
    assert_eq!(
        lines.0.into_inner().unwrap(),
        ["ERROR: cluster offset for sector 256 points after EOF"]
    );
    let refused = node.image().check(Repair::All, &Unwatched).unwrap().unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ReadOnly);
}

#[test]
fn grain_used_twice() {
    let dir = Dir::new();
    written(&dir, &[], 300_000);
    let gd = usize::try_from(peek(&dir, 56)).unwrap() * 512;
    let gt = usize::try_from(peek(&dir, gd) & 0xffff_ffff).unwrap() * 512;
    let first = peek(&dir, gt).to_le_bytes();
    poke(&dir, gt + 8, &first[..4]);
    let image = dir.open(Access::Read).unwrap();
    assert_eq!(image.check(Repair::Nothing, &Unwatched).unwrap().unwrap().corruptions, 1);
}

fn cids(image: &dyn Image) -> (u32, u32) {
    match image.info().unwrap().specific {
        Some(SpecificInfo::Vmdk(v)) => (v.cid, v.parent_cid),
        other => panic!("{other:?}"),
    }
}

#[test]
fn content_ids() {
    let dir = Dir::new();
    let base = dir.named("base.vmdk");
    written(&base, &[], 100_000);
    let image = base.open(Access::Read).unwrap();
    dir.create_over(64 << 20, &[], Some(("base.vmdk", &*image))).unwrap();
    let child = dir.open(Access::Read).unwrap();
    assert_eq!(cids(&*child).1, cids(&*image).0);
    assert_eq!(child.backing().unwrap().name, "base.vmdk");
    assert_eq!(child.backing().unwrap().format.as_deref(), Some("vmdk"));
    let node = dir.over(Access::Read, base.node(Access::Read));
    assert!(content(&node)[..100_000] == pattern(100_000, 5));
    // The first write changes the id, and only the first one.
    let writer = base.node(Access::Write);
    let before = cids(writer.image()).0;
    writer.write(5, b"x").unwrap();
    let after = cids(writer.image()).0;
    writer.write(6, b"x").unwrap();
    assert_ne!(before, after);
    assert_eq!(after, cids(writer.image()).0);
    writer.close().unwrap();
    assert_eq!(after, cids(&*base.open(Access::Read).unwrap()).0);
    let node = dir.over(Access::Read, base.node(Access::Read));
    let refused = node.read(0, &mut [0; 10]).unwrap_err();
    assert_eq!(refused.raw_errno(), Some(libc::EINVAL));
    // Unless it was changed with the child's knowledge.
    let child = dir.open(Access::Write).unwrap();
    child.adopt_backing(&*base.open(Access::Read).unwrap()).unwrap();
    assert_eq!(cids(&*child).1, after);
    let node = dir.over(Access::Read, base.node(Access::Read));
    node.read(0, &mut [0; 10]).unwrap();
}

/// Reads as those do who get the file through a pipe: from marker to marker, trusting no table. Checks
/// that everything comes in order, that tables name the grains before them, and that the file ends with
/// the end of the stream.
fn as_a_stream(file: &[u8], size: usize) -> Vec<u8> {
    let u64_at = |at: usize| u64::from_le_bytes(file[at..at + 8].try_into().unwrap());
    let u32_at = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap());
    let sectors = |at: usize| usize::try_from(u64_at(at)).unwrap();
    assert_eq!(u64_at(56), u64::MAX, "grain directory at the end");
    let mut out = vec![0; size];
    let mut at = sectors(64) * 512;
    let (mut last, mut grains, mut kinds) = (None, Vec::new(), Vec::new());
    loop {
        let length = usize::try_from(u32_at(at + 8)).unwrap();
        if length > 0 {
            assert!(kinds.iter().all(|&k| k == 1), "a grain after the directory");
            let lba = sectors(at);
            assert!(last < Some(lba), "grains in order");
            last = Some(lba);
            grains.push(u32::try_from(at / 512).unwrap());
            let packed = &file[at + 12..at + 12 + length];
            let to = &mut out[lba * 512..(lba * 512 + 65536).min(size)];
            let n = libdeflater::Decompressor::new().zlib_decompress(packed, to).unwrap();
            assert_eq!(n, 65536);
            let end = at + 12 + length;
            at = end.next_multiple_of(512);
            assert!(file[end..at].iter().all(|&b| b == 0), "padding");
            continue;
        }
        let kind = u32_at(at + 12);
        kinds.push(kind);
        if kind == 1 {
            let table: Vec<u32> = (0..512).map(|i| u32_at(at + 512 + i * 4)).collect();
            let used: Vec<u32> = table.into_iter().filter(|&e| e != 0).collect();
            assert_eq!(used, std::mem::take(&mut grains), "table");
        }
        if kind == 3 {
            assert_eq!(&file[at + 512..at + 516], b"KDMV");
        }
        at += 512 + sectors(at) * 512;
        if kind == 0 {
            break;
        }
    }
    assert_eq!(at, file.len());
    assert!(kinds.ends_with(&[1, 2, 3, 0]), "{kinds:?}");
    out
}

#[test]
fn streams() {
    let dir = Dir::new();
    let option = [("subformat", "streamOptimized")];
    dir.create(200 << 20, &option).unwrap();
    // Opened and closed without a write: unchanged.
    let empty = std::fs::read(dir.main()).unwrap();
    dir.open(Access::Write).unwrap().close().unwrap();
    assert!(empty == std::fs::read(dir.main()).unwrap());
    let image = dir.open_with(Access::Write, true).unwrap();
    // Prepared in order, stored and committed out of order, over several tables.
    let units: Vec<u64> = (0..40).map(|i| i * 73 % 40 * 79).map(|i| i.min(3199)).collect();
    let mut sorted = units.clone();
    sorted.sort_unstable();
    let mut encoder = image.encoder(crate::format::Level::Exactly(1)).unwrap();
    let mut grants = Vec::new();
    for &unit in &sorted {
        let mut out = Vec::new();
        let at = GuestOffset(unit * 65536);
        encoder.encode(at, &pattern(65536, unit), &mut out).unwrap();
        grants.push((image.prepare_encoded(at, out.len() as u64).unwrap(), out));
    }
    grants.reverse();
    for (grant, out) in grants {
        image.storage(grant.storage).write_at(grant.offset.0, &out).unwrap();
        image.commit_write(grant).unwrap();
    }
    image.close().unwrap();
    let node = dir.node(Access::Read);
    for unit in units {
        let mut have = vec![0; 65536];
        node.read(unit * 65536, &mut have).unwrap();
        assert!(have == pattern(65536, unit), "unit {unit}");
    }
    assert!(as_a_stream(&std::fs::read(dir.main()).unwrap(), 200 << 20) == content(&node));
    super::oracle::check_clean(&dir);
    super::oracle::same_content(&dir, &content(&node));
    // A reader that goes from marker to marker finds the footer behind padding.
    let mut file = std::fs::read(dir.main()).unwrap();
    file.extend([0; 5000]);
    dir.put("padded.vmdk", &file);
    assert!(content(&dir.named("padded.vmdk").node(Access::Read)) == content(&node));
    // Without its end it is refused.
    file.truncate(file.len() - 5000 - 512);
    dir.put("short.vmdk", &file);
    assert!(dir.named("short.vmdk").refused().message().contains("truncated"));
    // What is finished stays so.
    let refused = dir.open(Access::Write).map(drop).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ReadOnly);
}

#[test]
fn bombs_and_broken_grains() {
    let dir = Dir::new();
    dir.create(1 << 20, &[("subformat", "streamOptimized")]).unwrap();
    let image = dir.open(Access::Write).unwrap();
    let mut encoder = image.encoder(crate::format::Level::Default).unwrap();
    let mut out = Vec::new();
    // More than a grain in a grain.
    encoder.encode(GuestOffset(0), &vec![0; 1 << 20], &mut out).unwrap();
    let grant = image.prepare_encoded(GuestOffset(0), out.len() as u64).unwrap();
    image.storage(grant.storage).write_at(grant.offset.0, &out).unwrap();
    image.commit_write(grant).unwrap();
    write_packed(&*image, 65536, &pattern(65536, 1)).unwrap();
    image.close().unwrap();
    let node = dir.node(Access::Read);
    let refused = node.read(0, &mut [0; 512]).unwrap_err();
    assert!(refused.message().contains("more data than a grain"), "{refused:?}");
    node.read(65536, &mut [0; 512]).unwrap();
    // A marker that announces too much.
    let at = usize::try_from(refused.offset().unwrap()).unwrap();
    poke(&dir, at + 8, &0x7fff_ffffu32.to_le_bytes());
    let refused = dir.node(Access::Read).read(0, &mut [0; 512]).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Corrupt);
    // Broken data.
    poke(&dir, at + 8, &100u32.to_le_bytes());
    poke(&dir, at + 12, &[0x55; 100]);
    let refused = dir.node(Access::Read).read(0, &mut [0; 512]).unwrap_err();
    assert!(refused.message().contains("zlib"), "{refused:?}");
}

#[test]
fn mapping_runs_are_long() {
    let dir = Dir::new();
    written(&dir, &[], 8 << 20);
    let image = dir.open(Access::Read).unwrap();
    assert_eq!(image.map(GuestOffset(0), 64 << 20).unwrap().len, 8 << 20);
    let rest = image.map(GuestOffset(9 << 20), 55 << 20).unwrap();
    assert_eq!(rest.len, 23 << 20, "to the end of the table");
}

/// Plain writes of whole grains are packed on the way; others are refused, as QEMU does.
#[test]
fn plain_writes_to_a_stream() {
    let dir = Dir::new();
    let size = (1 << 20) + 4096;
    dir.create(size, &[("subformat", "streamOptimized")]).unwrap();
    let node = dir.node(Access::Write);
    let bytes = pattern(3 * 65536, 4);
    node.write(65536, &bytes).unwrap();
    node.write(1 << 20, &bytes[..4096]).unwrap();
    assert_eq!(node.write(65536, &bytes).unwrap_err().raw_errno(), Some(libc::EIO));
    assert_eq!(node.write(0, &bytes[..512]).unwrap_err().raw_errno(), Some(libc::EINVAL));
    node.close().unwrap();
    let all = content(&dir.node(Access::Read));
    assert!(all[65536..4 * 65536] == bytes && all[1 << 20..] == bytes[..4096]);
    super::oracle::check_clean(&dir);
    super::oracle::same_content(&dir, &all);
}
