//! The options of a new image as people see them: the line that `create` prints and the table of
//! `-o help`. The tables themselves belong to the drivers ([`crate::format::Driver`]).

use crate::format::options::{CreateOptions, OptionKind, OptionSpec, OptionValue};

const fn row(name: &'static str, kind: OptionKind, help: &'static str) -> OptionSpec {
    OptionSpec { name, kind, help, default: None }
}

/// What a regular file adds to the options of the format it holds.
pub const FILE: &[OptionSpec] = &[
    row("size", OptionKind::Size, "Virtual disk size"),
    row("nocow", OptionKind::Bool, "Turn off copy-on-write (valid only on btrfs)"),
    row(
        "preallocation",
        OptionKind::Text,
        "Preallocation mode (allowed values: off, falloc, full)",
    ),
    row("extent_size_hint", OptionKind::Size, "Extent size hint for the image file, 0 to disable"),
];

/// The rows of a format and of the storage below it; a format's row hides the storage's of the same
/// name.
pub fn with_storage(format: &[OptionSpec], storage: &[OptionSpec]) -> Vec<OptionSpec> {
    let mut rows = format.to_vec();
    rows.extend(storage.iter().filter(|s| !format.iter().any(|f| f.name == s.name)));
    rows
}

/// ` name=value` for everything given or with a default, in the order of `rows`.
pub fn describe(rows: &[OptionSpec], given: &CreateOptions) -> String {
    let mut line = String::new();
    for row in rows {
        let text = match (given.get(row.name), row.default) {
            (Some(OptionValue::Text(t)), _) => crate::opts::list::escape(t),
            (Some(OptionValue::Bool(on)), _) => (if *on { "on" } else { "off" }).to_owned(),
            // A plain number is shown signed: that is what a minus became on the way in.
            (Some(OptionValue::Number(n)), _) if row.kind == OptionKind::Number => {
                n.cast_signed().to_string()
            }
            (Some(OptionValue::Number(n)), _) => n.to_string(),
            (None, Some(default)) => default.to_owned(),
            (None, None) => continue,
        };
        line.push(' ');
        line.push_str(row.name);
        line.push('=');
        line.push_str(&text);
    }
    line
}

/// One line for each option, sorted by name: what `-o help` prints below its heading.
pub fn help_lines(rows: &[OptionSpec]) -> Vec<String> {
    let mut sorted = rows.to_vec();
    sorted.sort_by_key(|r| r.name);
    sorted
        .iter()
        .map(|r| {
            let kind = match r.kind {
                OptionKind::Text => "str",
                OptionKind::Bool => "bool (on/off)",
                OptionKind::Number => "num",
                OptionKind::Size => "size",
            };
            format!("  {:<22} - {}", format!("{}=<{kind}>", r.name), r.help)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: &[OptionSpec] = &[
        row("encrypt.ivgen-hash-alg", OptionKind::Text, "Name of IV generator hash algorithm"),
        OptionSpec { default: Some("65536"), ..row("cluster_size", OptionKind::Size, "Unit") },
        row("preallocation", OptionKind::Text, "How much to reserve"),
        row("size", OptionKind::Size, "Virtual disk size"),
        OptionSpec { default: Some("off"), ..row("lazy", OptionKind::Bool, "Later") },
        OptionSpec { default: Some("16"), ..row("refcount_bits", OptionKind::Number, "Width") },
    ];

    fn given(list: &[(&str, &str)]) -> CreateOptions {
        let list: Vec<_> = list.iter().map(|(a, b)| ((*a).into(), (*b).into())).collect();
        CreateOptions::parse(ROWS, &list).unwrap()
    }

    #[test]
    fn formatting_line() {
        assert_eq!(
            describe(ROWS, &given(&[("size", "1M")])),
            " cluster_size=65536 size=1048576 lazy=off refcount_bits=16"
        );
        assert_eq!(
            describe(ROWS, &given(&[("refcount_bits", "-1"), ("preallocation", "a,b")])),
            " cluster_size=65536 preallocation=a,,b lazy=off refcount_bits=-1"
        );
    }

    #[test]
    fn help() {
        assert_eq!(
            help_lines(&with_storage(ROWS, FILE)),
            [
                "  cluster_size=<size>    - Unit",
                "  encrypt.ivgen-hash-alg=<str> - Name of IV generator hash algorithm",
                "  extent_size_hint=<size> - Extent size hint for the image file, 0 to disable",
                "  lazy=<bool (on/off)>   - Later",
                "  nocow=<bool (on/off)>  - Turn off copy-on-write (valid only on btrfs)",
                "  preallocation=<str>    - How much to reserve",
                "  refcount_bits=<num>    - Width",
                "  size=<size>            - Virtual disk size",
            ]
        );
    }
}
