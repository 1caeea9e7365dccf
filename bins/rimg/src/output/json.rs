//! JSON as QEMU prints it: four spaces a level, an empty list or object over two lines, characters
//! outside ASCII escaped, and members in the order of QEMU's hash table.
//!
//! That order looks arbitrary but is fixed: a member's bucket, out of 512, follows from its name by
//! the hash function of tdb (the Samba project's trivial database); of two in one bucket the later
//! one comes first.

use serde_json::Value;

const BUCKETS: u32 = 512;
const INDENT: usize = 4;

/// A value over several lines, with a line end.
pub fn pretty(value: &Value) -> String {
    let mut out = String::new();
    write(value, 0, &mut out);
    out.push('\n');
    out
}

/// A value on one line.
pub fn compact(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(map) => {
            let parts: Vec<String> = members(map)
                .into_iter()
                .map(|(k, v)| format!("{}: {}", compact(&k.into()), compact(v)))
                .collect();
            return format!("{{{}}}", parts.join(", "));
        }
        Value::Array(list) => {
            let parts: Vec<String> = list.iter().map(compact).collect();
            return format!("[{}]", parts.join(", "));
        }
        Value::String(s) => string(s, &mut out),
        other => out.push_str(&other.to_string()),
    }
    out
}

/// The members of an object in QEMU's order.
pub fn members(map: &serde_json::Map<String, Value>) -> Vec<(&str, &Value)> {
    let mut list: Vec<_> = map.iter().map(|(k, v)| (k.as_str(), v)).collect();
    list.reverse();
    list.sort_by_key(|(k, _)| bucket(k));
    list
}

/// Trivial database's string hash, in 32-bit arithmetic.
fn bucket(name: &str) -> u32 {
    let len = u32::try_from(name.len()).unwrap_or(u32::MAX);
    let mut value = 0x238F_13AF_u32.wrapping_mul(len);
    let mut shift = 0;
    for byte in name.bytes() {
        value = value.wrapping_add(u32::from(byte) << shift);
        shift = (shift + 5) % 24;
    }
    value.wrapping_mul(1_103_515_243).wrapping_add(12345) % BUCKETS
}

fn write(value: &Value, level: usize, out: &mut String) {
    match value {
        Value::Object(map) => {
            let entries = members(map).into_iter().map(|(k, v)| (Some(k), v)).collect();
            block(entries, ['{', '}'], level, out);
        }
        Value::Array(list) => {
            block(list.iter().map(|v| (None, v)).collect(), ['[', ']'], level, out);
        }
        Value::String(s) => string(s, out),
        other => out.push_str(&other.to_string()),
    }
}

fn block(entries: Vec<(Option<&str>, &Value)>, marks: [char; 2], level: usize, out: &mut String) {
    out.push(marks[0]);
    for (i, (key, value)) in entries.into_iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        new_line(level + 1, out);
        if let Some(key) = key {
            string(key, out);
            out.push_str(": ");
        }
        write(value, level + 1, out);
    }
    new_line(level, out);
    out.push(marks[1]);
}

fn new_line(level: usize, out: &mut String) {
    out.push('\n');
    out.extend(std::iter::repeat_n(' ', level * INDENT));
}

fn string(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            ' '..='~' => out.push(c),
            _ => {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    out.push_str(&format!("\\u{unit:04X}"));
                }
            }
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Orders seen in the output of qemu-img 10.0.2.
    #[test]
    fn order() {
        let sorted = |names: &[&str]| {
            let map = names.iter().map(|n| ((*n).to_owned(), Value::Null)).collect();
            members(&map).iter().map(|(k, _)| (*k).to_owned()).collect::<Vec<_>>()
        };
        for names in [
            &[
                "children",
                "backing-filename-format",
                "virtual-size",
                "filename",
                "cluster-size",
                "format",
                "actual-size",
                "format-specific",
                "full-backing-filename",
                "backing-filename",
                "dirty-flag",
            ][..],
            &[
                "compat",
                "compression-type",
                "lazy-refcounts",
                "bitmaps",
                "refcount-bits",
                "corrupt",
                "extended-l2",
            ],
            &[
                "image-end-offset",
                "compressed-clusters",
                "total-clusters",
                "check-errors",
                "allocated-clusters",
                "filename",
                "format",
                "fragmented-clusters",
            ],
            &[
                "icount",
                "vm-clock-nsec",
                "name",
                "date-sec",
                "date-nsec",
                "vm-clock-sec",
                "id",
                "vm-state-size",
            ],
            &["bitmaps", "required", "fully-allocated"],
        ] {
            assert_eq!(sorted(names), names);
        }
    }

    #[test]
    fn form() {
        let value = json!({"name": "file", "info": {"children": [], "data": {}}, "n": [1, true]});
        assert_eq!(
            pretty(&value),
            "{\n    \"name\": \"file\",\n    \"n\": [\n        1,\n        true\n    ],\n    \
             \"info\": {\n        \"children\": [\n        ],\n        \"data\": {\n        }\n    \
             }\n}\n"
        );
        assert_eq!(pretty(&json!("é\x7f\t\"😀")), "\"\\u00E9\\u007F\\t\\\"\\uD83D\\uDE00\"\n");
    }
}
