//! The option tables of the commands for looking at images: `info`, `chain`, `check`, `map`, `measure`, `compare`, `diff`, `digest`.

use super::super::table::{Command, NO_LONG, flag, pos, val};
use super::shared::{
    ALLOW, CACHE_MODES, FORCE_SHARE, FORMAT, FORMATS, HELP, IMAGE, IMAGE_OPTS, OBJECT, OUTPUT,
    OUTPUT_EXACT, PROGRESS, QUIET, SANDBOX, TARGETS,
};

/// `info`.
pub const INFO: Command = Command {
    name: "info",
    about: "Display information about image",
    details: "Shows format, sizes, backing file, snapshots and the details of the format. Reads \
        metadata only.",
    positionals: &[IMAGE],
    opts: &[
        HELP,
        FORMAT,
        OUTPUT,
        flag(Some('b'), "backing-chain", "Show the backing files too, from the top down"),
        FORCE_SHARE,
        OBJECT,
        IMAGE_OPTS,
        ALLOW,
        SANDBOX,
        val(Some('t'), NO_LONG, "CACHE", "Cache mode (default writeback)")
            .id("cache")
            .also(&["cache"])
            .values(CACHE_MODES),
    ],
    examples: &[
        ("rimg info disk.qcow2", "What is this file?"),
        ("rimg info --backing-chain --output json top.qcow2", "The whole chain, for a program"),
        ("rimg info -U running-vm.qcow2", "An image that a virtual machine is using"),
    ],
    exit_codes: &[],
};

/// `chain`.
pub const CHAIN: Command = Command {
    name: "chain",
    about: "Show a chain of backing files, move it, or shorten it",
    details: "Shows the image and the files below it with their sizes, and what is wrong with them: missing, \
        damaged, not what the image above was made on, or written to since. With --tree also the other images \
        in the same folders that stand on them.\n\n\
        chain relocate FILENAME rewrites the names in the images of the chain after files were moved: nothing \
        is written before every new name leads to the right file.\n\n\
        chain flatten FILENAME [A..B] copies into A what the images below it down to B hold, and lets A stand \
        on what B stood on. What the images show does not change; without a range the whole chain becomes one \
        image.",
    positionals: &[pos(
        "[relocate|flatten] FILENAME [A..B]",
        "The image; relocate or flatten before it to change the chain; with flatten, the upper and lower \
             name of what becomes one image",
    )],
    opts: &[
        HELP,
        OBJECT,
        FORMAT,
        IMAGE_OPTS,
        flag(None, "tree", "Also show other images that stand on these files"),
        val(
            None,
            "map",
            "OLD=NEW",
            "With relocate: files below the folder OLD (or the file OLD) are below NEW now; may be repeated",
        ),
        flag(
            None,
            "relative",
            "With relocate: write names from the folder of the image that holds them",
        ),
        flag(None, "absolute", "With relocate: write names from the root"),
        flag(Some('c'), "compress", "With flatten: store what is copied compressed"),
        flag(Some('n'), "dry-run", "With relocate and flatten: say what would be done"),
        FORCE_SHARE,
        PROGRESS,
        QUIET,
        ALLOW,
        SANDBOX,
        OUTPUT_EXACT,
    ],
    examples: &[
        ("rimg chain top.qcow2", "What lies below, and is it whole?"),
        ("rimg chain --tree base.qcow2", "Who would be hurt by a change of base.qcow2?"),
        ("rimg chain relocate --map /old/images=/srv/images top.qcow2", "After a move"),
        ("rimg chain relocate --relative top.qcow2", "Before a move of the whole folder"),
        ("rimg chain flatten top.qcow2 top.qcow2..mid.qcow2", "Without mid.qcow2"),
    ],
    exit_codes: &[
        ("0", "The chain is whole; or done"),
        ("1", "Something in the chain is missing or wrong"),
        ("2", "The image could not be read, or nothing was done"),
    ],
};

/// `check`.
pub const CHECK: Command = Command {
    name: "check",
    about: "Check basic image integrity",
    details: "Compares reference counts with references, and looks for overlapping or impossible \
        structures. -r repairs: leaks gives back space that nothing refers to, which is always \
        safe; all also repairs damage, which can lose data of damaged parts.",
    positionals: &[IMAGE],
    opts: &[
        HELP,
        FORMAT,
        val(Some('r'), "repair", "leaks|all", "Repair what can be repaired")
            .values(&["leaks", "all"]),
        OUTPUT,
        val(Some('T'), "cache", "CACHE", "Cache mode (default writeback)").values(CACHE_MODES),
        FORCE_SHARE,
        OBJECT,
        IMAGE_OPTS,
        QUIET,
        ALLOW,
        SANDBOX,
    ],
    examples: &[
        ("rimg check disk.qcow2", "Look, change nothing"),
        ("rimg check -r leaks disk.qcow2", "Give leaked space back"),
        ("rimg check --output json disk.qcow2", "For a program"),
    ],
    exit_codes: &[
        ("0", "No errors (or all repaired)"),
        ("1", "The check could not be carried out"),
        ("2", "The image is damaged"),
        ("3", "Leaked clusters, no damage"),
        ("63", "This format cannot be checked"),
    ],
};

/// `map`.
pub const MAP: Command = Command {
    name: "map",
    about: "Dump image metadata",
    details: "Lists the runs of the guest's disk and where they are stored. The human form lists \
        only what is stored as plain data; JSON lists everything, with its depth in the backing \
        chain (0 is the image itself).",
    positionals: &[IMAGE],
    opts: &[
        HELP,
        FORMAT,
        OUTPUT,
        OBJECT,
        IMAGE_OPTS,
        FORCE_SHARE,
        val(Some('s'), "start-offset", "OFFSET", "Begin at this offset"),
        val(Some('l'), "max-length", "LENGTH", "List at most so many bytes"),
        ALLOW,
        SANDBOX,
    ],
    examples: &[
        ("rimg map disk.qcow2", "Plain data and its place in the file"),
        ("rimg map --output json top.qcow2", "Everything, with the depth in the chain"),
    ],
    exit_codes: &[],
};

/// `measure`.
pub const MEASURE: Command = Command {
    name: "measure",
    about: "Calculate file size required for a new image",
    details: "Says how large the file would be if SIZE bytes or the image FILENAME were converted: \
        with the data as they are, and if all of the disk were written.",
    positionals: &[
        pos("FILENAME", "Image to be converted (or specification, with --image-opts)").optional()
    ],
    opts: &[
        HELP,
        FORMAT,
        IMAGE_OPTS,
        val(Some('o'), "options", "OPTS", "Options of the target's format"),
        val(Some('O'), "target-format", "FMT", "Format of the target (default raw)")
            .id("output-format")
            .values(TARGETS),
        val(Some('l'), "snapshot", "SNAPSHOT", "Take the source as it was at this snapshot"),
        OBJECT,
        OUTPUT,
        val(Some('s'), "size", "SIZE", "A disk of this size instead of an image"),
        FORCE_SHARE,
        ALLOW,
        SANDBOX,
    ],
    examples: &[
        ("rimg measure -O qcow2 --size 100G", "An empty disk"),
        ("rimg measure -O qcow2 disk.vmdk", "Before a conversion"),
    ],
    exit_codes: &[],
};

/// `compare`.
pub const COMPARE: Command = Command {
    name: "compare",
    about: "Check if two images have the same contents",
    details: "Compares what the guest would see; formats do not matter. If one disk is longer, the \
        rest must be zero. With -s sizes and allocation must be the same too.",
    positionals: &[pos("FILENAME1", "First image"), pos("FILENAME2", "Second image")],
    opts: &[
        HELP,
        OBJECT,
        val(Some('f'), "a-format", "FMT", "Format of the first image").values(FORMATS),
        val(Some('F'), "b-format", "FMT", "Format of the second image").values(FORMATS),
        IMAGE_OPTS,
        val(Some('T'), "cache", "CACHE", "Cache mode (default writeback)").values(CACHE_MODES),
        flag(Some('s'), "strict", "Sizes and allocation must be the same"),
        FORCE_SHARE,
        PROGRESS,
        QUIET,
        ALLOW,
        SANDBOX,
        OUTPUT_EXACT,
    ],
    examples: &[
        ("rimg compare disk.vmdk disk.qcow2", "Was the conversion right?"),
        ("rimg compare -s a.raw b.raw", "Strictly"),
    ],
    exit_codes: &[
        ("0", "Identical"),
        ("1", "Different"),
        ("2", "An image could not be opened"),
        ("3", "An image could not be mapped"),
        ("4", "An image could not be read"),
    ],
};

/// `diff`.
pub const DIFF: Command = Command {
    name: "diff",
    about: "List the ranges in which two images differ",
    details: "Compares what the guest sees, whatever the formats, and lists every range that differs with its \
        offset and length in bytes. What only the longer disk has is compared with zeroes. Ranges known to be \
        zero in both cost nothing.",
    positionals: &[pos("FILENAME1", "First image"), pos("FILENAME2", "Second image")],
    opts: &[
        HELP,
        OBJECT,
        val(Some('f'), "a-format", "FMT", "Format of the first image").values(FORMATS),
        val(Some('F'), "b-format", "FMT", "Format of the second image").values(FORMATS),
        IMAGE_OPTS,
        val(
            Some('g'),
            "granularity",
            "SIZE",
            "Ranges begin and end at multiples of SIZE (default 512)",
        ),
        FORCE_SHARE,
        PROGRESS,
        QUIET,
        ALLOW,
        SANDBOX,
        OUTPUT_EXACT,
    ],
    examples: &[
        ("rimg diff before.qcow2 after.qcow2", "What has changed"),
        ("rimg diff -g 64k --output json a.vmdk b.qcow2", "By 64 KiB, for programs"),
    ],
    exit_codes: &[
        ("0", "The images are the same"),
        ("1", "They differ"),
        ("2", "An image could not be read"),
    ],
};

/// `digest`.
pub const DIGEST: Command = Command {
    name: "digest",
    about: "Hash what the guest sees, the same in any format",
    details: "The digest depends on the bytes of the guest's disk and on its size alone: not on the format, \
        on compression, or on what is allocated. Ranges known to be zero cost nothing, and all processors \
        take part. With --sha256 it is what sha256sum says of the disk as a raw file. How the usual kind is \
        computed is written in the library's documentation (imgcore::ops::digest).",
    positionals: &[pos("FILENAME", "Image")],
    opts: &[
        HELP,
        OBJECT,
        FORMAT,
        IMAGE_OPTS,
        flag(None, "sha256", "SHA-256 of all bytes, by one processor"),
        val(None, "expect", "DIGEST", "Compare with this digest; its kind is taken"),
        flag(None, "save", "Write the digest to FILENAME.digest"),
        flag(None, "check", "Compare with the digest in FILENAME.digest"),
        FORCE_SHARE,
        PROGRESS,
        QUIET,
        ALLOW,
        SANDBOX,
        OUTPUT_EXACT,
    ],
    examples: &[
        ("rimg digest disk.vmdk", "Before a conversion, and after it on the new image"),
        ("rimg digest --save disk.qcow2", "Leave disk.qcow2.digest beside it"),
        ("rimg digest --check disk.qcow2", "Is it still what it was?"),
    ],
    exit_codes: &[
        ("0", "Computed, and as expected"),
        ("1", "Not as expected"),
        ("2", "The image could not be read"),
    ],
};
