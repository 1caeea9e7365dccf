//! The answer: will it boot under KVM, on which bus, with which firmware and network card; and what to do
//! about what is in the way.

use serde::Serialize;

use crate::guest::boot::Boot;

/// What a disk can be attached to, the fastest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bus {
    /// virtio-blk
    VirtioBlk,
    /// virtio-scsi
    VirtioScsi,
    /// NVMe
    Nvme,
    /// AHCI
    Sata,
    /// The old parallel controller of the `pc` machine.
    Ide,
}

impl Bus {
    /// All of them.
    pub const ALL: [Bus; 5] = [Bus::VirtioBlk, Bus::VirtioScsi, Bus::Nvme, Bus::Sata, Bus::Ide];

    /// As people write it.
    pub fn name(self) -> &'static str {
        match self {
            Bus::VirtioBlk => "virtio-blk",
            Bus::VirtioScsi => "virtio-scsi",
            Bus::Nvme => "NVMe",
            Bus::Sata => "SATA",
            Bus::Ide => "IDE",
        }
    }

    /// Whether it is paravirtual.
    pub fn is_virtio(self) -> bool {
        matches!(self, Bus::VirtioBlk | Bus::VirtioScsi)
    }

    /// What Linux calls the first disk there.
    pub fn linux_disk(self) -> &'static str {
        match self {
            Bus::VirtioBlk => "vda",
            Bus::VirtioScsi | Bus::Sata | Bus::Ide => "sda",
            Bus::Nvme => "nvme0n1",
        }
    }
}

/// What starts the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Firmware {
    /// SeaBIOS or another one.
    Bios,
    /// OVMF or another one.
    Uefi,
}

/// How much something matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// The system does not start because of it.
    Blocker,
    /// It starts, but something will not work as before.
    Warning,
    /// Good to know.
    Note,
}

/// One finding, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Reason {
    /// How much it matters.
    pub level: Level,
    /// What is so.
    pub what: String,
    /// What to do about it: commands and edits, in order.
    pub remedy: Vec<String>,
}

impl Reason {
    /// A finding without a remedy yet.
    pub fn new(level: Level, what: impl Into<String>) -> Self {
        Reason { level, what: what.into(), remedy: Vec::new() }
    }

    /// It stops the system from starting.
    pub fn blocker(what: impl Into<String>) -> Self {
        Reason::new(Level::Blocker, what)
    }

    /// It disturbs.
    pub fn warning(what: impl Into<String>) -> Self {
        Reason::new(Level::Warning, what)
    }

    /// It is good to know.
    pub fn note(what: impl Into<String>) -> Self {
        Reason::new(Level::Note, what)
    }

    /// With one more step of the remedy.
    #[must_use]
    pub fn fix(mut self, step: impl Into<String>) -> Self {
        self.remedy.push(step.into());
        self
    }
}

/// Whether the system starts from a bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Starts {
    /// Yes.
    Yes,
    /// Nothing speaks against it, but its drivers could not be seen.
    Unknown,
    /// No, unless something is changed.
    No,
}

/// The answer for one bus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BusAnswer {
    /// Which.
    pub bus: Bus,
    /// Whether it starts.
    pub starts: Starts,
    /// What is in the way, or should be known.
    pub reasons: Vec<Reason>,
}

impl BusAnswer {
    /// From its reasons: blockers stop it.
    pub fn new(bus: Bus, reasons: Vec<Reason>) -> Self {
        let blocked = reasons.iter().any(|r| r.level == Level::Blocker);
        BusAnswer { bus, starts: if blocked { Starts::No } else { Starts::Yes }, reasons }
    }
}

/// In one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It boots as it is, on a virtio bus.
    BootsVirtio,
    /// It boots as it is, but not on virtio.
    BootsOther,
    /// It does not boot before something is changed.
    NeedsChange,
    /// No operating system was found.
    NoSystem,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Verdict {
    /// In one word.
    pub outcome: Outcome,
    /// The bus to take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bus: Option<Bus>,
    /// The firmware to take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub firmware: Option<Firmware>,
    /// The network card to take, as QEMU calls it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nic: Option<&'static str>,
    /// The answer for every bus.
    pub buses: Vec<BusAnswer>,
    /// What concerns the system on every bus, the weightiest first.
    pub reasons: Vec<Reason>,
    /// The command line that starts it so.
    pub command: Vec<String>,
}

/// What one installed system says for itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opinion {
    /// For each bus.
    pub buses: Vec<BusAnswer>,
    /// On every bus.
    pub reasons: Vec<Reason>,
    /// The best network card.
    pub nic: Option<&'static str>,
    /// It was installed for UEFI, as far as can be seen.
    pub prefers_efi: bool,
}

/// Puts the opinion of the system and what starts it together.
pub fn conclude(opinion: Option<Opinion>, boot: &Boot, disk: &Disk<'_>) -> Verdict {
    let mut reasons = Vec::new();
    let Some(opinion) = opinion else {
        return Verdict {
            outcome: Outcome::NoSystem,
            bus: None,
            firmware: None,
            nic: None,
            buses: Vec::new(),
            reasons: vec![Reason::blocker("no operating system was found")],
            command: Vec::new(),
        };
    };
    let firmware = firmware(&opinion, boot, &mut reasons);
    reasons.extend(opinion.reasons);
    reasons.sort_by_key(|r| r.level);
    let find = |s: Starts| opinion.buses.iter().find(|b| b.starts == s).map(|b| b.bus);
    let bus = find(Starts::Yes).or_else(|| find(Starts::Unknown));
    let blocked = reasons.iter().any(|r| r.level == Level::Blocker);
    let outcome = match bus {
        _ if blocked || firmware.is_none() => Outcome::NeedsChange,
        None => Outcome::NeedsChange,
        Some(bus) if bus.is_virtio() => Outcome::BootsVirtio,
        Some(_) => Outcome::BootsOther,
    };
    let shown_bus = bus.unwrap_or(Bus::VirtioBlk);
    let nic = opinion.nic.unwrap_or("virtio-net-pci");
    let command = disk.command(shown_bus, firmware.unwrap_or(Firmware::Bios), nic);
    Verdict { outcome, bus, firmware, nic: Some(nic), buses: opinion.buses, reasons, command }
}

fn firmware(opinion: &Opinion, boot: &Boot, reasons: &mut Vec<Reason>) -> Option<Firmware> {
    match (boot.by_bios(), boot.by_efi()) {
        (_, true) if opinion.prefers_efi => Some(Firmware::Uefi),
        (true, _) => {
            if boot.efi_unlisted() && opinion.prefers_efi {
                reasons.push(no_removable(Level::Note, boot));
            }
            Some(Firmware::Bios)
        }
        (false, true) => Some(Firmware::Uefi),
        (false, false) if boot.efi_unlisted() => {
            reasons.push(no_removable(Level::Blocker, boot));
            None
        }
        (false, false) => {
            let why = match &boot.bios.broken {
                Some(why) => format!("no boot loader: {why}"),
                None => "no boot loader was found, neither for a BIOS nor for UEFI".to_owned(),
            };
            reasons.push(
                Reason::blocker(why)
                    .fix("start it with the kernel from outside: rkvm -kernel VMLINUZ -initrd INITRD -append 'root=...'")
                    .fix("or install one from a rescue system: grub-install DISK (BIOS), grub-install --removable (UEFI)"),
            );
            None
        }
    }
}

/// Boot entries of UEFI are kept by the machine, not by the disk.
fn no_removable(level: Level, boot: &Boot) -> Reason {
    let program = boot.efi.programs.first().map_or("", String::as_str);
    Reason::new(
        level,
        format!(
            "its UEFI boot entry was stored in the old machine: there is no /EFI/BOOT/BOOTX64.EFI, only {program}"
        ),
    )
    .fix("inside of it: grub-install --target=x86_64-efi --removable (or bootctl install)")
    .fix(format!(
        "or in the firmware's menu: Boot Maintenance Manager, Boot From File, {}; then efibootmgr",
        program.replace('/', "\\")
    ))
}

/// The image, for the command line.
pub struct Disk<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its format.
    pub format: &'a str,
    /// Windows or another system that wants a local clock and Hyper-V's help.
    pub windows: bool,
}

impl Disk<'_> {
    /// The command line in the words that QEMU has for it, too.
    fn command(&self, bus: Bus, firmware: Firmware, nic: &str) -> Vec<String> {
        let mut all: Vec<String> = vec!["rkvm".into()];
        let mut say = |option: &str, value: &str| all.extend([option.to_owned(), value.to_owned()]);
        let old = bus == Bus::Ide && firmware == Firmware::Bios;
        say("-machine", if old { "pc" } else { "q35" });
        if self.windows {
            say("-cpu", "host,hv_relaxed,hv_vapic,hv_spinlocks=0x1fff,hv_time");
            say("-rtc", "base=localtime");
        } else {
            say("-cpu", "host");
        }
        say("-smp", "2");
        say("-m", if self.windows { "4096" } else { "2048" });
        if firmware == Firmware::Uefi {
            say("-drive", "if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd");
            say("-drive", "if=pflash,format=raw,file=OVMF_VARS_4M.fd");
        }
        let file = self.name.replace(',', ",,");
        say("-drive", &format!("file={file},format={},if=none,id=disk0", self.format));
        match bus {
            Bus::VirtioBlk => say("-device", "virtio-blk-pci,drive=disk0,bootindex=1"),
            Bus::VirtioScsi => {
                say("-device", "virtio-scsi-pci,id=scsi0");
                say("-device", "scsi-hd,bus=scsi0.0,drive=disk0,bootindex=1");
            }
            Bus::Nvme => say("-device", "nvme,serial=disk0,drive=disk0,bootindex=1"),
            Bus::Sata | Bus::Ide => say("-device", "ide-hd,bus=ide.0,drive=disk0,bootindex=1"),
        }
        say("-netdev", "bridge,id=net0,br=virbr0");
        say("-device", &format!("{nic},netdev=net0"));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::boot::{Bios, BiosLoader, Efi};

    fn boot(bios: bool, removable: bool, programs: bool) -> Boot {
        Boot {
            bios: Bios { loader: bios.then_some(BiosLoader::Grub), broken: None },
            efi: Efi {
                volume: None,
                programs: programs
                    .then(|| "/EFI/debian/grubx64.efi".to_owned())
                    .into_iter()
                    .collect(),
                removable: removable.then(|| "/EFI/BOOT/BOOTX64.EFI".to_owned()),
            },
        }
    }

    fn answer(bus: Bus, good: bool) -> BusAnswer {
        BusAnswer::new(bus, if good { Vec::new() } else { vec![Reason::blocker("x")] })
    }

    const DISK: Disk<'_> = Disk { name: "a,b.raw", format: "raw", windows: false };

    #[test]
    fn the_fastest_bus_that_starts() {
        let all = |good: [bool; 5]| Opinion {
            buses: Bus::ALL.iter().zip(good).map(|(b, g)| answer(*b, g)).collect(),
            ..Opinion::default()
        };
        for (good, outcome, bus) in [
            ([true; 5], Outcome::BootsVirtio, Some(Bus::VirtioBlk)),
            ([false, true, true, true, true], Outcome::BootsVirtio, Some(Bus::VirtioScsi)),
            ([false, false, false, true, true], Outcome::BootsOther, Some(Bus::Sata)),
            ([false; 5], Outcome::NeedsChange, None),
        ] {
            let verdict = conclude(Some(all(good)), &boot(true, false, false), &DISK);
            assert_eq!((verdict.outcome, verdict.bus), (outcome, bus));
            assert!(verdict.command.iter().any(|a| a.contains("file=a,,b.raw,format=raw")));
        }
        assert_eq!(conclude(None, &boot(true, true, true), &DISK).outcome, Outcome::NoSystem);
    }

    #[test]
    fn firmware_by_what_is_there() {
        let opinion = |prefers_efi| {
            Some(Opinion {
                buses: vec![answer(Bus::VirtioBlk, true)],
                prefers_efi,
                ..Opinion::default()
            })
        };
        for (there, prefers, firmware, outcome) in [
            (boot(true, false, false), false, Some(Firmware::Bios), Outcome::BootsVirtio),
            (boot(true, true, true), true, Some(Firmware::Uefi), Outcome::BootsVirtio),
            (boot(true, true, true), false, Some(Firmware::Bios), Outcome::BootsVirtio),
            (boot(false, true, true), false, Some(Firmware::Uefi), Outcome::BootsVirtio),
            (boot(false, false, true), true, None, Outcome::NeedsChange),
            (boot(false, false, false), false, None, Outcome::NeedsChange),
        ] {
            let verdict = conclude(opinion(prefers), &there, &DISK);
            assert_eq!((verdict.firmware, verdict.outcome), (firmware, outcome), "{there:?}");
        }
    }
}
