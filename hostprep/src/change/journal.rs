//! The journal: an append-only file of lines, each a checksum and a JSON record, each on disk before what it
//! announces happens.
//!
//! A last line that is torn (the process or the machine died while writing it) announces nothing that was begun,
//! and is ignored. Damage before the last line is an error: then nothing in the file can be trusted.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use super::action::{Action, Before};
use crate::error::{Error, ErrorKind, Result};

/// Where journals live, below the root.
pub const STATE_FOLDER: &str = "/var/lib/rhostprep";

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "record")]
pub enum Record {
    /// The first line.
    Plan {
        /// Seconds since 1970.
        time: u64,
        /// All actions.
        actions: Vec<Action>,
    },
    /// Action `step` is about to begin.
    Intent {
        /// Index of the action.
        step: usize,
        /// What is there now.
        before: Before,
    },
    /// It is done.
    Done {
        /// Index of the action.
        step: usize,
    },
    /// All are done.
    Finished,
    /// Undoing has begun.
    Undoing,
    /// Everything is as before.
    Undone,
}

/// How far it got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JournalState {
    /// All actions were done.
    Applied,
    /// It ended in the middle of applying: this many steps were begun.
    Interrupted(usize),
    /// It ended in the middle of undoing.
    HalfUndone,
    /// Everything was undone.
    Undone,
}

/// A journal as read from disk.
#[derive(Debug)]
pub struct Journal {
    /// Its name.
    pub id: String,
    /// Records in order.
    pub records: Vec<Record>,
    /// Bytes of whole records; more than these are a torn line.
    whole: u64,
    path: PathBuf,
}

/// FNV-1a, 64 bits: finds torn and flipped lines; nobody attacks a file only root can write.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

enum Line {
    Whole(Record),
    /// Checksum and contents do not agree.
    Torn,
    /// Written whole, but not understood: by another version of this program.
    Foreign,
}

fn parse_line(bytes: &[u8]) -> Line {
    let line = std::str::from_utf8(bytes).ok().and_then(|line| line.split_once(' '));
    let Some((sum, json)) = line else { return Line::Torn };
    if u64::from_str_radix(sum, 16) != Ok(checksum(json.as_bytes())) {
        return Line::Torn;
    }
    serde_json::from_str(json).map_or(Line::Foreign, Line::Whole)
}

/// Makes the state folder; returns its place.
pub fn state_folder(root: &Path) -> Result<PathBuf> {
    let folder = root.join(STATE_FOLDER.trim_start_matches('/'));
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(|error| {
        Error::io("the journal's folder cannot be made", &folder, error)
            .remedy("run as root; without a journal nothing is changed")
    })?;
    Ok(folder)
}

/// Held while something changes: two of us at once would undo each other.
///
/// Programs that a change starts hold it too (it is their standard input, see [`super::program`]): when we are
/// killed while one of them still works, the next of us waits for it before it looks at what is there.
#[derive(Debug, Clone)]
pub struct Lock(std::sync::Arc<File>);

impl Lock {
    /// A handle for a child process, which then holds the lock as well.
    pub fn share(&self) -> std::io::Result<File> {
        self.0.try_clone()
    }
}

/// How long a change of somebody else is waited for. Only what hangs takes longer: questions are asked before
/// the lock is taken, and the slowest program that a change starts writes boot menus.
const PATIENCE: Duration = Duration::from_secs(90);

/// Takes the lock, or says who has it.
pub fn lock(root: &Path) -> Result<Lock> {
    lock_within(root, PATIENCE)
}

fn lock_within(root: &Path, patience: Duration) -> Result<Lock> {
    let path = state_folder(root)?.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(|error| Error::io("the lock cannot be opened", &path, error))?;
    let start = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Lock(std::sync::Arc::new(file))),
            Err(std::fs::TryLockError::WouldBlock) if start.elapsed() < patience => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(std::fs::TryLockError::WouldBlock) => break,
            Err(std::fs::TryLockError::Error(error)) => {
                return Err(Error::io("the lock cannot be taken", &path, error));
            }
        }
    }
    Err(Error::host("another rhostprep, or a program it started, is still changing this host")
        .at(&path)
        .remedy("wait for it to end; `fuser` with that file names it"))
}

impl Journal {
    /// Begins a journal for a plan.
    pub fn begin(root: &Path, actions: &[Action]) -> Result<Self> {
        let folder = state_folder(root)?;
        let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let number = names(root).last().and_then(|name| name.parse::<u32>().ok()).unwrap_or(0);
        let id = format!("{:04}", number.saturating_add(1));
        let path = folder.join(format!("{id}.journal"));
        File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| Error::io("the journal cannot be begun", &path, error))?;
        let mut journal = Self { id, records: Vec::new(), whole: 0, path };
        journal.write(Record::Plan { time: time.as_secs(), actions: actions.to_vec() })?;
        if let Ok(folder) = File::open(&folder) {
            let _ = folder.sync_all();
        }
        Ok(journal)
    }

    /// Reads a journal.
    pub fn load(root: &Path, id: &str) -> Result<Self> {
        if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(Error::usage(format!("'{id}' is not the number of a journal"))
                .remedy("`rhostprep status` lists them"));
        }
        let folder = root.join(STATE_FOLDER.trim_start_matches('/'));
        let path = folder.join(format!("{id}.journal"));
        let bytes = std::fs::read(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Error::usage(format!("there is no journal {id}"))
                .remedy("`rhostprep status` lists them"),
            _ => Error::io("the journal cannot be read", &path, error),
        })?;
        let mut records = Vec::new();
        let mut whole = 0;
        let mut at = 0;
        while at < bytes.len() {
            let end = bytes[at..].iter().position(|byte| *byte == b'\n');
            let line_end = end.map_or(bytes.len(), |end| at + end);
            let last = line_end + 1 >= bytes.len();
            match parse_line(&bytes[at..line_end]) {
                Line::Whole(record) if end.is_some() => records.push(record),
                Line::Torn | Line::Whole(_) if last => break,
                Line::Torn | Line::Whole(_) => {
                    return Err(Error::new(
                        ErrorKind::Damaged,
                        format!("the journal is damaged at byte {at}; nothing was undone"),
                    )
                    .at(path)
                    .remedy(
                        "restore the file from a backup, or move it away to give up this undo",
                    ));
                }
                Line::Foreign => {
                    return Err(Error::new(
                        ErrorKind::Damaged,
                        format!("the journal's record at byte {at} is not understood"),
                    )
                    .at(path)
                    .remedy("undo with the version of rhostprep that made the change"));
                }
            }
            at = line_end + 1;
            whole = at;
        }
        Ok(Self { id: id.to_owned(), records, whole: whole as u64, path })
    }

    /// Appends a record and waits until it is on disk.
    pub fn write(&mut self, record: Record) -> Result<()> {
        let json = serde_json::to_string(&record)
            .map_err(|error| Error::host(format!("the journal cannot be written: {error}")))?;
        let line = format!("{:016x} {json}\n", checksum(json.as_bytes()));
        let append = || -> std::io::Result<()> {
            let mut file = File::options().append(true).open(&self.path)?;
            // A torn line of a dead process would swallow this one.
            file.set_len(self.whole)?;
            file.write_all(line.as_bytes())?;
            file.sync_data()
        };
        append().map_err(|error| {
            Error::io(
                "the journal cannot be written, so nothing more is changed",
                &self.path,
                error,
            )
        })?;
        self.whole += line.len() as u64;
        self.records.push(record);
        Ok(())
    }

    /// How far it got.
    pub fn state(&self) -> JournalState {
        match self.records.last() {
            Some(Record::Undone) => JournalState::Undone,
            // Killed before the plan was on disk: nothing was begun.
            None => JournalState::Undone,
            _ if self.records.contains(&Record::Undoing) => JournalState::HalfUndone,
            _ if self.records.contains(&Record::Finished) => JournalState::Applied,
            _ => JournalState::Interrupted(self.intents().count()),
        }
    }

    /// The plan's actions.
    pub fn actions(&self) -> &[Action] {
        match self.records.first() {
            Some(Record::Plan { actions, .. }) => actions,
            _ => &[],
        }
    }

    /// When it was begun, in seconds since 1970.
    pub fn time(&self) -> u64 {
        match self.records.first() {
            Some(Record::Plan { time, .. }) => *time,
            _ => 0,
        }
    }

    /// Steps that were begun, with what was before them.
    pub fn intents(&self) -> impl DoubleEndedIterator<Item = (usize, &Before)> {
        self.records.iter().filter_map(|record| match record {
            Record::Intent { step, before } => Some((*step, before)),
            _ => None,
        })
    }
}

/// Numbers of all journals, oldest first.
pub fn names(root: &Path) -> Vec<String> {
    let folder = root.join(STATE_FOLDER.trim_start_matches('/'));
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = names
        .filter_map(|name| Some(name.strip_suffix(".journal")?.to_owned()))
        .filter(|name| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit()))
        .collect();
    names.sort_by_key(|name| (name.len(), name.clone()));
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_holds_the_lock_after_its_parent() {
        let folder = tempfile::tempdir().unwrap();
        let lock = lock_within(folder.path(), Duration::ZERO).unwrap();
        // The child ends when its standard output has no reader any more, and not before.
        let mut child = std::process::Command::new("sh")
            .args(["-c", "echo started; exec cat /dev/zero"])
            .stdin(lock.share().unwrap())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        drop(lock);
        let error = lock_within(folder.path(), Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().contains("still changing"), "{error}");
        drop(child.stdout.take());
        child.wait().unwrap();
        lock_within(folder.path(), Duration::from_secs(60)).unwrap();
    }
}
