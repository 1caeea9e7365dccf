//! The option tables of all commands.
//!
//! Names and letters are those of qemu-img 10.0; `also` holds the names of 11.1 and the letters of
//! the 1.1 days. Ours alone are `--progress=json`, `--force`, `--allow`, and `--output` where
//! qemu-img has none.

use super::table::{Command, NO_LONG, Opt, Positional, flag, pos, val};

/// All formats that can be read.
const FORMATS: &[&str] = &[
    "raw",
    "qcow2",
    "qcow",
    "qed",
    "parallels",
    "vmdk",
    "vdi",
    "vpc",
    "vhdx",
    "luks",
    "bochs",
    "cloop",
    "cow",
    "dmg",
];
/// Those that can be created.
pub(super) const TARGETS: &[&str] =
    &["raw", "qcow2", "qcow", "qed", "parallels", "vmdk", "vdi", "vpc", "vhdx", "luks"];
pub(super) const CACHE_MODES: &[&str] =
    &["none", "writeback", "unsafe", "writethrough", "directsync"];
const HUMAN_JSON: &[&str] = &["human", "json"];

pub(super) const HELP: Opt = flag(Some('h'), "help", "Print this help and exit");
pub(super) const QUIET: Opt = flag(Some('q'), "quiet", "Print errors only");
pub(super) const PROGRESS: Opt = flag(
    Some('p'),
    "progress",
    "Show progress: a bar on a terminal, percentages elsewhere; --progress=json prints one JSON \
     object a line. SIGUSR1 prints the present state at any time",
);
pub(super) const FORMAT: Opt = val(
    Some('f'),
    "format",
    "FMT",
    "Format of the image; probed when not given. Always give it for raw images of others: a guest \
     can write anything at the beginning of its disk",
)
.values(FORMATS);
pub(super) const IMAGE_OPTS: Opt = flag(
    None,
    "image-opts",
    "FILENAME is a complete image specification (driver=qcow2,file.filename=x), not a file name; \
     excludes --format",
);
const FORCE_SHARE: Opt = flag(
    Some('U'),
    "force-share",
    "Open for reading without locks, even while another process writes the image; what is read may \
     be inconsistent",
);
pub(super) const OBJECT: Opt = val(
    None,
    "object",
    "OBJDEF",
    "Define a secret for encrypted images: secret,id=NAME,file=PATH or secret,id=NAME,data=TEXT (also \
     format=base64, keyid=NAME,iv=BASE64), or secret_keyring,id=NAME,serial=NUMBER; or limits for the filter \
     'throttle': throttle-group,id=NAME,x-bps-total=BYTES,x-iops-total=N (also -read, -write, -max, -max-length)",
);
const OUTPUT: Opt = val(None, "output", "human|json", "How to print the result").values(HUMAN_JSON);
// Names that qemu-img does not have are taken only in full: an abbreviation that is unambiguous for
// qemu-img must stay so.
pub(super) const OUTPUT_EXACT: Opt =
    Opt { id: "output", long: NO_LONG, also: &["output"], ..OUTPUT };
pub(super) const ALLOW: Opt = val(
    None,
    NO_LONG,
    "DIR",
    "Also follow names inside images (backing files, extents, data files) that lead into DIR; may \
     be repeated. Without it only the image's own folder is followed",
)
.id("allow")
.also(&["allow"])
.under("Safety");
pub(super) const SANDBOX: Opt = val(
    None,
    NO_LONG,
    "on|off|require",
    "Whether the process confines itself to what the command names before it reads an image, so that a \
     malicious one gains nothing: on (default) as far as the kernel can, require: or fail, off: not at all",
)
.values(&["on", "off", "require"])
.id("sandbox")
.also(&["sandbox"])
.under("Safety");
pub(super) const FORCE: Opt = flag(None, NO_LONG, "Replace an existing file that is not empty")
    .id("force")
    .also(&["force"])
    .under("Safety");
const CACHE: Opt = val(Some('t'), "cache", "CACHE", "Cache mode of the image (default writeback)")
    .values(CACHE_MODES);
pub(super) const IMAGE: Positional =
    pos("FILENAME", "Image file name (or specification, with --image-opts)");

pub(super) const SIZES: &str =
    "Sizes are bytes, or take a suffix k, M, G, T, P, E (powers of 1024): 20G, 1.5T.";

/// Every command, sorted by name.
pub const COMMANDS: &[Command] = &[
    AMEND, BENCH, BITMAP, CHAIN, CHECK, COMMIT, COMPARE, CONVERT, CREATE, DD, DIFF, DIGEST, IMPORT,
    INFO, INSPECT, MAP, MEASURE, REBASE, RESIZE, SERVE, SNAPSHOT, SPARSIFY,
];

/// Options before the command.
pub const GLOBAL: &[Opt] = &[
    HELP,
    flag(Some('V'), "version", "Print the version and exit"),
    val(Some('T'), "trace", "TRACE", "Accepted for compatibility; there is nothing to trace"),
];

const CREATE: Command = Command {
    name: "create",
    about: "Create and format new image file",
    details: "Makes an empty image. With -b the image is an overlay: it stores only what differs \
        from the backing file, whose size it takes unless SIZE is given. Options of a format are \
        listed by -o help.",
    positionals: &[
        pos("FILENAME", "Image file to create"),
        pos("SIZE", "Size of the disk, with an optional suffix k, M, G, T, P, E").optional(),
    ],
    opts: &[
        HELP,
        QUIET,
        OBJECT,
        val(Some('f'), "format", "FMT", "Format of the new image (default raw)").values(TARGETS),
        val(
            Some('o'),
            "options",
            "OPTS",
            "Options of the format: a=b,c=d; may be repeated, -o help lists them",
        ),
        val(Some('b'), "backing", "FILE", "Make an overlay on top of this image").under("Overlay"),
        val(Some('F'), "backing-format", "FMT", "Format of the backing file (required with -b)")
            .also_short(&['B'])
            .values(FORMATS)
            .under("Overlay"),
        flag(Some('u'), "backing-unsafe", "Do not look at the backing file").under("Overlay"),
        FORCE,
        ALLOW,
        SANDBOX,
        OUTPUT_EXACT,
        flag(Some('e'), NO_LONG, "As -o encryption=on").id("encrypt").hidden(),
        flag(Some('6'), NO_LONG, "As -o compat6").id("compat6").hidden(),
    ],
    examples: &[
        ("rimg create -f qcow2 disk.qcow2 20G", "A disk of 20 GiB that grows as it is written"),
        (
            "rimg create -f qcow2 -b base.qcow2 -F qcow2 overlay.qcow2",
            "An overlay: base.qcow2 stays as it is",
        ),
        (
            "rimg create -f qcow2 -o preallocation=metadata,cluster_size=2M d.qcow2 1T",
            "With options",
        ),
        ("rimg create -f vmdk -o subformat=streamOptimized disk.vmdk 10G", "A VMware disk"),
        ("rimg create -f qcow2 -o help", "List the options of qcow2"),
    ],
    exit_codes: &[],
};

const IMPORT: Command = Command {
    name: "import",
    about: "Take over a virtual machine of VMware or VirtualBox",
    details: "Reads the description of a machine (OVA, OVF, VMX, VBOX, or a disk alone), checks the hashes of its \
        manifest, converts its disks where they are (inside the archive, through chains of snapshots, from split \
        sets), and writes them and a script that starts the machine with rkvm into a folder. The command line has \
        the machine's name, processors, memory, firmware, disks and network cards with their addresses.\n\n\
        Disks and network cards become virtio unless the description says that Windows is installed, which has \
        no drivers for that before they are installed. An import that fails leaves no disks.",
    positionals: &[pos("SOURCE", "FILE.ova, FILE.ovf, FILE.vmx, FILE.vbox, or a disk image")],
    opts: &[
        HELP,
        val(Some('d'), "directory", "DIR", "Where disks and script go; made if it is not there"),
        val(Some('O'), "output-format", "FMT", "Format of the new disks (default qcow2)")
            .values(TARGETS),
        val(Some('o'), "options", "OPTS", "Options of that format; see rimg create -o help"),
        flag(Some('c'), "compress", "Compress the new disks"),
        flag(None, "verify", "Read every new disk again and compare it with its source"),
        val(None, "name", "NAME", "Another name for the machine"),
        val(None, "system", "ID", "Which machine, where the description holds several"),
        val(
            None,
            "devices",
            "KIND",
            "auto (default), virtio, or described: what disks and cards become",
        )
        .values(&["auto", "virtio", "described"]),
        val(
            None,
            "network",
            "NAME=BRIDGE",
            "The bridge that a network becomes (default virbr0, which rhostprep net nat makes); may be repeated",
        ),
        flag(None, "no-checksums", "Do not compare the files with the manifest"),
        flag(Some('n'), "dry-run", "Show what would be made"),
        PROGRESS,
        QUIET,
        FORCE,
        ALLOW,
        SANDBOX,
        OUTPUT_EXACT,
    ],
    examples: &[
        ("rimg import -p appliance.ova -d /srv/vms/appliance", "Disks, script and command line"),
        ("rimg import -n web.vmx -d .", "What would come out of it?"),
        ("rimg import --network 'VM Network=br0' web.ovf -d web", "On a bridge of this host"),
        ("rimg import --devices virtio windows.vmx -d win", "With the virtio drivers installed"),
    ],
    exit_codes: &[],
};

const INFO: Command = Command {
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

const CHAIN: Command = Command {
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

const CHECK: Command = Command {
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

const CONVERT: Command = Command {
    name: "convert",
    about: "Copy one image to another with optional format conversion",
    details: "Copies what the guest sees. Several sources are put one after the other. The target \
        is written beside its final name and renamed when everything is on disk, so an interrupted \
        run leaves nothing that looks like an image. All cores are used; the output is the same for \
        any number of threads. Zeroes take no space in the target.\n\n\
        A source called - is standard input; one that is packed (.gz, .xz, .zst, .bz2) is unpacked. Both are \
        put into a temporary file beside the target first, which needs space for the whole disk. A target \
        called - is standard output.\n\n\
        A source may be on a web server (http://, https://): it is read in place, on several connections, and \
        a connection that breaks is gone on with. Where the server gives no parts of files, or the image is \
        packed, it is copied to a temporary file first. Source and target may be on a host reached by ssh \
        (ssh://USER@HOST/PATH) or in a Ceph cluster (rbd:POOL/IMAGE), where this program was built with the features \
        ssh and rbd.",
    positionals: &[
        pos("SRC_FILENAME", "Source image (or specification, with --image-opts), or -").many(),
        pos("TGT_FILENAME", "Target image, or -"),
    ],
    opts: &[
        HELP,
        IMAGE_OPTS.long("source-image-opts").also(&["image-opts"]).under("Source"),
        OBJECT,
        val(Some('f'), "source-format", "FMT", "Format of the sources; probed when not given")
            .also(&["format"])
            .values(FORMATS)
            .under("Source"),
        val(Some('T'), "source-cache", "CACHE", "Cache mode of the sources (default writeback)")
            .values(CACHE_MODES)
            .under("Source"),
        val(
            Some('l'),
            "snapshot",
            "SNAPSHOT",
            "Take the source as it was at this internal snapshot: an id, a name, \
             snapshot.name=NAME or snapshot.id=ID",
        )
        .also_short(&['s'])
        .also(&["source-snapshot"])
        .under("Source"),
        flag(None, "bitmaps", "Also copy persistent dirty bitmaps").under("Source"),
        flag(None, "skip-broken-bitmaps", "With --bitmaps, leave broken bitmaps out")
            .under("Source"),
        flag(None, "salvage", "Write zeroes for what cannot be read, and go on").under("Source"),
        FORCE_SHARE.under("Source"),
        val(Some('O'), "output-format", "FMT", "Format of the target (default raw)")
            .also(&["target-format"])
            .values(TARGETS)
            .under("Target"),
        flag(
            None,
            "target-image-opts",
            "TGT_FILENAME is a complete image specification; needs -n, excludes -O",
        )
        .under("Target"),
        val(Some('o'), "options", "OPTS", "Options of the target's format; -o help lists them")
            .also(&["target-options", "target-format-options"])
            .under("Target"),
        val(Some('t'), "output-cache", "CACHE", "Cache mode of the target (default unsafe)")
            .also(&["target-cache"])
            .values(CACHE_MODES)
            .under("Target"),
        val(
            Some('B'),
            "backing",
            "FILE",
            "Make the target an overlay: store only what differs from FILE",
        )
        .also_short(&['b'])
        .under("Target"),
        val(Some('F'), "backing-format", "FMT", "Format of the backing file (required with -B)")
            .values(FORMATS)
            .under("Target"),
        val(
            Some('S'),
            "sparse-size",
            "SIZE",
            "Runs of zeroes of at least SIZE bytes take no space (default 4k; 0 allocates all)",
        )
        .under("Target"),
        flag(
            None,
            NO_LONG,
            "Read the target again when it is on disk, and compare it with the sources before it gets \
             its name",
        )
        .id("verify")
        .also(&["verify"])
        .under("Target"),
        flag(
            None,
            NO_LONG,
            "Leave out what the guest's file systems do not use: see rimg sparsify, which says what that \
             is and can leave volumes alone",
        )
        .id("sparsify")
        .also(&["sparsify"])
        .under("Target"),
        flag(
            None,
            NO_LONG,
            "Keep what is done when the conversion is interrupted (a signal, an error, a crash of the \
             machine), and go on with it when the same command is given again. Refused when the source has \
             changed",
        )
        .id("resume")
        .also(&["resume"])
        .under("Target"),
        val(None, NO_LONG, "SECONDS", "With --resume: secure what is done so often (default 5)")
            .id("checkpoint")
            .also(&["checkpoint"])
            .under("Target"),
        flag(Some('n'), "no-create", "Write into an existing image").under("Target"),
        flag(None, "target-is-zero", "With -n: the target reads as zeroes already").under("Target"),
        flag(Some('c'), "compress", "Compress the target (qcow2; vmdk streamOptimized)")
            .under("Target"),
        val(Some('r'), "rate", "RATE", "At most RATE bytes a second")
            .also(&["rate-limit"])
            .under("Speed"),
        val(Some('m'), "parallel", "N", "Use N threads, 1 to 16 (default: as many as keep up)")
            .under("Speed"),
        flag(Some('W'), "oob-writes", "Accepted; writes are in any order already").under("Speed"),
        flag(Some('C'), "copy-range-offloading", "Let the kernel copy (copy_file_range)")
            .under("Speed"),
        PROGRESS,
        QUIET,
        FORCE,
        ALLOW,
        SANDBOX,
        OUTPUT_EXACT,
        flag(Some('e'), NO_LONG, "As -o encryption=on").id("encrypt").hidden(),
        flag(Some('6'), NO_LONG, "As -o compat6").id("compat6").hidden(),
    ],
    examples: &[
        ("rimg convert -p -O qcow2 disk.vmdk disk.qcow2", "A VMware disk for KVM"),
        ("rimg convert -c -O qcow2 disk.raw small.qcow2", "Compressed"),
        ("rimg convert --verify -O qcow2 disk.vmdk disk.qcow2", "Read again and compared"),
        ("rimg convert -O vmdk -o subformat=streamOptimized d.qcow2 d.vmdk", "For an OVA"),
        (
            "rimg convert --resume -p -O qcow2 big.vmdk big.qcow2",
            "Interrupted? Give the command again: it goes on where it was",
        ),
        ("rimg convert -l before-update -O qcow2 d.qcow2 old.qcow2", "An internal snapshot"),
        (
            "rimg convert -O qcow2 -B base.qcow2 -F qcow2 full.qcow2 thin.qcow2",
            "Only the differences",
        ),
        ("rimg convert -n -O raw disk.qcow2 /dev/vg0/lv", "Onto a block device"),
        ("curl -s https://example.org/disk.raw.xz | rimg convert -O qcow2 - disk.qcow2", "From the net"),
        ("rimg convert -O raw disk.vmdk - | ssh host 'cat > /dev/vg0/lv'", "To another host"),
    ],
    exit_codes: &[],
};

const MAP: Command = Command {
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

const MEASURE: Command = Command {
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

const COMPARE: Command = Command {
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

const DIFF: Command = Command {
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

const DIGEST: Command = Command {
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

const RESIZE: Command = super::resize::RESIZE;
const SERVE: Command = super::serve::SERVE;
const INSPECT: Command = super::inspect::INSPECT;
const SPARSIFY: Command = super::sparsify::SPARSIFY;

const SNAPSHOT: Command = Command {
    name: "snapshot",
    about: "List or manipulate snapshots within image",
    details: "Internal snapshots of qcow2. Do not use it on an image that a virtual machine is \
        using.",
    positionals: &[IMAGE],
    opts: &[
        HELP,
        FORMAT,
        IMAGE_OPTS,
        FORCE_SHARE,
        flag(Some('l'), "list", "List the snapshots (the default)").under("Operation, one of"),
        val(Some('c'), "create", "SNAPSHOT", "Take a snapshot of this name")
            .under("Operation, one of"),
        val(Some('a'), "apply", "SNAPSHOT", "Make the disk what it was").under("Operation, one of"),
        val(Some('d'), "delete", "SNAPSHOT", "Delete a snapshot").under("Operation, one of"),
        QUIET,
        OBJECT,
        ALLOW,
        SANDBOX,
        OUTPUT_EXACT,
    ],
    examples: &[
        ("rimg snapshot -c before-update disk.qcow2", "Take one"),
        ("rimg snapshot -l disk.qcow2", "List them"),
        ("rimg snapshot -a before-update disk.qcow2", "Go back"),
    ],
    exit_codes: &[],
};

const COMMIT: Command = Command {
    name: "commit",
    about: "Commit image to its backing file",
    details: "Writes what the overlay stores into its backing file and empties the overlay. With \
        -b the data go further down, to that image of the chain, and the overlay is kept.",
    positionals: &[IMAGE],
    opts: &[
        HELP,
        QUIET,
        OBJECT,
        FORMAT,
        IMAGE_OPTS,
        CACHE,
        flag(Some('d'), "drop", "Leave the overlay as it is afterwards"),
        val(Some('b'), "base", "FILE", "Commit into this image of the chain; implies -d"),
        val(Some('r'), "rate", "RATE", "At most RATE bytes a second").also(&["rate-limit"]),
        PROGRESS,
        ALLOW,
        SANDBOX,
        OUTPUT_EXACT,
    ],
    examples: &[
        ("rimg commit overlay.qcow2", "Into the image directly below"),
        ("rimg commit -b base.qcow2 top.qcow2", "Through the chain"),
    ],
    exit_codes: &[],
};

const REBASE: Command = Command {
    name: "rebase",
    about: "Change backing file of the image",
    details: "Puts the image on top of another backing file. The guest sees the same as before: \
        what differs between the old and the new backing file is copied into the image first. With \
        -u only the recorded name changes: for a backing file that was renamed or moved.",
    positionals: &[IMAGE],
    opts: &[
        HELP,
        OBJECT,
        FORCE_SHARE,
        FORMAT,
        IMAGE_OPTS,
        CACHE,
        QUIET,
        PROGRESS,
        val(Some('b'), "backing", "FILE", "The new backing file; \"\" for none"),
        val(Some('F'), "backing-format", "FMT", "Format of the new backing file")
            .also_short(&['B'])
            .values(FORMATS),
        val(Some('T'), "backing-cache", "CACHE", "Cache mode of the backing files")
            .values(CACHE_MODES),
        flag(Some('u'), "backing-unsafe", "Change the name only, look at no backing file"),
        flag(Some('c'), "compress", "Compress what is copied"),
        ALLOW,
        SANDBOX,
        OUTPUT_EXACT,
    ],
    examples: &[
        ("rimg rebase -b newbase.qcow2 -F qcow2 overlay.qcow2", "Safely"),
        ("rimg rebase -u -b /new/place/base.qcow2 -F qcow2 overlay.qcow2", "The file was moved"),
        ("rimg rebase -b \"\" overlay.qcow2", "Make it stand alone"),
    ],
    exit_codes: &[],
};

const AMEND: Command = Command {
    name: "amend",
    about: "Update format-specific options of the image",
    details: "Changes options of an existing image, such as the compatibility level of qcow2. \
        -o help with a format or an image lists what can be changed.",
    positionals: &[IMAGE],
    opts: &[
        HELP,
        OBJECT,
        val(Some('o'), "options", "OPTS", "What to change: a=b,c=d"),
        FORMAT,
        IMAGE_OPTS,
        CACHE,
        PROGRESS,
        QUIET,
        flag(None, "force", "Allow changes that can make data inaccessible"),
        ALLOW,
        SANDBOX,
        OUTPUT_EXACT,
    ],
    examples: &[
        ("rimg amend -o compat=v3,lazy_refcounts=on disk.qcow2", "A newer qcow2"),
        ("rimg amend -f qcow2 -o help", "What can be changed?"),
    ],
    exit_codes: &[],
};

const BITMAP: Command = Command {
    name: "bitmap",
    about: "Perform modifications of the persistent bitmap in the image",
    details: "Changes a dirty bitmap of a qcow2 image, as incremental backup uses it. Several \
        operations are carried out in the order given.",
    positionals: &[IMAGE, pos("BITMAP", "Name of the bitmap").optional()],
    opts: &[
        HELP,
        OBJECT,
        FORMAT,
        IMAGE_OPTS,
        flag(None, "add", "Create BITMAP and record writes in it").under("Operations"),
        val(Some('g'), "granularity", "SIZE", "Bytes per bit, for --add (default 64k)")
            .under("Operations"),
        flag(None, "remove", "Delete BITMAP").under("Operations"),
        flag(None, NO_LONG, "Delete all bitmaps; takes no BITMAP and no other operation")
            .id("remove-all")
            .also(&["remove-all"])
            .under("Operations"),
        flag(None, "clear", "Clear all bits").under("Operations"),
        flag(None, "enable", "Record writes from now on").under("Operations"),
        flag(None, "disable", "Stop recording").under("Operations"),
        val(None, "merge", "SOURCE", "Add the bits of bitmap SOURCE").under("Operations"),
        val(Some('b'), "source-file", "FILE", "Where SOURCE is, if not in FILENAME")
            .under("Operations"),
        val(Some('F'), "source-format", "FMT", "Format of that file")
            .values(FORMATS)
            .under("Operations"),
        QUIET,
        ALLOW,
        SANDBOX,
        OUTPUT_EXACT,
    ],
    examples: &[
        ("rimg bitmap --add -g 128k disk.qcow2 since-monday", "A new bitmap"),
        ("rimg bitmap --merge tue --merge wed disk.qcow2 since-monday", "Merge two into it"),
        ("rimg bitmap --disable --clear disk.qcow2 since-monday", "Several operations"),
    ],
    exit_codes: &[],
};

const DD: Command = Command {
    name: "dd",
    about: "Copy input to output with optional format conversion",
    details: "Copies COUNT blocks of BLOCK_SIZE bytes from INPUT, beginning after SKIP blocks.",
    positionals: &[
        pos("if=INPUT", "Input image (or specification, with --image-opts)"),
        pos("of=OUTPUT", "Image to create"),
        pos("bs=BLOCK_SIZE", "Size of a block (default 512)").optional(),
        pos("count=BLOCKS", "How many blocks (default: all)").optional(),
        pos("skip=BLOCKS", "How many blocks of the input to leave out").optional(),
    ],
    opts: &[
        HELP,
        OBJECT,
        FORMAT,
        IMAGE_OPTS,
        val(Some('O'), "output-format", "FMT", "Format of the output (default raw)")
            .values(TARGETS),
        FORCE_SHARE,
        OVERWRITE,
        ALLOW,
        SANDBOX,
        OUTPUT_EXACT,
    ],
    examples: &[
        ("rimg dd bs=512 count=1 if=disk.qcow2 of=mbr.raw", "The first sector"),
        ("rimg dd -O qcow2 bs=1M skip=100 if=disk.raw of=rest.qcow2", "All but the first 100 MiB"),
    ],
    exit_codes: &[],
};

// qemu-img's `dd --force` is short for --force-share.
const OVERWRITE: Opt = FORCE.id("overwrite").also(&["overwrite"]);

const BENCH: Command = Command {
    name: "bench",
    about: "Run simple image benchmark",
    details: "Sends many requests of one size and says how long they took. A write test changes \
        the image.",
    positionals: &[IMAGE],
    opts: &[
        HELP,
        FORMAT,
        IMAGE_OPTS,
        CACHE,
        val(Some('c'), "count", "COUNT", "Number of requests (default 75000)"),
        val(Some('d'), "depth", "DEPTH", "Requests at a time (default 64)"),
        val(Some('o'), "offset", "OFFSET", "Where the first request begins"),
        val(Some('s'), "buffer-size", "SIZE", "Bytes of each request (default 4096)"),
        val(Some('S'), "step-size", "SIZE", "From one request to the next (default: buffer size)"),
        val(Some('i'), "aio", "AIO", "threads, native or io_uring")
            .values(&["threads", "native", "io_uring"]),
        flag(Some('n'), "native", "As --aio native"),
        flag(Some('w'), "write", "Write instead of reading").under("Write test"),
        val(None, "pattern", "BYTE", "Byte to write (default 0)").under("Write test"),
        val(None, "flush-interval", "N", "Flush after every N requests").under("Write test"),
        flag(None, "no-drain", "Do not wait for requests in flight before a flush")
            .under("Write test"),
        FORCE_SHARE,
        QUIET,
        OBJECT,
        ALLOW,
        SANDBOX,
        OUTPUT_EXACT,
    ],
    examples: &[
        ("rimg bench -c 100000 -d 16 disk.qcow2", "Read"),
        ("rimg bench -f raw -w -t none -s 64k scratch.raw", "Write, past the page cache"),
    ],
    exit_codes: &[],
};
