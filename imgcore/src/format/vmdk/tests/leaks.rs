//! Leaked grains: what is one, what only looks like one, and giving them back.

use std::sync::Mutex;

use super::esx::empty_cowd;
use super::layouts::{peek, poke, written};
use super::oracle::{check_clean, same_content, tool};
use super::{Dir, content, pattern};
use crate::format::{Access, CheckReport, Repair, Unwatched, Watcher, ZeroSpace};
use crate::{ErrorKind, Result};

const GRAIN: usize = 65536;

#[derive(Default)]
struct Lines(Mutex<Vec<String>>);

impl Watcher for Lines {
    fn note(&self, line: &str) {
        self.0.lock().unwrap().push(line.to_owned());
    }
}

fn check(dir: &Dir, repair: Repair) -> (Result<CheckReport>, Vec<String>) {
    let access = if repair == Repair::Nothing { Access::Read } else { Access::Write };
    let node = dir.node(access);
    let lines = Lines::default();
    let report = node.image().check(repair, &lines).unwrap();
    node.close().unwrap();
    (report, lines.0.into_inner().unwrap())
}

fn leaks(dir: &Dir) -> u64 {
    check(dir, Repair::Nothing).0.unwrap().leaks
}

/// `count` leaks are found and given back, and the disk is as before, also to QEMU.
fn mend(dir: &Dir, count: u64) {
    let before = content(&dir.node(Access::Read));
    assert_eq!(leaks(dir), count);
    let report = check(dir, Repair::All).0.unwrap();
    assert_eq!(report, CheckReport { leaks_fixed: count, ..CheckReport::default() });
    assert_eq!(check(dir, Repair::Nothing).0.unwrap(), CheckReport::default());
    assert!(content(&dir.node(Access::Read)) == before);
    check_clean(dir);
    same_content(dir, &before);
}

/// Takes entries out of the first table: both copies, or the redundant one only.
fn forget(dir: &Dir, fields: &[usize], grains: &[usize]) {
    for &field in fields {
        let gd = usize::try_from(peek(dir, field)).unwrap() * 512;
        let gt = usize::try_from(peek(dir, gd) & 0xffff_ffff).unwrap() * 512;
        grains.iter().for_each(|grain| poke(dir, gt + 4 * grain, &[0; 4]));
    }
}

fn append(dir: &Dir, name: &str, bytes: &[u8]) {
    let mut file = std::fs::read(dir.file(name)).unwrap();
    file.extend_from_slice(bytes);
    dir.put(name, &file);
}

fn len(dir: &Dir, name: &str) -> usize {
    usize::try_from(dir.file(name).metadata().unwrap().len()).unwrap()
}

#[test]
fn inner_ones_become_holes_and_the_end_is_cut() {
    let dir = Dir::new();
    written(&dir, &[], 10 * GRAIN);
    let end = len(&dir, "x.vmdk");
    let first = end - 10 * GRAIN;
    forget(&dir, &[48, 56], &[1, 2, 5, 9]);
    // A crash cut the last grain off.
    append(&dir, "x.vmdk", &pattern(GRAIN + 700, 8));
    let (_, lines) = check(&dir, Repair::Nothing);
    let name = dir.main().display().to_string();
    let line = |grain: usize, s: &str, n: u64| {
        format!("Leaked grain{s} at {:#x} of '{name}': {n}", first + grain * GRAIN)
    };
    assert_eq!(lines, [line(1, "s", 2), line(5, "", 1), line(9, "s", 3)]);
    mend(&dir, 6);
    assert_eq!(len(&dir, "x.vmdk"), end - GRAIN);
    let file = std::fs::read(dir.main()).unwrap();
    assert!(file[first + GRAIN..first + 3 * GRAIN].iter().all(|&b| b == 0));
    // What is written next goes to the new end.
    let node = dir.node(Access::Write);
    node.write(20 << 20, &[7; 100]).unwrap();
    node.close().unwrap();
    assert_eq!(len(&dir, "x.vmdk"), end);
    assert_eq!(leaks(&dir), 0);
}

/// Writing goes on through the image that gave the end of the file back.
#[test]
fn writing_after_a_repair() {
    let dir = Dir::new();
    let mut bytes = written(&dir, &[], 3 * GRAIN);
    append(&dir, "x.vmdk", &pattern(5 * GRAIN, 8));
    let end = len(&dir, "x.vmdk");
    let node = dir.node(Access::Write);
    assert_eq!(node.image().check(Repair::Leaks, &Unwatched).unwrap().unwrap().leaks_fixed, 5);
    node.write(3 * GRAIN as u64, &[9; GRAIN]).unwrap();
    node.close().unwrap();
    assert_eq!(len(&dir, "x.vmdk"), end - 4 * GRAIN);
    bytes.resize(4 * GRAIN, 9);
    bytes.resize(64 << 20, 0);
    same_content(&dir, &bytes);
    assert_eq!(leaks(&dir), 0);
}

#[test]
fn grains_of_zeroed_entries() {
    let dir = Dir::new();
    written(&dir, &[("zeroed_grain", "on")], 10 * GRAIN);
    let node = dir.node(Access::Write);
    node.write_zeroes(4 * GRAIN as u64, 3 * GRAIN as u64, ZeroSpace::Unmap).unwrap();
    node.close().unwrap();
    mend(&dir, 3);
}

#[test]
fn no_leaks() {
    let dir = Dir::new();
    written(&dir, &[], 5 * GRAIN);
    // Either copy of a table keeps its grains.
    forget(&dir, &[48], &[1, 2]);
    assert_eq!(leaks(&dir), 0);
    forget(&dir, &[56], &[3, 4]);
    assert_eq!(leaks(&dir), 0);
    // A file rounded up, and grains that lie at odd places since: 300 sectors of nothing.
    append(&dir, "x.vmdk", &vec![0; 300 * 512]);
    let place = u32::try_from(len(&dir, "x.vmdk") / 512).unwrap();
    append(&dir, "x.vmdk", &pattern(2 * GRAIN, 7));
    for field in [48, 56] {
        let gd = usize::try_from(peek(&dir, field)).unwrap() * 512;
        let gt = usize::try_from(peek(&dir, gd) & 0xffff_ffff).unwrap() * 512;
        poke(&dir, gt + 4 * 20, &place.to_le_bytes());
        poke(&dir, gt + 4 * 21, &(place + 128).to_le_bytes());
    }
    assert_eq!(leaks(&dir), 0);
    // Rubbish in what is left of the gap behind whole grains, and a file rounded up once more.
    poke(&dir, usize::try_from(place).unwrap() * 512 - 1000, &[1; 1000]);
    append(&dir, "x.vmdk", &[0; 1 << 20]);
    let size = len(&dir, "x.vmdk");
    assert_eq!(check(&dir, Repair::Leaks).0.unwrap(), CheckReport::default());
    assert_eq!(len(&dir, "x.vmdk"), size);
    // Odd places do not hide a leak.
    append(&dir, "x.vmdk", &pattern(GRAIN, 7));
    mend(&dir, 1);
}

#[test]
fn split_disks() {
    let dir = Dir::new();
    dir.create((2 << 30) + (1 << 20), &[("subformat", "twoGbMaxExtentSparse")]).unwrap();
    let node = dir.node(Access::Write);
    node.write(5 << 20, &pattern(3 * GRAIN, 1)).unwrap();
    node.write((2 << 30) + 5 * GRAIN as u64, &pattern(2 * GRAIN, 2)).unwrap();
    node.close().unwrap();
    let (first, second) = (dir.named("x-s001.vmdk"), dir.named("x-s002.vmdk"));
    let sizes = [len(&dir, "x-s001.vmdk"), len(&dir, "x-s002.vmdk")];
    assert_eq!(leaks(&dir), 0);
    forget(&second, &[48, 56], &[5]);
    append(&first, "x-s001.vmdk", &pattern(2 * GRAIN, 3));
    assert_eq!(leaks(&dir), 3);
    let report = check(&dir, Repair::Leaks).0.unwrap();
    assert_eq!(report.leaks_fixed, 3);
    assert_eq!(check(&dir, Repair::Nothing).0.unwrap(), CheckReport::default());
    assert_eq!([len(&dir, "x-s001.vmdk"), len(&dir, "x-s002.vmdk")], sizes);
    let mut have = vec![0; 3 * GRAIN];
    dir.node(Access::Read).read(5 << 20, &mut have).unwrap();
    assert!(have == pattern(3 * GRAIN, 1));
    check_clean(&dir);
}

/// Grains of one sector, between tables.
#[test]
fn cowd() {
    let dir = Dir::new();
    empty_cowd(&dir, 3 * 4096 - 100, 1);
    let node = dir.node(Access::Write);
    for at in [0u64, 1_000_001, 4_000_000, 6_000_000] {
        node.write(at, &pattern(9999, at)).unwrap();
    }
    node.close().unwrap();
    assert_eq!(leaks(&dir), 0);
    append(&dir, "e.vmdk", &pattern(1024, 3));
    mend(&dir, 2);
}

/// What one of two extents in one file leaks is the other's.
#[test]
fn extents_in_one_file() {
    let dir = Dir::new();
    dir.named("a.vmdk").create(1 << 20, &[]).unwrap();
    append(&dir, "a.vmdk", &pattern(GRAIN, 1));
    let at = len(&dir, "a.vmdk") / 512 - 128;
    let text = "# Disk DescriptorFile\nversion=1\nCID=123\nparentCID=ffffffff\n\
                createType=\"twoGbMaxExtentSparse\"\nRW 2048 SPARSE \"a.vmdk\"\n";
    dir.put("x.vmdk", text.as_bytes());
    assert_eq!(leaks(&dir), 1);
    std::fs::hard_link(dir.file("a.vmdk"), dir.file("b.vmdk")).unwrap();
    dir.put("x.vmdk", format!("{text}RW 128 FLAT \"b.vmdk\" {at}\n").as_bytes());
    assert_eq!(leaks(&dir), 0);
    assert_eq!(check(&dir, Repair::All).0.unwrap(), CheckReport::default());
}

/// A disk with damage keeps what looks leaked.
#[test]
fn damage_keeps_leaks() {
    let dir = Dir::new();
    written(&dir, &[], 5 * GRAIN);
    for field in [48, 56] {
        let gd = usize::try_from(peek(&dir, field)).unwrap() * 512;
        let gt = usize::try_from(peek(&dir, gd) & 0xffff_ffff).unwrap() * 512;
        let first = peek(&dir, gt).to_le_bytes();
        poke(&dir, gt + 4, &first[..4]);
    }
    let before = std::fs::read(dir.main()).unwrap();
    let report = check(&dir, Repair::All).0.unwrap();
    assert_eq!((report.corruptions, report.leaks, report.leaks_fixed), (1, 1, 0));
    assert!(std::fs::read(dir.main()).unwrap() == before);
    // Nor is anything said when the redundant directory cannot be read.
    let dir = Dir::new();
    written(&dir, &[], 5 * GRAIN);
    append(&dir, "x.vmdk", &pattern(GRAIN, 1));
    poke(&dir, 48, &0x1000_0000u64.to_le_bytes());
    assert_eq!(check(&dir, Repair::All).0.unwrap(), CheckReport::default());
}

#[test]
fn not_for_all_kinds() {
    for (subformat, hint) in [("streamOptimized", "streamOptimized"), ("monolithicFlat", "flat")] {
        let dir = Dir::new();
        dir.create(1 << 20, &[("subformat", subformat)]).unwrap();
        let before = std::fs::read(dir.main()).unwrap();
        let node = dir.checked(Access::Write);
        let e = node.image().check(Repair::Leaks, &Unwatched).unwrap().unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Unsupported);
        assert!(e.hints()[0].starts_with(hint), "{e:?}");
        node.close().unwrap();
        assert!(std::fs::read(dir.main()).unwrap() == before, "{subformat}");
        assert_eq!(leaks(&dir), 0);
    }
    let dir = Dir::new();
    written(&dir, &[], 1000);
    let read = dir.node(Access::Read);
    let e = read.image().check(Repair::Leaks, &Unwatched).unwrap().unwrap_err();
    assert_eq!(e.kind(), ErrorKind::ReadOnly);
}

/// A file of exabytes takes no longer: holes are passed, the map is bounded.
#[test]
fn huge_holes() {
    let dir = Dir::new();
    written(&dir, &[], 3 * GRAIN);
    let file = std::fs::OpenOptions::new().write(true).open(dir.main()).unwrap();
    if file.set_len(10 << 40).is_err() {
        eprintln!("SKIPPED: no files of 10 TiB here");
        return;
    }
    assert_eq!(leaks(&dir), 0);
    std::os::unix::fs::FileExt::write_all_at(&file, &[1; 600], 9 << 40).unwrap();
    mend(&dir, 1);
    assert!(len(&dir, "x.vmdk") < 1 << 20);
}

/// Disks that qemu-img and qemu-io wrote are clean.
#[test]
fn of_qemu() {
    let dir = Dir::new();
    for (subformat, more) in
        [("monolithicSparse", ""), ("twoGbMaxExtentSparse", ""), ("monolithicSparse", "zeroed")]
    {
        let mut option = format!("subformat={subformat}");
        if !more.is_empty() {
            option += ",zeroed_grain=on";
        }
        let steps: [(&str, &[&str]); 3] = [
            ("qemu-img", &["create", "-f", "vmdk", "-o", &option, "x.vmdk", "2100M"]),
            ("qemu-io", &["-f", "vmdk", "-c", "write 77k 1M", "-c", "write 2090M 3333k", "x.vmdk"]),
            ("qemu-io", &["-f", "vmdk", "-c", "write 65M 100", "-c", "write -z 200M 1M", "x.vmdk"]),
        ];
        for (program, words) in steps {
            let Some(out) = tool(program, &dir, words) else { return };
            assert!(out.status.success(), "{words:?}");
        }
        assert_eq!(check(&dir, Repair::Nothing).0.unwrap(), CheckReport::default(), "{option}");
    }
}
