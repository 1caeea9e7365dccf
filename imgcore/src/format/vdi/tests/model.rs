//! Random operations, crashes, and the second opinion of qemu-img.

use super::super::VdiDriver;
use super::small_blocks;
use crate::format::testing::{self, Dir, crash_resize, crash_writes, model, pattern};
use crate::format::{Access, Repair};
use crate::storage::Preallocation;

const MIB: u64 = 1 << 20;

#[test]
fn random_operations() {
    let dir = Dir::new();
    for seed in 0..3 {
        for options in [&[][..], &[("static", "on")]] {
            let base = testing::create(&VdiDriver, 7 * MIB - 512, options).unwrap();
            let (image, disk) = model(&VdiDriver, &base, seed, (25, 2 * MIB), &[]);
            dir.qemu_agrees("vdi", &image, &disk);
        }
    }
}

#[test]
fn random_operations_and_sizes() {
    let dir = Dir::new();
    for seed in 0..3 {
        for options in [&[][..], &[("static", "on")]] {
            let base = testing::create(&VdiDriver, 5 * MIB, options).unwrap();
            let sizes = [MIB + 512, 9 * MIB, 140 * MIB, 3 * MIB, 5 * MIB - 1024];
            let (image, disk) = model(&VdiDriver, &base, seed, (20, 2 * MIB), &sizes);
            dir.qemu_agrees("vdi", &image, &disk);
        }
    }
}

#[test]
fn other_blocks() {
    for seed in 0..3 {
        for extra in [0, 512, 4096] {
            let base = small_blocks(40, &[], extra);
            let sizes = [65536 * 3, 65536 * 40 - 512, 65536 * 400];
            model(&VdiDriver, &base, seed, (40, 400_000), &sizes);
        }
    }
}

#[test]
fn crashes_while_writing() {
    let (base, _) = model(&VdiDriver, &small_blocks(40, &[], 0), 3, (20, 300_000), &[]);
    crash_writes(&VdiDriver, &base, 60, 300_000);
    crash_writes(&VdiDriver, &small_blocks(30, &[("static", "on")], 0), 30, 300_000);
    crash_writes(&VdiDriver, &small_blocks(30, &[], 512), 30, 300_000);
}

#[test]
fn crashes_while_resizing() {
    let (base, _) = model(&VdiDriver, &small_blocks(40, &[], 0), 4, (20, 300_000), &[]);
    for size in [65536 * 60, 65536 * 300, 65536 * 13 + 512] {
        crash_resize(&VdiDriver, &base, 40, size);
    }
}

/// Blocks are handed out one after the other, and neighbours are one run.
#[test]
fn long_runs() {
    let base = testing::create(&VdiDriver, 300 * MIB, &[]).unwrap();
    let storage = testing::memory(&base);
    let node = testing::node(&VdiDriver, storage, Access::Write);
    for at in 0..20 {
        node.write(100 * MIB + at * MIB, &pattern(1 << 20, at)).unwrap();
    }
    let status = |at| node.status(at, 300 * MIB - at, None).unwrap();
    assert_eq!(status(0).len, 100 * MIB);
    assert_eq!(status(100 * MIB).len, 20 * MIB);
    assert_eq!(status(120 * MIB).len, 180 * MIB);
}

/// Leaks are found, and given back by moving the last blocks into the gaps.
#[test]
fn leaks() {
    let base = testing::create(&VdiDriver, 20 * MIB, &[]).unwrap();
    let storage = testing::memory(&base);
    let node = testing::node(&VdiDriver, std::sync::Arc::clone(&storage) as _, Access::Write);
    for at in [5, 9, 1, 7, 3] {
        node.write(at * MIB, &pattern(1 << 20, at)).unwrap();
    }
    node.close().unwrap();
    let disk = testing::content(&node);
    drop(node);
    let mut bytes = storage.to_vec();
    // Block 9 (the second in the file) is forgotten.
    bytes[512 + 9 * 4..512 + 10 * 4].fill(0xff);
    let (report, lines) = testing::check(&VdiDriver, testing::memory(&bytes), Repair::Nothing);
    assert_eq!((report.leaks, report.corruptions), (1, 0));
    assert_eq!(lines, ["Leaked blocks: 1 (allocated blocks mismatch, is 4, should be 5)"]);
    let storage = testing::memory(&bytes);
    let (report, _) =
        testing::check(&VdiDriver, std::sync::Arc::clone(&storage) as _, Repair::Leaks);
    assert_eq!((report.leaks_fixed, report.leaks), (1, 0));
    let mended = storage.to_vec();
    assert_eq!(mended.len(), base.len() + (4 << 20));
    let mut expected = disk;
    expected[9 << 20..10 << 20].fill(0);
    Dir::new().qemu_agrees("vdi", &mended, &expected);
    // The next writer uses such places, too.
    let storage = testing::memory(&bytes);
    let node = testing::node(&VdiDriver, std::sync::Arc::clone(&storage) as _, Access::Write);
    node.write(0, &[7; 100]).unwrap();
    node.close().unwrap();
    expected[..100].fill(7);
    assert_eq!(storage.to_vec().len(), bytes.len());
    Dir::new().qemu_agrees("vdi", &storage.to_vec(), &expected);
}

#[test]
fn images_of_qemu() {
    let dir = Dir::new();
    let mut bytes = pattern(5 << 20, 3);
    bytes[1 << 20..3 << 20].fill(0);
    dir.put("in.raw", &bytes);
    for option in ["static=off", "static=on"] {
        let args = ["convert", "-f", "raw", "-O", "vdi", "-o", option, "in.raw", "q.vdi"];
        if dir.must("qemu-img", &args).is_none() {
            return;
        }
        let node = dir.open("q.vdi", "vdi", Access::Write).unwrap();
        assert!(testing::content(&node) == bytes);
        node.write(1_500_000, &[9; 700_000]).unwrap();
        let mut now = bytes.clone();
        now[1_500_000..2_200_000].fill(9);
        node.resize(300 << 20, Preallocation::Off).unwrap();
        node.close().unwrap();
        drop(node);
        now.resize(300 << 20, 0);
        dir.qemu_agrees("vdi", &dir.get("q.vdi"), &now);
        dir.must("qemu-io", &["-f", "vdi", "-c", "write -P 5 200M 3M", "q.vdi"]);
        now[200 << 20..203 << 20].fill(5);
        let node = dir.open("q.vdi", "vdi", Access::Read).unwrap();
        assert!(testing::content(&node) == now);
    }
}
