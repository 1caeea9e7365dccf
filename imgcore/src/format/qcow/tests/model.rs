//! Random operations, crashes, and the second opinion of qemu-img.

use std::sync::Arc;

use super::super::QcowDriver;
use super::shaped;
use crate::format::testing::{
    self, Dice, Dir, PASSPHRASE, content, crash_resize, crash_writes, model, pattern,
};
use crate::format::{Access, Level, Repair};
use crate::graph::Node;
use crate::num::{GuestOffset, len_u64};
use crate::storage::Preallocation;

const MIB: u64 = 1 << 20;

/// QEMU sees these bytes; it has no check for the format.
fn qemu_agrees(dir: &Dir, image: &[u8], disk: &[u8]) {
    dir.put("image", image);
    dir.put("disk", disk);
    dir.must("qemu-img", &["compare", "-f", "qcow", "-F", "raw", "image", "disk"]);
}

/// Stores compressed clusters as `convert -c` does.
fn pack(node: &Node, at: u64, bytes: &[u8]) {
    let mut encoder = node.image().encoder(Level::Default).unwrap();
    let unit = usize::try_from(node.image().granularity().encode.unwrap()).unwrap();
    let mut packed = Vec::new();
    for (i, part) in bytes.chunks(unit).enumerate() {
        let at = GuestOffset(at + len_u64(i * unit));
        encoder.encode(at, part, &mut packed).unwrap();
        let grant = node.image().prepare_encoded(at, len_u64(packed.len())).unwrap();
        node.image().storage(grant.storage).write_at(grant.offset.0, &packed).unwrap();
        node.image().commit_write(grant).unwrap();
    }
}

/// An image with compressed, plain and no clusters.
pub(super) fn mixed() -> (Vec<u8>, Vec<u8>) {
    let storage = testing::memory(&testing::create(&QcowDriver, 3 * MIB, &[]).unwrap());
    let node = testing::node(&QcowDriver, Arc::clone(&storage) as _, Access::Write);
    pack(&node, 0, &pattern(65536, 3));
    node.write(500_000, &pattern(100_000, 4)).unwrap();
    pack(&node, 2 * MIB + 8192, &pattern(40960, 5));
    node.write(20_000, &pattern(3000, 6)).unwrap();
    node.close().unwrap();
    let disk = content(&node);
    drop(node);
    (storage.to_vec(), disk)
}

#[test]
fn random_operations() {
    let dir = Dir::new();
    for seed in 0..3 {
        for (cluster, l2) in [(12, 9), (9, 12), (9, 6), (16, 6)] {
            let base = shaped(3 * MIB - 512, cluster, l2);
            let (image, disk) = model(&QcowDriver, &base, seed, (40, MIB), &[]);
            qemu_agrees(&dir, &image, &disk);
        }
    }
}

#[test]
fn random_operations_and_sizes() {
    let dir = Dir::new();
    for seed in 0..4 {
        let sizes = [MIB + 512, 3 * MIB, 5 * MIB, 512, 9 * MIB - 1024];
        for base in [testing::create(&QcowDriver, 2 * MIB, &[]).unwrap(), shaped(2 * MIB, 9, 6)] {
            let (image, disk) = model(&QcowDriver, &base, seed, (30, MIB), &sizes);
            qemu_agrees(&dir, &image, &disk);
        }
    }
}

#[test]
fn compressed_clusters() {
    let dir = Dir::new();
    let (image, disk) = mixed();
    assert_eq!(&disk[..65536][..1000], &pattern(65536, 3)[..1000]);
    qemu_agrees(&dir, &image, &disk);
    let (report, lines) = testing::check(&QcowDriver, testing::memory(&image), Repair::Nothing);
    assert_eq!((report.corruptions, report.leaks), (0, 0), "{lines:?}");
    assert_eq!(report.compressed_clusters, Some(24));
    for seed in 0..3 {
        let (image, disk) = model(&QcowDriver, &image, seed, (30, 200_000), &[2 * MIB, 3 * MIB]);
        qemu_agrees(&dir, &image, &disk);
    }
}

#[test]
fn crashes_while_writing() {
    let (base, _) = mixed();
    crash_writes(&QcowDriver, &base, 60, 200_000);
    crash_writes(&QcowDriver, &shaped(MIB, 9, 6), 40, 100_000);
    crash_writes(&QcowDriver, &shaped(3 * MIB, 16, 6), 30, 300_000);
}

#[test]
fn crashes_while_resizing() {
    let (base, _) = mixed();
    for size in [20 * MIB, 3 * MIB + 512, MIB + 512] {
        crash_resize(&QcowDriver, &base, 40, size);
    }
}

#[test]
fn encrypted() {
    let dir = Dir::new();
    let options = [("encrypt.format", "aes")];
    let base = testing::create(&QcowDriver, 2 * MIB, &options).unwrap();
    for seed in 0..3 {
        let (image, disk) = model(&QcowDriver, &base, seed, (30, 300_000), &[3 * MIB, MIB + 512]);
        let (report, lines) = testing::check(&QcowDriver, testing::memory(&image), Repair::Nothing);
        assert_eq!((report.corruptions, report.leaks), (0, 0), "{lines:?}");
        dir.put("image", &image);
        dir.put("disk", &disk);
        let object = format!("secret,id=s,data={PASSPHRASE}");
        let opts = "driver=qcow,file.filename=image,encrypt.key-secret=s";
        let other = "driver=raw,file.filename=disk";
        dir.must("qemu-img", &["compare", "--object", &object, "--image-opts", opts, other]);
    }
    crash_writes(&QcowDriver, &base, 40, 200_000);
}

/// Clusters are handed out one after the other, and neighbours are one run.
#[test]
fn long_runs() {
    let base = testing::create(&QcowDriver, 1 << 40, &[]).unwrap();
    let node = testing::node(&QcowDriver, testing::memory(&base), Access::Write);
    node.write(100 * MIB, &pattern(1 << 20, 1)).unwrap();
    let status = |at| node.status(at, (1 << 40) - at, None).unwrap();
    assert_eq!(status(0).len, 100 * MIB);
    assert_eq!(status(100 * MIB).len, MIB);
    assert_eq!(status(101 * MIB).len, (1 << 40) - 101 * MIB);
}

#[test]
fn leaks() {
    let (image, disk) = mixed();
    let mut dice = Dice(1);
    let mut bytes = image.clone();
    bytes.extend(pattern(10_000, dice.roll(100)));
    let (report, lines) = testing::check(&QcowDriver, testing::memory(&bytes), Repair::Nothing);
    assert_eq!((report.leaks, report.corruptions), (3, 0), "{lines:?}");
    let storage = testing::memory(&bytes);
    let (report, _) = testing::check(&QcowDriver, Arc::clone(&storage) as _, Repair::Leaks);
    assert_eq!((report.leaks_fixed, report.leaks), (3, 0));
    qemu_agrees(&Dir::new(), &storage.to_vec(), &disk);
    assert!(storage.to_vec().len() <= image.len());
}

#[test]
fn images_of_qemu() {
    let dir = Dir::new();
    let mut bytes = pattern(5 << 20, 3);
    bytes[1 << 20..3 << 20].fill(0);
    dir.put("in.raw", &bytes);
    for compress in [&[][..], &["-c"]] {
        let args =
            [&["convert"], compress, &["-f", "raw", "-O", "qcow", "in.raw", "q.qcow"]].concat();
        // With -c it always exits with 1 and no message (10.0.2), having written everything.
        if dir.tool("qemu-img", &args).is_none() {
            return;
        }
        let node = dir.open("q.qcow", "qcow", Access::Write).unwrap();
        assert!(content(&node) == bytes);
        node.write(1_500_000, &[9; 700_000]).unwrap();
        let mut now = bytes.clone();
        now[1_500_000..2_200_000].fill(9);
        node.resize(30 << 20, Preallocation::Off).unwrap();
        node.close().unwrap();
        drop(node);
        now.resize(30 << 20, 0);
        qemu_agrees(&dir, &dir.get("q.qcow"), &now);
        dir.must("qemu-io", &["-f", "qcow", "-c", "write -P 5 20M 3M", "q.qcow"]);
        now[20 << 20..23 << 20].fill(5);
        let node = dir.open("q.qcow", "qcow", Access::Read).unwrap();
        assert!(content(&node) == now);
    }
}
