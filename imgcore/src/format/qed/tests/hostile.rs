//! Headers and tables that lie.

use std::sync::Arc;

use super::super::QedDriver;
use super::{small, with_header};
use crate::format::testing::{self, check, content, damaged, memory, pattern, refused};
use crate::format::{Access, Driver, Repair};

fn good() -> Vec<u8> {
    let storage = memory(&small(5 << 20, "1"));
    let node = testing::node(&QedDriver, Arc::clone(&storage) as _, Access::Write);
    node.write(1 << 20, &pattern(100_000, 4)).unwrap();
    node.write(3 << 20, &pattern(1000, 5)).unwrap();
    node.close().unwrap();
    storage.to_vec()
}

#[test]
fn headers() {
    let words = |change: fn(&mut super::Header)| {
        let e = refused(&QedDriver, &with_header(good(), change));
        assert!(e.offset().is_some() && e.path().is_some(), "{e:?}");
        e.message().to_owned()
    };
    assert_eq!(words(|h| h.magic.set(1)), "Image not in QED format");
    assert_eq!(words(|h| h.features.set(1 << 40)), "Unsupported QED features: 10000000000");
    for size in [0, 2048, 12288, 1 << 31] {
        let e = refused(&QedDriver, &with_header(good(), |h| h.cluster_size.set(size)));
        assert_eq!(e.message(), "QED cluster size is invalid");
    }
    for size in [0, 3, 32, u32::MAX] {
        let e = refused(&QedDriver, &with_header(good(), |h| h.table_size.set(size)));
        assert_eq!(e.message(), "QED table size is invalid");
    }
    for size in [100, 1 << 63, (1 << 30) + 512] {
        let e = refused(&QedDriver, &with_header(good(), |h| h.size.set(size)));
        assert_eq!(e.message(), "QED image size is invalid");
    }
    assert_eq!(words(|h| h.header_size.set(u32::MAX)), "QED table offset is invalid");
    assert_eq!(words(|h| h.l1_offset.set(u64::MAX)), "QED table offset is invalid");
    assert_eq!(words(|h| h.l1_offset.set(0)), "QED table offset is invalid");
    assert_eq!(words(|h| h.l1_offset.set(5000)), "QED table offset is invalid");
    let e = refused(
        &QedDriver,
        &with_header(good(), |h| {
            h.features.set(1);
            h.backing_offset.set(4000);
            h.backing_len.set(100);
        }),
    );
    assert_eq!(e.message(), "QED backing filename offset is invalid");
    // What may be ignored is; what must be cleared is, by the first writer.
    let bytes = with_header(good(), |h| {
        h.compat_features.set(8);
        h.autoclear_features.set(8);
    });
    let storage = memory(&bytes);
    drop(testing::node(&QedDriver, Arc::clone(&storage) as _, Access::Read));
    assert_eq!(storage.to_vec(), bytes);
    drop(testing::node(&QedDriver, Arc::clone(&storage) as _, Access::Write));
    assert_eq!(storage.to_vec()[24..40], [8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn tables() {
    let image = good();
    let word = |at: usize| u64::from_le_bytes(image[at..at + 8].try_into().unwrap());
    let l2 = usize::try_from(word(4096)).unwrap();
    let poke = |at: usize, value: u64| {
        let mut bytes = image.clone();
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        bytes
    };
    let cluster = word(l2 + 256 * 8);
    // Out of the file, not aligned, in the header; twice in one place, over a table.
    let lost =
        [(4096 + 8, 1 << 40), (4096 + 8, 4097), (l2 + 8, 1 << 62), (l2 + 8, 5000), (4096 + 8, 2)];
    let shared = [(l2 + 8, cluster), (l2 + 8, word(4096)), (l2 + 8, 4096)];
    for (i, &(at, value)) in lost.iter().chain(&shared).enumerate() {
        let bytes = poke(at, value);
        let (report, lines) = check(&QedDriver, memory(&bytes), Repair::Nothing);
        assert_eq!((report.corruptions, lines.len()), (1, 1), "{value:#x} {lines:?}");
        let node = testing::node(&QedDriver, memory(&bytes), Access::Read);
        let mut buf = vec![0; 5 << 20];
        let read = node.read(0, &mut buf);
        assert_eq!(read.is_err(), i < lost.len(), "{value:#x}");
        let storage = memory(&bytes);
        let (report, lines) = check(&QedDriver, Arc::clone(&storage) as _, Repair::All);
        assert_eq!((report.corruptions_fixed, report.corruptions), (1, 0), "{lines:?}");
        let (report, _) = check(&QedDriver, Arc::clone(&storage) as _, Repair::Nothing);
        assert_eq!((report.leaks, report.corruptions), (0, 0));
        let node = testing::node(&QedDriver, storage, Access::Read);
        if i >= lost.len() {
            assert!(content(&node) == buf, "{value:#x}");
        }
    }
}

#[test]
fn damaged_bytes() {
    let good = good();
    let l2 = usize::try_from(u64::from_le_bytes(good[4096..4104].try_into().unwrap())).unwrap();
    damaged(&QedDriver, &good, (0..70).chain(4096..4120).chain(l2 + 2040..l2 + 2070));
}

#[test]
fn probing() {
    assert_eq!(QedDriver.probe(&good(), "x"), 100);
    assert_eq!(QedDriver.probe(&good()[..63], "x"), 0);
    assert_eq!(QedDriver.probe(&[0; 2048], "x.qed"), 0);
}
