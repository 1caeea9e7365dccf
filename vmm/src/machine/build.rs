//! From plain data to a machine that has not run yet.

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, OnceLock};

use super::config::MachineConfig;
use super::events::{Event, Sink};
use super::loading::Loading;
use super::parts::{Parts, Workshop};
use super::run::Machine;
use crate::Result;
use crate::chardev::{Chardevs, Standard};
use crate::control::events::Broadcast;
use crate::control::{MachineEvent, RunState};
use crate::cpu::{self, Template};
use crate::kvm::baseline::{ChipBaseline, VcpuBaseline};
use crate::kvm::vm::SlotKind;
use crate::kvm::{System, Vcpu, Vm};
use crate::mem;
use crate::pci::Root;
use crate::vcpu::{Buses, EffectSink, Group, VcpuSettings};

/// Whoever builds a machine, while it is being built.
pub trait Caller {
    /// A line for people, at once: the name of a pseudo terminal, that a connection is waited for.
    fn notice(&mut self, _line: &str) {}

    /// Everything that needs rights is open, and no thread that would keep them has been started: rights may be given up.
    ///
    /// # Errors
    /// The machine is not built.
    fn all_open(&mut self) -> Result<()> {
        Ok(())
    }
}

/// A caller that has nothing to say.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Caller for Silent {}

impl Machine {
    /// Builds a machine; nothing runs yet.
    ///
    /// # Errors
    /// Names the device, file or option that could not be had, and what to do.
    pub fn build(
        config: MachineConfig,
        standard: Standard,
        caller: &mut dyn Caller,
    ) -> Result<Self> {
        let system = System::open()?;
        config.memory.check(config.topology.max_cpus)?;
        config.topology.check(system.max_vcpus())?;
        let memory = Arc::new(mem::build(&config.memory)?);
        let loading = Loading::start(&config, &memory)?;
        let chardevs = Chardevs::open(&config.chardevs, standard, &mut |line| caller.notice(line))?;
        let vm = Arc::new(system.create_vm()?);
        // Before the chips: KVM waits for readers of its tables at each change, and it is the second wait
        // in a row that takes milliseconds.
        vm.map_memory(&memory, 0, SlotKind::Ram)?;
        let (buses, root) = (Buses::default(), Arc::new(Root::new()));
        let workshop = Workshop {
            config: &config,
            vm: &vm,
            memory: &memory,
            buses: &buses,
            root: &root,
            chardevs: &chardevs,
        };
        vm.create_chips()?;
        let mut parts = workshop.build()?;
        let template = cpu::build(&config.cpu, &system.supported_cpuid()?)?;
        let mut notes = std::mem::take(&mut parts.notes);
        notes.extend(template.warnings.iter().map(|w| format!("warning: {w}")));
        let (vcpus, baseline) = make_vcpus(&config, &vm, &template)?;
        let chips = ChipBaseline::take(&vm)?;
        let (sender, events) = channel();
        let sink = Arc::new(Sink {
            events: Mutex::new(sender.clone()),
            control: OnceLock::new(),
            root: root.clone(),
            buses: buses.clone(),
        });
        let as_sink: Arc<dyn EffectSink> = sink.clone();
        // All threads so far open nothing (the one that loads the kernel), and change with this one (the C library sees
        // to that): who the process is can still be changed for all of it.
        caller.all_open()?;
        let prepared = crate::sandbox::prepare(&config, parts.disks.iter().map(|d| &*d.disk))?;
        let confinement = prepared.as_ref().map(|p| p.confinement.clone());
        notes.extend(prepared.into_iter().flat_map(|p| p.notes));
        let settings = VcpuSettings { pin: config.pin.clone(), confinement: confinement.clone() };
        let group = Group::start(vcpus, &buses, &as_sink, &settings)?;
        // Set once, here.
        let _ = sink.control.set(group.control().clone());
        let broadcast = Broadcast::default();
        watch(&parts, &sender, &broadcast);
        Ok(Machine {
            config,
            vm,
            memory,
            group,
            loading,
            parts,
            root,
            buses,
            chips,
            baseline,
            timer: None,
            chardevs,
            monitors: Vec::new(),
            broadcast,
            state: RunState::Prelaunch,
            ending: None,
            stopped_clock: None,
            io_errors: Vec::new(),
            events,
            sender,
            confinement,
            notes,
        })
    }
}

/// Makes the vCPUs, and notes the state of each before its first instruction is known.
fn make_vcpus(
    config: &MachineConfig,
    vm: &Vm,
    template: &Template,
) -> Result<(Vec<Vcpu>, Vec<VcpuBaseline>)> {
    let (mut vcpus, mut baseline) = (Vec::new(), Vec::new());
    for index in 0..config.topology.cpus {
        let id = crate::num::low8(config.topology.apic_id(index).into());
        let vcpu = vm.create_vcpu(id)?;
        vcpu.set_cpuid(&template.for_vcpu(index, &config.topology)?)?;
        baseline.push(VcpuBaseline::take(&vcpu)?);
        vcpus.push(vcpu);
    }
    Ok((vcpus, baseline))
}

/// Errors of disks and sizes of the balloon reach the machine and its monitors.
fn watch(parts: &Parts, sender: &std::sync::mpsc::Sender<Event>, broadcast: &Broadcast) {
    for part in &parts.disks {
        let sender = Mutex::new(sender.clone());
        part.disk.on_error(Box::new(move |e| {
            let sender = sender.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            // A machine that is being taken down does not listen any more.
            let _ = sender.send(Event::Disk(e.clone()));
        }));
    }
    if let Some(balloon) = &parts.balloon {
        let broadcast = broadcast.clone();
        balloon.watch(Arc::new(move |actual| broadcast.send(&MachineEvent::BalloonChange(actual))));
    }
}
