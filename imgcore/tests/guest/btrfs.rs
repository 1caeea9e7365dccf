//! btrfs by `mkfs.btrfs --rootdir`.

use imgcore::guest::files::FsKind;

use crate::maker::{Wish, blank, open, run, same, tool, tree};

fn made(args: &[&str]) {
    let Some(mkfs) = tool("mkfs.btrfs") else { return };
    let dir = tempfile::tempdir().unwrap();
    let host = dir.path().join("tree");
    tree(&host, Wish { links: true, sparse: 3 << 20, many: 3000, large: 9 << 20, letters: true });
    let image = blank(dir.path(), "img", 256 << 20);
    let text = host.to_string_lossy().into_owned();
    let mut all = args.to_vec();
    all.extend(["-q", "-L", "my label", "-U", "11223344-5566-7788-99aa-bbccddeeff00"]);
    all.extend(["--rootdir", &text, &image]);
    run(&mkfs, &all);
    let fs = open(image.as_ref());
    let about = fs.about();
    assert_eq!(about.kind, FsKind::Btrfs);
    assert_eq!(about.label.as_deref(), Some("my label"));
    assert_eq!(about.uuid.as_deref(), Some("11223344-5566-7788-99aa-bbccddeeff00"));
    assert_eq!(about.size, 256 << 20);
    assert!(about.used.is_some_and(|u| u > 10 << 20 && u < 256 << 20), "{about:?}");
    assert!(about.notes.is_empty(), "{:?}", about.notes);
    same(&*fs, &host);
}

#[test]
fn by_default() {
    made(&[]);
}

#[test]
fn small_nodes_and_no_features() {
    made(&["-n", "4096", "-O", "^no-holes,^extref,^skinny-metadata", "-m", "single"]);
}
