//! Memory beyond hugepages (checks 35 to 37, 43 to 47).

use super::outcome::{Needs, Outcome, Remedy};
use crate::host::Host;
use crate::memory::{Sum, overhead};
use crate::units::{GIB, show_size};
use crate::wanted::{Profile, Wanted};

/// 35: memory against guests.
pub fn ram(host: &Host, wanted: &Wanted) -> Outcome {
    let total = host.meminfo().bytes("MemTotal");
    let source = "/proc/meminfo MemTotal";
    if total == 0 {
        return Outcome::unknown("the memory size cannot be read").read(source, "not readable");
    }
    if wanted.guests.is_empty() {
        return Outcome::info(format!(
            "{} of memory; name guests with --guests to judge it",
            show_size(total)
        ))
        .read(source, show_size(total));
    }
    let guests = wanted.guest_memory().saturating_add(overhead(&wanted.guests));
    let room = total.saturating_sub(wanted.reserve());
    let evidence = |outcome: Outcome| {
        outcome
            .read(source, show_size(total))
            .read("guests with overhead", show_size(guests))
            .read("kept for the host", show_size(wanted.reserve()))
    };
    if guests <= room {
        return evidence(Outcome::pass(format!(
            "{} for guests, {} needed",
            show_size(room),
            show_size(guests)
        )));
    }
    let lacking = guests - room;
    evidence(Outcome::error(format!(
        "{} lacking: {} needed, {} there",
        show_size(lacking),
        show_size(guests),
        show_size(room)
    )))
    .remedy(Remedy::command(
        "fewer or smaller guests, more memory, or swap for the overcommitted part",
        "rhostprep memory --guests ...",
    ))
}

/// 36: swap.
pub fn swap(host: &Host, wanted: &Wanted) -> Outcome {
    let swaps = host.swaps();
    let real: u64 = swaps.iter().filter(|swap| !swap.zram).map(|swap| swap.size).sum();
    let names: Vec<&str> = swaps.iter().map(|swap| swap.name.as_str()).collect();
    let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let total = host.meminfo().bytes("MemTotal");
    let evidence =
        |outcome: Outcome| outcome.read("/proc/swaps", format!("{names}: {}", show_size(real)));
    if total == 0 {
        return evidence(Outcome::unknown("the memory size cannot be read"));
    }
    if wanted.guests.is_empty() {
        return evidence(Outcome::info(
            "name guests with --guests to judge whether swap must cover them",
        ));
    }
    let sum = Sum::new(total, wanted.reserve(), wanted.guest_memory());
    if sum.overcommit == 0 {
        return evidence(Outcome::pass(
            "memory is not overcommitted, swap is not needed for guests",
        ));
    }
    if real >= sum.overcommit {
        return evidence(Outcome::pass(format!(
            "{} of swap cover {} of overcommitted memory",
            show_size(real),
            show_size(sum.overcommit)
        )));
    }
    let lacking = sum.overcommit - real;
    evidence(Outcome::warning(format!(
        "{} are overcommitted, {} of swap are there",
        show_size(sum.overcommit),
        show_size(real)
    )))
    .remedy(
        Remedy::command(
            format!("add {} of swap", show_size(lacking)),
            format!("rhostprep apply --swap /var/swapfile={}M", lacking.div_ceil(1 << 20)),
        )
        .file("/etc/fstab"),
    )
}

/// 37: overcommit policy.
pub fn overcommit(host: &Host, wanted: &Wanted) -> Outcome {
    let path = "/proc/sys/vm/overcommit_memory";
    let Some(policy) = host.number(path) else {
        return Outcome::unknown("the policy cannot be read").read(path, "not readable");
    };
    let info = host.meminfo();
    let left = info.bytes("CommitLimit").saturating_sub(info.bytes("Committed_AS"));
    let guests = wanted.guest_memory();
    let evidence = |outcome: Outcome| {
        outcome.read(path, policy.to_string()).read("CommitLimit - Committed_AS", show_size(left))
    };
    match policy {
        2 if guests > left || (guests == 0 && left < GIB) => evidence(Outcome::warning(format!(
            "strict accounting leaves {} to promise",
            show_size(left)
        )))
        .remedy(Remedy::command(
            "use the heuristic policy, or raise vm.overcommit_ratio",
            "rhostprep apply --sysctl vm.overcommit_memory=0",
        )),
        2 => evidence(Outcome::pass("strict accounting, and enough of it")),
        1 => evidence(Outcome::info(
            "everything is promised: guests start always and may be killed later",
        )),
        _ => evidence(Outcome::pass("heuristic")),
    }
}

/// The chosen word of `always [madvise] never`.
fn chosen(text: &str) -> &str {
    text.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map_or(text, |(word, _)| word)
}

/// 43: transparent hugepages.
pub fn thp(host: &Host, _wanted: &Wanted) -> Outcome {
    let folder = "/sys/kernel/mm/transparent_hugepage";
    let Some(enabled) = host.text(&format!("{folder}/enabled")) else {
        return Outcome::info("this kernel has no transparent hugepages").read(folder, "not there");
    };
    let outcome = match chosen(&enabled) {
        "always" | "madvise" => {
            Outcome::pass(format!("{}: launchers that ask get them", chosen(&enabled)))
        }
        _ => Outcome::warning("switched off")
            .remedy(Remedy::command("let launchers ask for them", "rhostprep apply --thp madvise")),
    };
    outcome
        .read(format!("{folder}/enabled"), enabled)
        .read_opt(format!("{folder}/defrag"), host.text(&format!("{folder}/defrag")))
        .read_opt(format!("{folder}/shmem_enabled"), host.text(&format!("{folder}/shmem_enabled")))
}

/// 44: KSM.
pub fn ksm(host: &Host, wanted: &Wanted) -> Outcome {
    let folder = "/sys/kernel/mm/ksm";
    let field = |name: &str| host.text(&format!("{folder}/{name}"));
    let Some(run) = field("run") else {
        return Outcome::info("this kernel has no same-page merging").read(folder, "not there");
    };
    let saved = host.number(&format!("{folder}/pages_sharing")).unwrap_or(0).saturating_mul(4096);
    let evidence = |outcome: Outcome| {
        outcome
            .read(format!("{folder}/run"), run.clone())
            .read_opt(format!("{folder}/pages_to_scan"), field("pages_to_scan"))
            .read_opt(format!("{folder}/sleep_millisecs"), field("sleep_millisecs"))
            .read_opt(format!("{folder}/merge_across_nodes"), field("merge_across_nodes"))
            .read_opt(format!("{folder}/general_profit"), field("general_profit"))
    };
    let crosses = field("merge_across_nodes").as_deref() == Some("1");
    if run == "1" && crosses && host.topology().nodes.len() > 1 {
        return evidence(Outcome::warning("merges pages of different nodes: guests then reach across nodes")).remedy(
            Remedy::text("unmerge, then merge within nodes only")
                .then("echo 2 > /sys/kernel/mm/ksm/run; echo 0 > /sys/kernel/mm/ksm/merge_across_nodes; echo 1 > /sys/kernel/mm/ksm/run"),
        );
    }
    if run == "1" {
        return evidence(Outcome::info(format!(
            "on, {} saved; guests of different owners can learn about each other through it",
            show_size(saved)
        )));
    }
    let many = wanted.guests.iter().any(|guests| guests.count > 4);
    if many && wanted.profile != Profile::Latency {
        return evidence(Outcome::info(
            "off; equal guests that trust each other could share memory",
        ))
        .remedy(Remedy::command("switch it on", "rhostprep apply --ksm on"));
    }
    evidence(Outcome::pass("off"))
}

/// 45: locked memory of this session.
pub fn memlock(host: &Host, wanted: &Wanted) -> Outcome {
    let limits = host.read("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find(|line| line.starts_with("Max locked memory"));
    let Some(soft) = line.and_then(|line| line.split_whitespace().nth(3)) else {
        return Outcome::unknown("the limit cannot be read").read("/proc/self/limits", "no line");
    };
    let evidence =
        |outcome: Outcome| outcome.read("/proc/self/limits Max locked memory", soft.to_owned());
    let root = host.probe().identity().uid == 0;
    let biggest = wanted.guests.iter().map(|guest| guest.memory).max().unwrap_or(0);
    let need = biggest.saturating_add(GIB);
    let limit = soft.parse::<u64>().unwrap_or(u64::MAX);
    if !(wanted.mlock.yes() || wanted.wants_vfio()) {
        return evidence(Outcome::pass("locked memory is not asked for"));
    }
    if limit >= need || root {
        return evidence(Outcome::pass(format!(
            "{} may be locked",
            if limit == u64::MAX { "everything".into() } else { show_size(limit) }
        )));
    }
    let kib = need.div_ceil(1024);
    evidence(Outcome::error(format!(
        "{} may be locked, {} are needed",
        show_size(limit),
        show_size(need)
    )))
    .remedy(
        Remedy::command(
            "raise the limit",
            format!("rhostprep apply --memlock {}M", need.div_ceil(1 << 20)),
        )
        .then(format!("echo '@kvm - memlock {kib}' > /etc/security/limits.d/50-kvm.conf"))
        .file("/etc/security/limits.d/50-kvm.conf")
        .needs(Needs::NewLogin),
    )
}

/// 46: automatic NUMA balancing.
pub fn numa_balancing(host: &Host, wanted: &Wanted) -> Outcome {
    let (balancing, reclaim) =
        ("/proc/sys/kernel/numa_balancing", "/proc/sys/vm/zone_reclaim_mode");
    let nodes = host.topology().nodes.len();
    let on = host.number(balancing).unwrap_or(0) != 0;
    let zone = host.number(reclaim).unwrap_or(0) != 0;
    let outcome = if nodes < 2 {
        Outcome::pass("one memory node: nothing to balance")
    } else if on && wanted.wants_latency() {
        Outcome::warning("pages of pinned guests are unmapped to find out who uses them").remedy(
            Remedy::command("switch it off", "rhostprep apply --sysctl kernel.numa_balancing=0"),
        )
    } else if zone {
        Outcome::warning("zone reclaim throws file cache away before using another node's memory")
            .remedy(Remedy::command(
                "switch it off",
                "rhostprep apply --sysctl vm.zone_reclaim_mode=0",
            ))
    } else {
        Outcome::info(format!(
            "automatic balancing is {}",
            if on { "on: right for guests that are not pinned" } else { "off" }
        ))
    };
    outcome.read_opt(balancing, host.text(balancing)).read_opt(reclaim, host.text(reclaim))
}

/// 47: swappiness, write-back, reserve.
pub fn sysctls(host: &Host, wanted: &Wanted) -> Outcome {
    let read = |name: &str| host.number(&format!("/proc/sys/vm/{name}"));
    let (swappiness, dirty, background) =
        (read("swappiness"), read("dirty_ratio"), read("dirty_background_ratio"));
    let steady = wanted.profile == Profile::Server || wanted.wants_latency();
    let high = swappiness.is_some_and(|value| value > 30);
    let outcome = if swappiness.is_none() {
        Outcome::unknown("vm.swappiness cannot be read")
    } else if high && steady {
        Outcome::warning("the kernel swaps guests out to keep file cache")
            .remedy(Remedy::command("prefer guests", "rhostprep apply --sysctl vm.swappiness=10"))
    } else if high {
        Outcome::info(
            "defaults for a general machine; for a host of guests swappiness 10 is better",
        )
        .remedy(Remedy::command("prefer guests", "rhostprep apply --sysctl vm.swappiness=10"))
    } else {
        Outcome::pass("guests are preferred to file cache")
    };
    let show = |value: Option<u64>| value.map(|value| value.to_string());
    outcome
        .read_opt("/proc/sys/vm/swappiness", show(swappiness))
        .read_opt("/proc/sys/vm/dirty_ratio", show(dirty))
        .read_opt("/proc/sys/vm/dirty_background_ratio", show(background))
        .read_opt("/proc/sys/vm/min_free_kbytes", show(read("min_free_kbytes")))
}
