//! Labels and UUIDs of volumes whose files are not read here: swap, LUKS, RAID and others. What a volume
//! holds is [`content`](crate::guest::content)'s matter.

use super::VolumeReader;
use crate::Result;
use crate::guest::content::Content;
use crate::guest::fields::{Fields, utf16};

/// A name and a UUID, each where there is one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// `LABEL=`
    pub label: Option<String>,
    /// `UUID=`
    pub uuid: Option<String>,
}

/// The names of a volume with this content; none where it keeps none, or they cannot be read.
pub fn names(source: &VolumeReader, content: Content) -> Names {
    read(source, content).unwrap_or_default()
}

fn read(source: &VolumeReader, content: Content) -> Result<Names> {
    let some = |text: String| Some(text).filter(|t| !t.is_empty());
    Ok(match content {
        // LUKS 2 On-Disk Format, 2.1; the first version has its UUID at the same place.
        Content::Luks => {
            let raw = source.bytes(0, 208)?;
            let f = Fields(&raw);
            let label = if f.be16(6)? == 2 { some(f.text(24, 48)?) } else { None };
            Names { label, uuid: some(f.text(168, 40)?) }
        }
        // union swap_header: after the boot block of 1 KiB version, last page, bad pages.
        Content::Swap | Content::Hibernation => {
            let raw = source.bytes(1024, 44)?;
            let f = Fields(&raw);
            Names { label: some(f.text(28, 16)?), uuid: Some(f.uuid(12)?) }
        }
        Content::ExFat => {
            let serial = Fields(&source.bytes(100, 4)?).le32(0)?;
            let uuid = format!("{:04X}-{:04X}", serial >> 16, serial & 0xffff);
            Names { label: None, uuid: Some(uuid) }
        }
        // struct mdp_superblock_1
        Content::MdMember => {
            let first = source.bytes(0, 64)?;
            let raw = if Fields(&first).le32(0)? == 0xa92b_4efc {
                first
            } else {
                source.bytes(4096, 64)?
            };
            Names { label: some(Fields(&raw).text(32, 32)?), uuid: Some(Fields(&raw).uuid(16)?) }
        }
        Content::LvmPhysical => {
            for sector in 0..4u64 {
                let raw = source.bytes(sector * 512, 64)?;
                if raw.starts_with(b"LABELONE") {
                    return Ok(Names { label: None, uuid: some(Fields(&raw).text(32, 32)?) });
                }
            }
            Names::default()
        }
        Content::F2fs => {
            let raw = source.bytes(1024, 1200)?;
            let label = utf16(&raw[0x7c..0x7c + 1024]);
            let label = label.split('\0').next().unwrap_or_default().to_owned();
            Names { label: some(label), uuid: Some(Fields(&raw).uuid(0x6c)?) }
        }
        Content::Erofs => {
            let raw = source.bytes(1024, 128)?;
            Names { label: some(Fields(&raw).text(64, 16)?), uuid: Some(Fields(&raw).uuid(48)?) }
        }
        _ => Names::default(),
    })
}
