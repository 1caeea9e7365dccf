//! Random operations on qcow2 images against a plain vector of bytes: every cluster size, refcount
//! width, version, with and without backing file, extended entries and external data file.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Rng, assert_checks_clean, create, open};
use imgcore::format::{Access, Encoded, Level, Mapping, ZeroSpace};
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
        match rng.below(12) {
            0..=4 => {
                let mut buf = vec![0; e - a];
                random_fill(&mut rng, &mut buf);
                node.write(at, &buf).unwrap();
                model[a..e].copy_from_slice(&buf);
            }
            5 | 6 => {
                let space = if rng.below(2) == 0 { ZeroSpace::Unmap } else { ZeroSpace::Keep };
                node.write_zeroes(at, len, space).unwrap();
                model[a..e].fill(0);
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
                assert_checks_clean(dir.path(), "a.qcow2", "qcow2");
                node = open(dir.path(), "a.qcow2", "qcow2", Access::Write).unwrap();
            }
            _ => {
                let new = (512 + rng.below(case.size * 2)) / 512 * 512;
                let v2 = case.options.iter().any(|(k, v)| *k == "compat" && v == "v2");
                if v2 && case.backing.is_some() {
                    continue;
                }
                node.resize(new, imgcore::storage::Preallocation::Off).unwrap();
                model.resize(usize::try_from(new).unwrap(), 0);
            }
        }
        if step % 16 == 0 {
            compare(&node, &model, step);
        }
    }
    compare(&node, &model, steps);
    node.close().unwrap();
    drop(node);
    assert_checks_clean(dir.path(), "a.qcow2", "qcow2");
    let node = open(dir.path(), "a.qcow2", "qcow2", Access::Read).unwrap();
    compare(&node, &model, steps + 1);
    // The oracle sees the same bytes.
    if let Some(out) = common::qemu_img(dir.path(), &["convert", "-O", "raw", "a.qcow2", "a.raw"]) {
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
