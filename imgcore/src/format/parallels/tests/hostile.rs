//! Headers, tables and extensions that lie.

use std::sync::Arc;

use super::super::ParallelsDriver;
use super::super::layout::{EXTENSION_MAGIC, FEATURE_BITMAP};
use super::{clusters, with_header};
use crate::format::testing::{
    self, check, content, damaged, memory, open_storage, pattern, refused,
};
use crate::format::{Access, Driver, Repair, SpecificInfo};

fn good() -> Vec<u8> {
    let storage = memory(&clusters(2 << 20, "64k"));
    let node = testing::node(&ParallelsDriver, Arc::clone(&storage) as _, Access::Write);
    node.write(1 << 20, &pattern(100_000, 4)).unwrap();
    node.write(3000, &pattern(1000, 5)).unwrap();
    node.close().unwrap();
    storage.to_vec()
}

#[test]
fn headers() {
    let words = |change: fn(&mut super::Header)| {
        let e = refused(&ParallelsDriver, &with_header(good(), change));
        assert!(e.offset().is_some() && e.path().is_some(), "{e:?}");
        e.message().to_owned()
    };
    assert_eq!(words(|h| h.magic[0] = 1), "Image not in Parallels format");
    assert_eq!(words(|h| h.version.set(3)), "Image not in Parallels format");
    assert_eq!(words(|h| h.tracks.set(0)), "Invalid image: Zero sectors per track");
    assert_eq!(words(|h| h.tracks.set(u32::MAX)), "Invalid image: Too big cluster");
    assert_eq!(words(|h| h.entries.set(u32::MAX)), "Catalog too large");
    assert!(words(|h| h.entries.set(1 << 28)).contains("beyond the end of the file"));
    assert!(words(|h| h.entries.set(3)).contains("has room for 196608"));
    assert!(words(|h| h.sectors.set(u64::MAX)).contains("too large"));
    assert!(words(|h| h.extension.set(u64::MAX)).contains("format extension"));
    assert!(words(|h| h.extension.set(128)).starts_with("Wrong parallels Format Extension magic"));
    // Where data begin is known without that field.
    for data in [0, 1, u32::MAX] {
        let bytes = with_header(good(), |h| h.data.set(data));
        let node = testing::node(&ParallelsDriver, memory(&bytes), Access::Write);
        assert_eq!(content(&node)[3000..4000], pattern(1000, 5));
        node.write(500_000, &[1; 10]).unwrap();
        node.close().unwrap();
        assert_eq!(content(&node)[3000..4000], pattern(1000, 5));
    }
}

#[test]
fn tables() {
    let poke = |index: usize, value: u32| {
        let mut bytes = good();
        bytes[64 + index * 4..][..4].copy_from_slice(&value.to_le_bytes());
        bytes
    };
    let bytes = poke(5, 9999);
    let node = testing::node(&ParallelsDriver, memory(&bytes), Access::Write);
    let e = node.read(5 * 65536, &mut [0; 10]).unwrap_err();
    assert_eq!(e.offset(), Some(84), "{e:?}");
    assert!(node.write(8 * 65536, b"x").is_err());
    for (value, line) in
        [(9999, "cluster 5 is outside image"), (1, "duplicate offset in BAT entry 16")]
    {
        let bytes = poke(5, value);
        let (report, lines) = check(&ParallelsDriver, memory(&bytes), Repair::Nothing);
        assert_eq!((report.corruptions, lines), (1, vec![format!("ERROR {line}")]));
        let storage = memory(&bytes);
        let (report, lines) = check(&ParallelsDriver, Arc::clone(&storage) as _, Repair::All);
        assert_eq!((report.corruptions_fixed, lines), (1, vec![format!("Repairing {line}")]));
        let (report, lines) = check(&ParallelsDriver, Arc::clone(&storage) as _, Repair::Nothing);
        assert_eq!((report.corruptions, report.leaks), (0, 0), "{lines:?}");
        let node = testing::node(&ParallelsDriver, storage, Access::Read);
        assert!(content(&node)[1 << 20..][..100_000] == pattern(100_000, 4));
    }
}

/// Bitmaps are told and kept.
#[test]
fn extensions() {
    let mut bytes = good();
    let at = bytes.len();
    let mut extension = EXTENSION_MAGIC.to_le_bytes().to_vec();
    extension.extend([0; 16]);
    let feature = |magic: u64, flags: u64, data: &[u8]| {
        let len = u32::try_from(data.len()).unwrap();
        let head = [magic.to_le_bytes(), flags.to_le_bytes()].concat();
        [&head[..], &len.to_le_bytes(), &[0; 4], data].concat()
    };
    let mut bitmap = 4096u64.to_le_bytes().to_vec();
    bitmap.extend([7; 16]);
    bitmap.extend(128u32.to_le_bytes());
    bitmap.extend(1u32.to_le_bytes());
    bitmap.extend(0u64.to_le_bytes());
    let with = |features: &[Vec<u8>]| {
        let mut all = bytes.clone();
        all.extend(&extension);
        all.extend(features.concat());
        all.resize(at + 65536, 0);
        with_header(all, |h| h.extension.set(u64::try_from(at).unwrap() / 512))
    };
    let marked = with(&[feature(FEATURE_BITMAP, 2, &bitmap), feature(5, 0, &[0; 8])]);
    let image = open_storage(&ParallelsDriver, memory(&marked), Access::Read, false).unwrap();
    let Some(SpecificInfo::Parallels(info)) = image.info().unwrap().specific else { panic!() };
    let bitmaps = info.bitmaps.unwrap();
    assert_eq!((bitmaps.len(), bitmaps[0].granularity, bitmaps[0].size), (1, 65536, 2 << 20));
    assert_eq!(info.unknown_features, Some(1));
    let e = open_storage(&ParallelsDriver, memory(&marked), Access::Write, false).unwrap_err();
    assert!(e.message().contains("dirty bitmaps"), "{e:?}");
    let e = refused(&ParallelsDriver, &with(&[feature(5, 1, &[])]));
    assert!(e.message().contains("must be understood"), "{e:?}");
    let e = refused(&ParallelsDriver, &with(&[feature(5, 0, &vec![0; 65490])]));
    assert!(e.message().contains("in the middle"), "{e:?}");
    // Without features it is kept where it is.
    let storage = memory(&with(&[]));
    let node = testing::node(&ParallelsDriver, Arc::clone(&storage) as _, Access::Write);
    node.write(0, &pattern(1 << 20, 1)).unwrap();
    node.close().unwrap();
    assert_eq!(storage.to_vec()[at..at + 24], extension);
    let (report, lines) = check(&ParallelsDriver, storage, Repair::Nothing);
    assert_eq!((report.corruptions, report.leaks), (0, 0), "{lines:?}");
    bytes.clear();
    damaged(&ParallelsDriver, &marked, (56..64).chain(at..at + 100));
}

#[test]
fn damaged_bytes() {
    damaged(&ParallelsDriver, &good(), (0..140).filter(|at| !(20..28).contains(at)));
}

#[test]
fn probing() {
    assert_eq!(ParallelsDriver.probe(&good(), "x"), 100);
    assert_eq!(ParallelsDriver.probe(&good()[..63], "x"), 0);
    assert_eq!(ParallelsDriver.probe(b"<?xml version='1.0'?>\n<Parallels_disk_image>", "x"), 100);
    assert_eq!(ParallelsDriver.probe(b"<?xml version='1.0'?>\n<other/>", "x.hdd"), 0);
}
