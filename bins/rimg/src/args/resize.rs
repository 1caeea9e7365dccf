//! The option table of `resize`. What qemu-img does not have is taken only in full.

use super::commands::{
    ALLOW, FORMAT, HELP, IMAGE, IMAGE_OPTS, OBJECT, OUTPUT_EXACT, QUIET, SANDBOX, SIZES,
};
use super::table::{Command, NO_LONG, flag, pos, val};

const PARTITION: &str = "Partition";

/// The command.
pub const RESIZE: Command = Command {
    name: "resize",
    about: "Resize the image to the new size",
    details: "Changes the size of the disk: to SIZE, or by +SIZE or -SIZE. The guest's partitions \
        and file systems are not touched: shrink them first, grow them afterwards. Shrinking needs \
        --shrink, because what lies beyond the new end is lost. With --grow-partition the last partition \
        (or the given one) gets the new space, too, in the tables of GPT (whose backup moves to the new end) \
        and MBR (with the extended partition around a logical one); what is to be done in the guest so that the \
        file system follows is printed. The table is valid after every single write.",
    positionals: &[IMAGE, pos("[+-]SIZE", SIZES).optional()],
    opts: &[
        HELP,
        FORMAT,
        IMAGE_OPTS,
        val(None, "preallocation", "MODE", "How to make new space: off, metadata, falloc, full")
            .values(&["off", "metadata", "falloc", "full"]),
        flag(None, "shrink", "Allow the disk to become smaller"),
        OBJECT,
        QUIET,
        ALLOW,
        SANDBOX,
        OUTPUT_EXACT,
        flag(
            None,
            NO_LONG,
            "Give the new space to a partition: to the last one, or with --grow-partition=N to number N",
        )
        .id("grow-partition")
        .also(&["grow-partition"])
        .under(PARTITION),
        flag(
            None,
            NO_LONG,
            "With --grow-partition: leave the size of the disk, which has grown before; no SIZE is given",
        )
        .id("partition-only")
        .also(&["partition-only"])
        .under(PARTITION),
        flag(None, NO_LONG, "With --grow-partition: say what would be done, change nothing")
            .id("dry-run")
            .also(&["dry-run"])
            .under(PARTITION),
    ],
    examples: &[
        ("rimg resize disk.qcow2 +10G", "Ten GiB more"),
        ("rimg resize -f raw --shrink disk.raw 5G", "Exactly 5 GiB, smaller than now"),
        ("rimg resize --grow-partition disk.qcow2 +10G", "Ten GiB more for the last partition"),
        ("rimg resize --grow-partition=2 --dry-run disk.qcow2 +10G", "Would that be possible?"),
    ],
    exit_codes: &[],
};
