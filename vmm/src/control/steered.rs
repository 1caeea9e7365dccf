//! What commands can ask of a machine and do to it, as plain data.

use crate::Result;
use crate::block::stats::BlockStats;
pub use crate::kvm::CpuState;
use crate::pci::config::BarKind;

/// What a machine is doing. Names as in QAPI's `RunState`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RunState {
    /// Built, or reset while it stood still; never ran since.
    #[default]
    Prelaunch,
    /// Guest code runs.
    Running,
    /// Stopped by a command.
    Paused,
    /// Powered off, kept for inspection (`-no-shutdown`).
    Shutdown,
    /// The guest has panicked.
    GuestPanicked,
    /// A disk reported an error (`werror=stop`).
    IoError,
    /// KVM could not go on.
    InternalError,
}

impl RunState {
    /// Its name in QMP.
    pub fn name(self) -> &'static str {
        match self {
            RunState::Prelaunch => "prelaunch",
            RunState::Running => "running",
            RunState::Paused => "paused",
            RunState::Shutdown => "shutdown",
            RunState::GuestPanicked => "guest-panicked",
            RunState::IoError => "io-error",
            RunState::InternalError => "internal-error",
        }
    }

    /// Only a reset makes it run again.
    pub fn needs_reset(self) -> bool {
        matches!(self, RunState::Shutdown | RunState::InternalError)
    }
}

/// A vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuInfo {
    /// Its number.
    pub index: usize,
    /// Number of its thread in the host.
    pub thread: i32,
    /// Socket, core, thread.
    pub place: (u32, u32, u32),
}

/// A NUMA node, or all memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeInfo {
    /// Name of its back end.
    pub backend: String,
    /// Bytes.
    pub size: u64,
    /// Its vCPUs.
    pub cpus: Vec<u32>,
    /// Offered to KSM.
    pub merge: bool,
    /// Part of core dumps.
    pub dump: bool,
    /// Allocated beforehand.
    pub prealloc: bool,
    /// Shared with other processes.
    pub share: bool,
}

/// All memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryInfo {
    /// The guest sees nodes.
    pub numa: bool,
    /// At least one.
    pub nodes: Vec<NodeInfo>,
}

/// What lies at an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// Name.
    pub name: String,
    /// Memory or registers.
    pub kind: MappingKind,
}

/// Kinds of mappings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MappingKind {
    /// Guest memory; this is its offset there.
    Ram(u64),
    /// Registers.
    Registers,
}

/// Both address spaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mappings {
    /// Memory addresses, in order.
    pub memory: Vec<Mapping>,
    /// Ports, in order.
    pub ports: Vec<Mapping>,
}

/// A BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarInfo {
    /// Its number.
    pub bar: u8,
    /// Ports or memory.
    pub kind: BarKind,
    /// Where it is; `None` when it is not decoded.
    pub base: Option<u64>,
    /// Bytes.
    pub len: u64,
}

/// A PCI function.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PciInfo {
    /// Slot.
    pub slot: u8,
    /// Function.
    pub function: u8,
    /// What kind of device, as in `-device`.
    pub driver: String,
    /// `id=` of its `-device`; empty without.
    pub id: String,
    /// Class and subclass.
    pub class: u16,
    /// Vendor and device.
    pub number: (u16, u16),
    /// Subsystem vendor and device.
    pub subsystem: (u16, u16),
    /// Interrupt pin, 1 for A; 0 for none.
    pub pin: u8,
    /// Interrupt line, as the guest noted it.
    pub line: u8,
    /// BARs.
    pub bars: Vec<BarInfo>,
}

/// What the error policy made of the last error (`io-status`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IoStatus {
    /// Nothing.
    #[default]
    Ok,
    /// The machine was stopped: no space was left.
    NoSpace,
    /// The machine was stopped.
    Failed,
}

/// A disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockInfo {
    /// Name of the drive.
    pub id: String,
    /// Name of its device.
    pub device: String,
    /// The image, as the user wrote it.
    pub file: String,
    /// Format of the image.
    pub format: String,
    /// The image's data are encrypted.
    pub encrypted: bool,
    /// Bytes that the guest sees.
    pub size: u64,
    /// For reading only.
    pub read_only: bool,
    /// Images below, nearest first.
    pub backing: Vec<String>,
    /// Written data stay in the host's cache until flushed.
    pub writeback: bool,
    /// Past the host's cache.
    pub direct: bool,
    /// Flushes are left out.
    pub no_flush: bool,
    /// What it has done.
    pub stats: BlockStats,
    /// The error policy stopped the machine: no space, or another error.
    pub status: IoStatus,
}

/// A network card and its back end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetInfo {
    /// Name of the card.
    pub id: String,
    /// What kind of card.
    pub model: String,
    /// Its address.
    pub mac: [u8; 6],
    /// Name of the back end.
    pub backend: String,
    /// The back end in words: `index=0,type=tap,ifname=tap0,...`.
    pub backend_text: String,
    /// The cable is in.
    pub up: bool,
}

/// A balloon.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BalloonInfo {
    /// Bytes that the guest has left.
    pub actual: u64,
    /// What the guest last said about its memory: tag of section 5.5.6.4 and value.
    pub stats: Vec<(u16, u64)>,
}

/// A character device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CharInfo {
    /// Name.
    pub label: String,
    /// What it is connected to.
    pub filename: String,
    /// Somebody in the machine uses it.
    pub in_use: bool,
}

/// A machine, as commands see it. Called on the machine's main thread.
pub trait Steered {
    /// What it is doing.
    fn state(&self) -> RunState;
    /// The guest's name.
    fn name(&self) -> Option<String>;
    /// The guest's UUID.
    fn uuid(&self) -> [u8; 16];
    /// Stops guest code and devices. Nothing when they stand still.
    fn stop(&mut self) -> Result<()>;
    /// Lets them go on. Nothing when they run.
    fn resume(&mut self) -> Result<()>;
    /// Presses the reset button.
    fn system_reset(&mut self) -> Result<()>;
    /// Presses the power button.
    fn power_down(&mut self) -> Result<()>;
    /// Ends the machine once this command has been answered.
    fn quit(&mut self);
    /// The vCPUs.
    fn cpus(&self) -> Vec<CpuInfo>;
    /// A vCPU's registers.
    fn cpu_state(&mut self, index: usize) -> Result<CpuState>;
    /// Sends a non-maskable interrupt to all vCPUs.
    fn nmi(&mut self) -> Result<()>;
    /// The CPU model.
    fn cpu_model(&self) -> String;
    /// All memory.
    fn memory(&self) -> MemoryInfo;
    /// Reads guest memory; false when some of it is none.
    fn read_physical(&self, at: u64, buf: &mut [u8]) -> bool;
    /// What lies where.
    fn mappings(&self) -> Mappings;
    /// PCI functions.
    fn pci(&self) -> Vec<PciInfo>;
    /// Disks.
    fn blocks(&self) -> Vec<BlockInfo>;
    /// Writes a disk's changes into its backing image; `None` for all disks that have one. False when
    /// there is no such disk.
    fn commit(&mut self, device: Option<&str>) -> Result<bool>;
    /// Network cards.
    fn nets(&self) -> Vec<NetInfo>;
    /// Plugs in or pulls out the cable of a card or of a back end; false when there is none so called.
    fn set_link(&mut self, name: &str, up: bool) -> Result<bool>;
    /// The balloon.
    fn balloon(&self) -> Option<BalloonInfo>;
    /// Asks the guest to keep so many bytes.
    fn set_balloon(&mut self, bytes: u64) -> Result<()>;
    /// Character devices.
    fn chardevs(&self) -> Vec<CharInfo>;
    /// Takes bytes out of a ring buffer.
    fn read_ring(&mut self, label: &str, most: usize) -> Result<Vec<u8>>;
}
