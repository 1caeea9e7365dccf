//! Random operations on qcow2 images against a plain vector of bytes: every cluster size, refcount
//! width, version, with and without backing file, extended entries and external data file.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Rng, assert_checks_clean, create, open};
use imgcore::format::{Access, Encoded, Level, Mapping, Repair, Unwatched, ZeroSpace};
use imgcore::graph::Node;
use imgcore::num::GuestOffset;

struct Case {
    options: Vec<(&'static str, String)>,
    size: u64,
    backing: Option<u64>,
}

fn write_compressed(node: &Node, at: u64, bytes: &[u8]) {
    let image = node.image();
    let mut encoder = image.encoder(Level::Default).unwrap();
    let mut out = Vec::new();
    if encoder.encode(GuestOffset(at), bytes, &mut out).unwrap() == Encoded::Incompressible {
        let inside = usize::try_from((node.virtual_size() - at).min(bytes.len() as u64)).unwrap();
        node.write(at, &bytes[..inside]).unwrap();
        return;
    }
    let grant = image.prepare_encoded(GuestOffset(at), out.len() as u64).unwrap();
    image.storage(grant.storage).write_at(grant.offset.0, &out).unwrap();
    image.commit_write(grant).unwrap();
}

fn random_fill(rng: &mut Rng, buf: &mut [u8]) {
    let compressible = rng.below(3) != 0;
    let byte = rng.next().to_le_bytes()[0];
    for b in buf.iter_mut() {
        *b = if compressible { byte } else { rng.next().to_le_bytes()[0] };
    }
}

/// What the image should hold besides the disk's bytes.
#[derive(Default)]
struct Extras {
    /// Internal snapshots: name and the disk then.
    snapshots: Vec<(String, Vec<u8>)>,
    /// Recording bitmaps: name, granularity and the granules written since.
    bitmaps: Vec<(String, u64, std::collections::BTreeSet<u64>)>,
    next: u32,
}

impl Extras {
    fn wrote(&mut self, at: u64, len: u64) {
        for (_, granularity, dirty) in &mut self.bitmaps {
            dirty.extend(at / *granularity..=(at + len - 1) / *granularity);
        }
    }

    /// One random operation on snapshots or bitmaps.
    fn change(&mut self, rng: &mut Rng, node: &Node, model: &mut Vec<u8>, version2: bool) {
        self.next += 1;
        let name = format!("n{}", self.next);
        let snapshots = node.image().snapshots().unwrap();
        let bitmaps = node.image().bitmaps();
        match rng.below(5) {
            0 if self.snapshots.len() < 3 => {
                let now = std::time::SystemTime::now();
                // One-bit reference counts cannot share clusters.
                if snapshots.create(&name, now).is_ok() {
                    self.snapshots.push((name, model.clone()));
                }
            }
            1 if !self.snapshots.is_empty() && self.bitmaps.is_empty() => {
                let (name, disk) = &self.snapshots[pick(rng, self.snapshots.len())];
                if version2 && disk.len() != model.len() {
                    return;
                }
                if snapshots.apply(name).is_ok() {
                    model.clone_from(disk);
                }
            }
            2 if !self.snapshots.is_empty() => {
                let i = pick(rng, self.snapshots.len());
                snapshots.delete(&self.snapshots.remove(i).0).unwrap();
            }
            3 if self.bitmaps.len() < 2 && !version2 => {
                let granularity = 512 << rng.below(8);
                bitmaps.unwrap().add(&name, granularity).unwrap();
                self.bitmaps.push((name, granularity, std::collections::BTreeSet::new()));
            }
            _ if !self.bitmaps.is_empty() => {
                let i = pick(rng, self.bitmaps.len());
                bitmaps.unwrap().remove(&self.bitmaps.remove(i).0).unwrap();
            }
            _ => {}
        }
    }

    fn compare(&self, node: &Node) {
        for (name, granularity, dirty) in &self.bitmaps {
            let mut found = std::collections::BTreeSet::new();
            for (at, len) in node.image().bitmaps().unwrap().dirty_ranges(name).unwrap() {
                found.extend(at / granularity..=(at + len - 1) / granularity);
            }
            let end = node.virtual_size().div_ceil(*granularity);
            assert!(
                dirty.iter().filter(|&&g| g < end).all(|g| found.contains(g)),
                "bitmap {name} lost a write"
            );
        }
        let names: Vec<String> =
            node.image().snapshots().unwrap().list().unwrap().into_iter().map(|s| s.name).collect();
        assert_eq!(names, self.snapshots.iter().map(|s| s.0.clone()).collect::<Vec<_>>());
    }
}

fn pick(rng: &mut Rng, len: usize) -> usize {
    usize::try_from(rng.below(len as u64)).unwrap()
}

/// Our own check, besides the oracle's.
fn assert_sound(node: &Node, step: u32) {
    let report = node.image().check(Repair::Nothing, &Unwatched).unwrap().unwrap();
    assert_eq!(
        (report.corruptions, report.leaks, report.check_errors),
        (0, 0, 0),
        "step {step}: {report:?}"
    );
}

/// The encrypted image, for the oracle.
const KEYED: &[&str] = &[
    "--object",
    "secret,id=s,data=abc",
    "--image-opts",
    "driver=qcow2,file.filename=a.qcow2,encrypt.key-secret=s",
];

fn run(case: &Case, seed: u64, steps: u32) {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = Rng(seed);
    let mut model = vec![0u8; usize::try_from(case.size).unwrap()];
    if let Some(len) = case.backing {
        let mut base = vec![0u8; usize::try_from(len).unwrap()];
        random_fill(&mut rng, &mut base);
        std::fs::write(dir.path().join("base.raw"), &base).unwrap();
        let n = base.len().min(model.len());
        model[..n].copy_from_slice(&base[..n]);
    }
    let options: Vec<(&str, &str)> = case.options.iter().map(|(k, v)| (*k, v.as_str())).collect();
    let backing = case.backing.map(|_| ("base.raw", "raw"));
    create(dir.path(), "a.qcow2", "qcow2", case.size, &options, backing).unwrap();
    let mut node = open(dir.path(), "a.qcow2", "qcow2", Access::Write).unwrap();
    // An encrypted image is no plain name for the oracle.
    let encrypted = case.options.iter().any(|(k, _)| *k == "encrypt.format");
    let named: &[&str] = if encrypted { KEYED } else { &["a.qcow2"] };
    let check_clean = || {
        let Some(out) = common::qemu_img(dir.path(), &[&["check"], named].concat()) else {
            eprintln!("SKIPPED: no qemu-img to check a.qcow2");
            return;
        };
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(out.status.success(), "{said}{}", String::from_utf8_lossy(&out.stderr));
    };
    let version2 = case.options.iter().any(|(k, v)| *k == "compat" && v == "v2");
    let mut extras = Extras::default();
    for step in 0..steps {
        let size = node.virtual_size();
        let at = rng.below(size);
        let len = match rng.below(4) {
            0 => 1 + rng.below(700),
            1 => 1 + rng.below(70_000),
            2 => 512 * (1 + rng.below(16)),
            _ => 1 + rng.below(size / 3),
        }
        .min(size - at);
        let (a, e) = (usize::try_from(at).unwrap(), usize::try_from(at + len).unwrap());
        match rng.below(14) {
            0..=4 => {
                let mut buf = vec![0; e - a];
                random_fill(&mut rng, &mut buf);
                node.write(at, &buf).unwrap();
                model[a..e].copy_from_slice(&buf);
                extras.wrote(at, len);
            }
            5 | 6 => {
                let space = if rng.below(2) == 0 { ZeroSpace::Unmap } else { ZeroSpace::Keep };
                node.write_zeroes(at, len, space).unwrap();
                model[a..e].fill(0);
                extras.wrote(at, len);
            }
            7 => {
                node.discard(at, len).unwrap();
                // What a discard leaves is zero or old: take what is there.
                let mut now = vec![0; e - a];
                node.read(at, &mut now).unwrap();
                for (m, n) in model[a..e].iter_mut().zip(&now) {
                    assert!(*m == *n || *n == 0, "step {step}: discard made up data");
                    *m = *n;
                }
            }
            8 => {
                if let Some(unit) = node.image().granularity().encode {
                    let start = at / unit * unit;
                    let mut buf = vec![0; usize::try_from(unit).unwrap()];
                    random_fill(&mut rng, &mut buf);
                    let n = usize::try_from(unit.min(size - start)).unwrap();
                    buf[n..].fill(0);
                    write_compressed(&node, start, &buf);
                    let s = usize::try_from(start).unwrap();
                    model[s..s + n].copy_from_slice(&buf[..n]);
                }
            }
            9 => node.flush().unwrap(),
            10 => {
                node.close().unwrap();
                drop(node);
                check_clean();
                node = open(dir.path(), "a.qcow2", "qcow2", Access::Read).unwrap();
                assert_sound(&node, step);
                extras.compare(&node);
                node = open(dir.path(), "a.qcow2", "qcow2", Access::Write).unwrap();
            }
            11 | 12 => extras.change(&mut rng, &node, &mut model, version2),
            _ => {
                let new = (512 + rng.below(case.size * 2)) / 512 * 512;
                if version2 && (case.backing.is_some() || !extras.snapshots.is_empty()) {
                    continue;
                }
                node.resize(new, imgcore::storage::Preallocation::Off).unwrap();
                model.resize(usize::try_from(new).unwrap(), 0);
                for (_, granularity, dirty) in &mut extras.bitmaps {
                    let end = new.div_ceil(*granularity);
                    dirty.retain(|&g| g < end);
                }
            }
        }
        if step % 16 == 0 {
            compare(&node, &model, step);
        }
    }
    compare(&node, &model, steps);
    node.close().unwrap();
    drop(node);
    check_clean();
    let node = open(dir.path(), "a.qcow2", "qcow2", Access::Read).unwrap();
    compare(&node, &model, steps + 1);
    assert_sound(&node, steps);
    extras.compare(&node);
    // Every snapshot still holds the disk of its time.
    for (name, disk) in &extras.snapshots {
        let out = format!("{name}.raw");
        let args = [&["convert", "-l", name, "-O", "raw"], named, &[out.as_str()]].concat();
        if let Some(done) = common::qemu_img(dir.path(), &args) {
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            let found = std::fs::read(dir.path().join(out)).unwrap();
            // qemu-img shows a snapshot with the present size of the disk.
            let common = found.len().min(disk.len());
            assert!(found[..common] == disk[..common], "snapshot {name}");
        }
    }
    // The oracle sees the same bytes.
    if let Some(out) =
        common::qemu_img(dir.path(), &[&["convert", "-O", "raw"], named, &["a.raw"]].concat())
    {
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        assert!(
            std::fs::read(dir.path().join("a.raw")).unwrap() == model,
            "qemu-img reads other bytes"
        );
    }
}

fn compare(node: &Node, model: &[u8], step: u32) {
    let mut all = vec![0; model.len()];
    node.read(0, &mut all).unwrap();
    if let Some(i) = all.iter().zip(model).position(|(a, b)| a != b) {
        panic!("step {step}: byte {i:#x} is {:#x}, should be {:#x}", all[i], model[i]);
    }
    let mut at = 0;
    while at < node.virtual_size() {
        let status = node.status(at, node.virtual_size() - at, None).unwrap();
        if status.kind != imgcore::graph::StatusKind::Data {
            let s = usize::try_from(at).unwrap();
            let e = usize::try_from(at + status.len).unwrap();
            assert!(model[s..e].iter().all(|&b| b == 0), "step {step}: {at:#x} said to be zero");
        }
        at += status.len;
    }
}

fn opts(list: &[(&'static str, &str)]) -> Vec<(&'static str, String)> {
    list.iter().map(|(k, v)| (*k, (*v).to_owned())).collect()
}

#[test]
fn every_cluster_size() {
    for bits in 9..=21u32 {
        for version in ["v2", "v3"] {
            let cluster = (1u64 << bits).to_string();
            let size = ((1u64 << bits) * 40).clamp(100 * 512, 8 << 20);
            let options = opts(&[("cluster_size", &cluster), ("compat", version)]);
            let case = Case { options, size, backing: (bits % 2 == 0).then_some(size / 3 + 100) };
            run(&case, u64::from(bits), 120);
        }
    }
}

#[test]
fn every_refcount_width() {
    for order in 0..=6u32 {
        let width = (1u32 << order).to_string();
        let options = opts(&[("cluster_size", "512"), ("refcount_bits", &width)]);
        run(&Case { options, size: 1 << 20, backing: None }, 77 + u64::from(order), 300);
    }
}

#[test]
fn extended_entries() {
    for (i, cluster) in ["16384", "65536", "2M"].into_iter().enumerate() {
        for backing in [None, Some(300_000)] {
            let size = if i == 2 { "2097152" } else { cluster };
            let options = opts(&[("cluster_size", size), ("extended_l2", "on")]);
            run(&Case { options, size: 3 << 20, backing }, 900 + i as u64, 300);
        }
    }
}

#[test]
fn external_data_file_zstd_lazy_and_preallocation() {
    for (i, list) in [
        &[("data_file", "d.raw")][..],
        &[("data_file", "d.raw"), ("data_file_raw", "on")],
        &[("compression_type", "zstd"), ("lazy_refcounts", "on")],
        &[("preallocation", "metadata")],
        &[("preallocation", "falloc"), ("extended_l2", "on")],
        &[("preallocation", "full"), ("cluster_size", "4096")],
    ]
    .into_iter()
    .enumerate()
    {
        run(&Case { options: opts(list), size: 2 << 20, backing: None }, 40 + i as u64, 300);
    }
}

#[test]
fn encrypted() {
    const LUKS: &[(&str, &str)] = &[("encrypt.format", "luks"), ("encrypt.iter-time", "0")];
    const AES: &[(&str, &str)] = &[("encrypt.format", "aes")];
    for (i, (list, backing)) in [
        ([LUKS, &[("cluster_size", "512")]].concat(), None),
        ([LUKS, &[("encrypt.cipher-alg", "aes-128")]].concat(), Some(300_000)),
        ([LUKS, &[("compat", "v2"), ("cluster_size", "4096")]].concat(), None),
        ([LUKS, &[("extended_l2", "on"), ("encrypt.cipher-mode", "cbc")]].concat(), Some(300_000)),
        ([LUKS, &[("data_file", "d.raw")]].concat(), None),
        ([LUKS, &[("preallocation", "metadata")]].concat(), None),
        ([LUKS, &[("preallocation", "full"), ("extended_l2", "on")]].concat(), None),
        ([AES, &[("cluster_size", "4096")]].concat(), None),
        ([AES, &[("cluster_size", "512"), ("compat", "v2")]].concat(), Some(300_000)),
        ([AES, &[("extended_l2", "on")]].concat(), None),
    ]
    .into_iter()
    .enumerate()
    {
        run(&Case { options: opts(&list), size: 2 << 20, backing }, 300 + i as u64, 200);
    }
}

#[test]
fn threads_writing_side_by_side() {
    let dir = tempfile::tempdir().unwrap();
    create(dir.path(), "t.qcow2", "qcow2", 4 << 20, &[("cluster_size", "4096")], None).unwrap();
    let node = open(dir.path(), "t.qcow2", "qcow2", Access::Write).unwrap();
    // Interleaved 512-byte stripes: every cluster is shared by all threads.
    std::thread::scope(|s| {
        for t in 0..4u64 {
            let node = &node;
            s.spawn(move || {
                for i in (t..(4 << 20) / 512).step_by(4) {
                    node.write(i * 512, &[u8::try_from(t + 1).unwrap(); 512]).unwrap();
                    if i % 97 == 0 {
                        node.flush().unwrap();
                    }
                }
            });
        }
    });
    let mut all = vec![0; 4 << 20];
    node.read(0, &mut all).unwrap();
    for (i, b) in all.iter().enumerate() {
        assert_eq!(u64::from(*b), (i as u64 / 512) % 4 + 1);
    }
    node.close().unwrap();
    assert_checks_clean(dir.path(), "t.qcow2", "qcow2");
    let extent = node.image().map(GuestOffset(0), 4096).unwrap();
    assert!(matches!(extent.mapping, Mapping::Data { in_place: true, .. }));
}
