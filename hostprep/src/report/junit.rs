//! The report as JUnit XML: a test case a check; warnings and errors are failures, what does not apply or is
//! not known is skipped.

use std::fmt::Write as _;

use crate::check::{Finding, Status};

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' => out.push_str("&#10;"),
            // XML 1.0 forbids other control characters even escaped.
            c if c.is_control() && c != '\t' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// Writes the report.
pub fn junit(findings: &[Finding]) -> String {
    let count = |wanted: &[Status]| {
        findings.iter().filter(|finding| wanted.contains(&finding.outcome.status)).count()
    };
    let failures = count(&[Status::Warning, Status::Error, Status::Fatal]);
    let skipped = count(&[Status::Skipped, Status::Unknown]);
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "<testsuites><testsuite name=\"rhostprep\" tests=\"{}\" failures=\"{failures}\" errors=\"0\" skipped=\"{skipped}\">",
        findings.len()
    );
    for finding in findings {
        let group = finding.id.split('.').next().unwrap_or_default();
        let _ = write!(out, "  <testcase classname=\"{group}\" name=\"{}\"", finding.id);
        let summary = escape(&finding.outcome.summary);
        match finding.outcome.status {
            Status::Pass | Status::Info => out.push_str("/>\n"),
            Status::Skipped | Status::Unknown => {
                let _ = writeln!(out, "><skipped message=\"{summary}\"/></testcase>");
            }
            status => {
                let _ = write!(out, "><failure type=\"{}\" message=\"{summary}\">", status.word());
                for evidence in &finding.outcome.read {
                    let _ =
                        writeln!(out, "{}: {}", escape(&evidence.source), escape(&evidence.value));
                }
                if let Some(remedy) = &finding.outcome.remedy {
                    let _ = writeln!(out, "{}", escape(&remedy.text));
                    for command in &remedy.commands {
                        let _ = writeln!(out, "$ {}", escape(command));
                    }
                }
                out.push_str("</failure></testcase>\n");
            }
        }
    }
    out.push_str("</testsuite></testsuites>\n");
    out
}
