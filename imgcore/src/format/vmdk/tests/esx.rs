//! Extents of ESX hosts, made by hand, with qemu-img as the judge.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromZeros, IntoBytes};

use super::super::layout::{CowdHeader, MAGIC_COWD, SeSparseHeader, SeSparseVolatile};
use super::{Dir, content, pattern};
use crate::ErrorKind;
use crate::format::{Access, Mapping};
use crate::num::GuestOffset;

/// Sectors of the disk: two tables and a bit.
const SECTORS: u64 = 2 * 4096 * 8 + 40;
const VOLATILE: u64 = 1;
const GD: u64 = 8;
const GT: u64 = 16;
const GRAINS: u64 = GT + 3 * 64;

fn se_header() -> SeSparseHeader {
    let n = U64::new;
    SeSparseHeader {
        magic: n(0xcafe_babe),
        version: n(0x2_0000_0001),
        capacity: n(SECTORS),
        grain_size: n(8),
        grain_table_size: n(64),
        volatile_offset: n(VOLATILE),
        volatile_size: n(1),
        journal_header_offset: n(2),
        journal_header_size: n(2),
        journal_offset: n(4),
        journal_size: n(4),
        gd_offset: n(GD),
        gd_size: n(1),
        gt_offset: n(GT),
        gt_size: n(3 * 64),
        free_bitmap_offset: n(GRAINS - 2),
        free_bitmap_size: n(1),
        backmap_offset: n(GRAINS - 1),
        backmap_size: n(1),
        grains_offset: n(GRAINS),
        grains_size: n(8 * 6000),
        ..SeSparseHeader::new_zeroed()
    }
}

/// An entry for grain `number`.
fn allocated(number: u64) -> u64 {
    3 << 60 | (number & 0xfff) << 48 | number >> 12
}

fn se_file(grains: &[(u64, u64)], header: &SeSparseHeader, replay: u64) -> Vec<u8> {
    let at = |sector: u64| usize::try_from(sector * 512).unwrap();
    let mut file = vec![0; at(GRAINS) + 6000 * 4096];
    file[..512].copy_from_slice(header.as_bytes());
    let volatile = SeSparseVolatile {
        magic: U64::new(0xcafe_cafe),
        free_gt_number: U64::new(2),
        next_txn_seq_number: U64::new(1),
        replay_journal: U64::new(replay),
    };
    file[at(VOLATILE)..at(VOLATILE) + 32].copy_from_slice(volatile.as_bytes());
    // The second table comes first; the third does not exist.
    for (i, entry) in [0x1000_0000_0000_0001u64, 0x1000_0000_0000_0000].iter().enumerate() {
        file[at(GD) + i * 8..at(GD) + i * 8 + 8].copy_from_slice(&entry.to_le_bytes());
    }
    for &(grain, entry) in grains {
        let table = if grain < 4096 { 1 } else { 0 };
        let place = at(GT + table * 64) + usize::try_from(grain % 4096).unwrap() * 8;
        file[place..place + 8].copy_from_slice(&entry.to_le_bytes());
    }
    let data = pattern(6000 * 4096, 77);
    file[at(GRAINS)..].copy_from_slice(&data);
    file
}

fn descriptor(kind: &str, extent: &str, sectors: u64) -> Vec<u8> {
    format!(
        "# Disk DescriptorFile\nversion=1\nCID=4f3a21c7\nparentCID=ffffffff\ncreateType=\"{kind}\"\nRW {sectors} {extent} \"e.vmdk\"\n"
    )
    .into_bytes()
}

#[test]
fn se_sparse() {
    let dir = Dir::new();
    dir.put("x.vmdk", &descriptor("seSparse", "SESPARSE", SECTORS));
    let grains = [
        (0, allocated(5999)),
        (1, allocated(0)),
        (2, allocated(1)),
        (3, 1 << 60),
        (4, 2 << 60),
        (6, allocated(4095)),
        (7, allocated(4096)),
        (4096, allocated(77)),
        (8191, allocated(5000)),
    ];
    dir.put("e.vmdk", &se_file(&grains, &se_header(), 0));
    let node = dir.node(Access::Read);
    let all = content(&node);
    let data = pattern(6000 * 4096, 77);
    assert!(all[4096..3 * 4096] == data[..2 * 4096]);
    assert!(all[..4096] == data[5999 * 4096..]);
    let map = |grain: u64, len: u64| node.image().map(GuestOffset(grain * 4096), len).unwrap();
    assert_eq!(map(1, 1 << 20).len, 8192, "two neighbours in one run");
    assert_eq!(map(3, 1 << 20).len, 8192);
    assert_eq!(map(3, 1).mapping, Mapping::Zero { reserved: None });
    assert_eq!(map(5, 1).mapping, Mapping::Backing);
    assert_eq!(map(8192, 5 * 4096).mapping, Mapping::Backing);
    super::oracle::same_content(&dir, &all);
    super::oracle::check_clean(&dir);
    let refused = dir.open(Access::Write).map(drop).unwrap_err();
    assert_eq!(refused.message(), "No write support for seSparse images available");
}

#[test]
fn se_sparse_refusals() {
    let dir = Dir::new();
    dir.put("x.vmdk", &descriptor("seSparse", "SESPARSE", SECTORS));
    dir.put("e.vmdk", &se_file(&[], &se_header(), 1));
    assert_eq!(dir.refused().message(), "Image is dirty, Replaying journal not supported");
    let odd = SeSparseHeader { grain_size: U64::new(16), ..se_header() };
    dir.put("e.vmdk", &se_file(&[], &odd, 0));
    assert_eq!(dir.refused().message(), "Unsupported grain size: 16");
    let odd = SeSparseHeader { grain_table_size: U64::new(1), ..se_header() };
    dir.put("e.vmdk", &se_file(&[], &odd, 0));
    assert_eq!(dir.refused().message(), "Unsupported grain table size: 1");
    let far = SeSparseHeader { gd_offset: U64::new(1 << 50), ..se_header() };
    dir.put("e.vmdk", &se_file(&[], &far, 0));
    assert_eq!(dir.refused().kind(), ErrorKind::Corrupt);
    for (entry, message) in [(9 << 60, "invalid"), (allocated(1 << 40), "beyond"), (5, "invalid")] {
        dir.put("e.vmdk", &se_file(&[(3, entry)], &se_header(), 0));
        let node = dir.node(Access::Read);
        node.read(0, &mut [0; 512]).unwrap();
        let e = node.read(3 * 4096, &mut [0; 512]).unwrap_err();
        assert!(e.message().contains(message), "{e:?}");
    }
}

/// COWD is written too: grains of one sector, tables made where there are none.
/// An empty disk with one COWD extent: three tables at most.
pub(super) fn empty_cowd(dir: &Dir, sectors: u64, grain: u32) {
    dir.put("x.vmdk", &descriptor("vmfsSparse", "VMFSSPARSE", sectors));
    let header = CowdHeader {
        magic: U32::new(MAGIC_COWD),
        version: U32::new(1),
        flags: U32::new(3),
        sectors: U32::new(u32::try_from(sectors).unwrap()),
        grain_size: U32::new(grain),
        gd_offset: U32::new(4),
        gd_entries: U32::new(3),
        free_sector: U32::new(5),
    };
    let mut file = header.as_bytes().to_vec();
    file.resize(5 * 512, 0);
    dir.put("e.vmdk", &file);
}

#[test]
fn cowd() {
    let dir = Dir::new();
    let sectors = 3 * 4096 - 100;
    empty_cowd(&dir, sectors, 1);
    let node = dir.node(Access::Write);
    let mut model = vec![0; usize::try_from(sectors).unwrap() * 512];
    for at in [0usize, 1_000_001, 4096 * 512 - 700, 6_000_000] {
        let bytes = pattern(9999, at as u64);
        node.write(at as u64, &bytes).unwrap();
        model[at..at + 9999].copy_from_slice(&bytes);
    }
    node.close().unwrap();
    drop(node);
    assert!(content(&dir.node(Access::Read)) == model);
    super::oracle::same_content(&dir, &model);
    super::oracle::check_clean(&dir);
    // An extent alone is not a disk.
    let e = dir.named("e.vmdk").refused();
    assert_eq!(e.message(), "invalid VMDK image descriptor");
    assert!(e.hints()[0].contains("descriptor"));
}
