//! Every option that is known: its argument, what it does, and its line of help.

use super::builder::Builder;
use super::{blockdev, chardev, cpu, device, disk, memory, misc, net, process};
use crate::{Error, Result};

/// Whether an option has an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arg {
    /// None.
    None,
    /// One, called so in the help.
    Needed(&'static str),
}

/// What becomes of an option.
#[derive(Clone, Copy)]
pub enum Action {
    /// It is carried out.
    Do(fn(&mut Builder, &str) -> Result<()>),
    /// It says what is so anyway.
    Nothing,
    /// It changes nothing here, and people are told why.
    Warn(&'static str),
    /// It does not work yet; what to do instead.
    Refuse(&'static str),
}

/// An option.
#[derive(Clone, Copy)]
pub struct Opt {
    /// Its name without dashes.
    pub name: &'static str,
    /// Its argument.
    pub arg: Arg,
    /// What it does.
    pub action: Action,
    /// One line.
    pub help: &'static str,
}

const fn run(
    name: &'static str,
    arg: &'static str,
    act: fn(&mut Builder, &str) -> Result<()>,
    help: &'static str,
) -> Opt {
    Opt { name, arg: Arg::Needed(arg), action: Action::Do(act), help }
}

const fn flag(
    name: &'static str,
    act: fn(&mut Builder, &str) -> Result<()>,
    help: &'static str,
) -> Opt {
    Opt { name, arg: Arg::None, action: Action::Do(act), help }
}

const fn so_anyway(name: &'static str, help: &'static str) -> Opt {
    Opt { name, arg: Arg::None, action: Action::Nothing, help }
}

const fn warned(name: &'static str, why: &'static str) -> Opt {
    Opt { name, arg: Arg::None, action: Action::Warn(why), help: "" }
}

const fn not_yet(name: &'static str, why: &'static str) -> Opt {
    Opt { name, arg: Arg::Needed("..."), action: Action::Refuse(why), help: "" }
}

const fn not_yet_flag(name: &'static str, why: &'static str) -> Opt {
    Opt { name, arg: Arg::None, action: Action::Refuse(why), help: "" }
}

const USE_VIRTIO: &str = "Use -drive file=...,if=virtio";
const NO_DISPLAY: &str = "There is no display yet; use -nographic";
const NO_SOUND: &str = "Leave it out; there is no sound yet";
const NO_USB: &str = "Leave it out; there is no USB yet";

/// All options, in the order of the help.
pub static TABLE: &[Opt] = &[
    flag("help", misc::help, "display this help and exit"),
    flag("h", misc::help, ""),
    flag("version", misc::version, "display version information and exit"),
    flag("man", misc::man, "print the man page (rkvm -man | man -l -)"),
    run("completions", "bash|zsh|fish", misc::completions, "print a completion script"),
    run(
        "machine",
        "[type=]name[,prop=value...]",
        misc::machine,
        "select the machine (help for a list)",
    ),
    run("M", "name", misc::machine, "the same"),
    run("accel", "kvm", misc::accel, "select the accelerator"),
    run("cpu", "model[,+flag,-flag]", cpu::cpu, "select CPU ('-cpu help' for a list)"),
    run(
        "smp",
        "n[,maxcpus=][,sockets=][,cores=][,threads=]",
        cpu::smp,
        "set the number of CPUs and their topology",
    ),
    run("vcpu-pin", "vcpu=n,cpus=a-b+c", cpu::pin, "run a vCPU on these host CPUs only"),
    run("overcommit", "mem-lock=off", misc::overcommit, "host resources"),
    run("numa", "node,...|dist,...", memory::numa, "NUMA nodes and distances"),
    run("m", "size", memory::size, "guest memory (default 128M)"),
    run("mem-path", "path", memory::path, "provide backing storage for guest memory"),
    flag("mem-prealloc", memory::prealloc, "preallocate guest memory"),
    run("object", "type,id=...", memory::object, "memory-backend-ram, -file, -memfd; secret"),
    run("name", "guest[,process=name]", process::name, "name of the guest, and of the process"),
    run("uuid", "uuid", misc::uuid, "specify machine UUID"),
    run("drive", "file=name,if=virtio[,...]", disk::drive, "attach a disk image"),
    run(
        "blockdev",
        "driver=...,node-name=...[,...]|{json}",
        blockdev::blockdev,
        "a node of the block graph, for a -device",
    ),
    flag("snapshot", disk::snapshot, "write to temporary overlays instead of the images"),
    run("device", "driver[,prop=value...]", device::device, "add a device"),
    run("balloon", "virtio|none", misc::balloon, "add a balloon"),
    run("net", "nic|tap|bridge|none[,...]", net::net, "network cards and back ends by vlan"),
    run("netdev", "tap|bridge,id=name[,...]", net::netdev, "network back ends by name"),
    run("nic", "tap|bridge|none[,...]", net::nic, "a card and its back end at once"),
    run("chardev", "backend,id=name[,...]", chardev::chardev, "character back ends by name"),
    run(
        "serial",
        "stdio|mon:stdio|pty|unix:path|tcp:host:port|...",
        chardev::serial,
        "connect a serial port",
    ),
    run("debugcon", "back end", chardev::debugcon, "debug port 0xe9"),
    run(
        "monitor",
        "stdio|unix:path|telnet:host:port|none|...",
        chardev::monitor,
        "the human monitor",
    ),
    run("qmp", "unix:path|tcp:host:port|...", chardev::qmp, "monitor for programs: JSON"),
    run("qmp-pretty", "...", chardev::qmp_pretty, "the same, with line breaks"),
    run(
        "mon",
        "chardev=id[,mode=readline|control][,pretty=on]",
        chardev::mon,
        "a monitor on a -chardev",
    ),
    run("echr", "chr", chardev::echr, "escape character instead of Ctrl-a (0x01)"),
    flag("nographic", chardev::nographic, "serial port on stdio, no display"),
    run("display", "none", misc::display, "the display"),
    run("vga", "none", misc::vga, "the graphics card"),
    run("vnc", "none", misc::vnc, "VNC"),
    flag("nodefaults", misc::nodefaults, "no default devices"),
    run("kernel", "file", misc::kernel, "kernel: bzImage or ELF with a PVH note"),
    run("initrd", "file[,file...]", misc::initrd, "initial ramdisks"),
    run("append", "text", misc::append, "kernel command line"),
    run("smbios", "type=0|1|3|11,...", misc::smbios, "SMBIOS fields"),
    run("rtc", "base=utc|localtime|date", misc::rtc, "the clock"),
    flag("localtime", misc::localtime, ""),
    flag("no-reboot", misc::no_reboot, "exit instead of rebooting"),
    flag("no-shutdown", misc::no_shutdown, "stop before shutdown"),
    flag("S", process::start_paused, "do not start the guest; 'cont' in a monitor does"),
    run("pidfile", "file", process::pidfile, "write the process number there, locked"),
    flag(
        "daemonize",
        process::daemonize,
        "return when the guest is ready; it runs on in the background",
    ),
    run("runas", "user|uid:gid", process::run_as, "become that user once everything is open"),
    run("run-with", "user=user|uid:gid", process::run_with, "the same"),
    run("msg", "timestamp=on|guest-name=on", process::msg, "what stands before messages"),
    run("D", "file", process::log_file, "messages go to this file"),
    run("action", "reboot=|shutdown=|panic=...", process::action, "what guest events lead to"),
    run("boot", "...", misc::boot, ""),
    run("sandbox", "on|off[,commit=deny]", misc::sandbox, "confine the process (default on)"),
    so_anyway("enable-kvm", "KVM is always used"),
    so_anyway("no-user-config", "there is no configuration file"),
    so_anyway("no-hpet", "there is no HPET"),
    so_anyway("no-fd-bootchk", "there is no floppy"),
    warned("no-kvm", "KVM is always used"),
    warned("no-kvm-irqchip", "the kernel's interrupt controllers are always used"),
    warned("no-kvm-pit", "the kernel's interval timer is always used"),
    warned("no-kvm-pit-reinjection", "lost ticks are handled by the kernel"),
    warned("tdf", "lost ticks are handled by the kernel"),
    warned("rtc-td-hack", "lost ticks are handled by the kernel"),
    warned("no-frame", "there is no window"),
    warned("alt-grab", "there is no window"),
    warned("ctrl-grab", "there is no window"),
    warned("no-quit", "there is no window"),
    warned("full-screen", "there is no window"),
    not_yet_flag(
        "no-acpi",
        "Leave it out; on the kernel's command line acpi=off has the same effect",
    ),
    not_yet("hda", USE_VIRTIO),
    not_yet("hdb", USE_VIRTIO),
    not_yet("hdc", USE_VIRTIO),
    not_yet("hdd", USE_VIRTIO),
    not_yet("cdrom", "Use -drive file=...,if=virtio,readonly=on"),
    not_yet("fda", USE_VIRTIO),
    not_yet("fdb", USE_VIRTIO),
    not_yet("mtdblock", USE_VIRTIO),
    not_yet("sd", USE_VIRTIO),
    not_yet("pflash", "Use -kernel; there is no firmware yet"),
    not_yet("bios", "Use -kernel; there is no firmware yet"),
    not_yet("hdachs", "Leave it out; disks have no geometry any more"),
    not_yet("redir", "Use -netdev tap; user networking is not there yet"),
    not_yet("tftp", "Use -netdev tap; user networking is not there yet"),
    not_yet("smb", "Use -netdev tap; user networking is not there yet"),
    not_yet("bootp", "Use -netdev tap; user networking is not there yet"),
    not_yet("chroot", "Leave it out"),
    not_yet("startdate", "Use -rtc base=DATE"),
    not_yet("incoming", "Leave it out; there is no migration yet"),
    not_yet("loadvm", "Leave it out; there are no snapshots yet"),
    not_yet_flag("curses", NO_DISPLAY),
    not_yet_flag("sdl", NO_DISPLAY),
    not_yet("spice", NO_DISPLAY),
    not_yet("k", "Leave it out; there is no keyboard yet"),
    not_yet("soundhw", NO_SOUND),
    not_yet("audiodev", NO_SOUND),
    not_yet("audio", NO_SOUND),
    not_yet_flag("usb", NO_USB),
    not_yet("usbdevice", NO_USB),
    not_yet("watchdog", "Leave it out; there is no watchdog yet"),
    not_yet("watchdog-action", "Leave it out; there is no watchdog yet"),
    run("parallel", "none", chardev::parallel, ""),
    not_yet("virtioconsole", "Use -device virtconsole,chardev=..."),
    not_yet("fw_cfg", "Leave it out; there is no firmware yet"),
    not_yet("acpitable", "Leave it out"),
    not_yet("global", "Set the property at its -device"),
    not_yet("set", "Set the property at its -device"),
    not_yet("readconfig", "Write the options on the command line"),
    not_yet("writeconfig", "Leave it out"),
    not_yet("add-fd", "Use fd= of the option that needs it"),
    not_yet("trace", "Leave it out"),
    not_yet("d", "Leave it out"),
    not_yet("gdb", "Leave it out; there is no debugger stub yet"),
    not_yet_flag("s", "Leave it out; there is no debugger stub yet"),
    not_yet("icount", "Leave it out; KVM cannot count instructions"),
    not_yet("pcidevice", "Leave it out; there is no device assignment yet"),
    not_yet("virtfs", "Leave it out; there is no folder sharing yet"),
    not_yet("fsdev", "Leave it out; there is no folder sharing yet"),
    not_yet("iscsi", "Leave it out"),
    not_yet("option-rom", "Leave it out; there is no firmware yet"),
    not_yet("dtb", "Leave it out"),
    not_yet("tpmdev", "Leave it out; there is no TPM yet"),
    not_yet("tb-size", "Leave it out; KVM needs no translation cache"),
];

/// Finds an option by its name, or by the beginning of only one name.
///
/// # Errors
/// Lists those that could be meant.
pub fn find(name: &str) -> Result<&'static Opt> {
    if let Some(o) = TABLE.iter().find(|o| o.name == name) {
        return Ok(o);
    }
    let all: Vec<&'static Opt> = if name.len() < 3 {
        Vec::new()
    } else {
        TABLE.iter().filter(|o| o.name.starts_with(name)).collect()
    };
    match all.as_slice() {
        [one] => Ok(one),
        [] => Err(Error::invalid(format!("-{name}: invalid option")).hint("See rkvm -help")),
        many => {
            let names: Vec<String> = many.iter().map(|o| format!("-{}", o.name)).collect();
            Err(Error::invalid(format!("-{name}: could be {}", names.join(", "))))
        }
    }
}
