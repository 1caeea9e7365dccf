//! File systems written by the kernel: what mkfs cannot make. Packed extents of btrfs; files and folders of XFS
//! in all the forms that it keeps them in. A mount needs privilege: without it, this says so and ends.

use std::path::{Path, PathBuf};
use std::process::Command;

use imgcore::guest::files::read_whole;

use crate::maker::{Wish, blank, open, pattern, run, same, tool, tree};

/// Mounts an image in a mount namespace of its own, runs `script` there with the mount as `$M` and `folder` as
/// `$F`, and unmounts it. `None`, told, where that is not allowed here.
fn mounted(image: &str, kind: &str, folder: &Path, script: &str) -> Option<()> {
    let at = tempfile::tempdir().unwrap();
    let text = format!(
        "mount -t {kind} -o loop \"$I\" \"$M\" || exit 77\nset -e\n{script}\numount \"$M\""
    );
    let out = Command::new("unshare")
        .args(["-m", "sh", "-c", &text])
        .env("I", image)
        .env("M", at.path())
        .env("F", folder)
        .output();
    let out = match out {
        Ok(out) if out.status.code() != Some(77) && !refused(&out.stderr) => out,
        Ok(out) => {
            let why = String::from_utf8_lossy(&out.stderr).trim().to_owned();
            eprintln!("SKIPPED {kind} written by the kernel: {why}");
            return None;
        }
        Err(why) => {
            eprintln!("SKIPPED {kind} written by the kernel: unshare: {why}");
            return None;
        }
    };
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    Some(())
}

/// What unshare says without privilege.
fn refused(error: &[u8]) -> bool {
    String::from_utf8_lossy(error).starts_with("unshare: unshare failed")
}

fn folder(wish: Wish) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let host = dir.path().join("tree");
    tree(&host, wish);
    (dir, host)
}

#[test]
fn btrfs_packed_in_every_way() {
    let (Some(mkfs), Some(btrfs)) = (tool("mkfs.btrfs"), tool("btrfs")) else { return };
    let wish = Wish { links: true, sparse: 1 << 20, many: 50, large: 3 << 20, letters: true };
    let (dir, host) = folder(wish);
    let ways = ["zlib", "lzo", "zstd"];
    for way in ways {
        let at = host.join(way);
        std::fs::create_dir(&at).unwrap();
        // Words, words between what cannot be packed, and little enough to stay in the tree.
        let words = "a row of words that packs well, ".repeat(40_000);
        std::fs::write(at.join("words"), &words).unwrap();
        let mut mixed = Vec::new();
        for i in 0..40 {
            mixed.extend(pattern(50_000, 300 + i));
            mixed.extend(words.as_bytes().iter().skip(7 * i as usize).take(90_000));
        }
        std::fs::write(at.join("mixed"), mixed).unwrap();
        std::fs::write(at.join("small"), "small ".repeat(200)).unwrap();
    }
    for node in ["4096", "16384"] {
        let image = blank(dir.path(), node, 256 << 20);
        run(&mkfs, &["-q", "-n", node, &image]);
        let script = r#"
            mount -o remount,compress-force=zlib "$M"
            mkdir "$M/zlib" "$M/lzo" "$M/zstd"
            for way in zlib lzo zstd; do
                mount -o remount,compress-force=$way "$M"
                cp "$F/$way/"* "$M/$way/"
                sync
            done
            # The rest without, and a rewrite in the middle of a packed extent.
            mount -o remount,compress=no "$M"
            cp -a -n --sparse=always "$F"/. "$M"/
            for way in zlib lzo zstd; do
                dd if="$F/$way/words" of="$M/$way/words" bs=4096 skip=13 seek=13 count=3 conv=notrunc status=none
            done
            sync"#;
        if mounted(&image, "btrfs", &host, script).is_none() {
            return;
        }
        let dump = run(&btrfs, &["inspect-internal", "dump-tree", "-t", "fs", &image]);
        for way in ways {
            assert!(dump.contains(&format!("({way})")), "{way} was not used");
        }
        let fs = open(image.as_ref());
        same(&*fs, &host);
        // From the middle of a packed extent to that of another one.
        for way in ways {
            let folder = fs.lookup(fs.root(), way).unwrap().unwrap();
            let file = fs.lookup(folder, "mixed").unwrap().unwrap();
            let whole = std::fs::read(host.join(way).join("mixed")).unwrap();
            for (at, len) in [(60_001, 300_000), (131_000, 200), (2_000_003, 140_001)] {
                let mut buf = vec![0; len];
                assert_eq!(fs.read(file, at as u64, &mut buf).unwrap(), len);
                assert!(buf == whole[at..at + len], "{way} {at}");
            }
        }
    }
}

/// The form in which XFS keeps an inode's data, and the levels of its tree.
fn form(xfs_db: &Path, image: &str, inode: u64) -> (String, u64) {
    let inode = format!("inode {inode}");
    let text = run(xfs_db, &["-r", "-c", &inode, "-c", "print core.format", image]);
    let form = text.rsplit('(').next().unwrap().trim().trim_end_matches(')').to_owned();
    if form != "btree" {
        return (form, 0);
    }
    let text = run(xfs_db, &["-r", "-c", &inode, "-c", "print u3.bmbt.level", image]);
    (form, text.rsplit('=').next().unwrap().trim().parse().unwrap())
}

#[test]
fn xfs_with_trees_of_extents_and_large_folders() {
    let (Some(mkfs), Some(xfs_db)) = (tool("mkfs.xfs"), tool("xfs_db")) else { return };
    let wish = Wish { links: true, sparse: 8 << 20, many: 20, large: 1 << 20, letters: true };
    let (dir, host) = folder(wish);
    // As many extents as make a tree of two levels with small blocks.
    let scattered = host.join("scattered");
    let pieces = 6000u64;
    {
        use std::os::unix::fs::FileExt;
        let file = std::fs::File::create(&scattered).unwrap();
        for i in 0..pieces {
            file.write_all_at(&pattern(4096, 1000 + i as u32), i * 8192).unwrap();
        }
        file.set_len(pieces * 8192 + 5).unwrap();
    }
    // Folders that the kernel keeps in a block, with leaves, with nodes, and scattered over the disk.
    for (name, count) in [("block", 8), ("leaf", 150), ("node", 1200), ("spread", 1200)] {
        let at = host.join(name);
        std::fs::create_dir(&at).unwrap();
        for i in 0..count {
            std::fs::write(at.join(format!("{name}-a-file-with-a-long-name-{i:06}")), b"x")
                .unwrap();
        }
    }
    for args in [
        &["-b", "size=1024", "-n", "size=4096"][..],
        &["-b", "size=4096", "-m", "crc=1,finobt=1,rmapbt=1,reflink=1"],
        &["-m", "crc=0", "-b", "size=1024", "-n", "ftype=0"],
    ] {
        let image = blank(dir.path(), "xfs", 400 << 20);
        run(&mkfs, &[&["-q", "-f"], args, &[&image]].concat());
        // The names of `spread` are made in turn with blocks of a file, so that its own blocks lie apart.
        let script = r#"
            mkdir "$M/spread"
            n=0
            for f in "$F"/spread/*; do
                echo "$f"
                n=$((n + 1))
                [ $((n % 25)) = 0 ] || continue
                echo ---
            done > "$M/list"
            batch=
            while read -r f; do
                if [ "$f" = --- ]; then
                    cp $batch "$M/spread/"
                    batch=
                    dd if=/dev/zero of="$M/filler" bs=16k count=1 oflag=append conv=notrunc,fsync status=none
                else
                    batch="$batch $f"
                fi
            done < "$M/list"
            [ -z "$batch" ] || cp $batch "$M/spread/"
            rm "$M/list" "$M/filler"
            cp -a -n --sparse=always "$F"/. "$M"/
            sync"#;
        if mounted(&image, "xfs", &host, script).is_none() {
            return;
        }
        let fs = open(image.as_ref());
        same(&*fs, &host);
        let find = |name: &str| fs.lookup(fs.root(), name).unwrap().unwrap();
        let (kind, levels) = form(&xfs_db, &image, find("scattered").0);
        assert_eq!(kind, "btree", "{args:?}");
        assert!(levels >= if args.contains(&"size=1024") { 2 } else { 1 }, "{args:?}: {levels}");
        assert_eq!(form(&xfs_db, &image, find("block").0).0, "extents", "{args:?}");
        let spread = form(&xfs_db, &image, find("spread").0).0;
        assert!(spread == "btree" || !args.contains(&"size=1024"), "{args:?}: spread is {spread}");
        let whole = read_whole(&*fs, find("scattered"), 1 << 30).unwrap();
        assert!(whole == std::fs::read(&scattered).unwrap());
    }
}
