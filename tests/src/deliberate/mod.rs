//! Every difference from qemu-img that is on purpose, in one table, each with its reason.
//!
//! Three parts: [`DIFFERENCES`] rewrites the messages of both programs before they are compared,
//! [`LINES`] says what ours does at one line of one scenario, [`FILES`] what may differ in one file
//! afterwards. Whatever is not in here and not marked in a case table is a fault; so is a row that is
//! not needed any more.

mod files;
mod lines;
mod messages;
mod reasons;

pub use files::FILES;
pub use lines::LINES;
pub use messages::DIFFERENCES;

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
