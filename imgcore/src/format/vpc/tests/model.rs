//! Random operations, crashes, and the second opinion of qemu-img.

use std::sync::Arc;

use super::super::VpcDriver;
use super::small_blocks;
use crate::format::testing::{self, Dir, crash_resize, crash_writes, model, pattern};
use crate::format::{Access, Repair};
use crate::storage::Preallocation;

const MIB: u64 = 1 << 20;

#[test]
fn random_operations() {
    let dir = Dir::new();
    for seed in 0..3 {
        for options in [
            &[][..],
            &[("subformat", "fixed")],
            &[("force_size", "on")],
            &[("force_size", "on"), ("subformat", "fixed")],
        ] {
            let base = testing::create(&VpcDriver, 9 * MIB - 512, options).unwrap();
            let (image, disk) = model(&VpcDriver, &base, seed, (20, 3 * MIB), &[]);
            dir.qemu_agrees("vpc", &image, &disk);
        }
    }
}

#[test]
fn random_operations_and_sizes() {
    let dir = Dir::new();
    for seed in 0..3 {
        for options in [&[][..], &[("subformat", "fixed")]] {
            let base = testing::create(&VpcDriver, 7 * MIB, options).unwrap();
            let sizes = [3 * MIB + 512, 19 * MIB, 340 * MIB, 5 * MIB, 7 * MIB - 1024];
            let (image, disk) = model(&VpcDriver, &base, seed, (20, 3 * MIB), &sizes);
            dir.qemu_agrees("vpc", &image, &disk);
        }
    }
}

#[test]
fn small() {
    for seed in 0..4 {
        let sizes = [65536 * 3, 65536 * 40 - 512, 65536 * 400];
        model(&VpcDriver, &small_blocks(40), seed, (40, 400_000), &sizes);
    }
}

#[test]
fn crashes_while_writing() {
    let (base, _) = model(&VpcDriver, &small_blocks(40), 3, (20, 300_000), &[]);
    crash_writes(&VpcDriver, &base, 60, 300_000);
    crash_writes(&VpcDriver, &small_blocks(30), 60, 300_000);
    let fixed = testing::create(&VpcDriver, 2 * MIB, &[("subformat", "fixed")]).unwrap();
    crash_writes(&VpcDriver, &fixed, 30, 300_000);
}

#[test]
fn crashes_while_resizing() {
    let (base, _) = model(&VpcDriver, &small_blocks(40), 4, (20, 300_000), &[]);
    for size in [65536 * 60, 65536 * 300, 65536 * 13 + 512] {
        crash_resize(&VpcDriver, &base, 40, size);
    }
}

/// Blocks that nothing leads to are found and given back; footers that do not agree are mended.
#[test]
fn leaks_and_footers() {
    let storage = testing::memory(&small_blocks(40));
    let node = testing::node(&VpcDriver, Arc::clone(&storage) as _, Access::Write);
    for at in [5, 9, 1, 7, 3] {
        node.write(at << 16, &pattern(1 << 16, at)).unwrap();
    }
    node.close().unwrap();
    let mut disk = testing::content(&node);
    drop(node);
    let mut bytes = storage.to_vec();
    bytes[1536 + 9 * 4..1536 + 10 * 4].fill(0xff);
    disk[9 << 16..10 << 16].fill(0);
    let (report, lines) = testing::check(&VpcDriver, testing::memory(&bytes), Repair::Nothing);
    assert_eq!((report.leaks, report.corruptions), (1, 0), "{lines:?}");
    let storage = testing::memory(&bytes);
    testing::check(&VpcDriver, Arc::clone(&storage) as _, Repair::Leaks);
    assert!(storage.to_vec().len() < bytes.len());
    Dir::new().qemu_agrees("vpc", &storage.to_vec(), &disk);

    let good = storage.to_vec();
    for (from, to, leaks, damage) in
        [(100, 101, 0, 1), (good.len() - 400, good.len() - 399, 1, 0), (512 + 600, 512 + 601, 0, 1)]
    {
        let mut bad = good.clone();
        bad[from..to].fill(0x55);
        let (report, lines) = testing::check(&VpcDriver, testing::memory(&bad), Repair::Nothing);
        assert_eq!((report.leaks, report.corruptions), (leaks, damage), "{from}: {lines:?}");
        let storage = testing::memory(&bad);
        testing::check(&VpcDriver, Arc::clone(&storage) as _, Repair::All);
        let (report, _) =
            testing::check(&VpcDriver, testing::memory(&storage.to_vec()), Repair::Nothing);
        assert_eq!((report.leaks, report.corruptions), (0, 0), "{from}");
        Dir::new().qemu_agrees("vpc", &storage.to_vec(), &disk);
    }
}

#[test]
fn images_of_qemu() {
    let dir = Dir::new();
    let mut bytes = pattern(7 << 20, 3);
    bytes[2 << 20..5 << 20].fill(0);
    dir.put("in.raw", &bytes);
    for option in ["subformat=dynamic", "subformat=fixed"] {
        let args = [
            "convert",
            "-f",
            "raw",
            "-O",
            "vpc",
            "-o",
            option,
            "-o",
            "force_size=on",
            "in.raw",
            "q.vhd",
        ];
        if dir.must("qemu-img", &args).is_none() {
            return;
        }
        let node = dir.open("q.vhd", "vpc", Access::Write).unwrap();
        assert!(testing::content(&node) == bytes);
        node.write(1_500_000, &[9; 1_700_000]).unwrap();
        let mut now = bytes.clone();
        now[1_500_000..3_200_000].fill(9);
        node.resize(300 << 20, Preallocation::Off).unwrap();
        node.close().unwrap();
        drop(node);
        now.resize(300 << 20, 0);
        dir.qemu_agrees("vpc", &dir.get("q.vhd"), &now);
        dir.must("qemu-io", &["-f", "vpc", "-c", "write -P 5 200M 3M", "q.vhd"]);
        now[200 << 20..203 << 20].fill(5);
        let node = dir.open("q.vhd", "vpc", Access::Read).unwrap();
        assert!(testing::content(&node) == now);
        let report = node.image().check(Repair::Nothing, &crate::format::Unwatched);
        let report = report.unwrap().unwrap();
        assert_eq!((report.corruptions, report.leaks), (0, 0));
    }
}
