//! `rimg` on block devices, file systems that share blocks, disks with unreadable sectors and full ones.
//! Needs root, loop devices and mounts; what cannot be set up is skipped with a line that says so.

#![allow(clippy::unwrap_used)] // all of it is test code

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use suite::process::{End, Invocation, Outcome, must};
use suite::tools;

type Result<T> = std::result::Result<T, String>;

const MIB: usize = 1 << 20;

fn rimg(dir: &Path, args: &[&str]) -> Result<Outcome> {
    let call = Invocation::new(tools::rimg()?, dir).args(args);
    call.time_limit(Duration::from_secs(120)).run().map_err(|e| e.to_string())
}

fn good(dir: &Path, args: &[&str]) -> Result<String> {
    must(&tools::rimg()?, dir, args)
}

/// Runs a tool of the system, found by name.
fn tool(dir: &Path, name: &str, args: &[&str]) -> Result<String> {
    let program = tools::find(name).ok_or_else(|| format!("no {name} here"))?;
    must(&program, dir, args)
}

fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..len / 8).flat_map(next).collect()
}

/// A loop device, detached when it goes out of scope.
struct Loop(String);

impl Loop {
    fn new(file: &Path) -> Result<Self> {
        let name = file.to_string_lossy().into_owned();
        tool(Path::new("/"), "losetup", &["-f", "--show", &name]).map(|l| Loop(l.trim().to_owned()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = tool(Path::new("/"), "losetup", &["-d", &self.0]);
    }
}

/// A mounted file system, taken away when it goes out of scope.
struct Mount(PathBuf);

impl Mount {
    fn new(dir: &Path, args: &[&str]) -> Result<Self> {
        let at = dir.join("mnt");
        std::fs::create_dir_all(&at).map_err(|e| e.to_string())?;
        let place = at.to_string_lossy().into_owned();
        let all: Vec<&str> = args.iter().copied().chain([place.as_str()]).collect();
        tool(dir, "mount", &all).map(|_| Mount(at))
    }

    fn used(&self) -> Result<u64> {
        let root = self.0.to_string_lossy().into_owned();
        tool(&self.0, "sync", &["-f", &root])?;
        let out = tool(&self.0, "df", &["--output=used", "-B1", &root])?;
        let line = out.lines().last().unwrap_or_default().trim();
        line.parse().map_err(|e| format!("{line}: {e}"))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let place = self.0.to_string_lossy().into_owned();
        let _ = tool(Path::new("/"), "umount", &[&place]);
    }
}

/// A loop device of 64 MiB, and what is needed to fill it with ones again.
fn device(dir: &Path) -> Result<(Loop, std::fs::File)> {
    let file = dir.join("disk");
    std::fs::write(&file, vec![0xff; 64 * MIB]).map_err(|e| e.to_string())?;
    let device = Loop::new(&file)?;
    let open = std::fs::OpenOptions::new().write(true).open(&device.0);
    Ok((device, open.map_err(|e| e.to_string())?))
}

#[test]
fn a_device_that_holds_old_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    let (device, handle) = match device(at) {
        Ok(made) => made,
        Err(why) => return tools::skip("block devices as targets", &why),
    };
    let name = device.0.as_str();
    let refill = || {
        handle.write_all_at(&vec![0xff; 64 * MIB], 0).unwrap();
        handle.sync_all().unwrap();
    };
    let mut content = vec![0; 20 * MIB];
    content[3 * MIB..5 * MIB].copy_from_slice(&noise(2 * MIB));
    content.extend_from_slice(b"not a whole sector");
    std::fs::write(at.join("a.raw"), &content).unwrap();

    for options in ["", "extended_l2=on", "cluster_size=4k,lazy_refcounts=on", "preallocation=full"]
    {
        refill();
        let mut args = vec!["convert", "-O", "qcow2", "a.raw", name];
        if !options.is_empty() {
            args.splice(1..1, ["-o", options]);
        }
        good(at, &args).expect(options);
        good(at, &["check", "-f", "qcow2", name]).expect(options);
        good(at, &["compare", "-f", "qcow2", "-F", "raw", name, "a.raw"]).expect(options);
        if let Ok(reference) = tools::Reference::find() {
            let args = ["compare", "-f", "qcow2", "-F", "raw", name, "a.raw"];
            must(&reference.img, at, &args).expect(options);
        }
    }
    for args in [&["-t", "none"][..], &["-n"], &["-n", "-t", "directsync"], &["-n", "-t", "none"]] {
        refill();
        let all: Vec<&str> =
            ["convert"].iter().chain(args).chain(&["-O", "raw", "a.raw", name]).copied().collect();
        good(at, &all).unwrap();
        let read = std::fs::read(name).unwrap();
        assert!(read[..content.len()] == content[..], "{args:?}");
        // The rest of the last sector belongs to the image, what follows does not.
        let end = content.len().next_multiple_of(512);
        assert!(read[end..].iter().all(|b| *b == 0xff), "{args:?}");
        // Zeroes gave their space back.
        let blocks = std::os::unix::fs::MetadataExt::blocks(&at.join("disk").metadata().unwrap());
        assert!(blocks * 512 < 50 << 20, "{args:?}: {blocks} blocks");
    }
    refused(at, &["convert", "-O", "vmdk", "a.raw", name], "cannot hold the format 'vmdk'");
    refused(at, &["resize", "-f", "raw", "--shrink", name, "32M"], "Cannot resize device files");
    std::fs::File::create(at.join("big.raw")).unwrap().set_len(65 << 20).unwrap();
    refused(at, &["convert", "-O", "raw", "big.raw", name], "67108864 bytes");
}

fn refused(dir: &Path, args: &[&str], reason: &str) {
    let outcome = rimg(dir, args).unwrap();
    assert_eq!(outcome.end, End::Exit(1), "{args:?}");
    assert!(outcome.err().contains(reason), "{args:?}: {}", outcome.err());
}

#[test]
fn unreadable_sectors() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    let content = noise(8 * MIB);
    let file = at.join("disk");
    std::fs::write(&file, &content).unwrap();
    let device = match Loop::new(&file) {
        Ok(device) => device,
        Err(why) => return tools::skip("unreadable sectors", &why),
    };
    // A loop device answers with an I/O error where its file has ended meanwhile.
    let have = 5 * MIB + 8192;
    let shorter = std::fs::OpenOptions::new().write(true).open(&file).unwrap();
    shorter.set_len(u64::try_from(have).unwrap()).unwrap();
    let name = device.0.as_str();
    let plain = ["convert", "-f", "raw", "-T", "none", "-O", "raw", name, "out.raw"];
    refused(at, &plain, "Input/output error");
    assert!(!at.join("out.raw").exists() && !at.join("out.raw.part").exists());
    for cache in ["none", "writeback"] {
        let args = ["convert", "--force", "-f", "raw", "-T", cache, "--salvage", "-O", "raw", name];
        let args: Vec<&str> = args.iter().copied().chain(["out.raw"]).collect();
        let outcome = rimg(at, &args).unwrap();
        assert!(outcome.success(), "{}", outcome.err());
        assert!(outcome.err().contains("warning: error while reading offset"), "{}", outcome.err());
        let read = std::fs::read(at.join("out.raw")).unwrap();
        assert!(read[..have] == content[..have], "{cache}: good sectors were lost");
        assert!(read[have..].iter().all(|b| *b == 0), "{cache}");
    }
}

#[test]
fn blocks_are_shared_where_the_file_system_can() {
    for (kind, make) in [("xfs", "mkfs.xfs"), ("btrfs", "mkfs.btrfs")] {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path();
        let disk = std::fs::File::create(at.join("fs")).unwrap();
        disk.set_len(400 << 20).unwrap();
        let made = tool(at, make, &["-q", "fs"]);
        let mounted = made.and_then(|_| Mount::new(at, &["-o", "loop", "-t", kind, "fs"]));
        let mount = match mounted {
            Ok(mount) => mount,
            Err(why) => {
                tools::skip(&format!("shared blocks on {kind}"), &why);
                continue;
            }
        };
        let root = mount.0.as_path();
        let mut content = noise(24 * MIB);
        content.extend_from_slice(b"tail");
        std::fs::write(root.join("a.raw"), &content).unwrap();
        mount.used().unwrap();
        for (from, format, to) in [
            ("a.raw", "raw", "b.raw"),
            ("a.raw", "qcow2", "b.qcow2"),
            ("b.qcow2", "raw", "c.raw"),
            ("b.qcow2", "qcow2", "c.qcow2"),
            ("a.raw", "vmdk", "b.vmdk"),
        ] {
            let before = mount.used().unwrap();
            good(root, &["convert", "-O", format, from, to]).unwrap();
            let new = mount.used().unwrap().saturating_sub(before);
            assert!(new < 2 << 20, "{kind}: {from} to {to} took {new} bytes");
            good(root, &["compare", from, to]).unwrap();
            if format != "raw" {
                good(root, &["check", to]).unwrap();
            }
            if let Ok(reference) = tools::Reference::find() {
                must(&reference.img, root, &["compare", from, to]).unwrap();
            }
        }
        // Elsewhere, and at the user's wish, the bytes are copied.
        let outside = at.join("d.raw").to_string_lossy().into_owned();
        good(root, &["convert", "-O", "raw", "a.raw", &outside]).unwrap();
        good(root, &["convert", "-C", "-O", "raw", "a.raw", "e.raw"]).unwrap();
        good(root, &["compare", &outside, "e.raw"]).unwrap();
    }
}

#[test]
fn a_file_system_that_is_full() {
    let dir = tempfile::tempdir().unwrap();
    let mount = match Mount::new(dir.path(), &["-t", "tmpfs", "-o", "size=8M", "tmpfs"]) {
        Ok(mount) => mount,
        Err(why) => return tools::skip("full file systems", &why),
    };
    let at = dir.path();
    std::fs::write(at.join("a.raw"), noise(12 * MIB)).unwrap();
    // Known beforehand: refused with the numbers.
    refused(at, &["convert", "-O", "raw", "a.raw", "mnt/b.raw"], "(8388608 bytes) are free");
    // Not known: incompressible.
    let packed = ["convert", "-c", "-O", "qcow2", "a.raw", "mnt/b.qcow2"];
    refused(at, &packed, "No space left on device");
    assert_eq!(std::fs::read_dir(&mount.0).unwrap().count(), 0);
    // A target that was there stays sound.
    good(at, &["create", "-q", "-f", "qcow2", "mnt/c.qcow2", "16M"]).unwrap();
    refused(
        at,
        &["convert", "-n", "-O", "qcow2", "a.raw", "mnt/c.qcow2"],
        "No space left on device",
    );
    good(at, &["check", "mnt/c.qcow2"]).unwrap();
}

#[test]
fn a_folder_that_takes_no_new_files() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    let mode = |path: &Path, bits| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(bits)).unwrap();
    };
    mode(at, 0o755);
    std::fs::write(at.join("a.raw"), noise(MIB)).unwrap();
    std::fs::write(at.join("b.qcow2"), b"").unwrap();
    mode(&at.join("a.raw"), 0o644);
    mode(&at.join("b.qcow2"), 0o666);
    // Built trees may lie where a stranger cannot go.
    std::fs::copy(tools::rimg().unwrap(), at.join("rimg")).unwrap();
    mode(&at.join("rimg"), 0o755);
    let stranger = |target: &str| -> Result<Outcome> {
        let setpriv = tools::find("setpriv").ok_or("no setpriv here")?;
        let who = ["--reuid", "65534", "--regid", "65534", "--clear-groups", "./rimg"];
        let what = ["convert", "-O", "qcow2", "a.raw", target];
        Invocation::new(setpriv, at).args(who).args(what).run().map_err(|e| e.to_string())
    };
    let new = match stranger("c.qcow2") {
        Ok(outcome) if outcome.err().starts_with("rimg: ") => outcome,
        Ok(outcome) => return tools::skip("folders without permission", &outcome.err()),
        Err(why) => return tools::skip("folders without permission", &why),
    };
    assert!(new.err().contains("Permission denied"), "{}", new.err());
    // The file itself may be written: in place.
    let outcome = stranger("b.qcow2").unwrap();
    assert!(outcome.success(), "{}", outcome.err());
    good(at, &["compare", "a.raw", "b.qcow2"]).unwrap();
    assert!(!at.join("b.qcow2.part").exists());
}
