//! Conversion as a whole: the same bytes from any number of threads, nothing half done under the final
//! name, and content kept through every writable format.

#![allow(clippy::unwrap_used, clippy::type_complexity)]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use imgcore::ErrorKind;
use imgcore::format::{Level, Unwatched, Watcher};
use imgcore::graph::open::Policy;
use imgcore::ops::compare::{CompareOptions, CompareOutcome, Strictness, compare};
use imgcore::ops::convert::{Compress, ConvertOptions, Target, convert};
use imgcore::ops::{ImageArg, Job};
use imgcore::opts::secret::Secrets;

fn arg(path: &Path, driver: &str) -> ImageArg {
    let mut arg = ImageArg::file(path.to_string_lossy());
    arg.request.driver = Some(driver.into());
    arg
}

fn with_job<T>(watcher: &dyn Watcher, f: impl FnOnce(&Job<'_>) -> T) -> T {
    f(&Job { policy: &Policy::folder(), watcher, secrets: &Secrets::default() })
}

/// Data, holes, stored zeroes, and a tail that fills no cluster.
fn sample(dir: &Path) -> PathBuf {
    use std::os::unix::fs::FileExt;
    let path = dir.join("source.raw");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len((24 << 20) + 1536).unwrap();
    let mut seed = 7u64;
    let mut at = 0u64;
    while at < 24 << 20 {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let len = [512, 4096, 20_480, 65_536, 700_416][usize::try_from(seed >> 40).unwrap() % 5];
        let byte = (seed >> 20).to_le_bytes()[0];
        match (seed >> 33) % 4 {
            0 => file.write_all_at(&vec![byte; len], at).unwrap(),
            1 => file.write_all_at(&vec![0; len], at).unwrap(),
            2 => {
                let noise: Vec<u8> = (0..len as u64)
                    .map(|i| (i.wrapping_mul(seed | 1) >> 17).to_le_bytes()[0])
                    .collect();
                file.write_all_at(&noise, at).unwrap();
            }
            _ => {}
        }
        at += len as u64;
    }
    file.write_all_at(b"the very end", (24 << 20) + 1500).unwrap();
    path
}

fn options(source: &Path, target: &Path, driver: &str, given: &[(&str, &str)]) -> ConvertOptions {
    let given = given.iter().map(|(a, b)| ((*a).into(), (*b).into())).collect();
    let target = Target::New {
        filename: target.to_string_lossy().into_owned(),
        driver: driver.into(),
        options: given,
    };
    ConvertOptions::new(vec![arg(source, "raw")], target)
}

/// Drivers, options, and whether to compress.
const TARGETS: &[(&str, &[(&str, &str)], bool)] = &[
    ("raw", &[], false),
    ("qcow2", &[], false),
    ("qcow2", &[("cluster_size", "512")], false),
    ("qcow2", &[("cluster_size", "2M")], false),
    ("qcow2", &[("compat", "0.10")], false),
    ("qcow2", &[("extended_l2", "on")], false),
    ("qcow2", &[("preallocation", "metadata")], false),
    ("qcow2", &[], true),
    ("qcow2", &[("compression_type", "zstd")], true),
    ("vmdk", &[], false),
    ("vmdk", &[("subformat", "monolithicFlat")], false),
    ("vmdk", &[("subformat", "twoGbMaxExtentSparse")], false),
    ("vmdk", &[("subformat", "streamOptimized")], false),
];

#[test]
fn every_target_keeps_the_content_and_threads_do_not_show() {
    let dir = tempfile::tempdir().unwrap();
    let source = sample(dir.path());
    for (number, (driver, given, compress)) in TARGETS.iter().enumerate() {
        if imgcore::format::driver(driver).is_none() {
            continue;
        }
        let mut first: Option<Vec<u8>> = None;
        for threads in [1, 2, 7] {
            let folder = dir.path().join(format!("{number}-{threads}"));
            std::fs::create_dir(&folder).unwrap();
            let target = folder.join("target");
            let mut wish = options(&source, &target, driver, given);
            wish.threads = threads;
            if *compress {
                wish.compress = Compress::Yes(Level::Default);
            }
            with_job(&Unwatched, |job| convert(&wish, job)).unwrap();
            let same = CompareOptions {
                first: arg(&source, "raw"),
                second: arg(&target, driver),
                strictness: Strictness::Content,
            };
            let report = with_job(&Unwatched, |job| compare(&same, job)).unwrap();
            assert_eq!(report.outcome, CompareOutcome::Identical, "{driver} {given:?}");
            let bytes = std::fs::read(&target).unwrap();
            // VMDK's content id is random.
            if *driver != "vmdk" {
                let same = first.get_or_insert_with(|| bytes.clone()) == &bytes;
                assert!(same, "{driver} {given:?}: {threads} threads made other bytes");
            }
        }
    }
}

/// Cancels after some progress.
struct Impatient(AtomicBool);

impl Watcher for Impatient {
    fn progress(&self, done: u64, total: u64) {
        if done > total / 3 {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    fn cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

#[test]
fn a_cancelled_job_leaves_what_was_there() {
    let dir = tempfile::tempdir().unwrap();
    let source = sample(dir.path());
    let target = dir.path().join("target");
    for old in [None, Some(&b"precious"[..])] {
        if let Some(bytes) = old {
            std::fs::write(&target, bytes).unwrap();
        }
        for driver in ["raw", "qcow2"] {
            let wish = options(&source, &target, driver, &[]);
            let watcher = Impatient(AtomicBool::new(false));
            let error = with_job(&watcher, |job| convert(&wish, job)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Cancelled);
            assert_eq!(std::fs::read(&target).ok().as_deref(), old);
            assert!(!dir.path().join("target.part").exists());
        }
    }
}

#[test]
fn several_sources_follow_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let source = sample(dir.path());
    let target = dir.path().join("target");
    let mut wish = options(&source, &target, "raw", &[]);
    wish.sources.push(arg(&source, "raw"));
    with_job(&Unwatched, |job| convert(&wish, job)).unwrap();
    let one = std::fs::read(&source).unwrap();
    assert_eq!(std::fs::read(&target).unwrap(), [&one[..], &one[..]].concat());
}

#[test]
fn the_source_is_not_its_own_target() {
    let dir = tempfile::tempdir().unwrap();
    let source = sample(dir.path());
    let before = std::fs::read(&source).unwrap();
    let wish = options(&source, &source, "raw", &[]);
    let error = with_job(&Unwatched, |job| convert(&wish, job)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked);
    assert!(error.report().contains("Failed to get \"write\" lock"), "{}", error.report());
    assert_eq!(std::fs::read(&source).unwrap(), before);
}

#[test]
fn an_existing_target_is_overwritten_in_place() {
    let dir = tempfile::tempdir().unwrap();
    let source = sample(dir.path());
    let target = dir.path().join("target");
    std::fs::write(&target, vec![0xaa; 30 << 20]).unwrap();
    let mut wish = options(&source, &target, "raw", &[]);
    wish.target = Target::Existing { request: arg(&target, "raw").request, is_zero: false };
    with_job(&Unwatched, |job| convert(&wish, job)).unwrap();
    let (from, to) = (std::fs::read(&source).unwrap(), std::fs::read(&target).unwrap());
    assert_eq!(to.len(), 30 << 20);
    assert!(to[..from.len()] == from[..]);
    std::fs::write(&target, b"short").unwrap();
    let error = with_job(&Unwatched, |job| convert(&wish, job)).unwrap_err();
    assert_eq!(error.report(), "output file is smaller than input file");
}
