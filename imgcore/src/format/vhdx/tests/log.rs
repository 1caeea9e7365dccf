//! Logs that a crash left behind.

use std::sync::Arc;

use super::super::VhdxDriver;
use crate::format::testing::{self, Dir, pattern};
use crate::format::{Access, Repair, Unwatched};
use crate::storage::Storage;
use crate::storage::crash::CrashStorage;

/// An image whose table changes are in the log only: as it is between writing the entry and carrying it out.
fn unfinished() -> (Vec<u8>, Vec<u8>) {
    let base = testing::create(&VhdxDriver, 6 << 20, &[("block_size", "1M")]).unwrap();
    let storage = Arc::new(CrashStorage::new("image", base.clone()));
    let node = testing::node(&VhdxDriver, Arc::clone(&storage) as _, Access::Write);
    node.write(1 << 20, &pattern(2 << 20, 1)).unwrap();
    node.flush().unwrap();
    let disk = testing::content(&node);
    let history = storage.history(base);
    let at = history
        .events
        .iter()
        .position(|e| {
            // The table is at 3 MiB.
            matches!(e, crate::storage::crash::Event::Write(at, _) if *at >= 3 << 20 && *at < 4 << 20)
        })
        .unwrap();
    (history.prefix(at), disk)
}

#[test]
fn readers_replay_in_memory_and_writers_on_disk() {
    let (bytes, disk) = unfinished();
    let storage = testing::memory(&bytes);
    let node = testing::node(&VhdxDriver, Arc::clone(&storage) as _, Access::Read);
    assert!(testing::content(&node) == disk);
    drop(node);
    assert!(storage.to_vec() == bytes, "a reader wrote");
    let (report, lines) = testing::check(&VhdxDriver, testing::memory(&bytes), Repair::Nothing);
    assert_eq!((report.leaks, report.corruptions), (1, 0), "{lines:?}");
    let node = testing::node(&VhdxDriver, Arc::clone(&storage) as _, Access::Write);
    assert!(testing::content(&node) == disk);
    node.close().unwrap();
    drop(node);
    Dir::new().qemu_agrees("vhdx", &storage.to_vec(), &disk);
}

/// QEMU replays what we log.
#[test]
fn qemu_replays_our_log() {
    let (bytes, disk) = unfinished();
    let dir = Dir::new();
    dir.put("dirty", &bytes);
    let Some(out) = dir.tool("qemu-img", &["check", "-f", "vhdx", "-r", "all", "dirty"]) else {
        return;
    };
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    dir.qemu_agrees("vhdx", &dir.get("dirty"), &disk);
}

/// A torn entry counts as none.
#[test]
fn torn_entries() {
    let (bytes, disk) = unfinished();
    let empty = vec![0; disk.len()];
    // The entry is the first thing in the log, at 1 MiB: header sector and one data sector.
    for at in [10, 70, 4096 + 100, 8191] {
        let mut torn = bytes.clone();
        torn[(1 << 20) + at] ^= 1;
        let node = testing::node(&VhdxDriver, testing::memory(&torn), Access::Read);
        assert!(testing::content(&node) == empty, "{at}");
    }
}

/// An image that QEMU was killed with.
#[test]
fn by_qemu() {
    let dir = Dir::new();
    if dir.unpack("vhdx/qemu-sample-dirtylog-10G.vhdx.xz", "d.vhdx").is_none() {
        return;
    }
    let node = dir.open("d.vhdx", "vhdx", Access::Read).unwrap();
    let mut head = vec![0; 16 << 20];
    node.read(0, &mut head).unwrap();
    drop(node);
    let before = dir.get("d.vhdx");
    dir.put("q.vhdx", &before);
    if dir.must("qemu-img", &["check", "-f", "vhdx", "-r", "all", "q.vhdx"]).is_none() {
        return;
    }
    let node = dir.open("q.vhdx", "vhdx", Access::Read).unwrap();
    let mut theirs = vec![0; 16 << 20];
    node.read(0, &mut theirs).unwrap();
    drop(node);
    assert!(head == theirs);
    let purpose = crate::graph::open::Purpose::Check;
    let node = dir.open_for("d.vhdx", "vhdx", Access::Write, purpose).unwrap();
    node.image().check(Repair::All, &Unwatched).unwrap().unwrap();
    node.close().unwrap();
    drop(node);
    dir.must("qemu-img", &["compare", "-f", "vhdx", "-F", "vhdx", "d.vhdx", "q.vhdx"]);
}

/// A log as large as it can be, full of entries that lie over each other, is given up soon.
#[test]
fn endless_log() {
    let (mut bytes, _) = unfinished();
    let entry = bytes[1 << 20..(1 << 20) + 64].to_vec();
    for at in (1 << 20..2 << 20).step_by(4096) {
        bytes[at..at + 64].copy_from_slice(&entry);
        bytes[at + 8..at + 12].copy_from_slice(&(1u32 << 20).to_le_bytes());
        let tail = u32::try_from(at - (1 << 20)).unwrap();
        bytes[at + 12..at + 16].copy_from_slice(&tail.to_le_bytes());
    }
    let e = testing::refused(&VhdxDriver, &bytes);
    assert!(e.message().contains("lie over each other"), "{e:?}");
    assert!(testing::memory(&bytes).len().unwrap() > 0);
}
