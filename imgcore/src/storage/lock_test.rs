//! Locks against ourselves and against the real qemu-io, in both directions.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};

use super::*;

fn image() -> tempfile::NamedTempFile {
    let mut f = tempfile::NamedTempFile::new().unwrap();
    f.write_all(&[0; 4096]).unwrap();
    f
}

fn open(f: &tempfile::NamedTempFile) -> File {
    File::options().read(true).write(true).open(f.path()).unwrap()
}

fn message(result: Result<FileLock, LockError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn between_two_openings() {
    let f = image();
    let (a, b) = (open(&f), open(&f));
    let first = FileLock::acquire(&a, LockSet::EXCLUSIVE_WRITE).unwrap();
    assert_eq!(
        message(FileLock::acquire(&b, LockSet::STABLE_READ)),
        "Failed to get shared \"write\" lock"
    );
    assert_eq!(
        message(FileLock::acquire(&b, LockSet::EXCLUSIVE_WRITE)),
        "Failed to get \"write\" lock"
    );
    FileLock::acquire(&b, LockSet::FORCE_SHARE).unwrap();
    FileLock::acquire(&b, LockSet::RAW_READ).unwrap();
    drop(first);
    FileLock::acquire(&b, LockSet::EXCLUSIVE_WRITE).unwrap();
}

#[test]
fn the_holder_is_named() {
    let f = image();
    let (a, b) = (open(&f), open(&f));
    let _first = FileLock::acquire(&a, LockSet::EXCLUSIVE_WRITE).unwrap();
    let Err(LockError::Conflict(c)) = FileLock::acquire(&b, LockSet::STABLE_READ) else { panic!() };
    assert_eq!(c.holders(), [Holder::Ourselves]);
}

#[test]
fn a_refused_change_keeps_what_was_held() {
    let f = image();
    let (a, b) = (open(&f), open(&f));
    let mut first = FileLock::acquire(&a, LockSet::STABLE_READ).unwrap();
    let second = FileLock::acquire(&b, LockSet::STABLE_READ).unwrap();
    let e = first.change(LockSet::EXCLUSIVE_WRITE).unwrap_err();
    assert_eq!(e.to_string(), "Failed to get \"write\" lock");
    assert_eq!(first.held(), LockSet::STABLE_READ);
    drop(second);
    first.change(LockSet::EXCLUSIVE_WRITE).unwrap();
    assert!(FileLock::acquire(&b, LockSet::STABLE_READ).is_err());
    first.change(LockSet::STABLE_READ).unwrap();
    FileLock::acquire(&b, LockSet::STABLE_READ).unwrap();
}

#[test]
fn raw_images_may_be_shared_by_writers() {
    let f = image();
    let (a, b) = (open(&f), open(&f));
    let _first = FileLock::acquire(&a, LockSet::RAW_WRITE).unwrap();
    FileLock::acquire(&b, LockSet::RAW_WRITE).unwrap();
}

/// A qemu-io that has the image open until it is dropped; `None` where there is no qemu-io.
struct QemuIo(Child);

impl QemuIo {
    fn start(args: &[&str], f: &tempfile::NamedTempFile) -> Option<Self> {
        let mut child = Command::new("qemu-io")
            .args(args)
            .arg(f.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .ok()?;
        let mut out = child.stdout.take().unwrap();
        // The prompt comes after the image is open.
        let mut seen = Vec::new();
        let mut byte = [0];
        while !seen.ends_with(b"qemu-io> ") && out.read(&mut byte).unwrap() == 1 {
            seen.push(byte[0]);
        }
        assert!(seen.ends_with(b"qemu-io> "), "{}", String::from_utf8_lossy(&seen));
        Some(QemuIo(child))
    }
}

impl Drop for QemuIo {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// qemu-io's complaint, or an empty text if it could open the image.
fn qemu_io_says(args: &[&str], f: &tempfile::NamedTempFile) -> Option<String> {
    let out =
        Command::new("qemu-io").args(args).args(["-c", "quit"]).arg(f.path()).output().ok()?;
    Some(String::from_utf8_lossy(&out.stderr).into_owned())
}

fn qcow2() -> Option<tempfile::NamedTempFile> {
    let f = tempfile::NamedTempFile::new().unwrap();
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(f.path())
        .arg("1M")
        .status();
    match made {
        Ok(s) if s.success() => Some(f),
        _ => {
            eprintln!("skipped: no qemu-img");
            None
        }
    }
}

#[test]
fn against_a_writing_qemu_io() {
    let Some(f) = qcow2() else { return };
    let Some(other) = QemuIo::start(&["-f", "qcow2"], &f) else { return };
    let b = open(&f);
    for set in [LockSet::STABLE_READ, LockSet::INSPECT] {
        let Err(LockError::Conflict(c)) = FileLock::acquire(&b, set) else { panic!() };
        assert_eq!(c.to_string(), "Failed to get shared \"write\" lock");
        let [Holder::Process { pid, name, command }] = c.holders() else { panic!() };
        assert_eq!((*pid, name.as_str()), (other.0.id(), "qemu-io"));
        assert!(command.starts_with("qemu-io -f qcow2 /"), "{command}");
        let hints = c.hints("x.qcow2");
        assert_eq!(hints[0], "Is another process using the image [x.qcow2]?");
        assert!(hints[1].starts_with("It is held by qemu-io (pid "));
    }
    for set in [LockSet::EXCLUSIVE_WRITE, LockSet::CREATE] {
        assert_eq!(message(FileLock::acquire(&b, set)), "Failed to get \"write\" lock");
    }
    FileLock::acquire(&b, LockSet::FORCE_SHARE).unwrap();
    drop(other);
    FileLock::acquire(&b, LockSet::EXCLUSIVE_WRITE).unwrap();
}

#[test]
fn against_a_reading_qemu_io() {
    let Some(f) = qcow2() else { return };
    let Some(_other) = QemuIo::start(&["-r", "-f", "qcow2"], &f) else { return };
    let b = open(&f);
    FileLock::acquire(&b, LockSet::STABLE_READ).unwrap();
    FileLock::acquire(&b, LockSet::INSPECT).unwrap();
    let refused = FileLock::acquire(&b, LockSet::EXCLUSIVE_WRITE);
    assert_eq!(message(refused), "Failed to get \"write\" lock");
}

#[test]
fn against_a_raw_qemu_io() {
    let f = image();
    let Some(_other) = QemuIo::start(&["-f", "raw"], &f) else { return };
    let b = open(&f);
    FileLock::acquire(&b, LockSet::RAW_READ).unwrap();
    FileLock::acquire(&b, LockSet::RAW_WRITE).unwrap();
    let refused = FileLock::acquire(&b, LockSet::STABLE_READ);
    assert_eq!(message(refused), "Failed to get shared \"write\" lock");
}

#[test]
fn qemu_io_respects_ours() {
    let Some(f) = qcow2() else { return };
    let a = open(&f);
    let mut lock = FileLock::acquire(&a, LockSet::EXCLUSIVE_WRITE).unwrap();
    let Some(text) = qemu_io_says(&["-f", "qcow2"], &f) else { return };
    assert!(text.contains("Failed to get \"write\" lock"), "{text}");
    let text = qemu_io_says(&["-r", "-f", "qcow2"], &f).unwrap();
    assert!(text.contains("Failed to get shared \"write\" lock"), "{text}");
    assert_eq!(qemu_io_says(&["-U", "-r", "-f", "qcow2"], &f).unwrap(), "");
    lock.change(LockSet::STABLE_READ).unwrap();
    assert_eq!(qemu_io_says(&["-r", "-f", "qcow2"], &f).unwrap(), "");
    let text = qemu_io_says(&["-f", "qcow2"], &f).unwrap();
    assert!(text.contains("Failed to get \"write\" lock"), "{text}");
    drop(lock);
    assert_eq!(qemu_io_says(&["-f", "qcow2"], &f).unwrap(), "");
}
