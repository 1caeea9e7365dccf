//! Files below.

use crate::format::testing::{Dir, content, pattern};
use crate::format::{Access, BackingRef, ZeroSpace};
use crate::storage::Preallocation;

#[test]
fn overlays() {
    let dir = Dir::new();
    let below = pattern(1 << 20, 1);
    dir.put("base.raw", &below);
    let args = ["create", "-q", "-f", "qed", "-b", "base.raw", "-F", "raw", "top.qed", "512k"];
    if dir.must("qemu-img", &args).is_none() {
        return;
    }
    let node = dir.open("top.qed", "qed", Access::Write).unwrap();
    let recorded = BackingRef { name: "base.raw".to_owned(), format: Some("raw".to_owned()) };
    assert_eq!(node.image().backing(), Some(recorded));
    let mut disk = below[..512 << 10].to_vec();
    assert!(content(&node) == disk);
    node.write(1000, &[7; 3000]).unwrap();
    disk[1000..4000].fill(7);
    node.write_zeroes(100_000, 200_000, ZeroSpace::Unmap).unwrap();
    disk[100_000..300_000].fill(0);
    // What the file below has behind the old end stays hidden.
    node.resize(2 << 20, Preallocation::Off).unwrap();
    disk.resize(2 << 20, 0);
    assert!(content(&node) == disk);
    node.close().unwrap();
    drop(node);
    dir.put("disk.raw", &disk);
    dir.must("qemu-img", &["compare", "-f", "qed", "-F", "raw", "top.qed", "disk.raw"]);
    dir.must("qemu-img", &["check", "-f", "qed", "top.qed"]);

    let node = dir.open("top.qed", "qed", Access::Write).unwrap();
    node.image().make_empty().unwrap();
    let mut all = below.clone();
    all.resize(2 << 20, 0);
    assert!(content(&node) == all);
    let name = |name: &str, format: Option<&str>| {
        let other = BackingRef { name: name.to_owned(), format: format.map(str::to_owned) };
        node.image().set_backing(Some(&other)).unwrap();
        dir.put(name, &below[..4096]);
    };
    name("a longer name of another.raw", Some("raw"));
    name("one.img", None);
    name("and yet another.raw", Some("raw"));
    assert!(
        node.image()
            .set_backing(Some(&BackingRef { name: "x".repeat(1024), format: None }))
            .is_err()
    );
    node.close().unwrap();
    drop(node);
    dir.must("qemu-img", &["check", "-f", "qed", "top.qed"]);
    let node = dir.open("top.qed", "qed", Access::Write).unwrap();
    assert!(content(&node)[..4096] == below[..4096]);
    node.image().set_backing(None).unwrap();
    assert_eq!(node.image().backing(), None);
    node.close().unwrap();
    drop(node);
    dir.must("qemu-img", &["check", "-f", "qed", "top.qed"]);
}
