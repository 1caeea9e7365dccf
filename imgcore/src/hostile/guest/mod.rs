//! Disks that somebody made to hurt: a good volume or disk, bytes of it changed at the fuzzer's choice (the
//! checksums that guard them made right again, if it likes), then all that is done with a guest's disk. Only
//! for tests and the fuzz targets.
//!
//! What must hold, whatever the bytes are:
//!
//! * no panic, and nothing is written;
//! * bounded memory (the fuzzer's limits see to it) and time: reads of the storage are counted, and bounded
//!   by the length of the disk and the budget;
//! * free ranges lie inside the disk, in order;
//! * where every number that leads to the free ranges is guarded by a checksum, and none was made right again,
//!   no free range holds bytes of a file of the unchanged volume: damage is noticed or does not matter;
//! * of a volume that nobody changed all files are read, and what is free is told.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod guard;
mod sample;
mod storage;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::Arc;

pub use sample::{Family, Sample, samples};
use storage::Changed;

use super::{Input, image_node};
use crate::format::{Access, OpenContext, Unwatched};
use crate::graph::Node;
use crate::graph::open::Policy;
use crate::guest::files::{Budget, FileId, FileKind, FileSystem, Tree};
use crate::guest::parts::{Layout, SectorSize};
use crate::guest::system::Volumes;
use crate::guest::{DiskRange, GuestDisk};
use crate::num::{len_u64, small};
use crate::ops::{Job, inspect, sparsify};
use crate::opts::secret::Secrets;
use crate::storage::Storage;

/// What one reading of a sample may cost: small, so that a loop ends soon.
const BUDGET: u64 = 24 << 20;
/// Files that are read.
const FILES: usize = 300;
/// Bytes of a file that are read.
const LOOK: u64 = 256 << 10;

/// Drives everything over one of the samples with the changes that `input` asks for.
///
/// # Panics
///
/// If anything that must hold does not.
pub fn drive(samples: &[Arc<Sample>], input: &[u8]) {
    let mut input = Input(input);
    let Some(sample) = samples.get(small(input.take(1)) % samples.len().max(1)) else { return };
    let flags = input.take(1);
    let mut disk = Changed::new(Arc::clone(sample));
    let mut fields_changed = false;
    for _ in 0..flags >> 3 {
        fields_changed |= change(&mut disk, sample, &mut input);
    }
    let sealed = flags & 1 != 0;
    if sealed {
        sample.guards.iter().for_each(|guard| guard.seal(&mut disk));
    }
    if flags & 6 == 6 {
        disk.truncate(sample.len * input.take(1) / 256);
    }
    let state = match (disk.is_as_made(), sealed || fields_changed) {
        (true, _) => State::Untouched,
        (false, false) if sample.guarded.is_some() => State::Guarded,
        (false, _) => State::Anything,
    };
    look(sample, &Arc::new(disk), state);
}

/// What is known about the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nobody changed them.
    Untouched,
    /// Changed, but no checksum was.
    Guarded,
    Anything,
}

/// One change: bytes, or a small difference, near bytes that are not zero, because that is where the structures
/// are. Tells whether it hit a checksum.
fn change(disk: &mut Changed, sample: &Sample, input: &mut Input<'_>) -> bool {
    let (line, how) = (small(input.take(2)), input.take(1));
    let Some(&start) = sample.lines.get(line % sample.lines.len().max(1)) else { return false };
    let at = start + how % sample::LINE;
    let bytes: Vec<u8> = match how / sample::LINE {
        0 | 1 => vec![0; 1],
        2 => vec![0; 2],
        3 => vec![0; 4],
        4 => vec![0; 8],
        // Copies what stands at another place: a pointer, a name, a whole record.
        5 => {
            let (other, len) = (small(input.take(2)), small(input.take(1)));
            let other = sample.lines[other % sample.lines.len()];
            let bytes = disk.get(other, len * 4);
            disk.put(start, &bytes);
            return hits(sample, start, bytes.len());
        }
        _ => {
            let by = u8::try_from(input.take(1)).unwrap();
            disk.put(at, &[disk.get(at, 1)[0].wrapping_add(by)]);
            return hits(sample, at, 1);
        }
    };
    let bytes: Vec<u8> = bytes.iter().map(|_| u8::try_from(input.take(1)).unwrap()).collect();
    disk.put(at, &bytes);
    hits(sample, at, bytes.len())
}

fn hits(sample: &Sample, at: u64, len: usize) -> bool {
    (at..at + len_u64(len)).any(|at| sample.guards.iter().any(|guard| guard.is_field(at)))
}

/// Does everything that is done with a guest's disk.
fn look(sample: &Sample, storage: &Arc<Changed>, state: State) {
    let node = open(storage);
    free_space(sample, storage, &node, state);
    files(sample, storage, &node, state);
    storage.start_over();
    let report = inspect::inspect_node(Arc::clone(&node), &Budget::new(BUDGET));
    within(storage, "an inspection");
    if let Ok(report) = report {
        // What people and programs are shown.
        serde_json::to_string(&report).unwrap();
    }
}

fn open(storage: &Arc<Changed>) -> Arc<Node> {
    struct NoGate;
    impl crate::format::OpenGate for NoGate {
        fn open_storage(&self, reference: &str, _: Access) -> crate::Result<Arc<dyn Storage>> {
            panic!("'{reference}' was opened");
        }
    }
    let image = crate::format::driver("raw").unwrap().open(OpenContext {
        storage: Arc::clone(storage) as Arc<dyn Storage>,
        access: Access::Read,
        gate: &NoGate,
        snapshot: None,
        data_file: None,
        scratch: false,
        header_only: false,
        for_check: false,
        options: &[],
    });
    Arc::new(image_node(image.unwrap(), Access::Read))
}

/// The free ranges as `rimg sparsify` finds them.
fn free_space(sample: &Sample, storage: &Arc<Changed>, node: &Arc<Node>, state: State) {
    let mut free: Vec<DiskRange> = Vec::new();
    let policy = Policy::folder();
    let secrets = Secrets::default();
    let job = Job { policy: &policy, watcher: &Unwatched, secrets: &secrets };
    storage.start_over();
    let report = sparsify::survey_node(node, &job, &mut |range| free.push(range));
    let (reads, bytes) = storage.counted();
    let len = sample.len;
    assert!(
        bytes <= 24 * len + (40 << 20) && reads <= len / 16 + 10_000,
        "free space of {len} bytes found by {reads} reads of {bytes} bytes"
    );
    for range in &free {
        let end = range.start.checked_add(range.len);
        assert!(range.len > 0 && end.is_some_and(|e| e <= node.virtual_size()), "{range:?}");
    }
    let Ok(report) = report else {
        assert!(state != State::Untouched, "{}: {:?}", sample.name, report.err());
        return;
    };
    let same_kind = || {
        let guarded = |c: &String| Some(c.as_str()) == sample.guarded;
        report.volumes.iter().all(|v| v.content.as_ref().is_none_or(guarded))
    };
    if state == State::Untouched || (state == State::Guarded && same_kind()) {
        free.sort_unstable();
        for &sector in &sample.kept {
            let index = free.partition_point(|r| r.end() <= sector);
            let hit = free.get(index).filter(|r| r.start < sector + 512);
            assert!(hit.is_none(), "{}: a file's bytes at {sector} are free", sample.name);
        }
    }
    if state == State::Untouched {
        let told = |sector: u64| free.iter().any(|r| (r.start..r.end()).contains(&sector));
        assert_eq!(
            sample.gone.iter().filter(|s| told(**s)).count() > 0,
            !sample.gone.is_empty() && !report.volumes.iter().all(|v| v.skipped.is_some()),
            "{}: {report:?}",
            sample.name
        );
    }
}

/// All file systems, folder by folder.
fn files(sample: &Sample, storage: &Arc<Changed>, node: &Arc<Node>, state: State) {
    let disk = GuestDisk::new(Arc::clone(node));
    storage.start_over();
    let Ok(layout) = Layout::read(&disk, SectorSize::Detect) else { return };
    let budget = Budget::new(BUDGET);
    let volumes = Volumes::open(&layout, &disk, &budget);
    let mut kept = HashSet::new();
    for fs in volumes.all.iter().filter_map(|v| v.fs.as_deref()) {
        walk(fs, &mut kept);
        let tree = Tree::new(fs);
        for path in ["/short-link", "/long-link", "/folder/../tiny", "/etc/os-release", "/no/such"]
        {
            let _ = tree.read(path, small(LOOK));
        }
    }
    within(storage, "reading all files");
    if state == State::Untouched {
        for opened in &volumes.all {
            assert!(opened.error.is_none(), "{}: {:?}", sample.name, opened.error);
        }
        // exFAT's files are not read.
        let found = sample.name == "exfat" || kept.len() >= sample.kept.len();
        assert!(found, "{}: {} of {} sectors", sample.name, kept.len(), sample.kept.len());
    }
}

/// What was read is no more than the budget allows.
fn within(storage: &Changed, what: &str) {
    let (reads, bytes) = storage.counted();
    let len = storage.len().unwrap_or(0);
    let bound = BUDGET + len + (8 << 20);
    assert!(bytes <= bound && reads <= bound / 256, "{what}: {reads} reads of {bytes} bytes");
}

/// Lists folders and reads files; gathers the sectors of files that the makers of the sample stamped.
fn walk(fs: &dyn FileSystem, kept: &mut HashSet<Vec<u8>>) {
    let _ = fs.subvolume("@/a");
    let mut todo: Vec<FileId> = vec![fs.root()];
    todo.extend(fs.subvolume("@").ok().flatten());
    let mut seen: HashSet<FileId> = todo.iter().copied().collect();
    for _ in 0..FILES {
        let Some(id) = todo.pop() else { break };
        let Ok(stat) = fs.stat(id) else { continue };
        match stat.kind {
            FileKind::Folder => {
                let Ok(entries) = fs.list(id, FILES) else { continue };
                assert!(entries.len() <= FILES, "{} names", entries.len());
                if let Some(entry) = entries.last() {
                    let _ = fs.lookup(id, &entry.name);
                }
                todo.extend(entries.iter().map(|e| e.id).filter(|id| seen.insert(*id)));
            }
            FileKind::Link => {
                let _ = fs.link(id);
            }
            FileKind::File => {
                let mut bytes = vec![0; small(stat.size.min(LOOK))];
                if let Ok(n) = fs.read(id, 0, &mut bytes) {
                    assert!(n <= bytes.len(), "{n} bytes of {}", bytes.len());
                    let stamped = bytes[..n].chunks_exact(512).filter(|s| s.starts_with(b"KEPT"));
                    kept.extend(stamped.map(<[u8]>::to_vec));
                }
                let _ = fs.read(id, stat.size.saturating_sub(3), &mut [0; 8]);
            }
            FileKind::Other => {
                let _ = fs.read(id, 0, &mut [0; 8]);
            }
        }
    }
}
