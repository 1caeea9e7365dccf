//! Who waits while a flush waits for the disk.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::Qcow2Driver;
use crate::Result;
use crate::format::{
    Access, CreateContext, CreateOptions, Driver, NewFiles, NoGate, OpenContext, Repair, Unwatched,
};
use crate::graph::Node;
use crate::storage::{HostExtent, Limits, MemoryStorage, Preallocation, Storage, ZeroMode};

/// Memory whose flushes say that they have begun, and end when they are let.
#[derive(Debug)]
struct Slow {
    inner: MemoryStorage,
    gate: Mutex<Option<(Sender<()>, Receiver<()>)>>,
}

impl Storage for Slow {
    fn name(&self) -> &str {
        self.inner.name()
    }
    fn len(&self) -> Result<u64> {
        self.inner.len()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.inner.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.inner.write_at(offset, buf)
    }
    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        self.inner.write_zeroes(offset, len, mode)
    }
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.inner.discard(offset, len)
    }
    fn flush(&self) -> Result<()> {
        if let Some((began, go_on)) = &*self.gate.lock().unwrap() {
            began.send(()).unwrap();
            go_on.recv().unwrap();
        }
        Ok(())
    }
    fn set_len(&self, len: u64, how: Preallocation) -> Result<()> {
        self.inner.set_len(len, how)
    }
    fn status(&self, offset: u64, len: u64) -> Result<HostExtent> {
        self.inner.status(offset, len)
    }
    fn limits(&self) -> Limits {
        self.inner.limits()
    }
    fn read_only(&self) -> bool {
        false
    }
}

struct OneFile(Arc<Slow>);

impl NewFiles for OneFile {
    fn main(&self) -> Result<Arc<dyn Storage>> {
        Ok(Arc::clone(&self.0) as Arc<dyn Storage>)
    }
    fn beside(&self, _: &str) -> Result<Arc<dyn Storage>> {
        Err(crate::Error::errno(libc::ENOTSUP))
    }
    fn existing(&self, _: &str) -> Result<Arc<dyn Storage>> {
        Err(crate::Error::errno(libc::ENOTSUP))
    }
}

#[test]
fn a_flush_that_waits_keeps_those_waiting_who_change_tables_and_nobody_else() {
    let inner = MemoryStorage::new("image", Vec::new());
    let file = Arc::new(Slow { inner, gate: Mutex::new(None) });
    let options = CreateOptions::parse(Qcow2Driver.create_options(), &[]).unwrap();
    Qcow2Driver
        .create(&CreateContext {
            files: &OneFile(Arc::clone(&file)),
            file_name: "image",
            size: 1 << 30,
            options: &options,
            backing: None,
            backing_image: None,
        })
        .unwrap();
    let image = Qcow2Driver
        .open(OpenContext {
            storage: Arc::clone(&file) as Arc<dyn Storage>,
            access: Access::Write,
            gate: &NoGate,
            snapshot: None,
            data_file: None,
            scratch: false,
            header_only: false,
            for_check: false,
            options: &[],
        })
        .unwrap();
    let node = Node::new("image", image, None, Access::Write);
    node.write(0, &[1; 4096]).unwrap();
    let (began, begins) = channel();
    let (go, go_on) = channel();
    *file.gate.lock().unwrap() = Some((began, go_on));
    std::thread::scope(|s| {
        let flush = s.spawn(|| node.flush());
        begins.recv().unwrap();
        // The place is known: it is read and written. A place that was never asked for is found.
        let mut buf = [0; 4096];
        node.read(0, &mut buf).unwrap();
        assert_eq!(buf, [1; 4096]);
        node.write(0, &[2; 4096]).unwrap();
        node.read(900 << 20, &mut buf).unwrap();
        assert_eq!(buf, [0; 4096]);
        let (wrote, written) = channel();
        let node = &node;
        s.spawn(move || {
            node.write(1 << 20, &[3; 4096]).unwrap();
            wrote.send(()).unwrap();
        });
        assert!(written.recv_timeout(Duration::from_millis(50)).is_err(), "allocates meanwhile");
        // Waits of this flush, however many, until it is over.
        while !flush.is_finished() {
            let _ = go.send(());
            let _ = begins.recv_timeout(Duration::from_millis(5));
        }
        flush.join().unwrap().unwrap();
        written.recv_timeout(Duration::from_secs(60)).unwrap();
    });
    *file.gate.lock().unwrap() = None;
    let mut buf = [0; 4096];
    node.read(1 << 20, &mut buf).unwrap();
    assert_eq!(buf, [3; 4096]);
    node.close().unwrap();
    let report = node.image().check(Repair::Nothing, &Unwatched).unwrap().unwrap();
    assert_eq!((report.corruptions, report.leaks), (0, 0));
}
