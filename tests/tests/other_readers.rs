//! What `rimg` writes, read by programs of other families: 7-Zip, the libyal libraries (libvmdk, libvhdi,
//! libqcow; mounted through FUSE) and cryptsetup. The bytes that come out are those that went in.

#![allow(clippy::unwrap_used)] // all of it is test code

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use suite::content::sha256;
use suite::process::Invocation;
use suite::tools;

/// One kind of image: arguments of `convert`, file name, the tool of libyal that mounts it, and why 7-Zip
/// does not read it, if it does not.
struct Kind {
    convert: &'static [&'static str],
    file: &'static str,
    mount: Option<&'static str>,
    not_7z: Option<&'static str>,
}

const fn kind(
    convert: &'static [&'static str],
    file: &'static str,
    mount: Option<&'static str>,
) -> Kind {
    Kind { convert, file, mount, not_7z: None }
}

const NOBODY: &str = "no program in Debian but QEMU's reads the format";
const VMDK: Option<&str> = Some("vmdkmount");
const VHDI: Option<&str> = Some("vhdimount");
const QCOW: Option<&str> = Some("qcowmount");

/// Every writable format.
const KINDS: &[Kind] = &[
    kind(&["-O", "vmdk", "-o", "subformat=monolithicSparse"], "mono.vmdk", VMDK),
    kind(&["-O", "vmdk", "-o", "subformat=streamOptimized"], "stream.vmdk", VMDK),
    // libvmdk wants extents of a flat disk under a name of its own.
    kind(&["-O", "vmdk", "-o", "subformat=monolithicFlat"], "flat.vmdk", None),
    kind(&["-O", "vmdk", "-o", "subformat=twoGbMaxExtentSparse"], "split.vmdk", None),
    kind(&["-O", "vmdk", "-o", "subformat=twoGbMaxExtentFlat"], "splitflat.vmdk", None),
    kind(&["-O", "vdi"], "dynamic.vdi", None),
    kind(&["-O", "vdi", "-o", "static=on"], "static.vdi", None),
    kind(&["-O", "vpc", "-o", "force_size=on"], "dynamic.vhd", VHDI),
    kind(&["-O", "vpc", "-o", "force_size=on,subformat=fixed"], "fixed.vhd", VHDI),
    kind(&["-O", "vhdx"], "dynamic.vhdx", VHDI),
    kind(&["-O", "vhdx", "-o", "subformat=fixed"], "fixed.vhdx", VHDI),
    kind(&["-O", "qcow"], "plain.qcow", QCOW),
    Kind {
        convert: &["-c", "-O", "qcow"],
        file: "packed.qcow",
        mount: QCOW,
        not_7z: Some("7-Zip knows no compressed clusters in version 1"),
    },
    kind(&["-O", "qcow2", "-o", "compat=0.10"], "old.qcow2", QCOW),
    kind(&["-O", "qcow2"], "new.qcow2", QCOW),
    kind(&["-c", "-O", "qcow2"], "packed.qcow2", QCOW),
    Kind {
        convert: &["-c", "-O", "qcow2", "-o", "compression_type=zstd"],
        file: "zstd.qcow2",
        mount: None,
        not_7z: Some("7-Zip and libqcow know no zstd in qcow2"),
    },
    Kind {
        convert: &["-O", "qcow2", "-o", "extended_l2=on"],
        file: "extended.qcow2",
        mount: None,
        not_7z: Some("7-Zip and libqcow know no subclusters"),
    },
    Kind { convert: &["-O", "qed"], file: "disk.qed", mount: None, not_7z: Some(NOBODY) },
    Kind { convert: &["-O", "parallels"], file: "disk.hdd", mount: None, not_7z: Some(NOBODY) },
];

const LIMIT: Duration = Duration::from_secs(120);

/// A disk with data, holes, and bytes that do not compress.
fn disk(path: &Path) {
    let mut bytes = vec![0u8; 9 << 20];
    let mut n = 1u64;
    let mut noise = |range: std::ops::Range<usize>, mask: u8| {
        for byte in &mut bytes[range] {
            n = n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *byte = u8::try_from(n >> 56).unwrap() & mask;
        }
    };
    noise(0..70_000, 3);
    noise(1 << 20..3 << 20, 0xff);
    noise((5 << 20) + 4096..(5 << 20) + 300_000, 15);
    noise((9 << 20) - 700..9 << 20, 1);
    std::fs::write(path, bytes).unwrap();
}

/// Runs `rimg`, which must succeed.
fn rimg(dir: &Path, args: &[&str]) {
    let said = Invocation::new(tools::rimg().unwrap(), dir).args(args).time_limit(LIMIT).run();
    let said = said.unwrap();
    assert!(said.success(), "rimg {args:?}: {}", said.err());
}

/// The hash of what 7-Zip extracts.
fn by_7z(tool: &Path, dir: &Path, file: &str) -> String {
    let out = dir.join("by-7z");
    let sink = std::fs::File::create(&out).unwrap();
    let status = Command::new("timeout")
        .arg(LIMIT.as_secs().to_string())
        .arg(tool)
        .args(["x", "-so", file])
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(sink)
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "7z x {file}: {status}");
    sha256(&out).unwrap()
}

/// A mounted image; unmounted when it is dropped.
struct Mount(PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("fusermount").arg("-u").arg(&self.0).stderr(Stdio::null()).status();
    }
}

/// The hash of the one file that a tool of libyal shows. `Err`: FUSE does not work here.
fn by_mount(tool: &Path, dir: &Path, file: &str) -> Result<String, String> {
    let point = dir.join("mounted");
    std::fs::create_dir_all(&point).unwrap();
    let said = Invocation::new(tool, dir).args([file, "mounted"]).time_limit(LIMIT).run().unwrap();
    if !said.success() {
        return Err(format!("{}{}", said.out(), said.err()));
    }
    let _mount = Mount(point.clone());
    let entry = std::fs::read_dir(&point).unwrap().next();
    let shown = entry.ok_or_else(|| "nothing is mounted".to_owned())?.unwrap().path();
    Ok(sha256(&shown).unwrap())
}

#[test]
fn images_are_read_by_other_families() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let dir = dir.path();
    disk(&dir.join("disk.raw"));
    let wanted = sha256(&dir.join("disk.raw")).unwrap();
    let seven = ["7zz", "7z"].iter().find_map(|name| tools::find(name));
    if seven.is_none() {
        tools::skip("images read by 7-Zip", "no 7zz or 7z here (package 7zip or p7zip-full)");
    }
    let fuse = Path::new("/dev/fuse").exists() && tools::find("fusermount").is_some();
    if !fuse {
        tools::skip("images read by libvmdk, libvhdi and libqcow", "no FUSE here");
    }
    let mut read = 0;
    for kind in KINDS {
        let args = [&["convert", "-f", "raw"], kind.convert, &["disk.raw", kind.file]].concat();
        rimg(dir, &args);
        match (kind.not_7z, &seven) {
            (Some(why), _) => tools::say(&format!("{}: not read by others: {why}", kind.file)),
            (None, Some(seven)) => {
                assert_eq!(by_7z(seven, dir, kind.file), wanted, "{} by 7-Zip", kind.file);
                read += 1;
            }
            (None, None) => {}
        }
        let Some(name) = kind.mount.filter(|_| fuse) else { continue };
        let Some(tool) = tools::find(name) else {
            tools::skip(kind.file, &format!("no {name} here"));
            continue;
        };
        match by_mount(&tool, dir, kind.file) {
            Ok(found) => assert_eq!(found, wanted, "{} by {name}", kind.file),
            // A container may have the device without the right to mount.
            Err(why) if why.contains("fuse") => {
                tools::skip(kind.file, &format!("{name} cannot mount: {}", why.trim()));
            }
            Err(why) => panic!("{name} {}: {why}", kind.file),
        }
    }
    tools::say(&format!("7-Zip reads {read} of {} kinds of images", KINDS.len()));
}

#[test]
fn a_luks_header_is_read_by_cryptsetup() {
    let Some(tool) = tools::find("cryptsetup") else {
        return tools::skip("LUKS images read by cryptsetup", "no cryptsetup here");
    };
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let dir = dir.path();
    disk(&dir.join("disk.raw"));
    let secret = "secret,id=s,data=correct horse";
    let options = "key-secret=s,iter-time=10";
    let args = [
        "convert", "--object", secret, "-f", "raw", "-O", "luks", "-o", options, "disk.raw",
        "a.luks",
    ];
    rimg(dir, &args);
    std::fs::write(dir.join("key"), "correct horse").unwrap();
    std::fs::write(dir.join("wrong"), "wrong horse").unwrap();
    let opens = |key: &str| {
        let args = ["luksOpen", "--test-passphrase", "--key-file", key, "a.luks"];
        let said = Invocation::new(&tool, dir).args(args).time_limit(LIMIT).run().unwrap();
        said.success()
    };
    assert!(opens("key") && !opens("wrong"));
}
