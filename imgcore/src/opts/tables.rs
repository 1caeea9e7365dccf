//! Which options each format has for creation and for amendment.
//!
//! Order, defaults and wording are those of `create`'s line and of `-o help`.

use super::creation::OptionKind::{Bool, Number, Size, Text};
use super::creation::{OptionDesc, OptionKind};

const fn opt(name: &'static str, kind: OptionKind, help: &'static str) -> OptionDesc {
    OptionDesc { name, kind, help, default: None }
}

const fn opt_or(
    name: &'static str,
    kind: OptionKind,
    help: &'static str,
    default: &'static str,
) -> OptionDesc {
    OptionDesc { name, kind, help, default: Some(default) }
}

const SIZE: OptionDesc = opt("size", Size, "Virtual disk size");
const BACKING_FILE: OptionDesc = opt("backing_file", Text, "File name of a base image");
const BACKING_FMT: OptionDesc = opt("backing_fmt", Text, "Image format of the base image");
const COMPAT: OptionDesc = opt("compat", Text, "Compatibility level (v2 [0.10] or v3 [1.1])");
const DATA_FILE: OptionDesc = opt("data_file", Text, "File name of an external data file");
const DATA_FILE_RAW: OptionDesc =
    opt("data_file_raw", Bool, "The external data file must stay valid as a raw image");
const ITER_TIME: OptionDesc =
    opt("encrypt.iter-time", Number, "Time to spend in PBKDF in milliseconds");
const REFCOUNT_BITS: &str = "Width of a reference count entry in bits";
const LAZY: &str = "Postpone refcount updates";

/// What a file or host device adds.
pub const FILE: &[OptionDesc] = &[
    SIZE,
    opt("nocow", Bool, "Turn off copy-on-write (valid only on btrfs)"),
    opt("preallocation", Text, "Preallocation mode (allowed values: off, falloc, full)"),
    opt("extent_size_hint", Size, "Extent size hint for the image file, 0 to disable"),
];

const RAW: &[OptionDesc] = &[SIZE];

const QCOW2: &[OptionDesc] = &[
    opt(
        "encryption",
        Bool,
        "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)",
    ),
    opt("encrypt.format", Text, "Encrypt the image, format choices: 'aes', 'luks'"),
    opt("encrypt.key-secret", Text, "ID of secret providing qcow AES key or LUKS passphrase"),
    opt("encrypt.cipher-alg", Text, "Name of encryption cipher algorithm"),
    opt("encrypt.cipher-mode", Text, "Name of encryption cipher mode"),
    opt("encrypt.ivgen-alg", Text, "Name of IV generator algorithm"),
    opt("encrypt.ivgen-hash-alg", Text, "Name of IV generator hash algorithm"),
    opt("encrypt.hash-alg", Text, "Name of encryption hash algorithm"),
    ITER_TIME,
    opt_or("cluster_size", Size, "qcow2 cluster size", "65536"),
    opt_or("extended_l2", Bool, "Extended L2 tables", "off"),
    opt("preallocation", Text, "Preallocation mode (allowed values: off, metadata, falloc, full)"),
    opt_or(
        "compression_type",
        Text,
        "Compression method used for image cluster compression",
        "zlib",
    ),
    SIZE,
    COMPAT,
    BACKING_FILE,
    BACKING_FMT,
    DATA_FILE,
    DATA_FILE_RAW,
    opt_or("lazy_refcounts", Bool, LAZY, "off"),
    opt_or("refcount_bits", Number, REFCOUNT_BITS, "16"),
];

const VMDK: &[OptionDesc] = &[
    SIZE,
    opt(
        "adapter_type",
        Text,
        "Virtual adapter type, can be one of ide (default), lsilogic, buslogic or legacyESX",
    ),
    BACKING_FILE,
    opt("backing_fmt", Text, "Must be 'vmdk' if present"),
    opt_or("compat6", Bool, "VMDK version 6 image", "off"),
    opt_or("hwversion", Text, "VMDK hardware version", "undefined"),
    opt("toolsversion", Text, "VMware guest tools version"),
    opt(
        "subformat",
        Text,
        "VMDK flat extent format, can be one of {monolithicSparse (default) | monolithicFlat | \
         twoGbMaxExtentSparse | twoGbMaxExtentFlat | streamOptimized} ",
    ),
    opt("zeroed_grain", Bool, "Enable efficient zero writes using the zeroed-grain GTE feature"),
];

const QCOW2_AMEND: &[OptionDesc] = &[
    SIZE,
    COMPAT,
    BACKING_FILE,
    BACKING_FMT,
    DATA_FILE,
    DATA_FILE_RAW,
    opt_or("lazy_refcounts", Bool, LAZY, "off"),
    opt_or("refcount_bits", Number, REFCOUNT_BITS, "16"),
    opt("encrypt.state", Text, "Select new state of affected keyslots (active/inactive)"),
    opt("encrypt.keyslot", Number, "Select a single keyslot to modify explicitly"),
    opt("encrypt.old-secret", Text, "Select all keyslots that match this password"),
    opt(
        "encrypt.new-secret",
        Text,
        "New secret to set in the matching keyslots. Empty string to erase",
    ),
    ITER_TIME,
];

/// The creation options of a format; `None` for a format that cannot be created here.
pub fn create(format: &str) -> Option<&'static [OptionDesc]> {
    match format {
        "raw" => Some(RAW),
        "qcow2" => Some(QCOW2),
        "vmdk" => Some(VMDK),
        // Protocols: what is created is the bare file.
        "file" | "host_device" => Some(FILE),
        _ => None,
    }
}

/// The options `amend` can change; `None` for a format without.
pub fn amend(format: &str) -> Option<&'static [OptionDesc]> {
    (format == "qcow2").then_some(QCOW2_AMEND)
}
