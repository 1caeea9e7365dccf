//! `rimg resize --grow-partition`: what sgdisk, sfdisk and parted say of the table afterwards, and that nothing of
//! what is on the disk has changed.

#![allow(clippy::unwrap_used, clippy::expect_used)] // all of it is test code

use std::path::Path;

use serde_json::Value;
use suite::field;
use suite::process::Outcome;
use suite::{guest, tools};

const MIB: u64 = 1 << 20;

fn rimg(dir: &Path, args: &[&str]) -> Outcome {
    field::rimg(dir, args).unwrap()
}

fn good(dir: &Path, args: &[&str]) -> String {
    field::good(dir, args).unwrap().out()
}

fn grow(dir: &Path, args: &[&str]) -> Value {
    let all = [&["resize", "--output", "json"], args].concat();
    serde_json::from_str(&good(dir, &all)).unwrap()
}

fn have(names: &[&str]) -> bool {
    names.iter().all(|name| {
        let found = tools::find(name).is_some();
        if !found {
            tools::skip("growing partitions", &format!("{name} is not installed"));
        }
        found
    })
}

/// Starts and sizes of partitions in bytes, by sfdisk.
fn parts(dir: &Path, disk: &str) -> Vec<(u64, u64)> {
    let text = guest::tool(dir, "sfdisk", &["-J", disk], "").unwrap();
    let json: Value = serde_json::from_str(&text).unwrap();
    let list = json["partitiontable"]["partitions"].as_array().unwrap();
    let number = |v: &Value| v.as_u64().unwrap() * 512;
    list.iter().map(|p| (number(&p["start"]), number(&p["size"]))).collect()
}

/// Three tools find nothing wrong.
fn sound(dir: &Path, disk: &str) {
    if tools::find("sgdisk").is_some() {
        let text = guest::tool(dir, "sgdisk", &["-v", disk], "").unwrap();
        let mbr = text.contains("MBR only") || text.contains("invalid GPT and valid MBR");
        assert!(text.contains("No problems found") || mbr, "{text}");
    }
    guest::tool(dir, "sfdisk", &["-V", disk], "").unwrap();
    if tools::find("parted").is_some() {
        let text = guest::tool(dir, "parted", &["-s", disk, "print"], "").unwrap();
        assert!(!text.contains("Warning") && !text.contains("Error"), "{text}");
    }
}

#[test]
fn gpt_in_every_format() {
    if !guest::have_tools("growing a GPT") || !have(&["sgdisk", "parted"]) {
        return;
    }
    let held = tempfile::tempdir().unwrap();
    let dir = held.path();
    guest::make(dir, "d.raw").unwrap();
    let before = parts(dir, "d.raw");
    for format in ["raw", "qcow2", "vdi", "vhdx", "vpc"] {
        let name = format!("g.{format}");
        good(dir, &["convert", "-f", "raw", "-O", format, "d.raw", &name]);
        let args = ["-f", format, "--grow-partition", &name, "+300M"];
        let dry = grow(dir, &[&["--dry-run"], &args[..]].concat());
        assert_eq!(dry["dry-run"], true);
        assert!(dry["writes"].as_array().unwrap().len() >= 5, "{dry}");
        let mut done = grow(dir, &args);
        assert_eq!(done["partition"]["number"], 6);
        let command = done["steps"][0]["command"].as_str().unwrap().to_owned();
        assert!(command.contains("diskpart"), "{command}");
        done["dry-run"] = Value::Bool(true);
        assert_eq!(dry, done, "the dry run said what was done");
        good(dir, &["convert", "-f", format, "-O", "raw", "--force", &name, "out.raw"]);
        sound(dir, "out.raw");
        let after = parts(dir, "out.raw");
        assert_eq!(before[..5], after[..5], "{format}");
        assert_eq!(before[5].0, after[5].0);
        assert_eq!(after[5].1, done["partition"]["new-length"].as_u64().unwrap());
        let size = std::fs::metadata(dir.join("out.raw")).unwrap().len();
        assert!(size - (after[5].0 + after[5].1) < 2 * MIB, "{format}");
        guest::check(dir, "out.raw").unwrap();
        std::fs::remove_file(dir.join(&name)).unwrap();
    }
}

/// The file systems do grow into their partitions.
#[test]
fn the_file_system_follows() {
    if !have(&["sfdisk", "mkfs.ext4", "resize2fs", "e2fsck"]) {
        return;
    }
    let held = tempfile::tempdir().unwrap();
    let dir = held.path();
    good(dir, &["create", "-f", "raw", "d.raw", "64M"]);
    guest::tool(dir, "sfdisk", &["-q", "d.raw"], "label: dos\nsize=10M\nsize=40M\n").unwrap();
    let (start, len) = parts(dir, "d.raw")[1];
    let place = format!("offset={start}");
    let blocks = format!("{}k", len / 1024);
    guest::tool(dir, "mkfs.ext4", &["-q", "-F", "-E", &place, "d.raw", &blocks], "").unwrap();
    let done = grow(dir, &["-f", "raw", "--grow-partition=2", "d.raw", "200M"]);
    assert_eq!(done["steps"][0]["command"], "resize2fs /dev/vda2");
    sound(dir, "d.raw");
    let (new_start, new_len) = parts(dir, "d.raw")[1];
    assert_eq!((new_start, new_start + new_len), (start, 200 * MIB));
    let bytes = std::fs::read(dir.join("d.raw")).unwrap();
    std::fs::write(dir.join("v"), &bytes[usize::try_from(start).unwrap()..]).unwrap();
    guest::tool(dir, "e2fsck", &["-fp", "v"], "").unwrap();
    guest::tool(dir, "resize2fs", &["v"], "").unwrap();
    guest::tool(dir, "e2fsck", &["-fn", "v"], "").unwrap();
    let text = guest::tool(dir, "dumpe2fs", &["-h", "v"], "").unwrap();
    assert!(
        text.contains(&format!("Block count:              {}", new_len / 1024))
            || text.contains(&format!("{}", new_len / 4096)),
        "{text}"
    );
}

#[test]
fn steps_for_what_there_is() {
    if !have(&["sfdisk", "mkfs.xfs", "mkswap", "mkfs.btrfs"]) {
        return;
    }
    let held = tempfile::tempdir().unwrap();
    let dir = held.path();
    let made: [(&str, &[&str], &str); 3] = [
        ("mkfs.xfs", &["-q"], "xfs_growfs"),
        ("mkfs.btrfs", &["-q"], "btrfs filesystem resize"),
        ("mkswap", &[], "mkswap -U"),
    ];
    for (mkfs, options, word) in made {
        std::fs::write(dir.join("v"), b"").unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(dir.join("v")).unwrap();
        file.set_len(320 * MIB).unwrap();
        guest::tool(dir, mkfs, &[options, &["v"]].concat(), "").unwrap();
        let mut disk = vec![0; usize::try_from(MIB).unwrap()];
        disk.extend(std::fs::read(dir.join("v")).unwrap());
        disk.resize(disk.len() + usize::try_from(MIB).unwrap(), 0);
        std::fs::write(dir.join("d.raw"), &disk).unwrap();
        let script = "label: gpt\nstart=2048, size=320M\n";
        guest::tool(dir, "sfdisk", &["-q", "-w", "never", "-W", "never", "d.raw"], script).unwrap();
        let done = grow(dir, &["-f", "raw", "--grow-partition", "--dry-run", "d.raw", "+1G"]);
        let command = done["steps"][0]["command"].as_str().unwrap();
        assert!(command.contains(word), "{command}");
        let untouched = std::fs::metadata(dir.join("d.raw")).unwrap().len();
        assert_eq!(untouched, 322 * MIB);
    }
}

#[test]
fn what_is_in_the_way() {
    if !have(&["sfdisk"]) {
        return;
    }
    let held = tempfile::tempdir().unwrap();
    let dir = held.path();
    good(dir, &["create", "-f", "qcow2", "empty.qcow2", "64M"]);
    good(dir, &["create", "-f", "raw", "d.raw", "64M"]);
    let script = "label: gpt\nsize=20M\nsize=10M, type=S\n";
    guest::tool(dir, "sfdisk", &["-q", "d.raw"], script).unwrap();
    let before = std::fs::read(dir.join("d.raw")).unwrap();
    let wrong: [(&[&str], &str); 8] = [
        (&["--grow-partition=1", "d.raw", "+1G"], "swapoff"),
        (&["--grow-partition=4", "d.raw", "+1G"], "no partition 4"),
        (&["--grow-partition", "d.raw", "50M"], "made smaller"),
        (&["--grow-partition", "--shrink", "d.raw", "50M"], "contradict"),
        (&["--partition-only", "d.raw", "50M"], "require --grow-partition"),
        (&["--grow-partition", "--partition-only", "d.raw", "1G"], "no size"),
        (&["--grow-partition", "empty.qcow2", "1G"], "no partition table"),
        (&["--grow-partition=x", "d.raw", "1G"], "expects a number"),
    ];
    for (args, word) in wrong {
        let format = if args.iter().any(|a| a.ends_with("qcow2")) { "qcow2" } else { "raw" };
        let out = rimg(dir, &[&["resize", "-f", format], args].concat());
        let said = out.err();
        assert!(!out.success() && said.contains(word), "{args:?}: {said}");
    }
    assert!(std::fs::read(dir.join("d.raw")).unwrap() == before, "refused before anything changed");
    // A disk that has grown before.
    good(dir, &["resize", "-f", "raw", "d.raw", "128M"]);
    let done = grow(dir, &["-f", "raw", "--grow-partition", "--partition-only", "d.raw"]);
    assert_eq!(done["partition"]["number"], 2);
    assert_eq!(done["old-size"], done["new-size"]);
    sound(dir, "d.raw");
}
