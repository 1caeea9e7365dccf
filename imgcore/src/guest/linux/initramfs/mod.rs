//! What an initial RAM disk holds (the kernel's `Documentation/driver-api/early-userspace/buffer-format.rst`):
//! one cpio archive after another, plain or packed, with zeroes between them.
//!
//! Only names are kept, and the few small files that say how it was made; nothing is unpacked to disk.

mod cpio;
mod unpack;

use std::collections::BTreeSet;
use std::io::{BufRead, Read};

use serde::Serialize;

use unpack::Packing;

use super::module_name;
use crate::{Error, Result};

/// Bytes of all archives together, unpacked.
const MAX_UNPACKED: u64 = 2 << 30;
/// Archives in one file.
const MAX_ARCHIVES: usize = 64;

/// Which program made it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Generator {
    /// dracut: Fedora, RHEL and its kin, SUSE.
    Dracut,
    /// initramfs-tools: Debian, Ubuntu.
    InitramfsTools,
    /// mkinitcpio: Arch.
    Mkinitcpio,
    /// mkinitfs: Alpine.
    Mkinitfs,
    /// Something else.
    #[default]
    Unknown,
}

/// What an initial RAM disk holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Initramfs {
    /// Who made it.
    pub generator: Generator,
    /// Made for the hardware it was made on only: drivers for other disks are left out on purpose.
    pub host_only: bool,
    /// An archive with microcode for the processor comes first.
    pub microcode: bool,
    /// How its archives are packed.
    pub packing: Vec<&'static str>,
    /// Files in it.
    pub files: u64,
    /// Kernel modules, as `lsmod` shows their names.
    #[serde(skip)]
    pub modules: BTreeSet<String>,
    /// Modules that its list says are part of the kernel.
    #[serde(skip)]
    pub built_in: BTreeSet<String>,
    /// Where it ends before its end: it is damaged, and what it holds is not all known.
    pub damaged: Option<String>,
}

/// Reads all of it.
///
/// # Errors
/// When its first archive cannot be read at all. Damage further in is said in
/// [`Initramfs::damaged`].
pub fn look(input: &mut dyn BufRead) -> Result<Initramfs> {
    let mut found = Initramfs::default();
    let mut left = MAX_UNPACKED;
    for archive in 0..=MAX_ARCHIVES {
        let before = found.files;
        let result = match unpack::skip_zeroes(input) {
            Ok(false) => break,
            Ok(true) if archive == MAX_ARCHIVES => {
                Err(std::io::Error::other(format!("it has more than {MAX_ARCHIVES} archives")))
            }
            Ok(true) => one(input, &mut found, &mut left),
            Err(e) => Err(e),
        };
        if let Err(e) = result {
            let text = e.to_string();
            if archive == 0 && found.files == before {
                return Err(Error::corrupt(format!("the initial RAM disk cannot be read: {text}")));
            }
            found.damaged = Some(text);
            break;
        }
    }
    found.conclude();
    Ok(found)
}

fn one(input: &mut dyn BufRead, found: &mut Initramfs, left: &mut u64) -> std::io::Result<()> {
    // What the reader has in its buffer may be shorter than a magic number.
    let mut head = [0; unpack::MAGIC];
    input.read_exact(&mut head)?;
    let packing = unpack::packing(&head)?;
    if !found.packing.contains(&packing.name()) {
        found.packing.push(packing.name());
    }
    let mut input = head.chain(input);
    if packing == Packing::Cpio {
        let mut stream = (&mut input).take(*left);
        let result = cpio::read(&mut stream, &mut |name, data| found.take(name, data));
        *left = stream.limit();
        return result;
    }
    unpack::unpacked(packing, &mut input, left, &mut |stream| {
        while unpack::skip_zeroes(stream)? {
            cpio::read(stream, &mut |name, data| found.take(name, data))?;
        }
        Ok(())
    })
}

impl Initramfs {
    /// Whether it wants to see a file's content.
    fn take(&mut self, name: &str, content: Option<&[u8]>) -> bool {
        let name = name.trim_start_matches("./").trim_start_matches('/');
        let Some(content) = content else {
            return self.name(name);
        };
        let text = String::from_utf8_lossy(content);
        if name.ends_with("modules.builtin") {
            self.built_in.extend(text.lines().filter_map(module_name));
        } else if name.ends_with("build-parameter.txt") {
            let words: Vec<&str> = text.split_whitespace().map(|w| w.trim_matches('\'')).collect();
            let has = |a: &str, b: &str| words.contains(&a) || words.contains(&b);
            self.host_only |= has("-H", "--hostonly") && !has("-N", "--no-hostonly");
        }
        false
    }

    fn name(&mut self, name: &str) -> bool {
        self.files += 1;
        if name.contains(".ko") {
            self.modules.extend(module_name(name));
        }
        if name.starts_with("kernel/x86/microcode/") {
            self.microcode = true;
        }
        let file = name.rsplit('/').next().unwrap_or(name);
        match file {
            "dracut-lib.sh" | "dracut-util" => self.generator = Generator::Dracut,
            "hostonly-kernel-modules.txt" | "hostonly-files" => self.host_only = true,
            "initramfs.conf" => self.generator = Generator::InitramfsTools,
            "buildconfig" if name == "buildconfig" => self.generator = Generator::Mkinitcpio,
            "initramfs-init" => self.generator = Generator::Mkinitfs,
            _ => {}
        }
        if name == "scripts/functions" && self.generator == Generator::Unknown {
            self.generator = Generator::InitramfsTools;
        }
        file == "modules.builtin" || file == "build-parameter.txt"
    }

    fn conclude(&mut self) {
        // dracut leaves hundreds of drivers in a general image; one for one machine has some dozens.
        if self.generator == Generator::Dracut && !self.host_only {
            let disks = ["ahci", "nvme", "virtio_blk", "virtio_scsi", "mptsas", "megaraid_sas"];
            let have = disks.iter().filter(|d| self.modules.contains(**d)).count();
            let built_in = disks.iter().filter(|d| self.built_in.contains(**d)).count();
            self.host_only = have + built_in < 3;
        }
    }
}

#[cfg(test)]
mod tests;
