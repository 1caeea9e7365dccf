//! Taps that outlive their maker (linux/if_tun.h).
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use crate::error::{Error, Result};

const TUNSETIFF: libc::c_ulong = 0x4004_54CA;
const TUNSETPERSIST: libc::c_ulong = 0x4004_54CB;
const TUNSETOWNER: libc::c_ulong = 0x4004_54CC;
/// IFF_TAP | IFF_NO_PI | IFF_VNET_HDR: as launchers open it.
const FLAGS: u16 = 0x5002;

fn attach(name: &str) -> Result<File> {
    const NODE: &str = "/dev/net/tun";
    let fail = |error: std::io::Error| {
        let refused = error.raw_os_error() == Some(libc::EPERM);
        let error = Error::io(format!("the tap {name} cannot be made"), Path::new(NODE), error);
        if refused {
            error.remedy("run as root (CAP_NET_ADMIN)")
        } else {
            error.remedy("see `rhostprep check --only dev.tun`")
        }
    };
    let file = File::options().read(true).write(true).open(NODE).map_err(fail)?;
    // struct ifreq: 16 bytes of name, then flags; 40 bytes in all (linux/if.h).
    let mut request = [0_u8; 40];
    let bytes = name.as_bytes();
    let length = bytes.len().min(15);
    request[..length].copy_from_slice(&bytes[..length]);
    request[16..18].copy_from_slice(&FLAGS.to_ne_bytes());
    // SAFETY: the request is as large as struct ifreq and lives through the call.
    if unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, request.as_mut_ptr()) } < 0 {
        return Err(fail(std::io::Error::last_os_error()));
    }
    Ok(file)
}

fn set(file: &File, request: libc::c_ulong, value: libc::c_ulong, what: &str) -> Result<()> {
    // SAFETY: these requests take a plain number.
    if unsafe { libc::ioctl(file.as_raw_fd(), request, value) } < 0 {
        let error = std::io::Error::last_os_error();
        return Err(Error::host(format!("{what}: {error}")));
    }
    Ok(())
}

/// Makes a tap, or takes the one that is there, for this user.
pub fn make(name: &str, owner: Option<u32>) -> Result<()> {
    let file = attach(name)?;
    if let Some(owner) = owner {
        set(&file, TUNSETOWNER, libc::c_ulong::from(owner), "the tap's owner cannot be set")?;
    }
    set(&file, TUNSETPERSIST, 1, "the tap cannot be kept")
}
