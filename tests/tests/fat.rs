//! A folder shown as a FAT disk, read by those who know FAT: mtools, fsck.vfat, 7-Zip.

#![allow(clippy::unwrap_used, clippy::panic)] // all of it is test code

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use suite::process::{Invocation, Outcome};
use suite::tools;

fn rimg(dir: &Path, args: &[&str]) -> Outcome {
    let call = Invocation::new(tools::rimg().unwrap(), dir).args(args);
    call.time_limit(Duration::from_secs(120)).run().unwrap()
}

fn good(dir: &Path, args: &[&str]) -> String {
    let outcome = rimg(dir, args);
    assert!(outcome.success(), "{args:?}: {}", outcome.err());
    outcome.out()
}

fn run(dir: &Path, program: &Path, args: &[&str]) -> String {
    let out = Command::new(program).args(args).current_dir(dir).env("TZ", "UTC").output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(
        out.status.success(),
        "{} {args:?}: {said}{}",
        program.display(),
        String::from_utf8_lossy(&out.stderr)
    );
    said
}

fn tool(name: &str) -> Option<PathBuf> {
    let found = tools::find(name);
    if found.is_none() {
        tools::skip("a folder as FAT", &format!("no {name}"));
    }
    found
}

/// Names and sizes of every sort; what is in the folder comes back.
fn fill(folder: &Path, files: usize) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    let mut add = |name: String, bytes: Vec<u8>| {
        let path = folder.join(&name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, &bytes).unwrap();
        all.push((name, bytes));
    };
    add("README.TXT".into(), b"hello\n".to_vec());
    add("empty".into(), Vec::new());
    add("a long name with spaces and more than thirteen letters.tar.gz".into(), vec![7; 70_000]);
    add("Ünïcödé – ☃.txt".into(), b"snow".to_vec());
    add("one/two/three/deep.bin".into(), vec![9; 512]);
    for n in 0..files {
        let bytes = (0..n * 37).map(|i| u8::try_from((i + n) % 251).unwrap()).collect();
        add(format!("many/file number {n}.dat"), bytes);
    }
    all
}

#[test]
fn others_read_it() {
    let (Some(mcopy), Some(mdir), Some(fsck)) = (tool("mcopy"), tool("mdir"), tool("fsck.vfat"))
    else {
        return;
    };
    for (prefix, wanted, files) in [
        ("", "fat:", 700),
        ("16:", "FAT16", 700),
        ("12:", "FAT12", 100),
        ("32:", "FAT32", 700),
        ("floppy:", "FAT12", 10),
        ("floppy:12:", "FAT12", 10),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let all = fill(&dir.join("in"), files);
        let name = format!("fat:{prefix}in");
        good(dir, &["convert", "-O", "raw", &name, "disk.raw"]);
        let offset = if prefix.starts_with("floppy") { "" } else { "@@1M" };
        let image = format!("disk.raw{offset}");
        let listed = run(dir, &mdir, &["-i", &image, "-s", "::"]);
        assert!(listed.contains("a long name with spaces"), "{listed}");
        assert!(listed.contains("QEMU VVFAT"), "{listed}");
        std::fs::create_dir(dir.join("out")).unwrap();
        // Every file, as it is.
        run(dir, &mcopy, &["-i", &image, "-s", "-n", "::*", "out"]);
        for (name, bytes) in &all {
            // mtools wants a locale for other letters; 7-Zip reads those.
            if name.is_ascii() {
                assert!(
                    &std::fs::read(dir.join("out").join(name)).unwrap() == bytes,
                    "{prefix} {name}"
                );
            }
        }
        let mut part = "disk.raw".to_owned();
        if !offset.is_empty() {
            part = "part.raw".to_owned();
            let whole = "driver=raw,offset=1M,file.filename=disk.raw";
            good(dir, &["convert", "--image-opts", whole, "-O", "raw", &part]);
        }
        let told = run(dir, &fsck, &["-n", "-v", &part]);
        assert!(
            !told.contains("Dirty") && !told.to_lowercase().contains("error"),
            "{prefix}: {told}"
        );
        if let Some(bits) = wanted.strip_prefix("FAT") {
            assert!(
                told.contains(&format!("{bits} bit entries"))
                    || bits == "32" && told.contains("32 bits"),
                "{told}"
            );
        }
        if let Some(seven) = tool("7z") {
            std::fs::create_dir(dir.join("seven")).unwrap();
            run(dir, &seven, &["x", "-tFAT", "-oseven", &part]);
            for (name, bytes) in &all {
                assert!(
                    &std::fs::read(dir.join("seven").join(name)).unwrap() == bytes,
                    "{prefix} {name}"
                );
            }
        }
    }
}

#[test]
fn every_command_and_name() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fill(&dir.join("in"), 20);
    let info = good(dir, &["info", "fat:in"]);
    assert!(info.contains("protocol type: vvfat") && info.contains("file format: raw"), "{info}");
    assert!(
        info.contains("json:{\"driver\": \"raw\", \"file\": {\"fat-type\": 0, \"dir\": \"in\""),
        "{info}"
    );
    let map = good(dir, &["map", "--output=json", "fat:in"]);
    assert!(map.contains("\"data\": true") && map.contains("\"zero\": true"), "{map}");
    good(dir, &["convert", "-O", "qcow2", "fat:32:in", "a.qcow2"]);
    assert!(std::fs::metadata(dir.join("a.qcow2")).unwrap().len() < 4 << 20);
    let json = "json:{\"driver\":\"vvfat\",\"dir\":\"in\",\"fat-type\":32}";
    good(dir, &["compare", json, "a.qcow2"]);
    good(
        dir,
        &[
            "compare",
            "--image-opts",
            "driver=raw,file.driver=vvfat,file.dir=in,file.fat-type=32",
            "driver=qcow2,file.filename=a.qcow2",
        ],
    );
    let labelled = "driver=vvfat,dir=in,label=mine";
    good(dir, &["convert", "--image-opts", labelled, "-O", "raw", "l.raw"]);
    let mut bytes = std::fs::read(dir.join("l.raw")).unwrap();
    bytes.truncate(2 << 20);
    assert!(bytes.windows(4).any(|w| w == b"MINE"));
    for (args, wanted) in [
        (&["info", "fat:rw:in"][..], "cannot be written"),
        (&["info", "fat:none"], "Could not read directory none"),
        (&["bench", "-w", "-f", "raw", "-c", "1", "fat:in"], "cannot be written"),
        (&["info", "--image-opts", "driver=vvfat"], "requires a 'dir' option"),
    ] {
        let outcome = rimg(dir, args);
        assert!(
            !outcome.success() && outcome.err().contains(wanted),
            "{args:?}: {}",
            outcome.err()
        );
    }
}
