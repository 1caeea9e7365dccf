//! Differencing disks and their parents.

use super::super::VpcDriver;
use super::super::layout::TYPE_DIFF;
use super::{changed, small_blocks};
use crate::ErrorKind;
use crate::format::testing::{self, Dir, pattern};
use crate::format::{Access, Repair, Unwatched};
use crate::graph::open::Purpose;

/// A real pair, made by VirtualBox.
#[test]
fn by_virtualbox() {
    let dir = Dir::new();
    if dir.unpack("vhd/vbox72-diff/diff.vhd.xz", "diff.vhd").is_none() {
        return;
    }
    dir.unpack("vhd/vbox72-diff/base.vhd.xz", "base.vhd");
    let node = dir.open("diff.vhd", "vpc", Access::Read).unwrap();
    dir.put("out", &testing::content(&node));
    let sum = dir.must("sha256sum", &["out"]).unwrap();
    let expected = "1eb93f3ca5a5c17c2f681ccbc1f81c43b3b1dd8543647da1de0d7feee9e6ee90";
    assert!(sum.starts_with(expected), "{sum}");
    let report = node.image().check(Repair::Nothing, &Unwatched).unwrap().unwrap();
    assert_eq!((report.corruptions, report.leaks), (0, 0));
    drop(node);
    let e = dir.open("diff.vhd", "vpc", Access::Write).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::ReadOnly);
    // Under another name it is found by nobody but who names it.
    std::fs::rename(dir.file("base.vhd"), dir.file("moved.img")).unwrap();
    assert!(dir.open("diff.vhd", "vpc", Access::Read).is_err());
    let image =
        |name: &str| format!(r#""driver":"vpc","file.filename":"{}""#, dir.file(name).display());
    let name = format!("json:{{{},\"backing\":{{{}}}}}", image("diff.vhd"), image("moved.img"));
    let request = crate::graph::open::OpenRequest::parse(&name, None).unwrap();
    let node =
        crate::graph::open::open(&request, &crate::graph::open::OpenOptions::default()).unwrap();
    assert!(testing::content(&node) == dir.get("out"));
}

/// A child of small blocks on a parent; the parent's disk.
fn pair(dir: &Dir, locator: &[u8; 4], name: &[u8]) -> Vec<u8> {
    let storage = testing::memory(&small_blocks(20));
    let node = testing::node(&VpcDriver, std::sync::Arc::clone(&storage) as _, Access::Write);
    node.write(0, &pattern(800_000, 1)).unwrap();
    node.close().unwrap();
    let disk = testing::content(&node);
    let parent = storage.to_vec();
    dir.put("base.vhd", &parent);
    let mut child = changed(small_blocks(20), |f, h| {
        f.disk_type.set(TYPE_DIFF);
        h.parent_uuid.copy_from_slice(&parent[68..84]);
        h.locators[0].code = *locator;
        h.locators[0].len.set(u32::try_from(name.len()).unwrap());
        h.locators[0].space.set(512);
        h.locators[0].offset.set(2048);
    });
    child.truncate(2048);
    child.extend_from_slice(name);
    child.resize(2560, 0);
    // One block in which only some sectors are the child's own.
    let start = u32::try_from(child.len() / 512).unwrap();
    child[1536 + 3 * 4..1536 + 4 * 4].copy_from_slice(&start.to_be_bytes());
    let mut bits = [0; 512];
    bits[0] = 0b0110_0000;
    bits[5] = 0xff;
    child.extend_from_slice(&bits);
    child.extend_from_slice(&[0xab; 65536]);
    child.extend_from_within(..512);
    dir.put("child.vhd", &child);
    let mut disk = disk;
    for sectors in [1..3, 40..48] {
        disk[3 * 65536 + sectors.start * 512..3 * 65536 + sectors.end * 512].fill(0xab);
    }
    disk
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

#[test]
fn sectors_of_parent_and_child() {
    for (code, name) in [
        (b"W2ru", utf16(".\\base.vhd")),
        (b"W2ku", utf16("C:\\Users\\Public\\base.vhd")),
        (b"W2ru", utf16("..\\elsewhere\\base.vhd")),
        (b"MacX", b"file://localhost/Users/me/base.vhd".to_vec()),
    ] {
        let dir = Dir::new();
        let disk = pair(&dir, code, &name);
        let node = dir.open("child.vhd", "vpc", Access::Read).unwrap();
        assert!(testing::content(&node) == disk);
        let mut part = [0; 700];
        node.read(3 * 65536 + 400, &mut part).unwrap();
        assert!(part[..] == disk[3 * 65536 + 400..3 * 65536 + 1100]);
        let names = node.image().info().unwrap();
        let Some(crate::format::SpecificInfo::Vpc(vpc)) = names.specific else { panic!() };
        assert!(vpc.parent_names.unwrap().contains(&"base.vhd".to_owned()));
    }
}

#[test]
fn the_parent_must_be_there_and_the_right_one() {
    let dir = Dir::new();
    pair(&dir, b"W2ru", &utf16(".\\base.vhd"));
    dir.put("base.vhd", &small_blocks(20));
    let e = dir.open("child.vhd", "vpc", Access::Read).unwrap_err();
    assert!(e.report().contains("'base.vhd' is "), "{e:?}");
    std::fs::remove_file(dir.file("base.vhd")).unwrap();
    let e = dir.open("child.vhd", "vpc", Access::Read).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::NotFound, "{e:?}");
    for purpose in [Purpose::Header, Purpose::Check] {
        assert!(dir.open_for("child.vhd", "vpc", Access::Read, purpose).is_ok());
    }
}
