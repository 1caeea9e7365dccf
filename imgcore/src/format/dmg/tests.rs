#![allow(clippy::unwrap_used)]
//! Images made here byte by byte; those of other products are in the corpus.

use super::*;
use crate::format::NoGate;
use crate::num::GuestOffset;
use crate::storage::MemoryStorage;

/// `(kind, first sector, sectors, packed bytes)`
type Entry<'a> = (u32, u64, u64, &'a [u8]);

fn image(entries: &[Entry<'_>], sectors: u64) -> Vec<u8> {
    let mut file = Vec::new();
    let mut table = b"mish".to_vec();
    table.resize(200, 0);
    table.extend(u32::try_from(entries.len()).unwrap().to_be_bytes());
    for &(kind, first, count, bytes) in entries {
        table.extend(kind.to_be_bytes());
        table.extend([0; 4]);
        for n in [first, count, len_u64(file.len()), len_u64(bytes.len())] {
            table.extend(n.to_be_bytes());
        }
        file.extend(bytes);
    }
    use base64::Engine;
    let data = base64::engine::general_purpose::STANDARD.encode(table);
    let xml = format!(
        "<?xml version=\"1.0\"?><!DOCTYPE plist PUBLIC \"x\" \"y\"><plist><dict>\
         <key>resource-fork</key><dict><key>blkx</key><array><dict><key>Data</key>\
         <data>\n{data}\n</data></dict></array></dict></dict></plist>"
    );
    let at = len_u64(file.len());
    file.extend(xml.as_bytes());
    let mut trailer = vec![0; 512];
    trailer[..4].copy_from_slice(b"koly");
    trailer[216..224].copy_from_slice(&at.to_be_bytes());
    trailer[224..232].copy_from_slice(&len_u64(xml.len()).to_be_bytes());
    trailer[492..500].copy_from_slice(&sectors.to_be_bytes());
    file.extend(trailer);
    file
}

fn open_bytes(bytes: Vec<u8>) -> Result<PackedImage> {
    open(Arc::new(MemoryStorage::new("a.dmg", bytes)))
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut z = libdeflater::Compressor::new(libdeflater::CompressionLvl::default());
    let mut out = vec![0; z.zlib_compress_bound(bytes.len())];
    let n = z.zlib_compress(bytes, &mut out).unwrap();
    out.truncate(n);
    out
}

#[test]
fn all_kinds_of_content() {
    let packed = zlib(&[7; 1024]);
    let raw = [9; 512];
    let entries: &[Entry<'_>] = &[
        (layout::ZLIB, 1, 2, &packed),
        (layout::RAW, 4, 1, &raw),
        (layout::IGNORE, 5, 1, &[]),
        (layout::TERMINATOR, 6, 0, &[]),
    ];
    let image = open_bytes(image(entries, 8)).unwrap();
    assert_eq!(image.virtual_size(), 4096);
    let kinds: Vec<_> = [0, 512, 1536, 2048, 2560, 3072]
        .map(|at| image.map(GuestOffset(at), 4096 - at).unwrap())
        .into_iter()
        .map(|e| (e.len, std::mem::discriminant(&e.mapping)))
        .collect();
    assert_eq!(kinds.iter().map(|k| k.0).collect::<Vec<_>>(), [512, 1024, 512, 512, 512, 1024]);
    let mut buf = [0; 600];
    image.read_encoded(GuestOffset(700), &mut buf).unwrap();
    assert_eq!(buf, [7; 600]);
}

#[test]
fn what_contradicts_itself_is_refused() {
    let packed = zlib(&[7; 512]);
    let wrong: &[(&[Entry<'_>], &str)] = &[
        (&[(layout::ZLIB, 0, 1, &packed), (layout::RAW, 0, 1, &[0; 512])], "two chunks"),
        (&[(layout::ZLIB, 0, 1 << 40, &packed)], "larger than max"),
        (&[(layout::RAW, 0, 2, &[0; 512])], "512 bytes for 2 sectors"),
        (&[(layout::RAW, u64::MAX / 512, 2, &[0; 1024])], "beyond all files"),
        (&[(0x1234, 0, 1, &packed)], "unknown type"),
    ];
    for (entries, words) in wrong {
        let e = open_bytes(image(entries, 8)).unwrap_err().report();
        assert!(e.contains(words), "{e}");
    }
    let e = open_bytes(vec![1; 4096]).unwrap_err().report();
    assert!(e.contains("UDIF trailer"), "{e}");
    // A packed chunk that is too short or too long is told when it is read.
    for sectors in [1, 3] {
        let packed = zlib(&[7; 1024]);
        let image = open_bytes(image(&[(layout::ZLIB, 0, sectors, &packed)], 8)).unwrap();
        let mut buf = vec![0; small(sectors) * 512];
        assert!(image.read_encoded(GuestOffset(0), &mut buf).is_err());
    }
}

#[test]
fn no_prefix_and_no_flipped_byte_panics() {
    let packed = zlib(&[7; 1024]);
    let good = image(&[(layout::ZLIB, 0, 2, &packed), (layout::RAW, 2, 1, &[1; 512])], 4);
    let try_all = |bytes: Vec<u8>| {
        if let Ok(image) = open_bytes(bytes) {
            let mut at = 0;
            while at < image.virtual_size().min(1 << 20) {
                let Ok(extent) = image.map(GuestOffset(at), image.virtual_size() - at) else {
                    return;
                };
                let mut buf = vec![0; small(extent.len.min(4096))];
                let _ = image.read_encoded(GuestOffset(at), &mut buf);
                at += extent.len;
            }
        }
    };
    for n in 0..good.len() {
        try_all(good[..n].to_vec());
    }
    for at in 0..good.len() {
        for bit in [1, 0x80] {
            let mut bytes = good.clone();
            bytes[at] ^= bit;
            try_all(bytes);
        }
    }
    let driver = DmgDriver;
    let storage = Arc::new(MemoryStorage::new("a.dmg", good));
    let cx = OpenContext {
        storage,
        access: Access::Write,
        gate: &NoGate,
        snapshot: None,
        data_file: None,
        scratch: false,
        header_only: false,
        for_check: false,
        options: &[],
    };
    assert_eq!(driver.open(cx).unwrap_err().kind(), crate::ErrorKind::ReadOnly);
}
