//! A plan: actions that are still needed, and how they look to people.

use serde::Serialize;

use super::action::Action;
use super::{boot, diff};
use crate::error::Result;
use crate::host::Host;
use crate::units::CpuSet;

/// Actions in order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// What will be done.
    pub actions: Vec<Action>,
    /// What must follow by hand, such as a restart.
    pub notes: Vec<String>,
}

/// A value as the kernel shows it back, for comparing.
fn shown(host: &Host, path: &str) -> Option<String> {
    let text = host.text(path)?;
    let chosen = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    Some(chosen.map_or(text.clone(), |(word, _)| word.to_owned()))
}

/// Controllers that are on for the groups below.
pub fn controllers(host: &Host, path: &str) -> Vec<String> {
    let text = host.text(path).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

/// Where interrupts that refused are noted. Numbers change at boot, and it is gone then.
pub const REFUSED_INTERRUPTS: &str = "/run/rhostprep-interrupts";

/// Paths of interrupts that refused to move.
pub fn refused_interrupts(host: &Host) -> Vec<String> {
    let text = host.read(REFUSED_INTERRUPTS).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// Whether it is so already.
pub fn is_so(host: &Host, action: &Action) -> bool {
    match action {
        Action::File { path, text, .. } => host.read(path).is_ok_and(|now| now == *text),
        Action::Value { path, value, .. } => shown(host, path).as_deref() == Some(value),
        Action::Interrupt { path, cpus } => {
            let now = host.text(path).and_then(|text| CpuSet::parse(&text)).unwrap_or_default();
            let wanted = CpuSet::parse(cpus).unwrap_or_default();
            now.without(&wanted).is_empty() || refused_interrupts(host).contains(path)
        }
        Action::Mode { path, mode, group } => {
            host.stat(path).is_some_and(|stat| stat.mode & 0o7777 == *mode && stat.gid == *group)
        }
        Action::Folder { path } => host.exists(path),
        Action::Module { name, parameters } => {
            host.has_module(name)
                && parameters.iter().all(|(key, value)| {
                    let path = format!("/sys/module/{name}/parameters/{key}");
                    let wanted_switch = matches!(value.as_str(), "0" | "1" | "Y" | "N");
                    shown(host, &path).as_ref() == Some(value)
                        || (wanted_switch
                            && host.switch(&path) == Some(value == "1" || value == "Y"))
                })
        }
        Action::Mount { point, kind, .. } => {
            host.mounts().iter().any(|mount| mount.point == *point && mount.kind == *kind)
        }
        Action::Swap { path, .. } => host.swaps().iter().any(|swap| swap.name == *path),
        Action::Tool { rewrites: files, expect, .. } | Action::BootEntries { files, expect } => {
            boot::check(host, files, expect).is_ok()
        }
        Action::Controller { path, name } => controllers(host, path).contains(name),
        Action::Net(_) => false,
    }
}

impl Plan {
    /// Adds an action unless it is so already. Two writes of one file become one.
    pub fn add(&mut self, host: &Host, action: Action) {
        if let Action::File { path, text, .. } = &action
            && let Some(Action::File { text: earlier, .. }) = self
                .actions
                .iter_mut()
                .find(|other| matches!(other, Action::File { path: other, .. } if other == path))
        {
            earlier.clone_from(text);
            return;
        }
        if !is_so(host, &action) && !self.actions.contains(&action) {
            self.actions.push(action);
        }
    }

    /// A file's text as it will be after the actions so far.
    pub fn text_of(&self, host: &Host, path: &str) -> Option<String> {
        let planned = self.actions.iter().rev().find_map(|action| match action {
            Action::File { path: other, text, .. } if other == path => Some(text.clone()),
            _ => None,
        });
        planned.or_else(|| host.read(path).ok())
    }

    /// The plan for people.
    pub fn text(&self, host: &Host) -> Result<String> {
        let mut out = String::new();
        if self.actions.is_empty() {
            out.push_str("nothing to do: everything is so already\n");
        }
        for (index, action) in self.actions.iter().enumerate() {
            out.push_str(&format!("{}. {}\n", index + 1, describe(host, action)));
            if let Action::File { path, text, .. } = action {
                out.push_str(&diff::unified(path, host.read(path).ok().as_deref(), Some(text)));
            }
            out.push_str(&format!("   undo: {}\n", describe_undo(host, action)));
        }
        for note in &self.notes {
            out.push_str(&format!("afterwards: {note}\n"));
        }
        Ok(out)
    }
}

/// One line about an action, with values before and after.
pub fn describe(host: &Host, action: &Action) -> String {
    let now = |path: &str| shown(host, path).unwrap_or_else(|| "(not there)".into());
    match action {
        Action::File { path, .. } if host.exists(path) => format!("change {path}"),
        Action::File { path, mode, .. } => format!("create {path} (mode {mode:04o})"),
        Action::Value { path, value, .. } => format!("write {path}: {} -> {value}", now(path)),
        Action::Interrupt { path, cpus } => {
            format!("write {path}: {} -> {cpus}, if it can be moved", now(path))
        }
        Action::Mode { path, mode, group } => {
            let old = host.stat(path).map_or_else(
                || "(not there)".into(),
                |stat| format!("{:04o} group {}", stat.mode & 0o7777, stat.gid),
            );
            format!("set rights of {path}: {old} -> {mode:04o} group {group}")
        }
        Action::Folder { path } => format!("make the folder {path}"),
        Action::Module { name, parameters } => {
            let words: Vec<String> =
                parameters.iter().map(|(key, value)| format!(" {key}={value}")).collect();
            let how = if host.has_module(name) { "load anew" } else { "load" };
            format!("{how} the module {name}{}", words.concat())
        }
        Action::Mount { source, point, kind, options } => {
            format!("mount {source} on {point} ({kind}, {options})")
        }
        Action::Swap { path, size: 0 } => {
            format!("use the partition {path} as swap (its contents are lost)")
        }
        Action::Swap { path, size } => {
            format!("make the swap file {path} of {} and use it", crate::units::show_size(*size))
        }
        Action::Tool { command, rewrites, .. } => {
            format!(
                "run {} (rewrites {}), then read every boot entry back",
                command.join(" "),
                rewrites.join(", ")
            )
        }
        Action::BootEntries { files, expect } => {
            format!("read {} back: each must parse and hold {}", files.join(", "), expect.join(" "))
        }
        Action::Controller { path, name } => format!("switch {name} on in {path}"),
        Action::Net(change) => change.describe(),
    }
}

fn describe_undo(host: &Host, action: &Action) -> String {
    let now = |path: &str| shown(host, path).unwrap_or_else(|| "(not there)".into());
    match action {
        Action::File { path, .. } if host.exists(path) => "put the old text back".into(),
        Action::File { .. } => "remove it".into(),
        Action::Value { path, .. } | Action::Interrupt { path, .. } => {
            format!("write {} back", now(path))
        }
        Action::Mode { .. } => "set the old rights".into(),
        Action::Folder { .. } => "remove it".into(),
        Action::Module { name, .. } if host.has_module(name) => {
            "load it with the old parameters".into()
        }
        Action::Module { .. } => "unload it".into(),
        Action::Mount { .. } => "unmount it".into(),
        Action::Swap { size: 0, .. } => "stop using it and put its first page back".into(),
        Action::Swap { .. } => "stop using it and remove it".into(),
        Action::Tool { .. } => "put the old files back".into(),
        Action::BootEntries { .. } => "nothing".into(),
        Action::Controller { .. } => "switch it off".into(),
        Action::Net(change) => change.describe_undo(),
    }
}
