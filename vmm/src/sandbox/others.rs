//! Confining threads that have been started before: those that read what servers of disks send.
//!
//! The kernel confines the calling thread, so each has to do it by itself. A signal makes it: the handler enters the
//! rules and filters that [`confine`] has laid ready, which takes system calls only. (The C library changes the user of
//! all threads the same way.)

#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicI32, AtomicPtr, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use seccompiler::BpfProgram;

use crate::{Error, Result};

/// Not used for anything else by Rust, libc or this crate.
const SIGNAL: Signal = Signal::SIGUSR2;
/// How long a thread may take to come to it: one that was started a moment ago may have to be scheduled first.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks whether all have come to it.
const SOON: Duration = Duration::from_micros(50);

/// A thread that has not come to it yet.
const WAITING: i32 = 0;
/// A thread that is confined. Negative: the error number that kept it from being.
const DONE: i32 = 1;

/// What the handler does, and who is to do it.
struct Orders {
    rules: Option<OwnedFd>,
    programs: Vec<libc::sock_fprog>,
    threads: Vec<(i32, AtomicI32)>,
}

/// Where the handler finds it; null while nobody is to do anything.
static ORDERS: AtomicPtr<Orders> = AtomicPtr::new(std::ptr::null_mut());
/// One at a time.
static TURN: Mutex<()> = Mutex::new(());

/// The threads of this process.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn threads() -> Result<Vec<i32>> {
    let failed = |e: std::io::Error| {
        Error::io(&e).context("cannot list the threads of this process in /proc/self/task")
    };
    let mut all = Vec::new();
    for entry in std::fs::read_dir("/proc/self/task").map_err(failed)? {
        all.extend(entry.map_err(failed)?.file_name().to_str().and_then(|n| n.parse::<i32>().ok()));
    }
    Ok(all)
}

/// Whether a thread of this process is one of those that the block layer has for a connection to a server. One that has
/// just ended is none.
pub fn talks_to_server(thread: i32) -> bool {
    std::fs::read_to_string(format!("/proc/self/task/{thread}/comm"))
        .is_ok_and(|name| name.starts_with(imgcore::storage::nbd::THREADS))
}

/// Has these threads enter Landlock rules and seccomp programs (in this order), and waits until they have. Threads that
/// have ended are no error.
///
/// # Errors
/// When a thread does not come to it within ten seconds, or the kernel refuses.
pub fn confine(threads: &[i32], rules: Option<OwnedFd>, programs: &[BpfProgram]) -> Result<()> {
    if threads.is_empty() {
        return Ok(());
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    install()?;
    let program = |p: &BpfProgram| libc::sock_fprog {
        len: u16::try_from(p.len()).unwrap_or(u16::MAX),
        // The kernel does not write there.
        filter: p.as_ptr().cast::<libc::sock_filter>().cast_mut(),
    };
    let orders = Box::new(Orders {
        rules,
        programs: programs.iter().map(program).collect(),
        threads: threads.iter().map(|t| (*t, AtomicI32::new(WAITING))).collect(),
    });
    let orders = Box::into_raw(orders);
    ORDERS.store(orders, Ordering::Release);
    // SAFETY: made from a box above, and freed only below.
    let result = unsafe { send_and_wait(&*orders) };
    ORDERS.store(std::ptr::null_mut(), Ordering::Release);
    match result {
        Ok(()) => {
            // SAFETY: every thread that was sent the signal is behind it or gone, so that no handler has the pointer.
            drop(unsafe { Box::from_raw(orders) });
            Ok(())
        }
        // A handler may still run: what it looks at stays where it is, `programs` with it, as the process ends now.
        Err(e) => Err(e),
    }
}

/// `orders` is what [`ORDERS`] points to.
fn send_and_wait(orders: &Orders) -> Result<()> {
    let process = nix::unistd::getpid().as_raw();
    for (thread, state) in &orders.threads {
        // SAFETY: sends a signal that has a handler to a thread of this process; has no other effect.
        if unsafe { libc::syscall(libc::SYS_tgkill, process, *thread, SIGNAL as libc::c_int) } != 0
        {
            // It has ended.
            state.store(DONE, Ordering::Release);
        }
    }
    let end = Instant::now() + PATIENCE;
    for (thread, state) in &orders.threads {
        while state.load(Ordering::Acquire) == WAITING {
            if !Path::new(&format!("/proc/self/task/{thread}")).exists() {
                break;
            }
            if Instant::now() >= end {
                return Err(Error::errno(libc::ETIMEDOUT)
                    .context(format!("thread {thread} does not confine itself")));
            }
            std::thread::sleep(SOON);
        }
        let state = state.load(Ordering::Acquire);
        if state < 0 {
            return Err(Error::errno(-state).context(format!("thread {thread} cannot be confined")));
        }
    }
    Ok(())
}

fn install() -> Result<()> {
    let action = SigAction::new(SigHandler::Handler(obey), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler makes only system calls, reads memory that is there as long as it can be called (see
    // `confine`), writes atomics, and leaves `errno` as it was.
    unsafe { sigaction(SIGNAL, &action) }
        .map(drop)
        .map_err(|e| Error::from(e).context("cannot set a signal's handler"))
}

extern "C" fn obey(_: libc::c_int) {
    // SAFETY: the thread's own `errno`.
    let errno = unsafe { *libc::__errno_location() };
    // SAFETY: not null only while the orders are there (see `confine`).
    if let Some(orders) = unsafe { ORDERS.load(Ordering::Acquire).as_ref() } {
        // SAFETY: takes nothing.
        let me = unsafe { libc::syscall(libc::SYS_gettid) };
        let own = orders.threads.iter().find(|(thread, _)| libc::c_long::from(*thread) == me);
        if let Some((_, state)) = own
            && state.load(Ordering::Acquire) == WAITING
        {
            state.store(follow(orders).map_or_else(|e| -e, |()| DONE), Ordering::Release);
        }
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// Confines the calling thread; async-signal-safe. The error is the error number.
fn follow(orders: &Orders) -> std::result::Result<(), i32> {
    let check = |result: libc::c_long| {
        // SAFETY: the thread's own `errno`.
        if result < 0 { Err(unsafe { *libc::__errno_location() }) } else { Ok(()) }
    };
    // SAFETY: numbers only.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }.into())?;
    if let Some(rules) = &orders.rules {
        // SAFETY: an open descriptor and no flags.
        check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, rules.as_raw_fd(), 0) })?;
    }
    for program in &orders.programs {
        let mode = libc::SECCOMP_SET_MODE_FILTER;
        // SAFETY: the kernel copies a program whose instructions live as long as the orders.
        check(unsafe { libc::syscall(libc::SYS_seccomp, mode, 0, std::ptr::from_ref(program)) })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::calls::{Dialling, Filters, Kind};
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc::channel;

    #[test]
    fn a_thread_that_waits_is_confined_where_it_is() {
        let (mut ours, mut its) = UnixStream::pair().unwrap();
        let (send, ids) = channel();
        let thread = std::thread::spawn(move || {
            send.send(nix::unistd::gettid().as_raw()).unwrap();
            let mut byte = [0];
            // Goes on waiting when the signal has come.
            its.read_exact(&mut byte).unwrap();
            its.write_all(&byte).unwrap();
            (byte[0], UnixStream::pair().is_err(), std::fs::File::open("/dev/zero").is_err())
        });
        let id = ids.recv().unwrap();
        let seccomp = || std::fs::read_to_string(format!("/proc/self/task/{id}/status")).unwrap();
        assert!(seccomp().contains("Seccomp:\t0"));
        let filters = Filters::new(Dialling::Never);
        crate::sandbox::report::install().unwrap();
        confine(&[id], None, filters.programs(Kind::Server).unwrap()).unwrap();
        assert!(seccomp().contains("Seccomp:\t2"));
        ours.write_all(&[9]).unwrap();
        ours.read_exact(&mut [0]).unwrap();
        assert_eq!(thread.join().unwrap(), (9, true, true));
        // One that has ended is no error.
        confine(&[id], None, filters.programs(Kind::Server).unwrap()).unwrap();
    }
}
