//! Commands of the built program under `--sandbox require`: they work as without, and what they did not name stays shut.

#![allow(clippy::unwrap_used, clippy::panic)] // all of it is test code

use std::path::Path;
use std::time::Duration;

use suite::process::{Invocation, Outcome};
use suite::tools;

fn rimg(dir: &Path, args: &[&str]) -> Outcome {
    let call = Invocation::new(tools::rimg().unwrap(), dir).args(args);
    call.time_limit(Duration::from_secs(120)).run().unwrap()
}

fn good(dir: &Path, args: &[&str]) -> String {
    let outcome = rimg(dir, args);
    assert!(outcome.success(), "{args:?}: {}", outcome.err());
    outcome.out()
}

/// Whether this kernel has all of it.
fn possible(dir: &Path) -> bool {
    let said = good(dir, &["--version"]);
    let possible = !said.contains("no Landlock") && !said.contains("no seccomp");
    if !possible {
        tools::skip("commands in the sandbox", &said);
    }
    possible
}

#[test]
fn commands_work_confined() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    if !possible(dir) {
        return;
    }
    for folder in ["in", "out", "base"] {
        std::fs::create_dir(dir.join(folder)).unwrap();
    }
    std::fs::write(dir.join("in/a.raw"), vec![7; 3 << 20]).unwrap();
    let confined =
        |args: &[&str]| good(dir, &[&args[..1], &["--sandbox", "require"], &args[1..]].concat());
    confined(&["convert", "-f", "raw", "-O", "qcow2", "in/a.raw", "out/a.qcow2"]);
    confined(&[
        "convert",
        "--resume",
        "-O",
        "vmdk",
        "-o",
        "subformat=twoGbMaxExtentSparse",
        "out/a.qcow2",
        "out/a.vmdk",
    ]);
    confined(&[
        "convert",
        "-O",
        "qcow2",
        "-o",
        "data_file=../base/d.raw",
        "out/a.qcow2",
        "out/d.qcow2",
    ]);
    confined(&["info", "--backing-chain", "out/a.qcow2"]);
    confined(&["compare", "-f", "raw", "in/a.raw", "out/a.vmdk"]);
    confined(&["digest", "--save", "out/a.qcow2"]);
    confined(&["check", "-r", "all", "out/a.qcow2"]);
    confined(&["create", "-f", "qcow2", "-b", "../out/a.qcow2", "-F", "qcow2", "in/top.qcow2"]);
    confined(&["snapshot", "-c", "one", "out/a.qcow2"]);
    confined(&["resize", "out/a.qcow2", "4M"]);
    confined(&["bench", "-w", "-c", "10", "--allow", "out", "in/top.qcow2"]);
    confined(&["commit", "--allow", "out", "in/top.qcow2"]);
    confined(&["measure", "-O", "qcow2", "out/a.qcow2"]);
    confined(&["dd", "if=out/a.qcow2", "of=base/dd.raw", "-O", "raw", "bs=1M"]);
    confined(&["map", "out/a.qcow2"]);
    confined(&["chain", "--tree", "out/a.qcow2"]);
    confined(&["import", "out/a.vmdk", "-d", "new/folder"]);
    // A packed source is unpacked into a file without a name beside the target.
    let packed = std::process::Command::new("gzip").arg("in/a.raw").current_dir(dir).status();
    if packed.is_ok_and(|status| status.success()) {
        confined(&["convert", "-f", "raw", "-O", "raw", "in/a.raw.gz", "out/b.raw"]);
        confined(&["compare", "-f", "raw", "-F", "raw", "out/b.raw", "in/a.raw.gz"]);
    }
    let outcome = rimg(dir, &["info", "--sandbox", "maybe", "out/a.qcow2"]);
    assert!(outcome.err().contains("--sandbox expects"), "{}", outcome.err());
}

/// The kernel refuses what the open policy would refuse, too: a chain that leads out of the image's folder.
#[test]
fn an_image_that_leads_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for folder in ["in", "base"] {
        std::fs::create_dir(dir.join(folder)).unwrap();
    }
    good(dir, &["create", "-f", "qcow2", "base/b.qcow2", "1M"]);
    good(dir, &["create", "-f", "qcow2", "-b", "../base/b.qcow2", "-F", "qcow2", "in/t.qcow2"]);
    let outcome = rimg(dir, &["convert", "-O", "raw", "in/t.qcow2", "o.raw"]);
    assert!(!outcome.success() && outcome.err().contains("--allow"), "{}", outcome.err());
    for mode in ["on", "off"] {
        good(
            dir,
            &[
                "convert",
                "--force",
                "--sandbox",
                mode,
                "--allow",
                "base",
                "-O",
                "raw",
                "in/t.qcow2",
                "o.raw",
            ],
        );
    }
}

/// Who uses an image is said also by a process that may not look at others any more.
#[test]
fn the_culprit_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    good(dir, &["create", "-f", "qcow2", "a.qcow2", "1M"]);
    let mut server = std::process::Command::new(tools::rimg().unwrap())
        .args(["serve", "-q", "-t", "-k", "s", "a.qcow2"])
        .current_dir(dir)
        .spawn()
        .unwrap();
    let end = std::time::Instant::now() + Duration::from_secs(60);
    while !dir.join("s").exists() && std::time::Instant::now() < end {
        std::thread::sleep(Duration::from_millis(20));
    }
    let outcome = rimg(dir, &["resize", "a.qcow2", "2M"]);
    let _ = server.kill();
    let _ = server.wait();
    let wanted = format!("pid {}", server.id());
    assert!(!outcome.success() && outcome.err().contains(&wanted), "{}", outcome.err());
}
