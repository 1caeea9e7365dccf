//! Confining the process once all it needs is open.
//!
//! * [`files`]: Landlock rules made from the machine: which files may still be opened.
//! * [`calls`]: the system calls that each kind of thread may make (seccomp).
//! * [`others`]: threads that talk to servers since disks were opened: they are made to confine themselves.
//! * [`report`]: what happens when a call is refused: one line that names it, and `EPERM`.
//!
//! A guest that takes over this process can then do what a guest may do anyway: use the descriptors of
//! its own disks and interfaces. It can start no program, and open no file but those that the machine
//! opens again by itself: kernel and ramdisks at a reset, and if there is a monitor, what its command `commit` writes:
//! the image that lies directly below a disk that is written (for reading, those below that one). It is locked when the
//! command is given, not before, so that others may stand on it until then. `-sandbox on,commit=deny` is for images
//! below that this guest must never touch and that the user whose process this is could write.
//!
//! Disks on servers are connected before the sandbox closes, and use that connection. A new one can be made only if
//! the command line says so for some disk (`reconnect-delay`), and over TCP only to the ports of those disks and of
//! character devices that connect again by themselves; what an image says of its backing file opens nothing. A socket
//! in the file system is not ruled by Landlock: with `reconnect-delay` any that the user may use can be connected to.
//!
//! # When
//!
//! Files, interfaces, scripts and overlays are opened while the machine is built, with all rights. A
//! [`Confinement`] is prepared at the end of that. Each thread enters it by itself before it touches the
//! guest's data: vCPU threads when they start, the machine's own thread when it begins to run, and before that those
//! that talk to servers of disks ([`others`]). Threads made later inherit it; those that serve devices narrow it further
//! ([`narrow`]).
//!
//! The script that takes an interface down needs rights at the end: a shell that was started before
//! waits with it ([`crate::net::script`]).
//!
//! # What a host lacks
//!
//! A kernel without Landlock confines system calls only, and one line says so. A kernel without seccomp
//! cannot confine: that is an error which names `-sandbox off`.

pub mod calls;
pub mod files;
pub mod others;
pub mod report;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

pub use calls::{Dialling, Kind};

use crate::block::Disk;
use crate::machine::MachineConfig;
use crate::{Error, Result};

/// Whether the process is confined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Sandbox {
    /// It is not. The default of the library: a caller's process is his own.
    #[default]
    Off,
    /// It is. The default of the command line.
    On {
        /// Files that are to be removed at the end (`-pidfile`). Removing is allowed in their folders.
        removed: Vec<PathBuf>,
        /// Whether images below disks may be opened again.
        commit: Commit,
    },
}

/// Whether images below disks may be opened again, for writing, by the monitor's command `commit`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Commit {
    /// The image directly below a disk that is written, and for reading those further below; if there is a monitor to
    /// give the command.
    #[default]
    Allowed,
    /// None (`-sandbox on,commit=deny`).
    Denied,
}

/// Some thread of this process is confined: new device threads narrow themselves.
static CONFINED: AtomicU8 = AtomicU8::new(FREE);
const FREE: u8 = 0;
const CONNECTED: u8 = 1;
const DIALLING: u8 = 2;

/// Rules and filters, ready to be entered by any thread.
#[derive(Debug)]
pub struct Confinement {
    files: Option<files::Rules>,
    calls: calls::Filters,
    dialling: Dialling,
}

/// What is ready, and lines for people.
pub struct Prepared {
    /// To be entered.
    pub confinement: Arc<Confinement>,
    /// What the host lacks.
    pub notes: Vec<String>,
}

/// Makes rules and filters for a machine with these disks; nothing is confined yet. `None` when the sandbox is off.
///
/// # Errors
/// When the host cannot confine system calls.
pub fn prepare<'a>(
    config: &MachineConfig,
    disks: impl Iterator<Item = &'a Disk>,
) -> Result<Option<Prepared>> {
    let Sandbox::On { removed, commit } = &config.sandbox else { return Ok(None) };
    let dialling = files::dialling(config);
    let calls = calls::Filters::new(dialling);
    let mut notes = Vec::new();
    let mut allowed = files::allowed(config, removed);
    if *commit == Commit::Allowed && !config.monitors.is_empty() {
        allowed.allow_commits(disks).map_err(refused)?;
    }
    let files = files::Rules::new(&allowed).map_err(refused)?;
    if files.is_none() {
        notes.push(
            "sandbox: this kernel has no Landlock; system calls are confined, files are not".into(),
        );
    }
    let confinement = Arc::new(Confinement { files, calls, dialling });
    Ok(Some(Prepared { confinement, notes }))
}

fn refused(e: Error) -> Error {
    e.context("-sandbox on: the process cannot be confined")
        .hint("Start with -sandbox off, or use a kernel with seccomp and Landlock")
}

impl Confinement {
    /// Confines the calling thread, and those that it starts from now on. There is no way back.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn enter(&self, kind: Kind) -> Result<()> {
        report::install().map_err(refused)?;
        if let Some(files) = &self.files {
            files.enter().map_err(refused)?;
        }
        self.calls.enter(kind).map_err(refused)?;
        let state = if self.dialling == Dialling::Allowed { DIALLING } else { CONNECTED };
        CONFINED.fetch_max(state, Ordering::Release);
        Ok(())
    }

    /// Confines these threads, as [`Confinement::enter_servers`] does.
    ///
    /// # Errors
    /// When the kernel refuses, or a thread does not come to it.
    pub fn enter_these(&self, threads: &[i32]) -> Result<()> {
        report::install().map_err(refused)?;
        let rules = self.files.as_ref().map_or(Ok(None), files::Rules::descriptor);
        let programs = self.calls.programs(Kind::Server)?;
        others::confine(threads, rules.map_err(refused)?, programs).map_err(refused)
    }

    /// Confines the threads that talk to servers of disks, which began when the disks were opened. `apart`, to save looking
    /// at them, are threads that do something else, as the calling one does. A process that has machines as a part of it
    /// may have more: those are its own.
    ///
    /// # Errors
    /// When the kernel refuses, or a thread does not come to it.
    pub fn enter_servers(&self, apart: &[Option<i32>]) -> Result<()> {
        let mut done = vec![nix::unistd::gettid().as_raw()];
        done.extend(apart.iter().flatten());
        loop {
            // A thread that was not confined yet may have started another.
            let mut threads = others::threads().map_err(refused)?;
            threads.retain(|t| !done.contains(t) && others::talks_to_server(*t));
            if threads.is_empty() {
                return Ok(());
            }
            self.enter_these(&threads)?;
            done.append(&mut threads);
        }
    }
}

/// Narrows what a device's thread may do. Does nothing while the process is not confined.
///
/// # Errors
/// When the kernel refuses.
pub fn narrow(kind: Kind) -> Result<()> {
    let dialling = match CONFINED.load(Ordering::Acquire) {
        FREE => return Ok(()),
        DIALLING => Dialling::Allowed,
        _ => Dialling::Never,
    };
    calls::Filters::new(dialling).enter(kind).map_err(refused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// Runs `inside` in a thread that is confined: only it is.
    fn confined<T: Send>(
        config: &MachineConfig,
        kind: Kind,
        inside: impl FnOnce() -> T + Send,
    ) -> Option<T> {
        let prepared = prepare(config, std::iter::empty()).unwrap().unwrap();
        if let Some(note) = prepared.notes.first() {
            eprintln!("SKIPPED the confinement of files: {note}");
            return None;
        }
        std::thread::scope(|s| {
            s.spawn(|| {
                prepared.confinement.enter(kind).unwrap();
                inside()
            })
            .join()
            .ok()
        })
    }

    fn machine(dir: &std::path::Path) -> MachineConfig {
        let mut config = MachineConfig {
            sandbox: Sandbox::On { removed: vec![dir.join("pid")], commit: Commit::Allowed },
            ..MachineConfig::default()
        };
        config.kernel.kernel = dir.join("kernel");
        config
    }

    #[test]
    fn only_what_the_machine_needs_can_be_opened() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["kernel", "other", "pid"] {
            std::fs::write(dir.path().join(name), b"x").unwrap();
        }
        let open = std::fs::File::open(dir.path().join("other")).unwrap();
        let path = |n: &str| dir.path().join(n);
        let result = confined(&machine(dir.path()), Kind::Machine, || {
            [
                std::fs::read(path("kernel")).is_ok(),
                std::fs::write(path("kernel"), b"y").is_ok(),
                std::fs::read(path("other")).is_ok(),
                std::fs::write(path("new"), b"y").is_ok(),
                std::fs::read("/etc/passwd").is_ok(),
                open.metadata().is_ok(),
                std::fs::remove_file(path("pid")).is_ok(),
                std::process::Command::new("/bin/true").status().is_ok_and(|s| s.success()),
                std::thread::spawn(|| 7).join().is_ok_and(|n| n == 7),
            ]
        });
        let Some(log) = result else { return };
        assert_eq!(log, [true, false, false, false, false, true, true, false, true]);
    }

    #[test]
    fn device_threads_do_their_work_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = tempfile::tempfile_in(dir.path()).unwrap();
        let config = MachineConfig {
            sandbox: Sandbox::On { removed: Vec::new(), commit: Commit::Allowed },
            ..MachineConfig::default()
        };
        let log = confined(&config, Kind::Device, move || {
            use std::os::unix::fs::FileExt;
            let ok = [
                file.write_all(b"abc").is_ok(),
                file.write_at(b"d", 5).is_ok(),
                file.sync_data().is_ok(),
                file.set_len(100).is_ok(),
                std::thread::spawn(|| ()).join().is_ok(),
                std::net::TcpListener::bind("127.0.0.1:0").is_err(),
                std::fs::File::open("/etc/passwd").is_err(),
            ];
            ok.iter().all(|o| *o)
        });
        assert!(log.unwrap_or(true));
    }

    #[test]
    fn off_confines_nothing() {
        assert!(prepare(&MachineConfig::default(), std::iter::empty()).unwrap().is_none());
    }

    #[test]
    fn a_ring_that_was_made_before_works_and_no_other_is_made() {
        use crate::block::ring::{Ring, Task};
        use std::os::fd::AsRawFd;
        let file = tempfile::tempfile().unwrap();
        let mut ring = match Ring::new() {
            Ok(ring) => ring,
            Err(e) => return eprintln!("SKIPPED io_uring: {}", e.report()),
        };
        let config = MachineConfig {
            sandbox: Sandbox::On { removed: Vec::new(), commit: Commit::Allowed },
            ..MachineConfig::default()
        };
        let result = confined(&config, Kind::Device, move || {
            ring.push(1, Task::Sync(file.as_raw_fd())).unwrap();
            ring.wait().unwrap();
            (ring.reap().iter().all(|d| d.result.is_ok()), Ring::new().is_err())
        });
        if let Some(log) = result {
            assert_eq!(log, (true, true));
        }
    }
}
