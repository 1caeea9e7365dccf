//! Disks whose requests the kernel carries out, driven by a fake driver. A host without io_uring skips these
//! tests, loudly.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use imgcore::graph::open::{Discard, OpenOptions, OpenRequest, open};
use imgcore::graph::pin::{Job, PinnedCall, PinnedRun};
use imgcore::graph::runs::Direction;
use imgcore::storage::CacheMode;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::block::config::{Drive, OnError, WriteCache};
use crate::block::disk::Behaviour;
use crate::block::open::{Groups, disk};
use crate::block::{Held, Unmap};
use crate::devices::Lifecycle;
use crate::num::{index, len_u64};
use crate::virtio::driver::{Buffer, DATA, Driver};

/// Counts what the kernel is given.
struct Watched<B> {
    inner: B,
    pinned: AtomicUsize,
    calls: AtomicUsize,
}

impl<B: BlockBackend> BlockBackend for Watched<B> {
    fn len(&self) -> u64 {
        self.inner.len()
    }
    fn read_only(&self) -> bool {
        self.inner.read_only()
    }
    fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.inner.read(at, buf)
    }
    fn write(&self, at: u64, buf: &[u8]) -> Result<()> {
        self.inner.write(at, buf)
    }
    fn pin(&self, at: u64, len: u64, direction: Direction) -> Option<(Held, Vec<PinnedRun>)> {
        let pin = self.inner.pin(at, len, direction);
        self.pinned.fetch_add(usize::from(pin.is_some()), Ordering::SeqCst);
        pin
    }
    fn pin_call(&self, job: Job) -> Option<(Held, PinnedCall)> {
        let pin = self.inner.pin_call(job);
        self.calls.fetch_add(usize::from(pin.is_some()), Ordering::SeqCst);
        pin
    }
    fn flushes_one_file(&self) -> bool {
        self.inner.flushes_one_file()
    }
    fn flush(&self) -> Result<()> {
        self.inner.flush()
    }
    fn discard(&self, at: u64, len: u64) -> Result<()> {
        self.inner.discard(at, len)
    }
    fn write_zeroes(&self, at: u64, len: u64, unmap: Unmap) -> Result<()> {
        self.inner.write_zeroes(at, len, unmap)
    }
    fn close(&self) -> Result<()> {
        self.inner.close()
    }
}

fn watched<B>(inner: B) -> Arc<Watched<B>> {
    Arc::new(Watched { inner, pinned: AtomicUsize::new(0), calls: AtomicUsize::new(0) })
}

/// A driver of a disk with rings; `None` where the host has none.
fn driver(disk: Disk) -> Option<(Driver, Arc<Disk>)> {
    let disk = Arc::new(disk);
    let config =
        BlkConfig { id: "d0".into(), queues: 2, discard: Offer::Yes, ..BlkConfig::default() };
    let mut blk = Blk::over(config, disk.clone());
    if let Err(e) = blk.give_rings() {
        eprintln!("SKIPPED io_uring: {}", e.report());
        return None;
    }
    Some((Driver::new(Arc::new(blk), 0), disk))
}

fn over<B: BlockBackend + 'static>(backend: Arc<B>) -> Option<Driver> {
    Some(driver(Disk::new(backend, Behaviour::default()))?.0)
}

fn raw(path: &Path, cache: CacheMode) -> Arc<imgcore::graph::Node> {
    let mut request = OpenRequest::file(path.to_string_lossy()).with_driver(Some("raw"));
    request.cache = Some(cache);
    request.discard = Some(Discard::Unmap);
    open(&request, &OpenOptions::default().writable()).unwrap()
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

/// Sends a request with data for the device; returns the status.
fn send(d: &mut Driver, kind: u32, sector: u64, data: &[u8]) -> u8 {
    let h = header(kind, sector);
    let at = d.add(0, &[Buffer::Read(&h), Buffer::Read(data), Buffer::Write(1)]);
    d.wait(0);
    d.bytes(at[2], 1)[0]
}

fn segment(sector: u64, count: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &count.to_le_bytes(), &flags.to_le_bytes()].concat()
}

#[test]
fn everything_of_a_raw_file_goes_to_the_kernel() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    std::fs::write(&path, vec![5u8; 1 << 20]).unwrap();
    let backend = watched(raw(&path, CacheMode::Writeback));
    let Some(mut d) = over(backend.clone()) else { return };
    assert_eq!(send(&mut d, 1, 8, &[7; 1024]), 0);
    let h = header(0, 7);
    let at =
        d.add(0, &[Buffer::Read(&h), Buffer::Write(700), Buffer::Write(836), Buffer::Write(1)]);
    assert_eq!(d.wait(0).1, 1537);
    let got = [d.bytes(at[1], 700), d.bytes(at[2], 836)].concat();
    assert_eq!(got, [vec![5; 512], vec![7; 1024]].concat());
    assert_eq!(backend.pinned.load(Ordering::SeqCst), 2);
    assert_eq!(send(&mut d, 4, 0, &[]), 0);
    // Two ranges, one of which gives its space back; then a discard.
    let zeroes = [segment(0, 8, 0), segment(16, 8, 1)].concat();
    assert_eq!(send(&mut d, 13, 0, &zeroes), 0);
    assert_eq!(send(&mut d, 11, 0, &segment(128, 128, 0)), 0);
    assert_eq!(backend.calls.load(Ordering::SeqCst), 4);
    let now = std::fs::read(&path).unwrap();
    assert_eq!(now.len(), 1 << 20);
    let zero = |range: std::ops::Range<usize>| now[range].iter().all(|b| *b == 0);
    assert!(zero(0..4096) && zero(8192..12288) && zero(65536..131_072));
    assert_eq!((now[4096], now[5119], now[5120], now[12288], now[131_072]), (7, 7, 5, 5, 5));
    // Beyond the end, and what no disk knows.
    assert_eq!(send(&mut d, 1, 2048, &[1; 512]), 1);
    assert_eq!(send(&mut d, 77, 0, &[1; 512]), 2);
    d.pci.shut_down().unwrap();
}

#[test]
fn direct_files_take_buffers_of_any_alignment() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    std::fs::write(&path, vec![5u8; 1 << 20]).unwrap();
    let backend = watched(raw(&path, CacheMode::None));
    let Some((mut d, disk)) = driver(Disk::new(backend.clone(), Behaviour::default())) else {
        return;
    };
    assert!(Blk::over(BlkConfig::default(), disk).is_direct_file());
    // Whole blocks of the file system in odd pieces, then less than a block: that one is for a thread.
    for (sectors, own) in [(16usize, 1), (1, 0)] {
        let data: Vec<u8> = (0..512 * sectors).map(|n| n.to_le_bytes()[0] ^ 0x55).collect();
        backend.pinned.store(0, Ordering::SeqCst);
        let h = header(1, 8);
        let (a, b) = data.split_at(100);
        d.add(0, &[Buffer::Read(&h), Buffer::Read(a), Buffer::Read(b), Buffer::Write(1)]);
        d.wait(0);
        let h = header(0, 8);
        let rest = u32::try_from(data.len() - 33).unwrap();
        let to = [Buffer::Read(&h), Buffer::Write(33), Buffer::Write(rest), Buffer::Write(1)];
        let at = d.add(0, &to);
        d.wait(0);
        assert_eq!(d.bytes(at[3], 1), [0]);
        let got = [d.bytes(at[1], 33), d.bytes(at[2], data.len() - 33)].concat();
        assert_eq!(got, data);
        assert_eq!(std::fs::read(&path).unwrap()[4096..4096 + data.len()], data);
        assert!(backend.pinned.load(Ordering::SeqCst) >= own);
    }
    assert_eq!(std::fs::read(&path).unwrap()[4095], 5);
}

#[test]
fn batches_agree_with_a_vector_of_bytes() {
    const LEN: usize = 1 << 20;
    let dir = tempfile::tempdir().unwrap();
    for name in ["raw", "qcow2", "direct"] {
        let path = dir.path().join(name);
        std::fs::write(&path, vec![5u8; LEN]).unwrap();
        let node = match name {
            "raw" => raw(&path, CacheMode::Writeback),
            "direct" => raw(&path, CacheMode::None),
            _ => {
                let request = OpenRequest::file(path.to_string_lossy()).with_driver(Some("raw"));
                let below = open(&request, &OpenOptions::default()).unwrap();
                imgcore::graph::temporary::overlay(dir.path(), below).unwrap()
            }
        };
        let Some(mut d) = over(watched(node)) else { return };
        let mut model = vec![5u8; LEN];
        let mut x = 88_172_645_463_325_252u64;
        let mut next = |below: u64| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x % below
        };
        for round in 0..200u64 {
            // Five requests of a batch do not overlap: each has a fifth of the disk. Some follow each other.
            let mut reads = Vec::new();
            let mut at = next(300);
            for n in 0..5u64 {
                let sectors = 1 + next(16);
                at = if next(2) == 0 { at } else { n * 400 + next(300) }.max(n * 400);
                let range = index(at) * 512..index(at + sectors) * 512;
                match next(5) {
                    0 | 1 => {
                        let fill = (round * 5 + n).to_le_bytes()[0];
                        let data = vec![fill; range.len()];
                        let h = header(1, at);
                        d.add(0, &[Buffer::Read(&h), Buffer::Read(&data), Buffer::Write(1)]);
                        model[range].fill(fill);
                    }
                    2 => {
                        let s = segment(at, u32::try_from(sectors).unwrap(), 1);
                        d.add(
                            0,
                            &[Buffer::Read(&header(13, 0)), Buffer::Read(&s), Buffer::Write(1)],
                        );
                        model[range].fill(0);
                    }
                    _ => {
                        let h = header(0, at);
                        let len = u32::try_from(range.len()).unwrap();
                        let to = [Buffer::Read(&h), Buffer::Write(len), Buffer::Write(1)];
                        reads.push((d.add(0, &to)[1], range));
                    }
                }
                at += sectors;
            }
            for _ in 0..5 {
                d.wait(0);
            }
            for (place, range) in reads {
                assert!(d.bytes(place, range.len()) == model[range.clone()], "{name} {range:?}");
            }
            if round % 20 == 0 {
                assert_eq!(send(&mut d, 4, 0, &[]), 0);
                d.pci.pause().unwrap();
                d.pci.resume().unwrap();
            }
        }
        let mut whole = Vec::new();
        for sector in (0..LEN / 512).step_by(128) {
            let h = header(0, len_u64(sector));
            let at = d.add(0, &[Buffer::Read(&h), Buffer::Write(128 * 512), Buffer::Write(1)]);
            d.wait(0);
            whole.extend(d.bytes(at[1], 128 * 512));
        }
        assert!(whole == model, "{name}");
    }
}

/// Names descriptors that cannot be written or flushed.
struct Torn {
    bytes: Mutex<Vec<u8>>,
    file: std::fs::File,
}

impl BlockBackend for Torn {
    fn len(&self) -> u64 {
        1 << 20
    }
    fn read_only(&self) -> bool {
        false
    }
    fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        buf.copy_from_slice(&self.bytes.lock().unwrap()[index(at)..][..buf.len()]);
        Ok(())
    }
    fn write(&self, at: u64, buf: &[u8]) -> Result<()> {
        if at == 512 {
            return Err(crate::Error::errno(libc::ENOSPC));
        }
        self.bytes.lock().unwrap()[index(at)..][..buf.len()].copy_from_slice(buf);
        Ok(())
    }
    fn pin(&self, at: u64, len: u64, _: Direction) -> Option<(Held, Vec<PinnedRun>)> {
        use std::os::fd::AsRawFd;
        let run = PinnedRun::File { fd: self.file.as_raw_fd(), offset: at, len, align: 1 };
        Some((Box::new(()), vec![run]))
    }
    fn pin_call(&self, job: Job) -> Option<(Held, PinnedCall)> {
        let call = match job {
            // There is no such descriptor.
            Job::Flush => PinnedCall::Sync(i32::MAX),
            _ => return None,
        };
        Some((Box::new(()), call))
    }
    fn flushes_one_file(&self) -> bool {
        true
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

#[test]
fn what_the_kernel_cannot_do_is_done_again_and_a_failed_flush_is_not() {
    let torn = || {
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        Arc::new(Torn { bytes: Mutex::new(vec![0; 1 << 20]), file })
    };
    let backend = torn();
    let Some((mut d, disk)) = driver(Disk::new(backend.clone(), Behaviour::default())) else {
        return;
    };
    // Neighbours of one batch: one of them fails, as it does by itself.
    let mut places = Vec::new();
    for n in 0..3u8 {
        let (h, fill) = (header(1, n.into()), [n + 1; 512]);
        places.push(d.add(0, &[Buffer::Read(&h), Buffer::Read(&fill), Buffer::Write(1)])[2]);
    }
    for _ in 0..3 {
        d.wait(0);
    }
    let told: Vec<u8> = places.iter().map(|p| d.bytes(*p, 1)[0]).collect();
    assert_eq!(told, [0, 1, 0]);
    let bytes = backend.bytes.lock().unwrap()[..1536].to_vec();
    assert_eq!((bytes[0], bytes[512], bytes[1024]), (1, 0, 3));
    assert_eq!(send(&mut d, 4, 0, &[]), 1, "flush");
    let stats = disk.stats();
    assert_eq!((stats.write.operations, stats.write.failed, stats.flush.failed), (2, 1, 1));
    // Nor is a durable write that has failed.
    let behaviour = Behaviour { write_cache: WriteCache::Writethrough, ..Behaviour::default() };
    let Some((mut d, disk)) = driver(Disk::new(torn(), behaviour)) else { return };
    assert_eq!(send(&mut d, 1, 8, &[1; 512]), 1);
    assert_eq!(disk.stats().write.failed, 1);
}

#[test]
fn a_held_request_waits_for_the_machine() {
    let file = std::fs::File::open("/proc/self/exe").unwrap();
    let backend = Arc::new(Torn { bytes: Mutex::new(vec![0; 1 << 20]), file });
    let behaviour = Behaviour { write_error: OnError::StopWhenFull, ..Behaviour::default() };
    let Some((mut d, disk)) = driver(Disk::new(backend, behaviour)) else { return };
    let (told, errors) = std::sync::mpsc::channel();
    disk.on_error(Box::new(move |e| {
        let _ = told.send(e.action);
    }));
    let h = header(1, 1);
    d.add(0, &[Buffer::Read(&h), Buffer::Read(&[1; 512]), Buffer::Write(1)]);
    for _ in 0..2 {
        assert_eq!(errors.recv().unwrap(), crate::block::disk::ErrorAction::Stop);
        d.pci.pause().unwrap();
        d.pci.resume().unwrap();
    }
}

#[test]
fn a_commit_waits_for_what_is_held() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    std::fs::write(&path, vec![5u8; 1 << 20]).unwrap();
    let drive = Drive {
        id: "d0".into(),
        image: OpenRequest::file(path.to_string_lossy()).with_driver(Some("raw")),
        persistence: crate::block::config::Persistence::Temporary,
        ..Drive::default()
    };
    let opened = disk(&drive, dir.path(), &mut Groups::new()).unwrap().disk;
    let image = opened.image().unwrap().clone();
    let (held, runs) = image.pin(0, 512, Direction::Read).unwrap();
    assert_eq!(runs.len(), 1);
    let began = std::sync::Barrier::new(2);
    std::thread::scope(|s| {
        let commit = s.spawn(|| {
            began.wait();
            image.commit()
        });
        began.wait();
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(!commit.is_finished());
        assert!(image.pin(0, 512, Direction::Read).is_none() || !commit.is_finished());
        drop(held);
        commit.join().unwrap().unwrap();
    });
    assert!(image.pin(0, 512, Direction::Read).is_some());
}

#[test]
fn a_guest_that_names_memory_it_has_not_gets_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    std::fs::write(&path, vec![5u8; 1 << 20]).unwrap();
    let Some(mut d) = over(watched(raw(&path, CacheMode::Writeback))) else { return };
    d.memory.write_slice(&header(1, 0), GuestAddress(DATA)).unwrap();
    d.descriptor(0, 0, DATA, 16, 1, 1);
    d.descriptor(0, 1, (8 << 20) - 256, 512, 1, 2);
    d.descriptor(0, 2, DATA + 64, 1, 2, 0);
    d.offer(0, 0);
    d.wait(0);
    assert_eq!(d.bytes(DATA + 64, 1), [1]);
}
