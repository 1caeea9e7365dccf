//! The option tables of the commands for making images: `create`, `convert`, `import`, `dd`.

use super::super::table::{Command, NO_LONG, Opt, flag, pos, val};
use super::shared::{
    ALLOW, CACHE_MODES, FORCE, FORCE_SHARE, FORMAT, FORMATS, HELP, IMAGE_OPTS, OBJECT,
    OUTPUT_EXACT, PROGRESS, QUIET, SANDBOX, TARGETS,
};

// qemu-img's `dd --force` is short for --force-share.
const OVERWRITE: Opt = FORCE.id("overwrite").also(&["overwrite"]);

/// `create`.
pub const CREATE: Command = Command {
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

/// `convert`.
pub const CONVERT: Command = Command {
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

/// `import`.
pub const IMPORT: Command = Command {
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

/// `dd`.
pub const DD: Command = Command {
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
