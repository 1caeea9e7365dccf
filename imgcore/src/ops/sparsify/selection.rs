//! Which volumes are looked at.

use crate::guest::{Origin, Volume};
use crate::{Error, Result};

/// What becomes of space between and behind partitions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unpartitioned {
    /// It is left alone: boot loaders and vendors' tools keep things there.
    #[default]
    Keep,
    /// It counts as free, behind the first partition.
    Free,
}

/// The user's choice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Volumes that are left alone: `2`, `sda2`, `/dev/vda2`, `/dev/nvme0n1p2`, `disk`, `group/name`,
    /// `/dev/group/name`.
    pub ignore: Vec<String>,
    /// Space of no partition.
    pub unpartitioned: Unpartitioned,
}

impl Selection {
    /// Whether a volume is to be left alone.
    pub(super) fn ignores(&self, volume: &Volume) -> bool {
        self.ignore.iter().any(|name| names(name, volume))
    }

    /// Refuses names of nothing.
    pub(super) fn check(&self, volumes: &[Volume]) -> Result<()> {
        for name in &self.ignore {
            if !volumes.iter().any(|v| names(name, v)) {
                let known: Vec<String> = volumes.iter().map(short).collect();
                return Err(Error::invalid(format!("there is no volume '{name}' to be ignored"))
                    .hint(format!("the disk has these: {}", known.join(", "))));
            }
        }
        Ok(())
    }
}

/// As short as the user may say it.
fn short(volume: &Volume) -> String {
    match volume.origin() {
        Origin::Partition(p) => p.number.to_string(),
        _ => volume.name(),
    }
}

/// Whether a name means a volume.
fn names(text: &str, volume: &Volume) -> bool {
    let bare = text.strip_prefix("/dev/").unwrap_or(text);
    match volume.origin() {
        Origin::Disk => bare == "disk",
        Origin::Partition(p) => device_number(bare) == Some(p.number),
        Origin::Logical { group, name, .. } => {
            // Device mapper doubles the hyphens of both names.
            let double = |s: &str| s.replace('-', "--");
            bare == format!("{group}/{name}")
                || bare == format!("mapper/{}-{}", double(group), double(name))
        }
    }
}

/// The number at the end of a partition's name: `2`, `sda2`, `vda2`, `nvme0n1p2`, `mmcblk0p2`.
fn device_number(text: &str) -> Option<u32> {
    let digits = text.trim_start_matches(|c: char| !c.is_ascii_digit());
    if digits.is_empty() || text.contains('/') {
        return None;
    }
    let number = match text.rsplit_once('p') {
        // Names of disks that end with a digit put a `p` before the number.
        Some((disk, number)) if disk.ends_with(|c: char| c.is_ascii_digit()) => number,
        _ if ["nvme", "mmcblk", "nbd", "loop"].iter().any(|d| text.starts_with(d)) => return None,
        _ => digits,
    };
    number.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_devices() {
        let good =
            [("2", 2), ("sda2", 2), ("vda12", 12), ("nvme0n1p3", 3), ("loop7p1", 1), ("xvdp4", 4)];
        for (text, number) in good {
            assert_eq!(device_number(text), Some(number), "{text}");
        }
        for text in ["sda", "nvme0n1", "vg0/lv1", "", "sda2x", "loop7"] {
            assert_eq!(device_number(text), None, "{text}");
        }
    }
}
