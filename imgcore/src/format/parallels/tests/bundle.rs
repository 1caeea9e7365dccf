//! Folders with a descriptor.

use super::super::ParallelsDriver;
use super::clusters;
use crate::format::testing::{self, Dir, content, pattern};
use crate::format::{Access, SpecificInfo};

const BASE: &str = "{11111111-0000-0000-0000-000000000000}";
const TOP: &str = "{5fbaabe3-6958-40ff-92a7-860e329aab41}";
const NONE: &str = "{00000000-0000-0000-0000-000000000000}";

/// Image files of a storage: snapshot, type, file.
type Files<'a> = &'a [(&'a str, &'a str, &'a str)];

/// A descriptor of storages (start, end in sectors; images as snapshot, type, file) and snapshots.
fn descriptor(sectors: u64, storages: &[(u64, u64, Files<'_>)], shots: &[(&str, &str)]) -> String {
    let storages: String = storages
        .iter()
        .map(|(start, end, images)| {
            let images: String = images
                .iter()
                .map(|(id, kind, file)| {
                    format!(
                        "<Image><GUID>{id}</GUID><Type>{kind}</Type><File>{file}</File></Image>"
                    )
                })
                .collect();
            format!("<Storage><Start>{start}</Start><End>{end}</End>{images}</Storage>")
        })
        .collect();
    let shots: String = shots
        .iter()
        .map(|(id, parent)| {
            format!("<Shot><GUID>{id}</GUID><ParentGUID>{parent}</ParentGUID></Shot>")
        })
        .collect();
    format!(
        "<?xml version='1.0' encoding='UTF-8'?>\n<Parallels_disk_image Version=\"1.0\">\
         <Disk_Parameters><Disk_size>{sectors}</Disk_size><Name>disk</Name></Disk_Parameters>\
         <StorageData>{storages}</StorageData><Snapshots>{shots}</Snapshots></Parallels_disk_image>"
    )
}

/// An image with some bytes.
fn written(size: u64, at: u64, bytes: &[u8]) -> Vec<u8> {
    let storage = testing::memory(&clusters(size, "64k"));
    let node = testing::node(&ParallelsDriver, std::sync::Arc::clone(&storage) as _, Access::Write);
    node.write(at, bytes).unwrap();
    node.close().unwrap();
    storage.to_vec()
}

#[test]
fn snapshots_and_parts() {
    let dir = Dir::new();
    let plain = pattern(1 << 20, 1);
    dir.put("a.hds", &plain);
    dir.put("b.hds", &written(1 << 20, 65536, &pattern(65536, 2)));
    dir.put("c.hds", &written(2 << 20, 100_000, &pattern(50_000, 3)));
    dir.put("d.hds", &written(2 << 20, 1 << 20, &pattern(1000, 4)));
    let parts: [(u64, u64, &[_]); 2] = [
        (0, 2048, &[(BASE, "Plain", "a.hds"), (TOP, "Compressed", "b.hds")]),
        (2048, 6144, &[(TOP, "Compressed", "d.hds"), (BASE, "Compressed", "c.hds")]),
    ];
    let shots = [(BASE, NONE), (TOP, BASE)];
    dir.put("DiskDescriptor.xml", descriptor(6144, &parts, &shots).as_bytes());
    let node = dir.open("DiskDescriptor.xml", "parallels", Access::Read).unwrap();
    let mut disk = plain;
    disk[65536..131_072].copy_from_slice(&pattern(65536, 2));
    disk.resize(3 << 20, 0);
    disk[(1 << 20) + 100_000..][..50_000].copy_from_slice(&pattern(50_000, 3));
    disk[2 << 20..][..1000].copy_from_slice(&pattern(1000, 4));
    assert!(content(&node) == disk);
    let Some(SpecificInfo::Parallels(info)) = node.image().info().unwrap().specific else {
        panic!("no details")
    };
    let bundle = info.bundle.unwrap();
    assert_eq!((bundle.snapshots, bundle.files.len()), (1, 4));
    drop(node);
    let folder = dir.file(".");
    std::fs::create_dir(folder.join("disk.hdd")).unwrap();
    for name in ["DiskDescriptor.xml", "a.hds", "b.hds", "c.hds", "d.hds"] {
        std::fs::rename(folder.join(name), folder.join("disk.hdd").join(name)).unwrap();
    }
    let node = dir.open("disk.hdd", "parallels", Access::Read).unwrap();
    assert!(content(&node) == disk);
    drop(node);
    let e = dir.open("disk.hdd", "parallels", Access::Write).unwrap_err();
    assert!(e.report().contains("read-only"), "{}", e.report());
}

#[test]
fn descriptors_that_lie() {
    let dir = Dir::new();
    dir.put("a.hds", &[0; 4096]);
    dir.put("b.hds", &clusters(1 << 20, "64k"));
    let shots: &[_] = &[(TOP, NONE)];
    let a: &[_] = &[(TOP, "Plain", "a.hds")];
    let refuse = |text: &str, what: &str| {
        dir.put("DiskDescriptor.xml", text.as_bytes());
        let e = dir.open("DiskDescriptor.xml", "parallels", Access::Read).unwrap_err();
        assert!(e.report().contains(what), "{}", e.report());
    };
    let good = descriptor(8, &[(0, 8, a)], shots);
    dir.put("DiskDescriptor.xml", good.as_bytes());
    assert_eq!(
        dir.open("DiskDescriptor.xml", "parallels", Access::Read).unwrap().virtual_size(),
        4096
    );
    refuse(&descriptor(9, &[(0, 9, a)], shots), "holds 4096 bytes");
    refuse(&descriptor(9, &[(0, 8, a)], shots), "end at sector 8");
    refuse(&descriptor(17, &[(0, 8, a), (9, 17, a)], shots), "leave a gap");
    refuse(
        &descriptor(8, &[(0, 8, &[(TOP, "Compressed", "b.hds")])], shots),
        "holds 1048576 bytes",
    );
    refuse(&descriptor(8, &[(0, 8, &[(TOP, "Compressed", "a.hds")])], shots), "not in Parallels");
    refuse(&descriptor(8, &[(0, 8, &[(TOP, "Weird", "a.hds")])], shots), "unknown type 'Weird'");
    refuse(&descriptor(8, &[(0, 8, a)], &[(TOP, TOP)]), "circle");
    refuse(&descriptor(8, &[(0, 8, a)], &[(TOP, BASE)]), "has no snapshot");
    refuse(&descriptor(8, &[(0, 8, a)], &[(TOP, BASE), (BASE, NONE)]), "names no image file");
    refuse(&descriptor(8, &[(0, 8, &[(TOP, "Plain", "missing")])], shots), "No such file");
    refuse(&good.replace("<Disk_size>8", "<Disk_size>x"), "is no size");
    refuse(&good.replace("</Storage>", ""), "is no XML");
    let secret = "<Encryption><Engine>{1}</Engine></Encryption><Name>";
    refuse(&good.replace("<Name>", secret), "encrypted");
}

#[test]
fn the_folder_of_another_program() {
    let dir = Dir::new();
    let name = "plain.hdd.0.{5fbaabe3-6958-40ff-92a7-860e329aab41}.hds";
    let from = "parallels/pd-plain.hdd";
    if dir.unpack(&format!("{from}/{name}.xz"), name).is_none() {
        return;
    }
    dir.unpack(&format!("{from}/DiskDescriptor.xml"), "DiskDescriptor.xml");
    let node = dir.open("DiskDescriptor.xml", "parallels", Access::Read).unwrap();
    assert!(content(&node) == dir.get(name));
}
