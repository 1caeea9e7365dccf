//! `rhostprep plan`, `apply`, `undo` and `status`.

use std::fmt::Write as _;
use std::io::{BufRead as _, IsTerminal as _, Write as _};

use hostprep::change::{
    self, Action, Applied, Effects, Force, HugepageWish, IsolateBy, JournalState, Plan, System,
    TreeEffects, Wishes, describe,
};
use hostprep::host::Host;
use hostprep::net::NetChange;
use hostprep::units::{CpuSet, MIB, parse_size};
use hostprep::{Error, Result};

use super::{net, print};
use crate::args::{Apply, Changes, Consent, Undo};

/// Where changes go: this machine, or the tree.
pub fn effects(host: &Host) -> Box<dyn Effects> {
    if host.root() == std::path::Path::new("/") {
        Box::new(System::new())
    } else {
        Box::new(TreeEffects::new(host.root()))
    }
}

fn pair(text: &str, option: &str) -> Result<(String, String)> {
    let (key, value) = text
        .split_once('=')
        .ok_or_else(|| Error::usage(format!("--{option} {text}: write it with '='")))?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}

fn cpus(text: &str, option: &str) -> Result<CpuSet> {
    CpuSet::parse(text)
        .ok_or_else(|| Error::usage(format!("--{option} {text}: not a list of CPUs like 2-3,6")))
}

fn hugepages(text: &str) -> Result<HugepageWish> {
    let (size, rest) = pair(text, "hugepages")?;
    let (count, node) = match rest.split_once('@') {
        Some((count, node)) => (count, Some(node)),
        None => (rest.as_str(), None),
    };
    let bad = || {
        Error::usage(format!(
            "--hugepages {text}: write SIZE=COUNT or SIZE=COUNT@NODE, like 2M=512"
        ))
    };
    Ok(HugepageWish {
        page: parse_size(&size, 1)?,
        count: count.parse().map_err(|_| bad())?,
        node: node.map(str::parse).transpose().map_err(|_| bad())?,
    })
}

fn wishes(args: &Changes) -> Result<Wishes> {
    let pairs = |list: &[String], option: &str| -> Result<Vec<(String, String)>> {
        list.iter().map(|text| pair(text, option)).collect()
    };
    let sized = |text: &String| -> Result<(String, u64)> {
        match text.rsplit_once('=') {
            Some((path, size)) => Ok((path.to_owned(), parse_size(size, MIB)?)),
            None => Ok((text.clone(), 0)),
        }
    };
    let ksm = |text: &String| match text.as_str() {
        "on" => Ok(("run".to_owned(), "1".to_owned())),
        "off" => Ok(("run".to_owned(), "0".to_owned())),
        text => pair(text, "ksm"),
    };
    let how = if args.cpuset { IsolateBy::Cpuset } else { IsolateBy::Boot };
    let isolate = args.isolate.as_deref().map(|text| cpus(text, "isolate")).transpose()?;
    Ok(Wishes {
        modules: args.modules.clone(),
        parameters: pairs(&args.parameters, "param")?,
        kvm_access: args.kvm_access,
        tun_access: args.tun_access,
        hugepages: args.hugepages.iter().map(|text| hugepages(text)).collect::<Result<_>>()?,
        hugetlbfs: args.hugetlbfs.iter().map(sized).collect::<Result<_>>()?,
        swap: args.swap.as_ref().map(sized).transpose()?,
        ksm: args.ksm.iter().map(ksm).collect::<Result<_>>()?,
        thp: args.thp.clone(),
        sysctls: pairs(&args.sysctls, "sysctl")?,
        governor: args.governor.clone(),
        isolate: isolate.map(|set| (set, how)),
        boot_options: args.boot_options.clone(),
        irq_affinity: args
            .irq_affinity
            .as_deref()
            .map(|text| cpus(text, "irq-affinity"))
            .transpose()?,
        memlock: args.memlock.as_deref().map(|text| parse_size(text, MIB)).transpose()?,
        iommu: args.iommu,
    })
}

pub fn plan(host: &Host, args: &Changes) -> Result<u8> {
    let plan = change::plan(host, &wishes(args)?)?;
    print(&plan.text(host)?);
    Ok(0)
}

pub fn apply(host: &Host, args: &Apply) -> Result<u8> {
    let plan = change::plan(host, &wishes(&args.changes)?)?;
    carry_out(host, &plan, args.consent).map(|_| 0)
}

/// Shows a plan, asks where it must, and applies it. Returns the journal's number.
pub fn carry_out(host: &Host, plan: &Plan, consent: Consent) -> Result<Option<String>> {
    print(&plan.text(host)?);
    if plan.actions.is_empty() || consent.dry_run {
        return Ok(None);
    }
    if !consent.yes && !agreed()? {
        return Err(Error::refused("nothing was changed"));
    }
    let total = plan.actions.len();
    let mut effects = effects(host);
    let mut progress = |step: usize, action: &Action| {
        let line = format!("{}/{total} {}", step + 1, describe(host, action));
        print(&format!("{}\n", line.lines().next().unwrap_or_default()));
    };
    match change::apply(effects.as_mut(), plan, &mut progress)? {
        Applied::NothingToDo => Ok(None),
        Applied::Done(id) => {
            print(&format!("done; `rhostprep undo {id}` takes it back\n"));
            Ok(Some(id))
        }
    }
}

fn agreed() -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Err(Error::refused("nobody can be asked, so nothing was changed")
            .remedy("add --yes to go ahead, or --dry-run to see the plan only"));
    }
    print("Go ahead? [y/N] ");
    let _ = std::io::stdout().flush();
    let mut line = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut line)
        .map_err(|error| Error::host(format!("the answer cannot be read: {error}")))?;
    Ok(matches!(line.trim(), "y" | "Y" | "yes"))
}

/// A change's number as `status` shows it: 7 is 0007.
pub fn full_number(id: &str) -> String {
    match id.parse::<u32>() {
        Ok(number) => format!("{number:04}"),
        Err(_) => id.to_owned(),
    }
}

pub fn undo(host: &Host, args: &Undo) -> Result<u8> {
    let force = if args.force { Force::Yes } else { Force::No };
    let shared = net::shared(host);
    let id = args.id.as_deref().map(full_number);
    let id = change::undo(effects(host).as_mut(), id.as_deref(), force)?;
    print(&format!("{id} is undone\n"));
    let journals = change::list(host.root())?;
    let made_network = journals.iter().any(|journal| {
        let bridge = |action: &Action| matches!(action, Action::Net(NetChange::Bridge { .. }));
        journal.id == id && journal.actions().iter().any(bridge)
    });
    // Not after undoing what was kept for a network: then it is wanted gone.
    if made_network {
        net::keep(host, &shared)?;
    }
    Ok(0)
}

pub fn status(host: &Host) -> Result<u8> {
    let mut out = String::new();
    let mut code = 0;
    for journal in change::list(host.root())? {
        let total = journal.actions().len();
        let state = match journal.state() {
            JournalState::Applied => "applied".to_owned(),
            JournalState::Undone => "undone".to_owned(),
            JournalState::Interrupted(step) => {
                code = 1;
                format!("INTERRUPTED at step {step} of {total}: rhostprep undo {}", journal.id)
            }
            JournalState::HalfUndone => {
                code = 1;
                format!("HALF UNDONE: rhostprep undo {}", journal.id)
            }
        };
        // Writing to a String cannot fail.
        let _ =
            writeln!(out, "{}  {}  {total} actions  {state}", journal.id, stamp(journal.time()));
    }
    if out.is_empty() {
        out.push_str("nothing was changed by rhostprep so far\n");
    }
    print(&out);
    Ok(code)
}

/// Seconds since 1970 as UTC (the civil-from-days algorithm of proleptic Gregorian calendars).
fn stamp(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", rest / 3600, rest / 60 % 60)
}

#[cfg(test)]
mod tests {
    use super::{full_number, stamp};

    #[test]
    fn numbers() {
        assert_eq!(full_number("7"), "0007");
        assert_eq!(full_number("0012"), "0012");
        assert_eq!(full_number("12345"), "12345");
        assert_eq!(full_number("../7"), "../7");
    }

    #[test]
    fn dates() {
        assert_eq!(stamp(0), "1970-01-01 00:00 UTC");
        assert_eq!(stamp(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(stamp(1_735_689_599), "2024-12-31 23:59 UTC");
    }
}
