//! All commands, of both monitors.

use super::command::{Arg, Args, Command, Context, Failure, Kind, Names, Need, Run};
use super::handlers::{devices, info, life, memory, programs};
use super::hmp::dump::{self, Space};
use super::hmp::help;
use super::steered::Steered;

const fn must(name: &'static str, kind: Kind) -> Arg {
    Arg { name, kind, need: Need::Required }
}

const fn may(name: &'static str, kind: Kind) -> Arg {
    Arg { name, kind, need: Need::Optional }
}

const fn both(
    hmp: &'static [&'static str],
    qmp: &'static str,
    args: &'static [Arg],
    params: &'static str,
    help: &'static str,
    run: Run,
) -> Command {
    Command { hmp, qmp: Some(qmp), args, params, help, run }
}

const fn people(
    hmp: &'static [&'static str],
    args: &'static [Arg],
    params: &'static str,
    help: &'static str,
    run: fn(&mut dyn Steered, &Args, &mut Context) -> Result<String, Failure>,
) -> Command {
    Command { hmp, qmp: None, args, params, help, run: Run::Human(run) }
}

const fn programs(
    qmp: &'static str,
    args: &'static [Arg],
    help: &'static str,
    run: fn(&mut dyn Steered, &Args) -> super::command::Answer,
) -> Command {
    Command { hmp: &[], qmp: Some(qmp), args, params: "", help, run: Run::Machine(run) }
}

const FORMAT_AND_ADDRESS: &[Arg] = &[may("format", Kind::Format), must("addr", Kind::Int)];
const SAVE: &[Arg] = &[
    must("val", Kind::Int),
    must("size", Kind::Int),
    must("filename", Kind::Text(Names::Anything)),
    may("cpu-index", Kind::Any),
];

/// All commands.
pub static TABLE: &[Command] = &[
    both(&["stop", "s"], "stop", &[], "", "stop emulation", Run::Both(life::stop, life::silent)),
    both(&["cont", "c"], "cont", &[], "", "resume emulation", Run::Both(life::cont, life::silent)),
    both(
        &["system_reset"],
        "system_reset",
        &[],
        "",
        "reset the system",
        Run::Both(life::reset, life::silent),
    ),
    both(
        &["system_powerdown"],
        "system_powerdown",
        &[],
        "",
        "send system power down event",
        Run::Both(life::power_down, life::silent),
    ),
    both(&["quit", "q"], "quit", &[], "", "quit the emulator", Run::Both(life::quit, life::silent)),
    both(&["nmi"], "inject-nmi", &[], "", "inject an NMI", Run::Both(life::nmi, life::silent)),
    both(
        &["balloon"],
        "balloon",
        &[must("value", Kind::Size)],
        "target",
        "request VM to change its memory allocation (in MB)",
        Run::Both(devices::balloon, life::silent),
    ),
    both(
        &["set_link"],
        "set_link",
        &[must("name", Kind::Text(Names::Net)), must("up", Kind::Bool)],
        "name on|off",
        "change the link status of a network adapter",
        Run::Both(devices::set_link, life::silent),
    ),
    people(
        &["commit"],
        &[must("device", Kind::Text(Names::Block))],
        "device|all",
        "commit changes to the disk images (if -snapshot is used) or backing files",
        devices::commit,
    ),
    people(
        &["x"],
        FORMAT_AND_ADDRESS,
        "/fmt addr",
        "virtual memory dump starting at 'addr'",
        |m, a, c| dump::memory(m, a, c, Space::Virtual),
    ),
    people(
        &["xp"],
        FORMAT_AND_ADDRESS,
        "/fmt addr",
        "physical memory dump starting at 'addr'",
        |m, a, c| dump::memory(m, a, c, Space::Physical),
    ),
    people(
        &["print", "p"],
        &[may("format", Kind::Format), must("val", Kind::Int)],
        "/fmt expr",
        "print expression value (use $reg for CPU register access)",
        |_, a, c| Ok(dump::print(a, c)),
    ),
    people(
        &["sum"],
        &[must("start", Kind::Int), must("size", Kind::Int)],
        "addr size",
        "compute the checksum of a memory region",
        memory::sum,
    ),
    both(
        &["memsave"],
        "memsave",
        SAVE,
        "addr size file",
        "save to disk virtual memory dump starting at 'addr' of size 'size'",
        Run::Both(memory::save_virtual, life::silent),
    ),
    both(
        &["pmemsave"],
        "pmemsave",
        &[
            must("val", Kind::Int),
            must("size", Kind::Int),
            must("filename", Kind::Text(Names::Anything)),
        ],
        "addr size file",
        "save to disk physical memory dump starting at 'addr' of size 'size'",
        Run::Both(memory::save_physical, life::silent),
    ),
    people(&["cpu"], &[must("index", Kind::Int)], "index", "set the default CPU", info::choose_cpu),
    both(
        &["ringbuf_read"],
        "ringbuf-read",
        &[
            must("device", Kind::Text(Names::Chardev)),
            must("size", Kind::Int),
            may("format", Kind::Any),
        ],
        "device size",
        "Read from a ring buffer character device",
        Run::Both(devices::ring_read, devices::show_ring),
    ),
    people(&["help", "?"], &[may("name", Kind::Rest)], "[cmd]", "show the help", |_, a, _| {
        Ok(help::help(a.text("name")))
    }),
    people(
        &["info"],
        &[],
        "[subcommand]",
        "show various information about the system state",
        |_, _, _| Ok(help::info()),
    ),
    both(
        &["info status"],
        "query-status",
        &[],
        "",
        "show the current VM status (running|paused)",
        Run::Both(info::status, info::show_status),
    ),
    both(
        &["info kvm"],
        "query-kvm",
        &[],
        "",
        "show KVM information",
        Run::Both(info::kvm, info::show_kvm),
    ),
    both(
        &["info version"],
        "query-version",
        &[],
        "",
        "show the version of QEMU whose commands are followed, and of this program",
        Run::Both(info::version, info::show_version),
    ),
    both(
        &["info name"],
        "query-name",
        &[],
        "",
        "show the current VM name",
        Run::Both(info::name, info::show_name),
    ),
    both(
        &["info uuid"],
        "query-uuid",
        &[],
        "",
        "show the current VM UUID",
        Run::Both(info::uuid, info::show_uuid),
    ),
    people(&["info cpus"], &[], "", "show infos for each CPU", info::cpus),
    people(
        &["info registers"],
        &[may("all", Kind::Flag('a')), may("vcpu", Kind::Int)],
        "[-a|vcpu]",
        "show the cpu registers (-a: show register info for all cpus; vcpu: specific vCPU to query; show the current CPU's registers if no argument is specified)",
        info::registers,
    ),
    people(&["info mem"], &[], "", "show the active virtual memory mappings", memory::mappings),
    people(
        &["info mtree"],
        &[may("flat", Kind::Flag('f'))],
        "[-f]",
        "show memory tree (-f: dump flat view for address spaces)",
        memory::tree,
    ),
    people(&["info numa"], &[], "", "show NUMA information", memory::numa),
    both(
        &["info memory_size_summary"],
        "query-memory-size-summary",
        &[],
        "",
        "show the amount of initially allocated and present hotpluggable (if enabled) memory in bytes.",
        Run::Both(memory::size_summary, memory::show_size_summary),
    ),
    both(
        &["info memdev"],
        "query-memdev",
        &[],
        "",
        "show memory backends",
        Run::Both(memory::backends, memory::show_backends),
    ),
    both(
        &["info network"],
        "x-query-network",
        &[],
        "",
        "show the network state",
        Run::Both(devices::networks, devices::show_networks),
    ),
    people(
        &["info block"],
        &[
            may("nodes", Kind::Flag('n')),
            may("verbose", Kind::Flag('v')),
            may("device", Kind::Text(Names::Block)),
        ],
        "[-n] [-v] [device]",
        "show info of one block device or all block devices (-n: show named nodes; -v: show details)",
        devices::info_block,
    ),
    programs("query-block", &[], "disks", devices::blocks),
    both(
        &["info blockstats"],
        "query-blockstats",
        &[may("query-nodes", Kind::Any)],
        "",
        "show block device statistics",
        Run::Both(devices::block_stats, devices::show_block_stats),
    ),
    both(
        &["info balloon"],
        "query-balloon",
        &[],
        "",
        "show balloon information",
        Run::Both(devices::query_balloon, devices::show_balloon),
    ),
    both(
        &["info pci"],
        "query-pci",
        &[],
        "",
        "show PCI info",
        Run::Both(devices::pci, devices::show_pci),
    ),
    people(&["info qtree"], &[], "", "show device tree", devices::tree),
    both(
        &["info chardev"],
        "query-chardev",
        &[],
        "",
        "show the character devices",
        Run::Both(devices::chardevs, devices::show_chardevs),
    ),
    programs("query-cpus-fast", &[], "vCPUs and their threads", info::cpus_fast),
    programs("query-commands", &[], "names of all commands", programs::commands),
    programs("query-events", &[], "names of all events", programs::events),
    programs("query-machines", &[], "machine types", programs::machines),
    programs("query-cpu-definitions", &[], "CPU models", programs::cpu_definitions),
    programs("query-target", &[], "the guest's architecture", programs::target),
    programs(
        "query-chardev-backends",
        &[],
        "kinds of character devices",
        programs::chardev_backends,
    ),
    programs("query-iothreads", &[], "I/O threads; none have names", programs::nothing),
    programs("query-jobs", &[], "jobs; there are none", programs::nothing),
    programs("query-block-jobs", &[], "jobs; there are none", programs::nothing),
    programs("query-mice", &[], "mice; there are none", programs::nothing),
    programs(
        "human-monitor-command",
        &[must("command-line", Kind::Text(Names::Anything)), may("cpu-index", Kind::Int)],
        "a line of the human monitor",
        programs::human,
    ),
];

/// A command by its name for people.
pub fn human(name: &str) -> Option<&'static Command> {
    TABLE.iter().find(|c| c.hmp.contains(&name))
}

/// A command by its name for programs.
pub fn machine(name: &str) -> Option<&'static Command> {
    TABLE.iter().find(|c| c.qmp == Some(name))
}
