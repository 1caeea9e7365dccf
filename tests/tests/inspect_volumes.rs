//! `rimg inspect` on roots that do not lie plainly in an ext4 partition: XFS, and LVM with ext4 or XFS on a
//! logical volume of two pieces.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fmt::Write as _;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use suite::field::rimg;
use suite::installed::{self, KERNEL, Linux, ROOT_UUID, Starter};
use suite::process::{End, must};
use suite::tools;

const MIB: u64 = 1 << 20;
/// An extent of the group, and where the first one begins on a physical volume.
const EXTENT: u64 = 4 * MIB;
const DATA_START: u64 = MIB;

fn need(tool: &str) -> Result<PathBuf, String> {
    tools::find(tool).ok_or(format!("{tool} is not installed"))
}

fn blank(path: &Path, len: u64) -> Result<String, String> {
    std::fs::File::create(path).and_then(|f| f.set_len(len)).map_err(|e| e.to_string())?;
    Ok(path.to_string_lossy().into_owned())
}

/// The prototype of a folder ("mkfs.xfs", `-p`).
fn prototype(folder: &Path, depth: usize, out: &mut String) {
    let mut all: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap()).collect();
    all.sort_by_key(std::fs::DirEntry::file_name);
    let indent = " ".repeat(depth);
    for entry in all {
        let (path, name) = (entry.path(), entry.file_name().into_string().unwrap());
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            writeln!(out, "{indent}{name} d--755 0 0").unwrap();
            prototype(&path, depth + 1, out);
            writeln!(out, "{indent}$").unwrap();
        } else if kind.is_symlink() {
            let target = std::fs::read_link(&path).unwrap();
            writeln!(out, "{indent}{name} l--777 0 0 {}", target.display()).unwrap();
        } else {
            writeln!(out, "{indent}{name} ---644 0 0 {}", path.display()).unwrap();
        }
    }
}

/// A folder as an XFS file system.
fn xfs(dir: &Path, folder: &Path) -> Result<PathBuf, String> {
    let mkfs = need("mkfs.xfs")?;
    let mut text = "/dev/null\n0 0\nd--755 0 0\n".to_owned();
    prototype(folder, 1, &mut text);
    text.push_str("$\n");
    let list = dir.join("prototype");
    std::fs::write(&list, text).map_err(|e| e.to_string())?;
    let path = dir.join("root.xfs");
    // The smallest that mkfs makes.
    let image = blank(&path, 300 * MIB)?;
    let (list, uuid) = (list.to_string_lossy(), format!("uuid={ROOT_UUID}"));
    must(&mkfs, dir, &["-q", "-L", "root", "-m", &uuid, "-p", &list, &image])?;
    Ok(path)
}

/// A loop device that is given back.
struct Loop(PathBuf, String);

impl Loop {
    fn of(image: &str) -> Result<Self, String> {
        let losetup = need("losetup")?;
        let out = std::process::Command::new(&losetup).args(["--find", "--show", image]).output();
        let out = out.map_err(|e| e.to_string())?;
        if !out.status.success() {
            let why = String::from_utf8_lossy(&out.stderr).trim().to_owned();
            return Err(format!("a loop device is not installed: {why}"));
        }
        Ok(Loop(losetup, String::from_utf8_lossy(&out.stdout).trim().to_owned()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = std::process::Command::new(&self.0).args(["-d", &self.1]).status();
    }
}

/// A physical volume with the group `old`, in whose volume `root` the file system lies: two thirds of it, then
/// another volume, then the rest. LVM makes it without its kernel part; the bytes are put where it says.
fn lvm(dir: &Path, root: &Path) -> Result<PathBuf, String> {
    let tool = need("lvm")?;
    let len = std::fs::metadata(root).map_err(|e| e.to_string())?.len();
    let all = len.div_ceil(EXTENT);
    let first = all * 2 / 3;
    let path = dir.join("root.pv");
    let image = blank(&path, DATA_START + (all + 4) * EXTENT)?;
    let device = Loop::of(&image)?;
    let system = dir.join("lvm");
    std::fs::create_dir(&system).map_err(|e| e.to_string())?;
    let system = format!("LVM_SYSTEM_DIR={}", system.display());
    let run = |args: &[&str]| {
        let tool = tool.to_string_lossy();
        let head = [system.as_str(), &tool];
        let tail = ["--devices", device.1.as_str(), "--driverloaded", "n"];
        must(&need("env")?, dir, &[&head[..], args, &tail].concat()).map(|_| ())
    };
    let create = ["lvcreate", "-an", "-Zn", "-Wn", "-n"];
    run(&["vgcreate", "-s", "4M", "old", &device.1])?;
    run(&[&create[..], &["root", "-l", &first.to_string(), "old"]].concat())?;
    run(&[&create[..], &["swap", "-l", "2", "old"]].concat())?;
    run(&["lvextend", "-l", &all.to_string(), "old/root"])?;
    drop(device);
    let bytes = std::fs::read(root).map_err(|e| e.to_string())?;
    let file = std::fs::OpenOptions::new().write(true).open(&path).map_err(|e| e.to_string())?;
    for (extent, piece) in (0u64..).zip(bytes.chunks(usize::try_from(EXTENT).unwrap())) {
        let place = if extent < first { extent } else { extent + 2 };
        if piece.iter().any(|b| *b != 0) {
            file.write_all_at(piece, DATA_START + place * EXTENT).map_err(|e| e.to_string())?;
        }
    }
    Ok(path)
}

/// Which file system the root is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Root {
    Ext4,
    Xfs,
}

/// Where it lies.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Partition,
    Logical,
}

/// The report on a disk with this root, and the exit code; `None`, told, where it cannot be made here.
fn inspected(dir: &Path, root: Root, place: Place, system: &Linux) -> Option<(Value, i32)> {
    let make = || {
        let folder = dir.join("tree");
        std::fs::create_dir(&folder).map_err(|e| e.to_string())?;
        system.write(&folder)?;
        let mut image = match root {
            Root::Ext4 => installed::ext4(dir, &folder)?,
            Root::Xfs => xfs(dir, &folder)?,
        };
        if place == Place::Logical {
            image = lvm(dir, &image)?;
        }
        installed::disk(dir, "disk", &image, Starter::Bios)
    };
    match make() {
        Ok(_) => {}
        Err(why) if why.contains("is not installed") => {
            tools::skip("a root that does not lie plainly in ext4", &why);
            return None;
        }
        Err(why) => panic!("{why}"),
    }
    let outcome = rimg(dir, &["inspect", "--output", "json", "disk"]).unwrap();
    let value = serde_json::from_str(&outcome.out())
        .unwrap_or_else(|e| panic!("{e}: {}{}", outcome.out(), outcome.err()));
    let End::Exit(code) = outcome.end else { panic!("{}: {}", outcome.end, outcome.err()) };
    Some((value, code))
}

/// What holds for each of them.
fn boots(found: &Value, code: i32, content: &str, volume: &str) {
    assert_eq!(code, 0, "{found:#}");
    assert_eq!(found["verdict"]["outcome"], "boots-virtio");
    assert_eq!(found["verdict"]["bus"], "virtio-blk");
    let system = &found["operating-systems"][0];
    assert_eq!(system["id"], "debian");
    assert_eq!(system["hostname"], "old-machine");
    assert_eq!(system["kernels"][0]["version"], KERNEL);
    assert_eq!(system["kernels"][0]["drivers"]["virtio_blk"], "initramfs");
    assert_eq!(system["mounts"][0]["volume"], volume, "{found:#}");
    let all = found["volumes"].as_array().unwrap();
    let root = all.iter().find(|v| v["name"] == volume).unwrap();
    assert_eq!(root["content"], content, "{found:#}");
    assert_eq!(root["label"], "root");
    assert_eq!(root["uuid"], ROOT_UUID);
}

/// A system that names its root as installers do on LVM.
fn on_lvm(kind: &str) -> Linux {
    Linux {
        root: "/dev/mapper/old-root".to_owned(),
        fstab: format!(
            "/dev/mapper/old-root / {kind} defaults 0 1\n/dev/old/swap none swap sw 0 0\n"
        ),
        ..Linux::default()
    }
}

#[test]
fn a_root_on_xfs() {
    let dir = tempfile::tempdir().unwrap();
    let system =
        Linux { fstab: format!("UUID={ROOT_UUID} / xfs defaults 0 0\n"), ..Linux::default() };
    let Some((found, code)) = inspected(dir.path(), Root::Xfs, Place::Partition, &system) else {
        return;
    };
    boots(&found, code, "xfs", "partition 3");
    let text = rimg(dir.path(), &["inspect", "--cat", "/etc/os-release", "disk"]).unwrap();
    assert!(text.out().contains("bookworm"), "{}", text.err());
}

#[test]
fn a_root_on_ext4_on_lvm() {
    let dir = tempfile::tempdir().unwrap();
    let system = on_lvm("ext4");
    let Some((found, code)) = inspected(dir.path(), Root::Ext4, Place::Logical, &system) else {
        return;
    };
    boots(&found, code, "ext4", "old/root");
    let kernel = format!("/boot/vmlinuz-{KERNEL}");
    let list =
        rimg(dir.path(), &["inspect", "--ls", "/boot", "--volume", "old/root", "disk"]).unwrap();
    assert!(list.out().contains("vmlinuz"), "{}{}", list.out(), list.err());
    let bytes = rimg(dir.path(), &["inspect", "--cat", &kernel, "disk"]).unwrap();
    assert!(bytes.out().contains(KERNEL), "{}", bytes.err());
}

#[test]
fn a_root_on_xfs_on_lvm() {
    let dir = tempfile::tempdir().unwrap();
    let system = on_lvm("xfs");
    let Some((found, code)) = inspected(dir.path(), Root::Xfs, Place::Logical, &system) else {
        return;
    };
    boots(&found, code, "xfs", "old/root");
}
