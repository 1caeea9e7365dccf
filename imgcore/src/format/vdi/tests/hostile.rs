//! Headers and maps that lie.

use super::super::VdiDriver;
use super::with_header;
use crate::format::testing::{self, Dir, check, create, damaged, memory, pattern, refused};
use crate::format::{Access, Driver, Repair};

fn good() -> Vec<u8> {
    let storage = memory(&create(&VdiDriver, 5 << 20, &[]).unwrap());
    let node = testing::node(&VdiDriver, std::sync::Arc::clone(&storage) as _, Access::Write);
    node.write(1 << 20, &pattern(1 << 20, 4)).unwrap();
    node.write(3 << 20, &pattern(1000, 5)).unwrap();
    node.close().unwrap();
    storage.to_vec()
}

#[test]
fn headers() {
    let words = |change: fn(&mut super::Header)| {
        let e = refused(&VdiDriver, &with_header(good(), change));
        assert!(e.offset().is_some() && e.path().is_some(), "{e:?}");
        e.message().to_owned()
    };
    assert_eq!(words(|h| h.signature.set(1)), "Image not in VDI format");
    assert_eq!(words(|h| h.version.set(0x1_0002)), "unsupported VDI image (version 1.2)");
    assert_eq!(words(|h| h.image_type.set(7)), "unsupported VDI image (image type 7)");
    assert_eq!(
        words(|h| h.offset_map.set(0x201)),
        "unsupported VDI image (unaligned block map offset 0x201)"
    );
    assert_eq!(
        words(|h| h.offset_data.set(0x401)),
        "unsupported VDI image (unaligned data offset 0x401)"
    );
    assert_eq!(
        words(|h| h.sector_size.set(4096)),
        "unsupported VDI image (sector size 4096 is not 512)"
    );
    for size in [0, 512, 3 << 20, 1 << 29] {
        let e = refused(&VdiDriver, &with_header(good(), |h| h.block_size.set(size)));
        assert!(e.message().contains(&format!("block size {size}")), "{e:?}");
    }
    assert_eq!(
        words(|h| h.disk_size.set(6 << 20)),
        "unsupported VDI image (disk size 6291456, image bitmap has room for 5242880)"
    );
    assert_eq!(
        words(|h| h.disk_size.set(u64::MAX / 2)),
        "Unsupported VDI image size (size is 0x7fffffffffffffff, max supported is 0x1fffff8000000)"
    );
    assert!(words(|h| h.blocks.set(0x1fff_ffff)).contains("too many blocks"));
    assert!(words(|h| h.blocks.set(0x0fff_ffff)).contains("beyond the end of the file"));
    assert!(words(|h| h.offset_map.set(0xffff_fe00)).contains("beyond the end of the file"));
    assert!(words(|h| h.block_extra.set(100)).contains("extra bytes"));
    assert!(words(|h| h.image_type.set(4)).contains("names no parent"));
}

#[test]
fn maps() {
    let mut beyond = good();
    beyond[512..516].copy_from_slice(&9u32.to_le_bytes());
    let node = testing::node(&VdiDriver, memory(&beyond), Access::Write);
    let e = node.read(0, &mut [0; 10]).unwrap_err();
    assert!(e.message().contains("beyond the end of the file"), "{e:?}");
    assert_eq!(e.offset(), Some(512));
    assert!(node.write(2 << 20, b"x").is_err());
    let (report, lines) = check(&VdiDriver, memory(&beyond), Repair::Nothing);
    assert_eq!(report.corruptions, 1);
    assert_eq!(lines, ["ERROR: block index 0 too large, is 9"]);
    let storage = memory(&beyond);
    let (report, _) = check(&VdiDriver, std::sync::Arc::clone(&storage) as _, Repair::All);
    assert_eq!((report.corruptions_fixed, report.corruptions), (1, 0));
    assert_eq!(check(&VdiDriver, storage, Repair::Nothing).0.corruptions, 0);

    let mut twice = good();
    twice[512..516].copy_from_slice(&0u32.to_le_bytes());
    let (report, lines) = check(&VdiDriver, memory(&twice), Repair::Nothing);
    assert_eq!(report.corruptions, 1);
    assert_eq!(lines, ["ERROR: block index 0 also used by 0"]);
    let storage = memory(&twice);
    let before = testing::content(&testing::node(&VdiDriver, memory(&twice), Access::Read));
    check(&VdiDriver, std::sync::Arc::clone(&storage) as _, Repair::All);
    Dir::new().qemu_agrees("vdi", &storage.to_vec(), &before);

    // A count that is too small would make the next program overwrite blocks.
    let whole = good();
    let few = with_header(whole.clone(), |h| h.blocks_allocated.set(1));
    let (report, lines) = check(&VdiDriver, memory(&few), Repair::Nothing);
    assert_eq!(report.corruptions, 1);
    assert_eq!(lines, ["ERROR: allocated blocks mismatch, is 2, should be 1"]);
    let storage = memory(&few);
    check(&VdiDriver, std::sync::Arc::clone(&storage) as _, Repair::All);
    assert!(storage.to_vec() == whole);
}

#[test]
fn damaged_bytes() {
    let good = good();
    damaged(&VdiDriver, &good, (60..100).chain(338..460).chain(512..532));
}

#[test]
fn probing() {
    assert_eq!(VdiDriver.probe(&good(), "x"), 100);
    assert_eq!(VdiDriver.probe(&good()[..67], "x"), 0);
    assert_eq!(VdiDriver.probe(&[0; 2048], "x.vdi"), 0);
}
