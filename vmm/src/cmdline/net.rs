//! `-net`, `-netdev`, `-nic`.
//!
//! Old command lines connect cards and back ends by a vlan number; new ones by name. Both become pairs
//! of one card and one back end. A vlan with several cards would be a hub, which is refused.

use std::path::PathBuf;

use super::builder::Builder;
use super::device::DeviceSpec;
use super::options::{Options, Refusals};
use crate::machine::config::{DeviceKind, TapConfig};
use crate::{Error, Result};

/// Default network script.
const SCRIPT: &str = "/etc/qemu-ifup";
/// Default script for the end.
const DOWNSCRIPT: &str = "/etc/qemu-ifdown";

const TAP_REFUSED: Refusals = &[
    ("vhost", "Leave it out, or use vhost=off"),
    ("vhostfd", "Leave it out"),
    ("vhostfds", "Leave it out"),
    ("vhostforce", "Leave it out"),
    ("fds", "Use fd= and one queue"),
    ("queues", "Leave it out: one pair of queues is used"),
    (
        "helper",
        "Make the tap interface beforehand: ip tuntap add tap0 mode tap; then ifname=tap0,script=no",
    ),
    ("br", "Join the bridge in the script, or beforehand: ip link set tap0 master br0"),
    ("poll-us", "Leave it out"),
];

/// A card of `-net nic` or `-nic`.
#[derive(Clone, Debug)]
struct Card {
    vlan: u64,
    mac: Option<[u8; 6]>,
    slot: Option<u8>,
    id: Option<String>,
    netdev: Option<String>,
}

/// Everything said about networks.
#[derive(Clone, Debug, Default)]
pub struct NetSpec {
    cards: Vec<Card>,
    /// By vlan.
    old: Vec<(u64, TapConfig)>,
    /// By name.
    named: Vec<(String, TapConfig)>,
}

/// A card that is to be built.
#[derive(Clone, Debug)]
pub struct Nic {
    /// Its slot.
    pub slot: Option<u8>,
    /// The device.
    pub kind: DeviceKind,
}

/// `-net nic,...`, `-net tap,...`, `-net none`.
pub fn net(b: &mut Builder, text: &str) -> Result<()> {
    let mut o = Options::parse(text, Some("type"));
    match o.need("type")?.as_str() {
        "none" => o.finish(&[]),
        "nic" => {
            let card = card(&mut o)?;
            b.net.cards.push(card);
            o.finish(&[("vectors", "Leave it out")])
        }
        "tap" => {
            let vlan = o.take_number("vlan")?.unwrap_or(0);
            drop(o.take("name"));
            let tap = tap(&mut o)?;
            b.net.old.push((vlan, tap));
            o.finish(TAP_REFUSED)
        }
        other => Err(unsupported(other)),
    }
}

/// `-netdev tap,id=...`.
pub fn netdev(b: &mut Builder, text: &str) -> Result<()> {
    let mut o = Options::parse(text, Some("type"));
    let kind = o.need("type")?;
    if kind != "tap" {
        return Err(unsupported(&kind));
    }
    let id = o.need("id")?;
    let tap = tap(&mut o)?;
    o.finish(TAP_REFUSED)?;
    if b.net.named.iter().any(|(n, _)| *n == id) {
        return Err(Error::invalid(format!("Duplicate ID '{id}' for netdev")));
    }
    b.net.named.push((id, tap));
    Ok(())
}

/// `-nic tap,model=virtio,mac=`.
pub fn nic(b: &mut Builder, text: &str) -> Result<()> {
    let mut o = Options::parse(text, Some("type"));
    match o.need("type")?.as_str() {
        "none" => o.finish(&[]),
        "tap" => {
            let mut card = card(&mut o)?;
            let name = format!("#nic{}", b.net.cards.len());
            card.netdev = Some(name.clone());
            b.net.cards.push(card);
            let tap = tap(&mut o)?;
            b.net.named.push((name, tap));
            o.finish(TAP_REFUSED)
        }
        other => Err(unsupported(other)),
    }
}

fn unsupported(kind: &str) -> Error {
    Error::unsupported(format!("network back end '{kind}' is not supported yet"))
        .hint("Use tap: -netdev tap,id=n0,ifname=tap0,script=no -device virtio-net-pci,netdev=n0")
}

fn card(o: &mut Options) -> Result<Card> {
    match o.take("model").as_deref() {
        None => {
            return Err(Error::unsupported(
                "without model= a card is an e1000, which is not supported yet",
            )
            .hint("Use model=virtio"));
        }
        Some("virtio" | "virtio-net-pci" | "virtio-net") => {}
        Some(other) => {
            return Err(Error::unsupported(format!("network card '{other}' is not supported yet"))
                .hint("Use model=virtio"));
        }
    }
    Ok(Card {
        vlan: o.take_number("vlan")?.unwrap_or(0),
        mac: match (o.take("macaddr"), o.take("mac")) {
            (Some(m), _) | (None, Some(m)) => Some(mac(&m)?),
            _ => None,
        },
        slot: o.take("addr").map(|a| slot(&a)).transpose()?,
        id: match (o.take("name"), o.take("id")) {
            (Some(n), _) | (None, Some(n)) => Some(n),
            _ => None,
        },
        netdev: o.take("netdev"),
    })
}

/// Six bytes in hexadecimal, separated by colons or dashes.
pub fn mac(text: &str) -> Result<[u8; 6]> {
    let wrong = || Error::invalid(format!("invalid MAC address '{text}'"));
    let parts: Vec<&str> = text.split([':', '-']).collect();
    let bytes: Vec<u8> = parts
        .iter()
        .map(|p| {
            if p.len() <= 2 { u8::from_str_radix(p, 16).map_err(|_| wrong()) } else { Err(wrong()) }
        })
        .collect::<Result<_>>()?;
    let mac: [u8; 6] = bytes.try_into().map_err(|_| wrong())?;
    if mac[0] & 1 == 1 {
        return Err(Error::invalid(format!("MAC address '{text}' is a group address"))
            .hint("The first byte must be even, as in 52:54:00:12:34:56"));
    }
    Ok(mac)
}

/// A slot, `3`, `0x3` or `03.0`; hexadecimal as in QEMU.
pub fn slot(text: &str) -> Result<u8> {
    let (slot, function) = text.split_once('.').unwrap_or((text, "0"));
    let hex = |t: &str| u8::from_str_radix(t.trim_start_matches("0x"), 16).ok();
    match (hex(slot), hex(function)) {
        (Some(s), Some(0)) if (1..32).contains(&s) => Ok(s),
        (Some(_), Some(f)) if f > 0 => Err(Error::unsupported(format!(
            "addr={text}: functions other than 0 are not supported yet"
        ))),
        _ => Err(Error::invalid(format!("addr={text}: slots are 1 to 1f"))),
    }
}

fn tap(o: &mut Options) -> Result<TapConfig> {
    let fd = o.take_u32("fd")?.and_then(|n| i32::try_from(n).ok());
    let script = |given: Option<String>, usual: &str| match given.as_deref() {
        Some("no") => None,
        Some(path) => Some(PathBuf::from(path)),
        None => Some(PathBuf::from(usual)),
    };
    let given = fd.is_none();
    let up = script(o.take("script"), SCRIPT);
    let down = o.take("downscript");
    // A default script that does not exist at the end has nothing to undo.
    let down = match down {
        None if !std::path::Path::new(DOWNSCRIPT).exists() => None,
        other => script(other, DOWNSCRIPT),
    };
    if o.has("vhost") && matches!(o.take_bool("vhost")?, Some(true)) {
        return Err(Error::unsupported("vhost=on is not supported yet").hint("Use vhost=off"));
    }
    if matches!(o.take_bool("vnet_hdr")?, Some(false)) {
        return Err(Error::unsupported("vnet_hdr=off is not supported yet").hint("Leave it out"));
    }
    let sndbuf = o.take_size("sndbuf", 1)?;
    Ok(TapConfig {
        ifname: o.take("ifname").unwrap_or_default(),
        fd,
        script: up.filter(|_| given),
        downscript: down.filter(|_| given),
        sndbuf: sndbuf.and_then(|s| i32::try_from(s).ok()).filter(|s| *s > 0),
    })
}

impl NetSpec {
    /// Pairs cards and back ends; cards of `-device` are taken out of `devices`.
    pub fn finish(
        mut self,
        devices: &mut Vec<DeviceSpec>,
        warnings: &mut Vec<String>,
    ) -> Result<Vec<(String, Nic)>> {
        let mut all = Vec::new();
        let from_devices: Vec<Card> = devices
            .iter()
            .filter_map(|d| match d {
                DeviceSpec::Net { id, slot, mac, netdev } => Some(Card {
                    vlan: 0,
                    mac: *mac,
                    slot: *slot,
                    id: Some(id.clone()),
                    netdev: Some(netdev.clone()),
                }),
                _ => None,
            })
            .collect();
        devices.retain(|d| !matches!(d, DeviceSpec::Net { .. }));
        for card in self.cards.into_iter().chain(from_devices) {
            let number = u8::try_from(all.len()).unwrap_or(u8::MAX);
            let id = card.id.clone().unwrap_or_else(|| format!("net{number}"));
            let tap = match &card.netdev {
                Some(name) => take(&mut self.named, name).ok_or_else(|| {
                    Error::invalid(format!("{id}: Property can't find value '{name}'"))
                })?,
                None => {
                    match take(&mut self.old, &card.vlan) {
                        Some(tap) => tap,
                        None => {
                            return Err(Error::unsupported(format!(
                            "card {id} on vlan {} has no back end of its own",
                            card.vlan
                        ))
                        .hint(format!("Add -net tap,vlan={}; several cards on one vlan are not supported yet", card.vlan)));
                        }
                    }
                }
            };
            // QEMU's usual addresses.
            let mac = card.mac.unwrap_or([0x52, 0x54, 0, 0x12, 0x34, 0x56u8.wrapping_add(number)]);
            all.push((id, Nic { slot: card.slot, kind: DeviceKind::Net { mac, tap } }));
        }
        if let Some((vlan, _)) = self.old.first() {
            return Err(Error::invalid(format!("-net tap: no card is on vlan {vlan}"))
                .hint(format!("Add -net nic,model=virtio,vlan={vlan}")));
        }
        warnings.extend(self.named.into_iter().map(|(n, _)| format!("netdev {n} has no peer")));
        Ok(all)
    }
}

fn take<K: PartialEq>(list: &mut Vec<(K, TapConfig)>, key: &K) -> Option<TapConfig> {
    let i = list.iter().position(|(k, _)| k == key)?;
    Some(list.remove(i).1)
}
