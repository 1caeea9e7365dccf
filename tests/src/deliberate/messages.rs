//! Messages that are worded otherwise.

use super::Difference;

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
        why: "Details of qcow, QED, Parallels, VDI, VHD and VHDX (tables, kind, identifiers, parent): the reference shows none.",
        pattern: r"(?m)^Format specific information:\n(?:    [^\n]*\n)*?    (?:uuid|disk id|l2 entries|table size|table entries): [^\n]*\n(?:    [^\n]*\n)*",
        by: "",
    },
    Difference {
        why: "The same in JSON.",
        pattern: r#"(?m)^    "format-specific": \{\n        "type": "(?:qcow|qed|vdi|vpc|vhdx)",\n(?:        [^\n]*\n)+    \},\n"#,
        by: "",
    },
    Difference {
        why: "The same for Parallels, where it comes last.",
        pattern: r#"(?m),\n    "format-specific": \{\n        "type": "parallels",\n(?:        [^\n]*\n)+    \}$"#,
        by: "",
    },
    Difference {
        why: "A QED that was not closed: the reference does not tell.",
        pattern: r"(?m)(^file format: qed\n(?:[^\n]+\n)*?)cleanly shut down: no\n",
        by: "${1}",
    },
    Difference {
        why: "The same in JSON.",
        pattern: r#"(?m)("format": "qed",\n    "actual-size": [^\n]+\n    "dirty-flag": )true"#,
        by: "${1}false",
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
