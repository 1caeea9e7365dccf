//! The command line that starts an imported machine.

use super::machine::{Bus, Family, Firmware, Machine};

/// What disks and network cards become.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Devices {
    /// virtio where the system has drivers for it, as far as the description tells; else as described.
    #[default]
    Auto,
    /// virtio.
    Virtio,
    /// As described.
    Described,
}

/// UEFI for virtual machines, where Debian, Ubuntu and Fedora put it.
const OVMF: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const OVMF_SECURE: &str = "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd";

/// Makes the arguments, the program's name first.
pub(super) struct Maker<'a> {
    pub devices: Devices,
    /// Network's name and the bridge it becomes.
    pub bridges: &'a [(String, String)],
    /// Driver of the converted disks.
    pub format: &'a str,
    /// Their files.
    pub files: &'a [String],
}

/// The bridge that `rhostprep net nat` makes.
const DEFAULT_BRIDGE: &str = "virbr0";

impl Maker<'_> {
    /// The arguments; what should be known of them goes to the machine's notes.
    pub fn arguments(&self, machine: &mut Machine) -> Vec<String> {
        let mut out: Vec<String> = vec!["rkvm".into()];
        let mut say = |option: &str, value: String| {
            out.push(option.to_owned());
            out.push(value);
        };
        let virtio = match self.devices {
            Devices::Virtio => true,
            Devices::Described => false,
            Devices::Auto => machine.family != Family::Windows,
        };
        say("-name", escaped(&machine.name));
        if let Some(uuid) = &machine.uuid {
            say("-uuid", uuid.clone());
        }
        let modern = machine.firmware != Firmware::Bios
            || (!virtio && machine.disks.iter().any(|d| !matches!(d.bus, Bus::Ide)));
        say("-machine", if modern { "q35" } else { "pc" }.to_owned());
        say("-cpu", "host".to_owned());
        say("-smp", smp(machine));
        say("-m", (machine.memory >> 20).max(1).to_string());
        let firmware = match machine.firmware {
            Firmware::Bios => None,
            Firmware::Efi => Some(OVMF),
            Firmware::EfiSecureBoot => Some(OVMF_SECURE),
        };
        if let Some(code) = firmware {
            say("-drive", format!("if=pflash,format=raw,readonly=on,file={code}"));
            machine.note(format!(
                "the machine starts by UEFI: {code} must be there, and its variables begin empty"
            ));
        }
        let mut controllers = Vec::new();
        for (n, (disk, file)) in machine.disks.iter().zip(self.files).enumerate() {
            let drive = format!("file={},format={},if=none,id=disk{n}", escaped(file), self.format);
            say("-drive", drive);
            let bus = if virtio { &Bus::Virtio } else { &disk.bus };
            let (controller, device) = device(bus, n, modern);
            if let Some((id, model)) = controller
                && !controllers.contains(&id)
            {
                say("-device", format!("{model},id={id}"));
                controllers.push(id);
            }
            say("-device", format!("{device},drive=disk{n},bootindex={}", n + 1));
        }
        let mut unmapped = Vec::new();
        for (n, nic) in machine.nics.iter().enumerate() {
            let name = nic.network.as_deref().unwrap_or("");
            let mapped = self.bridges.iter().find(|(network, _)| network == name);
            let bridge = mapped.map_or(DEFAULT_BRIDGE, |(_, bridge)| bridge);
            if mapped.is_none() && !unmapped.contains(&name.to_owned()) {
                unmapped.push(name.to_owned());
            }
            say("-netdev", format!("bridge,id=net{n},br={}", escaped(bridge)));
            let model = match (virtio, nic.model.as_str()) {
                (false, model @ ("e1000" | "e1000e" | "vmxnet3" | "pcnet")) => model,
                (false, "") => "e1000",
                _ => "virtio-net-pci",
            };
            let mac = nic.mac.as_ref().map(|m| format!(",mac={m}")).unwrap_or_default();
            say("-device", format!("{model},netdev=net{n}{mac}"));
        }
        for name in unmapped {
            machine.note(format!(
                "the network '{name}' became the bridge {DEFAULT_BRIDGE} (rhostprep net nat \
                 {DEFAULT_BRIDGE} makes it); --network '{name}=BRIDGE' takes another"
            ));
        }
        match (self.devices, machine.family) {
            (Devices::Auto, Family::Windows) => machine.note(
                "Windows has no virtio drivers of its own: its devices stay as they were; install the \
                 drivers (virtio-win), then import with --devices virtio"
                    .to_owned(),
            ),
            (Devices::Auto, Family::Other) => machine.note(
                "what system is installed is not known: devices became virtio; --devices described \
                 keeps them as they were"
                    .to_owned(),
            ),
            _ => {}
        }
        out
    }
}

fn smp(machine: &Machine) -> String {
    let cpus = machine.cpus;
    match machine.cores_per_socket {
        Some(cores) if cpus.is_multiple_of(cores) => {
            format!("{cpus},sockets={},cores={cores},threads=1", cpus / cores)
        }
        _ => cpus.to_string(),
    }
}

/// Identifier and model of the controller, where one must be added, and the device on it.
fn device(bus: &Bus, n: usize, modern: bool) -> (Option<(String, &'static str)>, String) {
    match bus {
        Bus::Virtio => (None, "virtio-blk-pci".to_owned()),
        Bus::Nvme => (None, format!("nvme,serial=disk{n}")),
        Bus::Scsi(model) => {
            let model = match model.as_str() {
                "pvscsi" => "pvscsi",
                "virtio" => "virtio-scsi-pci",
                // The SAS relative of the parallel card, which nobody emulates, and of BusLogic's.
                _ => "mptsas1068",
            };
            let id = "scsi0";
            (Some((id.to_owned(), model)), format!("scsi-hd,bus={id}.0,scsi-id={n}"))
        }
        // The board's own ports: six on q35, two cables with two places on pc.
        Bus::Sata | Bus::Unknown | Bus::Ide if modern => {
            let (extra, port) = (n / 6, n % 6);
            if extra == 0 {
                (None, format!("ide-hd,bus=ide.{port}"))
            } else {
                let id = format!("ahci{extra}");
                (Some((id.clone(), "ahci")), format!("ide-hd,bus={id}.{port}"))
            }
        }
        Bus::Sata | Bus::Unknown | Bus::Ide => {
            (None, format!("ide-hd,bus=ide.{},unit={}", n / 2 % 2, n % 2))
        }
    }
}

/// A comma in a value is written twice.
fn escaped(value: &str) -> String {
    value.replace(',', ",,")
}

/// The arguments as a shell script.
pub(super) fn script(machine: &Machine, arguments: &[String]) -> String {
    let mut text = format!("#!/bin/sh\n# {}\n", machine.name.replace(['\n', '\r'], " "));
    for note in &machine.notes {
        text.push_str(&format!("# {}\n", note.replace(['\n', '\r'], " ")));
    }
    text.push_str("cd \"$(dirname \"$0\")\" || exit\nexec ");
    text.push_str(&shown(arguments));
    text.push_str(" \"$@\"\n");
    text
}

/// The arguments as a shell reads them, an option a line.
pub fn shown(arguments: &[String]) -> String {
    let mut text = String::new();
    for (i, argument) in arguments.iter().enumerate() {
        if i > 0 {
            text.push_str(if argument.starts_with('-') { " \\\n    " } else { " " });
        }
        text.push_str(&quoted(argument));
    }
    text
}

fn quoted(argument: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./,:=+@%".contains(c);
    if !argument.is_empty() && argument.chars().all(plain) {
        return argument.to_owned();
    }
    format!("'{}'", argument.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shells_read_what_is_meant() {
        assert_eq!(quoted("a,b=c"), "a,b=c");
        assert_eq!(quoted("it's $x"), "'it'\\''s $x'");
        assert_eq!(quoted(""), "''");
        let shown = shown(&["rkvm".to_owned(), "-name".to_owned(), "a b".to_owned()]);
        assert_eq!(shown, "rkvm \\\n    -name 'a b'");
    }
}
