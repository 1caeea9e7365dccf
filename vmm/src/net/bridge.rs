//! Joining a bridge.
//!
//! With the right to (CAP_NET_ADMIN) the interface is made and joined here. Without it, QEMU's helper
//! program does so, which runs with more rights and asks `/etc/qemu/bridge.conf`; it sends the open
//! interface back over a socket.

#![allow(unsafe_code)]

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, socket,
};

use super::config::VnetHeader;
use super::tap::{Tap, TapOptions, interface_request};
use crate::{Error, Result};

/// Where distributions put the helper.
const HELPERS: [&str; 4] = [
    "/usr/lib/qemu/qemu-bridge-helper",
    "/usr/libexec/qemu-bridge-helper",
    "/usr/lib64/qemu/qemu-bridge-helper",
    "/usr/local/libexec/qemu-bridge-helper",
];

nix::ioctl_write_ptr_bad!(
    /// SIOCBRADDIF: joins an interface to a bridge.
    bridge_add,
    0x89a2,
    libc::ifreq
);
nix::ioctl_read_bad!(
    /// SIOCGIFFLAGS.
    interface_flags,
    0x8913,
    libc::ifreq
);
nix::ioctl_write_ptr_bad!(
    /// SIOCSIFFLAGS.
    set_interface_flags,
    0x8914,
    libc::ifreq
);
nix::ioctl_read_bad!(
    /// SIOCGIFINDEX.
    interface_index,
    0x8933,
    libc::ifreq
);

/// An interface on `bridge`.
///
/// # Errors
/// Name what is missing: the bridge, the right to join it, or the helper.
pub fn join(bridge: &str, helper: Option<&Path>, header: VnetHeader) -> Result<Tap> {
    if let Some(helper) = helper {
        return ask_helper(helper, bridge, header);
    }
    let own = make_and_join(bridge, header);
    let Err(e) = own else { return own };
    let missing_right = matches!(e.raw_errno(), Some(libc::EPERM | libc::EACCES));
    match HELPERS.iter().map(Path::new).find(|h| h.exists()) {
        Some(found) if missing_right => ask_helper(found, bridge, header),
        _ => Err(e),
    }
}

fn make_and_join(bridge: &str, header: VnetHeader) -> Result<Tap> {
    if !Path::new("/sys/class/net").join(bridge).join("bridge").exists() {
        let there = Path::new("/sys/class/net").join(bridge).exists();
        let what = if there { "is no bridge" } else { "does not exist" };
        return Err(Error::invalid(format!("bridge {bridge} {what}")).hint(format!(
            "Make it: ip link add {bridge} type bridge; ip link set {bridge} up (or name another: br=)"
        )));
    }
    let tap = Tap::open(&TapOptions { header, ..TapOptions::default() })?;
    let step = |what: &str, e: nix::Error| {
        Error::from(e).context(format!("cannot {what} {} and bridge {bridge}", tap.name())).hint(
            "Run as root, or install QEMU's bridge helper and allow the bridge in /etc/qemu/bridge.conf",
        )
    };
    let control = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
        .map_err(|e| step("open a socket for", e))?;
    let fd = control.as_raw_fd();
    let mut request = interface_request(tap.name())?;
    // SAFETY: a complete `ifreq` that the kernel fills in.
    unsafe { interface_index(fd, &raw mut request) }.map_err(|e| step("find", e))?;
    // SAFETY: the kernel set this member of the union.
    let index = unsafe { request.ifr_ifru.ifru_ifindex };
    let mut join = interface_request(bridge)?;
    join.ifr_ifru.ifru_ifindex = index;
    // SAFETY: a complete `ifreq` that the kernel reads.
    unsafe { bridge_add(fd, &raw const join) }.map_err(|e| step("join", e))?;
    let mut request = interface_request(tap.name())?;
    // SAFETY: a complete `ifreq` that the kernel fills in.
    unsafe { interface_flags(fd, &raw mut request) }.map_err(|e| step("ask about", e))?;
    // SAFETY: the kernel set this member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | i16::try_from(libc::IFF_UP).unwrap_or(1);
    // SAFETY: a complete `ifreq` that the kernel reads.
    unsafe { set_interface_flags(fd, &raw const request) }.map_err(|e| step("set up", e))?;
    Ok(tap)
}

/// Runs the helper and takes the descriptor that it sends.
fn ask_helper(helper: &Path, bridge: &str, header: VnetHeader) -> Result<Tap> {
    let shown = helper.display().to_string();
    let failed = |e: Error| {
        e.context(format!("bridge helper {shown} failed for bridge {bridge}")).hint(format!(
            "Allow the bridge: echo 'allow {bridge}' >> /etc/qemu/bridge.conf; the helper must be setuid root"
        ))
    };
    let (ours, theirs) = UnixStream::pair().map_err(|e| failed(Error::io(&e)))?;
    // This end stays open in the helper.
    let theirs = keep_open(theirs.into()).map_err(|e| failed(Error::from(e)))?;
    let mut command = Command::new(helper);
    if header == VnetHeader::On {
        command.arg("--use-vnet");
    }
    let fd = theirs.as_raw_fd();
    let mut child = command
        .args([format!("--fd={fd}"), format!("--br={bridge}")])
        .spawn()
        .map_err(|e| failed(Error::io(&e)))?;
    drop(theirs);
    let received = ours
        .set_read_timeout(Some(Duration::from_secs(30)))
        .map_err(|e| Error::io(&e))
        .and_then(|()| receive(&ours));
    let status = child.wait().map_err(|e| failed(Error::io(&e)))?;
    if !status.success() {
        return Err(failed(Error::invalid(format!("it ended with {status}"))));
    }
    Tap::from_fd(received.map_err(failed)?)
}

/// A duplicate that programs we start inherit.
fn keep_open(fd: OwnedFd) -> nix::Result<OwnedFd> {
    nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()))?;
    Ok(fd)
}

/// The descriptor beside one byte (SCM_RIGHTS).
fn receive(socket: &UnixStream) -> Result<OwnedFd> {
    let mut byte = [0; 1];
    let mut space = nix::cmsg_space!([libc::c_int; 1]);
    let mut data = [IoSliceMut::new(&mut byte)];
    let message =
        recvmsg::<()>(socket.as_raw_fd(), &mut data, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)
            .map_err(Error::from)?;
    for part in message.cmsgs().map_err(Error::from)? {
        if let ControlMessageOwned::ScmRights(fds) = part {
            // SAFETY: the kernel has just made these descriptors for this process; each is owned once.
            let mut owned = fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
            if let Some(fd) = owned.next() {
                drop(owned);
                return Ok(fd);
            }
        }
    }
    Err(Error::invalid("no descriptor came back"))
}

/// Where the helper is looked for, for messages.
pub fn helper_paths() -> Vec<PathBuf> {
    HELPERS.iter().map(PathBuf::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_bridge_and_a_failing_helper_are_explained() {
        let e = join("no-such-br", None, VnetHeader::On).unwrap_err();
        assert!(e.report().contains("no-such-br does not exist"), "{}", e.report());
        assert!(e.hints()[0].contains("type bridge"));
        let e = join("lo", None, VnetHeader::On).unwrap_err();
        assert!(e.report().contains("is no bridge"), "{}", e.report());
        let e = join("br0", Some(Path::new("/bin/false")), VnetHeader::On).unwrap_err();
        assert!(e.hints()[0].contains("bridge.conf"), "{e:?}");
        assert!(join("br0", Some(Path::new("/no/such")), VnetHeader::On).is_err());
        let e = join("br0", Some(Path::new("/bin/true")), VnetHeader::On).unwrap_err();
        assert!(e.report().contains("no descriptor"), "{}", e.report());
    }
}
