//! `-device`.

use std::collections::BTreeMap;

use super::builder::Builder;
use super::disk::DriveSpec;
use super::net::{mac, slot};
use super::options::{Options, Refusals, number};
use crate::chardev::CharConfig;
use crate::devices::debug_exit;
use crate::machine::config::{DeviceConfig, DeviceKind};
use crate::{Error, Result};

/// A device whose references are not resolved yet.
#[derive(Clone, Debug)]
pub enum DeviceSpec {
    /// virtio-blk-pci.
    Blk {
        /// Its name.
        id: String,
        /// Its slot.
        slot: Option<u8>,
        /// Name of a `-drive`.
        drive: String,
        /// Queues.
        queues: Option<u16>,
        /// Serial number.
        serial: Option<String>,
    },
    /// virtio-net-pci.
    Net {
        /// Its name.
        id: String,
        /// Its slot.
        slot: Option<u8>,
        /// Its address.
        mac: Option<[u8; 6]>,
        /// Name of a `-netdev`.
        netdev: String,
    },
    /// Needs nothing else.
    Plain(DeviceConfig),
    /// virtconsole on a chardev.
    Console {
        /// Its name.
        id: String,
        /// Name of a `-chardev`.
        chardev: String,
    },
}

const REFUSED: Refusals = &[
    ("bootindex", "Leave it out; the kernel of -kernel is booted"),
    ("iothread", "Leave it out; each queue has a thread of its own"),
    ("disable-modern", "Leave it out"),
    ("disable-legacy", "Leave it out; drivers choose"),
    ("mq", "Leave it out"),
    ("vectors", "Leave it out"),
    ("write-cache", "Use cache= of the -drive"),
    ("logical_block_size", "Leave it out"),
    ("physical_block_size", "Leave it out"),
    ("romfile", "Leave it out"),
    ("rombar", "Leave it out"),
];

/// `-device driver,...`.
pub fn device(b: &mut Builder, text: &str) -> Result<()> {
    let mut o = Options::parse(text, Some("driver"));
    let driver = o.need("driver")?;
    let number_so_far = b.devices.len();
    let id = o.take("id").unwrap_or_else(|| format!("dev{number_so_far}"));
    match o.take("bus").as_deref() {
        None | Some("pci.0" | "pcie.0") => {}
        Some(other) => return Err(Error::invalid(format!("Bus '{other}' not found"))),
    }
    let place = o.take("addr").map(|a| slot(&a)).transpose()?;
    let plain = |kind| DeviceSpec::Plain(DeviceConfig { id: id.clone(), slot: place, kind });
    let spec = match driver.as_str() {
        "virtio-blk-pci" | "virtio-blk" => DeviceSpec::Blk {
            id: id.clone(),
            slot: place,
            drive: o.need("drive")?,
            queues: o.take_u32("num-queues")?.map(|q| u16::try_from(q.clamp(1, 64)).unwrap_or(1)),
            serial: o.take("serial"),
        },
        "virtio-net-pci" | "virtio-net" => DeviceSpec::Net {
            id: id.clone(),
            slot: place,
            mac: o.take("mac").map(|m| mac(&m)).transpose()?,
            netdev: o.need("netdev")?,
        },
        "virtio-balloon-pci" | "virtio-balloon" => plain(DeviceKind::Balloon {
            reporting: o.take_bool("free-page-reporting")?.unwrap_or(false),
        }),
        "virtio-rng-pci" | "virtio-rng" => {
            drop(o.take("rng"));
            plain(DeviceKind::Rng)
        }
        // The console's bus; the console itself is the next device.
        "virtio-serial-pci" | "virtio-serial" => return o.finish(REFUSED),
        "virtconsole" => DeviceSpec::Console { id: id.clone(), chardev: o.need("chardev")? },
        "isa-debug-exit" => {
            let port = match o.take("iobase") {
                None => debug_exit::PORT,
                Some(p) => u16::try_from(number("iobase", &p)?)
                    .map_err(|_| Error::invalid(format!("iobase={p} is no port")))?,
            };
            if o.take_number("iosize")?.is_some_and(|n| n > u64::from(debug_exit::LEN)) {
                // A wider access carries the same status.
                b.warnings.push("-device isa-debug-exit: iosize=2 is used".into());
            }
            b.machine.debug_exit = Some(port);
            return o.finish(REFUSED);
        }
        "isa-debugcon" => {
            super::chardev::debug_device(b, &mut o)?;
            return o.finish(REFUSED);
        }
        "pvpanic" => {
            b.machine.pvpanic = true;
            return o.finish(REFUSED);
        }
        other => {
            return Err(Error::unsupported(format!("device '{other}' is not supported yet")).hint(
                "virtio-blk-pci, virtio-net-pci, virtio-balloon-pci, virtio-rng-pci, virtconsole, pvpanic, \
                 isa-debug-exit and isa-debugcon are",
            ));
        }
    };
    o.finish(REFUSED)?;
    b.devices.push(spec);
    Ok(())
}

impl DeviceSpec {
    /// With its drive or character device.
    pub fn resolve(
        self,
        drives: &mut Vec<DriveSpec>,
        chardevs: &BTreeMap<String, CharConfig>,
    ) -> Result<DeviceConfig> {
        match self {
            DeviceSpec::Plain(config) => Ok(config),
            DeviceSpec::Blk { id, slot, drive, queues, serial } => {
                let found = drives.iter().position(|d| d.drive.id == drive && d.only_backend);
                let i = found.ok_or_else(|| {
                    Error::invalid(format!("-device virtio-blk-pci: can't find value '{drive}'"))
                        .hint(format!("Add -drive id={drive},if=none,file=..."))
                })?;
                let mut drive = drives.remove(i).drive;
                drive.serial = serial.unwrap_or(drive.serial);
                Ok(DeviceConfig { id, slot, kind: DeviceKind::Blk { drive, queues } })
            }
            DeviceSpec::Console { id, chardev } => {
                let config = chardevs.get(&chardev).cloned().ok_or_else(|| {
                    Error::invalid(format!("-device virtconsole: can't find value '{chardev}'"))
                })?;
                Ok(DeviceConfig { id, slot: None, kind: DeviceKind::Console(config) })
            }
            DeviceSpec::Net { id, .. } => {
                Err(Error::invalid(format!("network card {id} was not paired with a back end")))
            }
        }
    }
}
