//! Damaged qcow2 images: whatever their metadata say, nothing panics, loops or eats memory.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::sync::Arc;

use common::{Rng, create, open};
use imgcore::format::{self, Access, OpenContext, ZeroSpace};
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
        gate: &common::Folder(Default::default(), String::new()),
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

/// The pointer to the encryption header, and what it points to.
#[test]
fn encryption_headers() {
    let luks = &[("encrypt.format", "luks"), ("encrypt.iter-time", "0")];
    let good = sample(&[luks, &[("cluster_size", "4096")][..]].concat());
    let refused = |bytes: Vec<u8>| {
        let error = format::driver("qcow2").unwrap().open(OpenContext {
            storage: Arc::new(MemoryStorage::new("hostile", bytes)),
            access: Access::Read,
            gate: &common::Folder(Default::default(), String::new()),
            snapshot: None,
            data_file: None,
            scratch: false,
            header_only: false,
            for_check: false,
            options: &[],
        });
        error.map(drop).unwrap_err().report()
    };
    let magic = [0x05, 0x37, 0xbe, 0x77, 0, 0, 0, 16];
    let at = good.windows(8).position(|w| w == magic).unwrap();
    let with = |at: usize, new: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + new.len()].copy_from_slice(new);
        bytes
    };
    let said = refused(with(at + 7, &[8]));
    assert!(said.contains("CRYPTO header extension size 8, but expected size 16"), "{said}");
    let said = refused(with(at + 14, &[1]));
    assert!(said.contains("is not a multiple of cluster size '4096'"), "{said}");
    let said = refused(with(at + 8, &[0x7f]));
    assert!(said.contains("lies beyond the end of the image file"), "{said}");
    let said = refused(with(at, &[1]));
    assert!(said.contains("Missing CRYPTO header for crypt method 2"), "{said}");
    let said = refused(with(32, &[0, 0, 0, 3]));
    assert!(said.contains("Unsupported encryption method 3"), "{said}");
    // Too short for its key material.
    let said = refused(with(at + 16, &[0, 0, 0, 0, 0, 0, 16, 0]));
    assert!(said.contains("beyond the end"), "{said}");
    let header = usize::try_from(u64::from_be_bytes(good[at + 8..at + 16].try_into().unwrap()));
    let said = refused(with(header.unwrap() + 252, &[0; 4]));
    assert!(said.contains("Keyslot 0 is corrupted (stripes 0 != 4000)"), "{said}");
    let mut rng = Rng(7);
    let aes = sample(&[("encrypt.format", "aes"), ("cluster_size", "512")]);
    for round in 0..400 {
        let mut bytes = if round % 2 == 0 { aes.clone() } else { good.clone() };
        let place = usize::try_from(rng.below(112) / 4 * 4).unwrap();
        bytes[place..place + 4].copy_from_slice(&rng.next().to_be_bytes()[..4]);
        exercise(bytes, if round % 3 == 0 { Access::Write } else { Access::Read });
    }
}
