//! Damaged qcow2 images: whatever their metadata say, nothing panics, loops or eats memory.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::sync::Arc;

use common::{Rng, create, open};
use imgcore::format::{self, Access, NoGate, OpenContext, ZeroSpace};
use imgcore::graph::Node;
use imgcore::storage::{MemoryStorage, Storage};

fn sample(options: &[(&str, &str)]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    create(dir.path(), "s", "qcow2", 1 << 20, options, None).unwrap();
    let node = open(dir.path(), "s", "qcow2", Access::Write).unwrap();
    for i in 0..20u64 {
        node.write(i * 50_000, &vec![u8::try_from(i).unwrap() + 1; 20_000]).unwrap();
    }
    let _ = node.write_zeroes(300_000, 200_000, ZeroSpace::Keep);
    node.close().unwrap();
    std::fs::read(dir.path().join("s")).unwrap()
}

/// Opens, looks at and reads everything that is not absurdly large; then writes a little.
fn exercise(bytes: Vec<u8>, access: Access) {
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new("hostile", bytes));
    let opened = format::driver("qcow2").unwrap().open(OpenContext {
        storage,
        access,
        gate: &NoGate,
        snapshot: None,
        data_file: None,
        scratch: false,
        header_only: false,
        for_check: false,
        options: &[],
    });
    let Ok(image) = opened else { return };
    let node = Node::new("hostile", image, None, access);
    let size = node.virtual_size().min(8 << 20);
    let mut at = 0;
    let mut steps = 0;
    while at < size && steps < 100_000 {
        match node.status(at, size - at, None) {
            Ok(status) => {
                assert!(status.len > 0 && status.len <= size - at);
                at += status.len;
            }
            Err(_) => at += 512,
        }
        steps += 1;
    }
    let mut buf = vec![0; 4096];
    let mut at = 0;
    while at + 4096 <= size {
        let _ = node.read(at, &mut buf);
        at += 4096;
    }
    if access == Access::Write {
        for i in 0..16u64 {
            let at = i * 65_536 % size.max(512);
            let _ = node.write(at, &buf[..512.min(usize::try_from(size - at).unwrap())]);
        }
        if size >= 8192 {
            let _ = node.discard(0, 8192);
            let _ = node.write_zeroes(4096, 4096, ZeroSpace::Unmap);
        }
        let _ = node.flush();
        let _ = node.close();
    }
}

#[test]
fn random_damage() {
    let samples = [
        sample(&[("cluster_size", "512")]),
        sample(&[("cluster_size", "4096"), ("refcount_bits", "1")]),
        sample(&[("cluster_size", "65536"), ("compat", "v2")]),
        sample(&[("cluster_size", "16384"), ("extended_l2", "on")]),
    ];
    let mut rng = Rng(2024);
    for round in 0..20_000u64 {
        let mut bytes = samples[usize::try_from(round % 4).unwrap()].clone();
        for _ in 0..=rng.below(4) {
            // Mostly the header and the first tables, at their field boundaries.
            let area = if rng.below(2) == 0 { 112 } else { 6 * 65_536.min(bytes.len() as u64 / 6) };
            let at = usize::try_from(rng.below(area.max(8) / 4) * 4).unwrap().min(bytes.len() - 8);
            let value = match rng.below(6) {
                0 => 0,
                1 => u64::MAX,
                2 => 1u64 << rng.below(64),
                3 => rng.next(),
                4 => rng.below(bytes.len() as u64) & !511 | 1 << 63,
                _ => rng.below(bytes.len() as u64) & !511 | 1 << 62,
            };
            if rng.below(2) == 0 {
                bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
            } else {
                bytes[at..at + 4].copy_from_slice(&value.to_be_bytes()[4..]);
            }
        }
        if rng.below(8) == 0 {
            bytes.truncate(usize::try_from(rng.below(bytes.len() as u64)).unwrap());
        }
        let access = if rng.below(2) == 0 { Access::Read } else { Access::Write };
        exercise(bytes, access);
    }
}
