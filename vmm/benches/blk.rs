//! `cargo bench -p vmm --features testing --bench blk [-- WORD...]`: virtio-blk without a guest.
//!
//! A fake driver keeps a queue full of requests to a file of 256 MiB; what is measured is everything between the
//! doorbell and the used ring. Requests as Linux makes them: an indirect table of header, pages that do not
//! follow each other in memory, status. Each line is the median of five rounds; with words, only lines that contain
//! all of them.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use imgcore::graph::open::{OpenOptions, OpenRequest, open};
use imgcore::storage::CacheMode;
use vm_memory::{Bytes, GuestAddress};
use vmm::block::Disk;
use vmm::block::disk::Behaviour;
use vmm::virtio::blk::{Blk, BlkConfig};
use vmm::virtio::driver::Driver;

const LEN: u64 = 256 << 20;
const PAGE: u64 = 4096;
/// Pages in one request, at most: what a queue of 256 lets Linux do.
const MOST_PAGES: u64 = 254;
const DATA: u64 = 0x20_0000;
const TABLES: u64 = 0x10_0000;

#[derive(Clone, Copy)]
struct Load {
    name: &'static str,
    /// Requests at a time.
    depth: u16,
    pages: u64,
    kind: u32,
    sequential: bool,
}

const fn load(name: &'static str, depth: u16, pages: u64, kind: u32, sequential: bool) -> Load {
    Load { name, depth, pages, kind, sequential }
}

const LOADS: &[Load] = &[
    load("random-read-4k-1", 1, 1, 0, false),
    load("random-read-4k-16", 16, 1, 0, false),
    load("random-write-4k-1", 1, 1, 1, false),
    load("random-write-4k-16", 16, 1, 1, false),
    load("sequential-read-4k-16", 16, 1, 0, true),
    load("sequential-read-1m-1", 1, MOST_PAGES, 0, true),
    load("sequential-write-1m-1", 1, MOST_PAGES, 1, true),
];

/// An indirect table with header, pages and status.
fn table(d: &Driver, slot: u16, load: Load, at: u64) {
    let table = TABLES + u64::from(slot) * 0x2000;
    let header = table + 0x1800;
    let put = |i: u64, at: u64, len: u32, flags: u16| {
        let e = table + 16 * i;
        d.memory.write_obj(at, GuestAddress(e)).unwrap();
        d.memory.write_obj(len, GuestAddress(e + 8)).unwrap();
        d.memory.write_obj(flags, GuestAddress(e + 12)).unwrap();
        d.memory.write_obj(u16::try_from(i + 1).unwrap(), GuestAddress(e + 14)).unwrap();
    };
    d.memory.write_obj(load.kind, GuestAddress(header)).unwrap();
    d.memory.write_obj(at / 512, GuestAddress(header + 8)).unwrap();
    put(0, header, 16, 1);
    let written = if load.kind == 0 { 2 } else { 0 };
    for page in 0..load.pages {
        // Every other page: none follows the one before.
        let place = DATA + (u64::from(slot) * load.pages + page) * 2 * PAGE;
        put(1 + page, place, 4096, 1 | written);
    }
    put(1 + load.pages, header + 16, 1, 2);
    let len = u32::try_from(16 * (load.pages + 2)).unwrap();
    d.descriptor(0, slot, table, len, 4, 0);
}

/// Megabytes and requests a second.
fn round(d: &mut Driver, load: Load, requests: u32) -> (f64, f64) {
    let bytes = load.pages * PAGE;
    let mut x = 88_172_645_463_325_252u64;
    let mut next = 0;
    let began = Instant::now();
    let mut done = 0;
    while done < requests {
        for slot in 0..load.depth {
            let at = if load.sequential {
                next = if next + bytes > LEN { 0 } else { next };
                next += bytes;
                next - bytes
            } else {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                x % (LEN / PAGE) * PAGE
            };
            table(d, slot, load, at);
        }
        let end = d.completed(0).wrapping_add(load.depth);
        d.offer_all(0, load.depth);
        while d.completed(0) != end {
            std::thread::yield_now();
        }
        done += u32::from(load.depth);
    }
    let seconds = began.elapsed().as_secs_f64();
    (f64::from(done) * bytes as f64 / 1e6 / seconds, f64::from(done) / seconds)
}

fn median(mut all: Vec<(f64, f64)>) -> (f64, f64) {
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    all[all.len() / 2]
}

fn driver(path: &Path, format: &str, cache: CacheMode, aio: &str) -> Option<Driver> {
    let mut request = OpenRequest::file(path.to_string_lossy()).with_driver(Some(format));
    request.cache = Some(cache);
    let node = match open(&request, &OpenOptions::default().writable()) {
        Ok(node) => node,
        Err(e) => {
            println!("SKIPPED {}: {}", path.display(), e.report());
            return None;
        }
    };
    let disk = Arc::new(Disk::new(Arc::new(node), Behaviour::default()));
    let mut blk = Blk::over(BlkConfig { id: "d".into(), ..BlkConfig::default() }, disk);
    if aio == "io_uring"
        && let Err(e) = blk.give_rings()
    {
        println!("SKIPPED io_uring: {}", e.report());
        return None;
    }
    Some(Driver::new(Arc::new(blk), 0))
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let dir = match std::env::var_os("BENCH_DIR") {
        Some(dir) => tempfile::tempdir_in(dir).unwrap(),
        None => tempfile::tempdir().unwrap(),
    };
    let path = dir.path().join("disk.raw");
    let content: Vec<u8> = (0..LEN / 8).flat_map(|n| (n * 0x9e37_79b9).to_le_bytes()).collect();
    std::fs::write(&path, content).unwrap();
    for cache in [CacheMode::Writeback, CacheMode::None] {
        for load in LOADS {
            for aio in ["threads", "io_uring"] {
                let name = format!("{cache:?} {} {aio}", load.name).to_lowercase();
                if !words.iter().all(|w| name.contains(w.as_str())) {
                    continue;
                }
                let Some(mut d) = driver(&path, "raw", cache, aio) else { continue };
                let pages = u32::try_from(load.pages).unwrap();
                let requests =
                    if cache == CacheMode::None { 4_000 } else { 40_000 } / pages.min(40);
                let rounds = (0..5).map(|_| round(&mut d, *load, requests)).collect();
                let (megabytes, iops) = median(rounds);
                println!("{name:50} {iops:9.0} IOPS {megabytes:8.0} MB/s");
                drop(d);
            }
        }
    }
}
