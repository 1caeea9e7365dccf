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
    Man,
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
