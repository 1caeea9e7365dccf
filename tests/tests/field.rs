//! What happens to `rimg` in the field: signals, limits, full disks, other processes on the same image,
//! bounded memory. Needs no rights but those of a user; see `field_devices.rs` for the rest.

#![allow(clippy::unwrap_used)] // all of it is test code

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use suite::field::{good, names, rimg as run};
use suite::process::{End, Invocation};
use suite::tools;

type Result<T> = std::result::Result<T, String>;

/// Starts rimg and waits until `file` is there.
fn start(dir: &Path, args: &[&str], file: &str) -> Result<Child> {
    let mut command = Command::new(tools::rimg()?);
    command.args(args).current_dir(dir).process_group(0);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let child = command.spawn().map_err(|e| e.to_string())?;
    let begin = Instant::now();
    while !dir.join(file).exists() {
        if begin.elapsed() > Duration::from_secs(20) {
            return Err(format!("{args:?} does not make {file}"));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    // Past the creation, in the middle of the copy.
    std::thread::sleep(Duration::from_millis(200));
    Ok(child)
}

fn send(child: &Child, signal: Signal) -> Result<()> {
    let pid = i32::try_from(child.id()).map_err(|e| e.to_string())?;
    kill(Pid::from_raw(pid), signal).map_err(|e| e.to_string())
}

fn noise(path: &Path, len: usize) -> Result<()> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    std::fs::write(path, bytes).map_err(|e| e.to_string())
}

#[test]
fn a_signal_leaves_nothing_and_a_kill_only_the_part() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    noise(&at.join("a.raw"), 24 << 20).unwrap();
    let slow = ["convert", "-r", "4M", "-O", "qcow2", "a.raw", "b.qcow2"];
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143), (Signal::SIGHUP, 129)] {
        let child = start(at, &slow, "b.qcow2.part").unwrap();
        send(&child, signal).unwrap();
        let end = child.wait_with_output().unwrap();
        assert_eq!(end.status.code(), Some(code), "{signal}");
        assert_eq!(names(at), ["a.raw"], "{signal}");
    }
    let child = start(at, &slow, "b.qcow2.part").unwrap();
    // Another run is refused, and told by whom.
    let second = run(at, &slow).unwrap();
    assert_eq!(second.end, End::Exit(1));
    let pid = format!("(pid {}", child.id());
    assert!(second.err().contains(&pid) && second.err().contains("-r 4M"), "{}", second.err());
    send(&child, Signal::SIGKILL).unwrap();
    child.wait_with_output().unwrap();
    assert_eq!(names(at), ["a.raw", "b.qcow2.part"]);
    good(at, &["convert", "-O", "qcow2", "a.raw", "b.qcow2"]).unwrap();
    assert_eq!(names(at), ["a.raw", "b.qcow2"]);
    good(at, &["compare", "a.raw", "b.qcow2"]).unwrap();
}

#[test]
fn what_differs_is_listed() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    noise(&at.join("a.raw"), 3 << 20).unwrap();
    good(at, &["convert", "-O", "qcow2", "a.raw", "b.qcow2"]).unwrap();
    let same = good(at, &["diff", "a.raw", "b.qcow2"]).unwrap();
    assert_eq!(same.out(), "Images are identical.\n");
    let mut bytes = std::fs::read(at.join("a.raw")).unwrap();
    bytes[70_000] ^= 1;
    bytes[2_000_000..2_001_000].fill(0);
    bytes.extend([0; 512]);
    std::fs::write(at.join("c.raw"), bytes).unwrap();
    let other = run(at, &["diff", "-f", "qcow2", "-F", "raw", "b.qcow2", "c.raw"]).unwrap();
    assert_eq!(other.end, End::Exit(1));
    let lines: Vec<String> =
        other.out().lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    let expected =
        ["Offset Length", "0x11000 0x200", "0x1e8400 0x600", "2 ranges, 2 KiB (2048 bytes) differ"];
    assert_eq!(lines, expected);
    let json = run(at, &["diff", "-g", "64k", "--output", "json", "b.qcow2", "c.raw"]).unwrap();
    let value: serde_json::Value = serde_json::from_str(&json.out()).unwrap();
    assert_eq!(value["ranges"][0], serde_json::json!({ "start": 65_536, "length": 65_536 }));
    assert_eq!(value["bytes"], 131_072);
    assert_eq!(value["virtual-sizes"], serde_json::json!([3 << 20, (3 << 20) + 512]));
    assert_eq!(run(at, &["diff", "a.raw", "nosuch"]).unwrap().end, End::Exit(2));
    assert_eq!(run(at, &["diff", "-g", "5", "a.raw", "b.qcow2"]).unwrap().end, End::Exit(2));
}

#[test]
fn an_image_in_use_is_told_with_its_user() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    noise(&at.join("a.raw"), 16 << 20).unwrap();
    let slow = ["convert", "-r", "4M", "-O", "qcow2", "a.raw", "b.qcow2"];
    let child = start(at, &slow, "b.qcow2.part").unwrap();
    let refused = run(at, &["resize", "-f", "raw", "a.raw", "+1M"]).unwrap();
    let pid = format!("(pid {}", child.id());
    assert!(refused.err().contains("lock") && refused.err().contains(&pid), "{}", refused.err());
    send(&child, Signal::SIGTERM).unwrap();
    child.wait_with_output().unwrap();
}

#[test]
fn progress_on_question_and_as_json() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    noise(&at.join("a.raw"), 6 << 20).unwrap();
    let slow = ["convert", "-r", "4M", "-O", "raw", "a.raw", "b.raw"];
    let child = start(at, &slow, "b.raw.part").unwrap();
    send(&child, Signal::SIGUSR1).unwrap();
    let end = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&end.stderr).into_owned();
    assert!(end.status.success() && said.contains("/100%)"), "{said}");

    let begin = Instant::now();
    let args =
        ["convert", "--force", "--progress", "json", "-r", "4M", "-O", "raw", "a.raw", "b.raw"];
    let outcome = good(at, &args).unwrap();
    let took = begin.elapsed();
    assert!(took > Duration::from_millis(1000), "the rate limit is not kept: {took:?}");
    let mut phases = Vec::new();
    for line in outcome.err().lines() {
        let value: serde_json::Value = serde_json::from_str(line).expect(line);
        for key in ["bytes", "total", "rate", "eta", "percent", "elapsed"] {
            assert!(value[key].is_number() || (key == "eta" && value[key].is_null()), "{line}");
        }
        assert!(value["bytes"].as_u64() <= value["total"].as_u64(), "{line}");
        phases.push(value["phase"].as_str().unwrap_or_default().to_owned());
    }
    phases.dedup();
    assert_eq!(phases, ["working", "finishing", "done"]);
}

#[test]
fn a_limit_on_file_sizes_is_an_error_not_a_death() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    noise(&at.join("a.raw"), 8 << 20).unwrap();
    let rimg = tools::rimg().unwrap();
    for wanted in ["convert -O raw a.raw b.raw", "convert -c -O qcow2 a.raw b.qcow2"] {
        let script = format!("ulimit -f 4096; exec {} {wanted}", rimg.display());
        let outcome = Invocation::new("/bin/sh", at).args(["-c", &script]).run().unwrap();
        assert_eq!(outcome.end, End::Exit(1), "{wanted}: {}", outcome.err());
        assert!(outcome.err().contains("too large"), "{}", outcome.err());
        assert_eq!(names(at), ["a.raw"], "{wanted}");
    }
}

#[test]
fn written_zeroes_are_detected_where_that_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    noise(&at.join("full.raw"), 4 << 20).unwrap();
    std::fs::write(at.join("zero.raw"), vec![0; 4 << 20]).unwrap();
    let write = |target: &str| {
        let args = ["convert", "-n", "-S", "0", "--target-image-opts", "zero.raw", target];
        run(at, &args).unwrap()
    };
    let map = |options: &str| -> serde_json::Value {
        good(at, &["convert", "--force", "-O", "qcow2", "full.raw", "t.qcow2"]).unwrap();
        let outcome = write(&format!("driver=qcow2,file.filename=t.qcow2{options}"));
        assert!(outcome.success(), "{options}: {}", outcome.err());
        good(at, &["compare", "zero.raw", "t.qcow2"]).unwrap();
        let out = good(at, &["map", "--output", "json", "t.qcow2"]).unwrap().out();
        serde_json::from_str::<serde_json::Value>(&out).unwrap()[0].take()
    };
    assert_eq!(map("")["data"], true);
    let on = map(",detect-zeroes=on");
    assert!(on["zero"] == true && on["offset"].is_number(), "{on}");
    let unmap = map(",detect-zeroes=unmap,discard=unmap");
    assert!(unmap["zero"] == true && unmap["offset"].is_null(), "{unmap}");

    for (options, reason) in [
        (",detect-zeroes=unmap", "without setting discard operation to unmap"),
        (",file.detect-zeroes=on", "file.detect-zeroes"),
        (",file.discard=ignore", "file.discard"),
    ] {
        let outcome = write(&format!("driver=qcow2,file.filename=t.qcow2{options}"));
        assert!(!outcome.success() && outcome.err().contains(reason), "{}", outcome.err());
    }
}

#[test]
fn memory_does_not_grow_with_the_image() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    let sparse = std::fs::File::create(at.join("s.raw")).unwrap();
    sparse.set_len(200 << 30).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, &[7; 4096], 150 << 30).unwrap();
    let peak = |args: &[&str]| good(at, args).unwrap().cost.peak_rss >> 20;
    let plain = peak(&["convert", "-O", "qcow2", "s.raw", "s.qcow2"]);
    assert!(plain < 64, "{plain} MiB");
    let packed = peak(&["convert", "-c", "-m", "16", "-O", "qcow2", "s.qcow2", "c.qcow2"]);
    assert!(packed < 64 + 16 * 2, "{packed} MiB");
    good(at, &["compare", "s.qcow2", "c.qcow2"]).unwrap();
    let all = ["create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", "t.qcow2", "1T"];
    if !run(at, &all).unwrap().success() {
        return tools::skip(
            "check of 1 TiB",
            "no file of that length fits into the temporary folder",
        );
    }
    let check = peak(&["check", "t.qcow2"]);
    assert!(check < 100, "{check} MiB");
}

#[test]
fn completions_and_man_pages_are_sound() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    for shell in ["bash", "zsh", "fish"] {
        let Some(program) = tools::find(shell) else {
            tools::skip(&format!("the completions for {shell}"), &format!("no {shell} here"));
            continue;
        };
        let script = good(at, &["completions", shell]).unwrap().stdout;
        std::fs::write(at.join(shell), script).unwrap();
        let check = Invocation::new(program, at).args(["-n", shell]).run().unwrap();
        assert!(check.success() && check.stderr.is_empty(), "{shell}: {}", check.err());
    }
    let Some(mandoc) = tools::find("mandoc") else {
        return tools::skip("the man pages", "no mandoc here: apt-get install mandoc");
    };
    for command in ["", "check", "compare", "convert", "create", "info", "snapshot"] {
        let words = ["man", command];
        let page = good(at, &words[..if command.is_empty() { 1 } else { 2 }]).unwrap().stdout;
        std::fs::write(at.join("page.1"), page).unwrap();
        let lint = ["-Tlint", "-W", "warning", "page.1"];
        let said = Invocation::new(&mandoc, at).args(lint).run().unwrap();
        assert!(said.success(), "{command}: {}{}", said.out(), said.err());
    }
}

/// The same bytes have the same digest in every format, and it is SHA-256's where that is asked for.
#[test]
fn digests_do_not_depend_on_the_format() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let at = dir.path();
    let mut disk = vec![0; 5 << 20];
    disk[1_000_000..1_500_000].fill(7);
    disk[(4 << 20) + 123..].fill(9);
    std::fs::write(at.join("a.raw"), &disk).unwrap();
    let of = |args: &[&str]| {
        let said = good(at, &[&["digest"], args].concat()).unwrap();
        String::from_utf8(said.stdout).unwrap()
    };
    let raw = of(&["-f", "raw", "a.raw"]);
    let hash = raw.split_whitespace().next().unwrap().to_owned();
    assert!(hash.starts_with("rimg1:"), "{raw}");
    for (name, options) in [
        ("b.qcow2", &["-O", "qcow2"][..]),
        ("c.qcow2", &["-c", "-O", "qcow2"]),
        ("d.vmdk", &["-O", "vmdk"]),
        ("e.vmdk", &["-O", "vmdk", "-o", "subformat=streamOptimized"]),
        ("f.raw", &["-S", "0", "-O", "raw"]),
    ] {
        good(at, &[&["convert", "-f", "raw"], options, &["a.raw", name]].concat()).unwrap();
        assert_eq!(of(&[name]).split_whitespace().next(), Some(&hash[..]), "{name}");
        assert!(of(&["--expect", &hash, name]).contains("OK"));
    }
    let plain = of(&["--sha256", "d.vmdk"]);
    let theirs = suite::content::sha256(&at.join("a.raw")).unwrap();
    assert!(plain.starts_with(&format!("sha256:{theirs}")), "{plain}");
    of(&["--save", "b.qcow2"]);
    assert!(of(&["--check", "b.qcow2"]).contains("OK"));
    std::fs::copy(at.join("b.qcow2.digest"), at.join("a.raw.digest")).unwrap();
    disk[0] = 1;
    std::fs::write(at.join("a.raw"), &disk).unwrap();
    let ends = |args: &[&str]| run(at, args).unwrap().end;
    assert_eq!(ends(&["digest", "-f", "raw", "--check", "a.raw"]), End::Exit(1));
    assert_eq!(ends(&["digest", "--expect", "rimg1:12", "a.raw"]), End::Exit(2));
}
