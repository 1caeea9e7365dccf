//! Files that come out otherwise.

use super::FileDifference;
use super::reasons::{
    FOOTER, NAMES_OF_11, NO_HALF_FILES, NOTHING_STORED, OLD_LETTERS, SPARSE_TABLES, WIDTH_KEPT,
};

/// Files of scenarios.
pub const FILES: &[FileDifference] = &[
    FileDifference {
        scenario: "amend: getopt habits",
        file: "c.raw",
        why: NAMES_OF_11,
        complaint: r"only ours left it",
    },
    FileDifference {
        scenario: "amend: getopt habits",
        file: "d.raw",
        why: NAMES_OF_11,
        complaint: r"only ours left it",
    },
    FileDifference {
        scenario: "amend: getopt habits",
        file: "a.qcow2",
        why: NAMES_OF_11,
        complaint: r"info:",
    },
    FileDifference {
        scenario: "convert: progress",
        file: "b.qcow2",
        why: NAMES_OF_11,
        complaint: r"only ours left it",
    },
    FileDifference {
        scenario: "convert: old options",
        file: "a.vmdk",
        why: OLD_LETTERS,
        complaint: r"only ours left it",
    },
    FileDifference {
        scenario: "amend: amend down with features in use",
        file: "b.qcow2",
        why: "Version 2 has no bitmaps: ours removes their clusters with them, the reference leaks them.",
        complaint: r"check: exit 3 / exit 0",
    },
    FileDifference {
        scenario: "check: snapshots, compressed clusters, bitmaps",
        file: "a.qcow2",
        why: "The reference loses the snapshots, see the line.",
        complaint: r"info:",
    },
    FileDifference {
        scenario: "commit: rebase over other sizes",
        file: "a.qcow2",
        why: "What reads as zero beyond the end of the old file below becomes zero clusters, not stored zeroes.",
        complaint: r"(?:check|map):",
    },
    FileDifference {
        scenario: "convert: create options",
        file: "h.qcow2",
        why: SPARSE_TABLES,
        complaint: r"map:",
    },
    FileDifference {
        scenario: "create: qcow2 external data file",
        file: "b.qcow2",
        why: SPARSE_TABLES,
        complaint: r"map:",
    },
    FileDifference {
        scenario: "create: qcow2 external data file",
        file: "d.qcow2",
        why: SPARSE_TABLES,
        complaint: r"map:",
    },
    FileDifference {
        scenario: "create: qcow2 preallocation",
        file: "f.qcow2",
        why: "With clusters of 512 bytes holes of the host's file are found by pages, which lie otherwise.",
        complaint: r"map:",
    },
    FileDifference {
        scenario: "convert: backing target",
        file: "thin4.qcow2",
        why: NO_HALF_FILES,
        complaint: r"ours is missing",
    },
    FileDifference {
        scenario: "convert: bitmaps",
        file: "d.raw",
        why: NO_HALF_FILES,
        complaint: r"ours is missing",
    },
    FileDifference {
        scenario: "convert: bitmaps",
        file: "e.qcow2",
        why: NO_HALF_FILES,
        complaint: r"ours is missing",
    },
    FileDifference {
        scenario: "create: raw preallocation",
        file: "d.raw",
        why: NO_HALF_FILES,
        complaint: r"ours is missing",
    },
    FileDifference {
        scenario: "snapshot: widths and sizes",
        file: "a.qcow2",
        why: WIDTH_KEPT,
        complaint: r"check: exit 3 / exit 0",
    },
    FileDifference {
        scenario: "snapshot: widths and sizes",
        file: "b.qcow2",
        why: WIDTH_KEPT,
        complaint: r"check: exit 3 / exit 0",
    },
    FileDifference {
        scenario: "vdi: create",
        file: "j.vdi",
        why: NO_HALF_FILES,
        complaint: r"ours is missing",
    },
    FileDifference {
        scenario: "vpc: create",
        file: "j.vhd",
        why: NO_HALF_FILES,
        complaint: r"ours is missing",
    },
    FileDifference {
        scenario: "vpc: create",
        file: "j2.vhd",
        why: NO_HALF_FILES,
        complaint: r"ours is missing",
    },
    FileDifference {
        scenario: "vpc: create",
        file: "k.vhd",
        why: NO_HALF_FILES,
        complaint: r"ours is missing",
    },
    FileDifference {
        scenario: "vhdx: create",
        file: "c.vhdx",
        why: "For a disk of no bytes the reference wants a table of 64 MiB (it counts one entry less than none).",
        complaint: r"ours does not open",
    },
    FileDifference {
        scenario: "vhdx: create",
        file: "j.vhdx",
        why: NO_HALF_FILES,
        complaint: r"ours is missing",
    },
    FileDifference {
        scenario: "vhdx: create",
        file: "k.vhdx",
        why: NO_HALF_FILES,
        complaint: r"ours is missing",
    },
    FileDifference {
        scenario: "vhdx: create",
        file: "k2.vhdx",
        why: NO_HALF_FILES,
        complaint: r"ours is missing",
    },
    FileDifference {
        scenario: "vhdx: create",
        file: "k3.vhdx",
        why: NO_HALF_FILES,
        complaint: r"ours is missing",
    },
    FileDifference {
        scenario: "vhdx: create",
        file: "k4.vhdx",
        why: NO_HALF_FILES,
        complaint: r"ours is missing",
    },
    FileDifference {
        scenario: "vpc: create",
        file: "f.vhd",
        why: FOOTER,
        complaint: r"bytes differ",
    },
    FileDifference {
        scenario: "vpc: create",
        file: "h.vhd",
        why: FOOTER,
        complaint: r"bytes differ",
    },
    FileDifference {
        scenario: "vpc: info",
        file: "a1.vhd",
        why: FOOTER,
        complaint: r"bytes differ",
    },
    FileDifference {
        scenario: "vpc: convert both ways",
        file: "c1.vhd",
        why: FOOTER,
        complaint: r"bytes differ",
    },
    FileDifference {
        scenario: "vdi: convert both ways",
        file: "c0.vdi",
        why: NOTHING_STORED,
        complaint: r"map:",
    },
    FileDifference {
        scenario: "vpc: convert both ways",
        file: "c0.vhd",
        why: NOTHING_STORED,
        complaint: r"map:",
    },
];
