//! Kernel options through the boot loader in use. Texts are edited by us and checked before they are written;
//! what the loader's own tool generates is remembered before and looked at after.

use super::action::Action;
use crate::error::{Error, Result};
use crate::host::{BootLoader, Host};

/// Options that may stand several times on a line, each adding to the others.
const REPEATED: [&str; 4] = ["console", "hugepagesz", "hugepages", "default_hugepagesz"];

fn key(word: &str) -> &str {
    word.split('=').next().unwrap_or(word)
}

/// A command line with the wanted words: same keys are replaced, new ones appended.
pub fn merge(line: &str, wanted: &[String]) -> String {
    let mut words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    for new in wanted {
        if words.contains(new) {
            continue;
        }
        let place = words.iter().position(|word| key(word) == key(new));
        match place {
            Some(place) if !REPEATED.contains(&key(new)) => words[place].clone_from(new),
            _ => words.push(new.clone()),
        }
    }
    words.join(" ")
}

/// Whether a word can stand on a kernel line and in the loaders' files without quoting.
pub fn check_word(word: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "=-_.,:/@+~".contains(c);
    if !word.is_empty() && word.chars().all(plain) && !word.starts_with(['=', '-']) {
        return Ok(());
    }
    Err(Error::usage(format!("'{word}' is not a kernel option"))
        .remedy("write NAME or NAME=VALUE without blanks and quotes"))
}

/// /etc/default/grub with the words added to GRUB_CMDLINE_LINUX.
pub fn edit_grub_default(old: &str, wanted: &[String]) -> Result<String> {
    let mut lines: Vec<String> = old.lines().map(str::to_owned).collect();
    let place = lines.iter().rposition(|line| line.trim_start().starts_with("GRUB_CMDLINE_LINUX="));
    let Some(place) = place else {
        let merged = merge("", wanted);
        return Ok(format!("{}GRUB_CMDLINE_LINUX=\"{merged}\"\n", with_newline(old)));
    };
    let value = lines[place].split_once('=').map_or("", |(_, value)| value.trim());
    let quote = value.chars().next().filter(|c| *c == '"' || *c == '\'');
    let inner = match quote {
        Some(quote) => value[1..].strip_suffix(quote).filter(|inner| !inner.contains(quote)),
        None => Some(value).filter(|value| !value.contains([' ', '"', '\''])),
    };
    let Some(inner) = inner else {
        return Err(Error::refused(format!(
            "line {} of /etc/default/grub is not one quoted text",
            place + 1
        ))
        .at("/etc/default/grub")
        .remedy("write GRUB_CMDLINE_LINUX=\"...\" on one line"));
    };
    let quote = quote.unwrap_or('"');
    lines[place] = format!("GRUB_CMDLINE_LINUX={quote}{}{quote}", merge(inner, wanted));
    Ok(lines.join("\n") + "\n")
}

fn with_newline(text: &str) -> String {
    if text.is_empty() || text.ends_with('\n') { text.to_owned() } else { format!("{text}\n") }
}

/// A boot loader specification entry with the words added to its options.
pub fn edit_entry(old: &str, wanted: &[String]) -> Option<String> {
    let is = |line: &str, key: &str| line.split_whitespace().next() == Some(key);
    // An entry that boots no Linux has no options of ours.
    if !old.lines().any(|line| is(line, "linux") || is(line, "efi")) {
        return None;
    }
    let mut lines: Vec<String> = old.lines().map(str::to_owned).collect();
    match lines.iter().rposition(|line| is(line, "options")) {
        Some(place) => {
            let options =
                lines[place].trim_start().strip_prefix("options").unwrap_or("").trim().to_owned();
            // Keeping the line's own spacing would save nothing: the loader splits at blanks.
            lines[place] = format!("options {}", merge(&options, wanted));
        }
        None => lines.push(format!("options {}", merge("", wanted))),
    }
    Some(lines.join("\n") + "\n")
}

/// The generated configurations of GRUB that are there.
fn grub_configs(host: &Host) -> Vec<String> {
    let mut found: Vec<String> = ["/boot/grub/grub.cfg", "/boot/grub2/grub.cfg"]
        .into_iter()
        .filter(|path| host.exists(path))
        .map(str::to_owned)
        .collect();
    // On EFI hosts of Fedora's family a stub there points to the real one; only a full one is regenerated.
    for vendor in host.list("/boot/efi/EFI") {
        let path = format!("/boot/efi/EFI/{vendor}/grub.cfg");
        if host.read(&path).is_ok_and(|text| text.contains("menuentry ")) {
            found.push(path);
        }
    }
    found
}

/// Actions that put the words on the kernel line at the next boot.
pub fn actions(host: &Host, wanted: &[String]) -> Result<Vec<Action>> {
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    wanted.iter().try_for_each(|word| check_word(word))?;
    match host.boot_loader() {
        BootLoader::Grub => grub(host, wanted),
        BootLoader::Grubby => Ok(grubby(host, wanted)),
        BootLoader::SystemdBoot => systemd_boot(host, wanted),
        BootLoader::Unknown => Err(Error::host("no boot loader was recognised")
            .remedy(format!("add to the kernel line yourself: {}", wanted.join(" ")))),
    }
}

fn grub(host: &Host, wanted: &[String]) -> Result<Vec<Action>> {
    const DEFAULT: &str = "/etc/default/grub";
    let old = host
        .read(DEFAULT)
        .map_err(|error| Error::io("cannot be read", &host.place(DEFAULT), error))?;
    let text = edit_grub_default(&old, wanted)?;
    let configs = grub_configs(host);
    let Some(config) = configs.first().cloned() else {
        return Err(Error::host(
            "GRUB's generated configuration was not found (looked in /boot/grub, /boot/grub2, /boot/efi/EFI)",
        ));
    };
    let tool = ["grub-mkconfig", "grub2-mkconfig"].into_iter().find_map(|name| host.program(name));
    let Some(tool) = tool else {
        return Err(Error::host("grub-mkconfig is not installed")
            .remedy(host.install_command("grub-common", "grub2-tools")));
    };
    Ok(vec![
        Action::File { path: DEFAULT.into(), text, mode: 0o644 },
        Action::Tool {
            command: vec![tool, "-o".into(), config],
            rewrites: configs,
            expect: wanted.to_vec(),
        },
    ])
}

fn grubby(host: &Host, wanted: &[String]) -> Vec<Action> {
    let entries =
        host.list("/boot/loader/entries").into_iter().filter(|name| name.ends_with(".conf"));
    let entries: Vec<String> = entries.map(|name| format!("/boot/loader/entries/{name}")).collect();
    let has = |path: &String| {
        host.read(path).is_ok_and(|text| {
            wanted.iter().all(|word| text.split_whitespace().any(|there| there == word))
        })
    };
    if !entries.is_empty() && entries.iter().all(has) {
        return Vec::new();
    }
    let mut rewrites = entries;
    rewrites.extend(
        ["/etc/default/grub", "/boot/grub2/grubenv", "/etc/kernel/cmdline"].map(str::to_owned),
    );
    rewrites.extend(grub_configs(host));
    vec![Action::Tool {
        command: vec![
            host.program("grubby").unwrap_or_else(|| "grubby".into()),
            "--update-kernel=ALL".into(),
            format!("--args={}", wanted.join(" ")),
        ],
        rewrites,
        expect: wanted.to_vec(),
    }]
}

fn systemd_boot(host: &Host, wanted: &[String]) -> Result<Vec<Action>> {
    let mut actions = Vec::new();
    let cmdline = "/etc/kernel/cmdline";
    if let Ok(old) = host.read(cmdline) {
        actions.push(Action::File {
            path: cmdline.into(),
            text: merge(&old, wanted) + "\n",
            mode: 0o644,
        });
    }
    let mut entries = 0;
    for folder in ["/boot/loader/entries", "/efi/loader/entries", "/boot/efi/loader/entries"] {
        for name in host.list(folder).into_iter().filter(|name| name.ends_with(".conf")) {
            let path = format!("{folder}/{name}");
            let Some(text) = host.read(&path).ok().and_then(|old| edit_entry(&old, wanted)) else {
                continue;
            };
            entries += 1;
            actions.push(Action::File { path, text, mode: 0o644 });
        }
    }
    if entries == 0 && actions.is_empty() {
        return Err(Error::host("systemd-boot has no entries that could be changed")
            .remedy(format!("add to the kernel line yourself: {}", wanted.join(" "))));
    }
    Ok(actions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grub_default() {
        let words = ["isolcpus=2-3".to_owned()];
        let text = edit_grub_default("A=1\nGRUB_CMDLINE_LINUX=\"quiet isolcpus=1\"\nB=2\n", &words)
            .unwrap();
        assert_eq!(text, "A=1\nGRUB_CMDLINE_LINUX=\"quiet isolcpus=2-3\"\nB=2\n");
        assert_eq!(edit_grub_default("", &words).unwrap(), "GRUB_CMDLINE_LINUX=\"isolcpus=2-3\"\n");
        assert!(edit_grub_default("GRUB_CMDLINE_LINUX=\"$(x \"y\")\"\n", &words).is_err());
        assert!(edit_grub_default("GRUB_CMDLINE_LINUX=\"open\n", &words).is_err());
        assert!(edit_grub_default("GRUB_CMDLINE_LINUX=\"\n", &words).is_err());
        let twice = edit_grub_default(&text, &words).unwrap();
        assert_eq!(twice, text);
    }

    #[test]
    fn entries() {
        let words = ["nohz_full=2".to_owned()];
        let text = edit_entry("title Arch\nlinux /vmlinuz\noptions root=x rw\n", &words).unwrap();
        assert_eq!(text, "title Arch\nlinux /vmlinuz\noptions root=x rw nohz_full=2\n");
        assert!(edit_entry("title Memtest\n", &words).is_none());
    }

    #[test]
    fn words() {
        for bad in ["", "a b", "x=\"y\"", "a;b", "$(x)", "=x", "a\nb"] {
            assert!(check_word(bad).is_err(), "{bad}");
        }
        assert_eq!(
            merge("a hugepagesz=2M", &["hugepagesz=1G".into()]),
            "a hugepagesz=2M hugepagesz=1G"
        );
    }
}
