//! What is to be done after a partition has grown, so that its file system uses the room.

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::guest::Volume;
use crate::guest::content::{self, Content};
use crate::guest::parts::grow::GrowPlan;
use crate::guest::parts::lvm::LogicalVolume;
use crate::guest::parts::{Layout, PartitionType};

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Step {
    /// The command, or nothing where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// What it does, or what else to do.
    pub text: String,
}

fn step(command: impl Into<String>, text: impl Into<String>) -> Step {
    Step { command: Some(command.into()), text: text.into() }
}

fn remark(text: impl Into<String>) -> Step {
    Step { command: None, text: text.into() }
}

/// The steps for a partition that grows as planned; commands are for the guest, which calls its disk
/// `/dev/vda`.
///
/// # Errors
/// When the volume cannot be read.
pub(super) fn after(volume: &Volume, plan: &GrowPlan, layout: &Layout) -> Result<Vec<Step>> {
    if plan.new_length == plan.partition.length {
        return Ok(vec![remark("the partition has all the room there is already")]);
    }
    let device = format!("/dev/vda{}", plan.partition.number);
    let found = content::probe(volume)?;
    let mut steps = Vec::new();
    match found.as_slice() {
        [] => steps.push(remark(format!(
            "partition {} holds nothing that is known here: grow it with its own tools",
            plan.partition.number
        ))),
        [Content::LvmPhysical] => lvm(&device, &volume.name(), layout, &mut steps),
        [one] => for_content(*one, &device, &mut steps),
        several => {
            let all: Vec<&str> = several.iter().map(|c| c.describe()).collect();
            steps.push(remark(format!("the partition looks like {}", all.join(" and like "))));
        }
    }
    if let PartitionType::Mbr(kind) = plan.partition.kind
        && matches!(kind, 0x01 | 0x04 | 0x06)
    {
        steps.push(remark("the type of the partition is one for small FAT volumes"));
    }
    Ok(steps)
}

fn for_content(content: Content, device: &str, steps: &mut Vec<Step>) {
    match content {
        Content::Ext => steps.push(step(
            format!("resize2fs {device}"),
            "grow the file system while it is mounted (cloud images with cloud-init do that when they start)",
        )),
        Content::Xfs => steps.push(step(
            format!("xfs_growfs $(findmnt -no TARGET {device})"),
            "grow the mounted file system",
        )),
        Content::Btrfs => steps.push(step(
            format!("btrfs filesystem resize max $(findmnt -no TARGET {device} | head -n 1)"),
            "grow the mounted file system; for one of several devices put its number before: 2:max",
        )),
        Content::Ntfs | Content::Refs | Content::BitLocker => steps.push(step(
            "diskpart: list volume, select volume N, extend filesystem",
            "grow the file system in Windows (for NTFS on an unmounted disk in Linux: ntfsresize)",
        )),
        Content::Swap => {
            steps.push(step(
                format!("swapoff {device} && mkswap -U $(blkid -s UUID -o value {device}) {device} && swapon {device}"),
                "make the swap space anew, with the same UUID",
            ));
        }
        Content::Hibernation => {
            steps.push(remark("a hibernated system lies here: start it and shut it down first"));
        }
        Content::Luks => {
            steps.push(step(
                format!("cryptsetup resize $(lsblk -lno NAME,TYPE {device} | awk '$2==\"crypt\"{{print $1; exit}}')"),
                "grow the opened encrypted volume",
            ));
            steps.push(remark("then the file system or physical volume inside it"));
        }
        Content::MdMember => steps.push(step(
            "mdadm --grow /dev/mdN --size=max",
            "grow the array, when all its members have grown; then what is on it",
        )),
        Content::Zfs => steps.push(step(
            format!("zpool online -e POOL {device}"),
            "let the pool use the room",
        )),
        Content::F2fs => steps.push(step(format!("resize.f2fs {device}"), "while it is unmounted")),
        Content::Jfs => steps.push(step("mount -o remount,resize MOUNTPOINT", "while it is mounted")),
        Content::ReiserFs => steps.push(step(format!("resize_reiserfs {device}"), "grow it")),
        Content::Fat => steps.push(step(
            format!("fatresize -s max {device}"),
            "grow the file system while it is unmounted (or copy its files to a new one)",
        )),
        other => steps.push(remark(format!(
            "the partition holds {}, for which no way to grow it is known here",
            other.describe()
        ))),
    }
}

/// The physical volume, then the logical volume with most to gain: the largest that is visible.
fn lvm(device: &str, carrier: &str, layout: &Layout, steps: &mut Vec<Step>) {
    steps.push(step(format!("pvresize {device}"), "let LVM use the room"));
    let group = layout
        .groups
        .iter()
        .find(|g| g.physical.iter().any(|p| p.carrier.as_deref() == Some(carrier)));
    let Some(group) = group else { return };
    let largest: Option<&LogicalVolume> =
        group.volumes.iter().filter(|v| v.visible).max_by_key(|v| v.length);
    if let Some(volume) = largest {
        steps.push(step(
            format!("lvextend -r -l +100%FREE {}/{}", group.name, volume.name),
            "grow a logical volume with its file system (this one is the largest of its group)",
        ));
    }
}
