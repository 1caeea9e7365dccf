//! Space of what a guest gives up.

use std::os::unix::fs::MetadataExt;

use crate::format::testing::Dir;
use crate::format::{Access, ZeroSpace};
use crate::graph::Node;

const MIB: u64 = 1 << 20;

/// KiB of disk that the image takes.
fn taken(folder: &Dir) -> u64 {
    std::fs::metadata(folder.file("image")).unwrap().blocks() / 2
}

/// An image with 32 MiB of data, flushed.
fn filled(folder: &Dir, options: &[&str]) -> Option<std::sync::Arc<Node>> {
    let mut args = vec!["create", "-q", "-f", "qcow2"];
    for option in options {
        args.extend(["-o", option]);
    }
    args.extend(["image", "64M"]);
    folder.must("qemu-img", &args)?;
    let node = folder.open("image", "qcow2", Access::Write).unwrap();
    for at in 0..32 {
        node.write(at * MIB, &vec![1; 1 << 20]).unwrap();
    }
    node.flush().unwrap();
    assert!(taken(folder) > 32 << 10);
    Some(node)
}

#[test]
fn what_is_given_up_leaves_the_file_with_the_next_flush() {
    for options in [&[][..], &["extended_l2=on"], &["compat=0.10"], &["lazy_refcounts=on"]] {
        let folder = Dir::new();
        let Some(node) = filled(&folder, options) else { return };
        node.discard(MIB, 15 * MIB).unwrap();
        node.flush().unwrap();
        assert!(taken(&folder) < 18 << 10, "{options:?}: {} KiB", taken(&folder));
        if options != ["compat=0.10"] {
            node.write_zeroes(16 * MIB, 15 * MIB, ZeroSpace::Unmap).unwrap();
            node.flush().unwrap();
            assert!(taken(&folder) < 3 << 10, "{options:?}: {} KiB", taken(&folder));
        }
        for (at, byte) in [(0, 1), (MIB, 0), (16 * MIB - 512, 0), (31 * MIB, 1)] {
            let mut bytes = [9; 512];
            node.read(at, &mut bytes).unwrap();
            assert_eq!(bytes, [byte; 512], "{options:?} {at}");
        }
        node.close().unwrap();
        drop(node);
        folder.must("qemu-img", &["check", "-q", "image"]);
    }
}

#[test]
fn zeroes_that_keep_their_space_and_snapshots_keep_it() {
    let folder = Dir::new();
    let Some(node) = filled(&folder, &[]) else { return };
    node.write_zeroes(0, 8 * MIB, ZeroSpace::Keep).unwrap();
    node.flush().unwrap();
    assert!(taken(&folder) > 32 << 10);
    node.close().unwrap();
    drop(node);
    folder.must("qemu-img", &["snapshot", "-c", "one", "image"]);
    let node = folder.open("image", "qcow2", Access::Write).unwrap();
    node.discard(0, 32 * MIB).unwrap();
    node.flush().unwrap();
    assert!(taken(&folder) > 32 << 10);
    node.close().unwrap();
    drop(node);
    folder.must("qemu-img", &["check", "-q", "image"]);
    folder.must("qemu-img", &["snapshot", "-a", "one", "image"]);
    let node = folder.open("image", "qcow2", Access::Read).unwrap();
    let mut bytes = [9; 512];
    node.read(31 * MIB, &mut bytes).unwrap();
    assert_eq!(bytes, [1; 512]);
}
