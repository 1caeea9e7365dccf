//! Headers and tables that lie.

use std::sync::Arc;

use super::super::QcowDriver;
use super::model::mixed;
use super::with_header;
use crate::format::testing::{self, check, content, damaged, memory, refused};
use crate::format::{Access, Driver, Repair};

#[test]
fn headers() {
    let words = |change: fn(&mut super::Header)| {
        let e = refused(&QcowDriver, &with_header(mixed().0, change));
        assert!(e.offset().is_some() && e.path().is_some(), "{e:?}");
        e.message().to_owned()
    };
    assert_eq!(words(|h| h.magic.set(1)), "Image not in qcow format");
    assert_eq!(words(|h| h.version.set(2)), "qcow (v1) does not support qcow version 2");
    for size in [0, 1] {
        let e = refused(&QcowDriver, &with_header(mixed().0, |h| h.size.set(size)));
        assert_eq!(e.message(), "Image size is too small (must be at least 2 bytes)");
    }
    assert_eq!(words(|h| h.cluster_bits = 8), "Cluster size must be between 512 and 64k");
    assert_eq!(words(|h| h.cluster_bits = 255), "Cluster size must be between 512 and 64k");
    assert_eq!(words(|h| h.l2_bits = 63), "L2 table size must be between 512 and 64k");
    assert_eq!(words(|h| h.crypt_method.set(2)), "invalid encryption method in qcow header");
    assert_eq!(words(|h| h.size.set(1 << 63)), "Image too large");
    assert_eq!(words(|h| h.size.set(u64::MAX)), "Image too large");
    assert!(words(|h| h.size.set(1 << 40)).contains("beyond the end of the file"));
    assert!(words(|h| h.l1_offset.set(u64::MAX)).contains("beyond the end of the file"));
    assert!(words(|h| h.backing_offset.set(u64::MAX)).contains("beyond the end of the file"));
    let long = with_header(mixed().0, |h| {
        h.backing_offset.set(48);
        h.backing_len.set(1024);
    });
    assert_eq!(refused(&QcowDriver, &long).message(), "Backing file name too long");
}

#[test]
fn tables() {
    let (image, disk) = mixed();
    let l2 = usize::try_from(u64::from_be_bytes(image[48..56].try_into().unwrap())).unwrap();
    let poke = |at: usize, value: u64| {
        let mut bytes = image.clone();
        bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
        bytes
    };
    // Out of the file: L2 table, plain cluster, compressed cluster.
    for (at, value) in
        [(48, 1 << 40), (l2 + 200 * 8, 1 << 50), (l2 + 200 * 8, u64::MAX), (l2 + 8, u64::MAX >> 1)]
    {
        let bytes = poke(at, value);
        let node = testing::node(&QcowDriver, memory(&bytes), Access::Write);
        let mut buf = vec![0; 1 << 20];
        let e = node.read(0, &mut buf).unwrap_err();
        assert!(e.offset().is_some(), "{e:?}");
        let (report, lines) = check(&QcowDriver, memory(&bytes), Repair::Nothing);
        assert_eq!(report.corruptions, 1, "{lines:?}");
        let storage = memory(&bytes);
        let (report, lines) = check(&QcowDriver, Arc::clone(&storage) as _, Repair::All);
        assert_eq!((report.corruptions_fixed, report.corruptions), (1, 0), "{lines:?}");
        let (report, _) = check(&QcowDriver, Arc::clone(&storage) as _, Repair::Nothing);
        assert_eq!((report.leaks, report.corruptions), (0, 0));
    }
    // Two clusters in one place; a cluster in the header; a table over a cluster.
    let place = u64::from_be_bytes(image[l2 + 123 * 8..][..8].try_into().unwrap());
    assert_ne!(place, 0);
    for (at, value) in [(l2 + 124 * 8, place), (l2 + 200 * 8, 16)] {
        let bytes = poke(at, value);
        let (report, lines) = check(&QcowDriver, memory(&bytes), Repair::Nothing);
        assert_eq!(report.corruptions, 1, "{lines:?}");
        let before = content(&testing::node(&QcowDriver, memory(&bytes), Access::Read));
        let storage = memory(&bytes);
        let (report, lines) = check(&QcowDriver, Arc::clone(&storage) as _, Repair::All);
        assert_eq!((report.corruptions_fixed, report.corruptions), (1, 0), "{lines:?}");
        let node = testing::node(&QcowDriver, storage, Access::Read);
        assert!(content(&node) == before);
    }
    let bytes = poke(56, u64::try_from(l2).unwrap());
    let storage = memory(&bytes);
    check(&QcowDriver, Arc::clone(&storage) as _, Repair::All);
    let (report, lines) = check(&QcowDriver, Arc::clone(&storage) as _, Repair::Nothing);
    assert_eq!(report.corruptions, 0, "{lines:?}");
    let node = testing::node(&QcowDriver, storage, Access::Read);
    assert!(content(&node)[..2 << 20] == disk[..2 << 20]);
}

#[test]
fn a_damaged_stream() {
    let (image, _) = mixed();
    let word = |at: usize| u64::from_be_bytes(image[at..at + 8].try_into().unwrap());
    let entry = word(usize::try_from(word(48)).unwrap());
    assert_ne!(entry >> 63, 0);
    let host = usize::try_from(entry & ((1 << 51) - 1)).unwrap();
    let mut bytes = image.clone();
    bytes[host..host + 8].fill(0xff);
    let node = testing::node(&QcowDriver, memory(&bytes), Access::Read);
    let e = node.read(0, &mut vec![0; 65536]).unwrap_err();
    assert_eq!(e.raw_errno(), Some(libc::EIO));
    assert!(e.message().contains("compressed cluster"), "{e:?}");
}

#[test]
fn damaged_bytes() {
    let (good, _) = mixed();
    damaged(&QcowDriver, &good, (0..64).chain(4096..4112).chain((4096 + 900)..(4096 + 1010)));
}

#[test]
fn probing() {
    let (good, _) = mixed();
    assert_eq!(QcowDriver.probe(&good, "x"), 100);
    assert_eq!(QcowDriver.probe(&good[..47], "x"), 0);
    assert_eq!(QcowDriver.probe(&with_header(good, |h| h.version.set(2)), "x"), 0);
}
