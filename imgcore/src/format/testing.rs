//! What the tests of several formats share: a folder, images in memory, random operations against a
//! vector of bytes, crashes at every write, damaged bytes, and the installed qemu-img as a second opinion.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use super::{
    Access, CheckReport, CreateContext, CreateOptions, Driver, Image, NewFiles, NoGate,
    OpenContext, OpenGate, Repair, Unwatched, Watcher, ZeroSpace,
};
use crate::Result;
use crate::crypto::SecretBytes;
use crate::graph::Node;
use crate::graph::open::{OpenOptions, OpenRequest, Purpose, open};
use crate::num::{len_u64, small};
use crate::storage::crash::CrashStorage;
use crate::storage::{MemoryStorage, Preallocation, Storage};

/// A small generator; the tests must give the same on every run.
pub(super) struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, n: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// Bytes that differ everywhere.
pub(super) fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut dice = Dice(seed);
    let mut out = Vec::with_capacity(len);
    while out.len() < len {
        let byte = u8::try_from(1 + dice.roll(255)).unwrap();
        let run = small(1 + dice.roll(40)).min(len - out.len());
        out.extend(std::iter::repeat_n(byte, run));
    }
    out
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

/// A gate that opens nothing and always has [`PASSPHRASE`].
pub(super) struct WithKey;

/// Of every encrypted image of the tests.
pub(super) const PASSPHRASE: &str = "correct horse";

impl OpenGate for WithKey {
    fn open_storage(&self, reference: &str, access: Access) -> Result<Arc<dyn Storage>> {
        NoGate.open_storage(reference, access)
    }

    fn passphrase(&self, _: Option<&str>) -> Result<Option<SecretBytes>> {
        Ok(Some(SecretBytes::new(PASSPHRASE.into())))
    }
}

/// A new image in memory.
pub(super) fn create(driver: &dyn Driver, size: u64, options: &[(&str, &str)]) -> Result<Vec<u8>> {
    let file = Arc::new(MemoryStorage::new("image", Vec::new()));
    let given: Vec<_> = options.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    let mut options = CreateOptions::parse(driver.create_options(), &given)?;
    driver.resolve_options(&mut options, size)?;
    driver.create(&CreateContext {
        files: &OneFile(Arc::clone(&file)),
        file_name: "image",
        size,
        options: &options,
        backing: None,
        backing_image: None,
    })?;
    Ok(file.to_vec())
}

/// A storage of these bytes.
pub(super) fn memory(bytes: &[u8]) -> Arc<MemoryStorage> {
    Arc::new(MemoryStorage::new("image", bytes.to_vec()))
}

/// Opens an image that needs no other file.
pub(super) fn open_storage(
    driver: &dyn Driver,
    storage: Arc<dyn Storage>,
    access: Access,
    for_check: bool,
) -> Result<Box<dyn Image>> {
    driver.open(OpenContext {
        storage,
        access,
        gate: &WithKey,
        snapshot: None,
        data_file: None,
        scratch: false,
        header_only: false,
        for_check,
        options: &[],
    })
}

/// The same as a node.
pub(super) fn node(driver: &dyn Driver, storage: Arc<dyn Storage>, access: Access) -> Node {
    Node::new("image", open_storage(driver, storage, access, false).unwrap(), None, access)
}

/// The error of opening these bytes.
pub(super) fn refused(driver: &dyn Driver, bytes: &[u8]) -> crate::Error {
    open_storage(driver, memory(bytes), Access::Read, false).map(drop).unwrap_err()
}

/// All guest bytes.
pub(super) fn content(node: &Node) -> Vec<u8> {
    let mut all = vec![0; small(node.virtual_size())];
    node.read(0, &mut all).unwrap();
    all
}

fn content_of(driver: &dyn Driver, bytes: &[u8]) -> Vec<u8> {
    content(&node(driver, memory(bytes), Access::Read))
}

#[derive(Default)]
struct Lines(Mutex<Vec<String>>);

impl Watcher for Lines {
    fn note(&self, line: &str) {
        self.0.lock().unwrap().push(line.to_owned());
    }
}

/// Checks; the report and its lines.
pub(super) fn check(
    driver: &dyn Driver,
    storage: Arc<dyn Storage>,
    repair: Repair,
) -> (CheckReport, Vec<String>) {
    let access = if repair == Repair::Nothing { Access::Read } else { Access::Write };
    let image = open_storage(driver, storage, access, true).unwrap();
    let lines = Lines::default();
    let report = image.check(repair, &lines).unwrap().unwrap();
    if repair != Repair::Nothing {
        image.close().unwrap();
    }
    (report, lines.0.into_inner().unwrap())
}

/// One random write or zeroing.
pub(super) fn scribble(node: &Node, disk: &mut [u8], dice: &mut Dice, longest: u64) {
    let size = len_u64(disk.len());
    let at = dice.roll(size);
    let len = (1 + dice.roll(longest)).min(size - at);
    let range = small(at)..small(at + len);
    match dice.roll(6) {
        0 => {
            node.write_zeroes(at, len, ZeroSpace::Unmap).unwrap();
            disk[range].fill(0);
        }
        1 => {
            node.write_zeroes(at, len, ZeroSpace::Keep).unwrap();
            disk[range].fill(0);
        }
        _ => {
            let bytes = pattern(small(len), dice.roll(1 << 30));
            node.write(at, &bytes).unwrap();
            disk[range].copy_from_slice(&bytes);
        }
    }
}

/// Random operations (writing, zeroing, resizing where the format can, flushing, reopening) against a
/// vector of bytes. The image as it is in the end comes back, and its disk.
pub(super) fn model(
    driver: &dyn Driver,
    base: &[u8],
    seed: u64,
    (operations, longest): (u32, u64),
    sizes: &[u64],
) -> (Vec<u8>, Vec<u8>) {
    let storage = memory(base);
    let open = || node(driver, Arc::clone(&storage) as Arc<dyn Storage>, Access::Write);
    let mut at = open();
    let mut disk = content(&at);
    let mut dice = Dice(seed);
    for round in 0..operations {
        match dice.roll(10) {
            0 => at.flush().unwrap(),
            1 => {
                at.close().unwrap();
                at = open();
            }
            2 if !sizes.is_empty() => {
                let size = sizes[small(dice.roll(len_u64(sizes.len())))];
                at.resize(size, Preallocation::Off).unwrap();
                disk.resize(small(at.virtual_size()), 0);
            }
            _ => scribble(&at, &mut disk, &mut dice, longest),
        }
        assert!(content(&at) == disk, "seed {seed}, after operation {round}");
    }
    at.close().unwrap();
    drop(at);
    let bytes = storage.to_vec();
    assert!(content_of(driver, &bytes) == disk, "seed {seed}, in the end");
    let (report, lines) = check(driver, memory(&bytes), Repair::Nothing);
    assert_eq!((report.corruptions, report.check_errors), (0, 0), "seed {seed}: {lines:?}");
    (bytes, disk)
}

/// An image after a crash: nothing is damaged, leaks go without changing the content, and the next
/// writer can go on.
fn assert_sound(driver: &dyn Driver, bytes: &[u8], place: &str) {
    // Parallels counts it as damage that an image was not closed.
    let unclosed = |lines: &[String]| {
        len_u64(lines.iter().filter(|l| l.ends_with("not closed correctly")).count())
    };
    let (report, lines) = check(driver, memory(bytes), Repair::Nothing);
    let damage = report.corruptions - unclosed(&lines);
    assert_eq!((damage, report.check_errors), (0, 0), "{place}: {lines:?}");
    let before = content_of(driver, bytes);
    let storage = memory(bytes);
    check(driver, Arc::clone(&storage) as Arc<dyn Storage>, Repair::Leaks);
    let repaired = storage.to_vec();
    let (report, lines) = check(driver, memory(&repaired), Repair::Nothing);
    let damage = report.corruptions - unclosed(&lines);
    assert_eq!((damage, report.leaks), (0, 0), "{place}, repaired: {lines:?}");
    assert!(content_of(driver, &repaired) == before, "{place}: repair changed content");
    let storage = memory(bytes);
    let writer = node(driver, Arc::clone(&storage) as Arc<dyn Storage>, Access::Write);
    let mut disk = before;
    let mut dice = Dice(len_u64(place.len()));
    for _ in 0..3 {
        scribble(&writer, &mut disk, &mut dice, 200_000);
    }
    writer.close().unwrap();
    drop(writer);
    assert!(content_of(driver, &storage.to_vec()) == disk, "{place}: the next writer");
}

/// Crashes `work` at many points, by death and by power loss: the image stays sound, and
/// `judge(disk, points passed, place)` looks at its content.
pub(super) fn crash(
    driver: &dyn Driver,
    base: &[u8],
    points: usize,
    work: impl FnOnce(&CrashStorage, &Node),
    judge: impl Fn(&[u8], &dyn Fn(u32) -> bool, &str),
) {
    let storage = Arc::new(CrashStorage::new("image", base.to_vec()));
    let target = node(driver, Arc::clone(&storage) as Arc<dyn Storage>, Access::Write);
    work(&storage, &target);
    target.close().unwrap();
    drop(target);
    let history = storage.history(base.to_vec());
    let n = history.events.len();
    let mut dice = Dice(42);
    for at in (0..=n).rev().step_by((n / points).max(1)) {
        let passed = |point| history.passed(point, at);
        let place = format!("after {at} of {n} events");
        let look = |bytes: &[u8], place: &str| {
            assert_sound(driver, bytes, place);
            judge(&content_of(driver, bytes), &passed, place);
        };
        look(&history.prefix(at), &place);
        for eighths in [4, 7, 1] {
            let bytes = history.power_loss(at, || dice.roll(8) < eighths);
            look(&bytes, &format!("{place}, power loss, {eighths}/8 kept"));
        }
    }
}

/// Random writes with flushes between them, crashed everywhere: each byte is what it was at the last
/// flush, or something that was written later.
pub(super) fn crash_writes(driver: &dyn Driver, base: &[u8], points: usize, longest: u64) {
    let first = content_of(driver, base);
    let states = Mutex::new(vec![first.clone()]);
    crash(
        driver,
        base,
        points,
        |storage, node| {
            let (mut disk, mut dice) = (first, Dice(5));
            for round in 0..2 {
                for _ in 0..6 {
                    scribble(node, &mut disk, &mut dice, longest);
                    states.lock().unwrap().push(disk.clone());
                }
                node.flush().unwrap();
                storage.mark(round);
            }
        },
        |disk, passed, place| {
            let states = states.lock().unwrap();
            let first = if passed(1) {
                12
            } else if passed(0) {
                6
            } else {
                0
            };
            for (at, part) in (0..).step_by(4096).zip(disk.chunks(4096)) {
                if states[first..].iter().any(|s| s[at..at + part.len()] == *part) {
                    continue;
                }
                for (i, &byte) in (at..).zip(part) {
                    let allowed = states[first..].iter().any(|s| s[i] == byte);
                    assert!(allowed, "{place}: byte {i:#x} is {byte:#x}");
                }
            }
        },
    );
}

/// Resizes, crashed everywhere: the common part stays, what is new is zero.
pub(super) fn crash_resize(driver: &dyn Driver, base: &[u8], points: usize, size: u64) {
    let disk = content_of(driver, base);
    crash(
        driver,
        base,
        points,
        |_, node| node.resize(size, Preallocation::Off).unwrap(),
        |seen, _, place| {
            let keep = disk.len().min(seen.len()).min(small(size));
            assert!(seen[..keep] == disk[..keep], "{place}");
            assert!(seen.iter().skip(disk.len()).all(|&b| b == 0), "{place}: new part");
        },
    );
}

/// Single damaged bytes at `places`: an answer, quickly, and no panic, from everything that reads or
/// writes.
pub(super) fn damaged(driver: &dyn Driver, good: &[u8], places: impl Iterator<Item = usize>) {
    for at in places {
        for value in [0xff, [0, 1, 0x7f, 0x80][at % 4]] {
            let mut bad = good.to_vec();
            bad[at] = value;
            challenge(driver, &bad);
        }
    }
    for len in [0, 1, 63, 64, 68, 511, 512, 513, 600, 1023, 1024, 4096, 65536, 200_000, 1 << 20] {
        challenge(driver, &good[..good.len().min(len)]);
    }
}

/// Everything that can be done with an image, whatever comes of it.
pub(super) fn challenge(driver: &dyn Driver, bytes: &[u8]) {
    for access in [Access::Read, Access::Write] {
        let Ok(image) = open_storage(driver, memory(bytes), access, false) else { continue };
        let node = Node::new("x", image, None, access);
        let end = node.virtual_size();
        let mut buf = vec![0; 50_000];
        for at in [0, end / 2, end.saturating_sub(50_000)] {
            let part = small((end - at).min(50_000));
            let _ = node.read(at, &mut buf[..part]);
            let _ = node.status(at, (end - at).max(1), None);
        }
        let _ = node.image().info();
        if access == Access::Write && end <= 64 << 20 {
            let at = (end / 2).min(end.saturating_sub(10));
            let _ = node.write(at, &b"0123456789"[..small((end - at).min(10))]);
            let _ = node.write_zeroes(at, (end - at).min(1 << 20), ZeroSpace::Unmap);
            let _ = node.flush();
            let _ = node.resize(end / 2, Preallocation::Off);
            let _ = node.close();
        }
    }
    for repair in [Repair::Nothing, Repair::Leaks, Repair::All] {
        let access = if repair == Repair::Nothing { Access::Read } else { Access::Write };
        if let Ok(image) = open_storage(driver, memory(bytes), access, true) {
            if image.virtual_size() <= 1 << 34 {
                let _ = image.check(repair, &Unwatched);
            }
            let _ = image.close();
        }
    }
}

/// A folder of files.
pub(super) struct Dir(tempfile::TempDir);

impl Dir {
    pub fn new() -> Self {
        Dir(tempfile::tempdir().unwrap())
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn put(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.file(name), bytes).unwrap();
    }

    pub fn get(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.file(name)).unwrap()
    }

    /// Opens a chain as the programs do.
    pub fn open(&self, name: &str, driver: &str, access: Access) -> Result<Arc<Node>> {
        self.open_for(name, driver, access, Purpose::default())
    }

    pub fn open_for(
        &self,
        name: &str,
        driver: &str,
        access: Access,
        purpose: Purpose,
    ) -> Result<Arc<Node>> {
        let request =
            OpenRequest::file(self.file(name).to_str().unwrap()).with_driver(Some(driver));
        open(&request, &OpenOptions { access, purpose, ..OpenOptions::default() })
    }

    /// Unpacks a file of the corpus; `None` (told) where there is none.
    pub fn unpack(&self, path: &str, name: &str) -> Option<()> {
        let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let corpus = here
            .ancestors()
            .flat_map(|a| [a.join("shared/corpus"), a.join("../shared/corpus")])
            .find(|p| p.join("MANIFEST.tsv").is_file());
        let Some(corpus) = corpus else {
            eprintln!("SKIPPED {path}: no shared/corpus above {}", here.display());
            return None;
        };
        let path = corpus.join(path);
        let bytes = if path.extension().is_some_and(|e| e == "xz") {
            Command::new("xz").arg("-dc").arg(&path).output().unwrap().stdout
        } else {
            std::fs::read(&path).unwrap()
        };
        self.put(name, &bytes);
        Some(())
    }

    /// Runs a tool here; `None` (told) where it is not installed.
    pub fn tool(&self, name: &str, args: &[&str]) -> Option<Output> {
        match Command::new(name).args(args).current_dir(self.0.path()).output() {
            Ok(out) => Some(out),
            Err(_) => {
                eprintln!("SKIPPED {name} {args:?}: it is not installed");
                None
            }
        }
    }

    /// Runs a tool that must succeed; what it printed.
    pub fn must(&self, name: &str, args: &[&str]) -> Option<String> {
        let out = self.tool(name, args)?;
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let err = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{name} {args:?}: {text}{err}");
        Some(text)
    }

    /// QEMU sees these guest bytes in `image`, and its check (where it has one) finds nothing.
    pub fn qemu_agrees(&self, driver: &str, image: &[u8], disk: &[u8]) {
        self.put("image", image);
        self.put("disk", disk);
        self.must("qemu-img", &["compare", "-f", driver, "-F", "raw", "image", "disk"]);
        if driver != "vpc" {
            self.must("qemu-img", &["check", "-f", driver, "image"]);
        }
    }
}
