//! VirtualBox's `.vbox`: the machine and the registry of its disks.
//!
//! Source: the XML that VirtualBox writes (`http://www.virtualbox.org/`, versions 1.12 to 1.20); hardware is
//! looked for below `Machine/Hardware`, disks below `Machine/MediaRegistry/HardDisks`, where the differencing
//! disks of snapshots stand inside their parents. The machine's present state is imported.

use std::collections::BTreeMap;

use roxmltree::Node as Xml;

use super::machine::{Bus, Disk, Family, Firmware, Machine, Nic, Source, mac, uuid};
use super::xml;
use crate::{Error, Result};

/// Reads a description.
///
/// # Errors
/// When it is none.
pub(super) fn parse(text: &str, name: &str) -> Result<Machine> {
    let document = xml::parse(text)?;
    let machine = xml::child(document.root_element(), "Machine")
        .ok_or_else(|| Error::invalid("it describes no machine"))?;
    let hardware = xml::child(machine, "Hardware")
        .ok_or_else(|| Error::invalid("it describes no hardware"))?;
    let number = |node: Option<Xml<'_, '_>>, attribute: &str| {
        node.and_then(|n| n.attribute(attribute)).and_then(|v| v.parse::<u32>().ok())
    };
    let system = machine.attribute("OSType").map(str::to_owned);
    // Since VirtualBox 7 firmware and its settings stand below one element.
    let firmware = xml::child(hardware, "Firmware").and_then(|f| f.attribute("type"));
    let mut out = Machine {
        name: machine.attribute("name").unwrap_or(name).to_owned(),
        uuid: machine.attribute("uuid").and_then(uuid),
        family: system.as_deref().map(Family::guess).unwrap_or_default(),
        system,
        firmware: match firmware {
            Some(f) if f.to_ascii_uppercase().starts_with("EFI") => Firmware::Efi,
            _ => Firmware::Bios,
        },
        cpus: number(xml::child(hardware, "CPU"), "count").unwrap_or(1).max(1),
        memory: u64::from(number(xml::child(hardware, "Memory"), "RAMSize").unwrap_or(128)) << 20,
        ..Machine::default()
    };
    let media = media(machine);
    let controllers = xml::child(machine, "StorageControllers")
        .or_else(|| xml::child(hardware, "StorageControllers"));
    for (n, controller) in
        controllers.into_iter().flat_map(|c| xml::children(c, "StorageController")).enumerate()
    {
        let kind = controller.attribute("type").unwrap_or("");
        let n = u32::try_from(n).unwrap_or(u32::MAX);
        for device in xml::children(controller, "AttachedDevice") {
            if device.attribute("type") != Some("HardDisk") {
                continue;
            }
            let at = |attribute: &str| number(Some(device), attribute).unwrap_or(0);
            // IDE: two devices on each of two ports.
            let place = at("port").saturating_mul(2).saturating_add(at("device"));
            let label = format!("{kind} {}:{}", at("port"), at("device"));
            let Some(id) = xml::child(device, "Image").and_then(|i| i.attribute("uuid")) else {
                continue;
            };
            let Some((location, format)) = media.get(id) else {
                return Err(Error::invalid(format!(
                    "the disk {id} is not in the machine's registry"
                )));
            };
            out.disks.push(Disk {
                label,
                source: Source::File {
                    reference: location.clone(),
                    format: format.clone(),
                    gzip: false,
                    chunk: None,
                },
                bus: bus(kind),
                place: (n, place),
            });
        }
    }
    let adapters = xml::child(hardware, "Network");
    for adapter in adapters.into_iter().flat_map(|n| xml::children(n, "Adapter")) {
        if adapter.attribute("enabled") == Some("true") {
            out.nics.push(nic(adapter));
        }
    }
    if xml::child(machine, "Snapshot").is_some() {
        out.note("the machine's present state is imported; its snapshots are not".to_owned());
    }
    out.order_disks();
    Ok(out)
}

fn bus(kind: &str) -> Bus {
    match kind {
        "AHCI" | "IntelAhci" => Bus::Sata,
        "PIIX3" | "PIIX4" | "ICH6" => Bus::Ide,
        "LsiLogic" => Bus::Scsi("lsilogic".to_owned()),
        "LsiLogicSas" => Bus::Scsi("lsisas1068".to_owned()),
        "BusLogic" => Bus::Scsi("buslogic".to_owned()),
        "VirtioSCSI" => Bus::Scsi("virtio".to_owned()),
        "NVMe" => Bus::Nvme,
        _ => Bus::Unknown,
    }
}

fn nic(adapter: Xml<'_, '_>) -> Nic {
    let model = match adapter.attribute("type").unwrap_or("") {
        "virtio" => "virtio",
        "Am79C970A" | "Am79C973" | "Am79C960" => "pcnet",
        "82540EM" | "82543GC" | "82545EM" => "e1000",
        _ => "",
    };
    // The kind of network is an element of its own; those that are not in use stand below one more.
    let kinds = ["BridgedInterface", "InternalNetwork", "HostOnlyInterface", "NATNetwork", "NAT"];
    let network = kinds.iter().find_map(|kind| {
        let found = xml::child(adapter, kind)?;
        Some(found.attribute("name").unwrap_or(kind).to_owned())
    });
    Nic { model: model.to_owned(), mac: adapter.attribute("MACAddress").and_then(mac), network }
}

/// Location and driver of every disk, by identifier (with its braces).
fn media(machine: Xml<'_, '_>) -> BTreeMap<String, (String, Option<String>)> {
    let mut all = BTreeMap::new();
    let disks = xml::child(machine, "MediaRegistry").and_then(|r| xml::child(r, "HardDisks"));
    for disk in disks.into_iter().flat_map(|d| d.descendants()) {
        if disk.tag_name().name() != "HardDisk" {
            continue;
        }
        if let (Some(id), Some(location)) = (disk.attribute("uuid"), disk.attribute("location")) {
            let format = disk.attribute("format").map(str::to_ascii_lowercase);
            let format = format.map(|f| if f == "vhd" { "vpc".to_owned() } else { f });
            all.insert(id.to_owned(), (location.to_owned(), format));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_machine() {
        let text = r#"<?xml version="1.0"?>
<VirtualBox xmlns="http://www.virtualbox.org/" version="1.19-linux">
  <Machine uuid="{11111111-2222-3333-4444-555555555555}" name="box" OSType="Debian_64" snapshotFolder="Snapshots">
    <MediaRegistry><HardDisks>
      <HardDisk uuid="{a}" location="box.vdi" format="VDI" type="Normal">
        <HardDisk uuid="{b}" location="Snapshots/{b}.vdi" format="VDI"/>
      </HardDisk>
    </HardDisks></MediaRegistry>
    <Snapshot uuid="{c}" name="first"><Hardware><CPU count="7"/></Hardware></Snapshot>
    <Hardware>
      <CPU count="2"/><Memory RAMSize="1024"/><Firmware type="EFI"/>
      <Network>
        <Adapter slot="0" enabled="true" MACAddress="080027ABCDEF" type="82540EM"><NAT/></Adapter>
        <Adapter slot="1" enabled="true" MACAddress="080027ABCDE0" type="virtio">
          <DisabledModes><NAT/></DisabledModes><BridgedInterface name="eth0"/></Adapter>
        <Adapter slot="2"/>
      </Network>
      <StorageControllers><StorageController name="SATA" type="AHCI">
        <AttachedDevice type="HardDisk" port="0" device="0"><Image uuid="{b}"/></AttachedDevice>
        <AttachedDevice type="DVD" port="1" device="0"/>
      </StorageController></StorageControllers>
    </Hardware>
  </Machine>
</VirtualBox>"#;
        let machine = parse(text, "x").unwrap();
        assert_eq!((machine.cpus, machine.memory, machine.firmware), (2, 1 << 30, Firmware::Efi));
        let Source::File { reference, format, .. } = &machine.disks[0].source else {
            unreachable!()
        };
        assert_eq!((reference.as_str(), format.as_deref()), ("Snapshots/{b}.vdi", Some("vdi")));
        assert_eq!(machine.nics.len(), 2);
        assert_eq!(machine.nics[0].network.as_deref(), Some("NAT"));
        assert_eq!(machine.nics[1].network.as_deref(), Some("eth0"));
        assert_eq!(machine.notes.len(), 1);
        assert!(parse("<VirtualBox/>", "x").is_err());
    }
}
