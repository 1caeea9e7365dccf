//! The life of a machine.
//!
//! Shut-down order, in one function ([`Machine::take_down`]): vCPUs stop and their threads end; input
//! and timer threads end; devices end their workers and make stored data durable, in the order in which
//! they were made; network scripts run; then memory and the virtual machine go.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};

use super::boot;
use super::config::{MachineConfig, OnPowerOff, OnReset};
use super::events::{Command, Event, Handle, Sink};
use super::parts::{Parts, Workshop};
use super::timer::RtcTimer;
use crate::block::disk::ErrorAction;
use crate::boot::registers::{self, Entry};
use crate::bus::{Effect, PanicKind};
use crate::chardev::Standard;
use crate::chardev::input::{InputThread, Key};
use crate::cpu;
use crate::kvm::baseline::{ChipBaseline, VcpuBaseline};
use crate::kvm::vcpu::Start;
use crate::kvm::vm::SlotKind;
use crate::kvm::{System, Vcpu, Vm};
use crate::mem::{self, Memory};
use crate::pci::Root;
use crate::vcpu::{Buses, EffectSink, Group, VcpuSettings};
use crate::{Error, Result};

/// How a machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Powered off.
    PowerOff,
    /// Wanted to restart, and was not to.
    Reset,
    /// Told to from outside.
    Quit,
    /// The guest has crashed.
    Panicked,
    /// The guest chose this exit status.
    Code(u8),
}

/// What a machine tells while it runs.
pub type Notice = Box<dyn Fn(&str) + Send>;

/// A built machine.
pub struct Machine {
    config: MachineConfig,
    vm: Arc<Vm>,
    memory: Arc<Memory>,
    group: Group,
    parts: Parts,
    root: Arc<Root>,
    buses: Buses,
    chips: ChipBaseline,
    baseline: Vec<VcpuBaseline>,
    inputs: Vec<InputThread>,
    timer: Option<RtcTimer>,
    events: Receiver<Event>,
    sender: Sender<Event>,
    /// Lines for people, from building.
    pub notes: Vec<String>,
}

impl Machine {
    /// Builds a machine; nothing runs yet.
    pub fn build(config: MachineConfig, standard: Standard) -> Result<Self> {
        let system = System::open()?;
        config.memory.check(config.topology.max_cpus)?;
        config.topology.check(system.max_vcpus())?;
        let vm = Arc::new(system.create_vm()?);
        let memory = Arc::new(mem::build(&config.memory)?);
        // Before the chips: KVM waits for readers of its tables at each change, and it is the second wait
        // in a row that takes milliseconds.
        vm.map_memory(&memory, 0, SlotKind::Ram)?;
        vm.create_chips()?;
        let (buses, root) = (Buses::default(), Arc::new(Root::new()));
        let workshop = Workshop {
            config: &config,
            vm: &vm,
            memory: &memory,
            buses: &buses,
            root: &root,
            standard,
        };
        let mut parts = workshop.build()?;
        let entry = boot::load(&config, &memory)?;
        let template = cpu::build(&config.cpu, &system.supported_cpuid()?)?;
        let mut notes = std::mem::take(&mut parts.notes);
        notes.extend(template.warnings.iter().map(|w| format!("warning: {w}")));
        let (mut vcpus, mut baseline) = (Vec::new(), Vec::new());
        for index in 0..config.topology.cpus {
            let id = crate::num::low8(config.topology.apic_id(index).into());
            let vcpu = vm.create_vcpu(id)?;
            vcpu.set_cpuid(&template.for_vcpu(index, &config.topology)?)?;
            baseline.push(VcpuBaseline::take(&vcpu)?);
            start_state(&vcpu, index, entry)?;
            vcpus.push(vcpu);
        }
        let chips = ChipBaseline::take(&vm)?;
        let (sender, events) = channel();
        let sink = Arc::new(Sink {
            events: Mutex::new(sender.clone()),
            control: OnceLock::new(),
            root: root.clone(),
            buses: buses.clone(),
        });
        let as_sink: Arc<dyn EffectSink> = sink.clone();
        let settings = VcpuSettings { pin: config.pin.clone() };
        let group = Group::start(vcpus, &buses, &as_sink, &settings)?;
        // Set once, here.
        let _ = sink.control.set(group.control().clone());
        for part in &parts.disks {
            let handle = Handle(sender.clone());
            part.disk.on_error(Box::new(move |e| {
                if e.action == ErrorAction::Stop {
                    handle.send(Command::Stop);
                }
            }));
        }
        let timer = parts.rtc.clone().map(RtcTimer::start).transpose()?;
        Ok(Machine {
            config,
            vm,
            memory,
            group,
            parts,
            root,
            buses,
            chips,
            baseline,
            inputs: Vec::new(),
            timer,
            events,
            sender,
            notes,
        })
    }

    /// For those who steer the machine from other threads.
    pub fn handle(&self) -> Handle {
        Handle(self.sender.clone())
    }

    /// Thread numbers of the vCPUs.
    pub fn vcpu_threads(&self) -> Vec<Option<i32>> {
        self.group.thread_ids()
    }

    /// Runs until the machine ends, and takes it down. `notice` gets lines for people.
    ///
    /// # Errors
    /// When a vCPU cannot go on, or data could not be made durable at the end.
    pub fn run(mut self, notice: Notice) -> Result<Exit> {
        let notice = Arc::new(Mutex::new(notice));
        self.start_inputs(&notice)?;
        if !self.config.start_paused {
            self.group.resume();
        }
        let result = self.serve();
        let down = self.take_down();
        let exit = result?;
        down.map(|()| exit)
    }

    fn start_inputs(&mut self, notice: &Arc<Mutex<Notice>>) -> Result<()> {
        for port in &mut self.parts.ports {
            let Some(input) = port.input.take() else { continue };
            let on_key = port.keys.then(|| {
                let (handle, notice) = (Handle(self.sender.clone()), notice.clone());
                let call: Box<dyn Fn(Key) + Send> =
                    Box::new(move |key| press(key, &handle, &notice));
                call
            });
            self.inputs.push(InputThread::start(input, port.serial.clone(), on_key)?);
        }
        Ok(())
    }

    fn serve(&mut self) -> Result<Exit> {
        loop {
            let event = self
                .events
                .recv()
                .map_err(|_| Error::invalid("nobody can steer the machine any more"))?;
            let end = match event {
                Event::Failed(e) => return Err(e),
                Event::Effect(effect) => self.effect(effect)?,
                Event::Command(command) => self.command(command)?,
            };
            if let Some(exit) = end {
                return Ok(exit);
            }
        }
    }

    fn effect(&mut self, effect: Effect) -> Result<Option<Exit>> {
        match effect {
            Effect::Reset if self.config.on_reset == OnReset::End => Ok(Some(Exit::Reset)),
            Effect::Reset => self.reset().map(|()| None),
            Effect::PowerOff | Effect::Panicked(PanicKind::Shutdown)
                if self.config.on_power_off == OnPowerOff::Pause =>
            {
                self.pause()?;
                Ok(None)
            }
            Effect::PowerOff | Effect::Panicked(PanicKind::Shutdown) => Ok(Some(Exit::PowerOff)),
            Effect::Panicked(PanicKind::Panicked) => Ok(Some(Exit::Panicked)),
            Effect::Exit(code) => Ok(Some(Exit::Code(code))),
            // The guest's own crash kernel takes over.
            Effect::Panicked(PanicKind::CrashLoaded) | Effect::None | Effect::Layout => {
                self.group.resume();
                Ok(None)
            }
        }
    }

    fn command(&mut self, command: Command) -> Result<Option<Exit>> {
        match command {
            Command::Quit => return Ok(Some(Exit::Quit)),
            Command::PowerDown => {
                if let Some(pm) = &self.parts.pm {
                    pm.press_power_button();
                }
            }
            Command::Reset => return self.effect(Effect::Reset),
            Command::Stop => self.pause()?,
            Command::Continue => self.resume()?,
            Command::Flush => self.parts.all.iter().try_for_each(|d| d.flush())?,
        }
        Ok(None)
    }

    fn pause(&mut self) -> Result<()> {
        self.group.pause()?;
        self.parts.all.iter().try_for_each(|d| d.pause())
    }

    fn resume(&mut self) -> Result<()> {
        self.parts.all.iter().try_for_each(|d| d.resume())?;
        self.group.resume();
        Ok(())
    }

    /// Everything as after power-on, except the clock and where BARs lie.
    fn reset(&mut self) -> Result<()> {
        self.pause()?;
        for device in &self.parts.all {
            device.reset();
        }
        self.root.apply_layout(&self.buses);
        self.chips.restore(&self.vm)?;
        let entry = boot::load(&self.config, &self.memory)?;
        for (i, baseline) in self.baseline.iter().enumerate() {
            let (baseline, index) = (baseline.clone(), u32::try_from(i).unwrap_or(0));
            self.group.with(i, move |vcpu| {
                baseline.restore(vcpu)?;
                start_state(vcpu, index, entry)
            })??;
        }
        self.resume()
    }

    /// See the module's documentation.
    fn take_down(&mut self) -> Result<()> {
        self.group.stop();
        self.inputs.clear();
        self.timer = None;
        let mut first = Ok(());
        for device in &self.parts.all {
            if let Err(e) = device.shut_down() {
                first = first.and(Err(e));
            }
        }
        for script in &self.parts.downscripts {
            if let Err(e) = script.run() {
                first = first.and(Err(e));
            }
        }
        first
    }
}

/// IA32_MTRR_DEF_TYPE: on, write-back wherever nothing else is said. Firmware would do that.
const MTRR_DEFAULT: (u32, u64) = (0x2ff, 1 << 11 | 6);

/// The first vCPU begins at the entry, the others wait for it.
fn start_state(vcpu: &Vcpu, index: u32, entry: Entry) -> Result<()> {
    vcpu.set_msrs(&[MTRR_DEFAULT])?;
    if index == 0 {
        registers::apply(vcpu, entry)?;
        vcpu.set_start(Start::AtOnce)
    } else {
        vcpu.set_start(Start::OnRequest)
    }
}

fn press(key: Key, handle: &Handle, notice: &Mutex<Notice>) {
    let say = |text: &str| notice.lock().unwrap_or_else(std::sync::PoisonError::into_inner)(text);
    match key {
        Key::Quit => {
            say("rkvm: Terminated");
            handle.send(Command::Quit);
        }
        Key::Help => {
            say("C-a h    print this help\r\nC-a x    exit\r\nC-a s    wait for the disks\r\n\
             C-a b    send break (magic sysrq)\r\nC-a C-a  sends C-a");
        }
        Key::Flush => handle.send(Command::Flush),
        Key::Monitor => say("rkvm: there is no monitor yet; Ctrl-a x ends the guest"),
        Key::Timestamps => say("rkvm: time stamps are not supported yet"),
        Key::Break => {}
    }
}
