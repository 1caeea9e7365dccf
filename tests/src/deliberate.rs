//! Every difference from qemu-img that is on purpose, in one table, each with its reason.
//!
//! The differential suite rewrites the messages by this table before it compares them. Whatever is
//! not in here and not marked in a case table is a fault.

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
