//! Discs by `genisoimage` or `xorriso`.

use imgcore::guest::files::{FileSystem, FsKind, Tree};

use crate::maker::{Wish, open, run, same, tool, tree};

fn made(args: &[&str], wish: Wish) -> Option<(tempfile::TempDir, Box<dyn FileSystem>)> {
    let maker = tool("genisoimage")?;
    let dir = tempfile::tempdir().unwrap();
    let host = dir.path().join("tree");
    tree(&host, wish);
    let image = dir.path().join("iso").to_string_lossy().into_owned();
    let host = host.to_string_lossy().into_owned();
    let mut all = vec!["-quiet", "-V", "MY_DISC"];
    all.extend(args);
    all.extend(["-o", &image, &host]);
    run(&maker, &all);
    let fs = open(image.as_ref());
    assert_eq!(fs.about().kind, FsKind::Iso9660);
    assert_eq!(fs.about().label.as_deref(), Some("MY_DISC"));
    assert_eq!(fs.about().uuid.as_deref().map(str::len), Some(22));
    Some((dir, fs))
}

#[test]
fn rock_ridge() {
    let wish = Wish { links: true, sparse: 1 << 20, many: 2000, large: 5 << 20, letters: true };
    for args in [&["-R"][..], &["-R", "-J", "-joliet-long"]] {
        let Some((dir, fs)) = made(args, wish) else { return };
        same(&*fs, &dir.path().join("tree"));
    }
}

#[test]
fn joliet() {
    let wish = Wish { many: 100, large: 100_000, letters: true, ..Wish::default() };
    let Some((dir, fs)) = made(&["-J", "-joliet-long", "-input-charset", "utf-8"], wish) else {
        return;
    };
    let tree = Tree::new(&*fs);
    let host = dir.path().join("tree");
    for name in ["etc/a-block", "large.bin", "Grüße/äöü ß.txt", "many/file-number-00042.dat"]
    {
        let data = tree.read(&format!("/{name}"), 1 << 20).unwrap();
        assert_eq!(data.unwrap(), std::fs::read(host.join(name)).unwrap(), "{name}");
    }
}

#[test]
fn plain_names() {
    let wish = Wish { large: 100_000, ..Wish::default() };
    let Some((dir, fs)) = made(&["-iso-level", "3"], wish) else { return };
    let tree = Tree::new(&*fs);
    let data = tree.read("/large.bin", 1 << 20).unwrap().unwrap();
    assert!(data == std::fs::read(dir.path().join("tree/large.bin")).unwrap());
    assert_eq!(tree.text("/TINY", 100).unwrap(), "hello\n");
}
