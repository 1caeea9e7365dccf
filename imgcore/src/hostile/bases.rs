//! Good images to start from: one for each shape that a format has, small, with a little of everything.

use std::sync::Arc;

use super::storage::NewFile;
use super::{Base, image_node, open};
use crate::format::{Access, CreateContext, CreateOptions, Driver, Granularity, Image, ZeroSpace};
use crate::graph::Node;
use crate::num::{GuestOffset, small};
use crate::storage::MemoryStorage;

/// Options and size of each image.
type Shape = (u64, &'static [(&'static str, &'static str)]);

fn shapes(format: &str) -> &'static [Shape] {
    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;
    match format {
        "raw" => &[(200 * KIB, &[])],
        "qcow2" => &[
            (MIB, &[("cluster_size", "512")]),
            (8 * MIB, &[("cluster_size", "4k"), ("compat", "0.10")]),
            (2 * MIB, &[("cluster_size", "16k"), ("extended_l2", "on")]),
            (MIB, &[("cluster_size", "1k"), ("refcount_bits", "1"), ("lazy_refcounts", "on")]),
            (MIB, &[("cluster_size", "2k"), ("compression_type", "zstd")]),
            (
                256 * KIB,
                &[
                    ("cluster_size", "4k"),
                    ("encrypt.format", "luks"),
                    ("encrypt.key-secret", "s"),
                    ("encrypt.iter-time", "1"),
                ],
            ),
        ],
        "vmdk" => &[
            (4 * MIB, &[]),
            (2 * MIB, &[("zeroed_grain", "on")]),
            (2 * MIB, &[("subformat", "streamOptimized")]),
        ],
        "vdi" => &[(2 * MIB, &[]), (MIB, &[("static", "on")])],
        "vpc" => &[(3 * MIB, &[]), (MIB, &[("subformat", "fixed")])],
        "vhdx" => &[(3 * MIB, &[("block_size", "1M")]), (MIB, &[("subformat", "fixed")])],
        "luks" => &[(64 * KIB, &[("key-secret", "s"), ("iter-time", "1")])],
        "qcow" => {
            &[(MIB, &[]), (256 * KIB, &[("encrypt.format", "aes"), ("encrypt.key-secret", "s")])]
        }
        "qed" => &[(MIB, &[("cluster_size", "4k"), ("table_size", "1")]), (8 * MIB, &[])],
        "parallels" => &[(4 * MIB, &[]), (MIB, &[("cluster_size", "4k")])],
        _ => &[],
    }
}

/// The images of a format that can be created. The same on every call, but for identifiers and keys.
///
/// # Panics
///
/// If one cannot be made.
pub fn bases(driver: &dyn Driver) -> Vec<Base> {
    shapes(driver.name()).iter().map(|shape| make(driver, shape)).collect()
}

fn make(driver: &dyn Driver, &(size, options): &Shape) -> Base {
    let file = Arc::new(MemoryStorage::new("image", Vec::new()));
    let given: Vec<_> = options.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    let mut options = CreateOptions::parse(driver.create_options(), &given).unwrap();
    driver.resolve_options(&mut options, size).unwrap();
    driver
        .create(&CreateContext {
            files: &NewFile(Arc::clone(&file)),
            file_name: "image",
            size,
            options: &options,
            backing: None,
            backing_image: None,
        })
        .unwrap();
    let image = open(driver, &file, Access::Write, false).unwrap();
    let node = image_node(image, Access::Write);
    fill(&node);
    node.close().unwrap();
    drop(node);
    Base::new(file.to_vec())
}

/// Data at the beginning, in the middle and at the end, zeroes, a compressed cluster, a snapshot, a bitmap: as
/// far as the format has them.
fn fill(node: &Node) {
    let end = node.virtual_size();
    let image = node.image();
    let Granularity { encode, append_only, .. } = image.granularity();
    if let Some(unit) = encode {
        encoded(image, if append_only { 0 } else { end / 4 / unit * unit }, unit);
    }
    if append_only {
        return;
    }
    node.write(700, &[0x11; 3000]).unwrap();
    node.write(end / 2, &[0x22; 5000]).unwrap();
    let _ = node.write_zeroes(end / 2 + 2048, 20_000, ZeroSpace::Keep);
    let _ = node.write_zeroes(600, 9000, ZeroSpace::Unmap);
    if let Some(snapshots) = image.snapshots() {
        let _ = snapshots.create("one", std::time::UNIX_EPOCH);
    }
    node.write(end / 2 + 100, &[0x33; 600]).unwrap();
    node.write(end - 777, &[0x44; 777]).unwrap();
    if let Some(bitmaps) = image.bitmaps()
        && bitmaps.can_store()
        && bitmaps.add("bits", 0).is_ok()
    {
        let _ = bitmaps.mark("bits", &[(0, end / 3)]);
    }
}

/// Stores one unit of guest bytes compressed.
fn encoded(image: &dyn Image, at: u64, unit: u64) {
    let Some(mut encoder) = image.encoder(crate::format::Level::Default) else { return };
    let bytes: Vec<u8> = (0..unit).map(|i| u8::try_from(i / 40 % 251).unwrap_or(0)).collect();
    let mut out = Vec::new();
    let encoded = encoder.encode(GuestOffset(at), &bytes, &mut out).unwrap();
    if encoded == crate::format::Encoded::Incompressible {
        return;
    }
    let grant = image.prepare_encoded(GuestOffset(at), crate::num::len_u64(out.len())).unwrap();
    assert_eq!(grant.at.0, at, "a place elsewhere");
    let storage = image.storage(grant.storage);
    storage.write_at(grant.offset.0, &out[..small(crate::num::len_u64(out.len()))]).unwrap();
    image.commit_write(grant).unwrap();
}
