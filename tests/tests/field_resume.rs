//! `rimg convert --resume` and `--verify`: killed at any moment, the same command goes on and ends with the
//! right image; what must not be gone on with is refused.

#![allow(clippy::unwrap_used)] // all of it is test code

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use suite::field;
use suite::process::{Invocation, Outcome};
use suite::tools;

fn rimg(dir: &Path, args: &[&str]) -> Outcome {
    field::rimg(dir, args).unwrap()
}

struct Dice(u64);

impl Dice {
    fn roll(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) % n
    }
}

/// Runs of bytes, zeroes and noise of all lengths.
fn source(path: &Path, len: u64) {
    let file = std::fs::File::create(path).unwrap();
    file.set_len(len).unwrap();
    let mut dice = Dice(11);
    let mut at = 0;
    while at < len {
        let run = (512 * (1 + dice.roll(600))).min(len - at);
        let bytes: Vec<u8> = match dice.roll(4) {
            0 => vec![u8::try_from(1 + dice.roll(255)).unwrap(); usize::try_from(run).unwrap()],
            1 | 2 => (0..run).map(|_| u8::try_from(dice.roll(256)).unwrap()).collect(),
            _ => Vec::new(),
        };
        file.write_all_at(&bytes, at).unwrap();
        at += run;
    }
}

/// Starts the command and kills it after so many milliseconds. Whether it had ended by itself.
fn killed(dir: &Path, args: &[&str], after: u64, signal: Signal) -> bool {
    let mut command = Command::new(tools::rimg().unwrap());
    command.args(args).current_dir(dir).stdout(Stdio::null()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    std::thread::sleep(Duration::from_millis(after));
    let _ = kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal);
    let end = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&end.stderr);
    assert!(end.status.code().is_none_or(|c| c == 0 || c > 128), "{args:?}: {said}");
    end.status.success()
}

fn check(dir: &Path, driver: &str, image: &str) {
    let same = rimg(dir, &["compare", "-f", "raw", "-F", driver, "a.raw", image]);
    assert!(same.success(), "{image}: {}{}", same.out(), same.err());
    let sound = rimg(dir, &["check", "-f", driver, image]);
    let code = sound.end.to_string();
    assert!(
        sound.success() || code.contains("63"),
        "{image}: {code}: {}{}",
        sound.out(),
        sound.err()
    );
    if let Ok(reference) = tools::Reference::find() {
        let args = ["compare", "-f", "raw", "-F", driver, "a.raw", image];
        let call = Invocation::new(&reference.img, dir).args(args);
        let same = call.time_limit(Duration::from_secs(300)).run().unwrap();
        assert!(same.success(), "{image}: {}{}", same.out(), same.err());
    }
}

#[test]
fn killed_at_any_moment_it_goes_on() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let at = dir.path();
    source(&at.join("a.raw"), (24 << 20) + 1024);
    let mut dice = Dice(5);
    let (mut interrupted, mut resumed) = (0, 0);
    let targets: [(&str, &[&str]); 9] = [
        ("raw", &[]),
        ("qcow2", &[]),
        ("qcow2", &["-o", "cluster_size=512"]),
        ("qcow2", &["-c"]),
        ("qcow2", &["-o", "data_file=d.data"]),
        ("vmdk", &[]),
        ("vdi", &[]),
        ("vhdx", &[]),
        ("vpc", &["-o", "force_size=on"]),
    ];
    for (i, (driver, more)) in targets.iter().enumerate() {
        for every in ["0", "1"] {
            let image = format!("{driver}-{i}-{every}");
            let mut args = vec![
                "convert",
                "--resume",
                "--force",
                "--checkpoint",
                every,
                "-r",
                "5M",
                "-O",
                driver,
            ];
            args.extend_from_slice(more);
            args.extend_from_slice(&["-f", "raw", "a.raw", &image]);
            for _ in 0..2 {
                let signal = if dice.roll(3) == 0 { Signal::SIGINT } else { Signal::SIGKILL };
                if killed(at, &args, 60 + dice.roll(1400), signal) {
                    break;
                }
                interrupted += 1;
                assert!(!at.join(&image).exists(), "{image} is there before it is whole");
            }
            let journal = at.join(format!("{image}.part.json")).exists();
            args.retain(|a| !matches!(*a, "-r" | "5M"));
            args.extend_from_slice(&["--verify", "--output", "json"]);
            let end = rimg(at, &args);
            assert!(end.success(), "{args:?}: {}", end.err());
            let report: serde_json::Value = serde_json::from_str(&end.out()).unwrap();
            assert_eq!(report["verified"], true);
            if journal {
                assert!(report["resumed-at"].as_u64().unwrap() > 0, "{args:?} began anew");
                resumed += 1;
            }
            check(at, driver, &image);
            let left: Vec<_> = std::fs::read_dir(at)
                .unwrap()
                .map(|e| e.unwrap().file_name().into_string().unwrap())
                .filter(|n| n.contains(".part"))
                .collect();
            assert!(left.is_empty(), "{left:?}");
            std::fs::remove_file(at.join(&image)).unwrap();
        }
    }
    tools::say(&format!("{interrupted} interruptions, {resumed} conversions resumed"));
    assert!(resumed > 5);
}

#[test]
fn an_overlay_is_resumed_too() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let at = dir.path();
    source(&at.join("a.raw"), 24 << 20);
    assert!(rimg(at, &["convert", "-O", "qcow2", "a.raw", "base"]).success());
    assert!(rimg(at, &["create", "-f", "qcow2", "-b", "base", "-F", "qcow2", "top"]).success());
    let changes = std::fs::read(at.join("a.raw")).unwrap();
    std::fs::write(at.join("b.raw"), changes.iter().map(|b| b ^ 1).collect::<Vec<_>>()).unwrap();
    assert!(rimg(at, &["convert", "-n", "-O", "qcow2", "b.raw", "top"]).success());
    let args = [
        "convert",
        "--resume",
        "--checkpoint",
        "0",
        "-r",
        "16M",
        "-O",
        "qcow2",
        "-B",
        "base",
        "-F",
        "qcow2",
        "top",
        "new",
    ];
    for after in [300, 500] {
        assert!(!killed(at, &args, after, Signal::SIGKILL));
    }
    let end = rimg(at, &[&args[..], &["--verify"]].concat());
    assert!(end.success(), "{}", end.err());
    let same = rimg(at, &["compare", "b.raw", "new"]);
    assert!(same.success(), "{}", same.out());
}

#[test]
fn what_has_changed_is_not_gone_on_with() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let at = dir.path();
    source(&at.join("a.raw"), 24 << 20);
    let slow = [
        "convert",
        "--resume",
        "--checkpoint",
        "0",
        "-r",
        "8M",
        "-O",
        "qcow2",
        "-f",
        "raw",
        "a.raw",
        "b",
    ];
    assert!(!killed(at, &slow, 800, Signal::SIGTERM));
    assert!(at.join("b.part").exists() && at.join("b.part.json").exists());
    // Other options.
    let other =
        ["convert", "--resume", "-O", "qcow2", "-o", "cluster_size=4k", "-f", "raw", "a.raw", "b"];
    let end = rimg(at, &other);
    assert!(!end.success() && end.err().contains("other options"), "{}", end.err());
    // The file has another date, but it is also the same: told as changed.
    let file = std::fs::File::options().write(true).open(at.join("a.raw")).unwrap();
    let before = file.metadata().unwrap().modified().unwrap();
    let mut first = [0; 4096];
    file.write_all_at(&[0xee; 4096], 0).unwrap();
    let end = rimg(at, &slow);
    assert!(!end.success() && end.err().contains("has changed since"), "{}", end.err());
    assert!(end.err().contains("hint: to begin anew: rm 'b.part.json'"), "{}", end.err());
    // Even with the old date the samples tell: everything below the checkpoint is another.
    for i in 0..24 * 256 {
        first.fill(0xee);
        file.write_all_at(&first, i * 4096).unwrap();
    }
    file.set_modified(before).unwrap();
    let end = rimg(at, &slow);
    assert!(!end.success() && end.err().contains("not what the source has now"), "{}", end.err());
    // Without --resume it begins anew, and nothing of the old run is left.
    let end = rimg(at, &["convert", "--verify", "-O", "qcow2", "-f", "raw", "a.raw", "b"]);
    assert!(end.success(), "{}", end.err());
    assert!(!at.join("b.part").exists() && !at.join("b.part.json").exists());
    check(at, "qcow2", "b");
    // What cannot be resumed is said before anything is written.
    for (args, why) in [
        (&["-O", "vmdk", "-o", "subformat=streamOptimized"][..], "front to back"),
        (&["-n", "-O", "qcow2"], "is created"),
        (&["--bitmaps", "-O", "qcow2"], "bitmaps"),
    ] {
        let all =
            [&["convert", "--resume", "--force", "-f", "raw"], args, &["a.raw", "b"]].concat();
        let end = rimg(at, &all);
        assert!(!end.success() && end.err().contains(why), "{args:?}: {}", end.err());
    }
    check(at, "qcow2", "b");
    let alone = rimg(at, &["convert", "--checkpoint", "3", "a.raw", "c"]);
    assert!(!alone.success() && alone.err().contains("--resume"), "{}", alone.err());
}
