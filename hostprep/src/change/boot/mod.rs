//! Kernel options through the boot loader in use.
//!
//! * GRUB 2: the words go into /etc/default/grub, and grub-mkconfig writes the menu anew, for firmware of either kind
//!   ([`defaults`], [`menu`]). With grubby (Fedora's family) grubby changes its entries.
//! * systemd-boot: its entries are edited, and /etc/kernel/cmdline for those of later kernels ([`entry`]).
//!
//! Texts of ours are parsed before they are written. When all is written, by us or by the loader's own tool, every
//! entry is read back: one that does not parse, or does not hold the words so that they count, fails the change, and
//! everything is put back ([`check`]).

mod check;
mod defaults;
mod entry;
mod menu;
mod words;

pub use check::check;
pub use defaults::value as grub_default_value;
pub use entry::edit as edit_entry;

use super::action::Action;
use crate::error::{Error, ErrorKind, Result};
use crate::host::{BootLoader, Host};

const DEFAULT: &str = "/etc/default/grub";
const ENTRY_FOLDERS: [&str; 3] =
    ["/boot/loader/entries", "/efi/loader/entries", "/boot/efi/loader/entries"];

/// What is to be done for the kernel line.
#[derive(Debug, Default)]
pub struct BootPlan {
    /// In order.
    pub actions: Vec<Action>,
    /// What must follow by hand.
    pub notes: Vec<String>,
}

/// Actions that put the words on the kernel line at the next boot.
pub fn actions(host: &Host, wanted: &[String]) -> Result<BootPlan> {
    if wanted.is_empty() {
        return Ok(BootPlan::default());
    }
    wanted.iter().try_for_each(|word| words::check_word(word))?;
    let by_hand = || format!("add to the kernel line yourself: {}", wanted.join(" "));
    match host.boot_loader() {
        BootLoader::Grub => grub(host, wanted),
        BootLoader::Grubby => Ok(grubby(host, wanted)),
        BootLoader::SystemdBoot => systemd_boot(host, wanted, &by_hand()),
        BootLoader::Unknown => Err(Error::host("no boot loader was recognised").remedy(by_hand())),
    }
}

/// A file without symbolic links in its last component: those are not followed when files are put back.
fn real(host: &Host, path: &str) -> String {
    let mut path = path.to_owned();
    for _ in 0..8 {
        let Ok(target) = std::fs::read_link(host.place(&path)) else { break };
        let target = target.to_string_lossy().into_owned();
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        let whole = if target.starts_with('/') { target } else { format!("{folder}/{target}") };
        let mut parts: Vec<&str> = Vec::new();
        for part in whole.split('/') {
            match part {
                "" | "." => {}
                ".." => drop(parts.pop()),
                part => parts.push(part),
            }
        }
        path = format!("/{}", parts.join("/"));
    }
    path
}

fn add(list: &mut Vec<String>, path: String) {
    if !list.contains(&path) {
        list.push(path);
    }
}

/// Menus of GRUB that are booted from. With EFI some distributions keep the whole menu on the system partition,
/// others a stub there that leads to the one in /boot.
fn menus(host: &Host) -> Vec<String> {
    let mut found = Vec::new();
    if host.exists("/sys/firmware/efi") {
        for vendor in host.list("/boot/efi/EFI") {
            let path = format!("/boot/efi/EFI/{vendor}/grub.cfg");
            let whole = |text: String| text.contains("menuentry ") || text.contains("blscfg");
            if host.read(&path).is_ok_and(whole) {
                add(&mut found, path);
            }
        }
    }
    for path in ["/boot/grub/grub.cfg", "/boot/grub2/grub.cfg"] {
        if host.exists(path) {
            add(&mut found, real(host, path));
        }
    }
    found
}

/// Entries in all places, and the environment block that they may take options from.
fn entries(host: &Host) -> Vec<String> {
    let mut found = Vec::new();
    for folder in ENTRY_FOLDERS {
        for name in host.list(folder).into_iter().filter(|name| name.ends_with(".conf")) {
            add(&mut found, format!("{folder}/{name}"));
        }
    }
    found
}

fn environment_blocks(host: &Host) -> Vec<String> {
    let mut found = Vec::new();
    for path in ["/boot/grub2/grubenv", "/boot/grub/grubenv"] {
        if host.exists(path) {
            add(&mut found, real(host, path));
        }
    }
    found
}

fn grub(host: &Host, wanted: &[String]) -> Result<BootPlan> {
    // Drop-ins are read after the file itself: the last one that sets the line counts.
    let mut path = DEFAULT.to_owned();
    for name in host.list("/etc/default/grub.d").into_iter().filter(|name| name.ends_with(".cfg")) {
        let file = format!("/etc/default/grub.d/{name}");
        if host.read(&file).is_ok_and(|text| defaults::assigns(&text, "GRUB_CMDLINE_LINUX")) {
            path = file;
        }
    }
    let old =
        host.read(&path).map_err(|error| Error::io("cannot be read", &host.place(&path), error))?;
    let text = defaults::edit(&path, &old, wanted)?;
    let menus = menus(host);
    if menus.is_empty() {
        return Err(Error::host(
            "GRUB's menu was not found (looked in /boot/grub, /boot/grub2, /boot/efi/EFI)",
        ));
    }
    let tool = ["grub-mkconfig", "grub2-mkconfig"].into_iter().find_map(|name| host.program(name));
    let Some(tool) = tool else {
        return Err(Error::host("grub-mkconfig is not installed")
            .remedy(host.install_command("grub-common", "grub2-tools")));
    };
    let mut rewrites = if defaults::value(&old, "GRUB_ENABLE_BLSCFG").as_deref() == Some("true") {
        entries(host)
    } else {
        Vec::new()
    };
    rewrites.extend(environment_blocks(host));
    rewrites.extend(menus.iter().cloned());
    let mut plan = BootPlan::default();
    plan.actions.push(Action::File { path, text, mode: 0o644 });
    for menu in menus {
        plan.actions.push(Action::Tool {
            command: vec![tool.clone(), "-o".into(), menu],
            rewrites: rewrites.clone(),
            expect: wanted.to_vec(),
        });
    }
    Ok(plan)
}

fn grubby(host: &Host, wanted: &[String]) -> BootPlan {
    let mut rewrites = entries(host);
    rewrites.extend(environment_blocks(host));
    rewrites.extend(menus(host));
    for path in [DEFAULT, "/etc/kernel/cmdline"] {
        add(&mut rewrites, path.to_owned());
    }
    let command = vec![
        host.program("grubby").unwrap_or_else(|| "grubby".into()),
        "--update-kernel=ALL".into(),
        format!("--args={}", wanted.join(" ")),
    ];
    let tool = Action::Tool { command, rewrites, expect: wanted.to_vec() };
    BootPlan { actions: vec![tool], notes: Vec::new() }
}

fn systemd_boot(host: &Host, wanted: &[String], by_hand: &str) -> Result<BootPlan> {
    let mut plan = BootPlan::default();
    let cmdline = "/etc/kernel/cmdline";
    let old = host.read(cmdline).ok();
    if let Some(old) = &old {
        let text = words::merge(old, wanted) + "\n";
        plan.actions.push(Action::File { path: cmdline.into(), text, mode: 0o644 });
    }
    let mut changed = Vec::new();
    for path in entries(host) {
        let Ok(old) = host.read(&path) else { continue };
        let edited = entry::edit(&old, wanted)
            .map_err(|what| Error::new(ErrorKind::Damaged, what).at(path.as_str()))?;
        let Some(text) = edited else { continue };
        changed.push(path.clone());
        plan.actions.push(Action::File { path, text, mode: 0o644 });
    }
    if !changed.is_empty() {
        plan.actions.push(Action::BootEntries { files: changed, expect: wanted.to_vec() });
        return Ok(plan);
    }
    let unified = ["/boot/EFI/Linux", "/efi/EFI/Linux", "/boot/efi/EFI/Linux"];
    let unified =
        unified.iter().any(|folder| host.list(folder).iter().any(|name| name.ends_with(".efi")));
    if unified && old.is_some() {
        plan.notes.push(
            "the kernel line is inside unified kernel images: rebuild them (kernel-install add-all, mkinitcpio -P or dracut --regenerate-all --force)"
                .into(),
        );
        return Ok(plan);
    }
    Err(Error::host("systemd-boot has no entries that could be changed").remedy(by_hand))
}
