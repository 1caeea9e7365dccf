//! Reasons that several rows have.

pub(super) const NAMES_OF_11: &str =
    "Names and letters of qemu-img 11.1 are taken; the reference does not have them.";
pub(super) const OLD_LETTERS: &str = "The letters of qemu-kvm 1.1 are taken for old scripts.";
pub(super) const NO_HALF_FILES: &str =
    "A failed command leaves no file behind; the reference leaves an empty or half one.";
pub(super) const WIDTH_KEPT: &str = "A snapshot that the width of the counts does not allow is refused before anything is written; the \
     reference leaves a leaked cluster.";
pub(super) const NAMED_FILE: &str = "The file that is not in the format is named.";
pub(super) const REBUILT_ONCE: &str = "The new refcount structure takes the place of the old one without a leak in between, so there is \
     nothing to repair twice.";
pub(super) const SPARSE_TABLES: &str = "New tables are sparse in the host's file; with so little stored the reference takes the image for a \
     preallocated one, looks for holes in the data, and finds them.";

pub(super) const MORE_FORMATS: &str =
    "Checking, repairing, resizing and measuring: the reference has no such thing for this format.";
pub(super) const VHDX_STATUS: &str =
    "The reference takes all of a VHDX for data, and cannot map it for people.";
pub(super) const FOOTER: &str = "A fixed VHD is not probed, so its file is compared: maker, time and identifier in the footer differ.";
pub(super) const NOTHING_STORED: &str = "Zeroes over blocks that were never written need no block.";

pub(super) const NO_KEY_TO_MEASURE: &str =
    "How large an encrypted image will be does not depend on the passphrase; none is asked for.";
pub(super) const PACKED_QCOW: &str =
    "The reference writes a compressed qcow and exits with 1 without a message, always.";
pub(super) const EMPTIED: &str =
    "What was committed takes no space in the overlay any more; the reference cannot empty it.";
pub(super) const LEFT_IN_USE: &str =
    "The reference marks an image as in use before it finds out that it cannot do what is wanted.";
