//! A machine as plain data.

use std::path::PathBuf;

pub use crate::block::Drive;
use crate::boot::kernel::KernelConfig;
use crate::boot::smbios::SmbiosConfig;
use crate::chardev::CharConfig;
use crate::cpu::{CpuConfig, Topology};
use crate::mem::MemoryConfig;
use crate::net::config::TapConfig;
use crate::virtio::blk::BlkConfig;
use crate::virtio::net::NetConfig;

/// What the real-time clock shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RtcBase {
    /// Universal time.
    #[default]
    Utc,
    /// The host's local time.
    LocalTime,
    /// From this second since 1970 on.
    Date(i64),
}

/// What happens when the guest wants to restart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnReset {
    /// It does.
    #[default]
    Restart,
    /// The machine ends (`-no-reboot`).
    End,
}

/// What happens when the guest powers off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnPowerOff {
    /// The machine ends.
    #[default]
    End,
    /// It stands still until it is told to quit (`-no-shutdown`).
    Pause,
}

/// A device on PCI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// A disk.
    Blk {
        /// The image.
        drive: Box<Drive>,
        /// Queues; `None` for one a vCPU.
        queues: Option<u16>,
        /// How it is shown; name, serial number and queues are filled in.
        shown: BlkConfig,
    },
    /// A network card on a tap interface.
    Net {
        /// How it is shown; its name is filled in.
        shown: NetConfig,
        /// The tap interface.
        tap: TapConfig,
    },
    /// Sockets between guest and host.
    Vsock {
        /// The guest's address.
        cid: u64,
        /// An open `/dev/vhost-vsock`.
        vhost: Option<i32>,
    },
    /// The balloon, with free page reporting or without.
    Balloon {
        /// Free page reporting.
        reporting: bool,
    },
    /// Random numbers.
    Rng,
    /// A console.
    Console(CharConfig),
}

/// A device and its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceConfig {
    /// Its name.
    pub id: String,
    /// Its slot; the next free one when absent.
    pub slot: Option<u8>,
    /// What it is.
    pub kind: DeviceKind,
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MachineConfig {
    /// The guest's name.
    pub name: Option<String>,
    /// Memory.
    pub memory: MemoryConfig,
    /// What processors look like.
    pub cpu: CpuConfig,
    /// How they are arranged.
    pub topology: Topology,
    /// Host CPUs of each vCPU.
    pub pin: Vec<Vec<usize>>,
    /// What to boot.
    pub kernel: KernelConfig,
    /// What SMBIOS says.
    pub smbios: SmbiosConfig,
    /// Serial ports.
    pub serial: Vec<CharConfig>,
    /// The debug port: number and where its bytes go.
    pub debug_port: Option<(u16, CharConfig)>,
    /// isa-debug-exit: its port.
    pub debug_exit: Option<u16>,
    /// pvpanic is there.
    pub pvpanic: bool,
    /// Devices on PCI, in the order of their slots.
    pub devices: Vec<DeviceConfig>,
    /// Folder for temporary overlays; `/var/tmp` when empty.
    pub scratch: PathBuf,
    /// The clock.
    pub rtc: RtcBase,
    /// Restarting.
    pub on_reset: OnReset,
    /// Powering off.
    pub on_power_off: OnPowerOff,
    /// Start with vCPUs stopped (`-S`).
    pub start_paused: bool,
}
