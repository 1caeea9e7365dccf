//! The option table of `inspect`, which qemu-img does not have.

use super::commands::{ALLOW, FORMAT, HELP, IMAGE, IMAGE_OPTS, OBJECT, QUIET, SANDBOX};
use super::table::{Command, flag, val};

/// The command.
pub const INSPECT: Command = Command {
    name: "inspect",
    about: "Show what is installed on a disk, and whether it will boot under KVM",
    details: "Reads partition table (MBR, GPT, LVM), file systems (ext2/3/4, XFS, btrfs, FAT, NTFS, ISO 9660), boot \
        loader, kernels with their initial RAM disks, fstab and network configuration of Linux, registry and \
        drivers of Windows; then says whether the system will boot under KVM, on which bus, with which firmware \
        and network card, what is in the way and what to do about it. Nothing is mounted, run or changed, and no \
        privilege is needed.\n\n\
        --policy asks another question: may a service take this file from a stranger? Only the file itself is \
        looked at, no name inside of it is followed, and every rule of the policy gives its result.\n\n\
        --ls and --cat show single folders and files, as the installed system sees them.",
    positionals: &[IMAGE],
    opts: &[
        HELP,
        FORMAT,
        IMAGE_OPTS,
        OBJECT,
        val(None, "output", "human|json", "How to print the result").values(&["human", "json"]),
        flag(
            Some('U'),
            "force-share",
            "Read without locks, even while a virtual machine writes to the disk; what is read may be \
             inconsistent",
        ),
        QUIET,
        ALLOW,
        SANDBOX,
        val(
            None,
            "policy",
            "FILE|default",
            "Hold the file against this policy (TOML or JSON), and say whether it is acceptable",
        )
        .under("Policy"),
        flag(None, "print-policy", "Print the default policy with an explanation of every name, and exit")
            .under("Policy"),
        val(None, "ls", "PATH", "List a folder of the guest instead").under("Files"),
        val(None, "cat", "PATH", "Write a file of the guest to standard output instead").under("Files"),
        val(
            None,
            "volume",
            "NAME",
            "With --ls and --cat: look at this volume (a partition's number, GROUP/VOLUME) and not at the \
             installed system",
        )
        .under("Files"),
    ],
    examples: &[
        ("rimg inspect disk.vmdk", "What is it, and will it boot?"),
        ("rimg inspect --output json disk.vmdk", "For a program"),
        ("rimg inspect --policy default -f qcow2 upload", "May a service take it?"),
        ("rimg inspect --cat /etc/fstab disk.qcow2", "One file"),
        ("rimg inspect --ls / --volume 1 disk.qcow2", "The first partition's files"),
    ],
    exit_codes: &[
        ("0", "It boots as it is, on a virtio bus; with --policy: it is acceptable"),
        ("1", "The image could not be inspected"),
        ("2", "It boots as it is, but on another bus (SATA, IDE, NVMe); with --policy: it is not acceptable"),
        ("3", "It does not boot before something is changed, or no operating system was found"),
    ],
};
