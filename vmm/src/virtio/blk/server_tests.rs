//! A disk on an NBD server, driven by a fake driver: real servers, with errors and delays of their filters.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use imgcore::graph::open::{Discard, OpenRequest};
use imgcore::opts::nbd::NbdTarget;
use imgcore::opts::remote::Remote;

use super::*;
use crate::block::config::{OnError, Persistence, WriteAccess};
use crate::block::disk::ErrorAction;
use crate::block::open::{Groups, Opened, disk};
use crate::block::remote::Confined;
use crate::block::{self, Drive};
use crate::devices::Lifecycle;
use crate::machine::config::{DeviceConfig, DeviceKind, MachineConfig};
use crate::sandbox::{Commit, Kind, Sandbox, others, prepare};
use crate::virtio::driver::{Buffer, Driver};

/// A server that ends with the test.
struct Server(Child);

impl Server {
    fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Place { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A server with `@` before names in the folder; listens at `socket`.
    fn serve(&self, words: &str) -> Option<Server> {
        let folder = format!("{}/", self.dir.path().display());
        let mut words = words.split(' ').map(|w| w.replace('@', &folder));
        let program = words.next().unwrap();
        let _ = std::fs::remove_file(self.path("socket"));
        let child = Command::new(&program).args(words).stdin(Stdio::null()).spawn();
        let mut server = match child {
            Ok(child) => Server(child),
            Err(e) => {
                eprintln!("SKIPPED disks on servers: no {program}: {e}");
                return None;
            }
        };
        let end = Instant::now() + Duration::from_secs(60);
        while !self.path("socket").exists() {
            assert!(server.0.try_wait().unwrap().is_none(), "{program} has ended");
            assert!(Instant::now() < end, "{program} does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        Some(server)
    }

    fn drive(&self) -> Drive {
        let name = format!("nbd+unix:///?socket={}", self.path("socket").display());
        let image = OpenRequest::parse(&name, Some("raw")).unwrap();
        Drive { id: "d0".into(), image, confined: Confined::Yes, ..Drive::default() }
    }

    fn reconnecting(&self, seconds: u64) -> Drive {
        let mut drive = self.drive();
        let Some(Remote::Nbd(NbdTarget { reconnect_delay, .. })) =
            drive.image.remote.as_deref_mut()
        else {
            panic!("{drive:?}");
        };
        *reconnect_delay = Duration::from_secs(seconds);
        drive
    }

    fn open(&self, drive: &Drive) -> Result<Opened> {
        disk(drive, self.dir.path(), &mut Groups::new())
    }
}

/// A driver of a disk, and the errors that stop the machine.
fn driver(opened: Opened, queues: u16) -> (Driver, Receiver<ErrorAction>) {
    let (told, errors) = channel();
    opened.disk.on_error(Box::new(move |e| {
        let _ = told.send(e.action);
    }));
    let discard = Offer::Yes;
    let config = BlkConfig { id: "d0".into(), queues, discard, ..BlkConfig::default() };
    let blk = Blk::over(config, opened.disk).at(opened.place);
    (Driver::new(Arc::new(blk), 0), errors)
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

/// Sends a request with data for the device; returns where its status comes.
fn begin(d: &mut Driver, queue: usize, kind: u32, sector: u64, data: &[u8]) -> u64 {
    let h = header(kind, sector);
    d.add(queue, &[Buffer::Read(&h), Buffer::Read(data), Buffer::Write(1)])[2]
}

/// The next error of a disk.
fn next(errors: &Receiver<ErrorAction>) -> ErrorAction {
    errors.recv_timeout(Duration::from_secs(60)).unwrap()
}

fn send(d: &mut Driver, kind: u32, sector: u64, data: &[u8]) -> u8 {
    let at = begin(d, 0, kind, sector, data);
    d.wait(0);
    d.bytes(at, 1)[0]
}

fn read(d: &mut Driver, sector: u64, len: u32) -> (u8, Vec<u8>) {
    let at = d.add(0, &[Buffer::Read(&header(READ, sector)), Buffer::Write(len), Buffer::Write(1)]);
    d.wait(0);
    (d.bytes(at[2], 1)[0], d.bytes(at[1], crate::num::index(len.into())))
}

fn segment(sector: u64, count: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &count.to_le_bytes(), &flags.to_le_bytes()].concat()
}

const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 4;
const DISCARD: u32 = 11;
const ZEROES: u32 = 13;

#[test]
fn every_kind_of_request_reaches_the_server() {
    let p = Place::new();
    let log = "nbdkit -f -U @socket --filter=log memory 1M logfile=@log";
    let Some(_server) = p.serve(log) else { return };
    let mut drive = p.drive();
    drive.image.discard = Some(Discard::Unmap);
    let (mut d, _) = driver(p.open(&drive).unwrap(), 2);
    assert_eq!(d.config(0, 8), 2048);
    assert_eq!(send(&mut d, WRITE, 8, &[7; 8192]), 0);
    assert_eq!(send(&mut d, FLUSH, 0, &[]), 0);
    assert_eq!(read(&mut d, 8, 8192), (0, vec![7; 8192]));
    assert_eq!(send(&mut d, DISCARD, 0, &segment(8, 8, 0)), 0);
    assert_eq!(send(&mut d, ZEROES, 0, &segment(16, 8, 0)), 0);
    assert_eq!(send(&mut d, ZEROES, 0, &segment(128, 128, 1)), 0);
    assert_eq!(read(&mut d, 8, 8192), (0, vec![0; 8192]));
    // All requests of both queues at once.
    let mut places = Vec::new();
    for n in 0..5u8 {
        for queue in 0..2 {
            let sector = 512 + u64::from(n) * 16 + queue as u64 * 8;
            let at = begin(&mut d, queue, WRITE, sector, &[n + 1; 4096]);
            places.push((queue, at, sector, n + 1));
        }
    }
    for (queue, ..) in &places {
        d.wait(*queue);
    }
    for (_, at, sector, byte) in places {
        assert_eq!((d.bytes(at, 1)[0], read(&mut d, sector, 4096)), (0, (0, vec![byte; 4096])));
    }
    // The guest turns its write cache off: what is written from now on is durable at once.
    d.set(crate::virtio::pci::DEVICE + 32, 1, 0);
    assert_eq!(send(&mut d, WRITE, 0, &[1; 512]), 0);
    d.pci.shut_down().unwrap();
    drop(d);
    let log = std::fs::read_to_string(p.path("log")).unwrap();
    let count = |what: &str| log.matches(what).count();
    assert_eq!((count(" Trim id"), count(" Zero id")), (1, 2), "{log}");
    assert!(log.contains("offset=0x1000 count=0x1000"), "{log}");
    assert!(
        count(" Flush id") >= 3,
        "one of the guest, one behind the write, one at the end: {log}"
    );
    assert_eq!(count(" Connect export"), 1, "{log}");
}

#[test]
fn chains_on_servers() {
    let p = Place::new();
    let make = |words: &str| {
        let folder = format!("{}/", p.dir.path().display());
        let words = words.split(' ').map(|w| w.replace('@', &folder));
        Command::new("qemu-img").args(words).status().is_ok_and(|s| s.success())
    };
    std::fs::write(p.path("base"), vec![3; 1 << 20]).unwrap();
    let Some(_server) = p.serve("qemu-nbd -t -f raw -k @socket @base") else { return };
    let socket = p.path("socket");
    let over = "create -q -f qcow2 -F raw -b nbd+unix:///?socket=";
    if !make(&format!("{over}{} @over", socket.display())) {
        return eprintln!("SKIPPED chains on servers: no qemu-img");
    }
    // A local overlay over an export, in the sandbox's rules: what it writes stays here.
    let over = OpenRequest::file(p.path("over").to_string_lossy()).with_driver(Some("qcow2"));
    let drive = Drive { image: over, ..p.drive() };
    let opened = p.open(&drive).unwrap();
    assert_eq!(opened.place, block::remote::Place::Server);
    let below = opened.disk.image().unwrap().describe().unwrap().below;
    assert_eq!(below, [(format!("nbd+unix:///?socket={}", socket.display()), "raw".into())]);
    let (mut d, _) = driver(opened, 1);
    assert_eq!(send(&mut d, WRITE, 1, &[9; 512]), 0);
    assert_eq!(read(&mut d, 0, 2048), (0, [[3; 512], [9; 512], [3; 512], [3; 512]].concat()));
    d.pci.shut_down().unwrap();
    drop(d);
    assert!(std::fs::read(p.path("base")).unwrap().iter().all(|b| *b == 3));
    // qcow2 in an export, with a temporary overlay: commit connects anew.
    drop(_server);
    assert!(make("create -q -f qcow2 @disk 1M"));
    // An export does not grow.
    std::fs::OpenOptions::new().write(true).open(p.path("disk")).unwrap().set_len(4 << 20).unwrap();
    let Some(server) = p.serve("qemu-nbd -t -f raw -k @socket @disk") else { return };
    let mut drive = p.drive();
    drive.image.driver = Some("qcow2".into());
    let (mut d, _) = driver(p.open(&drive).unwrap(), 1);
    assert_eq!(send(&mut d, WRITE, 3, &[5; 512]), 0);
    assert_eq!(send(&mut d, FLUSH, 0, &[]), 0);
    d.pci.shut_down().unwrap();
    drop(d);
    drive.persistence = Persistence::Temporary;
    let opened = p.open(&drive).unwrap();
    let image = opened.disk.image().unwrap().clone();
    let (mut d, _) = driver(opened, 1);
    assert_eq!(send(&mut d, WRITE, 4, &[6; 512]), 0);
    d.pci.pause().unwrap();
    image.commit().unwrap();
    d.pci.resume().unwrap();
    assert_eq!(read(&mut d, 3, 1024), (0, [[5; 512], [6; 512]].concat()));
    drop((d, image, server));
    assert!(make("check -q @disk"));
}

#[test]
fn read_only_exports() {
    let p = Place::new();
    let Some(_server) = p.serve("nbdkit -r -f -U @socket memory 1M") else { return };
    let e = p.open(&p.drive()).err().unwrap();
    assert!(e.report().contains("write permission"), "{}", e.report());
    for access in [WriteAccess::ReadOnly, WriteAccess::Auto] {
        let (mut d, _) = driver(p.open(&Drive { access, ..p.drive() }).unwrap(), 1);
        d.set(0, 4, 0);
        assert_ne!(d.get(4, 4) & F_RO, 0);
        assert_eq!(send(&mut d, WRITE, 0, &[1; 512]), 1);
        assert_eq!(read(&mut d, 0, 512), (0, vec![0; 512]));
        assert_eq!(send(&mut d, FLUSH, 0, &[]), 0);
    }
}

#[test]
fn errors_of_the_server_follow_the_policy() {
    let p = Place::new();
    let filter = "nbdkit -f -U @socket --filter=error memory 1M error-rate=100% error-file=@full";
    let words = format!("{filter} error-pread=EIO error-pwrite=ENOSPC error-zero=ENOSPC");
    let Some(_server) = p.serve(&words) else { return };
    let write_error = OnError::StopWhenFull;
    let (mut d, errors) = driver(p.open(&Drive { write_error, ..p.drive() }).unwrap(), 1);
    assert_eq!(send(&mut d, WRITE, 0, &[1; 512]), 0);
    std::fs::write(p.path("full"), b"").unwrap();
    assert_eq!(read(&mut d, 0, 512).0, 1);
    assert_eq!(next(&errors), ErrorAction::Report);
    let at = begin(&mut d, 0, WRITE, 1, &[2; 512]);
    assert_eq!(next(&errors), ErrorAction::Stop);
    d.pci.pause().unwrap();
    assert_eq!(d.completed(0), 2, "the guest has not heard of it");
    std::fs::remove_file(p.path("full")).unwrap();
    d.pci.resume().unwrap();
    d.wait(0);
    assert_eq!(d.bytes(at, 1), [0]);
    assert_eq!(read(&mut d, 0, 1024), (0, [[1; 512], [2; 512]].concat()));
}

#[test]
fn a_server_that_goes_away_is_an_error() {
    let p = Place::new();
    // Nobody waits so long: the server is killed while it does.
    let slow = "nbdkit -f -U @socket --filter=delay memory 1M delay-write=600 delay-fast-zero=0";
    let Some(mut server) = p.serve(slow) else { return };
    let read_error = OnError::Stop;
    let (mut d, errors) = driver(p.open(&Drive { read_error, ..p.drive() }).unwrap(), 2);
    let places: Vec<u64> = (0..4).map(|n| begin(&mut d, 1, WRITE, n, &[1; 512])).collect();
    assert_eq!(read(&mut d, 0, 512).0, 0, "reads go on meanwhile");
    server.kill();
    for _ in &places {
        d.wait(1);
    }
    assert!(places.iter().all(|at| d.bytes(*at, 1) == [1]));
    assert_eq!(send(&mut d, FLUSH, 0, &[]), 1, "and so is all that comes later");
    assert!((0..5).all(|_| next(&errors) == ErrorAction::Report));
    // Stops the machine, and again when it goes on: nothing connects without being told to.
    let Some(_server) = p.serve("nbdkit -f -U @socket memory 1M") else { return };
    d.add(0, &[Buffer::Read(&header(READ, 0)), Buffer::Write(512), Buffer::Write(1)]);
    for _ in 0..2 {
        assert_eq!(next(&errors), ErrorAction::Stop);
        d.pci.pause().unwrap();
        while errors.try_recv().is_ok() {}
        d.pci.resume().unwrap();
    }
    d.pci.pause().unwrap();
    assert!(d.pci.shut_down().is_err(), "what was not flushed may be lost");
}

/// Does `inside` in the sandbox, as a machine makes it, with the threads that the connection has by then; `beside`
/// meanwhile outside of it.
fn in_the_sandbox(
    p: &Place,
    drive: &Drive,
    inside: impl FnOnce(Opened) + Send,
    beside: impl FnOnce(),
) {
    let mut config = MachineConfig {
        sandbox: Sandbox::On { removed: Vec::new(), commit: Commit::Allowed },
        ..MachineConfig::default()
    };
    let (drive, shown) = (Box::new(drive.clone()), BlkConfig::default());
    config.devices.push(DeviceConfig {
        id: "d0".into(),
        slot: None,
        kind: DeviceKind::Blk { drive: drive.clone(), queues: None, shown },
    });
    let before = others::threads().unwrap();
    let opened = p.open(&drive).unwrap();
    // Those of other tests' connections may be among them: they can do all that they need.
    let end = Instant::now() + Duration::from_secs(60);
    let readers = loop {
        let mut new = others::threads().unwrap();
        new.retain(|id| !before.contains(id) && others::talks_to_server(*id));
        if !new.is_empty() {
            break new;
        }
        assert!(Instant::now() < end, "nobody reads what the server sends");
    };
    let prepared = prepare(&config, std::iter::empty()).unwrap().unwrap();
    std::thread::scope(|s| {
        let confined = s.spawn(|| {
            prepared.confinement.enter_these(&readers).unwrap();
            prepared.confinement.enter(Kind::Vcpu).unwrap();
            inside(opened);
        });
        beside();
        confined.join().unwrap();
    });
}

#[test]
fn in_the_sandbox_a_connection_is_used_and_none_is_made() {
    let p = Place::new();
    let Some(mut server) = p.serve("nbdkit -f -U @socket memory 1M") else { return };
    let (done, ready) = channel();
    let inside = |opened| {
        let (mut d, _) = driver(opened, 2);
        // So many that the client would like further connections.
        for n in 0..40 {
            assert_eq!(send(&mut d, WRITE, n, &[1; 512]), 0);
            assert_eq!(read(&mut d, n, 512), (0, vec![1; 512]));
        }
        assert_eq!(send(&mut d, FLUSH, 0, &[]), 0);
        let e = std::os::unix::net::UnixStream::connect(p.path("socket")).unwrap_err();
        assert_eq!(e.raw_os_error(), Some(libc::EACCES));
        done.send(()).unwrap();
        let end = Instant::now() + Duration::from_secs(60);
        while read(&mut d, 0, 512).0 == 0 {
            assert!(Instant::now() < end);
        }
    };
    in_the_sandbox(&p, &p.drive(), inside, || {
        ready.recv_timeout(Duration::from_secs(60)).unwrap();
        server.kill();
    });
}

#[test]
fn in_the_sandbox_a_connection_is_made_again_if_that_was_asked_for() {
    let p = Place::new();
    std::fs::write(p.path("disk"), vec![0; 1 << 20]).unwrap();
    let words = "nbdkit -f -U @socket file @disk";
    let Some(mut server) = p.serve(words) else { return };
    let (step, steps) = channel();
    let (go, gone) = channel();
    let inside = move |opened| {
        let (mut d, errors) = driver(opened, 1);
        assert_eq!(send(&mut d, WRITE, 5, &[1; 512]), 0);
        assert_eq!(send(&mut d, FLUSH, 0, &[]), 0);
        step.send(()).unwrap();
        gone.recv_timeout(Duration::from_secs(60)).unwrap();
        // Waits for the server.
        let at = begin(&mut d, 0, WRITE, 6, &[2; 512]);
        step.send(()).unwrap();
        d.wait(0);
        assert_eq!(d.bytes(at, 1), [0]);
        assert_eq!(send(&mut d, FLUSH, 0, &[]), 0);
        assert_eq!(read(&mut d, 5, 1024), (0, [[1; 512], [2; 512]].concat()));
        assert!(errors.try_recv().is_err());
    };
    let mut again = None;
    in_the_sandbox(&p, &p.reconnecting(60), inside, || {
        steps.recv_timeout(Duration::from_secs(60)).unwrap();
        server.kill();
        go.send(()).unwrap();
        steps.recv_timeout(Duration::from_secs(60)).unwrap();
        again = p.serve(words);
    });
    assert!(again.is_some());
}
