//! Tap interfaces (Linux: Documentation/networking/tuntap.rst).

#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use super::config::VnetHeader;
use super::{NetBackend, QueueState};
use crate::block::vector::GuestPieces;
use crate::{Error, Result};

const TUN: &str = "/dev/net/tun";
const IFNAMSIZ: usize = 16;
const IFF_TAP: i16 = 0x0002;
const IFF_NO_PI: i16 = 0x1000;
const IFF_VNET_HDR: i16 = 0x4000;
const IFF_MULTI_QUEUE: i16 = 0x0100;
const IFF_ATTACH_QUEUE: i16 = 0x0200;
const IFF_DETACH_QUEUE: i16 = 0x0400;

const TUN_F_CSUM: libc::c_ulong = 1;
const TUN_F_TSO4: libc::c_ulong = 2;
const TUN_F_TSO6: libc::c_ulong = 4;
const TUN_F_TSO_ECN: libc::c_ulong = 8;

nix::ioctl_write_ptr_bad!(
    /// TUNSETIFF: makes or attaches to an interface.
    tun_set_iff,
    0x4004_54ca,
    libc::ifreq
);
nix::ioctl_read_bad!(
    /// TUNGETIFF: name and flags.
    tun_get_iff,
    0x8004_54d2,
    libc::ifreq
);
nix::ioctl_write_int_bad!(
    /// TUNSETOFFLOAD.
    tun_set_offload,
    0x4004_54d0
);
nix::ioctl_write_ptr_bad!(
    /// TUNSETVNETHDRSZ.
    tun_set_header_len,
    0x4004_54d8,
    libc::c_int
);
nix::ioctl_write_ptr_bad!(
    /// TUNSETSNDBUF.
    tun_set_sndbuf,
    0x4004_54d4,
    libc::c_int
);

nix::ioctl_write_ptr_bad!(
    /// TUNSETQUEUE: attaches a queue, or detaches it.
    tun_set_queue,
    0x4004_54d9,
    libc::ifreq
);

/// How many queues an interface has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Queues {
    /// One.
    #[default]
    One,
    /// Several: the interface can be opened again, for one more each time.
    Several,
}

/// Which interface, and how.
#[derive(Clone, Debug, Default)]
pub struct TapOptions {
    /// Its name; `tap%d` or nothing takes the next free number.
    pub name: String,
    /// Whether frames carry an offload header.
    pub header: VnetHeader,
    /// Its queues.
    pub queues: Queues,
}

/// One queue of a tap interface of the host.
#[derive(Debug)]
pub struct Tap {
    file: File,
    name: String,
    vnet_hdr: bool,
    several: bool,
    header_len: u8,
}

impl Tap {
    /// Opens an interface, making it when it does not exist.
    ///
    /// # Errors
    /// A missing driver, missing rights and a busy interface are told apart, each with what to do.
    pub fn open(wanted: &TapOptions) -> Result<Self> {
        let name = wanted.name.as_str();
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
        let file = options.open(TUN).map_err(|e| explain_open(&e))?;
        let mut request = interface_request(if name.is_empty() { "tap%d" } else { name })?;
        let header = if wanted.header == VnetHeader::On { IFF_VNET_HDR } else { 0 };
        let queues = if wanted.queues == Queues::Several { IFF_MULTI_QUEUE } else { 0 };
        request.ifr_ifru.ifru_flags = IFF_TAP | IFF_NO_PI | header | queues;
        // SAFETY: the request is a complete `ifreq` that the kernel only reads (and writes the name of).
        unsafe { tun_set_iff(file.as_raw_fd(), &raw const request) }
            .map_err(|e| explain_attach(e, name))?;
        Tap::attached(file)
    }

    /// Takes over an open descriptor (`fd=`).
    pub fn from_fd(fd: OwnedFd) -> Result<Self> {
        // SAFETY: the descriptor's owner gives it away.
        let file = unsafe { File::from_raw_fd(fd.into_raw_fd()) };
        nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))
            .map_err(|e| Error::from(e).context("cannot use the tap descriptor"))?;
        Tap::attached(file)
    }

    fn attached(file: File) -> Result<Self> {
        let mut request = interface_request("")?;
        // SAFETY: the kernel fills in a complete `ifreq`.
        unsafe { tun_get_iff(file.as_raw_fd(), &raw mut request) }.map_err(|e| {
            Error::from(e)
                .context("the descriptor is not a tap interface")
                .hint("Pass a descriptor of /dev/net/tun after TUNSETIFF with IFF_TAP")
        })?;
        // SAFETY: the kernel set this member of the union.
        let flags = unsafe { request.ifr_ifru.ifru_flags };
        let bytes: Vec<u8> =
            request.ifr_name.iter().map(|c| c.to_ne_bytes()[0]).take_while(|b| *b != 0).collect();
        let vnet_hdr = flags & IFF_VNET_HDR != 0;
        Ok(Tap {
            file,
            name: String::from_utf8_lossy(&bytes).into_owned(),
            vnet_hdr,
            several: flags & IFF_MULTI_QUEUE != 0,
            header_len: 10,
        })
    }

    /// The interface's name, which the kernel may have chosen.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes that may wait to be sent (`sndbuf=`).
    pub fn set_sndbuf(&self, bytes: i32) -> Result<()> {
        // SAFETY: the kernel reads one int.
        unsafe { tun_set_sndbuf(self.file.as_raw_fd(), &raw const bytes) }
            .map(|_| ())
            .map_err(|e| Error::from(e).context(format!("cannot set sndbuf of {}", self.name)))
    }
}

/// A request about the interface `name`.
///
/// # Errors
/// When no interface can have this name.
pub(super) fn interface_request(name: &str) -> Result<libc::ifreq> {
    if name.len() >= IFNAMSIZ || name.contains(['/', '\0']) || name.contains(char::is_whitespace) {
        return Err(Error::invalid(format!("'{name}' is no name for a network interface"))
            .hint("Use at most 15 characters without spaces and slashes (ifname=tap0)"));
    }
    // SAFETY: all bits zero are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Ok(request)
}

fn explain_open(e: &std::io::Error) -> Error {
    let error = Error::io(e).context("could not open /dev/net/tun").at_path(TUN);
    error.hint(match e.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
            "Load the driver: modprobe tun (in a container, the host must offer /dev/net/tun)"
        }
        Some(libc::EACCES | libc::EPERM) => "Allow the user to open it: chmod 0666 /dev/net/tun",
        _ => "Check that /dev/net/tun is a character device 10,200",
    })
}

fn explain_attach(e: nix::Error, name: &str) -> Error {
    let error = Error::from(e).context(format!("could not configure /dev/net/tun ({name})"));
    error.hint(match e {
        nix::Error::EPERM => format!(
            "Run as root, or let root make the interface for this user: ip tuntap add {} mode tap user $USER",
            if name.is_empty() { "tap0" } else { name }
        ),
        nix::Error::EBUSY => format!("{name} is in use: another guest has it; choose another ifname="),
        nix::Error::EINVAL => format!(
            "{name} exists and is not a tap interface, or was made with another number of queues: \
             queues= must be above 1 exactly when it was made with multi_queue"
        ),
        _ => "See the kernel log".to_owned(),
    })
}

impl NetBackend for Tap {
    fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    fn receive(&mut self, buf: &mut [u8]) -> std::io::Result<Option<usize>> {
        let skip = if self.vnet_hdr { 0 } else { usize::from(self.header_len) };
        let Some(room) = buf.get_mut(skip..) else { return Ok(None) };
        match self.file.read(room) {
            Ok(0) => Ok(None),
            Ok(n) => {
                buf[..skip].fill(0);
                Ok(Some(n + skip))
            }
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => Ok(None),
            // Detached just now. An interface that is gone shows as an error of the descriptor.
            Err(e) if e.raw_os_error() == Some(libc::EBADFD) => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn send(&mut self, frame: &[u8]) -> std::io::Result<bool> {
        let skip = if self.vnet_hdr { 0 } else { usize::from(self.header_len) };
        // Busy, an interface that is down or detached, or a frame that the kernel does not like: dropped.
        // A frame is taken as a whole or not at all.
        let frame = frame.get(skip..).unwrap_or(&[]);
        Ok(self.file.write(frame).is_ok_and(|n| n == frame.len()))
    }

    fn send_direct(&mut self, frame: &GuestPieces<'_>) -> std::io::Result<Option<bool>> {
        if !self.vnet_hdr || frame.is_empty() {
            return Ok(None);
        }
        Ok(Some(frame.write_once(self.file.as_fd()).is_ok()))
    }

    fn set_queue(&mut self, state: QueueState) -> std::io::Result<()> {
        if !self.several {
            return Ok(());
        }
        let mut request = interface_request("").map_err(std::io::Error::other)?;
        request.ifr_ifru.ifru_flags = match state {
            QueueState::Attached => IFF_ATTACH_QUEUE,
            QueueState::Detached => IFF_DETACH_QUEUE,
        };
        // SAFETY: a complete `ifreq` that the kernel reads.
        match unsafe { tun_set_queue(self.fd(), &raw const request) } {
            // It is in that state already.
            Ok(_) | Err(nix::Error::EINVAL) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    fn for_vhost(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }

    fn configure(&mut self, header_len: u8, offloads: u64) -> std::io::Result<()> {
        self.header_len = header_len;
        if !self.vnet_hdr {
            return Ok(());
        }
        let len = libc::c_int::from(header_len);
        let bit =
            |feature: u32, flag: libc::c_ulong| if offloads >> feature & 1 == 1 { flag } else { 0 };
        let mut flags = bit(1, TUN_F_CSUM);
        if flags != 0 {
            flags |= bit(7, TUN_F_TSO4) | bit(8, TUN_F_TSO6) | bit(9, TUN_F_TSO_ECN);
        }
        let flags = i32::try_from(flags).unwrap_or(0);
        // SAFETY: the kernel reads one int; the second call passes a plain number.
        unsafe {
            tun_set_header_len(self.fd(), &raw const len)?;
            tun_set_offload(self.fd(), flags)?;
        }
        Ok(())
    }

    fn offloads(&self) -> u64 {
        // CSUM, GUEST_CSUM, GUEST_TSO4/6, GUEST_ECN, HOST_TSO4/6, HOST_ECN.
        if self.vnet_hdr {
            1 | 2 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 11 | 1 << 12 | 1 << 13
        } else {
            0
        }
    }

    fn reopen(&self) -> std::io::Result<Box<dyn NetBackend>> {
        Ok(Box::new(Tap {
            file: self.file.try_clone()?,
            name: self.name.clone(),
            vnet_hdr: self.vnet_hdr,
            several: self.several,
            header_len: self.header_len,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> TapOptions {
        TapOptions { name: name.into(), ..TapOptions::default() }
    }

    #[test]
    fn names_are_checked_and_failures_explained() {
        assert!(Tap::open(&named("much-too-long-a-name")).is_err());
        assert!(Tap::open(&named("a b")).is_err());
        let e = explain_attach(nix::Error::EPERM, "tap0");
        assert!(format!("{e:?}").contains("tap0"));
        let null = File::open("/dev/null").unwrap();
        assert!(Tap::from_fd(null.into()).unwrap_err().to_string().contains("not a tap"));
    }

    #[test]
    fn an_interface_can_be_made() {
        match Tap::open(&named("")) {
            Ok(tap) => {
                assert!(tap.name().starts_with("tap"), "{}", tap.name());
                let mut tap = tap;
                tap.configure(12, tap.offloads()).unwrap();
                tap.set_sndbuf(1 << 20).unwrap();
                let again = Tap::open(&named(&tap.name)).unwrap_err();
                assert!(again.report().contains("configure"), "{}", again.report());
            }
            Err(e) => eprintln!("SKIPPED: no tap interfaces here: {}", e.report()),
        }
    }
}
