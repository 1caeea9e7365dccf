//! Options and values that several commands have.

use super::super::table::{NO_LONG, Opt, Positional, flag, pos, val};

/// All formats that can be read.
pub const FORMATS: &[&str] = &[
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
pub const TARGETS: &[&str] =
    &["raw", "qcow2", "qcow", "qed", "parallels", "vmdk", "vdi", "vpc", "vhdx", "luks"];
pub const CACHE_MODES: &[&str] = &["none", "writeback", "unsafe", "writethrough", "directsync"];
pub const HUMAN_JSON: &[&str] = &["human", "json"];

pub const HELP: Opt = flag(Some('h'), "help", "Print this help and exit");
pub const QUIET: Opt = flag(Some('q'), "quiet", "Print errors only");
pub const PROGRESS: Opt = flag(
    Some('p'),
    "progress",
    "Show progress: a bar on a terminal, percentages elsewhere; --progress=json prints one JSON \
     object a line. SIGUSR1 prints the present state at any time",
);
pub const FORMAT: Opt = val(
    Some('f'),
    "format",
    "FMT",
    "Format of the image; probed when not given. Always give it for raw images of others: a guest \
     can write anything at the beginning of its disk",
)
.values(FORMATS);
pub const IMAGE_OPTS: Opt = flag(
    None,
    "image-opts",
    "FILENAME is a complete image specification (driver=qcow2,file.filename=x), not a file name; \
     excludes --format",
);
pub const FORCE_SHARE: Opt = flag(
    Some('U'),
    "force-share",
    "Open for reading without locks, even while another process writes the image; what is read may \
     be inconsistent",
);
pub const OBJECT: Opt = val(
    None,
    "object",
    "OBJDEF",
    "Define a secret for encrypted images: secret,id=NAME,file=PATH or secret,id=NAME,data=TEXT (also \
     format=base64, keyid=NAME,iv=BASE64), or secret_keyring,id=NAME,serial=NUMBER; or limits for the filter \
     'throttle': throttle-group,id=NAME,x-bps-total=BYTES,x-iops-total=N (also -read, -write, -max, -max-length); \
     or certificates for NBD over TLS: tls-creds-x509,id=NAME,dir=FOLDER,endpoint=client|server (also verify-peer=off, \
     passwordid=NAME)",
);
pub const OUTPUT: Opt =
    val(None, "output", "human|json", "How to print the result").values(HUMAN_JSON);
// Names that qemu-img does not have are taken only in full: an abbreviation that is unambiguous for
// qemu-img must stay so.
pub const OUTPUT_EXACT: Opt = Opt { id: "output", long: NO_LONG, also: &["output"], ..OUTPUT };
pub const ALLOW: Opt = val(
    None,
    NO_LONG,
    "DIR",
    "Also follow names inside images (backing files, extents, data files) that lead into DIR; may \
     be repeated. Without it only the image's own folder is followed",
)
.id("allow")
.also(&["allow"])
.under("Safety");
pub const SANDBOX: Opt = val(
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
pub const FORCE: Opt = flag(None, NO_LONG, "Replace an existing file that is not empty")
    .id("force")
    .also(&["force"])
    .under("Safety");
pub const CACHE: Opt =
    val(Some('t'), "cache", "CACHE", "Cache mode of the image (default writeback)")
        .values(CACHE_MODES);
pub const IMAGE: Positional =
    pos("FILENAME", "Image file name (or specification, with --image-opts)");

pub const SIZES: &str =
    "Sizes are bytes, or take a suffix k, M, G, T, P, E (powers of 1024): 20G, 1.5T.";
