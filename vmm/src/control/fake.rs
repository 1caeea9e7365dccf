//! A machine that is none, for tests of commands.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use super::port::{Ask, Job};
use super::steered::*;
use crate::block::stats::{BlockStats, OpStats};
use crate::pci::config::BarKind;
use crate::{Error, Result};

/// Remembers what was done to it.
#[derive(Default)]
pub struct Fake {
    pub state: RunState,
    pub done: Vec<String>,
    pub memory: BTreeMap<u64, u8>,
    pub cpu: CpuState,
    pub has_balloon: bool,
}

impl Fake {
    #[cfg(test)]
    pub fn poke(&mut self, at: u64, bytes: &[u8]) {
        self.memory.extend((at..).zip(bytes.iter().copied()));
    }

    fn note(&mut self, what: impl Into<String>) {
        self.done.push(what.into());
    }
}

/// The fake as monitors' threads see it.
#[derive(Clone, Default)]
pub struct Shared(pub Arc<Mutex<Fake>>);

impl Ask for Shared {
    fn ask(&self, job: Job) -> bool {
        job(&mut *self.0.lock().unwrap());
        true
    }
}

impl Steered for Fake {
    fn state(&self) -> RunState {
        self.state
    }
    fn name(&self) -> Option<String> {
        Some("test".into())
    }
    fn uuid(&self) -> [u8; 16] {
        std::array::from_fn(|i| u8::try_from(i * 17).unwrap())
    }
    fn stop(&mut self) -> Result<()> {
        self.note("stop");
        self.state = RunState::Paused;
        Ok(())
    }
    fn resume(&mut self) -> Result<()> {
        self.note("resume");
        self.state = RunState::Running;
        Ok(())
    }
    fn system_reset(&mut self) -> Result<()> {
        self.note("reset");
        Ok(())
    }
    fn power_down(&mut self) -> Result<()> {
        self.note("power down");
        Ok(())
    }
    fn quit(&mut self) {
        self.note("quit");
    }
    fn cpus(&self) -> Vec<CpuInfo> {
        [(0, 100, 0), (1, 101, 1)]
            .map(|(index, thread, socket)| CpuInfo { index, thread, place: (socket, 0, 0) })
            .to_vec()
    }
    fn cpu_state(&mut self, _index: usize) -> Result<CpuState> {
        Ok(self.cpu.clone())
    }
    fn nmi(&mut self) -> Result<()> {
        self.note("nmi");
        Ok(())
    }
    fn cpu_model(&self) -> String {
        "qemu64".into()
    }
    fn memory(&self) -> MemoryInfo {
        let node = NodeInfo {
            backend: "pc.ram".into(),
            size: 64 << 20,
            cpus: vec![0, 1],
            ..NodeInfo::default()
        };
        MemoryInfo { numa: true, nodes: vec![node.clone(), node] }
    }
    fn read_physical(&self, at: u64, buf: &mut [u8]) -> bool {
        if at > 1 << 40 {
            return false;
        }
        for (i, b) in (at..).zip(buf) {
            *b = self.memory.get(&i).copied().unwrap_or(0);
        }
        true
    }
    fn mappings(&self) -> Mappings {
        let ram =
            Mapping { start: 0, len: 128 << 20, name: "pc.ram".into(), kind: MappingKind::Ram(0) };
        let rtc = Mapping { start: 0x70, len: 2, name: "rtc".into(), kind: MappingKind::Registers };
        Mappings { memory: vec![ram], ports: vec![rtc] }
    }
    fn pci(&self) -> Vec<PciInfo> {
        vec![PciInfo {
            slot: 3,
            driver: "virtio-net-pci".into(),
            id: "net0".into(),
            class: 0x200,
            number: (0x1af4, 0x1000),
            subsystem: (0x1af4, 1),
            pin: 1,
            line: 11,
            bars: vec![
                BarInfo { bar: 0, kind: BarKind::Io, base: Some(0xc000), len: 64 },
                BarInfo { bar: 4, kind: BarKind::Memory64, base: None, len: 0x4000 },
            ],
            ..PciInfo::default()
        }]
    }
    fn blocks(&self) -> Vec<BlockInfo> {
        vec![BlockInfo {
            id: "virtio0".into(),
            device: "dev0".into(),
            file: "e.qcow2".into(),
            format: "qcow2".into(),
            size: 10 << 20,
            backing: vec!["d.qcow2".into()],
            writeback: true,
            stats: BlockStats {
                read: OpStats { operations: 3, bytes: 4096, ..OpStats::default() },
                ..BlockStats::default()
            },
            ..BlockInfo::default()
        }]
    }
    fn commit(&mut self, device: Option<&str>) -> Result<bool> {
        self.note(format!("commit {device:?}"));
        match device {
            Some("broken") => Err(Error::invalid("no space")),
            Some(d) => Ok(d == "virtio0"),
            None => Ok(true),
        }
    }
    fn nets(&self) -> Vec<NetInfo> {
        vec![NetInfo {
            id: "net0".into(),
            model: "virtio-net-pci".into(),
            mac: [0x52, 0x54, 0, 0x12, 0x34, 0x56],
            backend: "hostnet0".into(),
            backend_text: "index=0,type=tap,ifname=tap0".into(),
            up: true,
        }]
    }
    fn set_link(&mut self, name: &str, up: bool) -> Result<bool> {
        self.note(format!("link {name} {up}"));
        Ok(name == "net0")
    }
    fn balloon(&self) -> Option<BalloonInfo> {
        let stats = vec![(4, 1000), (99, 1)];
        self.has_balloon.then_some(BalloonInfo { actual: 100 << 20, stats })
    }
    fn set_balloon(&mut self, bytes: u64) -> Result<()> {
        self.note(format!("balloon {bytes}"));
        Ok(())
    }
    fn chardevs(&self) -> Vec<CharInfo> {
        vec![CharInfo { label: "serial0".into(), filename: "pty:/dev/pts/3".into(), in_use: true }]
    }
    fn read_ring(&mut self, label: &str, most: usize) -> Result<Vec<u8>> {
        if label == "r" {
            Ok(b"ring\x01"[..most.min(5)].to_vec())
        } else {
            Err(Error::invalid("no ring"))
        }
    }
}
