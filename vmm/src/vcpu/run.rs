//! The run loop of a vCPU, and the group of all of them.

use std::fmt;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::{Pid, gettid};

use super::control::{Control, Wish};
use crate::bus::{Bus, Effect};
use crate::kvm::{Exit, Vcpu};
use crate::sandbox::{Confinement, Kind};
use crate::{Error, Result};

/// The two address spaces of the guest.
#[derive(Clone, Debug, Default)]
pub struct Buses {
    /// Ports.
    pub ports: Arc<Bus>,
    /// Addresses without memory.
    pub mmio: Arc<Bus>,
}

/// Takes what accesses want of the machine. Called from vCPU threads; must not wait for vCPUs.
pub trait EffectSink: Send + Sync {
    /// A device answered with something other than `Effect::None`, or the processor shut down.
    fn effect(&self, effect: Effect);
    /// A vCPU's thread cannot go on.
    fn failed(&self, vcpu: u8, error: Error);
}

/// Work for a vCPU's thread, done when it is out of guest mode.
pub type Job = Box<dyn FnOnce(&mut Vcpu) + Send>;

/// How the threads are made.
#[derive(Clone, Debug, Default)]
pub struct VcpuSettings {
    /// Host CPUs that each vCPU may run on; empty for any. By vCPU.
    pub pin: Vec<Vec<usize>>,
    /// Entered by each thread before it runs guest code.
    pub confinement: Option<Arc<Confinement>>,
}

/// What the thread of a vCPU was doing when it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was told to stop.
    Stopped,
    /// It could not go on; the sink has the error.
    Failed,
}

struct Member {
    jobs: Sender<Job>,
    thread: Option<JoinHandle<Ended>>,
    tid: Arc<OnceLock<Pid>>,
}

/// All vCPUs of a machine.
pub struct Group {
    control: Arc<Control>,
    members: Vec<Member>,
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group").field("control", &self.control).finish_non_exhaustive()
    }
}

/// What one thread works with.
struct Worker {
    index: usize,
    vcpu: Vcpu,
    control: Arc<Control>,
    buses: Buses,
    sink: Arc<dyn EffectSink>,
    jobs: Receiver<Job>,
    tid: Arc<OnceLock<Pid>>,
    pin: Vec<usize>,
    confinement: Option<Arc<Confinement>>,
}

impl Group {
    /// Starts one thread a vCPU, all paused.
    pub fn start(
        vcpus: Vec<Vcpu>,
        buses: &Buses,
        sink: &Arc<dyn EffectSink>,
        settings: &VcpuSettings,
    ) -> Result<Self> {
        let control = Control::new(vcpus.len());
        let mut group = Group { control: control.clone(), members: Vec::new() };
        for (index, vcpu) in vcpus.into_iter().enumerate() {
            let (jobs, inbox) = channel();
            let tid = Arc::default();
            let name = format!("CPU {}/KVM", vcpu.id());
            let worker = Worker {
                index,
                vcpu,
                control: control.clone(),
                buses: buses.clone(),
                sink: Arc::clone(sink),
                jobs: inbox,
                tid: Arc::clone(&tid),
                pin: settings.pin.get(index).cloned().unwrap_or_default(),
                confinement: settings.confinement.clone(),
            };
            let thread = std::thread::Builder::new()
                .name(name)
                .spawn(move || worker.run())
                .map_err(|e| Error::io(&e).context("cannot start the thread of a vCPU"))?;
            group.members.push(Member { jobs, thread: Some(thread), tid });
        }
        Ok(group)
    }

    /// What steers them; may be kept by other threads.
    pub fn control(&self) -> &Arc<Control> {
        &self.control
    }

    /// Lets guest code run.
    pub fn resume(&self) {
        self.control.set(Wish::Run);
    }

    /// Stops guest code, and waits until it has stopped.
    ///
    /// # Errors
    /// When a vCPU does not come out of guest mode within ten seconds.
    pub fn pause(&self) -> Result<()> {
        self.control.set(Wish::Pause);
        if self.control.wait_settled(Duration::from_secs(10)) {
            Ok(())
        } else {
            Err(Error::errno(libc::ETIMEDOUT).context("a vCPU does not leave guest mode"))
        }
    }

    /// Has a vCPU's thread do `work` (now when paused, at its next exit when running) and waits for it.
    pub fn with<R: Send + 'static>(
        &self,
        index: usize,
        work: impl FnOnce(&mut Vcpu) -> R + Send + 'static,
    ) -> Result<R> {
        let gone = || Error::errno(libc::ESRCH).context(format!("vCPU {index} has ended"));
        let (answer, result) = channel();
        let job: Job = Box::new(move |vcpu| {
            // The one who asked may have given up.
            let _ = answer.send(work(vcpu));
        });
        let member = self.members.get(index).ok_or_else(gone)?;
        member.jobs.send(job).map_err(|_| gone())?;
        self.control.nudge();
        result.recv().map_err(|_| gone())
    }

    /// Ends all threads. Afterwards nothing touches devices or guest memory on behalf of guest code.
    pub fn stop(&mut self) -> Vec<Ended> {
        self.control.set(Wish::Stop);
        let mut ended = Vec::new();
        for member in &mut self.members {
            if let Some(thread) = member.thread.take() {
                ended.push(thread.join().unwrap_or(Ended::Failed));
            }
        }
        ended
    }

    /// Thread numbers, for `info cpus` and for those who pin threads themselves.
    pub fn thread_ids(&self) -> Vec<Option<i32>> {
        // A thread says its number before anything else, but may not have come to it yet.
        self.members.iter().map(|m| Some(m.tid.wait().as_raw())).collect()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// True without vCPUs.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Worker {
    fn run(mut self) -> Ended {
        // Set once, here.
        let _ = self.tid.set(gettid());
        let id = self.vcpu.id();
        let ended = match self.serve() {
            Ok(()) => Ended::Stopped,
            Err(error) => {
                self.sink.failed(id, error);
                Ended::Failed
            }
        };
        self.control.report(self.index, Wish::Stop);
        ended
    }

    fn serve(&mut self) -> Result<()> {
        self.apply_pin()?;
        if let Some(confinement) = &self.confinement {
            confinement.enter(Kind::Vcpu)?;
        }
        let kick = self.control.kick_of(self.index);
        let _registered = self.vcpu.register(&kick)?;
        loop {
            // Cleared before the wish is read: a kick that comes later is for a later wish.
            self.vcpu.clear_kick();
            let epoch = self.control.epoch();
            while let Ok(job) = self.jobs.try_recv() {
                job(&mut self.vcpu);
            }
            match self.control.wish() {
                Wish::Stop => return Ok(()),
                Wish::Pause => {
                    if self.control.report(self.index, Wish::Pause) == Wish::Pause {
                        self.control.wait_news(epoch);
                    }
                }
                Wish::Run => {
                    if self.control.may_run(self.index, epoch) {
                        self.run_until_kicked()?;
                    }
                }
            }
        }
    }

    fn run_until_kicked(&mut self) -> Result<()> {
        loop {
            let effect = match self.vcpu.run()? {
                Exit::Out { port, size, data } => out(&self.buses.ports, port, size, data),
                Exit::In { port, size, data } => {
                    for one in data.chunks_mut(size) {
                        self.buses.ports.read(port.into(), one);
                    }
                    Effect::None
                }
                Exit::MmioRead(addr, data) => {
                    self.buses.mmio.read(addr, data);
                    Effect::None
                }
                Exit::MmioWrite(addr, data) => self.buses.mmio.write(addr, data),
                Exit::TripleFault => Effect::Reset,
                Exit::Halt => {
                    return Err(Error::unsupported(format!(
                        "vCPU {} halted and there is no interrupt controller to wake it",
                        self.vcpu.id()
                    )));
                }
                Exit::Interrupted => return Ok(()),
            };
            if effect != Effect::None {
                self.sink.effect(effect);
                // The machine may want this vCPU to wait before the next instruction. KVM completes the
                // present one when the vCPU is run again, and then comes back at once.
                if self.control.wish() != Wish::Run {
                    self.control.kick_of(self.index).kick();
                }
            }
        }
    }

    fn apply_pin(&self) -> Result<()> {
        if self.pin.is_empty() {
            return Ok(());
        }
        let explain = |e: nix::Error| {
            Error::from(e)
                .context(format!("cannot pin vCPU {} to host CPUs {:?}", self.index, self.pin))
                .hint("See the host's CPUs with lscpu -e")
        };
        let mut set = CpuSet::new();
        for cpu in &self.pin {
            set.set(*cpu).map_err(explain)?;
        }
        sched_setaffinity(Pid::from_raw(0), &set).map_err(explain)
    }
}

fn out(ports: &Bus, port: u16, size: usize, data: &[u8]) -> Effect {
    let mut last = Effect::None;
    for one in data.chunks(size) {
        let effect = ports.write(port.into(), one);
        if effect != Effect::None {
            last = effect;
        }
    }
    last
}
