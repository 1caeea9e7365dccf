//! What a virtual machine is made of, whatever described it.

use serde::{Deserialize, Serialize};

/// What starts the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Firmware {
    /// A PC BIOS.
    #[default]
    Bios,
    /// UEFI.
    Efi,
    /// UEFI that only starts what is signed.
    EfiSecureBoot,
}

/// What kind of system is installed, as far as the description says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// Linux: has drivers for virtio.
    Linux,
    /// Windows: has none of its own.
    Windows,
    /// Something else, or not said.
    #[default]
    Other,
}

impl Family {
    /// From the name that a description gives the system.
    pub fn guess(system: &str) -> Self {
        const LINUX: &[&str] = &[
            "linux",
            "ubuntu",
            "debian",
            "redhat",
            "red hat",
            "rhel",
            "centos",
            "fedora",
            "suse",
            "sles",
            "oracle",
            "rocky",
            "alma",
            "mandrake",
            "mandriva",
            "gentoo",
            "arch",
            "coreos",
            "photon",
            "amazon",
            "turbolinux",
            "xandros",
            "asianux",
            "flatcar",
        ];
        let system = system.to_ascii_lowercase();
        // ESX calls Windows "windows9Server64Guest", VMware once "winXPPro" and "winNetEnterprise".
        if system.contains("windows") || system.starts_with("win") || system.contains("microsoft") {
            Family::Windows
        } else if LINUX.iter().any(|name| system.contains(name)) {
            Family::Linux
        } else {
            Family::Other
        }
    }
}

/// What a disk hangs on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", content = "model", rename_all = "kebab-case")]
pub enum Bus {
    /// Parallel ATA.
    Ide,
    /// AHCI.
    Sata,
    /// SCSI by this controller: `lsilogic`, `lsisas1068`, `pvscsi`, `buslogic`, `virtio`.
    Scsi(String),
    /// NVMe.
    Nvme,
    /// virtio-blk.
    Virtio,
    /// Not said.
    #[default]
    Unknown,
}

/// Where the bytes of a disk are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Source {
    /// In a file that the description names.
    File {
        /// As the description has it.
        reference: String,
        /// Driver, where the description says.
        format: Option<String>,
        /// The file is packed with gzip.
        gzip: bool,
        /// The file is cut into pieces of this many bytes, called `NAME.000000000` and so on.
        chunk: Option<u64>,
    },
    /// Nowhere: an empty disk of so many bytes.
    Empty {
        /// Bytes.
        capacity: u64,
    },
}

/// A hard disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Disk {
    /// What the description calls it.
    pub label: String,
    /// Where its bytes are.
    pub source: Source,
    /// What it hangs on.
    pub bus: Bus,
    /// Number of the controller among those of its kind, and the place on it.
    pub place: (u32, u32),
}

/// A network card.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Nic {
    /// `e1000`, `e1000e`, `vmxnet3`, `pcnet`, `virtio`; empty where not said.
    pub model: String,
    /// Its address, six pairs of hexadecimal digits with colons.
    pub mac: Option<String>,
    /// The network's name.
    pub network: Option<String>,
}

/// A virtual machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// Its identifier, where the description has one.
    pub uuid: Option<String>,
    /// The system installed, in the description's words.
    pub system: Option<String>,
    /// What kind of system that is.
    pub family: Family,
    /// What starts it.
    pub firmware: Firmware,
    /// Processors.
    pub cpus: u32,
    /// How many of them make a socket.
    pub cores_per_socket: Option<u32>,
    /// Bytes of memory.
    pub memory: u64,
    /// Hard disks, the one it starts from first.
    pub disks: Vec<Disk>,
    /// Network cards.
    pub nics: Vec<Nic>,
    /// What was left out or guessed, one sentence each.
    pub notes: Vec<String>,
}

impl Machine {
    /// Says once what was left out.
    pub(super) fn note(&mut self, text: String) {
        if !self.notes.contains(&text) {
            self.notes.push(text);
        }
    }

    /// Puts the disks into the order in which they are tried for starting.
    pub(super) fn order_disks(&mut self) {
        let rank = |bus: &Bus| match bus {
            Bus::Virtio => 0,
            Bus::Scsi(_) => 1,
            Bus::Sata => 2,
            Bus::Nvme => 3,
            Bus::Ide => 4,
            Bus::Unknown => 5,
        };
        self.disks.sort_by_key(|disk| (rank(&disk.bus), disk.place));
    }
}

/// `00:11:22:aa:bb:cc` from twelve hexadecimal digits with or without colons or dashes.
pub(super) fn mac(text: &str) -> Option<String> {
    let digits: String = text.chars().filter(|c| !matches!(c, ':' | '-' | '.')).collect();
    if digits.len() != 12 || !digits.chars().all(|c| c.is_ascii_hexdigit()) {
        return None;
    }
    let digits = digits.to_ascii_lowercase();
    let pairs: Vec<&str> = (0..6).map(|i| &digits[2 * i..2 * i + 2]).collect();
    Some(pairs.join(":"))
}

/// `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx` from 32 hexadecimal digits with anything between them.
pub(super) fn uuid(text: &str) -> Option<String> {
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let d = digits.to_ascii_lowercase();
    let whole = d.len() == 32 && d.bytes().any(|b| b != b'0');
    whole.then(|| format!("{}-{}-{}-{}-{}", &d[..8], &d[8..12], &d[12..16], &d[16..20], &d[20..]))
}

/// Characters written as a mark and two hexadecimal digits: `%20` in addresses, `|22` in VMX.
pub(super) fn unescaped(text: &str, mark: u8) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let coded = (bytes[at] == mark)
            .then(|| text.get(at + 1..at + 3))
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        out.push(coded.unwrap_or(bytes[at]));
        at += if coded.is_some() { 3 } else { 1 };
    }
    String::from_utf8(out).unwrap_or_else(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes() {
        assert_eq!(unescaped("my%20disk.vmdk", b'%'), "my disk.vmdk");
        assert_eq!(unescaped("100%.vmdk", b'%'), "100%.vmdk");
        assert_eq!(unescaped("%ff", b'%'), "%ff", "no text");
        assert_eq!(unescaped("a |22b|22 %20", b'|'), "a \"b\" %20");
    }

    #[test]
    fn systems() {
        for (name, family) in [
            ("windows2019srv_64Guest", Family::Windows),
            ("winXPPro", Family::Windows),
            ("Microsoft Windows Server 2016 (64-bit)", Family::Windows),
            ("ubuntu-64", Family::Linux),
            ("RedHat_64", Family::Linux),
            ("other3xLinux64Guest", Family::Linux),
            ("freebsd12_64Guest", Family::Other),
            ("darwin19", Family::Other),
        ] {
            assert_eq!(Family::guess(name), family, "{name}");
        }
    }

    #[test]
    fn addresses_and_identifiers() {
        assert_eq!(mac("080027ABCDEF").as_deref(), Some("08:00:27:ab:cd:ef"));
        assert_eq!(mac("00-0c-29-01-02-03").as_deref(), Some("00:0c:29:01:02:03"));
        assert_eq!(mac("00:0c:29"), None);
        assert_eq!(mac("zz:0c:29:01:02:03"), None);
        let vmx = "56 4d 00 11 22 33 44 55-66 77 88 99 aa bb cc dd";
        assert_eq!(uuid(vmx).as_deref(), Some("564d0011-2233-4455-6677-8899aabbccdd"));
        assert_eq!(uuid("{00000000-0000-0000-0000-000000000000}"), None);
    }
}
