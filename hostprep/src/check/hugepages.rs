//! Hugepages (checks 38 to 42).

use super::outcome::{Needs, Outcome, Remedy};
use crate::host::{Host, HugePool};
use crate::units::{GIB, MIB, parse_size, show_size};
use crate::wanted::Wanted;

const POOLS: &str = "/sys/kernel/mm/hugepages";

fn show(pool: &HugePool) -> String {
    format!(
        "{}: {} pages, {} free, {} reserved, {} surplus",
        show_size(pool.page),
        pool.total,
        pool.free,
        pool.reserved,
        pool.surplus
    )
}

fn needed(wanted: &Wanted, page: u64) -> u64 {
    wanted.guests.iter().map(|guest| guest.count.saturating_mul(guest.memory.div_ceil(page))).sum()
}

/// Page size of the wanted -mem-path: its mount's, else 2 MiB.
fn wanted_page(host: &Host, wanted: &Wanted) -> u64 {
    let path = wanted.mem_path.as_deref().unwrap_or("");
    let mounts = host.mounts();
    let mount =
        mounts.iter().rfind(|mount| mount.kind == "hugetlbfs" && path.starts_with(&mount.point));
    let size =
        mount.and_then(|mount| mount.option("pagesize")).and_then(|text| parse_size(text, 1).ok());
    size.unwrap_or(2 * MIB).max(4096)
}

/// 38: pools against guests.
pub fn pools(host: &Host, wanted: &Wanted) -> Outcome {
    let pools = host.huge_pools(None);
    if pools.is_empty() {
        return Outcome::info("this kernel has no hugepages").read(POOLS, "not there");
    }
    let mut outcome = Outcome::pass("");
    for pool in &pools {
        outcome = outcome.read(format!("{POOLS}/hugepages-{}kB", pool.page / 1024), show(pool));
    }
    if wanted.mem_path.is_none() || wanted.guests.is_empty() {
        "not asked for (-mem-path)".clone_into(&mut outcome.summary);
        return outcome;
    }
    let page = wanted_page(host, wanted);
    let need = needed(wanted, page);
    let available = pools.iter().find(|pool| pool.page == page).map_or(0, HugePool::available);
    if available >= need {
        outcome.summary =
            format!("{available} pages of {} can be had, {need} needed", show_size(page));
        return outcome;
    }
    outcome.status = super::Status::Error;
    outcome.summary = format!(
        "{need} pages of {} needed, {available} can be had (free minus reserved)",
        show_size(page)
    );
    let have = pools.iter().find(|pool| pool.page == page).map_or(0, |pool| pool.total);
    let total = have.saturating_add(need - available);
    outcome.remedy(
        Remedy::command(
            "enlarge the pool now and at boot",
            format!("rhostprep apply --hugepages {}K={total}", page / 1024),
        )
        .then(format!("echo {total} > {POOLS}/hugepages-{}kB/nr_hugepages", page / 1024))
        .file("/etc/sysctl.d/60-rhostprep.conf"),
    )
}

/// 39: spread over nodes.
pub fn per_node(host: &Host, wanted: &Wanted) -> Outcome {
    let nodes = &host.topology().nodes;
    if nodes.len() < 2 {
        return Outcome::skipped("one memory node").read("/sys/devices/system/node", "one node");
    }
    let page = wanted_page(host, wanted);
    let mut outcome = Outcome::pass("");
    let mut free = Vec::new();
    for node in nodes {
        let pools = host.huge_pools(Some(node.id));
        let Some(pool) = pools.iter().find(|pool| pool.page == page) else { continue };
        outcome = outcome.read(
            format!("/sys/devices/system/node/node{}/hugepages", node.id),
            format!("{} of {} free", pool.free, pool.total),
        );
        free.push((node.id, pool.free, pool.total));
    }
    if free.iter().all(|(_, _, total)| *total == 0) {
        return Outcome::skipped("no hugepages are set aside")
            .read("/sys/devices/system/node/*/hugepages", "0");
    }
    let biggest = wanted.guests.iter().map(|guest| guest.memory.div_ceil(page)).max().unwrap_or(0);
    let most = free.iter().map(|(_, free, _)| *free).max().unwrap_or(0);
    let empty: Vec<String> =
        free.iter().filter(|(_, _, total)| *total == 0).map(|(id, ..)| id.to_string()).collect();
    if wanted.mem_path.is_some() && biggest > most {
        outcome.status = super::Status::Warning;
        outcome.summary =
            format!("no node has the {biggest} pages of the largest guest: it will span nodes");
    } else if !empty.is_empty() {
        outcome.status = super::Status::Warning;
        outcome.summary = format!("node {} has no hugepages", empty.join(", "));
    } else {
        "every node has some".clone_into(&mut outcome.summary);
        return outcome;
    }
    let node = empty.first().cloned().unwrap_or_else(|| "0".into());
    outcome.remedy(Remedy::command(
        "set pages aside on a given node",
        format!("rhostprep apply --hugepages {}K={}@{node}", page / 1024, biggest.max(1)),
    ))
}

/// 40: forecast from free blocks.
pub fn fragmentation(host: &Host, wanted: &Wanted) -> Outcome {
    let source = "/proc/buddyinfo";
    let free = host.free_blocks(2 * MIB);
    if free.is_empty() {
        return Outcome::unknown("free blocks cannot be read").read(source, "not readable");
    }
    let pages: u64 = free.values().map(|bytes| bytes / (2 * MIB)).sum();
    let shown: Vec<String> =
        free.iter().map(|(node, bytes)| format!("node {node}: {}", bytes / (2 * MIB))).collect();
    let available = host
        .huge_pools(None)
        .iter()
        .find(|pool| pool.page == 2 * MIB)
        .map_or(0, HugePool::available);
    let need = if wanted.mem_path.is_some() {
        needed(wanted, 2 * MIB).saturating_sub(available)
    } else {
        0
    };
    let memory = host.meminfo().bytes("MemAvailable");
    let evidence =
        |outcome: Outcome| outcome.read(source, format!("2 MiB blocks free: {}", shown.join(", ")));
    if need > pages {
        return evidence(Outcome::warning(format!(
            "{need} more pages are needed, {pages} whole blocks are free"
        )))
        .remedy(
            Remedy::command(
                "compact memory and try again; what is still lacking must be set aside at boot",
                "echo 1 > /proc/sys/vm/compact_memory",
            )
            .then(format!(
                "rhostprep apply --boot-option hugepages={}",
                need.saturating_add(available)
            ))
            .needs(Needs::Reboot),
        );
    }
    if need == 0 && memory > GIB && pages.saturating_mul(2 * MIB) < memory / 20 {
        return evidence(Outcome::warning("memory is fragmented: hugepages will be hard to get"))
            .remedy(Remedy::command("compact memory", "echo 1 > /proc/sys/vm/compact_memory"));
    }
    evidence(Outcome::pass(format!("{pages} pages of 2 MiB could be had at once")))
}

/// 41: gigantic pages.
pub fn gigantic(host: &Host, _wanted: &Wanted) -> Outcome {
    let flag = host.cpuinfo().has("pdpe1gb");
    let pool = host.huge_pools(None).into_iter().find(|pool| pool.page == GIB);
    let evidence = |outcome: Outcome| {
        outcome
            .read("/proc/cpuinfo flags", if flag { "pdpe1gb" } else { "no pdpe1gb" })
            .read_opt(format!("{POOLS}/hugepages-1048576kB"), pool.as_ref().map(show))
    };
    if !flag {
        return evidence(Outcome::info("the processor has no 1 GiB pages"));
    }
    match &pool {
        Some(pool) if pool.total > 0 => {
            evidence(Outcome::pass(format!("{} set aside", pool.total)))
        }
        Some(_) => evidence(Outcome::info("possible, none set aside")).remedy(
            Remedy::command(
                "set them aside at boot",
                "rhostprep apply --boot-option hugepagesz=1G --boot-option hugepages=N",
            )
            .needs(Needs::Reboot),
        ),
        None => evidence(Outcome::info("the processor could, the kernel has no pool for them")),
    }
}

/// 42: the mount.
pub fn mounted(host: &Host, wanted: &Wanted) -> Outcome {
    let mounts: Vec<_> =
        host.mounts().into_iter().filter(|mount| mount.kind == "hugetlbfs").collect();
    let shown: Vec<String> = mounts
        .iter()
        .map(|mount| {
            format!("{} ({})", mount.point, mount.option("pagesize").unwrap_or("default size"))
        })
        .collect();
    let shown = if shown.is_empty() { "none".to_owned() } else { shown.join(", ") };
    let evidence = |outcome: Outcome| outcome.read("/proc/self/mountinfo hugetlbfs", shown.clone());
    let fix = |point: &str| {
        Remedy::command("mount it now and at boot", format!("rhostprep apply --hugetlbfs {point}"))
            .then(format!("mount -t hugetlbfs hugetlbfs {point}"))
            .file("/etc/fstab")
    };
    match &wanted.mem_path {
        Some(path) => match mounts.iter().rfind(|mount| path.starts_with(&mount.point)) {
            Some(mount) if mount.options.iter().any(|option| option == "ro") => evidence(
                Outcome::error(format!("{} is mounted read-only", mount.point)),
            )
            .remedy(Remedy::command(
                "mount it for writing",
                format!("mount -o remount,rw {}", mount.point),
            )),
            Some(mount) => evidence(Outcome::pass(format!("{path} is on {}", mount.point))),
            None => {
                evidence(Outcome::error(format!("{path} is not on a hugetlbfs"))).remedy(fix(path))
            }
        },
        None if mounts.is_empty() => {
            evidence(Outcome::info("not mounted, and not asked for")).remedy(fix("/dev/hugepages"))
        }
        None => evidence(Outcome::pass(format!("mounted at {}", mounts[0].point))),
    }
}
