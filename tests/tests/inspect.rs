//! `rimg inspect` on disks put together from real parts: what it finds, what it says, with which exit code.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::type_complexity)]

use std::path::{Path, PathBuf};

use serde_json::Value;
use suite::field::{good, rimg};
use suite::guest::{self, KERNEL, Linux, ROOT_UUID, Starter};
use suite::process::{End, Outcome, must};
use suite::tools;

/// The report on an image, and the exit code.
fn report(image: &Path) -> (Value, i32) {
    let dir = image.parent().unwrap();
    let name = image.file_name().unwrap().to_string_lossy().into_owned();
    let outcome = rimg(dir, &["inspect", "--output", "json", &name]).unwrap();
    let value = serde_json::from_str(&outcome.out())
        .unwrap_or_else(|e| panic!("{e}: {}{}", outcome.out(), outcome.err()));
    // The text for people must be made without trouble, too.
    let text = rimg(dir, &["inspect", &name]).unwrap();
    assert_eq!(text.end, outcome.end, "{}", text.err());
    assert!(text.out().contains("partition table"), "{}", text.out());
    (value, exit(&outcome))
}

fn exit(outcome: &Outcome) -> i32 {
    match outcome.end {
        End::Exit(code) => code,
        _ => panic!("{}: {}", outcome.end, outcome.err()),
    }
}

/// A made disk; a test that cannot make it says so and ends.
fn made(result: Result<PathBuf, String>, what: &str) -> Option<PathBuf> {
    match result {
        Ok(path) => Some(path),
        Err(why) if why.contains("is not installed") => {
            tools::skip(what, &why);
            None
        }
        Err(why) => panic!("{what}: {why}"),
    }
}

fn starts(report: &Value, bus: &str) -> String {
    let all = report["verdict"]["buses"].as_array().unwrap();
    let found = all.iter().find(|b| b["bus"] == bus).unwrap();
    found["starts"].as_str().unwrap().to_owned()
}

/// Everything that is said, as one text.
fn said(report: &Value) -> String {
    report["verdict"].to_string()
}

#[test]
fn a_system_named_by_uuid_boots_on_virtio() {
    let dir = tempfile::tempdir().unwrap();
    let linux = guest::linux(dir.path(), "disk.raw", &Linux::default(), Starter::Bios);
    let Some(image) = made(linux, "a Linux on virtio") else { return };
    let (found, code) = report(&image);
    assert_eq!(code, 0, "{found:#}");
    assert_eq!(found["verdict"]["outcome"], "boots-virtio");
    assert_eq!(found["verdict"]["bus"], "virtio-blk");
    assert_eq!(found["verdict"]["firmware"], "bios");
    assert_eq!(found["verdict"]["nic"], "virtio-net-pci");
    assert_eq!(found["partition-table"]["kind"], "gpt");
    assert_eq!(found["partitions"].as_array().unwrap().len(), 3);
    let root = &found["volumes"][2];
    assert_eq!((&root["content"], &root["label"]), (&"ext4".into(), &"root".into()));
    assert_eq!(root["uuid"], ROOT_UUID);
    let system = &found["operating-systems"][0];
    assert_eq!(system["id"], "debian");
    assert_eq!(system["hostname"], "old-machine");
    assert_eq!(system["architecture"], "x86_64");
    assert_eq!(system["kernels"][0]["version"], KERNEL);
    assert_eq!(system["kernels"][0]["initramfs"]["microcode"], true);
    assert_eq!(system["kernels"][0]["initramfs"]["generator"], "initramfs-tools");
    assert_eq!(system["kernels"][0]["drivers"]["virtio_blk"], "initramfs");
    assert_eq!(system["kernels"][0]["drivers"]["virtio_net"], "module");
    assert_eq!(system["mounts"][0]["volume"], root["name"]);
    assert_eq!(found["boot"]["bios"]["loader"], "grub");

    // The same through a packed format, and files one by one.
    good(dir.path(), &["convert", "-c", "-O", "qcow2", "disk.raw", "disk.qcow2"]).unwrap();
    let (packed, code) = report(&dir.path().join("disk.qcow2"));
    assert_eq!(code, 0);
    assert_eq!(packed["operating-systems"], found["operating-systems"]);
    let text = good(dir.path(), &["inspect", "--cat", "/etc/os-release", "disk.qcow2"]).unwrap();
    assert!(text.out().contains("bookworm"));
    let list = good(dir.path(), &["inspect", "--ls", "/", "--volume", "3", "disk.raw"]).unwrap();
    assert!(list.out().contains(" boot\n") && list.out().contains(" etc\n"), "{}", list.out());
    let none = rimg(dir.path(), &["inspect", "--cat", "/no/such", "disk.raw"]).unwrap();
    assert_eq!(exit(&none), 1);
    let none = rimg(dir.path(), &["inspect", "--ls", "/", "--volume", "9", "disk.raw"]).unwrap();
    assert!(none.err().contains("partition"), "{}", none.err());
}

#[test]
fn names_of_the_old_controller_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let system = Linux {
        root: "/dev/sda3".to_owned(),
        fstab: "/dev/sda3 / ext4 defaults 0 1\n/dev/sda2 /boot/efi vfat defaults 0 1\n/dev/sdb1 /data ext4 defaults 0 2\n"
            .to_owned(),
        ..Linux::default()
    };
    let Some(image) = made(guest::linux(dir.path(), "d", &system, Starter::Efi), "device names")
    else {
        return;
    };
    let (found, code) = report(&image);
    // virtio-scsi keeps the names.
    assert_eq!(code, 0, "{found:#}");
    assert_eq!(found["verdict"]["bus"], "virtio-scsi");
    assert_eq!(found["verdict"]["firmware"], "uefi");
    assert_eq!(starts(&found, "virtio-blk"), "no");
    assert_eq!(starts(&found, "nvme"), "no");
    assert_eq!(starts(&found, "sata"), "yes");
    let text = said(&found);
    assert!(text.contains("write root=/dev/vda3"), "{text}");
    assert!(text.contains("/dev/nvme0n1p3"), "{text}");
    assert!(
        text.contains(&format!("sed -i '1s|^[^[:space:]]*|UUID={ROOT_UUID}|' /etc/fstab")),
        "{text}"
    );
    assert!(text.contains("add nofail"), "the second disk is missing: {text}");
}

#[test]
fn an_initial_ram_disk_for_one_machine_only() {
    let dir = tempfile::tempdir().unwrap();
    let system = Linux { initramfs: vec!["ahci", "sd_mod"], host_only: true, ..Linux::default() };
    let Some(image) = made(guest::linux(dir.path(), "d", &system, Starter::Bios), "dracut") else {
        return;
    };
    let (found, code) = report(&image);
    assert_eq!(code, 2, "{found:#}");
    assert_eq!(found["verdict"]["outcome"], "boots-other");
    assert_eq!(found["verdict"]["bus"], "sata");
    let kernel = &found["operating-systems"][0]["kernels"][0];
    assert_eq!(kernel["initramfs"]["generator"], "dracut");
    assert_eq!(kernel["initramfs"]["host-only"], true);
    assert_eq!(kernel["drivers"]["virtio_blk"], "module");
    let wanted =
        format!("dracut --force --add-drivers \\\"virtio_pci virtio_blk\\\" --kver {KERNEL}");
    assert!(said(&found).contains(&wanted), "{}", said(&found));
    assert!(found["verdict"]["command"].to_string().contains("ide-hd"));
}

#[test]
fn drivers_in_the_kernel_need_no_initial_ram_disk() {
    let dir = tempfile::tempdir().unwrap();
    let system = Linux {
        initramfs: Vec::new(),
        built_in: vec!["virtio-pci", "virtio_blk"],
        ..Linux::default()
    };
    let Some(image) =
        made(guest::linux(dir.path(), "d", &system, Starter::Bios), "built-in drivers")
    else {
        return;
    };
    let (found, code) = report(&image);
    assert_eq!((code, starts(&found, "sata").as_str()), (0, "no"));
    assert!(said(&found).contains("update-initramfs -u -k"));
}

#[test]
fn boot_entries_that_stayed_in_the_old_machine() {
    let dir = tempfile::tempdir().unwrap();
    let disk = |name: &str, starter| {
        made(guest::linux(dir.path(), name, &Linux::default(), starter), "UEFI")
    };
    let Some(image) = disk("unlisted", Starter::EfiUnlisted) else { return };
    let (found, code) = report(&image);
    assert_eq!(code, 3, "{found:#}");
    assert!(said(&found).contains("grub-install --target=x86_64-efi --removable"));
    let Some(image) = disk("listed", Starter::Efi) else { return };
    let (found, code) = report(&image);
    assert_eq!((code, &found["verdict"]["firmware"]), (0, &"uefi".into()));
    let Some(image) = disk("none", Starter::None) else { return };
    let (found, code) = report(&image);
    assert_eq!(code, 3);
    assert!(said(&found).contains("no boot loader"));
}

#[test]
fn what_the_network_holds_on_to() {
    let dir = tempfile::tempdir().unwrap();
    let rule = "SUBSYSTEM==\"net\", ACTION==\"add\", ATTR{address}==\"00:50:56:aa:bb:cc\", NAME=\"eth0\"\n";
    let netplan = "network:\n  ethernets:\n    ens192:\n      dhcp4: true\n  version: 2\n";
    let system = Linux {
        files: vec![
            ("etc/udev/rules.d/70-persistent-net.rules".to_owned(), rule.to_owned()),
            ("etc/netplan/50-cloud-init.yaml".to_owned(), netplan.to_owned()),
            ("usr/bin/vmtoolsd".to_owned(), String::new()),
            ("etc/selinux/config".to_owned(), "SELINUX=enforcing\n".to_owned()),
        ],
        ..Linux::default()
    };
    let Some(image) = made(guest::linux(dir.path(), "d", &system, Starter::Bios), "networks")
    else {
        return;
    };
    let (found, code) = report(&image);
    assert_eq!(code, 0);
    let text = said(&found);
    assert!(text.contains("mac=00:50:56:aa:bb:cc"), "{text}");
    assert!(text.contains("rm /etc/udev/rules.d/70-persistent-net.rules"), "{text}");
    assert!(text.contains("configures ens192"), "{text}");
    assert!(text.contains("open-vm-tools") && text.contains("autorelabel"), "{text}");
}

/// Other file systems as the root: the same tree, the same answer.
#[test]
fn roots_on_xfs_and_btrfs() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("tree");
    Linux::default().write(&folder.join("@")).unwrap();
    if let Some(mkfs) = tools::find("mkfs.btrfs") {
        let image = dir.path().join("root.btrfs");
        std::fs::File::create(&image).unwrap().set_len(128 << 20).unwrap();
        let (a, b) = (folder.to_string_lossy().into_owned(), image.to_string_lossy().into_owned());
        must(&mkfs, dir.path(), &["-q", "-U", ROOT_UUID, "--rootdir", &a, &b]).unwrap();
        if let Some(disk) = made(guest::disk(dir.path(), "b", &image, Starter::Bios), "btrfs") {
            let (found, code) = report(&disk);
            assert_eq!(code, 0, "{found:#}");
            assert_eq!(found["operating-systems"][0]["subvolume"], "@");
        }
    } else {
        tools::skip("a root on btrfs", "mkfs.btrfs is not installed");
    }
}

/// dracut's own initial RAM disk of a real kernel, where both can be had.
#[test]
fn a_real_initial_ram_disk() {
    let Some(dracut) = tools::find("dracut") else {
        return tools::skip("an initial RAM disk by dracut", "dracut is not installed");
    };
    let dir = tempfile::tempdir().unwrap();
    let Some(tree) = kernel_package(dir.path()) else {
        return tools::skip("an initial RAM disk by dracut", "no kernel package can be had");
    };
    let modules = tree.join("lib/modules");
    let version = std::fs::read_dir(&modules).unwrap().next().unwrap().unwrap().file_name();
    let version = version.into_string().unwrap();
    must(&tools::find("depmod").unwrap(), dir.path(), &["-b", &tree.to_string_lossy(), &version])
        .unwrap();
    for (name, args, host_only) in [
        ("all", &["--no-hostonly"][..], false),
        ("few", &["--hostonly", "--drivers", "ext4"], true),
    ] {
        let out = dir.path().join(name).to_string_lossy().into_owned();
        let folder = modules.join(&version).to_string_lossy().into_owned();
        let mut all =
            vec!["--force", "--quiet", "--kmoddir", &folder, "--kver", &version, "--tmpdir"];
        let temporary = dir.path().to_string_lossy().into_owned();
        all.push(&temporary);
        all.extend(args);
        all.push(&out);
        let made = std::process::Command::new(&dracut).args(&all).output().unwrap();
        if !Path::new(&out).exists() {
            let why = String::from_utf8_lossy(&made.stderr).into_owned();
            return tools::skip("an initial RAM disk by dracut", &why);
        }
        let root = dir.path().join(format!("{name}.root"));
        Linux::default().write(&root).unwrap();
        std::fs::copy(&out, root.join(format!("boot/initrd.img-{KERNEL}"))).unwrap();
        std::fs::remove_dir_all(root.join("lib/modules").join(KERNEL)).unwrap();
        std::fs::create_dir_all(root.join("lib/modules").join(KERNEL)).unwrap();
        for file in ["modules.builtin", "modules.dep"] {
            let from = modules.join(&version).join(file);
            std::fs::copy(from, root.join("lib/modules").join(KERNEL).join(file)).unwrap();
        }
        let work = dir.path().join(format!("{name}.work"));
        std::fs::create_dir_all(&work).unwrap();
        let image = guest::ext4(&work, &root)
            .and_then(|e| guest::disk(dir.path(), &format!("{name}.img"), &e, Starter::Bios));
        let Some(disk) = made_or(image) else { return };
        let (found, _) = report(&disk);
        let kernel = &found["operating-systems"][0]["kernels"][0];
        assert_eq!(kernel["initramfs"]["generator"], "dracut", "{kernel:#}");
        assert_eq!(kernel["initramfs"]["host-only"], host_only, "{kernel:#}");
        assert!(kernel["initramfs"]["damaged"].is_null(), "{kernel:#}");
        let virtio = kernel["drivers"]["virtio_blk"].as_str().unwrap();
        assert_eq!(virtio != "module", !host_only, "{kernel:#}");
    }
}

fn made_or(result: Result<PathBuf, String>) -> Option<PathBuf> {
    made(result, "an initial RAM disk by dracut")
}

/// Debian's kernel for clouds, unpacked.
fn kernel_package(dir: &Path) -> Option<PathBuf> {
    let apt = tools::find("apt-get")?;
    let cache = tools::find("apt-cache")?;
    let text = must(&cache, dir, &["depends", "linux-image-cloud-amd64"]).ok()?;
    let name = text.lines().find_map(|l| l.trim().strip_prefix("Depends: "))?.to_owned();
    let done = suite::process::Invocation::new(apt, dir)
        .args(["download", "-q", &name])
        .time_limit(std::time::Duration::from_secs(120))
        .run();
    done.ok().filter(suite::process::Outcome::success)?;
    let package = std::fs::read_dir(dir)
        .ok()?
        .flatten()
        .find(|e| e.file_name().to_string_lossy().ends_with(".deb"))?;
    let tree = dir.join("kernel");
    let package = package.path().to_string_lossy().into_owned();
    must(&tools::find("dpkg-deb")?, dir, &["-x", &package, &tree.to_string_lossy()]).ok()?;
    Some(tree)
}

#[test]
fn disks_without_a_system() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::File::create(dir.path().join("empty")).unwrap().set_len(8 << 20).unwrap();
    std::fs::write(dir.path().join("tiny"), b"x").unwrap();
    std::fs::write(dir.path().join("nothing"), b"").unwrap();
    for name in ["empty", "tiny", "nothing"] {
        let (found, code) = report(&dir.path().join(name));
        assert_eq!((code, &found["verdict"]["outcome"]), (3, &"no-system".into()), "{name}");
    }
    let none = rimg(dir.path(), &["inspect", "missing"]).unwrap();
    assert_eq!(exit(&none), 1);
}

// Windows.

const SOFTWARE: &str = "[PREFIX\\Microsoft\\Windows NT\\CurrentVersion]\n\
\"ProductName\"=str(1):\"Windows 10 Pro\"\n\"CurrentBuildNumber\"=str(1):\"22631\"\n\"CurrentBuild\"=str(1):\"22631\"\n\
\"CurrentMajorVersionNumber\"=dword:0000000a\n\"CurrentMinorVersionNumber\"=dword:00000000\n\"DisplayVersion\"=str(1):\"23H2\"\n";

/// A Windows with these services: name, Start, whether the file is there.
fn windows(
    dir: &Path,
    services: &[(&str, u32, bool)],
    extra: &str,
    hiberfil: bool,
) -> Result<PathBuf, String> {
    let need = |t: &str| tools::find(t).ok_or(format!("{t} is not installed"));
    let (wim, mkntfs) = (need("wimlib-imagex")?, need("mkntfs")?);
    let mut system = "[PREFIX\\Select]\n\"Current\"=dword:00000001\n\n\
        [PREFIX\\ControlSet001\\Control\\ComputerName\\ComputerName]\n\"ComputerName\"=str(1):\"OLD-PC\"\n\n"
        .to_owned();
    for (name, start, _) in services {
        system.push_str(&format!(
            "[PREFIX\\ControlSet001\\Services\\{name}]\n\"Start\"=dword:{start:08x}\n\n"
        ));
    }
    system.push_str(extra);
    let tree = dir.join("windows");
    let put = |path: &str, data: &[u8]| {
        let path = tree.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, data).unwrap();
    };
    put("Windows/System32/config/SOFTWARE", &guest::hive(dir, "software", SOFTWARE)?);
    put("Windows/System32/config/SYSTEM", &guest::hive(dir, "system", &system)?);
    for (name, _, file) in services {
        if *file {
            put(&format!("Windows/System32/drivers/{name}.sys"), b"MZ");
        }
    }
    put("Boot/BCD", b"regf");
    let (archive, ntfs) = (dir.join("w.wim"), dir.join("w.ntfs"));
    std::fs::File::create(&ntfs).unwrap().set_len(48 << 20).unwrap();
    let text = |p: &Path| p.to_string_lossy().into_owned();
    must(&wim, dir, &["capture", &text(&tree), &text(&archive), "--no-acls", "--compress=none"])?;
    must(&mkntfs, dir, &["-F", "-Q", "-q", "-L", "System", &text(&ntfs)])?;
    must(&wim, dir, &["apply", &text(&archive), "1", &text(&ntfs)])?;
    if hiberfil {
        let page = dir.join("page");
        std::fs::write(&page, [b"HIBR".as_slice(), &[0; 4092]].concat())
            .map_err(|e| e.to_string())?;
        must(&need("ntfscp")?, dir, &["-f", "-q", &text(&ntfs), &text(&page), "/hiberfil.sys"])?;
    }
    // An MBR with an active partition, and programs that name what they start.
    let disk = dir.join("windows.img");
    let mut bytes = vec![0; 1 << 20];
    bytes[..3].copy_from_slice(&[0x33, 0xc0, 0x8e]);
    let message =
        b"Invalid partition table\0Error loading operating system\0Missing operating system";
    bytes[0x163..0x163 + message.len()].copy_from_slice(message);
    bytes[446..462].copy_from_slice(&[0x80, 0, 2, 0, 7, 0, 0, 0, 0, 8, 0, 0, 0, 0x80, 1, 0]);
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    let mut volume = std::fs::read(&ntfs).unwrap();
    let boot: Vec<u8> = "BOOTMGR".bytes().flat_map(|b| [b, 0]).collect();
    volume[514..514 + boot.len()].copy_from_slice(&boot);
    volume[510..512].copy_from_slice(&[0x55, 0xaa]);
    bytes.extend(volume);
    std::fs::write(&disk, bytes).unwrap();
    Ok(disk)
}

const INBOX: [(&str, u32, bool); 5] = [
    ("storahci", 0, true),
    ("stornvme", 3, true),
    ("intelide", 0, true),
    ("atapi", 0, true),
    ("disk", 0, true),
];

#[test]
fn windows_without_drivers_boots_on_sata() {
    let dir = tempfile::tempdir().unwrap();
    let Some(image) = made(windows(dir.path(), &INBOX, "", false), "Windows") else { return };
    let (found, code) = report(&image);
    assert_eq!(code, 2, "{found:#}");
    assert_eq!(found["verdict"]["bus"], "sata");
    assert_eq!(found["verdict"]["nic"], "e1000e");
    let system = &found["operating-systems"][0];
    assert_eq!(system["name"], "Windows 11 Pro");
    assert_eq!(system["build"], 22631);
    assert_eq!(system["hostname"], "OLD-PC");
    assert_eq!(found["boot"]["bios"]["loader"], "bootmgr");
    assert!(said(&found).contains("virtio-win.iso"), "{}", said(&found));
    assert_eq!(starts(&found, "nvme"), "no");
    assert_eq!(starts(&found, "ide"), "yes");
}

#[test]
fn windows_with_drivers_boots_on_virtio() {
    let dir = tempfile::tempdir().unwrap();
    let mut services = INBOX.to_vec();
    services.extend([("viostor", 0, true), ("vioscsi", 3, true), ("netkvm", 3, true)]);
    let Some(image) = made(windows(dir.path(), &services, "", false), "Windows") else { return };
    let (found, code) = report(&image);
    assert_eq!(code, 0, "{found:#}");
    assert_eq!(found["verdict"]["bus"], "virtio-blk");
    assert_eq!(found["verdict"]["nic"], "virtio-net-pci");
    assert_eq!(starts(&found, "virtio-scsi"), "no");
}

#[test]
fn a_hibernated_windows_does_not_move() {
    let dir = tempfile::tempdir().unwrap();
    let over = "[PREFIX\\ControlSet001\\Services\\storahci\\StartOverride]\n\"0\"=dword:00000003\n";
    let disk = windows(dir.path(), &INBOX, over, true);
    let Some(image) = made(disk, "Windows") else { return };
    let (found, code) = report(&image);
    assert_eq!(code, 3, "{found:#}");
    assert!(said(&found).contains("powercfg /h off"));
    assert!(said(&found).contains("StartOverride 3"), "{}", said(&found));
    assert_eq!(starts(&found, "sata"), "no");
}
