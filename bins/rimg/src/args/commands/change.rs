//! The option tables of the commands for changing images, and `bench`: `snapshot`, `commit`, `rebase`, `amend`, `bitmap`.

use super::super::table::{Command, NO_LONG, flag, pos, val};
use super::shared::{
    ALLOW, CACHE, CACHE_MODES, FORCE_SHARE, FORMAT, FORMATS, HELP, IMAGE, IMAGE_OPTS, OBJECT,
    OUTPUT_EXACT, PROGRESS, QUIET, SANDBOX,
};

/// `snapshot`.
pub const SNAPSHOT: Command = Command {
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

/// `commit`.
pub const COMMIT: Command = Command {
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

/// `rebase`.
pub const REBASE: Command = Command {
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

/// `amend`.
pub const AMEND: Command = Command {
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

/// `bitmap`.
pub const BITMAP: Command = Command {
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

/// `bench`.
pub const BENCH: Command = Command {
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
