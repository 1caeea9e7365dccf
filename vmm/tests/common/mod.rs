//! What tests with guests of our own share: code assembled into the test, and a small machine around it.
#![allow(dead_code, unsafe_code, missing_docs, clippy::unwrap_used, clippy::panic)]

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};
use vmm::Error;
use vmm::boot::registers::{self, Entry};
use vmm::bus::Effect;
use vmm::devices::Captured;
use vmm::devices::debug_exit::DebugExit;
use vmm::devices::debug_port::DebugPort;
use vmm::kvm::vm::SlotKind;
use vmm::kvm::{System, Vm};
use vmm::mem::{Backend, Memory, MemoryConfig};
use vmm::vcpu::{Buses, EffectSink, Group, VcpuSettings};

/// Where guests' code lies.
pub const CODE: u64 = 0x1000;

/// The host's KVM, or `None` with a line that cannot be overlooked.
pub fn kvm() -> Option<System> {
    match System::open() {
        Ok(s) => Some(s),
        Err(e) => {
            eprintln!("SKIPPED: no usable /dev/kvm: {}", e.report());
            None
        }
    }
}

/// Machine code between two symbols of this test binary.
#[macro_export]
macro_rules! guest_code {
    ($start:ident, $end:ident) => {{
        unsafe extern "C" {
            static $start: u8;
            static $end: u8;
        }
        // SAFETY: both symbols delimit bytes that `global_asm!` put into this binary, in this order.
        unsafe {
            let start = &raw const $start;
            let end = &raw const $end;
            std::slice::from_raw_parts(start, end.offset_from(start).try_into().unwrap())
        }
    }};
}

pub struct Sink {
    events: Mutex<Sender<Result<Effect, String>>>,
    control: Mutex<Option<Arc<vmm::vcpu::Control>>>,
}

impl EffectSink for Sink {
    fn effect(&self, effect: Effect) {
        if let Some(c) = &*self.control.lock().unwrap() {
            c.set(vmm::vcpu::Wish::Pause);
        }
        self.events.lock().unwrap().send(Ok(effect)).unwrap();
    }
    fn failed(&self, vcpu: u8, error: Error) {
        self.events.lock().unwrap().send(Err(format!("{vcpu}: {}", error.report()))).unwrap();
    }
}

/// A machine with memory, debug port, exit port and nothing else.
pub struct Bench {
    pub vm: Arc<Vm>,
    pub memory: Arc<Memory>,
    pub buses: Buses,
    pub debug: Captured,
    pub group: Group,
    events: Receiver<Result<Effect, String>>,
}

impl Bench {
    pub fn new(kvm: &System, code: &[u8], entries: &[Entry]) -> Bench {
        let memory =
            Arc::new(vmm::mem::build(&MemoryConfig::simple(4 << 20, Backend::default())).unwrap());
        memory.write_slice(code, GuestAddress(CODE)).unwrap();
        Self::with_memory(kvm, memory, entries)
    }

    pub fn with_memory(kvm: &System, memory: Arc<Memory>, entries: &[Entry]) -> Bench {
        let vm = Arc::new(kvm.create_vm().unwrap());
        vm.create_chips().unwrap();
        vm.map_memory(&memory, 0, SlotKind::Ram).unwrap();
        let buses = Buses::default();
        let debug = Captured::default();
        buses
            .ports
            .insert("debug", 0xe9, 1, Arc::new(DebugPort::new(Box::new(debug.clone()))))
            .unwrap();
        buses.ports.insert("exit", 0xf4, 2, Arc::new(DebugExit)).unwrap();
        let cpuid = kvm.supported_cpuid().unwrap();
        let mut vcpus = Vec::new();
        for (id, entry) in (0..).zip(entries) {
            let vcpu = vm.create_vcpu(id).unwrap();
            vcpu.set_cpuid(&cpuid).unwrap();
            registers::write_tables(&memory, *entry).unwrap();
            registers::apply(&vcpu, *entry).unwrap();
            vcpus.push(vcpu);
        }
        let (tx, events) = channel();
        let sink = Arc::new(Sink { events: Mutex::new(tx), control: Mutex::default() });
        let as_sink: Arc<dyn EffectSink> = sink.clone();
        let group = Group::start(vcpus, &buses, &as_sink, &VcpuSettings::default()).unwrap();
        *sink.control.lock().unwrap() = Some(group.control().clone());
        Bench { vm, memory, buses, debug, group, events }
    }

    /// Runs until a device wants something of the machine.
    pub fn run(&self) -> Effect {
        self.group.resume();
        self.wait()
    }

    pub fn wait(&self) -> Effect {
        let got = self.events.recv_timeout(Duration::from_secs(30));
        match got {
            Ok(Ok(effect)) => effect,
            Ok(Err(e)) => panic!("vCPU failed: {e}; debug port said {:?}", self.debug.text()),
            Err(e) => panic!("nothing happened ({e}); debug port said {:?}", self.debug.text()),
        }
    }
}
