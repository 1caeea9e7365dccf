//! The machine as monitors' commands see it.

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use imgcore::storage::CacheMode;

use super::run::{Exit, Machine};
use crate::block::config::WriteCache;
use crate::control::events::Cause;
use crate::control::steered::{
    BalloonInfo, BarInfo, BlockInfo, CharInfo, CpuInfo, IoStatus, Mapping, MappingKind, Mappings,
    MemoryInfo, NetInfo, NodeInfo, PciInfo, RunState, Steered,
};
use crate::kvm::CpuState;
use crate::mem::config::Sharing;
use crate::mem::layout;
use crate::net::config::TapSource;
use crate::num::{get_le, index, low8, low16};
use crate::pci::Function;
use crate::{Error, Result};

/// What the kernel answers by itself: ports.
const KERNEL_PORTS: [(u64, u64, &str); 5] = [
    (0x20, 2, "kvm-pic"),
    (0x40, 4, "kvm-pit"),
    (0x61, 1, "kvm-pit-speaker"),
    (0xa0, 2, "kvm-pic"),
    (0x4d0, 2, "kvm-elcr"),
];
/// And memory addresses.
const KERNEL_MEMORY: [(u64, u64, &str); 2] =
    [(layout::IOAPIC, 0x1000, "kvm-ioapic"), (layout::LAPIC, 0x10_0000, "kvm-apic-msi")];

fn registers(start: u64, len: u64, name: impl Into<String>) -> Mapping {
    Mapping { start, len, name: name.into(), kind: MappingKind::Registers }
}

fn pci_info(devfn: u8, function: &dyn Function, id: String) -> PciInfo {
    let field = |offset: u16, len: usize| {
        let mut bytes = [0; 4];
        function.config_read(offset, &mut bytes[..len]);
        get_le(&bytes[..len])
    };
    let decoded = function.decoded();
    let bar = |b: crate::pci::Placed| BarInfo {
        bar: b.bar,
        kind: b.kind,
        base: decoded.iter().find(|d| d.bar == b.bar).map(|d| d.base),
        len: b.len,
    };
    PciInfo {
        slot: devfn >> 3,
        function: devfn & 7,
        driver: function.name(),
        id,
        class: low16(field(10, 2)),
        number: (low16(field(0, 2)), low16(field(2, 2))),
        subsystem: (low16(field(0x2c, 2)), low16(field(0x2e, 2))),
        pin: low8(field(0x3d, 1)),
        line: low8(field(0x3c, 1)),
        bars: function.bars().into_iter().map(bar).collect(),
    }
}

/// A back end as `info network` shows it.
fn tap_text(n: &super::parts::NicPart) -> String {
    let script = |s: &Option<std::path::PathBuf>| {
        s.as_ref().map_or_else(|| "no".to_owned(), |p| p.display().to_string())
    };
    match &n.config.source {
        TapSource::Descriptors(fds) => {
            let fds: Vec<String> = fds.iter().map(i32::to_string).collect();
            format!("index=0,type=tap,fd={}", fds.join(":"))
        }
        TapSource::Bridge { bridge, .. } => {
            format!("index=0,type=bridge,br={bridge},ifname={}", n.interface)
        }
        TapSource::Name(_) => format!(
            "index=0,type=tap,ifname={},script={},downscript={}",
            n.interface,
            script(&n.config.script),
            script(&n.config.downscript)
        ),
    }
}

impl Machine {
    /// Guest memory piece by piece, with the names of what it is made of.
    fn ram(&self) -> Vec<Mapping> {
        let mut all = Vec::new();
        let mut before = 0;
        for node in self.config.memory.nodes.iter().filter(|n| n.size > 0) {
            for piece in layout::place(before, node.size) {
                all.push(Mapping {
                    start: piece.guest,
                    len: piece.len,
                    name: node.backend.id.clone(),
                    kind: MappingKind::Ram(piece.offset),
                });
            }
            before += node.size;
        }
        all
    }

    fn block_info(&self, part: &super::parts::DiskPart) -> BlockInfo {
        let disk = &part.disk;
        let image = disk.image().and_then(|i| i.describe().ok());
        let cache = self.config.devices.iter().find_map(|d| match &d.kind {
            super::config::DeviceKind::Blk { drive, .. } if drive.id == disk.name() => {
                Some(drive.image.cache)
            }
            _ => None,
        });
        let name = |i: &crate::block::image::ImageDescription| i.file.display().to_string();
        let status = self.io_errors.iter().find(|(d, _)| d == disk.name());
        let cache = cache.flatten().unwrap_or_default();
        BlockInfo {
            id: disk.name().to_owned(),
            device: part.device.clone(),
            file: image.as_ref().map(name).unwrap_or_default(),
            format: image.as_ref().map(|i| i.format.clone()).unwrap_or_default(),
            encrypted: image.as_ref().is_some_and(|i| i.encrypted),
            size: disk.len(),
            read_only: disk.read_only(),
            backing: image
                .map(|i| i.below.into_iter().map(|(name, _)| name).collect())
                .unwrap_or_default(),
            writeback: disk.write_cache() == WriteCache::Writeback,
            direct: cache.direct(),
            no_flush: cache == CacheMode::Unsafe,
            stats: disk.stats(),
            status: status.map_or(IoStatus::Ok, |(_, s)| *s),
        }
    }
}

impl Steered for Machine {
    fn state(&self) -> RunState {
        self.state
    }

    fn name(&self) -> Option<String> {
        self.config.name.clone()
    }

    fn uuid(&self) -> [u8; 16] {
        self.config.smbios.uuid
    }

    fn stop(&mut self) -> Result<()> {
        self.stand_still(RunState::Paused)
    }

    fn resume(&mut self) -> Result<()> {
        self.go_on()
    }

    fn system_reset(&mut self) -> Result<()> {
        self.reset_button()
    }

    fn power_down(&mut self) -> Result<()> {
        self.press_power_button();
        Ok(())
    }

    fn quit(&mut self) {
        self.end(Cause::Quit, Exit::Quit);
    }

    fn cpus(&self) -> Vec<CpuInfo> {
        let threads = self.group.thread_ids();
        let info = |(index, thread): (usize, Option<i32>)| CpuInfo {
            index,
            thread: thread.unwrap_or(0),
            place: self.config.topology.place(u32::try_from(index).unwrap_or(0)),
        };
        threads.into_iter().enumerate().map(info).collect()
    }

    fn cpu_state(&mut self, index: usize) -> Result<CpuState> {
        self.group.with(index, |vcpu| vcpu.state())?
    }

    fn nmi(&mut self) -> Result<()> {
        for index in 0..self.group.len() {
            self.group.with(index, |vcpu| vcpu.nmi())??;
        }
        Ok(())
    }

    fn cpu_model(&self) -> String {
        self.config.cpu.model.clone()
    }

    fn memory(&self) -> MemoryInfo {
        let m = &self.config.memory;
        let node = |n: &crate::mem::config::Node| NodeInfo {
            backend: n.backend.id.clone(),
            size: n.size,
            cpus: n.cpus.clone(),
            merge: n.backend.merge,
            dump: n.backend.dump,
            prealloc: n.backend.prealloc,
            share: n.backend.sharing == Sharing::Shared,
        };
        MemoryInfo { numa: m.numa, nodes: m.nodes.iter().map(node).collect() }
    }

    fn read_physical(&self, at: u64, buf: &mut [u8]) -> bool {
        // Only memory: reading registers could change a device.
        let inside = self.memory.iter().any(|r| {
            let start = r.start_addr().0;
            at >= start && at - start < r.len()
        });
        inside && self.memory.read_slice(buf, GuestAddress(at)).is_ok()
    }

    fn mappings(&self) -> Mappings {
        let mut memory = self.ram();
        let named = |(start, len, name): (u64, u64, String)| registers(start, len, name);
        memory.extend(self.buses.mmio.layout().into_iter().map(named));
        memory.extend(KERNEL_MEMORY.iter().map(|(s, l, n)| registers(*s, *l, *n)));
        memory.sort_by_key(|m| m.start);
        let mut ports: Vec<Mapping> = self.buses.ports.layout().into_iter().map(named).collect();
        ports.extend(KERNEL_PORTS.iter().map(|(s, l, n)| registers(*s, *l, *n)));
        ports.sort_by_key(|m| m.start);
        Mappings { memory, ports }
    }

    fn pci(&self) -> Vec<PciInfo> {
        let id = |slot: u8| {
            let found = self.parts.slots.iter().find(|(s, _)| *s == slot);
            found.map(|(_, id)| id.clone()).unwrap_or_default()
        };
        self.root.list().iter().map(|(at, f)| pci_info(*at, &**f, id(at >> 3))).collect()
    }

    fn blocks(&self) -> Vec<BlockInfo> {
        self.parts.disks.iter().map(|d| self.block_info(d)).collect()
    }

    fn commit(&mut self, device: Option<&str>) -> Result<bool> {
        let mut found = false;
        for part in self.parts.disks.iter().filter(|p| device.is_none_or(|d| d == p.disk.name())) {
            let Some(image) = part.disk.image() else { continue };
            let description = image.describe()?;
            // Those without anything below have nothing to commit; a name that was given says why.
            if device.is_none() && !description.temporary && description.below.is_empty() {
                continue;
            }
            image.commit()?;
            found = true;
        }
        Ok(found)
    }

    fn nets(&self) -> Vec<NetInfo> {
        let info = |n: &super::parts::NicPart| NetInfo {
            id: n.device.clone(),
            model: "virtio-net-pci".into(),
            mac: n.net.mac(),
            backend: n.config.name.clone(),
            backend_text: tap_text(n),
            up: n.net.link(),
        };
        self.parts.nics.iter().map(info).collect()
    }

    fn set_link(&mut self, name: &str, up: bool) -> Result<bool> {
        let named = |n: &&super::parts::NicPart| n.device == name || n.config.name == name;
        let found: Vec<_> = self.parts.nics.iter().filter(named).collect();
        found.iter().for_each(|n| n.net.set_link(up));
        Ok(!found.is_empty())
    }

    fn balloon(&self) -> Option<BalloonInfo> {
        let b = self.parts.balloon.as_ref()?;
        // For the next one who asks: the guest answers when it gets round to it.
        b.request_stats();
        Some(BalloonInfo { actual: b.guest_memory(), stats: b.stats() })
    }

    fn set_balloon(&mut self, bytes: u64) -> Result<()> {
        match &self.parts.balloon {
            Some(b) => b.set_guest_memory(bytes),
            None => Err(Error::invalid("there is no balloon")),
        }
    }

    fn chardevs(&self) -> Vec<CharInfo> {
        let info = |c: &std::sync::Arc<crate::chardev::Chardev>| CharInfo {
            label: c.label().to_owned(),
            filename: c.filename(),
            in_use: c.in_use(),
        };
        self.chardevs.all().map(info).collect()
    }

    fn read_ring(&mut self, label: &str, most: usize) -> Result<Vec<u8>> {
        self.chardevs.get(label)?.read_ring(index(crate::num::len_u64(most)))
    }
}
