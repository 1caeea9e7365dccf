//! Images that somebody made to hurt: a good image, bytes of it changed at the fuzzer's choice, then all that
//! rimg and rkvm do with an image. Only for tests and the fuzz targets.
//!
//! What must hold, whatever the bytes are:
//!
//! * no panic, bounded memory and time (the fuzzer's limits see to these);
//! * extents are as long as asked for at most, and never empty;
//! * what the status calls zero reads as zeroes, what it places in the file reads as the file's bytes there;
//! * the same bytes come from one long read and from short ones;
//! * an image whose bytes were not changed keeps every byte written to it, across closing and opening, and
//!   its check finds nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bases;
pub mod guest;
mod seal;
mod storage;

use std::sync::Arc;

pub use bases::bases;
use storage::{Decoy, OnlyHere};

use crate::format::{
    Access, Driver, Image, OpenContext, Repair, StorageId, Unwatched, Watcher, ZeroSpace,
};
use crate::graph::{Node, StatusKind};
use crate::num::{len_u64, small};
use crate::storage::{Preallocation, Storage};

/// Longest guest disk of which every byte is compared.
const WHOLE: u64 = 8 << 20;
/// Runs that one walk looks at.
const RUNS: usize = 150;
/// Bytes of a run that are read.
const LOOK: u64 = 12 << 10;
/// An image may grow to this, as on a file system that is full then.
const ROOM: u64 = 12 << 20;

/// Bytes among which a change is placed.
const LINE: usize = 64;

/// A fuzzer's input, taken from the front; zeroes when it ends.
pub(crate) struct Input<'a>(pub(crate) &'a [u8]);

impl Input<'_> {
    /// The next `n` bytes, at most eight, as a number.
    pub(crate) fn take(&mut self, n: usize) -> u64 {
        let (now, rest) = self.0.split_at(n.min(self.0.len()));
        self.0 = rest;
        now.iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte))
    }
}

/// Drives `driver` over one of `bases` with the changes that `input` asks for. With the number after the last
/// base, the input is the image.
///
/// # Panics
///
/// If anything that must hold does not.
pub fn drive(driver: &dyn Driver, bases: &[Base], input: &[u8]) {
    let mut input = Input(input);
    let base = small(input.take(1)) % (bases.len() + 1);
    let flags = input.take(1);
    let (bytes, changed) = match bases.get(base) {
        None => {
            let bytes = std::mem::take(&mut input.0).to_vec();
            (bytes, true)
        }
        Some(base) => {
            let mut bytes = base.bytes.clone();
            let changes = flags >> 3;
            for _ in 0..changes {
                change(&mut bytes, base, &mut input);
            }
            if flags & 2 != 0 {
                seal::seal(driver.name(), &mut bytes);
            }
            let changed = bytes != base.bytes;
            (bytes, changed)
        }
    };
    let storage = Arc::new(OnlyHere::new(bytes, ROOM));
    let mut access = if flags & 1 == 0 { Access::Read } else { Access::Write };
    let mut opened = open(driver, &storage, access, false);
    if opened.is_err() && access == Access::Write {
        // Some are only read (streamOptimized).
        access = Access::Read;
        opened = open(driver, &storage, access, false);
    }
    let image = match opened {
        Ok(image) => image,
        Err(error) => {
            assert!(changed, "a {} image that nobody changed: {error}", driver.name());
            return check(driver, &storage, flags, Expect::Anything);
        }
    };
    let mut disk = look(&image_node(image, access), &storage, changed);
    if access == Access::Write {
        let image = open(driver, &storage, access, false);
        let Ok(image) = image else {
            assert!(changed, "it opened just now");
            return;
        };
        let node = image_node(image, access);
        while !input.0.is_empty() {
            operate(&node, &mut input, &mut disk);
        }
        let closed = node.close();
        drop(node);
        if let Some(disk) = disk {
            closed.unwrap();
            let node =
                image_node(open(driver, &storage, Access::Read, false).unwrap(), Access::Read);
            same(driver, &content(&node), &disk, "after closing and opening");
        }
    }
    let expect = if changed { Expect::Anything } else { Expect::Clean };
    check(driver, &storage, flags, expect);
}

fn same(driver: &dyn Driver, found: &[u8], expected: &[u8], when: &str) {
    assert_eq!(found.len(), expected.len(), "{}: length of the disk {when}", driver.name());
    if let Some(at) = (0..found.len()).find(|&i| found[i] != expected[i]) {
        let (found, expected) = (found[at], expected[at]);
        panic!("{}: byte {at:#x} {when} is {found:#x}, not {expected:#x}", driver.name());
    }
}

/// A good image to start from.
#[derive(Debug)]
pub struct Base {
    bytes: Vec<u8>,
    /// Where lines of [`LINE`] bytes begin that are not all zero.
    lines: Vec<usize>,
}

impl Base {
    /// An image of these bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        const NONE: [u8; LINE] = [0; LINE];
        let lines = bytes.chunks(LINE).zip((0..).step_by(LINE));
        let lines = lines.filter(|(line, _)| **line != NONE[..line.len()]).map(|(_, at)| at);
        Base { lines: lines.collect(), bytes }
    }
}

/// What a check may find.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Expect {
    Clean,
    Anything,
}

fn open<S: Storage + 'static>(
    driver: &dyn Driver,
    storage: &Arc<S>,
    access: Access,
    for_check: bool,
) -> crate::Result<Box<dyn Image>> {
    driver.open(OpenContext {
        storage: Arc::clone(storage) as Arc<dyn Storage>,
        access,
        gate: &Decoy,
        snapshot: None,
        data_file: None,
        scratch: false,
        header_only: false,
        for_check,
        options: &[],
    })
}

pub(crate) fn image_node(image: Box<dyn Image>, access: Access) -> Node {
    Node::new("image", image, None, access)
}

/// One change: bytes, a small difference, or the end of the file; near bytes that are not zero, because that is
/// where the tables are.
fn change(bytes: &mut Vec<u8>, base: &Base, input: &mut Input<'_>) {
    let (line, how) = (small(input.take(2)), small(input.take(1)));
    let Some(&start) = base.lines.get(line % base.lines.len().max(1)) else { return };
    let at = (start + how % LINE).min(bytes.len());
    let width = match how / LINE {
        0 => 1,
        1 => 4,
        2 => 8,
        _ => {
            let by = input.take(1);
            if by == 0 {
                bytes.truncate(at);
            } else if let Some(place) = bytes.get_mut(at) {
                *place = place.wrapping_add(u8::try_from(by).unwrap_or(1));
            }
            return;
        }
    };
    for i in at..(at + width).min(bytes.len()) {
        bytes[i] = u8::try_from(input.take(1)).unwrap_or(0);
    }
}

/// Reads what can be read. The whole disk, if the image is as it was made.
fn look(node: &Node, storage: &OnlyHere, changed: bool) -> Option<Vec<u8>> {
    let _ = node.image().info();
    if let Some(snapshots) = node.image().snapshots() {
        let _ = snapshots.list();
    }
    if let Some(bitmaps) = node.image().bitmaps() {
        for bitmap in bitmaps.list().unwrap_or_default().iter().take(4) {
            let _ = bitmaps.dirty_ranges(&bitmap.name);
        }
    }
    let end = node.virtual_size();
    let mut at = 0;
    for _ in 0..RUNS {
        if at >= end {
            break;
        }
        let asked = end - at;
        let Ok(status) = node.status(at, asked, None) else {
            // What cannot be mapped may lie anywhere; go on a little further.
            at += asked.min(LOOK);
            continue;
        };
        assert!(status.len > 0 && status.len <= asked, "a run of {} of {asked}", status.len);
        let len = small(status.len.min(LOOK));
        let mut whole = vec![0x55; len];
        if node.read(at, &mut whole).is_ok() {
            if status.kind != StatusKind::Data {
                assert!(whole.iter().all(|&b| b == 0), "zeroes at {at:#x} are none");
            }
            if let Some((StorageId(0), place)) = status.place
                && status.kind == StatusKind::Data
                && !status.compressed
                && !node.image().encrypts()
            {
                let mut plain = vec![0xaa; len];
                storage.read_at(place.0, &mut plain).unwrap();
                assert!(plain == whole, "guest bytes at {at:#x} are not those of the file");
            }
            let mut parts = vec![0x55; len];
            let short = parts.chunks_mut(700 + small(at) % 7000);
            let mut from = at;
            for part in short {
                node.read(from, part).unwrap();
                from += len_u64(part.len());
            }
            assert!(parts == whole, "short reads at {at:#x} give other bytes");
        }
        at += status.len;
    }
    (!changed && end <= WHOLE).then(|| content(node))
}

fn content(node: &Node) -> Vec<u8> {
    let mut all = vec![0x55; small(node.virtual_size())];
    node.read(0, &mut all).unwrap();
    all
}

/// One operation of a guest or a user; `disk` is what the disk must hold, if that is known.
fn operate(node: &Node, input: &mut Input<'_>, disk: &mut Option<Vec<u8>>) {
    let what = input.take(1);
    let size = node.virtual_size();
    let place = input.take(4);
    let at = if size == 0 { 0 } else { place.wrapping_mul(0x201) % size };
    let len = (1 + input.take(3) % 70_000).min(size - at);
    let range = small(at)..small(at + len);
    let fill = u8::try_from(what).unwrap_or(1) | 1;
    let done = match what % 8 {
        0 => node.write_zeroes(at, len, ZeroSpace::Unmap).map(|()| 0),
        1 => node.write_zeroes(at, len, ZeroSpace::Keep).map(|()| 0),
        2 => {
            let known = node.discard(at, len);
            if let (Ok(()), Some(disk)) = (&known, disk.as_mut()) {
                // A discarded range may read as before or as zeroes.
                let mut now = vec![0x55; small(len)];
                node.read(at, &mut now).unwrap();
                for (now, before) in now.iter().zip(&mut disk[range]) {
                    assert!(*now == 0 || now == before, "a discard made other bytes");
                    *before = *now;
                }
            }
            return;
        }
        3 => {
            let _ = node.flush();
            return;
        }
        4 if what & 0x80 != 0 => {
            // Sizes are whole sectors everywhere in the tools.
            let to = (len * 60).next_multiple_of(512);
            if node.resize(to, Preallocation::Off).is_ok()
                && let Some(disk) = disk.as_mut()
            {
                disk.resize(small(node.virtual_size()), 0);
            }
            return;
        }
        _ => node.write(at, &vec![fill; small(len)]).map(|()| fill),
    };
    match (done, disk) {
        (Ok(fill), Some(disk)) => disk[range].fill(fill),
        (Err(_), disk @ Some(_)) => {
            // The room is full, or the format writes otherwise: what was done is not known any more.
            *disk = None;
        }
        _ => (),
    }
}

/// Counts looks, so that a check that never ends is seen by the fuzzer's clock, not by its memory.
struct Quiet;
impl Watcher for Quiet {
    fn note(&self, line: &str) {
        assert!(line.len() < 4096, "a line of {} bytes", line.len());
    }
}

/// Checks, repairs, checks.
fn check(driver: &dyn Driver, storage: &Arc<OnlyHere>, flags: u64, expect: Expect) {
    let Ok(image) = open(driver, storage, Access::Read, true) else { return };
    if let Some(report) = image.check(Repair::Nothing, &Quiet)
        && expect == Expect::Clean
        && !storage.was_full()
    {
        let report = report.unwrap();
        assert_eq!((report.corruptions, report.check_errors), (0, 0), "{report:?}");
    }
    drop(image);
    if flags & 4 == 0 || expect == Expect::Clean {
        return;
    }
    let copy = Arc::new(OnlyHere::new(storage.to_vec(), ROOM));
    for repair in [Repair::Leaks, Repair::All] {
        let Ok(image) = open(driver, &copy, Access::Write, true) else { return };
        let _ = image.check(repair, &Unwatched);
        let _ = image.close();
    }
}

#[cfg(test)]
mod tests;
