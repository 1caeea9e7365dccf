//! The table: measured columns, recorded columns, targets.

use super::Figure;
use std::fmt::Write;

/// Which way is good.
#[derive(Clone, Copy)]
enum Target {
    AtMost(f64),
    AtLeast(f64),
    None,
}

struct Row {
    what: &'static str,
    title: &'static str,
    digits: usize,
    /// cloud-hypervisor and firecracker, recorded with the same methods.
    recorded: [&'static str; 2],
    target: Target,
}

const COLUMNS: &[&str] = &["rkvm", "rkvm+io_uring", "qemu-microvm", "qemu-pc", "qemu-pc+iothread"];

const ROWS: &[Row] = &[
    Row {
        what: "start",
        title: "exec to first KVM_RUN, ms",
        digits: 1,
        recorded: ["13", "22"],
        target: Target::AtMost(10.0),
    },
    Row {
        what: "ioctls",
        title: "KVM calls until then",
        digits: 0,
        recorded: ["41", "39"],
        target: Target::None,
    },
    Row {
        what: "init",
        title: "exec to /init, Debian's kernel, s",
        digits: 3,
        recorded: ["", ""],
        target: Target::None,
    },
    Row {
        what: "init-less",
        title: "the same less QEMU pc, s",
        digits: 3,
        recorded: ["-0.59", "-0.58"],
        target: Target::None,
    },
    Row {
        what: "rss",
        title: "resident beyond the guest's memory, MiB",
        digits: 1,
        recorded: ["", ""],
        target: Target::None,
    },
    Row {
        what: "pss",
        title: "the same, shared pages in proportion, MiB",
        digits: 1,
        recorded: ["6.6", "4.1"],
        target: Target::AtMost(4.0),
    },
    Row {
        what: "random-raw",
        title: "4 KiB random reads, raw, IOPS",
        digits: 0,
        recorded: ["10500", "11400"],
        target: Target::AtLeast(11_000.0),
    },
    Row {
        what: "random-qcow2",
        title: "4 KiB random reads, qcow2, IOPS",
        digits: 0,
        recorded: ["10000", ""],
        target: Target::AtLeast(11_000.0),
    },
    Row {
        what: "random-write-raw",
        title: "4 KiB random writes, raw, IOPS",
        digits: 0,
        recorded: ["", ""],
        target: Target::AtLeast(11_000.0),
    },
    Row {
        what: "random-write-qcow2",
        title: "4 KiB random writes, qcow2, IOPS",
        digits: 0,
        recorded: ["", ""],
        target: Target::AtLeast(11_000.0),
    },
    Row {
        what: "sequential-raw",
        title: "1 MiB sequential reads, raw, MB/s",
        digits: 0,
        recorded: ["321", "156"],
        target: Target::AtLeast(320.0),
    },
    Row {
        what: "sequential-qcow2",
        title: "1 MiB sequential reads, qcow2, MB/s",
        digits: 0,
        recorded: ["135", ""],
        target: Target::AtLeast(320.0),
    },
    Row {
        what: "sequential-write-raw",
        title: "1 MiB sequential writes, raw, MB/s",
        digits: 0,
        recorded: ["", ""],
        target: Target::AtLeast(320.0),
    },
    Row {
        what: "sequential-write-qcow2",
        title: "1 MiB sequential writes, qcow2, MB/s",
        digits: 0,
        recorded: ["", ""],
        target: Target::AtLeast(320.0),
    },
];

/// The Markdown table of what was measured; rows without any figure are left out.
#[must_use]
pub fn markdown(figures: &[Figure]) -> String {
    let mut figures = figures.to_vec();
    let find = |figures: &[Figure], what: &str, who: &str| {
        figures.iter().find(|f| f.what == what && f.who == who).map(|f| f.value)
    };
    if let Some(base) = find(&figures, "init", "qemu-pc") {
        for who in ["rkvm", "qemu-microvm"] {
            if let Some(value) = find(&figures, "init", who) {
                let value = value - base;
                figures.push(Figure { what: "init-less".into(), who: who.into(), value });
            }
        }
    }
    let mut out = String::from("| |");
    for who in COLUMNS {
        let _ = write!(out, " {who} |");
    }
    out += " cloud-hypervisor | firecracker | to reach |\n|---|";
    out += &"---:|".repeat(COLUMNS.len() + 3);
    for row in ROWS {
        let values: Vec<Option<f64>> =
            COLUMNS.iter().map(|who| find(&figures, row.what, who)).collect();
        if values.iter().all(Option::is_none) {
            continue;
        }
        let _ = write!(out, "\n| {} |", row.title);
        for value in &values {
            match value {
                Some(value) => {
                    let _ = write!(out, " {value:.*} |", row.digits);
                }
                None => out += " – |",
            }
        }
        for recorded in row.recorded {
            let _ = write!(out, " {} |", if recorded.is_empty() { "–" } else { recorded });
        }
        let _ = match (row.target, values[0]) {
            (Target::AtMost(limit), value) => {
                write!(out, " ≤ {limit} {} |", verdict(value.map(|v| v <= limit)))
            }
            (Target::AtLeast(limit), value) => {
                write!(out, " ≥ {limit} {} |", verdict(value.map(|v| v >= limit)))
            }
            (Target::None, _) => write!(out, " – |"),
        };
    }
    out + "\n"
}

fn verdict(reached: Option<bool>) -> &'static str {
    match reached {
        Some(true) => "(reached)",
        Some(false) => "(missed)",
        None => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_what_there_is() {
        let figure =
            |what: &str, who: &str, value| Figure { what: what.into(), who: who.into(), value };
        let table = markdown(&[
            figure("start", "rkvm", 8.04),
            figure("start", "qemu-pc", 40.0),
            figure("init", "rkvm", 1.0),
            figure("init", "qemu-pc", 1.1),
        ]);
        let rows: Vec<&str> = table.lines().skip(2).collect();
        assert_eq!(
            rows,
            [
                "| exec to first KVM_RUN, ms | 8.0 | – | – | 40.0 | – | 13 | 22 | ≤ 10 (reached) |",
                "| exec to /init, Debian's kernel, s | 1.000 | – | – | 1.100 | – | – | – | – |",
                "| the same less QEMU pc, s | -0.100 | – | – | – | – | -0.59 | -0.58 | – |",
            ]
        );
    }
}
