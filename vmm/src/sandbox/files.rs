//! Landlock rules made from the machine.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use imgcore::opts::nbd::NbdServer;
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, PathBeneath,
    PathFd, Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr,
};

use super::Dialling;
use crate::block::config::Persistence;
use crate::block::image::{CommitAccess, CommitFile};
use crate::block::{Disk, Drive, remote};
use crate::chardev::CharKind;
use crate::chardev::config::{Role, SocketAddress};
use crate::machine::MachineConfig;
use crate::machine::config::DeviceKind;
use crate::{Error, Result};

/// What may be done with a file, or below a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// Reading a file.
    Read,
    /// Reading and writing a file, and changing its length.
    Write,
    /// Removing files from a folder.
    Remove,
}

impl Right {
    fn access(self) -> BitFlags<AccessFs> {
        match self {
            Right::Read => AccessFs::ReadFile.into(),
            Right::Write => AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate,
            Right::Remove => AccessFs::RemoveFile.into(),
        }
    }
}

/// Newest rights that are asked for; an older kernel has fewer, and confines what it can.
const NEWEST: ABI = ABI::V5;

/// What may be opened and connected to.
#[derive(Debug, Default)]
pub struct Allowed {
    /// Files and folders by name.
    pub files: Vec<(PathBuf, Right)>,
    /// Files that are open now, and may be opened again.
    pub open: Vec<(File, Right)>,
    /// TCP ports of servers, wherever these are.
    pub ports: Vec<u16>,
}

fn drives(config: &MachineConfig) -> impl Iterator<Item = &Drive> {
    config.devices.iter().filter_map(|device| match &device.kind {
        DeviceKind::Blk { drive, .. } => Some(&**drive),
        _ => None,
    })
}

/// Whether some disk may connect to its server again.
pub fn dialling(config: &MachineConfig) -> Dialling {
    if drives(config).any(|d| remote::redials(&d.image).next().is_some()) {
        Dialling::Allowed
    } else {
        Dialling::Never
    }
}

/// What the machine opens and connects to again while it runs.
pub fn allowed(config: &MachineConfig, removed: &[PathBuf]) -> Allowed {
    let mut files = vec![(config.kernel.kernel.clone(), Right::Read)];
    // A reset loads them again.
    files.extend(config.kernel.initrds.iter().map(|p| (p.clone(), Right::Read)));
    for path in removed {
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
        files.push((folder.unwrap_or(Path::new(".")).to_owned(), Right::Remove));
    }
    let mut ports: Vec<u16> = drives(config).flat_map(servers_of).filter_map(port).collect();
    ports.extend(config.chardevs.iter().filter_map(|(_, c)| match &c.kind {
        CharKind::Socket(socket) => match (&socket.address, socket.role) {
            (SocketAddress::Tcp(_, port), Role::Client(Some(_))) => Some(*port),
            _ => None,
        },
        _ => None,
    }));
    ports.sort_unstable();
    ports.dedup();
    Allowed { files, ports, open: Vec::new() }
}

impl Allowed {
    /// Allows what `commit` opens again for these disks: images below, no others.
    ///
    /// # Errors
    /// When no more files can be open.
    pub fn allow_commits<'a>(&mut self, disks: impl Iterator<Item = &'a Disk>) -> Result<()> {
        for image in disks.filter_map(Disk::image) {
            for (file, access) in image.commit_files()? {
                let right = match access {
                    CommitAccess::Read => Right::Read,
                    CommitAccess::Write => Right::Write,
                };
                match file {
                    CommitFile::Open(file) => self.open.push((file, right)),
                    CommitFile::Named(name) => self.files.push((name, right)),
                }
            }
        }
        Ok(())
    }
}

/// Servers that a disk connects to again; those of a temporary disk are connected to anew by `commit`, in the
/// machine's own thread.
fn servers_of(drive: &Drive) -> Vec<&NbdServer> {
    if drive.persistence == Persistence::Temporary {
        remote::servers(&drive.image).collect()
    } else {
        remote::redials(&drive.image).collect()
    }
}

fn port(server: &NbdServer) -> Option<u16> {
    match server {
        NbdServer::Inet { port, .. } => Some(*port),
        NbdServer::Unix { .. } => None,
    }
}

/// Rules that the kernel has taken.
#[derive(Debug)]
pub struct Rules(RulesetCreated);

fn failed(e: impl std::fmt::Display) -> Error {
    Error::invalid(format!("Landlock: {e}"))
}

impl Rules {
    /// Makes rules that allow this and nothing else. `None` where the kernel has no Landlock.
    ///
    /// # Errors
    /// When the kernel refuses a rule.
    pub fn new(allowed: &Allowed) -> Result<Option<Self>> {
        let handled = AccessFs::from_all(NEWEST);
        // IoctlDev stays free: disks and interfaces are ruled by the descriptors that there are.
        let handled = handled & !BitFlags::from(AccessFs::IoctlDev);
        // Is there anything at all?
        let present = Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::from_all(ABI::V1))
            .and_then(Ruleset::create);
        if present.is_err() {
            return Ok(None);
        }
        let mut rules = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(handled)
            .and_then(|r| r.handle_access(AccessNet::from_all(NEWEST)))
            .and_then(Ruleset::create)
            .map_err(failed)?;
        for port in &allowed.ports {
            rules = rules.add_rule(NetPort::new(*port, AccessNet::ConnectTcp)).map_err(failed)?;
        }
        for (path, right) in &allowed.files {
            // What is not there cannot be opened later either.
            let Ok(place) = PathFd::new(path) else { continue };
            rules = rules.add_rule(PathBeneath::new(place, right.access())).map_err(failed)?;
        }
        for (file, right) in &allowed.open {
            rules = rules.add_rule(PathBeneath::new(file, right.access())).map_err(failed)?;
        }
        Ok(Some(Rules(rules)))
    }

    /// A descriptor of the rules, for `landlock_restrict_self`. `None` where the kernel has taken none.
    pub fn descriptor(&self) -> Result<Option<OwnedFd>> {
        self.0.try_clone().map(Into::into).map_err(|e| Error::io(&e).context("Landlock"))
    }

    /// Confines the calling thread.
    pub fn enter(&self) -> Result<()> {
        let rules = self.0.try_clone().map_err(|e| Error::io(&e).context("Landlock"))?;
        rules.restrict_self().map(drop).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::config::DeviceConfig;
    use crate::virtio::blk::BlkConfig;
    use imgcore::graph::open::OpenRequest;

    #[test]
    fn rules_follow_the_machine() {
        let disk = |name: &str, persistence| DeviceConfig {
            id: name.into(),
            slot: None,
            kind: DeviceKind::Blk {
                drive: Box::new(Drive {
                    image: OpenRequest::file(name),
                    persistence,
                    ..Drive::default()
                }),
                queues: None,
                shown: BlkConfig::default(),
            },
        };
        let mut config = MachineConfig::default();
        config.kernel.kernel = "k".into();
        config.kernel.initrds = vec!["i".into()];
        config.devices = vec![disk("a", Persistence::Permanent), disk("b", Persistence::Temporary)];
        let Allowed { files: all, ports, .. } =
            allowed(&config, &["/run/x/pid".into(), "pid".into()]);
        assert_eq!((ports, dialling(&config)), (Vec::new(), Dialling::Never));
        let want = [
            ("k", Right::Read),
            ("i", Right::Read),
            ("/run/x", Right::Remove),
            (".", Right::Remove),
        ];
        assert_eq!(all, want.map(|(p, r)| (PathBuf::from(p), r)));

        let run = |line: &str| {
            let words: Vec<&str> = line.split(' ').collect();
            match crate::cmdline::parse(&words).unwrap() {
                crate::cmdline::Parsed::Run(run) => run.machine,
                crate::cmdline::Parsed::Show(text) => panic!("{text}"),
            }
        };
        let quiet = run("-kernel k -drive file=nbd://h:7,if=virtio -serial tcp:h:8");
        assert!(allowed(&quiet, &[]).ports.is_empty());
        let redialling = run("-kernel k -serial tcp:h:8,reconnect=1 \
             -blockdev driver=nbd,node-name=n,server.type=inet,server.host=h,server.port=7,reconnect-delay=3 \
             -device virtio-blk-pci,drive=n -drive file=nbd://h:9,if=virtio,snapshot=on");
        assert_eq!(allowed(&redialling, &[]).ports, [7, 8, 9]);
        assert_eq!(dialling(&redialling), Dialling::Allowed);
        assert_eq!(allowed(&redialling, &[]).files.len(), 1, "a server's name is no file");
    }
}
