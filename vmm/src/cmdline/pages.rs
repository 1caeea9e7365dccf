//! What people read: `-help`, the man page, completions. All from the option table.
//!
//! [`SECTIONS`] says where an option stands; a test sees to it that each option with a line of help stands
//! in exactly one of them.

use std::fmt::Write as _;

use super::table::{Action, Arg, Opt, TABLE};
use crate::{Error, Result};

/// A chapter of the help.
pub struct Section {
    /// Its title.
    pub title: &'static str,
    /// What the man page says first.
    pub intro: &'static str,
    /// Its options, in order.
    pub options: &'static [&'static str],
}

/// All chapters.
pub static SECTIONS: &[Section] = &[
    Section {
        title: "What to boot",
        intro: "The kernel is started directly, without firmware. A bzImage or an ELF file with a PVH note \
                will do.",
        options: &["kernel", "initrd", "append"],
    },
    Section {
        title: "Processors and memory",
        intro: "Sizes are in MiB unless they end in K, M, G or T.",
        options: &[
            "machine",
            "M",
            "accel",
            "cpu",
            "smp",
            "m",
            "mem-path",
            "mem-prealloc",
            "object",
            "numa",
            "vcpu-pin",
            "overcommit",
        ],
    },
    Section {
        title: "Disks",
        intro: "A comma in a file's name is doubled. Formats are those of rimg: raw, qcow2, vmdk and others.",
        options: &["drive", "blockdev", "snapshot"],
    },
    Section {
        title: "Network",
        intro: "-net pairs cards and back ends by vlan number, -netdev with -device by name, -nic at once.",
        options: &["nic", "net", "netdev"],
    },
    Section {
        title: "Devices",
        intro: "",
        options: &["device", "balloon", "rtc", "smbios", "display", "vga", "vnc", "nodefaults"],
    },
    Section {
        title: "Consoles and monitors",
        intro: "Back ends are: stdio, mon:stdio (shared with the monitor: Ctrl-a c goes there and back, Ctrl-a \
                h lists the keys), pty, file:NAME, pipe:NAME, unix:PATH, tcp:HOST:PORT, telnet:HOST:PORT, \
                udp:HOST:PORT, ringbuf, null, none, and chardev:ID. Sockets take server=on, wait=off, \
                reconnect=SECONDS and nodelay=on.",
        options: &[
            "nographic",
            "serial",
            "monitor",
            "qmp",
            "qmp-pretty",
            "mon",
            "chardev",
            "debugcon",
            "echr",
        ],
    },
    Section {
        title: "Life of the guest",
        intro: "",
        options: &["S", "no-reboot", "no-shutdown", "action"],
    },
    Section {
        title: "The process",
        intro: "",
        options: &[
            "name",
            "uuid",
            "daemonize",
            "pidfile",
            "runas",
            "run-with",
            "sandbox",
            "msg",
            "D",
        ],
    },
    Section { title: "Help", intro: "", options: &["help", "version", "man", "completions"] },
    Section {
        title: "Said anyway",
        intro: "Taken for the sake of old command lines.",
        options: &["enable-kvm", "no-user-config", "no-hpet", "no-fd-bootchk"],
    },
];

/// Command lines that teach: what for, and the line.
pub const EXAMPLES: &[(&str, &str)] = &[
    (
        "A kernel with its console on this terminal (Ctrl-a x ends it, Ctrl-a c is the monitor)",
        "rkvm -m 512 -nographic -kernel vmlinuz -initrd initrd.img -append console=ttyS0",
    ),
    (
        "A disk, two processors, a network card on a tap interface",
        "rkvm -m 2G -smp 2 -nographic -kernel vmlinuz -append 'root=/dev/vda1 console=ttyS0' \
         -drive file=disk.qcow2,if=virtio -nic tap,model=virtio,ifname=tap0,script=no",
    ),
    (
        "In the background, steered over sockets",
        "rkvm -m 2G -kernel vmlinuz -drive file=disk.qcow2,if=virtio -display none -daemonize -pidfile vm.pid \
         -serial unix:console.sock,server=on,wait=off -monitor unix:monitor.sock,server=on,wait=off \
         -qmp unix:qmp.sock,server=on,wait=off",
    ),
    ("Talk to its monitor", "socat -,raw,echo=0,escape=0x1d unix:monitor.sock"),
];

fn option(name: &str) -> Option<&'static Opt> {
    TABLE.iter().find(|o| o.name == name)
}

fn refused() -> impl Iterator<Item = &'static Opt> {
    TABLE.iter().filter(|o| matches!(o.action, Action::Refuse(_)))
}

fn left_side(o: &Opt) -> String {
    match o.arg {
        Arg::None => format!("-{}", o.name),
        Arg::Needed(arg) => format!("-{} {arg}", o.name),
    }
}

/// Words in lines of at most 78 columns, each behind `indent`.
fn wrapped(text: &str, indent: &str) -> String {
    let (mut all, mut line) = (String::new(), String::new());
    for word in text.split_whitespace() {
        if !line.is_empty() && indent.len() + line.len() + 1 + word.len() > 78 {
            let _ = writeln!(all, "{indent}{line}");
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    if !line.is_empty() {
        let _ = writeln!(all, "{indent}{line}");
    }
    all
}

/// A command line in pieces that can be pasted as they are: broken before options, with backslashes.
fn pasted(line: &str, indent: &str) -> String {
    let (mut all, mut row) = (String::new(), String::new());
    for (i, piece) in line.split(" -").enumerate() {
        let piece = if i == 0 { piece.to_owned() } else { format!("-{piece}") };
        if !row.is_empty() && indent.len() + row.len() + 1 + piece.len() + 2 > 78 {
            let _ = writeln!(all, "{indent}{row} \\");
            row = "  ".into();
        }
        if !row.trim().is_empty() {
            row.push(' ');
        }
        row.push_str(&piece);
    }
    let _ = writeln!(all, "{indent}{row}");
    all
}

/// The text of `-help`: examples, what works, then what does not yet.
pub fn help() -> String {
    let mut text = format!(
        "rkvm {} runs virtual machines on KVM; it takes qemu-kvm command lines.\n\nusage: rkvm [options]\n\n",
        env!("CARGO_PKG_VERSION")
    );
    for (what, line) in EXAMPLES {
        let _ = write!(text, "{what}:\n{}", pasted(line, "    "));
    }
    for section in SECTIONS {
        let _ = writeln!(text, "\n{}", section.title);
        text.push_str(&wrapped(section.intro, "  "));
        for o in section.options.iter().filter_map(|n| option(n)) {
            let left = left_side(o);
            if left.len() > 24 {
                let _ = writeln!(text, "  {left}\n{:<28}{}", "", o.help);
            } else {
                let _ = writeln!(text, "  {left:<26}{}", o.help);
            }
        }
    }
    text.push_str("\nKnown, but not supported yet (each is refused with what to do instead)\n");
    let names: Vec<String> = refused().map(|o| format!("-{}", o.name)).collect();
    text.push_str(&wrapped(&names.join(" "), "  "));
    text
}

/// A text as roff takes it.
fn roff(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq");
    if text.starts_with('.') { format!("\\&{text}") } else { text }
}

/// The man page, in roff.
pub fn man() -> String {
    let version = env!("CARGO_PKG_VERSION");
    let mut t = format!(
        ".TH RKVM 1 \"\" \"rkvm {version}\" \"rkvm manual\"\n.SH NAME\nrkvm \\- run virtual machines on KVM\n\
         .SH SYNOPSIS\n.B rkvm\n[\\fIoptions\\fR]\n.SH DESCRIPTION\n"
    );
    t.push_str(&roff(
        "Runs a virtual machine on KVM. Options are those of qemu-kvm: a single dash (two will do), the \
         beginning of a name where only one option begins so, lists of key=value with commas between them. \
         An option that is known and does not work yet is refused with what to do instead; none is silently \
         ignored.",
    ));
    t.push_str("\n.SH EXAMPLES\n");
    for (what, line) in EXAMPLES {
        let _ = write!(t, ".PP\n{}:\n.PP\n.RS 4\n.nf\n", roff(what));
        for row in pasted(line, "").lines() {
            let _ = writeln!(t, "{}", roff(row));
        }
        t.push_str(".fi\n.RE\n");
    }
    for section in SECTIONS {
        let _ = writeln!(t, ".SH {}", roff(&section.title.to_uppercase()));
        if !section.intro.is_empty() {
            let _ = writeln!(t, "{}", roff(section.intro));
        }
        for o in section.options.iter().filter_map(|n| option(n)) {
            let argument = match o.arg {
                Arg::None => String::new(),
                Arg::Needed(a) => format!(" \\fI{}\\fR", roff(a)),
            };
            let _ = write!(t, ".TP\n\\fB\\-{}\\fR{argument}\n{}\n", roff(o.name), roff(o.help));
        }
    }
    t.push_str(".SH NOT SUPPORTED YET\n");
    for o in refused() {
        if let Action::Refuse(why) = o.action {
            let _ = write!(t, ".TP\n\\fB\\-{}\\fR\n{}\n", roff(o.name), roff(why));
        }
    }
    t.push_str(".SH MONITOR COMMANDS\n");
    for c in crate::control::table::TABLE.iter().filter(|c| !c.hmp.is_empty()) {
        let names = c.hmp.join("|");
        let _ = write!(t, ".TP\n\\fB{}\\fR {}\n{}\n", roff(&names), roff(c.params), roff(c.help));
    }
    t.push_str(".SH QMP COMMANDS\n");
    let mut names: Vec<&str> = crate::control::table::TABLE.iter().filter_map(|c| c.qmp).collect();
    names.push("qmp_capabilities");
    names.sort_unstable();
    let _ = writeln!(t, "{}", roff(&names.join(", ")));
    let events = crate::control::events::NAMES.join(", ");
    let _ = write!(t, ".PP\nEvents: {}\n", roff(&events));
    t.push_str(".SH EXIT STATUS\n");
    t.push_str(&roff(
        "0 when the guest powered off or was told to end, also by SIGTERM, SIGINT and SIGHUP, which leave \
         disks flushed; 1 for an error; what the guest chose, with -device isa-debug-exit.",
    ));
    t.push_str("\n.SH SEE ALSO\nrimg(1), rhostprep(1)\n");
    t
}

/// Options that work, with their help.
fn offered() -> impl Iterator<Item = &'static Opt> {
    TABLE.iter().filter(|o| !o.help.is_empty() && !matches!(o.action, Action::Refuse(_)))
}

/// Options whose argument is a file.
const FILES: &[&str] = &["kernel", "initrd", "pidfile", "D", "mem-path"];

/// Fixed words that an option's argument can be, for completion.
const WORDS: &[(&str, &str)] = &[
    ("serial", "stdio mon:stdio pty null none file: pipe: unix: tcp: telnet: udp: ringbuf"),
    ("monitor", "stdio none pty unix: tcp: telnet:"),
    ("qmp", "stdio unix: tcp:"),
    ("chardev", "stdio,id= pty,id= file,id= pipe,id= socket,id= udp,id= ringbuf,id= null,id="),
    ("display", "none"),
    ("vga", "none"),
    ("vnc", "none"),
    ("balloon", "virtio none"),
    ("sandbox", "on off"),
    ("rtc", "base=utc base=localtime"),
    ("completions", "bash zsh fish"),
    (
        "device",
        "virtio-blk-pci,drive= virtio-net-pci,netdev= virtio-balloon-pci virtio-rng-pci virtconsole,chardev= \
         vhost-vsock-pci,guest-cid= pvpanic isa-debug-exit isa-debugcon,chardev=",
    ),
    ("nic", "tap, bridge, none"),
    ("netdev", "tap,id= bridge,id="),
    ("net", "nic, tap, bridge, none"),
    ("drive", "file="),
];

fn words(name: &str) -> Option<String> {
    if name == "cpu" {
        let models = crate::cpu::models::MODELS.iter().map(|m| m.name).chain(["host"]);
        return Some(models.collect::<Vec<_>>().join(" "));
    }
    WORDS.iter().find(|(n, _)| *n == name).map(|(_, w)| (*w).to_owned())
}

/// A completion script.
///
/// # Errors
/// For shells that are not known.
pub fn completions(shell: &str) -> Result<String> {
    match shell {
        "bash" => Ok(bash()),
        "zsh" => Ok(zsh()),
        "fish" => Ok(fish()),
        other => Err(Error::invalid(format!("no completions for '{other}'"))
            .hint("Use bash, zsh or fish: rkvm -completions bash > /etc/bash_completion.d/rkvm")),
    }
}

fn bash() -> String {
    let names: Vec<String> = offered().map(|o| format!("-{}", o.name)).collect();
    let mut t = String::from(
        "# Completions of rkvm for bash.\n_rkvm() {\n  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}\n  case $prev in\n",
    );
    for o in offered().filter(|o| o.arg != Arg::None) {
        let reply = if FILES.contains(&o.name) {
            "COMPREPLY=($(compgen -f -- \"$cur\"))".to_owned()
        } else if let Some(w) = words(o.name) {
            format!("COMPREPLY=($(compgen -W '{w}' -- \"$cur\"))")
        } else {
            "COMPREPLY=()".to_owned()
        };
        let _ = writeln!(t, "    -{0}|--{0}) {reply}; return ;;", o.name);
    }
    let _ = write!(
        t,
        "  esac\n  COMPREPLY=($(compgen -W '{}' -- \"$cur\"))\n}}\ncomplete -o nospace -F _rkvm rkvm qemu-kvm\n",
        names.join(" ")
    );
    t
}

fn zsh() -> String {
    let mut t =
        String::from("#compdef rkvm qemu-kvm\n# Completions of rkvm for zsh.\n_arguments \\\n");
    let quoted = |s: &str| s.replace('\'', "'\\''").replace([':', '[', ']'], " ");
    for o in offered() {
        let argument = match o.arg {
            Arg::None => String::new(),
            Arg::Needed(_) if FILES.contains(&o.name) => ":file:_files".into(),
            Arg::Needed(_) => match words(o.name) {
                // Colons separate fields here.
                Some(w) => format!(":{}:({})", o.name, w.replace(':', "\\:")),
                None => format!(":{}: ", o.name),
            },
        };
        let _ = writeln!(t, "  '*-{}[{}]{argument}' \\", o.name, quoted(o.help));
    }
    t.push_str("  && return 0\n");
    t
}

fn fish() -> String {
    let mut t = String::from("# Completions of rkvm for fish.\n");
    for o in offered() {
        let help = o.help.replace('\'', "\\'");
        let argument = match o.arg {
            Arg::None => String::new(),
            Arg::Needed(_) if FILES.contains(&o.name) => " -r -F".into(),
            Arg::Needed(_) => words(o.name).map_or(" -x".into(), |w| format!(" -x -a '{w}'")),
        };
        let _ = writeln!(t, "complete -c rkvm -o {} -d '{help}'{argument}", o.name);
    }
    t
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_option_stands_in_one_section() {
        for o in TABLE.iter().filter(|o| !o.help.is_empty()) {
            let places = SECTIONS.iter().filter(|s| s.options.contains(&o.name)).count();
            assert_eq!(places, 1, "-{}", o.name);
        }
        for name in SECTIONS.iter().flat_map(|s| s.options) {
            assert!(option(name).is_some_and(|o| !o.help.is_empty()), "-{name}");
        }
        for name in FILES.iter().chain(WORDS.iter().map(|(n, _)| n)) {
            assert!(option(name).is_some_and(|o| o.arg != Arg::None), "-{name}");
        }
    }

    #[test]
    fn the_help_fits_a_terminal_and_its_examples_are_right() {
        for line in help().lines().filter(|l| !l.trim_start().starts_with('-')) {
            assert!(line.len() <= 100, "{line}");
        }
        for (_, line) in EXAMPLES.iter().filter(|(_, l)| l.starts_with("rkvm ")) {
            let plain = line.replace("'root=/dev/vda1 console=ttyS0'", "quiet");
            let args: Vec<&str> = plain.split_whitespace().skip(1).collect();
            if let Err(e) = super::super::parse(&args) {
                panic!("{line}: {}", e.report());
            }
        }
    }

    #[test]
    fn pages_are_well_formed() {
        let page = man();
        assert!(page.starts_with(".TH RKVM 1"));
        for line in page.lines().filter(|l| l.starts_with('.')) {
            let known = [".TH", ".SH", ".B", ".TP", ".PP", ".RS", ".RE", ".nf", ".fi"];
            assert!(known.contains(&line.split(' ').next().unwrap()), "{line}");
        }
        assert!(page.contains("\\fB\\-daemonize\\fR") && page.contains("\\fBinfo status\\fR"));
        for shell in ["bash", "zsh", "fish"] {
            assert!(completions(shell).unwrap().contains("daemonize"), "{shell}");
        }
        assert!(completions("tcsh").is_err());
    }
}
