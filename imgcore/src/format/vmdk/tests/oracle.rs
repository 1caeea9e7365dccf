//! The installed qemu-img as a second opinion. Skipped visibly where it is missing.

use std::process::{Command, Output};

use super::{Dir, content, pattern, write_packed};
use crate::format::Access;

pub(super) fn tool(name: &str, dir: &Dir, args: &[&str]) -> Option<Output> {
    match Command::new(name).args(args).current_dir(&dir.path).output() {
        Ok(out) => Some(out),
        Err(_) => {
            eprintln!("SKIPPED: {name} is not installed");
            None
        }
    }
}

fn must(name: &str, dir: &Dir, args: &[&str]) -> Option<String> {
    let out = tool(name, dir, args)?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let err = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{name} {args:?}: {text}{err}");
    Some(text)
}

/// `qemu-img check` finds nothing.
pub(super) fn check_clean(dir: &Dir) {
    must("qemu-img", dir, &["check", "-f", "vmdk", &dir.main]);
}

/// QEMU sees these bytes.
pub(super) fn same_content(dir: &Dir, expected: &[u8]) {
    let raw = format!("{}.expected", dir.main);
    std::fs::write(dir.file(&raw), expected).unwrap();
    let args = ["compare", "-f", "vmdk", "-F", "raw", dir.main.as_str(), &raw];
    must("qemu-img", dir, &args);
}

const SUBFORMATS: [&str; 5] = [
    "monolithicSparse",
    "monolithicFlat",
    "twoGbMaxExtentSparse",
    "twoGbMaxExtentFlat",
    "streamOptimized",
];

/// QEMU writes, we read: all subformats; then we write more and QEMU reads.
#[test]
fn images_of_qemu() {
    let dir = Dir::new();
    let mut bytes = pattern(3 << 20, 3);
    bytes[65536..65536 * 5].fill(0);
    bytes.resize((5 << 20) + 512, 0);
    dir.put("in.raw", &bytes);
    for subformat in SUBFORMATS {
        let here = dir.named(&format!("{subformat}.vmdk"));
        let option = format!("subformat={subformat}");
        let args =
            ["convert", "-f", "raw", "-O", "vmdk", "-o", &option, "in.raw", here.main.as_str()];
        if must("qemu-img", &dir, &args).is_none() {
            return;
        }
        let node = here.node(Access::Read);
        assert!(content(&node) == bytes, "{subformat}");
        // Small reads of packed grains.
        for at in [0u64, 1000, 65_535, 400_000, 5 << 20] {
            let mut part = [0; 300];
            node.read(at, &mut part).unwrap();
            let at = usize::try_from(at).unwrap();
            assert!(part == bytes[at..at + 300], "{subformat} at {at}");
        }
        let node = here.node(Access::Write);
        let mut model = bytes.clone();
        if subformat == "streamOptimized" {
            write_packed(node.image(), 65536 * 60, &pattern(65536, 99)).unwrap();
            model[65536 * 60..65536 * 61].copy_from_slice(&pattern(65536, 99));
            let again = write_packed(node.image(), 65536 * 60, &pattern(65536, 99)).unwrap_err();
            assert_eq!(again.message(), "Could not write to allocated cluster for streamOptimized");
        } else {
            let more = pattern(777_777, 12);
            node.write(4_000_001, &more).unwrap();
            model[4_000_001..4_777_778].copy_from_slice(&more);
        }
        node.close().unwrap();
        drop(node);
        check_clean(&here);
        same_content(&here, &model);
        assert!(content(&here.node(Access::Read)) == model, "{subformat} again");
    }
}

/// We create and write, QEMU reads and writes.
#[test]
fn images_for_qemu() {
    let dir = Dir::new();
    let size: u64 = (40 << 20) + 1024;
    for subformat in SUBFORMATS {
        let here = dir.named(&format!("{subformat}.vmdk"));
        here.create(size, &[("subformat", subformat)]).unwrap();
        check_clean(&here);
        let mut model = vec![0; usize::try_from(size).unwrap()];
        same_content(&here, &model);
        let node = here.node(Access::Write);
        if subformat == "streamOptimized" {
            // Two tables, with a gap, and the short grain at the end.
            for unit in [0u64, 1, 2, 9, 511, 512, 600, 640] {
                let mut bytes = pattern(65536, unit + 1);
                let at = usize::try_from(unit * 65536).unwrap();
                let have = (model.len() - at).min(65536);
                bytes[have..].fill(0);
                write_packed(node.image(), unit * 65536, &bytes).unwrap();
                model[at..at + have].copy_from_slice(&bytes[..have]);
            }
        } else {
            for at in [0usize, 33_333_333, 41_000_000] {
                let bytes = pattern(500_000, at as u64);
                node.write(at as u64, &bytes).unwrap();
                model[at..at + 500_000].copy_from_slice(&bytes);
            }
        }
        node.close().unwrap();
        drop(node);
        check_clean(&here);
        same_content(&here, &model);
        assert!(content(&here.node(Access::Read)) == model, "{subformat}");
        if subformat != "streamOptimized" {
            let args = ["-f", "vmdk", "-c", "write -P 7 20M 100k", here.main.as_str()];
            must("qemu-io", &here, &args);
            model[20 << 20..(20 << 20) + 102_400].fill(7);
            assert!(content(&here.node(Access::Read)) == model, "{subformat} after qemu-io");
        }
    }
}

/// What `info` shows is the same for images of both makers, but for the random content id.
#[test]
fn same_descriptor_and_header() {
    let dir = Dir::new();
    let cases: [&[(&str, &str)]; 7] = [
        &[],
        &[("adapter_type", "lsilogic"), ("hwversion", "11")],
        &[("zeroed_grain", "on"), ("compat6", "on"), ("toolsversion", "5")],
        &[("subformat", "monolithicFlat"), ("adapter_type", "legacyESX")],
        &[("subformat", "twoGbMaxExtentSparse")],
        &[("subformat", "twoGbMaxExtentFlat"), ("adapter_type", "buslogic")],
        &[("subformat", "streamOptimized")],
    ];
    for case in cases {
        for size in ["1000", "5368709120"] {
            let ours = dir.named("o.vmdk");
            ours.create(size.parse().unwrap(), case).unwrap();
            std::fs::create_dir_all(dir.file("q")).unwrap();
            let list: Vec<String> = case.iter().map(|(a, b)| format!("{a}={b}")).collect();
            let list = if list.is_empty() { "compat6=off".to_owned() } else { list.join(",") };
            let args = ["create", "-f", "vmdk", "-o", &list, "q/o.vmdk", size];
            if must("qemu-img", &dir, &args).is_none() {
                return;
            }
            let stream = case.contains(&("subformat", "streamOptimized"));
            for entry in std::fs::read_dir(dir.file("q")).unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                let (a, b) = (dir.file(&name), dir.file("q").join(&name));
                let len = a.metadata().unwrap().len();
                if name.contains("-f") {
                    assert_eq!(len, b.metadata().unwrap().len(), "{name} {case:?}");
                    continue;
                }
                let (mut a, mut b) = (std::fs::read(a).unwrap(), std::fs::read(b).unwrap());
                if stream {
                    // Ours has its directory at the end.
                    (a, b) = (a[512..10752].to_vec(), b[512..10752].to_vec());
                }
                for bytes in [&mut a, &mut b] {
                    if let Some(new) = super::super::cid::with_id(bytes, "CID", 0x1234_5678) {
                        // Ids are printed without leading zeroes: inside a file the text's padding
                        // makes up for the difference.
                        let (room, embedded) = (bytes.len(), bytes.len() > 5000);
                        *bytes = new;
                        while embedded && bytes.len() > room {
                            let start = bytes.windows(4).position(|w| w == b"CID=").unwrap();
                            let end = bytes[start..].iter().position(|&b| b == 0).unwrap();
                            bytes.remove(start + end);
                        }
                    }
                }
                assert!(a == b, "{name} {case:?} {size}");
            }
            std::fs::remove_dir_all(dir.file("q")).unwrap();
        }
    }
}
