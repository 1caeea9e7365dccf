//! The host as readable facts: files below a root folder, and probes for what no file tells.
//!
//! Every path is given as on a real host (`/proc/cpuinfo`) and resolved below the root, symbolic links
//! included, so a fake tree can never lead outside itself. Files are read up to [`READ_LIMIT`] bytes.

mod cpuinfo;
mod distro;
mod facts;
mod kmem;
mod live;
mod mounts;
mod net;
mod open;
mod topology;
mod tree;
mod vcpu;

use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

pub use cpuinfo::{CpuInfo, Vendor};
pub use distro::{BootLoader, NetworkManager};
pub use facts::{Cpuid, Facts, FsFact, Identity, Probe, Stat, VcpuRun};
pub use kmem::{HugePool, MemInfo, Swap};
pub use live::LiveProbe;
pub use mounts::Mount;
pub use net::{Link, LinkKind, Route4, Route6};
pub use topology::{Cache, Cpu, Node, Topology};
pub use tree::Tree;

/// No file in /proc, /sys or /etc that matters here is larger; a longer one is cut.
pub const READ_LIMIT: u64 = 4 << 20;
/// No folder that matters has more entries; more are not listed.
const LIST_LIMIT: usize = 65_536;

/// What was done with a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Touch {
    /// It was only looked for.
    Found,
    /// Its contents were read.
    Read,
}

/// A host, real or fake. Facts are read when asked for and parsed ones kept.
pub struct Host {
    root: PathBuf,
    probe: Box<dyn Probe>,
    touched: RefCell<BTreeMap<String, Touch>>,
    links: RefCell<BTreeMap<String, String>>,
    cpuinfo: OnceCell<CpuInfo>,
    topology: OnceCell<Topology>,
    vcpu: OnceCell<VcpuRun>,
}

impl Host {
    /// This machine.
    pub fn live() -> Self {
        Self::new(PathBuf::from("/"), Box::new(LiveProbe))
    }

    /// A tree below `root`, with `facts` for what files cannot tell.
    pub fn below(root: impl Into<PathBuf>, facts: Facts) -> Self {
        Self::new(root.into(), Box::new(facts))
    }

    /// A tree with any probe.
    pub fn new(root: PathBuf, probe: Box<dyn Probe>) -> Self {
        Self {
            root,
            probe,
            touched: RefCell::default(),
            links: RefCell::default(),
            cpuinfo: OnceCell::new(),
            topology: OnceCell::new(),
            vcpu: OnceCell::new(),
        }
    }

    /// The folder everything is read below.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Probes for what no file tells.
    pub fn probe(&self) -> &dyn Probe {
        self.probe.as_ref()
    }

    /// Where `path` of the host is on this machine. For messages and for writers; readers use the methods.
    pub fn place(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Paths that were read or found so far: what a copy of this tree needs.
    pub fn touched(&self) -> BTreeMap<String, Touch> {
        self.touched.borrow().clone()
    }

    /// Symbolic links that were read so far, with their targets.
    pub fn touched_links(&self) -> BTreeMap<String, String> {
        self.links.borrow().clone()
    }

    /// The bytes of a regular file.
    pub fn bytes(&self, path: &str) -> std::io::Result<Vec<u8>> {
        let file = open::read(&self.root, path)?;
        if file.metadata()?.is_dir() {
            return Err(std::io::Error::from_raw_os_error(libc::EISDIR));
        }
        self.touched.borrow_mut().insert(path.to_owned(), Touch::Read);
        let mut bytes = Vec::new();
        file.take(READ_LIMIT).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// A file as text; bytes that are not UTF-8 are replaced.
    pub fn read(&self, path: &str) -> std::io::Result<String> {
        Ok(String::from_utf8_lossy(&self.bytes(path)?).into_owned())
    }

    /// A file as text without white space around it, None when it cannot be read.
    pub fn text(&self, path: &str) -> Option<String> {
        self.read(path).ok().map(|text| text.trim().to_owned())
    }

    /// A file that holds one decimal number.
    pub fn number(&self, path: &str) -> Option<u64> {
        self.text(path)?.split_whitespace().next()?.parse().ok()
    }

    /// A module parameter or switch: `Y`/`N`/`1`/`0`.
    pub fn switch(&self, path: &str) -> Option<bool> {
        match self.text(path)?.as_str() {
            "Y" | "y" | "1" => Some(true),
            "N" | "n" | "0" => Some(false),
            other => other.parse::<i64>().ok().map(|number| number > 0),
        }
    }

    /// Whether something has that name.
    pub fn exists(&self, path: &str) -> bool {
        let found = open::path(&self.root, path).is_ok();
        if found {
            self.touched.borrow_mut().entry(path.to_owned()).or_insert(Touch::Found);
        }
        found
    }

    /// Names in a folder, sorted; empty when there is none.
    pub fn list(&self, path: &str) -> Vec<String> {
        let Ok(folder) = open::folder(&self.root, path) else { return Vec::new() };
        let mut names: Vec<String> = folder
            .take(LIST_LIMIT)
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        names.sort();
        names
    }

    /// Last component of what a symbolic link names (drivers, groups, subsystems in sysfs).
    pub fn link_name(&self, path: &str) -> Option<String> {
        let (folder, name) = path.rsplit_once('/')?;
        let folder = open::path(&self.root, folder).ok()?;
        let target = open::read_link(&folder, name).ok()?;
        let shown = target.to_string_lossy().into_owned();
        self.links.borrow_mut().insert(path.to_owned(), shown);
        target.file_name().map(|name| name.to_string_lossy().into_owned())
    }

    /// Mode and owner; what the probe says goes first, as a fake tree cannot hold devices.
    pub fn stat(&self, path: &str) -> Option<Stat> {
        if let Some(stat) = self.probe.stat(path) {
            return Some(stat);
        }
        let meta = open::path(&self.root, path).ok()?.metadata().ok()?;
        Some(Stat { mode: meta.mode(), uid: meta.uid(), gid: meta.gid() })
    }

    /// A model-specific register as `/dev/cpu/N/msr` gives it (needs root and the msr module).
    pub fn msr(&self, cpu: u32, register: u32) -> std::io::Result<u64> {
        let file = open::read(&self.root, &format!("/dev/cpu/{cpu}/msr"))?;
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, u64::from(register))?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// `/proc/cpuinfo`, parsed once.
    pub fn cpuinfo(&self) -> &CpuInfo {
        self.cpuinfo.get_or_init(|| CpuInfo::parse(&self.read("/proc/cpuinfo").unwrap_or_default()))
    }

    /// CPUs, caches and memory nodes, read once.
    pub fn topology(&self) -> &Topology {
        self.topology.get_or_init(|| Topology::read(self))
    }

    /// What came of running a real vCPU; done once.
    pub fn vcpu(&self) -> &VcpuRun {
        self.vcpu.get_or_init(|| self.probe.run_vcpu())
    }

    /// Whether a module is loaded or built in.
    pub fn has_module(&self, name: &str) -> bool {
        let file_name = name.replace('-', "_");
        self.exists(&format!("/sys/module/{file_name}"))
            || self.read("/proc/modules").is_ok_and(|text| {
                text.lines().any(|line| line.split(' ').next() == Some(file_name.as_str()))
            })
    }

    /// Whether a module is listed as built into the running kernel.
    pub fn is_built_in(&self, name: &str) -> bool {
        let Some(release) = self.text("/proc/sys/kernel/osrelease") else { return false };
        let wanted = format!("{}.ko", name.replace('-', "_"));
        self.read(&format!("/lib/modules/{release}/modules.builtin")).is_ok_and(|text| {
            text.lines().any(|line| {
                line.rsplit('/').next().is_some_and(|file| file.replace('-', "_") == wanted)
            })
        })
    }

    /// A kernel command line option's values, in order (`isolcpus` -> `2-3`); empty string for bare words.
    pub fn boot_option(&self, name: &str) -> Vec<String> {
        let line = self.text("/proc/cmdline").unwrap_or_default();
        line.split_whitespace()
            .filter_map(|word| {
                let (key, value) = word.split_once('=').unwrap_or((word, ""));
                (key == name).then(|| value.to_owned())
            })
            .collect()
    }
}
