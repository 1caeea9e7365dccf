//! The command line.

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

/// Check whether this host is ready for KVM guests, and make it so.
#[derive(Debug, Parser)]
#[command(name = "rhostprep", version, max_term_width = 100, propagate_version = true)]
pub struct Args {
    /// Read (and change) a tree below this folder instead of the running host
    #[arg(long, global = true, value_name = "DIR", hide_short_help = true)]
    pub root: Option<std::path::PathBuf>,
    #[command(subcommand)]
    pub command: Command,
}

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Say what this host is ready for, and what to do about the rest
    Check(Check),
    /// Sum up the memory and swap that guests need
    Memory(Memory),
    /// Draw processors and propose where guests go
    Cpu(Cpu),
    /// Show or set the CPUs of a launcher's vCPU threads
    Pin(Pin),
    /// Show what `apply` would change, with a diff of every file
    Plan(Changes),
    /// Make the changes, with a journal to undo them
    Apply(Apply),
    /// Put the host back as it was before a change
    Undo(Undo),
    /// List changes made, undone and interrupted
    Status,
    /// Bridges, address translation, taps, port forwards
    Net {
        #[command(subcommand)]
        command: Net,
    },
    /// Write /etc/qemu-ifup and /etc/qemu-ifdown (or their -NAT variants)
    Scripts(Scripts),
    /// Attach a tap to its bridge, as /etc/qemu-ifup does
    Ifup(Ifup),
    /// Take a tap from its bridge, as /etc/qemu-ifdown does
    Ifdown(Ifup),
    /// Write what the checks read of this host as one text file, for bug reports
    Collect,
    /// Write shell completions to standard output
    #[command(hide = true)]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Write the manual page to standard output
    #[command(hide = true)]
    Man {
        /// Of this command, like `net nat`; of the program when none is given
        words: Vec<String>,
    },
}

/// What the host is wanted for.
#[derive(Debug, Clone, Default, ClapArgs)]
pub struct WantedArgs {
    /// Judge for the guest of this rkvm or qemu-kvm command line
    #[arg(long = "for", value_name = "COMMAND LINE", allow_hyphen_values = true)]
    pub command_lines: Vec<String>,
    /// Judge for guests: COUNTxMEMORY or COUNTxMEMORYxVCPUS, like 64x1G
    #[arg(long, value_name = "GUESTS", value_delimiter = ',')]
    pub guests: Vec<String>,
    /// Memory kept for the host (4G unless given)
    #[arg(long, value_name = "SIZE")]
    pub reserve: Option<String>,
    /// general, server, latency or passthrough
    #[arg(long, value_name = "NAME")]
    pub profile: Option<String>,
}

/// Formats.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    #[default]
    Human,
    /// For programs
    Json,
    /// For continuous integration
    Junit,
}

/// When to colour.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum When {
    /// On a terminal
    #[default]
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

#[derive(Debug, ClapArgs)]
pub struct Check {
    #[command(flatten)]
    pub wanted: WantedArgs,
    /// Format
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
    /// Only these checks: names, numbers or groups
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    pub only: Vec<String>,
    /// List all checks and stop
    #[arg(long)]
    pub list: bool,
    /// Only what needs action
    #[arg(short, long)]
    pub quiet: bool,
    /// Everything, with what was read
    #[arg(short, long, conflicts_with = "quiet")]
    pub verbose: bool,
    /// When to colour
    #[arg(long, value_enum, default_value_t)]
    pub color: When,
}

#[derive(Debug, ClapArgs)]
pub struct Memory {
    #[command(flatten)]
    pub wanted: WantedArgs,
    /// Part of guest memory that same-page merging saves, like 20%
    #[arg(long, value_name = "PERCENT")]
    pub ksm_share: Option<String>,
    /// Sum up for a host with this much memory instead
    #[arg(long, value_name = "SIZE")]
    pub ram: Option<String>,
    /// Size of hugepages
    #[arg(long, value_name = "SIZE", default_value = "2M")]
    pub page: String,
    /// Format (human or json)
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
}

#[derive(Debug, ClapArgs)]
pub struct Cpu {
    #[command(flatten)]
    pub wanted: WantedArgs,
    /// Format (human or json)
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
}

#[derive(Debug, ClapArgs)]
pub struct Pin {
    /// Process number or guest name
    pub process: String,
    /// Bind a vCPU: VCPU=CPUS, like 0=4
    #[arg(long, value_name = "VCPU=CPUS")]
    pub vcpu: Vec<String>,
    /// Bind all other threads
    #[arg(long, value_name = "CPUS")]
    pub emulator: Option<String>,
}

/// Wishes.
#[derive(Debug, ClapArgs)]
pub struct Changes {
    /// Load a module now and at boot (kvm also means the processor's)
    #[arg(long = "module", value_name = "NAME")]
    pub modules: Vec<String>,
    /// Parameter of that module, now and at boot
    #[arg(long = "param", value_name = "KEY=VALUE")]
    pub parameters: Vec<String>,
    /// Let the group kvm open /dev/kvm, now and at boot
    #[arg(long)]
    pub kvm_access: bool,
    /// Let everybody open /dev/net/tun, now and at boot
    #[arg(long)]
    pub tun_access: bool,
    /// Hugepages now and at boot, like 2M=512 or 1G=4@1 (on node 1)
    #[arg(long, value_name = "SIZE=COUNT[@NODE]")]
    pub hugepages: Vec<String>,
    /// Mount hugetlbfs now and at boot
    #[arg(long, value_name = "DIR[=SIZE]")]
    pub hugetlbfs: Vec<String>,
    /// Swap file of that size, or a partition without size
    #[arg(long, value_name = "PATH[=SIZE]")]
    pub swap: Option<String>,
    /// Same-page merging: on, off, or a setting like pages_to_scan=1000
    #[arg(long, value_name = "SETTING")]
    pub ksm: Vec<String>,
    /// Transparent hugepages: always, madvise or never
    #[arg(long, value_name = "MODE")]
    pub thp: Option<String>,
    /// Kernel setting now and at boot
    #[arg(long = "sysctl", value_name = "NAME=VALUE")]
    pub sysctls: Vec<String>,
    /// CPU frequency governor
    #[arg(long, value_name = "NAME")]
    pub governor: Option<String>,
    /// Keep CPUs free for guests
    #[arg(long, value_name = "CPUS")]
    pub isolate: Option<String>,
    /// Isolate by a cpuset partition now instead of the kernel line
    #[arg(long, requires = "isolate")]
    pub cpuset: bool,
    /// Word for the kernel line
    #[arg(long = "boot-option", value_name = "WORD")]
    pub boot_options: Vec<String>,
    /// CPUs that interrupts may use
    #[arg(long, value_name = "CPUS")]
    pub irq_affinity: Option<String>,
    /// Locked memory for the group kvm
    #[arg(long, value_name = "SIZE")]
    pub memlock: Option<String>,
    /// IOMMU options on the kernel line
    #[arg(long)]
    pub iommu: bool,
}

#[derive(Debug, ClapArgs)]
pub struct Apply {
    #[command(flatten)]
    pub changes: Changes,
    #[command(flatten)]
    pub consent: Consent,
}

/// Whether to go ahead.
#[derive(Debug, Clone, Copy, ClapArgs)]
pub struct Consent {
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    /// Only show the plan
    #[arg(long, conflicts_with = "yes")]
    pub dry_run: bool,
}

#[derive(Debug, ClapArgs)]
pub struct Undo {
    /// Number of the change (the newest unless given)
    pub id: Option<String>,
    /// Undo although somebody else changed a file since
    #[arg(long)]
    pub force: bool,
}

/// Networks.
#[derive(Debug, Subcommand)]
pub enum Net {
    /// A bridge, with a physical port when guests join the outside network
    Bridge(NetBridge),
    /// Guests behind this host's address
    Nat(NetInside),
    /// Guests that reach each other and this host only
    Isolated(NetInside),
    /// Guests with their own addresses behind this host as router
    Routed(NetInside),
    /// A tap interface for a user
    Tap {
        /// Its name
        name: String,
        /// Bridge to join
        #[arg(long)]
        bridge: Option<String>,
        /// User who may open it
        #[arg(long)]
        owner: Option<String>,
        #[command(flatten)]
        consent: Consent,
    },
    /// Forward a port: '8080 -> GUEST:80'
    Forward {
        /// Port, arrow, guest and port
        #[arg(required = true, num_args = 1..=3)]
        words: Vec<String>,
        /// Have the network come back after a restart; its forwards come with it
        #[arg(long)]
        persist: bool,
        #[command(flatten)]
        consent: Consent,
    },
    /// Make networks with --persist again after a restart, as rhostprep-net.service does at boot
    ///
    /// What is missing of a network is made as it is recorded: bridge, addresses, packet filters with port forwards,
    /// forwarding, DHCP. What is there stays, so this may be run at any time, as after somebody flushed all packet
    /// filters. It is no new change: undoing or removing the network takes it away. Exit code: 0 all networks are
    /// there, 1 an earlier change was interrupted, 2 a network is not there.
    Restore {
        /// Bridges (all networks with --persist unless given)
        names: Vec<String>,
        /// Give the network manager so long to make the bridges
        #[arg(long, value_name = "SECONDS", default_value_t = 0)]
        wait: u64,
    },
    /// Show interfaces and networks
    Show,
    /// Remove a network and everything made for it
    Remove {
        /// Its bridge
        name: String,
    },
    /// Keep a change that would roll back by itself
    Confirm {
        /// Number of the change (the newest unless given)
        id: Option<String>,
    },
    /// Waits and rolls back what is not confirmed (started by `net bridge`)
    #[command(hide = true)]
    Watch {
        #[arg(long)]
        seconds: u64,
        #[arg(long)]
        above: u32,
    },
}

/// On or off.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// On
    On,
    /// Off
    #[default]
    Off,
}

#[derive(Debug, ClapArgs)]
pub struct NetBridge {
    /// Its name
    pub name: String,
    /// Interface to make a port
    #[arg(long)]
    pub port: Option<String>,
    /// Spanning tree
    #[arg(long, value_enum, default_value_t)]
    pub stp: Switch,
    /// dhcp, or an address like 192.168.1.5/24 or 2001:db8::5/64 (the port's own unless given)
    #[arg(long)]
    pub address: Option<String>,
    /// Also write the files of whoever manages the network here
    #[arg(long)]
    pub persist: bool,
    /// Roll back unless `rhostprep net confirm` comes within so many seconds (0: never)
    #[arg(long, value_name = "SECONDS")]
    pub confirm_within: Option<u64>,
    #[command(flatten)]
    pub consent: Consent,
}

#[derive(Debug, ClapArgs)]
pub struct NetInside {
    /// Name of the bridge
    pub name: String,
    /// Addresses
    #[arg(long, default_value = "192.168.122.0/24")]
    pub subnet: String,
    /// IPv6 addresses too: a /64 of what was delegated to this host (not with nat)
    #[arg(long, value_name = "NETWORK")]
    pub subnet6: Option<String>,
    /// Give addresses out (dnsmasq)
    #[arg(long)]
    pub dhcp: bool,
    /// Have it come back after a restart: bridge, packet filters, port forwards, forwarding, DHCP
    #[arg(long)]
    pub persist: bool,
    #[command(flatten)]
    pub consent: Consent,
}

#[derive(Debug, ClapArgs)]
pub struct Scripts {
    /// The variant that makes a NAT network
    #[arg(long)]
    pub nat: bool,
    /// Bridge (br0, or virbr0 with --nat)
    #[arg(long)]
    pub bridge: Option<String>,
    /// Addresses of the NAT network
    #[arg(long, default_value = "192.168.122.0/24")]
    pub subnet: String,
    /// Write them; without it they are shown
    #[arg(long)]
    pub install: bool,
    #[command(flatten)]
    pub consent: Consent,
}

#[derive(Debug, ClapArgs)]
pub struct Ifup {
    /// Interface, as the launcher passes it
    pub interface: String,
    /// Bridge
    #[arg(long, default_value = "br0")]
    pub bridge: String,
}
