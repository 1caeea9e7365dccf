//! Random operations, crashes, and the second opinion of qemu-img.

use std::sync::Arc;

use super::super::QedDriver;
use super::super::layout::feature;
use super::small;
use crate::format::testing::{self, Dir, content, crash_resize, crash_writes, model, pattern};
use crate::format::{Access, Repair};
use crate::storage::Preallocation;

// QEMU makes images with tables of one cluster, but opens none: where it looks, they have two.

const MIB: u64 = 1 << 20;

#[test]
fn random_operations() {
    let dir = Dir::new();
    for seed in 0..3 {
        for base in [
            small(3 * MIB - 512, "2"),
            small(3 * MIB - 512, "8"),
            testing::create(&QedDriver, 4 * MIB, &[]).unwrap(),
        ] {
            let (image, disk) = model(&QedDriver, &base, seed, (40, MIB), &[]);
            dir.qemu_agrees("qed", &image, &disk);
        }
    }
}

#[test]
fn random_operations_and_sizes() {
    let dir = Dir::new();
    for seed in 0..4 {
        for table in ["2", "4"] {
            let sizes = [MIB + 512, 3 * MIB, 5 * MIB, 512, 9 * MIB - 1024];
            let base = small(2 * MIB, table);
            let (image, disk) = model(&QedDriver, &base, seed, (30, MIB), &sizes);
            dir.qemu_agrees("qed", &image, &disk);
        }
    }
}

#[test]
fn crashes_while_writing() {
    let (base, _) = model(&QedDriver, &small(3 * MIB, "1"), 3, (20, 300_000), &[]);
    crash_writes(&QedDriver, &base, 40, 200_000);
    crash_writes(&QedDriver, &small(2 * MIB, "1"), 30, 200_000);
    crash_writes(&QedDriver, &small(8 * MIB, "2"), 15, 300_000);
}

#[test]
fn crashes_while_resizing() {
    let (base, _) = model(&QedDriver, &small(3 * MIB, "1"), 4, (20, 300_000), &[]);
    for size in [20 * MIB, 3 * MIB + 512, MIB + 512] {
        crash_resize(&QedDriver, &base, 40, size);
    }
}

fn features(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes[16..24].try_into().unwrap())
}

/// The bit is there from before the first allocation until the image is closed.
#[test]
fn need_check() {
    let storage = testing::memory(&small(MIB, "2"));
    let node = testing::node(&QedDriver, Arc::clone(&storage) as _, Access::Write);
    assert_eq!(features(&storage.to_vec()), 0);
    node.write(5000, &[1; 100]).unwrap();
    assert_eq!(features(&storage.to_vec()), feature::NEED_CHECK);
    node.flush().unwrap();
    assert_eq!(features(&storage.to_vec()), feature::NEED_CHECK);
    assert_eq!(node.image().info().unwrap().dirty, Some(true));
    let crashed = storage.to_vec();
    node.close().unwrap();
    assert_eq!(features(&storage.to_vec()), 0);
    // Readers leave it alone, the next writer looks and clears it.
    let storage = testing::memory(&crashed);
    let node = testing::node(&QedDriver, Arc::clone(&storage) as _, Access::Read);
    assert_eq!(content(&node)[5000..5100], [1; 100]);
    node.close().unwrap();
    assert_eq!(features(&storage.to_vec()), feature::NEED_CHECK);
    // An entry that leads nowhere, as another program may leave it.
    let mut bytes = crashed;
    let l2 = bytes.len() - 12288..bytes.len() - 4096;
    assert!(bytes[l2.clone()][8..16] != [0; 8], "the table is in front of the cluster");
    bytes[l2.start + 16..l2.start + 24].copy_from_slice(&(1u64 << 40).to_le_bytes());
    let storage = testing::memory(&bytes);
    let node = testing::node(&QedDriver, Arc::clone(&storage) as _, Access::Write);
    let disk = content(&node);
    assert!(disk[5000..5100] == [1; 100] && disk[8192..].iter().all(|&b| b == 0));
    node.close().unwrap();
    Dir::new().qemu_agrees("qed", &storage.to_vec(), &disk);
    assert_eq!(features(&storage.to_vec()), 0);
}

/// Clusters are handed out one after the other, and neighbours are one run.
#[test]
fn long_runs() {
    let base = testing::create(&QedDriver, 1 << 44, &[]).unwrap();
    let node = testing::node(&QedDriver, testing::memory(&base), Access::Write);
    for at in 0..20 {
        node.write(100 * MIB + at * MIB, &pattern(1 << 20, at)).unwrap();
    }
    let status = |at| node.status(at, (1 << 44) - at, None).unwrap();
    assert_eq!(status(0).len, 100 * MIB);
    assert_eq!(status(100 * MIB).len, 20 * MIB);
    assert_eq!(status(120 * MIB).len, (1 << 44) - 120 * MIB);
}

/// Leaks are given back by moving clusters and tables.
#[test]
fn leaks() {
    for table in ["2", "4"] {
        let storage = testing::memory(&small(60 * MIB, table));
        let node = testing::node(&QedDriver, Arc::clone(&storage) as _, Access::Write);
        for at in [1, 40, 3, 20, 9, 50] {
            node.write(at * MIB + 5000, &pattern(30_000, at)).unwrap();
        }
        node.close().unwrap();
        let mut disk = content(&node);
        drop(node);
        let mut bytes = storage.to_vec();
        // The first clusters are forgotten.
        let pointer = bytes.windows(8).skip(4096).position(|w| w != [0; 8]).unwrap() + 4096;
        let l1 = pointer - pointer % 8;
        let l2 = u64::from_le_bytes(bytes[l1..l1 + 8].try_into().unwrap());
        let l2 = usize::try_from(l2).unwrap();
        let first = (1 << 20) / 4096 + 1;
        for i in [first, first + 2, first + 3] {
            bytes[l2 + i * 8..l2 + i * 8 + 8].fill(0);
            disk[i * 4096..(i + 1) * 4096].fill(0);
        }
        let (report, _) = testing::check(&QedDriver, testing::memory(&bytes), Repair::Nothing);
        assert_eq!((report.leaks, report.corruptions), (3, 0));
        let storage = testing::memory(&bytes);
        let (report, lines) = testing::check(&QedDriver, Arc::clone(&storage) as _, Repair::Leaks);
        assert_eq!((report.leaks_fixed, report.leaks), (3, 0), "{lines:?}");
        assert_eq!(storage.to_vec().len(), bytes.len() - 3 * 4096);
        Dir::new().qemu_agrees("qed", &storage.to_vec(), &disk);
    }
}

#[test]
fn images_of_qemu() {
    let dir = Dir::new();
    let mut bytes = pattern(5 << 20, 3);
    bytes[1 << 20..3 << 20].fill(0);
    dir.put("in.raw", &bytes);
    for option in ["cluster_size=64k", "cluster_size=4k,table_size=2"] {
        let args = ["convert", "-f", "raw", "-O", "qed", "-o", option, "in.raw", "q.qed"];
        if dir.must("qemu-img", &args).is_none() {
            return;
        }
        let node = dir.open("q.qed", "qed", Access::Write).unwrap();
        assert!(content(&node) == bytes);
        node.write(1_500_000, &[9; 700_000]).unwrap();
        let mut now = bytes.clone();
        now[1_500_000..2_200_000].fill(9);
        node.resize(30 << 20, Preallocation::Off).unwrap();
        node.close().unwrap();
        drop(node);
        now.resize(30 << 20, 0);
        dir.qemu_agrees("qed", &dir.get("q.qed"), &now);
        dir.must("qemu-io", &["-f", "qed", "-c", "write -P 5 20M 3M", "q.qed"]);
        now[20 << 20..23 << 20].fill(5);
        let node = dir.open("q.qed", "qed", Access::Read).unwrap();
        assert!(content(&node) == now);
    }
}
