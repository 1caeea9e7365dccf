//! Who holds a lock: the process to name when an image is in use.
//!
//! A lock that belongs to an open file description has no process in `/proc/locks` (it shows -1),
//! but `/proc/PID/fdinfo/FD` lists the locks of each descriptor. So the processes are gone through,
//! and those descriptors that are this very file are looked at. All of it is best effort: what may
//! not be read is skipped, and the search ends after a short time.

use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};

use super::lock::range;

/// Longest search.
const PATIENCE: Duration = Duration::from_millis(250);
/// Longest command line shown, in characters.
const COMMAND_LENGTH: usize = 160;

/// A process that holds a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// This process, through another opening of the same file.
    Ourselves,
    /// Another process.
    Process {
        /// Its number.
        pid: u32,
        /// Its short name.
        name: String,
        /// Its command line, shortened, without control characters.
        command: String,
    },
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Holder::Ourselves => f.write_str("open twice in this very command"),
            Holder::Process { pid, name, command } if command.is_empty() => {
                write!(f, "held by {name} (pid {pid})")
            }
            Holder::Process { pid, name, command } => {
                write!(f, "held by {name} (pid {pid}: {command})")
            }
        }
    }
}

/// Who has a lock on this byte of this file. Others come first; this process is named only when
/// nobody else is found.
pub fn holders(file: &File, byte: i64) -> Vec<Holder> {
    let Ok(meta) = file.metadata() else { return Vec::new() };
    let id = FileId { dev: meta.dev(), ino: meta.ino() };
    let deadline = Instant::now() + PATIENCE;
    let mut found: Vec<_> =
        others(id, &[byte], deadline).into_iter().map(|(_, holder)| holder).collect();
    if found.is_empty() {
        found = remembered(id, byte);
    }
    // The caller's own descriptor is among these, but its lock on the *opposite* byte is not.
    if found.is_empty() && !held(Path::new("/proc/self"), id, &[byte], deadline).is_empty() {
        found.push(Holder::Ourselves);
    }
    found
}

/// Other processes that have locks on some of these bytes of a file, with the byte.
fn others(id: FileId, bytes: &[i64], deadline: Instant) -> Vec<(i64, Holder)> {
    let own = std::process::id();
    let mut found = Vec::new();
    let Ok(processes) = fs::read_dir("/proc") else { return found };
    for process in processes.flatten() {
        if Instant::now() > deadline {
            break;
        }
        let Some(pid) = process.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else {
            continue;
        };
        if pid == own {
            continue;
        }
        let here = held(&process.path(), id, bytes, deadline);
        if !here.is_empty() {
            let holder = describe(pid, &process.path());
            found.extend(here.into_iter().map(|byte| (byte, holder.clone())));
        }
    }
    found
}

/// Who held which byte when [`remember`] looked.
static SEEN: Mutex<Vec<(FileId, i64, Holder)>> = Mutex::new(Vec::new());

/// Bytes of QEMU's protocol ([`super::lock`]).
const BYTES: [i64; 8] = [100, 101, 102, 103, 200, 201, 202, 203];

/// Looks who uses a file now, for a process that confines itself next: the kernel then no longer tells it what other
/// processes have open. Costs little where nobody does.
pub fn remember(path: &Path) {
    // Opening a pipe would wait for somebody at its other end.
    let Ok(meta) = fs::metadata(path) else { return };
    if !meta.is_file() {
        return;
    }
    let Ok(file) = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path) else {
        return;
    };
    let locked = |byte: &i64| {
        let mut lock = range(*byte, libc::F_WRLCK);
        let asked = fcntl(&file, FcntlArg::F_OFD_GETLK(&mut lock));
        asked.is_ok() && i32::from(lock.l_type) != libc::F_UNLCK
    };
    let mut bytes: Vec<i64> = BYTES.into_iter().filter(locked).collect();
    // The part of an unfinished image is held as a whole; asking for that lock would take it.
    if path.extension().is_some_and(|e| e == "part") {
        bytes.push(0);
    }
    if bytes.is_empty() {
        return;
    }
    let id = FileId { dev: meta.dev(), ino: meta.ino() };
    let found = others(id, &bytes, Instant::now() + PATIENCE);
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    seen.extend(found.into_iter().map(|(byte, holder)| (id, byte, holder)));
}

fn remembered(id: FileId, byte: i64) -> Vec<Holder> {
    let seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    let found = seen.iter().filter(|(file, at, _)| *file == id && *at == byte);
    found.map(|(_, _, holder)| holder.clone()).collect()
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct FileId {
    dev: u64,
    ino: u64,
}

/// Those of `bytes` of a file that a process has locks on.
fn held(process: &Path, id: FileId, bytes: &[i64], deadline: Instant) -> Vec<i64> {
    let mut found = Vec::new();
    let Ok(descriptors) = fs::read_dir(process.join("fd")) else { return found };
    for fd in descriptors.flatten() {
        if found.len() == bytes.len() || Instant::now() > deadline {
            break;
        }
        // Follows the link to the open file itself, even if its name is gone.
        let Ok(meta) = fs::metadata(fd.path()) else { continue };
        if (FileId { dev: meta.dev(), ino: meta.ino() }) != id {
            continue;
        }
        let Ok(info) = fs::read_to_string(process.join("fdinfo").join(fd.file_name())) else {
            continue;
        };
        for (first, last) in info.lines().filter_map(lock_range) {
            let new = bytes.iter().filter(|b| (first..=last).contains(*b) && !found.contains(*b));
            let new: Vec<i64> = new.copied().collect();
            found.extend(new);
        }
    }
    found
}

/// The first and last byte of a line `lock: 1: OFDLCK ADVISORY READ -1 fe:00:123 100 101`.
fn lock_range(line: &str) -> Option<(i64, i64)> {
    let rest = line.strip_prefix("lock:")?;
    let mut words = rest.split_ascii_whitespace().rev();
    let last = words.next()?;
    let first = words.next()?.parse().ok()?;
    let last = if last == "EOF" { i64::MAX } else { last.parse().ok()? };
    Some((first, last))
}

fn describe(pid: u32, process: &Path) -> Holder {
    let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
    let raw = fs::read(process.join("cmdline")).unwrap_or_default();
    let words: Vec<String> = raw
        .split(|b| *b == 0)
        .filter(|w| !w.is_empty())
        .map(|w| printable(&String::from_utf8_lossy(w)))
        .collect();
    let mut command = words.join(" ");
    if command.chars().count() > COMMAND_LENGTH {
        command = command.chars().take(COMMAND_LENGTH).collect::<String>() + " …";
    }
    let name = printable(name.trim());
    Holder::Process { pid, name: if name.is_empty() { "a process".into() } else { name }, command }
}

/// Another process's words must not steer the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_lines() {
        let line = "lock:\t1: OFDLCK ADVISORY  READ -1 fe:00:10010719 100 101";
        assert_eq!(lock_range(line), Some((100, 101)));
        let line = "lock:\t1: POSIX  ADVISORY  WRITE 77 08:01:5 0 EOF";
        assert_eq!(lock_range(line), Some((0, i64::MAX)));
        for line in ["", "pos:\t0", "lock:", "lock:\tx", "lock:\t1: a b c"] {
            assert_eq!(lock_range(line), None);
        }
    }

    #[test]
    fn wording() {
        let h = Holder::Process { pid: 7, name: "qemu-io".into(), command: "qemu-io a".into() };
        assert_eq!(h.to_string(), "held by qemu-io (pid 7: qemu-io a)");
        assert_eq!(printable("a\x1b[2Jb"), "a?[2Jb");
    }
}
