//! Which distribution it is, and what else is installed that matters to a virtual machine.

use serde::Serialize;

use crate::guest::files::Tree;

/// Largest text file that is read.
pub(crate) const MAX_TEXT: usize = 1 << 20;

/// The distribution.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Release {
    /// `ID` of os-release: `debian`.
    pub id: String,
    /// `ID_LIKE`: the families it belongs to.
    pub like: Vec<String>,
    /// `VERSION_ID`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// `PRETTY_NAME`
    pub name: String,
    /// The machine's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// `x86_64`, `aarch64`, ...
    #[serde(skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
}

impl Release {
    /// Whether it is of this family (`debian`, `rhel`, `suse`, ...).
    pub fn is(&self, family: &str) -> bool {
        self.id == family || self.like.iter().any(|l| l == family)
    }
}

/// What is installed that belongs to virtual machines.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Tools {
    /// QEMU's guest agent.
    pub qemu_guest_agent: bool,
    /// cloud-init.
    pub cloud_init: bool,
    /// VMware's tools.
    pub vmware_tools: bool,
    /// VirtualBox's additions.
    pub virtualbox_additions: bool,
    /// `enforcing`, `permissive` or `disabled`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selinux: Option<String>,
    /// All files get new SELinux labels at the next start, which takes its time and starts twice.
    pub relabel_pending: bool,
}

/// Whether a tree is the root of an installed Linux.
pub fn is_root(tree: &Tree<'_>) -> bool {
    let release = tree.exists("/etc/os-release")
        || tree.exists("/usr/lib/os-release")
        || tree.exists("/etc/redhat-release")
        || tree.exists("/etc/debian_version")
        || tree.exists("/etc/SuSE-release");
    let system = tree.exists("/etc/fstab") || tree.exists("/etc/passwd") || tree.exists("/usr/bin");
    release && system
}

/// Reads `os-release` and what came before it.
pub fn release(tree: &Tree<'_>) -> Release {
    let mut found = Release::default();
    let text = ["/etc/os-release", "/usr/lib/os-release"]
        .iter()
        .find_map(|path| tree.text(path, MAX_TEXT))
        .unwrap_or_default();
    for (key, value) in assignments(&text) {
        let value = clean(&value);
        match key.as_str() {
            "ID" => found.id = value,
            "ID_LIKE" => found.like = value.split_whitespace().map(str::to_owned).collect(),
            "VERSION_ID" => found.version = Some(value),
            "PRETTY_NAME" => found.name = value,
            _ => {}
        }
    }
    if found.id.is_empty() {
        older(tree, &mut found);
    }
    if found.name.is_empty() {
        found.name = format!("{} {}", found.id, found.version.as_deref().unwrap_or_default());
        found.name = found.name.trim().to_owned();
    }
    let hostname = tree.text("/etc/hostname", MAX_TEXT).unwrap_or_default();
    found.hostname =
        hostname.lines().map(str::trim).find(|l| !l.is_empty() && !l.starts_with('#')).map(clean);
    found.architecture = architecture(tree);
    found
}

/// Before os-release: one line in a file of the distribution's own.
fn older(tree: &Tree<'_>, found: &mut Release) {
    let files = [
        ("/etc/centos-release", "centos", "rhel"),
        ("/etc/redhat-release", "rhel", "rhel"),
        ("/etc/SuSE-release", "suse", "suse"),
        ("/etc/debian_version", "debian", "debian"),
    ];
    for (path, id, like) in files {
        let Some(text) = tree.text(path, MAX_TEXT) else { continue };
        let line = clean(text.lines().next().unwrap_or_default());
        found.id = id.to_owned();
        found.like = vec![like.to_owned()];
        found.version = line
            .split_whitespace()
            .find(|w| w.starts_with(|c: char| c.is_ascii_digit()))
            .map(str::to_owned);
        found.name = if id == "debian" { format!("Debian {line}") } else { line };
        return;
    }
    "linux".clone_into(&mut found.id);
}

/// Of the first program that is there: `e_machine` of its ELF header.
fn architecture(tree: &Tree<'_>) -> Option<String> {
    for path in ["/bin/sh", "/usr/bin/env", "/sbin/init", "/bin/busybox", "/usr/bin/bash"] {
        let Ok(Some(found)) = tree.find(path) else { continue };
        let mut head = [0; 20];
        let Ok(fs) = tree.fs(found) else { continue };
        if fs.read(found.id, 0, &mut head).ok() != Some(20) || !head.starts_with(b"\x7fELF") {
            continue;
        }
        let bytes = [head[18], head[19]];
        let machine =
            if head[5] == 2 { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) };
        let name = match machine {
            3 => "i386",
            62 => "x86_64",
            183 => "aarch64",
            40 => "arm",
            21 => "ppc64",
            22 => "s390x",
            243 => "riscv64",
            8 => "mips",
            258 => "loongarch64",
            _ => "unknown",
        };
        return Some(name.to_owned());
    }
    None
}

/// What is installed.
pub fn tools(tree: &Tree<'_>) -> Tools {
    let any = |paths: &[&str]| paths.iter().any(|p| tree.exists(p));
    let selinux = tree.text("/etc/selinux/config", MAX_TEXT).and_then(|text| {
        let mode = assignments(&text).into_iter().find(|(key, _)| key == "SELINUX");
        mode.map(|(_, value)| clean(&value).to_lowercase())
    });
    Tools {
        qemu_guest_agent: any(&["/usr/bin/qemu-ga", "/usr/sbin/qemu-ga"]),
        cloud_init: any(&["/usr/bin/cloud-init"]) && any(&["/etc/cloud/cloud.cfg"]),
        vmware_tools: any(&["/usr/bin/vmtoolsd", "/usr/sbin/vmtoolsd"]),
        virtualbox_additions: any(&["/usr/sbin/VBoxService", "/usr/bin/VBoxClient"]),
        selinux,
        relabel_pending: any(&["/.autorelabel"]),
    }
}

/// `KEY=VALUE` lines of a shell, quotes taken off; no further rules of it.
pub(crate) fn assignments(text: &str) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for line in text.lines() {
        let line = line.trim();
        let line = line.strip_prefix("export ").unwrap_or(line);
        if line.starts_with('#') {
            continue;
        }
        let Some((key, value)) = line.split_once('=') else { continue };
        let value = value.trim();
        let quoted = ['"', '\''].iter().find(|q| value.starts_with(**q));
        let value = match quoted {
            Some(q) => value[1..].split(*q).next().unwrap_or_default(),
            None => value.split(" #").next().unwrap_or_default().trim(),
        };
        all.push((key.trim().to_owned(), value.to_owned()));
    }
    all
}

/// Text of a guest that is shown to people: no control characters, not too long.
pub(crate) fn clean(text: &str) -> String {
    let good = |c: char| if c.is_control() { '?' } else { c };
    text.trim().chars().take(200).map(good).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_shell() {
        let text = "# A=1\nID=debian\nNAME=\"a b\" # c\nexport X='y'\nZ=1 # two\nnonsense\n";
        let pairs = assignments(text);
        let pairs: Vec<(&str, &str)> =
            pairs.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(pairs, [("ID", "debian"), ("NAME", "a b"), ("X", "y"), ("Z", "1")]);
        assert_eq!(clean(" a\x1b[2Jb "), "a?[2Jb");
        assert!(clean(&"x".repeat(1000)).len() == 200);
    }
}
