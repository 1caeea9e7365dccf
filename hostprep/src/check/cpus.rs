//! Processors: topology, siblings, isolation, control groups, interrupts (checks 19, 24 to 30).

use super::outcome::{Needs, Outcome, Remedy};
use crate::host::Host;
use crate::units::CpuSet;
use crate::wanted::Wanted;

const CPUS: &str = "/sys/devices/system/cpu";

/// 19: NX.
pub fn nx(host: &Host, _wanted: &Wanted) -> Outcome {
    if host.cpuinfo().count == 0 {
        return Outcome::unknown("/proc/cpuinfo cannot be read")
            .read("/proc/cpuinfo", "not readable");
    }
    if host.cpuinfo().has("nx") {
        return Outcome::pass("no-execute is on").read("/proc/cpuinfo flags", "nx");
    }
    // Intel SDM volume 4: IA32_MISC_ENABLE bit 34, XD bit disable.
    let hidden = host.msr(0, 0x1A0).is_ok_and(|value| value >> 34 & 1 == 1);
    let summary =
        if hidden { "firmware hides no-execute" } else { "the processor shows no NX flag" };
    Outcome::warning(summary).read("/proc/cpuinfo flags", "no nx").remedy(
        Remedy::text("enable Execute Disable (XD, NX) in the firmware; remove noexec=off from the kernel line")
            .needs(Needs::Reboot),
    )
}

/// 24: the shape.
pub fn topology(host: &Host, _wanted: &Wanted) -> Outcome {
    let topology = host.topology();
    if topology.cpus.is_empty() {
        return Outcome::unknown("no CPU is listed").read(CPUS, "no online CPU");
    }
    let plural =
        |count: usize, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
    Outcome::info(format!(
        "{}, {}, {}, {} (`rhostprep cpu` draws them)",
        plural(topology.sockets(), "socket"),
        plural(topology.cores(), "core"),
        plural(topology.cpus.len(), "thread"),
        plural(topology.nodes.len(), "NUMA node"),
    ))
    .read("/proc/cpuinfo model name", host.cpuinfo().model.clone())
    .read(format!("{CPUS}/online"), topology.online().to_string())
}

/// 25: siblings.
pub fn smt(host: &Host, wanted: &Wanted) -> Outcome {
    let control = host.text(&format!("{CPUS}/smt/control"));
    let active = host.number(&format!("{CPUS}/smt/active")) == Some(1);
    let outcome = if !active {
        Outcome::pass("no siblings share a core")
    } else if wanted.wants_latency() {
        Outcome::warning(
            "siblings share cores: pin vCPUs in pairs, or leave the second sibling idle",
        )
        .remedy(Remedy::command("see the proposal", "rhostprep cpu --guests 1x4Gx4"))
    } else {
        Outcome::info("siblings share cores")
    };
    outcome
        .read(format!("{CPUS}/smt/active"), u8::from(active).to_string())
        .read_opt(format!("{CPUS}/smt/control"), control)
}

/// The isolated CPUs: what the kernel says is in force.
fn isolated(host: &Host) -> Option<CpuSet> {
    CpuSet::parse(&host.text(&format!("{CPUS}/isolated"))?)
}

/// 26: what is isolated, and whether what was asked for took effect.
pub fn isolation(host: &Host, wanted: &Wanted) -> Outcome {
    let now = isolated(host).unwrap_or_default();
    let tickless =
        host.text(&format!("{CPUS}/nohz_full")).filter(|text| !text.is_empty() && text != "(null)");
    let asked = host.boot_option("isolcpus").pop();
    let evidence = |outcome: Outcome| {
        outcome
            .read(format!("{CPUS}/isolated"), now.to_string())
            .read_opt(format!("{CPUS}/nohz_full"), tickless.clone())
            .read_opt("/proc/cmdline isolcpus", asked.clone())
    };
    if let Some(asked) = &asked {
        // isolcpus=[flags,]list: flags are words.
        let list = asked.split(',').filter(|part| !part.starts_with(|c: char| c.is_alphabetic()));
        let list = CpuSet::parse(&list.collect::<Vec<_>>().join(",")).unwrap_or_default();
        if list != now && !list.is_empty() && !asked.starts_with("nohz") {
            return evidence(Outcome::warning(format!(
                "isolcpus={asked} is asked for, {now} is in force"
            )))
            .remedy(Remedy::text("correct the list on the kernel line").needs(Needs::Reboot));
        }
    }
    if now.is_empty() && wanted.wants_latency() {
        return evidence(Outcome::warning("no CPU is isolated, and steady latency is wanted"))
            .remedy(
                Remedy::command("isolate what the proposal names", "rhostprep cpu --guests 1x4Gx4")
                    .then("rhostprep apply --isolate LIST")
                    .needs(Needs::Reboot),
            );
    }
    if now.is_empty() {
        return evidence(Outcome::info("no CPU is isolated"));
    }
    evidence(Outcome::pass(format!("CPUs {now} are isolated")))
}

/// 27: sense of the set.
pub fn isolation_sane(host: &Host, _wanted: &Wanted) -> Outcome {
    let now = isolated(host).unwrap_or_default();
    if now.is_empty() {
        return Outcome::skipped("no CPU is isolated").read(format!("{CPUS}/isolated"), "empty");
    }
    let topology = host.topology();
    let mut wrong = Vec::new();
    let mut better = now.clone();
    if now.contains(0) {
        wrong.push("CPU 0, which boots and serves timers, is in it".to_owned());
        better.0.remove(&0);
    }
    for core in topology.core_sets() {
        let part = core.and(&now);
        if !part.is_empty() && part.len() < core.len() {
            wrong.push(format!("CPU {part} is in it, its sibling {} is not", core.without(&now)));
            if core.contains(0) {
                better = better.without(&core);
            } else {
                better.0.extend(core.0);
            }
        }
    }
    for node in &topology.nodes {
        if !node.cpus.is_empty() && node.cpus.without(&now).is_empty() {
            wrong.push(format!("node {} keeps no CPU for the host", node.id));
            if let Some(first) =
                topology.core_sets().into_iter().find(|core| !core.and(&node.cpus).is_empty())
            {
                better = better.without(&first);
            }
        }
    }
    let source = format!("{CPUS}/isolated");
    if wrong.is_empty() {
        return Outcome::pass(format!("{now} is whole cores and leaves each node a CPU"))
            .read(source, now.to_string());
    }
    Outcome::warning(wrong.join("; ")).read(source, now.to_string()).remedy(
        Remedy::command(
            format!("use isolcpus={better}"),
            format!("rhostprep apply --isolate {better}"),
        )
        .needs(Needs::Reboot),
    )
}

/// This process's control group below the cpuset hierarchy, and the file with its CPUs.
fn cpuset_file(host: &Host) -> Option<String> {
    let groups = host.read("/proc/self/cgroup").ok()?;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let candidates = if controllers.split(',').any(|name| name == "cpuset") {
            vec![format!("/sys/fs/cgroup/cpuset{path}/cpuset.cpus")]
        } else if controllers.is_empty() {
            let path = path.trim_end_matches('/');
            vec![
                format!("/sys/fs/cgroup{path}/cpuset.cpus.effective"),
                "/sys/fs/cgroup/cpuset.cpus.effective".into(),
            ]
        } else {
            continue;
        };
        if let Some(found) = candidates.into_iter().find(|file| host.exists(file)) {
            return Some(found.replace("//", "/"));
        }
    }
    None
}

/// 28: cpusets.
pub fn cpuset(host: &Host, _wanted: &Wanted) -> Outcome {
    let Some(file) = cpuset_file(host) else {
        return Outcome::pass("no cpuset applies to this process")
            .read("/proc/self/cgroup", "no cpuset");
    };
    let allowed = host.text(&file).and_then(|text| CpuSet::parse(&text)).unwrap_or_default();
    let online = host.topology().online();
    let isolated = isolated(host).unwrap_or_default();
    let missing = online.without(&allowed).without(&isolated);
    let partitions =
        host.text("/sys/fs/cgroup/cpuset.cpus.isolated").filter(|text| !text.is_empty());
    let evidence = |outcome: Outcome| {
        outcome
            .read(file.clone(), allowed.to_string())
            .read_opt("/sys/fs/cgroup/cpuset.cpus.isolated", partitions.clone())
    };
    if allowed.is_empty() || missing.is_empty() {
        return evidence(Outcome::pass("all CPUs are allowed here"));
    }
    if partitions
        .as_deref()
        .and_then(CpuSet::parse)
        .is_some_and(|set| missing.without(&set).is_empty())
    {
        return evidence(Outcome::info(format!("CPUs {missing} form an isolated partition")));
    }
    evidence(Outcome::warning(format!("guests started from here cannot use CPUs {missing}"))).remedy(
        Remedy::text("start them in another slice or service, or widen AllowedCPUs= of this one; to isolate CPUs use a cpuset partition"),
    )
}

/// 29: one thread, one CPU.
pub fn pinning(host: &Host, wanted: &Wanted) -> Outcome {
    let vcpus = wanted.guest_vcpus();
    if vcpus == 0 {
        return Outcome::skipped("no guests are planned (--guests, --for)")
            .read("planned vCPUs", "0");
    }
    let isolated = isolated(host).unwrap_or_default();
    let online = host.topology().cpus.len() as u64;
    let room = if isolated.is_empty() { online } else { isolated.len() as u64 };
    let what = if isolated.is_empty() { "online" } else { "isolated" };
    let evidence = |outcome: Outcome| {
        outcome.read("planned vCPUs", vcpus.to_string()).read(
            format!("{CPUS}/{}", if isolated.is_empty() { "online" } else { "isolated" }),
            room.to_string(),
        )
    };
    let biggest = u64::from(wanted.largest_smp());
    if biggest > online {
        return evidence(Outcome::warning(format!(
            "a guest with {biggest} vCPUs on {online} CPUs is slower than one with {online}"
        )))
        .remedy(Remedy::text(format!("use -smp {online} or less")));
    }
    if !isolated.is_empty() && vcpus > room {
        return evidence(Outcome::warning(format!("{vcpus} vCPUs for {room} isolated CPUs")))
            .remedy(Remedy::command(
                "pin each vCPU thread to one CPU, or isolate more",
                "rhostprep cpu --guests ...",
            ));
    }
    if isolated.is_empty() && !wanted.wants_latency() {
        return evidence(Outcome::pass(format!(
            "{vcpus} vCPUs on {room} {what} CPUs; the scheduler spreads them"
        )));
    }
    evidence(Outcome::info("pin every vCPU thread to one CPU of its own, never to a range")).remedy(
        Remedy::command("proposal", "rhostprep cpu --guests ...")
            .then("rhostprep pin PID --vcpu 0=CPU ..."),
    )
}

/// 30: interrupts on isolated CPUs.
pub fn irqs(host: &Host, _wanted: &Wanted) -> Outcome {
    let isolated = isolated(host).unwrap_or_default();
    if isolated.is_empty() {
        return Outcome::skipped("no CPU is isolated").read(format!("{CPUS}/isolated"), "empty");
    }
    let mut on_isolated = Vec::new();
    for irq in host.list("/proc/irq") {
        if irq.parse::<u32>().is_err() {
            continue;
        }
        // Where it really goes, when the kernel says so; else where it may go.
        let read = |name: &str| {
            host.text(&format!("/proc/irq/{irq}/{name}")).filter(|text| !text.is_empty())
        };
        let place = read("effective_affinity_list").or_else(|| read("smp_affinity_list"));
        let cpus = place.and_then(|text| CpuSet::parse(&text)).unwrap_or_default();
        if !cpus.and(&isolated).is_empty() {
            on_isolated.push(irq);
        }
    }
    let banned = host
        .read("/etc/default/irqbalance")
        .or_else(|_| host.read("/etc/sysconfig/irqbalance"))
        .unwrap_or_default();
    let banned =
        banned.lines().find(|line| line.starts_with("IRQBALANCE_BANNED_CPU")).map(str::to_owned);
    let source = "/proc/irq/*/effective_affinity_list";
    if on_isolated.is_empty() {
        return Outcome::pass("no interrupt is directed at them")
            .read(source, format!("none on {isolated}"));
    }
    let house = host.topology().online().without(&isolated);
    let shown: Vec<&str> = on_isolated.iter().map(String::as_str).take(8).collect();
    Outcome::warning(format!("{} interrupts may go to isolated CPUs {isolated}", on_isolated.len()))
        .read(source, format!("interrupts {}", shown.join(", ")))
        .read_opt("IRQBALANCE_BANNED_CPULIST", banned)
        .remedy(
            Remedy::command(
                "direct them elsewhere",
                format!("rhostprep apply --irq-affinity {house}"),
            )
            .then(format!("echo 'IRQBALANCE_BANNED_CPULIST={isolated}' >> /etc/default/irqbalance"))
            .file("/etc/default/irqbalance"),
        )
}
