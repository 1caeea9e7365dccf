//! The table of checks. Numbers and names are for ever: scripts select by them.

use super::outcome::Outcome;
use super::{
    access, clocks, cpus, devices, firmware, hugepages, kvm, memory, network, parameters, security,
    storage,
};
use crate::host::Host;
use crate::wanted::Wanted;

/// One check.
#[derive(Debug, Clone, Copy)]
pub struct Check {
    /// Stable number, from 1.
    pub number: u32,
    /// Stable name, `group.thing`.
    pub id: &'static str,
    /// What is checked.
    pub title: &'static str,
    /// Why it matters.
    pub why: &'static str,
    /// Does it.
    pub run: fn(&Host, &Wanted) -> Outcome,
}

impl Check {
    /// Whether `name` is its number, its name or its group.
    pub fn answers_to(&self, name: &str) -> bool {
        self.id == name
            || name.parse() == Ok(self.number)
            || self.id.split_once('.').is_some_and(|(group, _)| group == name)
    }
}

macro_rules! checks {
    ($($number:literal $id:literal $title:literal $why:literal $run:path;)*) => {
        /// All checks by number.
        pub const CHECKS: &[Check] =
            &[$(Check { number: $number, id: $id, title: $title, why: $why, run: $run }),*];
    };
}

checks! {
    1 "kvm.run" "A virtual CPU runs" "Flags and device nodes are hints; a guest instruction that ran is proof." kvm::runs;
    2 "cpu.virt-flag" "The processor offers VMX or SVM" "KVM on bare hardware needs one of the two extensions." kvm::virt_flag;
    3 "firmware.intel" "Firmware leaves VMX on" "A locked feature register without the VMX bit keeps KVM out until the next cold start." firmware::intel;
    4 "firmware.amd" "Firmware leaves SVM on" "With SVMDIS set and locked KVM cannot start." firmware::amd;
    5 "firmware.readable" "The firmware's locks can be read" "Without the registers, \"disabled by firmware\" can be neither proved nor excluded." firmware::readable;
    6 "kvm.modules" "KVM modules are loaded" "Without kvm and the module of the processor there is no /dev/kvm." kvm::modules;
    7 "kvm.access" "This user may open /dev/kvm" "Guests of a user without the right fall back to emulation or do not start." access::kvm_node;
    8 "kvm.udev" "A rule keeps the rights of /dev/kvm" "Rights set by hand are gone after the next boot." access::udev_rule;
    9 "host.virtual" "This host is bare metal or a guest itself" "Inside a guest, KVM depends on what the host above allows." kvm::virtual_host;
    10 "kvm.other-hypervisor" "No other hypervisor holds the processor" "VMX can have one owner at a time." kvm::other_hypervisor;
    11 "kvm.ept" "Nested page tables (EPT or NPT)" "Without them every page table change of a guest costs an exit." parameters::ept;
    12 "kvm.vpid" "Tagged TLB (VPID or ASID)" "Without it every entry and exit empties the TLB." parameters::vpid;
    13 "kvm.unrestricted-guest" "Unrestricted guests" "Without it real-mode code (BIOS, boot loaders) is emulated: slow, and sometimes wrong." parameters::unrestricted_guest;
    14 "kvm.ept-features" "EPT has 1 GiB pages and accessed/dirty bits" "They make large guests and dirty logging cheaper." parameters::ept_features;
    15 "kvm.nested" "Guests can run guests" "Needed for hypervisors in guests, and only then." parameters::nested;
    16 "kvm.apicv" "Interrupt virtualization and pause-loop exiting" "Interrupts without exits; fewer wasted spins." parameters::apicv;
    17 "kvm.capabilities" "KVM has the capabilities a modern launcher uses" "A launcher without them fails or runs slowly." kvm::capabilities;
    18 "kvm.limits" "Enough vCPUs and memory slots" "A guest beyond the limits cannot be created." kvm::limits;
    19 "cpu.nx" "No-execute is on" "Guests that use NX crash or run unprotected when firmware hides it." cpus::nx;
    20 "kernel.age" "The kernel is not too old" "Old kernels lack features and corrections guests rely on." kvm::kernel_age;
    21 "cpu.vulnerabilities" "Processor vulnerabilities are mitigated" "Guests share processors with each other and with the host." security::vulnerabilities;
    22 "kvm.nx-huge-pages" "Cost of the iTLB multihit mitigation" "With it on, executable huge pages of guests are split." parameters::nx_huge_pages;
    23 "kvm.confidential" "Encrypted guests (SEV, SNP, TDX)" "Needed only for confidential guests." parameters::confidential;
    24 "cpu.topology" "Sockets, cores, threads and nodes" "Placement of guests starts here." cpus::topology;
    25 "cpu.smt" "Simultaneous multithreading" "Siblings share a core: they belong to the same guest or to nobody." cpus::smt;
    26 "cpu.isolation" "CPUs kept free for guests" "Only isolated CPUs give steady latency." cpus::isolation;
    27 "cpu.isolation-sane" "The isolated set makes sense" "Half cores, the boot CPU or whole nodes in the set hurt more than they help." cpus::isolation_sane;
    28 "cpu.cpuset" "No cpuset withholds CPUs" "Guests started here can only use the CPUs of their control group." cpus::cpuset;
    29 "cpu.pinning" "Each vCPU can have a CPU of its own" "The scheduler does not balance isolated CPUs: threads given a range pile up on one." cpus::pinning;
    30 "cpu.irqs" "Interrupts stay away from isolated CPUs" "An interrupt on a guest's CPU is latency for that guest." cpus::irqs;
    31 "cpu.governor" "CPU frequency governor" "Slow ramp-up of clocks looks like a slow guest." clocks::governor;
    32 "cpu.cstates" "Deep sleep states" "Waking from a deep state delays a halted vCPU." clocks::cstates;
    33 "clock.source" "The clock is the TSC" "Other clock sources cost an exit or a system call per reading, and guests cannot use kvmclock well." clocks::source;
    34 "cpu.split-lock" "Split lock detection" "Old guests with split locks are slowed to a crawl." clocks::split_lock;
    35 "mem.ram" "Memory is enough for the guests" "Beyond it the host swaps or kills guests." memory::ram;
    36 "mem.swap" "Swap covers overcommitted memory" "Without it the kernel kills a guest when all use their memory at once." memory::swap;
    37 "mem.overcommit" "Overcommit policy" "A strict policy refuses guests that would fit; a loose one promises what is not there." memory::overcommit;
    38 "mem.hugepages" "Hugepages for the guests" "Free but reserved pages are not free: the guest would be killed on touching them." hugepages::pools;
    39 "mem.hugepages-node" "Hugepages on each node" "A guest bound to a node needs its pages there." hugepages::per_node;
    40 "mem.fragmentation" "Hugepages can still be had" "Fragmented memory gives fewer pages than asked." hugepages::fragmentation;
    41 "mem.gigantic" "1 GiB pages" "They must usually be set aside at boot." hugepages::gigantic;
    42 "mem.hugetlbfs" "hugetlbfs is mounted" "-mem-path needs a mount of the wanted page size." hugepages::mounted;
    43 "mem.thp" "Transparent hugepages" "They give guests most of the gain without setting pages aside." memory::thp;
    44 "mem.ksm" "Same-page merging" "Saves memory between equal guests, costs CPU and opens a side channel." memory::ksm;
    45 "mem.memlock" "Memory may be locked" "Locked or passed-through guests need a limit above their memory." memory::memlock;
    46 "mem.numa-balancing" "Automatic NUMA balancing" "It works against pinned guests." memory::numa_balancing;
    47 "mem.vm-sysctls" "Swappiness and write-back" "Defaults favour file cache over guests." memory::sysctls;
    48 "sec.lockdown" "Secure Boot and lockdown" "They forbid registers, unsigned modules and some boot options." security::lockdown;
    49 "sec.module-signatures" "Modules can be loaded" "kvm, tun or vhost as modules need it." security::modules;
    50 "sec.cgroup" "Control groups let devices through" "A device group can forbid /dev/kvm although its mode allows it." security::cgroup;
    51 "sec.landlock" "Landlock and seccomp for the launcher" "They confine a launcher that a guest has broken." security::landlock;
    52 "sec.io-uring" "io_uring" "The fastest way for disk I/O; without it threads are used." security::io_uring;
    53 "sec.mac" "SELinux or AppArmor" "They can refuse files although their modes allow them." security::mac;
    54 "sec.userns" "User namespaces" "Rootless networking needs them." security::userns;
    55 "dev.tun" "Tap interfaces can be made" "-net tap needs /dev/net/tun and the right to use it." devices::tun;
    56 "dev.vhost" "vhost-net and vhost-vsock" "Network traffic without the launcher in between." devices::vhost;
    57 "dev.iommu" "An IOMMU is on" "Passing devices through is impossible without it." devices::iommu;
    58 "dev.iommu-groups" "IOMMU groups can be passed through" "All devices of a group move together." devices::groups;
    59 "net.manager" "Who manages the network" "Configuration must be written in that one's files." network::manager;
    60 "net.bridge-safety" "Bridging would not cut you off" "The interface that carries your connection needs care, and Wi-Fi cannot be bridged." network::bridge_safety;
    61 "net.bridge" "Bridges are healthy" "An address on a port, a missing port or unequal MTUs break guests silently." network::bridges;
    62 "net.forwarding" "Forwarding and address translation" "Guests behind NAT reach nobody without both." network::forwarding;
    63 "net.forward-drop" "The firewall lets guests through" "Docker and br_netfilter drop bridged traffic without a word." network::forward_drop;
    64 "storage.images" "The image folder suits images" "Copy-on-write, network and memory file systems have traps." storage::images;
}
