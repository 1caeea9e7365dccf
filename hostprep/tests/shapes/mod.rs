//! Fake hosts for tests. The shapes are written by hand after the kernel's documentation of each file
//! (Documentation/ABI, proc(5), filesystems/proc.rst) and after listings of such hosts; numbers are round on
//! purpose. `testdata/trees` holds collected ones.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;

use hostprep::host::{Cpuid, Facts, FsFact, Host, Identity, Stat, Tree, VcpuRun};
use tempfile::TempDir;

/// A tree being shaped.
#[derive(Clone, Default)]
pub struct Shape(pub Tree);

/// A host on disk; the folder goes with it.
pub struct Fake {
    pub folder: TempDir,
    pub host: Host,
}

const CPUS: &str = "/sys/devices/system/cpu";

impl Shape {
    pub fn set(&mut self, path: &str, text: &str) -> &mut Self {
        self.0.files.insert(path.into(), format!("{text}\n").into_bytes());
        self
    }

    pub fn bytes(&mut self, path: &str, bytes: &[u8]) -> &mut Self {
        self.0.files.insert(path.into(), bytes.to_vec());
        self
    }

    pub fn link(&mut self, path: &str, target: &str) -> &mut Self {
        self.0.links.insert(path.into(), target.into());
        self
    }

    /// Removes a file, or everything below a folder.
    pub fn remove(&mut self, path: &str) -> &mut Self {
        let below = format!("{path}/");
        self.0.files.retain(|name, _| name != path && !name.starts_with(&below));
        self.0.links.retain(|name, _| name != path && !name.starts_with(&below));
        self
    }

    pub fn facts(&mut self) -> &mut Facts {
        &mut self.0.facts
    }

    /// Replaces text in a file.
    pub fn replace(&mut self, path: &str, from: &str, to: &str) -> &mut Self {
        let text = String::from_utf8(self.0.files[path].clone()).unwrap();
        assert!(text.contains(from), "{path} has no {from}");
        self.0.files.insert(path.into(), text.replace(from, to).into_bytes());
        self
    }

    /// A model-specific register of every CPU: a sparse file as /dev/cpu/N/msr.
    pub fn build_msr(&self, fake: &Fake, cpus: u32, register: u64, value: u64) {
        use std::os::unix::fs::FileExt as _;
        for cpu in 0..cpus {
            let folder = fake.folder.path().join(format!("dev/cpu/{cpu}"));
            std::fs::create_dir_all(&folder).unwrap();
            let file = std::fs::OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(folder.join("msr"))
                .unwrap();
            file.write_all_at(&value.to_le_bytes(), register).unwrap();
        }
    }

    pub fn build(&self) -> Fake {
        // Trees have thousands of tiny files: in memory they are written ten times faster.
        let builder = tempfile::Builder::new();
        let folder = builder.tempdir_in("/dev/shm").or_else(|_| builder.tempdir()).unwrap();
        self.0.write_below(folder.path()).unwrap();
        let host = Host::below(folder.path(), self.0.facts.clone());
        Fake { folder, host }
    }

    /// `sockets` times `cores` cores with `threads` threads; siblings are numbered as on most servers: first
    /// all first threads, then all second ones. Each socket is a node.
    pub fn cpus(
        &mut self,
        sockets: u32,
        cores: u32,
        threads: u32,
        vendor: &str,
        flags: &str,
    ) -> &mut Self {
        let total = sockets * cores * threads;
        let mut info = String::new();
        for cpu in 0..total {
            let core = cpu % (sockets * cores);
            let socket = core / cores;
            let siblings: Vec<String> =
                (0..threads).map(|thread| (core + thread * sockets * cores).to_string()).collect();
            let siblings = siblings.join(",");
            let folder = format!("{CPUS}/cpu{cpu}");
            self.set(&format!("{folder}/topology/physical_package_id"), &socket.to_string());
            self.set(&format!("{folder}/topology/core_id"), &(core % cores).to_string());
            self.set(&format!("{folder}/topology/thread_siblings_list"), &siblings);
            let socket_cpus: Vec<String> = (0..threads)
                .map(|thread| {
                    let first = socket * cores + thread * sockets * cores;
                    format!("{first}-{}", first + cores - 1)
                })
                .collect();
            for (index, level, kind, size, shared) in [
                (0, "1", "Data", "48K", siblings.as_str()),
                (1, "1", "Instruction", "32K", siblings.as_str()),
                (2, "2", "Unified", "2048K", siblings.as_str()),
                (3, "3", "Unified", "36864K", &socket_cpus.join(",")),
            ] {
                let cache = format!("{folder}/cache/index{index}");
                self.set(&format!("{cache}/level"), level);
                self.set(&format!("{cache}/type"), kind);
                self.set(&format!("{cache}/size"), size);
                self.set(&format!("{cache}/shared_cpu_list"), shared);
            }
            let node = format!("/sys/devices/system/node/node{socket}");
            self.set(&format!("{node}/cpulist"), &socket_cpus.join(","));
            let distance: Vec<&str> =
                (0..sockets).map(|other| if other == socket { "10" } else { "21" }).collect();
            self.set(&format!("{node}/distance"), &distance.join(" "));
            self.set(
                &format!("{node}/meminfo"),
                &format!("Node {socket} MemTotal:       {} kB", 32 * 1024 * 1024 / sockets),
            );
            info.push_str(&format!(
                "processor\t: {cpu}\nvendor_id\t: {vendor}\nmodel name\t: Test CPU\nflags\t\t: {flags}\n"
            ));
            if vendor == "GenuineIntel" {
                info.push_str("vmx flags\t: vnmi ept vpid unrestricted_guest ept_1gb ept_ad\n");
            }
            info.push('\n');
        }
        self.bytes("/proc/cpuinfo", info.as_bytes());
        self.set(&format!("{CPUS}/online"), &format!("0-{}", total - 1));
        self.set(&format!("{CPUS}/smt/active"), if threads > 1 { "1" } else { "0" });
        self.set(&format!("{CPUS}/smt/control"), if threads > 1 { "on" } else { "notsupported" });
        self
    }
}

const INTEL_FLAGS: &str = "fpu tsc msr nx pdpe1gb constant_tsc nonstop_tsc vmx sse2 ept vpid";
const AMD_FLAGS: &str = "fpu tsc msr nx pdpe1gb constant_tsc nonstop_tsc svm npt avic sse2";

/// What all good hosts have in common: 32 GiB, cgroup v2, everything usable.
fn common() -> Shape {
    let mut shape = Shape::default();
    shape
        .set("/proc/sys/kernel/osrelease", "6.12.8-200.fc41.x86_64")
        .set("/proc/cmdline", "BOOT_IMAGE=/vmlinuz root=UUID=1 ro quiet")
        .set("/proc/modules", "kvm 1 0 - Live 0x0\ntun 1 0 - Live 0x0\nbridge 1 0 - Live 0x0")
        .set("/sys/module/kvm/parameters/nx_huge_pages", "N")
        .set("/etc/group", "root:x:0:\nkvm:x:36:qemu,alice")
        .set("/etc/passwd", "root:x:0:0::/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh")
        .set("/usr/lib/udev/rules.d/50-udev-default.rules", "KERNEL==\"kvm\", GROUP=\"kvm\", MODE=\"0660\"")
        .set("/proc/meminfo", "MemTotal:       33554432 kB\nMemAvailable:   30000000 kB\nCommitLimit:    16777216 kB\nCommitted_AS:    1048576 kB")
        .set("/proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n/dev/sda3 partition 8388608 0 -2")
        .set("/proc/sys/vm/overcommit_memory", "0")
        .set("/proc/sys/vm/swappiness", "10")
        .set("/proc/sys/vm/dirty_ratio", "40")
        .set("/proc/sys/vm/dirty_background_ratio", "5")
        .set("/proc/sys/vm/min_free_kbytes", "67584")
        .set("/proc/sys/vm/zone_reclaim_mode", "0")
        .set("/proc/sys/kernel/numa_balancing", "0")
        .set("/proc/buddyinfo", "Node 0, zone   Normal  1 1 1 1 1 1 1 1 1 100 7000")
        .set("/proc/self/limits", "Limit  Soft Limit  Hard Limit  Units\nMax locked memory         8388608              8388608              bytes")
        .set("/proc/self/cgroup", "0::/user.slice/user-1000.slice/session-2.scope")
        .set("/proc/self/mountinfo", "22 1 8:2 / / rw,relatime shared:1 - ext4 /dev/sda2 rw\n30 22 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw\n40 22 0:35 / /dev/hugepages rw,relatime shared:16 - hugetlbfs hugetlbfs rw,pagesize=2M")
        .set("/sys/fs/cgroup/cpuset.cpus.effective", "0-7")
        .set("/sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never")
        .set("/sys/kernel/mm/transparent_hugepage/defrag", "always defer defer+madvise [madvise] never")
        .set("/sys/kernel/mm/ksm/run", "0")
        .set("/sys/kernel/mm/ksm/merge_across_nodes", "1")
        .set("/sys/kernel/mm/ksm/pages_sharing", "0")
        .set("/sys/kernel/security/lockdown", "[none] integrity confidentiality")
        .set("/proc/sys/kernel/modules_disabled", "0")
        .set("/proc/sys/kernel/seccomp/actions_avail", "kill_process kill_thread trap errno trace log allow")
        .set("/proc/sys/kernel/io_uring_disabled", "0")
        .set("/proc/sys/user/max_user_namespaces", "127000")
        .set("/sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc")
        .set("/sys/devices/system/clocksource/clocksource0/available_clocksource", "tsc hpet acpi_pm")
        .set("/sys/devices/system/cpu/isolated", "")
        .set("/sys/devices/system/cpu/vulnerabilities/l1tf", "Not affected")
        .set("/sys/devices/system/cpu/vulnerabilities/itlb_multihit", "Not affected")
        .set("/sys/devices/system/cpu/cpufreq/policy0/scaling_governor", "performance")
        .set("/sys/devices/system/cpu/cpu0/cpuidle/state0/name", "POLL")
        .set("/sys/devices/system/cpu/cpu0/cpuidle/state0/latency", "0")
        .set("/sys/devices/system/cpu/cpu0/cpuidle/state1/name", "C1")
        .set("/sys/devices/system/cpu/cpu0/cpuidle/state1/latency", "2")
        .set("/proc/net/route", "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\neth0 00000000 0101A8C0 0003 0 0 0 00000000 0 0 0\neth0 0001A8C0 00000000 0001 0 0 0 00FFFFFF 0 0 0")
        .set("/sys/class/net/eth0/mtu", "1500")
        .set("/sys/class/net/eth0/operstate", "up")
        .set("/sys/class/net/eth0/device/vendor", "0x8086")
        .set("/sys/class/net/lo/mtu", "65536")
        .set("/sys/class/dmi/id/sys_vendor", "Dell Inc.")
        .set("/sys/class/dmi/id/product_name", "PowerEdge R650")
        .set("/sys/class/iommu/dmar0/devices", "")
        .set("/sys/firmware/acpi/tables/DMAR", "DMAR")
        .set("/sys/kernel/iommu_groups/1/devices/0000:01:00.0/class", "0x020000")
        .set("/var/lib/libvirt/images/x", "");
    for page in [2048, 1_048_576] {
        let folder = format!("/sys/kernel/mm/hugepages/hugepages-{page}kB");
        for (name, value) in [("nr", "512"), ("free", "512"), ("resv", "0"), ("surplus", "0")] {
            shape.set(&format!("{folder}/{name}_hugepages"), value);
        }
    }
    let facts = shape.facts();
    facts.vcpu = VcpuRun::Works { api: 12 };
    facts.kvm_extensions = [
        (0, 1),
        (3, 1),
        (9, 8),
        (10, 32764),
        (32, 1),
        (33, 1),
        (36, 1),
        (66, 1024),
        (72, 1),
        (81, 1),
        (121, 1),
        (157, 1),
    ]
    .into();
    facts.identity = Identity { uid: 1000, groups: vec![1000, 36] };
    facts.cpuid = Some(Cpuid { vmx: true, svm: false, hypervisor: String::new() });
    facts.stat = BTreeMap::from([
        ("/dev/kvm".into(), Stat { mode: 0o020_660, uid: 0, gid: 36 }),
        ("/var/lib/libvirt/images".into(), Stat { mode: 0o040_711, uid: 0, gid: 0 }),
    ]);
    facts.devices = ["/dev/kvm", "/dev/net/tun", "/dev/vhost-net", "/dev/vhost-vsock"]
        .map(|name| (name.to_owned(), 0))
        .into();
    facts.tap = 0;
    facts.vhost =
        [("/dev/vhost-net".into(), 0x1_3300), ("/dev/vhost-vsock".into(), 0x1_3000)].into();
    facts.filesystems =
        [("/".into(), FsFact { magic: 0xEF53, free: 100 << 30, direct: Some(true) })].into();
    facts.landlock = 6;
    facts.io_uring = 0;
    shape
}

/// A Fedora server with one Intel processor: 4 cores, 8 threads.
pub fn intel() -> Shape {
    let mut shape = common();
    shape
        .cpus(1, 4, 2, "GenuineIntel", INTEL_FLAGS)
        .set("/etc/os-release", "ID=fedora\nVERSION_ID=41")
        .set("/run/NetworkManager/conf.d", "")
        .set("/etc/default/grub", "GRUB_CMDLINE_LINUX=\"quiet\"")
        .set("/usr/sbin/grubby", "");
    for (name, value) in [
        ("ept", "Y"),
        ("vpid", "Y"),
        ("unrestricted_guest", "Y"),
        ("nested", "1"),
        ("enable_apicv", "Y"),
        ("ple_gap", "128"),
    ] {
        shape.set(&format!("/sys/module/kvm_intel/parameters/{name}"), value);
    }
    shape
}

/// A Debian host with one AMD processor, cgroup version 1 and ifupdown.
pub fn amd() -> Shape {
    let mut shape = common();
    shape
        .cpus(1, 4, 1, "AuthenticAMD", AMD_FLAGS)
        .set("/etc/os-release", "ID=debian\nVERSION_ID=\"12\"")
        .set("/etc/network/interfaces", "auto lo\niface lo inet loopback")
        .set("/proc/self/cgroup", "4:cpuset:/\n0::/")
        .set("/sys/fs/cgroup/cpuset/cpuset.cpus", "0-3")
        .replace("/proc/self/mountinfo", "cgroup2 cgroup2 rw", "cgroup cgroup rw,cpuset")
        .set("/etc/default/grub", "GRUB_CMDLINE_LINUX=\"\"");
    for (name, value) in [("npt", "Y"), ("nested", "1"), ("avic", "N"), ("sev", "N")] {
        shape.set(&format!("/sys/module/kvm_amd/parameters/{name}"), value);
    }
    shape.facts().cpuid = Some(Cpuid { vmx: false, svm: true, hypervisor: String::new() });
    shape
}

/// A virtual machine whose host shows no VMX: an Ubuntu cloud image with netplan.
pub fn vm_without_vmx() -> Shape {
    let mut shape = common();
    shape
        .cpus(1, 2, 1, "GenuineIntel", "fpu tsc nx hypervisor sse2")
        .set("/etc/os-release", "ID=ubuntu\nID_LIKE=debian")
        .set("/etc/netplan/50-cloud-init.yaml", "network: {version: 2}")
        .set("/proc/modules", "tun 1 0 - Live 0x0")
        .set("/sys/class/dmi/id/product_name", "Standard PC (Q35 + ICH9, 2009)")
        .remove("/sys/module/kvm")
        .remove("/sys/kernel/iommu_groups")
        .remove("/sys/firmware")
        .remove("/sys/devices/system/cpu/cpufreq");
    let facts = shape.facts();
    facts.vcpu =
        VcpuRun::Failed { step: "open".into(), errno: libc::ENOENT, text: "No such file".into() };
    facts.kvm_extensions.clear();
    facts.cpuid = Some(Cpuid { vmx: false, svm: false, hypervisor: "KVMKVMKVM".into() });
    facts.stat.remove("/dev/kvm");
    facts.devices.insert("/dev/kvm".into(), libc::ENOENT);
    shape
}

/// A SUSE server with two processors of 16 cores: 64 CPUs, two nodes.
pub fn big() -> Shape {
    let mut shape = intel();
    shape
        .cpus(2, 16, 2, "GenuineIntel", INTEL_FLAGS)
        .set("/etc/os-release", "ID=\"opensuse-leap\"\nID_LIKE=\"suse opensuse\"");
    shape.set("/sys/fs/cgroup/cpuset.cpus.effective", "0-63");
    for node in 0..2 {
        let folder = format!("/sys/devices/system/node/node{node}/hugepages/hugepages-2048kB");
        for (name, value) in [("nr", "256"), ("free", "256"), ("surplus", "0")] {
            shape.set(&format!("{folder}/{name}_hugepages"), value);
        }
    }
    for irq in 1..200 {
        shape.set(&format!("/proc/irq/{irq}/smp_affinity_list"), "0-3");
    }
    shape
}

/// An Arch laptop booted by systemd-boot, on Wi-Fi.
pub fn laptop() -> Shape {
    let mut shape = amd();
    shape
        .set("/etc/os-release", "ID=arch")
        .remove("/etc/default/grub")
        .remove("/etc/network")
        .set("/boot/loader/loader.conf", "default arch.conf")
        .set("/run/NetworkManager/conf.d", "")
        .remove("/sys/class/net/eth0")
        .set("/sys/class/net/wlan0/mtu", "1500")
        .set("/sys/class/net/wlan0/operstate", "up")
        .set("/sys/class/net/wlan0/phy80211/index", "0")
        .replace("/proc/net/route", "eth0", "wlan0");
    shape
}

/// A collected tree of `testdata/trees`.
pub fn collected(name: &str) -> Shape {
    let path = format!("{}/testdata/trees/{name}.tree", env!("CARGO_MANIFEST_DIR"));
    Shape(Tree::parse(&std::fs::read_to_string(path).unwrap()).unwrap())
}
