//! FAT by `mkfs.vfat` and `mcopy`.

use imgcore::guest::files::FsKind;

use crate::maker::{Wish, blank, open, run, same, tool, tree};

fn made(args: &[&str], size: u64, kind: FsKind, many: usize, large: usize) {
    let (Some(mkfs), Some(mcopy)) = (tool("mkfs.vfat"), tool("mcopy")) else { return };
    let dir = tempfile::tempdir().unwrap();
    let host = dir.path().join("tree");
    tree(&host, Wish { many, large, ..Wish::default() });
    let image = blank(dir.path(), "img", size);
    let mut all = args.to_vec();
    all.extend(["-n", "MYLABEL", "-i", "1234abcd", &image]);
    run(&mkfs, &all);
    let names: Vec<String> = std::fs::read_dir(&host)
        .unwrap()
        .map(|e| e.unwrap().path().to_string_lossy().into_owned())
        .collect();
    let mut copy = vec!["-s", "-Q", "-i", &image];
    copy.extend(names.iter().map(String::as_str));
    copy.push("::/");
    run(&mcopy, &copy);
    let fs = open(image.as_ref());
    let about = fs.about();
    assert_eq!(about.kind, kind);
    assert_eq!(about.label.as_deref(), Some("MYLABEL"));
    assert_eq!(about.uuid.as_deref(), Some("1234-ABCD"));
    assert!(about.notes.is_empty(), "{:?}", about.notes);
    assert!(about.used.is_some_and(|u| u > large as u64 && u < size), "{about:?}");
    same(&*fs, &host);
    let root = fs.root();
    assert_eq!(fs.lookup(root, "TINY").unwrap(), fs.lookup(root, "tiny").unwrap());
}

#[test]
fn fat12() {
    made(&["-F", "12"], 4 << 20, FsKind::Fat12, 200, 500_000);
}

#[test]
fn fat16() {
    made(&["-F", "16"], 32 << 20, FsKind::Fat16, 700, 5 << 20);
}

#[test]
fn fat32() {
    made(&["-F", "32"], 64 << 20, FsKind::Fat32, 1000, 9 << 20);
}

#[test]
fn fat32_with_large_sectors() {
    made(&["-F", "32", "-S", "4096", "-s", "1"], 300 << 20, FsKind::Fat32, 10, 1 << 20);
}
