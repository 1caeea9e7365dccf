//! ext2, ext3, ext4 by `mke2fs -d`, and journals by `debugfs`.

use imgcore::guest::files::{FsKind, Tree};

use crate::maker::{Wish, blank, open, pattern, run, same, tool, tree};

const WISH: Wish = Wish { links: true, sparse: 3 << 20, many: 3000, large: 9 << 20, letters: true };

fn made(args: &[&str], kind: FsKind) {
    let Some(mke2fs) = tool("mke2fs") else { return };
    let dir = tempfile::tempdir().unwrap();
    let host = dir.path().join("tree");
    tree(&host, WISH);
    let image = blank(dir.path(), "img", 96 << 20);
    let mut all = args.to_vec();
    let host_text = host.to_string_lossy().into_owned();
    all.extend(["-q", "-F", "-L", "my label", "-U", "11223344-5566-7788-99aa-bbccddeeff00"]);
    all.extend(["-d", &host_text, &image]);
    run(&mke2fs, &all);
    let fs = open(image.as_ref());
    let about = fs.about();
    assert_eq!(about.kind, kind);
    assert_eq!(about.label.as_deref(), Some("my label"));
    assert_eq!(about.uuid.as_deref(), Some("11223344-5566-7788-99aa-bbccddeeff00"));
    assert_eq!(about.size, 96 << 20);
    assert!(about.used.is_some_and(|u| u > 10 << 20 && u < 96 << 20));
    assert!(about.notes.is_empty(), "{:?}", about.notes);
    same(&*fs, &host);
}

#[test]
fn ext2_with_small_blocks() {
    made(&["-t", "ext2", "-b", "1024"], FsKind::Ext2);
}

#[test]
fn ext3() {
    made(&["-t", "ext3", "-b", "4096"], FsKind::Ext3);
}

#[test]
fn ext4_by_default() {
    made(&["-t", "ext4"], FsKind::Ext4);
}

#[test]
fn ext4_with_data_in_inodes() {
    made(&["-t", "ext4", "-O", "inline_data,64bit,metadata_csum", "-I", "256"], FsKind::Ext4);
}

#[test]
fn ext4_with_clusters() {
    made(&["-t", "ext4", "-O", "bigalloc", "-C", "16384"], FsKind::Ext4);
}

#[test]
fn ext4_with_descriptors_in_meta_groups() {
    let features = "meta_bg,^resize_inode,sparse_super";
    made(&["-t", "ext4", "-b", "1024", "-g", "256", "-O", features], FsKind::Ext4);
}

#[test]
fn ext4_without_extents() {
    made(&["-t", "ext4", "-O", "^extents,^64bit", "-b", "2048"], FsKind::Ext4);
}

/// `debugfs` writes a transaction into the journal and leaves the home blocks as they are: what a machine
/// that was switched off leaves behind.
#[test]
fn what_is_in_the_journal_counts() {
    let (Some(mke2fs), Some(debugfs)) = (tool("mke2fs"), tool("debugfs")) else { return };
    for options in ["64bit,metadata_csum", "^64bit,^metadata_csum"] {
        let dir = tempfile::tempdir().unwrap();
        let host = dir.path().join("tree");
        tree(&host, Wish { large: 100_000, ..Wish::default() });
        let image = blank(dir.path(), "img", 64 << 20);
        let host_text = host.to_string_lossy().into_owned();
        let args =
            ["-t", "ext4", "-b", "4096", "-O", options, "-q", "-F", "-d", &host_text, &image];
        run(&mke2fs, &args);
        let old = std::fs::read(host.join("etc/a-block")).unwrap();
        let home = run(&debugfs, &["-R", "bmap /etc/a-block 0", &image]);
        let home = home.trim().to_owned();
        // A block that begins with the journal's own magic number has to be escaped.
        let mut new = pattern(4096, 77);
        new[..4].copy_from_slice(&0xc03b_3998u32.to_be_bytes());
        let block = dir.path().join("block");
        std::fs::write(&block, &new).unwrap();
        let script = dir.path().join("script");
        let text = format!("jo -c\njw -b {home} {}\njc\n", block.display());
        let text = if options.starts_with('^') { text.replace("jo -c", "jo") } else { text };
        std::fs::write(&script, text).unwrap();
        run(&debugfs, &["-w", "-f", &script.to_string_lossy(), &image]);
        let fs = open(image.as_ref());
        assert!(fs.about().notes[0].contains("1 blocks"), "{:?}", fs.about().notes);
        let tree = Tree::new(&*fs);
        let now = tree.read("/etc/a-block", 1 << 20).unwrap().unwrap();
        assert!(now == new, "the journal was not played back");
        // A revocation undoes it.
        let text = format!("jo -c\njw -r {home}\njc\n");
        let text = if options.starts_with('^') { text.replace("jo -c", "jo") } else { text };
        std::fs::write(&script, text).unwrap();
        run(&debugfs, &["-w", "-f", &script.to_string_lossy(), &image]);
        let fs = open(image.as_ref());
        let tree = Tree::new(&*fs);
        let now = tree.read("/etc/a-block", 1 << 20).unwrap().unwrap();
        assert!(now == new || now == old);
        assert_eq!(fs.about().kind, FsKind::Ext4);
    }
}
