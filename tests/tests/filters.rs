//! Filters under whole commands: an error that was asked for is the one that comes out, and leaves nothing behind.

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

fn bad(dir: &Path, args: &[&str], wanted: &str) {
    let outcome = rimg(dir, args);
    assert!(!outcome.success() && outcome.err().contains(wanted), "{args:?}: {}", outcome.err());
}

fn debug(format: &str, image: &str, rules: &str) -> String {
    format!("driver={format},file.driver=blkdebug,file.image.filename={image},{rules}")
}

#[test]
fn an_error_while_reading_is_told_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::write(dir.join("a.raw"), vec![3; 4 << 20]).unwrap();
    good(dir, &["convert", "-f", "raw", "-O", "qcow2", "a.raw", "a.qcow2"]);
    for (rules, said) in [
        (
            "file.inject-error.0.event=read_aio,file.inject-error.0.sector=4096",
            "Input/output error",
        ),
        ("file.inject-error.0.event=none,file.inject-error.0.errno=28", "No space left"),
        ("file.inject-error.0.event=read_aio,file.inject-error.0.errno=61", "No data available"),
    ] {
        let source = debug("qcow2", "a.qcow2", rules);
        bad(dir, &["convert", "--image-opts", &source, "-O", "raw", "b.raw"], said);
        assert!(!dir.join("b.raw").exists() && !dir.join("b.raw.part").exists());
        bad(dir, &["digest", "--image-opts", &source], said);
    }
    // Let one read fail: what could not be read is left out, the rest is right.
    let once = "file.inject-error.0.event=read_aio,file.inject-error.0.sector=4096";
    let source = debug("raw", "a.raw", once);
    good(dir, &["convert", "--salvage", "--image-opts", &source, "-O", "raw", "c.raw"]);
    let copy = std::fs::read(dir.join("c.raw")).unwrap();
    assert!(copy.iter().all(|b| *b == 3 || *b == 0) && copy[0] == 3 && copy[4096 * 512] == 0);
}

#[test]
fn an_error_while_writing_leaves_a_sound_image() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::write(dir.join("a.raw"), vec![3; 4 << 20]).unwrap();
    for rules in [
        "file.set-state.0.event=write_aio,file.set-state.0.state=1,file.set-state.0.new_state=2,\
         file.inject-error.0.event=write_aio,file.inject-error.0.state=2,file.inject-error.0.errno=28",
        "file.inject-error.0.event=flush_to_disk",
        "file.inject-error.0.event=write_aio,file.inject-error.0.sector=1024",
    ] {
        let _ = std::fs::remove_file(dir.join("t.qcow2"));
        good(dir, &["create", "-f", "qcow2", "t.qcow2", "4M"]);
        let target = debug("qcow2", "t.qcow2", rules);
        let args = [
            "convert",
            "-n",
            "-t",
            "writeback",
            "-f",
            "raw",
            "--target-image-opts",
            "a.raw",
            &target,
        ];
        let outcome = rimg(dir, &args);
        assert!(!outcome.success(), "{rules}");
        let check = rimg(dir, &["check", "t.qcow2"]);
        let code = check.end.to_string();
        assert!(
            check.success() || code == "exit 3",
            "{rules}: {code} {}{}",
            check.out(),
            check.err()
        );
    }
}

#[test]
fn filters_stand_on_each_other_and_over_servers() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::write(dir.join("a.raw"), vec![3; 1 << 20]).unwrap();
    let group = "throttle-group,id=t,x-iops-total=1000000";
    let both = "driver=raw,file.driver=throttle,file.throttle-group=t,file.file.driver=blkdebug,\
                file.file.align=4096,file.file.image.filename=a.raw";
    let info = good(dir, &["info", "--object", group, "--image-opts", both]);
    assert!(info.contains("'/file/file/image'"), "{info}");
    good(
        dir,
        &["compare", "--object", group, "--image-opts", both, "driver=raw,file.filename=a.raw"],
    );
    // Writes of a guest go through both.
    let write = [
        "bench",
        "-w",
        "--object",
        group,
        "-c",
        "8",
        "-s",
        "512",
        "--pattern",
        "9",
        "--image-opts",
        both,
    ];
    good(dir, &write);
    assert!(std::fs::read(dir.join("a.raw")).unwrap()[..4096].iter().all(|b| *b == 9));
    bad(
        dir,
        &["info", "--image-opts", "driver=blkdebug,image.driver=qcow2,image.file.filename=a"],
        "put it below",
    );
    bad(dir, &["info", "blkverify:a.raw:a.raw"], "Protocol 'blkverify' is not supported");
    bad(dir, &["info", "--image-opts", "driver=quorum,vote-threshold=1"], "quorum");
    bad(
        dir,
        &["info", "--image-opts", &debug("raw", "a.raw", "file.inject-error.0.event=l2_load")],
        "not supported",
    );
    // A disk that keeps nothing measures what is above it.
    good(dir, &["bench", "-f", "raw", "-c", "100", "null-co://"]);
    good(dir, &["convert", "-n", "-f", "raw", "-O", "raw", "a.raw", "null-co://"]);
}
