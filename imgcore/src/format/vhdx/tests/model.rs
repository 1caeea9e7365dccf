//! Random operations, crashes, and the second opinion of qemu-img.

use std::sync::Arc;

use super::super::VhdxDriver;
use crate::format::testing::{self, Dir, crash_resize, crash_writes, model, pattern};
use crate::format::{Access, Repair};
use crate::storage::Preallocation;

const MIB: u64 = 1 << 20;
const SMALL: &[(&str, &str)] = &[("block_size", "1M")];

#[test]
fn random_operations() {
    let dir = Dir::new();
    for seed in 0..3 {
        for options in [
            SMALL,
            &[],
            &[("subformat", "fixed"), ("block_size", "2M")],
            &[("block_state_zero", "off"), ("block_size", "1M"), ("log_size", "2M")],
        ] {
            let base = testing::create(&VhdxDriver, 7 * MIB - 512, options).unwrap();
            let (image, disk) = model(&VhdxDriver, &base, seed, (20, 2 * MIB), &[]);
            dir.qemu_agrees("vhdx", &image, &disk);
        }
    }
}

#[test]
fn random_operations_and_sizes() {
    let dir = Dir::new();
    for seed in 0..3 {
        for options in [SMALL, &[("subformat", "fixed"), ("block_size", "1M")]] {
            let base = testing::create(&VhdxDriver, 5 * MIB, options).unwrap();
            let sizes = [MIB + 512, 9 * MIB, 60 * MIB, 3 * MIB, 5 * MIB - 1024];
            let (image, disk) = model(&VhdxDriver, &base, seed, (20, 2 * MIB), &sizes);
            dir.qemu_agrees("vhdx", &image, &disk);
        }
    }
}

#[test]
fn crashes_while_writing() {
    let base = testing::create(&VhdxDriver, 6 * MIB, SMALL).unwrap();
    let (base, _) = model(&VhdxDriver, &base, 3, (6, 2 * MIB), &[]);
    crash_writes(&VhdxDriver, &base, 10, MIB);
    let empty = testing::create(&VhdxDriver, 6 * MIB, SMALL).unwrap();
    crash_writes(&VhdxDriver, &empty, 10, MIB);
}

#[test]
fn crashes_while_resizing() {
    let base = testing::create(&VhdxDriver, 7 * MIB, SMALL).unwrap();
    let (base, _) = model(&VhdxDriver, &base, 4, (8, 2 * MIB), &[]);
    for size in [12 * MIB, 3 * MIB + 512] {
        crash_resize(&VhdxDriver, &base, 10, size);
    }
}

/// A table that needs another place: 131072 entries fill its region.
#[test]
fn a_longer_table() {
    let base = testing::create(&VhdxDriver, 100 << 30, SMALL).unwrap();
    let storage = testing::memory(&base);
    let node = testing::node(&VhdxDriver, Arc::clone(&storage) as _, Access::Write);
    node.write(50 << 30, &[5; 1000]).unwrap();
    node.resize(200 << 30, Preallocation::Off).unwrap();
    node.write(150 << 30, &[6; 1000]).unwrap();
    node.close().unwrap();
    drop(node);
    let bytes = storage.to_vec();
    let node = testing::node(&VhdxDriver, testing::memory(&bytes), Access::Read);
    for (at, value) in [(50, 5), (150, 6), (199, 0), (99, 0)] {
        let mut part = [9; 1000];
        node.read(at << 30, &mut part).unwrap();
        assert_eq!(part, [value; 1000]);
    }
    let dir = Dir::new();
    dir.put("image", &bytes);
    if let Some(text) = dir.must("qemu-io", &["-f", "vhdx", "-c", "read -P 6 150G 1000", "image"]) {
        assert!(text.contains("read 1000/1000"), "{text}");
    }
    let (report, lines) = testing::check(&VhdxDriver, testing::memory(&bytes), Repair::Nothing);
    assert_eq!(report.corruptions, 0, "{lines:?}");
}

/// Space that nothing leads to is found and given back; structures that exist twice mend each other.
#[test]
fn leaks_and_copies() {
    let storage = testing::memory(&testing::create(&VhdxDriver, 12 * MIB, SMALL).unwrap());
    let node = testing::node(&VhdxDriver, Arc::clone(&storage) as _, Access::Write);
    for at in [5, 9, 1, 7, 3] {
        node.write(at << 20, &pattern(1 << 20, at)).unwrap();
    }
    node.close().unwrap();
    let mut disk = testing::content(&node);
    let bat = node.image().storage(crate::format::StorageId(0)).len().unwrap();
    drop(node);
    let good = storage.to_vec();
    assert_eq!(bat, good.len() as u64);
    let mut bytes = good.clone();
    // Log at 1 MiB, metadata at 2, table at 3.
    bytes[(3 << 20) + 9 * 8..(3 << 20) + 10 * 8].copy_from_slice(&2u64.to_le_bytes());
    disk[9 << 20..10 << 20].fill(0);
    let (report, lines) = testing::check(&VhdxDriver, testing::memory(&bytes), Repair::Nothing);
    assert_eq!((report.leaks, report.corruptions), (1, 0), "{lines:?}");
    let storage = testing::memory(&bytes);
    testing::check(&VhdxDriver, Arc::clone(&storage) as _, Repair::Leaks);
    assert_eq!(storage.to_vec().len(), good.len() - (1 << 20));
    let dir = Dir::new();
    dir.qemu_agrees("vhdx", &storage.to_vec(), &disk);
    let good = storage.to_vec();
    for at in [65536 + 20, 2 * 65536 + 20, 3 * 65536 + 20, 4 * 65536 + 20] {
        let mut bad = good.clone();
        bad[at] ^= 0x55;
        let (report, lines) = testing::check(&VhdxDriver, testing::memory(&bad), Repair::Nothing);
        assert_eq!((report.leaks, report.corruptions), (1, 0), "{at}: {lines:?}");
        let storage = testing::memory(&bad);
        testing::check(&VhdxDriver, Arc::clone(&storage) as _, Repair::Leaks);
        let (report, _) =
            testing::check(&VhdxDriver, testing::memory(&storage.to_vec()), Repair::Nothing);
        assert_eq!((report.leaks, report.corruptions), (0, 0), "{at}");
        dir.qemu_agrees("vhdx", &storage.to_vec(), &disk);
    }
}

#[test]
fn images_of_qemu() {
    let dir = Dir::new();
    let mut bytes = pattern(5 << 20, 3);
    bytes[1 << 20..3 << 20].fill(0);
    dir.put("in.raw", &bytes);
    for option in ["subformat=dynamic", "subformat=fixed", "block_size=1M"] {
        let args = ["convert", "-f", "raw", "-O", "vhdx", "-o", option, "in.raw", "q.vhdx"];
        if dir.must("qemu-img", &args).is_none() {
            return;
        }
        let node = dir.open("q.vhdx", "vhdx", Access::Write).unwrap();
        assert!(testing::content(&node) == bytes);
        node.write(1_500_000, &[9; 1_700_000]).unwrap();
        let mut now = bytes.clone();
        now[1_500_000..3_200_000].fill(9);
        node.resize(100 << 20, Preallocation::Off).unwrap();
        node.close().unwrap();
        drop(node);
        now.resize(100 << 20, 0);
        dir.qemu_agrees("vhdx", &dir.get("q.vhdx"), &now);
        dir.must("qemu-io", &["-f", "vhdx", "-c", "write -P 5 80M 3M", "q.vhdx"]);
        now[80 << 20..83 << 20].fill(5);
        let node = dir.open("q.vhdx", "vhdx", Access::Read).unwrap();
        assert!(testing::content(&node) == now, "{option}");
        let report = node.image().check(Repair::Nothing, &crate::format::Unwatched);
        assert_eq!(report.unwrap().unwrap().corruptions, 0);
    }
}
