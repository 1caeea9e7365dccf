//! Carrying out network changes on the kernel.

use std::path::Path;

use super::change::{NetBefore, NetChange, PortState};
use super::kernel::Netlink;
use super::{daemon, enslave, firewall, legacy, tap};
use crate::change::{Lock, Programs};
use crate::error::{Error, ErrorKind, Result};

/// Who carries out network changes.
pub trait NetBackend {
    /// What is there before a change.
    fn remember(&mut self, change: &NetChange) -> Result<NetBefore>;
    /// Does it.
    fn perform(&mut self, change: &NetChange, before: &NetBefore) -> Result<()>;
    /// Puts back what was there, whether the change was done, half done or not begun.
    fn restore(&mut self, change: &NetChange, before: &NetBefore) -> Result<()>;
}

/// The kernel of the present network namespace.
#[derive(Debug, Clone, Default)]
pub struct Kernel {
    programs: Programs,
}

impl Kernel {
    /// Programs started from now on hold this lock.
    pub fn hold(&mut self, lock: Option<Lock>) {
        self.programs.hold(lock);
    }

    /// Tells systemd-networkd that its files have changed.
    fn reload_networkd(&self) -> Result<()> {
        self.programs.run(&["networkctl", "reload"].map(str::to_owned))
    }
}

/// What an interface has before somebody asks for a lease. It may be made by an action before this one.
fn leased(socket: &mut Netlink, link: &str, there: bool) -> Result<NetBefore> {
    let link = socket.need(link)?;
    Ok(NetBefore::Leased { there, state: enslave::state(socket, &link)? })
}

fn there(there: bool) -> NetBefore {
    NetBefore::There { there }
}

fn has_address(socket: &mut Netlink, link: &str, address: super::HostAddress) -> Result<bool> {
    let link = socket.need(link)?;
    let all = socket.addresses(link.index)?;
    Ok(all.iter().any(|message| {
        super::kernel::address_of(message) == Some((address.address, address.prefix))
    }))
}

impl NetBackend for Kernel {
    fn remember(&mut self, change: &NetChange) -> Result<NetBefore> {
        let mut socket = Netlink::open()?;
        Ok(match change {
            NetChange::Bridge { name, .. } | NetChange::RemoveBridge { name } => {
                match socket.link(name)? {
                    Some(link) if link.kind != "bridge" => {
                        return Err(Error::refused(format!("{name} exists and is no bridge"))
                            .remedy("use another name"));
                    }
                    link => there(link.is_some()),
                }
            }
            NetChange::Tap { name, .. } => match socket.link(name)? {
                Some(link) if link.kind != "tun" => {
                    return Err(Error::refused(format!("{name} exists and is no tap"))
                        .remedy("use another name"));
                }
                link => there(link.is_some()),
            },
            NetChange::Enslave { port, .. } => {
                NetBefore::Port(enslave::remember(&mut socket, port)?)
            }
            NetChange::Address { link, address } => {
                there(has_address(&mut socket, link, *address)?)
            }
            NetChange::Table { name, .. } => {
                NetBefore::Table { text: firewall::table(&self.programs, name) }
            }
            NetChange::Accept { bridge } => there(
                firewall::accepted(&self.programs, bridge)?
                    || legacy::accepted(&self.programs, bridge)?,
            ),
            NetChange::Belongs { .. } => there(true),
            NetChange::Dnsmasq { pid_file, .. } => there(daemon::running(pid_file).is_some()),
            NetChange::DhcpClient { link, pid_file, .. } => {
                leased(&mut socket, link, daemon::running(pid_file).is_some())?
            }
            NetChange::Networkd { link, path, .. } => {
                leased(&mut socket, link, Path::new(path).exists())?
            }
        })
    }

    fn perform(&mut self, change: &NetChange, before: &NetBefore) -> Result<()> {
        let mut socket = Netlink::open()?;
        match (change, before) {
            (NetChange::Bridge { name, stp, mtu }, NetBefore::There { there }) => {
                if !there {
                    socket.make_bridge(name, *stp)?;
                }
                let link = socket.need(name)?;
                if *mtu > 0 {
                    socket.set_mtu(link.index, *mtu)?;
                }
                socket.set_up(link.index, true)
            }
            (NetChange::Belongs { .. }, _) => Ok(()),
            (NetChange::RemoveBridge { name }, _) => socket.remove_link(name),
            (NetChange::Enslave { port, bridge }, NetBefore::Port(state)) => {
                enslave::perform(&mut socket, port, bridge, state)
            }
            (NetChange::Address { link, address }, _) => {
                let index = socket.need(link)?.index;
                socket.add_address(index, *address)
            }
            (NetChange::Tap { name, owner, bridge }, _) => {
                tap::make(name, *owner)?;
                let link = socket.need(name)?;
                if let Some(bridge) = bridge {
                    let bridge = socket.need(bridge)?;
                    socket.set_master(link.index, bridge.index)?;
                }
                socket.set_up(link.index, true)
            }
            (NetChange::Table { name, body }, _) => firewall::replace(&self.programs, name, body),
            (NetChange::Accept { bridge }, _) => {
                firewall::accept(&self.programs, bridge)?;
                legacy::accept(&self.programs, bridge)
            }
            (
                NetChange::Dnsmasq { command, .. } | NetChange::DhcpClient { command, .. },
                NetBefore::There { there } | NetBefore::Leased { there, .. },
            ) => {
                if *there {
                    Ok(())
                } else {
                    self.programs.start_daemon(command)
                }
            }
            (NetChange::Networkd { path, text, .. }, NetBefore::Leased { there, .. }) => {
                if !there {
                    daemon::write(path, text)?;
                }
                self.reload_networkd()
            }
            _ => Err(mismatch()),
        }
    }

    fn restore(&mut self, change: &NetChange, before: &NetBefore) -> Result<()> {
        let mut socket = Netlink::open()?;
        match (change, before) {
            (_, NetBefore::There { there: true }) => match change {
                NetChange::RemoveBridge { name } if socket.link(name)?.is_none() => {
                    socket.make_bridge(name, false)?;
                    let index = socket.need(name)?.index;
                    socket.set_up(index, true)
                }
                _ => Ok(()),
            },
            (NetChange::Bridge { name, .. } | NetChange::Tap { name, .. }, _) => {
                socket.remove_link(name)
            }
            (NetChange::Enslave { port, bridge }, NetBefore::Port(state)) => {
                enslave::restore(&mut socket, port, bridge, state)
            }
            (NetChange::Address { link, address }, _) => match socket.link(link)? {
                Some(link) => socket.remove_address(link.index, *address),
                None => Ok(()),
            },
            (NetChange::Table { name, .. }, NetBefore::Table { text }) => {
                firewall::restore(&self.programs, name, text.as_deref())
            }
            (NetChange::Accept { bridge }, _) => {
                firewall::withdraw(&self.programs, bridge)?;
                legacy::withdraw(&self.programs, bridge)
            }
            (NetChange::Dnsmasq { pid_file, files, .. }, _) => {
                daemon::stop(pid_file)?;
                files.iter().try_for_each(|path| daemon::remove(path))
            }
            (
                NetChange::DhcpClient { link, pid_file, files, .. },
                NetBefore::Leased { there: false, state },
            ) => {
                daemon::stop(pid_file)?;
                files.iter().try_for_each(|path| daemon::remove(path))?;
                forget_lease(&mut socket, link, state)
            }
            (NetChange::Networkd { link, path, .. }, NetBefore::Leased { there: false, state }) => {
                if Path::new(path).exists() {
                    daemon::remove(path)?;
                    self.reload_networkd()?;
                }
                forget_lease(&mut socket, link, state)
            }
            (_, NetBefore::Leased { there: true, .. }) => Ok(()),
            (NetChange::RemoveBridge { .. }, _) => Ok(()),
            _ => Err(mismatch()),
        }
    }
}

fn forget_lease(socket: &mut Netlink, link: &str, state: &PortState) -> Result<()> {
    match socket.link(link)? {
        Some(link) => enslave::drop_new(socket, &link, state),
        None => Ok(()),
    }
}

fn mismatch() -> Error {
    Error::new(ErrorKind::Damaged, "journal and network change do not belong together")
}
