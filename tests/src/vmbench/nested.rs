//! Boots the nested host with the benchmark in it and collects the figures.

use super::{Figure, median};
use crate::tools::workspace;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

/// Runs `vmm/tests/nested/bench`, of it only `jobs` when some are named; medians of all figures. What the outer
/// machine says goes to standard error.
///
/// # Errors
/// A sentence when it cannot be run or fails.
pub fn measure(
    cache: &Path,
    rkvm: &Path,
    rimg: &Path,
    jobs: &[String],
) -> Result<Vec<Figure>, String> {
    let script = workspace().join("vmm/tests/nested/bench");
    let own = std::env::current_exe().map_err(|e| format!("this program: {e}"))?;
    let mut child = Command::new(&script)
        .args([cache, rkvm, rimg, &own])
        .args(jobs)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| format!("{}: {e}", script.display()))?;
    let out = child.stdout.take().ok_or("no pipe")?;
    let mut values: BTreeMap<(String, String), Vec<f64>> = BTreeMap::new();
    for line in BufReader::new(out).lines().map_while(Result::ok) {
        eprintln!("{line}");
        let words: Vec<&str> = line.split_whitespace().collect();
        if let ["BENCH", who, what, value] = words[..]
            && let Ok(value) = value.parse::<f64>()
        {
            values.entry((who.into(), what.into())).or_default().push(value);
        }
    }
    let status = child.wait().map_err(|e| format!("{}: {e}", script.display()))?;
    if !status.success() {
        return Err(format!("{} failed: {status}", script.display()));
    }
    Ok(values
        .into_iter()
        .map(|((who, what), mut values)| Figure { what, who, value: median(&mut values) })
        .collect())
}
