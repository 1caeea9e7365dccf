//! The disk against itself; mtools, fsck and others read it in the suite.

use std::path::Path;

use super::*;
use crate::num::{len_u64, small};
use crate::opts::fat::FatTarget;
use crate::storage::{FileOptions, HostKind, Storage};
use crate::{Error, ErrorKind, Result};

fn open(name: &str) -> Result<FatStorage> {
    FatStorage::open(&FatTarget::parse(name).unwrap(), FileOptions::default())
}

fn filled(dir: &Path) {
    std::fs::create_dir_all(dir.join("sub/deeper")).unwrap();
    for n in 0..40 {
        let text = vec![u8::try_from(n).unwrap() + 1; n * 3000];
        std::fs::write(dir.join(format!("sub/a rather long name {n}")), text).unwrap();
    }
    std::fs::write(dir.join("README.TXT"), b"hello").unwrap();
    std::os::unix::fs::symlink("README.TXT", dir.join("link")).unwrap();
}

#[test]
fn holes_read_as_zeroes_and_parts_as_the_whole() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    for prefix in ["", "12:", "16:", "32:"] {
        let disk = open(&format!("fat:{prefix}{}", dir.path().display())).unwrap();
        let len = disk.len().unwrap();
        let mut at = 0;
        let mut data = 0;
        while at < len {
            let extent = disk.status(at, len - at).unwrap();
            assert!(extent.len > 0 && extent.len <= len - at);
            if extent.kind == HostKind::Hole {
                for place in [at, at + extent.len.saturating_sub(4096)] {
                    let mut buf = vec![1; small(extent.len.min(4096))];
                    disk.read_at(place, &mut buf).unwrap();
                    assert!(buf.iter().all(|b| *b == 0), "{prefix} {place:#x}");
                }
            } else {
                let mut whole = vec![1; small(extent.len)];
                disk.read_at(at, &mut whole).unwrap();
                for (n, piece) in whole.chunks(777).enumerate() {
                    let mut buf = vec![2; piece.len()];
                    disk.read_at(at + len_u64(n) * 777, &mut buf).unwrap();
                    assert!(buf == piece);
                }
                data += extent.len;
            }
            at += extent.len;
        }
        assert!(data > 2_300_000 && data < 6_000_000, "{prefix} {data}");
        assert!(disk.write_at(0, &[1]).is_err());
    }
}

#[test]
fn a_file_that_changes_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let disk = open(&format!("fat:{}", dir.path().display())).unwrap();
    let again = open(&format!("fat:{}", dir.path().display())).unwrap();
    assert_eq!(disk.identity(), again.identity());
    let all = |disk: &FatStorage| -> Result<()> {
        let mut buf = vec![0; 8 << 20];
        disk.read_at(0, &mut buf)
    };
    all(&disk).unwrap();
    std::fs::write(dir.path().join("README.TXT"), b"HELLO").unwrap();
    let error = all(&disk).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.report().contains("README.TXT' has changed"), "{error:?}");
    assert_ne!(disk.identity(), open(&format!("fat:{}", dir.path().display())).unwrap().identity());
    std::fs::remove_file(dir.path().join("sub/a rather long name 39")).unwrap();
    let fresh = open(&format!("fat:{}", dir.path().display())).unwrap();
    std::fs::remove_file(dir.path().join("sub/a rather long name 38")).unwrap();
    assert!(all(&fresh).unwrap_err().report().contains("Could not read"));
}

#[test]
fn what_a_fat_cannot_hold_is_named() {
    let case = |make: &dyn Fn(&Path), prefix: &str| -> Error {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path());
        open(&format!("fat:{prefix}{}", dir.path().display())).unwrap_err()
    };
    let file = |name: &'static str| move |dir: &Path| std::fs::write(dir.join(name), b"x").unwrap();
    assert!(case(&file("a:b"), "").report().contains("a:b' has a name with ':'"));
    let two = |dir: &Path| {
        std::fs::write(dir.join("a"), b"x").unwrap();
        std::fs::write(dir.join("A"), b"x").unwrap();
    };
    assert!(case(&two, "").report().contains("but for capitals"));
    let link = |dir: &Path| std::os::unix::fs::symlink("/etc/passwd", dir.join("l")).unwrap();
    assert!(case(&link, "").report().contains("symbolic link"));
    let large = |dir: &Path| {
        std::fs::File::create(dir.join("l")).unwrap().set_len(1 << 32).unwrap();
    };
    assert!(case(&large, "").report().contains("more than 4 GiB"));
    let some = |dir: &Path| {
        std::fs::File::create(dir.join("l")).unwrap().set_len(3 << 30).unwrap();
    };
    assert!(case(&some, "floppy:").report().contains("does not fit on a floppy disk"));
    assert!(case(&some, "16:").report().contains("FAT16"));
    let dir = tempfile::tempdir().unwrap();
    some(dir.path());
    assert!(open(&format!("fat:{}", dir.path().display())).unwrap().len().unwrap() > 3 << 30);
    assert!(open("fat:/nonexistent").unwrap_err().report().contains("Could not read directory"));
    assert!(open("fat:/etc/passwd").unwrap_err().report().contains("Not a directory"));
}
