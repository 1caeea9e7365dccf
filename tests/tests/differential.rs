//! The differential suite: every command line of `cases/` given to our program and to the installed
//! qemu-img, and everything a script can see compared.
//!
//! `SUITE_ONLY=text` runs the scenarios whose name contains the text, `SUITE_KEEP=1` keeps their
//! directories, `SUITE_JOBS=n` sets the number of threads, `SUITE_TIMES=1` lists the slowest scenarios.

use std::path::Path;
use suite::run::{Bench, by_command, run_all};
use suite::{scenario, tools};

/// The issue asks for 300; fewer than this and a table has been lost.
const LEAST: usize = 330;

#[test]
fn command_lines_agree_with_qemu_img() {
    let reference = match tools::Reference::find() {
        Ok(reference) => reference,
        Err(why) => return tools::skip("the differential suite", &why),
    };
    let base = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (ours, theirs) = (base.path().join("ours"), base.path().join("theirs"));
    tools::as_qemu_img(&tools::rimg().unwrap(), &ours).unwrap();
    tools::as_qemu_img(&reference.img, &theirs).unwrap();
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases");
    let mut scenarios = scenario::load(&cases).unwrap();
    let only = std::env::var("SUITE_ONLY").ok();
    if let Some(only) = &only {
        scenarios.retain(|scenario| scenario.name.contains(only.as_str()));
    }
    let threads = std::env::var("SUITE_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(2);
    let version = reference.version.clone();
    let bench = Bench { ours, theirs, reference, base: base.path().to_path_buf() };
    let verdicts = run_all(&bench, &scenarios, threads);
    if std::env::var_os("SUITE_KEEP").is_some() {
        let _ = base.keep();
    }

    for verdict in verdicts.iter().filter(|verdict| !verdict.complaints.is_empty()) {
        println!("== {}", verdict.name);
        for complaint in &verdict.complaints {
            println!("{complaint}");
        }
    }
    let sum = |count: fn(&suite::run::Verdict) -> usize| verdicts.iter().map(count).sum::<usize>();
    let (lines, agreed) = (sum(|v| v.lines), sum(|v| v.agreed));
    let (files, files_agreed) = (sum(|v| v.files), sum(|v| v.files_agreed));
    let clean = verdicts.iter().filter(|verdict| verdict.complaints.is_empty()).count();
    if std::env::var_os("SUITE_TIMES").is_some() {
        let mut slow: Vec<_> = verdicts.iter().map(|v| (v.took, &v.name)).collect();
        slow.sort();
        for (took, name) in slow.iter().rev().take(15) {
            println!("{:7.2} s  {name}", took.as_secs_f64());
        }
    }
    tools::say(&format!("reference: {version}"));
    tools::say(&by_command(&verdicts).join(", "));
    tools::say(&format!("{clean} of {} scenarios are clean", verdicts.len()));
    tools::say(&format!("{files_agreed} of {files} files left behind agree"));
    tools::say(&format!("{agreed} of {lines} command lines agree"));
    if only.is_none() {
        assert!(lines >= LEAST, "the case tables hold {lines} command lines, {LEAST} are promised");
    }
    assert!(clean == verdicts.len() && agreed == lines, "the differences are listed above");
}
