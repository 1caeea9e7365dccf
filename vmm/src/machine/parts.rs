//! Making the devices and putting them where they belong.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::config::{DeviceConfig, DeviceKind, MachineConfig, RtcBase};
use crate::block::Disk;
use crate::block::config::{Aio, Drive};
use crate::block::open::Groups;
use crate::bus::Device;
use crate::chardev::{Chardevs, Patience};
use crate::devices::Lifecycle;
use crate::devices::acpi_pm::{self, AcpiPm};
use crate::devices::debug_exit::{self, DebugExit};
use crate::devices::debug_port::DebugPort;
use crate::devices::i8042::{self, I8042};
use crate::devices::pvpanic::{self, PvPanic};
use crate::devices::rtc::{self, Rtc};
use crate::devices::serial::{PORTS, Serial};
use crate::irq::{Line, SharedLine};
use crate::kvm::Vm;
use crate::kvm::routes::Routes;
use crate::kvm::vm::Pin;
use crate::mem::{Memory, layout};
use crate::net::config::TapConfig;
use crate::net::script::Downscript;
use crate::pci::root::{CONFIG_PORTS, CONFIG_PORTS_LEN, ConfigPorts, Ecam};
use crate::pci::{Root, routing};
use crate::vcpu::Buses;
use crate::virtio::VirtioDevice;
use crate::virtio::balloon::Balloon;
use crate::virtio::blk::{Blk, BlkConfig};
use crate::virtio::console::Console;
use crate::virtio::net::{Net, NetConfig};
use crate::virtio::pci::{Settings, VirtioPci};
use crate::virtio::rng::Rng;
use crate::virtio::vsock::Vsock;
use crate::{Error, Result};

/// A disk and the device that shows it.
#[derive(Clone)]
pub struct DiskPart {
    /// Name of the device (`qdev`).
    pub device: String,
    /// The disk: name, figures, image.
    pub disk: Arc<Disk>,
}

/// A network card and what it is connected to.
#[derive(Clone)]
pub struct NicPart {
    /// Name of the device.
    pub device: String,
    /// Name of the host's interface.
    pub interface: String,
    /// The back end, as the user wanted it.
    pub config: TapConfig,
    /// The card: address, link.
    pub net: Arc<Net>,
}

/// All devices of a machine.
#[derive(Default)]
pub struct Parts {
    /// In the order in which they were made; taken down in the same order.
    pub all: Vec<Arc<dyn Lifecycle>>,
    /// The power button.
    pub pm: Option<Arc<AcpiPm>>,
    /// The clock.
    pub rtc: Option<Arc<Rtc>>,
    /// The balloon.
    pub balloon: Option<Arc<Balloon>>,
    /// Disks, for those who ask about them and steer them.
    pub disks: Vec<DiskPart>,
    /// Network cards, the same.
    pub nics: Vec<NicPart>,
    /// Slots and the names of the devices in them.
    pub slots: Vec<(u8, String)>,
    /// Limits by the name of their group.
    pub limits: Groups,
    /// Scripts for the end.
    pub downscripts: Vec<Downscript>,
    /// Lines for people.
    pub notes: Vec<String>,
}

/// What devices are made from.
pub struct Workshop<'a> {
    /// What is wanted.
    pub config: &'a MachineConfig,
    /// The virtual machine.
    pub vm: &'a Arc<Vm>,
    /// Its memory.
    pub memory: &'a Arc<Memory>,
    /// Where devices are put.
    pub buses: &'a Buses,
    /// Its PCI bus.
    pub root: &'a Arc<Root>,
    /// Where characters go.
    pub chardevs: &'a Chardevs,
}

/// A disk whose requests reach the host as the user wants it.
fn with_aio(mut blk: Blk, drive: &Drive, notes: &mut Vec<String>) -> Result<Blk> {
    if drive.aio == Aio::Threads || (drive.aio == Aio::Auto && !blk.is_direct_file()) {
        return Ok(blk);
    }
    match (blk.give_rings(), drive.aio) {
        // Nobody has asked for one.
        (Ok(()), _) | (Err(_), Aio::Auto) => {}
        // Command lines with aio=native are older than io_uring: they work wherever they did.
        (Err(e), Aio::Native) => notes.push(format!(
            "warning: drive {}: aio=native: requests are carried out by threads: {}",
            drive.id,
            e.report()
        )),
        (Err(e), _) => return Err(e.context(format!("drive {}: aio=io_uring", drive.id))),
    }
    Ok(blk)
}

impl Workshop<'_> {
    /// Makes all devices.
    pub fn build(self) -> Result<Parts> {
        let mut parts = Parts::default();
        self.board(&mut parts)?;
        self.serial(&mut parts)?;
        self.debug()?;
        self.pci(&mut parts)?;
        Ok(parts)
    }

    fn port(&self, name: &str, base: u16, len: u16, device: Arc<dyn Device>) -> Result<()> {
        self.buses.ports.insert(name, base.into(), len.into(), device)
    }

    fn pin(&self, gsi: u32) -> Arc<dyn Line> {
        Arc::new(Pin::new(self.vm.clone(), gsi))
    }

    fn board(&self, parts: &mut Parts) -> Result<()> {
        let rtc = Arc::new(Rtc::new(clock(self.config.rtc), self.pin(rtc::IRQ)));
        self.port("rtc", rtc::BASE, 2, rtc.clone())?;
        let keyboard = Arc::new(I8042::default());
        self.port("i8042-data", i8042::DATA, 1, Arc::new(keyboard.data()))?;
        self.port("i8042-cmd", i8042::COMMAND, 1, Arc::new(keyboard.command()))?;
        let pm = Arc::new(AcpiPm::new(self.pin(acpi_pm::SCI)));
        self.port("acpi-pm", acpi_pm::BASE, acpi_pm::LEN, pm.clone())?;
        let ports = Arc::new(ConfigPorts(self.root.clone()));
        self.buses.ports.insert("pci-conf", CONFIG_PORTS, CONFIG_PORTS_LEN, ports)?;
        let ecam = Arc::new(Ecam(self.root.clone()));
        self.buses.mmio.insert("pcie-mmcfg", layout::ECAM, layout::ECAM_LEN, ecam)?;
        parts.all.extend([rtc.clone() as Arc<dyn Lifecycle>, keyboard, pm.clone()]);
        parts.pm = Some(pm);
        parts.rtc = Some(rtc);
        Ok(())
    }

    fn serial(&self, parts: &mut Parts) -> Result<()> {
        if self.config.serial.len() > PORTS.len() {
            return Err(Error::invalid(format!(
                "{} serial ports: at most 4 are possible",
                self.config.serial.len()
            )));
        }
        for (i, (label, (base, irq))) in self.config.serial.iter().zip(PORTS).enumerate() {
            let name = format!("serial{i}");
            let device = self.chardevs.get(label)?;
            let serial =
                Arc::new(Serial::new(self.pin(irq), Box::new(device.writer(Patience::Brief))));
            let waker = device.waker();
            serial.notify_room(Box::new(move || waker.wake()));
            device.attach(serial.clone())?;
            self.port(&name, base, 8, serial.clone())?;
            parts.all.push(serial);
        }
        Ok(())
    }

    fn debug(&self) -> Result<()> {
        if let Some((port, label)) = &self.config.debug_port {
            let writer = self.chardevs.get(label)?.writer(Patience::Brief);
            self.port("debugcon", *port, 1, Arc::new(DebugPort::new(Box::new(writer))))?;
        }
        if let Some(port) = self.config.debug_exit {
            self.port("isa-debug-exit", port, debug_exit::LEN, Arc::new(DebugExit))?;
        }
        if self.config.pvpanic {
            self.port("pvpanic", pvpanic::PORT, 1, Arc::new(PvPanic))?;
        }
        Ok(())
    }

    fn pci(&self, parts: &mut Parts) -> Result<()> {
        let lines: Vec<SharedLine> =
            (0..routing::COUNT).map(|i| SharedLine::new(self.pin(routing::FIRST + i))).collect();
        let routes = Routes::new(self.vm.clone());
        for device in &self.config.devices {
            let virtio = self.virtio(device, parts)?;
            let slot = match device.slot {
                Some(slot) => slot,
                None => self.root.free_slot()?,
            };
            let gsi = routing::gsi(slot, 0) - routing::FIRST;
            let line = &lines[crate::num::index(gsi.into())];
            let function = VirtioPci::new(
                virtio,
                Settings {
                    memory: self.memory.clone(),
                    vectors: Arc::new(routes.clone()),
                    line: line.driver(),
                    doorbells: Some(self.vm.clone()),
                },
            )?;
            self.root.insert(slot, function.clone())?;
            parts.slots.push((slot, device.id.clone()));
            parts.all.push(function);
        }
        self.root.assign(self.buses, layout::pci64(self.config.memory.size()))
    }

    fn virtio(&self, device: &DeviceConfig, parts: &mut Parts) -> Result<Arc<dyn VirtioDevice>> {
        Ok(match &device.kind {
            DeviceKind::Blk { drive, queues, shown } => {
                let usual = u16::try_from(self.config.topology.cpus).unwrap_or(1).min(16);
                let config = BlkConfig {
                    id: device.id.clone(),
                    serial: drive.serial.clone(),
                    queues: queues.unwrap_or(usual).clamp(1, 64),
                    ..shown.clone()
                };
                let scratch = scratch_folder(&self.config.scratch);
                let opened = crate::block::open::disk(drive, scratch, &mut parts.limits)?;
                parts.notes.extend(opened.notes);
                parts.disks.push(DiskPart { device: device.id.clone(), disk: opened.disk.clone() });
                let blk = Blk::over(config, opened.disk).at(opened.place);
                Arc::new(with_aio(blk, drive, &mut parts.notes)?)
            }
            DeviceKind::Net { shown, tap } => {
                let config = NetConfig { id: device.id.clone(), ..shown.clone() };
                let open = crate::net::open::tap(tap)?;
                parts.downscripts.extend(open.downscript);
                let net = Arc::new(Net::new(config, open.queues, open.vhost)?);
                parts.nics.push(NicPart {
                    device: device.id.clone(),
                    interface: open.interface,
                    config: tap.clone(),
                    net: net.clone(),
                });
                net
            }
            DeviceKind::Vsock { cid, vhost } => {
                let file = match vhost {
                    Some(fd) => crate::net::open::inherited(*fd, "vhostfd")?.into(),
                    None => crate::net::open::device(
                        "/dev/vhost-vsock",
                        "vhost_vsock",
                        "no vhost-vsock-pci",
                    )?,
                };
                Arc::new(Vsock::new(file, *cid)?)
            }
            DeviceKind::Balloon { reporting, deflate_on_oom } => {
                let balloon = Balloon::new(self.config.memory.size(), *reporting)?
                    .with_deflate_on_oom(*deflate_on_oom);
                let balloon = Arc::new(balloon);
                parts.balloon = Some(balloon.clone());
                balloon
            }
            DeviceKind::Rng(config) => Arc::new(Rng::open(config)?),
            DeviceKind::Console(label) => {
                let chardev = self.chardevs.get(label)?;
                let console = Arc::new(Console::new(Box::new(chardev.writer(Patience::Brief)))?);
                chardev.attach(console.clone())?;
                console
            }
        })
    }
}

/// Where temporary overlays are made. `/tmp` is often memory: it comes last.
fn scratch_folder(wanted: &Path) -> &Path {
    let usual = [Path::new("/var/tmp"), Path::new("/tmp")];
    if wanted.as_os_str().is_empty() {
        usual.into_iter().find(|p| p.is_dir()).unwrap_or(usual[0])
    } else {
        wanted
    }
}

fn clock(base: RtcBase) -> rtc::Clock {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    match base {
        RtcBase::Utc => Box::new(now),
        RtcBase::LocalTime => {
            let offset = local_offset(now().as_secs());
            Box::new(move || shift(now(), offset))
        }
        RtcBase::Date(start) => {
            let offset = start - i64::try_from(now().as_secs()).unwrap_or(0);
            Box::new(move || shift(now(), offset))
        }
    }
}

fn shift(now: Duration, seconds: i64) -> Duration {
    let by = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 { now.saturating_sub(by) } else { now + by }
}

/// Seconds that local time is ahead of universal time.
#[allow(unsafe_code)]
fn local_offset(seconds: u64) -> i64 {
    let time = libc::time_t::try_from(seconds).unwrap_or(0);
    // SAFETY: all bits zero are a valid `tm`; `localtime_r` fills it in and keeps no pointer.
    unsafe {
        let mut parts: libc::tm = std::mem::zeroed();
        if libc::localtime_r(&raw const time, &raw mut parts).is_null() {
            0
        } else {
            parts.tm_gmtoff
        }
    }
}
