//! Streams: standard input, packed files, standard output.

#![allow(clippy::unwrap_used)] // all of it is test code

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use suite::tools;

fn rimg(dir: &Path, args: &[&str], input: &[u8]) -> Output {
    let mut command = Command::new(tools::rimg().unwrap());
    command.args(args).current_dir(dir).env("TMPDIR", dir.join("tmp"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let feeder = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    feeder.join().unwrap();
    output
}

fn good(dir: &Path, args: &[&str], input: &[u8]) -> Vec<u8> {
    let output = rimg(dir, args, input);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn place() -> tempfile::TempDir {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    std::fs::create_dir(dir.path().join("tmp")).unwrap();
    let mut bytes = vec![0u8; 5 << 20];
    for (i, byte) in bytes.iter_mut().enumerate().skip(300_000).take(2_000_000) {
        *byte = u8::try_from(i / 300 % 256).unwrap();
    }
    std::fs::write(dir.path().join("a.raw"), bytes).unwrap();
    dir
}

fn same(dir: &Path, driver: &str, image: &str) {
    good(dir, &["compare", "-f", "raw", "-F", driver, "a.raw", image], b"");
    let left = std::fs::read_dir(dir.join("tmp")).unwrap().count();
    assert_eq!(left, 0, "something is left in the temporary folder");
}

#[test]
fn from_standard_input() {
    let dir = place();
    let at = dir.path();
    let raw = std::fs::read(at.join("a.raw")).unwrap();
    good(at, &["convert", "-f", "raw", "-O", "qcow2", "-", "b.qcow2"], &raw);
    same(at, "qcow2", "b.qcow2");
    for (driver, more) in [("qcow2", "cluster_size=64k"), ("vmdk", "subformat=streamOptimized")] {
        good(at, &["convert", "-f", "raw", "-O", driver, "-o", more, "a.raw", "stream"], b"");
        let bytes = std::fs::read(at.join("stream")).unwrap();
        good(at, &["convert", "--verify", "-O", "raw", "-", "c.raw"], &bytes);
        same(at, "raw", "c.raw");
        let digest = String::from_utf8(good(at, &["digest", "-"], &bytes)).unwrap();
        let direct = String::from_utf8(good(at, &["digest", "-f", "raw", "a.raw"], b"")).unwrap();
        assert_eq!(digest.split(' ').next(), direct.split(' ').next());
        for file in ["stream", "c.raw"] {
            std::fs::remove_file(at.join(file)).unwrap();
        }
    }
    let resumed = rimg(at, &["convert", "--resume", "-f", "raw", "-O", "qcow2", "-", "d"], &raw);
    assert!(!resumed.status.success());
}

#[test]
fn packed_files() {
    let dir = place();
    let at = dir.path();
    good(at, &["convert", "-f", "raw", "-O", "qcow2", "a.raw", "a.qcow2"], b"");
    for (program, end) in [("gzip", "gz"), ("xz", "xz"), ("zstd", "zst"), ("bzip2", "bz2")] {
        for file in ["a.raw", "a.qcow2"] {
            let args: &[&str] = if program == "zstd" { &["-q", "-k", file] } else { &["-k", file] };
            match Command::new(program).args(args).current_dir(at).status() {
                Ok(done) => assert!(done.success()),
                Err(_) => {
                    tools::skip(&format!("a disk packed by {program}"), "it is not installed");
                    continue;
                }
            }
            let packed = format!("{file}.{end}");
            let driver = file.rsplit('.').next().unwrap();
            good(at, &["convert", "-f", driver, "-O", "raw", &packed, "out"], b"");
            same(at, "raw", "out");
            std::fs::remove_file(at.join("out")).unwrap();
            // Damaged: an error that says so, and nothing is left.
            let mut bytes = std::fs::read(at.join(&packed)).unwrap();
            bytes.truncate(bytes.len() / 2);
            std::fs::write(at.join(&packed), bytes).unwrap();
            let end = rimg(at, &["convert", "-f", driver, "-O", "raw", &packed, "out"], b"");
            let said = String::from_utf8_lossy(&end.stderr).into_owned();
            assert!(!end.status.success() && said.contains("does not unpack"), "{packed}: {said}");
            assert!(!at.join("out").exists());
        }
    }
    // A name alone promises nothing, and qemu-img's name takes files as they are.
    std::fs::copy(at.join("a.raw"), at.join("plain.gz")).unwrap();
    good(at, &["convert", "-f", "raw", "-O", "raw", "plain.gz", "out"], b"");
    same(at, "raw", "out");
}

#[test]
fn to_standard_output() {
    let dir = place();
    let at = dir.path();
    let raw = std::fs::read(at.join("a.raw")).unwrap();
    good(at, &["convert", "-f", "raw", "-O", "qcow2", "a.raw", "a.qcow2"], b"");
    assert!(good(at, &["convert", "-p", "-O", "raw", "a.qcow2", "-"], b"") == raw);
    assert!(good(at, &["convert", "-f", "raw", "-", "-"], &raw) == raw);
    for (driver, options) in [
        ("qcow2", &["-c"][..]),
        ("vmdk", &["-o", "subformat=streamOptimized"]),
        ("raw", &["--verify"]),
    ] {
        let args = [&["convert", "-O", driver], options, &["a.qcow2", "-"]].concat();
        std::fs::write(at.join("out"), good(at, &args, b"")).unwrap();
        same(at, driver, "out");
    }
    let json = rimg(at, &["convert", "--output", "json", "-O", "raw", "a.qcow2", "-"], b"");
    assert!(!json.status.success() && json.stdout.is_empty());
    let several =
        rimg(at, &["convert", "-O", "vmdk", "-o", "subformat=monolithicFlat", "a.qcow2", "-"], b"");
    assert!(!several.status.success() && several.stdout.is_empty());
    assert_eq!(std::fs::read_dir(at.join("tmp")).unwrap().count(), 0);
}
