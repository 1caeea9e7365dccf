//! The option table of `sparsify`; its names are those of virt-sparsify where that has them.

use super::commands::{ALLOW, FORCE, FORMAT, HELP, IMAGE_OPTS, OBJECT, PROGRESS, QUIET, TARGETS};
use super::table::{Command, flag, pos, val};

const IN_PLACE: &str = "In place";
const COPY: &str = "Copy";

/// The command.
pub const SPARSIFY: Command = Command {
    name: "sparsify",
    about: "Give back what the guest's file systems do not use",
    details: "Finds free blocks in the file systems' own metadata, without mounting anything and without \
        any privilege: ext2/3/4, XFS, NTFS, FAT, exFAT, Linux swap, unused extents of LVM; on partitions \
        (MBR, GPT), logical volumes or the bare disk. With --in-place they are discarded in the image; with DST \
        they are left out of a copy. Stored zeroes go, too. The guest must be shut down. A volume is left alone \
        when it was not left cleanly (a journal to be replayed, a hibernated system), when its metadata \
        do not prove to be whole, or when its kind is not known; the report says why, and what to do. \
        --dry-run shows what each volume holds and would save, and changes nothing.",
    positionals: &[
        pos("SRC", "Image"),
        pos("DST", "The copy to be made; without --in-place and --dry-run").optional(),
    ],
    opts: &[
        HELP,
        FORMAT,
        IMAGE_OPTS,
        flag(Some('n'), "dry-run", "Say what is free and what would be saved; change nothing"),
        val(
            None,
            "ignore",
            "VOLUME",
            "Leave a volume alone: 2, /dev/sda2, GROUP/NAME; may be repeated",
        ),
        flag(
            None,
            "unpartitioned",
            "Count space of no partition as free, too (but never what lies before the first one)",
        ),
        OBJECT,
        PROGRESS,
        QUIET,
        val(None, "output", "human|json", "How to print the result").values(&["human", "json"]),
        ALLOW,
        flag(None, "in-place", "Change SRC itself; nobody else may be using it").under(IN_PLACE),
        flag(
            None,
            "metadata-only",
            "Free what the file systems tell; do not read all data in search of zeroes",
        )
        .under(IN_PLACE),
        val(Some('O'), "output-format", "FMT", "Format of the copy (default: that of SRC)")
            .values(TARGETS)
            .under(COPY),
        val(Some('o'), "options", "OPTS", "Options of that format; see rimg create -o help")
            .under(COPY),
        flag(Some('c'), "compress", "Compress the copy").under(COPY),
        flag(None, "verify", "Read the copy again and compare it").under(COPY),
        FORCE,
    ],
    examples: &[
        ("rimg sparsify -n disk.qcow2", "What would be saved, volume by volume"),
        ("rimg sparsify --in-place disk.qcow2", "Shrink the file on the host"),
        ("rimg sparsify -O qcow2 -c disk.vmdk small.qcow2", "A small compressed copy"),
    ],
    exit_codes: &[],
};
