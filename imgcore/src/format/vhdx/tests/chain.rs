//! Differencing disks and their parents.

use super::super::VhdxDriver;
use crate::ErrorKind;
use crate::format::testing::{self, Dir};
use crate::format::{Access, Repair, SpecificInfo, Unwatched};
use crate::graph::open::Purpose;

fn pair() -> Option<Dir> {
    let dir = Dir::new();
    dir.unpack("vhdx/synth-diff-1m/child-1m.avhdx.xz", "child-1m.avhdx")?;
    dir.unpack("vhdx/synth-diff-1m/base-1m.vhdx.xz", "base-1m.vhdx")?;
    Some(dir)
}

#[test]
fn a_child_shows_its_parent() {
    let Some(dir) = pair() else { return };
    let node = dir.open("child-1m.avhdx", "vhdx", Access::Read).unwrap();
    let content = testing::content(&node);
    dir.put("out", &content);
    let sum = dir.must("sha256sum", &["out"]).unwrap();
    let expected = "1eb93f3ca5a5c17c2f681ccbc1f81c43b3b1dd8543647da1de0d7feee9e6ee90";
    assert!(sum.starts_with(expected), "{sum}");
    let mut part = vec![0; 70_000];
    for at in [0, 1_000_001, 5_000_000, 12_000_000] {
        node.read(at as u64, &mut part).unwrap();
        assert!(part[..] == content[at..at + 70_000], "{at}");
    }
    let report = node.image().check(Repair::Nothing, &Unwatched).unwrap().unwrap();
    assert_eq!((report.corruptions, report.leaks), (0, 0));
    let Some(SpecificInfo::Vhdx(info)) = node.image().info().unwrap().specific else { panic!() };
    assert_eq!(info.subformat, "differencing");
    drop(node);
    let e = dir.open("child-1m.avhdx", "vhdx", Access::Write).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::ReadOnly);
    // Under another name it is found by nobody but who names it.
    std::fs::rename(dir.file("base-1m.vhdx"), dir.file("moved.img")).unwrap();
    assert!(dir.open("child-1m.avhdx", "vhdx", Access::Read).is_err());
    let image =
        |name: &str| format!(r#""driver":"vhdx","file.filename":"{}""#, dir.file(name).display());
    let (child, moved) = (image("child-1m.avhdx"), image("moved.img"));
    let name = format!("json:{{{child},\"backing\":{{{moved}}}}}");
    let request = crate::graph::open::OpenRequest::parse(&name, None).unwrap();
    let options = crate::graph::open::OpenOptions::default();
    let node = crate::graph::open::open(&request, &options).unwrap();
    assert!(testing::content(&node) == content);
}

#[test]
fn the_parent_must_be_there_and_unchanged() {
    let Some(dir) = pair() else { return };
    let node = dir.open("base-1m.vhdx", "vhdx", Access::Write).unwrap();
    node.write(0, b"changed").unwrap();
    node.close().unwrap();
    drop(node);
    let e = dir.open("child-1m.avhdx", "vhdx", Access::Read).unwrap_err();
    assert!(e.report().contains("was changed since"), "{e:?}");
    std::fs::remove_file(dir.file("base-1m.vhdx")).unwrap();
    let e = dir.open("child-1m.avhdx", "vhdx", Access::Read).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::NotFound, "{e:?}");
    for purpose in [Purpose::Header, Purpose::Check] {
        assert!(dir.open_for("child-1m.avhdx", "vhdx", Access::Read, purpose).is_ok());
    }
    let mut bytes = dir.get("child-1m.avhdx");
    bytes.truncate(5 << 20);
    testing::challenge(&VhdxDriver, &bytes);
}
