//! Names of interfaces and networks in CIDR notation, checked before anything sees them.

use std::fmt;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// IFNAMSIZ less the final zero (linux/if.h).
const LONGEST: usize = 15;

/// Whether the kernel and the files we write take this as an interface's name.
pub fn check_name(name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if name.len() > LONGEST {
        return Err(Error::usage(format!(
            "the interface name '{name}' has {} characters, the kernel takes {LONGEST}",
            name.len()
        ))
        .remedy("use a shorter name"));
    }
    if name.is_empty() || !name.chars().all(plain) || name.starts_with(['-', '.']) {
        return Err(Error::usage(format!("'{}' is not an interface name", name.escape_debug()))
            .remedy("use letters, digits, '_', '-' and '.'"));
    }
    Ok(())
}

/// An address with its prefix length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    /// Address, host part included.
    pub address: Ipv4Addr,
    /// Prefix length, 1 to 32.
    pub prefix: u8,
}

impl Cidr {
    /// Reads `192.168.122.0/24`.
    pub fn parse(text: &str) -> Result<Self> {
        let bad = || {
            Error::usage(format!("'{text}' is not a network"))
                .remedy("write it like 192.168.122.0/24")
        };
        let (address, prefix) = text.split_once('/').ok_or_else(bad)?;
        let address = address.parse().map_err(|_| bad())?;
        let prefix =
            prefix.parse().ok().filter(|prefix| (1..=32).contains(prefix)).ok_or_else(bad)?;
        Ok(Self { address, prefix })
    }

    /// The mask as a number.
    pub fn mask(self) -> u32 {
        u32::MAX << (32 - u32::from(self.prefix.clamp(1, 32)))
    }

    /// The network's own address.
    pub fn network(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.address) & self.mask())
    }

    /// The last address.
    pub fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.address) | !self.mask())
    }

    /// The n-th address of the network.
    pub fn nth(self, n: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.network()).saturating_add(n))
    }

    /// Whether an address lies in the network.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & self.mask() == u32::from(self.network())
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl TryFrom<String> for Cidr {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        Self::parse(&text)
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> Self {
        cidr.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["br0", "virbr0", "enp3s0f1", "tap-a.1"] {
            check_name(good).unwrap();
        }
        for bad in ["", "a b", "-x", ".", "..", "a/b", "sixteen_letters_", "br0;reboot", "x\n"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn cidrs() {
        let net = Cidr::parse("192.168.122.1/24").unwrap();
        assert_eq!(net.network().to_string(), "192.168.122.0");
        assert_eq!(net.broadcast().to_string(), "192.168.122.255");
        assert_eq!(net.nth(1).to_string(), "192.168.122.1");
        for bad in ["192.168.122.1", "1.2.3.4/0", "1.2.3.4/33", "x/24", "1.2.3/24"] {
            assert!(Cidr::parse(bad).is_err(), "{bad}");
        }
    }
}
