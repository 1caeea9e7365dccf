//! What in the network's configuration holds on to the old machine: addresses of its cards, names that
//! come from their slots.

use serde::Serialize;

use super::release::{MAX_TEXT, assignments, clean};
use crate::guest::files::Tree;

/// Files of one folder that are read.
const MAX_FILES: usize = 100;

/// One card as the configuration knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Interface {
    /// Its name: `eth0`, `ens192`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The address it must have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Where that is written.
    pub file: String,
    /// A rule that gives the name to that address: another card will get another name.
    pub pinned: bool,
}

impl Interface {
    /// Whether the name comes from a slot of the old machine: `ens192`, `enp3s0`, `eno1`.
    pub fn slot_name(&self) -> bool {
        self.name.as_deref().is_some_and(|n| {
            ["ens", "enp", "eno", "enx", "em"].iter().any(|p| {
                n.strip_prefix(p).is_some_and(|r| r.starts_with(|c: char| c.is_ascii_hexdigit()))
            })
        })
    }
}

/// Reads the configuration of udev's rules, ifcfg files, Debian's interfaces, netplan, NetworkManager and
/// systemd-networkd.
pub fn interfaces(tree: &Tree<'_>) -> Vec<Interface> {
    let mut all = Vec::new();
    udev(tree, &mut all);
    ifcfg(tree, &mut all);
    debian(tree, &mut all);
    netplan(tree, &mut all);
    for (folder, suffix) in [
        ("/etc/NetworkManager/system-connections", ".nmconnection"),
        ("/etc/systemd/network", ".network"),
        ("/etc/systemd/network", ".link"),
    ] {
        for (file, text) in files(tree, folder, |n| n.ends_with(suffix)) {
            all.extend(sections(&file, &text, suffix == ".link"));
        }
    }
    all.retain(|i| i.name.as_deref() != Some("lo"));
    all
}

fn files(tree: &Tree<'_>, folder: &str, wanted: impl Fn(&str) -> bool) -> Vec<(String, String)> {
    let names = tree.names(folder).into_iter().filter(|n| wanted(n)).take(MAX_FILES);
    names
        .filter_map(|n| {
            let file = format!("{folder}/{n}");
            let text = tree.text(&file, MAX_TEXT)?;
            Some((file, text))
        })
        .collect()
}

/// An address in small letters with colons; `None` for what is none.
fn address(text: &str) -> Option<String> {
    let text = text.trim().trim_matches(['"', '\'']).to_lowercase().replace('-', ":");
    let parts: Vec<&str> = text.split(':').collect();
    let good = |p: &&str| p.len() == 2 && p.chars().all(|c| c.is_ascii_hexdigit());
    (parts.len() == 6 && parts.iter().all(good)).then_some(text)
}

/// `SUBSYSTEM=="net", ATTR{address}=="00:50:...", NAME="eth0"`
fn udev(tree: &Tree<'_>, all: &mut Vec<Interface>) {
    for (file, text) in
        files(tree, "/etc/udev/rules.d", |n| n.contains("net") && n.ends_with(".rules"))
    {
        for line in text.lines().map(str::trim).filter(|l| !l.starts_with('#')) {
            let value = |key: &str| {
                let at = line.find(key)? + key.len();
                line[at..].trim_start_matches(['=', ' ']).strip_prefix('"')?.split('"').next()
            };
            let mac = value("ATTR{address}").or_else(|| value("ATTRS{address}")).and_then(address);
            let name = value("NAME").map(clean);
            if mac.is_some() && name.is_some() {
                all.push(Interface { name, mac, file: file.clone(), pinned: true });
            }
        }
    }
}

fn ifcfg(tree: &Tree<'_>, all: &mut Vec<Interface>) {
    for folder in ["/etc/sysconfig/network-scripts", "/etc/sysconfig/network"] {
        for (file, text) in files(tree, folder, |n| n.starts_with("ifcfg-")) {
            let mut found = Interface { file: file.clone(), ..Interface::default() };
            for (key, value) in assignments(&text) {
                match key.as_str() {
                    "DEVICE" => found.name = Some(clean(&value)),
                    "HWADDR" | "LLADDR" => found.mac = address(&value),
                    _ => {}
                }
            }
            if found.name.is_none() && found.mac.is_none() {
                found.name = file.rsplit_once("ifcfg-").map(|(_, n)| clean(n));
            }
            all.push(found);
        }
    }
}

/// interfaces(5)
fn debian(tree: &Tree<'_>, all: &mut Vec<Interface>) {
    let mut texts = files(tree, "/etc/network/interfaces.d", |_| true);
    let main = "/etc/network/interfaces";
    texts.extend(tree.text(main, MAX_TEXT).map(|t| (main.to_owned(), t)));
    for (file, text) in texts {
        for line in text.lines() {
            let mut words = line.split_whitespace();
            if words.next() == Some("iface")
                && let Some(name) = words.next()
                && !all.iter().any(|i| i.name.as_deref() == Some(name) && i.file == file)
            {
                all.push(Interface {
                    name: Some(clean(name)),
                    file: file.clone(),
                    ..Interface::default()
                });
            }
        }
    }
}

/// netplan's YAML, as far as names and addresses of its `ethernets` go, by indentation.
fn netplan(tree: &Tree<'_>, all: &mut Vec<Interface>) {
    for (file, text) in files(tree, "/etc/netplan", |n| n.ends_with(".yaml") || n.ends_with(".yml"))
    {
        // The indentation of `ethernets:`, and of the names below it.
        let (mut section, mut level): (Option<usize>, Option<usize>) = (None, None);
        for line in text.lines() {
            let bare = line.trim();
            if bare.is_empty() || bare.starts_with('#') {
                continue;
            }
            let indent = line.len() - line.trim_start().len();
            if bare == "ethernets:" {
                (section, level) = (Some(indent), None);
                continue;
            }
            let Some(base) = section else { continue };
            if indent <= base {
                section = None;
                continue;
            }
            let level = *level.get_or_insert(indent);
            let Some((key, value)) = bare.split_once(':') else { continue };
            if indent == level {
                let name = Some(clean(key.trim_matches(['"', '\''])));
                all.push(Interface { name, file: file.clone(), ..Interface::default() });
            } else if matches!(key, "macaddress")
                && let Some(last) = all.last_mut()
            {
                last.mac = address(value);
            }
        }
    }
}

/// `[Section]` and `Key=Value` files.
fn sections(file: &str, text: &str, link: bool) -> Option<Interface> {
    let mut found = Interface { file: file.to_owned(), ..Interface::default() };
    let mut section = String::new();
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            section = line.to_lowercase();
            continue;
        }
        let Some((key, value)) = line.split_once('=') else { continue };
        let value = value.trim();
        match (section.as_str(), key.trim().to_lowercase().as_str()) {
            ("[connection]", "interface-name") => found.name = Some(clean(value)),
            ("[match]", "name") if !link && !value.contains(['*', ' ', '!']) => {
                found.name = Some(clean(value));
            }
            ("[match]", "macaddress" | "permanentmacaddress")
            | ("[ethernet]" | "[802-3-ethernet]", "mac-address") => found.mac = address(value),
            ("[link]", "name") if link => found.name = Some(clean(value)),
            _ => {}
        }
    }
    found.pinned = link && found.mac.is_some() && found.name.is_some();
    (found.name.is_some() || found.mac.is_some()).then_some(found)
}
