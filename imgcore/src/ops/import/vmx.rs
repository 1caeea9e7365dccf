//! VMware's `.vmx`: lines `key = "value"`, keys without regard to case.
//!
//! Source: the files that VMware Workstation and ESXi write; the keys are VMware's documented and customary
//! ones. `|22` stands for the character with this hexadecimal number.

use std::collections::BTreeMap;

use super::machine::{Bus, Disk, Family, Firmware, Machine, Nic, Source, mac, unescaped, uuid};
use crate::{Error, Result};

/// Controllers of one kind, and places on one.
const MAX_CONTROLLERS: u32 = 8;
const MAX_PLACES: u32 = 64;
const MAX_NICS: u32 = 16;
/// Lines that are read.
const MAX_LINES: usize = 20_000;

type Keys = BTreeMap<String, String>;

/// Reads a description.
///
/// # Errors
/// When it is none.
pub(super) fn parse(text: &str, name: &str) -> Result<Machine> {
    let keys = keys(text)?;
    let get = |key: &str| keys.get(key).map(String::as_str).filter(|v| !v.is_empty());
    let number = |key: &str| get(key).and_then(|v| v.trim().parse::<u32>().ok());
    let system = get("guestos").map(str::to_owned);
    let mut machine = Machine {
        name: get("displayname").unwrap_or(name).to_owned(),
        uuid: get("uuid.bios").and_then(uuid),
        family: system.as_deref().map(Family::guess).unwrap_or_default(),
        system,
        firmware: match (get("firmware"), truth(get("uefi.secureboot.enabled"))) {
            (Some(f), true) if f.eq_ignore_ascii_case("efi") => Firmware::EfiSecureBoot,
            (Some(f), false) if f.eq_ignore_ascii_case("efi") => Firmware::Efi,
            _ => Firmware::Bios,
        },
        cpus: number("numvcpus").unwrap_or(1).max(1),
        cores_per_socket: number("cpuid.corespersocket").filter(|n| *n > 1),
        memory: u64::from(number("memsize").unwrap_or(256)) << 20,
        ..Machine::default()
    };
    for kind in ["scsi", "sata", "nvme", "ide"] {
        for controller in 0..MAX_CONTROLLERS {
            let model = get(&format!("{kind}{controller}.virtualdev")).unwrap_or("lsilogic");
            for place in 0..MAX_PLACES {
                let at = format!("{kind}{controller}:{place}");
                if !truth(get(&format!("{at}.present"))) {
                    continue;
                }
                let device = get(&format!("{at}.devicetype")).unwrap_or("").to_ascii_lowercase();
                let Some(file) = get(&format!("{at}.filename")) else { continue };
                if device.contains("cdrom") || device.contains("atapi") {
                    continue;
                }
                if device.contains("rawdisk") {
                    machine.note(format!("{at} is a device of the host ({file}); it is left out"));
                    continue;
                }
                machine.disks.push(Disk {
                    label: at,
                    source: Source::File {
                        reference: file.to_owned(),
                        format: Some("vmdk".to_owned()),
                        gzip: false,
                        chunk: None,
                    },
                    bus: match kind {
                        "scsi" => Bus::Scsi(model.to_ascii_lowercase()),
                        "sata" => Bus::Sata,
                        "nvme" => Bus::Nvme,
                        _ => Bus::Ide,
                    },
                    place: (controller, place),
                });
            }
        }
    }
    for n in 0..MAX_NICS {
        let at = format!("ethernet{n}");
        if !truth(get(&format!("{at}.present"))) {
            continue;
        }
        let address =
            get(&format!("{at}.address")).or_else(|| get(&format!("{at}.generatedaddress")));
        let network = get(&format!("{at}.networkname"))
            .or_else(|| get(&format!("{at}.vnet")))
            .or_else(|| get(&format!("{at}.connectiontype")));
        let model = get(&format!("{at}.virtualdev")).unwrap_or("").to_ascii_lowercase();
        machine.nics.push(Nic {
            model: if model == "vlance" { "pcnet".to_owned() } else { model },
            mac: address.and_then(mac),
            network: network.map(str::to_owned),
        });
    }
    if keys.keys().any(|k| k.starts_with("encryption.")) {
        return Err(Error::unsupported("the virtual machine is encrypted")
            .hint("remove the encryption in VMware first"));
    }
    machine.order_disks();
    Ok(machine)
}

fn keys(text: &str) -> Result<Keys> {
    let mut keys = Keys::new();
    for (index, line) in text.lines().enumerate() {
        if index >= MAX_LINES {
            return Err(Error::invalid(format!("more than {MAX_LINES} lines")));
        }
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((key, value)) = line.split_once('=') else {
            return Err(Error::invalid(format!("line {} is not KEY = \"VALUE\"", index + 1)));
        };
        let value = value.trim();
        let value = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value);
        keys.insert(key.trim().to_ascii_lowercase(), unescaped(value, b'|'));
    }
    if keys.is_empty() {
        return Err(Error::invalid("it describes nothing"));
    }
    Ok(keys)
}

fn truth(value: Option<&str>) -> bool {
    value.is_some_and(|v| v.eq_ignore_ascii_case("true") || v == "1")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_machine() {
        let text = r#"#!/usr/bin/vmware
.encoding = "UTF-8"
displayName = "Web |22one|22"
guestOS = "ubuntu-64"
Numvcpus = "4"
cpuid.coresPerSocket = "2"
memsize = "2048"
firmware = "efi"
uuid.bios = "56 4d 00 11 22 33 44 55-66 77 88 99 aa bb cc dd"
scsi0.present = "TRUE"
scsi0.virtualDev = "pvscsi"
scsi0:1.present = "TRUE"
scsi0:1.fileName = "data.vmdk"
scsi0:0.present = "TRUE"
scsi0:0.fileName = "web-000002.vmdk"
ide1:0.present = "TRUE"
ide1:0.deviceType = "cdrom-image"
ide1:0.fileName = "linux.iso"
ide0:0.present = "FALSE"
ide0:0.fileName = "gone.vmdk"
ethernet0.present = "TRUE"
ethernet0.virtualDev = "vmxnet3"
ethernet0.generatedAddress = "00:0c:29:aa:bb:cc"
ethernet0.connectionType = "bridged"
"#;
        let machine = parse(text, "x").unwrap();
        assert_eq!(machine.name, "Web \"one\"");
        assert_eq!((machine.cpus, machine.cores_per_socket, machine.memory), (4, Some(2), 2 << 30));
        assert_eq!((machine.family, machine.firmware), (Family::Linux, Firmware::Efi));
        let disks: Vec<_> = machine.disks.iter().map(|d| (d.label.as_str(), &d.bus)).collect();
        let bus = Bus::Scsi("pvscsi".to_owned());
        assert_eq!(disks, [("scsi0:0", &bus), ("scsi0:1", &bus)]);
        assert_eq!(machine.nics[0].mac.as_deref(), Some("00:0c:29:aa:bb:cc"));
        assert_eq!(machine.nics[0].network.as_deref(), Some("bridged"));
    }

    #[test]
    fn no_machines() {
        assert!(parse("", "x").is_err());
        assert!(parse("<xml/>", "x").unwrap_err().report().contains("line 1"));
        assert!(
            parse("encryption.keySafe = \"x\"", "x").unwrap_err().report().contains("encrypted")
        );
    }
}
