//! Random operations, crashes, and the second opinion of qemu-img.

use std::sync::Arc;

use super::super::ParallelsDriver;
use super::super::layout::IN_USE;
use super::{clusters, old};
use crate::format::testing::{self, Dir, content, crash_resize, crash_writes, model, pattern};
use crate::format::{Access, Repair};
use crate::storage::Preallocation;

const MIB: u64 = 1 << 20;

#[test]
fn random_operations() {
    let dir = Dir::new();
    for seed in 0..3 {
        for base in [
            clusters(7 * MIB - 512, "1M"),
            clusters(3 * MIB, "64k"),
            old(3 * MIB, "64k"),
            old(3 * MIB - 512, "32256"),
        ] {
            let (image, disk) = model(&ParallelsDriver, &base, seed, (30, MIB), &[]);
            dir.qemu_agrees("parallels", &image, &disk);
        }
    }
}

#[test]
fn random_operations_and_sizes() {
    let dir = Dir::new();
    for seed in 0..4 {
        for base in [clusters(2 * MIB, "4k"), old(2 * MIB, "4k"), old(2 * MIB, "32256")] {
            let sizes = [MIB + 512, 3 * MIB, 9 * MIB, 512, 20 * MIB - 1024];
            let (image, disk) = model(&ParallelsDriver, &base, seed, (30, MIB), &sizes);
            dir.qemu_agrees("parallels", &image, &disk);
        }
    }
}

#[test]
fn crashes_while_writing() {
    let (base, _) = model(&ParallelsDriver, &clusters(2 * MIB, "4k"), 3, (20, 300_000), &[]);
    crash_writes(&ParallelsDriver, &base, 40, 200_000);
    crash_writes(&ParallelsDriver, &clusters(3 * MIB, "64k"), 30, 300_000);
    crash_writes(&ParallelsDriver, &old(2 * MIB, "32256"), 20, 200_000);
}

#[test]
fn crashes_while_resizing() {
    let (base, _) = model(&ParallelsDriver, &clusters(2 * MIB, "4k"), 4, (20, 300_000), &[]);
    let (second, _) = model(&ParallelsDriver, &old(2 * MIB, "32256"), 5, (20, 300_000), &[]);
    for size in [20 * MIB, 2 * MIB + 512, MIB + 512] {
        crash_resize(&ParallelsDriver, &base, 30, size);
        crash_resize(&ParallelsDriver, &second, 20, size);
    }
}

fn in_use(bytes: &[u8]) -> bool {
    bytes[44..48] == IN_USE.to_le_bytes()
}

/// The mark is there from before the first allocation until the image is closed.
#[test]
fn marks() {
    let storage = testing::memory(&clusters(MIB, "64k"));
    let node = testing::node(&ParallelsDriver, Arc::clone(&storage) as _, Access::Write);
    assert!(!in_use(&storage.to_vec()));
    node.write(5000, &[1; 100]).unwrap();
    assert!(in_use(&storage.to_vec()));
    node.flush().unwrap();
    let crashed = storage.to_vec();
    assert!(in_use(&crashed));
    node.close().unwrap();
    assert!(!in_use(&storage.to_vec()));
    let (report, lines) =
        testing::check(&ParallelsDriver, testing::memory(&crashed), Repair::Nothing);
    assert_eq!((report.corruptions, lines.len()), (1, 1));
    assert_eq!(lines[0], "ERROR image was not closed correctly");
    let storage = testing::memory(&crashed);
    let (report, _) = testing::check(&ParallelsDriver, Arc::clone(&storage) as _, Repair::All);
    assert_eq!((report.corruptions, report.corruptions_fixed), (0, 1));
    assert!(!in_use(&storage.to_vec()));
    // An entry that leads nowhere, as another program may leave it: the next writer mends it.
    let mut bytes = crashed;
    bytes[68..72].copy_from_slice(&1000u32.to_le_bytes());
    let storage = testing::memory(&bytes);
    let node = testing::node(&ParallelsDriver, Arc::clone(&storage) as _, Access::Write);
    let disk = content(&node);
    node.close().unwrap();
    assert!(disk[5000..5100] == [1; 100] && disk[65536..].iter().all(|&b| b == 0));
    Dir::new().qemu_agrees("parallels", &storage.to_vec(), &disk);
}

/// Clusters are handed out one after the other, and neighbours are one run.
#[test]
fn long_runs() {
    let base = testing::create(&ParallelsDriver, 300 * MIB, &[]).unwrap();
    let node = testing::node(&ParallelsDriver, testing::memory(&base), Access::Write);
    for at in 0..20 {
        node.write(100 * MIB + at * MIB, &pattern(1 << 20, at)).unwrap();
    }
    let status = |at| node.status(at, 300 * MIB - at, None).unwrap();
    assert_eq!(status(0).len, 100 * MIB);
    assert_eq!(status(100 * MIB).len, 20 * MIB);
    assert_eq!(status(120 * MIB).len, 180 * MIB);
}

#[test]
fn leaks() {
    let storage = testing::memory(&clusters(MIB, "64k"));
    let node = testing::node(&ParallelsDriver, Arc::clone(&storage) as _, Access::Write);
    node.write(0, &[3; 200_000]).unwrap();
    node.close().unwrap();
    let disk = content(&node);
    let whole = storage.to_vec();
    let mut bytes = whole.clone();
    bytes.resize(bytes.len() + 100_000, 1);
    let (report, lines) =
        testing::check(&ParallelsDriver, testing::memory(&bytes), Repair::Nothing);
    assert_eq!((report.leaks, report.corruptions), (2, 0));
    assert_eq!(lines, ["ERROR space leaked at the end of the image 100000"]);
    let storage = testing::memory(&bytes);
    let (report, _) = testing::check(&ParallelsDriver, Arc::clone(&storage) as _, Repair::Leaks);
    assert_eq!((report.leaks_fixed, report.leaks), (2, 0));
    assert!(storage.to_vec() == whole);
    // A place that nothing leads to is used again.
    bytes = whole;
    bytes[64..68].fill(0);
    let storage = testing::memory(&bytes);
    let node = testing::node(&ParallelsDriver, Arc::clone(&storage) as _, Access::Write);
    node.write(900_000, &[9; 100]).unwrap();
    node.close().unwrap();
    assert_eq!(storage.to_vec().len(), bytes.len());
    let mut disk = disk;
    disk[..65536].fill(0);
    disk[900_000..900_100].fill(9);
    Dir::new().qemu_agrees("parallels", &storage.to_vec(), &disk);
}

#[test]
fn images_of_qemu() {
    let dir = Dir::new();
    let mut bytes = pattern(5 << 20, 3);
    bytes[1 << 20..3 << 20].fill(0);
    dir.put("in.raw", &bytes);
    for option in ["cluster_size=1M", "cluster_size=4k"] {
        let args = ["convert", "-f", "raw", "-O", "parallels", "-o", option, "in.raw", "q.hdd"];
        if dir.must("qemu-img", &args).is_none() {
            return;
        }
        let node = dir.open("q.hdd", "parallels", Access::Write).unwrap();
        assert!(content(&node) == bytes);
        node.write(1_500_000, &[9; 700_000]).unwrap();
        let mut now = bytes.clone();
        now[1_500_000..2_200_000].fill(9);
        node.resize(30 << 20, Preallocation::Off).unwrap();
        node.close().unwrap();
        drop(node);
        now.resize(30 << 20, 0);
        dir.qemu_agrees("parallels", &dir.get("q.hdd"), &now);
        dir.must("qemu-io", &["-f", "parallels", "-c", "write -P 5 20M 3M", "q.hdd"]);
        now[20 << 20..23 << 20].fill(5);
        let node = dir.open("q.hdd", "parallels", Access::Read).unwrap();
        assert!(content(&node) == now);
    }
}
