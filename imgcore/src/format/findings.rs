//! What a check has found so far: counts, and lines for people. All formats whose own walk finds damage share it.

use super::{CheckReport, Repair, Watcher};

/// Findings that get a line of their own; a damaged table may have millions.
const MAX_LINES: u64 = 100;

/// Counts and words of one check.
pub(crate) struct Findings<'a> {
    /// Whom lines, progress and the question whether to go on are for.
    pub watcher: &'a dyn Watcher,
    /// What is to be mended.
    pub repair: Repair,
    /// The counts.
    pub report: CheckReport,
    lines: u64,
    word: &'static str,
}

impl<'a> Findings<'a> {
    /// Nothing yet.
    pub fn new(watcher: &'a dyn Watcher, repair: Repair) -> Self {
        Findings { watcher, repair, report: CheckReport::default(), lines: 0, word: "ERROR:" }
    }

    /// With another word before what is damaged, for a format for which QEMU has one.
    pub fn with_word(self, word: &'static str) -> Self {
        Findings { word, ..self }
    }

    /// Whether damage is mended.
    pub fn mends(&self) -> bool {
        self.repair == Repair::All
    }

    /// A line for people.
    pub fn note(&mut self, line: &str) {
        self.lines += 1;
        if self.lines <= MAX_LINES {
            self.watcher.note(line);
        }
    }

    /// Counts damage; whether it is to be mended.
    pub fn damage(&mut self, line: &str) -> bool {
        if self.mends() {
            self.report.corruptions_fixed += 1;
            self.note(&format!("Repairing {line}"));
            return true;
        }
        self.beyond_repair(line);
        false
    }

    /// Counts damage that nobody can mend.
    pub fn beyond_repair(&mut self, line: &str) {
        self.report.corruptions += 1;
        self.note(&format!("{} {line}", self.word));
    }

    /// Counts leaks; whether they are to be mended. Where damage is left, they are not: what seems leaked may be what the
    /// damaged tables should lead to.
    pub fn leak(&mut self, count: u64, line: &str) -> bool {
        let mend = self.repair != Repair::Nothing && self.report.corruptions == 0;
        if mend {
            self.report.leaks_fixed += count;
            self.note(&format!("Repairing {line}"));
        } else {
            self.report.leaks += count;
            self.note(&format!("Leaked: {line}"));
        }
        mend
    }

    /// The counts, after a line about lines that were left out.
    pub fn finish(self) -> CheckReport {
        if self.lines > MAX_LINES {
            self.watcher.note(&format!("... and {} more", self.lines - MAX_LINES));
        }
        self.report
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Lines(Mutex<Vec<String>>);

    impl Watcher for Lines {
        fn note(&self, line: &str) {
            self.0.lock().unwrap().push(line.to_owned());
        }
    }

    #[test]
    fn many_findings_are_counted_and_few_are_told() {
        let lines = Lines::default();
        let mut findings = Findings::new(&lines, Repair::Leaks);
        assert!(findings.leak(3, "three"));
        for i in 0..200 {
            assert!(!findings.damage(&format!("number {i}")));
        }
        assert!(!findings.leak(2, "two"));
        let report = findings.finish();
        assert_eq!((report.corruptions, report.leaks, report.leaks_fixed), (200, 2, 3));
        let lines = lines.0.into_inner().unwrap();
        assert_eq!(lines.len(), 101);
        assert_eq!(
            [&lines[0], &lines[1], &lines[100]],
            ["Repairing three", "ERROR: number 0", "... and 102 more"]
        );
    }

    #[test]
    fn repair_mends_damage() {
        let lines = Lines::default();
        let mut findings = Findings::new(&lines, Repair::All).with_word("ERROR");
        assert!(findings.damage("this"));
        findings.beyond_repair("that");
        let report = findings.finish();
        assert_eq!((report.corruptions, report.corruptions_fixed), (1, 1));
        assert_eq!(lines.0.into_inner().unwrap(), ["Repairing this", "ERROR that"]);
    }
}
