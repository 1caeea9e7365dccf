//! Names of interfaces and networks in CIDR notation, checked before anything sees them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

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

/// An address of this host with its prefix length, of either family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostAddress {
    /// Address, host part included.
    pub address: IpAddr,
    /// Prefix length, 1 to 32 or 128.
    pub prefix: u8,
}

impl HostAddress {
    /// Reads `192.168.1.5/24` or `2001:db8::5/64`.
    pub fn parse(text: &str) -> Result<Self> {
        if !text.contains(':') {
            return Cidr::parse(text).map(Self::from);
        }
        let bad = || {
            Error::usage(format!("'{text}' is not an address with a prefix length"))
                .remedy("write it like 2001:db8::5/64")
        };
        let (address, prefix) = text.split_once('/').ok_or_else(bad)?;
        let address: Ipv6Addr = address.parse().map_err(|_| bad())?;
        let prefix =
            prefix.parse().ok().filter(|prefix| (1..=128).contains(prefix)).ok_or_else(bad)?;
        if address.is_multicast() || address.is_loopback() || address.is_unspecified() {
            return Err(bad());
        }
        Ok(Self { address: IpAddr::V6(address), prefix })
    }
}

impl fmt::Display for HostAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl From<Cidr> for HostAddress {
    fn from(cidr: Cidr) -> Self {
        Self { address: IpAddr::V4(cidr.address), prefix: cidr.prefix }
    }
}

impl TryFrom<String> for HostAddress {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        Self::parse(&text)
    }
}

impl From<HostAddress> for String {
    fn from(address: HostAddress) -> Self {
        address.to_string()
    }
}

/// An IPv6 network for guests. They make their own addresses in it (SLAAC), so its prefix is /64 (RFC 4862,
/// RFC 4291 section 2.5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet6(Ipv6Addr);

impl Subnet6 {
    /// Reads `2001:db8:0:5::/64`; the host part must be zero.
    pub fn parse(text: &str) -> Result<Self> {
        let bad = || {
            Error::usage(format!("'{text}' is no IPv6 subnet for guests"))
                .remedy("write a /64 like 2001:db8:0:5::/64")
        };
        let address: Ipv6Addr =
            text.strip_suffix("/64").and_then(|text| text.parse().ok()).ok_or_else(bad)?;
        let local = address.is_multicast() || address.is_unicast_link_local();
        if u128::from(address) & u128::from(u64::MAX) != 0 || local || address.is_unspecified() {
            return Err(bad());
        }
        Ok(Self(address))
    }

    /// The first address, which becomes the host's.
    pub fn gateway(self) -> HostAddress {
        HostAddress { address: IpAddr::V6(Ipv6Addr::from(u128::from(self.0) | 1)), prefix: 64 }
    }

    /// The network's number, without its prefix length.
    pub fn network(self) -> Ipv6Addr {
        self.0
    }
}

impl fmt::Display for Subnet6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/64", self.0)
    }
}

impl TryFrom<String> for Subnet6 {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        Self::parse(&text)
    }
}

impl From<Subnet6> for String {
    fn from(subnet: Subnet6) -> Self {
        subnet.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families() {
        for good in ["10.0.0.1/8", "2001:db8::5/64", "fd00::1/128"] {
            assert_eq!(HostAddress::parse(good).unwrap().to_string(), good);
        }
        for bad in
            ["2001:db8::5", "2001:db8::/0", "2001:db8::/129", "::1/128", "ff02::1/64", "g::/64"]
        {
            assert!(HostAddress::parse(bad).is_err(), "{bad}");
        }
        let subnet = Subnet6::parse("2001:db8:0:5::/64").unwrap();
        assert_eq!(subnet.gateway().to_string(), "2001:db8:0:5::1/64");
        for bad in ["2001:db8::1/64", "2001:db8::/65", "fe80::/64", "::/64", "10.0.0.0/24"] {
            assert!(Subnet6::parse(bad).is_err(), "{bad}");
        }
    }

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
