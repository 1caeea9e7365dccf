//! What starts the disk: programs in boot sectors for a BIOS, programs in the EFI system partition for UEFI.

use serde::Serialize;

use super::content::Content;
use super::files::Tree;
use super::parts::{Layout, PartitionType, Table, types};
use super::system::Volumes;
use super::volume::{Origin, Volume};
use super::{GuestDisk, parts};

/// Programs of an EFI system partition that are listed.
const MAX_PROGRAMS: usize = 100;

/// A program in a boot sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BiosLoader {
    /// GRUB 2 or its predecessor.
    Grub,
    /// LILO.
    Lilo,
    /// SYSLINUX, EXTLINUX, ISOLINUX.
    Syslinux,
    /// Windows, from Vista on.
    Bootmgr,
    /// Windows up to XP and Server 2003.
    Ntldr,
    /// A program that is not known here.
    Unknown,
}

/// What was found for a BIOS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Bios {
    /// The program that goes on from the first sector; absent where a BIOS finds nothing to start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loader: Option<BiosLoader>,
    /// Why it will not start, although something is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broken: Option<String>,
}

/// What was found for UEFI.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Efi {
    /// The volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    /// Its programs for starting systems.
    pub programs: Vec<String>,
    /// The one that firmware without a memory of its own finds: `/EFI/BOOT/BOOTX64.EFI`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub removable: Option<String>,
}

/// What starts the disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Boot {
    /// By a BIOS.
    pub bios: Bios,
    /// By UEFI.
    pub efi: Efi,
}

impl Boot {
    /// Whether a BIOS starts it.
    pub fn by_bios(&self) -> bool {
        self.bios.loader.is_some() && self.bios.broken.is_none()
    }

    /// Whether UEFI that has never seen it starts it.
    pub fn by_efi(&self) -> bool {
        self.efi.removable.is_some()
    }

    /// Whether there is something that UEFI could start, if it were told.
    pub fn efi_unlisted(&self) -> bool {
        self.efi.removable.is_none() && !self.efi.programs.is_empty()
    }
}

/// Looks at boot sectors and the EFI system partition.
pub fn look(disk: &GuestDisk, layout: &Layout, volumes: &Volumes) -> Boot {
    let mut boot = Boot { bios: bios(disk, layout, volumes), efi: efi(volumes) };
    let whole = Volume::whole(disk);
    if let Some(platforms) = el_torito(&whole) {
        // A disc, or a disk that is one: the catalogue counts when it is put in as a disc.
        if platforms.contains(&0) && boot.bios.loader.is_none() {
            boot.bios.loader = Some(BiosLoader::Syslinux);
        }
        if platforms.contains(&0xef) && boot.efi.removable.is_none() {
            boot.efi.removable = Some("El Torito".to_owned());
        }
    }
    boot
}

/// A boot sector's program, by the messages it holds.
fn program(sector: &[u8]) -> Option<BiosLoader> {
    let code = sector.get(..440)?;
    if sector.get(510..512) != Some(&[0x55, 0xaa]) || code.iter().all(|b| *b == 0) {
        return None;
    }
    let has = |text: &[u8]| sector.windows(text.len()).any(|w| w == text);
    Some(if has(b"GRUB") {
        BiosLoader::Grub
    } else if has(b"LILO") {
        BiosLoader::Lilo
    } else if has(b"SYSLINUX") || has(b"EXTLINUX") || has(b"isolinux") || has(b"ldlinux") {
        BiosLoader::Syslinux
    } else if has(b"BOOTMGR") {
        BiosLoader::Bootmgr
    } else if has(b"NTLDR") {
        BiosLoader::Ntldr
    } else {
        BiosLoader::Unknown
    })
}

fn bios(disk: &GuestDisk, layout: &Layout, volumes: &Volumes) -> Bios {
    let Ok(first) = disk.read(0, 512) else { return Bios::default() };
    let Some(found) = program(&first) else { return Bios::default() };
    let found = Bios { loader: Some(found), broken: None };
    match found.loader {
        Some(BiosLoader::Grub) => Bios { broken: grub_core(disk, layout, &first), ..found },
        // The generic programs start the active partition.
        Some(BiosLoader::Unknown) if layout.table != Table::None => {
            active(disk, layout).unwrap_or(Bios {
                loader: None,
                broken: Some("no partition is marked active, or it has no boot sector".to_owned()),
            })
        }
        // FAT without a system has a program that says so.
        Some(BiosLoader::Unknown)
            if volumes.all.iter().all(|v| v.contents.contains(&Content::Fat)) =>
        {
            let says = |text: &[u8]| first.windows(text.len()).any(|w| w == text);
            let none = says(b"not a bootable") || says(b"Non-System") || says(b"non-system");
            if none { Bios::default() } else { found }
        }
        _ => found,
    }
}

/// GRUB's first sector names the sector in which it goes on (`kernel_sector`, at 0x5c).
fn grub_core(disk: &GuestDisk, layout: &Layout, first: &[u8]) -> Option<String> {
    let has_bios_partition = layout.partitions.iter().any(|p| match &p.kind {
        PartitionType::Gpt(guid) => guid == types::BIOS_BOOT,
        PartitionType::Mbr(_) => false,
    });
    let sector = u64::from_le_bytes(first.get(0x5c..0x64)?.try_into().ok()?);
    let at = sector.checked_mul(512).filter(|at| *at > 0 && at.saturating_add(512) <= disk.len());
    let core = at.and_then(|at| disk.read(at, 512).ok());
    let there = core.is_some_and(|c| c.iter().any(|b| *b != 0));
    if there {
        return None;
    }
    let where_ = match layout.table {
        Table::Gpt(_) if !has_bios_partition => "; its BIOS boot partition is missing",
        _ => "",
    };
    Some(format!("GRUB's first sector leads to sector {sector}, where nothing is{where_}"))
}

fn active(disk: &GuestDisk, layout: &Layout) -> Option<Bios> {
    let partition = layout.partitions.iter().find(|p| p.bootable)?;
    let volume = Volume::partition(disk, partition).ok()?;
    let sector = volume.read(0, 512).ok()?;
    // EXTLINUX names itself in the second sector; NTFS's program reads BOOTMGR's name there, too.
    let mut all = sector.clone();
    all.extend(volume.read(512, 512).unwrap_or_default());
    let found = program(&sector)?;
    let has = |text: &[u8]| all.windows(text.len()).any(|w| w == text);
    let utf16 = |text: &str| text.bytes().flat_map(|b| [b, 0]).collect::<Vec<u8>>();
    let found = match found {
        BiosLoader::Unknown if has(b"LINUX") || has(b"ldlinux") => BiosLoader::Syslinux,
        BiosLoader::Unknown if has(&utf16("BOOTMGR")) || has(b"BOOTMGR") => BiosLoader::Bootmgr,
        BiosLoader::Unknown if has(&utf16("NTLDR")) || has(b"NTLDR") => BiosLoader::Ntldr,
        other => other,
    };
    Some(Bios { loader: Some(found), broken: None })
}

fn efi(volumes: &Volumes) -> Efi {
    let mut efi = Efi::default();
    let Some(opened) = volumes.efi_system().and_then(|i| volumes.all.get(i)) else { return efi };
    let Some(fs) = opened.fs.as_deref() else { return efi };
    efi.volume = Some(opened.volume.name());
    let tree = Tree::new(fs);
    for folder in tree.names("/EFI").into_iter().take(MAX_PROGRAMS) {
        for name in tree.names(&format!("/EFI/{folder}")) {
            let lower = name.to_lowercase();
            if !lower.ends_with(".efi") || efi.programs.len() >= MAX_PROGRAMS {
                continue;
            }
            let path = format!("/EFI/{folder}/{name}");
            if folder.eq_ignore_ascii_case("boot") && lower.starts_with("boot") && removable(&lower)
            {
                efi.removable = Some(path.clone());
            }
            efi.programs.push(path);
        }
    }
    efi
}

/// UEFI 2.10, table 3.2: the file for a processor.
fn removable(name: &str) -> bool {
    matches!(
        name,
        "bootx64.efi"
            | "bootaa64.efi"
            | "bootia32.efi"
            | "bootarm.efi"
            | "bootriscv64.efi"
            | "bootloongarch64.efi"
    )
}

/// Platforms in the boot catalogue of a disc ("El Torito" 1.0): 0 is a PC's BIOS, 0xef is UEFI.
fn el_torito(disk: &Volume) -> Option<Vec<u8>> {
    const SECTOR: u64 = 2048;
    let record = disk.read(17 * SECTOR, SECTOR).ok()?;
    if !record.starts_with(b"\0CD001\x01EL TORITO SPECIFICATION") {
        return None;
    }
    let at = u64::from(u32::from_le_bytes(record.get(0x47..0x4b)?.try_into().ok()?)) * SECTOR;
    let catalogue = disk.read(at, SECTOR).ok()?;
    let mut platforms = Vec::new();
    for (i, entry) in catalogue.chunks_exact(32).enumerate() {
        match (i, entry[0]) {
            (0, 1) | (_, 0x90 | 0x91) => platforms.push(entry[1]),
            (0, _) => return None,
            _ => {}
        }
    }
    Some(platforms)
}

/// What a volume is called by Linux on this disk if the disk is the first one of its bus: `sda2`, `vda2`,
/// `vg/lv`.
pub fn device_on(volume: &Volume, disk: &str) -> String {
    match volume.origin() {
        Origin::Disk => format!("/dev/{disk}"),
        Origin::Partition(parts::Partition { number, .. }) => {
            let p = if disk.ends_with(|c: char| c.is_ascii_digit()) { "p" } else { "" };
            format!("/dev/{disk}{p}{number}")
        }
        Origin::Logical { group, name, .. } => format!("/dev/{group}/{name}"),
    }
}
