//! Confining the process once all it needs is open.
//!
//! * [`files`]: Landlock rules made from the machine: which files may still be opened.
//! * [`calls`]: the system calls that each kind of thread may make (seccomp).
//! * [`report`]: what happens when a call is refused: one line that names it, and `EPERM`.
//!
//! A guest that takes over this process can then do what a guest may do anyway: use the descriptors of
//! its own disks and interfaces. It can start no program, and open no file but those that the machine
//! opens again by itself: kernel and ramdisks at a reset, the image below a temporary overlay for
//! `commit`.
//!
//! # When
//!
//! Files, interfaces, scripts and overlays are opened while the machine is built, with all rights. A
//! [`Confinement`] is prepared at the end of that. Each thread enters it by itself before it touches the
//! guest's data: vCPU threads when they start, the machine's own thread when it begins to run. Threads
//! made later inherit it; those that serve devices narrow it further ([`narrow`]).
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
pub mod report;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub use calls::Kind;

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
    },
}

/// Some thread of this process is confined: new device threads narrow themselves.
static CONFINED: AtomicBool = AtomicBool::new(false);

/// Rules and filters, ready to be entered by any thread.
#[derive(Debug)]
pub struct Confinement {
    files: Option<files::Rules>,
    calls: calls::Filters,
}

/// What is ready, and lines for people.
pub struct Prepared {
    /// To be entered.
    pub confinement: Arc<Confinement>,
    /// What the host lacks.
    pub notes: Vec<String>,
}

/// Makes rules and filters for a machine; nothing is confined yet. `None` when the sandbox is off.
///
/// # Errors
/// When the host cannot confine system calls.
pub fn prepare(config: &MachineConfig) -> Result<Option<Prepared>> {
    let Sandbox::On { removed } = &config.sandbox else { return Ok(None) };
    let calls = calls::Filters::new().map_err(refused)?;
    let mut notes = Vec::new();
    let files = files::Rules::new(&files::allowed(config, removed)).map_err(refused)?;
    if files.is_none() {
        notes.push(
            "sandbox: this kernel has no Landlock; system calls are confined, files are not".into(),
        );
    }
    let confinement = Arc::new(Confinement { files, calls });
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
        CONFINED.store(true, Ordering::Release);
        Ok(())
    }
}

/// Narrows what a device's thread may do. Does nothing while the process is not confined.
///
/// # Errors
/// When the kernel refuses.
pub fn narrow(kind: Kind) -> Result<()> {
    if CONFINED.load(Ordering::Acquire) {
        calls::Filters::of(kind)?.enter(kind).map_err(refused)?;
    }
    Ok(())
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
        let prepared = prepare(config).unwrap().unwrap();
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
            sandbox: Sandbox::On { removed: vec![dir.join("pid")] },
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
            sandbox: Sandbox::On { removed: Vec::new() },
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
        assert!(prepare(&MachineConfig::default()).unwrap().is_none());
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
            sandbox: Sandbox::On { removed: Vec::new() },
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
