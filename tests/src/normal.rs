//! What two programs print, made comparable: directories, dates, random identifiers, and sizes that
//! depend on the file system or on the placement of clusters.
//!
//! Numbers of the last kind are not thrown away: they come back beside the text and are compared
//! within a tolerance ([`Loose::close`]).

use crate::deliberate;
use regex_lite::{Captures, Regex};
use serde_json::Value;
use std::sync::LazyLock;

/// A number that may differ a little.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loose {
    /// What it is: `disk size`, `end offset`.
    pub what: &'static str,
    /// Bytes.
    pub bytes: u64,
    /// Of an image whose layout is the program's own choice: it may also be smaller.
    pub own_layout: bool,
}

impl Loose {
    /// Whether ours agrees with this one, the reference's: within 10 %, or 128 KiB for small ones. Where
    /// the layout is free, ours may be down to half, or 2 MiB smaller; and eight clusters larger, because
    /// tables are written beside the old ones before these are given up, and whole.
    #[must_use]
    pub fn close(&self, ours: &Self) -> bool {
        let least = if self.own_layout { 512 << 10 } else { 128 << 10 };
        let slack = (self.bytes.max(ours.bytes) / 10).max(least);
        let saved = if self.own_layout { (self.bytes / 2).max(2 << 20) } else { slack };
        let within = ours.bytes <= self.bytes.saturating_add(slack)
            && ours.bytes.saturating_add(saved.max(slack)) >= self.bytes;
        self.what == ours.what && within
    }
}

/// Comparable output.
#[derive(Debug, Clone)]
pub struct Normal {
    /// Compared exactly.
    pub text: String,
    /// Compared within a tolerance.
    pub loose: Vec<Loose>,
}

/// What cannot be the same on two sides.
struct Rules {
    fixed: Vec<(Regex, &'static str)>,
    numbers: Vec<(Regex, &'static str)>,
    /// Lengths of files whose layout is free.
    lengths: Vec<(Regex, &'static str)>,
}

static RULES: LazyLock<Rules> = LazyLock::new(|| {
    let compile = |table: &[(&str, &'static str)]| {
        table.iter().filter_map(|(p, by)| Some((Regex::new(p).ok()?, *by))).collect()
    };
    Rules {
        fixed: compile(&[
            // Snapshot tables: the date column.
            (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "<date>"),
            (r#""date-sec": \d+"#, r#""date-sec": <date>"#),
            (r#""date-nsec": \d+"#, r#""date-nsec": <date>"#),
            // VMDK content identifiers are random; the parent's is `none` (ffffffff) or the parent's own.
            (r#""cid": \d+"#, r#""cid": <cid>"#),
            (r"(?m)^( *)cid: \d+", "${1}cid: <cid>"),
            (r#""parent-cid": 4294967295"#, r#""parent-cid": <none>"#),
            (r#""parent-cid": \d+"#, r#""parent-cid": <cid>"#),
            (r"(?m)^( *)parent cid: 4294967295", "${1}parent cid: <none>"),
            (r"(?m)^( *)parent cid: \d+", "${1}parent cid: <cid>"),
            (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "<uuid>"),
            // Key derivation is timed on the machine.
            (r#""(iters|master-key-iters)": \d+"#, r#""$1": <n>"#),
            (r"(iters|master key iters): \d+", "$1: <n>"),
            (r"Run completed in \d+\.\d+ seconds", "Run completed in <n> seconds"),
            // Generated node names.
            (r"#block\d+", "#block<n>"),
            (r#""fragmented-clusters": \d+"#, r#""fragmented-clusters": <n>"#),
            (r"\d+\.\d\d% fragmented", "<n>% fragmented"),
        ]),
        numbers: compile(&[
            (r"(disk size: )([0-9.e+]+) ([KMGTPE]?i?B)", "disk size"),
            (r#"("actual-size": )(\d+)()"#, "disk size"),
            (r"(Image end offset: )(\d+)()", "end offset"),
            (r#"("image-end-offset": )(\d+)()"#, "end offset"),
        ]),
        lengths: compile(&[
            (r"(file length: )[0-9.e+]+ [KMGTPE]?i?B \((\d+) (bytes)\)", "file length"),
            // Deeper than the image itself: its children.
            (r#"(?m)^( {12,}"virtual-size": )(\d+)()"#, "file length"),
        ]),
    }
});

/// Makes `text`, printed by a program that ran in `dir`, comparable.
#[must_use]
pub fn normal(text: &str, dir: &str) -> Normal {
    let mut text = deliberate::rewrite(&text.replace(dir, "<dir>"));
    for (pattern, by) in &RULES.fixed {
        text = pattern.replace_all(&text, *by).into_owned();
    }
    let mut loose = Vec::new();
    let own_layout = has_own_layout(&text);
    let lengths = if own_layout { RULES.lengths.as_slice() } else { &[] };
    for (pattern, what) in RULES.numbers.iter().chain(lengths) {
        let found = pattern.replace_all(&text, |c: &Captures<'_>| {
            // Only images with tables have an end offset.
            let own_layout = own_layout || *what == "end offset";
            loose.push(Loose { what, bytes: bytes(&c[2], &c[3]), own_layout });
            format!("{}<{what}>", &c[1])
        });
        text = found.into_owned();
    }
    Normal { text, loose }
}

/// Whether `text` is about images with tables, and about no raw one, whose length is the disk's.
fn has_own_layout(text: &str) -> bool {
    let names = |format: &str| {
        text.contains(&format!("file format: {format}\n"))
            || text.contains(&format!("\"format\": \"{format}\""))
    };
    ["qcow2", "qcow", "qed", "parallels", "vmdk", "vdi", "vpc", "vhdx"].iter().any(|f| names(f))
        && !names("raw")
}

/// `"1.5"`, `"GiB"` as bytes.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // floats saturate
fn bytes(number: &str, unit: &str) -> u64 {
    let shift = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]
        .iter()
        .position(|known| *known == unit)
        .and_then(|index| i32::try_from(index).ok())
        .unwrap_or(0);
    (number.parse::<f64>().unwrap_or(0.0) * 1024_f64.powi(shift)) as u64
}

/// A map without host offsets: neighbours that differ in nothing else become one. Takes the JSON form
/// and the table for people; anything else comes back as it is.
#[must_use]
pub fn without_offsets(text: &str) -> String {
    match serde_json::from_str(text) {
        Ok(Value::Array(entries)) => Value::Array(merge_entries(entries)).to_string(),
        _ => merge_table(text),
    }
}

/// Merges neighbouring entries of a JSON map that differ only in their offsets.
#[must_use]
pub fn merge_entries(entries: Vec<Value>) -> Vec<Value> {
    let mut merged: Vec<Value> = Vec::new();
    for mut entry in entries {
        let (start, length) = (entry["start"].as_u64(), entry["length"].as_u64());
        if let Some(object) = entry.as_object_mut() {
            object.remove("offset");
        }
        if let (Some(last), Some(start), Some(length)) = (merged.last_mut(), start, length) {
            let same = ["depth", "present", "zero", "data", "compressed", "filename"]
                .iter()
                .all(|key| last[key] == entry[key]);
            let (from, had) = (last["start"].as_u64(), last["length"].as_u64());
            if same && from.zip(had).is_some_and(|(from, had)| from + had == start) {
                last["length"] = Value::from(had.unwrap_or(0) + length);
                continue;
            }
        }
        merged.push(entry);
    }
    merged
}

fn merge_table(text: &str) -> String {
    let number = |word: &str| u64::from_str_radix(word.trim_start_matches("0x"), 16).ok();
    let mut rows: Vec<(u64, u64, String)> = Vec::new();
    let mut out = String::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let row = match words[..] {
            [start, length, _, file] => {
                number(start).zip(number(length)).map(|(s, l)| (s, l, file))
            }
            _ => None,
        };
        match (row, rows.last_mut()) {
            (Some((start, length, file)), Some(last))
                if last.0 + last.1 == start && last.2 == file =>
            {
                last.1 += length;
            }
            (Some((start, length, file)), _) => rows.push((start, length, file.to_owned())),
            (None, _) => out.push_str(&format!("{line}\n")),
        }
    }
    for (start, length, file) in rows {
        out.push_str(&format!("{start:#x} {length:#x} {file}\n"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_loose_and_names_are_not() {
        let one = normal("image: /t/a\ndisk size: 196 KiB\n", "/t");
        let two = normal("image: /u/a\ndisk size: 200 KiB\n", "/u");
        assert_eq!(one.text, two.text);
        assert!(one.loose[0].close(&two.loose[0]));
        let far = normal("disk size: 1.5 GiB", "/u");
        assert_eq!(far.loose[0].bytes, 3 << 29);
        assert!(!one.loose[0].close(&far.loose[0]));
        assert!(!far.loose[0].close(&one.loose[0]));
    }

    #[test]
    fn images_with_tables_may_be_smaller_but_not_larger() {
        let text = |n| {
            let kib = n >> 10;
            format!("file format: qcow2\nChild:\n    file length: {kib} KiB ({n} bytes)\n")
        };
        let (large, small) = (normal(&text(12 << 20), "/t"), normal(&text(8 << 20), "/t"));
        assert_eq!(large.text, small.text);
        assert_eq!(large.loose[0].bytes, 12 << 20);
        assert!(large.loose[0].close(&small.loose[0]));
        assert!(!small.loose[0].close(&large.loose[0]));
        let tiny = normal(&text(4 << 20), "/t");
        assert!(!large.loose[0].close(&tiny.loose[0]));
        let raw = |n| normal(&format!("file format: raw\nfile length: 1 KiB ({n} bytes)\n"), "/t");
        assert_ne!(raw(1024).text, raw(1025).text);
    }

    #[test]
    fn random_identifiers_go_and_the_missing_parent_stays() {
        let text = normal("    cid: 12\n    parent cid: 4294967295\n", "/t").text;
        assert_eq!(text, "    cid: <cid>\n    parent cid: <none>\n");
        assert_eq!(normal("2026-01-02 03:04:05  00:00", "/t").text, "<date>  00:00");
    }

    #[test]
    fn maps_merge_over_offsets() {
        let json = r#"[{"start":0,"length":4,"depth":0,"data":true,"offset":8},
                       {"start":4,"length":4,"depth":0,"data":true,"offset":80}]"#;
        let merged: Value = serde_json::from_str(&without_offsets(json)).unwrap();
        assert_eq!(merged, serde_json::json!([{"start":0,"length":8,"depth":0,"data":true}]));
        let table =
            "Offset Length Mapped to File\n0 0x10000 0x50000 a\n0x10000 0x10000 0x90000 a\n";
        assert_eq!(without_offsets(table), "Offset Length Mapped to File\n0x0 0x20000 a\n");
    }
}
