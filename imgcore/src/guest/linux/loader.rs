//! What the boot loader's menu starts: kernel, initial RAM disk, arguments.
//!
//! Read are GRUB 2's `grub.cfg` (the statements that start something, not its language), GRUB legacy's
//! `menu.lst`, entries of the Boot Loader Specification (Fedora, systemd-boot), and the files of
//! `syslinux`/`extlinux`.

use std::cmp::Ordering;
use std::collections::HashMap;

use serde::Serialize;

use super::release::clean;
use crate::guest::files::Tree;

/// Largest menu that is read.
const MAX_MENU: usize = 4 << 20;
/// Entries that are kept.
const MAX_ENTRIES: usize = 200;

/// One entry of a menu.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BootEntry {
    /// What the menu shows.
    pub title: String,
    /// The kernel, as the loader names it.
    pub kernel: String,
    /// The initial RAM disks.
    pub initrd: Vec<String>,
    /// The kernel's command line.
    pub arguments: String,
    /// The file it was read from.
    pub from: String,
    /// How `grub-set-default` names it.
    #[serde(skip)]
    pub id: String,
}

impl BootEntry {
    /// The last value of an argument (`root=`).
    pub fn argument(&self, name: &str) -> Option<&str> {
        let words = self.arguments.split_whitespace();
        words
            .filter_map(|w| w.split_once('='))
            .filter(|(k, _)| *k == name)
            .map(|(_, v)| v)
            .next_back()
    }
}

/// The entries, the one that starts by default first.
pub fn entries(tree: &Tree<'_>) -> Vec<BootEntry> {
    let mut all: Vec<BootEntry> = Vec::new();
    let folders = [
        "/boot/grub2",
        "/boot/grub",
        "/boot/efi/EFI/fedora",
        "/boot/efi/EFI/redhat",
        "/boot/efi/EFI/centos",
    ];
    let mut environment = HashMap::new();
    for folder in folders {
        if let Some(text) = tree.text(&format!("{folder}/grubenv"), 64 << 10) {
            for line in text.lines() {
                if let Some((key, value)) = line.split_once('=') {
                    environment.insert(key.to_owned(), value.to_owned());
                }
            }
        }
    }
    let mut wants_spec = false;
    let mut default = None;
    for folder in folders {
        let path = format!("{folder}/grub.cfg");
        if let Some(text) = tree.text(&path, MAX_MENU) {
            wants_spec |= text.lines().any(|l| l.trim() == "blscfg");
            default = default.or_else(|| grub_default(&text, &environment));
            all.extend(grub(&text, &path));
        }
    }
    if wants_spec || all.is_empty() {
        let mut spec = specification(tree, &environment);
        spec.append(&mut all);
        all = spec;
    }
    if let Some(at) = default.and_then(|d| position(&all, &d))
        && at < all.len()
    {
        all[..=at].rotate_right(1);
    }
    for path in ["/boot/grub/menu.lst", "/boot/grub/grub.conf"] {
        if let Some(text) = tree.text(path, MAX_MENU).filter(|_| all.is_empty()) {
            all.extend(legacy(&text, path));
        }
    }
    for path in [
        "/boot/extlinux/extlinux.conf",
        "/boot/extlinux.conf",
        "/extlinux.conf",
        "/boot/syslinux/syslinux.cfg",
        "/syslinux.cfg",
        "/boot/syslinux.cfg",
        "/isolinux/isolinux.cfg",
        "/boot/isolinux/isolinux.cfg",
    ] {
        if let Some(text) = tree.text(path, MAX_MENU).filter(|_| all.is_empty()) {
            all.extend(syslinux(&text, path));
        }
    }
    all.truncate(MAX_ENTRIES);
    all
}

/// `set default=`: a number, a title, an identifier, or what was saved.
fn grub_default(text: &str, environment: &HashMap<String, String>) -> Option<String> {
    let lines = text.lines().filter_map(|l| l.trim().strip_prefix("set default="));
    let mut found = None;
    for value in lines {
        let value = value.trim_matches('"');
        found = match value {
            "${next_entry}" | "${prev_saved_entry}" => found,
            "${saved_entry}" | "$saved_entry" => environment.get("saved_entry").cloned().or(found),
            plain => Some(plain.to_owned()),
        };
    }
    found.or_else(|| environment.get("saved_entry").cloned()).filter(|d| !d.is_empty())
}

fn position(entries: &[BootEntry], default: &str) -> Option<usize> {
    // An entry of a submenu is `submenu>entry`.
    let last = default.rsplit('>').next().unwrap_or(default);
    entries
        .iter()
        .position(|e| e.id == last || e.title == last)
        .or_else(|| default.split('>').next()?.parse().ok())
}

/// The words of a line, quotes taken off.
fn words(line: &str) -> Vec<String> {
    let mut all = Vec::new();
    let mut word = String::new();
    let (mut quote, mut some) = (None, false);
    for c in line.chars() {
        match (quote, c) {
            (None, '\'' | '"') => (quote, some) = (Some(c), true),
            (Some(q), c) if c == q => quote = None,
            (None, c) if c.is_whitespace() => {
                if some || !word.is_empty() {
                    all.push(std::mem::take(&mut word));
                }
                some = false;
            }
            (_, c) => word.push(c),
        }
    }
    if some || !word.is_empty() {
        all.push(word);
    }
    all
}

fn grub(text: &str, from: &str) -> Vec<BootEntry> {
    let mut all = Vec::new();
    let mut open: Option<BootEntry> = None;
    for line in text.lines() {
        let trimmed = line.trim();
        let verb = trimmed.split_whitespace().next().unwrap_or_default();
        match verb {
            "menuentry" => {
                all.extend(open.take().filter(|e| !e.kernel.is_empty()));
                let words = words(trimmed);
                let id = words
                    .iter()
                    .position(|w| w == "$menuentry_id_option" || w == "--id")
                    .and_then(|i| words.get(i + 1));
                open = Some(BootEntry {
                    title: words.get(1).map(|t| clean(t)).unwrap_or_default(),
                    id: id.cloned().unwrap_or_default(),
                    from: from.to_owned(),
                    ..BootEntry::default()
                });
            }
            "linux" | "linux16" | "linuxefi" | "$linux" => {
                if let Some(entry) = &mut open {
                    let words = words(trimmed);
                    entry.kernel = words.get(1).map(|k| path(k)).unwrap_or_default();
                    entry.arguments = clean_arguments(words.get(2..).unwrap_or_default());
                }
            }
            "initrd" | "initrd16" | "initrdefi" | "$initrd" => {
                if let Some(entry) = &mut open {
                    entry.initrd = words(trimmed).iter().skip(1).map(|w| path(w)).collect();
                }
            }
            _ => {}
        }
        if all.len() >= MAX_ENTRIES {
            break;
        }
    }
    all.extend(open.filter(|e| !e.kernel.is_empty()));
    all
}

/// `($root)/boot/vmlinuz` and `(hd0,1)/vmlinuz` without the device.
fn path(text: &str) -> String {
    let text = match text.strip_prefix('(').and_then(|t| t.split_once(')')) {
        Some((_, rest)) => rest,
        None => text,
    };
    clean(text.trim_start_matches("${root}").trim_start_matches("$root"))
}

fn clean_arguments(words: &[String]) -> String {
    words.join(" ").chars().filter(|c| !c.is_control()).take(4096).collect()
}

/// The Boot Loader Specification's type 1: a file an entry.
fn specification(tree: &Tree<'_>, environment: &HashMap<String, String>) -> Vec<BootEntry> {
    let mut all: Vec<(String, BootEntry)> = Vec::new();
    for folder in [
        "/boot/loader/entries",
        "/boot/efi/loader/entries",
        "/efi/loader/entries",
        "/loader/entries",
    ] {
        for name in tree.names(folder).into_iter().take(MAX_ENTRIES) {
            let Some(id) = name.strip_suffix(".conf") else { continue };
            let file = format!("{folder}/{name}");
            let Some(text) = tree.text(&file, 64 << 10) else { continue };
            let mut entry = BootEntry { id: id.to_owned(), from: file, ..BootEntry::default() };
            let mut version = String::new();
            for line in text.lines() {
                let Some((key, value)) = line.trim().split_once(char::is_whitespace) else {
                    continue;
                };
                let value = value.trim();
                match key {
                    "title" => entry.title = clean(value),
                    "version" => version = value.to_owned(),
                    "linux" => entry.kernel = clean(value),
                    // GRUB's variables for the user's own additions may stand behind.
                    "initrd" => {
                        let files = value.split_whitespace().filter(|w| !w.starts_with('$'));
                        entry.initrd.extend(files.map(clean));
                    }
                    "options" => {
                        let mut value = value.to_owned();
                        for (name, text) in environment {
                            value = value.replace(&format!("${name}"), text);
                        }
                        let more = clean_arguments(&[value]);
                        entry.arguments = format!("{} {more}", entry.arguments).trim().to_owned();
                    }
                    _ => {}
                }
            }
            // One whose kernel is inside of an EFI program has none here.
            if !entry.kernel.is_empty() {
                if version.is_empty() {
                    version.clone_from(&entry.id);
                }
                all.push((version, entry));
            }
        }
    }
    // The newest first; rescue entries are older than everything.
    all.sort_by(|a, b| {
        let rescue = |e: &(String, BootEntry)| e.1.id.contains("rescue");
        rescue(a).cmp(&rescue(b)).then_with(|| compare_versions(&b.0, &a.0))
    });
    all.into_iter().map(|(_, e)| e).collect()
}

/// Numbers in versions count as numbers.
pub(crate) fn compare_versions(a: &str, b: &str) -> Ordering {
    let parts = |text: &str| {
        let mut all: Vec<(u64, String)> = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let word = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
            let (text, tail) = rest.split_at(word);
            let digits = tail.find(|c: char| !c.is_ascii_digit()).unwrap_or(tail.len());
            let (number, tail) = tail.split_at(digits);
            all.push((number.parse().unwrap_or(0), text.to_owned()));
            rest = tail;
        }
        all
    };
    let (a, b) = (parts(a), parts(b));
    for (x, y) in a.iter().zip(&b) {
        // A word is older than a number in its place: 70.el9 than 70.13.el9.
        let word = |t: &str| t.contains(|c: char| c.is_alphabetic());
        let order = word(&y.1).cmp(&word(&x.1)).then(x.1.cmp(&y.1)).then(x.0.cmp(&y.0));
        if order != Ordering::Equal {
            return order;
        }
    }
    a.len().cmp(&b.len())
}

fn legacy(text: &str, from: &str) -> Vec<BootEntry> {
    let mut all: Vec<BootEntry> = Vec::new();
    let mut default = 0;
    for line in text.lines() {
        let line = line.trim();
        let Some((verb, rest)) = line.split_once(|c: char| c.is_whitespace() || c == '=') else {
            continue;
        };
        match (verb, all.last_mut()) {
            ("default", None) => default = rest.trim().parse().unwrap_or(0),
            ("title", _) => all.push(BootEntry {
                title: clean(rest),
                from: from.to_owned(),
                ..BootEntry::default()
            }),
            ("kernel", Some(entry)) => {
                let words = words(rest);
                entry.kernel = words.first().map(|k| path(k)).unwrap_or_default();
                entry.arguments = clean_arguments(words.get(1..).unwrap_or_default());
            }
            ("initrd", Some(entry)) => entry.initrd = vec![path(rest.trim())],
            _ => {}
        }
    }
    if default < all.len() {
        all[..=default].rotate_right(1);
    }
    all.retain(|e| !e.kernel.is_empty());
    all
}

fn syslinux(text: &str, from: &str) -> Vec<BootEntry> {
    let mut all: Vec<BootEntry> = Vec::new();
    let mut default = None;
    let folder = from.rsplit_once('/').map_or("", |(f, _)| f);
    // Names are relative to the file.
    let place = |name: &str| {
        if name.starts_with('/') { clean(name) } else { clean(&format!("{folder}/{name}")) }
    };
    for line in text.lines() {
        let Some((verb, rest)) = line.trim().split_once(char::is_whitespace) else { continue };
        let rest = rest.trim();
        match (verb.to_ascii_lowercase().as_str(), all.last_mut()) {
            ("default", _) => default = Some(rest.to_owned()),
            ("label", _) => all.push(BootEntry {
                title: clean(rest),
                id: rest.to_owned(),
                from: from.to_owned(),
                ..BootEntry::default()
            }),
            ("kernel" | "linux", Some(entry)) => entry.kernel = place(rest),
            ("initrd", Some(entry)) => entry.initrd = rest.split(',').map(place).collect(),
            ("append", Some(entry)) => {
                let mut kept = Vec::new();
                for word in words(rest) {
                    match word.strip_prefix("initrd=") {
                        Some(files) => entry.initrd = files.split(',').map(place).collect(),
                        None => kept.push(word),
                    }
                }
                entry.arguments = clean_arguments(&kept);
            }
            _ => {}
        }
    }
    all.retain(|e| !e.kernel.is_empty() && !e.kernel.ends_with(".c32"));
    if let Some(at) = default.and_then(|d| position(&all, &d))
        && at < all.len()
    {
        all[..=at].rotate_right(1);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRUB: &str = r#"
set default="${saved_entry}"
set default="1"
menuentry 'Debian GNU/Linux' --class debian $menuentry_id_option 'gnulinux-simple' {
	search --no-floppy --fs-uuid --set=root 1-2
	linux	/boot/vmlinuz-6.1.0-1 root=UUID=x ro quiet console=ttyS0
	initrd	/boot/initrd.img-6.1.0-1
}
submenu 'Advanced' $menuentry_id_option 'adv' {
	menuentry 'Debian, older' $menuentry_id_option 'older' {
		linux	($root)/boot/vmlinuz-5.10.0-9 root=/dev/sda1 "a b"
		initrd	/boot/ucode.img /boot/initrd.img-5.10.0-9
	}
}
menuentry 'UEFI Firmware Settings' { fwsetup }
"#;

    #[test]
    fn menus_of_grub() {
        let all = grub(GRUB, "/boot/grub/grub.cfg");
        assert_eq!(all.len(), 2);
        assert_eq!(all[0].kernel, "/boot/vmlinuz-6.1.0-1");
        assert_eq!(all[0].argument("root"), Some("UUID=x"));
        assert_eq!(all[1].kernel, "/boot/vmlinuz-5.10.0-9");
        assert_eq!(all[1].initrd.len(), 2);
        assert_eq!(grub_default(GRUB, &HashMap::new()), Some("1".to_owned()));
        assert_eq!(position(&all, "adv>older"), Some(1));
        assert_eq!(position(&all, "0"), Some(0));
    }

    #[test]
    fn older_menus() {
        let text = "default=1\ntimeout 5\ntitle A\n root (hd0,0)\n kernel /vmlinuz-a ro root=/dev/hda1\n initrd /a.img\n\
                    title B\n kernel (hd0,0)/vmlinuz-b ro\n";
        let all = legacy(text, "menu.lst");
        assert_eq!(all[0].kernel, "/vmlinuz-b");
        assert_eq!(all[1].argument("root"), Some("/dev/hda1"));
        let text = "DEFAULT two\nLABEL one\n KERNEL vmlinuz-lts\n INITRD initramfs-lts\n APPEND root=UUID=1 quiet\n\
                    LABEL two\n LINUX /boot/vmlinuz-virt\n APPEND initrd=x.img root=LABEL=r\n";
        let all = syslinux(text, "/boot/extlinux.conf");
        assert_eq!(all[0].kernel, "/boot/vmlinuz-virt");
        assert_eq!(all[0].initrd, ["/boot/x.img"]);
        assert_eq!(all[1].kernel, "/boot/vmlinuz-lts");
    }

    #[test]
    fn versions_are_numbers() {
        assert_eq!(compare_versions("6.10.0-1", "6.9.0-20"), Ordering::Greater);
        assert_eq!(compare_versions("a-1", "a-1"), Ordering::Equal);
        assert_eq!(compare_versions("5.14.0-70.el9", "5.14.0-70.13.1.el9"), Ordering::Less);
    }
}
