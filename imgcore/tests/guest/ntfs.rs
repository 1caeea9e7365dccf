//! NTFS by `mkntfs`, filled by wimlib, which writes to it without mounting.

use imgcore::guest::files::FsKind;

use crate::maker::{Wish, blank, open, run, same, tool, tree};

/// An image with the tree of `wish`, packed by the file system or not.
pub fn made(dir: &std::path::Path, wish: Wish, size: u64, args: &[&str]) -> Option<String> {
    let (mkntfs, wim) = (tool("mkntfs")?, tool("wimlib-imagex")?);
    let host = dir.join("tree");
    tree(&host, wish);
    let archive = dir.join("tree.wim").to_string_lossy().into_owned();
    let host = host.to_string_lossy().into_owned();
    run(&wim, &["capture", &host, &archive, "--no-acls", "--compress=none"]);
    let image = blank(dir, "ntfs", size);
    let mut all = vec!["-F", "-Q", "-q", "-L", "my volume"];
    all.extend(args);
    all.push(&image);
    run(&mkntfs, &all);
    run(&wim, &["apply", &archive, "1", &image]);
    Some(image)
}

fn check(args: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let wish = Wish { many: 3000, large: 9 << 20, letters: true, ..Wish::default() };
    let Some(image) = made(dir.path(), wish, 96 << 20, args) else { return };
    let fs = open(image.as_ref());
    let about = fs.about();
    assert_eq!(about.kind, FsKind::Ntfs);
    assert_eq!(about.label.as_deref(), Some("my volume"));
    assert_eq!(about.uuid.as_deref().map(str::len), Some(16));
    assert!(about.used.is_some_and(|u| u > 10 << 20 && u < 96 << 20), "{about:?}");
    same(&*fs, &dir.path().join("tree"));
    let etc = fs.lookup(fs.root(), "ETC").unwrap();
    assert!(etc.is_some() && etc == fs.lookup(fs.root(), "etc").unwrap());
}

#[test]
fn by_default() {
    check(&[]);
}

#[test]
fn small_clusters() {
    check(&["-c", "512"]);
}

#[test]
fn large_clusters() {
    check(&["-c", "65536"]);
}

/// Files written to a volume for which packing is switched on.
#[test]
fn packed_by_the_file_system() {
    check(&["-C"]);
}
