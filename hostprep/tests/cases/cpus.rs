//! Processors, clocks, memory.

use hostprep::check::Status::{Error, Info, Pass, Skipped, Unknown, Warning};
use hostprep::wanted::{Profile, Use, Wanted};

use super::{Case, case, guests, with};
use crate::shapes::{amd, big, intel, vm_without_vmx};

pub fn cpu_cases() -> Vec<Case> {
    let isolated = |list: &'static str| {
        with(intel(), |s| {
            s.set("/sys/devices/system/cpu/isolated", list);
        })
    };
    vec![
        case("cpu.nx", intel(), Pass, ""),
        case(
            "cpu.nx",
            with(intel(), |s| {
                s.replace("/proc/cpuinfo", " nx ", " ");
            }),
            Warning,
            "Execute Disable",
        ),
        case("cpu.topology", big(), Info, "2 sockets, 32 cores, 64 threads, 2 NUMA nodes"),
        case(
            "cpu.topology",
            with(intel(), |s| {
                s.remove("/sys/devices/system/cpu");
            }),
            Unknown,
            "",
        ),
        case("cpu.smt", amd(), Pass, ""),
        case("cpu.smt", intel(), Info, ""),
        case("cpu.smt", intel(), Warning, "pairs").wants(|w| w.profile = Profile::Latency),
        case("cpu.isolation", isolated("2-3,6-7"), Pass, "2-3,6-7"),
        case("cpu.isolation", intel(), Warning, "--isolate")
            .wants(|w| w.profile = Profile::Latency),
        case(
            "cpu.isolation",
            with(intel(), |s| {
                s.set("/proc/cmdline", "isolcpus=domain,2-99");
            }),
            Warning,
            "in force",
        ),
        case("cpu.isolation-sane", isolated("2-3,6-7"), Pass, ""),
        case("cpu.isolation-sane", isolated("0-3"), Warning, "isolcpus=1-3,5-7"),
        case("cpu.isolation-sane", isolated("0-7"), Warning, "keeps no CPU"),
        case("cpu.cpuset", intel(), Pass, ""),
        case("cpu.cpuset", amd(), Pass, ""),
        case(
            "cpu.cpuset",
            with(intel(), |s| {
                s.set("/sys/fs/cgroup/cpuset.cpus.effective", "0-3");
            }),
            Warning,
            "4-7",
        ),
        case("cpu.pinning", intel(), Pass, "").wants(|w| w.guests = guests("2x1Gx2")),
        case("cpu.pinning", isolated("2-3"), Warning, "pin each")
            .wants(|w| w.guests = guests("2x1Gx2")),
        case("cpu.pinning", intel(), Warning, "-smp 8").wants(|w| w.guests = guests("1x1Gx16")),
        case(
            "cpu.irqs",
            with(isolated("2-3,6-7"), |s| {
                s.set("/proc/irq/9/smp_affinity_list", "0-1");
            }),
            Pass,
            "",
        ),
        case(
            "cpu.irqs",
            with(isolated("2-3,6-7"), |s| {
                s.set("/proc/irq/9/smp_affinity_list", "0-7");
            }),
            Warning,
            "--irq-affinity 0-1,4-5",
        ),
        case("cpu.governor", intel(), Pass, "performance"),
        case(
            "cpu.governor",
            with(intel(), |s| {
                s.set("/sys/devices/system/cpu/cpufreq/policy0/scaling_governor", "powersave");
            }),
            Warning,
            "--governor",
        ),
        case("cpu.governor", vm_without_vmx(), Skipped, ""),
        case("cpu.cstates", intel(), Pass, "C1"),
        case(
            "cpu.cstates",
            with(intel(), |s| {
                s.set("/sys/devices/system/cpu/cpu0/cpuidle/state3/name", "C6")
                    .set("/sys/devices/system/cpu/cpu0/cpuidle/state3/latency", "170");
            }),
            Warning,
            "cpu_dma_latency",
        )
        .wants(|w| w.profile = Profile::Latency),
        case("clock.source", intel(), Pass, ""),
        case(
            "clock.source",
            with(intel(), |s| {
                s.set("/sys/devices/system/clocksource/clocksource0/current_clocksource", "hpet");
            }),
            Warning,
            "hpet",
        ),
        case("cpu.split-lock", intel(), Pass, ""),
        case(
            "cpu.split-lock",
            with(intel(), |s| {
                s.replace("/proc/cpuinfo", "fpu ", "fpu split_lock_detect ");
            }),
            Info,
            "split_lock_mitigate=0",
        ),
    ]
}

pub fn memory_cases() -> Vec<Case> {
    let path = |w: &mut Wanted| {
        w.mem_path = Some("/dev/hugepages".into());
        w.guests = guests("2x1G");
    };
    let huge = |name: &'static str, value: &'static str| {
        with(intel(), |s| {
            s.set(&format!("/sys/kernel/mm/hugepages/hugepages-2048kB/{name}_hugepages"), value);
        })
    };
    vec![
        case("mem.ram", intel(), Pass, "").wants(|w| w.guests = guests("8x1G")),
        case("mem.ram", intel(), Error, "lacking").wants(|w| w.guests = guests("64x1G")),
        case("mem.swap", intel(), Pass, "").wants(|w| w.guests = guests("8x1G")),
        case("mem.swap", intel(), Warning, "/var/swapfile=28672M")
            .wants(|w| w.guests = guests("64x1G")),
        case("mem.overcommit", intel(), Pass, ""),
        case(
            "mem.overcommit",
            with(intel(), |s| {
                s.set("/proc/sys/vm/overcommit_memory", "2");
            }),
            Warning,
            "overcommit_memory=0",
        )
        .wants(|w| w.guests = guests("64x1G")),
        case("mem.hugepages", huge("free", "1024"), Pass, "").wants(path),
        case("mem.hugepages", huge("resv", "500"), Error, "12 can be had").wants(path),
        case("mem.hugepages-node", big(), Pass, ""),
        case(
            "mem.hugepages-node",
            with(big(), |s| {
                s.set(
                    "/sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages",
                    "0",
                );
            }),
            Warning,
            "node 1 has no",
        ),
        case("mem.hugepages-node", big(), Warning, "span").wants(path),
        case("mem.fragmentation", intel(), Pass, "14100"),
        case(
            "mem.fragmentation",
            with(intel(), |s| {
                s.set("/proc/buddyinfo", "Node 0, zone   Normal  90000 8 1 1 1 1 1 1 1 1 1");
            }),
            Warning,
            "compact_memory",
        ),
        case("mem.gigantic", intel(), Pass, "512"),
        case(
            "mem.gigantic",
            with(intel(), |s| {
                s.replace("/proc/cpuinfo", " pdpe1gb", "");
            }),
            Info,
            "no 1 GiB",
        ),
        case("mem.hugetlbfs", intel(), Pass, "").wants(path),
        case("mem.hugetlbfs", intel(), Error, "--hugetlbfs /mnt/huge")
            .wants(|w| w.mem_path = Some("/mnt/huge".into())),
        case("mem.thp", intel(), Pass, "madvise"),
        case(
            "mem.thp",
            with(intel(), |s| {
                s.set("/sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]");
            }),
            Warning,
            "--thp",
        ),
        case("mem.ksm", intel(), Pass, "off"),
        case(
            "mem.ksm",
            with(intel(), |s| {
                s.set("/sys/kernel/mm/ksm/run", "1");
            }),
            Info,
            "on,",
        ),
        case(
            "mem.ksm",
            with(big(), |s| {
                s.set("/sys/kernel/mm/ksm/run", "1");
            }),
            Warning,
            "nodes",
        ),
        case("mem.memlock", intel(), Pass, ""),
        case("mem.memlock", intel(), Error, "limits.d").wants(|w| {
            w.mlock = Use::Yes;
            w.guests = guests("1x4G");
        }),
        case("mem.numa-balancing", intel(), Pass, ""),
        case(
            "mem.numa-balancing",
            with(big(), |s| {
                s.set("/proc/sys/kernel/numa_balancing", "1");
            }),
            Warning,
            "numa_balancing=0",
        )
        .wants(|w| w.profile = Profile::Latency),
        case("mem.vm-sysctls", intel(), Pass, ""),
        case(
            "mem.vm-sysctls",
            with(intel(), |s| {
                s.set("/proc/sys/vm/swappiness", "60");
            }),
            Warning,
            "swappiness=10",
        )
        .wants(|w| w.profile = Profile::Server),
    ]
}
