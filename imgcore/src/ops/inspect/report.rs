//! Partition table and volumes as they are reported.

use serde::Serialize;

use super::verdict::Reason;
use crate::guest::Origin;
use crate::guest::linux::release::clean;
use crate::guest::parts::{Layout, Table};
use crate::guest::system::Volumes;

/// The partition table.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct TableReport {
    /// `none`, `mbr` or `gpt`.
    pub kind: &'static str,
    /// The disk's identifier.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Bytes.
    pub sector_size: u32,
    /// What is damaged or doubtful.
    pub warnings: Vec<String>,
}

/// An entry of the partition table.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct PartitionReport {
    /// From 1.
    pub number: u32,
    /// Byte.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// The type's byte or GUID.
    #[serde(rename = "type")]
    pub kind: String,
    /// What it is called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub type_name: Option<&'static str>,
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `PARTUUID=`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Marked for starting.
    pub bootable: bool,
}

/// A partition, a logical volume or the whole disk, and what it holds.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct VolumeReport {
    /// What it is called here: `partition 1`, `vg/lv`.
    pub name: String,
    /// The partition's number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partition: Option<u32>,
    /// Bytes.
    pub size: u64,
    /// What its content is: `ext4`, `swap`, `crypto_LUKS`, ...; `empty` when nothing is recognised.
    pub content: String,
    /// Everything whose signature is there, when that is more than one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub signatures: Vec<&'static str>,
    /// Its label.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Its UUID.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Bytes that the file system manages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_system_size: Option<u64>,
    /// Bytes in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub used: Option<u64>,
    /// Its files can only be read with a key.
    pub encrypted: bool,
    /// What to know about it.
    pub notes: Vec<String>,
}

pub(super) fn table(layout: &Layout) -> TableReport {
    let id = match &layout.table {
        Table::None => None,
        Table::Mbr { signature } => Some(format!("{signature:08x}")),
        Table::Gpt(gpt) => Some(gpt.disk_guid.clone()),
    };
    let mut warnings = layout.warnings.clone();
    for group in &layout.groups {
        warnings
            .extend(group.uncertain.iter().map(|u| format!("volume group {}: {u}", group.name)));
        for volume in group.volumes.iter().filter(|v| v.visible) {
            if let Err(why) = &volume.mapping {
                warnings.push(format!("logical volume {}/{}: {why}", group.name, volume.name));
            }
        }
    }
    TableReport { kind: layout.table.name(), id, sector_size: layout.sector_size, warnings }
}

pub(super) fn partitions(layout: &Layout) -> Vec<PartitionReport> {
    let report = |p: &crate::guest::parts::Partition| PartitionReport {
        number: p.number,
        start: p.start,
        length: p.length,
        kind: p.kind.to_string(),
        type_name: p.kind.describe(),
        name: p.name.as_deref().map(clean).filter(|n| !n.is_empty()),
        uuid: p.id.clone(),
        bootable: p.bootable,
    };
    layout.partitions.iter().map(report).collect()
}

pub(super) fn volumes(volumes: &Volumes) -> Vec<VolumeReport> {
    let mut all = Vec::new();
    for opened in &volumes.all {
        let about = opened.fs.as_deref().map(|fs| fs.about().clone());
        let content = match (&about, opened.contents.first()) {
            (Some(about), _) => about.kind.name().to_owned(),
            (None, Some(content)) => content.name().to_owned(),
            (None, None) => "empty".to_owned(),
        };
        let mut notes = about.as_ref().map(|a| a.notes.clone()).unwrap_or_default();
        notes.extend(opened.error.clone());
        let several = opened.contents.len() > 1;
        all.push(VolumeReport {
            name: opened.volume.name(),
            partition: match opened.volume.origin() {
                Origin::Partition(p) => Some(p.number),
                _ => None,
            },
            size: opened.volume.len(),
            content,
            signatures: if several {
                opened.contents.iter().map(|c| c.name()).collect()
            } else {
                Vec::new()
            },
            label: opened.names.label.as_deref().map(clean),
            uuid: opened.names.uuid.as_deref().map(clean),
            file_system_size: about.as_ref().map(|a| a.size),
            used: about.and_then(|a| a.used),
            encrypted: opened.encrypted(),
            notes,
        });
    }
    all
}

/// What the layout says about booting.
pub(super) fn reasons(layout: &Layout, volumes: &Volumes, nothing_found: bool) -> Vec<Reason> {
    let mut all: Vec<Reason> = volumes.notes.iter().map(Reason::note).collect();
    if let Some(why) = &layout.ambiguous {
        all.push(Reason::warning(format!("systems may disagree about what is on it: {why}")));
    }
    for opened in &volumes.all {
        let name = opened.volume.name();
        if opened.encrypted() && nothing_found {
            all.push(
                Reason::note(format!("{name} is encrypted: what is installed there cannot be seen"))
                    .fix("open it (cryptsetup open, or dislocker for BitLocker) and inspect what is inside"),
            );
        }
        if let Some(error) = &opened.error {
            all.push(Reason::warning(format!("{name} could not be read: {error}")));
        }
    }
    all
}
