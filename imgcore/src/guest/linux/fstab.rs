//! `/etc/fstab` (fstab(5)), and how it names devices.

use serde::Serialize;

use super::release::clean;

/// Lines that are looked at.
const MAX_LINES: usize = 1000;

/// How a device is named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceName {
    /// `UUID=` of the file system.
    Uuid(String),
    /// `LABEL=`
    Label(String),
    /// `PARTUUID=`
    PartUuid(String),
    /// `PARTLABEL=`
    PartLabel(String),
    /// A logical volume: group and name.
    Logical(String, String),
    /// A name that the kernel gives by the driver: `/dev/sda2`, with disk (`sda`) and partition.
    Kernel {
        /// `sda`, `vda`, `xvda`, `hda`, `nvme0n1`.
        disk: String,
        /// 0 for the whole disk.
        partition: u32,
    },
    /// A name below `/dev/disk` that says where or what the hardware is (`by-path`, `by-id`).
    Hardware(String),
    /// An opened LUKS volume or another one of device mapper.
    Mapper(String),
    /// No device of this machine: `tmpfs`, `server:/export`, `/swapfile`.
    Other(String),
}

impl DeviceName {
    /// Reads what stands in fstab or after `root=`.
    pub fn parse(text: &str) -> DeviceName {
        let text = text.trim();
        let unquoted = |v: &str| v.trim_matches('"').to_owned();
        for (prefix, make) in [
            ("UUID=", DeviceName::Uuid as fn(String) -> DeviceName),
            ("LABEL=", DeviceName::Label),
            ("PARTUUID=", DeviceName::PartUuid),
            ("PARTLABEL=", DeviceName::PartLabel),
            ("/dev/disk/by-uuid/", DeviceName::Uuid),
            ("/dev/disk/by-label/", DeviceName::Label),
            ("/dev/disk/by-partuuid/", DeviceName::PartUuid),
            ("/dev/disk/by-partlabel/", DeviceName::PartLabel),
            ("/dev/disk/", DeviceName::Hardware),
        ] {
            if let Some(value) = text.strip_prefix(prefix) {
                return make(unquoted(&unescape(value)));
            }
        }
        let Some(name) = text.strip_prefix("/dev/") else {
            return DeviceName::Other(text.to_owned());
        };
        if let Some(mapped) = name.strip_prefix("mapper/") {
            return logical(mapped).unwrap_or_else(|| DeviceName::Mapper(mapped.to_owned()));
        }
        if let Some((group, volume)) = name.split_once('/') {
            return DeviceName::Logical(group.to_owned(), volume.to_owned());
        }
        kernel(name).unwrap_or_else(|| DeviceName::Other(text.to_owned()))
    }

    /// Whether another disk controller gives the device another name.
    pub fn changes(&self) -> bool {
        matches!(self, DeviceName::Kernel { .. } | DeviceName::Hardware(_))
    }
}

/// `sda2`, `nvme0n1p3`, `vdb`.
fn kernel(name: &str) -> Option<DeviceName> {
    let numbered = name.starts_with("nvme") || name.starts_with("mmcblk");
    let (disk, part) = if numbered {
        name.rsplit_once('p')
            .filter(|(d, p)| d.ends_with(digit) && p.chars().all(digit))
            .unwrap_or((name, ""))
    } else {
        name.split_at(name.trim_end_matches(digit).len())
    };
    let known = ["sd", "vd", "xvd", "hd", "nvme", "mmcblk", "ubd"].iter().any(|p| {
        disk.strip_prefix(p).is_some_and(|rest| {
            !rest.is_empty() && (numbered || rest.chars().all(|c| c.is_ascii_lowercase()))
        })
    });
    let partition = if part.is_empty() { 0 } else { part.parse().ok()? };
    known.then(|| DeviceName::Kernel { disk: disk.to_owned(), partition })
}

fn digit(c: char) -> bool {
    c.is_ascii_digit()
}

/// Device mapper joins group and volume by a hyphen, and doubles those in them.
fn logical(mapped: &str) -> Option<DeviceName> {
    let bytes = mapped.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] == b'-' {
            if bytes.get(at + 1) == Some(&b'-') {
                at += 2;
                continue;
            }
            let (group, name) = (mapped.get(..at)?, mapped.get(at + 1..)?);
            let single = |t: &str| t.replace("--", "-");
            return (!group.is_empty() && !name.is_empty())
                .then(|| DeviceName::Logical(single(group), single(name)));
        }
        at += 1;
    }
    None
}

/// A line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct FstabLine {
    /// Number in the file, from 1.
    pub line: usize,
    /// What is mounted, as written.
    pub what: String,
    /// How it is named.
    #[serde(skip)]
    pub device: DeviceName,
    /// Where; `none` for swap.
    pub mount_point: String,
    /// Type.
    pub kind: String,
    /// Options.
    pub options: String,
}

impl FstabLine {
    /// Whether the system starts without it: swap, `noauto`, `nofail`.
    pub fn optional(&self) -> bool {
        self.kind == "swap" || self.options.split(',').any(|o| o == "nofail" || o == "noauto")
    }

    /// The value of an option.
    pub fn option(&self, name: &str) -> Option<&str> {
        self.options
            .split(',')
            .filter_map(|o| o.split_once('='))
            .find(|(k, _)| *k == name)
            .map(|o| o.1)
    }
}

/// Reads the file.
pub fn parse(text: &str) -> Vec<FstabLine> {
    let mut all = Vec::new();
    for (n, line) in text.lines().enumerate().take(MAX_LINES) {
        let line = line.trim();
        let mut fields = line.split_whitespace();
        let (Some(what), Some(at), Some(kind)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        if what.starts_with('#') {
            continue;
        }
        all.push(FstabLine {
            line: n + 1,
            what: clean(what),
            device: DeviceName::parse(what),
            mount_point: clean(&unescape(at)),
            kind: clean(kind),
            options: clean(fields.next().unwrap_or("defaults")),
        });
    }
    all
}

/// Blanks are written as `\040`; udev writes them as `\x20`.
fn unescape(text: &str) -> String {
    let mut out = text.to_owned();
    for (from, to) in
        [("\\040", " "), ("\\011", "\t"), ("\\x20", " "), ("\\x2f", "/"), ("\\134", "\\")]
    {
        if out.contains(from) {
            out = out.replace(from, to);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_of_devices() {
        let kernel = |d: &str, p| DeviceName::Kernel { disk: d.to_owned(), partition: p };
        let logical = |g: &str, n: &str| DeviceName::Logical(g.to_owned(), n.to_owned());
        for (text, name) in [
            ("UUID=\"ab-c\"", DeviceName::Uuid("ab-c".into())),
            ("/dev/disk/by-uuid/x", DeviceName::Uuid("x".into())),
            ("LABEL=my\\x20root", DeviceName::Label("my root".into())),
            ("/dev/sda2", kernel("sda", 2)),
            ("/dev/vdb", kernel("vdb", 0)),
            ("/dev/xvda1", kernel("xvda", 1)),
            ("/dev/nvme0n1p3", kernel("nvme0n1", 3)),
            ("/dev/nvme0n1", kernel("nvme0n1", 0)),
            ("/dev/mmcblk0p1", kernel("mmcblk0", 1)),
            ("/dev/mapper/debian--vg-root", logical("debian-vg", "root")),
            ("/dev/vg0/my-lv", logical("vg0", "my-lv")),
            ("/dev/mapper/cryptroot", DeviceName::Mapper("cryptroot".into())),
            ("/dev/disk/by-path/pci-0", DeviceName::Hardware("by-path/pci-0".into())),
            ("/dev/fuse", DeviceName::Other("/dev/fuse".into())),
            ("/dev/sda99999999999", DeviceName::Other("/dev/sda99999999999".into())),
            ("tmpfs", DeviceName::Other("tmpfs".into())),
        ] {
            assert_eq!(DeviceName::parse(text), name, "{text}");
        }
        assert!(DeviceName::parse("/dev/hda1").changes());
        assert!(!DeviceName::parse("/dev/vg/lv").changes());
    }

    #[test]
    fn lines() {
        let lines = parse(
            "# c\n/dev/sda1 / ext4 defaults 0 1\n\nLABEL=x /my\\040data xfs nofail,subvol=a\n/dev/sda2 none swap sw\n",
        );
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0].line, 2);
        assert_eq!(lines[1].mount_point, "/my data");
        assert_eq!(lines[1].option("subvol"), Some("a"));
        assert!(lines[1].optional() && lines[2].optional() && !lines[0].optional());
    }
}
