//! Footers, headers and tables that lie.

use super::super::VpcDriver;
use super::super::layout::{Footer, Header};
use super::{changed, small_blocks};
use crate::format::testing::{self, check, create, damaged, memory, pattern, refused};
use crate::format::{Access, Driver, Repair};

fn good() -> Vec<u8> {
    let storage = memory(&small_blocks(20));
    let node = testing::node(&VpcDriver, std::sync::Arc::clone(&storage) as _, Access::Write);
    node.write(100_000, &pattern(200_000, 4)).unwrap();
    node.close().unwrap();
    storage.to_vec()
}

#[test]
fn headers() {
    let words = |change: fn(&mut Footer, &mut Header)| {
        let e = refused(&VpcDriver, &changed(good(), change));
        assert!(e.offset().is_some() && e.path().is_some(), "{e:?}");
        e.message().to_owned()
    };
    assert_eq!(words(|f, _| f.disk_type.set(99)), "unsupported VHD disk type 99");
    assert_eq!(words(|f, _| f.version.set(0x2_0000)), "unsupported VHD version 2.0");
    assert_eq!(words(|f, _| f.data_offset.set(u64::MAX)), "Error reading dynamic VHD header");
    assert_eq!(words(|f, _| f.data_offset.set(1 << 62)), "Invalid header magic");
    assert_eq!(words(|f, _| f.data_offset.set(513)), "Invalid header magic");
    assert_eq!(words(|_, h| h.cookie[0] = 1), "Invalid header magic");
    assert_eq!(words(|_, h| h.max_entries.set(1)), "Page table too small");
    assert_eq!(
        words(|_, h| h.max_entries.set(0x7fff_ffff)),
        "Max Table Entries too large (2147483647)"
    );
    assert!(words(|_, h| h.max_entries.set(0x0fff_ffff)).contains("lies outside the file"));
    assert!(words(|_, h| h.table_offset.set(1 << 62)).contains("lies outside the file"));
    assert!(words(|_, h| h.table_offset.set(u64::MAX)).contains("lies outside the file"));
    for size in [0, 3, 512, 1 << 29] {
        let e = refused(&VpcDriver, &changed(good(), |_, h| h.block_size.set(size)));
        assert_eq!(e.message(), format!("Invalid block size {size}"));
    }
    assert_eq!(words(|f, _| f.current_size.set(1 << 60)), "File too large");
    assert_eq!(refused(&VpcDriver, &[0; 4096]).message(), "invalid VPC image");
    assert_eq!(refused(&VpcDriver, &[0; 40]).message(), "File too small for a VHD header");
    let mut wrong = good();
    wrong.truncate(wrong.len() - 512);
    wrong[100] = 1;
    assert_eq!(refused(&VpcDriver, &wrong).message(), "Incorrect header checksum");
}

#[test]
fn tables() {
    let mut beyond = good();
    beyond[1536..1540].copy_from_slice(&0x00ff_fff0u32.to_be_bytes());
    let e = refused(&VpcDriver, &beyond);
    assert!(e.message().contains("points after the end of file"), "{e:?}");
    assert_eq!(e.offset(), Some(1536));
    for (entry, words) in [(0x00ff_fff0u32, "beyond the end"), (1, "inside of the header")] {
        let mut bad = good();
        bad[1536..1540].copy_from_slice(&entry.to_be_bytes());
        let (report, lines) = check(&VpcDriver, memory(&bad), Repair::Nothing);
        assert_eq!(report.corruptions, 1, "{lines:?}");
        assert!(lines[0].contains(words), "{lines:?}");
        let storage = memory(&bad);
        check(&VpcDriver, std::sync::Arc::clone(&storage) as _, Repair::All);
        let (report, _) = check(&VpcDriver, storage, Repair::Nothing);
        assert_eq!((report.corruptions, report.leaks), (0, 0));
    }
    // Two blocks, one over the other.
    let mut over = good();
    let second = u32::from_be_bytes(over[1544..1548].try_into().unwrap()) + 3;
    over[1536..1540].copy_from_slice(&second.to_be_bytes());
    let before = testing::content(&testing::node(&VpcDriver, memory(&over), Access::Read));
    let (report, lines) = check(&VpcDriver, memory(&over), Repair::Nothing);
    assert!(report.corruptions > 0 && lines[0].contains("lies over another"), "{lines:?}");
    let storage = memory(&over);
    check(&VpcDriver, std::sync::Arc::clone(&storage) as _, Repair::All);
    let after = storage.to_vec();
    assert!(testing::content(&testing::node(&VpcDriver, memory(&after), Access::Read)) == before);
    assert_eq!(check(&VpcDriver, storage, Repair::Nothing).0.corruptions, 0);
}

/// A guest that writes a header to its first sectors does not make its fixed disk a dynamic one.
#[test]
fn a_fixed_disk_stays_fixed() {
    let fixed = create(&VpcDriver, 4 << 20, &[("subformat", "fixed")]).unwrap();
    let mut bytes = fixed;
    let fake = good();
    bytes[..fake.len()].copy_from_slice(&fake);
    let node = testing::node(&VpcDriver, memory(&bytes), Access::Read);
    let content = testing::content(&node);
    assert!(content[..fake.len()] == fake);
    // And what a truncated copy lacks is not made up.
    let mut short = bytes[..1 << 20].to_vec();
    short.extend_from_slice(&bytes[bytes.len() - 512..]);
    let e = refused(&VpcDriver, &short);
    assert!(e.message().contains("the file holds only"), "{e:?}");
}

/// Makers that count by geometry.
#[test]
fn sizes() {
    let size = |creator: &[u8; 4], options: &[(String, String)]| {
        let bytes = create(&VpcDriver, 10 << 20, &[]).unwrap();
        let bytes = changed(bytes, |f, _| {
            f.creator = *creator;
            f.current_size.set(10_000_001);
        });
        VpcDriver
            .open(crate::format::OpenContext {
                storage: memory(&bytes),
                access: Access::Read,
                gate: &crate::format::NoGate,
                snapshot: None,
                data_file: None,
                scratch: false,
                header_only: false,
                for_check: false,
                options,
            })
            .map(|image| image.virtual_size())
    };
    let option = |v: &str| [("force_size_calc".to_owned(), v.to_owned())];
    for maker in [b"qemu", b"vpc "] {
        assert_eq!(size(maker, &[]).unwrap(), 10_514_432);
        assert_eq!(size(maker, &option("current_size")).unwrap(), 9_999_872);
    }
    for maker in [b"qem2", b"win ", b"rimg", b"vbox", b"tap\0"] {
        assert_eq!(size(maker, &[]).unwrap(), 9_999_872);
        assert_eq!(size(maker, &option("chs")).unwrap(), 10_514_432);
    }
    let e = size(b"win ", &option("foo")).unwrap_err();
    assert_eq!(e.message(), "Invalid size calculation mode: 'foo'");
}

#[test]
fn damaged_bytes() {
    let good = good();
    damaged(&VpcDriver, &good, (0..84).chain(512..600).chain(1080..1140).chain(1536..1560));
}

#[test]
fn probing() {
    assert_eq!(VpcDriver.probe(&good(), "x"), 100);
    assert_eq!(VpcDriver.probe(b"conectix", "x"), 100);
    assert_eq!(VpcDriver.probe(b"conecti", "x.vhd"), 0);
}
