//! Every difference from qemu-img that is on purpose, in one table, each with its reason.
//!
//! Three parts: [`DIFFERENCES`] rewrites the messages of both programs before they are compared,
//! [`LINES`] says what ours does at one line of one scenario, [`FILES`] what may differ in one file
//! afterwards. Whatever is not in here and not marked in a case table is a fault; so is a row that is
//! not needed any more.

use regex_lite::Regex;
use std::sync::LazyLock;

/// One deliberate difference.
pub struct Difference {
    /// What differs, and why ours is the way it is.
    pub why: &'static str,
    /// What is rewritten in the output of both programs.
    pub pattern: &'static str,
    /// By what.
    pub by: &'static str,
}

/// The table.
pub const DIFFERENCES: &[Difference] = &[
    Difference {
        why: "A refused lock names its holder: the reference tool only asks whether 'another \
              process' uses the image.",
        pattern: r"(?m)^[^\n]*\b(?:held|locked) by [^\n]*\n?|;? \(?(?:held|locked) by [^\n]*",
        by: "",
    },
    Difference {
        why: "Our messages about damaged or foreign images say where in the file the fault is.",
        pattern: r" ?\(at (?:byte |offset )(?:0x[0-9a-f]+|\d+)\)",
        by: "",
    },
    Difference {
        why: "Our messages name the file they are about where the reference tool's do not.",
        pattern: r" \(in '[^'\n]*'(?: at offset 0x[0-9a-f]+)?\)",
        by: "",
    },
    Difference {
        why: "A bitmap's image is called by its file: the reference tool makes up names of nodes.",
        pattern: r"(?m)(Can't store persistent bitmaps to )(?:#block\d+|[^\s:]+)(: )",
        by: "${1}<image>${2}",
    },
    Difference {
        why: "The same.",
        pattern: r"(?m)(Can't make bitmap '[^'\n]*' persistent in ')(?:#block\d+|[^'\n]+)(': )",
        by: "${1}<image>${2}",
    },
    Difference {
        why: "A place that is allocated but unused belongs to nothing the guest sees: what reads as \
              the file below has no offset.",
        pattern: r#"("present": false, "zero": true, "data": false, "compressed": false), "offset": \d+"#,
        by: "${1}",
    },
    Difference {
        why: "A damaged compressed cluster is named.",
        pattern: r"(error while reading offset \d+: )compressed cluster at [^\n]*: (Input/output error)",
        by: "${1}${2}",
    },
    Difference {
        why: "Details of VDI, VHD and VHDX (kind, identifiers, parent): the reference shows none.",
        pattern: r"(?m)^Format specific information:\n(?:    [^\n]*\n)*?    (?:uuid|disk id): [^\n]*\n(?:    [^\n]*\n)*",
        by: "",
    },
    Difference {
        why: "The same in JSON.",
        pattern: r#"(?m)^    "format-specific": \{\n        "type": "(?:vdi|vpc|vhdx)",\n(?:        [^\n]*\n)+    \},\n"#,
        by: "",
    },
    Difference {
        why: "Lines that begin with 'hint:' say what to do about an error; the reference tool has none \
              of its own for these.",
        pattern: r"(?m)^(?:qemu-img: )?hint: [^\n]*\n?",
        by: "",
    },
    Difference {
        why: "Progress is printed when it moved, and two programs never move alike; that it is printed \
              in the '(12.34/100%)' form and ends at 100 % is compared.",
        pattern: r"(?: *\(\d+\.\d\d/100%\)\r)+",
        by: "(progress)\r",
    },
    Difference {
        why: "The reference tool reports a file it cannot open twice in one line, once from each layer \
              ('Could not open 'x': Could not open 'x': No such file'); once is enough.",
        pattern: "",
        by: "",
    },
    Difference {
        why: "The reference tool neither finds nor removes leaked grains of a sparse VMDK and refuses \
              'check -r' for all of them (63). Ours tells leaks (3) and gives them back (0); what it \
              cannot repair it refuses with the same code. No case gives '-r' to a sparse VMDK.",
        pattern: "",
        by: "",
    },
];

/// One line of one scenario at which ours behaves otherwise on purpose.
#[derive(Debug)]
pub struct LineDifference {
    /// The scenario: table and name.
    pub scenario: &'static str,
    /// The command line, as in the table.
    pub line: &'static str,
    /// What differs, and why ours is the way it is.
    pub why: &'static str,
    /// Our exit code, where it differs.
    pub exit: Option<i32>,
    /// All of our output, where it differs: an expression.
    pub stdout: Option<&'static str>,
    /// All of our messages, where they differ: an expression.
    pub stderr: Option<&'static str>,
}

/// One file that differs on purpose after a scenario.
#[derive(Debug)]
pub struct FileDifference {
    /// The scenario: table and name.
    pub scenario: &'static str,
    /// The file.
    pub file: &'static str,
    /// What differs, and why ours is the way it is.
    pub why: &'static str,
    /// The only complaints that are allowed: an expression for their beginning.
    pub complaint: &'static str,
}

const NAMES_OF_11: &str =
    "Names and letters of qemu-img 11.1 are taken; the reference does not have them.";
const OLD_LETTERS: &str = "The letters of qemu-kvm 1.1 are taken for old scripts.";
const NO_HALF_FILES: &str =
    "A failed command leaves no file behind; the reference leaves an empty or half one.";
const WIDTH_KEPT: &str = "A snapshot that the width of the counts does not allow is refused before anything is written; the \
     reference leaves a leaked cluster.";
const NAMED_FILE: &str = "The file that is not in the format is named.";
const REBUILT_ONCE: &str = "The new refcount structure takes the place of the old one without a leak in between, so there is \
     nothing to repair twice.";
const SPARSE_TABLES: &str = "New tables are sparse in the host's file; with so little stored the reference takes the image for a \
     preallocated one, looks for holes in the data, and finds them.";

const MORE_FORMATS: &str =
    "Checking, repairing, resizing and measuring: the reference has no such thing for this format.";
const VHDX_STATUS: &str =
    "The reference takes all of a VHDX for data, and cannot map it for people.";
const FOOTER: &str = "A fixed VHD is not probed, so its file is compared: maker, time and identifier in the footer differ.";
const NOTHING_STORED: &str = "Zeroes over blocks that were never written need no block.";

const NO_KEY_TO_MEASURE: &str =
    "How large an encrypted image will be does not depend on the passphrase; none is asked for.";

/// Lines of scenarios.
pub const LINES: &[LineDifference] = &[
    LineDifference {
        scenario: "luks: map, check, measure, compare",
        line: "measure -O luks --size 1M",
        why: NO_KEY_TO_MEASURE,
        exit: Some(0),
        stdout: Some(r"required size: 3117056\nfully allocated size: 3117056\n"),
        stderr: Some(r""),
    },
    LineDifference {
        scenario: "encrypt: chains",
        line: "convert -O raw --object secret,id=t,data=top --object secret,id=s,data=abc --image-opts driver=qcow2,file.filename=top.qcow2,encrypt.key-secret=t a.raw",
        why: "The file that needs a key is named.",
        exit: None,
        stdout: None,
        stderr: Some(
            r"(?s).*Could not open backing file: Could not open 'base\.qcow2': Parameter 'encrypt\.key-secret' is required for cipher\n",
        ),
    },
    LineDifference {
        scenario: "luks: resize",
        line: "info a.luks",
        why: "New space reads as zeroes: they are written, encrypted. The reference leaves noise.",
        exit: None,
        stdout: Some(r"(?s).*disk size: <disk size>\n.*"),
        stderr: None,
    },
    LineDifference {
        scenario: "amend: getopt habits",
        line: "convert --target-format=raw a.qcow2 c.raw",
        why: NAMES_OF_11,
        exit: Some(0),
        stdout: None,
        stderr: Some(r""),
    },
    LineDifference {
        scenario: "amend: getopt habits",
        line: "convert --source-format qcow2 --target-format raw a.qcow2 d.raw",
        why: NAMES_OF_11,
        exit: Some(0),
        stdout: None,
        stderr: Some(r""),
    },
    LineDifference {
        scenario: "amend: getopt habits",
        line: "snapshot --crea x a.qcow2",
        why: NAMES_OF_11,
        exit: Some(0),
        stdout: None,
        stderr: Some(r""),
    },
    LineDifference {
        scenario: "measure: by size",
        line: "measure -O qcow2 -s 8E",
        why: NAMES_OF_11,
        exit: None,
        stdout: None,
        stderr: Some(
            r"qemu-img: Invalid image size specified\. Must be between 0 and 9223372036854775807\.\n",
        ),
    },
    LineDifference {
        scenario: "convert: progress",
        line: "convert --progress -f raw -O qcow2 a.raw b.qcow2",
        why: NAMES_OF_11,
        exit: Some(0),
        stdout: Some(r"\(progress\)\r\n"),
        stderr: Some(r""),
    },
    LineDifference {
        scenario: "snapshot: long names with arguments",
        line: "snapshot --create three a.qcow2",
        why: NAMES_OF_11,
        exit: Some(0),
        stdout: None,
        stderr: Some(r""),
    },
    LineDifference {
        scenario: "snapshot: long names with arguments",
        line: "snapshot --delete three a.qcow2",
        why: NAMES_OF_11,
        exit: Some(0),
        stdout: None,
        stderr: Some(r""),
    },
    LineDifference {
        scenario: "convert: old options",
        line: "convert -6 -O vmdk a.raw a.vmdk",
        why: OLD_LETTERS,
        exit: Some(0),
        stdout: None,
        stderr: Some(r""),
    },
    LineDifference {
        scenario: "convert: old options",
        line: "convert -e -O qcow2 a.raw a.qcow2",
        why: OLD_LETTERS,
        exit: None,
        stdout: None,
        stderr: Some(
            r"qemu-img: a\.qcow2: error while converting qcow2: Parameter 'encrypt\.key-secret' is required for cipher\n",
        ),
    },
    LineDifference {
        scenario: "convert: old options",
        line: "convert -s one -O raw a.qcow2 b.raw",
        why: OLD_LETTERS,
        exit: None,
        stdout: None,
        stderr: Some(r"qemu-img: Could not open 'a\.qcow2': No such file or directory\n"),
    },
    LineDifference {
        scenario: "amend: dd",
        line: "dd -O nosuch if=a.raw of=i.raw",
        why: "The format is named.",
        exit: None,
        stdout: None,
        stderr: Some(r"qemu-img: Unknown file format 'nosuch'\n"),
    },
    LineDifference {
        scenario: "amend: the program",
        line: "-T help",
        why: "The reference lists its own trace points; there are none here.",
        exit: None,
        stdout: Some(r"There are no trace points in this program\.\n"),
        stderr: None,
    },
    LineDifference {
        scenario: "check: refcount too low",
        line: "check -r all a.qcow2",
        why: REBUILT_ONCE,
        exit: None,
        stdout: None,
        stderr: Some(r"ERROR cluster 5 refcount=0 reference=1\nRebuilding refcount structure\n"),
    },
    LineDifference {
        scenario: "check: refcount too low",
        line: "check -r all --output=json b.qcow2",
        why: REBUILT_ONCE,
        exit: None,
        stdout: None,
        stderr: Some(r"ERROR cluster 5 refcount=0 reference=1\nRebuilding refcount structure\n"),
    },
    LineDifference {
        scenario: "convert: usage",
        line: "convert -t nosuch a b",
        why: "Options are checked before files are opened.",
        exit: None,
        stdout: None,
        stderr: Some(r"qemu-img: Invalid cache option: nosuch\n"),
    },
    LineDifference {
        scenario: "create: qcow2 backing",
        line: "create -f qcow2 -b base.raw -F nosuch j.qcow2",
        why: NAMED_FILE,
        exit: None,
        stdout: None,
        stderr: Some(
            r"qemu-img: j\.qcow2: Could not open 'base\.raw': Unknown driver 'nosuch'\nCould not open backing image\.\n",
        ),
    },
    LineDifference {
        scenario: "create: qcow2 backing of wrong format",
        line: "create -f qcow2 -b base.raw -F qcow2 a.qcow2",
        why: NAMED_FILE,
        exit: None,
        stdout: None,
        stderr: Some(
            r"qemu-img: a\.qcow2: Could not open 'base\.raw': Image is not in qcow2 format\nCould not open backing image\.\n",
        ),
    },
    LineDifference {
        scenario: "info: vmdk",
        line: "info b-s001.vmdk",
        why: "The reference says only 'Invalid argument'.",
        exit: None,
        stdout: None,
        stderr: Some(r"qemu-img: Could not open 'b-s001\.vmdk': invalid VMDK image descriptor\n"),
    },
    LineDifference {
        scenario: "info: vmdk",
        line: "info -f vmdk b-s001.vmdk",
        why: "The same.",
        exit: None,
        stdout: None,
        stderr: Some(r"qemu-img: Could not open 'b-s001\.vmdk': invalid VMDK image descriptor\n"),
    },
    LineDifference {
        scenario: "check: snapshots, compressed clusters, bitmaps",
        line: "check -r all a.qcow2",
        why: "The reference (10.0.2) loses all snapshots here: it does not load their table for a check, and \
              writes the header without it when bitmaps are there. Ours finds nothing to repair.",
        exit: None,
        stdout: Some(
            r"No errors were found on the image\.\n49/128 = 38\.28% allocated, <n>% fragmented, 2\.04% compressed clusters\nImage end offset: <end offset>\n",
        ),
        stderr: Some(r""),
    },
    LineDifference {
        scenario: "snapshot: widths and sizes",
        line: "check a.qcow2",
        why: WIDTH_KEPT,
        exit: Some(0),
        stdout: Some(r"No errors were found on the image\.\n.*"),
        stderr: Some(r""),
    },
    LineDifference {
        scenario: "snapshot: widths and sizes",
        line: "check b.qcow2",
        why: WIDTH_KEPT,
        exit: Some(0),
        stdout: Some(r"No errors were found on the image\.\n.*"),
        stderr: Some(r""),
    },
    LineDifference {
        scenario: "vdi: what qemu-img cannot",
        line: "measure -O vdi --size 100M",
        why: MORE_FORMATS,
        exit: Some(0),
        stdout: Some(r"required size: \d+\nfully allocated size: \d+\n"),
        stderr: Some(r""),
    },
    LineDifference {
        scenario: "vdi: what qemu-img cannot",
        line: "measure -O vdi -f raw a.raw",
        why: MORE_FORMATS,
        exit: Some(0),
        stdout: Some(r"required size: \d+\nfully allocated size: \d+\n"),
        stderr: Some(r""),
    },
    LineDifference {
        scenario: "vdi: what qemu-img cannot",
        line: "check -r all -f vdi a.vdi",
        why: MORE_FORMATS,
        exit: Some(0),
        stdout: Some(r"No errors were found on the image\.\n"),
        stderr: Some(r""),
    },
    LineDifference {
        scenario: "vdi: what qemu-img cannot",
        line: "resize -f vdi a.vdi +1M",
        why: MORE_FORMATS,
        exit: Some(0),
        stdout: Some(r"Image resized\.\n"),
        stderr: Some(r""),
    },
    LineDifference {
        scenario: "vdi: what qemu-img cannot",
        line: "resize -f vdi --shrink a.vdi 2M",
        why: MORE_FORMATS,
        exit: Some(0),
        stdout: Some(r"Image resized\.\n"),
        stderr: Some(r""),
    },
    LineDifference {
        scenario: "vpc: what qemu-img cannot",
        line: "measure -O vpc --size 100M",
        why: MORE_FORMATS,
        exit: Some(0),
        stdout: Some(r"required size: \d+\nfully allocated size: \d+\n"),
        stderr: Some(r""),
    },
    LineDifference {
        scenario: "vpc: what qemu-img cannot",
        line: "measure -O vpc -f raw a.raw",
        why: MORE_FORMATS,
        exit: Some(0),
        stdout: Some(r"required size: \d+\nfully allocated size: \d+\n"),
        stderr: Some(r""),
    },
    LineDifference {
        scenario: "vpc: what qemu-img cannot",
        line: "check -r all -f vpc a.vhd",
        why: MORE_FORMATS,
        exit: Some(0),
        stdout: Some(r"No errors were found on the image\.\n"),
        stderr: Some(r""),
    },
    LineDifference {
        scenario: "vpc: what qemu-img cannot",
        line: "resize -f vpc a.vhd +1M",
        why: MORE_FORMATS,
        exit: Some(0),
        stdout: Some(r"Image resized\.\n"),
        stderr: Some(r""),
    },
    LineDifference {
        scenario: "vpc: what qemu-img cannot",
        line: "resize -f vpc --shrink a.vhd 2M",
        why: MORE_FORMATS,
        exit: Some(0),
        stdout: Some(r"Image resized\.\n"),
        stderr: Some(r""),
    },
    LineDifference {
        scenario: "vhdx: what qemu-img cannot",
        line: "measure -O vhdx --size 100M",
        why: MORE_FORMATS,
        exit: Some(0),
        stdout: Some(r"required size: \d+\nfully allocated size: \d+\n"),
        stderr: Some(r""),
    },
    LineDifference {
        scenario: "vhdx: what qemu-img cannot",
        line: "measure -O vhdx -f raw a.raw",
        why: MORE_FORMATS,
        exit: Some(0),
        stdout: Some(r"required size: \d+\nfully allocated size: \d+\n"),
        stderr: Some(r""),
    },
    LineDifference {
        scenario: "vhdx: what qemu-img cannot",
        line: "resize -f vhdx a.vhdx +1M",
        why: MORE_FORMATS,
        exit: Some(0),
        stdout: Some(r"Image resized\.\n"),
        stderr: Some(r""),
    },
    LineDifference {
        scenario: "vhdx: what qemu-img cannot",
        line: "resize -f vhdx --shrink a.vhdx 2M",
        why: MORE_FORMATS,
        exit: Some(0),
        stdout: Some(r"Image resized\.\n"),
        stderr: Some(r""),
    },
    LineDifference {
        scenario: "vpc: check and map",
        line: "check -f vpc a.vhd",
        why: MORE_FORMATS,
        exit: Some(0),
        stdout: Some(r"No errors were found on the image\.\n"),
        stderr: Some(r""),
    },
    LineDifference {
        scenario: "vpc: check and map",
        line: "check -f vpc --output=json a.vhd",
        why: MORE_FORMATS,
        exit: Some(0),
        stdout: Some(
            r#"\{\n    "check-errors": 0,\n    "filename": "a\.vhd",\n    "format": "vpc"\n\}\n"#,
        ),
        stderr: Some(r""),
    },
    LineDifference {
        scenario: "vpc: check and map",
        line: "check -q -f vpc a.vhd",
        why: MORE_FORMATS,
        exit: Some(0),
        stdout: Some(r""),
        stderr: Some(r""),
    },
    LineDifference {
        scenario: "vhdx: check and map",
        line: "map -f vhdx a.vhdx",
        why: VHDX_STATUS,
        exit: Some(0),
        stdout: Some(r"(?s)Offset .*0x100000 .*0x500000 +0x100000 .*"),
        stderr: Some(r""),
    },
    LineDifference {
        scenario: "vhdx: check and map",
        line: "map -f vhdx --output=json a.vhdx",
        why: VHDX_STATUS,
        exit: None,
        stdout: Some(r#"(?s)\[.*"length": ?4194304.*\]\n?"#),
        stderr: None,
    },
    LineDifference {
        scenario: "vhdx: check and map",
        line: "map -s 4M -l 2M -f vhdx --output=json a.vhdx",
        why: VHDX_STATUS,
        exit: None,
        stdout: Some(r#"(?s)\[.*"length": ?1048576.*\]\n?"#),
        stderr: None,
    },
    LineDifference {
        scenario: "vhdx: compare and dd",
        line: "compare -s -f vhdx -F raw b.vhdx a.raw",
        why: VHDX_STATUS,
        exit: None,
        stdout: Some(r"Strict mode: Offset 1048576 block status mismatch!\n"),
        stderr: None,
    },
];

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

/// The row for a line, if there is one.
#[must_use]
pub fn line(scenario: &str, text: &str) -> Option<&'static LineDifference> {
    LINES.iter().find(|row| row.scenario == scenario && row.line == text)
}

/// Whether all of `text` is what `wanted` says.
#[must_use]
pub fn is_all(wanted: &str, text: &str) -> bool {
    Regex::new(&format!(r"\A(?s:{wanted})\z")).is_ok_and(|pattern| pattern.is_match(text))
}

/// The complaints about a file that no row allows; a row that allows nothing is one more.
#[must_use]
pub fn without_allowed(scenario: &str, file: &str, complaints: Vec<String>) -> Vec<String> {
    let Some(row) = FILES.iter().find(|row| row.scenario == scenario && row.file == file) else {
        return complaints;
    };
    let Ok(allowed) = Regex::new(&format!(r"\A(?:{})", row.complaint)) else {
        return complaints;
    };
    let before = complaints.len();
    let mut left: Vec<String> =
        complaints.into_iter().filter(|complaint| !allowed.is_match(complaint)).collect();
    if left.len() == before {
        left.push("the deliberate table allows a difference that is no more".to_owned());
    }
    left
}

/// Rewrites `text` by the table.
#[must_use]
pub fn rewrite(text: &str) -> String {
    static COMPILED: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
        let with_pattern = DIFFERENCES.iter().filter(|d| !d.pattern.is_empty());
        with_pattern.filter_map(|d| Some((Regex::new(d.pattern).ok()?, d.by))).collect()
    });
    let mut text = text.to_owned();
    for (pattern, by) in COMPILED.iter() {
        text = pattern.replace_all(&text, *by).into_owned();
    }
    say_once(&text)
}

/// `A 'x': A 'x': B` becomes `A 'x': B`, which no regular expression without back references can say.
fn say_once(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        let mut line = line.to_owned();
        let mut from = 0;
        while let Some(at) = line[from..].find("Could not open '").map(|at| at + from) {
            let Some(end) = line[at..].find("': ").map(|end| at + end + 3) else { break };
            if line[end..].starts_with(&line[at..end]) {
                line.replace_range(at..end, "");
                from = at;
            } else {
                from = end;
            }
        }
        out.push_str(&line);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pattern_compiles() {
        for difference in DIFFERENCES {
            assert!(Regex::new(difference.pattern).is_ok(), "{}", difference.pattern);
            assert!(!difference.why.is_empty());
        }
    }

    #[test]
    fn a_doubled_prefix_is_said_once() {
        let twice = "qemu-img: Could not open 'x': Could not open 'x': No such file\n";
        let once = "qemu-img: Could not open 'x': No such file\n";
        assert_eq!(rewrite(twice), once);
        assert_eq!(rewrite(once), once);
        let nested = "qemu-img: Could not open 'x': Could not open 'y': No such file\n";
        assert_eq!(rewrite(nested), nested);
    }

    #[test]
    fn a_lock_holder_is_dropped() {
        let ours = "qemu-img: Failed to get \"write\" lock\nIs another process using the image [x]?\n\
                    It is held by qemu-io (pid 12: qemu-io x)\n";
        let theirs =
            "qemu-img: Failed to get \"write\" lock\nIs another process using the image [x]?\n";
        assert_eq!(rewrite(ours), theirs);
        let inline = "Failed to get \"write\" lock, held by qemu-io (pid 1: x)\n";
        assert_eq!(rewrite(inline), "");
    }

    #[test]
    fn progress_is_one_thing() {
        assert_eq!(rewrite("    (0.00/100%)\r    (100.00/100%)\r\n"), "(progress)\r\n");
    }
}
