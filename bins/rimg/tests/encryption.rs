//! What qemu-img cannot be compared on: passphrases asked for on a terminal, detached headers, LUKS2, the
//! keyring.

#![allow(clippy::unwrap_used, clippy::panic)] // all of it is test code

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

const RIMG: &str = env!("CARGO_BIN_EXE_rimg");

fn rimg(dir: &Path, line: &str) -> Output {
    Command::new(RIMG).args(line.split(' ')).current_dir(dir).stdin(Stdio::null()).output().unwrap()
}

/// What a command that must succeed printed.
fn must(dir: &Path, line: &str) -> String {
    let out = rimg(dir, line);
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{line}: {said}");
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// The message of a command that must fail.
fn refused(dir: &Path, line: &str) -> String {
    let out = rimg(dir, line);
    assert_eq!(out.status.code(), Some(1), "{line}");
    String::from_utf8_lossy(&out.stderr).into_owned()
}

/// Ends with the test, whatever happens.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a command on a terminal of its own (by script(1)) and answers its questions; `None` (told) where
/// there is no script. Success, and everything that the terminal showed.
fn on_terminal(dir: &Path, line: &str, answers: &[&str]) -> Option<(bool, String)> {
    let child = Command::new("script")
        .args(["-q", "-e", "-c", &format!("{RIMG} {line}"), "/dev/null"])
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let Ok(child) = child else {
        eprintln!("SKIPPED passphrases on a terminal: script(1) is not installed");
        return None;
    };
    let mut child = Running(child);
    let mut keys = child.0.stdin.take().unwrap();
    let mut screen = child.0.stdout.take().unwrap();
    let (mut shown, mut answered, mut answers) = (Vec::new(), 0, answers.iter());
    let mut bytes = [0; 256];
    while let Ok(n @ 1..) = screen.read(&mut bytes) {
        shown.extend_from_slice(&bytes[..n]);
        if shown[answered..].ends_with(b": ")
            && let Some(answer) = answers.next()
        {
            keys.write_all(format!("{answer}\n").as_bytes()).unwrap();
            answered = shown.len();
        }
    }
    let good = child.0.wait().unwrap().success();
    Some((good, String::from_utf8_lossy(&shown).into_owned()))
}

#[test]
fn passphrases_are_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let make = "create -q -f luks -o iter-time=10 a.luks 1M";
    let Some((good, shown)) = on_terminal(dir, make, &["one", "two"]) else { return };
    assert!(!good && shown.contains("the two passphrases differ"), "{shown}");
    assert!(!dir.join("a.luks").exists());
    let (good, shown) = on_terminal(dir, make, &["pass word", "pass word"]).unwrap();
    assert!(good && shown.contains("New passphrase for 'a.luks'"), "{shown}");
    assert!(!shown.contains("pass word"), "{shown}");
    let convert = "convert -O qcow2 -o encrypt.format=luks,encrypt.iter-time=10 a.luks b.qcow2";
    let (good, shown) = on_terminal(dir, convert, &["pass word", "other", "other"]).unwrap();
    assert!(good, "{shown}");
    let (good, shown) =
        on_terminal(dir, "compare a.luks b.qcow2", &["pass word", "other"]).unwrap();
    assert!(good && shown.contains("Images are identical."), "{shown}");
    let (good, shown) = on_terminal(dir, "map a.luks", &["wrong"]).unwrap();
    assert!(!good && shown.contains("Invalid password, cannot unlock any keyslot"), "{shown}");
    // Nobody to ask: qemu-img's words.
    let said = refused(dir, "map a.luks");
    assert!(said.contains("Parameter 'key-secret' is required for cipher"), "{said}");
}

#[test]
fn the_legacy_encryption_is_warned_of() {
    let dir = tempfile::tempdir().unwrap();
    let line = "create -f qcow2 --object secret,id=s,data=x -o encrypt.format=aes,encrypt.key-secret=s a.qcow2 1M";
    let out = rimg(dir.path(), line);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success() && said.contains("warning: the 'aes' encryption"), "{said}");
}

#[test]
fn a_header_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let content: Vec<u8> = (0..1_048_576u32).map(|i| i.to_le_bytes()[1] | 1).collect();
    std::fs::write(dir.join("a.raw"), &content).unwrap();
    std::fs::write(dir.join("disk"), vec![0; content.len()]).unwrap();
    let secret = "--object secret,id=s,data=abc";
    must(
        dir,
        &format!("create -f luks {secret} -o key-secret=s,iter-time=10,detached-header=on h.luks"),
    );
    let opts = "driver=luks,file.filename=disk,header.filename=h.luks,key-secret=s";
    must(dir, &format!("convert -n {secret} --target-image-opts a.raw {opts}"));
    let info = must(dir, &format!("info {secret} --image-opts {opts}"));
    assert!(info.contains("detached header: true") && info.contains("payload offset: 0"), "{info}");
    assert!(info.contains("virtual size: 1 MiB"), "{info}");
    must(dir, &format!("convert {secret} --image-opts -O raw {opts} b.raw"));
    assert!(std::fs::read(dir.join("b.raw")).unwrap() == content);
    assert!(std::fs::read(dir.join("disk")).unwrap() != content);
    let amend = format!(
        "amend {secret} --object secret,id=n,data=new -o state=active,new-secret=n,iter-time=10 --image-opts {opts}"
    );
    must(dir, &amend);
    let new = "--object secret,id=s,data=new";
    must(dir, &format!("compare {new} --image-opts {opts} driver=raw,file.filename=b.raw"));
    let said = refused(
        dir,
        &format!(
            "convert {secret} --image-opts -O raw driver=luks,file.filename=h.luks,key-secret=s c.raw"
        ),
    );
    assert!(said.contains("LUKS payload is overlapping with the header"), "{said}");
    assert!(said.contains("header.filename=HEADER"), "{said}");
    // The reference opens the same pair.
    let image = "--image-opts driver=luks,file.filename=disk,header.filename=h.luks,key-secret=s driver=raw,file.filename=a.raw";
    let line = format!("compare {secret} {image}");
    match Command::new("qemu-img").args(line.split(' ')).current_dir(dir).output() {
        Ok(out) => {
            let said = String::from_utf8_lossy(&out.stderr);
            assert!(out.status.success(), "{said}");
        }
        Err(_) => eprintln!("SKIPPED the second opinion on detached headers: no qemu-img here"),
    }
}

/// The key is in this process's own keyring; a process that rimg runs in does not see it, so the test makes
/// a session of its own (by keyctl(1)).
#[test]
fn secrets_of_the_keyring() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    must(
        dir,
        "create -q -f luks --object secret,id=s,data=abc -o key-secret=s,iter-time=10 a.luks 1M",
    );
    let script = format!(
        "id=$(keyctl add user rimg-test abc @s) && {RIMG} convert --object secret_keyring,id=s,serial=$id \
         --image-opts -O raw driver=luks,file.filename=a.luks,key-secret=s b.raw"
    );
    let out = Command::new("keyctl")
        .args(["session", "-", "sh", "-c", &script])
        .current_dir(dir)
        .output();
    match out {
        Ok(out) if dir.join("b.raw").exists() => assert!(out.status.success()),
        Ok(out) => {
            let said = String::from_utf8_lossy(&out.stderr).into_owned();
            // Containers often may not use keys at all.
            assert!(said.contains("keyctl_") || said.contains("not permitted"), "{said}");
            eprintln!("SKIPPED secrets of the keyring: {}", said.trim());
        }
        Err(_) => eprintln!("SKIPPED secrets of the keyring: keyctl(1) is not installed"),
    }
}
