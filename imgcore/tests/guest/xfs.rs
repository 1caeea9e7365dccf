//! XFS by `mkfs.xfs` and a prototype file.

use std::fmt::Write;
use std::path::Path;

use imgcore::guest::files::FsKind;

use crate::maker::{Wish, blank, open, run, same, tool, tree};

/// The prototype of a folder ("mkfs.xfs", `-p`).
fn prototype(folder: &Path, depth: usize, out: &mut String) {
    let mut all: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap()).collect();
    all.sort_by_key(std::fs::DirEntry::file_name);
    for entry in all {
        let (path, name) = (entry.path(), entry.file_name().into_string().unwrap());
        let kind = entry.file_type().unwrap();
        write!(out, "{}{name} ", " ".repeat(depth)).unwrap();
        if kind.is_dir() {
            writeln!(out, "d--755 0 0").unwrap();
            prototype(&path, depth + 1, out);
            writeln!(out, "{}$", " ".repeat(depth)).unwrap();
        } else if kind.is_symlink() {
            let target = std::fs::read_link(&path).unwrap();
            writeln!(out, "l--777 0 0 {}", target.display()).unwrap();
        } else {
            writeln!(out, "---644 0 0 {}", path.display()).unwrap();
        }
    }
}

pub fn made(dir: &Path, wish: Wish, size: u64, args: &[&str]) -> Option<String> {
    let mkfs = tool("mkfs.xfs")?;
    let host = dir.join("tree");
    tree(&host, wish);
    let mut text = "/dev/null\n0 0\nd--755 0 0\n".to_owned();
    prototype(&host, 1, &mut text);
    text.push_str("$\n");
    let file = dir.join("prototype").to_string_lossy().into_owned();
    std::fs::write(&file, text).unwrap();
    let image = blank(dir, "xfs", size);
    let mut all = vec!["-q", "-f", "-L", "my_label"];
    all.extend(args);
    all.extend(["-p", &file, &image]);
    run(&mkfs, &all);
    Some(image)
}

fn check(args: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    // Prototypes cannot have blanks in names.
    let wish = Wish { links: true, many: 3000, large: 9 << 20, sparse: 1 << 20, letters: false };
    let Some(image) = made(dir.path(), wish, 400 << 20, args) else { return };
    let fs = open(image.as_ref());
    let about = fs.about();
    assert_eq!(about.kind, FsKind::Xfs);
    assert_eq!(about.label.as_deref(), Some("my_label"));
    assert_eq!(about.uuid.as_deref().map(str::len), Some(36));
    assert!(about.used.is_some_and(|u| u > 10 << 20 && u < 400 << 20), "{about:?}");
    same(&*fs, &dir.path().join("tree"));
}

#[test]
fn by_default() {
    check(&[]);
}

#[test]
fn version_4() {
    check(&["-m", "crc=0", "-n", "ftype=0"]);
}

#[test]
fn small_blocks_and_large_folder_blocks() {
    check(&["-b", "size=1024", "-n", "size=8192", "-i", "size=512"]);
}

#[test]
fn large_counts_of_extents() {
    check(&["-i", "nrext64=1,size=2048"]);
}
