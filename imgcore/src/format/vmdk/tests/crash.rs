//! A storage that can stop after any write.
//!
//! Everything that reaches the image file is recorded. Then the file is rebuilt as a crash might have
//! left it: everything before a flush, and of the writes after it any beginning or any random part.
//! Each such file must open, and each of its grains must hold what it held at some time since that flush.
//! What it leaked can be given back without a change of content, and a crash while that is done is as
//! harmless.

use std::sync::{Arc, Mutex};

use std::sync::atomic::{AtomicU32, Ordering};

use super::super::VmdkDriver;
use super::oracle::tool;
use super::{Dir, pattern};
use crate::Result;
use crate::format::{
    Access, CheckReport, CreateContext, CreateOptions, Driver, NewFiles, NoGate, OpenContext,
    Repair, Unwatched, ZeroSpace,
};
use crate::graph::Node;
use crate::storage::{HostExtent, Limits, MemoryStorage, Preallocation, Storage, ZeroMode};

#[derive(Clone, Debug)]
enum Event {
    Write(u64, Vec<u8>),
    SetLen(u64),
    Flush,
    /// The guest's bytes from here on.
    Model(Arc<Vec<u8>>),
}

#[derive(Debug)]
struct Recorder {
    memory: MemoryStorage,
    events: Mutex<Vec<Event>>,
}

impl Recorder {
    fn push(&self, event: Event) {
        self.events.lock().unwrap().push(event);
    }
}

impl Storage for Recorder {
    fn name(&self) -> &'static str {
        "recorded"
    }
    fn len(&self) -> Result<u64> {
        self.memory.len()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.memory.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.push(Event::Write(offset, buf.to_vec()));
        self.memory.write_at(offset, buf)
    }
    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        self.push(Event::Write(offset, vec![0; usize::try_from(len).unwrap()]));
        self.memory.write_zeroes(offset, len, mode)
    }
    fn discard(&self, _offset: u64, _len: u64) -> Result<()> {
        Ok(())
    }
    fn flush(&self) -> Result<()> {
        self.push(Event::Flush);
        Ok(())
    }
    fn set_len(&self, len: u64, how: Preallocation) -> Result<()> {
        self.push(Event::SetLen(len));
        self.memory.set_len(len, how)
    }
    fn status(&self, offset: u64, len: u64) -> Result<HostExtent> {
        self.memory.status(offset, len)
    }
    fn limits(&self) -> Limits {
        self.memory.limits()
    }
    fn read_only(&self) -> bool {
        false
    }
}

struct Memory(Arc<MemoryStorage>);

impl NewFiles for Memory {
    fn main(&self) -> Result<Arc<dyn Storage>> {
        Ok(Arc::<MemoryStorage>::clone(&self.0))
    }
    fn beside(&self, _name: &str) -> Result<Arc<dyn Storage>> {
        unreachable!()
    }
    fn existing(&self, _name: &str) -> Result<Arc<dyn Storage>> {
        unreachable!()
    }
}

const SIZE: u64 = 70 << 20;
const GRAIN: usize = 65536;
/// Where the operations happen: around the border of two grain tables.
const WINDOW: std::ops::Range<usize> = 30 * 1024 * 1024..35 * 1024 * 1024;

/// How the guest's ranges become zero.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Emptying {
    /// By entries for grains of zeroes.
    ZeroGrains,
    /// Grains of zeroes are not known: by no entry, and the space is released at the end.
    Discards,
}

fn fresh(how: Emptying) -> Vec<u8> {
    let memory = Arc::new(MemoryStorage::new("new", Vec::new()));
    let zeroed = if how == Emptying::ZeroGrains { "on" } else { "off" };
    let given = [("zeroed_grain".to_owned(), zeroed.to_owned())];
    let options = CreateOptions::parse(VmdkDriver.create_options(), &given).unwrap();
    VmdkDriver
        .create(&CreateContext {
            files: &Memory(Arc::clone(&memory)),
            file_name: "x.vmdk",
            size: SIZE,
            options: &options,
            backing: None,
            backing_image: None,
        })
        .unwrap();
    let mut bytes = memory.to_vec();
    // Take the second table away, so that a new one has to be made.
    for field in [48, 56] {
        let at = usize::from(u16::from_le_bytes([bytes[field], bytes[field + 1]])) * 512;
        bytes[at + 4..at + 8].fill(0);
    }
    bytes
}

fn node(storage: Arc<dyn Storage>, access: Access) -> Result<Node> {
    let image = VmdkDriver.open(OpenContext {
        storage,
        access,
        gate: &NoGate,
        snapshot: None,
        data_file: None,
        scratch: false,
        header_only: false,
        for_check: false,
        options: &[],
    })?;
    Ok(Node::new("x", image, None, access))
}

fn apply(file: &mut Vec<u8>, event: &Event) {
    match event {
        Event::Write(at, bytes) => {
            let at = usize::try_from(*at).unwrap();
            if file.len() < at + bytes.len() {
                file.resize(at + bytes.len(), 0);
            }
            file[at..at + bytes.len()].copy_from_slice(bytes);
        }
        Event::SetLen(len) => file.resize(usize::try_from(*len).unwrap(), 0),
        Event::Flush | Event::Model(_) => {}
    }
}

/// Grains of the window must be as in one of `states` (states in which in-place writes were under way
/// are all listed).
fn verify(file: &[u8], states: &[Arc<Vec<u8>>], what: &str) -> u64 {
    let node = node(Arc::new(MemoryStorage::new("crashed", file.to_vec())), Access::Read)
        .unwrap_or_else(|e| panic!("{what}: {e:?}"));
    let mut have = vec![0; WINDOW.len()];
    node.read(WINDOW.start as u64, &mut have).unwrap_or_else(|e| panic!("{what}: {e:?}"));
    for (i, grain) in have.chunks(GRAIN).enumerate() {
        let at = i * GRAIN;
        let known = states.iter().any(|s| &s[at..at + grain.len()] == grain);
        assert!(known, "{what}: grain {i} holds what was never there");
    }
    let report = look(&node, Repair::Nothing);
    assert_eq!(report.corruptions, 0, "{what}");
    drop(node);
    let mended = repair(file, report.leaks, &have, what);
    if report.leaks > 0 {
        second_opinion(file, &mended, what);
    }
    report.leaks
}

/// The installed qemu-img takes the mended file for whole, and for the same disk. Asked about some of
/// the crashes only: starting it takes its time.
fn second_opinion(crashed: &[u8], mended: &[u8], what: &str) {
    static ASKED: AtomicU32 = AtomicU32::new(0);
    if !ASKED.fetch_add(1, Ordering::Relaxed).is_multiple_of(16) {
        return;
    }
    let dir = Dir::new();
    dir.put("crashed.vmdk", crashed);
    dir.put("mended.vmdk", mended);
    for words in [
        &["check", "-f", "vmdk", "mended.vmdk"][..],
        &["compare", "-f", "vmdk", "-F", "vmdk", "crashed.vmdk", "mended.vmdk"],
    ] {
        let Some(out) = tool("qemu-img", &dir, words) else { return };
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{what}: {words:?}: {said}");
    }
}

fn look(node: &Node, repair: Repair) -> CheckReport {
    node.image().check(repair, &Unwatched).unwrap().unwrap()
}

/// Leaks go, the content stays, and a second crash meanwhile does no harm. The file afterwards.
fn repair(file: &[u8], leaks: u64, content: &[u8], what: &str) -> Vec<u8> {
    let recorder = Arc::new(Recorder {
        memory: MemoryStorage::new("recorded", file.to_vec()),
        events: Mutex::default(),
    });
    let writer = node(Arc::<Recorder>::clone(&recorder), Access::Write).unwrap();
    let report = look(&writer, Repair::Leaks);
    assert_eq!((report.leaks, report.leaks_fixed), (0, leaks), "{what}");
    assert_eq!(look(&writer, Repair::Nothing), CheckReport::default(), "{what}");
    writer.close().unwrap();
    let events = recorder.events.lock().unwrap().clone();
    // What might bring older tables back is on disk before anything is given back.
    assert!(matches!(events[0], Event::Flush), "{what}");
    let changes: Vec<&Event> = events.iter().filter(|e| !matches!(e, Event::Flush)).collect();
    assert_eq!(changes.is_empty(), leaks == 0, "{what}");
    let mut now = vec![0; content.len()];
    for skipped in 0..changes.len() {
        let mut partly = file.to_vec();
        for (i, event) in changes.iter().enumerate() {
            if i != skipped {
                apply(&mut partly, event);
            }
        }
        let reader = node(Arc::new(MemoryStorage::new("partly", partly)), Access::Read).unwrap();
        reader.read(WINDOW.start as u64, &mut now).unwrap();
        assert!(now == content, "{what}: crash of the repair before change {skipped}");
        assert_eq!(look(&reader, Repair::Nothing).corruptions, 0, "{what}");
    }
    let after = recorder.memory.to_vec();
    let reader = node(Arc::new(MemoryStorage::new("mended", after.clone())), Access::Read).unwrap();
    reader.read(WINDOW.start as u64, &mut now).unwrap();
    assert!(now == content, "{what}: after the repair");
    assert_eq!(look(&reader, Repair::Nothing), CheckReport::default(), "{what}");
    after
}

fn random(seed: &mut u64) -> usize {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    usize::from(u16::try_from(*seed >> 20 & 0xffff).unwrap())
}

/// Operations that never write in place to what is there already in part: each grain changes from one
/// whole state to another.
fn record(start: &[u8], seed: &mut u64, how: Emptying) -> Vec<Event> {
    let recorder = Arc::new(Recorder {
        memory: MemoryStorage::new("recorded", start.to_vec()),
        events: Mutex::default(),
    });
    let node = node(Arc::<Recorder>::clone(&recorder), Access::Write).unwrap();
    if how == Emptying::Discards {
        assert_eq!(node.image().granularity().discard, None);
        node.image().begin_release();
        assert_eq!(node.image().granularity().discard, Some(GRAIN as u64));
    }
    let mut model = vec![0u8; WINDOW.len()];
    recorder.push(Event::Model(Arc::new(model.clone())));
    let mut used = vec![false; WINDOW.len() / GRAIN];
    for round in 0..30u64 {
        let first = random(seed) % used.len();
        let count = (1 + random(seed) % 4).min(used.len() - first);
        let at = first * GRAIN;
        let guest = (WINDOW.start + at) as u64;
        match random(seed) % 5 {
            0 => {
                model[at..at + count * GRAIN].fill(0);
                recorder.push(Event::Model(Arc::new(model.clone())));
                let len = (count * GRAIN) as u64;
                match how {
                    Emptying::ZeroGrains => node.write_zeroes(guest, len, ZeroSpace::Unmap),
                    Emptying::Discards => node.discard(guest, len),
                }
                .unwrap();
                used[first..first + count].fill(false);
            }
            1 => node.flush().unwrap(),
            _ if used[first..first + count].contains(&true) => {}
            _ => {
                let len = count * GRAIN - random(seed) % 5000;
                let bytes = pattern(len, round + 1);
                model[at..at + len].copy_from_slice(&bytes);
                recorder.push(Event::Model(Arc::new(model.clone())));
                node.write(guest, &bytes).unwrap();
                used[first..first + count].fill(true);
            }
        }
    }
    if how == Emptying::Discards {
        node.flush().unwrap();
        node.image().release_unused().unwrap();
        assert_eq!(look(&node, Repair::Nothing), CheckReport::default());
        let mut now = vec![0; WINDOW.len()];
        node.read(WINDOW.start as u64, &mut now).unwrap();
        assert!(now == model, "what is released was not used");
    }
    node.close().unwrap();
    recorder.events.lock().unwrap().clone()
}

#[test]
fn any_crash_leaves_whole_grains() {
    crash_everywhere(Emptying::ZeroGrains);
}

#[test]
fn any_crash_while_space_is_released_leaves_whole_grains() {
    crash_everywhere(Emptying::Discards);
}

fn crash_everywhere(how: Emptying) {
    let start = fresh(how);
    let mut seed = 0x1234_5678_9abc_def1;
    let mut leaks = 0;
    for round in 0..3 {
        let events = record(&start, &mut seed, how);
        let mut durable = start.clone();
        let mut states: Vec<Arc<Vec<u8>>> = Vec::new();
        let mut pending: Vec<&Event> = Vec::new();
        for (number, event) in events.iter().enumerate() {
            match event {
                Event::Flush => {
                    // Any part of what is not flushed may be lost, in any order.
                    for _ in 0..6 {
                        let mut file = durable.clone();
                        for e in &pending {
                            if random(&mut seed).is_multiple_of(2) {
                                apply(&mut file, e);
                            }
                        }
                        leaks += verify(
                            &file,
                            &states,
                            &format!("round {round}, subset before {number}"),
                        );
                    }
                    pending.drain(..).for_each(|e| apply(&mut durable, e));
                    leaks += verify(&durable, &states, &format!("round {round}, flush {number}"));
                }
                Event::Model(state) => states.push(Arc::clone(state)),
                _ => {
                    pending.push(event);
                    let mut file = durable.clone();
                    pending.iter().for_each(|e| apply(&mut file, e));
                    leaks += verify(&file, &states, &format!("round {round}, after {number}"));
                }
            }
        }
    }
    assert!(leaks > 100, "only {leaks} grains were leaked");
}

/// After a flush nothing is lost, whatever happens later.
#[test]
fn flushed_is_kept() {
    let recorder = Arc::new(Recorder {
        memory: MemoryStorage::new("recorded", fresh(Emptying::ZeroGrains)),
        events: Mutex::default(),
    });
    let start = recorder.memory.to_vec();
    let writer = node(Arc::<Recorder>::clone(&recorder), Access::Write).unwrap();
    let bytes = pattern(3 * GRAIN, 9);
    writer.write(WINDOW.start as u64 + 77, &bytes).unwrap();
    writer.write(WINDOW.end as u64 - 300_000, &bytes).unwrap();
    writer.flush().unwrap();
    let events = recorder.events.lock().unwrap().clone();
    let last = events.iter().rposition(|e| matches!(e, Event::Flush)).unwrap();
    let mut file = start;
    events[..last].iter().for_each(|e| apply(&mut file, e));
    let reader = node(Arc::new(MemoryStorage::new("crashed", file)), Access::Read).unwrap();
    for at in [WINDOW.start as u64 + 77, WINDOW.end as u64 - 300_000] {
        let mut have = vec![0; bytes.len()];
        reader.read(at, &mut have).unwrap();
        assert!(have == bytes);
    }
}
