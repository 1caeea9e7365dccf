//! The expected texts were printed by qemu-img 10.0.2.

use imgcore::format::info::{FileInfo, Qcow2BitmapInfo, Qcow2Info, VmdkExtentInfo, VmdkInfo};

use super::*;

fn file(name: &str, len: u64, used: u64) -> ChildInfo {
    let info = InfoReport {
        filename: name.into(),
        format: "file".into(),
        virtual_size: len,
        actual_size: Some(used),
        format_specific: Some(SpecificInfo::File(FileInfo::default())),
        ..InfoReport::default()
    };
    ChildInfo { name: "file".into(), info }
}

fn qcow2() -> InfoReport {
    InfoReport {
        dirty_flag: Some(false),
        children: vec![file("sub/o3.qcow2", 197_120, 200_704)],
        backing_filename: Some("../o2.qcow2".into()),
        full_backing_filename: Some("sub/../o2.qcow2".into()),
        backing_filename_format: Some("qcow2".into()),
        virtual_size: 1 << 20,
        filename: "sub/o3.qcow2".into(),
        cluster_size: Some(65536),
        format: "qcow2".into(),
        actual_size: Some(200_704),
        format_specific: Some(SpecificInfo::Qcow2(Qcow2Info {
            compat: "1.1".into(),
            extended_l2: Some(false),
            lazy_refcounts: Some(false),
            corrupt: Some(false),
            refcount_bits: 16,
            bitmaps: Some(vec![Qcow2BitmapInfo {
                name: "c".into(),
                granularity: 65536,
                flags: vec!["auto".into()],
            }]),
            compression_type: "zlib".into(),
            ..Qcow2Info::default()
        })),
        ..InfoReport::default()
    }
}

#[test]
fn qcow2_for_people() {
    assert_eq!(
        human(&[qcow2()]),
        "\
image: sub/o3.qcow2
file format: qcow2
virtual size: 1 MiB (1048576 bytes)
disk size: 196 KiB
cluster_size: 65536
backing file: ../o2.qcow2 (actual path: sub/../o2.qcow2)
backing file format: qcow2
Format specific information:
    compat: 1.1
    compression type: zlib
    lazy refcounts: false
    bitmaps:
        [0]:
            flags:
                [0]: auto
            name: c
            granularity: 65536
    refcount bits: 16
    corrupt: false
    extended l2: false
Child node '/file':
    filename: sub/o3.qcow2
    protocol type: file
    file length: 192 KiB (197120 bytes)
    disk size: 196 KiB
"
    );
}

#[test]
fn vmdk_for_people() {
    let info = InfoReport {
        virtual_size: 41_943_040,
        filename: "s.vmdk".into(),
        format: "vmdk".into(),
        cluster_size: Some(65536),
        format_specific: Some(SpecificInfo::Vmdk(VmdkInfo {
            create_type: "streamOptimized".into(),
            cid: 1_661_933_608,
            parent_cid: u32::MAX,
            extents: vec![VmdkExtentInfo {
                filename: "s.vmdk".into(),
                format: String::new(),
                virtual_size: 41_943_040,
                cluster_size: Some(65536),
                compressed: Some(true),
            }],
        })),
        ..InfoReport::default()
    };
    assert_eq!(
        human(&[info]),
        "\
image: s.vmdk
file format: vmdk
virtual size: 40 MiB (41943040 bytes)
disk size: unavailable
cluster_size: 65536
Format specific information:
    cid: 1661933608
    parent cid: 4294967295
    create type: streamOptimized
    extents:
        [0]:
            compressed: true
            virtual size: 41943040
            filename: s.vmdk
            cluster size: 65536
            format: 
"
    );
}

#[test]
fn a_chain_is_separated_by_blank_lines() {
    let text = human(&[qcow2(), qcow2()]);
    assert!(text.contains("disk size: 196 KiB\n\nimage: sub/o3.qcow2\n"));
    assert!(json(&[qcow2()], true).is_array());
    assert!(json(&[qcow2()], false).is_object());
}

#[test]
fn qcow2_for_programs() {
    let text = qemu_json::pretty(&json(&[qcow2()], false));
    let keys: Vec<&str> = text
        .lines()
        .filter(|l| l.starts_with("    \""))
        .filter_map(|l| l.trim().split('"').nth(1))
        .collect();
    assert_eq!(
        keys,
        [
            "children",
            "backing-filename-format",
            "virtual-size",
            "filename",
            "cluster-size",
            "format",
            "actual-size",
            "format-specific",
            "full-backing-filename",
            "backing-filename",
            "dirty-flag"
        ]
    );
    assert!(text.contains("                \"children\": [\n                ],\n"));
    assert!(text.contains("                    \"data\": {\n                    }\n"));
}
