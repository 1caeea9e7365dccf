//! A disk, driven by a fake driver.

use std::sync::{Arc, Mutex};

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::Error;
use crate::block::Unmap;
use crate::devices::Lifecycle;
use crate::num::index;
use crate::virtio::driver::{Buffer, DATA, Driver};

#[derive(Default)]
struct Ram {
    bytes: Mutex<Vec<u8>>,
    log: Mutex<Vec<String>>,
    read_only: bool,
}

impl BlockBackend for Ram {
    fn len(&self) -> u64 {
        self.bytes.lock().unwrap().len() as u64
    }
    fn read_only(&self) -> bool {
        self.read_only
    }
    fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        buf.copy_from_slice(&self.bytes.lock().unwrap()[index(at)..index(at) + buf.len()]);
        Ok(())
    }
    fn write(&self, at: u64, buf: &[u8]) -> Result<()> {
        if at == 512 * 13 {
            return Err(Error::errno(libc::EIO));
        }
        self.bytes.lock().unwrap()[index(at)..index(at) + buf.len()].copy_from_slice(buf);
        Ok(())
    }
    fn flush(&self) -> Result<()> {
        self.log.lock().unwrap().push("flush".into());
        Ok(())
    }
    fn discard(&self, at: u64, len: u64) -> Result<()> {
        self.log.lock().unwrap().push(format!("discard {at} {len}"));
        Ok(())
    }
    fn write_zeroes(&self, at: u64, len: u64, unmap: Unmap) -> Result<()> {
        self.log.lock().unwrap().push(format!("zero {at} {len} {unmap:?}"));
        Ok(())
    }
    fn close(&self) -> Result<()> {
        self.log.lock().unwrap().push("close".into());
        Ok(())
    }
}

fn disk(read_only: bool) -> (Driver, Arc<Ram>) {
    let ram = Ram { bytes: Mutex::new(vec![0; 1 << 20]), read_only, ..Ram::default() };
    let ram = Arc::new(ram);
    let config = BlkConfig {
        id: "d0".into(),
        serial: "SERIAL-7".into(),
        queues: 2,
        discard: Offer::Yes,
        ..BlkConfig::default()
    };
    (Driver::new(Arc::new(Blk::new(config, ram.clone())), 0), ram)
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    let mut h = kind.to_le_bytes().to_vec();
    h.extend_from_slice(&[0; 4]);
    h.extend_from_slice(&sector.to_le_bytes());
    h
}

/// Sends a request with data for the device; returns the status.
fn send(d: &mut Driver, kind: u32, sector: u64, data: &[u8]) -> u8 {
    let h = header(kind, sector);
    let at = d.add(0, &[Buffer::Read(&h), Buffer::Read(data), Buffer::Write(1)]);
    d.wait(0);
    d.bytes(at[2], 1)[0]
}

#[test]
fn writes_reads_and_flushes() {
    let (mut d, ram) = disk(false);
    assert_eq!((d.config(0, 8), d.config(34, 2), d.config(20, 4)), (2048, 2, 512));
    assert_eq!(send(&mut d, 1, 4, &[7; 1024]), 0);
    assert_eq!(ram.bytes.lock().unwrap()[4 * 512..6 * 512], [7; 1024]);
    // Read on the other queue, header and data cut at odd places.
    let h = header(0, 4);
    let at = d.add(
        1,
        &[Buffer::Read(&h[..5]), Buffer::Read(&h[5..]), Buffer::Write(700), Buffer::Write(325)],
    );
    let (_, len) = d.wait(1);
    assert_eq!(len, 1025);
    assert_eq!(d.bytes(at[2], 700), [7; 700]);
    let tail = d.bytes(at[3], 325);
    assert_eq!((&tail[..324], tail[324]), (&[7; 324][..], 0));
    assert_eq!(send(&mut d, 4, 0, &[]), 0);
    assert_eq!(*ram.log.lock().unwrap(), ["flush"]);
    let rises = d.line.rises();
    assert!(rises > 0, "no interrupt");
    d.pci.shut_down().unwrap();
    assert_eq!(*ram.log.lock().unwrap(), ["flush", "flush", "close"]);
}

#[test]
fn serial_discard_and_zeroes() {
    let (mut d, ram) = disk(false);
    let h = header(8, 0);
    let at = d.add(0, &[Buffer::Read(&h), Buffer::Write(20), Buffer::Write(1)]);
    assert_eq!(d.wait(0).1, 21);
    assert_eq!(&d.bytes(at[1], 9), b"SERIAL-7\0");
    let segment = |sector: u64, count: u32, flags: u32| {
        let mut s = sector.to_le_bytes().to_vec();
        s.extend_from_slice(&count.to_le_bytes());
        s.extend_from_slice(&flags.to_le_bytes());
        s
    };
    let two = [segment(0, 8, 0), segment(16, 8, 0)].concat();
    assert_eq!(send(&mut d, 11, 0, &two), 0);
    assert_eq!(send(&mut d, 11, 0, &segment(0, 8, 1)), 2, "unmap makes no sense for discard");
    assert_eq!(send(&mut d, 13, 0, &segment(8, 8, 1)), 0);
    assert_eq!(send(&mut d, 13, 0, &segment(2047, 2, 0)), 1, "beyond the end");
    assert_eq!(send(&mut d, 13, 0, &[0; 15]), 1);
    assert_eq!(send(&mut d, 13, 0, &segment(8, 8, 0).repeat(33)), 1);
    let log = ram.log.lock().unwrap().clone();
    assert_eq!(log, ["discard 0 4096", "discard 8192 4096", "zero 4096 4096 Allowed"]);
}

#[test]
fn errors_have_a_status() {
    let (mut d, _) = disk(false);
    assert_eq!(send(&mut d, 1, 2048, &[0; 512]), 1, "beyond the end");
    assert_eq!(send(&mut d, 1, u64::MAX, &[0; 512]), 1);
    assert_eq!(send(&mut d, 1, 0, &[0; 511]), 1, "part of a sector");
    assert_eq!(send(&mut d, 1, 13, &[0; 512]), 1, "the back end's error");
    assert_eq!(send(&mut d, 99, 0, &[]), 2);
    let (mut d, ram) = disk(true);
    assert_eq!(send(&mut d, 1, 0, &[1; 512]), 1, "read-only");
    assert_eq!(ram.bytes.lock().unwrap()[0], 0);
}

#[test]
fn hostile_rings_break_the_device_and_nothing_else() {
    // No room for the status.
    let (mut d, _) = disk(false);
    d.add(0, &[Buffer::Read(&header(0, 0))]);
    d.wait_broken();
    // An index far ahead.
    let (d, _) = disk(false);
    d.set_avail(0, 1000);
    d.wait_broken();
    // A chain that loops, data outside memory: served with an error or broken, never hanging.
    let (mut d, _) = disk(false);
    d.descriptor(0, 0, DATA, 16, 1, 0);
    d.offer(0, 0);
    d.wait_broken();
    let (mut d, _) = disk(false);
    d.memory.write_slice(&header(0, 0), GuestAddress(DATA)).unwrap();
    d.descriptor(0, 0, DATA, 16, 1, 1);
    d.descriptor(0, 1, u64::MAX - 100, 512, 3, 2);
    d.descriptor(0, 2, DATA + 64, 1, 2, 0);
    d.offer(0, 0);
    d.wait(0);
    assert_eq!(d.bytes(DATA + 64, 1), [1]);
    // And a reset makes it good again.
    d.set(20, 1, 0);
    assert_eq!(d.get(20, 1), 0);
}

#[test]
fn rings_outside_memory_are_refused() {
    let (d, _) = disk(false);
    d.set(20, 1, 0);
    d.set(20, 1, 3);
    d.set(20, 1, 0xb);
    d.set(22, 2, 0);
    d.set(32, 8, u64::MAX << 4);
    d.set(28, 2, 1);
    d.set(20, 1, 0xf);
    assert_eq!(d.get(20, 1) & 0x40, 0x40);
}

#[test]
fn pausing_keeps_requests_for_later() {
    let (mut d, _) = disk(false);
    send(&mut d, 1, 0, &[1; 512]);
    d.pci.pause().unwrap();
    let h = header(0, 0);
    let at = d.add(0, &[Buffer::Read(&h), Buffer::Write(512), Buffer::Write(1)]);
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(d.bytes(at[1], 1), [0]);
    d.pci.resume().unwrap();
    d.wait(0);
    assert_eq!(d.bytes(at[1], 512), [1; 512]);
}

#[test]
fn an_indirect_request_is_served() {
    let (mut d, _) = disk(false);
    d.memory.write_slice(&header(8, 0), GuestAddress(DATA)).unwrap();
    // A table at DATA + 0x1000 with header, data, status.
    let table = DATA + 0x1000;
    for (i, (at, len, flags, next)) in
        [(DATA, 16u32, 1u16, 1u16), (DATA + 0x2000, 20, 3, 2), (DATA + 0x3000, 1, 2, 0)]
            .into_iter()
            .enumerate()
    {
        let e = table + 16 * i as u64;
        d.memory.write_obj(at, GuestAddress(e)).unwrap();
        d.memory.write_obj(len, GuestAddress(e + 8)).unwrap();
        d.memory.write_obj(flags, GuestAddress(e + 12)).unwrap();
        d.memory.write_obj(next, GuestAddress(e + 14)).unwrap();
    }
    d.descriptor(0, 0, table, 48, 4, 0);
    d.offer(0, 0);
    d.wait(0);
    assert_eq!(&d.bytes(DATA + 0x2000, 8), b"SERIAL-7");
}

#[test]
fn a_write_cache_that_is_off_flushes_each_write() {
    let (mut d, ram) = disk(false);
    assert_eq!(d.config(32, 1), 1);
    send(&mut d, 1, 0, &[1; 512]);
    assert!(ram.log.lock().unwrap().is_empty());
    d.set(crate::virtio::pci::DEVICE + 32, 1, 0);
    assert_eq!((d.config(32, 1), ram.log.lock().unwrap().len()), (0, 1));
    send(&mut d, 1, 0, &[1; 512]);
    assert_eq!(*ram.log.lock().unwrap(), ["flush", "flush"]);
    // A driver that knows neither flushes nor the switch gets durable writes.
    let ram = Arc::new(Ram { bytes: Mutex::new(vec![0; 1 << 20]), ..Ram::default() });
    let blk = Blk::new(BlkConfig { id: "d0".into(), ..BlkConfig::default() }, ram.clone());
    let mut d = Driver::new(Arc::new(blk), F_FLUSH | F_CONFIG_WCE);
    send(&mut d, 1, 0, &[1; 512]);
    assert_eq!(*ram.log.lock().unwrap(), ["flush"]);
}

#[test]
fn blocks_of_4096_bytes() {
    let ram = Arc::new(Ram { bytes: Mutex::new(vec![0; (1 << 20) + 512]), ..Ram::default() });
    let config = BlkConfig {
        id: "d0".into(),
        logical_block: 4096,
        physical_block: 16_384,
        min_io: 8192,
        opt_io: 65_536,
        discard_granularity: 8192,
        max_discard: 64,
        max_zeroes: 8,
        queue_size: 64,
        ..BlkConfig::default()
    };
    let mut d = Driver::new(Arc::new(Blk::new(config, ram)), 0);
    assert_eq!(
        (d.config(0, 8), d.config(20, 4), d.config(24, 1), d.config(12, 4)),
        (2048, 4096, 2, 62)
    );
    assert_eq!((d.config(26, 2), d.config(28, 4), d.config(44, 4)), (2, 16, 16));
    assert_eq!((d.config(36, 4), d.config(48, 4)), (64, 8));
    let zeroes = |count: u32| [&[0; 8], &count.to_le_bytes()[..], &[0; 4]].concat();
    assert_eq!(send(&mut d, 13, 0, &zeroes(8)), 0);
    assert_eq!(send(&mut d, 13, 0, &zeroes(16)), 1, "more than was said");
    assert_eq!(send(&mut d, 1, 8, &[1; 4096]), 0);
    assert_eq!(send(&mut d, 1, 1, &[1; 4096]), 1);
    assert_eq!(send(&mut d, 1, 0, &[1; 512]), 1);
    assert_eq!(send(&mut d, 1, 2048, &[1; 4096]), 1, "beyond the end");
}

#[test]
fn many_requests_at_once_all_come_back() {
    let (mut d, ram) = disk(false);
    for round in 0..20u8 {
        let mut places = Vec::new();
        for n in 0..4u8 {
            let h = header(1, u64::from(round) * 8 + u64::from(n));
            let fill = [round ^ n; 512];
            places.push(d.add(0, &[Buffer::Read(&h), Buffer::Read(&fill), Buffer::Write(1)])[2]);
            let h = header(4, 0);
            d.add(1, &[Buffer::Read(&h), Buffer::Write(1)]);
        }
        for _ in 0..4 {
            d.wait(0);
            d.wait(1);
        }
        for (n, status) in places.into_iter().enumerate() {
            assert_eq!(d.bytes(status, 1), [0]);
            let at = (usize::from(round) * 8 + n) * 512;
            let fill = round ^ u8::try_from(n).unwrap();
            assert_eq!(ram.bytes.lock().unwrap()[at..at + 512], [fill; 512]);
        }
    }
    assert_eq!(ram.log.lock().unwrap().len(), 80);
}

#[test]
fn a_held_request_is_done_when_the_machine_goes_on() {
    use crate::block::config::OnError;
    use crate::block::disk::{Behaviour, ErrorAction};
    struct Fails(std::sync::atomic::AtomicBool);
    impl BlockBackend for Fails {
        fn len(&self) -> u64 {
            1 << 20
        }
        fn read_only(&self) -> bool {
            false
        }
        fn read(&self, _: u64, _: &mut [u8]) -> Result<()> {
            Ok(())
        }
        fn write(&self, _: u64, _: &[u8]) -> Result<()> {
            let fails = self.0.load(std::sync::atomic::Ordering::SeqCst);
            if fails { Err(Error::errno(libc::ENOSPC)) } else { Ok(()) }
        }
        fn flush(&self) -> Result<()> {
            Ok(())
        }
        fn discard(&self, _: u64, _: u64) -> Result<()> {
            Ok(())
        }
        fn write_zeroes(&self, _: u64, _: u64, _: Unmap) -> Result<()> {
            Ok(())
        }
        fn close(&self) -> Result<()> {
            Ok(())
        }
    }
    let backend = Arc::new(Fails(true.into()));
    let behaviour = Behaviour { write_error: OnError::StopWhenFull, ..Behaviour::default() };
    let disk = Arc::new(Disk::new(backend.clone(), behaviour));
    let (told, errors) = std::sync::mpsc::channel();
    disk.on_error(Box::new(move |e| {
        let _ = told.send(e.action);
    }));
    let config = BlkConfig { id: "d0".into(), ..BlkConfig::default() };
    let mut d = Driver::new(Arc::new(Blk::over(config, disk.clone())), 0);
    let h = header(1, 0);
    let at = d.add(0, &[Buffer::Read(&h), Buffer::Read(&[1; 512]), Buffer::Write(1)]);
    assert_eq!(errors.recv().unwrap(), ErrorAction::Stop);
    d.pci.pause().unwrap();
    d.memory.write_slice(&[7], GuestAddress(at[2])).unwrap();
    backend.0.store(false, std::sync::atomic::Ordering::SeqCst);
    d.pci.resume().unwrap();
    d.wait(0);
    assert_eq!(d.bytes(at[2], 1), [0]);
    // A doorbell between the error and the pause makes it try, and fail, once more.
    let write = disk.stats().write;
    assert!(write.failed >= 1 && write.operations == 1, "{write:?}");
}

#[test]
fn an_image_is_read_and_written_without_a_buffer_and_with_one() {
    use imgcore::graph::open::{OpenOptions, OpenRequest, open};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    std::fs::write(&path, vec![5u8; 1 << 20]).unwrap();
    let request = OpenRequest::file(path.to_string_lossy()).with_driver(Some("raw"));
    let raw = open(&request, &OpenOptions::default()).unwrap();
    let node = imgcore::graph::temporary::overlay(dir.path(), raw).unwrap();
    let config = BlkConfig { id: "d0".into(), discard: Offer::Yes, ..BlkConfig::default() };
    let mut d = Driver::new(Arc::new(Blk::new(config, Arc::new(node))), 0);
    for round in 0..3u8 {
        assert_eq!(send(&mut d, 1, 100, &[round; 1024]), 0, "first allocates, then in place");
        let h = header(0, 99);
        let at = d.add(0, &[Buffer::Read(&h), Buffer::Write(700), Buffer::Write(1348 + 1)]);
        assert_eq!(d.wait(0).1, 2049);
        let got = [d.bytes(at[1], 700), d.bytes(at[2], 1348)].concat();
        assert_eq!(got[..512], [5; 512]);
        assert_eq!(got[512..1536], [round; 1024]);
        assert_eq!(got[1536..], [5; 512]);
    }
    // Data outside guest memory.
    d.memory.write_slice(&header(1, 0), GuestAddress(DATA)).unwrap();
    d.descriptor(0, 0, DATA, 16, 1, 1);
    d.descriptor(0, 1, (8 << 20) - 256, 512, 1, 2);
    d.descriptor(0, 2, DATA + 64, 1, 2, 0);
    d.offer(0, 0);
    d.wait(0);
    assert_eq!(d.bytes(DATA + 64, 1), [1]);
}

#[test]
fn a_flush_that_failed_in_the_page_cache_fails_for_good() {
    struct Cached(Ram);
    impl BlockBackend for Cached {
        fn len(&self) -> u64 {
            self.0.len()
        }
        fn read_only(&self) -> bool {
            false
        }
        fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
            self.0.read(at, buf)
        }
        fn write(&self, at: u64, buf: &[u8]) -> Result<()> {
            self.0.write(at, buf)
        }
        fn is_buffered(&self) -> bool {
            self.0.read_only
        }
        fn flush(&self) -> Result<()> {
            Ok(())
        }
        fn discard(&self, _: u64, _: u64) -> Result<()> {
            Ok(())
        }
        fn write_zeroes(&self, _: u64, _: u64, _: Unmap) -> Result<()> {
            Ok(())
        }
        fn close(&self) -> Result<()> {
            Ok(())
        }
    }
    for buffered in [true, false] {
        let ram =
            Ram { bytes: Mutex::new(vec![0; 1 << 20]), read_only: buffered, ..Ram::default() };
        let disk = Arc::new(Disk::new(
            Arc::new(Cached(ram)),
            crate::block::disk::Behaviour { name: "d0".into(), ..Default::default() },
        ));
        let config = BlkConfig { id: "d0".into(), ..BlkConfig::default() };
        let mut d = Driver::new(Arc::new(Blk::over(config, disk.clone())), 0);
        assert_eq!(send(&mut d, 4, 0, &[]), 0);
        disk.note_lost(&std::io::Error::from_raw_os_error(libc::EIO));
        let fails = u8::from(buffered);
        assert_eq!((send(&mut d, 4, 0, &[]), send(&mut d, 4, 0, &[])), (fails, fails));
        assert_eq!(send(&mut d, 1, 0, &[1; 512]), 0);
        // Durable writes are promises, too.
        d.set(crate::virtio::pci::DEVICE + 32, 1, 0);
        assert_eq!(send(&mut d, 1, 0, &[1; 512]), fails);
        assert_eq!(disk.close().is_err(), buffered);
    }
}

#[test]
fn writes_on_their_way_while_the_cache_is_turned_off_become_durable() {
    use crate::block::Direct;
    use crate::block::vector::GuestPieces;
    use std::sync::mpsc::{Receiver, Sender, channel};
    struct Slow {
        begun: Mutex<Sender<()>>,
        go: Mutex<Receiver<()>>,
        log: Mutex<Vec<&'static str>>,
    }
    impl BlockBackend for Slow {
        fn len(&self) -> u64 {
            1 << 20
        }
        fn read_only(&self) -> bool {
            false
        }
        fn read(&self, _: u64, _: &mut [u8]) -> Result<()> {
            Ok(())
        }
        fn write(&self, _: u64, _: &[u8]) -> Result<()> {
            Ok(())
        }
        fn write_direct(&self, _: u64, _: &GuestPieces<'_>) -> Result<Direct> {
            self.begun.lock().unwrap().send(()).unwrap();
            self.go.lock().unwrap().recv_timeout(std::time::Duration::from_secs(60)).unwrap();
            self.log.lock().unwrap().push("write");
            Ok(Direct::Done)
        }
        fn flush(&self) -> Result<()> {
            self.log.lock().unwrap().push("flush");
            Ok(())
        }
        fn discard(&self, _: u64, _: u64) -> Result<()> {
            Ok(())
        }
        fn write_zeroes(&self, _: u64, _: u64, _: Unmap) -> Result<()> {
            Ok(())
        }
        fn close(&self) -> Result<()> {
            Ok(())
        }
    }
    let ((begun, begins), (go, goes)) = (channel(), channel());
    let slow =
        Arc::new(Slow { begun: Mutex::new(begun), go: Mutex::new(goes), log: Mutex::default() });
    let config = BlkConfig { id: "d0".into(), ..BlkConfig::default() };
    let mut d = Driver::new(Arc::new(Blk::new(config, slow.clone())), 0);
    // Neighbours that are found together are one transfer.
    d.pci.pause().unwrap();
    let statuses: Vec<u64> = (0..2)
        .map(|n| {
            let h = header(1, n);
            d.add(0, &[Buffer::Read(&h), Buffer::Read(&[1; 512]), Buffer::Write(1)])[2]
        })
        .collect();
    d.pci.resume().unwrap();
    begins.recv_timeout(std::time::Duration::from_secs(60)).unwrap();
    d.set(crate::virtio::pci::DEVICE + 32, 1, 0);
    go.send(()).unwrap();
    for status in statuses {
        d.wait(0);
        assert_eq!(d.bytes(status, 1), [0]);
    }
    assert_eq!(*slow.log.lock().unwrap(), ["flush", "write", "flush"]);
}
