//! Every magic number in a file, independent of the drivers: what another program may take it for.

use serde::Serialize;

use crate::Result;
use crate::num::{len_u64, small};
use crate::storage::Storage;

/// What a magic number means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A format of disk images, by the name of its driver where there is one.
    Image,
    /// Something packed, or an archive.
    Packed,
    /// What is on a disk: a boot sector, a partition table, a disc.
    Disk,
}

/// A magic number that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Magic {
    /// What it is.
    pub name: &'static str,
    /// What kind of thing.
    pub kind: Kind,
    /// Where, from the beginning.
    pub offset: u64,
}

/// Where to look: from the beginning, or back from the end.
enum Place {
    Head(u64),
    Tail(u64),
}

use Kind::{Disk, Image, Packed};
use Place::{Head, Tail};

const MAGICS: &[(Place, &[u8], &str, Kind)] = &[
    (Head(0), b"QFI\xfb\0\0\0\x01", "qcow", Image),
    (Head(0), b"QFI\xfb", "qcow2", Image),
    (Head(0), b"QED\0", "qed", Image),
    (Head(0), b"KDMV", "vmdk", Image),
    (Head(0), b"COWD", "vmdk", Image),
    (Head(0), b"# Disk DescriptorFile", "vmdk", Image),
    (Head(0), &[0xbe, 0xba, 0xfe, 0xca, 0, 0, 0, 0], "vmdk", Image),
    (Head(0x40), &[0x7f, 0x10, 0xda, 0xbe], "vdi", Image),
    (Head(0), b"conectix", "vpc", Image),
    (Tail(512), b"conectix", "vpc", Image),
    (Tail(511), b"conectix", "vpc", Image),
    (Head(0), b"vhdxfile", "vhdx", Image),
    (Head(0), b"WithoutFreeSpace", "parallels", Image),
    (Head(0), b"WithouFreSpacExt", "parallels", Image),
    (Head(0), b"LUKS\xba\xbe", "luks", Image),
    (Head(0), b"Bochs Virtual HD Image", "bochs", Image),
    (Head(0), b"#!/bin/sh\n#V2.0 Format", "cloop", Image),
    (Head(0), b"OOOM", "cow", Image),
    (Head(0), b"MOOO", "cow", Image),
    (Tail(512), b"koly", "dmg", Image),
    (Head(0), &[0x1f, 0x8b, 8], "gzip", Packed),
    (Head(0), &[0xfd, b'7', b'z', b'X', b'Z', 0], "xz", Packed),
    (Head(0), &[0x28, 0xb5, 0x2f, 0xfd], "zstd", Packed),
    (Head(0), b"BZh", "bzip2", Packed),
    (Head(0), b"7z\xbc\xaf\x27\x1c", "7z", Packed),
    (Head(0), b"PK\x03\x04", "zip", Packed),
    (Head(257), b"ustar", "tar", Packed),
    (Head(510), &[0x55, 0xaa], "mbr", Disk),
    (Head(512), b"EFI PART", "gpt", Disk),
    (Head(4096), b"EFI PART", "gpt", Disk),
    (Head(32769), b"CD001", "iso", Disk),
];

/// Looks at all of them.
///
/// # Errors
/// When the file cannot be read.
pub fn scan(file: &dyn Storage) -> Result<Vec<Magic>> {
    let len = file.len()?;
    let mut found: Vec<Magic> = Vec::new();
    for (place, magic, name, kind) in MAGICS {
        let size = len_u64(magic.len());
        let offset = match place {
            Head(at) => *at,
            Tail(back) => match len.checked_sub(*back) {
                Some(at) => at,
                None => continue,
            },
        };
        if offset.saturating_add(size) > len {
            continue;
        }
        let mut bytes = vec![0; small(size)];
        file.read_at(offset, &mut bytes)?;
        // The first version of qcow has the second's magic number, too; a VHD has its own at both ends.
        if bytes == *magic
            && !found.iter().any(|m| m.name == *name || (m.name == "qcow" && *name == "qcow2"))
        {
            found.push(Magic { name, kind: *kind, offset });
        }
    }
    Ok(found)
}
