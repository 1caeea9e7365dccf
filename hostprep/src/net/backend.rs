//! Carrying out network changes on the kernel.

use super::change::{NetBefore, NetChange};
use super::kernel::Netlink;
use super::{daemon, enslave, firewall, tap};
use crate::change::Effects;
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
#[derive(Debug, Clone, Copy, Default)]
pub struct Kernel;

fn there(there: bool) -> NetBefore {
    NetBefore::There { there }
}

fn has_address(socket: &mut Netlink, link: &str, address: super::Cidr) -> Result<bool> {
    let link = socket.need(link)?;
    let all = socket.addresses(link.index)?;
    Ok(all
        .iter()
        .any(|message| super::kernel::ipv4_of(message) == Some((address.address, address.prefix))))
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
            NetChange::Table { name, .. } => NetBefore::Table { text: firewall::table(name) },
            NetChange::Accept { bridge } => there(firewall::accepted(bridge)?),
            NetChange::Dnsmasq { pid_file, .. } | NetChange::DhcpClient { pid_file, .. } => {
                there(daemon::running(pid_file).is_some())
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
            (NetChange::Table { name, body }, _) => firewall::replace(name, body),
            (NetChange::Accept { bridge }, _) => firewall::accept(bridge),
            (
                NetChange::Dnsmasq { command, .. } | NetChange::DhcpClient { command, .. },
                NetBefore::There { there },
            ) => {
                if *there {
                    Ok(())
                } else {
                    crate::change::System::new().run(command)
                }
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
                firewall::restore(name, text.as_deref())
            }
            (NetChange::Accept { bridge }, _) => firewall::withdraw(bridge),
            (NetChange::Dnsmasq { pid_file, files, .. }, _) => {
                daemon::stop(pid_file)?;
                files.iter().try_for_each(|path| daemon::remove(path))
            }
            (NetChange::DhcpClient { pid_file, .. }, _) => daemon::stop(pid_file),
            (NetChange::RemoveBridge { .. }, _) => Ok(()),
            _ => Err(mismatch()),
        }
    }
}

fn mismatch() -> Error {
    Error::new(ErrorKind::Damaged, "journal and network change do not belong together")
}
