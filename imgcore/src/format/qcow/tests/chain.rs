//! Files below.

use super::super::QcowDriver;
use crate::format::testing::{Dir, check, content, memory, pattern};
use crate::format::{Access, BackingRef, Repair, ZeroSpace};
use crate::storage::Preallocation;

#[test]
fn overlays() {
    let dir = Dir::new();
    let below = pattern(1 << 20, 1);
    dir.put("base.raw", &below);
    let args = ["create", "-q", "-f", "qcow", "-b", "base.raw", "-F", "raw", "top.qcow", "2M"];
    if dir.must("qemu-img", &args).is_none() {
        return;
    }
    let node = dir.open("top.qcow", "qcow", Access::Write).unwrap();
    let mut disk = below.clone();
    disk.resize(2 << 20, 0);
    assert!(content(&node) == disk);
    let write = |at: usize, bytes: &[u8], disk: &mut Vec<u8>| {
        node.write(at as u64, bytes).unwrap();
        disk[at..at + bytes.len()].copy_from_slice(bytes);
    };
    write(1000, &[7; 3000], &mut disk);
    write((1 << 20) - 300, &[8; 1000], &mut disk);
    // Nothing says zero over a file below: zeroes are stored.
    node.write_zeroes(100_000, 50_000, ZeroSpace::Unmap).unwrap();
    disk[100_000..150_000].fill(0);
    node.discard(0, 8192).unwrap();
    let now = content(&node);
    disk[512..4096].fill(0);
    assert!(now == disk);
    // The file below is shorter: there is nothing to hide.
    node.resize(3 << 20, Preallocation::Off).unwrap();
    disk.resize(3 << 20, 0);
    node.resize(700_000, Preallocation::Off).unwrap();
    disk.truncate(700_416);
    assert!(node.resize(3 << 20, Preallocation::Off).unwrap_err().message().contains("hides"));
    node.close().unwrap();
    drop(node);
    dir.put("disk.raw", &disk);
    dir.must("qemu-img", &["compare", "-f", "qcow", "-F", "raw", "top.qcow", "disk.raw"]);

    let node = dir.open("top.qcow", "qcow", Access::Write).unwrap();
    node.image().make_empty().unwrap();
    assert!(content(&node) == below[..700_416]);
    let (report, lines) = check(&QcowDriver, memory(&dir.get("top.qcow")), Repair::Nothing);
    assert_eq!((report.leaks, report.allocated_clusters), (0, Some(0)), "{lines:?}");
    let other = BackingRef { name: "a longer name of another.raw".to_owned(), format: None };
    node.image().set_backing(Some(&other)).unwrap();
    node.close().unwrap();
    drop(node);
    dir.put("a longer name of another.raw", &below[..100]);
    let node = dir.open("top.qcow", "qcow", Access::Write).unwrap();
    disk = below[..100].to_vec();
    disk.resize(700_416, 0);
    assert!(content(&node) == disk);
    node.image().set_backing(None).unwrap();
    assert_eq!(node.image().backing(), None);
    node.close().unwrap();
    drop(node);
    dir.must("qemu-img", &["info", "-f", "qcow", "top.qcow"]);
    let (report, lines) = check(&QcowDriver, memory(&dir.get("top.qcow")), Repair::Nothing);
    assert_eq!(report.corruptions, 0, "{lines:?}");
}
