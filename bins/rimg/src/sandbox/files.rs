//! What the command names, as Landlock rules.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use imgcore::graph::gate::folder_of;
use imgcore::graph::open::{BackingChoice, OpenRequest};
use imgcore::opts::filter::Filter;
use imgcore::opts::nbd::NbdTls;
use imgcore::opts::rbd::RbdTarget;
use imgcore::opts::remote::Remote;
use imgcore::storage::culprit;
use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetStatus,
};

use super::Network;

/// Newest rights that are asked for; an older kernel has fewer, and confines what it can.
const NEWEST: ABI = ABI::V5;
/// Read by libraries: processors, time zones, randomness.
const COMMON: &[&str] =
    &["/proc", "/sys", "/etc/localtime", "/usr/share/zoneinfo", "/dev/urandom", "/dev/zero"];
/// Read and written: the terminal for questions, and nothing.
const DEVICES: &[&str] = &["/dev/tty", "/dev/null"];
/// Read to find hosts and to check certificates.
const NETWORK: &[&str] = &[
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/nsswitch.conf",
    "/etc/gai.conf",
    "/etc/services",
    "/etc/protocols",
    "/etc/ssl",
    "/etc/pki",
    "/etc/ca-certificates",
    "/usr/share/ca-certificates",
    "/usr/local/share/ca-certificates",
    "/etc/ld.so.cache",
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/run/systemd/resolve",
];

/// Where a command that changes images may write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Writing {
    /// In folders that were named for it.
    #[default]
    Named,
    /// Everywhere (qemu-img's commands that change images, wherever these lead).
    Everywhere,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Right {
    Read,
    Write,
}

/// What may be opened.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    places: Vec<(PathBuf, Right)>,
    /// Files that were named.
    files: Vec<PathBuf>,
    everything: bool,
    writing: Writing,
    network: Network,
}

impl Plan {
    /// Everything may be read.
    pub fn read_everything(&mut self) {
        self.everything = true;
    }

    /// Where may be written.
    pub fn set_writing(&mut self, writing: Writing) {
        self.writing = writing;
    }

    /// Sockets may be used.
    pub fn use_network(&mut self) {
        self.network = Network::Yes;
    }

    /// Hosts may be reached by ssh: known hosts and keys are read besides.
    pub fn use_ssh(&mut self) {
        self.use_network();
        #[cfg(feature = "ssh")]
        for file in imgcore::storage::ssh::user::files() {
            self.add(file, Right::Read);
        }
    }

    /// A Ceph cluster is used: its configuration and keyrings are read besides.
    fn use_rbd(&mut self, target: &RbdTarget) {
        self.use_network();
        self.read_folder(Path::new("/etc/ceph"));
        if let Some(conf) = target.conf.as_deref().filter(|conf| !conf.is_empty()) {
            self.place(Path::new(conf), Right::Read);
        }
        for (key, value) in &target.settings {
            if key == "keyring" {
                self.place(Path::new(value), Right::Read);
            }
        }
    }

    /// Whether they are.
    pub fn network(&self) -> Network {
        self.network
    }

    fn add(&mut self, path: PathBuf, right: Right) {
        if !self.places.contains(&(path.clone(), right)) {
            self.places.push((path, right));
        }
    }

    /// A folder and all in it, for reading.
    pub fn read_folder(&mut self, folder: &Path) {
        self.add(folder.to_owned(), Right::Read);
    }

    /// A folder and all in it, for writing too. Where it is not there yet, the one in which it will be made.
    pub fn write_folder(&mut self, folder: &Path) {
        let there = folder.ancestors().find(|f| f.is_dir());
        let there = there.filter(|f| !f.as_os_str().is_empty());
        self.add(there.unwrap_or(Path::new(".")).to_owned(), Right::Write);
    }

    fn place(&mut self, path: &Path, right: Right) {
        self.files.push(path.to_owned());
        let folder = |plan: &mut Plan, path: &Path| match right {
            Right::Read => plan.read_folder(folder_of(path)),
            Right::Write => plan.write_folder(folder_of(path)),
        };
        // A device is used by itself, not with all that lies beside it; a pipe that is open already needs no rule.
        let kind = std::fs::metadata(path).map(|m| m.file_type());
        if kind.as_ref().is_ok_and(|k| k.is_block_device() || k.is_char_device()) {
            return self.add(path.to_owned(), right);
        }
        let open = ["/dev", "/proc"].iter().any(|f| path.starts_with(f));
        if !open {
            folder(self, path);
        } else if kind.is_ok_and(|k| k.is_fifo() || k.is_socket()) {
            return;
        }
        if let Ok(real) = path.canonicalize() {
            folder(self, &real);
        }
    }

    /// A file that is read, with what lies beside it.
    pub fn reads(&mut self, file: &str) {
        self.place(Path::new(file), Right::Read);
    }

    /// A file that is made or changed, and those beside it.
    pub fn writes(&mut self, file: &str) {
        self.place(Path::new(file), Right::Write);
    }

    /// Looks who uses the named files: confined, nobody tells any more.
    pub(super) fn remember_users(&self) {
        for file in &self.files {
            culprit::remember(file);
            culprit::remember(&PathBuf::from(format!("{}.part", file.display())));
        }
    }

    /// An image that is read.
    pub fn reads_image(&mut self, request: &OpenRequest) {
        self.image(request, Right::Read);
    }

    /// An image that is made or changed.
    pub fn writes_image(&mut self, request: &OpenRequest) {
        self.image(request, Right::Write);
    }

    fn image(&mut self, request: &OpenRequest, right: Right) {
        match request.remote.as_deref() {
            Some(Remote::Fat(target)) => self.read_folder(Path::new(&target.dir)),
            Some(Remote::Null(_)) => {}
            Some(Remote::Nbd(target)) => {
                self.use_network();
                if let Some(NbdTls::Uri { dir: Some(dir), .. }) = &target.tls {
                    self.read_folder(Path::new(dir));
                }
            }
            Some(Remote::Http(_)) => self.use_network(),
            Some(Remote::Ssh(_)) => self.use_ssh(),
            Some(Remote::Rbd(target)) => self.use_rbd(target),
            None if request.filename.is_empty() => {}
            None => self.place(Path::new(&request.filename), right),
        }
        for filter in &request.filters {
            if let Filter::BlkDebug(rules) = filter
                && let Some(config) = &rules.config
            {
                self.reads(config);
            }
        }
        for child in request.data_file.iter().chain(&request.header) {
            self.image(child, right);
        }
        if let BackingChoice::Given(backing) = &request.backing {
            self.image(backing, Right::Read);
        }
    }
}

/// Confines this thread and those that it starts. `Err` says what the kernel lacks.
pub(super) fn restrict(plan: &Plan) -> Result<(), String> {
    if plan.everything && plan.writing == Writing::Everywhere {
        return Ok(());
    }
    let words = |e: landlock::RulesetError| e.to_string();
    // Descriptors rule what may be asked of a device.
    let handled = AccessFs::from_all(NEWEST) & !BitFlags::from(AccessFs::IoctlDev);
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let device = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate;
    // Files and folders are made, moved and removed; no devices, sockets, pipes and links.
    let write = read
        | device
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::MakeSock
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir
        | AccessFs::Refer;
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(handled)
        .and_then(Ruleset::create)
        .map_err(words)?;
    let network: &[&str] = if plan.network == Network::Yes { NETWORK } else { &[] };
    let named = plan
        .places
        .iter()
        .map(|(path, right)| (path.as_path(), if *right == Right::Write { write } else { read }));
    let everywhere = if plan.writing == Writing::Everywhere { write } else { read };
    let root = plan.everything.then_some((Path::new("/"), everywhere));
    let fixed = COMMON.iter().chain(network).map(|path| (Path::new(*path), read));
    let devices = DEVICES.iter().map(|path| (Path::new(*path), device));
    // Certificates that the user named, as the library that loads them understands it.
    let certificates: Vec<_> = ["SSL_CERT_FILE", "SSL_CERT_DIR"]
        .iter()
        .filter_map(|name| std::env::var_os(name).filter(|_| plan.network == Network::Yes))
        .flat_map(|value| std::env::split_paths(&value).collect::<Vec<_>>())
        .collect();
    let certificates = certificates.iter().map(|path| (path.as_path(), read));
    for (path, access) in named.chain(root).chain(fixed).chain(devices).chain(certificates) {
        // What is not there cannot be opened later either.
        let Ok(place) = PathFd::new(path) else { continue };
        // What only folders have is no right of a file.
        let access = if path.is_dir() { access } else { access & AccessFs::from_file(NEWEST) };
        rules = rules.add_rule(PathBeneath::new(place, access)).map_err(words)?;
    }
    let status = rules.restrict_self().map_err(words)?;
    match status.ruleset {
        RulesetStatus::NotEnforced => {
            Err("this kernel does not have it, or it is switched off".to_owned())
        }
        _ => Ok(()),
    }
}

/// The version of Landlock that this kernel has; 0 for none. At most the newest that is used here.
pub(super) fn version() -> u32 {
    let has = |abi: ABI| {
        Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::from_all(abi))
            .and_then(Ruleset::create)
            .is_ok()
    };
    let all = [ABI::V1, ABI::V2, ABI::V3, ABI::V4, ABI::V5];
    (1..).zip(all).filter(|(_, abi)| has(*abi)).map(|(n, _)| n).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_follow_what_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path();
        std::fs::create_dir(at.join("real")).unwrap();
        std::fs::write(at.join("real/a"), b"x").unwrap();
        std::os::unix::fs::symlink("real/a", at.join("link")).unwrap();
        let mut plan = Plan::default();
        plan.reads(&at.join("link").to_string_lossy());
        let real = at.canonicalize().unwrap().join("real");
        assert_eq!(plan.places, [(at.to_owned(), Right::Read), (real, Right::Read)]);
        let mut plan = Plan::default();
        plan.writes("/dev/null");
        plan.write_folder(&at.join("new/newer"));
        plan.writes("new.qcow2");
        let wanted = [PathBuf::from("/dev/null"), at.to_owned(), PathBuf::from(".")];
        assert_eq!(plan.places, wanted.map(|p| (p, Right::Write)));
        let mut plan = Plan::default();
        plan.reads_image(&OpenRequest::parse("null-co://", None).unwrap());
        assert!(plan.places.is_empty() && plan.network() == Network::No);
        plan.reads_image(&OpenRequest::parse("http://h/x", None).unwrap());
        assert_eq!(plan.network(), Network::Yes);
    }
}
