//! Doing a plan and undoing it.

use super::action::{Action, Before, Compaction};
use super::boot;
use super::effects::Effects;
use super::files;
use super::journal::{self, Journal, JournalState, Record};
use super::plan::{self, Plan};
use super::swap;
use crate::error::{Error, ErrorKind, Result};
use crate::hex;
use crate::host::{Facts, Host};

/// What came of applying.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Applied {
    /// Everything was so already.
    NothingToDo,
    /// Done; the journal has this number.
    Done(String),
}

/// Whether to undo although a file was changed by others since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Force {
    /// Refuse.
    No,
    /// Others' changes are lost.
    Yes,
}

/// Told before each step.
pub type Progress<'a> = &'a mut dyn FnMut(usize, &Action);

/// Applies a plan. On failure what was done is undone, and the error says so.
pub fn apply(effects: &mut dyn Effects, plan: &Plan, progress: Progress) -> Result<Applied> {
    if plan.actions.is_empty() {
        return Ok(Applied::NothingToDo);
    }
    locked(effects, |effects| apply_locked(effects, plan, progress))
}

/// Does an action that the journal `tag` owns once more, as a restart of the host has undone it; nothing is written
/// down, as that journal's undo restores what was before. Returns whether it was not so already.
pub fn again(effects: &mut dyn Effects, action: &Action, tag: &str) -> Result<bool> {
    if plan::is_so(&look(effects), action) {
        return Ok(false);
    }
    let before = remember(effects, action)?;
    effects.checkpoint("again");
    perform(effects, action, &before, tag)?;
    Ok(!matches!(action, Action::Net(_)) || remember(effects, action)? != before)
}

/// Does something while we, and all programs started by it, hold the lock.
pub fn locked<T>(
    effects: &mut dyn Effects,
    work: impl FnOnce(&mut dyn Effects) -> Result<T>,
) -> Result<T> {
    let lock = journal::lock(effects.root())?;
    effects.hold(Some(lock.clone()));
    let result = work(effects);
    effects.hold(None);
    drop(lock);
    result
}

fn apply_locked(effects: &mut dyn Effects, plan: &Plan, progress: Progress) -> Result<Applied> {
    let root = effects.root().to_path_buf();
    for id in journal::names(&root) {
        let old = Journal::load(&root, &id)?;
        if let JournalState::Interrupted(_) | JournalState::HalfUndone = old.state() {
            return Err(Error::refused(format!("an earlier change ({id}) was interrupted"))
                .remedy(format!("`rhostprep undo {id}` puts the host back as it was")));
        }
    }
    let mut journal = Journal::begin(&root, &plan.actions)?;
    for (step, action) in plan.actions.iter().enumerate() {
        progress(step, action);
        if let Err(error) = one(effects, &mut journal, step, action) {
            let remedy = error.remedy_text().map(str::to_owned);
            let undone = undo_journal(effects, &mut journal, Force::Yes);
            let (text, more) = match undone {
                Ok(()) => (format!("{error}; everything is as it was"), None),
                Err(second) => (
                    format!("{error}; undoing failed too: {second}"),
                    Some(format!("run `rhostprep undo {}` again", journal.id)),
                ),
            };
            let failed = Error::new(error.kind(), text);
            return Err(match more.or(remedy) {
                Some(remedy) => failed.remedy(remedy),
                None => failed,
            });
        }
    }
    journal.write(Record::Finished)?;
    Ok(Applied::Done(journal.id))
}

fn one(
    effects: &mut dyn Effects,
    journal: &mut Journal,
    step: usize,
    action: &Action,
) -> Result<()> {
    effects.checkpoint("remember");
    let before = remember(effects, action)?;
    effects.checkpoint("announce");
    journal.write(Record::Intent { step, before: before.clone() })?;
    effects.checkpoint("begin");
    perform(effects, action, &before, &format!("{}-{step}", journal.id))?;
    effects.checkpoint("confirm");
    journal.write(Record::Done { step })
}

/// All journals, oldest first.
pub fn list(root: &std::path::Path) -> Result<Vec<Journal>> {
    journal::names(root).iter().map(|id| Journal::load(root, id)).collect()
}

/// All journals that can be read, oldest first.
pub fn readable(root: &std::path::Path) -> Vec<Journal> {
    journal::names(root).iter().filter_map(|id| Journal::load(root, id).ok()).collect()
}

/// Undoes a journal, the newest that is not undone when none is named. Returns its number.
pub fn undo(effects: &mut dyn Effects, id: Option<&str>, force: Force) -> Result<String> {
    locked(effects, |effects| undo_locked(effects, id, force))
}

fn undo_locked(effects: &mut dyn Effects, id: Option<&str>, force: Force) -> Result<String> {
    let root = effects.root().to_path_buf();
    let id = match id {
        Some(id) => id.to_owned(),
        None => {
            let mut newest = None;
            for name in journal::names(&root) {
                if Journal::load(&root, &name)?.state() != JournalState::Undone {
                    newest = Some(name);
                }
            }
            newest.ok_or_else(|| Error::usage("there is nothing to undo"))?
        }
    };
    let mut journal = Journal::load(&root, &id)?;
    if journal.state() == JournalState::Undone {
        return Err(Error::usage(format!("{id} is undone already")));
    }
    undo_journal(effects, &mut journal, force)?;
    Ok(id)
}

fn undo_journal(effects: &mut dyn Effects, journal: &mut Journal, force: Force) -> Result<()> {
    let steps: Vec<(usize, Before)> =
        journal.intents().map(|(step, before)| (step, before.clone())).collect();
    let actions = journal.actions().to_vec();
    if force == Force::No {
        for (step, before) in &steps {
            if let Some(action) = actions.get(*step) {
                unchanged_by_others(effects, action, before)?;
            }
        }
    }
    if !journal.records.contains(&Record::Undoing) {
        journal.write(Record::Undoing)?;
    }
    for (step, before) in steps.iter().rev() {
        let Some(action) = actions.get(*step) else {
            return Err(Error::new(
                ErrorKind::Damaged,
                format!("the journal has no action {step}"),
            ));
        };
        effects.checkpoint("undo");
        restore(effects, action, before, &format!("{}-{step}", journal.id))?;
    }
    effects.checkpoint("close");
    journal.write(Record::Undone)
}

/// A host over the same files, to ask what is so.
fn look(effects: &dyn Effects) -> Host {
    Host::below(effects.root(), Facts::default())
}

fn value_now(effects: &dyn Effects, path: &str) -> Result<String> {
    let text = look(effects).read(path).map_err(|error| {
        Error::io("cannot be read", &effects.root().join(path.trim_start_matches('/')), error)
            .remedy("this kernel or machine may lack it: see `rhostprep check`")
    })?;
    let text = text.trim();
    // `always [madvise] never`: the chosen word is what is written back.
    let chosen = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    Ok(chosen.map_or(text, |(word, _)| word).to_owned())
}

fn parameters_now(
    effects: &dyn Effects,
    name: &str,
    wanted: &[(String, String)],
) -> Vec<(String, String)> {
    let host = look(effects);
    let read = |key: &String| {
        Some((key.clone(), host.text(&format!("/sys/module/{name}/parameters/{key}"))?))
    };
    wanted.iter().filter_map(|(key, _)| read(key)).collect()
}

fn remember(effects: &mut dyn Effects, action: &Action) -> Result<Before> {
    let root = effects.root().to_path_buf();
    let state = |path: &String| Ok((path.clone(), files::remember(&root, path)?));
    match action {
        Action::File { path, .. } => Ok(Before::Files {
            made: files::missing_folders(&root, path)?,
            files: vec![state(path)?],
        }),
        Action::Tool { rewrites, .. } => Ok(Before::Files {
            files: rewrites.iter().map(state).collect::<Result<_>>()?,
            made: Vec::new(),
        }),
        Action::BootEntries { .. } => Ok(Before::Nothing),
        Action::Controller { path, name } => {
            Ok(Before::Controller { on: plan::controllers(&look(effects), path).contains(name) })
        }
        Action::Value { path, .. } | Action::Interrupt { path, .. } => {
            Ok(Before::Value { value: value_now(effects, path)? })
        }
        Action::Mode { path, .. } => {
            let stat = look(effects).stat(path).ok_or_else(|| {
                Error::host("is not there").at(root.join(path.trim_start_matches('/')))
            })?;
            Ok(Before::Mode { mode: stat.mode & 0o7777, group: stat.gid })
        }
        Action::Folder { path } => {
            Ok(Before::Folder { there: files::place(&root, path)?.is_dir() })
        }
        Action::Module { name, parameters } => Ok(Before::Module {
            loaded: look(effects).has_module(name),
            parameters: parameters_now(effects, name, parameters),
        }),
        Action::Mount { point, .. } => Ok(Before::Mount {
            mounted: is_mounted(effects, point),
            made: files::missing_folders(&root, &format!("{point}/x"))?,
        }),
        Action::Swap { path, size } => {
            let there = files::place(&root, path)?.exists();
            if there && *size > 0 {
                return Err(Error::refused("the swap file exists already")
                    .at(path.as_str())
                    .remedy("name another file, or remove it when nothing needs it"));
            }
            Ok(Before::Swap {
                active: is_swapping(effects, path),
                there,
                page: if *size == 0 { swap::first_page(&root, path)? } else { String::new() },
            })
        }
        Action::Net(change) => match effects.net() {
            Some(net) => Ok(Before::Net(net.remember(change)?)),
            None => Err(Error::usage("this tree has no network to change")),
        },
    }
}

fn is_mounted(effects: &dyn Effects, point: &str) -> bool {
    look(effects).mounts().iter().any(|mount| mount.point == point)
}

fn is_swapping(effects: &dyn Effects, path: &str) -> bool {
    look(effects).swaps().iter().any(|swap| swap.name == path)
}

fn write_value(effects: &mut dyn Effects, path: &str, value: &str) -> Result<()> {
    let place = files::place(effects.root(), path)?;
    effects.checkpoint("write value");
    effects.write_value(&place, value).map_err(|error| {
        Error::io(format!("the kernel does not take '{value}'"), &place, error)
            .remedy("see `rhostprep check` for what this host supports")
    })
}

/// Moves an interrupt; one that refuses is noted, so that nobody tries again.
fn move_interrupt(effects: &mut dyn Effects, path: &str, cpus: &str) -> Result<()> {
    let Err(error) = write_value(effects, path, cpus) else { return Ok(()) };
    // What kernels answer for those bound to one CPU, managed by their driver, or chained (genirq, kernel/irq/proc.c).
    if !matches!(error.errno(), Some(libc::EIO | libc::EPERM | libc::EINVAL | libc::ENOSPC)) {
        return Err(error);
    }
    let mut noted = plan::refused_interrupts(&look(effects));
    if !noted.iter().any(|other| other == path) {
        noted.push(path.to_owned());
    }
    note_interrupts(effects, &noted)
}

fn note_interrupts(effects: &mut dyn Effects, noted: &[String]) -> Result<()> {
    let place = files::place(effects.root(), plan::REFUSED_INTERRUPTS)?;
    let result = if noted.is_empty() {
        match std::fs::remove_file(&place) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    } else {
        std::fs::write(&place, noted.join("\n") + "\n")
    };
    result.map_err(|error| Error::io("cannot be written", &place, error))
}

/// Writes a pool's size; where fewer pages come, compacts memory and tries again.
fn fill_pool(effects: &mut dyn Effects, path: &str, value: &str, before: &Before) -> Result<()> {
    let compact = "/proc/sys/vm/compact_memory";
    for attempt in 0..4 {
        write_value(effects, path, value)?;
        let got = value_now(effects, path)?;
        if got == value {
            return Ok(());
        }
        if attempt == 3 {
            let had = if let Before::Value { value } = before { value.as_str() } else { "?" };
            return Err(Error::host(format!(
                "{value} hugepages wanted, {got} came (before: {had})"
            ))
            .at(path)
            .remedy(
                "memory is too fragmented or too small: set them aside at boot with --boot-option",
            ));
        }
        if look(effects).exists(compact) {
            write_value(effects, compact, "1")?;
        }
    }
    Ok(())
}

fn perform(effects: &mut dyn Effects, action: &Action, before: &Before, tag: &str) -> Result<()> {
    match (action, before) {
        (Action::File { path, text, mode }, Before::Files { files: old, made }) => {
            files::make_folders(effects, made)?;
            let old = old.first().and_then(|(_, state)| state.as_ref());
            files::write(effects, path, tag, text, (*mode, old))
        }
        (Action::Tool { command, rewrites, expect }, _) => {
            effects.checkpoint("run tool");
            effects.run(command)?;
            boot::check(&look(effects), rewrites, expect).map_err(|error| {
                let text = format!("`{}` ended well, but: {error}", command.join(" "));
                let remedy = "use the distribution's own way to set kernel options";
                Error::new(error.kind(), text).remedy(error.remedy_text().unwrap_or(remedy))
            })
        }
        (Action::BootEntries { files, expect }, _) => boot::check(&look(effects), files, expect),
        (Action::Controller { path, name }, Before::Controller { on }) => {
            if *on {
                Ok(())
            } else {
                write_value(effects, path, &format!("+{name}"))
            }
        }
        (Action::Value { path, value, compaction: Compaction::AndRetry }, before) => {
            fill_pool(effects, path, value, before)
        }
        (Action::Value { path, value, .. }, _) => {
            write_value(effects, path, value)?;
            taken(effects, path)
        }
        (Action::Interrupt { path, cpus }, _) => move_interrupt(effects, path, cpus),
        (Action::Mode { path, mode, group }, _) => set_mode(effects, path, *mode, *group),
        (Action::Folder { path }, _) => {
            let place = files::place(effects.root(), path)?;
            effects.checkpoint("make group");
            match effects.make_group(&place) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                    Err(Error::io("the group cannot be made", &place, error))
                }
                _ => Ok(()),
            }
        }
        (Action::Module { name, parameters }, Before::Module { loaded, .. }) => {
            if *loaded {
                effects.checkpoint("unload module");
                effects.unload_module(name)?;
            }
            effects.checkpoint("load module");
            effects.load_module(name, parameters)
        }
        (Action::Mount { source, point, kind, options }, Before::Mount { made, .. }) => {
            files::make_folders(effects, made)?;
            effects.checkpoint("mount");
            effects.mount(source, point, kind, options)
        }
        (Action::Swap { path, size }, _) => {
            swap::make(effects, path, *size)?;
            effects.checkpoint("swap on");
            effects.swap_on(path)
        }
        (Action::Net(change), Before::Net(before)) => match effects.net() {
            Some(net) => net.perform(change, before),
            None => Err(Error::usage("this tree has no network to change")),
        },
        _ => Err(Error::new(ErrorKind::Damaged, "journal and action do not belong together")),
    }
}

/// A cpuset partition takes any value, and says afterwards that it is not valid and why (cgroup-v2.rst).
fn taken(effects: &dyn Effects, path: &str) -> Result<()> {
    if !path.ends_with("/cpuset.cpus.partition") {
        return Ok(());
    }
    let now = value_now(effects, path)?;
    if !now.contains("invalid") {
        return Ok(());
    }
    Err(Error::host(format!("the kernel does not isolate these CPUs: {now}"))
        .at(path)
        .remedy("another control group may hold them (cpuset.cpus.exclusive); use isolcpus= instead: leave --cpuset away"))
}

fn set_mode(effects: &mut dyn Effects, path: &str, mode: u32, group: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let place = files::place(effects.root(), path)?;
    effects.checkpoint("set mode");
    let group_now = look(effects).stat(path).map(|stat| stat.gid);
    let owned = if group_now == Some(group) {
        Ok(())
    } else {
        std::os::unix::fs::chown(&place, None, Some(group))
    };
    owned
        .and_then(|()| std::fs::set_permissions(&place, std::fs::Permissions::from_mode(mode)))
        .map_err(|error| Error::io("rights cannot be set", &place, error))
}

/// Whether a file still is what we wrote, or what was before.
fn unchanged_by_others(effects: &dyn Effects, action: &Action, before: &Before) -> Result<()> {
    let (Action::File { path, text, .. }, Before::Files { files: old, .. }) = (action, before)
    else {
        return Ok(());
    };
    let now = files::remember(effects.root(), path)?.map(|state| state.hex);
    let old = old.first().and_then(|(_, state)| state.as_ref()).map(|state| state.hex.clone());
    if now == old || now.as_deref() == Some(hex::to_hex(text.as_bytes()).as_str()) {
        return Ok(());
    }
    Err(Error::refused("was changed by somebody else since; undoing would lose that")
        .at(path.as_str())
        .remedy("undo newer changes first, or add --force to lose it"))
}

fn restore(effects: &mut dyn Effects, action: &Action, before: &Before, tag: &str) -> Result<()> {
    match (action, before) {
        (_, Before::Files { files: old, made }) => {
            for (path, state) in old {
                files::restore(effects, path, tag, state.as_ref())?;
            }
            files::remove_folders(effects, made)
        }
        (Action::Value { path, .. }, Before::Value { value }) => {
            // A setting that has gone (its module or control group) holds nothing to restore.
            if !look(effects).exists(path) {
                return Ok(());
            }
            if value_now(effects, path)? == *value {
                return Ok(());
            }
            match write_value(effects, path, value) {
                // A control group with processes in it cannot be without CPUs. Removing it, which comes next, says
                // so and what to do.
                Err(error)
                    if error.errno() == Some(libc::ENOSPC) && path.ends_with("/cpuset.cpus") =>
                {
                    Ok(())
                }
                result => result,
            }
        }
        (Action::Interrupt { path, .. }, Before::Value { value }) => {
            let mut noted = plan::refused_interrupts(&look(effects));
            if noted.contains(path) {
                noted.retain(|other| other != path);
                return note_interrupts(effects, &noted);
            }
            if !look(effects).exists(path) || value_now(effects, path)? == *value {
                return Ok(());
            }
            write_value(effects, path, value)
        }
        (Action::Mode { path, .. }, Before::Mode { mode, group }) => {
            // A device that has gone has no rights to restore.
            if look(effects).exists(path) { set_mode(effects, path, *mode, *group) } else { Ok(()) }
        }
        (Action::BootEntries { .. }, Before::Nothing) => Ok(()),
        (Action::Controller { path, name }, Before::Controller { on }) => {
            if *on || !plan::controllers(&look(effects), path).contains(name) {
                return Ok(());
            }
            write_value(effects, path, &format!("-{name}"))
        }
        (Action::Folder { path }, Before::Folder { there }) => {
            if *there || !look(effects).exists(path) {
                return Ok(());
            }
            let place = files::place(effects.root(), path)?;
            effects.checkpoint("remove group");
            effects.remove_group(&place).map_err(|error| {
                Error::io("the group cannot be removed", &place, error)
                    .remedy("end or move the processes in its cgroup.procs first")
            })
        }
        (Action::Module { name, .. }, Before::Module { loaded, parameters }) => {
            let now = look(effects).has_module(name);
            let same = parameters_now(effects, name, parameters) == *parameters;
            if now && (!loaded || !same) {
                effects.checkpoint("unload module");
                effects.unload_module(name)?;
            }
            if *loaded && (!now || !same) {
                effects.checkpoint("load module");
                effects.load_module(name, parameters)?;
            }
            Ok(())
        }
        (Action::Mount { point, .. }, Before::Mount { mounted, made }) => {
            if !mounted && is_mounted(effects, point) {
                effects.checkpoint("unmount");
                effects.unmount(point)?;
            }
            files::remove_folders(effects, made)
        }
        (Action::Swap { path, size }, Before::Swap { active, there, page }) => {
            if !active && is_swapping(effects, path) {
                effects.checkpoint("swap off");
                effects.swap_off(path)?;
            }
            if *size == 0 {
                swap::put_first_page(effects.root(), path, page)
            } else if *there {
                Ok(())
            } else {
                files::restore(effects, path, tag, None)
            }
        }
        (Action::Net(change), Before::Net(before)) => match effects.net() {
            Some(net) => net.restore(change, before),
            None => Err(Error::usage("this tree has no network to change")),
        },
        _ => Err(Error::new(ErrorKind::Damaged, "journal and action do not belong together")),
    }
}
