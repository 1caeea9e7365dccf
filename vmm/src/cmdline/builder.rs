//! What has been said so far, and the machine that follows.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::Run;
use super::disk::DriveSpec;
use super::memory::MemorySpec;
use super::net::NetSpec;
use crate::block::config::Persistence;
use crate::block::remote::Confined;
use crate::cpu::topology::Wanted;
use crate::machine::MachineConfig;
use crate::machine::config::{DeviceConfig, DeviceKind};
use crate::sandbox::{Commit, Sandbox};
use crate::virtio::blk::{BlkConfig, Offer};
use crate::{Error, Result};
use imgcore::opts::secret::SecretDef;

/// Everything said. Options may come in any order; references between them are resolved at the end.
#[derive(Debug, Default)]
pub struct Builder {
    /// The machine, as far as options set it directly.
    pub machine: MachineConfig,
    /// `-smp`.
    pub smp: Wanted,
    /// Memory, its objects and nodes.
    pub memory: MemorySpec,
    /// `-drive`.
    pub drives: Vec<DriveSpec>,
    /// `-blockdev`.
    pub nodes: super::blockdev::Nodes,
    /// `-snapshot`.
    pub snapshot: bool,
    /// `-net`, `-netdev`, `-nic`.
    pub net: NetSpec,
    /// `-device`s that refer to others: resolved at the end.
    pub devices: Vec<super::device::DeviceSpec>,
    /// `-serial` was given.
    pub serial_given: bool,
    /// `-nographic`.
    pub nographic: bool,
    /// `-display none` or the like.
    pub no_display: bool,
    /// `-nodefaults`.
    pub nodefaults: bool,
    /// `-monitor` or the like was given.
    pub monitor_given: bool,
    /// How many monitors were made by short spellings.
    pub short_monitors: usize,
    /// What the process around the machine does.
    pub process: super::process::ProcessConfig,
    /// `-balloon virtio`.
    pub balloon: bool,
    /// `-object rng-random`, by id.
    pub rngs: BTreeMap<String, PathBuf>,
    /// `-object secret` and `secret_keyring`, in their order.
    pub secrets: Vec<SecretDef>,
    /// `-sandbox off`.
    pub sandbox_off: bool,
    /// `-sandbox commit=`.
    pub sandbox_commit: Commit,
    /// Lines for people.
    pub warnings: Vec<String>,
    /// Text to show instead of running.
    pub show: Option<String>,
}

impl Builder {
    /// A word that is no option: the first hard disk.
    pub fn positional(&mut self, word: &str) -> Result<()> {
        Err(Error::unsupported(format!(
            "{word}: a disk without if= is an IDE disk, which is not supported yet"
        ))
        .hint(format!("Use -drive file={},if=virtio", word.replace(',', ",,"))))
    }

    /// Everything together.
    pub fn finish(mut self) -> Result<Run> {
        let (topology, note) = self.smp.resolve()?;
        self.warnings.extend(note);
        self.machine.topology = topology;
        self.machine.memory = self.memory.clone().finish(&topology)?;
        super::chardev::defaults(&mut self)?;
        self.process.check(&self.machine, self.nographic)?;
        self.disks_and_cards()?;
        if !self.sandbox_off {
            let removed =
                self.process.pidfile.iter().chain(self.machine.sockets()).cloned().collect();
            self.machine.sandbox = Sandbox::On { removed, commit: self.sandbox_commit };
        }
        if self.machine.kernel.kernel.as_os_str().is_empty() {
            return Err(Error::unsupported(
                "booting from disk, CD or network is not supported yet",
            )
            .hint("Give a kernel: -kernel bzImage -append 'root=/dev/vda1 console=ttyS0'"));
        }
        if let Some(vcpu) =
            (self.machine.pin.len() > topology.cpus as usize).then_some(topology.cpus)
        {
            return Err(Error::invalid(format!("-vcpu-pin: there is no vCPU {vcpu}")));
        }
        Ok(Run { machine: self.machine, process: self.process, warnings: self.warnings })
    }

    fn disks_and_cards(&mut self) -> Result<()> {
        let mut devices = Vec::new();
        for (id, nic) in
            std::mem::take(&mut self.net).finish(&mut self.devices, &mut self.warnings)?
        {
            devices.push(DeviceConfig { id, slot: nic.slot, kind: nic.kind });
        }
        let mut drives = std::mem::take(&mut self.drives);
        if self.snapshot {
            if !self.nodes.is_empty() {
                return Err(Error::invalid("-snapshot does not work with -blockdev")
                    .hint("Use -drive ...,snapshot=on, or an overlay: rimg create -f qcow2 -b IMAGE -F FORMAT overlay.qcow2"));
            }
            for d in drives.iter_mut().filter(|d| !d.persistence_given) {
                d.drive.persistence = Persistence::Temporary;
            }
        }
        for spec in std::mem::take(&mut self.devices) {
            devices.push(spec.resolve(
                &mut drives,
                &mut self.nodes,
                &self.rngs,
                &self.machine.chardevs,
            )?);
        }
        self.warnings.extend(
            self.nodes.unused().map(|n| format!("-blockdev node-name={n}: nothing uses it")),
        );
        drives.sort_by_key(|d| d.index);
        for d in drives {
            if d.only_backend {
                return Err(Error::invalid(format!(
                    "-drive id={}: no -device uses it",
                    d.drive.id
                ))
                .hint(format!("Add -device virtio-blk-pci,drive={}", d.drive.id)));
            }
            let id = d.drive.id.clone();
            let discard = if d.drive.discards() { Offer::Yes } else { Offer::No };
            let shown = BlkConfig { discard, ..BlkConfig::default() };
            let kind = DeviceKind::Blk { drive: Box::new(d.drive), queues: None, shown };
            devices.push(DeviceConfig { id, slot: None, kind });
        }
        if self.balloon {
            let kind = DeviceKind::Balloon { reporting: false, deflate_on_oom: false };
            devices.push(DeviceConfig { id: "balloon0".into(), slot: None, kind });
        }
        for device in &mut devices {
            if let DeviceKind::Blk { drive, .. } = &mut device.kind {
                drive.secrets.clone_from(&self.secrets);
                drive.confined = if self.sandbox_off { Confined::No } else { Confined::Yes };
            }
        }
        // Those with a slot first, so that the others do not take it.
        devices.sort_by_key(|d| d.slot.is_none());
        self.machine.devices = devices;
        Ok(())
    }
}
