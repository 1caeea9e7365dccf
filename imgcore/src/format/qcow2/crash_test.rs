//! After a crash at any point: no damage, leaks at worst, and everything that was flushed is there.

use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use super::Qcow2Driver;
use super::layout::{compatible, incompatible};
use crate::crypto::SecretBytes;
use crate::format::OpenGate;
use crate::format::testing::WithKey;
use crate::format::{
    Access, Amendment, BackingRef, CheckReport, CreateContext, CreateOptions, Driver, Image,
    NewFiles, NoGate, OpenContext, Repair, SnapshotSelector, Watcher, ZeroSpace,
};
use crate::graph::Node;
use crate::storage::crash::CrashStorage;
use crate::storage::{MemoryStorage, Preallocation, Storage};
use crate::{Error, Result};

/// A small generator; the tests must give the same on every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, n: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

#[derive(Default)]
struct Lines(Mutex<Vec<String>>);

impl Watcher for Lines {
    fn note(&self, line: &str) {
        self.0.lock().unwrap().push(line.to_owned());
    }
}

struct OneFile(Arc<MemoryStorage>);

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
    fn passphrase(&self, _: Option<&str>) -> Result<Option<SecretBytes>> {
        WithKey.passphrase(None)
    }
}

fn new_image(size: u64, options: &[(&str, &str)], backing: bool) -> Vec<u8> {
    let file = Arc::new(MemoryStorage::new("image", Vec::new()));
    let given: Vec<(String, String)> =
        options.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    let options = CreateOptions::parse(Qcow2Driver.create_options(), &given).unwrap();
    Qcow2Driver
        .create(&CreateContext {
            files: &OneFile(Arc::clone(&file)),
            file_name: "image",
            size,
            options: &options,
            backing: backing
                .then(|| BackingRef { name: "below".into(), format: Some("raw".into()) }),
            backing_image: None,
        })
        .unwrap();
    file.to_vec()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum For {
    Reading,
    Writing,
    Repairing,
}

fn open(storage: Arc<dyn Storage>, what: For, snapshot: Option<&str>) -> Box<dyn Image> {
    let access = if what == For::Reading { Access::Read } else { Access::Write };
    Qcow2Driver
        .open(OpenContext {
            storage,
            access,
            gate: &WithKey,
            snapshot: snapshot.map(|s| SnapshotSelector::IdOrName(s.to_owned())),
            data_file: None,
            scratch: false,
            header_only: false,
            for_check: what == For::Repairing,
            options: &[],
        })
        .unwrap()
}

fn node(storage: Arc<dyn Storage>, below: Option<&[u8]>, what: For, snap: Option<&str>) -> Node {
    let below = below.map(|bytes| {
        let raw = MemoryStorage::new("below", bytes.to_vec());
        let image = crate::format::driver("raw")
            .unwrap()
            .open(OpenContext {
                storage: Arc::new(raw),
                access: Access::Read,
                gate: &NoGate,
                snapshot: None,
                data_file: None,
                scratch: false,
                header_only: false,
                for_check: false,
                options: &[],
            })
            .unwrap();
        Arc::new(Node::new("below", image, None, Access::Read))
    });
    let access = if what == For::Reading { Access::Read } else { Access::Write };
    Node::new("image", open(storage, what, snap), below, access)
}

fn memory(bytes: &[u8]) -> Arc<dyn Storage> {
    Arc::new(MemoryStorage::new("image", bytes.to_vec()))
}

fn content(bytes: &[u8], below: Option<&[u8]>, snapshot: Option<&str>) -> Vec<u8> {
    let node = node(memory(bytes), below, For::Reading, snapshot);
    let mut all = vec![0; usize::try_from(node.virtual_size()).unwrap()];
    node.read(0, &mut all).unwrap();
    all
}

fn check(storage: Arc<dyn Storage>, repair: Repair) -> (CheckReport, Vec<String>) {
    let what = if repair == Repair::Nothing { For::Reading } else { For::Repairing };
    let image = open(storage, what, None);
    let lines = Lines::default();
    let report = image.check(repair, &lines).unwrap().unwrap();
    if repair != Repair::Nothing {
        image.close().unwrap();
    }
    (report, lines.0.into_inner().unwrap())
}

/// The image must be consistent, except for leaks and flags that do not match counts yet, which
/// `check -r leaks` must put right without touching the content. Lazy counts may be behind as long as
/// the dirty bit says so; the next writer puts them right.
fn assert_sound(bytes: &[u8], below: Option<&[u8]>, place: &str) {
    let (report, lines) = check(memory(bytes), Repair::Nothing);
    assert_eq!(report.check_errors, 0, "{place}: {lines:?}");
    let header = super::header::Header::read(&*memory(bytes)).unwrap();
    if header.has(incompatible::DIRTY) && header.compatible & compatible::LAZY_REFCOUNTS != 0 {
        let before = content(bytes, below, None);
        let storage = Arc::new(MemoryStorage::new("image", bytes.to_vec()));
        open(Arc::clone(&storage) as Arc<dyn Storage>, For::Writing, None).close().unwrap();
        let (report, lines) = check(memory(&storage.to_vec()), Repair::Nothing);
        assert_eq!((report.corruptions, report.leaks), (0, 0), "{place}: {lines:?}");
        assert!(content(&storage.to_vec(), below, None) == before, "{place}");
        return;
    }
    let damage: Vec<_> =
        lines.iter().filter(|l| !l.starts_with("Leaked") && !l.contains("OFLAG_COPIED")).collect();
    assert!(damage.is_empty(), "{place}: {damage:?}");
    let storage: Arc<MemoryStorage> = Arc::new(MemoryStorage::new("image", bytes.to_vec()));
    let before = content(bytes, below, None);
    check(Arc::clone(&storage) as Arc<dyn Storage>, Repair::Leaks);
    let (report, lines) = check(memory(&storage.to_vec()), Repair::Nothing);
    assert_eq!((report.corruptions, report.leaks), (0, 0), "{place}: {lines:?}");
    assert!(content(&storage.to_vec(), below, None) == before, "{place}: repair changed content");
    // And the ordinary way: the next writer.
    let writer = node(memory(bytes), below, For::Writing, None);
    writer.write(0, &before[..512]).unwrap();
    writer.close().unwrap();
}

/// Crashes `work` everywhere and calls `judge(bytes, points passed before, where)`.
fn crash_everywhere(
    base: &[u8],
    below: Option<&[u8]>,
    work: impl FnOnce(&CrashStorage, &Node),
    judge: impl Fn(&[u8], &dyn Fn(u32) -> bool, &str),
) {
    let storage = Arc::new(CrashStorage::new("image", base.to_vec()));
    let target = node(Arc::clone(&storage) as Arc<dyn Storage>, below, For::Writing, None);
    work(&storage, &target);
    target.close().unwrap();
    drop(target);
    let history = storage.history(base.to_vec());
    let n = history.events.len();
    let mut dice = Dice(42);
    let step = (n / 80).max(1);
    for at in (0..=n).rev().step_by(step) {
        let passed = |point| history.passed(point, at);
        let place = format!("after {at} of {n} events");
        let bytes = history.prefix(at);
        assert_sound(&bytes, below, &place);
        judge(&bytes, &passed, &place);
        // Half, most, or little of what was not flushed reaches the disk.
        for eighths in [4, 7, 1] {
            let bytes = history.power_loss(at, || dice.roll(8) < eighths);
            let place = format!("{place}, power loss, {eighths}/8 kept");
            assert_sound(&bytes, below, &place);
            judge(&bytes, &passed, &place);
        }
    }
}

const CLUSTER: u64 = 4096;
const SIZE: u64 = 700 * CLUSTER;
const OPTIONS: &[(&str, &str)] = &[("cluster_size", "4096")];
/// Encrypted, with the smallest header.
const LUKS: &[(&str, &str)] = &[
    ("cluster_size", "4096"),
    ("encrypt.format", "luks"),
    ("encrypt.cipher-alg", "aes-128"),
    ("encrypt.cipher-mode", "cbc"),
    ("encrypt.iter-time", "0"),
];
const AES: &[(&str, &str)] = &[("cluster_size", "4096"), ("encrypt.format", "aes")];

/// Writes at random; returns the disk as it must be.
fn scribble(node: &Node, disk: &mut [u8], dice: &mut Dice, n: u64) {
    let size = u64::try_from(disk.len()).unwrap();
    for _ in 0..n {
        let at = dice.roll(size - 512);
        let len = (1 + dice.roll(9 * CLUSTER)).min(size - at);
        let range = usize::try_from(at).unwrap()..usize::try_from(at + len).unwrap();
        match dice.roll(6) {
            0 => {
                node.write_zeroes(at, len, ZeroSpace::Unmap).unwrap();
                disk[range].fill(0);
            }
            _ => {
                let byte = u8::try_from(1 + dice.roll(255)).unwrap();
                disk[range.clone()].fill(byte);
                node.write(at, &disk[range]).unwrap();
            }
        }
    }
}

/// An image with random content: its bytes and its disk.
fn scribbled(options: &[(&str, &str)], seed: u64, below: Option<&[u8]>) -> (Vec<u8>, Vec<u8>) {
    let base = Arc::new(MemoryStorage::new("image", new_image(SIZE, options, below.is_some())));
    let target = node(Arc::clone(&base) as Arc<dyn Storage>, below, For::Writing, None);
    let mut disk = vec![0; usize::try_from(SIZE).unwrap()];
    if let Some(below) = below {
        disk[..below.len()].copy_from_slice(below);
    }
    scribble(&target, &mut disk, &mut Dice(seed), 25);
    target.close().unwrap();
    (base.to_vec(), disk)
}

fn with_snapshot(bytes: Vec<u8>, name: &str) -> Vec<u8> {
    let storage = Arc::new(MemoryStorage::new("image", bytes));
    let image = open(Arc::clone(&storage) as Arc<dyn Storage>, For::Writing, None);
    image.snapshots().unwrap().create(name, SystemTime::UNIX_EPOCH).unwrap();
    image.close().unwrap();
    storage.to_vec()
}

fn names(bytes: &[u8]) -> Vec<String> {
    let image = open(memory(bytes), For::Reading, None);
    image.snapshots().unwrap().list().unwrap().into_iter().map(|s| s.name).collect()
}

#[test]
fn snapshot_create() {
    for options in [OPTIONS, &[("cluster_size", "4096"), ("lazy_refcounts", "on")]] {
        let (base, disk) = scribbled(options, 1, None);
        let base = with_snapshot(base, "old");
        crash_everywhere(
            &base,
            None,
            |storage, node| {
                let store = node.image().snapshots().unwrap();
                store.create("new", SystemTime::UNIX_EPOCH).unwrap();
                storage.mark(1);
            },
            |bytes, passed, place| {
                assert!(content(bytes, None, None) == disk, "{place}");
                let names = names(bytes);
                assert!(names == ["old"] || names == ["old", "new"], "{place}");
                assert!(!passed(1) || names.len() == 2, "{place}");
                for name in names {
                    assert!(content(bytes, None, Some(&name)) == disk, "{place}: {name}");
                }
            },
        );
    }
}

#[test]
fn snapshot_delete_and_apply() {
    let (base, old_disk) = scribbled(OPTIONS, 2, None);
    let storage = Arc::new(MemoryStorage::new("image", with_snapshot(base, "one")));
    let target = node(Arc::clone(&storage) as Arc<dyn Storage>, None, For::Writing, None);
    let mut disk = old_disk.clone();
    scribble(&target, &mut disk, &mut Dice(3), 10);
    target.close().unwrap();
    let base = storage.to_vec();
    crash_everywhere(
        &base,
        None,
        |_, node| node.image().snapshots().unwrap().delete("one").unwrap(),
        |bytes, _, place| {
            assert!(content(bytes, None, None) == disk, "{place}");
            for name in names(bytes) {
                assert!(content(bytes, None, Some(&name)) == old_disk, "{place}");
            }
        },
    );
    crash_everywhere(
        &base,
        None,
        |storage, node| {
            node.image().snapshots().unwrap().apply("one").unwrap();
            storage.mark(1);
        },
        |bytes, passed, place| {
            let seen = content(bytes, None, None);
            assert!(seen == old_disk || (seen == disk && !passed(1)), "{place}");
            assert!(content(bytes, None, Some("one")) == old_disk, "{place}");
        },
    );
}

/// Allocating and copying writes, zeroes, discards: each byte is what it was at the last flush, or
/// something that was written later.
#[test]
fn writes_with_and_without_backing() {
    let below: Vec<u8> = (0..SIZE / 2).map(|i| u8::try_from(i / 700 % 251).unwrap()).collect();
    let lazy: &[(&str, &str)] = &[("cluster_size", "4096"), ("lazy_refcounts", "on")];
    for (options, below, shared) in [
        (OPTIONS, None, false),
        (OPTIONS, None, true),
        (OPTIONS, Some(&below[..]), false),
        (&[("cluster_size", "512"), ("refcount_bits", "64")], None, false),
        (lazy, None, false),
        (LUKS, None, false),
        (LUKS, Some(&below[..]), false),
        (AES, None, true),
    ] {
        let (mut base, disk) = scribbled(options, 4, below);
        if shared {
            base = with_snapshot(base, "s");
        }
        let states = Mutex::new(vec![disk.clone()]);
        crash_everywhere(
            &base,
            below,
            |storage, node| {
                let (mut disk, mut dice) = (disk.clone(), Dice(5));
                for round in 0..2 {
                    for _ in 0..6 {
                        scribble(node, &mut disk, &mut dice, 1);
                        states.lock().unwrap().push(disk.clone());
                    }
                    let at = dice.roll(600) * CLUSTER;
                    node.discard(at, 20 * CLUSTER).unwrap();
                    let range =
                        usize::try_from(at).unwrap()..usize::try_from(at + 20 * CLUSTER).unwrap();
                    disk[range].fill(0);
                    states.lock().unwrap().push(disk.clone());
                    node.flush().unwrap();
                    storage.mark(round);
                }
            },
            |bytes, passed, place| {
                let states = states.lock().unwrap();
                let first = if passed(1) {
                    14
                } else if passed(0) {
                    7
                } else {
                    0
                };
                let seen = content(bytes, below, None);
                for (i, &byte) in seen.iter().enumerate() {
                    let allowed = states[first..].iter().any(|s| s[i] == byte);
                    assert!(allowed, "{place}: byte {i:#x} is {byte:#x}");
                }
            },
        );
    }
}

#[test]
fn resizing() {
    for options in [OPTIONS, &[("cluster_size", "512")], LUKS, AES] {
        let (base, disk) = scribbled(options, 6, None);
        for size in [SIZE * 3, SIZE / 3 / 512 * 512] {
            let keep = usize::try_from(size.min(SIZE)).unwrap();
            crash_everywhere(
                &base,
                None,
                |_, node| node.resize(size, Preallocation::Off).unwrap(),
                |bytes, _, place| {
                    let seen = content(bytes, None, None);
                    assert!(seen[..keep] == disk[..keep], "{place}");
                    let grown = seen.iter().skip(disk.len()).all(|&b| b == 0);
                    assert!(grown, "{place}: the new part is not zero");
                },
            );
        }
    }
}

/// Key slots are set and erased: the other passphrase opens the image at every point, and nothing of
/// the disk changes.
#[test]
fn key_slots() {
    let (base, disk) = scribbled(LUKS, 9, None);
    let amend = |node: &Node, changes: &[&[(&str, &str)]]| {
        let secret = |_: &str| Ok(SecretBytes::new(b"another one".to_vec()));
        for change in changes {
            let given: Vec<(String, String)> =
                change.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
            let wishes = CreateOptions::parse(Qcow2Driver.amend_options(), &given).unwrap();
            let request = Amendment { options: &wishes, force: false, secret: &secret };
            node.image().amend(&request, &Lines::default()).unwrap();
        }
    };
    let add = |slot: &'static str| {
        [
            ("encrypt.state", "active"),
            ("encrypt.new-secret", "n"),
            ("encrypt.keyslot", slot),
            ("encrypt.iter-time", "0"),
        ]
    };
    let erase = |slot: &'static str| [("encrypt.state", "inactive"), ("encrypt.keyslot", slot)];
    for slot in ["6", "7"] {
        crash_everywhere(
            &base,
            None,
            |_, node| amend(node, &[&add(slot), &erase(slot)]),
            |bytes, _, place| assert!(content(bytes, None, None) == disk, "{place}"),
        );
    }
}

#[test]
fn bitmaps() {
    let (base, disk) = scribbled(OPTIONS, 7, None);
    let storage = Arc::new(MemoryStorage::new("image", base));
    let image = open(Arc::clone(&storage) as Arc<dyn Storage>, For::Writing, None);
    let store = image.bitmaps().unwrap();
    store.add("auto", 512).unwrap();
    store.add("still", 4096).unwrap();
    store.set_enabled("still", false).unwrap();
    store.mark("still", &[(4096, 8192)]).unwrap();
    image.close().unwrap();
    let base = storage.to_vec();
    let ranges = |bytes: &[u8], name: &str| {
        let image = open(memory(bytes), For::Reading, None);
        let list = image.bitmaps().unwrap().list().unwrap();
        let found = list.iter().find(|b| b.name == name)?;
        if found.in_use {
            return None;
        }
        Some(image.bitmaps().unwrap().dirty_ranges(name).unwrap())
    };
    crash_everywhere(
        &base,
        None,
        |storage, node| {
            node.write(1024, &disk[1024..2048]).unwrap();
            storage.mark(1);
            let store = node.image().bitmaps().unwrap();
            store.mark("still", &[(100 * 4096, 300 * 4096)]).unwrap();
            store.add("third", 65536).unwrap();
            store.remove("still").unwrap();
        },
        |bytes, passed, place| {
            assert!(content(bytes, None, None) == disk, "{place}");
            // A bitmap that claims to be complete must know of the write.
            if let Some(auto) = ranges(bytes, "auto") {
                assert!(auto == [(1024, 1024)] || (auto.is_empty() && !passed(1)), "{place}");
            }
            if let Some(still) = ranges(bytes, "still") {
                let more = [(4096, 8192), (100 * 4096, 300 * 4096)];
                assert!(still == more[..1] || still == more, "{place}: {still:?}");
            }
        },
    );
}

#[test]
fn amending() {
    let below = vec![0x55; usize::try_from(SIZE / 2).unwrap()];
    for below in [None, Some(&below[..])] {
        let (base, disk) = scribbled(OPTIONS, 8, below);
        let base = with_snapshot(base, "s");
        for change in
            [&[("refcount_bits", "64")][..], &[("refcount_bits", "4")], &[("compat", "0.10")]]
        {
            let given: Vec<(String, String)> =
                change.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
            let wishes = CreateOptions::parse(Qcow2Driver.amend_options(), &given).unwrap();
            crash_everywhere(
                &base,
                below,
                |_, node| {
                    let secret = |_: &str| Err(Error::errno(libc::ENOKEY));
                    let request = Amendment { options: &wishes, force: false, secret: &secret };
                    node.image().amend(&request, &Lines::default()).unwrap();
                },
                |bytes, _, place| {
                    assert!(content(bytes, below, None) == disk, "{place}");
                    assert!(content(bytes, below, Some("s")) == disk, "{place}");
                },
            );
        }
    }
}

/// A crash while repairing leaves no more damage than there was, and a second repair ends it.
#[test]
fn repairing() {
    let (good, disk) = scribbled(OPTIONS, 9, None);
    let mut dice = Dice(10);
    for round in 0..12 {
        let mut bad = good.clone();
        let header = super::header::Header::read(&*memory(&good)).unwrap();
        let table = usize::try_from(header.reftable_offset).unwrap();
        let word = u64::from_be_bytes(good[table..table + 8].try_into().unwrap());
        let block = usize::try_from(word).unwrap();
        for _ in 0..=round % 4 {
            let at = block + usize::try_from(dice.roll(400)).unwrap();
            bad[at] = u8::try_from(dice.roll(3)).unwrap();
        }
        if round % 5 == 4 {
            bad[table + 7] |= 8;
        }
        let storage = Arc::new(CrashStorage::new("image", bad.clone()));
        check(Arc::clone(&storage) as Arc<dyn Storage>, Repair::All);
        let history = storage.history(bad);
        let n = history.events.len();
        for at in (0..=n).rev().step_by((n / 40).max(1)) {
            for power in [false, true] {
                let bytes = if power {
                    history.power_loss(at, || dice.roll(2) == 0)
                } else {
                    history.prefix(at)
                };
                let place = format!("round {round}, after {at} of {n}");
                assert!(content(&bytes, None, None) == disk, "{place}");
                let again = Arc::new(MemoryStorage::new("image", bytes));
                check(Arc::clone(&again) as Arc<dyn Storage>, Repair::All);
                let bytes = again.to_vec();
                let (report, lines) = check(memory(&bytes), Repair::Nothing);
                assert_eq!((report.corruptions, report.leaks), (0, 0), "{place}: {lines:?}");
                assert!(content(&bytes, None, None) == disk, "{place}");
            }
        }
    }
}
