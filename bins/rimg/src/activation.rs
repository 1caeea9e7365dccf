//! A socket that somebody else opened: `sd_listen_fds(3)`, as systemd, `systemd-socket-activate` and libnbd
//! (`nbdinfo -- [ rimg serve ... ]`) hand it over.

#![allow(unsafe_code)]

use std::net::TcpListener;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};

use imgcore::ops::serve::Listener;
use imgcore::opts::nbd::NbdServer;

use crate::failure::Failure;

/// The first descriptor that is handed over (`SD_LISTEN_FDS_START`).
const FIRST: i32 = 3;

/// How many sockets were handed over to this very process; 0 for none.
fn announced() -> u32 {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    if number("LISTEN_PID") == Some(std::process::id()) {
        number("LISTEN_FDS").unwrap_or(0)
    } else {
        0
    }
}

/// Whether sockets were handed over.
pub fn is_wanted() -> bool {
    announced() > 0
}

/// The socket that was handed over, and where clients find it.
///
/// # Errors
/// When it is more than one, or none that clients can connect to.
pub fn take() -> Result<(Listener, NbdServer), Failure> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let number = announced();
    if number != 1 {
        return Err(Failure::new(format!(
            "{number} sockets were handed over (LISTEN_FDS): there is one export, and one socket is served"
        )));
    }
    let there = std::fs::read_link(format!("/proc/self/fd/{FIRST}"));
    let socket = there.is_ok_and(|to| to.to_string_lossy().starts_with("socket:"));
    if !socket || TAKEN.swap(true, Ordering::SeqCst) {
        return Err(Failure::new("LISTEN_FDS names a descriptor that is no socket"));
    }
    // SAFETY: whoever started this process says that this descriptor is open and meant for it (LISTEN_PID is this
    // process); it was just seen to be a socket, nothing else here uses descriptors by number, and it is taken once.
    let socket = unsafe { OwnedFd::from_raw_fd(FIRST) };
    let unix = UnixListener::from(socket);
    if let Ok(address) = unix.local_addr() {
        let path = address.as_pathname().unwrap_or(std::path::Path::new(""));
        let path = path.to_string_lossy().into_owned();
        return Ok((Listener::Unix(unix), NbdServer::Unix { path }));
    }
    let tcp = TcpListener::from(OwnedFd::from(unix));
    let address = tcp
        .local_addr()
        .map_err(|_| Failure::new("The socket of LISTEN_FDS is neither TCP nor UNIX"))?;
    let server = NbdServer::Inet { host: address.ip().to_string(), port: address.port() };
    Ok((Listener::Tcp(tcp), server))
}
