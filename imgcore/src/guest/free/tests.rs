//! File systems made with their own tools. What is told as free is filled with rubbish: the file system's
//! check must find nothing and every file must be the same; and the sum is compared with what the tools count.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::guest::disk::GuestDisk;
use crate::guest::fields::Fields;
use crate::guest::testing::{Sandbox, memory_disk, patched};

mod exfat;

const MIB: u64 = 1 << 20;

/// Fills what is free with rubbish; kind and free bytes.
fn poison(sandbox: &Sandbox, name: &str) -> (&'static str, u64) {
    let disk = sandbox.disk(name);
    let volume = Volume::whole(&disk);
    let map = of_volume(&volume).unwrap_or_else(|e| panic!("{name}: {e:?}"));
    let mut all = Vec::new();
    let sum = Summary::of(&*map, &mut |r| {
        all.push(r);
        Ok(())
    });
    let sum = sum.unwrap_or_else(|e| panic!("{name}: {e:?}"));
    assert_eq!(sum.ranges, u64::try_from(all.len()).unwrap());
    assert!(map.managed() <= volume.len());
    for range in all {
        let rubbish = vec![0xee; usize::try_from(range.len).unwrap()];
        sandbox.insert(name, range.at, &rubbish);
    }
    (map.kind(), sum.free)
}

fn refusal(sandbox: &Sandbox, name: &str) -> String {
    refusal_of(sandbox.get(name))
}

/// Why a volume is not trusted.
fn refusal_of(bytes: Vec<u8>) -> String {
    refusal_on(&memory_disk(bytes))
}

fn refusal_on(disk: &GuestDisk) -> String {
    let volume = Volume::whole(disk);
    let map = match of_volume(&volume) {
        Ok(map) => map,
        Err(e) => return e.report(),
    };
    match Summary::of(&*map, &mut |_| Ok(())) {
        Ok(sum) => panic!("trusted: {sum:?}"),
        Err(e) => e.report(),
    }
}

/// Files of several sizes; the names and bytes.
fn files(sandbox: &Sandbox) -> Vec<(String, Vec<u8>)> {
    std::fs::create_dir_all(sandbox.file("files")).unwrap();
    let mut all = Vec::new();
    for (i, size) in [10usize, 5000, 70_000, 300_000, 1_000_000].into_iter().enumerate() {
        let bytes: Vec<u8> =
            (0..size).map(|n| u8::try_from((n * 7 + n / 251 + i) % 256).unwrap()).collect();
        sandbox.put(&format!("files/f{i}"), &bytes);
        all.push((format!("f{i}"), bytes));
    }
    all
}

#[test]
fn ext_of_all_kinds() {
    let sandbox = Sandbox::new();
    let files = files(&sandbox);
    let kinds: [(&str, &str, &[&str]); 10] = [
        ("ext2", "ext2", &["-t", "ext2", "-b", "1024"]),
        ("ext3", "ext3", &["-t", "ext3", "-b", "1024"]),
        ("ext4", "ext4", &["-t", "ext4"]),
        ("small", "ext4", &["-t", "ext4", "-b", "1024", "-g", "1024"]),
        ("narrow", "ext4", &["-t", "ext4", "-O", "^64bit,^flex_bg", "-b", "1024"]),
        ("uninit", "ext4", &["-t", "ext4", "-O", "^metadata_csum,uninit_bg", "-b", "1024"]),
        ("plain", "ext4", &["-t", "ext4", "-O", "^metadata_csum,^uninit_bg,^flex_bg"]),
        (
            "meta_bg",
            "ext4",
            &["-t", "ext4", "-O", "meta_bg,^resize_inode", "-b", "1024", "-g", "512"],
        ),
        ("bigalloc", "ext4", &["-t", "ext4", "-O", "bigalloc", "-C", "16384"]),
        ("bigalloc1k", "ext4", &["-t", "ext4", "-O", "bigalloc", "-b", "1024", "-C", "8192"]),
    ];
    for (name, kind, options) in kinds {
        sandbox.blank(name, 40 * MIB + 3 * 1024);
        let args = [&["-q", "-F", "-d", "files"], options, &[name]].concat();
        if sandbox.tool("mkfs.ext4", &args, "").is_none() {
            return;
        }
        // Holes among the files.
        sandbox.tool("debugfs", &["-w", "-R", "rm f1", name], "");
        sandbox.tool("debugfs", &["-w", "-R", "rm f3", name], "");
        let (found, free) = poison(&sandbox, name);
        assert_eq!(found, kind, "{name}");
        let text = sandbox.tool("dumpe2fs", &["-h", name], "").unwrap();
        let number = |key: &str| -> u64 {
            let line = text.lines().find(|l| l.starts_with(key)).unwrap();
            line.rsplit(' ').next().unwrap().parse().unwrap()
        };
        let theirs = number("Free blocks:") * number("Block size:");
        assert_eq!(free, theirs, "{name}");
        sandbox.tool("e2fsck", &["-fn", name], "");
        for (file, bytes) in &files {
            let request = format!("dump {file} out");
            let _ = std::fs::remove_file(sandbox.file("out"));
            sandbox.tool("debugfs", &["-R", &request, name], "");
            if matches!(file.as_str(), "f1" | "f3") {
                assert!(!sandbox.file("out").exists() || sandbox.get("out").is_empty());
            } else {
                assert!(sandbox.get("out") == *bytes, "{name} {file}");
            }
        }
    }
}

#[test]
fn ext_that_is_not_trusted() {
    let sandbox = Sandbox::new();
    files(&sandbox);
    for (name, options) in [("csum", "64bit"), ("plain", "^metadata_csum,^uninit_bg")] {
        sandbox.blank(name, 24 * MIB);
        let args = ["-q", "-F", "-b", "1024", "-O", options, "-d", "files", name];
        if sandbox.tool("mkfs.ext4", &args, "").is_none() {
            return;
        }
        let good = sandbox.get(name);
        let with = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] ^= value;
            refusal_of(bytes)
        };
        // Any bit of a bitmap, a descriptor, a counter.
        let bitmap = u32::from_le_bytes(good[2048..2052].try_into().unwrap());
        let bitmap = usize::try_from(bitmap).unwrap() * 1024;
        for at in [bitmap, bitmap + 17, bitmap + 1000, 2048 + 0xc, 2048, 1024 + 0xc] {
            with(at, 1);
        }
        // The states; with checksums another reason comes first.
        if name == "plain" {
            assert!(with(1024 + 0x60, 4).contains("journal"));
            assert!(with(1024 + 0x3a, 1).contains("not unmounted"));
            assert!(with(1024 + 0x3a, 2).contains("errors"));
            assert!(with(1024 + 0x62, 0x80).contains("unknown features"));
        } else {
            assert!(with(1024 + 0x100, 4).contains("checksum"));
        }
    }
    // As a power cut leaves it: debugfs opens a journal's transaction that is not written back.
    sandbox.tool("debugfs", &["-w", "-R", "feature needs_recovery", "csum"], "");
    assert!(refusal(&sandbox, "csum").contains("journal"));
}

#[test]
fn xfs_of_both_versions() {
    let sandbox = Sandbox::new();
    let files = files(&sandbox);
    let proto: String = std::iter::once("/\n0 0\nd--755 0 0\n".to_owned())
        .chain(files.iter().map(|(n, _)| format!("{n} ---644 0 0 files/{n}\n")))
        .chain(["$\n".to_owned()])
        .collect();
    sandbox.put("proto", proto.as_bytes());
    let kinds: [(&str, &[&str]); 4] = [
        ("v5", &[]),
        ("v4", &["-m", "crc=0"]),
        ("small", &["-b", "size=1024", "-d", "agcount=3"]),
        ("wide", &["-m", "rmapbt=0,reflink=0", "-s", "size=4096"]),
    ];
    for (name, options) in kinds {
        sandbox.blank(name, 320 * MIB);
        let args = [&["-q", "-p", "proto"], options, &[name]].concat();
        if sandbox.tool("mkfs.xfs", &args, "").is_none() {
            return;
        }
        let untouched = Arc::new(sandbox.get(name));
        let (kind, free) = poison(&sandbox, name);
        assert_eq!(kind, "XFS");
        let text = sandbox.tool("xfs_db", &["-r", "-c", "freesp -s", name], "").unwrap();
        let line = text.lines().find(|l| l.starts_with("total free blocks")).unwrap();
        let theirs: u64 = line.rsplit(' ').next().unwrap().parse().unwrap();
        let block = if name == "small" { 1024 } else { 4096 };
        // xfs_db counts the lists that feed the trees, too: four blocks a group.
        let lists = theirs - free / block;
        assert!(lists <= 4 * 6, "{name}: {theirs} {free}");
        sandbox.tool("xfs_repair", &["-n", "-f", name], "");
        // A damaged tree, header, log.
        let with = |at: usize, byte: u8| {
            let patch = (u64::try_from(at).unwrap(), vec![byte]);
            refusal_on(&patched(&untouched, 320 * MIB, vec![patch]))
        };
        let bit = |at: usize| with(at, untouched[at] ^ 4);
        let sector = if name == "wide" { 4096 } else { 512 };
        let at = |field: usize| {
            let raw = &untouched[sector + field..][..4];
            usize::try_from(u32::from_be_bytes(raw.try_into().unwrap())).unwrap()
        };
        let block = usize::try_from(block).unwrap();
        let records = if name == "v4" { 16 } else { 56 };
        bit(at(16) * block + records + 3);
        bit(at(16) * block + records + 7);
        bit(at(20) * block + records + 3);
        bit(sector + 12 + 3);
        // No unmount record, as after a power cut.
        let agblklog = untouched[124];
        let start = u64::from_be_bytes(untouched[48..56].try_into().unwrap());
        let agblocks = u32::from_be_bytes(untouched[84..88].try_into().unwrap());
        let ag = start >> agblklog;
        let log = ag * u64::from(agblocks) + (start & ((1 << agblklog) - 1));
        let log = usize::try_from(log).unwrap() * block;
        let record = (log..untouched.len())
            .step_by(512)
            .rfind(|&a| a < log + (64 << 20) && untouched[a..a + 4] == [0xfe, 0xed, 0xba, 0xbe])
            .unwrap();
        assert!(with(record + 512 + 9, 0).contains("log"), "{name}");
    }
}

#[test]
fn btrfs() {
    let sandbox = Sandbox::new();
    files(&sandbox);
    let kinds: [(&str, &[&str]); 4] = [
        ("dup", &[]),
        ("single", &["-m", "single"]),
        ("mixed", &["-M"]),
        ("sha256", &["--csum", "sha256", "-n", "4096"]),
    ];
    for (name, options) in kinds {
        sandbox.blank(name, 160 * MIB);
        let args = [&["-q", "--rootdir", "files"], options, &[name]].concat();
        if sandbox.tool("mkfs.btrfs", &args, "").is_none() {
            return;
        }
        let good = Arc::new(sandbox.get(name));
        let (kind, free) = poison(&sandbox, name);
        assert_eq!(kind, "btrfs");
        assert!(free > 100 * MIB && free < 160 * MIB, "{name} {free}");
        sandbox.tool("btrfs", &["check", "--check-data-csum", name], "");
        sandbox.tool("btrfs", &["restore", name, "."], "");
        for (file, bytes) in files(&sandbox) {
            assert!(sandbox.get(&file) == bytes, "{name} {file}");
        }
        // The superblock, its log, any tree block.
        let len = 160 * MIB;
        let with = |at: u64, byte: u8| refusal_on(&patched(&good, len, vec![(at, vec![byte])]));
        assert!(with((64 << 10) + 0x60, 1).contains("checksum"));
        let id = &good[(64 << 10) + 0x20..][..16];
        let blocks = good.chunks(4096).enumerate().filter(|(i, b)| {
            *i > 256 && b[32..48] == *id && b[100] == 0 && b[88..96] == [2, 0, 0, 0, 0, 0, 0, 0]
        });
        let block = blocks.map(|(i, _)| u64::try_from(i).unwrap() * 4096).max().unwrap();
        if name == "single" {
            assert!(with(block + 200, 0xaa).contains("tree block"), "{name}");
        }
    }
}

#[test]
fn fat_of_all_widths() {
    let sandbox = Sandbox::new();
    let files = files(&sandbox);
    for (name, kind, size, width) in
        [("12", "FAT12", 8, "12"), ("16", "FAT16", 40, "16"), ("32", "FAT32", 80, "32")]
    {
        sandbox.blank(name, size * MIB);
        let cluster = if width == "32" { "1" } else { "4" };
        let args = ["-F", width, "-s", cluster, name];
        if sandbox.tool("mkfs.vfat", &args, "").is_none() {
            return;
        }
        for (file, _) in &files {
            let from = format!("files/{file}");
            let to = format!("::{file}");
            if sandbox.tool("mcopy", &["-i", name, &from, &to], "").is_none() {
                return;
            }
        }
        sandbox.tool("mdel", &["-i", name, "::f3"], "");
        let good = sandbox.get(name);
        let (found, free) = poison(&sandbox, name);
        assert_eq!(found, kind);
        let text = sandbox.tool("mdir", &["-i", name, "::"], "").unwrap();
        let line = text.lines().find(|l| l.contains("bytes free")).unwrap();
        let theirs: String = line.chars().filter(char::is_ascii_digit).collect();
        assert_eq!(free, theirs.parse::<u64>().unwrap(), "{name}");
        sandbox.tool("fsck.vfat", &["-n", name], "");
        for (file, bytes) in files.iter().filter(|(n, _)| n != "f3") {
            let from = format!("::{file}");
            sandbox.tool("mcopy", &["-n", "-o", "-i", name, &from, "out"], "");
            assert!(sandbox.get("out") == *bytes, "{name} {file}");
        }
        // Tables that differ, impossible entries, a mounted file system.
        let reserved = usize::from(u16::from_le_bytes([good[14], good[15]])) * 512;
        let mut bytes = good.clone();
        bytes[reserved + 30] ^= 1;
        assert!(refusal_of(bytes).contains("copies"), "{name}");
        let mut bytes = good.clone();
        bytes[if width == "32" { 65 } else { 37 }] |= 1;
        assert!(refusal_of(bytes).contains("not unmounted"), "{name}");
        if width != "12" {
            let mut bytes = good.clone();
            let at = if width == "32" { 7 } else { 3 };
            bytes[reserved + at] &= if width == "32" { 0xf7 } else { 0x7f };
            let copy = bytes[reserved..reserved + 8].to_vec();
            let len = match width {
                "32" => u32::from_le_bytes(good[36..40].try_into().unwrap()),
                _ => u32::from(u16::from_le_bytes([good[22], good[23]])),
            };
            let second = reserved + usize::try_from(len).unwrap() * 512;
            bytes[second..second + 8].copy_from_slice(&copy);
            assert!(refusal_of(bytes).contains("not unmounted"), "{name}");
        }
    }
}

#[test]
fn exfat_and_swap() {
    let sandbox = Sandbox::new();
    sandbox.blank("x", 64 * MIB);
    if sandbox.tool("mkfs.exfat", &["-c", "4K", "x"], "").is_some() {
        let good = sandbox.get("x");
        let (kind, free) = poison(&sandbox, "x");
        assert_eq!(kind, "exFAT");
        assert!(free > 60 * MIB && free < 64 * MIB);
        sandbox.tool("fsck.exfat", &["-n", "x"], "");
        for (at, word) in [(106, "not unmounted"), (88, "checksum")] {
            let mut bytes = good.clone();
            bytes[at] ^= 2;
            assert!(refusal_of(bytes).contains(word));
        }
    }
    sandbox.blank("s", 16 * MIB);
    if sandbox.tool("mkswap", &["-L", "label", "s"], "").is_some() {
        assert_eq!(poison(&sandbox, "s"), ("swap", 16 * MIB - 4096));
        let text = sandbox.tool("blkid", &["-p", "s"], "").unwrap();
        assert!(text.contains("LABEL=\"label\""), "{text}");
        let mut bytes = sandbox.get("s");
        bytes[4086..4096].copy_from_slice(b"S1SUSPEND\0");
        assert!(refusal_of(bytes).contains("hibernated"));
    }
}

#[test]
fn ntfs() {
    let sandbox = Sandbox::new();
    let files = files(&sandbox);
    for (name, options) in [("n4k", ["-c", "4096"]), ("n512", ["-c", "512"])] {
        sandbox.blank(name, 48 * MIB);
        let args = [&["-q", "-F", "-Q"], &options[..], &[name]].concat();
        if sandbox.tool("mkntfs", &args, "").is_none() {
            return;
        }
        for (file, _) in &files {
            let from = format!("files/{file}");
            if sandbox.tool("ntfscp", &["-q", name, &from, file], "").is_none() {
                return;
            }
        }
        let good = sandbox.get(name);
        let (kind, free) = poison(&sandbox, name);
        assert_eq!(kind, "NTFS");
        let text = sandbox.tool("ntfscluster", &["-i", name], "").unwrap();
        let number = |key: &str| -> u64 {
            let line = text.lines().find(|l| l.starts_with(key)).unwrap();
            line.split(|c: char| !c.is_ascii_digit())
                .rfind(|w| !w.is_empty())
                .and_then(|w| w.parse().ok())
                .unwrap()
        };
        assert_eq!(free, number("bytes of free space"), "{text}");
        sandbox.tool("ntfsfix", &["-n", name], "");
        let out = sandbox.try_tool("ntfsresize", &["--check", "-f", name], "").unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
        for (file, bytes) in &files {
            let out = sandbox.try_tool("ntfscat", &[name, file], "").unwrap();
            assert!(out.stdout == *bytes, "{name} {file}");
        }
        // A bit of $Bitmap that belongs to a file is cleared.
        let map = find_bitmap(&good);
        let mut bytes = good.clone();
        bytes[map] &= 0xfe;
        assert!(refusal_of(bytes).contains("as free"), "{name}");
        // Hibernated.
        sandbox.put(name, &good);
        sandbox.put("hiberfil.sys", &[b"HIBR".as_slice(), &[0; 9000]].concat());
        sandbox.tool("ntfscp", &["-q", name, "hiberfil.sys", "hiberfil.sys"], "");
        assert!(refusal(&sandbox, name).contains("hibernated"), "{name}");
        sandbox.put(name, &good);
        sandbox.put("hiberfil.sys", &[0; 9000]);
        sandbox.tool("ntfscp", &["-q", name, "hiberfil.sys", "hiberfil.sys"], "");
        poison(&sandbox, name);
        // With a restore point.
        let store = "{11111111-2222-3333-4444-555555555555}{3808876b-c176-4e48-b7ae-04046e6cc752}";
        sandbox.put(name, &good);
        sandbox.tool("ntfscp", &["-q", name, "hiberfil.sys", store], "");
        assert!(refusal(&sandbox, name).contains("shadow copies"), "{name}");
        // Dirty, as ntfsfix leaves it for Windows' chkdsk.
        sandbox.put(name, &good);
        sandbox.tool("ntfsfix", &[name], "");
        assert!(refusal(&sandbox, name).contains("dirty"), "{name}");
    }
}

/// The first byte of the bitmap's first cluster: the run of `$Bitmap` in record 6.
fn find_bitmap(bytes: &[u8]) -> usize {
    let b = Fields(bytes);
    let cluster = usize::from(b.le16(11).unwrap()) * usize::from(b.u8(13).unwrap());
    let mft = usize::try_from(b.le64(48).unwrap()).unwrap() * cluster;
    let record = &bytes[mft + 6 * 1024..mft + 7 * 1024];
    usize::try_from(ntfs::first_cluster(record)).unwrap() * cluster
}

/// One small volume of each kind, for damaging.
fn samples() -> Vec<Vec<u8>> {
    let sandbox = Sandbox::new();
    files(&sandbox);
    let made: [(&str, &[&str], u64); 9] = [
        ("mkfs.ext4", &["-q", "-F", "-b", "1024", "-d", "files", "d"], 8),
        ("mkfs.ext4", &["-q", "-F", "-b", "1024", "-O", "^metadata_csum,^uninit_bg", "d"], 4),
        ("mkfs.ext4", &["-q", "-F", "-O", "bigalloc,meta_bg,^resize_inode", "d"], 8),
        ("mkfs.vfat", &["-F", "12", "d"], 4),
        ("mkfs.vfat", &["-F", "32", "-s", "1", "d"], 36),
        ("mkfs.exfat", &["-c", "4K", "d"], 8),
        ("mkntfs", &["-q", "-F", "-Q", "d"], 8),
        ("mkswap", &["d"], 1),
        ("mkfs.btrfs", &["-q", "-M", "d"], 24),
    ];
    let mut all = Vec::new();
    for (tool, args, mib) in made {
        sandbox.blank("d", mib * MIB);
        if sandbox.tool(tool, args, "").is_some() {
            all.push(sandbox.get("d"));
        }
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    /// Whatever is damaged: no panic, no range outside, and an end.
    #[test]
    fn damaged_volumes(
        places in prop::collection::vec((any::<u32>(), 0usize..512, any::<u8>()), 1..10),
        cut in any::<u32>(),
    ) {
        use std::sync::OnceLock;
        static SAMPLES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
        for sample in SAMPLES.get_or_init(samples) {
            let busy: Vec<usize> = (0..sample.len() / 512)
                .filter(|s| sample[s * 512..][..512].iter().any(|&b| b != 0))
                .take(4000)
                .collect();
            let mut bytes = sample.clone();
            for (n, &(sector, at, value)) in places.iter().enumerate() {
                // Every other place is near the beginning.
                let few = if n % 2 == 0 { busy.len() } else { busy.len().min(8) };
                let sector = busy[usize::try_from(sector).unwrap() % few];
                bytes[sector * 512 + at] = value;
            }
            let len = bytes.len();
            if cut % 4 == 0 {
                bytes.truncate(usize::try_from(cut).unwrap() % len);
            }
            let disk = memory_disk(bytes);
            let volume = Volume::whole(&disk);
            for content in content::probe(&volume).unwrap() {
                if let Ok(map) = open(&volume, &[content]) {
                    let mut end = 0;
                    let sum = Summary::of(&*map, &mut |r| {
                        assert!(r.at >= end && r.len > 0);
                        end = r.at + r.len;
                        Ok(())
                    });
                    prop_assert!(end <= disk.len());
                    drop(sum);
                }
            }
        }
    }
}
