//! Differencing disks and their parents.

use super::super::VdiDriver;
use super::super::layout::{TYPE_DIFF, TYPE_UNDO};
use super::with_header;
use crate::ErrorKind;
use crate::format::testing::{self, Dir, pattern};
use crate::format::{Access, ZeroSpace};
use crate::graph::open::Purpose;

const MIB: usize = 1 << 20;

/// A parent of 6 MiB with content, and an empty child of `child` MiB of it; the parent's disk.
fn pair(dir: &Dir, kind: u32, child: u64) -> Vec<u8> {
    let storage = testing::memory(&testing::create(&VdiDriver, 6 << 20, &[]).unwrap());
    let node = testing::node(&VdiDriver, std::sync::Arc::clone(&storage) as _, Access::Write);
    node.write(0, &pattern(2 * MIB + 700, 1)).unwrap();
    node.write(5 << 20, &pattern(MIB, 2)).unwrap();
    node.close().unwrap();
    let disk = testing::content(&node);
    let parent = storage.to_vec();
    dir.put("base.vdi", &parent);
    let bytes = testing::create(&VdiDriver, child << 20, &[]).unwrap();
    let bytes = with_header(bytes, |h| {
        h.image_type.set(kind);
        h.uuid_parent.copy_from_slice(&parent[0x188..0x198]);
        h.uuid_parent_modify.copy_from_slice(&parent[0x198..0x1a8]);
    });
    dir.put("child.vdi", &bytes);
    disk
}

#[test]
fn a_child_shows_its_parent_and_can_be_written() {
    for kind in [TYPE_DIFF, TYPE_UNDO] {
        let dir = Dir::new();
        let mut disk = pair(&dir, kind, 8);
        disk.resize(8 * MIB, 0);
        let node = dir.open("child.vdi", "vdi", Access::Write).unwrap();
        assert!(testing::content(&node) == disk);
        node.write(MIB as u64 + 5, b"mine").unwrap();
        disk[MIB + 5..MIB + 9].copy_from_slice(b"mine");
        node.write_zeroes(5 << 20, 1 << 20, ZeroSpace::Unmap).unwrap();
        disk[5 * MIB..6 * MIB].fill(0);
        node.resize(9 << 20, crate::storage::Preallocation::Off).unwrap();
        disk.resize(9 * MIB, 0);
        node.close().unwrap();
        assert!(testing::content(&node) == disk);
        drop(node);
        let node = dir.open("child.vdi", "vdi", Access::Read).unwrap();
        assert!(testing::content(&node) == disk);
        assert!(!node.status(5 << 20, 1 << 20, None).unwrap().len.is_multiple_of(7));
    }
}

#[test]
fn the_parent_must_be_there_and_unchanged() {
    let dir = Dir::new();
    let disk = pair(&dir, TYPE_DIFF, 6);
    let node = dir.open("base.vdi", "vdi", Access::Write).unwrap();
    node.write(100, b"changed").unwrap();
    node.close().unwrap();
    drop(node);
    let child = dir.open("child.vdi", "vdi", Access::Read).unwrap();
    let e = child.read(0, &mut [0; 10]).unwrap_err();
    assert!(e.message().contains("was changed after"), "{e:?}");
    drop(child);
    std::fs::remove_file(dir.file("base.vdi")).unwrap();
    let e = dir.open("child.vdi", "vdi", Access::Read).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Forbidden);
    assert!(e.report().contains("may not be looked at"), "{e:?}");
    let uuid =
        super::super::header::geometry(&*testing::memory(&dir.get("child.vdi"))).unwrap().parent;
    assert!(e.report().contains(&uuid.to_string()), "{e:?}");
    // Header and map can still be looked at.
    for purpose in [Purpose::Header, Purpose::Check] {
        assert!(dir.open_for("child.vdi", "vdi", Access::Read, purpose).is_ok());
    }
    drop(disk);
}

/// As VirtualBox lays it out: the child in `Snapshots`, the machine file beside it.
#[test]
fn the_parent_of_a_machine() {
    let dir = Dir::new();
    let disk = pair(&dir, TYPE_DIFF, 6);
    std::fs::create_dir(dir.file("Snapshots")).unwrap();
    std::fs::rename(dir.file("child.vdi"), dir.file("Snapshots/child.vdi")).unwrap();
    let e = dir.open("Snapshots/child.vdi", "vdi", Access::Read).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Forbidden, "{e:?}");
    assert!(e.hints().iter().any(|h| h.contains("--allow")), "{e:?}");
    let open = || {
        let path = dir.file("Snapshots/child.vdi");
        let policy = crate::graph::open::Policy::folder().allow_folder(&dir.file("."));
        let options = crate::graph::open::OpenOptions { policy, ..Default::default() };
        crate::graph::open::open(
            &crate::graph::open::OpenRequest::file(path.to_str().unwrap()),
            &options,
        )
        .unwrap()
    };
    assert!(testing::content(&open()) == disk);
    // Under another name, told by the machine's file.
    let uuid =
        super::super::header::geometry(&*testing::memory(&dir.get("base.vdi"))).unwrap().uuid;
    std::fs::create_dir(dir.file("disks")).unwrap();
    std::fs::rename(dir.file("base.vdi"), dir.file("disks/x")).unwrap();
    dir.put(
        "m.vbox",
        format!("<HardDisk uuid=\"{{{uuid}}}\" location=\"disks/x\" format=\"VDI\"/>").as_bytes(),
    );
    assert!(testing::content(&open()) == disk);
}

/// A disk that is its own parent is a circle.
#[test]
fn own_parent() {
    let dir = Dir::new();
    pair(&dir, TYPE_DIFF, 6);
    std::fs::remove_file(dir.file("base.vdi")).unwrap();
    let bytes = with_header(dir.get("child.vdi"), |h| h.uuid = h.uuid_parent);
    dir.put("child.vdi", &bytes);
    let e = dir.open("child.vdi", "vdi", Access::Read).unwrap_err();
    assert!(e.report().contains("circle"), "{e:?}");
}

/// Whoever names the file below himself, or says that there is none, needs no recorded parent.
#[test]
fn another_parent_given() {
    let dir = Dir::new();
    let disk = pair(&dir, TYPE_DIFF, 6);
    std::fs::rename(dir.file("base.vdi"), dir.file("moved.img")).unwrap();
    let open = |below: &str| {
        let file = dir.file("child.vdi");
        let child = format!(r#"{{"driver":"file","filename":"{}"}}"#, file.display());
        let name = format!(r#"json:{{"driver":"vdi","file":{child},"backing":{below}}}"#);
        let request = crate::graph::open::OpenRequest::parse(&name, None).unwrap();
        crate::graph::open::open(&request, &crate::graph::open::OpenOptions::default())
    };
    assert!(dir.open("child.vdi", "vdi", Access::Read).is_err());
    let moved = format!(
        r#"{{"driver":"vdi","file":{{"driver":"file","filename":"{}"}}}}"#,
        dir.file("moved.img").display()
    );
    assert!(testing::content(&open(&moved).unwrap()) == disk);
    assert!(testing::content(&open("null").unwrap()).iter().all(|&b| b == 0));
}
