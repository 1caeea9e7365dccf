//! A machine as plain data.

use std::path::PathBuf;

pub use crate::block::Drive;
use crate::boot::kernel::KernelConfig;
use crate::boot::smbios::SmbiosConfig;
use crate::chardev::config::{CharConfig, CharKind, Role, SocketAddress, SocketConfig};
use crate::control::MonitorConfig;
use crate::cpu::{CpuConfig, Topology};
use crate::mem::MemoryConfig;
use crate::net::config::TapConfig;
use crate::sandbox::Sandbox;
use crate::virtio::blk::BlkConfig;
use crate::virtio::net::NetConfig;
use crate::virtio::rng::RngConfig;

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

/// What happens when the guest says that it has panicked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnPanic {
    /// The machine ends, or stands still where power-off does so.
    #[default]
    PowerOff,
    /// The machine stands still, to be looked at.
    Pause,
    /// The machine ends, and the program reports failure.
    Fail,
    /// The guest goes on.
    Nothing,
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
        /// The guest takes pages back before it kills processes.
        deflate_on_oom: bool,
    },
    /// Random numbers.
    Rng(RngConfig),
    /// A console on a character device.
    Console(String),
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
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// Character devices by name, in the order in which they are opened.
    pub chardevs: Vec<(String, CharConfig)>,
    /// Serial ports: names of character devices.
    pub serial: Vec<String>,
    /// The debug port: number and the name of a character device.
    pub debug_port: Option<(u16, String)>,
    /// Monitors.
    pub monitors: Vec<MonitorConfig>,
    /// The escape character of shared character devices.
    pub escape: u8,
    /// isa-debug-exit: its port.
    pub debug_exit: Option<u16>,
    /// pvpanic is there.
    pub pvpanic: bool,
    /// Devices on PCI, in the order of their slots.
    pub devices: Vec<DeviceConfig>,
    /// Folder for temporary overlays; `/var/tmp`, else `/tmp`, when empty.
    pub scratch: PathBuf,
    /// Whether the process is confined while the machine runs.
    pub sandbox: Sandbox,
    /// The clock.
    pub rtc: RtcBase,
    /// Restarting.
    pub on_reset: OnReset,
    /// Powering off.
    pub on_power_off: OnPowerOff,
    /// Panics.
    pub on_panic: OnPanic,
    /// Start with vCPUs stopped (`-S`).
    pub start_paused: bool,
}

impl Default for MachineConfig {
    fn default() -> Self {
        MachineConfig {
            name: None,
            memory: MemoryConfig::default(),
            cpu: CpuConfig::default(),
            topology: Topology::default(),
            pin: Vec::new(),
            kernel: KernelConfig::default(),
            smbios: SmbiosConfig::default(),
            chardevs: Vec::new(),
            serial: Vec::new(),
            debug_port: None,
            monitors: Vec::new(),
            escape: crate::chardev::keys::CTRL_A,
            debug_exit: None,
            pvpanic: false,
            devices: Vec::new(),
            scratch: PathBuf::new(),
            sandbox: Sandbox::default(),
            rtc: RtcBase::default(),
            on_reset: OnReset::default(),
            on_power_off: OnPowerOff::default(),
            on_panic: OnPanic::default(),
            start_paused: false,
        }
    }
}

impl MachineConfig {
    /// Sockets in the file system that the machine makes, and removes at the end.
    pub fn sockets(&self) -> impl Iterator<Item = &PathBuf> {
        self.chardevs.iter().filter_map(|(_, c)| match &c.kind {
            CharKind::Socket(SocketConfig {
                address: SocketAddress::Unix(path),
                role: Role::Server(_),
                ..
            }) => Some(path),
            _ => None,
        })
    }
}
