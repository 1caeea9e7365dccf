//! Facts that no file holds, behind the [`Probe`] trait, and [`Facts`], the recorded form for fake trees.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What came of creating a VM with one vCPU and running a few guest instructions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "result")]
pub enum VcpuRun {
    /// The guest did its output and halted.
    Works {
        /// Result of `KVM_GET_API_VERSION`; 12 for every kernel since 2.6.22.
        api: i32,
    },
    /// A step failed.
    Failed {
        /// The step: `open`, `version`, `create-vm`, `memory`, `create-vcpu`, `registers`, `run`.
        step: String,
        /// The system's error number, 0 where none belongs to it.
        errno: i32,
        /// What was seen.
        text: String,
    },
    /// Not tried (a tree without recorded facts).
    Unknown,
}

/// Mode, with the file type bits, and owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stat {
    /// `st_mode`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// The identity of the asking process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Effective user.
    pub uid: u32,
    /// Effective group and supplementary groups of this session.
    pub groups: Vec<u32>,
}

/// The parts of CPUID that the checks use.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpuid {
    /// Leaf 1, ECX bit 5.
    pub vmx: bool,
    /// Leaf 0x8000_0001, ECX bit 2.
    pub svm: bool,
    /// Leaf 0x4000_0000 when leaf 1 ECX bit 31 is set: `KVMKVMKVM`, `VMwareVMware`, ...
    pub hypervisor: String,
}

/// A file system as statfs sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsFact {
    /// `f_type`.
    pub magic: i64,
    /// Bytes free for ordinary users.
    pub free: u64,
    /// Whether a file there can be opened with `O_DIRECT`; None when not tried.
    pub direct: Option<bool>,
}

/// Asks the kernel what no file tells. Implementations change nothing that lasts. Errors are errno values.
pub trait Probe {
    /// Runs a real vCPU.
    fn run_vcpu(&self) -> VcpuRun;
    /// `KVM_CHECK_EXTENSION`; None when /dev/kvm cannot be asked.
    fn kvm_extension(&self, capability: u32) -> Option<i32>;
    /// Who asks.
    fn identity(&self) -> Identity;
    /// CPUID of the CPU this runs on.
    fn cpuid(&self) -> Option<Cpuid>;
    /// Overrides mode and owner of a path; None to look at the tree.
    fn stat(&self, path: &str) -> Option<Stat>;
    /// Opens a device for reading and writing and closes it.
    fn open_device(&self, path: &str) -> Result<(), i32>;
    /// Creates a throw-away tap interface.
    fn make_tap(&self) -> Result<(), i32>;
    /// `VHOST_GET_FEATURES` of a vhost device.
    fn vhost_features(&self, path: &str) -> Result<u64, i32>;
    /// The file system below a path.
    fn filesystem(&self, path: &str) -> Option<FsFact>;
    /// ABI version of Landlock.
    fn landlock_abi(&self) -> Result<i32, i32>;
    /// Sets up a tiny io_uring and drops it.
    fn io_uring(&self) -> Result<(), i32>;
    /// `system.posix_acl_access` of a path.
    fn acl(&self, path: &str) -> Option<Vec<u8>>;
    /// Everything that was recorded, when this is a recording.
    fn recorded(&self) -> Option<&Facts> {
        None
    }
}

/// Recorded facts: what a [`Probe`] answered on some host, or what a test wants it to answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Facts {
    /// Outcome of the vCPU run.
    pub vcpu: VcpuRun,
    /// `KVM_CHECK_EXTENSION` by number; what is missing counts as 0, an empty map as "cannot be asked".
    pub kvm_extensions: BTreeMap<u32, i32>,
    /// Who asks.
    pub identity: Identity,
    /// CPUID.
    pub cpuid: Option<Cpuid>,
    /// Modes and owners of paths.
    pub stat: BTreeMap<String, Stat>,
    /// errno of opening devices; 0 is success, missing is ENOENT.
    pub devices: BTreeMap<String, i32>,
    /// errno of making a tap; 0 is success.
    pub tap: i32,
    /// vhost features.
    pub vhost: BTreeMap<String, u64>,
    /// File systems by path; the longest matching path answers.
    pub filesystems: BTreeMap<String, FsFact>,
    /// Landlock ABI, negative errno when absent.
    pub landlock: i32,
    /// errno of setting up io_uring; 0 is success.
    pub io_uring: i32,
    /// ACLs by path, raw.
    pub acls: BTreeMap<String, Vec<u8>>,
}

impl Default for Facts {
    fn default() -> Self {
        Self {
            vcpu: VcpuRun::Unknown,
            kvm_extensions: BTreeMap::new(),
            identity: Identity::default(),
            cpuid: None,
            stat: BTreeMap::new(),
            devices: BTreeMap::new(),
            tap: libc::ENOENT,
            vhost: BTreeMap::new(),
            filesystems: BTreeMap::new(),
            landlock: -libc::ENOSYS,
            io_uring: libc::ENOSYS,
            acls: BTreeMap::new(),
        }
    }
}

impl Facts {
    /// Asks a host everything the checks ask.
    pub fn record(host: &super::Host) -> Self {
        let probe = host.probe();
        if let Some(facts) = probe.recorded() {
            return facts.clone();
        }
        let errno = |result: Result<(), i32>| result.err().unwrap_or(0);
        let devices = ["/dev/kvm", "/dev/net/tun", "/dev/vhost-net", "/dev/vhost-vsock"];
        let extensions = [0, 3, 9, 10, 32, 33, 36, 66, 72, 81, 121, 157];
        let stat = |path: &str| Some((path.to_owned(), host.stat(path)?));
        let named = |path: &&str| (*path).to_owned();
        Self {
            vcpu: host.vcpu().clone(),
            kvm_extensions: extensions
                .iter()
                .filter_map(|number| Some((*number, probe.kvm_extension(*number)?)))
                .collect(),
            identity: probe.identity(),
            cpuid: probe.cpuid(),
            stat: devices.iter().filter_map(|path| stat(path)).collect(),
            devices: devices
                .iter()
                .map(|path| (named(path), errno(probe.open_device(path))))
                .collect(),
            tap: errno(probe.make_tap()),
            vhost: devices[2..]
                .iter()
                .filter_map(|path| Some((named(path), probe.vhost_features(path).ok()?)))
                .collect(),
            filesystems: ["/", "/var/lib"]
                .iter()
                .filter_map(|path| Some((named(path), probe.filesystem(path)?)))
                .collect(),
            landlock: probe.landlock_abi().unwrap_or_else(|errno| -errno),
            io_uring: errno(probe.io_uring()),
            acls: devices.iter().filter_map(|path| Some((named(path), probe.acl(path)?))).collect(),
        }
    }
}

fn outcome(errno: i32) -> Result<(), i32> {
    if errno == 0 { Ok(()) } else { Err(errno) }
}

impl Probe for Facts {
    fn run_vcpu(&self) -> VcpuRun {
        self.vcpu.clone()
    }

    fn kvm_extension(&self, capability: u32) -> Option<i32> {
        if self.kvm_extensions.is_empty() {
            return None;
        }
        Some(self.kvm_extensions.get(&capability).copied().unwrap_or(0))
    }

    fn identity(&self) -> Identity {
        self.identity.clone()
    }

    fn cpuid(&self) -> Option<Cpuid> {
        self.cpuid.clone()
    }

    fn stat(&self, path: &str) -> Option<Stat> {
        self.stat.get(path).copied()
    }

    fn open_device(&self, path: &str) -> Result<(), i32> {
        outcome(self.devices.get(path).copied().unwrap_or(libc::ENOENT))
    }

    fn make_tap(&self) -> Result<(), i32> {
        outcome(self.tap)
    }

    fn vhost_features(&self, path: &str) -> Result<u64, i32> {
        self.open_device(path)?;
        self.vhost.get(path).copied().ok_or(libc::ENOTTY)
    }

    fn filesystem(&self, path: &str) -> Option<FsFact> {
        let longest = self
            .filesystems
            .iter()
            .filter(|(prefix, _)| path.starts_with(prefix.as_str()))
            .max_by_key(|(prefix, _)| prefix.len());
        longest.map(|(_, fact)| fact.clone())
    }

    fn landlock_abi(&self) -> Result<i32, i32> {
        if self.landlock < 0 { Err(-self.landlock) } else { Ok(self.landlock) }
    }

    fn io_uring(&self) -> Result<(), i32> {
        outcome(self.io_uring)
    }

    fn acl(&self, path: &str) -> Option<Vec<u8>> {
        self.acls.get(path).cloned()
    }

    fn recorded(&self) -> Option<&Facts> {
        Some(self)
    }
}
