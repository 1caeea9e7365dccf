//! Disks with installed systems, put together from real parts: file systems by their own tools, GRUB's
//! own boot sectors, registry hives by hivex, initial RAM disks by cpio or dracut.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::process::must;
use crate::tools;

/// The version of the kernel that the made systems have.
pub const KERNEL: &str = "6.1.0-99-amd64";
/// The UUID of their root.
pub const ROOT_UUID: &str = "3e2d5b1a-0000-4000-8000-123456789abc";

/// What a Linux is like.
#[derive(Debug, Clone)]
pub struct Linux {
    /// What `root=` says.
    pub root: String,
    /// fstab.
    pub fstab: String,
    /// Modules in the initial RAM disk.
    pub initramfs: Vec<&'static str>,
    /// Modules built in.
    pub built_in: Vec<&'static str>,
    /// The initial RAM disk is one of dracut's for one machine.
    pub host_only: bool,
    /// Further files: path and content.
    pub files: Vec<(String, String)>,
}

impl Default for Linux {
    fn default() -> Self {
        Linux {
            root: format!("UUID={ROOT_UUID}"),
            fstab: format!("UUID={ROOT_UUID} / ext4 defaults 0 1\n"),
            initramfs: vec![
                "virtio_pci",
                "virtio_blk",
                "virtio_scsi",
                "sd_mod",
                "nvme",
                "ahci",
                "ata_piix",
            ],
            built_in: Vec::new(),
            host_only: false,
            files: Vec::new(),
        }
    }
}

impl Linux {
    /// Writes the system's files into a folder.
    ///
    /// # Errors
    /// A sentence saying what failed.
    pub fn write(&self, at: &Path) -> Result<(), String> {
        let put = |name: &str, data: &[u8]| {
            let path = at.join(name);
            let done = path
                .parent()
                .map_or(Ok(()), fs::create_dir_all)
                .and_then(|()| fs::write(&path, data));
            done.map_err(|e| format!("{}: {e}", path.display()))
        };
        let text = "ID=debian\nVERSION_ID=\"12\"\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n";
        put("usr/lib/os-release", text.as_bytes())?;
        fs::create_dir_all(at.join("etc")).map_err(|e| e.to_string())?;
        std::os::unix::fs::symlink("../usr/lib/os-release", at.join("etc/os-release"))
            .map_err(|e| e.to_string())?;
        put("etc/passwd", b"root:x:0:0::/root:/bin/sh\n")?;
        put("etc/hostname", b"old-machine\n")?;
        put("etc/fstab", self.fstab.as_bytes())?;
        let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
        elf.resize(64, 0);
        elf[18] = 62;
        put("bin/sh", &elf)?;
        put(&format!("boot/vmlinuz-{KERNEL}"), &kernel(KERNEL))?;
        let all = [
            "virtio_pci",
            "virtio_blk",
            "virtio_scsi",
            "virtio_net",
            "sd_mod",
            "nvme",
            "ahci",
            "ata_piix",
            "e1000",
        ];
        let dep = all.iter().fold(String::new(), |mut t, m| {
            let _ = writeln!(t, "kernel/drivers/x/{m}.ko:");
            t
        });
        put(&format!("lib/modules/{KERNEL}/modules.dep"), dep.as_bytes())?;
        let built_in: String = self.built_in.iter().map(|m| format!("kernel/x/{m}.ko\n")).collect();
        put(&format!("lib/modules/{KERNEL}/modules.builtin"), built_in.as_bytes())?;
        let menu = format!(
            "set default=\"0\"\nmenuentry 'Debian' $menuentry_id_option 'one' {{\n\tlinux /boot/vmlinuz-{KERNEL} \
             root={} ro quiet\n\tinitrd /boot/initrd.img-{KERNEL}\n}}\n",
            self.root
        );
        put("boot/grub/grub.cfg", menu.as_bytes())?;
        for (name, text) in &self.files {
            put(name, text.as_bytes())?;
        }
        let folder = at.with_extension("initramfs");
        fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
        let initrd = self.initramfs(&folder)?;
        put(&format!("boot/initrd.img-{KERNEL}"), &initrd)
    }

    /// By cpio, with microcode before it as Debian and Fedora have it.
    fn initramfs(&self, at: &Path) -> Result<Vec<u8>, String> {
        let mut files: Vec<String> = self
            .initramfs
            .iter()
            .map(|m| {
                format!("usr/lib/modules/{KERNEL}/kernel/drivers/x/{}.ko.xz", m.replace('_', "-"))
            })
            .collect();
        files.push("init".to_owned());
        if self.host_only {
            files.push("usr/lib/dracut-lib.sh".to_owned());
            files.push("lib/dracut/hostonly-files".to_owned());
        } else {
            files.push("scripts/functions".to_owned());
        }
        let early =
            archive(&at.join("early"), &["kernel/x86/microcode/GenuineIntel.bin".to_owned()])?;
        let main = archive(&at.join("main"), &files)?;
        let packed = filter("gzip", &["-c"], &main)?;
        Ok([early, packed].concat())
    }
}

/// A kernel as far as anybody looks: the boot protocol's header and the version it names.
fn kernel(version: &str) -> Vec<u8> {
    let mut image = vec![0; 0x4000];
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x20e..0x210].copy_from_slice(&0x3000u16.to_le_bytes());
    let text = format!("{version} (maker@host) #1 SMP\0");
    image[0x3200..0x3200 + text.len()].copy_from_slice(text.as_bytes());
    image
}

fn archive(at: &Path, files: &[String]) -> Result<Vec<u8>, String> {
    for name in files {
        let path = at.join(name);
        path.parent().map_or(Ok(()), fs::create_dir_all).map_err(|e| e.to_string())?;
        fs::write(&path, name.repeat(50)).map_err(|e| e.to_string())?;
    }
    let cpio = tools::find("cpio").ok_or("cpio is not installed")?;
    let list = files.join("\n");
    let mut child = Command::new(cpio)
        .args(["-o", "-H", "newc", "--quiet"])
        .current_dir(at)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| e.to_string())?;
    child.stdin.take().ok_or("no stdin")?.write_all(list.as_bytes()).map_err(|e| e.to_string())?;
    let out = child.wait_with_output().map_err(|e| e.to_string())?;
    if out.status.success() { Ok(out.stdout) } else { Err("cpio failed".to_owned()) }
}

fn filter(program: &str, args: &[&str], data: &[u8]) -> Result<Vec<u8>, String> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| format!("{program}: {e}"))?;
    let mut stdin = child.stdin.take().ok_or("no stdin")?;
    let data = data.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&data));
    let out = child.wait_with_output().map_err(|e| e.to_string())?;
    let _ = writer.join();
    Ok(out.stdout)
}

/// What a disk has beside its root.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Starter {
    /// GRUB for a BIOS, in the MBR and a BIOS boot partition.
    #[default]
    Bios,
    /// An EFI system partition with `/EFI/BOOT/BOOTX64.EFI`.
    Efi,
    /// An EFI system partition with the distribution's folder only.
    EfiUnlisted,
    /// Nothing.
    None,
}

/// A disk with one root partition: the third of a GPT.
///
/// # Errors
/// A sentence saying what is missing or failed.
pub fn disk(dir: &Path, name: &str, root: &Path, starter: Starter) -> Result<PathBuf, String> {
    let need = |tool: &str| tools::find(tool).ok_or(format!("{tool} is not installed"));
    let image = dir.join(name);
    let mib = 1u64 << 20;
    let root_size = fs::metadata(root).map_err(|e| e.to_string())?.len();
    let mut options = fs::OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true);
    let file = options.open(&image).map_err(|e| e.to_string())?;
    file.set_len(root_size + 40 * mib).map_err(|e| e.to_string())?;
    let sectors = root_size / 512;
    let third = format!("-n3:75776:+{sectors}");
    let text = image.to_string_lossy().into_owned();
    let mut args =
        vec!["-n1:2048:4095", "-t1:ef02", "-n2:4096:+34M", "-t2:ef00", third.as_str(), "-t3:8300"];
    args.push(&text);
    must(&need("sgdisk")?, dir, &args)?;
    copy(root, &file, 75776 * 512)?;
    match starter {
        Starter::None => {}
        Starter::Bios => grub(&file)?,
        Starter::Efi | Starter::EfiUnlisted => {
            let esp = dir.join(format!("{name}.esp"));
            fs::File::create(&esp).and_then(|f| f.set_len(33 * mib)).map_err(|e| e.to_string())?;
            let esp_text = esp.to_string_lossy().into_owned();
            must(&need("mkfs.vfat")?, dir, &["-F", "32", "-n", "ESP", &esp_text])?;
            let program = dir.join("program.efi");
            fs::write(&program, b"MZ").map_err(|e| e.to_string())?;
            let program = program.to_string_lossy().into_owned();
            let (mmd, mcopy) = (need("mmd")?, need("mcopy")?);
            must(&mmd, dir, &["-i", &esp_text, "::/EFI", "::/EFI/BOOT", "::/EFI/debian"])?;
            must(&mcopy, dir, &["-i", &esp_text, &program, "::/EFI/debian/grubx64.efi"])?;
            if starter == Starter::Efi {
                must(&mcopy, dir, &["-i", &esp_text, &program, "::/EFI/BOOT/BOOTX64.EFI"])?;
            }
            copy(&esp, &file, 4096 * 512)?;
        }
    }
    Ok(image)
}

fn copy(from: &Path, to: &fs::File, at: u64) -> Result<(), String> {
    let data = fs::read(from).map_err(|e| e.to_string())?;
    for (i, piece) in data.chunks(1 << 20).enumerate() {
        if piece.iter().any(|b| *b != 0) {
            to.write_all_at(piece, at + ((i as u64) << 20)).map_err(|e| e.to_string())?;
        }
    }
    Ok(())
}

/// GRUB's own first sector, where it is installed, or one with its name; and something in the partition it
/// leads to.
fn grub(disk: &fs::File) -> Result<(), String> {
    let mut first = vec![0; 512];
    disk.read_exact_at(&mut first, 0).map_err(|e| e.to_string())?;
    match fs::read("/usr/lib/grub/i386-pc/boot.img") {
        Ok(boot) if boot.len() >= 440 => first[..440].copy_from_slice(&boot[..440]),
        _ => {
            first[..2].copy_from_slice(&[0xeb, 0x63]);
            first[0x180..0x185].copy_from_slice(b"GRUB ");
        }
    }
    first[0x5c..0x64].copy_from_slice(&2048u64.to_le_bytes());
    first[510..].copy_from_slice(&[0x55, 0xaa]);
    disk.write_all_at(&first, 0).map_err(|e| e.to_string())?;
    disk.write_all_at(&[0x90; 4096], 2048 * 512).map_err(|e| e.to_string())
}

/// A folder as an ext4 file system.
///
/// # Errors
/// A sentence saying what is missing or failed.
pub fn ext4(dir: &Path, folder: &Path) -> Result<PathBuf, String> {
    let tool = tools::find("mke2fs").ok_or("mke2fs is not installed")?;
    let image = dir.join("root.ext4");
    fs::File::create(&image).and_then(|f| f.set_len(48 << 20)).map_err(|e| e.to_string())?;
    let (text, from) =
        (image.to_string_lossy().into_owned(), folder.to_string_lossy().into_owned());
    must(
        &tool,
        dir,
        &["-q", "-F", "-t", "ext4", "-U", ROOT_UUID, "-L", "root", "-d", &from, &text],
    )?;
    Ok(image)
}

/// A Linux on a disk.
///
/// # Errors
/// A sentence saying what is missing or failed.
pub fn linux(dir: &Path, name: &str, system: &Linux, starter: Starter) -> Result<PathBuf, String> {
    let work = dir.join(format!("{name}.work"));
    let folder = work.join("tree");
    fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
    system.write(&folder)?;
    let root = ext4(&work, &folder)?;
    disk(dir, name, &root, starter)
}

/// An empty registry hive, into which `hivexregedit` merges keys: a header, and one bin with the root key
/// and its security descriptor.
#[must_use]
pub fn empty_hive() -> Vec<u8> {
    let mut out = vec![0; 8192];
    let put32 = |out: &mut Vec<u8>, at: usize, value: u32| {
        out[at..at + 4].copy_from_slice(&value.to_le_bytes());
    };
    out[..4].copy_from_slice(b"regf");
    for (at, value) in
        [(4, 1), (8, 1), (0x14, 1), (0x18, 5), (0x20, 1), (0x24, 0x20), (0x28, 4096), (0x2c, 1)]
    {
        put32(&mut out, at, value);
    }
    let bin = 4096;
    out[bin..bin + 4].copy_from_slice(b"hbin");
    put32(&mut out, bin + 8, 4096);
    // The root key: 0x50 bytes of header and its name, in a cell of 0x60.
    let key = bin + 0x20;
    put32(&mut out, key, (-0x60i32).cast_unsigned());
    out[key + 4..key + 6].copy_from_slice(b"nk");
    out[key + 6..key + 8].copy_from_slice(&0x2cu16.to_le_bytes());
    put32(&mut out, key + 4 + 0x10, u32::MAX);
    for at in [0x1c, 0x20, 0x28, 0x30] {
        put32(&mut out, key + 4 + at, u32::MAX);
    }
    put32(&mut out, key + 4 + 0x2c, 0x80);
    out[key + 4 + 0x48] = 4;
    out[key + 4 + 0x4c..key + 4 + 0x50].copy_from_slice(b"ROOT");
    // Its security: linked to itself, with an empty descriptor.
    let security = bin + 0x80;
    put32(&mut out, security, (-0x30i32).cast_unsigned());
    out[security + 4..security + 6].copy_from_slice(b"sk");
    for (at, value) in [(4, 0x80), (8, 0x80), (12, 1), (16, 0x14)] {
        put32(&mut out, security + 4 + at, value);
    }
    out[security + 4 + 20] = 1;
    let rest = bin + 0xb0;
    put32(&mut out, rest, 4096 - 0xb0);
    let sum = out[..508]
        .chunks_exact(4)
        .fold(0u32, |s, c| s ^ u32::from_le_bytes([c[0], c[1], c[2], c[3]]));
    put32(&mut out, 508, sum);
    out
}

/// A hive with the keys of a `.reg` text, whose paths begin below `\\PREFIX`.
///
/// # Errors
/// A sentence saying what is missing or failed.
pub fn hive(dir: &Path, name: &str, keys: &str) -> Result<Vec<u8>, String> {
    let tool = tools::find("hivexregedit").ok_or("hivexregedit is not installed")?;
    let (file, text) = (dir.join(name), dir.join(format!("{name}.reg")));
    fs::write(&file, empty_hive()).map_err(|e| e.to_string())?;
    // hivexregedit wants every key's parent to be there.
    let mut all = "Windows Registry Editor Version 5.00\n\n".to_owned();
    for line in keys.lines() {
        if let Some(path) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            for (at, _) in path.match_indices('\\').skip(1) {
                let _ = writeln!(all, "[{}]\n", &path[..at]);
            }
        }
        let _ = writeln!(all, "{line}");
    }
    fs::write(&text, all).map_err(|e| e.to_string())?;
    let (a, b) = (file.to_string_lossy().into_owned(), text.to_string_lossy().into_owned());
    must(&tool, dir, &["--merge", "--prefix", "PREFIX", &a, &b])?;
    fs::read(&file).map_err(|e| e.to_string())
}
