//! `rimg sparsify`: what guests do not use goes, everything else stays, also in the middle of it.

#![allow(clippy::unwrap_used, clippy::expect_used)] // all of it is test code

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use suite::field;
use suite::process::{End, Outcome};
use suite::{guest, tools};

fn rimg(dir: &Path, args: &[&str]) -> Outcome {
    field::rimg(dir, args).unwrap()
}

fn good(dir: &Path, args: &[&str]) -> String {
    field::good(dir, args).unwrap().out()
}

/// Bytes of the host's disk.
fn allocated(path: &Path) -> u64 {
    path.metadata().unwrap().blocks() * 512
}

/// The disk of all file systems, packed so that copies of it are quick.
fn disk(what: &str) -> Option<tempfile::TempDir> {
    if !guest::have_tools(what) {
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    guest::make(dir.path(), "d.raw").unwrap();
    guest::check(dir.path(), "d.raw").unwrap();
    Some(dir)
}

fn volume<'a>(report: &'a Value, name: &str) -> &'a Value {
    let list = report["volumes"].as_array().unwrap();
    list.iter().find(|v| v["name"] == name).unwrap()
}

#[test]
fn in_place_in_every_format() {
    let Some(held) = disk("sparsify in place") else { return };
    let dir = held.path();
    for format in ["raw", "qcow2", "vdi", "vhdx", "vpc", "vmdk"] {
        let name = format!("i.{format}");
        good(dir, &["convert", "-f", "raw", "-O", format, "d.raw", &name]);
        let dry = good(dir, &["sparsify", "-n", "--output", "json", "-f", format, &name]);
        let dry: Value = serde_json::from_str(&dry).unwrap();
        let before = allocated(&dir.join(&name));
        let done = good(dir, &["sparsify", "--in-place", "--output", "json", "-f", format, &name]);
        let done: Value = serde_json::from_str(&done).unwrap();
        let after = allocated(&dir.join(&name));
        // What was promised is what was done, and the host has it back.
        assert_eq!(dry["savable"], done["savable"], "{format}");
        for (number, content) in [(1, "FAT32"), (2, "ext4"), (3, "XFS"), (4, "swap"), (6, "NTFS")] {
            let v = volume(&done, &format!("partition {number}"));
            assert_eq!(v["content"], content, "{format}");
            assert!(v["free"].as_u64().unwrap() > 10 << 20, "{format} {v}");
        }
        assert!(volume(&done, "partition 5")["skipped"].is_string());
        let saved = done["savable"].as_u64().unwrap();
        assert!(saved > 20 << 20, "{format} {saved}");
        assert!(before - after > saved / 10 * 9, "{format} {before} {after} {saved}");
        assert_eq!(done["allocated-after"].as_u64().unwrap(), after);
        if format != "raw" && format != "vpc" {
            good(dir, &["check", "-f", format, &name]);
        }
        good(dir, &["convert", "-f", format, "-O", "raw", "--force", &name, "out.raw"]);
        guest::check(dir, "out.raw").unwrap();
        // Nothing is left for a second run, except blocks of the host at both ends of what is not aligned to them.
        let again = good(dir, &["sparsify", "-n", "--output", "json", "-f", format, &name]);
        let again: Value = serde_json::from_str(&again).unwrap();
        assert!(again["savable"].as_u64().unwrap() <= saved / 50, "{format} {again}");
        std::fs::remove_file(dir.join(&name)).unwrap();
    }
}

#[test]
fn copies() {
    let Some(held) = disk("sparsify to a copy") else { return };
    let dir = held.path();
    good(dir, &["convert", "-f", "raw", "-O", "qcow2", "d.raw", "whole.qcow2"]);
    good(dir, &["sparsify", "-O", "qcow2", "--verify", "-f", "raw", "d.raw", "a.qcow2"]);
    good(dir, &["convert", "--sparsify", "-f", "raw", "-O", "qcow2", "d.raw", "b.qcow2"]);
    good(dir, &["compare", "a.qcow2", "b.qcow2"]);
    assert!(allocated(&dir.join("a.qcow2")) + (30 << 20) < allocated(&dir.join("whole.qcow2")));
    // The format of the source is the default; -c compresses; a partition can be left alone.
    good(dir, &["sparsify", "-c", "--ignore", "/dev/vda4", "a.qcow2", "c.qcow2"]);
    good(dir, &["sparsify", "--ignore", "2", "whole.qcow2", "d.qcow2"]);
    assert!(allocated(&dir.join("d.qcow2")) > allocated(&dir.join("a.qcow2")) + (8 << 20));
    for name in ["a.qcow2", "c.qcow2", "d.qcow2"] {
        good(dir, &["convert", "-O", "raw", "--force", name, "out.raw"]);
        guest::check(dir, "out.raw").unwrap();
        good(dir, &["check", name]);
    }
}

#[test]
fn killed_at_any_moment() {
    let Some(held) = disk("sparsify killed") else { return };
    let dir = held.path();
    let program = tools::rimg().unwrap();
    good(dir, &["convert", "-f", "raw", "-O", "qcow2", "d.raw", "w.qcow2"]);
    for (round, format) in ["qcow2", "raw", "qcow2", "qcow2", "raw", "qcow2"].iter().enumerate() {
        let name = format!("k.{format}");
        let from = if *format == "raw" { "d.raw" } else { "w.qcow2" };
        std::fs::copy(dir.join(from), dir.join(&name)).unwrap();
        let mut child = Command::new(&program)
            .args(["sparsify", "--in-place", "-f", format, &name])
            .current_dir(dir)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(15 * u64::try_from(round).unwrap()));
        let _ = child.kill();
        child.wait().unwrap();
        // Leaked clusters are what a kill may leave.
        let code = rimg(dir, &["check", "-f", format, &name]).end;
        assert!(matches!(code, End::Exit(0 | 3 | 63)), "{format} {code}");
        good(dir, &["convert", "-f", format, "-O", "raw", "--force", &name, "out.raw"]);
        guest::check(dir, "out.raw").unwrap();
    }
}

#[test]
fn snapshots_keep_what_they_have() {
    let Some(held) = disk("sparsify with snapshots") else { return };
    let dir = held.path();
    good(dir, &["convert", "-f", "raw", "-O", "qcow2", "d.raw", "s.qcow2"]);
    good(dir, &["snapshot", "-c", "before", "s.qcow2"]);
    let out = rimg(dir, &["sparsify", "--in-place", "s.qcow2"]);
    assert!(out.success() && out.err().contains("snapshots"), "{}", out.err());
    assert!(out.out().contains("stay with snapshots"), "{}", out.out());
    good(dir, &["check", "s.qcow2"]);
    good(dir, &["convert", "-l", "before", "-O", "raw", "s.qcow2", "old.raw"]);
    let same = rimg(dir, &["compare", "-f", "raw", "-F", "raw", "old.raw", "d.raw"]);
    assert!(same.success(), "{}", same.out());
    good(dir, &["convert", "-O", "raw", "s.qcow2", "out.raw"]);
    guest::check(dir, "out.raw").unwrap();
}

#[test]
fn overlays_stay_small() {
    let Some(held) = disk("sparsify an overlay") else { return };
    let dir = held.path();
    good(dir, &["create", "-f", "qcow2", "-b", "d.raw", "-F", "raw", "o.qcow2"]);
    let before = allocated(&dir.join("o.qcow2"));
    good(dir, &["sparsify", "--in-place", "o.qcow2"]);
    assert_eq!(allocated(&dir.join("o.qcow2")), before, "what lies below is not freed above");
    good(dir, &["compare", "-F", "raw", "o.qcow2", "d.raw"]);
}

#[test]
fn what_is_not_clean_stays() {
    let Some(held) = disk("sparsify dirty file systems") else { return };
    let dir = held.path();
    let start = guest::PARTS[1].start;
    // An ext4 whose journal was not replayed, as debugfs marks it.
    let bytes = std::fs::read(dir.join("d.raw")).unwrap();
    let at = usize::try_from(start).unwrap();
    let end = at + usize::try_from(guest::PARTS[1].len).unwrap();
    std::fs::write(dir.join("volume"), &bytes[at..end]).unwrap();
    guest::tool(dir, "debugfs", &["-w", "-R", "feature needs_recovery", "volume"], "").unwrap();
    let mut dirty = bytes;
    dirty[at..end].copy_from_slice(&std::fs::read(dir.join("volume")).unwrap());
    std::fs::write(dir.join("dirty.raw"), &dirty).unwrap();
    let text = good(dir, &["sparsify", "--in-place", "-f", "raw", "dirty.raw"]);
    assert!(text.contains("journal has not been replayed"), "{text}");
    assert!(text.contains("hint: check it first: e2fsck"), "{text}");
    let after = std::fs::read(dir.join("dirty.raw")).unwrap();
    assert!(after[at..end] == dirty[at..end], "not one byte of it");
    // In use by somebody else.
    let program = tools::rimg().unwrap();
    good(dir, &["convert", "-f", "raw", "-O", "qcow2", "d.raw", "u.qcow2"]);
    if let Some(io) = tools::find("qemu-io") {
        let mut user = Command::new(io)
            .arg(dir.join("u.qcow2"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // Its prompt says that the image is open.
        let mut prompt = [0; 7];
        std::io::Read::read_exact(user.stdout.as_mut().unwrap(), &mut prompt).unwrap();
        let out = Command::new(&program)
            .args(["sparsify", "--in-place", "u.qcow2"])
            .current_dir(dir)
            .output()
            .unwrap();
        let _ = user.kill();
        user.wait().unwrap();
        assert!(!out.status.success());
        assert!(String::from_utf8_lossy(&out.stderr).contains("lock"));
    } else {
        tools::skip("sparsify of an image in use", "qemu-io is not installed");
    }
}

#[test]
fn mistakes_in_the_use() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    good(dir, &["create", "-f", "qcow2", "e.qcow2", "10M"]);
    let wrong: [(&[&str], &str); 8] = [
        (&["e.qcow2"], "Expecting --in-place"),
        (&["--in-place", "e.qcow2", "x.qcow2"], "makes no copy"),
        (&["--metadata-only", "-n", "e.qcow2"], "requires --in-place"),
        (&["--in-place", "-c", "e.qcow2"], "are for copies"),
        (&["-n", "--ignore", "7", "e.qcow2"], "no volume '7'"),
        (&["-n", "missing.qcow2"], "missing.qcow2"),
        (&["e.qcow2", "e.qcow2"], "e.qcow2"),
        (&["-n"], "Expecting an image"),
    ];
    for (args, word) in wrong {
        let out = rimg(dir, &[&["sparsify"], args].concat());
        assert!(!out.success() && out.err().contains(word), "{args:?}: {}", out.err());
    }
    let refused: [&[&str]; 3] = [
        &["-S", "0", "e.qcow2", "x.qcow2"],
        &["--resume", "e.qcow2", "x.qcow2"],
        &["e.qcow2", "e.qcow2", "x.qcow2"],
    ];
    for args in refused {
        let out = rimg(dir, &[&["convert", "--sparsify", "-O", "qcow2"], args].concat());
        assert!(!out.success(), "{args:?}");
    }
    let text = good(dir, &["sparsify", "-n", "e.qcow2"]);
    assert!(text.contains("skipped"), "an empty disk: {text}");
}

/// Loop devices that are given back.
struct Loop<'a>(&'a Path, String);

impl Drop for Loop<'_> {
    fn drop(&mut self) {
        let _ = guest::tool(self.0, "losetup", &["-d", &self.1], "");
    }
}

/// A group with a volume in two pieces, made by LVM itself without its kernel part. `None`: told why not.
fn group(dir: &Path, disk: &str) -> Option<()> {
    let skip = |why: String| {
        tools::skip("sparsify with LVM", &why);
        None
    };
    let device = match guest::tool(dir, "losetup", &["--find", "--show", disk], "") {
        Ok(text) => text.trim().to_owned(),
        Err(why) => return skip(why),
    };
    let device = Loop(dir, device);
    let system = format!("LVM_SYSTEM_DIR={}", dir.join("etc").display());
    std::fs::create_dir(dir.join("etc")).unwrap();
    let create = ["lvcreate", "-an", "-Zn", "-Wn", "-n"];
    let commands: [&[&str]; 4] = [
        &["vgcreate", "vg", &device.1],
        &[&create[..], &["root", "-L", "32M", "vg"]].concat(),
        &[&create[..], &["other", "-L", "8M", "vg"]].concat(),
        &["lvextend", "-L", "+16M", "vg/root"],
    ];
    for command in commands {
        let tail = ["--devices", device.1.as_str(), "--driverloaded", "n"];
        let args = [&[system.as_str(), "lvm"], command, &tail[..]].concat();
        if let Err(why) = guest::tool(dir, "env", &args, "") {
            return skip(why);
        }
    }
    Some(())
}

#[test]
fn logical_volumes() {
    const MIB: usize = 1 << 20;
    if !guest::have_tools("sparsify with LVM") {
        return;
    }
    let held = tempfile::tempdir().unwrap();
    let dir = held.path();
    // Stale bytes everywhere.
    let stale: Vec<u8> = (0..101 * MIB).map(|i| u8::try_from(i * 7 % 255 + 1).unwrap()).collect();
    let blank = std::fs::File::create(dir.join("v")).unwrap();
    blank.set_len(48 << 20).unwrap();
    std::fs::create_dir(dir.join("files")).unwrap();
    std::fs::write(dir.join("files/kept"), &stale[..20 * MIB]).unwrap();
    guest::tool(dir, "mkfs.ext4", &["-q", "-F", "-d", "files", "v"], "").unwrap();
    std::fs::write(dir.join("d.raw"), vec![0; 101 * MIB]).unwrap();
    if group(dir, "d.raw").is_none() {
        return;
    }
    let mut disk = std::fs::read(dir.join("d.raw")).unwrap();
    let file_system = std::fs::read(dir.join("v")).unwrap();
    disk[MIB..].copy_from_slice(&stale[MIB..]);
    disk[MIB..33 * MIB].copy_from_slice(&file_system[..32 * MIB]);
    disk[41 * MIB..57 * MIB].copy_from_slice(&file_system[32 * MIB..]);
    std::fs::write(dir.join("d.raw"), &disk).unwrap();
    good(dir, &["convert", "-f", "raw", "-O", "qcow2", "d.raw", "d.qcow2"]);
    let report = good(dir, &["sparsify", "--in-place", "--output", "json", "d.qcow2"]);
    let report: Value = serde_json::from_str(&report).unwrap();
    // 25 extents of 4 MiB, 14 of them in use.
    assert_eq!(volume(&report, "disk")["content"], "LVM2");
    assert_eq!(volume(&report, "disk")["free"], 44 << 20);
    assert_eq!(volume(&report, "vg/root")["content"], "ext4");
    assert!(volume(&report, "vg/other")["skipped"].is_string());
    good(dir, &["convert", "-O", "raw", "d.qcow2", "out.raw"]);
    let out = std::fs::read(dir.join("out.raw")).unwrap();
    assert!(out[57 * MIB..].iter().all(|&b| b == 0), "unused extents are gone");
    assert!(out[33 * MIB..41 * MIB] == disk[33 * MIB..41 * MIB], "an unknown volume stays");
    std::fs::write(dir.join("v"), [&out[MIB..33 * MIB], &out[41 * MIB..57 * MIB]].concat())
        .unwrap();
    guest::tool(dir, "e2fsck", &["-fn", "v"], "").unwrap();
    guest::tool(dir, "debugfs", &["-R", "dump kept kept", "v"], "").unwrap();
    assert!(std::fs::read(dir.join("kept")).unwrap() == stale[..20 * MIB]);
    // By name, in each way.
    for name in ["vg/root", "/dev/vg/root", "/dev/mapper/vg-root"] {
        let text = good(dir, &["sparsify", "-n", "--ignore", name, "d.qcow2"]);
        assert!(text.contains("is ignored"), "{text}");
    }
}
