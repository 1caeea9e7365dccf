//! Descriptors and headers that lie.

use super::Dir;
use crate::ErrorKind;
use crate::format::{Access, Driver};

fn text(create_type: &str, extents: &str) -> String {
    format!(
        "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType=\"{create_type}\"\n\n{extents}\n"
    )
}

fn refused(create_type: &str, extents: &str) -> crate::Error {
    let dir = Dir::new();
    dir.put("f.bin", &[7; 8192]);
    dir.put("x.vmdk", text(create_type, extents).as_bytes());
    dir.refused()
}

#[test]
fn extent_lines() {
    for line in [
        "RW -5 FLAT \"f.bin\" 0",
        "RW 8 FLAT \"f.bin\" 99999999999999999999",
        "RW 8 FLAT \"f.bin\" -1",
        "RW 8 FLAT \"f.bin\" 36028797018963967",
        "RW 8 FLAT \"f.bin\"",
        "RW 8 FLAT f.bin 0",
        "RW 8 FLAT \"f.bin 0",
        "RW 8 FLAT \"\" 0",
        "RW 8 FOO \"f.bin\" 0",
        "RW 8 VMFS \"f.bin\" 8",
        "RW 18446744073709551615 FLAT \"f.bin\" 0",
        "RW",
    ] {
        let e = refused("monolithicFlat", line);
        assert_eq!(e.message(), format!("Invalid extent line: {line}"));
    }
    let many = "RW 4611686018427387 ZERO\n".repeat(5);
    assert_eq!(refused("monolithicFlat", &many).kind(), ErrorKind::TooLarge);
    let many = "RW 1 ZERO\n".repeat(40_000);
    assert_eq!(refused("monolithicFlat", &many).kind(), ErrorKind::TooLarge);
    for none in ["", "RW 0 FLAT \"f.bin\" 0", "# RW 8 FLAT \"f.bin\" 0"] {
        assert_eq!(refused("monolithicFlat", none).message(), "invalid VMDK image descriptor");
    }
    assert!(
        refused("monolithicFlat", "NOACCESS 8 FLAT \"f.bin\" 0").message().contains("NOACCESS")
    );
    let rdm = refused("vmfs", "RW 8 VMFSRDM \"f.bin\"");
    assert_eq!(rdm.message(), "Unsupported extent type 'VMFSRDM'");
    let short = refused("monolithicFlat", "RW 800 FLAT \"f.bin\" 0");
    assert!(short.message().contains("too short"), "{short:?}");
    let missing = refused("monolithicFlat", "RW 8 FLAT \"nix\" 0");
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    let not = refused("vmfsSparse", "RW 8 VMFSSPARSE \"f.bin\"");
    assert_eq!(not.message(), "Image not in VMDK format");
}

#[test]
fn create_types() {
    for kind in ["fullDevice", "custom", "partitionedDevice", "monolithicSparse", ""] {
        let e = refused(kind, "RW 8 FLAT \"f.bin\" 0");
        assert_eq!(e.message(), format!("Unsupported image type '{kind}'"));
    }
}

#[test]
fn texts() {
    let dir = Dir::new();
    for text in [
        "",
        "v",
        "# Disk DescriptorFile",
        "version=1\nparentCID=1\n",
        "CID=zz\n",
        "CID=123456789\n",
    ] {
        dir.put("x.vmdk", text.as_bytes());
        assert_eq!(dir.refused().message(), "invalid VMDK image descriptor", "{text}");
    }
    // Not ours to be strict about.
    dir.put("f.bin", &[7; 8192]);
    for text in [
        "version = 1\r\nCID = 1\r\ncreateType = \"vmfs\"\r\nRW 8 VMFS \"f.bin\"\r\n",
        "cid=1\ncreatetype=\"monolithicFlat\"\nRDONLY\t8  flat  \"f.bin\"  8",
        "CID=1\ncreateType=\"monolithicFlat\"\n#\u{e9}\nrw 16 FLAT \"f.bin\" 0\0RW 9 FOO",
    ] {
        let bytes: Vec<u8> = text.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect();
        dir.put("x.vmdk", &bytes);
        let node = dir.node(Access::Read);
        assert!(super::content(&node).iter().all(|&b| b == 7));
    }
    // A read-only extent stays so.
    dir.put("x.vmdk", b"CID=1\ncreateType=\"monolithicFlat\"\nRDONLY 8 FLAT \"f.bin\" 8\n");
    assert_eq!(dir.node(Access::Write).write(0, b"x").unwrap_err().kind(), ErrorKind::ReadOnly);
}

#[test]
fn unnamed_parents() {
    let dir = Dir::new();
    dir.put("f.bin", &[7; 8192]);
    let base = "CID=1\ncreateType=\"monolithicFlat\"\nRW 8 FLAT \"f.bin\" 8\n";
    let uuid = "ddb.uuid.parent=\"7782f4ef-0ad7-4ee7-8150-e89e9c521089\"\n";
    let zero = "ddb.uuid.parent=\"00000000-0000-0000-0000-000000000000\"\n";
    for (more, good) in [
        (uuid, false),
        ("parentCID=12345678\n", false),
        (zero, true),
        ("parentCID=00000000\n", true),
        ("parentFileNameHint=\"a\"\nparentCID=12345678\n", true),
    ] {
        dir.put("x.vmdk", format!("{base}{more}").as_bytes());
        assert_eq!(dir.open(Access::Read).is_ok(), good, "{more}");
    }
}

#[test]
fn probing() {
    let probe = |b: &[u8]| super::VmdkDriver.probe(b, "x");
    assert_eq!(probe(b"KDMV"), 100);
    assert_eq!(probe(b"COWD\x01"), 100);
    assert_eq!(probe(b"# Disk DescriptorFile\nversion=1\n"), 100);
    assert_eq!(probe(b"\n  \n# x\r\n#\nversion=3\r\nfoo"), 100);
    assert_eq!(probe(b"# Disk DescriptorFile\nversion=9\n"), 0);
    assert_eq!(probe(b"# Disk DescriptorFile\nCID=1\nversion=1\n"), 0);
    assert_eq!(probe(b"# never ends"), 0);
    assert_eq!(probe(b"KDM"), 0);
    assert_eq!(probe(&[0; 2048]), 0);
}

/// Every single damaged byte of header, descriptor and tables: an answer, quickly, and no panic.
#[test]
fn damaged_bytes() {
    let dir = Dir::new();
    dir.create(3 << 20, &[("zeroed_grain", "on")]).unwrap();
    let node = dir.node(Access::Write);
    node.write(100_000, &[1; 200_000]).unwrap();
    node.close().unwrap();
    drop(node);
    let good = std::fs::read(dir.main()).unwrap();
    for at in (0..80).chain(512..900).chain((21 * 512..27 * 512 + 64).step_by(3)) {
        for value in [0, 0x7f, 0xff] {
            let mut bad = good.clone();
            bad[at] = value;
            std::fs::write(dir.main(), &bad).unwrap();
            for access in [Access::Read, Access::Write] {
                let Ok(image) = dir.open(access) else { continue };
                let node = crate::graph::Node::new("x", image, None, access);
                let mut buf = vec![0; 100_000];
                let end = node.virtual_size();
                for at in [0, 100_000, 2_900_000].map(|a: u64| a.min(end.saturating_sub(100_000))) {
                    let part = usize::try_from(end.min(100_000)).unwrap();
                    let _ = node.read(at, &mut buf[..part]);
                }
                if access == Access::Write && end <= 8 << 20 {
                    let _ = node.write(70_000.min(end.saturating_sub(10)), b"0123456789");
                    let _ = node.close();
                }
                let _ = node.image().info();
            }
        }
    }
}
