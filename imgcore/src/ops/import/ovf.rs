//! OVF: the description inside an OVA, or beside its disks.
//!
//! Source: DMTF DSP0243 (Open Virtualization Format, 1.1 and 2.1): references (6.1), disks (9.1), virtual
//! hardware (8.1, with the resource types of CIM_ResourceAllocationSettingData); VMware's `Config` and
//! `CoresPerSocket`, and VirtualBox's own `Machine` element, which says what the standard has no word for.

use std::collections::BTreeMap;

use roxmltree::Node as Xml;

use super::machine::{Bus, Disk, Family, Firmware, Machine, Nic, Source, mac, unescaped};
use super::xml::{attribute, child, children, parse as parse_xml, text};
use crate::{Error, Result};

/// A file that the description names.
#[derive(Clone, Debug)]
struct FileRef {
    href: String,
    gzip: bool,
    chunk: Option<u64>,
}

/// A disk of the disk section.
#[derive(Clone, Debug)]
struct DiskDef {
    capacity: u64,
    file: Option<FileRef>,
    format: Option<String>,
}

/// A controller.
#[derive(Clone, Debug)]
struct Controller {
    bus: Bus,
    number: u32,
}

/// Reads a description; of several machines the one that is wanted.
///
/// # Errors
/// When it is none, when it holds several machines and none was named, or when a disk names what is not
/// there.
pub(super) fn parse(source: &str, name: &str, wanted: Option<&str>) -> Result<Machine> {
    let document = parse_xml(source)?;
    let envelope = document.root_element();
    if envelope.tag_name().name() != "Envelope" {
        return Err(Error::invalid("it is no OVF envelope"));
    }
    let files = files(envelope);
    let disks = disks(envelope, &files)?;
    let systems: Vec<Xml<'_, '_>> =
        envelope.descendants().filter(|n| n.tag_name().name() == "VirtualSystem").collect();
    let system = choose(&systems, wanted)?;
    let hardware = child(system, "VirtualHardwareSection")
        .ok_or_else(|| Error::invalid("it describes no hardware"))?;
    let os = child(system, "OperatingSystemSection");
    let described = os.and_then(|o| attribute(o, "osType").or_else(|| text(o, "Description")));
    let mut machine = Machine {
        name: text(system, "Name").or_else(|| attribute(system, "id")).unwrap_or(name).to_owned(),
        system: described.map(str::to_owned),
        family: described.map(Family::guess).unwrap_or_default(),
        firmware: firmware(system, hardware),
        cpus: 1,
        memory: 512 << 20,
        ..Machine::default()
    };
    let items: Vec<Item> = hardware.children().filter_map(Item::read).collect();
    let controllers = controllers(&items);
    for item in &items {
        match item.kind {
            3 => {
                machine.cpus = u32::try_from(item.quantity.unwrap_or(1)).unwrap_or(1).max(1);
                machine.cores_per_socket = item.cores.filter(|n| *n > 1);
            }
            4 => machine.memory = item.quantity.unwrap_or(512).saturating_mul(item.unit),
            10 => machine.nics.push(Nic {
                model: model(&item.subtype),
                mac: item.address.as_deref().and_then(mac),
                network: item.connection.clone(),
            }),
            17 => {
                let disk = disk(item, &disks, &files, &controllers)?;
                machine.disks.push(disk);
            }
            _ => {}
        }
    }
    machine.order_disks();
    Ok(machine)
}

fn choose<'a, 'i>(systems: &[Xml<'a, 'i>], wanted: Option<&str>) -> Result<Xml<'a, 'i>> {
    let names =
        || systems.iter().filter_map(|s| attribute(*s, "id")).collect::<Vec<_>>().join(", ");
    match (wanted, systems) {
        (_, []) => Err(Error::invalid("it describes no machine")),
        (None, [only]) => Ok(*only),
        (None, _) => Err(Error::invalid(format!("it describes several machines: {}", names()))
            .hint("choose one with --system ID")),
        (Some(id), _) => {
            systems.iter().find(|s| attribute(**s, "id") == Some(id)).copied().ok_or_else(|| {
                Error::invalid(format!("it describes no machine '{id}' but: {}", names()))
            })
        }
    }
}

fn files(envelope: Xml<'_, '_>) -> BTreeMap<String, FileRef> {
    let mut all = BTreeMap::new();
    for file in child(envelope, "References").into_iter().flat_map(|r| children(r, "File")) {
        if let (Some(id), Some(href)) = (attribute(file, "id"), attribute(file, "href")) {
            let gzip = attribute(file, "compression").is_some_and(|c| c.contains("gzip"));
            let chunk =
                attribute(file, "chunkSize").and_then(|c| c.parse().ok()).filter(|c| *c > 0);
            all.insert(id.to_owned(), FileRef { href: unescaped(href, b'%'), gzip, chunk });
        }
    }
    all
}

fn disks(
    envelope: Xml<'_, '_>,
    files: &BTreeMap<String, FileRef>,
) -> Result<BTreeMap<String, DiskDef>> {
    let mut all = BTreeMap::new();
    for disk in child(envelope, "DiskSection").into_iter().flat_map(|s| children(s, "Disk")) {
        let Some(id) = attribute(disk, "diskId") else { continue };
        if attribute(disk, "parentRef").is_some() {
            return Err(Error::unsupported(format!(
                "the disk '{id}' stands on another disk of the OVF"
            )));
        }
        let unit = attribute(disk, "capacityAllocationUnits").map_or(Some(1), units);
        let unit =
            unit.ok_or_else(|| Error::invalid(format!("the units of disk '{id}' do not read")))?;
        // A capacity may also be `${name}`, a property that the user would be asked for.
        let capacity = attribute(disk, "capacity").and_then(|c| c.parse::<u64>().ok()).unwrap_or(0);
        let file = match attribute(disk, "fileRef") {
            None => None,
            Some(name) => Some(files.get(name).cloned().ok_or_else(|| {
                Error::invalid(format!("the disk '{id}' is in a file '{name}' that is not listed"))
            })?),
        };
        let format = attribute(disk, "format").and_then(driver);
        let capacity = capacity.saturating_mul(unit);
        all.insert(id.to_owned(), DiskDef { capacity, file, format });
    }
    Ok(all)
}

/// The driver behind the address of a format.
fn driver(format: &str) -> Option<String> {
    let format = format.to_ascii_lowercase();
    [("vmdk", "vmdk"), ("vhdx", "vhdx"), ("vhd", "vpc"), ("qcow2", "qcow2"), ("vdi", "vdi")]
        .iter()
        .find(|(word, _)| format.contains(word))
        .map(|(_, driver)| (*driver).to_owned())
}

/// Bytes of a unit: `byte * 2^20`, `MegaBytes`, `GigaBytes`, ...
fn units(text: &str) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    let Some(rest) = text.strip_prefix("byte").map(|r| r.trim_start_matches('s').trim()) else {
        let shift = match text.as_str() {
            "kilobytes" | "kb" | "kib" => 10,
            "megabytes" | "mb" | "mib" => 20,
            "gigabytes" | "gb" | "gib" => 30,
            _ => return None,
        };
        return Some(1 << shift);
    };
    if rest.is_empty() {
        return Some(1);
    }
    let factor: String = rest.strip_prefix('*')?.split_whitespace().collect();
    match factor.split_once('^') {
        Some((base, power)) => base.parse::<u64>().ok()?.checked_pow(power.parse().ok()?),
        None => factor.parse().ok(),
    }
}

fn firmware(system: Xml<'_, '_>, hardware: Xml<'_, '_>) -> Firmware {
    let config = |key: &str| {
        let entry = children(hardware, "Config").find(|c| attribute(*c, "key") == Some(key));
        entry.and_then(|c| attribute(c, "value")).map(str::to_ascii_lowercase)
    };
    let secure = config("bootOptions.efiSecureBootEnabled").is_some_and(|v| v == "true");
    // VirtualBox repeats the whole machine in its own words.
    let vbox = system.descendants().find(|n| n.tag_name().name() == "Firmware");
    let vbox = vbox.and_then(|f| attribute(f, "type")).map(str::to_ascii_lowercase);
    match config("firmware").or(vbox) {
        Some(kind) if kind.starts_with("efi") && secure => Firmware::EfiSecureBoot,
        Some(kind) if kind.starts_with("efi") => Firmware::Efi,
        _ => Firmware::Bios,
    }
}

/// One item of the hardware. `Item`, and OVF 2's `StorageItem` and `EthernetPortItem`, have the same words.
struct Item {
    id: String,
    kind: u32,
    subtype: String,
    parent: Option<String>,
    address: Option<String>,
    place: u32,
    quantity: Option<u64>,
    unit: u64,
    cores: Option<u32>,
    host: Option<String>,
    connection: Option<String>,
    label: String,
}

impl Item {
    fn read(node: Xml<'_, '_>) -> Option<Self> {
        if !matches!(node.tag_name().name(), "Item" | "StorageItem" | "EthernetPortItem") {
            return None;
        }
        let owned = |name: &str| text(node, name).map(str::to_owned);
        Some(Item {
            id: owned("InstanceID").unwrap_or_default(),
            kind: text(node, "ResourceType")?.parse().ok()?,
            subtype: owned("ResourceSubType").unwrap_or_default().to_ascii_lowercase(),
            parent: owned("Parent"),
            address: owned("Address"),
            place: text(node, "AddressOnParent").and_then(|a| a.parse().ok()).unwrap_or(0),
            quantity: text(node, "VirtualQuantity").and_then(|q| q.parse().ok()),
            // Without units memory is counted in MiB, as everybody writes it.
            unit: text(node, "AllocationUnits").and_then(units).unwrap_or(1 << 20),
            cores: text(node, "CoresPerSocket").and_then(|c| c.parse().ok()),
            host: owned("HostResource"),
            connection: owned("Connection"),
            label: owned("ElementName").unwrap_or_default(),
        })
    }
}

fn controllers(items: &[Item]) -> BTreeMap<String, Controller> {
    let mut all = BTreeMap::new();
    let mut counts: BTreeMap<u32, u32> = BTreeMap::new();
    for item in items {
        let bus = match (item.kind, item.subtype.as_str()) {
            (5, _) => Bus::Ide,
            (6, "virtualscsi") => Bus::Scsi("pvscsi".to_owned()),
            (6, "lsilogicsas") => Bus::Scsi("lsisas1068".to_owned()),
            (6, "virtio-scsi" | "virtioscsi") => Bus::Scsi("virtio".to_owned()),
            (6, "") => Bus::Scsi("lsilogic".to_owned()),
            (6, model) => Bus::Scsi(model.to_owned()),
            (20, model) if model.contains("nvme") => Bus::Nvme,
            (20, model) if model.contains("sata") || model.contains("ahci") => Bus::Sata,
            (20, _) => Bus::Unknown,
            _ => continue,
        };
        let number = counts.entry(item.kind).or_default();
        all.insert(item.id.clone(), Controller { bus, number: *number });
        *number += 1;
    }
    all
}

fn disk(
    item: &Item,
    disks: &BTreeMap<String, DiskDef>,
    files: &BTreeMap<String, FileRef>,
    controllers: &BTreeMap<String, Controller>,
) -> Result<Disk> {
    let host = item.host.as_deref().unwrap_or("");
    let name = host.rsplit('/').next().unwrap_or("");
    let missing = || Error::invalid(format!("the disk '{host}' is not in the disk section"));
    let def = if host.contains("/file/") || host.starts_with("file/") {
        let file = files.get(name).cloned().ok_or_else(missing)?;
        DiskDef { capacity: 0, file: Some(file), format: None }
    } else {
        disks.get(name).cloned().ok_or_else(missing)?
    };
    let controller = item.parent.as_ref().and_then(|p| controllers.get(p));
    let source = match def.file {
        Some(FileRef { href, gzip, chunk }) => {
            Source::File { reference: href, format: def.format, gzip, chunk }
        }
        None => Source::Empty { capacity: def.capacity },
    };
    Ok(Disk {
        label: if item.label.is_empty() { name.to_owned() } else { item.label.clone() },
        source,
        bus: controller.map(|c| c.bus.clone()).unwrap_or_default(),
        place: (controller.map_or(0, |c| c.number), item.place),
    })
}

/// The card behind a subtype.
fn model(subtype: &str) -> String {
    match subtype {
        "pcnet32" => "pcnet",
        "virtio" | "virtio-net" => "virtio",
        // The one that VMware takes when it may choose.
        "flexible" => "pcnet",
        other => other,
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn units_of_all_sorts() {
        assert_eq!(units("byte * 2^20"), Some(1 << 20));
        assert_eq!(units("byte*2^30"), Some(1 << 30));
        assert_eq!(units("MegaBytes"), Some(1 << 20));
        assert_eq!(units("byte"), Some(1));
        assert_eq!(units("bytes * 1000"), Some(1000));
        assert_eq!(units("byte * 2^70"), None);
        assert_eq!(units("hertz"), None);
    }
}
