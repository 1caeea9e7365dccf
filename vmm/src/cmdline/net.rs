//! `-net`, `-netdev`, `-nic`.
//!
//! Old command lines connect cards and back ends by a vlan number; new ones by name. Both become pairs
//! of one card and one back end. A vlan with several cards would be a hub, which is refused.

use std::path::PathBuf;

use super::builder::Builder;
use super::device::DeviceSpec;
use super::options::{Options, Refusals};
use crate::machine::config::DeviceKind;
use crate::net::config::{DOWNSCRIPT, TapConfig, TapSource, Vhost, VnetHeader};
use crate::virtio::net::NetConfig;
use crate::{Error, Result};

/// Default network script.
const SCRIPT: &str = "/etc/qemu-ifup";
const TAP_REFUSED: Refusals = &[
    ("poll-us", "Leave it out"),
    ("vhostforce", "Use vhost=on"),
    ("net", "User networking is not there yet"),
    ("hostfwd", "User networking is not there yet"),
];

/// A card of `-net nic` or `-nic`.
#[derive(Clone, Debug)]
struct Card {
    vlan: u64,
    mac: Option<[u8; 6]>,
    slot: Option<u8>,
    id: Option<String>,
    netdev: Option<String>,
    multiqueue: Option<bool>,
    mtu: u16,
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
        kind @ ("tap" | "bridge") => {
            let vlan = o.take_number("vlan")?.unwrap_or(0);
            let name = o.take("name").unwrap_or_else(|| format!("{kind}.{}", b.net.old.len()));
            let tap = back_end(&mut o, kind, name)?;
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
    if !matches!(kind.as_str(), "tap" | "bridge") {
        return Err(unsupported(&kind));
    }
    let id = o.need("id")?;
    let tap = back_end(&mut o, &kind, id.clone())?;
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
        kind @ ("tap" | "bridge") => {
            let mut card = card(&mut o)?;
            let name = format!("#nic{}", b.net.cards.len());
            card.netdev = Some(name.clone());
            b.net.cards.push(card);
            let tap = back_end(&mut o, kind, name.clone())?;
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
        multiqueue: None,
        mtu: 0,
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

/// Descriptors separated by colons.
fn descriptors(key: &str, text: &str) -> Result<Vec<i32>> {
    text.split(':')
        .map(|t| t.parse().ok().filter(|fd: &i32| *fd >= 0))
        .collect::<Option<Vec<i32>>>()
        .ok_or_else(|| {
            Error::invalid(format!("{key}={text}: numbers of open descriptors are needed"))
        })
}

/// Takes `one=` or `many=`.
fn descriptors_of(o: &mut Options, one: &str, many: &str) -> Result<Option<Vec<i32>>> {
    match (o.take(one), o.take(many)) {
        (Some(_), Some(_)) => Err(Error::invalid(format!("{one}= and {many}= exclude each other"))),
        (Some(text), None) => {
            let all = descriptors(one, &text)?;
            if all.len() == 1 { Ok(Some(all)) } else { descriptors(one, "").map(Some) }
        }
        (None, Some(text)) => descriptors(many, &text).map(Some),
        (None, None) => Ok(None),
    }
}

fn vhost(o: &mut Options) -> Result<Vhost> {
    let wanted = o.take_bool("vhost")?;
    let given = descriptors_of(o, "vhostfd", "vhostfds")?;
    Ok(match (wanted, given) {
        (Some(true), given) => Vhost::On(given.unwrap_or_default()),
        (_, None) => Vhost::Off,
        (None | Some(false), Some(_)) => {
            return Err(Error::invalid("vhostfd(s)= is not valid without vhost"));
        }
    })
}

/// A tap interface, or one that joins a bridge.
fn back_end(o: &mut Options, kind: &str, name: String) -> Result<TapConfig> {
    let fds = descriptors_of(o, "fd", "fds")?;
    let (bridge, helper) = (o.take("br"), o.take("helper"));
    let script = |given: Option<String>, usual: &str| match given.as_deref() {
        Some("no" | "") => None,
        Some(path) => Some(PathBuf::from(path)),
        None => Some(PathBuf::from(usual)),
    };
    let (up, down) = (o.take("script"), o.take("downscript"));
    let (ifname, queues) = (o.take("ifname"), o.take_u32("queues")?);
    let vnet = o.take_bool("vnet_hdr")?;
    let joins = kind == "bridge" || bridge.is_some() || helper.is_some();
    let excluded = [
        (
            fds.is_some() && (ifname.is_some() || up.is_some() || down.is_some() || joins),
            "fd=/fds=",
        ),
        (joins && (ifname.is_some() || up.is_some() || down.is_some()), "br=/helper="),
    ];
    if let Some((_, what)) = excluded.iter().find(|e| e.0) {
        return Err(Error::invalid(format!(
            "ifname=, script=, downscript=, br= and helper= are invalid with {what}"
        )));
    }
    let queues = match (&fds, queues) {
        (Some(_), Some(_)) => {
            return Err(Error::invalid("queues= is invalid with fd=/fds="));
        }
        (Some(fds), None) => fds.len(),
        (None, n) => usize::try_from(n.unwrap_or(1)).unwrap_or(usize::MAX),
    };
    let queues = u16::try_from(queues).ok().filter(|q| (1..=64).contains(q)).ok_or_else(|| {
        Error::invalid(format!("queues={queues}: an interface has 1 to 64 queues"))
    })?;
    if joins && queues > 1 {
        return Err(Error::unsupported("several queues are not supported on a bridge's interface")
            .hint("Use -netdev tap,queues= with a script that joins the bridge"));
    }
    let made_here = fds.is_none() && !joins;
    let source = match fds {
        Some(fds) => TapSource::Descriptors(fds),
        None if joins => TapSource::Bridge {
            bridge: bridge.unwrap_or_else(|| "br0".into()),
            helper: helper.map(PathBuf::from),
        },
        None => TapSource::Name(ifname.unwrap_or_default()),
    };
    let sndbuf = o.take_size("sndbuf", 1)?;
    Ok(TapConfig {
        name,
        source,
        queues,
        vnet_header: if vnet == Some(false) { VnetHeader::Off } else { VnetHeader::On },
        vhost: vhost(o)?,
        script: script(up, SCRIPT).filter(|_| made_here),
        downscript: script(down, DOWNSCRIPT).filter(|_| made_here),
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
                DeviceSpec::Net { id, slot, mac, netdev, multiqueue, mtu } => Some(Card {
                    vlan: 0,
                    mac: *mac,
                    slot: *slot,
                    id: Some(id.clone()),
                    netdev: Some(netdev.clone()),
                    multiqueue: Some(*multiqueue),
                    mtu: *mtu,
                }),
                _ => None,
            })
            .collect();
        devices.retain(|d| !matches!(d, DeviceSpec::Net { .. }));
        let cards: Vec<Card> = self.cards.into_iter().chain(from_devices).collect();
        // Addresses that the user gave are not handed out to others.
        let mut taken: Vec<[u8; 6]> = cards.iter().filter_map(|c| c.mac).collect();
        let mut given = std::collections::BTreeSet::new();
        for card in cards {
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
            let mac = card.mac.unwrap_or_else(|| free_mac(&taken));
            let first_use = !taken.contains(&mac) || (card.mac.is_some() && given.insert(mac));
            if !first_use {
                warnings.push(format!(
                    "{id}: another card of this guest has the address {} too",
                    show_mac(mac)
                ));
            }
            taken.push(mac);
            let mut tap = tap;
            // As in QEMU, a card has one pair of queues unless it is told otherwise.
            if tap.queues > 1 && card.multiqueue == Some(false) {
                warnings.push(format!("{id}: one pair of queues is used; give the device mq=on"));
                tap.queues = 1;
                if let TapSource::Descriptors(fds) = &mut tap.source {
                    fds.truncate(1);
                }
                if let Vhost::On(fds) = &mut tap.vhost {
                    fds.truncate(1);
                }
            }
            let shown = NetConfig { mac, mtu: card.mtu, ..NetConfig::default() };
            let kind = DeviceKind::Net { shown, tap };
            all.push((id, Nic { slot: card.slot, kind }));
        }
        if let Some((vlan, _)) = self.old.first() {
            return Err(Error::invalid(format!("-net tap: no card is on vlan {vlan}"))
                .hint(format!("Add -net nic,model=virtio,vlan={vlan}")));
        }
        warnings.extend(self.named.into_iter().map(|(n, _)| format!("netdev {n} has no peer")));
        Ok(all)
    }
}

/// The first of QEMU's usual addresses that nobody has.
fn free_mac(taken: &[[u8; 6]]) -> [u8; 6] {
    let all = (0..=u8::MAX).map(|n| [0x52, 0x54, 0, 0x12, 0x34, 0x56u8.wrapping_add(n)]);
    let mut free = all.filter(|m| !taken.contains(m));
    free.next().unwrap_or([0x52, 0x54, 0, 0x12, 0x34, 0x56])
}

/// As people write it.
pub fn show_mac(mac: [u8; 6]) -> String {
    mac.map(|b| format!("{b:02x}")).join(":")
}

fn take<K: PartialEq>(list: &mut Vec<(K, TapConfig)>, key: &K) -> Option<TapConfig> {
    let i = list.iter().position(|(k, _)| k == key)?;
    Some(list.remove(i).1)
}
