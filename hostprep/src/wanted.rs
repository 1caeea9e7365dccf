//! What the host is wanted for: guests, and what they use. Read from `64x1G` or from a command line of rkvm or
//! qemu-kvm. Checks grade what they see by it: a missing IOMMU matters only to who passes devices through.

use crate::error::{Error, Result};
use crate::units::{GIB, MIB, parse_size};

/// A number of equal guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guests {
    /// How many.
    pub count: u64,
    /// Bytes of memory of each.
    pub memory: u64,
    /// Virtual CPUs of each.
    pub vcpus: u32,
}

impl Guests {
    /// Reads `64x1G`, `1G` or `4x8Gx4` (the last number are vCPUs).
    pub fn parse(text: &str) -> Result<Self> {
        let bad = || {
            Error::usage(format!("'{text}' does not name guests"))
                .remedy("write COUNTxMEMORY or COUNTxMEMORYxVCPUS, for example 64x1G or 4x8Gx4")
        };
        let parts: Vec<&str> = text.split(['x', 'X', '*']).collect();
        let (count, memory, vcpus) = match parts.as_slice() {
            [memory] => ("1", *memory, "1"),
            [count, memory] => (*count, *memory, "1"),
            [count, memory, vcpus] => (*count, *memory, *vcpus),
            _ => return Err(bad()),
        };
        let guests = Self {
            count: count.trim().parse().map_err(|_| bad())?,
            memory: parse_size(memory, MIB)?,
            vcpus: vcpus.trim().parse().map_err(|_| bad())?,
        };
        if guests.count == 0 || guests.memory == 0 || guests.vcpus == 0 {
            return Err(bad());
        }
        guests.count.checked_mul(guests.memory).ok_or_else(bad)?;
        Ok(guests)
    }

    /// Bytes of memory of all.
    pub fn total(&self) -> u64 {
        self.count.saturating_mul(self.memory)
    }
}

/// Ready-made wishes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Profile {
    /// No particular use.
    #[default]
    General,
    /// Many guests on a server: steady speed counts.
    Server,
    /// Guests with pinned CPUs and hugepages.
    Latency,
    /// Guests that get devices of their own.
    Passthrough,
}

impl Profile {
    /// By its name on the command line.
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "general" => Ok(Self::General),
            "server" => Ok(Self::Server),
            "latency" => Ok(Self::Latency),
            "passthrough" => Ok(Self::Passthrough),
            _ => Err(Error::usage(format!("there is no profile '{name}'"))
                .remedy("use general, server, latency or passthrough")),
        }
    }
}

/// Whether something is used by the planned guests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Use {
    /// Not asked for.
    #[default]
    No,
    /// The guests need it.
    Yes,
}

impl Use {
    /// True for [`Use::Yes`].
    pub fn yes(self) -> bool {
        self == Self::Yes
    }
}

/// Everything asked of the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Planned guests.
    pub guests: Vec<Guests>,
    /// Memory kept for the host itself; 4 GiB unless told.
    pub reserve: Option<u64>,
    /// Profile.
    pub profile: Profile,
    /// Tap interfaces.
    pub tap: Use,
    /// vhost-net.
    pub vhost: Use,
    /// Passed-through devices.
    pub vfio: Use,
    /// Locked memory.
    pub mlock: Use,
    /// Nested guests.
    pub nested: Use,
    /// A hugetlbfs folder (`-mem-path`).
    pub mem_path: Option<String>,
    /// A bridge the guests join.
    pub bridge: Option<String>,
    /// Image files.
    pub images: Vec<String>,
    /// Value of SSH_CONNECTION, from whoever may read the environment.
    pub ssh_connection: Option<String>,
    /// The interface that would be enslaved to a bridge.
    pub bridge_port: Option<String>,
}

impl Wanted {
    /// Memory kept for the host.
    pub fn reserve(&self) -> u64 {
        self.reserve.unwrap_or(4 * GIB)
    }

    /// Bytes of memory of all guests.
    pub fn guest_memory(&self) -> u64 {
        self.guests.iter().map(Guests::total).fold(0, u64::saturating_add)
    }

    /// Virtual CPUs of all guests.
    pub fn guest_vcpus(&self) -> u64 {
        let vcpus = |guest: &Guests| guest.count.saturating_mul(u64::from(guest.vcpus));
        self.guests.iter().map(vcpus).fold(0, u64::saturating_add)
    }

    /// Virtual CPUs of the largest guest.
    pub fn largest_smp(&self) -> u32 {
        self.guests.iter().map(|guest| guest.vcpus).max().unwrap_or(1)
    }

    /// Whether devices are to be passed through.
    pub fn wants_vfio(&self) -> bool {
        self.vfio.yes() || self.profile == Profile::Passthrough
    }

    /// Whether CPUs are to be isolated.
    pub fn wants_latency(&self) -> bool {
        self.profile == Profile::Latency
    }

    /// Adds the guest of a command line of rkvm or qemu-kvm. Options that say nothing about the host are skipped.
    pub fn add_command_line(&mut self, line: &str) -> Result<()> {
        let words = split_words(line)?;
        // 128 MiB is what qemu gives a guest without -m.
        let mut guest = Guests { count: 1, memory: 128 * MIB, vcpus: 1 };
        let mut words = words.iter().map(String::as_str).peekable();
        while let Some(word) = words.next() {
            let Some(option) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else {
                continue;
            };
            let takes_value = words.peek().is_some_and(|next| !next.starts_with('-'));
            let value = if takes_value { words.next().unwrap_or_default() } else { "" };
            match option {
                "m" => {
                    let size = field(value, "size").unwrap_or_else(|| first(value));
                    guest.memory = parse_size(size, MIB)?;
                }
                "smp" => {
                    let number = field(value, "cpus").unwrap_or_else(|| first(value));
                    guest.vcpus = number.parse().map_err(|_| {
                        Error::usage(format!("-smp {value}: '{number}' is not a number of CPUs"))
                    })?;
                }
                "mem-path" => self.mem_path = Some(value.to_owned()),
                "net" | "netdev" | "nic" => self.add_net(value),
                "device" if value.starts_with("vfio-") => self.vfio = Use::Yes,
                "overcommit" | "realtime" => {
                    let locked = field(value, "mem-lock").or_else(|| field(value, "mlock"));
                    if locked == Some("on") {
                        self.mlock = Use::Yes;
                    }
                }
                "object" => {
                    if let (true, Some(path)) =
                        (value.starts_with("memory-backend-file"), field(value, "mem-path"))
                    {
                        self.mem_path = Some(path.to_owned());
                    }
                }
                "cpu" if value.contains("+vmx") || value.contains("+svm") => self.nested = Use::Yes,
                "drive" => self.images.extend(field(value, "file").map(str::to_owned)),
                "hda" | "hdb" | "hdc" | "hdd" | "cdrom" => self.images.push(value.to_owned()),
                _ => {}
            }
        }
        if guest.memory == 0 || guest.vcpus == 0 {
            return Err(Error::usage("a guest needs memory and at least one vCPU"));
        }
        self.guests.push(guest);
        Ok(())
    }

    fn add_net(&mut self, value: &str) {
        let kind = first(value);
        if kind == "tap" || kind == "bridge" {
            self.tap = Use::Yes;
        }
        if kind == "bridge" {
            self.bridge = Some(field(value, "br").unwrap_or("br0").to_owned());
        }
        if field(value, "vhost") == Some("on") {
            self.vhost = Use::Yes;
        }
    }
}

fn first(value: &str) -> &str {
    value.split(',').next().unwrap_or("")
}

fn field<'a>(value: &'a str, name: &str) -> Option<&'a str> {
    value.split(',').find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
}

/// Splits like a shell does: blanks separate, quotes and backslashes join.
fn split_words(line: &str) -> Result<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some('\''), c) => word.get_or_insert_default().push(c),
            (_, '\\') => match chars.next() {
                Some('\n') => {}
                next => word.get_or_insert_default().extend(next),
            },
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err(Error::usage("the command line ends inside quotes"));
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests() {
        assert_eq!(Guests::parse("64x1G").unwrap().total(), 64 * GIB);
        assert_eq!(Guests::parse("4x8Gx4").unwrap().vcpus, 4);
        assert_eq!(Guests::parse("512").unwrap().memory, 512 * MIB);
        for bad in ["", "x", "0x1G", "1x2x3x4", "99999999999x99999999P", "axb"] {
            assert!(Guests::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn command_lines() {
        let mut wanted = Wanted::default();
        wanted
            .add_command_line(
                "rkvm -m 1024 -smp 8,sockets=2 -drive \"file=/vm/a b.qcow2,if=virtio\" \\\n -net nic \
                 -net tap,ifname=tap0,vhost=on -mem-path /dev/hugepages -device vfio-pci,host=1:0",
            )
            .unwrap();
        assert_eq!(wanted.guests, [Guests { count: 1, memory: GIB, vcpus: 8 }]);
        assert_eq!(wanted.images, ["/vm/a b.qcow2"]);
        assert!(wanted.tap.yes() && wanted.vhost.yes() && wanted.vfio.yes());
        assert_eq!(wanted.mem_path.as_deref(), Some("/dev/hugepages"));
        assert!(Wanted::default().add_command_line("rkvm -m 'x").is_err());
        assert!(Wanted::default().add_command_line("rkvm -smp many").is_err());
    }
}
