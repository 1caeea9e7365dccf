//! `-device`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::blockdev::Nodes;
use super::builder::Builder;
use super::disk::{DriveSpec, on_error};
use super::net::{mac, slot};
use super::options::{Options, Refusals, number};
use crate::block::config::{OnError, WriteCache};
use crate::chardev::CharConfig;
use crate::devices::debug_exit;
use crate::machine::config::{DeviceConfig, DeviceKind};
use crate::virtio::blk::{BlkConfig, MAX_SEGMENT_SECTORS, Offer};
use crate::virtio::rng::{Quota, RngConfig};
use crate::{Error, Result};

/// A virtio-blk-pci.
#[derive(Clone, Debug)]
pub struct BlkSpec {
    /// Its name.
    id: String,
    /// Its slot.
    slot: Option<u8>,
    /// Name of a `-drive` or of a node.
    drive: String,
    /// Queues; `None` for one a vCPU.
    queues: Option<u16>,
    /// Name of an `-object iothread`.
    iothread: Option<String>,
    /// Serial number.
    serial: Option<String>,
    /// `discard=`; as the drive says when absent.
    discard: Option<bool>,
    /// `write-cache=`.
    write_cache: Option<WriteCache>,
    /// `werror=`.
    write_error: Option<OnError>,
    /// `rerror=`.
    read_error: Option<OnError>,
    /// How it is shown, as far as it is said.
    shown: BlkConfig,
}

/// A device whose references are not resolved yet.
#[derive(Clone, Debug)]
pub enum DeviceSpec {
    /// virtio-blk-pci.
    Blk(Box<BlkSpec>),
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
        /// `mq=`.
        multiqueue: bool,
        /// `host_mtu=`.
        mtu: u16,
    },
    /// virtio-rng-pci.
    Rng {
        /// Its name.
        id: String,
        /// Its slot.
        slot: Option<u8>,
        /// Name of an `-object rng-random`.
        source: Option<String>,
        /// How much the guest gets.
        quota: Option<Quota>,
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

/// Values that say what is so anyway.
const USUAL: &[(&str, &[&str])] = &[
    ("account-failed", &["auto", "on"]),
    ("account-invalid", &["auto", "on"]),
    ("aer", &["off"]),
    ("any_layout", &["on"]),
    ("ats", &["off"]),
    ("disable-legacy", &["auto", "off"]),
    ("disable-modern", &["off"]),
    ("event_idx", &["on"]),
    ("indirect_desc", &["on"]),
    ("ioeventfd", &["on"]),
    ("iommu_platform", &["off"]),
    ("modern-pio-notify", &["off"]),
    ("multifunction", &["off"]),
    ("notify_on_empty", &["off"]),
    ("packed", &["off"]),
    ("page-per-vq", &["off"]),
    ("queue_reset", &["off"]),
    ("report-discard-granularity", &["on"]),
    ("rombar", &["0"]),
    ("romfile", &[""]),
    ("request-merging", &["on"]),
    ("scsi", &["off"]),
    ("seg-max-adjust", &["on"]),
    ("share-rw", &["off"]),
];

const REFUSED: Refusals = &[
    ("account-failed", "Leave it out; requests that fail are counted"),
    ("account-invalid", "Leave it out; requests that make no sense are not counted"),
    ("acpi-index", "Leave it out; the guest names its devices by their slot"),
    ("aer", "Leave it out"),
    ("any_layout", "Leave it out; drivers choose"),
    ("ats", "Leave it out"),
    ("backend_defaults", "Give logical_block_size= and physical_block_size="),
    ("bootindex", "Leave it out; the kernel of -kernel is booted"),
    ("class", "Leave it out"),
    ("share-rw", "Leave it out; file.locking=off of the -drive takes no locks"),
    ("event_idx", "Leave it out; drivers choose"),
    ("failover_pair_id", "Leave it out"),
    ("indirect_desc", "Leave it out; drivers choose"),
    ("packed", "Leave it out"),
    ("page-per-vq", "Leave it out"),
    ("queue_reset", "Leave it out; drivers do without"),
    ("cyls", "Leave it out; drivers take sectors"),
    ("heads", "Leave it out; drivers take sectors"),
    ("secs", "Leave it out; drivers take sectors"),
    ("lcyls", "Leave it out; drivers take sectors"),
    ("lheads", "Leave it out; drivers take sectors"),
    ("lsecs", "Leave it out; drivers take sectors"),
    ("ioeventfd", "Leave it out; KVM rings doorbells"),
    ("modern-pio-notify", "Leave it out; KVM rings doorbells"),
    ("multifunction", "Leave it out; each device has a slot"),
    ("notify_on_empty", "Leave it out; drivers choose"),
    ("report-discard-granularity", "Use discard_granularity="),
    ("request-merging", "Leave it out; neighbours are carried out together"),
    ("seg-max-adjust", "Leave it out; use queue-size="),
    ("scsi", "Leave it out"),
    ("iommu_platform", "Leave it out"),
    ("disable-modern", "Leave it out"),
    ("disable-legacy", "Leave it out; drivers choose"),
    ("rx_queue_size", "Leave it out"),
    ("tx_queue_size", "Leave it out"),
    ("tx", "Leave it out"),
    ("mrg_rxbuf", "Leave it out; drivers choose"),
    ("csum", "Use vnet_hdr=off of the -netdev"),
    ("romfile", "Leave it out"),
    ("rombar", "Leave it out"),
    ("romsize", "Leave it out"),
];

/// `-device driver,...`.
pub fn device(b: &mut Builder, text: &str) -> Result<()> {
    let mut o = Options::parse_or_json(text, "driver")?;
    let driver = o.need("driver")?;
    o.drop_usual(USUAL);
    let number_so_far = b.devices.len();
    let id = o.take("id").unwrap_or_else(|| format!("dev{number_so_far}"));
    match o.take("bus").as_deref() {
        None | Some("pci.0" | "pcie.0") => {}
        Some(other) => return Err(Error::invalid(format!("Bus '{other}' not found"))),
    }
    if let Some(n) = o.take_u32("vectors")? {
        b.warnings.push(format!("-device vectors={n}: each queue has a vector of its own"));
    }
    let place = o.take("addr").map(|a| slot(&a)).transpose()?;
    let plain = |kind| DeviceSpec::Plain(DeviceConfig { id: id.clone(), slot: place, kind });
    let spec = match driver.as_str() {
        "virtio-blk-pci" | "virtio-blk" | "virtio-blk-pci-transitional" => {
            if o.take_number("bootindex")?.is_some() {
                b.warnings.push("-device bootindex=: the kernel of -kernel is booted".into());
            }
            DeviceSpec::Blk(Box::new(blk(&mut o, id.clone(), place)?))
        }
        "virtio-blk-pci-non-transitional" => {
            return Err(Error::unsupported(format!("device '{driver}' is not supported yet"))
                .hint("Use virtio-blk-pci; drivers choose the modern registers"));
        }
        "virtio-net-pci" | "virtio-net" => DeviceSpec::Net {
            id: id.clone(),
            slot: place,
            mac: o.take("mac").map(|m| mac(&m)).transpose()?,
            netdev: o.need("netdev")?,
            multiqueue: o.take_bool("mq")?.unwrap_or(false),
            mtu: match o.take_u32("host_mtu")? {
                None => 0,
                Some(n) => u16::try_from(n).ok().filter(|n| *n >= 68).ok_or_else(|| {
                    Error::invalid(format!("host_mtu={n}: the greatest frame is 68 to 65535 bytes"))
                })?,
            },
        },
        "vhost-vsock-pci" | "vhost-vsock" => plain(DeviceKind::Vsock {
            cid: match o.take_number("guest-cid")? {
                Some(cid) => cid,
                None => return Err(Error::invalid("guest-cid property must be greater than 2")),
            },
            vhost: o.take_u32("vhostfd")?.and_then(|fd| i32::try_from(fd).ok()),
        }),
        "virtio-balloon-pci" | "virtio-balloon" => plain(DeviceKind::Balloon {
            reporting: o.take_bool("free-page-reporting")?.unwrap_or(false),
            deflate_on_oom: o.take_bool("deflate-on-oom")?.unwrap_or(false),
        }),
        "virtio-rng-pci" | "virtio-rng" => {
            let bytes = o.take_number("max-bytes")?;
            let period = o.take_number("period")?;
            let quota = match (bytes, period.unwrap_or(1 << 16)) {
                (None, _) if period.is_none() => None,
                (Some(bytes), ms) if bytes > 0 && (1..=1 << 31).contains(&ms) => {
                    Some(Quota { bytes, period: Duration::from_millis(ms) })
                }
                _ => {
                    return Err(Error::invalid(
                        "virtio-rng: max-bytes= and period= (milliseconds) must be above 0",
                    ));
                }
            };
            DeviceSpec::Rng { id: id.clone(), slot: place, source: o.take("rng"), quota }
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
                "virtio-blk-pci, virtio-net-pci, virtio-balloon-pci, virtio-rng-pci, vhost-vsock-pci, \
                 virtconsole, pvpanic, isa-debug-exit and isa-debugcon are",
            ));
        }
    };
    o.finish(REFUSED)?;
    b.devices.push(spec);
    Ok(())
}

fn offer(o: &mut Options, key: &str, usual: Offer) -> Result<Offer> {
    Ok(match o.take_bool(key)? {
        None => usual,
        Some(true) => Offer::Yes,
        Some(false) => Offer::No,
    })
}

/// A block's size in bytes.
fn block_size(o: &mut Options, key: &str) -> Result<Option<u32>> {
    let Some(size) = o.take_size(key, 1)? else { return Ok(None) };
    match u32::try_from(size) {
        Ok(n) if n.is_power_of_two() && (512..=2 << 20).contains(&n) => Ok(Some(n)),
        _ => Err(Error::invalid(format!("{key}={size} is no power of 2 between 512 and 2 MiB"))),
    }
}

/// Bytes that are whole logical blocks, at most so many of them; 0 when nothing is said.
fn whole_blocks(o: &mut Options, key: &str, block: u32, most: u32) -> Result<u32> {
    let size = o.take_size(key, 1)?.unwrap_or(0);
    let block = u64::from(block);
    u32::try_from(size)
        .ok()
        .filter(|_| size.is_multiple_of(block) && size / block <= u64::from(most))
        .ok_or_else(|| {
            Error::invalid(format!(
                "{key}={size} is no multiple of logical_block_size={block} up to {most} times that and 4 GiB"
            ))
        })
}

/// Sectors of one range of a request.
fn range_sectors(o: &mut Options, key: &str) -> Result<u32> {
    match o.take_u32(key)? {
        None => Ok(MAX_SEGMENT_SECTORS),
        Some(n) if (1..=MAX_SEGMENT_SECTORS).contains(&n) => Ok(n),
        Some(n) => Err(Error::invalid(format!(
            "{key}={n}: a range has 1 to {MAX_SEGMENT_SECTORS} sectors"
        ))),
    }
}

fn blk(o: &mut Options, id: String, slot: Option<u8>) -> Result<BlkSpec> {
    let queues = match o.take_u32("num-queues")? {
        // QEMU's word for one a vCPU.
        None | Some(65_535) => None,
        Some(n) => {
            Some(u16::try_from(n).ok().filter(|n| (1..=64).contains(n)).ok_or_else(|| {
                Error::invalid(format!("num-queues={n}: a disk has 1 to 64 queues"))
            })?)
        }
    };
    let mut shown = BlkConfig::default();
    if let Some(n) = o.take_u32("queue-size")? {
        shown.queue_size = u16::try_from(n)
            .ok()
            .filter(|n| n.is_power_of_two() && (4..=1024).contains(n))
            .ok_or_else(|| {
                Error::invalid(format!("queue-size={n} is no power of 2 between 4 and 1024"))
            })?;
    }
    shown.write_zeroes = offer(o, "write-zeroes", Offer::Yes)?;
    shown.config_wce = offer(o, "config-wce", Offer::Yes)?;
    let (logical, physical) =
        (block_size(o, "logical_block_size")?, block_size(o, "physical_block_size")?);
    shown.logical_block = logical.unwrap_or(512);
    shown.physical_block = physical.unwrap_or(shown.logical_block);
    if shown.physical_block < shown.logical_block {
        return Err(Error::invalid("logical_block_size > physical_block_size not supported"));
    }
    let block = shown.logical_block;
    shown.min_io = whole_blocks(o, "min_io_size", block, u16::MAX.into())?;
    shown.opt_io = whole_blocks(o, "opt_io_size", block, u32::MAX)?;
    // All ones: what the disk is best at, which is a block.
    o.drop_usual(&[("discard_granularity", &["4294967295"])]);
    shown.discard_granularity = whole_blocks(o, "discard_granularity", block, u32::MAX)?;
    shown.max_discard = range_sectors(o, "max-discard-sectors")?;
    shown.max_zeroes = range_sectors(o, "max-write-zeroes-sectors")?;
    let policy = |o: &mut Options, key: &str| -> Result<Option<OnError>> {
        if o.has(key) { on_error(o, key, OnError::Report).map(Some) } else { Ok(None) }
    };
    Ok(BlkSpec {
        id,
        slot,
        drive: o.need("drive")?,
        queues,
        iothread: o.take("iothread"),
        serial: o.take("serial"),
        discard: o.take_bool("discard")?,
        write_cache: match o.take("write-cache").as_deref() {
            None | Some("auto") => None,
            Some("on") => Some(WriteCache::Writeback),
            Some("off") => Some(WriteCache::Writethrough),
            Some(other) => return Err(Error::invalid(format!("invalid write-cache '{other}'"))),
        },
        write_error: policy(o, "werror")?,
        read_error: policy(o, "rerror")?,
        shown,
    })
}

impl BlkSpec {
    fn resolve(self, drives: &mut Vec<DriveSpec>, nodes: &mut Nodes) -> Result<DeviceConfig> {
        let name = &self.drive;
        let mut drive = if nodes.has(name) {
            nodes.drive(name)?
        } else {
            let found = drives.iter().position(|d| d.drive.id == *name && d.only_backend);
            let i = found.ok_or_else(|| {
                Error::invalid(format!("-device virtio-blk-pci: can't find value '{name}'"))
                    .hint(format!("Add -drive id={name},if=none,file=..."))
            })?;
            drives.remove(i).drive
        };
        drive.serial = self.serial.unwrap_or(drive.serial);
        drive.write_cache = self.write_cache.unwrap_or(drive.write_cache);
        drive.write_error = self.write_error.unwrap_or(drive.write_error);
        drive.read_error = self.read_error.unwrap_or(drive.read_error);
        let discard = match self.discard {
            None if drive.discards() => Offer::Yes,
            None | Some(false) => Offer::No,
            Some(true) => Offer::Yes,
        };
        let shown = BlkConfig { discard, ..self.shown };
        let kind = DeviceKind::Blk { drive: Box::new(drive), queues: self.queues, shown };
        Ok(DeviceConfig { id: self.id, slot: self.slot, kind })
    }
}

impl DeviceSpec {
    /// The thread that is to serve it, if one is named.
    pub fn iothread(&self) -> Option<&str> {
        match self {
            DeviceSpec::Blk(spec) => spec.iothread.as_deref(),
            _ => None,
        }
    }

    /// With its drive or character device.
    pub fn resolve(
        self,
        drives: &mut Vec<DriveSpec>,
        nodes: &mut Nodes,
        rngs: &BTreeMap<String, PathBuf>,
        chardevs: &[(String, CharConfig)],
    ) -> Result<DeviceConfig> {
        match self {
            DeviceSpec::Plain(config) => Ok(config),
            DeviceSpec::Blk(spec) => spec.resolve(drives, nodes),
            DeviceSpec::Rng { id, slot, source, quota } => {
                let source = match source {
                    None => PathBuf::new(),
                    Some(name) => rngs.get(&name).cloned().ok_or_else(|| {
                        Error::invalid(format!("-device virtio-rng-pci: can't find value '{name}'"))
                            .hint(format!("Add -object rng-random,id={name},filename=/dev/urandom"))
                    })?,
                };
                Ok(DeviceConfig { id, slot, kind: DeviceKind::Rng(RngConfig { source, quota }) })
            }
            DeviceSpec::Console { id, chardev } => {
                if !chardevs.iter().any(|(label, _)| *label == chardev) {
                    return Err(Error::invalid(format!(
                        "-device virtconsole: can't find value '{chardev}'"
                    ))
                    .hint(format!("Make it: -chardev stdio,id={chardev}")));
                }
                Ok(DeviceConfig { id, slot: None, kind: DeviceKind::Console(chardev) })
            }
            DeviceSpec::Net { id, .. } => {
                Err(Error::invalid(format!("network card {id} was not paired with a back end")))
            }
        }
    }
}
