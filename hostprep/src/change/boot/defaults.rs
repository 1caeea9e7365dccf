//! /etc/default/grub and its drop-ins: shell assignments that grub-mkconfig sources (GRUB manual, "Simple
//! configuration handling").
//!
//! Only what a shell would read the same way is edited: one assignment a line, its value one quoted or plain text.

use super::words;
use crate::error::{Error, Result};

/// One assignment in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Assignment {
    name: String,
    /// Byte range of the value, quotes included.
    start: usize,
    end: usize,
    /// The quote around it, None for a plain word.
    quote: Option<char>,
    /// The text between the quotes.
    inner: String,
    line: usize,
}

/// Why a text cannot be edited.
struct Trouble {
    line: usize,
    what: &'static str,
}

/// All assignments; commands of other kinds (`export`, `.`, `if`) are passed over.
fn assignments(text: &str) -> std::result::Result<Vec<Assignment>, Trouble> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let line = 1 + bytes[..at].iter().filter(|byte| **byte == b'\n').count();
        let end_of_line = |from: usize| {
            bytes[from..].iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |n| from + n)
        };
        let start = at + bytes[at..].iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
        let named = bytes[start..]
            .iter()
            .take_while(|byte| byte.is_ascii_alphanumeric() || **byte == b'_')
            .count();
        let equals = start + named;
        if named == 0 || bytes.get(equals) != Some(&b'=') {
            at = end_of_line(start) + 1;
            continue;
        }
        let value = equals + 1;
        let trouble = |what| Trouble { line, what };
        let quote = match bytes.get(value) {
            Some(b'"') => Some('"'),
            Some(b'\'') => Some('\''),
            _ => None,
        };
        let end = match quote {
            Some('\'') => {
                let length = bytes[value + 1..].iter().position(|byte| *byte == b'\'');
                value + 2 + length.ok_or(trouble("a quote is not closed"))?
            }
            Some(_) => {
                let mut end = value + 1;
                loop {
                    match bytes.get(end) {
                        None => return Err(trouble("a quote is not closed")),
                        Some(b'\\') => end += 2,
                        Some(b'"') => break end + 1,
                        Some(_) => end += 1,
                    }
                }
            }
            None => {
                let stop = |byte: &u8| byte.is_ascii_whitespace() || matches!(byte, b';' | b'#');
                value + bytes[value..].iter().take_while(|byte| !stop(byte)).count()
            }
        };
        // What follows must end the word: pieces glued together are beyond us.
        let after = bytes.get(end).copied().unwrap_or(b'\n');
        let inner = match quote {
            Some(_) => &text[value + 1..end - 1],
            None => &text[value..end],
        };
        let glued = !after.is_ascii_whitespace() && after != b';';
        if glued || (quote.is_none() && inner.contains(['"', '\'', '\\'])) {
            return Err(trouble("the value is not one quoted text"));
        }
        found.push(Assignment {
            name: text[start..equals].to_owned(),
            start: value,
            end,
            quote,
            inner: inner.to_owned(),
            line,
        });
        at = end_of_line(end) + 1;
    }
    Ok(found)
}

/// Whether a text assigns the variable.
pub fn assigns(text: &str, variable: &str) -> bool {
    assignments(text).is_ok_and(|all| all.iter().any(|one| one.name == variable))
}

/// The value that a variable ends up with, as it stands between the quotes.
pub fn value(text: &str, variable: &str) -> Option<String> {
    let all = assignments(text).ok()?;
    all.into_iter().rev().find(|one| one.name == variable).map(|one| one.inner)
}

/// The text with the words added to GRUB_CMDLINE_LINUX; those that GRUB_CMDLINE_LINUX_DEFAULT, which comes later
/// on the kernel line, would set otherwise are replaced there. `path` is for messages.
pub fn edit(path: &str, old: &str, wanted: &[String]) -> Result<String> {
    const LINE: &str = "GRUB_CMDLINE_LINUX";
    let refuse = |line: usize, what: &str| {
        Error::refused(format!("line {line} of {path}: {what}"))
            .at(path)
            .remedy(format!("write {LINE}=\"...\" on one line"))
    };
    let all = assignments(old).map_err(|trouble| refuse(trouble.line, trouble.what))?;
    let mut text = old.to_owned();
    let mut found = false;
    for one in all.iter().rev() {
        let inner = if one.name == LINE && !found {
            found = true;
            words::merge(&one.inner, wanted)
        } else if one.name == "GRUB_CMDLINE_LINUX_DEFAULT" {
            words::overrule(&one.inner, wanted)
        } else {
            continue;
        };
        if one.inner.contains(['`', '\n']) || one.inner.contains("$(") {
            return Err(refuse(
                one.line,
                "the value is the output of a command, or has several lines",
            ));
        }
        let quote = one.quote.unwrap_or('"');
        text.replace_range(one.start..one.end, &format!("{quote}{inner}{quote}"));
    }
    if !found {
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str(&format!("{LINE}=\"{}\"\n", words::merge("", wanted)));
    }
    check(&text, &all, wanted).map_err(|what| refuse(1, what))?;
    Ok(text)
}

/// Whether the new text parses, holds the words, and has all other assignments as they were.
fn check(
    text: &str,
    old: &[Assignment],
    wanted: &[String],
) -> std::result::Result<(), &'static str> {
    let Ok(new) = assignments(text) else { return Err("the changed text would not parse") };
    let ours = |name: &str| name.starts_with("GRUB_CMDLINE_LINUX");
    let others = |all: &[Assignment]| -> Vec<(String, String)> {
        let others = all.iter().filter(|one| !ours(&one.name));
        others.map(|one| (one.name.clone(), one.inner.clone())).collect()
    };
    if others(&new) != others(old) {
        return Err("the change would touch other settings");
    }
    let line = new.iter().rfind(|one| one.name == "GRUB_CMDLINE_LINUX");
    if line.is_some_and(|one| words::hold(&words::split(&one.inner), wanted)) {
        return Ok(());
    }
    Err("the changed text would not hold the words")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edited(old: &str) -> Result<String> {
        edit("/etc/default/grub", old, &["isolcpus=2-3".to_owned()])
    }

    #[test]
    fn edits() {
        for (old, new) in [
            (
                "A=1\nGRUB_CMDLINE_LINUX=\"quiet isolcpus=1\"\nB=2\n",
                "A=1\nGRUB_CMDLINE_LINUX=\"quiet isolcpus=2-3\"\nB=2\n",
            ),
            ("", "GRUB_CMDLINE_LINUX=\"isolcpus=2-3\"\n"),
            ("A=1", "A=1\nGRUB_CMDLINE_LINUX=\"isolcpus=2-3\"\n"),
            (
                "GRUB_CMDLINE_LINUX=quiet # why\n",
                "GRUB_CMDLINE_LINUX=\"quiet isolcpus=2-3\" # why\n",
            ),
            ("GRUB_CMDLINE_LINUX='a  b'\n", "GRUB_CMDLINE_LINUX='a b isolcpus=2-3'\n"),
            (
                "GRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX x=\\\"a b\\\"\"\n",
                "GRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX x=\\\"a b\\\" isolcpus=2-3\"\n",
            ),
            (
                "GRUB_CMDLINE_LINUX=\"\"\nGRUB_CMDLINE_LINUX_DEFAULT=\"quiet isolcpus=1\"\n",
                "GRUB_CMDLINE_LINUX=\"isolcpus=2-3\"\nGRUB_CMDLINE_LINUX_DEFAULT=\"quiet isolcpus=2-3\"\n",
            ),
            // The last assignment wins in a shell.
            (
                "GRUB_CMDLINE_LINUX=a\nGRUB_CMDLINE_LINUX=b\n",
                "GRUB_CMDLINE_LINUX=a\nGRUB_CMDLINE_LINUX=\"b isolcpus=2-3\"\n",
            ),
        ] {
            assert_eq!(edited(old).unwrap(), new);
            assert_eq!(edited(new).unwrap(), new, "not idempotent");
        }
        assert!(assigns("x=1\n GRUB_CMDLINE_LINUX=\n", "GRUB_CMDLINE_LINUX"));
        assert!(!assigns("# GRUB_CMDLINE_LINUX=x\n", "GRUB_CMDLINE_LINUX"));
    }

    #[test]
    fn refuses_what_a_shell_reads_otherwise() {
        for bad in [
            "GRUB_CMDLINE_LINUX=\"$(x \"y\")\"\n",
            "GRUB_CMDLINE_LINUX=\"`x`\"\n",
            "GRUB_CMDLINE_LINUX=\"open\n",
            "GRUB_CMDLINE_LINUX='open\n",
            "GRUB_CMDLINE_LINUX=\"a\"'b'\n",
            "GRUB_CMDLINE_LINUX=a\\ b\n",
            "GRUB_CMDLINE_LINUX=\"a\nb\"\n",
            "GRUB_DISTRIBUTOR=\"open\nGRUB_CMDLINE_LINUX=x\n",
        ] {
            let error = edited(bad).unwrap_err();
            assert!(error.to_string().contains("line "), "{bad}: {error}");
        }
    }
}
