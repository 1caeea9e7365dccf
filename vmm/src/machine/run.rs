//! The life of a machine.
//!
//! ```text
//!   Prelaunch --cont--> Running <--cont, stop--> Paused
//!                          |
//!                          +--> Shutdown, GuestPanicked, IoError (stand still)     any --> end
//! ```
//!
//! All changes happen on the main thread ([`Machine::run`]), which takes one event after the other:
//! what devices want, what people and programs command, what signals say. Each change is told to monitors
//! here, and nowhere else.
//!
//! Pausing: first vCPUs stop running guest code, then devices end what they have begun; going on is the
//! reverse. The guest's kvm-clock stands still meanwhile.
//!
//! Shut-down order, in one function ([`Machine::take_down`]): commands are refused; monitors tell what
//! waits; vCPUs stop and their threads end; timers end; devices end their workers and make stored data
//! durable, in the order in which they were made; network scripts run; character devices send what waits and
//! close (a client that sees its connection end knows that data are durable); then memory and the virtual
//! machine go.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use super::boot;
use super::config::{MachineConfig, OnPanic, OnPowerOff, OnReset};
use super::events::{Command, Event, Handle};
use super::loading::Loading;
use super::own_code;
use super::parts::Parts;
use super::timer::RtcTimer;
use crate::block::disk::{ErrorAction, IoError};
use crate::block::stats::Op;
use crate::boot::kernel::Files;
use crate::boot::registers::{self, Entry};
use crate::bus::{Effect, PanicKind};
use crate::chardev::{Chardevs, Key, OnKey};
use crate::control::events::{Cause, PanicAction};
use crate::control::steered::IoStatus;
use crate::control::{Broadcast, MachineEvent, Monitor, RunState};
use crate::kvm::baseline::{ChipBaseline, VcpuBaseline};
use crate::kvm::vcpu::Start;
use crate::kvm::{Vcpu, Vm};
use crate::mem::Memory;
use crate::pci::Root;
use crate::sandbox::{Confinement, Kind};
use crate::vcpu::{Buses, Group};
use crate::{Error, Result};

/// How long monitors may take to tell their clients that the machine ends.
const LAST_WORDS: Duration = Duration::from_secs(1);

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

/// A built machine.
pub struct Machine {
    pub(super) config: MachineConfig,
    pub(super) vm: Arc<Vm>,
    pub(super) memory: Arc<Memory>,
    pub(super) group: Group,
    pub(super) loading: Loading,
    pub(super) parts: Parts,
    pub(super) root: Arc<Root>,
    pub(super) buses: Buses,
    pub(super) chips: ChipBaseline,
    pub(super) baseline: Vec<VcpuBaseline>,
    pub(super) timer: Option<RtcTimer>,
    pub(super) chardevs: Chardevs,
    pub(super) monitors: Vec<Monitor>,
    pub(super) broadcast: Broadcast,
    pub(super) state: RunState,
    /// Set when the machine is to end.
    pub(super) ending: Option<Exit>,
    /// The guest's clock while it stands still.
    pub(super) stopped_clock: Option<u64>,
    /// Disks whose errors stopped the machine.
    pub(super) io_errors: Vec<(String, IoStatus)>,
    pub(super) events: Receiver<Event>,
    pub(super) sender: Sender<Event>,
    /// Entered when the machine begins to run.
    pub(super) confinement: Option<Arc<Confinement>>,
    /// Lines for people, from building.
    pub notes: Vec<String>,
}

impl Machine {
    /// For those who steer the machine from other threads.
    pub fn handle(&self) -> Handle {
        Handle(self.sender.clone())
    }

    /// Thread numbers of the vCPUs.
    pub fn vcpu_threads(&self) -> Vec<Option<i32>> {
        self.group.thread_ids()
    }

    /// Waits until the kernel is in memory, and lets vCPUs begin with it. [`run`](Machine::run) does that too: this is for
    /// those who want to know before whether the machine can run.
    ///
    /// # Errors
    /// What is wrong with the kernel, or with a vCPU.
    pub fn finish_loading(&mut self) -> Result<()> {
        let Some(entry) = self.loading.wait()? else { return Ok(()) };
        for i in 0..self.group.len() {
            let index = u32::try_from(i).unwrap_or(0);
            let done = self.group.with(i, move |vcpu| start_state(vcpu, index, entry));
            done.map_err(|gone| self.why_ended().unwrap_or(gone))??;
        }
        Ok(())
    }

    /// What a vCPU that has ended said.
    fn why_ended(&self) -> Option<Error> {
        self.events.try_iter().find_map(|event| match event {
            Event::Failed(e) => Some(e),
            _ => None,
        })
    }

    /// Runs until the machine ends, and takes it down.
    ///
    /// # Errors
    /// When a vCPU cannot go on, or data could not be made durable at the end.
    pub fn run(self) -> Result<Exit> {
        self.run_and(|_| Ok(()))
    }

    /// As [`run`](Machine::run), and calls `begun` when this thread is confined, so that threads which the caller starts
    /// there to steer the machine are confined too.
    ///
    /// # Errors
    /// As `run`, and those of `begun`.
    pub fn run_and(mut self, begun: impl FnOnce(Handle) -> Result<()>) -> Result<Exit> {
        let result = self.begin(begun).and_then(|()| self.serve());
        if result.is_err() {
            self.tell(&MachineEvent::Shutdown(Cause::Failure));
        }
        let down = self.take_down();
        let exit = result?;
        down.map(|()| exit)
    }

    fn begin(&mut self, begun: impl FnOnce(Handle) -> Result<()>) -> Result<()> {
        if let Some(confinement) = &self.confinement {
            // vCPUs do it themselves; the kernel's thread ends before one of them runs.
            let mut apart = self.group.thread_ids();
            apart.push(self.loading.thread_id());
            confinement.enter_servers(&apart)?;
            // Threads of the clock, of monitors and character devices, which begin here, inherit it.
            confinement.enter(Kind::Machine)?;
        }
        self.timer = self.parts.rtc.clone().map(RtcTimer::start).transpose()?;
        begun(self.handle())?;
        self.finish_loading()?;
        for m in &self.config.monitors {
            let device = self.chardevs.get(&m.chardev)?;
            let handle = Arc::new(self.handle());
            self.monitors.push(Monitor::start(m.mode, device, handle, &self.broadcast)?);
        }
        let handle = self.handle();
        let handle = std::sync::Mutex::new(handle);
        let on_key: OnKey = Arc::new(move |key| {
            let handle = handle.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            match key {
                Key::Quit => handle.send(Command::Quit),
                Key::Flush => handle.send(Command::Flush),
                Key::Help | Key::Switch | Key::Break | Key::Timestamps => {}
            }
        });
        self.chardevs.start(self.config.escape, &on_key)?;
        if self.config.start_paused { Ok(()) } else { self.go_on() }
    }

    fn serve(&mut self) -> Result<Exit> {
        own_code::give_back();
        loop {
            if let Some(exit) = self.ending {
                return Ok(exit);
            }
            let event = self
                .events
                .recv()
                .map_err(|_| Error::invalid("nobody can steer the machine any more"))?;
            match event {
                Event::Failed(e) => return Err(e),
                Event::Effect(effect) => self.effect(effect)?,
                Event::Command(command) => self.command(command)?,
                Event::Disk(error) => self.disk_error(&error)?,
                Event::Job(job, done) => {
                    job(self);
                    // The monitor may have gone.
                    let _ = done.send(());
                }
            }
        }
    }

    pub(super) fn tell(&self, event: &MachineEvent) {
        self.broadcast.send(event);
    }

    /// The machine ends after the present event.
    pub(super) fn end(&mut self, cause: Cause, exit: Exit) {
        if self.ending.is_none() {
            self.tell(&MachineEvent::Shutdown(cause));
            self.ending = Some(exit);
        }
    }

    /// The machine has powered off: it ends, or stands still.
    pub(super) fn power_off(&mut self, cause: Cause, exit: Exit) -> Result<()> {
        if self.config.on_power_off == OnPowerOff::End {
            self.end(cause, exit);
            return Ok(());
        }
        self.tell(&MachineEvent::Shutdown(cause));
        self.stand_still(RunState::Shutdown)
    }

    /// Something that a vCPU did. All of them have been asked to pause (see `Sink`).
    fn effect(&mut self, effect: Effect) -> Result<()> {
        match effect {
            Effect::Reset if self.config.on_reset == OnReset::End => {
                self.power_off(Cause::GuestReset, Exit::Reset)?;
            }
            Effect::Reset => self.reset(Cause::GuestReset)?,
            Effect::PowerOff | Effect::Panicked(PanicKind::Shutdown) => {
                self.power_off(Cause::GuestShutdown, Exit::PowerOff)?;
            }
            Effect::Panicked(PanicKind::Panicked) => self.panicked()?,
            Effect::Exit(code) => self.ending = Some(Exit::Code(code)),
            Effect::Panicked(PanicKind::CrashLoaded) => {
                self.tell(&MachineEvent::GuestCrashloaded);
            }
            Effect::None | Effect::Layout => {}
        }
        if self.state == RunState::Running && self.ending.is_none() {
            self.group.resume();
        }
        Ok(())
    }

    fn panicked(&mut self) -> Result<()> {
        let told = |action| MachineEvent::GuestPanicked(action);
        match (self.config.on_panic, self.config.on_power_off) {
            (OnPanic::Nothing, _) => self.tell(&told(PanicAction::Run)),
            (OnPanic::Pause, _) | (OnPanic::PowerOff, OnPowerOff::Pause) => {
                self.tell(&told(PanicAction::Pause));
                self.stand_still(RunState::GuestPanicked)?;
            }
            (OnPanic::PowerOff | OnPanic::Fail, _) => {
                self.tell(&told(PanicAction::PowerOff));
                self.stand_still(RunState::GuestPanicked)?;
                let failed = self.config.on_panic == OnPanic::Fail;
                self.end(Cause::GuestPanic, if failed { Exit::Code(1) } else { Exit::Panicked });
            }
        }
        Ok(())
    }

    fn command(&mut self, command: Command) -> Result<()> {
        match command {
            Command::Quit => self.end(Cause::Signal, Exit::Quit),
            Command::PowerDown => self.press_power_button(),
            Command::Reset => self.reset_button()?,
            Command::Stop => self.stand_still(RunState::Paused)?,
            Command::Continue => self.go_on()?,
            Command::Flush => self.parts.all.iter().try_for_each(|d| d.flush())?,
        }
        Ok(())
    }

    pub(super) fn press_power_button(&self) {
        if let Some(pm) = &self.parts.pm {
            pm.press_power_button();
        }
        self.tell(&MachineEvent::PowerDown);
    }

    pub(super) fn reset_button(&mut self) -> Result<()> {
        if self.config.on_reset == OnReset::End {
            return self.power_off(Cause::Reset, Exit::Reset);
        }
        self.reset(Cause::Reset)
    }

    fn disk_error(&mut self, e: &IoError) -> Result<()> {
        self.tell(&MachineEvent::BlockIoError {
            device: e.disk.clone(),
            write: e.operation != Op::Read,
            action: match e.action {
                ErrorAction::Report => "report",
                ErrorAction::Ignore => "ignore",
                ErrorAction::Stop => "stop",
            },
            no_space: e.no_space,
            reason: e.reason.clone(),
        });
        if e.action != ErrorAction::Stop {
            return Ok(());
        }
        let status = if e.no_space { IoStatus::NoSpace } else { IoStatus::Failed };
        self.io_errors.retain(|(disk, _)| *disk != e.disk);
        self.io_errors.push((e.disk.clone(), status));
        self.stand_still(RunState::IoError)
    }

    /// Guest code and devices stop; nothing when they stand still.
    pub(super) fn stand_still(&mut self, why: RunState) -> Result<()> {
        if self.state != RunState::Running {
            return Ok(());
        }
        self.pause()?;
        self.state = why;
        // Machines without kvm-clock have nothing to stop.
        self.stopped_clock = self.vm.clock().ok();
        self.tell(&MachineEvent::Stop);
        Ok(())
    }

    /// Devices and guest code go on; nothing when they run.
    pub(super) fn go_on(&mut self) -> Result<()> {
        if self.state == RunState::Running {
            return Ok(());
        }
        let first = self.state == RunState::Prelaunch;
        if let Some(clock) = self.stopped_clock.take() {
            // As above.
            let _ = self.vm.set_clock(clock);
            for index in 0..self.group.len() {
                self.group.with(index, |vcpu| vcpu.note_paused())?;
            }
        }
        self.io_errors.clear();
        self.state = RunState::Running;
        self.start_again()?;
        if !first || self.config.start_paused {
            self.tell(&MachineEvent::Resume);
        }
        Ok(())
    }

    fn pause(&mut self) -> Result<()> {
        self.group.pause()?;
        self.parts.all.iter().try_for_each(|d| d.pause())
    }

    fn start_again(&mut self) -> Result<()> {
        self.parts.all.iter().try_for_each(|d| d.resume())?;
        self.group.resume();
        Ok(())
    }

    /// Everything as after power-on, except the clock and where BARs lie. A machine that stands still goes
    /// on doing so.
    fn reset(&mut self, cause: Cause) -> Result<()> {
        self.pause()?;
        for device in &self.parts.all {
            device.reset();
        }
        self.root.apply_layout(&self.buses);
        self.chips.restore(&self.vm)?;
        let wanted = &self.config.kernel;
        let files = Files::open(&wanted.kernel, &wanted.initrds)?;
        let entry = boot::load(&self.config, &self.memory, files)?;
        for (i, baseline) in self.baseline.iter().enumerate() {
            let (baseline, index) = (baseline.clone(), u32::try_from(i).unwrap_or(0));
            self.group.with(i, move |vcpu| {
                baseline.restore(vcpu)?;
                start_state(vcpu, index, entry)
            })??;
        }
        self.tell(&MachineEvent::Reset(cause));
        if self.state == RunState::Running {
            return self.start_again();
        }
        self.state = RunState::Prelaunch;
        Ok(())
    }

    /// See the module's documentation.
    fn take_down(&mut self) -> Result<()> {
        // Commands that wait, and those that come, are not carried out.
        drop(std::mem::replace(&mut self.events, channel().1));
        for monitor in &self.monitors {
            monitor.finish(LAST_WORDS);
        }
        self.group.stop();
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
        self.chardevs.stop();
        self.monitors.clear();
        first
    }
}

/// IA32_MTRR_DEF_TYPE: on, write-back wherever nothing else is said. Firmware would do that.
const MTRR_DEFAULT: (u32, u64) = (0x2ff, 1 << 11 | 6);

/// The first vCPU begins at the entry, the others wait for it.
pub(super) fn start_state(vcpu: &Vcpu, index: u32, entry: Entry) -> Result<()> {
    vcpu.set_msrs(&[MTRR_DEFAULT])?;
    if index == 0 {
        registers::apply(vcpu, entry)?;
        vcpu.set_start(Start::AtOnce)
    } else {
        vcpu.set_start(Start::OnRequest)
    }
}
