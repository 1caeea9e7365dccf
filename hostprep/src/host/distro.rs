//! Who runs this host: distribution, boot loader, network manager.

use super::Host;

/// What writes the kernel command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootLoader {
    /// grubby with boot loader specification entries (Fedora, RHEL).
    Grubby,
    /// /etc/default/grub and grub-mkconfig or update-grub.
    Grub,
    /// systemd-boot with /etc/kernel/cmdline or entries.
    SystemdBoot,
    /// Not found out (direct kernel boot, other loaders).
    Unknown,
}

impl BootLoader {
    /// Its name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Grubby => "GRUB 2 with grubby",
            Self::Grub => "GRUB 2",
            Self::SystemdBoot => "systemd-boot",
            Self::Unknown => "an unknown boot loader",
        }
    }
}

/// What manages interfaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkManager {
    /// NetworkManager.
    NetworkManager,
    /// systemd-networkd.
    Networkd,
    /// netplan, on top of one of the two.
    Netplan,
    /// /etc/network/interfaces.
    Ifupdown,
    /// None found.
    None,
}

impl NetworkManager {
    /// Its name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::NetworkManager => "NetworkManager",
            Self::Networkd => "systemd-networkd",
            Self::Netplan => "netplan",
            Self::Ifupdown => "ifupdown",
            Self::None => "nothing that was recognised",
        }
    }
}

impl Host {
    /// A field of /etc/os-release without its quotes.
    pub fn os_release(&self, field: &str) -> Option<String> {
        let text =
            self.read("/etc/os-release").or_else(|_| self.read("/usr/lib/os-release")).ok()?;
        text.lines().find_map(|line| {
            let value = line.strip_prefix(field)?.strip_prefix('=')?;
            Some(value.trim().trim_matches(['"', '\'']).to_owned())
        })
    }

    /// Whether this is a distribution of that family (`debian`, `fedora`, `arch`, `suse`).
    pub fn is_like(&self, family: &str) -> bool {
        ["ID", "ID_LIKE"].into_iter().filter_map(|field| self.os_release(field)).any(|value| {
            value.split_whitespace().any(|word| {
                word == family
                    || word.starts_with(&format!("{family}-"))
                    || (family == "suse" && word.contains("suse"))
            })
        })
    }

    /// `apt install X`, `dnf install X`, ... for this distribution.
    pub fn install_command(&self, debian: &str, fedora: &str) -> String {
        if self.is_like("debian") || self.is_like("ubuntu") {
            format!("apt install {debian}")
        } else if self.is_like("fedora") || self.is_like("rhel") {
            format!("dnf install {fedora}")
        } else if self.is_like("arch") {
            format!("pacman -S {fedora}")
        } else if self.is_like("suse") {
            format!("zypper install {fedora}")
        } else {
            format!("install {fedora} with your package manager")
        }
    }

    /// Whether a program is in one of the usual places.
    pub fn has_program(&self, name: &str) -> bool {
        self.program(name).is_some()
    }

    /// The full path of a program.
    pub fn program(&self, name: &str) -> Option<String> {
        let folders =
            ["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin"];
        folders.iter().map(|folder| format!("{folder}/{name}")).find(|path| self.exists(path))
    }

    /// The boot loader in use.
    pub fn boot_loader(&self) -> BootLoader {
        if self.exists("/etc/default/grub") {
            return if self.has_program("grubby") { BootLoader::Grubby } else { BootLoader::Grub };
        }
        let systemd_boot = [
            "/boot/loader/loader.conf",
            "/efi/loader/loader.conf",
            "/boot/efi/loader/loader.conf",
            "/etc/kernel/cmdline",
        ];
        if systemd_boot.iter().any(|path| self.exists(path)) {
            return BootLoader::SystemdBoot;
        }
        BootLoader::Unknown
    }

    /// Who manages the network; the running ones before the merely configured ones.
    pub fn network_manager(&self) -> NetworkManager {
        if self.list("/etc/netplan").iter().any(|name| name.ends_with(".yaml")) {
            return NetworkManager::Netplan;
        }
        if self.exists("/run/NetworkManager") {
            return NetworkManager::NetworkManager;
        }
        if self.exists("/run/systemd/netif") {
            return NetworkManager::Networkd;
        }
        if self.exists("/etc/network/interfaces") {
            return NetworkManager::Ifupdown;
        }
        NetworkManager::None
    }
}
