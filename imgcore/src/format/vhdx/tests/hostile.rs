//! Headers, tables and metadata that lie.

use zerocopy::{FromBytes, IntoBytes};

use super::super::VhdxDriver;
use super::super::layout::{Header, checksum};
use crate::format::testing::{self, check, create, damaged, memory, pattern, refused};
use crate::format::{Access, Driver, Repair};

fn good() -> Vec<u8> {
    let bytes = create(&VhdxDriver, 5 << 20, &[("block_size", "1M")]).unwrap();
    let storage = memory(&bytes);
    let node = testing::node(&VhdxDriver, std::sync::Arc::clone(&storage) as _, Access::Write);
    node.write(1_000_000, &pattern(200_000, 4)).unwrap();
    node.close().unwrap();
    storage.to_vec()
}

/// Changes both headers, with right checksums.
fn with_headers(change: fn(&mut Header)) -> Vec<u8> {
    let mut bytes = good();
    for at in [65536, 131_072] {
        let mut header = Header::read_from_bytes(&bytes[at..at + 4096]).unwrap();
        change(&mut header);
        header.seal();
        bytes[at..at + 4096].copy_from_slice(header.as_bytes());
    }
    bytes
}

/// Changes four bytes of both region tables, with right checksums.
fn with_regions(place: usize, value: u32) -> Vec<u8> {
    let mut bytes = good();
    for at in [3 * 65536, 4 * 65536] {
        let table = &mut bytes[at..at + 65536];
        table[place..place + 4].copy_from_slice(&value.to_le_bytes());
        let sum = checksum(table);
        table[4..8].copy_from_slice(&sum.to_le_bytes());
    }
    bytes
}

/// Changes four bytes of the metadata region.
fn with_metadata(place: usize, value: u32) -> Vec<u8> {
    let mut bytes = good();
    bytes[(2 << 20) + place..(2 << 20) + place + 4].copy_from_slice(&value.to_le_bytes());
    bytes
}

#[test]
fn structures() {
    let words = |bytes: Vec<u8>, expected: &str| {
        let e = refused(&VhdxDriver, &bytes);
        assert!(e.message().contains(expected), "{e:?}, not {expected}");
        assert!(e.offset().is_some() && e.path().is_some(), "{e:?}");
    };
    words(vec![0; 4096], "Image not in VHDX format");
    words(with_headers(|h| h.signature[0] = 0), "No valid VHDX header found");
    words(with_headers(|h| h.version.set(2)), "No valid VHDX header found");
    words(with_headers(|h| h.log_version.set(9)), "log version 9");
    words(with_headers(|h| h.log_offset.set(1 << 62)), "does not lie inside the file");
    words(with_headers(|h| h.log_offset.set(u64::MAX)), "does not lie inside the file");
    words(with_headers(|h| h.log_offset.set(0)), "does not lie inside the file");
    words(with_headers(|h| h.log_length.set(4096)), "does not lie inside the file");
    words(with_regions(0, 1), "No valid VHDX region table");
    words(with_regions(8, 3000), "has 3000 entries");
    words(with_regions(8, 1), "lacks the block allocation table");
    // The first entry: the table, at 3 MiB.
    words(with_regions(32, 1), "is not aligned");
    words(with_regions(36, 1 << 30), "beyond the end of the file");
    words(with_regions(32, 1 << 20), "overlaps with region");
    words(with_regions(40, 8 << 20), "beyond the end of the file");
    words(with_regions(16, 7), "unknown required VHDX region");
    words(with_metadata(0, 7), "no VHDX metadata table");
    words(with_metadata(10, 0xffff), "has 65535 entries");
    words(with_metadata(48, 7), "lies outside its region");
    words(with_metadata(32, 7), "unknown required VHDX metadata item");
    for size in [0, 3 << 20, 512, 1 << 30] {
        words(with_metadata(65536, size), "block size");
    }
    words(with_metadata(65536 + 8 + 4, 0x8000_0000), "disk size");
    words(with_metadata(65536 + 8, 5), "disk size");
    words(with_metadata(65536 + 8 + 4, 0x100), "block allocation table has 1048576 bytes");
    words(with_metadata(65536 + 32, 1000), "logical sector size");
    words(with_metadata(65536 + 4, 2), "lack item");
}

#[test]
fn tables() {
    let bat = 3 << 20;
    for (entry, line) in [
        (6 + (1u64 << 40), "leads beyond the end of the file"),
        (5, "has an invalid state"),
        (4 + (5 << 20), "has an invalid state"),
    ] {
        let mut bad = good();
        bad[bat + 16..bat + 24].copy_from_slice(&entry.to_le_bytes());
        let node = testing::node(&VhdxDriver, memory(&bad), Access::Read);
        let e = node.read(2 << 20, &mut [0; 10]).unwrap_err();
        assert!(e.message().contains(line), "{e:?}");
        assert_eq!(e.offset(), Some((3 << 20) + 16));
        let (report, lines) = check(&VhdxDriver, memory(&bad), Repair::Nothing);
        assert_eq!(report.corruptions, 1);
        assert!(lines[0].contains(line), "{lines:?}");
        let storage = memory(&bad);
        check(&VhdxDriver, std::sync::Arc::clone(&storage) as _, Repair::All);
        let (report, lines) = check(&VhdxDriver, storage, Repair::Nothing);
        assert_eq!((report.corruptions, report.leaks), (0, 0), "{lines:?}");
    }
    // Blocks over the header, and over each other.
    let mut bad = good();
    bad[bat + 16..bat + 24].copy_from_slice(&6u64.to_le_bytes());
    let node = testing::node(&VhdxDriver, memory(&bad), Access::Read);
    assert!(node.read(2 << 20, &mut [0; 10]).unwrap_err().message().contains("into the header"));
    let mut twice = good();
    let first: Vec<u8> = twice[bat..bat + 8].to_vec();
    twice[bat + 16..bat + 24].copy_from_slice(&first);
    let before = testing::content(&testing::node(&VhdxDriver, memory(&twice), Access::Read));
    let (report, lines) = check(&VhdxDriver, memory(&twice), Repair::Nothing);
    assert_eq!(report.corruptions, 1, "{lines:?}");
    let storage = memory(&twice);
    check(&VhdxDriver, std::sync::Arc::clone(&storage) as _, Repair::All);
    let after = storage.to_vec();
    assert!(testing::content(&testing::node(&VhdxDriver, memory(&after), Access::Read)) == before);
    assert_eq!(check(&VhdxDriver, storage, Repair::Nothing).0.corruptions, 0);
}

#[test]
fn damaged_bytes() {
    let good = good();
    let places = (0..12)
        .step_by(4)
        .chain((65536..65536 + 88).step_by(23))
        .chain((3 * 65536..3 * 65536 + 88).step_by(23))
        .chain(((2 << 20)..(2 << 20) + 200).step_by(29))
        .chain(((2 << 20) + 65536..(2 << 20) + 65536 + 44).step_by(9))
        .chain(((3 << 20)..(3 << 20) + 40).step_by(9));
    damaged(&VhdxDriver, &good, places);
}

#[test]
fn probing() {
    assert_eq!(VhdxDriver.probe(&good()[..2048], "x"), 100);
    assert_eq!(VhdxDriver.probe(b"vhdxfil", "x.vhdx"), 0);
}
