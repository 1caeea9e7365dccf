#![allow(clippy::unwrap_used)]

use std::io::Write;

use super::*;

/// A file of an archive.
fn entry(name: &str, content: &[u8]) -> Vec<u8> {
    let numbers = [1, 0o100_644, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0];
    let mut out = b"070701".to_vec();
    for number in numbers {
        write!(out, "{number:08X}").unwrap();
    }
    out.extend(name.as_bytes());
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend(content);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out: Vec<u8> = files.iter().flat_map(|(n, c)| entry(n, c)).collect();
    out.extend(entry("TRAILER!!!", b""));
    out.resize(out.len().next_multiple_of(512), 0);
    out
}

fn main_archive() -> Vec<u8> {
    archive(&[
        ("init", b"#!/bin/sh"),
        ("scripts/functions", b""),
        ("usr/lib/modules/6.1.0/kernel/drivers/block/virtio_blk.ko.zst", &[7; 5000]),
        ("lib/modules/6.1.0/kernel/drivers/virtio/virtio-pci.ko", b"x"),
        ("lib/modules/6.1.0/modules.builtin", b"kernel/drivers/ata/ahci.ko\n"),
    ])
}

fn check(bytes: &[u8], packing: &str) {
    // Small reads, so that nothing depends on where a buffer ends.
    for capacity in [16, 100, 1 << 20] {
        let mut input = std::io::BufReader::with_capacity(capacity, bytes);
        let found = look(&mut input).unwrap();
        assert_eq!(found.damaged, None, "{packing} {capacity}");
        assert!(found.microcode, "{packing}");
        assert_eq!(found.generator, Generator::InitramfsTools);
        assert!(found.modules.contains("virtio_blk"), "{packing} {:?}", found.modules);
        assert!(found.modules.contains("virtio_pci"));
        assert!(found.built_in.contains("ahci"));
        assert!(found.packing.contains(&packing), "{packing} {:?}", found.packing);
    }
}

#[test]
fn archives_in_a_row_packed_in_every_way() {
    let early = archive(&[("kernel/x86/microcode/GenuineIntel.bin", &[1; 3000])]);
    let main = main_archive();
    let with = |packed: &[u8]| [early.as_slice(), packed, &[0; 8]].concat();
    check(&with(&main), "none");
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(&main).unwrap();
    check(&with(&gz.finish().unwrap()), "gzip");
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
    xz.write_all(&main).unwrap();
    check(&with(&xz.finish().unwrap()), "xz");
    check(&with(&zstd::encode_all(&main[..], 1).unwrap()), "zstd");
    let mut bz = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    bz.write_all(&main).unwrap();
    check(&with(&bz.finish().unwrap()), "bzip2");
}

#[test]
fn cut_off_and_bombs() {
    let main = main_archive();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(&main).unwrap();
    let packed = gz.finish().unwrap();
    for end in [1, 2, 10, 100, packed.len() - 1] {
        let found = look(&mut &packed[..end.min(packed.len())]);
        assert!(found.is_err() || found.unwrap().damaged.is_some(), "{end}");
    }
    assert!(look(&mut &b"nonsense nonsense nonsense"[..]).is_err());
    assert_eq!(look(&mut &b""[..]).unwrap().files, 0);
    // A file that claims to be as large as can be.
    let mut huge = entry("a", b"");
    huge[6 + 8 * 6..6 + 8 * 7].copy_from_slice(b"FFFFFFFF");
    assert!(look(&mut &huge[..]).unwrap().damaged.is_some());
}

proptest::proptest! {
    #[test]
    fn damage_is_survived(
        hits in proptest::collection::vec((0usize..20_000, proptest::prelude::any::<u8>()), 1..30),
        packed in proptest::prelude::any::<u8>(),
    ) {
        let main = main_archive();
        let mut bytes = match packed % 4 {
            0 => main,
            1 => zstd::encode_all(&main[..], 1).unwrap(),
            2 => {
                let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                gz.write_all(&main).unwrap();
                gz.finish().unwrap()
            }
            _ => {
                // The magic numbers of LZ4 and LZO, and anything behind.
                let lzo = [0x89, b'L', b'Z', b'O', 0, 0x0d, 0x0a, 0x1a, 0x0a];
                let lz4 = [0x02, 0x21, 0x4c, 0x18];
                [if packed > 127 { &lzo[..] } else { &lz4[..] }, &main].concat()
            }
        };
        for (at, value) in hits {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        let _ = look(&mut &bytes[..]);
    }
}
