//! Clocks, frequencies and sleep states (checks 31 to 34).

use std::collections::BTreeSet;

use super::outcome::{Outcome, Remedy};
use crate::host::Host;
use crate::wanted::{Profile, Wanted};

const CPUS: &str = "/sys/devices/system/cpu";

/// 31: governor and energy preference.
pub fn governor(host: &Host, wanted: &Wanted) -> Outcome {
    let folder = format!("{CPUS}/cpufreq");
    let policies: Vec<String> =
        host.list(&folder).into_iter().filter(|name| name.starts_with("policy")).collect();
    if policies.is_empty() {
        return Outcome::skipped(
            "the kernel does not set frequencies here (firmware or the host above does)",
        )
        .read(folder, "no policy");
    }
    let all = |file: &str| -> BTreeSet<String> {
        policies
            .iter()
            .filter_map(|policy| host.text(&format!("{folder}/{policy}/{file}")))
            .collect()
    };
    let join = |set: &BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>().join(", ");
    let governors = all("scaling_governor");
    let preference = all("energy_performance_preference");
    let slow = governors
        .iter()
        .any(|name| name == "powersave" || name == "conservative" || name == "userspace");
    // intel_pstate's and amd_pstate's "powersave" scales with load; the preference says how eagerly.
    let eager =
        preference.iter().all(|name| name.contains("performance")) && !preference.is_empty();
    let steady = wanted.profile == Profile::Server || wanted.wants_latency();
    let outcome = if governors.len() == 1 && governors.contains("performance") {
        Outcome::pass("performance on all CPUs")
    } else if (slow && !eager) || steady {
        Outcome::warning(format!("governor {} slows guests down", join(&governors)))
            .remedy(Remedy::command("use performance", "rhostprep apply --governor performance"))
    } else {
        Outcome::pass(format!("governor {}", join(&governors)))
    };
    outcome
        .read(format!("{folder}/policy*/scaling_governor"), join(&governors))
        .read(format!("{folder}/policy*/energy_performance_preference"), join(&preference))
}

/// 32: exit latency of the deepest state that is on.
pub fn cstates(host: &Host, wanted: &Wanted) -> Outcome {
    let folder = format!("{CPUS}/cpu0/cpuidle");
    let mut deepest: Option<(u64, String)> = None;
    for state in host.list(&folder) {
        let field = |name: &str| host.text(&format!("{folder}/{state}/{name}"));
        if field("disable").as_deref() == Some("1") {
            continue;
        }
        let latency = field("latency").and_then(|text| text.parse().ok()).unwrap_or(0);
        if deepest.as_ref().is_none_or(|(most, _)| latency > *most) {
            deepest = Some((latency, field("name").unwrap_or(state)));
        }
    }
    let Some((latency, name)) = deepest else {
        return Outcome::skipped("no sleep states are managed here").read(folder, "no states");
    };
    let outcome = if wanted.wants_latency() && latency > 70 {
        Outcome::warning(format!("waking from {name} takes {latency} us")).remedy(Remedy::text(
            "hold /dev/cpu_dma_latency open with a limit while guests run, or boot with processor.max_cstate=1",
        ))
    } else if latency > 70 {
        Outcome::info(format!("deepest state {name} takes {latency} us to wake"))
    } else {
        Outcome::pass(format!("deepest state {name} takes {latency} us to wake"))
    };
    outcome.read(format!("{folder}/state*/latency"), format!("{latency} us"))
}

/// 33: the clock.
pub fn source(host: &Host, _wanted: &Wanted) -> Outcome {
    let folder = "/sys/devices/system/clocksource/clocksource0";
    let current = host.text(&format!("{folder}/current_clocksource"));
    let available = host.text(&format!("{folder}/available_clocksource")).unwrap_or_default();
    let info = host.cpuinfo();
    let steady = info.has("constant_tsc") && info.has("nonstop_tsc");
    let outcome = match current.as_deref() {
        Some("tsc") if steady => Outcome::pass("TSC, constant and never stopping"),
        Some("tsc") => Outcome::warning("TSC, but the processor does not promise a constant one")
            .remedy(Remedy::text("watch for clock jumps after migration or sleep")),
        // In a guest of KVM or Hyper-V the paravirtual clock is the right one.
        Some(name @ ("kvm-clock" | "hyperv_clocksource_tsc_page")) if info.has("hypervisor") => {
            Outcome::info(format!("{name}, right for a guest"))
        }
        Some(name) => Outcome::warning(format!("the clock is {name}")).remedy(
            Remedy::command("see why the kernel gave the TSC up", "dmesg | grep -i tsc").then(
                "echo tsc > /sys/devices/system/clocksource/clocksource0/current_clocksource",
            ),
        ),
        None => Outcome::unknown("the clock source cannot be read"),
    };
    outcome
        .read_opt(format!("{folder}/current_clocksource"), current)
        .read(format!("{folder}/available_clocksource"), available)
}

/// 34: split locks.
pub fn split_lock(host: &Host, _wanted: &Wanted) -> Outcome {
    let path = "/proc/sys/kernel/split_lock_mitigate";
    let detects = host.cpuinfo().has("split_lock_detect") || host.cpuinfo().has("bus_lock_detect");
    let mitigate = host.text(path);
    let off = host.boot_option("split_lock_detect").iter().any(|value| value == "off");
    let outcome = if !detects || off {
        Outcome::pass("not detected here: old guests run unhindered")
    } else if mitigate.as_deref() == Some("0") {
        Outcome::pass("detected and logged, not slowed down")
    } else {
        Outcome::info("guests that lock across cache lines are slowed down on purpose").remedy(
            Remedy::command(
                "if an old guest crawls",
                "rhostprep apply --sysctl kernel.split_lock_mitigate=0",
            ),
        )
    };
    outcome
        .read(
            "/proc/cpuinfo flags",
            if detects { "split_lock_detect" } else { "no split_lock_detect" },
        )
        .read_opt(path, mitigate)
}
